"""t-tests of two samples, with effect size and interval, and a defined answer for samples without spread.

A sample whose values agree to 1e-12 of their size is constant: its variance is 0, not what rounding left. Two constant
samples have no t; they are equal for certain (p = 1) or different for certain on this data (p = 0, `degenerate`).

Decided here: the effect size of a paired test is d_z, the mean difference in units of the differences' own spread, with
the same small-sample correction; that of Welch's test uses the pooled spread, as Student's.

Source: Student 1908; Welch 1947; Hedges 1981 (correction by the exact gamma ratio).
"""
import dataclasses
import math

import numpy as np
from scipy import special, stats

from jaxfix.errors import require

_CONSTANT = 1e-12   # of the largest magnitude
_NAN = float('nan')


@dataclasses.dataclass(frozen=True)
class TTest:
  """Result of one two-sided test of equal means.

  Attributes:
    t, df, p: statistic, degrees of freedom, p-value; p is NaN where there is nothing to test.
    difference: mean of the first sample less mean of the second, in the unit of the values.
    interval: of the difference, at level 1 - alpha.
    hedges_g: the difference in standard deviations, corrected for small samples; infinite if there is no spread.
    flag: '', 'degenerate' (both samples constant and different) or 'untestable' (fewer than two values on a side).
  """
  t: float
  df: float
  p: float
  difference: float
  interval: tuple[float, float]
  hedges_g: float
  flag: str = ''


UNTESTABLE = TTest(_NAN, _NAN, _NAN, _NAN, (_NAN, _NAN), _NAN, 'untestable')


def student(a: np.ndarray, b: np.ndarray, *, alpha: float = 0.05, floor: tuple[float, float] = (0., 0.)) -> TTest:
  """Student's test with pooled variance, n_a + n_b - 2 degrees of freedom.

  Args:
    a, b: `[n]` finite values; fewer than two on a side are untestable.
    alpha: 1 - level of the interval.
    floor: variances that are added to those of a and of b.
  """
  return _two_samples(a, b, alpha, floor, equal_variances=True)


def welch(a: np.ndarray, b: np.ndarray, *, alpha: float = 0.05, floor: tuple[float, float] = (0., 0.)) -> TTest:
  """Welch's test, which lets the variances differ (Satterthwaite's degrees of freedom). Arguments as `student`."""
  return _two_samples(a, b, alpha, floor, equal_variances=False)


def paired(differences: np.ndarray, *, alpha: float = 0.05, floor: float = 0., scale: float = 0.) -> TTest:
  """One-sample test of differences `[n]` against 0.

  Args:
    differences: `[n]`.
    alpha: 1 - level of the interval.
    floor: a variance that is added to theirs.
    scale: largest magnitude of the values that were subtracted, whose rounding the differences hold; what is nothing
      beside it is 0. Without it, that of the differences themselves.
  """
  d = _checked(differences)
  if len(d) < 2:
    return UNTESTABLE
  scale = max(scale, float(abs(d).max()))
  mean, variance, n = float(d.mean()), _variance(d, scale) + floor, len(d)
  return _result(mean, variance / n, variance, n - 1, alpha, scale=scale)


def _two_samples(a: np.ndarray, b: np.ndarray, alpha: float, floor: tuple[float, float], equal_variances: bool
                 ) -> TTest:
  a, b = _checked(a), _checked(b)
  m, n = len(a), len(b)
  if min(m, n) < 2:
    return UNTESTABLE
  va, vb = _variance(a) + floor[0], _variance(b) + floor[1]
  pooled = ((m - 1) * va + (n - 1) * vb) / (m + n - 2)
  if equal_variances:
    squared_error, df = pooled * (1 / m + 1 / n), m + n - 2
  else:
    squared_error = va / m + vb / n
    spread = (va / m) ** 2 / (m - 1) + (vb / n) ** 2 / (n - 1)
    df = squared_error ** 2 / spread if spread else m + n - 2
  return _result(float(a.mean() - b.mean()), squared_error, pooled, df, alpha,
                 scale=max(float(abs(a).max()), float(abs(b).max())), effect_df=m + n - 2)


def _result(difference: float, squared_error: float, variance: float, df: float, alpha: float, *, scale: float,
            effect_df: float | None = None) -> TTest:
  """The test of a difference whose standard error is known; `scale` is the magnitude of the values."""
  if squared_error == 0:
    if abs(difference) <= _CONSTANT * scale:
      return TTest(0., df, 1., difference, (difference, difference), 0.)
    infinite = math.copysign(math.inf, difference)
    return TTest(infinite, df, 0., difference, (difference, difference), infinite, 'degenerate')
  error = math.sqrt(squared_error)
  t, half = difference / error, float(stats.t.ppf(1 - alpha / 2, df)) * error
  g = _correction(effect_df or df) * difference / math.sqrt(variance)
  return TTest(t, float(df), float(2 * stats.t.sf(abs(t), df)), difference, (difference - half, difference + half), g)


def _correction(df: float) -> float:
  """Hedges' factor, about 1 - 3 / (4 df - 1): makes the standardized difference unbiased. 0 at one degree (no mean)."""
  if df <= 1:
    return 0.
  return math.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / math.sqrt(df / 2)


def _checked(sample: np.ndarray) -> np.ndarray:
  sample = np.asarray(sample, np.float64)
  require(sample.ndim == 1, f'A sample must be [n], got shape {sample.shape}.')
  require(bool(np.isfinite(sample).all()), 'A sample holds NaN or infinity; leave such values out.')
  return sample


def _variance(sample: np.ndarray, scale: float = 0.) -> float:
  """Unbiased variance, exactly 0 for a sample that is constant beside its size, or `scale` if that is more."""
  if float(np.ptp(sample)) <= _CONSTANT * max(scale, float(abs(sample).max())):
    return 0.
  return float(sample.var(ddof=1))
