"""Digits: 1,797 gray images of 8x8, embedded in scikit-learn; no file and no network needed."""
from collections.abc import Mapping

import numpy as np
from sklearn import datasets

from jaxfix.data import splits
from jaxfix.data.splits import Splits
from jaxfix.problem import Split

SIZES = (1000, 197, 300, 300)
"""Train, valid, repair, test: ours, the study does not use this set."""


def load(*, data_dir: object = None, seed: int = 0, indices: Mapping[str, np.ndarray] | None = None) -> Splits:
  """The data set, split.

  Images are float32 `[n, 8, 8, 1]` in [0, 1]: the stored gray levels 0..16 over 16, which is why they are features
  here and not uint8 pixels. No further normalization.

  Args:
    data_dir: ignored; the data is embedded.
    seed: of the permutation.
    indices: ready index arrays (`load_indices`) instead.
  Raises:
    BadInputError: `indices` does not fit.
  Source: E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI; its test part.
  """
  del data_dir
  raw = datasets.load_digits()
  data = Split((raw.images[..., None] / 16).astype(np.float32), raw.target.astype(np.int32))
  rows = splits.one_pool(len(data), SIZES, seed=seed, indices=indices)
  return Splits(name='digits', source='sklearn:digits', **{name: data.take(rows[name]) for name in rows},
                num_classes=10, class_names=tuple(map(str, range(10))), indices=rows,
                pool=data.take(splits.rest(len(data), rows['train'])))
