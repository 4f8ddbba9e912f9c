"""How long a study will take, from what its cells took before."""
import dataclasses
import datetime
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxfix.study.plan import Cell


@dataclasses.dataclass
class Estimate:
  """Seconds of cells, learned from rows; it learns on while a study runs.

  Attributes:
    seconds: (approach, subject) -> wall seconds of every cell known so far.
  """
  seconds: dict[tuple[str, str], list[float]] = dataclasses.field(default_factory=dict)

  @classmethod
  def of(cls, rows: Iterable[Mapping[str, Any]]) -> 'Estimate':
    """From rows, wherever they were measured; what a study's own cells take is learned as they end."""
    estimate = cls()
    for row in rows:
      if row['postprocess'] == 'none' and row['outcome'] != 'FAILURE':   # which says nothing of how long it takes
        estimate.learn(row['approach'], row['subject'], wall_seconds(row))
    return estimate

  def learn(self, method: str, subject: str, seconds: float) -> None:
    """Adds what one cell took."""
    self.seconds.setdefault((method, subject), []).append(seconds)

  def cell(self, cell: Cell) -> float | None:
    """Median seconds of such cells; None where none is known."""
    known = self.seconds.get((cell.method, cell.subject.label))
    return statistics.median(known) if known else None

  def total(self, cells: Sequence[Cell], workers: int) -> tuple[float | None, int]:
    """Seconds for all of them on so many workers, and for how many cells nothing is known.

    Those count like the median of everything that is known; the seconds are None where that is nothing.
    """
    if not cells:
      return 0., 0
    each = [self.cell(c) for c in cells]
    unknown = each.count(None)
    if not self.seconds:
      return None, unknown
    usual = statistics.median(s for known in self.seconds.values() for s in known)
    each = [usual if s is None else s for s in each]
    return max(sum(each) / workers, *each), unknown


def wall_seconds(row: Mapping[str, Any]) -> float:
  """From the start of a row's work to its end, the measurement of the repaired model included; whole seconds."""
  start, end = (datetime.datetime.fromisoformat(row[k]) for k in ('started_utc', 'ended_utc'))
  return (end - start).total_seconds()


def spoken(seconds: float | None) -> str:
  """'2 h 05 min', '7 min', '40 s', or 'unknown'."""
  if seconds is None:
    return 'unknown'
  if seconds < 90:
    return f'{seconds:.0f} s'
  minutes = round(seconds / 60)
  return f'{minutes} min' if minutes < 60 else f'{minutes // 60} h {minutes % 60:02d} min'
