"""Accuracy, repair rate and negative flips: pure functions of label arrays, counts before rates.

Everything follows from four integers (`FlipCounts`), so that the accounting identity holds exactly:
right after = right before + fixed - broken. Rates are fractions in [0, 1]; percent exists only in printed tables.

Source: the Fixing Study, equations 5 (accuracy), 6 (repair rate) and 9 (negative flip rate).
"""
import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxfix.errors import EmptySplitError, require

CORRUPTED_DROP = 0.10
"""A repair whose mean accuracy falls by more than this share of the original accuracy is CORRUPTED."""

# Accuracies are multiples of 1 / n; far below that, far above the rounding of one subtraction and one division.
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True)
class FlipCounts:
  """What a repair did to the n samples of a split; the four integers sum to n.

  Attributes:
    both_right: right before and after.
    fixed: wrong before, right after.
    broken: right before, wrong after (the negative flips).
    both_wrong: wrong before and after.
  """
  both_right: int
  fixed: int
  broken: int
  both_wrong: int

  @property
  def num_samples(self) -> int:
    """n."""
    return self.both_right + self.fixed + self.broken + self.both_wrong

  @property
  def num_right_before(self) -> int:
    """Samples that the original model gets right."""
    return self.both_right + self.broken

  @property
  def num_right_after(self) -> int:
    """Samples that the repaired model gets right."""
    return self.both_right + self.fixed

  @property
  def num_failures(self) -> int:
    """F0, the samples that the original model gets wrong."""
    return self.fixed + self.both_wrong

  @property
  def acc_original(self) -> float:
    """Accuracy before."""
    return self.num_right_before / self.num_samples

  @property
  def acc(self) -> float:
    """Accuracy after."""
    return self.num_right_after / self.num_samples

  @property
  def acc_rel(self) -> float:
    """(after - before) / before; positive is better; NaN if nothing was right before."""
    return relative_gain(self.acc_original, self.acc)

  @property
  def repair_rate(self) -> float:
    """RR: share of the original failures that are now right (eq. 6); NaN if there were none, never 0 or 1."""
    return self.fixed / self.num_failures if self.num_failures else float('nan')

  @property
  def negative_flip_rate(self) -> float:
    """NFR: share of *all* samples that the repair broke (eq. 9)."""
    return self.broken / self.num_samples

  @property
  def net_flips(self) -> float:
    """(fixed - broken) / n: RR and NFR in one unit, the change of accuracy."""
    return (self.fixed - self.broken) / self.num_samples


def accuracy(y: np.ndarray, predicted: np.ndarray) -> float:
  """Share of the labels `predicted` `[n]` that equal `y` `[n]` (eq. 5).

  Raises:
    EmptySplitError: n = 0.
    BadInputError: the lengths differ.
  """
  _check(y, predicted)
  return int((np.asarray(predicted) == np.asarray(y)).sum()) / len(y)


def flip_counts(y: np.ndarray, before: np.ndarray, after: np.ndarray) -> FlipCounts:
  """Counts of the four outcomes.

  Args:
    y: `[n]` integer true labels.
    before, after: `[n]` labels predicted by the original and by the repaired model; -1 is never right.
  Raises:
    EmptySplitError: n = 0.
    BadInputError: the lengths differ.
  """
  _check(y, before, after)
  right_before = np.asarray(before) == np.asarray(y)
  right_after = np.asarray(after) == np.asarray(y)
  both, num_before, num_after = (int(mask.sum()) for mask in (right_before & right_after, right_before, right_after))
  return FlipCounts(both_right=both, fixed=num_after - both, broken=num_before - both,
                    both_wrong=len(y) - num_before - num_after + both)


def relative_gain(old: float, new: float) -> float:
  """(new - old) / old, for metrics where more is better; NaN if `old` is 0."""
  return (new - old) / old if old else float('nan')


def relative_loss(old: float, new: float) -> float:
  """(old - new) / old, for metrics where less is better (ASR, AAOD): positive is better; NaN if `old` is 0."""
  return (old - new) / old if old else float('nan')


def outcome(acc_original: float, accs: Sequence[float]) -> Literal['OK', 'CORRUPTED']:
  """Outcome of an approach whose repeats all finished.

  CORRUPTED: (acc_original - mean(accs)) / acc_original > `CORRUPTED_DROP`, on the test split. A drop of exactly that
  share is OK, and so is any result for a model that was never right.

  Args:
    acc_original: accuracy of the original model.
    accs: accuracy of each repeat.
  Raises:
    EmptySplitError: `accs` is empty.
  """
  require(len(accs) > 0, 'The outcome needs the accuracy of at least one repeat.', EmptySplitError)
  drop = relative_loss(acc_original, float(np.mean(accs)))
  return 'CORRUPTED' if drop > CORRUPTED_DROP + _ROUNDING else 'OK'


def _check(y: np.ndarray, *predictions: np.ndarray) -> None:
  require(len(y) > 0, 'Cannot evaluate on an empty split: give it samples.', EmptySplitError)
  for labels in predictions:
    require(np.shape(labels) == np.shape(y),
            f'Predictions have shape {np.shape(labels)}, but the labels {np.shape(y)}; both must be [n].')
