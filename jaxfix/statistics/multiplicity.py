"""Benjamini-Hochberg: the share of false discoveries among all tests of a family."""
import numpy as np

from jaxfix.errors import require


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
  """q-values `[m]` of p-values `[m]`: with p sorted, q_(k) = min(1, min over j >= k of p_(j) m / j).

  A hypothesis is rejected at level alpha iff q <= alpha. NaN is no member of the family and stays NaN; kept in, it
  would spoil every other q.

  Source: Benjamini & Hochberg 1995.

  >>> benjamini_hochberg(np.array([0.01, np.nan, 0.04, 0.03])).tolist()
  [0.03, nan, 0.04, 0.04]
  """
  p = np.asarray(p, np.float64)
  require(p.ndim == 1, f'p-values must be [m], got shape {p.shape}.')
  tested = np.flatnonzero(~np.isnan(p))
  require(bool(((p[tested] >= 0) & (p[tested] <= 1)).all()), 'A p-value is below 0 or above 1.')
  q = np.full(len(p), np.nan)
  order = tested[np.argsort(p[tested], kind='stable')]
  m = len(order)
  scaled = p[order] * m / np.arange(1, m + 1)
  q[order] = np.minimum(1, np.minimum.accumulate(scaled[::-1])[::-1])
  return q
