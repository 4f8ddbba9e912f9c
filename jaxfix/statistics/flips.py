"""Two models on the same test inputs: is the difference larger than chance, and how certain are the rates?

Source: McNemar 1947 in its exact form; Efron 1979.
"""
import dataclasses
from collections.abc import Mapping

import numpy as np
from scipy import stats

from jaxfix.errors import EmptySplitError, require

METRICS = ('acc', 'rr', 'nfr')


def mcnemar(fixed: int, broken: int) -> float:
  """Exact two-sided p-value of `fixed` positive against `broken` negative flips: a fair coin decides each.

  >>> round(mcnemar(9, 1), 6)
  0.021484
  """
  require(fixed >= 0 and broken >= 0, f'Flips are counts, got {fixed} and {broken}.')
  return float(stats.binomtest(fixed, fixed + broken).pvalue) if fixed + broken else 1.


@dataclasses.dataclass(frozen=True)
class Interval:
  """A rate and its percentile interval; `undefined` is the share of resamples in which the rate had no denominator."""
  value: float
  low: float
  high: float
  undefined: float = 0.


def bootstrap_flips(predictions: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], *, seed: int = 0,
                    resamples: int = 10_000, level: float = 0.95) -> dict[str, Interval]:
  """Intervals of accuracy, repair rate and negative flip rate of one approach, over the draw of the test inputs.

  Each data set's inputs are resampled by themselves (strata), all repeats of an input together; a rate is the mean over
  data sets of the mean over repeats. Rates depend on an input only through who gets it right, so that counts of those
  patterns are drawn (multinomial) instead of inputs: the same distribution, whatever the number of inputs. NumPy draws
  them, in milliseconds; compiling a multinomial would take seconds for every n.

  Args:
    predictions: data set -> (true labels `[n]`, original's labels `[n]`, repaired labels `[n]` or `[repeats, n]`).
    seed: of the resampling; data sets have streams of their own.
    resamples: how many.
    level: of the percentile interval.
  Returns:
    'acc', 'rr', 'nfr' -> interval. A data set in which a resample has no failures is left out of its repair rate.
  """
  require(len(predictions) > 0, 'bootstrap: there is no data set.', EmptySplitError)
  require(resamples >= 1 and 0 < level < 1, f'bootstrap: {resamples} resamples at level {level} give no interval.')
  observed, drawn = [], []
  for i, dataset in enumerate(sorted(predictions)):
    patterns, counts = _patterns(*(np.asarray(part) for part in predictions[dataset]), dataset)
    n = int(counts.sum())
    draws = np.random.default_rng((seed, i)).multinomial(n, counts / n, size=resamples)
    observed.append(_rates(counts[None], patterns)[:, 0])
    drawn.append(_rates(draws, patterns))
  result = {}
  for metric, value, values in zip(METRICS, _mean(np.stack(observed)), _mean(np.stack(drawn)), strict=True):
    defined = values[~np.isnan(values)]
    low, high = np.quantile(defined, ((1 - level) / 2, (1 + level) / 2)) if len(defined) else (np.nan, np.nan)
    result[metric] = Interval(float(value), float(low), float(high), float(1 - len(defined) / resamples))
  return result


def _mean(rates: np.ndarray) -> np.ndarray:
  """Mean over data sets, those without a value left out; NaN if none has one. rates: `[datasets, metrics, ...]`."""
  present = ~np.isnan(rates)
  number = present.sum(axis=0)
  return np.where(number, np.where(present, rates, 0).sum(axis=0) / np.maximum(number, 1), np.nan)


def _patterns(y: np.ndarray, before: np.ndarray, after: np.ndarray, dataset: str) -> tuple[np.ndarray, np.ndarray]:
  """Distinct columns `[1 + repeats, patterns]` of who is right (original first), and how often each occurs."""
  after = np.atleast_2d(after)
  require(len(y) > 0, f'bootstrap: {dataset} has no inputs.', EmptySplitError)
  require(y.shape == before.shape == after.shape[1:] and y.ndim == 1,
          f'bootstrap: {dataset} has labels {y.shape}, predictions {before.shape} and {after.shape}.')
  return np.unique(np.concatenate([[before == y], after == y]), axis=1, return_counts=True)


def _rates(counts: np.ndarray, patterns: np.ndarray) -> np.ndarray:
  """`[3, resamples]`: accuracy, repair rate and negative flip rate of counts `[resamples, patterns]`."""
  before, after = patterns[0], patterns[1:].mean(axis=0)
  n, failures = counts.sum(axis=1), counts @ ~before
  fixed, broken = counts @ (~before * after), counts @ (before * (1 - after))
  return np.stack([counts @ after / n, np.where(failures, fixed / np.maximum(failures, 1), np.nan), broken / n])
