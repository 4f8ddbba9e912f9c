"""A folder that is replaced as a whole: whoever looks sees the old one or the new one, never half of one.

Decided here: the new folder is written beside the old one; the old one is moved aside, the new one renamed into its
place, the old one removed. A run killed in between the two renames leaves the old one whole under `.NAME.*.old`. Only a
folder that holds nothing but what this program wrote, byte for byte as its manifest has it, is ever replaced; that is
looked at before the work and again at its end. A link to a folder stays, and what it points to is replaced.
"""
import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jaxfix
from jaxfix.errors import CorruptFileError, DataNotFoundError, OutputError, require
from jaxfix.files import read_json, sha256_of_bytes, write_json

MANIFEST = 'manifest.json'
_GENERATOR = 'jaxfix report'


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike, about: Mapping[str, Any]) -> Iterator[pathlib.Path]:
  """Yields an empty folder; on success it gets a manifest and takes the place of `path`, on an exception it is removed.

  Args:
    path: of the bundle: absent, empty, or an earlier bundle.
    about: further entries of the manifest.
  Raises:
    OutputError: `path` holds something else, at the start or at the end, or cannot be written.
  """
  path = pathlib.Path(os.path.realpath(path))
  check_replaceable(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f'.{path.name}.', suffix='.partial', dir=path.parent))
  except OSError as e:
    raise OutputError(f'Cannot write {path}: {e.strerror or e}. Choose another output folder.') from e
  try:
    yield partial
    write_json(partial / MANIFEST, {'generator': _GENERATOR, 'version': jaxfix.__version__, **about,
                                    'files': _hashes(partial)})
    partial.chmod(0o755)
    check_replaceable(path)   # somebody may have saved a file there meanwhile
    _exchange(partial, path)
  except OSError as e:
    raise OutputError(f'Cannot write {path}: {e.strerror or e}.') from e
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def check_replaceable(path: pathlib.Path) -> None:
  """Raises `OutputError` where `path` is not a folder, or holds files that no report wrote, or not so."""
  if not path.exists():
    return
  require(path.is_dir(), f'Cannot write {path}: it is a file. Name a folder.', OutputError)
  present = _files(path)
  try:
    manifest = read_json(path / MANIFEST) if present else {'generator': _GENERATOR, 'files': {}}
    known = {**manifest['files'], MANIFEST: None} if manifest['generator'] == _GENERATOR else {}
  except (CorruptFileError, DataNotFoundError, KeyError, TypeError):
    known = {}
  strange = sorted(present - set(known))
  require(not strange, f'Cannot write {path}: it holds {strange[0] if strange else ""}, which no report wrote. Choose '
          'another output folder, or move that file.', OutputError)
  edited = sorted(name for name in present - {MANIFEST} if _hash(path / name) != known[name])
  require(not edited, f'Cannot write {path}: {edited[0] if edited else ""} was changed since the report was written. '
          'Choose another output folder, or move that file.', OutputError)


def _exchange(new: pathlib.Path, path: pathlib.Path) -> None:
  if not path.exists():
    new.rename(path)
    return
  aside = pathlib.Path(tempfile.mkdtemp(prefix=f'.{path.name}.', suffix='.old', dir=path.parent))
  try:
    path.rename(aside)   # onto an empty folder
  except OSError:
    aside.rmdir()
    raise
  try:
    new.rename(path)
  except OSError:
    aside.rename(path)
    raise
  shutil.rmtree(aside, ignore_errors=True)


def _files(folder: pathlib.Path) -> set[str]:
  return {f.relative_to(folder).as_posix() for f in folder.rglob('*') if not f.is_dir() or f.is_symlink()}


def _hashes(folder: pathlib.Path) -> dict[str, str]:
  """File -> SHA-256 of everything but the manifest itself."""
  return {name: _hash(folder / name) for name in sorted(_files(folder) - {MANIFEST})}


def _hash(file: pathlib.Path) -> str | None:
  """SHA-256; None of a link, or of what cannot be read."""
  try:
    return None if file.is_symlink() else sha256_of_bytes(file.read_bytes())
  except OSError:
    return None
