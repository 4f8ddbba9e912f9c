"""T3: which approaches differ significantly, as letters.

Decided here: published letters rest on the study's subjects, so they stand beside ours only in a table over measured
counterparts of these (T3). Where there are stand-ins too, T3.all is over all measured subjects, without published
letters; it is T3 where there are only stand-ins. After them come the pairs behind each and T3.flips (`pairs`), then
what other inputs and other subjects would leave (`beyond`).
"""
from collections.abc import Mapping, Sequence

from jaxfix.statistics import Groups
from jaxfix.study.aggregate import COMPARED, Summary, significance
from jaxfix.study.table import Cell, Table
from jaxfix.study.tables import beyond, pairs
from jaxfix.study.tables.view import DAGGER, STAND_IN, View, rules

_CONSTANT, _UNTESTED = DAGGER, STAND_IN   # the same signs with another meaning, said in the notes


def significance_groups(v: View) -> list[Table]:
  """The table or tables."""
  counterparts = [s for s in v.summaries if s.published_subject and v.published]
  shown = [('T3', counterparts, True)] if counterparts else []
  if len(counterparts) < len(v.summaries):
    shown.append(('T3.all' if counterparts else 'T3', v.summaries, False))
  tables, details = [], []
  for name, summaries, beside in shown:
    found = significance(summaries)
    tables.append(_table(v, name, summaries, found, beside))
    details += pairs.pairs(name, found, {s.approach: s.key for s in summaries})
  return [*tables, *details, *pairs.flips(v.summaries, v), *beyond.beyond(v)]


def _table(v: View, name: str, summaries: Sequence[Summary], found: Mapping[str, Groups], beside: bool) -> Table:
  approaches = {s.key: s.approach for s in summaries}
  lines = v.lines if beside else tuple(line for line in v.lines if line.key in approaches)
  rows = [(Cell(line.label), *(_cell(found[column], approaches.get(line.key, ''),
                                     v.published.letters.get(line.code, {}).get(column) if beside else None)
                               for column in COMPARED)) for line in lines]
  some = next(iter(found.values()))
  subjects = ', '.join(dict.fromkeys(s.subject for s in summaries))
  shown = ''.join(cell.text for row in rows for cell in row[1:])
  notes = [f'Approaches that share a letter do not differ significantly; a is best. Compared over: {subjects}.',
           'ACC, ASR and AAOD: relative change; TIME: logarithm of seconds. Only cells that are OK count.']
  if beside:
    notes.append('Second letters are published. Which samples and test the study used is not known: two displays are '
                 'compared here, none is reproduced.')
  if _CONSTANT in shown:
    notes.append(f'{_CONSTANT}: differs from another approach without any spread: certain on this data.')
  if _UNTESTED in shown:
    notes.append(f'{_UNTESTED}: some pair cannot be tested (too few repeats, no common subject); taken as equal.')
  caption = (f'Significance groups: unit {some.unit}, two-sided {some.test.title()} t-tests at {some.alpha:g}, '
             'Benjamini-Hochberg within each column')
  return Table(name, caption, ('Approach', *(column.upper() for column in COMPARED)), tuple(rows), rules(lines),
               tuple(notes))


def _cell(found: Groups, approach: str, printed: str | None) -> Cell:
  second = '' if printed is None else printed or '-'
  letters = found.letters.get(approach, '')
  if not letters:
    return Cell('not run', second, title='no row for this approach on these subjects')
  flags = {flag for pair in found.pairs if approach in (pair.a, pair.b) for flag in pair.flags}
  if letters == '-':
    return Cell('-', second, title='no value, or no pair that could be tested')
  return Cell(letters + _CONSTANT * ('degenerate' in flags) + _UNTESTED * ('untestable' in flags), second)
