"""How far measured results agree with published ones: ranks, signs, outcomes and letters; and where they do not.

Only subjects with a published counterpart count, and only cells that are OK on both sides. Left out, and counted, are
published figures that contradict others of their paper, and RR and NFR of subjects whose original models differ by more
than a point of accuracy.

Decided here:
- The rank of an approach is by its mean over the cells that it has on both sides, of what the table of letters
  compares: relative changes, RR, NFR, and the logarithm of seconds. Beside it: the correlation within each subject.
- Signs of relative changes are those of the printed resolution, 0.01 %: what prints as 0.00 has none.
- A difference of signs of ASR is worth a line where both changes exceed the noise of that measurement.
- Pairs of approaches that could not be tested here are no member of the comparison of letters.
- A difference of ranks is worth a line from three places on, within one subject.
"""
import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import scipy.stats

from jaxfix.study.aggregate import ASR_NOISE, COMPARED, MAX_ORIGINAL_DIFFERENCE, Sheet, orient, ranks
from jaxfix.study.published import Published

SIGNED = ('acc_rel', 'asr_rel', 'aaod_rel')
_OF_THE_ORIGINAL = ('rr', 'nfr')   # whose denominators or room depend on the original's accuracy
_MIN_APPROACHES = 3   # a correlation of two ranks is always 1 or -1
_NOTABLE = 3.         # places


@dataclasses.dataclass(frozen=True)
class MetricAgreement:
  """One column of `COMPARED`. NaN where there is too little to say.

  Attributes:
    column: 'acc', ...
    spearman: of approach ranks over all common cells.
    num_approaches: behind it.
    by_subject: subject -> (Spearman within it, approaches).
    equal_signs: share of cells with equal sign of the relative change; NaN for columns without one.
    num_cells: common cells.
    kappa: Cohen's, of "shares a letter" over pairs of approaches.
    num_pairs: behind it.
    num_left_out: common cells whose published figure is doubtful, or rests on another original.
  """
  column: str
  spearman: float
  num_approaches: int
  by_subject: Mapping[str, tuple[float, int]]
  equal_signs: float
  num_cells: int
  kappa: float
  num_pairs: int
  num_left_out: int


@dataclasses.dataclass(frozen=True)
class Difference:
  """One disagreement: `kind` 'outcome', 'sign' or 'rank', of `metric` ('' for outcomes), as texts."""
  kind: str
  approach: str
  subject: str
  metric: str
  measured: str
  published: str


@dataclasses.dataclass(frozen=True)
class Agreement:
  """All columns.

  Attributes:
    metrics: one a column.
    equal_outcomes: share of the `num_outcomes` cells that both sides have; NaN without any.
    num_outcomes: those cells.
    differences: where outcomes, signs and ranks differ.
    left_out: (approach, subject) of the cells with a doubtful published figure that was left out.
    other_originals: subjects whose RR and NFR were left out.
  """
  metrics: tuple[MetricAgreement, ...]
  equal_outcomes: float
  num_outcomes: int
  differences: tuple[Difference, ...]
  left_out: tuple[tuple[str, str], ...]
  other_originals: tuple[str, ...] = ()


def agreement(measured: Sheet, theirs: Sheet, published: Published,
              untested: Mapping[str, Collection[frozenset[str]]] | None = None) -> Agreement:
  """Compares two sheets whose subjects have the published names.

  Args:
    measured: `aggregate.measured_sheet(..., by='published')`, with letters.
    theirs: `aggregate.published_sheet(published)`.
    published: says which figures are doubtful, and the accuracy of the originals.
    untested: column -> pairs of approaches whose letters here rest on no test.
  """
  outcomes = [(key, outcome, theirs.outcomes[key]) for key, outcome in measured.outcomes.items()
              if key in theirs.outcomes]
  differences = [Difference('outcome', *key, '', a, b) for key, a, b in outcomes if a != b]
  metrics, left_out, other = [], {}, _other_originals(measured, published)
  for column, metric in COMPARED.items():
    ours, printed = measured.metric(metric), theirs.metric(metric)
    common = [key for key in ours if key in printed and not math.isnan(ours[key])]
    sure = [key for key in common if not published.doubtful(*key, metric)]
    left_out |= dict.fromkeys(key for key in common if key not in sure)
    kept = [key for key in sure if metric not in _OF_THE_ORIGINAL or key[1] not in other]
    ours, printed = ({key: side[key] for key in kept} for side in (ours, printed))
    signs = [(key, sign(ours[key]), sign(printed[key])) for key in kept] if metric in SIGNED else []
    differences += [Difference('sign', *key, metric, _SIGNS[a], _SIGNS[b]) for key, a, b in signs
                    if a != b and (metric != 'asr_rel' or min(abs(ours[key]), abs(printed[key])) >= ASR_NOISE)]
    differences += _rank_differences(ours, printed, metric)
    shared = _letter_pairs(measured.letters.get(column, {}), theirs.letters.get(column, {}),
                           (untested or {}).get(column, ()))
    metrics.append(MetricAgreement(
      column, *_overall(ours, printed, metric), by_subject=_by_subject(ours, printed, metric),
      equal_signs=float(np.mean([a == b for _, a, b in signs])) if signs else math.nan, num_cells=len(kept),
      kappa=kappa(*shared), num_pairs=len(shared[0]), num_left_out=len(common) - len(kept)))
  equal = float(np.mean([a == b for _, a, b in outcomes])) if outcomes else math.nan
  return Agreement(tuple(metrics), equal, len(outcomes), tuple(differences), tuple(left_out), other)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
  """Spearman's rank correlation; NaN for fewer than three values, or where one side is all ties."""
  if len(a) < _MIN_APPROACHES:
    return math.nan
  x, y = (scipy.stats.rankdata(np.round(side, 12)) for side in (a, b))   # rounding must not undo a tie
  x, y = x - x.mean(), y - y.mean()
  scale = math.sqrt((x @ x) * (y @ y))
  return float(x @ y / scale) if scale else math.nan


def kappa(a: Sequence[bool], b: Sequence[bool]) -> float:
  """Cohen's kappa of two lists of decisions; NaN without any, or where chance alone would agree on all."""
  if len(a) == 0:
    return math.nan
  x, y = np.asarray(a, bool), np.asarray(b, bool)
  observed, by_chance = np.mean(x == y), x.mean() * y.mean() + (1 - x.mean()) * (1 - y.mean())
  return float((observed - by_chance) / (1 - by_chance)) if by_chance < 1 else math.nan


def sign(fraction: float) -> int:
  """-1, 0 or 1, at the resolution of a printed percentage."""
  return int(np.sign(round(100 * fraction, 2)))


_SIGNS = {-1: 'worse', 0: 'unchanged', 1: 'better'}


def _overall(ours: Mapping, printed: Mapping, metric: str) -> tuple[float, int]:
  means = []
  for side in (ours, printed):
    by_approach = {}
    for (approach, _), value in side.items():
      by_approach.setdefault(approach, []).append(orient(metric, value))
    means.append([math.fsum(values) / len(values) for values in by_approach.values()])
  return spearman(*means), len(means[0])


def _by_subject(ours: Mapping, printed: Mapping, metric: str) -> dict[str, tuple[float, int]]:
  result = {}
  for subject in dict.fromkeys(subject for _, subject in ours):
    keys = [key for key in ours if key[1] == subject]
    sides = ([orient(metric, side[key]) for key in keys] for side in (ours, printed))
    result[subject] = spearman(*sides), len(keys)
  return result


def _rank_differences(ours: Mapping, printed: Mapping, metric: str) -> list[Difference]:
  differences = []
  for subject in dict.fromkeys(subject for _, subject in ours):
    keys = [key for key in ours if key[1] == subject]
    a, b = (ranks({key: side[key] for key in keys}, metric) for side in (ours, printed))
    differences += [Difference('rank', *key, metric, f'{a[key]:g} of {len(keys)}', f'{b[key]:g} of {len(keys)}')
                    for key in keys if abs(a[key] - b[key]) >= _NOTABLE]
  return differences


def _other_originals(measured: Sheet, published: Published) -> tuple[str, ...]:
  """Subjects whose original models here and in the study differ too much to compare what is relative to them."""
  ours = {}
  for (_, subject), accuracy in measured.metric('acc_original').items():
    ours.setdefault(subject, []).append(accuracy)
  return tuple(s for s, known in published.subjects.items()
               if s in ours and abs(float(np.mean(ours[s])) - known.orig_accuracy) > MAX_ORIGINAL_DIFFERENCE)


def _letter_pairs(ours: Mapping[str, str], printed: Mapping[str, str], untested: Collection[frozenset[str]] = ()
                  ) -> tuple[list[bool], list[bool]]:
  """For each pair of approaches that has letters on both sides, and was tested: do they share one, here and there?"""
  both = sorted(a for a in ours if a in printed)
  share = lambda letters, a, b: bool(_names(letters[a]) & _names(letters[b]))
  pairs = [(a, b) for i, a in enumerate(both) for b in both[i + 1:] if frozenset((a, b)) not in untested]
  return [share(ours, a, b) for a, b in pairs], [share(printed, a, b) for a, b in pairs]


def _names(letters: str) -> set[str]:
  return set(letters.split(',')) if ',' in letters else set(letters)
