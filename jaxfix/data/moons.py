"""Two moons: two interleaved half circles in the plane, two classes, drawn by scikit-learn."""
from collections.abc import Mapping

import numpy as np
from sklearn import datasets

from jaxfix.data import splits
from jaxfix.data.splits import Splits
from jaxfix.errors import require
from jaxfix.problem import Split

SIZES = (1000, 200, 400, 400)
"""Train, valid, repair, test of the default 2,000 points; other numbers are cut in the same proportions."""


def load(*, data_dir: object = None, seed: int = 0, indices: Mapping[str, np.ndarray] | None = None,
         num_samples: int = 2000, noise: float = 0.2, data_seed: int = 0) -> Splits:
  """The data set, split. Features are float32 `[n, 2]`, about -1.5..2.5 and -1..1.5, not normalized.

  Args:
    data_dir: ignored; the data is drawn.
    seed: of the permutation that splits the points.
    indices: ready index arrays (`load_indices`) instead.
    num_samples: points, >= 20; half of them in each class.
    noise: standard deviation of the Gaussian noise on both features, >= 0.
    data_seed: of the points, 0 <= data_seed < 2**32.
  Raises:
    BadInputError: an option is out of range.
  """
  del data_dir
  require(num_samples >= 20, f'num_samples must be at least 20, got {num_samples}.')
  require(noise >= 0 and np.isfinite(noise), f'noise must be a finite number >= 0, got {noise}.')
  require(0 <= data_seed < 2**32, f'data_seed must lie in 0..2**32 - 1, got {data_seed}.')
  x, y = datasets.make_moons(num_samples, noise=noise, random_state=data_seed)
  data = Split(x.astype(np.float32), y.astype(np.int32))
  # More points than the default are cut in proportion too, so that none lies idle.
  sizes = splits.scaled_sizes([size * num_samples for size in SIZES], num_samples)
  rows = splits.one_pool(len(data), sizes, seed=seed, indices=indices)
  return Splits(name='moons', source=f'sklearn:moons:{num_samples}:{noise:g}:{data_seed}',
                **{name: data.take(rows[name]) for name in rows}, num_classes=2, class_names=('upper', 'lower'),
                indices=rows, pool=data.take(splits.rest(len(data), rows['train'])))
