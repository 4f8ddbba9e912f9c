"""Beside the letters of T3: what a draw of other test inputs, and of other subjects, would leave of the differences.

T3.bootstrap resamples test inputs, T3.ranks compares ranks over subjects (Friedman, Nemenyi), T3.paired tests paired
differences over subjects and repeats.

Decided here:
- The bootstrap needs stored predictions. Of a cell, the seeds count that have them for the same inputs and original.
- Friedman's test needs complete blocks: it compares the approaches that have a value on every subject that any has.
- Paired tests speak of new subjects only over enough of them: pairs with fewer than five common subjects are left out.
  The correction is over all pairs of the metric that can be tested.
"""
import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxfix.statistics import Groups, Interval, bootstrap_flips, friedman
from jaxfix.study.aggregate import COMPARED, Summary, oriented, significance
from jaxfix.study.store import Results, newest
from jaxfix.study.table import Cell, Table
from jaxfix.study.tables.pairs import p_text, pairs
from jaxfix.study.tables.view import STAND_IN, View, percent

_RESAMPLES = 10_000
_ENOUGH = 5   # subjects from which on a paired comparison is quoted (statistics spec, section 3.2)


def beyond(v: View) -> list[Table]:
  """The tables; each is absent where nothing can be computed."""
  return [*_bootstrap(v), *_ranks(v.summaries), *_paired(v.summaries)]


def _bootstrap(v: View) -> list[Table]:
  titles = {c.subject: c.title for c in v.columns}
  runs = collections.defaultdict(list)
  for row in newest(v.results.rows):
    if row['postprocess'] == 'none' and row['counts']:
      runs[row['approach'], row['subject']].append(row['run_id'])
  rows, starts = [], []
  for approach in dict.fromkeys(s.approach for s in v.summaries):
    cells = {s.subject: found for s in v.summaries if s.approach == approach and s.outcome == 'OK'
             and (found := _predictions(v.results, runs[approach, s.subject]))}
    if not cells:
      continue
    starts.append(len(rows))
    key = next(s.key for s in v.summaries if s.approach == approach)
    scopes = [(titles[subject], {subject: found}) for subject, found in cells.items()]
    if len(cells) > 1:
      scopes.append((f'mean over these {len(cells)}', cells))
    for scope, found in scopes:
      intervals = bootstrap_flips(found, resamples=_RESAMPLES)
      seeds = sorted({len(after) for _, _, after in found.values()})
      rows.append((Cell(key), Cell(scope), Cell(' to '.join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))),
                   *(cell for metric in ('acc', 'rr', 'nfr') for cell in _interval(intervals[metric]))))
  if not rows:
    return []
  columns = ('Approach', 'subject', 'seeds', *(text for m in ('ACC', 'RR', 'NFR') for text in (f'{m} [%]', '95 %')))
  notes = [f'Percentile intervals of {_RESAMPLES:,} bootstrap resamples of the test inputs, each subject by itself, '
           'all seeds of an input together.',
           'They say how far a rate depends on which inputs the test split holds, not on the seed, the original model '
           'or the subject.']
  if any(STAND_IN in row[1].text for row in rows):
    notes.append(f'{STAND_IN}: stand-in; the study has no counterpart.')
  return [Table('T3.bootstrap', 'Rates with intervals over the draw of test inputs', columns, tuple(rows),
                tuple(starts[1:]), tuple(notes), folded=True)]


def _predictions(results: Results, runs: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
  """Labels `[n]`, labels of the original `[n]` and of the repaired models `[seeds, n]`, or None. runs: ids."""
  found = [p for run in runs if (p := results.predictions(run)) is not None]
  if not found:
    return None
  same = [p for p in found if np.array_equal(p['labels'], found[0]['labels'])
          and np.array_equal(p['before'], found[0]['before'])]
  return found[0]['labels'], found[0]['before'], np.stack([p['after'] for p in same])


def _interval(found: Interval) -> tuple[Cell, Cell]:
  if math.isnan(found.value):
    return Cell('n/a'), Cell('')
  return Cell(percent(found.value), sort=found.value), Cell(f'{100 * found.low:.2f} to {100 * found.high:.2f}')


def _ranks(summaries: Sequence[Summary]) -> list[Table]:
  """A line a metric on which at least two approaches share at least two subjects."""
  keys, rows = {s.approach: s.key for s in summaries}, []
  for column in COMPARED:
    means, left_out = _complete(summaries, column)
    found = friedman(means)
    if math.isnan(found.p):
      continue
    best = next(iter(found.mean_ranks.values()))
    worse = [keys[a] for a, rank in found.mean_ranks.items() if rank - best > found.critical_difference]
    rows.append((Cell(column.upper()), Cell(', '.join(f'{keys[a]} {rank:.2f}' for a, rank in found.mean_ranks.items())),
                 Cell(f'{found.critical_difference:.2f}'), Cell(', '.join(worse) or 'none'),
                 Cell(str(len(found.datasets))), Cell(f'{found.statistic:.2f}'), Cell(p_text(found.p)),
                 Cell(', '.join(keys[a] for a in left_out) or 'none')))
  if not rows:
    return []
  notes = ('Mean rank over subjects, 1 is best, of the means over seeds. p: Friedman. By Nemenyi at 0.05 two '
           'approaches differ where their mean ranks are further apart than the critical difference; with few subjects '
           'little is.',
           'Left out: approaches without a value on some subject that has the metric; the test needs complete blocks.')
  return [Table('T3.ranks', "Ranks over subjects: Friedman's test, and Nemenyi's critical difference",
                ('Metric', 'mean ranks', 'critical difference', 'worse than the first', 'subjects', 'chi-square', 'p',
                 'left out'), tuple(rows), notes=notes, folded=True)]


def _complete(summaries: Sequence[Summary], column: str) -> tuple[dict[str, dict[str, float]], list[str]]:
  """Approach -> subject -> mean over seeds, larger is better, where it has all subjects; approaches with only some."""
  values = {a: {d: _mean(x) for d, x in by_subject.items()} for a, by_subject in oriented(summaries, column).items()}
  subjects = set().union(*values.values())
  complete = {a: by_subject for a, by_subject in values.items() if subjects and by_subject.keys() == subjects}
  return complete, [a for a in values if a not in complete]


def _mean(values: Sequence[float]) -> float:
  present = [x for x in values if not math.isnan(x)]
  return math.fsum(present) / len(present)


def _paired(summaries: Sequence[Summary]) -> list[Table]:
  covered = {column: {a: set(by_subject) for a, by_subject in oriented(summaries, column).items()}
             for column in COMPARED}
  if not any(len(subjects) >= _ENOUGH for found in covered.values() for subjects in found.values()):
    return []
  found = {column: _over_enough(groups, covered[column])
           for column, groups in significance(summaries, unit='paired').items()}
  tables = pairs('T3', found, {s.approach: s.key for s in summaries})
  return [dataclasses.replace(t, id='T3.paired', caption='Paired differences over subjects and repeats, one-sample '
                              't-tests', notes=(*t.notes, f'Only pairs with at least {_ENOUGH} common subjects: these '
                              'are the ones to quote for other subjects. Repeats of one subject count as independent, '
                              'which flatters p.'), folded=True) for t in tables]


def _over_enough(groups: Groups, covered: Mapping[str, set[str]]) -> Groups:
  return dataclasses.replace(groups, pairs=tuple(
    pair for pair in groups.pairs if len(covered[pair.a] & covered[pair.b]) >= _ENOUGH))
