"""What enters the comparison of two approaches: the six units of a test.

Values are `v[approach][dataset][repeat]`, larger is better, NaN where a repeat has none. D_ab are the data sets that
both approaches have values on.

| unit | sample | n |
|---|---|---|
| repeat_mean | for each repeat the mean over D_ab | repeats |
| repeat_mean_own | the same over each approach's own data sets | repeats |
| repeat_mean_zero | the same over all data sets, missing values counted as 0 | repeats |
| pooled | all values on D_ab | repeats x data sets |
| paired | differences on D_ab, repeat by repeat | repeats x data sets |
| rank | ranks among all values of a data set, divided by their number, on D_ab | repeats x data sets |

`repeat_mean` takes the data sets as fixed and the repeats as random: it concludes about these data sets. `paired` on
five or more of them is the one to quote about others.

Decided here: the means of `repeat_mean` and `repeat_mean_own` must be over the same data sets in every repeat. A data
set with a single value is left out of them, and so is a repeat that has no value on one of the others. In
`repeat_mean_zero` a repeat that only some approaches have counts as 0 for the rest. Ranks are taken among the values of
all approaches, and compared on D_ab.
"""
import dataclasses
import types
from collections.abc import Callable, Mapping

import numpy as np
from scipy import stats

from jaxfix.errors import require

Values = Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Samples:
  """Samples of two approaches, or their differences.

  Attributes:
    a, b: `[n]`; b is None if a holds differences.
    datasets_a, datasets_b: what they were taken from.
    is_mean: each value is a mean over those data sets.
    scale: of differences, the largest magnitude of the values that were subtracted.
  """
  a: np.ndarray
  b: np.ndarray | None
  datasets_a: tuple[str, ...]
  datasets_b: tuple[str, ...]
  is_mean: bool
  scale: float = 0.


def clean(values: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, np.ndarray]]:
  """The values as float64 arrays; None is NaN; data sets without any value are dropped.

  Raises:
    BadInputError: a value is infinite, or not one sequence of numbers a data set.
  """
  result = {}
  for approach, by_dataset in values.items():
    result[approach] = {}
    for dataset in sorted(by_dataset):
      array = np.array([np.nan if v is None else v for v in by_dataset[dataset]], np.float64)
      require(array.ndim == 1 and not np.isinf(array).any(), f'{approach} on {dataset}: values must be finite or NaN.')
      if not np.isnan(array).all():
        result[approach][dataset] = array
  return result


def _common(values: Values, a: str, b: str) -> tuple[str, ...]:
  return tuple(d for d in values[a] if d in values[b])


def _means(by_dataset: Mapping[str, np.ndarray], datasets: tuple[str, ...]) -> np.ndarray:
  """Mean over the data sets, for each repeat that has them all."""
  if not datasets:
    return np.zeros(0)
  repeats = max(len(by_dataset[d]) for d in datasets)
  means = np.mean([_padded(by_dataset[d], repeats) for d in datasets], axis=0)
  return means[~np.isnan(means)]


def _padded(array: np.ndarray, repeats: int, fill: float = np.nan) -> np.ndarray:
  return np.concatenate([array, np.full(repeats - len(array), fill)])


def _repeated(by_dataset: Mapping[str, np.ndarray], datasets: tuple[str, ...]) -> tuple[str, ...]:
  """Those of the data sets with two values or more."""
  return tuple(d for d in datasets if np.count_nonzero(~np.isnan(by_dataset[d])) > 1)


def _repeat_mean(values: Values, a: str, b: str) -> Samples:
  common = _repeated(values[b], _repeated(values[a], _common(values, a, b)))
  return Samples(_means(values[a], common), _means(values[b], common), common, common, True)


def _repeat_mean_own(values: Values, a: str, b: str) -> Samples:
  own_a, own_b = (_repeated(values[x], tuple(values[x])) for x in (a, b))
  return Samples(_means(values[a], own_a), _means(values[b], own_b), own_a, own_b, True)


def _repeat_mean_zero(values: Values, a: str, b: str) -> Samples:
  datasets = tuple(sorted({d for by_dataset in values.values() for d in by_dataset}))
  repeats = max(len(array) for by_dataset in values.values() for array in by_dataset.values())

  def means(name):
    return np.mean([np.nan_to_num(_padded(values[name].get(d, np.zeros(0)), repeats)) for d in datasets], axis=0)

  return Samples(means(a), means(b), datasets, datasets, True)


def _pooled(values: Values, a: str, b: str) -> Samples:
  common = _common(values, a, b)
  pools = (np.concatenate([np.zeros(0), *(values[x][d] for d in common)]) for x in (a, b))
  return Samples(*(pool[~np.isnan(pool)] for pool in pools), common, common, False)


def _paired(values: Values, a: str, b: str) -> Samples:
  common = _common(values, a, b)
  differences = np.concatenate([np.zeros(0), *(_difference(values[a][d], values[b][d]) for d in common)])
  scale = max((float(np.nanmax(abs(values[x][d]))) for x in (a, b) for d in common), default=0.)
  return Samples(differences[~np.isnan(differences)], None, common, common, False, scale)


def _difference(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  n = min(len(x), len(y))
  return x[:n] - y[:n]


def _ranked(values: Values) -> dict[str, dict[str, np.ndarray]]:
  """Each value's rank among those of all approaches on its data set, over their number; the best has 1."""
  result = {name: {} for name in values}
  for dataset in sorted({d for by_dataset in values.values() for d in by_dataset}):
    here = {name: values[name][dataset] for name in values if dataset in values[name]}
    flat = np.concatenate(list(here.values()))
    ranks = stats.rankdata(flat, nan_policy='omit') / np.count_nonzero(~np.isnan(flat))
    ends = np.cumsum([len(part) for part in here.values()])[:-1]
    for name, part in zip(here, np.split(ranks, ends), strict=True):
      result[name][dataset] = part
  return result


UNITS: Mapping[str, Callable[[Values, str, str], Samples]] = types.MappingProxyType({
  'repeat_mean': _repeat_mean,
  'repeat_mean_own': _repeat_mean_own,
  'repeat_mean_zero': _repeat_mean_zero,
  'pooled': _pooled,
  'paired': _paired,
  'rank': _pooled,   # of the ranks
})
"""Unit -> (values, a, b) -> samples."""


def of_unit(values: Values, unit: str) -> Callable[[str, str], Samples]:
  """`(a, b) -> Samples` for cleaned values."""
  prepared = _ranked(values) if unit == 'rank' else values
  return lambda a, b: UNITS[unit](prepared, a, b)
