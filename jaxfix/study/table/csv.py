"""Tables as CSV."""
import csv
import io
from collections.abc import Callable

from jaxfix.study.table.model import Cell, Table, flat_columns, numeric, unspanned, with_published


def to_csv(table: Table) -> str:
  """Texts as shown; where a column has them, also ' published' texts and the unrounded ' value' (fraction, seconds)."""
  rows = [unspanned(row) for row in table.rows]
  double = with_published(table)
  numbers = numeric(table)
  parts: list[list[tuple[str, Callable[[Cell], str]]]] = [
    [('', lambda cell: cell.text)]
    + ([(' published', lambda cell: cell.published)] if k in double else [])
    + ([(' value', lambda cell: '' if cell.sort is None else f'{cell.sort:.12g}')] if k in numbers else [])
    for k in range(len(table.columns))]
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(column + suffix for column, part in zip(flat_columns(table), parts, strict=True)
                  for suffix, _ in part)
  for row in rows:
    writer.writerow(read(cell) for cell, part in zip(row, parts, strict=True) for _, read in part)
  return out.getvalue()
