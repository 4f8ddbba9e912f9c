"""The letters of one column of the study's Table 4: pairwise t-tests, corrected as one family, and displayed.

The study does not say which samples enter its tests, and no procedure that was tried gives its letters back: two
displays can be compared, a reproduction cannot be claimed. Always print unit and test.

Decided here:
- With fewer than two values on a side, or no common data set, a pair is untestable: no member of the family, treated as
  not different in the display, flagged.
- Where no pair at all can be tested (one approach, one repeat), nobody gets a letter: '-'.
- `floor` holds the resolution of a value on each data set, in the unit of the values (1 / n_test for an accuracy as a
  fraction, 1 / failures for a repair rate). It is averaged over the data sets, and divided by their number where the
  sample is a mean over them; its square over 12, the variance of rounding to it, is added to the sample's variance.
  Ranks have no such resolution.
"""
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from jaxfix.errors import UnknownNameError, require
from jaxfix.statistics import samples as units
from jaxfix.statistics import ttest
from jaxfix.statistics.display import letters
from jaxfix.statistics.multiplicity import benjamini_hochberg

_TESTS = {'student': ttest.student, 'welch': ttest.welch}


@dataclasses.dataclass(frozen=True)
class Pair:
  """Comparison of two approaches, the better-ranked one first.

  Attributes:
    a, b: the approaches.
    n_a, n_b: sizes of the samples.
    t, df, p: of the test; NaN if untestable.
    q: p after the correction over all testable pairs.
    significant: q <= alpha.
    flags: 'degenerate' (both constant: different for certain on this data, print a dagger), 'untestable' (print a
      double dagger).
    difference, interval: mean of a less mean of b with its t-interval, in the unit of the values, or of the ranks.
    hedges_g: the difference in standard deviations, corrected for small samples.
  """
  a: str
  b: str
  n_a: int
  n_b: int
  t: float
  df: float
  p: float
  q: float
  significant: bool
  flags: tuple[str, ...]
  difference: float
  interval: tuple[float, float]
  hedges_g: float


@dataclasses.dataclass(frozen=True)
class Groups:
  """A column of letters.

  Attributes:
    order: approaches that have values, best first: by the mean over their own data sets of the mean over repeats.
    means: what they are ordered by.
    letters: approach -> letters; '-' for one without any value.
    pairs: all pairs of `order`.
    unit, test, alpha: how they were compared.
  """
  order: tuple[str, ...]
  means: Mapping[str, float]
  letters: Mapping[str, str]
  pairs: tuple[Pair, ...]
  unit: str
  test: str
  alpha: float

  @property
  def num_tested(self) -> int:
    """Size of the family."""
    return sum('untestable' not in pair.flags for pair in self.pairs)


def groups(values: Mapping[str, Mapping[str, Sequence[float]]], *, unit: str = 'repeat_mean',
           test: Literal['student', 'welch'] = 'student', floor: Mapping[str, float] | None = None,
           alpha: float = 0.05) -> Groups:
  """Compares all pairs of approaches.

  Args:
    values: approach -> data set -> values by repeat, larger is better; NaN or None, or no entry, where there is none.
    unit: one of `UNITS`; 'paired' is a one-sample test of differences, whatever `test` says.
    test: Student's with pooled variance, or Welch's.
    floor: data set -> resolution of a value, see above; None for none.
    alpha: share of false discoveries; also 1 - level of the intervals.
  Raises:
    UnknownNameError: no such unit or test.
    BadInputError: a value is infinite, a resolution is missing, or more than 4,096 letters would be needed.
  """
  for what, name, known in (('unit', unit, units.UNITS), ('test', test, _TESTS)):
    if name not in known:
      raise UnknownNameError(what, name, known)
  require(0 < alpha < 1, f'alpha must lie between 0 and 1, got {alpha}.')
  require(floor is None or unit != 'rank', 'Ranks have no resolution: use another unit with floor.')
  cleaned = {name: by_dataset for name, by_dataset in units.clean(values).items() if by_dataset}
  # fsum, and data sets in order of name: ties stay ties whatever the order in which values come.
  means = {name: math.fsum(map(_mean, by_dataset.values())) / len(by_dataset) for name, by_dataset in cleaned.items()}
  order = tuple(sorted(cleaned, key=lambda name: (-means[name], name)))
  samples_of = units.of_unit(cleaned, unit)
  compared = []
  for a, b in itertools.combinations(order, 2):
    samples = samples_of(a, b)
    n_b = len(samples.a) if samples.b is None else len(samples.b)
    compared.append((a, b, len(samples.a), n_b, _compare(samples, test, floor, alpha)))
  q = benjamini_hochberg(np.array([result.p for *_, result in compared]))
  pairs = tuple(
    Pair(a, b, n_a, n_b, r.t, r.df, r.p, float(qi), bool(qi <= alpha), (r.flag,) if r.flag else (), r.difference,
         r.interval, r.hedges_g) for (a, b, n_a, n_b, r), qi in zip(compared, q, strict=True))
  shown = dict.fromkeys(values, '-')
  if not np.isnan(q).all():
    shown |= letters(order, [(p.a, p.b) for p in pairs if p.significant])
  return Groups(order, means, shown, pairs, unit, test, alpha)


def _mean(array: np.ndarray) -> float:
  present = array[~np.isnan(array)]
  return math.fsum(present) / len(present)


def _compare(samples: units.Samples, test: str, floor: Mapping[str, float] | None, alpha: float) -> ttest.TTest:
  added = tuple(_rounding_variance(floor, datasets, samples.is_mean)
                for datasets in (samples.datasets_a, samples.datasets_b))
  if samples.b is None:
    return ttest.paired(samples.a, alpha=alpha, floor=sum(added), scale=samples.scale)   # of two rounded values each
  return _TESTS[test](samples.a, samples.b, alpha=alpha, floor=added)


def _rounding_variance(floor: Mapping[str, float] | None, datasets: tuple[str, ...], is_mean: bool) -> float:
  if floor is None or not datasets:
    return 0.
  missing = [d for d in datasets if d not in floor]
  require(not missing, f'floor has no resolution for {", ".join(missing)}.')
  delta = sum(floor[d] for d in datasets) / len(datasets) / (len(datasets) if is_mean else 1)
  return delta ** 2 / 12
