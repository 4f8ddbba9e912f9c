"""CIFAR-10S: CIFAR-10 whose training images are mostly gray in five classes and mostly in color in the other five.

A classifier learns the coloring as a hint for the class; the test part shows every image in both renderings, which
measures how much it relies on it (AAOD between the renderings).
"""
import os
import random
from collections.abc import Mapping
from typing import Literal

import numpy as np

from jaxfix.data import cifar10, splits
from jaxfix.data.normalization import channel_statistics
from jaxfix.data.splits import Splits
from jaxfix.errors import require
from jaxfix.problem import Split

TRAIN_SIZES, TEST_SIZES = (45_000, 5_000), (10_000, 10_000)
"""(train, valid) of the 50,000 and (repair, test) of the 20,000 (study, Table 2)."""

GROUPS = ('gray', 'color')
GRAY, COLOR = 0, 1
GRAY_CLASSES = (0, 2, 4, 6, 8)
"""Airplane, bird, deer, frog, ship: mostly gray in training. The others are mostly in color."""

STUDY_MEAN, STUDY_STD = (0.16384,) * 3, (0.33210605, 0.328938, 0.3250164)
"""The study's constants. They are no statistics of these images in [0, 1] (its arrays had an unknown scale)."""


def load(*, data_dir: str | os.PathLike | None = None, seed: int = 0,
         indices: Mapping[str, np.ndarray] | None = None, skew: float = 0.95, skew_seed: int = 42,
         split_unit: Literal['image', 'row'] = 'image', normalization: Literal['train', 'study'] = 'train',
         cache_dir: str | os.PathLike | None = None, download: bool = True) -> Splits:
  """The data set, split as in the study; images uint8 `[n, 32, 32, 3]`, group 0 gray and 1 color.

  Args:
    data_dir: folder with CIFAR-10 in any form that `cifar10.load` reads.
    seed: of the permutations that split the rows.
    indices: ready index arrays (`load_indices`) instead. Test rows are the test images in color, then in gray.
    skew: share of each training class in its own rendering, in [0, 1].
    skew_seed: of the choice of the others.
    split_unit: `image` keeps both renderings of a test image in the same split; `row` divides the 20,000 rows at
      random, the literal reading of the study, so that half of the images leak from repair into test.
    normalization: `train` computes mean and deviation on the train split; `study` takes the study's constants.
    cache_dir, download: see `cifar10.load`.
  Raises:
    DataNotFoundError, CorruptFileError, BadInputError: see `jaxfix.data.load`.
  Source: Wang et al., Towards Fairness in Visual Recognition (CVPR 2020), and the construction in its public code.
  """
  require(0 <= skew <= 1, f'skew must lie in [0, 1], got {skew}.')
  require(split_unit in ('image', 'row'), f"split_unit must be 'image' or 'row', got {split_unit!r}.")
  require(normalization in ('train', 'study'), f"normalization must be 'train' or 'study', got {normalization!r}.")
  source, train, test = cifar10.read_pools(data_dir, cache_dir=cache_dir, download=download)
  train = skewed(train, skew=skew, seed=skew_seed)
  test = both_renderings(test)
  rows = splits.two_pools(len(train), len(test), TRAIN_SIZES, TEST_SIZES, seed=seed, indices=indices,
                          renderings=2 if split_unit == 'image' else 1)
  train_split = train.take(rows['train'])
  mean, std = (STUDY_MEAN, STUDY_STD) if normalization == 'study' else channel_statistics(train_split.x)
  return Splits(name='cifar10s', source=source, train=train_split, valid=train.take(rows['valid']),
                repair=test.take(rows['repair']), test=test.take(rows['test']), num_classes=10,
                class_names=cifar10.CLASSES, group_names=GROUPS, indices=rows, pool=test, mean=mean, std=std)


def skewed(pool: Split, *, skew: float, seed: int) -> Split:
  """`pool` with the share `skew` of each class in its own rendering and the rest in the other.

  As the authors choose: Python's `random` seeded once; for classes 0..9 in turn, `int(n * skew)` of the ascending rows
  of the class, without replacement, get the class's own rendering.

  Args:
    pool: CIFAR-10 images in color.
    skew: in [0, 1].
    seed: of the choice.
  Returns:
    A copy with groups.
  """
  chooser = random.Random(seed)
  group = np.empty(len(pool), np.int32)
  for label in range(len(cifar10.CLASSES)):
    own = GRAY if label in GRAY_CLASSES else COLOR
    rows = np.flatnonzero(pool.y == label).tolist()
    group[rows] = GRAY + COLOR - own
    group[chooser.sample(rows, int(len(rows) * skew))] = own
  x = pool.x.copy()
  x[group == GRAY] = to_gray(x[group == GRAY])
  return Split(x, pool.y, group)


def both_renderings(pool: Split) -> Split:
  """All images of `pool` in color, then all of them again in gray."""
  n = len(pool)
  return Split(np.concatenate([pool.x, to_gray(pool.x)]), np.tile(pool.y, 2),
               np.repeat(np.array([COLOR, GRAY], np.int32), n))


def to_gray(x: np.ndarray) -> np.ndarray:
  """Luma of uint8 images `[n, h, w, 3]`, repeated in three channels; integer arithmetic equal to Pillow's mode L.

  L = (19595 R + 38470 G + 7471 B + 32768) >> 16, that is ITU-R 601 rounded to nearest in 16-bit fixed point.
  """
  r, g, b = (x[..., c].astype(np.uint32) for c in range(3))
  luma = (19595 * r + 38470 * g + 7471 * b + 32768) >> 16
  return np.repeat(luma.astype(np.uint8)[..., None], 3, axis=-1)
