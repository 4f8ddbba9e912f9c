"""Where data is looked for, in one order for every data set.

1. The user's folder (`data_dir`, or $JAXFIX_DATA where that is not given): first a data set that TFDS prepared there,
   `<name>/<version>/`, then files and image folders.
2. The folder where TFDS keeps what it prepares ($TFDS_DATA_DIR, or `~/tensorflow_datasets`).
3. A download through TFDS.

A folder that the user named goes before one that happens to exist, so that the same command reads the same data on
every machine. Nothing is ever written into the user's folder.
"""
import dataclasses
import os
import pathlib

from jaxfix.data import prepared
from jaxfix.errors import BadInputError, DataNotFoundError, require


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What a data set can be read from.

  Attributes:
    name: of the data set.
    files: names of archives, the preferred one first.
    folders: names of image folders, the preferred one first.
    layout: what such a folder looks like inside, for messages.
    fetch: one clause on what the user can do to get the data, for messages.
    tfds: name in TFDS, or ''.
    downloadable: TFDS can download it by itself.
  """
  name: str
  files: tuple[str, ...]
  folders: tuple[str, ...]
  layout: str
  fetch: str
  tfds: str = ''
  downloadable: bool = False


@dataclasses.dataclass(frozen=True)
class Location:
  """Where a data set was found: `kind` is `tfds`, `npz` or `folder`."""
  kind: str
  path: pathlib.Path

  @property
  def source(self) -> str:
    """`tfds:mnist:3.0.1`, `npz:mnist.npz` or `folder:mnist`: as results record it."""
    if self.kind == 'tfds':
      return f'tfds:{self.path.parent.name}:{self.path.name}'
    return f'{self.kind}:{self.path.name}'


def locate(wanted: Wanted, data_dir: str | os.PathLike | None, *, download: bool = True) -> Location:
  """Finds a data set, in the order of the module docstring.

  Args:
    wanted: what to look for.
    data_dir: the user's folder, or None for $JAXFIX_DATA.
    download: whether the last step may use the network.
  Raises:
    DataNotFoundError: it is nowhere; the message names what was looked for, every place, and what would fetch it.
    BadInputError: `data_dir` is not a path.
  """
  looked = []
  root, origin = _user_folder(wanted, data_dir)
  if root is not None:
    looked.append(f'{root} ({origin})')
    found = _in_folder(wanted, root, looked)
    if found is not None:
      return found
  if wanted.tfds:
    looked.append(f'{prepared.default_root()} (TFDS)')
    found = _prepared(wanted, prepared.default_root(), looked)
    if found is not None:
      return found
  if wanted.downloadable and download:
    try:
      return Location('tfds', prepared.download(wanted.tfds))
    except DataNotFoundError as e:
      looked.append(f'a TFDS download ({e})')
  raise DataNotFoundError(
    f'Data set {wanted.name!r} not found: no {" or ".join(_names(wanted))} in {"; ".join(looked) or "any folder"}. '
    f'Pass data_dir or set $JAXFIX_DATA to a folder that has it; {wanted.fetch}.')


def _user_folder(wanted: Wanted, data_dir: str | os.PathLike | None) -> tuple[pathlib.Path | None, str]:
  if data_dir is not None:
    require(isinstance(data_dir, (str, os.PathLike)), f'data_dir must be a path, got {data_dir!r}.')
    root, origin = pathlib.Path(data_dir).expanduser(), 'data_dir'
  elif os.environ.get('JAXFIX_DATA'):
    root, origin = pathlib.Path(os.environ['JAXFIX_DATA']).expanduser(), '$JAXFIX_DATA'
  else:
    return None, ''
  require(root.is_dir(), f'Data set {wanted.name!r} not found: no folder {root} ({origin}), in which to look for '
          f'{" or ".join(_names(wanted))}. Name an existing folder; {wanted.fetch}.', DataNotFoundError)
  return root, origin


def _in_folder(wanted: Wanted, root: pathlib.Path, looked: list[str]) -> Location | None:
  if wanted.tfds:
    found = _prepared(wanted, root, looked)
    if found is not None:
      return found
  for name in wanted.files:
    if (root / name).is_file():
      return Location('npz', root / name)
  for name in wanted.folders:
    if (root / name).is_dir():
      return Location('folder', root / name)
  return None


def _prepared(wanted: Wanted, root: pathlib.Path, looked: list[str]) -> Location | None:
  """The prepared data set under `root`; one that cannot be read without TensorFlow is noted in `looked`."""
  directory = prepared.find(root, wanted.tfds)
  if directory is None:
    return None
  try:
    prepared.check_format(directory)
  except BadInputError as e:
    looked.append(str(e).rstrip('.'))
    return None
  return Location('tfds', directory)


def _names(wanted: Wanted) -> list[str]:
  names = [f'prepared TFDS data set {wanted.tfds}/<version>'] if wanted.tfds else []
  names += [f'file {name}' for name in wanted.files]
  return names + [f'folder {"|".join(wanted.folders)}/{wanted.layout}']
