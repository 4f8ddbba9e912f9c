"""The records of a table, marks of the best and worst, and what the renderers ask of a table."""
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
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
    folded: a page shows it on demand.
  """
  id: str
  caption: str
  columns: tuple[str, ...]
  rows: tuple[tuple[Cell, ...], ...]
  rules: tuple[int, ...] = ()
  notes: tuple[str, ...] = ()
  groups: tuple[tuple[str, int], ...] = ()
  formats: tuple[str, ...] = FORMATS
  folded: bool = False

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


def flat_columns(table: Table) -> tuple[str, ...]:
  """Headers with the name of their group before them."""
  if not table.groups:
    return table.columns
  names = [name for name, n in table.groups for _ in range(n)]
  return tuple(f'{name} {column}'.strip() for name, column in zip(names, table.columns, strict=True))


def unspanned(row: Sequence[Cell]) -> list[Cell]:
  """One cell a column: a spanning cell, then empty ones."""
  if all(cell.span == 1 for cell in row):
    return list(row)
  return [c for cell in row for c in (dataclasses.replace(cell, span=1), *[Cell('')] * (cell.span - 1))]


def with_published(table: Table) -> set[int]:
  """Columns in which some cell has a published figure."""
  return {k for row in table.rows for k, cell in enumerate(unspanned(row)) if cell.published}


def numeric(table: Table) -> set[int]:
  """Columns in which some cell has a number behind its text."""
  return {k for row in table.rows for k, cell in enumerate(unspanned(row)) if cell.sort is not None}
