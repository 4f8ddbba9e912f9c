"""CIFAR-10: 60,000 color images of ten classes, 32x32."""
import os
from collections.abc import Mapping

import numpy as np

from jaxfix.data import image_folder, packs, prepared, sources, splits
from jaxfix.data.splits import Splits
from jaxfix.problem import Split

TRAIN_SIZES, TEST_SIZES = (45_000, 5_000), (5_000, 5_000)
"""(train, valid) of the 50,000 and (repair, test) of the 10,000 (study, Table 2)."""

MEAN, STD = (0.4914009, 0.48215896, 0.4465308), (0.24703279, 0.24348423, 0.26158753)
"""A channel, in units of pixels / 255 (the study's evaluation script)."""

CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
SHAPE = (32, 32, 3)

_WANTED = sources.Wanted(
  'cifar10', tfds='cifar10', files=('cifar10.npz', 'cifar10_jpeg.npz'), folders=('cifar10',),
  layout='{train,test}/<class>/*.png', downloadable=True,
  fetch='TFDS fetches it (162 MB) where www.cs.toronto.edu can be reached')


def load(*, data_dir: str | os.PathLike | None = None, seed: int = 0,
         indices: Mapping[str, np.ndarray] | None = None, cache_dir: str | os.PathLike | None = None,
         download: bool = True) -> Splits:
  """The data set, split as in the study; images uint8 `[n, 32, 32, 3]`.

  Smaller copies are split in the same proportions, sizes rounded down.

  Args:
    data_dir: folder with `cifar10.npz` (pixels), `cifar10_jpeg.npz` (JPEG bytes, about 8 s to decode) or image folders.
    seed: of the permutations.
    indices: ready index arrays (`load_indices`) instead.
    cache_dir: folder for decoded copies of a JPEG archive (185 MB).
    download: whether the network may be used.
  Raises:
    DataNotFoundError, CorruptFileError, BadInputError: see `jaxfix.data.load`.
  Source: Krizhevsky (2009), Learning multiple layers of features from tiny images.
  """
  source, train, test = read_pools(data_dir, cache_dir=cache_dir, download=download)
  rows = splits.two_pools(len(train), len(test), TRAIN_SIZES, TEST_SIZES, seed=seed, indices=indices)
  return Splits(name='cifar10', source=source, train=train.take(rows['train']), valid=train.take(rows['valid']),
                repair=test.take(rows['repair']), test=test.take(rows['test']), num_classes=10, class_names=CLASSES,
                indices=rows, pool=test, mean=MEAN, std=STD)


def read_pools(data_dir: str | os.PathLike | None, *, cache_dir: str | os.PathLike | None = None,
               download: bool = True) -> tuple[str, Split, Split]:
  """Source, training part and test part, in their original order. Arguments and errors as `load`."""
  location = sources.locate(_WANTED, data_dir, download=download)

  def read(part: str) -> Split:
    if location.kind == 'tfds':
      return Split(*prepared.read_images(location.path, part, SHAPE, len(CLASSES)))
    if location.kind == 'npz':
      return Split(*packs.read_part(location.path, part, SHAPE, len(CLASSES), cache_dir))
    return Split(*image_folder.read(location.path / part, CLASSES, SHAPE))

  return location.source, read('train'), read('test')
