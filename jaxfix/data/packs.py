"""Data sets packed in a NumPy archive: raw arrays, or encoded images laid end to end with their offsets.

A part of a pack (`train`, say) is either `x_train` uint8 `[n, h, w]` or `[n, h, w, c]`, or `jpeg_train` uint8 `[bytes]`
with `offsets_train` int64 `[n + 1]`; labels are `y_train`. A pack with one part has no suffix.
"""
import hashlib
import os
import pathlib
import zipfile
import zlib
from collections.abc import Collection

import numpy as np

from jaxfix.data.images import decode_exact
from jaxfix.errors import CorruptFileError, require
from jaxfix.files import replacing

Arrays = dict[str, np.ndarray]


class EncodedImages:
  """Encoded images laid end to end; `images[i]` is the bytes of one."""

  def __init__(self, arrays: Arrays, part: str, where: str):
    """Takes `jpeg` and `offsets` of a part.

    Raises:
      CorruptFileError: the offsets do not cut the bytes into non-empty pieces.
    """
    data, offsets = arrays[_name('jpeg', part)], arrays[_name('offsets', part)]
    require(data.dtype == np.uint8 and data.ndim == 1, f'{where}: {_name("jpeg", part)!r} is {data.dtype} '
            f'{data.shape}, expected flat uint8 bytes.', CorruptFileError)
    require(np.issubdtype(offsets.dtype, np.integer) and offsets.ndim == 1 and len(offsets) >= 1 and offsets[0] == 0
            and offsets[-1] == len(data) and bool((np.diff(offsets) > 0).all()),
            f'{where}: {_name("offsets", part)!r} must rise from 0 to {len(data)}, the number of bytes.',
            CorruptFileError)
    self._data, self._offsets = data.tobytes(), offsets.tolist()

  def __len__(self) -> int:
    return len(self._offsets) - 1

  def __getitem__(self, i: int) -> bytes:
    return self._data[self._offsets[i]:self._offsets[i + 1]]

  def sha256(self) -> str:
    """Hex SHA-256 of all bytes and offsets."""
    digest = hashlib.sha256(self._data)
    digest.update(np.asarray(self._offsets, '<i8').tobytes())
    return digest.hexdigest()


def read(path: pathlib.Path, required: Collection[str], optional: Collection[str] = ()) -> Arrays:
  """The named arrays of an archive; of the optional ones, those that are there.

  Raises:
    CorruptFileError: the file is truncated, is no archive, holds pickled objects, or lacks an array.
  """
  try:
    archive = np.load(path, allow_pickle=False)
    require(isinstance(archive, np.lib.npyio.NpzFile), f'{path} is a single array, expected an .npz archive.',
            CorruptFileError)
    with archive:
      missing = sorted(set(required) - set(archive.files))
      require(not missing, f'{path} has no array {", ".join(missing)}; it has {", ".join(archive.files) or "none"}.',
              CorruptFileError)
      return {name: archive[name] for name in (*required, *optional) if name in archive.files}
  except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as e:
    raise CorruptFileError(f'{path} cannot be read as a NumPy archive ({e}); it may be truncated: fetch it again.'
                           ) from e


def read_part(path: pathlib.Path, part: str, shape: tuple[int, int, int], num_classes: int | None,
              cache_dir: str | os.PathLike | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Images `[n, *shape]` uint8 and labels `[n]` int32 of one part of a pack.

  Args:
    path: the archive.
    part: `train`, `test` or `val`.
    shape: `(h, w, c)` of an image.
    num_classes: labels must lie in `0..num_classes - 1`.
    cache_dir: see `decoded`.
  Raises:
    CorruptFileError: an array is missing, damaged, or has another shape, type or range.
  """
  names = [_name(stem, part) for stem in ('x', 'jpeg', 'offsets')]
  arrays = read(path, [_name('y', part)], names)
  if names[0] in arrays:
    x = arrays[names[0]]
    if x.ndim == 3:
      x = x[..., None]
    require(x.dtype == np.uint8 and x.shape[1:] == shape, f'{path}: {names[0]!r} is {x.dtype} {x.shape}, expected '
            f'uint8 [n, {", ".join(map(str, shape))}].', CorruptFileError)
  else:
    require(names[1] in arrays and names[2] in arrays, f'{path} has neither {names[0]} nor {names[1]} and {names[2]}.',
            CorruptFileError)
    x = decoded(EncodedImages(arrays, part, str(path)), shape, f'{path} ({part})', cache_dir)
  return x, labels(arrays, _name('y', part), len(x), num_classes, path)


def labels(arrays: Arrays, name: str, num_rows: int, num_classes: int | None, path: pathlib.Path) -> np.ndarray:
  """`arrays[name]`, `[n]` or `[n, 1]` integers, as `[n]` int32.

  Raises:
    CorruptFileError: it is not as long as the images, is no integer array, or leaves `0..num_classes - 1`.
  """
  y = arrays[name]
  require(np.issubdtype(y.dtype, np.integer) and y.shape in ((num_rows,), (num_rows, 1)),
          f'{path}: {name!r} is {y.dtype} {y.shape}, expected {num_rows} integers.', CorruptFileError)
  if num_rows:
    high = int(y.max()) if num_classes is None else num_classes - 1
    require(int(y.min()) >= 0 and int(y.max()) <= high, f'{path}: {name!r} runs from {y.min()} to {y.max()}, expected '
            f'0 to {high}.', CorruptFileError)
  return y.reshape(num_rows).astype(np.int32)


def decoded(images: EncodedImages, shape: tuple[int, int, int], where: str,
            cache_dir: str | os.PathLike | None = None) -> np.ndarray:
  """All images as `[n, *shape]` uint8. Takes about 0.13 ms an image of 32x32 (threads do not help at that size).

  Args:
    images: encoded.
    shape: `(h, w, c)` that every image must have.
    where: for messages.
    cache_dir: folder for a decoded copy, `decoded-<hash of the encoded bytes>.npy`, which later calls read instead. A
      damaged copy is replaced.
  Raises:
    CorruptFileError: an image cannot be decoded or has another size.
    OutputError: `cache_dir` cannot be written.
  """
  expected = (len(images), *shape)
  if cache_dir is None:
    return _decode_all(images, expected, where)
  path = pathlib.Path(cache_dir).expanduser() / f'decoded-{images.sha256()[:16]}.npy'
  try:
    x = np.load(path, allow_pickle=False)
    if x.dtype == np.uint8 and x.shape == expected:
      return x
  except (OSError, ValueError, EOFError):
    pass  # absent, or left damaged by something else: made anew below
  x = _decode_all(images, expected, where)
  with replacing(path) as partial, open(partial, 'wb') as f:
    np.save(f, x)
  return x


def _decode_all(images: EncodedImages, shape: tuple[int, ...], where: str) -> np.ndarray:
  x = np.empty(shape, np.uint8)
  for i in range(len(images)):
    x[i] = decode_exact(images[i], shape[1:], f'{where} image {i}')
  return x


def _name(stem: str, part: str) -> str:
  return f'{stem}_{part}' if part else stem
