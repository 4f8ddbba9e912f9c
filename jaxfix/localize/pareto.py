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
  good = alive[np.argmax(_share_of_range(a[alive]) + _share_of_range(b[alive]))]
  alive = alive[(a[alive] >= a[good]) | (b[alive] >= b[good])]
  order = alive[np.lexsort((alive, -b[alive], -a[alive]))]
  front = np.diff(np.maximum.accumulate(b[order]), prepend=-np.inf) > 0
  front[0] = True  # even if its b is -infinity
  return np.sort(order[front])


def public_code_front(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """The front that Arachne's public code finds when some `b` are NaN, which equals `pareto_front` when none is.

  That code goes through the points in order and drops, for each one still there, all others that exceed it in neither
  score. No comparison with NaN is true, so that a point without `b` drops every point whose `a` is not larger, if it
  is not dropped itself before its turn, that is, if no point before it has as large an `a`. Only points with a larger
  `a` than the last such point remain, or that point alone.

  Args:
    a: `[n]` scores without NaN.
    b: `[n]` scores.
  Returns:
    `[k]` int64 positions, ascending.
  """
  a, b = np.asarray(a), np.asarray(b)
  before = np.concatenate([[-np.inf], np.maximum.accumulate(a)[:-1]])
  acting = np.flatnonzero(np.isnan(b) & (a > before))
  if not acting.size:
    return pareto_front(a, b)
  rest = np.flatnonzero(a > a[acting[-1]])
  return rest[pareto_front(a[rest], b[rest])] if rest.size else acting[-1:]


def _share_of_range(values: np.ndarray) -> np.ndarray:
  low, high = values.min(), values.max()
  return (values - low) / (high - low) if np.isfinite(high - low) and high > low else np.zeros(values.shape)
