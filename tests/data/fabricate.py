"""Small data sets in the layouts that the loaders read, with contents that a test can recompute."""
import io
import pathlib

import numpy as np
from PIL import Image


def pixels(n: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
  """Random uint8 `[n, *shape]`."""
  return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def encode(image: np.ndarray, image_format: str = 'PNG') -> bytes:
  """One image `[h, w]` or `[h, w, c]`, encoded; PNG is lossless."""
  out = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(out, format=image_format)
  return out.getvalue()


def encoded_part(images: np.ndarray, part: str = '') -> dict[str, np.ndarray]:
  """`jpeg` and `offsets` arrays of a pack (the loaders take any encoding; PNG keeps the pixels)."""
  blobs = [encode(image) for image in images]
  suffix = f'_{part}' if part else ''
  return {f'jpeg{suffix}': np.frombuffer(b''.join(blobs), np.uint8),
          f'offsets{suffix}': np.concatenate([[0], np.cumsum([len(b) for b in blobs])]).astype(np.int64)}


def write_images(folder: pathlib.Path, images: np.ndarray, suffix: str = '.png') -> None:
  """Files `000.png`, `001.png`, ... in a new folder."""
  folder.mkdir(parents=True)
  for i, image in enumerate(images):
    (folder / f'{i:03d}{suffix}').write_bytes(encode(image, 'PNG' if suffix == '.png' else 'JPEG'))


def write_mnist(folder: pathlib.Path, *, n_train: int = 100, n_test: int = 40, **changed: np.ndarray) -> None:
  """`mnist.npz` of random pixels, labels 0..9 in turn; `changed` replaces arrays."""
  arrays = {'x_train': pixels(n_train, (28, 28), 1), 'y_train': np.arange(n_train, dtype=np.uint8) % 10,
            'x_test': pixels(n_test, (28, 28), 2), 'y_test': np.arange(n_test, dtype=np.uint8) % 10}
  np.savez(folder / 'mnist.npz', **(arrays | changed))


def write_cifar10(folder: pathlib.Path, *, n_train: int = 100, n_test: int = 40) -> dict[str, np.ndarray]:
  """`cifar10.npz` with raw pixels, labels 0..9 in turn, in the `[n, 1]` shape in which CIFAR-10 is often stored."""
  arrays = {'x_train': pixels(n_train, (32, 32, 3), 1), 'y_train': (np.arange(n_train, dtype=np.uint8) % 10)[:, None],
            'x_test': pixels(n_test, (32, 32, 3), 2), 'y_test': (np.arange(n_test, dtype=np.uint8) % 10)[:, None]}
  np.savez(folder / 'cifar10.npz', **arrays)
  return arrays
