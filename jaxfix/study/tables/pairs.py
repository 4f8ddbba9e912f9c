"""Beside the letters of T3: every pair with its effect size, and each repair's flips against chance.

Decided here: pairs are listed where at least one could be tested; those that could not are then listed too, flagged.
McNemar's p is not corrected: each belongs to one pair of models, and none decides anything here.
"""
import functools
import math
from collections.abc import Mapping, Sequence

from jaxfix.statistics import Groups, Pair, mcnemar
from jaxfix.study.aggregate import Summary
from jaxfix.study.table import Cell, Table
from jaxfix.study.tables.view import STAND_IN, View, zero_without_sign

_FLAGS = {'degenerate': 'no spread', 'untestable': 'not testable'}
_mcnemar = functools.cache(mcnemar)


def pairs(name: str, found: Mapping[str, Groups], keys: Mapping[str, str]) -> list[Table]:
  """The table behind a table of letters, or none.

  Args:
    name: of the table of letters.
    found: column -> its groups.
    keys: registry key of an approach -> `Summary.key`.
  """
  if not any(groups.num_tested for groups in found.values()):
    return []
  some = next(iter(found.values()))
  rows = tuple((Cell(column.upper()), Cell(keys[pair.a]), Cell(keys[pair.b]), *_cells(pair, column), Cell(
    ', '.join(_FLAGS[flag] for flag in pair.flags) or ('differ' if pair.significant else '')))
    for column, groups in found.items() for pair in groups.pairs)
  starts = [k for k in range(1, len(rows)) if rows[k][0] != rows[k - 1][0]]
  caption = f'The pairs behind {name}: unit {some.unit}, two-sided {some.test.title()} t-tests'
  notes = ('Difference: mean of a less mean of b, turned so that + is better for a, in points of what the letters '
           'compare (ACC, ASR, AAOD: relative change); of TIME in natural logarithms of seconds, where 0.69 is twice '
           'as fast.',
           f'q: p after Benjamini-Hochberg within the metric; differ: q is at most {some.alpha:g}.',
           'No spread: both constant, so different for certain on this data. Not testable: too few repeats, or no '
           'common subject.')
  columns = ('Metric', 'a', 'b', 'difference', f'{100 * (1 - some.alpha):g} % interval', 'Hedges g', 'p', 'q', 'result')
  return [Table(f'{name}.pairs', caption, columns, rows, tuple(starts), notes, formats=('md', 'html', 'csv'))]


def flips(summaries: Sequence[Summary], v: View) -> list[Table]:
  """Positive against negative flips of the repairs that are OK; one line a cell, one figure a seed."""
  titles = {c.subject: c.title for c in v.columns}
  rows = []
  for s in summaries:
    counts = _flips(s)
    if s.outcome == 'OK' and counts:
      p = [_mcnemar(fixed, broken) for fixed, broken in counts]
      rows.append((Cell(s.key), Cell(titles[s.subject]), Cell(' '.join(str(fixed) for fixed, _ in counts)),
                   Cell(' '.join(str(broken) for _, broken in counts)), Cell(' '.join(map(p_text, p)), sort=max(p))))
  if not rows:
    return []
  notes = ['One figure a seed, in the order of seeds. p: exact McNemar test, two-sided, that a flip is as likely to '
           'fix as to break; not corrected for the number of tests. Sorted by the largest.']
  if any(STAND_IN in row[1].text for row in rows):
    notes.append(f'{STAND_IN}: stand-in; the study has no counterpart.')
  return [Table('T3.flips', 'Fixed against broken test inputs of every repair',
                ('Approach', 'subject', 'fixed', 'broken', 'p'), tuple(rows), notes=tuple(notes),
                formats=('md', 'html', 'csv'))]


def _flips(s: Summary) -> list[tuple[int, int]]:
  """(fixed, broken) of every seed that has them: counts, from shares of the test inputs."""
  net, nfr, n = (s.by_seed.get(m, {}) for m in ('net', 'nfr', 'n_test'))
  return [(round((net[seed] + nfr[seed]) * n[seed]), round(nfr[seed] * n[seed])) for seed in net]


def _cells(pair: Pair, column: str) -> tuple[Cell, ...]:
  if 'untestable' in pair.flags:
    return (Cell('-'),) * 5
  scale = 1. if column == 'time' else 100.
  number = lambda x: zero_without_sign(f'{scale * x:+.2f}')
  low, high = pair.interval
  g = pair.hedges_g
  return (Cell(number(pair.difference), sort=pair.difference), Cell(f'{number(low)} to {number(high)}'),
          Cell(zero_without_sign(f'{g:+.2f}'), sort=g if math.isfinite(g) else None),
          Cell(p_text(pair.p), sort=pair.p), Cell(p_text(pair.q), sort=pair.q))


def p_text(p: float) -> str:
  """A p-value: three decimals, or its order of magnitude."""
  return '0' if p == 0 else f'{p:.3f}' if p >= 0.001 else f'{p:.0e}'
