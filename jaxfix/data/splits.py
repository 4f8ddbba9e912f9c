"""How a pool of rows becomes train, valid, repair and test: a permutation a pool, hashed and saved with the results."""
import dataclasses
import functools
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from jaxfix.data.streamed import StreamedSplit
from jaxfix.errors import CorruptFileError, DataNotFoundError, require
from jaxfix.files import replacing, sha256_of_bytes
from jaxfix.problem import Split

SPLIT_NAMES = ('train', 'valid', 'repair', 'test')

# Permutations of different pools are different streams of one key.
_TRAIN_POOL, _TEST_POOL = 0, 1


@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
  """A data set, split.

  Attributes:
    name: as in `jaxfix.data.NAMES`.
    source: where the rows came from: `tfds:mnist:3.0.1`, `npz:mnist.npz`, `folder:mnist`, `sklearn:digits`. The same
      indices pick other images from a source with another row order, so a comparison needs equal sources too.
    train, valid, repair, test: the four splits, in the order of their indices (a prefix is a random sample).
    num_classes: c.
    class_names: `[c]` names.
    group_names: names of the values of `Split.group`, or ().
    mean, std: normalization a channel, in the unit of `pixels / 255` (or of float features as they are).
    indices: split name -> `[n]` int32 rows of its pool. Data with an original test set has two pools: train and valid
      index the training part, repair and test the test part. Otherwise all four index one pool.
    pool: the whole original test part in its own order; without one, all rows that are not in `train`, ascending.
  """
  name: str
  source: str
  train: Split | StreamedSplit
  valid: Split | StreamedSplit
  repair: Split | StreamedSplit
  test: Split | StreamedSplit
  num_classes: int
  class_names: tuple[str, ...]
  indices: Mapping[str, np.ndarray]
  pool: Split | StreamedSplit
  group_names: tuple[str, ...] = ()
  mean: tuple[float, ...] = (0.,)
  std: tuple[float, ...] = (1.,)

  def __post_init__(self):
    # Defects of ours, not of the input: loaders build these fields.
    assert tuple(self.indices) == SPLIT_NAMES, tuple(self.indices)
    for name, rows in self.indices.items():
      assert rows.dtype == np.int32 and rows.ndim == 1, (name, rows.dtype, rows.shape)
      assert len(rows) == len(getattr(self, name)), (name, len(rows), len(getattr(self, name)))
    assert len(self.class_names) == self.num_classes, (len(self.class_names), self.num_classes)

  @functools.cached_property
  def split_sha256(self) -> dict[str, str]:
    """Split name -> hex SHA-256 of the bytes of its index array (int32, little-endian)."""
    return {name: sha256_of_bytes(rows.astype('<i4').tobytes()) for name, rows in self.indices.items()}

  def save_indices(self, path: str | os.PathLike) -> None:
    """Writes the index arrays as a NumPy archive, atomically; `load_indices` reads it.

    Raises:
      OutputError: the folder cannot be written.
    """
    with replacing(path) as partial, open(partial, 'wb') as f:
      np.savez(f, **{name: rows.astype('<i4') for name, rows in self.indices.items()})


def load_indices(path: str | os.PathLike) -> dict[str, np.ndarray]:
  """Reads what `Splits.save_indices` wrote; give it to `load(..., indices=...)` to split in the same way again.

  Raises:
    DataNotFoundError: there is no such file.
    CorruptFileError: it is truncated, or is not an archive of the four int32 index arrays.
  """
  path = pathlib.Path(path)
  try:
    with np.load(path, allow_pickle=False) as archive:
      arrays = {name: archive[name] for name in SPLIT_NAMES}
  except FileNotFoundError as e:
    raise DataNotFoundError(f'No file {path}.') from e
  except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as e:
    raise CorruptFileError(f'{path} is not an archive of split indices ({e}); save the indices again.') from e
  for name, rows in arrays.items():
    require(rows.dtype == np.int32 and rows.ndim == 1, f'{path}: {name!r} is {rows.dtype} {rows.shape}, expected '
            'a flat int32 array; save the indices again.', CorruptFileError)
  return arrays


def scaled_sizes(published: Sequence[int], num_rows: int) -> tuple[int, ...]:
  """`published` sizes where the pool is large enough; otherwise in the same proportions, each rounded down.

  After rounding down, at most `len(published) - 1` rows of the pool stay unused.
  """
  total = sum(published)
  if num_rows >= total:
    return tuple(published)
  return tuple(size * num_rows // total for size in published)


def permutation(num_rows: int, *, seed: int, stream: int) -> np.ndarray:
  """`[num_rows]` int32 permutation. Threefry is named, so that a changed default generator does not change splits."""
  key = jax.random.fold_in(jax.random.key(seed, impl='threefry2x32'), stream)
  return np.asarray(jax.random.permutation(key, num_rows), np.int32)


def one_pool(num_rows: int, published: Sequence[int], *, seed: int,
             indices: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
  """Indices of all four splits into a single pool of `num_rows` rows.

  Args:
    num_rows: rows of the pool.
    published: sizes of train, valid, repair and test; see `scaled_sizes`.
    seed: of the permutation.
    indices: ready index arrays to use instead; they are checked.
  Raises:
    BadInputError: `indices` is malformed, out of range or overlapping.
  """
  if indices is not None:
    return _checked(indices, (dict.fromkeys(SPLIT_NAMES, num_rows),))
  order = permutation(num_rows, seed=seed, stream=_TRAIN_POOL)
  return _checked(_cut(order, SPLIT_NAMES, scaled_sizes(published, num_rows)),
                  (dict.fromkeys(SPLIT_NAMES, num_rows),))


def two_pools(num_train: int, num_test: int, train_sizes: Sequence[int], test_sizes: Sequence[int], *, seed: int,
              indices: Mapping[str, np.ndarray] | None = None, renderings: int = 1) -> dict[str, np.ndarray]:
  """Indices of train and valid into a training pool, of repair and test into a test pool.

  Args:
    num_train, num_test: rows of the pools.
    train_sizes, test_sizes: published sizes of (train, valid) and (repair, test); see `scaled_sizes`.
    seed: of the permutations.
    indices: ready index arrays to use instead; they are checked.
    renderings: the test pool holds this many blocks of the same images one after the other; images, not rows, are
      drawn, and all renderings of an image land side by side in the same split.
  Raises:
    BadInputError: `indices` is malformed, out of range or overlapping.
  """
  ranges = ({'train': num_train, 'valid': num_train}, {'repair': num_test, 'test': num_test})
  if indices is not None:
    return _checked(indices, ranges)
  images = num_test // renderings
  order = permutation(images, seed=seed, stream=_TEST_POOL)
  rows = (order[:, None] + images * np.arange(renderings, dtype=np.int32)).astype(np.int32).ravel()
  test_sizes = tuple(renderings * size
                     for size in scaled_sizes([size // renderings for size in test_sizes], images))
  train_order = permutation(num_train, seed=seed, stream=_TRAIN_POOL)
  return _checked(_cut(train_order, ('train', 'valid'), scaled_sizes(train_sizes, num_train))
                  | _cut(rows, ('repair', 'test'), test_sizes), ranges)


def rest(num_rows: int, train: np.ndarray) -> np.ndarray:
  """`[m]` int32 rows of a pool that are not in `train`, ascending."""
  keep = np.ones(num_rows, bool)
  keep[train] = False
  return np.flatnonzero(keep).astype(np.int32)


def _cut(order: np.ndarray, names: Sequence[str], sizes: Sequence[int]) -> dict[str, np.ndarray]:
  stops = np.cumsum(sizes)
  return {name: order[stop - size:stop] for name, size, stop in zip(names, sizes, stops, strict=True)}


def _checked(indices: Mapping[str, np.ndarray], ranges: Sequence[Mapping[str, int]]) -> dict[str, np.ndarray]:
  """`indices` as int32, after checking that they are in range and that no row of a pool is used twice."""
  require(isinstance(indices, Mapping), f'indices must be a mapping as load_indices returns it, got {type(indices)}.')
  require(set(indices) == set(SPLIT_NAMES), f'indices must name {", ".join(SPLIT_NAMES)}, got {", ".join(indices)}.')
  arrays = {name: np.asarray(indices[name]) for name in SPLIT_NAMES}
  for pool in ranges:
    used = np.zeros(max(pool.values()), bool)
    for name, num_rows in pool.items():
      rows = arrays[name]
      require(rows.ndim == 1 and np.issubdtype(rows.dtype, np.integer),
              f'indices of {name} must be a flat integer array, got {rows.dtype} {rows.shape}.')
      require(rows.size == 0 or (rows.min() >= 0 and rows.max() < num_rows),
              f'indices of {name} must lie in 0..{num_rows - 1}; they belong to another data set or source.')
      require(not used[rows].any() and len(np.unique(rows)) == len(rows),
              f'indices of {name} use a row twice, or one that another split uses: the splits would leak.')
      used[rows] = True
  return {name: rows.astype(np.int32) for name, rows in arrays.items()}
