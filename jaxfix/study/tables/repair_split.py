"""T2.repair: net flips on the test split, and RR and NFR on the repair split, apart from those on the test split."""
import math

from jaxfix.study.aggregate import Summary
from jaxfix.study.table import Cell, Table, marked
from jaxfix.study.tables.view import Column, Line, View, averaged_over, measured_cell, percent, rules

_METRICS = {'net': 'net flips, test split [points]', 'rr_repair': 'RR, repair split [%]',
            'gap': 'RR, repair less test [points]', 'nfr_repair': 'NFR, repair split [%]'}


def repair_split(v: View) -> list[Table]:
  """The table; nothing where no cell has a figure."""
  columns = [c for c in v.columns if any(s.subject == c.subject and s.outcome == 'OK' for s in v.summaries)]
  lines = tuple(line for line in v.lines if any(v.summary(line, c) for c in columns))
  if not columns:
    return []
  rows = [[Cell(line.label), *(cell for c in columns for cell in _cells(v, line, c))] for line in lines]
  notes = (*averaged_over(v, columns, ('net', 'rr_repair', 'nfr_repair')),
           'Net flips: fixed less broken, as a share of all test inputs: the change of accuracy.',
           'Approaches that take failing samples from the repair split were given it: the more its RR exceeds that on '
           'the test split, the less their repair carries over. The others never saw it.')
  net = {1 + len(_METRICS) * k: 1 for k in range(len(columns))}
  return [Table('T2.repair', 'Net flips, and what the repairs did on the repair split',
                ('Approach', *(header for _ in columns for header in _METRICS.values())), marked(rows, net),
                rules(lines), notes, (('', 1), *((c.title, len(_METRICS)) for c in columns)))]


def _cells(v: View, line: Line, column: Column) -> list[Cell]:
  word, why = v.word(line, column)
  if word:
    return [Cell(word, span=len(_METRICS), title=why)]
  return [_figure(v.summary(line, column), metric) for metric in _METRICS]


def _figure(summary: Summary, metric: str) -> Cell:
  if metric != 'gap':
    return measured_cell(summary, metric)
  gap = summary.mean('rr_repair') - summary.mean('rr')
  return Cell(percent(gap, sign=True), sort=None if math.isnan(gap) else gap)
