"""AAOD, the average absolute odds difference between two groups, for any number of classes.

Each class in turn is the positive one; a group's true and false positive rates come from its hard labels.
AAOD = (mean_c |TPR_0[c] - TPR_1[c]| + mean_c |FPR_0[c] - FPR_1[c]|) / 2, a fraction; smaller is fairer. For two classes
that is the Fixing Study's equation 8 exactly, since a class's TPR is 1 minus the other's FPR.
"""
import dataclasses
from typing import Literal

import numpy as np

from jaxfix.errors import BadInputError, EmptySplitError, require

EmptyClass = Literal['zero', 'skip']


@dataclasses.dataclass(frozen=True)
class Odds:
  """Rates of two groups and their difference.

  Attributes:
    aaod: average absolute odds difference, in [0, 1]; NaN only under `empty='skip'` when no class could be compared.
    true_positive_rate, false_positive_rate: `[2, c]` by group and class; 0 where the denominator is 0.
    flags: 'aaod_empty_class' if some rate had denominator 0.
  """
  aaod: float
  true_positive_rate: np.ndarray
  false_positive_rate: np.ndarray
  flags: tuple[str, ...] = ()


def odds(y: np.ndarray, predicted: np.ndarray, group: np.ndarray, *, num_classes: int,
         empty: EmptyClass = 'zero') -> Odds:
  """Odds of two groups, one class against the rest.

  Args:
    y: `[n]` integer true labels in 0..c-1.
    predicted: `[n]` predicted labels; -1 (no usable output) is positive for no class.
    group: `[n]` integers 0 and 1.
    num_classes: c.
    empty: what a rate with denominator 0 (a class that a group does not have) counts as: 'zero' takes it as 0, as the
      study does; 'skip' averages each rate over the classes for which both groups have it.
  Raises:
    EmptySplitError: one of the two groups has no sample.
    BadInputError: lengths differ, a group id other than 0 and 1, or a label out of range.
  """
  y, predicted, group = (np.asarray(a) for a in (y, predicted, group))
  check_groups(group, len(y))
  require(predicted.shape == y.shape, f'Predictions have shape {predicted.shape}, but the labels {y.shape}.')
  require(int(y.min()) >= 0 and int(y.max()) < num_classes,
          f'Labels run from {y.min()} to {y.max()}, but there are classes 0 to {num_classes - 1}.')
  if empty not in ('zero', 'skip'):
    raise BadInputError(f"empty must be 'zero' or 'skip', got {empty!r}.")

  classes = np.arange(num_classes)[:, None]
  true_positives, positives, false_positives = np.zeros((3, 2, num_classes), np.int64)
  sizes = np.array([[np.sum(group == g)] for g in (0, 1)])
  for g in (0, 1):
    is_class, is_predicted = y[group == g] == classes, predicted[group == g] == classes
    positives[g] = is_class.sum(axis=1)
    true_positives[g] = (is_class & is_predicted).sum(axis=1)
    false_positives[g] = (~is_class & is_predicted).sum(axis=1)
  negatives = sizes - positives
  tpr = true_positives / np.maximum(positives, 1)
  fpr = false_positives / np.maximum(negatives, 1)

  undefined = (positives == 0) | (negatives == 0)
  present = (positives > 0).all(axis=0)
  if empty == 'zero':
    keep_tpr = keep_fpr = np.ones(num_classes, bool)
  else:
    keep_tpr, keep_fpr = present, present & (negatives > 0).all(axis=0)
  aaod = (_mean(np.abs(tpr[0] - tpr[1])[keep_tpr]) + _mean(np.abs(fpr[0] - fpr[1])[keep_fpr])) / 2
  return Odds(aaod, tpr, fpr, ('aaod_empty_class',) if undefined.any() else ())


def check_groups(group: np.ndarray, n: int) -> None:
  """Raises as `odds` unless `group` is `[n]`, of zeros and ones, with both present."""
  group = np.asarray(group)
  require(group.shape == (n,), f'Groups have shape {group.shape}, but there are {n} labels.')
  others = sorted(set(np.unique(group).tolist()) - {0, 1})
  require(not others, f'AAOD compares groups 0 and 1, but there is a group {others[:1]}; merge groups into two first.')
  for g in (0, 1):
    require(bool((group == g).any()), f'Group {g} has no sample, so that its odds are undefined.', EmptySplitError)


def _mean(values: np.ndarray) -> float:
  return float(values.mean()) if len(values) else float('nan')
