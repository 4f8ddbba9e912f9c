"""Friedman's test over many data sets, with Nemenyi's comparison of mean ranks.

Decided here: a data set on which an approach of the comparison has no value is left out (complete blocks), and with
fewer than two such data sets or two approaches there is nothing to test: NaN.

Source: Friedman 1937; Nemenyi 1963; Demsar 2006.
"""
import dataclasses
import itertools
import math
from collections.abc import Mapping

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Ranks:
  """Mean ranks over data sets.

  Attributes:
    datasets: those with a value of every approach.
    mean_ranks: approach -> mean rank, 1 is best; ties share their mean rank. In order of rank.
    statistic, p: Friedman's chi-square, corrected for ties, with approaches - 1 degrees of freedom.
    critical_difference: mean ranks that differ by more differ significantly (Nemenyi).
    pairs: (better, worse) -> Nemenyi's p-value.
  """
  datasets: tuple[str, ...]
  mean_ranks: Mapping[str, float]
  statistic: float
  p: float
  critical_difference: float
  pairs: Mapping[tuple[str, str], float]


def friedman(values: Mapping[str, Mapping[str, float]], *, alpha: float = 0.05) -> Ranks:
  """Compares approaches by their ranks within each data set.

  Args:
    values: approach -> data set -> one value (the mean over repeats), larger is better; NaN or no entry for none.
    alpha: level of the critical difference.
  """
  names = sorted(values)
  datasets = tuple(d for d in sorted({d for v in values.values() for d in v})
                   if all(not math.isnan(values[name].get(d, math.nan)) for name in names))
  k, n, nan = len(names), len(datasets), float('nan')
  if not n:
    return Ranks((), dict.fromkeys(names, nan), nan, nan, nan, {})
  table = np.array([[-values[name][d] for name in names] for d in datasets])
  ranks = stats.rankdata(table, axis=1)
  mean = ranks.mean(axis=0)
  order = sorted(range(k), key=lambda i: (mean[i], names[i]))
  mean_ranks = {names[i]: float(mean[i]) for i in order}
  if k < 2 or n < 2:
    return Ranks(datasets, mean_ranks, nan, nan, nan, {})
  # The sum of squares over its expectation under the null; the denominator holds the correction for ties.
  spread = float(((ranks - (k + 1) / 2) ** 2).sum()) / (n * (k - 1))
  statistic = n * float(((mean - (k + 1) / 2) ** 2).sum()) / spread if spread else 0.
  error = math.sqrt(k * (k + 1) / (6 * n))
  critical = float(stats.studentized_range.ppf(1 - alpha, k, np.inf)) / math.sqrt(2) * error
  pairs = {(names[i], names[j]): float(stats.studentized_range.sf(math.sqrt(2) * (mean[j] - mean[i]) / error, k,
                                                                  np.inf))
           for i, j in itertools.combinations(order, 2)}
  return Ranks(datasets, mean_ranks, statistic, float(stats.chi2.sf(statistic, k - 1)), critical, pairs)
