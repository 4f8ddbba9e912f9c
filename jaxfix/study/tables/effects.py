"""T2 (effectiveness) and T4 (properties): one wide table, and one a subject with ours and published side by side.

Where the original accuracies are more than a point apart, the table of the subject compares net flips, the change of
accuracy in points, instead of RR and NFR, whose denominators differ. Levels of ASR are shown but not subtracted: the
study attacked other inputs, on another output.
"""
from collections.abc import Sequence

from jaxfix.study.aggregate import ASR_NOISE, BETTER
from jaxfix.study.table import Cell, Table, marked
from jaxfix.study.tables.view import Column, View, difference_cell, legend, paired_cells, percent, rules, wide_cells

_HEADERS = {'acc': 'ACC [%]', 'acc_rel': 'ACC rel. [%]', 'rr': 'RR [%]', 'net': 'net flips [points]',
            'asr': 'ASR [%]', 'asr_rel': 'ASR rel. [%]', 'aaod': 'AAOD', 'aaod_rel': 'AAOD rel. [%]', 'nfr': 'NFR [%]'}
_EFFECTIVENESS = ('acc', 'acc_rel', 'rr')
_PROPERTIES = ('asr', 'asr_rel', 'aaod', 'aaod_rel', 'nfr')
_RELATIVE = 'Relative change against the original model: + is better, for ACC as for ASR and AAOD.'


def effectiveness(v: View) -> list[Table]:
  """T2: accuracy, its relative change, repair rate; and one table a measured subject."""
  notes = [_RELATIVE, 'RR: share of the original failures on the test split that the repaired model gets right.']
  wide = _wide(v, 'T2', 'Effectiveness of the approaches on the test split', lambda column: _EFFECTIVENESS, notes)
  return [wide, *(_subject_table(v, 'T2', 'Effectiveness', c, _EFFECTIVENESS, ('rr',), notes)
                  for c in v.columns if c.subject)]


def properties(v: View) -> list[Table]:
  """T4: attack success, fairness, negative flips; and one table a measured subject. AAOD where there are groups."""
  shown = lambda column: tuple(m for m in _PROPERTIES if not m.startswith('aaod') or _has(v, column, 'aaod'))
  notes = [_RELATIVE, 'NFR: share of all test inputs that the repair broke; less is better, as for ASR and AAOD.',
           f'A relative change of ASR below about {100 * ASR_NOISE:.0f} % is noise: unchanged models show as much.']
  wide = _wide(v, 'T4', 'Robustness, fairness and negative flips on the test split', shown, notes)
  return [wide, *(_subject_table(v, 'T4', 'Robustness, fairness, negative flips', c, shown(c),
                                 ('aaod', 'nfr') if 'aaod' in shown(c) else ('nfr',), notes)
                  for c in v.columns if c.subject)]


def _has(v: View, column: Column, metric: str) -> bool:
  return (any(s.values.get(metric) for s in v.summaries if s.subject == column.subject)
          or any(v.figure(line, column, metric) for line in v.lines if column.dataset))


def _wide(v: View, name: str, caption: str, shown, notes: Sequence[str]) -> Table:
  metrics = {column: shown(column) for column in v.columns}
  flat = [m for column in v.columns for m in metrics[column]]
  rows = [[Cell(line.label), *(cell for column in v.columns for cell in wide_cells(v, line, column, metrics[column]))]
          for line in v.lines]
  return Table(
    name, caption, ('Approach', *(_HEADERS[m] for m in flat)),
    marked(rows, {k: BETTER[m] for k, m in enumerate(flat, start=1)}), rules(v.lines),
    (*legend(v, v.columns), *notes, *filter(None, (_originals(v, column) for column in v.columns))),
    (('', 1), *((column.title, len(metrics[column])) for column in v.columns)), ('html', 'tex', 'csv'))


def _subject_table(v: View, name: str, caption: str, column: Column, metrics: Sequence[str],
                   compared: Sequence[str], notes: Sequence[str]) -> Table:
  """Rows approaches; for each metric ours and published; then differences, or net flips and their difference."""
  if v.originals_differ(column):
    compared = ['net', *(m for m in compared if m not in ('rr', 'nfr'))]
    metrics = [*metrics, 'net']
  headers, better = ['Approach'], {}
  for m in metrics:
    better[len(headers)] = BETTER[m]
    headers += [_HEADERS[m], f'{_HEADERS[m]} pub.'] if column.dataset else [_HEADERS[m]]
  if column.dataset:
    headers += [f'difference of {_HEADERS[m].replace("[%]", "[points]")}' for m in compared]
    notes = [*notes, 'Differences are ours minus published; * exceeds twice its standard error, ? has none (one seed, '
             'or no published std).']
  elif v.published:
    headers.append('published')
  rows, lines = [], v.lines_of(column)
  for line in lines:
    cells = [Cell(line.label), *paired_cells(v, line, column, metrics)]
    if column.dataset:
      cells += [difference_cell(v, line, column, m) for m in compared]
    elif v.published:
      cells.append(Cell('no counterpart'))
    rows.append(cells)
  notes = (*legend(v, [column]), *notes, *filter(None, [_originals(v, column)]))
  return Table(f'{name}.{column.dataset or column.subject}', f'{caption} on {column.title}', tuple(headers),
               marked(rows, better), rules(lines), notes, formats=('md', 'csv'))


def _originals(v: View, column: Column) -> str:
  if not v.originals_differ(column):
    return ''
  ours, theirs = v.originals(column)
  return (f'{column.title}: the original model has {percent(ours)} % here and {percent(theirs)} % in the study, so RR '
          'and NFR have other denominators; net flips (the change of accuracy in points) compare instead.')
