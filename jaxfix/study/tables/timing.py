"""T5: wall time of a repair. Seconds of different machines do not compare; ranks and ratios to one approach do.

Decided here: printed as the study prints ('13h46m', '09m05s'), below ten seconds with a decimal ('3.2s'). Ratios are to
FSGMix, or, where it was not measured or not published on a subject, to the first approach in the study's order that was
both. Ranks are among the approaches with both figures. What compiling took is shown from the least to the most of the
seeds, since a mean would hide that the first cells of a worker pay for the others.
"""
import math

from jaxfix.study.aggregate import ORDER, ranks
from jaxfix.study.table import FORMATS, Cell, Table, marked
from jaxfix.study.tables.view import ABBREVIATED, Column, Line, View, legend, rules

_REFERENCE = ('FM', *ORDER)


def time_text(seconds: float) -> str:
  """'13h46m' from an hour on, '09m05s' from ten seconds on, else '3.2s'; 'n/a' for NaN."""
  if math.isnan(seconds):
    return 'n/a'
  if seconds < 9.95:
    return f'{seconds:.1f}s'
  whole = round(seconds)
  if whole < 3600:
    return f'{whole // 60:02d}m{whole % 60:02d}s'
  minutes = round(seconds / 60)
  return f'{minutes // 60:02d}h{minutes % 60:02d}m'


def times(v: View) -> list[Table]:
  """The wide table, and one a measured subject with ranks and ratios."""
  compiled = {column for column in v.columns if _has_compiled(v, column)}
  rows, headers = [[Cell(line.label)] for line in v.lines], ['Approach']
  timed = []
  for column in v.columns:
    timed.append(len(headers))
    headers += [f'{column.title} [h:min or min:s]', *[f'{column.title}, of it compiling'] * (column in compiled)]
    for line, row in zip(v.lines, rows, strict=True):
      row += [_cell(v, line, column, published=True), *[_compiling(v, line, column)] * (column in compiled)]
  devices = sorted({f'{r["device_count"]} {r["device_kind"]}, {r["host_cpu"]}' for r in v.results.rows
                    if r['device_kind']})
  notes = (f'Mean wall time of the repair, compilation included, on: {"; ".join(devices) or "-"}.',
           'Seconds measured on different hardware do not compare; ranks and ratios do.',
           *(['Of it compiling: tracing and XLA, from the least to the most of the seeds. Cells that one worker '
              'process runs share compiled programs: the first of them pays for all, and its time is longer for that.']
             if compiled else []))
  wide = Table('T5', 'Time of a repair', tuple(headers), marked(rows, dict.fromkeys(timed, -1)),
               rules(v.lines), (*legend(v, v.columns, ('seconds',)), *notes), formats=('html', 'tex', 'csv'))
  return [wide, *(_subject_table(v, column, notes) for column in v.columns if column.subject)]


def _cell(v: View, line: Line, column: Column, published: bool) -> Cell:
  word, why = v.word(line, column)
  printed = ''
  if published and column.dataset:
    printed = v.printed(line, column, 'seconds') or ABBREVIATED.get(v.published_outcome(line, column), '')
  if word:
    return Cell(ABBREVIATED[word], printed, title=why)
  seconds = v.summary(line, column).mean('seconds')
  return Cell(time_text(seconds), printed, sort=None if math.isnan(seconds) else seconds)


def _has_compiled(v: View, column: Column) -> bool:
  return any(s.values.get('compile_seconds') for s in v.summaries if s.subject == column.subject and s.outcome == 'OK')


def _compiling(v: View, line: Line, column: Column) -> Cell:
  if v.word(line, column)[0]:
    return Cell('')
  values = v.summary(line, column).values.get('compile_seconds')
  if not values:
    return Cell('n/a', title='not measured')
  ends = dict.fromkeys((time_text(min(values)), time_text(max(values))))
  return Cell(' to '.join(ends), sort=sum(values) / len(values))


def _subject_table(v: View, column: Column, notes: tuple[str, ...]) -> Table:
  ours = {line.key: v.summary(line, column).mean('seconds') for line in v.lines if not v.word(line, column)[0]}
  ours = {key: seconds for key, seconds in ours.items() if not math.isnan(seconds)}
  theirs = {line.key: f.mean for line in v.lines if column.dataset and (f := v.figure(line, column, 'seconds'))}
  both = [key for key in ours if key in theirs]
  our_ranks, their_ranks = (ranks({k: side[k] for k in both}, 'seconds') for side in (ours, theirs))
  reference = next((code for code in _REFERENCE if code in both), None)
  compiled = _has_compiled(v, column)
  headers = ['Approach', 'time [h:min or min:s]', *['of it compiling'] * compiled]
  if column.dataset:
    ratio = f'ratio to {reference}' if reference else 'ratio'
    headers += ['time pub.', 'rank', 'rank pub.', ratio, f'{ratio} pub.']
  elif v.published:
    headers.append('published')
  rows, lines = [], v.lines_of(column)
  for line in lines:
    cells = [Cell(line.label), _cell(v, line, column, published=False),
             *[_compiling(v, line, column)] * compiled]
    if column.dataset:
      cells.append(Cell(_cell(v, line, column, published=True).published, sort=theirs.get(line.key)))
      shared = line.key in both
      cells += [_number(order[line.key], 'g') if shared else Cell('') for order in (our_ranks, their_ranks)]
      cells += [_number(side[line.key] / side[reference], '.3g') if shared else Cell('') for side in (ours, theirs)]
    elif v.published:
      cells.append(Cell('no counterpart'))
    rows.append(cells)
  return Table(f'T5.{column.dataset or column.subject}', f'Time of a repair on {column.title}', tuple(headers),
               marked(rows, {1: -1}), rules(lines), (*legend(v, [column], ('seconds',)), *notes),
               formats=FORMATS if column.dataset else ('md', 'csv'), folded=True)


def _number(x: float, form: str) -> Cell:
  return Cell(format(x, form), sort=x)
