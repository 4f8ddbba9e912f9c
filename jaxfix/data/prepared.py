"""Data sets that TFDS has prepared as array_record files, read without TensorFlow; and preparing them without it.

TFDS can read array_record files with NumPy alone, but it unpacks archives, and its MNIST and CIFAR-10 builders open
files and encode images, with TensorFlow (tensorflow-datasets 4.9.10). `download` gives these two builders split
generators that use the standard library and Pillow instead, so that a plain installation of jaxfix can download them.
"""
import contextlib
import functools
import gzip
import io
import json
import os
import pathlib
import struct
import sys
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxfix.data.images import decode_exact
from jaxfix.errors import CorruptFileError, DataNotFoundError, require

_INFO = 'dataset_info.json'
_CHUNK = 1024  # records a call: bounds memory, costs nothing

# A host that answers within _PROBE_SECONDS is worth the download: TFDS itself retries a dead network for 200 s.
_HOSTS = {'mnist': 'https://storage.googleapis.com', 'cifar10': 'https://www.cs.toronto.edu'}
_PROBE_SECONDS = 10.


def default_root() -> pathlib.Path:
  """Where TFDS keeps what it prepares, by its own rule; computed without importing it."""
  return pathlib.Path(os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()


def find(root: pathlib.Path, name: str) -> pathlib.Path | None:
  """`root/name/<version>` of the newest prepared version of a data set without configurations, or None."""
  versions = {}
  with contextlib.suppress(OSError):
    for folder in (root / name).iterdir():
      parts = folder.name.split('.')
      if len(parts) == 3 and all(part.isdecimal() for part in parts) and (folder / _INFO).is_file():
        versions[tuple(map(int, parts))] = folder
  return versions[max(versions)] if versions else None


def check_format(directory: pathlib.Path) -> None:
  """Checks that a prepared data set can be read without TensorFlow.

  Raises:
    BadInputError: it is stored in another format than array_record.
    CorruptFileError: its description is not JSON.
  """
  try:
    stored = json.loads((directory / _INFO).read_text(encoding='utf-8')).get('fileFormat', 'tfrecord')
  except (OSError, ValueError, AttributeError) as e:
    raise CorruptFileError(f'{directory / _INFO} cannot be read ({e}); prepare the data set again.') from e
  require(stored == 'array_record', f"{directory} is stored as {stored}, which needs TensorFlow: prepare it again with "
          "download_and_prepare(file_format='array_record').")


class Records:
  """One split of a prepared data set at random access, images left encoded.

  Attributes:
    names: class names of the label, in order.
  """

  def __init__(self, directory: pathlib.Path, split: str):
    """Opens `split` of the prepared data set in `directory`.

    Raises:
      CorruptFileError: the description is damaged, or there is no such split.
    """
    import tensorflow_datasets as tfds  # 1.5 s, and only this path needs it
    self._where = f'{directory} ({split})'
    with self._wrapping():
      builder = tfds.builder_from_directory(os.fspath(directory))
      self._source = builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
      self.names = tuple(builder.info.features['label'].names)

  def __len__(self) -> int:
    return len(self._source)

  def read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Records of `rows`, in that order: `image` is the encoded bytes, `label` an int.

    Raises:
      CorruptFileError: a shard is truncated or missing.
    """
    with self._wrapping():
      return list(self._source.__getitems__([int(row) for row in rows]))

  def chunks(self) -> Iterator[list[dict[str, Any]]]:
    """All records in stored order, a list at a time."""
    for start in range(0, len(self), _CHUNK):
      yield self.read(range(start, min(start + _CHUNK, len(self))))

  @contextlib.contextmanager
  def _wrapping(self) -> Iterator[None]:
    # The readers under TFDS are compiled code and raise RuntimeError, ValueError or OSError for damaged files.
    try:
      yield
    except (RuntimeError, ValueError, OSError, KeyError, AttributeError) as e:
      raise CorruptFileError(f'{self._where} cannot be read ({e}); delete it and prepare it again.') from e


def read_images(directory: pathlib.Path, split: str, shape: tuple[int, int, int],
                num_classes: int) -> tuple[np.ndarray, np.ndarray]:
  """A whole split in memory: images `[n, *shape]` uint8, labels `[n]` int32 in `0..num_classes - 1`.

  TFDS shuffles what it stores. Records that carry an `id` (CIFAR-10: `train_00042`) are put back into their original
  order; MNIST has none and keeps the stored order, which is the same in every preparation of a version.
  Raises:
    CorruptFileError: a record is damaged, an image has another shape, or a label is out of range.
  """
  records = Records(directory, split)
  x, y, ids = np.empty((len(records), *shape), np.uint8), np.empty(len(records), np.int32), []
  i = 0
  for chunk in records.chunks():
    for record in chunk:
      x[i] = decode_exact(record['image'], shape, f'{directory} ({split}) image {i}')
      y[i] = record['label']
      ids.append(record.get('id'))
      i += 1
  if None not in ids:
    order = np.argsort(np.array(ids))
    x, y = x[order], y[order]
  require(len(y) > 0 and y.min() >= 0 and y.max() < num_classes, f'{directory} ({split}): labels leave '
          f'0..{num_classes - 1}, or there are none.', CorruptFileError)
  return x, y


def download(name: str) -> pathlib.Path:
  """Downloads `mnist` or `cifar10` into `default_root()` and prepares it as array_record; returns its folder.

  Raises:
    DataNotFoundError: the network, the disk or the preparation failed; the message is the reason alone.
  """
  try:
    with contextlib.suppress(urllib.error.HTTPError):  # any answer at all will do
      urllib.request.urlopen(urllib.request.Request(_HOSTS[name], method='HEAD'), timeout=_PROBE_SECONDS).close()
  except (OSError, ValueError) as e:
    raise DataNotFoundError(f'{_HOSTS[name]} does not answer: {getattr(e, "reason", e)}') from e
  try:
    import tensorflow_datasets as tfds
    builder = tfds.builder(name, data_dir=os.fspath(default_root()))
    split_generators = {'mnist': _mnist_splits, 'cifar10': _cifar10_splits}[name]
    builder._split_generators = functools.partial(split_generators, builder)
    with contextlib.redirect_stdout(sys.stderr):  # TFDS prints; a caller's output is not the place for it
      builder.download_and_prepare(file_format='array_record')
  except Exception as e:  # TFDS passes on whatever its many parts raise; the caller goes on to a one-line report
    raise DataNotFoundError(f'{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else "no reason"}'
                            ) from e
  directory = find(default_root(), name)
  require(directory is not None, f'TFDS left no {name} in {default_root()}', DataNotFoundError)
  return directory


def _mnist_splits(builder: Any, manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
  """As TFDS's own `_split_generators` for MNIST."""
  files = {(part, kind): urllib.parse.urljoin(builder.URL, f'{stem}-{kind}-ubyte.gz')
           for part, stem in (('train', 'train'), ('test', 't10k')) for kind in ('images-idx3', 'labels-idx1')}
  paths = dict(zip(files, manager.download(list(files.values())), strict=True))
  return {part: _mnist_examples(paths[part, 'images-idx3'], paths[part, 'labels-idx1']) for part in ('train', 'test')}


def _mnist_examples(image_path: os.PathLike, label_path: os.PathLike) -> Iterator[tuple[int, dict]]:
  """IDX files: a big-endian header (magic, count, and for images rows and columns), then bytes."""
  with gzip.open(image_path) as f, gzip.open(label_path) as g:
    pixels, labels = f.read(), g.read()
  magic, count, height, width = struct.unpack('>4i', pixels[:16])
  require(magic == 2051 and len(pixels) == 16 + count * height * width and len(labels) == 8 + count,
          'the downloaded MNIST files are not IDX files of one length', CorruptFileError)
  images = np.frombuffer(pixels, np.uint8, offset=16).reshape(count, height, width)
  for i in range(count):
    yield i, {'image': _png(images[i]), 'label': labels[8 + i]}


def _cifar10_splits(builder: Any, manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
  """As TFDS's own `_split_generators` for CIFAR-10, with the class names that it reads from the archive."""
  info = builder._cifar_info
  path = manager.download(info.url)
  with tarfile.open(path) as archive:
    names = archive.extractfile(info.prefix + info.label_files[0]).read().decode()
  builder.info.features['label'].names = names.split()
  return {'train': _cifar10_examples(path, info.prefix, info.train_files, 'train_'),
          'test': _cifar10_examples(path, info.prefix, info.test_files, 'test_')}


def _cifar10_examples(path: os.PathLike, prefix: str, files: Sequence[str],
                      id_prefix: str) -> Iterator[tuple[int, dict]]:
  """Records of 3073 bytes: the label, then the red, the green and the blue plane of 32x32."""
  i = 0
  with tarfile.open(path) as archive:
    for name in files:
      data = np.frombuffer(archive.extractfile(prefix + name).read(), np.uint8)
      require(len(data) % 3073 == 0, 'the downloaded CIFAR-10 files are truncated', CorruptFileError)
      for record in data.reshape(-1, 3073):
        image = np.ascontiguousarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0))
        yield i, {'image': _png(image), 'label': int(record[0]), 'id': f'{id_prefix}{i:05d}'}
        i += 1


def _png(image: np.ndarray) -> bytes:
  out = io.BytesIO()
  Image.fromarray(image).save(out, format='PNG')
  return out.getvalue()
