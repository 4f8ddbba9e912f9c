"""One encoded image to pixels."""
import contextlib
import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from jaxfix.errors import CorruptFileError, require


def decode_exact(data: bytes, shape: tuple[int, int, int], where: str) -> np.ndarray:
  """An image that must have a given size, as uint8 `shape`: `[h, w, 1]` (gray) or `[h, w, 3]`.

  Raises:
    CorruptFileError: `data` is no image, or one of another size; `where` says whose.
  """
  with _opened(data, 'L' if shape[2] == 1 else 'RGB', where) as image:
    require(image.size == (shape[1], shape[0]), f'{where} is {image.height}x{image.width}, expected '
            f'{shape[0]}x{shape[1]}.', CorruptFileError)
    return np.asarray(image).reshape(shape)


def decode_resized(data: bytes, image_size: int, where: str,
                   resample: Image.Resampling = Image.Resampling.NEAREST) -> np.ndarray:
  """An image of any size as uint8 `[image_size, image_size, 3]`, resized directly: no crop, no aspect ratio kept.

  The default, nearest neighbor, is what the study's directory iterator does.
  Raises:
    CorruptFileError: `data` is no image; `where` says whose.
  """
  with _opened(data, 'RGB', where) as image:
    return np.asarray(image.resize((image_size, image_size), resample))


@contextlib.contextmanager
def _opened(data: bytes, mode: str, where: str) -> Iterator[Image.Image]:
  """The image in `mode`, decoded completely."""
  try:
    with Image.open(io.BytesIO(data)) as image:
      image.load()
      converted = image if image.mode == mode else image.convert(mode)
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
    raise CorruptFileError(f'{where} cannot be decoded ({e}); fetch it again.') from e
  yield converted
