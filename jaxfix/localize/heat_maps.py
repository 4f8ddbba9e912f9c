"""Heat maps: mean features of the samples that a class gets right and wrong, and what sets them apart.

Of a class t: HCI holds the samples of t that are taken for t, HWI those of t taken for another class, HMI those of
other classes taken for t. A map is the mean of the features of such a set. A differential map tells which features
stand for t against another class (HCI_t - HCI_k), or what is peculiar to its failures (HWI_t - HCI_t, HMI_t - HCI_t).

Source: Ma, Liu, Lee, Zhang, Grama, "MODE", ESEC/FSE 2018; sets and signs as in section 3 of its specification.
"""
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Scaling:
  """Per feature, the affine map that takes its range over some samples to [-1, 1]; a constant feature becomes 0.

  Attributes:
    middle, half_range: `[m]` float32; `half_range` is 0 for a constant feature.
  """
  middle: np.ndarray
  half_range: np.ndarray

  def __call__(self, features: np.ndarray) -> np.ndarray:
    """Scaled features `[n, m]`; values outside the range that was seen lie outside [-1, 1]."""
    moves = self.half_range > 0
    return np.where(moves, (features - self.middle) / np.where(moves, self.half_range, 1), 0).astype(np.float32)


def fit_scaling(features: np.ndarray) -> Scaling:
  """The scaling of features `[n, m]`, n >= 1."""
  low, high = features.min(axis=0), features.max(axis=0)
  return Scaling((low + high) / 2, (high - low) / 2)


@dataclasses.dataclass(frozen=True)
class HeatMaps:
  """Maps `[c, m]` of every class, 0 for an empty set, and the number of samples `[c]` behind each.

  Attributes:
    correct, num_correct: HCI.
    wrong, num_wrong: HWI.
    confused, num_confused: HMI.
  """
  correct: np.ndarray
  num_correct: np.ndarray
  wrong: np.ndarray
  num_wrong: np.ndarray
  confused: np.ndarray
  num_confused: np.ndarray


def heat_maps(features: np.ndarray, y: np.ndarray, predicted: np.ndarray, num_classes: int) -> HeatMaps:
  """The maps of all classes.

  Args:
    features: `[n, m]`, scaled.
    y, predicted: `[n]` true and predicted labels; a prediction of -1 (logits not finite) is wrong and no class's.
    num_classes: c.
  """
  classes = np.arange(num_classes)
  right = y == predicted

  def mean(members):   # [n, c] bool
    counts = members.sum(axis=0)
    return (members.astype(np.float32).T @ features) / np.maximum(counts, 1)[:, None].astype(np.float32), counts

  true, said = y[:, None] == classes, predicted[:, None] == classes
  return HeatMaps(*mean(true & right[:, None]), *mean(true & ~right[:, None]), *mean(said & ~right[:, None]))


def between_classes(maps: HeatMaps, t: int, k: int) -> np.ndarray:
  """DHCI_{t,k} = HCI_t - HCI_k, `[m]`; 0 where one of them is empty."""
  both = maps.num_correct[t] > 0 and maps.num_correct[k] > 0
  return maps.correct[t] - maps.correct[k] if both else np.zeros_like(maps.correct[t])


def wrong_against_correct(maps: HeatMaps, t: int) -> np.ndarray:
  """DHWI_t = HWI_t - HCI_t, `[m]`; 0 where one of them is empty."""
  both = maps.num_wrong[t] > 0 and maps.num_correct[t] > 0
  return maps.wrong[t] - maps.correct[t] if both else np.zeros_like(maps.correct[t])


def confused_against_correct(maps: HeatMaps, t: int) -> np.ndarray:
  """DHMI_t = HMI_t - HCI_t, `[m]`; 0 where one of them is empty."""
  both = maps.num_confused[t] > 0 and maps.num_correct[t] > 0
  return maps.confused[t] - maps.correct[t] if both else np.zeros_like(maps.correct[t])


def most_confused(y: np.ndarray, predicted: np.ndarray, t: int, count: int | None, num_classes: int) -> np.ndarray:
  """The classes that samples of class t are most often taken for, most frequent first; ties to the lower class.

  Args:
    y, predicted: `[n]` labels.
    t: the class.
    count: at most so many; None for every other class, confused or not.
    num_classes: c.
  """
  if count is None:
    return np.delete(np.arange(num_classes), t)
  said = predicted[(y == t) & (predicted != t) & (predicted >= 0)]
  frequency = np.bincount(said, minlength=num_classes)
  return np.argsort(-frequency, kind='stable')[:min(count, np.count_nonzero(frequency))]


def distance(p: np.ndarray, q: np.ndarray) -> float:
  """1 - sum sqrt(p q) of two arrays of predictions, >= 0, each divided by its sum: 0 for equal ones, at most 1."""
  p, q = (np.asarray(a, np.float64) / np.sum(a, dtype=np.float64) for a in (p, q))
  return float(1 - np.sqrt(p * q).sum())
