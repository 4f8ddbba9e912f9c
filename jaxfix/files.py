"""Writing files so that a killed run never leaves half a result under its final name."""
import contextlib
import hashlib
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from jaxfix.errors import CorruptFileError, DataNotFoundError, OutputError


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary path beside `path`; on success it is flushed to disk and renamed onto `path`, atomically.

  On an exception the temporary file is removed and `path` stays as it was. After SIGKILL a hidden `.NAME.*.partial`
  may remain, which nothing reads.
  Raises:
    OutputError: the folder cannot be made or written.
  """
  path = pathlib.Path(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f'.{path.name}.', suffix='.partial', dir=path.parent)
  except OSError as e:
    raise OutputError(f'Cannot write {path}: {e.strerror or e}. Choose another output folder.') from e
  os.close(handle)
  partial = pathlib.Path(name)
  try:
    yield partial
    with open(partial, 'rb') as f:
      os.fsync(f.fileno())
    partial.chmod(0o644)
    partial.replace(path)
    flush_folder(path.parent)
  except OSError as e:
    raise OutputError(f'Cannot write {path}: {e.strerror or e}.') from e
  finally:
    partial.unlink(missing_ok=True)


def flush_folder(folder: pathlib.Path) -> None:
  """Flushes the names in a folder to disk, where that can be asked, so that a rename survives a power cut."""
  if not hasattr(os, 'O_DIRECTORY'):   # Windows
    return
  descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
  try:
    with contextlib.suppress(OSError):   # some network file systems refuse; the rename itself is done
      os.fsync(descriptor)
  finally:
    os.close(descriptor)


def check_writable(path: str | os.PathLike) -> None:
  """Raises `OutputError` if `path` cannot be written later; to be asked before long work."""
  path = pathlib.Path(path)
  if path.is_dir():
    raise OutputError(f'Cannot write {path}: it is a folder. Name a file.')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=path.parent).close()
  except OSError as e:
    raise OutputError(f'Cannot write {path}: {e.strerror or e}. Choose another output folder.') from e


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes UTF-8 text atomically."""
  with replacing(path) as partial:
    partial.write_text(text, encoding='utf-8')


def jsonable(value: Any, nonfinite: Callable[[float], Any] = lambda number: None) -> Any:
  """`value` as plain JSON types: NumPy scalars and arrays unpacked, tuples as lists.

  NaN and infinity, which JSON lacks, become `nonfinite` of them: null, unless said otherwise.
  """
  if isinstance(value, dict):
    return {str(k): jsonable(v, nonfinite) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [jsonable(v, nonfinite) for v in value]
  if hasattr(value, 'tolist'):
    return jsonable(value.tolist(), nonfinite)
  if isinstance(value, float):
    return value if math.isfinite(value) else nonfinite(value)
  if value is None or isinstance(value, (str, bool, int)):
    return value
  raise TypeError(f'{type(value).__name__} has no JSON form: {value!r}')


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes `value` as indented JSON with sorted keys, atomically; NaN becomes null."""
  write_text(path, json.dumps(jsonable(value), indent=1, sort_keys=True, allow_nan=False) + '\n')


def read_json(path: str | os.PathLike) -> Any:
  """Reads a JSON file.

  Raises:
    DataNotFoundError: there is no such file.
    CorruptFileError: it is not JSON (truncated, say).
  """
  path = pathlib.Path(path)
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError as e:
    raise DataNotFoundError(f'No file {path}.') from e
  except (UnicodeDecodeError, json.JSONDecodeError) as e:
    raise CorruptFileError(f'{path} is not valid JSON ({e}); it may be truncated. Delete it and run again.') from e


def sha256_of_bytes(data: bytes) -> str:
  """Hex SHA-256 of `data`."""
  return hashlib.sha256(data).hexdigest()


def sha256_of_json(value: Any) -> str:
  """Hex SHA-256 of the compact JSON form of `value` with sorted keys; infinity, NaN and None are told apart."""
  return sha256_of_bytes(json.dumps(jsonable(value, repr), sort_keys=True, separators=(',', ':')).encode())
