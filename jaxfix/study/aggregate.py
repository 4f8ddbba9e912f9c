"""From rows to approaches on subjects: means over seeds, outcomes, orders, ranks and averages over categories.

Everything about approaches uses rows without post-processing. A `Summary` is one approach on one subject; a `Sheet` the
same figures as one flat mapping, which the study's tables have too, so that each comparison is written once.

Decided here:
- The seeds that finished share one outcome, OK or CORRUPTED by their *mean* accuracy (evaluation spec, section 7); that
  and the seeds which did not finish then vote, and a tie goes to the worse.
- Of rows of several settings, originals or splits those that go with the newest count (`store.newest`).
- `asr_rel` is the mean of the seeds' own relative changes, since each seed attacks the original on its own inputs.
"""
import collections
import dataclasses
import functools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import scipy.stats

from jaxfix import evaluate, methods
from jaxfix.errors import UnknownNameError
from jaxfix.statistics import Groups, groups
from jaxfix.study import published as published_figures
from jaxfix.study.published import Published
from jaxfix.study.record import OUTCOMES
from jaxfix.study.store import newest

ORDER = ('AP', 'ET', 'FM', 'DR', 'HUDD', 'HR', '3M', 'RA', 'AR', 'CARE', 'NR', 'IR', 'DTR', 'GM', 'VERE', 'IN')
"""The study's approaches, in its order."""
DATASETS = ('MNIST', 'UTKFace', 'CIFAR10', 'CIFAR10S', 'ImageNet')
"""Keys of the study's subjects, in its order."""
CATEGORIES = ('model', 'block', 'layer', 'neuron')

_FIELDS = {'seconds': 'repair_seconds'}
METRICS = ('acc_original', 'acc', 'acc_rel', 'rr', 'nfr', 'net', 'rr_repair', 'nfr_repair', 'asr_original', 'asr',
           'asr_rel', 'asr_n', 'aaod_original', 'aaod', 'aaod_rel', 'seconds', 'compile_seconds', 'n_test', 'n_params')
"""What a summary can hold. `net` is the change of accuracy, RR (1 - acc_0) - NFR; `seconds` is `repair_seconds`."""

BETTER = {'acc': 1, 'acc_rel': 1, 'rr': 1, 'net': 1, 'asr': -1, 'asr_rel': 1, 'aaod': -1, 'aaod_rel': 1, 'nfr': -1,
          'seconds': -1}
"""1 where more is better, -1 where less is."""

ASR_NOISE = 0.04
"""Relative changes of ASR below this are noise: what unchanged models show (evaluation spec, section 3.3)."""
MAX_ORIGINAL_DIFFERENCE = 0.01
"""Original accuracies further apart than this give RR and NFR other denominators (reporting spec, section 6)."""

COMPARED = {'acc': 'acc_rel', 'rr': 'rr', 'asr': 'asr_rel', 'aaod': 'aaod_rel', 'nfr': 'nfr', 'time': 'seconds'}
"""Columns of the table of letters -> the metric that they compare (statistics spec, section 3.1)."""


@dataclasses.dataclass(frozen=True)
class Summary:
  """One approach on one subject.

  Attributes:
    approach, code, category, title: registry key ('apricot'), the study's code ('AP') or '', level, name for people.
    subject, published_subject: name, and key of the published tables or ''.
    seeds: ascending.
    outcome: of the cell.
    outcomes, reasons: one a seed.
    values: metric -> one value a seed that has one, in the order of seeds.
    by_seed: metric -> seed -> value.
    flags: of any seed, sorted.
    deterministic: the approach ignores the seed.
  """
  approach: str
  code: str
  category: str
  title: str
  subject: str
  published_subject: str
  seeds: tuple[int, ...]
  outcome: str
  outcomes: tuple[str, ...]
  reasons: tuple[str, ...]
  values: Mapping[str, tuple[float, ...]]
  by_seed: Mapping[str, Mapping[int, float]] = dataclasses.field(default_factory=dict, repr=False)
  flags: tuple[str, ...] = ()
  deterministic: bool = False

  @property
  def key(self) -> str:
    """The study's code, or the registry key of an approach that the study does not have."""
    return self.code or self.approach

  def mean(self, metric: str) -> float:
    """Mean over the seeds; NaN where there is nothing."""
    values = self.values.get(metric, ())
    return math.fsum(values) / len(values) if values else math.nan

  def std(self, metric: str) -> float:
    """Population standard deviation over the seeds (ddof 0), as the study prints; NaN where there is nothing."""
    values = self.values.get(metric, ())
    return float(np.std(values)) if values else math.nan


@dataclasses.dataclass(frozen=True)
class Sheet:
  """Means of the cells that are OK, measured or published.

  Attributes:
    values: (approach, subject, metric) -> mean; cells that are not OK have none.
    outcomes: (approach, subject) -> outcome.
    categories: approach -> level.
    sizes: subject -> size of its model, in one unit for all.
    letters: column of the table of letters -> approach -> letters, without those that have none.
  """
  values: Mapping[tuple[str, str, str], float]
  outcomes: Mapping[tuple[str, str], str]
  categories: Mapping[str, str]
  sizes: Mapping[str, float] = dataclasses.field(default_factory=dict)
  letters: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

  def metric(self, name: str) -> dict[tuple[str, str], float]:
    """(approach, subject) -> mean of one metric."""
    return {(a, s): v for (a, s, m), v in self.values.items() if m == name}


def summarize(rows: Iterable[Mapping[str, Any]]) -> tuple[Summary, ...]:
  """One summary an approach and subject, in `order`. Rows of post-processed models are left out."""
  cells = collections.defaultdict(list)
  for row in newest((row for row in rows if row['postprocess'] == 'none'), ('approach', 'subject')):
    cells[row['approach'], row['subject']].append(row)
  return order(_summary(sorted(of_seeds, key=lambda row: row['seed'])) for of_seeds in cells.values())


def _summary(rows: Sequence[Mapping[str, Any]]) -> Summary:
  first = rows[0]
  by_seed = {m: {row['seed']: v for row in rows if (v := _value(row, m)) is not None} for m in METRICS}
  by_seed = {m: v for m, v in by_seed.items() if v}
  return Summary(
    approach=first['approach'], code=first['approach_code'], category=first['category'],
    title=title(first['approach'], first['approach_code']), subject=first['subject'],
    published_subject=first['published_subject'], seeds=tuple(row['seed'] for row in rows), outcome=_outcome(rows),
    outcomes=tuple(row['outcome'] for row in rows), reasons=tuple(row['outcome_reason'] for row in rows),
    values={m: tuple(v.values()) for m, v in by_seed.items()}, by_seed=by_seed,
    flags=tuple(sorted({flag for row in rows for flag in row['flags']})), deterministic=first['deterministic'])


def _value(row: Mapping[str, Any], metric: str) -> float | None:
  if metric == 'net':
    return None if row['counts'] is None else (row['counts']['fixed'] - row['counts']['broken']) / row['n_test']
  return row[_FIELDS.get(metric, metric)]


def _outcome(rows: Sequence[Mapping[str, Any]]) -> str:
  votes = collections.Counter(row['outcome'] for row in rows)
  finished = [row for row in rows if row['outcome'] in ('OK', 'CORRUPTED')]
  if finished and all(row['acc'] is not None for row in finished):
    original = float(np.mean([row['acc_original'] for row in finished]))
    joint = evaluate.outcome(original, [row['acc'] for row in finished])
    votes['OK'] = votes['CORRUPTED'] = 0
    votes[joint] = len(finished)
  return max(OUTCOMES, key=lambda outcome: (votes[outcome], OUTCOMES.index(outcome)))


@functools.cache
def title(approach: str, code: str) -> str:
  """Name of an approach for people: 'I-REPAIR'."""
  try:
    return methods.get(approach).title
  except UnknownNameError:   # rows of another installation
    known = published_figures.load().approaches
    return known[code].title if code in known else approach


def order(summaries: Iterable[Summary]) -> tuple[Summary, ...]:
  """By approach (`approach_rank`), then by subject (`subject_rank`)."""
  return tuple(sorted(summaries, key=lambda s: (approach_rank(s.code, s.category, s.approach),
                                                subject_rank(s.published_subject, s.subject))))


def approach_rank(code: str, category: str, approach: str) -> tuple:
  """Sort key: the study's order, then further approaches by level and name."""
  if code in ORDER:
    return 0, ORDER.index(code), approach
  level = CATEGORIES.index(category) if category in CATEGORIES else len(CATEGORIES)
  return 1, level, approach


def subject_rank(published_subject: str, subject: str) -> tuple:
  """Sort key: the study's order, then further subjects by name."""
  known = published_subject in DATASETS
  return (not known, DATASETS.index(published_subject) if known else 0, subject)


def oriented(summaries: Iterable[Summary], column: str) -> dict[str, dict[str, list[float]]]:
  """Values to compare: approach (registry key) -> subject -> one value a repeat, larger is better.

  Args:
    summaries: cells that are not OK are left out.
    column: a key of `COMPARED`.
  Returns:
    Relative changes, RR, -NFR and -ln(seconds). Repeats are the seeds of all summaries, in order, so that the same
    position is the same seed everywhere; NaN where a cell lacks one.
  """
  summaries, metric = tuple(summaries), COMPARED[column]
  seeds = sorted({seed for s in summaries for seed in s.seeds})
  values: dict[str, dict[str, list[float]]] = {}
  for s in summaries:
    cells = values.setdefault(s.approach, {})
    have = s.by_seed.get(metric, {})
    if s.outcome == 'OK' and have:
      cells[s.subject] = [orient(metric, have[seed]) if seed in have else math.nan for seed in seeds]
  return values


def significance(summaries: Iterable[Summary], **options: Any) -> dict[str, Groups]:
  """Column of `COMPARED` -> the groups of its approaches (registry keys); `options` as in `statistics.groups`."""
  summaries = tuple(summaries)
  return {column: groups(oriented(summaries, column), **options) for column in COMPARED}


def orient(metric: str, value: float) -> float:
  """`value` so that larger is better; of seconds the logarithm."""
  if metric == 'seconds':
    return -math.log(max(value, 1e-9))
  return BETTER[metric] * value


def ranks(values: Mapping[Hashable, float], metric: str) -> dict[Hashable, float]:
  """Rank of each value, 1 is best; ties share the average; NaN has none."""
  present = {k: v for k, v in values.items() if not math.isnan(v)}
  if not present:
    return {}
  ranked = scipy.stats.rankdata([-BETTER[metric] * v for v in present.values()])
  return dict(zip(present, map(float, ranked), strict=True))


def subject_ranks(summaries: Iterable[Summary], subject: str, metric: str) -> dict[str, float]:
  """Ranks of the approaches that are OK on one subject."""
  return ranks({s.key: s.mean(metric) for s in summaries if s.subject == subject and s.outcome == 'OK'}, metric)


def category_average(cells: Mapping[tuple[str, str], float], categories: Mapping[str, str],
                     kind: Literal['dataset_mean', 'cells'] = 'dataset_mean') -> dict[str, float]:
  """Average of a metric over each category.

  Args:
    cells: (approach, subject) -> value; cells that do not count are absent.
    categories: approach -> category.
    kind: 'dataset_mean', the mean over subjects of the mean over the category's approaches, as the study's text quotes;
      'cells', the mean over all cells.
  Returns:
    Category -> average, for the categories that have cells.
  """
  by_subject = collections.defaultdict(lambda: collections.defaultdict(list))
  for (approach, subject), value in cells.items():
    by_subject[categories[approach]][subject].append(value)
  pool = {'dataset_mean': lambda groups: [np.mean(values) for values in groups],
          'cells': lambda groups: np.concatenate(groups)}[kind]
  return {category: float(np.mean(pool(list(groups.values())))) for category, groups in by_subject.items()}


def measured_sheet(summaries: Iterable[Summary], *, by: Literal['subject', 'published'] = 'subject',
                   layers: Mapping[str, int] | None = None,
                   letters: Mapping[str, Mapping[str, str]] | None = None) -> Sheet:
  """The summaries as a `Sheet`.

  Args:
    summaries: of all approaches.
    by: what subjects are called: their own name; or the key of their published counterpart, which drops stand-ins (of
      two subjects with one counterpart, the last counts).
    layers: key of a published subject -> layers. Sizes are these if every subject has them, else numbers of parameters.
    letters: column -> approach -> letters.
  """
  summaries = [s for s in summaries if by == 'subject' or s.published_subject]
  name = lambda s: s.subject if by == 'subject' else s.published_subject
  known = layers and all(s.published_subject in layers for s in summaries)
  return Sheet(
    values={(s.key, name(s), m): s.mean(m) for s in summaries if s.outcome == 'OK' for m in s.values},
    outcomes={(s.key, name(s)): s.outcome for s in summaries},
    categories={s.key: s.category for s in summaries},
    sizes={name(s): layers[s.published_subject] if known else s.mean('n_params') for s in summaries},
    letters=letters or {})


def published_sheet(published: Published) -> Sheet:
  """The study's tables as a `Sheet`, doubtful figures included; sizes are numbers of layers."""
  values = {(*key, m): figure.mean for key, cell in published.cells.items() for m, figure in cell.values.items()}
  originals = {d: s.orig_accuracy for d, s in published.subjects.items()}
  values |= {(a, d, 'net'): v - originals[d] for (a, d, m), v in values.items() if m == 'acc'}
  columns = {column: {code: letters[column] for code, letters in published.letters.items() if letters[column]}
             for column in COMPARED}
  return Sheet(values, {key: cell.outcome for key, cell in published.cells.items()},
               {code: approach.category for code, approach in published.approaches.items()},
               {d: s.n_layers for d, s in published.subjects.items()}, columns)
