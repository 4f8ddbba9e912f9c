"""Console tables of approaches and of results; reasons and names are shown as they are, never as markup."""
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from jaxfix.methods.method import Method
from jaxfix.problem import Subject


def percent(value: float | None, places: int = 2, sign: bool = False) -> str:
  """A fraction as percent; '-' for None."""
  return '-' if value is None else f'{100 * value:{"+" if sign else ""}.{places}f}%'


def counted(value: float | None, count: int, total: int) -> str:
  """A rate with its counts: '40.00% (4/10)'."""
  return '-' if value is None else f'{percent(value)} ({count}/{total})'


def _change(before: float | None, after: float | None) -> str:
  return '-' if before is None or after is None else f'{100 * before:.2f} \u2192 {percent(after)}'


def result_cells(row: Mapping[str, Any]) -> list[str]:
  """One row of `result_table`, after the approach and its level."""
  counts = row['counts']
  if counts is None:
    return [row['outcome'], '-', '-', '-', '-', '-', '-' if row['repair_seconds'] is None else '']
  n, failures = row['n_test'], row['n_failures']
  aaod = '' if row['aaod'] is None else f', AAOD {row["aaod_original"]:.4f} to {row["aaod"]:.4f}'
  return [row['outcome'], _change(row['acc_original'], row['acc']),
          counted(row['rr'], counts['fixed'], failures), percent(row['rr_repair']),
          counted(row['nfr'], counts['broken'], n), _change(row['asr_original'], row['asr']) + aaod,
          f'{row["repair_seconds"]:.1f}']


COLUMNS = ('outcome', 'accuracy', 'fixed (RR)', 'RR on repair split', 'broken (NFR)', 'attack success', 'seconds')


def result_table(subject: Subject, rows: Sequence[Mapping[str, Any]]) -> Table:
  """Before and after of every approach, on the test split."""
  table = Table(title=f'{subject.name}: {len(subject.test)} test samples that no approach has seen',
                title_justify='left', expand=False)
  for name in ('approach', 'level', *COLUMNS):
    table.add_column(name, overflow='fold')
  for row in rows:
    table.add_row(*map(Text, (row['approach'], row['category'], *result_cells(row))))
  reasons = [f'{row["approach"]}: {row["outcome_reason"]}' for row in rows if row['outcome_reason']]
  table.caption, table.caption_justify = Text('\n'.join(reasons)) if reasons else None, 'left'
  return table


def method_table(methods: Sequence[Method]) -> Table:
  """The approaches with level, needs and guarantee."""
  table = Table(title='Approaches', title_justify='left')
  for name in ('name', 'level', 'needs', 'changes', 'guarantee', 'what it does'):
    table.add_column(name, overflow='fold')
  for m in methods:
    table.add_row(*map(Text, (m.name, m.level, ', '.join((m.requires, *m.needs)), m.changes, m.guarantee,
                              f'{m.summary} ({m.source})')))
  return table
