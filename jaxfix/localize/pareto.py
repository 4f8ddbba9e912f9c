"""Pareto front of two scores."""
import numpy as np


def pareto_front(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Positions of the points that no other point dominates, both scores maximized.

  Point p is dominated if some q is at least as good in both and better in one. Of equal points the first is kept.
  Points with a NaN are no candidates. O(n log n).

  Args:
    a, b: `[n]` scores.
  Returns:
    `[k]` int64 positions, ascending; empty if every point has a NaN.

  >>> pareto_front(np.array([1., 2, 3, 2, 5, 5]), np.array([5., 4, 3, 2, 1, 1])).tolist()
  [0, 1, 2, 4]
  """
  a, b = np.asarray(a), np.asarray(b)
  alive = np.flatnonzero(~(np.isnan(a) | np.isnan(b)))
  if not alive.size:
    return alive
  # Sorting millions of points costs seconds: first drop what one good point strictly beats in both scores.
  rank = _share_of_range(a[alive]) + _share_of_range(b[alive])
  good = alive[np.argmax(rank)]
  alive = alive[(a[alive] >= a[good]) | (b[alive] >= b[good])]
  order = alive[np.lexsort((alive, -b[alive], -a[alive]))]
  best_before = np.concatenate([[-np.inf], np.maximum.accumulate(b[order])[:-1]])
  front = b[order] > best_before
  front[0] = True  # even if its b is -infinity
  return np.sort(order[front])


def _share_of_range(values: np.ndarray) -> np.ndarray:
  low, high = values.min(), values.max()
  return (values - low) / (high - low) if np.isfinite(high - low) and high > low else np.zeros(values.shape)
