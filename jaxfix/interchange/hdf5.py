"""Reading an HDF5 file whole into plain Python: its attributes and its arrays, with typed errors."""
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxfix.errors import CorruptFileError, DataNotFoundError, JaxfixError

_SIGNATURE = b'\x89HDF\r\n\x1a\n'


@dataclasses.dataclass(frozen=True)
class Contents:
  """What an HDF5 file holds.

  Attributes:
    attributes: those of the root group; bytes are decoded.
    arrays: path without leading '/' -> array, in the file's dtypes.
  """
  attributes: Mapping[str, Any]
  arrays: Mapping[str, np.ndarray]

  def under(self, group: str) -> dict[str, np.ndarray]:
    """The arrays inside `group`, by their path in it."""
    prefix = f'{group}/'
    return {name.removeprefix(prefix): array for name, array in self.arrays.items() if name.startswith(prefix)}


def read(path: str | os.PathLike, group: str | None = None) -> Contents:
  """Everything in an HDF5 file.

  Args:
    path: the file.
    group: if given and present, arrays outside it are not read (an optimizer's state, say).
  Raises:
    DataNotFoundError: there is no such file.
    JaxfixError: h5py is not installed.
    CorruptFileError: it is not HDF5, or it is truncated.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise DataNotFoundError(f'No file {path}.')
  try:
    import h5py  # an extra: most users never read Keras files
  except ImportError as e:
    raise JaxfixError(f'{path}: reading HDF5 needs h5py; pip install "jaxfix[keras]".') from e
  with path.open('rb') as f:
    if f.read(len(_SIGNATURE)) != _SIGNATURE:
      raise CorruptFileError(f'{path} is not an HDF5 file.')
  arrays = {}

  def note(name, item):
    if isinstance(item, h5py.Dataset) and (group is None or group not in f or name.startswith(f'{group}/')):
      arrays[name] = np.asarray(item[()])

  try:
    with h5py.File(path, 'r') as f:
      f.visititems(note)
      return Contents({name: _decoded(value) for name, value in f.attrs.items()}, arrays)
  except (OSError, RuntimeError, KeyError) as e:  # what h5py raises for files that end early or point nowhere
    raise CorruptFileError(f'{path} is damaged or truncated ({e}); fetch it again.') from e


def _decoded(value: Any) -> Any:
  return value.decode('utf-8', 'replace') if isinstance(value, bytes) else value
