"""Tables in Markdown."""
import re
from collections.abc import Iterable

from jaxfix.study.table.model import Mark, Table, flat_columns, numeric, unspanned, with_published


def to_markdown(table: Table) -> str:
  """A pipe table (GitHub's Markdown), with the caption above and the notes below; published figures in own columns."""
  double = with_published(table)
  headers, alignments, numbers = [], [], numeric(table)
  for k, column in enumerate(flat_columns(table)):
    headers += [column, f'{column} pub.'] if k in double else [column]
    alignments += ['---:' if k in numbers else '---'] * (1 + (k in double))
  lines = [_pipes(map(escape_markdown, headers)), _pipes(alignments)]
  for row in table.rows:
    cells = []
    for k, cell in enumerate(unspanned(row)):
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
