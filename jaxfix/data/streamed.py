"""Image sets too large for memory: rows are decoded when, and only when, they are asked for."""
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any, Protocol

import numpy as np

from jaxfix.data import images as image_codec
from jaxfix.errors import BadInputError, require
from jaxfix.problem import Split

Rows = np.ndarray | slice | int


class Reader(Protocol):
  """Encoded images at random access."""

  def __len__(self) -> int:
    """Rows of the whole set."""

  def read(self, rows: np.ndarray) -> tuple[Sequence[bytes], np.ndarray]:
    """Encoded images and `[k]` int32 labels of `rows`, in that order."""

  def labels(self, rows: np.ndarray) -> np.ndarray:
    """`[k]` int32 labels of `rows`, without decoding an image."""

  def where(self, row: int) -> str:
    """What to call a row in an error message."""


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedImages:
  """Looks like `[n, s, s, 3]` uint8, holds none of it. Indexing decodes the rows that are indexed.

  Attributes:
    reader: the encoded images.
    rows: `[n]` int32, which of them, in which order.
    image_size: s.
  """
  reader: Reader
  rows: np.ndarray
  image_size: int

  dtype = np.dtype(np.uint8)
  ndim = 4

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """`(n, s, s, 3)`."""
    return len(self.rows), self.image_size, self.image_size, 3

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: Rows) -> np.ndarray:
    rows = self.rows[index]
    images = self.decoded(np.atleast_1d(rows))[0]
    return images[0] if np.ndim(rows) == 0 else images

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    raise BadInputError(f'{len(self)} streamed images are not loaded whole; use batches(batch_size), or index the rows '
                        'that you need.')

  def batches(self, batch_size: int) -> Iterator[np.ndarray]:
    """Yields uint8 `[b, s, s, 3]` in order, `b = batch_size` but for the last; one batch in memory at a time."""
    for chunk in _chunks(self.rows, batch_size):
      yield self.decoded(chunk)[0]

  def decoded(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images `[k, s, s, 3]` uint8 and labels `[k]` int32 of rows of the reader (not of this view)."""
    blobs, labels = self.reader.read(rows)
    out = np.empty((len(rows), self.image_size, self.image_size, 3), np.uint8)

    def fill(i: int) -> None:
      out[i] = image_codec.decode_resized(blobs[i], self.image_size, self.reader.where(int(rows[i])))

    # Pillow releases the interpreter lock while it decodes, so threads are enough.
    with futures.ThreadPoolExecutor(max_workers=max(1, min(16, os.cpu_count() or 1, len(rows)))) as executor:
      for _ in executor.map(fill, range(len(rows))):
        pass
    return out, labels


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedSplit:
  """A `Split` whose `x` is decoded on demand.

  Attributes:
    x: `[n, s, s, 3]` uint8, lazily.
    group: always None.
  """
  x: StreamedImages
  group: None = None

  def __len__(self) -> int:
    return len(self.x)

  @functools.cached_property
  def y(self) -> np.ndarray:
    """`[n]` int32 labels. Free for folders and packs; a TFDS source reads its records once, images undecoded."""
    return self.x.reader.labels(self.x.rows)

  def take(self, indices: np.ndarray) -> Split:
    """The samples at `indices` (integers or a boolean mask), decoded, in memory."""
    return Split(*self.x.decoded(self.x.rows[indices]))

  def view(self, indices: np.ndarray) -> 'StreamedSplit':
    """The samples at `indices`, still streamed."""
    return StreamedSplit(dataclasses.replace(self.x, rows=self.x.rows[indices]))

  def batches(self, batch_size: int) -> Iterator[Split]:
    """Yields in-memory splits of `batch_size` samples in order; the last may be shorter."""
    for chunk in _chunks(self.x.rows, batch_size):
      yield Split(*self.x.decoded(chunk))


def _chunks(rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
  require(batch_size >= 1, f'batch_size must be at least 1, got {batch_size}.')
  for start in range(0, len(rows), batch_size):
    yield rows[start:start + batch_size]
