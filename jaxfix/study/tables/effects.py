"""T2 (effectiveness) and T4 (properties): one wide table, and one a subject with ours and published side by side.

Where the original accuracies are more than a point apart, the table of the subject compares net flips, the change of
accuracy in points, instead of RR and NFR, whose denominators differ. Levels of ASR are shown but not subtracted: the
study attacked other inputs, on another output. T2.repair has what happened on the repair split.

Decided here: beside our ASR stand its 95 % Wilson interval and the number of attacked inputs, and the ASR of the
original on the same inputs. Seeds attack inputs of one test split: the interval is that of their mean rate at the
fewest inputs that one of them attacked, not at the sum. The page has the table of a published subject folded, since
only there are differences; that of a stand-in would say nothing that the wide one does not.
"""
from collections.abc import Sequence

from jaxfix.evaluate.robustness import wilson
from jaxfix.study.aggregate import ASR_NOISE, BETTER, Summary
from jaxfix.study.table import FORMATS, Cell, Table, marked
from jaxfix.study.tables import repair_split
from jaxfix.study.tables.view import (
  Column,
  View,
  difference_cell,
  legend,
  measured_cell,
  paired_cells,
  percent,
  rules,
  wide_cells,
)

_HEADERS = {'acc': 'ACC [%]', 'acc_rel': 'ACC rel. [%]', 'rr': 'RR [%]', 'net': 'net flips [points]',
            'asr': 'ASR [%]', 'asr_interval': '95 % interval [%]', 'asr_original': 'ASR of original [%]',
            'asr_rel': 'ASR rel. [%]', 'aaod': 'AAOD', 'aaod_rel': 'AAOD rel. [%]', 'nfr': 'NFR [%]'}
_EFFECTIVENESS = ('acc', 'acc_rel', 'rr')
_PROPERTIES = ('asr', 'asr_interval', 'asr_original', 'asr_rel', 'aaod', 'aaod_rel', 'nfr')
_UNPUBLISHED = ('asr_interval', 'asr_original')
_RELATIVE = 'Relative change against the original model: + is better, for ACC as for ASR and AAOD.'


def effectiveness(v: View) -> list[Table]:
  """T2: accuracy, its relative change, repair rate; one table a measured subject; T2.repair."""
  notes = [_RELATIVE, 'RR: share of the original failures on the test split that the repaired model gets right.']
  wide = _wide(v, 'T2', 'Effectiveness of the approaches on the test split', lambda column: _EFFECTIVENESS, notes)
  return [wide, *(_subject_table(v, 'T2', 'Effectiveness', c, _EFFECTIVENESS, ('rr',), notes)
                  for c in v.columns if c.subject), *repair_split.repair_split(v)]


def properties(v: View) -> list[Table]:
  """T4: attack success, fairness, negative flips; and one table a measured subject. AAOD where there are groups."""
  notes = [_RELATIVE, 'ASR of original: on the same attacked inputs, which are right under both models; the base '
           'of the relative change. Interval: Wilson, of the mean ASR at n attacked inputs, the fewest of any seed.',
           'NFR: share of all test inputs that the repair broke; less is better, as for ASR and AAOD.',
           f'A relative change of ASR below about {100 * ASR_NOISE:.0f} % is noise: unchanged models show as much.']
  wide = _wide(v, 'T4', 'Robustness, fairness and negative flips on the test split', lambda c: _shown(v, c), notes)
  return [wide, *(_subject_table(v, 'T4', 'Robustness, fairness, negative flips', c, _shown(v, c),
                                 ('aaod', 'nfr') if _has(v, c, 'aaod') else ('nfr',), notes)
                  for c in v.columns if c.subject)]


def _shown(v: View, column: Column) -> tuple[str, ...]:
  """Metrics of T4 on a subject."""
  absent = () if _has(v, column, 'aaod') else ('aaod', 'aaod_rel')
  if not _measured(v, column, 'asr'):
    absent += _UNPUBLISHED
  return tuple(m for m in _PROPERTIES if m not in absent)


def _measured(v: View, column: Column, metric: str) -> bool:
  return any(s.values.get(metric) for s in v.summaries if s.subject == column.subject)


def _has(v: View, column: Column, metric: str) -> bool:
  return (_measured(v, column, metric)
          or any(v.figure(line, column, metric) for line in v.lines if column.dataset))


def _wide(v: View, name: str, caption: str, shown, notes: Sequence[str]) -> Table:
  metrics = {column: shown(column) for column in v.columns}
  flat = [m for column in v.columns for m in metrics[column]]
  rows = [[Cell(line.label), *(cell for column in v.columns
                               for cell in wide_cells(v, line, column, metrics[column], _figure))] for line in v.lines]
  return Table(
    name, caption, ('Approach', *(_HEADERS[m] for m in flat)),
    marked(rows, {k: BETTER[m] for k, m in enumerate(flat, start=1) if m in BETTER}), rules(v.lines),
    (*legend(v, v.columns, flat), *notes, *filter(None, (_originals(v, column) for column in v.columns))),
    (('', 1), *((column.title, len(metrics[column])) for column in v.columns)), ('html', 'tex', 'csv'))


def _subject_table(v: View, name: str, caption: str, column: Column, metrics: Sequence[str],
                   compared: Sequence[str], notes: Sequence[str]) -> Table:
  """Rows approaches; for each metric ours and published; then differences, or net flips and their difference."""
  if v.originals_differ(column):
    compared = ['net', *(m for m in compared if m not in ('rr', 'nfr'))]
    metrics = [*metrics, 'net']
  headers, better = ['Approach'], {}
  for m in metrics:
    if m in BETTER:
      better[len(headers)] = BETTER[m]
    headers += [_HEADERS[m]] + [f'{_HEADERS[m]} pub.'] * (bool(column.dataset) and m not in _UNPUBLISHED)
  if column.dataset:
    headers += [f'difference of {_HEADERS[m].replace("[%]", "[points]")}' for m in compared]
    notes = [*notes, 'Differences are ours minus published; * exceeds twice its standard error, ? has none (one seed, '
             'or no published std).']
  elif v.published:
    headers.append('published')
  rows, lines = [], v.lines_of(column)
  for line in lines:
    cells = [Cell(line.label), *paired_cells(v, line, column, metrics, _UNPUBLISHED, _figure)]
    if column.dataset:
      cells += [difference_cell(v, line, column, m) for m in compared]
    elif v.published:
      cells.append(Cell('no counterpart'))
    rows.append(cells)
  notes = (*legend(v, [column], metrics), *notes, *filter(None, [_originals(v, column)]))
  return Table(f'{name}.{column.dataset or column.subject}', f'{caption} on {column.title}', tuple(headers),
               marked(rows, better), rules(lines), notes, formats=FORMATS if column.dataset else ('md', 'csv'),
               folded=True)


def _figure(summary: Summary, metric: str, published: str = '') -> Cell:
  """A figure of a cell that is OK; of 'asr_interval' that of the mean rate."""
  if metric != 'asr_interval':
    return measured_cell(summary, metric, published)
  if not summary.values.get('asr'):
    return Cell('n/a')
  n = int(min(summary.by_seed['asr_n'][seed] for seed in summary.by_seed['asr']))
  low, high = wilson(summary.mean('asr') * n, n)
  return Cell(f'{100 * low:.1f} to {100 * high:.1f} (n={n:,})')


def _originals(v: View, column: Column) -> str:
  if not v.originals_differ(column):
    return ''
  ours, theirs = v.originals(column)
  return (f'{column.title}: the original model has {percent(ours)} % here and {percent(theirs)} % in the study, so RR '
          'and NFR have other denominators; net flips (the change of accuracy in points) compare instead.')
