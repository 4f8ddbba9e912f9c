"""How long a study will take, from what its cells took before.

A cell is a repair with its measurement, then its post-processings, then its attack curve. Rows say what the first two
took. Decided here: a radius of the curve counts like what follows a repair in its row, which is an attack on the same
two models and the predictions; a post-processing of which no row is known counts like one too. What this study's own
cells take replaces all of that as they end.
"""
import collections
import dataclasses
import datetime
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from jaxfix.study.plan import Cell

Place = tuple[str, str]
"""Approach and subject."""


@dataclasses.dataclass
class Estimate:
  """Seconds of cells, learned from rows; it learns on while a study runs.

  Attributes:
    repairs: place -> expected wall seconds of a repair and its measurement.
    extras: place -> expected wall seconds of what the plan wants besides.
    seconds: place -> wall seconds of every whole cell of this study.
  """
  repairs: dict[Place, float] = dataclasses.field(default_factory=dict)
  extras: dict[Place, float] = dataclasses.field(default_factory=dict)
  seconds: dict[Place, list[float]] = dataclasses.field(default_factory=dict)

  @classmethod
  def of(cls, rows: Iterable[Mapping[str, Any]], postprocess: Sequence[str] = (), num_radii: int = 0) -> 'Estimate':
    """From rows, wherever they were measured.

    Args:
      rows: of any stores.
      postprocess: post-processings of the plan.
      num_radii: of its attack curves.
    """
    walls, measured = collections.defaultdict(list), collections.defaultdict(list)
    for row in rows:
      if row['outcome'] != 'FAILURE':   # which says nothing of how long it takes
        place, wall = (row['approach'], row['subject']), wall_seconds(row)
        walls[row['postprocess'], place].append(wall)
        if row['postprocess'] == 'none' and row['counts'] is not None:
          measured[place].append(max(0., wall - (row['repair_seconds'] or 0.)))
    repairs = {place: statistics.median(known) for (name, place), known in walls.items() if name == 'none'}
    extras = {}
    for place in repairs:   # where nothing could be measured nothing will be
      once = statistics.median(measured[place]) if measured[place] else 0.
      combined = (statistics.median(walls.get((name, place)) or [once]) for name in postprocess)
      extras[place] = sum(combined) + num_radii * once
    return cls(repairs, extras)

  def learn(self, method: str, subject: str, seconds: float) -> None:
    """Adds what one whole cell took."""
    self.seconds.setdefault((method, subject), []).append(seconds)

  def cell(self, cell: Cell, is_repaired: bool = False) -> float | None:
    """Expected seconds of a cell, or of what follows its repair; None where nothing is known."""
    place = cell.method, cell.subject.label
    if is_repaired:
      return self.extras.get(place, self._whole(place))
    return self._whole(place)

  def _whole(self, place: Place) -> float | None:
    if place in self.seconds:
      return statistics.median(self.seconds[place])
    return self.repairs[place] + self.extras[place] if place in self.repairs else None

  def total(self, cells: Sequence[Cell], workers: int, repaired: Collection[Cell] = ()) -> tuple[float | None, int]:
    """Seconds for all of them on so many workers, and for how many cells nothing is known.

    Those count like the median of everything that is known; the seconds are None where that is nothing.

    Args:
      cells: that are left.
      workers: how many at a time.
      repaired: those of them whose repair is there.
    """
    if not cells:
      return 0., 0
    each = [self.cell(c, c in repaired) for c in cells]
    unknown = each.count(None)
    known = [self._whole(place) for place in {*self.repairs, *self.seconds}]
    if not known:
      return None, unknown
    usual = statistics.median(known)
    each = [usual if s is None else s for s in each]
    return max(sum(each) / workers, *each), unknown


def wall_seconds(row: Mapping[str, Any]) -> float:
  """From the start of a row's work to its end, the measurement of the repaired model included; whole seconds."""
  return (datetime.datetime.fromisoformat(row['ended_utc']) - started(row)).total_seconds()


def started(row: Mapping[str, Any]) -> datetime.datetime:
  """When the work of a row began."""
  return datetime.datetime.fromisoformat(row['started_utc'])


def spoken(seconds: float | None) -> str:
  """'2 h 05 min', '7 min', '40 s', or 'unknown'."""
  if seconds is None:
    return 'unknown'
  if seconds < 90:
    return f'{seconds:.0f} s'
  minutes = round(seconds / 60)
  return f'{minutes} min' if minutes < 60 else f'{minutes // 60} h {minutes % 60:02d} min'
