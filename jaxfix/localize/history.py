"""What the training history says about weights: how far each moved, and with which of them a degradation may be undone.

An entry is suspected if it weighs heavily on degraded samples (right before, wrong now), moved much in between, and
does not weigh heavily on improved ones (wrong before, right now). A layer's quota says how many count as heavily.

Source: Tokui et al., "NeuRecover", SANER 2022, in the form of eAI-Repair-Toolkit.
"""
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from jaxfix.classifier import Classifier, flat_weights


def before(history: Sequence[Classifier], classifier: Classifier) -> tuple[Classifier, ...]:
  """The checkpoints that are earlier than the classifier: those before it, or all if it is none of them."""
  for i in reversed(range(len(history))):
    if _equal(history[i], classifier):
      return tuple(history[:i])
  return tuple(history)


def _equal(a: Classifier, b: Classifier) -> bool:
  leaves = zip(jax.tree.leaves(a.variables), jax.tree.leaves(b.variables), strict=True)
  return all(np.array_equal(x, y) for x, y in leaves)


def degraded(right_before: np.ndarray, right_now: np.ndarray) -> np.ndarray:
  """`[n]` bool: right before and wrong now. With the arguments exchanged: improved."""
  return np.asarray(right_before, bool) & ~np.asarray(right_now, bool)


def weight_movement(earlier: Classifier, later: Classifier) -> dict[str, np.ndarray]:
  """'params/fc1/kernel' -> |later - earlier| for every array of the network, statistics of BatchNorm included."""
  old, new = flat_weights(earlier.variables), flat_weights(later.variables)
  return {name: np.abs(new[name] - old[name]) for name in new}


def shares_of_means(arrays: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Name -> mean of that array over the sum of all means, in [0, 1]; 0 where that sum is 0."""
  means = {name: float(np.mean(array, dtype=np.float64)) for name, array in arrays.items()}
  total = sum(means.values())
  return {name: mean / total if total > 0 else 0. for name, mean in means.items()}


def layer_suspicion(degraded_share: float, improved_share: float, movement_share: float) -> float:
  """susp(l) = F_deg(l) / (F_deg(l) + F_imp(l)) * D(l), and 0 where F_deg(l) is 0; all in [0, 1]."""
  if degraded_share <= 0:
    return 0.
  return degraded_share / (degraded_share + improved_share) * movement_share


def quota(size: int, suspicion: float, rate: float, largest_share: float = 1.) -> int:
  """Entries of a layer of `size` that are looked at: round(size * suspicion * rate), half to even, at most a share."""
  return min(round(size * suspicion * rate), int(size * largest_share))


def top_k(score: np.ndarray, k: int) -> np.ndarray:
  """Bool mask like `score` of its k largest entries; at a tie the first in C order, NaN counts 0."""
  values = np.nan_to_num(np.ravel(score), nan=0.)
  mask = np.zeros(values.size, bool)
  mask[np.argsort(-values, kind='stable')[:k]] = True
  return mask.reshape(np.shape(score))


def suspicious_entries(k: int, moved: np.ndarray, forward: tuple[np.ndarray, np.ndarray],
                       backward: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
  """(T_deg & T_moved) without T_imp, where T_D are the entries among the top k in forward and in backward impact.

  Args:
    k: quota of this layer.
    moved: |later - earlier|, like the kernel.
    forward, backward: impact on (degraded, improved) samples, each like the kernel. Improved samples whose forward
      impact is 0 everywhere (there may be none) protect no entry.
  Returns:
    Bool mask like the kernel.
  """
  on_degraded, on_improved = (top_k(f, k) & top_k(b, k) for f, b in zip(forward, backward, strict=True))
  if not np.any(forward[1]):
    on_improved[...] = False
  return on_degraded & top_k(moved, k) & ~on_improved
