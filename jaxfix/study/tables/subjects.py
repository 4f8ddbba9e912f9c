"""T1: the subjects, ours beside those of the study.

Decided here: rows of results hold neither the number of layers nor that of classes. Classes are counted from the stored
labels where a store has them; layers are not, and the number of parameters stands in their place.
"""
from jaxfix.study.aggregate import MAX_ORIGINAL_DIFFERENCE
from jaxfix.study.published import PublishedSubject
from jaxfix.study.table import Cell, Table
from jaxfix.study.tables.view import STAND_IN, Column, View, percent

_COLUMNS = ('Subject', 'model', 'layers', 'parameters', 'classes', 'original accuracy [%]', 'train', 'valid', 'repair',
            'test', 'failures on test', 'eps', 'data')


def subjects(v: View) -> list[Table]:
  """The table; a published subject that was not measured is 'not run'."""
  rows = [(Cell(column.title), *_cells(v, column)) for column in v.columns]
  notes = ['Layers are not recorded here; parameters are not published.',
           'eps: radius of the attack, in normalized input space where nothing else is said.']
  if v.published:
    notes.insert(0, 'Second figures are published and were not measured here.')
    if any(not c.dataset for c in v.columns):
      notes.append(f'{STAND_IN}: stand-in; the study has no counterpart.')
  for column in v.columns:
    ours, theirs = v.originals(column)
    if v.originals_differ(column):
      notes.append(f'{column.title}: the original accuracies differ by {percent(abs(ours - theirs))} points, more than '
                   f'{100 * MAX_ORIGINAL_DIFFERENCE:.0f}.')
  return [Table('T1', 'Subjects', _COLUMNS, tuple(rows), notes=tuple(notes))]


def _cells(v: View, column: Column) -> list[Cell]:
  known = v.published.subjects.get(column.dataset) if v.published else None
  printed = _printed(known) if known else [''] * (len(_COLUMNS) - 1)
  measured = [r for r in v.results.rows if r['subject'] == column.subject]
  # rows of a subject that could not be loaded have no facts
  row = next((r for r in measured if r['original_sha256'] is not None), measured[0] if measured else None)
  if row is None:
    return [Cell(text, p, title='the subject has no row in these results' if text else '')
            for text, p in zip(['not run'] + [''] * (len(printed) - 1), printed, strict=True)]
  ours = [Cell(column.subject), Cell('-', title='not recorded'), _count(row['n_params']), _classes(v, column)]
  accuracy = v.originals(column)[0]
  ours.append(Cell(percent(accuracy), sort=None if accuracy != accuracy else accuracy))
  ours += [_count(row[f'n_{split}']) for split in ('train', 'valid', 'repair', 'test')]
  failures = next((r['n_failures'] for r in measured if r['n_failures'] is not None), None)
  attacked = next((r for r in measured if r['asr_eps'] is not None), None)
  space = '' if attacked is None or attacked['asr_eps_space'] == 'normalized' else f' ({attacked["asr_eps_space"]})'
  radius = Cell(f'{attacked["asr_eps"]:g}{space}', sort=attacked['asr_eps']) if attacked else Cell('-')
  ours += [_count(failures), radius,
           Cell(', '.join(sorted({r['dataset_source'] for r in measured} - {''})) or '-')]
  return [Cell(c.text, p, sort=c.sort, title=c.title) for c, p in zip(ours, printed, strict=True)]


def _printed(known: PublishedSubject) -> list[str]:
  text = known.text
  return [text['model'], text['n_layers'], '', text['n_classes'], text['orig_accuracy'],
          *(f'{int(text[f"n_{split}"]):,}' for split in ('train', 'valid', 'repair', 'test')), '',
          text['pgd_epsilon'], '']


def _count(n: int | None) -> Cell:
  return Cell('-') if n is None else Cell(f'{n:,}', sort=n)


def _classes(v: View, column: Column) -> Cell:
  for row in v.results.rows:
    if row['subject'] == column.subject and (stored := v.results.predictions(row['run_id'])) is not None:
      n = len(set(stored['labels'].tolist()))
      return Cell(str(n), sort=n)
  return Cell('-', title='no predictions are stored')
