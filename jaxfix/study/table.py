"""A table of text cells, and its forms: Markdown, HTML, LaTeX, CSV. The same table gives the same bytes.

A cell holds our text and, apart from it, the published one; they are never mixed. Side-by-side columns in Markdown and
CSV, a small second line in HTML and LaTeX. Best and worst are bold and italic, which needs no color.
"""
import csv
import dataclasses
import html
import io
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

from jaxfix.errors import require

Mark = Literal['best', 'worst', '']
FORMATS = ('md', 'html', 'tex', 'csv')


@dataclasses.dataclass(frozen=True)
class Cell:
  """One cell.

  Attributes:
    text: ours.
    published: the study's, shown small below, or in a column of its own.
    mark: among the best or the worst of its column.
    span: columns that it covers.
    sort: the number behind the text, a fraction or seconds; orders the column and stands in the CSV.
    title: hover text, such as the reason of an outcome.
  """
  text: str
  published: str = ''
  mark: Mark = ''
  span: int = 1
  sort: float | None = None
  title: str = ''


@dataclasses.dataclass(frozen=True)
class Table:
  """Cells in rows; the first cell of a row is its header.

  Attributes:
    id: 'T2'; also the file name and the anchor.
    caption: one line.
    columns: headers, one a column.
    rows: their spans add up to the number of columns.
    rules: row numbers before which a rule stands.
    notes: lines below the table.
    groups: (header, columns) of a line above `columns`, () without one; they cover all columns.
    formats: the forms that this layout is made for, of `FORMATS`; every function below renders any table.
  """
  id: str
  caption: str
  columns: tuple[str, ...]
  rows: tuple[tuple[Cell, ...], ...]
  rules: tuple[int, ...] = ()
  notes: tuple[str, ...] = ()
  groups: tuple[tuple[str, int], ...] = ()
  formats: tuple[str, ...] = FORMATS

  def __post_init__(self):
    for i, row in enumerate(self.rows):
      width = sum(cell.span for cell in row)
      require(width == len(self.columns), f'Table {self.id}: row {i} covers {width} of {len(self.columns)} columns.')
    require(not self.groups or sum(n for _, n in self.groups) == len(self.columns),
            f'Table {self.id}: the groups do not cover {len(self.columns)} columns.')


def marks(values: Sequence[float | None], *, better: int, n: int = 3) -> list[Mark]:
  """Best n and worst n of a column; whoever ties with the n-th shares its mark.

  A value that would be both (few values, or many ties) has neither mark.

  Args:
    values: None or NaN is never marked.
    better: 1 where more is better, -1 where less is.
  """
  present = sorted((better * v for v in values if v is not None and not math.isnan(v)), reverse=True)
  if not present:
    return [''] * len(values)
  best, worst = present[min(n, len(present)) - 1], present[-min(n, len(present))]

  def mark(v: float | None) -> Mark:
    if v is None or math.isnan(v):
      return ''
    high, low = better * v >= best, better * v <= worst
    return 'best' if high and not low else 'worst' if low and not high else ''

  return [mark(v) for v in values]


def marked(rows: Iterable[Sequence[Cell]], columns: Mapping[int, int]) -> tuple[tuple[Cell, ...], ...]:
  """The rows with the marks of some columns set, by the cells' `sort`.

  Args:
    rows: cells that span several columns, or have no `sort`, are left as they are.
    columns: number of a column -> 1 where more is better, -1 where less is.
  """
  rows = [list(row) for row in rows]
  for column, better in columns.items():
    found = [_at(row, column) for row in rows]
    values = [None if k is None else row[k].sort for row, k in zip(rows, found, strict=True)]
    for row, k, mark in zip(rows, found, marks(values, better=better), strict=True):
      if k is not None:
        row[k] = dataclasses.replace(row[k], mark=mark)
  return tuple(map(tuple, rows))


def _at(row: Sequence[Cell], column: int) -> int | None:
  """Position in `row` of the cell that is exactly that column."""
  start = 0
  for k, cell in enumerate(row):
    if start == column:
      return k if cell.span == 1 else None
    start += cell.span
  return None


def _flat_columns(table: Table) -> tuple[str, ...]:
  """Headers with the name of their group before them."""
  if not table.groups:
    return table.columns
  names = [name for name, n in table.groups for _ in range(n)]
  return tuple(f'{name} {column}'.strip() for name, column in zip(names, table.columns, strict=True))


def _unspanned(row: Sequence[Cell]) -> list[Cell]:
  """One cell a column: a spanning cell, then empty ones."""
  return [c for cell in row for c in (dataclasses.replace(cell, span=1), *[Cell('')] * (cell.span - 1))]


def _with_published(table: Table) -> set[int]:
  """Columns in which some cell has a published figure."""
  return {k for row in table.rows for k, cell in enumerate(_unspanned(row)) if cell.published}


def _numeric(table: Table) -> set[int]:
  """Columns in which some cell has a number behind its text."""
  return {k for row in table.rows for k, cell in enumerate(_unspanned(row)) if cell.sort is not None}


# --- Markdown ---------------------------------------------------------------------------------------------------------

def to_markdown(table: Table) -> str:
  """A pipe table (GitHub's Markdown), with the caption above and the notes below; published figures in own columns."""
  double = _with_published(table)
  headers, alignments, numbers = [], [], _numeric(table)
  for k, column in enumerate(_flat_columns(table)):
    headers += [column, f'{column} pub.'] if k in double else [column]
    alignments += ['---:' if k in numbers else '---'] * (1 + (k in double))
  lines = [_pipes(map(escape_markdown, headers)), _pipes(alignments)]
  for row in table.rows:
    cells = []
    for k, cell in enumerate(_unspanned(row)):
      cells.append(_emphasis(escape_markdown(cell.text), cell.mark, '**', '*'))
      if k in double:
        cells.append(escape_markdown(cell.published))
    lines.append(_pipes(cells))
  notes = [f'- {escape_markdown(note)}' for note in table.notes]
  parts = [f'**{escape_markdown(f"{table.id}. {table.caption}")}**', '\n'.join(lines), '\n'.join(notes)]
  return '\n\n'.join(part for part in parts if part) + '\n'


def _pipes(cells: Iterable[str]) -> str:
  return '| ' + ' | '.join(cells) + ' |'


def _emphasis(text: str, mark: Mark, best: str, worst: str) -> str:
  around = {'best': best, 'worst': worst, '': ''}[mark] if text else ''
  return f'{around}{text}{around}'


def escape_markdown(text: str) -> str:
  """Text that Markdown shows as it is."""
  return re.sub(r'([\\`*_{}\[\]<>#|~&$])', r'\\\1', ' '.join(text.split()))


# --- HTML -------------------------------------------------------------------------------------------------------------

def to_html(table: Table) -> str:
  """A `table` element with caption and scoped headers, then its notes.

  Needs neither style nor script. A script that sorts finds `data-column` at the headers (the number of the column; the
  cells' `colspan` counts) and `data-sort` at cells with a number; rows after a rule have the class `rule`.
  """
  lines = [f'<table id="{_attribute(table.id)}">',
           f'<caption><strong>{_text(table.id)}.</strong> {_text(table.caption)}</caption>', '<thead>']
  if table.groups:
    lines.append('<tr>' + ''.join(
      f'<th scope="colgroup" colspan="{n}">{_text(name)}</th>' if name else f'<td colspan="{n}"></td>'
      for name, n in table.groups) + '</tr>')
  lines.append('<tr>' + ''.join(f'<th scope="col" data-column="{k}">{_text(column)}</th>'
                                for k, column in enumerate(table.columns)) + '</tr>')
  lines += ['</thead>', '<tbody>']
  for i, row in enumerate(table.rows):
    lines.append(('<tr class="rule">' if i in table.rules else '<tr>')
                 + ''.join(_html_cell(cell, header=k == 0) for k, cell in enumerate(row)) + '</tr>')
  lines += ['</tbody>', '</table>']
  if table.notes:
    lines += ['<ul class="notes">', *(f'<li>{_text(note)}</li>' for note in table.notes), '</ul>']
  return '\n'.join(lines) + '\n'


def _html_cell(cell: Cell, header: bool) -> str:
  tag = 'th' if header else 'td'
  attributes = ' scope="row"' if header else ''
  if cell.span > 1:
    attributes += f' colspan="{cell.span}" class="word"'
  if cell.sort is not None and math.isfinite(cell.sort):
    attributes += f' data-sort="{cell.sort!r}"'
  if cell.title:
    attributes += f' title="{_attribute(cell.title)}"'
  element = {'best': 'strong', 'worst': 'em', '': ''}[cell.mark]
  text = f'<{element}>{_text(cell.text)}</{element}>' if element else _text(cell.text)
  if cell.published:
    text += f'<br><small class="published" title="published">{_text(cell.published)}</small>'
  return f'<{tag}{attributes}>{text}</{tag}>'


def _text(text: str) -> str:
  return html.escape(' '.join(text.split()), quote=False)


def _attribute(text: str) -> str:
  return html.escape(' '.join(text.split()), quote=True)


# --- LaTeX ------------------------------------------------------------------------------------------------------------

_LONG = 30   # characters beyond which a text breaks lines
_WIDE = 9   # columns beyond which a table is scaled to the width of the text

_LATEX = {'\\': r'\textbackslash{}', '{': r'\{', '}': r'\}', '&': r'\&', '%': r'\%', '$': r'\$', '#': r'\#', '_': r'\_',
          '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '<': r'\textless{}', '>': r'\textgreater{}',
          '|': r'\textbar{}', '"': r'\textquotedbl{}', '±': r'$\pm$', '†': r'\textdagger{}', '‡': r'\textdaggerdbl{}',
          '→': r'$\rightarrow$', '≤': r'$\leq$', '≥': r'$\geq$', '×': r'$\times$', 'κ': r'$\kappa$', 'ρ': r'$\rho$',
          'ε': r'$\varepsilon$', '–': '--', '—': '---', '’': "'", '…': r'\ldots{}'}


def to_latex(table: Table) -> str:
  """A `table` environment for `booktabs` and `graphicx`, T1 font encoding; published figures on a small second line."""
  n = len(table.columns)
  body = [rf'\begin{{tabular}}{{{_alignment(table)}}}', r'\toprule']
  if table.groups:
    body.append(' & '.join(rf'\multicolumn{{{k}}}{{c}}{{{escape_latex(name)}}}' for name, k in table.groups) + r' \\')
  body += [' & '.join(map(escape_latex, table.columns)) + r' \\', r'\midrule']
  for i, row in enumerate(table.rows):
    if i in table.rules and i > 0:
      body.append(r'\midrule')
    body.append(' & '.join(map(_latex_cell, row)) + r' \\')
  body += [r'\bottomrule', r'\end{tabular}']
  if n > _WIDE:
    body = [r'\resizebox{\textwidth}{!}{%', *body, '}']
  notes = [r'\par\smallskip\raggedright\scriptsize', *(rf'{escape_latex(note)}\par' for note in table.notes)]
  return '\n'.join([r'\begin{table}', r'\centering\footnotesize', rf'\caption{{{escape_latex(table.caption)}}}',
                    rf'\label{{tab:{_label(table.id)}}}', *body, *(notes if table.notes else []),
                    r'\end{table}']) + '\n'


def _alignment(table: Table) -> str:
  """Numbers right, texts left; columns of long texts share most of the width and break lines."""
  numbers, rows = _numeric(table), [_unspanned(row) for row in table.rows]
  long = {k for row in rows for k, cell in enumerate(row) if len(cell.text) > _LONG} - numbers
  width = rf'p{{{0.8 / max(1, len(long)):.2f}\textwidth}}'
  return ''.join(width if k in long else 'r' if k in numbers else 'l' for k in range(len(table.columns)))


def _latex_cell(cell: Cell) -> str:
  command = {'best': r'\textbf', 'worst': r'\textit', '': ''}[cell.mark]
  text = escape_latex(cell.text)
  text = f'{command}{{{text}}}' if command else text
  if cell.published:
    text = rf'\shortstack{{{text}\\{{\scriptsize {escape_latex(cell.published)}}}}}'
  elif text.startswith('['):
    text = '{}' + text   # \\ before it would take it for its option
  return rf'\multicolumn{{{cell.span}}}{{c}}{{{text}}}' if cell.span > 1 else text


def escape_latex(text: str) -> str:
  """Text that LaTeX sets as it is. A hyphen before a number becomes a minus; letters without a form become '?'."""
  text = ' '.join(text.split())
  minus = {m.start() for m in re.finditer(r'(?<![\w.)])-(?=\d)', text)}
  return ''.join('$-$' if i in minus else _latex_character(c) for i, c in enumerate(text))


def _latex_character(c: str) -> str:
  if c in _LATEX:
    return _LATEX[c]
  if c.isascii() or unicodedata.name(c, '').startswith('LATIN') and ord(c) < 0x180:
    return c
  return '?'


def _label(text: str) -> str:
  return re.sub(r'[^\w-]', '-', text, flags=re.ASCII).replace('_', '-').lower()


# --- CSV --------------------------------------------------------------------------------------------------------------

def to_csv(table: Table) -> str:
  """Texts as shown; where a column has them, also ' published' texts and the unrounded ' value' (fraction, seconds)."""
  rows = [_unspanned(row) for row in table.rows]
  double = _with_published(table)
  numbers = _numeric(table)
  parts: list[list[tuple[str, Callable[[Cell], str]]]] = [
    [('', lambda cell: cell.text)]
    + ([(' published', lambda cell: cell.published)] if k in double else [])
    + ([(' value', lambda cell: '' if cell.sort is None else repr(cell.sort))] if k in numbers else [])
    for k in range(len(table.columns))]
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(column + suffix for column, part in zip(_flat_columns(table), parts, strict=True)
                  for suffix, _ in part)
  for row in rows:
    writer.writerow(read(cell) for cell, part in zip(row, parts, strict=True) for _, read in part)
  return out.getvalue()


RENDERERS: Mapping[str, Callable[[Table], str]] = {'md': to_markdown, 'html': to_html, 'tex': to_latex, 'csv': to_csv}
