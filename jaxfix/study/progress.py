"""What a study shows on a console: the plan with an estimate, progress with the time left, and the outcomes."""
import collections
import contextlib
import datetime
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from jaxfix import methods
from jaxfix.study.campaign import Watcher
from jaxfix.study.estimate import Estimate, spoken, started
from jaxfix.study.plan import Cell, Plan


class View(contextlib.AbstractContextManager):
  """The console of one study."""

  def __init__(self, console: Console, plan: Plan, cells: Sequence[Cell], workers: int, estimate: Estimate):
    self._console, self._plan, self._cells, self._workers = console, plan, cells, workers
    self._estimate, self._left, self._running, self._repaired = estimate, {}, {}, frozenset()
    columns = (SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn('{task.description}', markup=False))
    self._progress = Progress(*columns, console=console, transient=True)
    self._task = self._progress.add_task('', total=len(cells))

  def __enter__(self) -> 'View':
    self._progress.start()
    return self

  def __exit__(self, *exception: Any) -> None:
    self._progress.stop()

  def show_plan(self) -> None:
    """Approaches x subjects, with what a cell is expected to take."""
    subjects = [s.label for s in self._plan.subjects]
    names = list(dict.fromkeys(c.method for c in self._cells))
    self._say(f'Plan {self._plan.name}: {len(names)} approaches x {len(subjects)} subjects x {len(self._plan.seeds)} '
              f'seeds = {len(self._cells)} cells')
    table = Table()
    for name in ('approach', 'level', *subjects):
      table.add_column(name)
    first = {(c.method, c.subject.label): c for c in reversed(self._cells)}
    for name in names:
      each = [self._estimate.cell(first[name, s]) for s in subjects]
      table.add_row(name, methods.get(name).level, *('?' if e is None else f'{spoken(e)} a seed' for e in each))
    seconds, unknown = self._estimate.total(self._cells, self._workers)
    limits = [f'{name} {text}' for name, text in (
      ('at most', self._plan.time_limit_s and f'{spoken(self._plan.time_limit_s)} a cell'),
      ('at most', self._plan.memory_limit_bytes and f'{self._plan.memory_limit_bytes / 2**30:.3g} GiB a process'),
      ('settings', ', '.join(f'{k}={v}' for k, v in self._plan.settings.items())),
      ('post-processing', ', '.join(self._plan.postprocess)),
      ('attack radii', ', '.join(f'{r:g}' for r in self._plan.attack_radii))) if text]
    self._say('; '.join(filter(None, (self._plan.summary.rstrip('.'), *limits))))
    self._console.print(table)
    if seconds is None:
      self._say('Nothing like it has been run: the time is unknown.')
    else:
      doubt = f'; nothing is known of {unknown} cells' if unknown else ''
      self._say(f'About {spoken(seconds)} for all cells with {self._workers} at a time, from earlier results{doubt}.')

  def watcher(self) -> Watcher:
    """What the study tells."""
    return Watcher(self._on_prepare, self._on_matrix, self._on_start, self._on_end)

  def show_outcomes(self, rows: Sequence[Mapping[str, Any]], out: Any) -> None:
    """How many cells came to what, and why some did not."""
    repairs = [r for r in rows if r['postprocess'] == 'none']
    counted = collections.Counter(r['outcome'] for r in repairs)
    self._say(f'{len(repairs)} cells: ' + ', '.join(f'{n} {name}' for name, n in sorted(counted.items())))
    reasons = collections.defaultdict(list)
    for row in repairs:
      if row['outcome'] in ('FAILURE', 'UNADAPTABLE'):
        reasons[row['approach'], row['subject'], row['outcome'], row['outcome_reason']].append(str(row['seed']))
    for (approach, subject, outcome, reason), seeds in reasons.items():
      self._say(f'{outcome} {approach} on {subject}, seed {", ".join(seeds)}: {reason}')
    self._say(f'Results in {out}; make the report with: python -m launch.report --results={out} --out={out}/report')

  def _say(self, text: str) -> None:
    """A line as it is: reasons may hold what would be markup, to a console that was made otherwise."""
    self._console.print(text, markup=False, highlight=False, soft_wrap=True)

  def _on_prepare(self, subject: str) -> None:
    self._progress.update(self._task, description=f'making {subject} ready')

  def _on_matrix(self, every: Sequence[Cell], finished: Sequence[Cell], failed: int, repaired: Sequence[Cell]) -> None:
    self._left, self._repaired = {c.label: c for c in every if c not in set(finished)}, frozenset(repaired)
    self._progress.update(self._task, completed=len(finished))
    if finished:
      again = f', {failed} of them as FAILURE (--retry_failures runs these again)' if failed else ''
      self._say(f'{len(finished)} of {len(every)} cells are finished already{again}.')
    if repaired:
      self._say(f'{len(repaired)} more are repaired, and lack a post-processing or the attack curve.')
    if finished or repaired:   # the plan spoke of all cells
      self._say(f'For the {len(self._left)} that are left: {self._time_left()}.')

  def _on_start(self, label: str) -> None:
    self._running[label] = time.monotonic()
    self._describe()

  def _on_end(self, cell: Cell, row: Mapping[str, Any], seconds: float) -> None:
    self._running.pop(cell.label, None)
    self._left.pop(cell.label, None)
    age = datetime.datetime.now(datetime.UTC) - started(row)
    is_whole = age.total_seconds() <= seconds + 2   # or its repair is older; times of rows are whole seconds
    if seconds and is_whole and row['outcome'] != 'FAILURE':
      self._estimate.learn(cell.method, cell.subject.label, seconds)
    self._progress.advance(self._task)
    self._describe()
    self._say(f'{cell.label}: {row["outcome"]}, {spoken(seconds)}; {len(self._left)} cells left, {self._time_left()}')

  def _describe(self) -> None:
    self._progress.update(self._task, description=f'{self._time_left()} left; {", ".join(self._running)}')

  def _time_left(self) -> str:
    """Of all cells that have not ended, less what the running ones have used up already."""
    seconds, _ = self._estimate.total(list(self._left.values()), self._workers, self._repaired)
    if seconds is None:
      return 'time unknown'
    expected = lambda cell: self._estimate.cell(cell, cell in self._repaired) or 0.
    used = sum(min(time.monotonic() - begin, expected(self._left[label]))
               for label, begin in self._running.items() if label in self._left)
    return f'about {spoken(max(0., seconds - used / self._workers))}'
