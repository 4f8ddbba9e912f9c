"""Image files in one folder a class: `<folder>/<class>/*.png` or `.jpg`."""
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxfix.data.images import decode_exact
from jaxfix.errors import CorruptFileError, DataNotFoundError, require

SUFFIXES = ('.png', '.jpg', '.jpeg', '.bmp')


def class_folders(folder: pathlib.Path) -> list[str]:
  """Names of the folders in `folder`, sorted; hidden ones are left out.

  Raises:
    DataNotFoundError: `folder` is not there, or has none.
  """
  require(folder.is_dir(), f'No folder {folder}.', DataNotFoundError)
  names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith('.'))
  require(len(names) > 0, f'{folder} has no class folders; expected {folder}/<class>/*.png or .jpg.',
          DataNotFoundError)
  return names


def image_files(folder: pathlib.Path) -> list[str]:
  """Names of the image files in `folder`, sorted; hidden ones are left out."""
  return sorted(entry.name for entry in os.scandir(folder)
                if not entry.name.startswith('.') and os.path.splitext(entry.name)[1].lower() in SUFFIXES)


def read(folder: pathlib.Path, class_names: Sequence[str], shape: tuple[int, int, int]) -> tuple[np.ndarray,
                                                                                                np.ndarray]:
  """All images `[n, *shape]` uint8 and labels `[n]` int32, class by class, files in the order of their names.

  Args:
    folder: holds a folder for each class, named as in `class_names` or by the number of the class.
    class_names: in the order of the labels.
    shape: `(h, w, c)` that every image must have.
  Raises:
    DataNotFoundError: there are no such folders, or no images in them.
    CorruptFileError: a folder is no class, a class has two folders, or an image is damaged or of another size.
  """
  label_of = {str(i): i for i in range(len(class_names))} | {name: i for i, name in enumerate(class_names)}
  files, seen = [], {}
  for name in class_folders(folder):
    require(name in label_of, f'{folder / name} is not one of the classes {", ".join(class_names)}.', CorruptFileError)
    label = label_of[name]
    require(label not in seen, f'{folder} has two folders for one class: {seen.get(label)} and {name}.',
            CorruptFileError)
    seen[label] = name
    files += [(folder / name / file, label) for file in image_files(folder / name)]
  require(len(files) > 0, f'{folder} has no image files ({", ".join(SUFFIXES)}) in its class folders.',
          DataNotFoundError)
  files.sort(key=lambda pair: (pair[1], pair[0].name))
  return read_files([path for path, _ in files], shape), np.array([label for _, label in files], np.int32)


def read_files(paths: Sequence[pathlib.Path], shape: tuple[int, int, int]) -> np.ndarray:
  """Images `[n, *shape]` uint8 of the given files.

  Raises:
    CorruptFileError: a file is damaged, unreadable or of another size.
  """
  x = np.empty((len(paths), *shape), np.uint8)
  for i, path in enumerate(paths):
    x[i] = decode_exact(read_bytes(path), shape, str(path))
  return x


def read_bytes(path: str | os.PathLike) -> bytes:
  """Content of a file.

  Raises:
    CorruptFileError: it cannot be read.
  """
  try:
    return pathlib.Path(path).read_bytes()
  except OSError as e:
    raise CorruptFileError(f'{path} cannot be read ({e.strerror or e}).') from e
