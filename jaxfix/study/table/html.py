"""Tables in HTML."""
import html
import math

from jaxfix.study.table.model import Cell, Table


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
    attributes += f' data-sort="{cell.sort:.12g}"'
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
