"""MNIST: 70,000 gray images of digits, 28x28."""
import os
from collections.abc import Mapping

import numpy as np

from jaxfix.data import image_folder, packs, prepared, sources, splits
from jaxfix.data.splits import Splits
from jaxfix.problem import Split

TRAIN_SIZES, TEST_SIZES = (54_000, 6_000), (5_000, 5_000)
"""(train, valid) of the 60,000 and (repair, test) of the 10,000 (study, Table 2)."""

_SHAPE = (28, 28, 1)
_CLASSES = tuple(map(str, range(10)))
_WANTED = sources.Wanted(
  'mnist', tfds='mnist', files=('mnist.npz',), folders=('mnist',), layout='{train,test}/<digit>/*.png',
  downloadable=True, fetch='TFDS fetches it (11 MB) where storage.googleapis.com can be reached')


def load(*, data_dir: str | os.PathLike | None = None, seed: int = 0,
         indices: Mapping[str, np.ndarray] | None = None, download: bool = True) -> Splits:
  """The data set, split as in the study; images uint8 `[n, 28, 28, 1]`, no standardization (mean 0, deviation 1).

  Smaller copies are split in the same proportions, sizes rounded down. TFDS stores the images in another order than
  the original files, so the same indices name other images there.

  Args:
    data_dir: folder with `mnist.npz` (`x_train`, `y_train`, `x_test`, `y_test`) or image folders.
    seed: of the permutations.
    indices: ready index arrays (`load_indices`) instead.
    download: whether the network may be used.
  Raises:
    DataNotFoundError, CorruptFileError, BadInputError: see `jaxfix.data.load`.
  Source: LeCun, Bottou, Bengio, Haffner, Proc. IEEE 86 (1998).
  """
  location = sources.locate(_WANTED, data_dir, download=download)
  train, test = (_read(location, part) for part in ('train', 'test'))
  rows = splits.two_pools(len(train), len(test), TRAIN_SIZES, TEST_SIZES, seed=seed, indices=indices)
  return Splits(name='mnist', source=location.source, train=train.take(rows['train']), valid=train.take(rows['valid']),
                repair=test.take(rows['repair']), test=test.take(rows['test']), num_classes=10, class_names=_CLASSES,
                indices=rows, pool=test)


def _read(location: sources.Location, part: str) -> Split:
  if location.kind == 'tfds':
    return Split(*prepared.read_images(location.path, part, _SHAPE, len(_CLASSES)))
  if location.kind == 'npz':
    return Split(*packs.read_part(location.path, part, _SHAPE, len(_CLASSES)))
  return Split(*image_folder.read(location.path / part, _CLASSES, _SHAPE))
