"""How good a model is when classes differ in importance and mistakes in risk.

  score = sum_c w_c (1 - E_c / n_c) - 1/2 sum_c r_c E_c / n_c - 1/2 sum_(c, d) r_cd E_(c -> d) / n_c

with n_c samples of class c, E_c of them wrong, E_(c -> d) of them taken for d, and weights w and risks r that sum to 1
each. A class without samples is left out. The score is at most 1, reached without an error.

Only errors cost anything, each a price that depends on its class and what it is taken for, so that a search over many
models needs the sum of a price over samples, and no matrix of confusions a model.

Source: eAI-Repair-Toolkit (weight 1 for accuracy, 1/2 for mistakes). Its loop leaves out classes that are important but
repaired against nothing; here every class with a weight counts.
"""
import dataclasses
from collections.abc import Mapping

import numpy as np

from jaxfix.errors import require

Mistake = int | tuple[int, int]
"""Any mistake of a class, or the one of taking the first class for the second."""


@dataclasses.dataclass(frozen=True)
class Stakes:
  """Weights w of classes and risks r of mistakes, as `make_stakes` normalizes them."""
  precisions: Mapping[int, float]
  risks: Mapping[Mistake, float]


def make_stakes(precisions: Mapping[int, float], risks: Mapping[Mistake, float]) -> Stakes:
  """Both divided by their sums.

  Raises:
    BadInputError: a value is negative or not finite, or all of them are 0.

  >>> make_stakes({0: .1, 1: .3}, {0: 5.}).precisions
  {0: 0.25, 1: 0.75}
  """
  return Stakes(_normalized(precisions, 'precisions'), _normalized(risks, 'risks'))


def _normalized(weights: Mapping, what: str) -> dict:
  values = np.array(list(weights.values()), np.float64)
  require(bool((np.isfinite(values) & (values >= 0)).all()) and values.sum() > 0,
          f'{what} must be numbers >= 0 and not all 0, got {dict(weights)}.')
  return dict(zip(weights, (values / values.sum()).tolist(), strict=True))


def score(stakes: Stakes, y: np.ndarray, predicted: np.ndarray) -> float:
  """The score of a model's predictions.

  Args:
    stakes: weights and risks.
    y, predicted: `[n]` labels; a prediction that is no class is an error.
  """
  total = 0.
  for c, weight in stakes.precisions.items():
    own = y == c
    if own.any():
      total += weight * np.mean(predicted[own] == c)
  for mistake, risk in stakes.risks.items():
    c = mistake[0] if isinstance(mistake, tuple) else mistake
    own = y == c
    if own.any():
      made = predicted[own] == mistake[1] if isinstance(mistake, tuple) else predicted[own] != c
      total -= risk / 2 * np.mean(made)
  return float(total)


def best_score(stakes: Stakes, y: np.ndarray) -> float:
  """The score of a model that is right on all samples: the weights of the classes that have any."""
  return float(sum(weight for c, weight in stakes.precisions.items() if (y == c).any()))


def prices(stakes: Stakes, y: np.ndarray, num_classes: int) -> np.ndarray:
  """`[c + 1, c + 1]` float32: what a sample of class i costs when taken for j; 0 if it is right.

  The score is `best_score` minus the sum over samples of their prices. Row c is for rows that are no samples: they cost
  nothing. Column c is for a prediction that is no class.

  Args:
    stakes: weights and risks.
    y: `[n]` labels of all samples that will be summed over.
    num_classes: c.
  """
  count = np.bincount(y, minlength=num_classes)
  table = np.zeros((num_classes + 1, num_classes + 1))
  for c, weight in stakes.precisions.items():
    table[c] += weight
  for mistake, risk in stakes.risks.items():
    table[mistake] += risk / 2   # a whole row, or one entry
  table[:num_classes] /= np.maximum(count, 1)[:, None]
  np.fill_diagonal(table, 0)
  return table.astype(np.float32)
