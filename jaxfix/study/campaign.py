"""Runs a plan: every cell that the store does not have yet, whatever happens to single ones.

The store is written by this process only. A cell's own folder is written by the worker that has it, before the store
is; so that whenever anything is killed, the same call again finds each finished repair in one of the two, and repeats
none.

Decided here:
- A cell whose subject is away, or changed while the study ran, is recorded as one that could not even be tried
  (`record.blank_row`): whatever is known of it counts for more (`store.age`), and the next run tries it again.
- The radii of the attack curve are no part of a repair's name. A repair that is there without a curve at the plan's
  radii is not finished: the curve is measured on the saved model. Where that fails it is tried again with
  `retry_failures` only.
"""
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxfix import methods, postprocess, subjects
from jaxfix.errors import CorruptFileError, JaxfixError, require
from jaxfix.files import write_json
from jaxfix.methods.method import describe_config
from jaxfix.study import job, record
from jaxfix.study.cell import combination_part, folder_of, no_curve, postprocess_id, repair_part, saved_curve
from jaxfix.study.executor import Done, Executor, Task
from jaxfix.study.plan import Cell, Plan, cells
from jaxfix.study.store import Results, Writer, is_tried

_PREPARE, _RUN = 'jaxfix.study.cell:prepare', 'jaxfix.study.cell:run'


@dataclasses.dataclass(frozen=True)
class Watcher:
  """What is called while a study runs; nothing by default.

  Attributes:
    on_prepare: (subject) before its original is loaded or trained.
    on_matrix: (all cells, those that are finished already, how many of these failed, those of the others whose repair
      is there and which lack a combination or the attack curve) once that is known.
    on_start: (label) of a cell that a worker begins.
    on_end: (cell, its row, seconds) when it is in the store.
  """
  on_prepare: Callable[[str], None] = lambda subject: None
  on_matrix: Callable[[Sequence[Cell], Sequence[Cell], int, Sequence[Cell]], None] = lambda *matrix: None
  on_start: Callable[[str], None] = lambda label: None
  on_end: Callable[[Cell, Mapping[str, Any], float], None] = lambda cell, row, seconds: None


def check(plan: Plan) -> tuple[Cell, ...]:
  """The cells of a plan whose names, settings and post-processings all make sense.

  Raises:
    UnknownNameError, BadInputError: they do not; nothing has been done.
  """
  every = cells(plan)
  for cell in every:
    _config(plan, cell, every)
  for name in plan.postprocess:
    require(name in postprocess.NAMES,
            f'Unknown post-processing {name!r}; known: {", ".join(postprocess.NAMES)}.')
  return every


def run(plan: Plan, *, out: str | os.PathLike, executor: Executor, data_dir: str | None = None,
        retry_failures: bool = False, watcher: Watcher | None = None) -> list[dict[str, Any]]:
  """Runs what is missing of a plan.

  Args:
    plan: what to run.
    out: folder of the study: the store, the originals and a folder for every cell.
    executor: what carries the cells out.
    data_dir: where local data lies.
    retry_failures: run again what ended as a FAILURE.
    watcher: is told what happens.
  Returns:
    The rows of the plan, of this call and of earlier ones.
  Raises:
    UnknownNameError, BadInputError: see `check`; or the store has the same cells under another plan's name.
    OutputError: the store cannot be written.
    JaxfixError: no subject could be made ready (the message is that of the first one), or a worker met an error that
      every further cell of every subject would meet too (`cell.run`).
  """
  every, watcher, out = check(plan), watcher or Watcher(), pathlib.Path(out).absolute()
  place = {'out': str(out), 'data_dir': data_dir}
  with Writer(out) as store:
    ready = _prepare(plan, every, place, executor, watcher)
    ledger = _Ledger(plan, every, out, store, ready, retry_failures)
    finished = [c for c in every if ledger.is_finished(c)]
    pending = {c.label: c for c in every if c not in set(finished)}
    watcher.on_matrix(every, finished, sum(store.rows[ledger.run_ids[c]]['outcome'] == 'FAILURE' for c in finished),
                      [c for c in pending.values() if ledger.has_repair(c)])
    for label, reason in [(label, ledger.unready(cell)) for label, cell in pending.items()]:
      if reason:
        cell = pending.pop(label)
        watcher.on_end(cell, ledger.keep_unready(cell, reason), 0.)
    if retry_failures:
      for cell in pending.values():
        ledger.forget_failure(cell)
    same = {**place, **_shared(plan, every), 'suite': plan.name, 'attack_radii': plan.attack_radii,
            'code': record.run_id({}, 0)}
    tasks = [Task(c.label, c.subject.label, _RUN,
                  {**same, **_which(c), 'label': c.label, 'run_id': ledger.run_ids[c],
                   'postprocessing': tuple(ledger.missing_combinations(c)),
                   'subject': dataclasses.asdict(c.subject)},
                  plan.time_limit_s, plan.memory_limit_bytes) for c in pending.values()]
    with contextlib.closing(executor.run(tasks, on_start=lambda task: watcher.on_start(task.name))) as answers:
      for done in answers:
        if done.kind == 'user_error':
          raise JaxfixError(done.error)
        cell = pending[done.task.name]
        watcher.on_end(cell, ledger.keep(cell, done), done.seconds)
    return ledger.rows()


def _prepare(plan: Plan, every: Sequence[Cell], place: Mapping[str, Any], executor: Executor, watcher: Watcher
             ) -> dict[str, Done]:
  """Subject's label -> its facts and run ids, or the error.

  Raises:
    JaxfixError: no subject could be made ready.
  """
  tasks = [Task(subject.label, subject.label, _PREPARE,
                {**place, **_shared(plan, every), 'subject': dataclasses.asdict(subject),
                 'cells': [{'label': c.label, **_which(c)} for c in every if c.subject == subject]})
           for subject in plan.subjects]
  with contextlib.closing(executor.run(tasks, on_start=lambda task: watcher.on_prepare(task.name))) as answers:
    ready = {done.task.name: done for done in answers}
  if all(done.kind for done in ready.values()):
    raise JaxfixError(ready[plan.subjects[0].label].error)
  return ready


def _which(cell: Cell) -> dict[str, Any]:
  return {'method': cell.method, 'seed': cell.seed, 'failures': cell.failures}


def _shared(plan: Plan, every: Sequence[Cell]) -> dict[str, Any]:
  return {'settings': dict(plan.settings), 'published': plan.published, 'chosen': _chosen(every)}


def _chosen(every: Sequence[Cell]) -> tuple[str, ...]:
  return tuple(dict.fromkeys(c.method for c in every))


def _config(plan: Plan, cell: Cell, every: Sequence[Cell]) -> Any:
  """The resolved config of a cell's approach."""
  presets = {} if plan.published else subjects.entry(cell.subject.name).presets
  return job.resolve(methods.get(cell.method), presets.get(cell.method, {}), plan.settings,
                     [methods.get(name) for name in _chosen(every)])


class _Ledger:
  """What is in the store and what is not, of one run of a plan."""

  def __init__(self, plan: Plan, every: Sequence[Cell], out: pathlib.Path, store: Writer, ready: Mapping[str, Done],
               retry_failures: bool):
    self._plan, self._every, self._out, self._store, self._ready = plan, every, out, store, ready
    self._retry, self._untried = retry_failures, {}
    self.run_ids = {c: self._run_id(c) for c in every}
    """Cell -> run id of its repair."""
    strangers = {row['suite'] for i in self.run_ids.values() if (row := store.rows.get(i))} - {plan.name}
    require(not strangers, f'{out} has cells of this plan under the name {", ".join(sorted(strangers))}, not '
                           f'{plan.name}; give another output folder.')

  def unready(self, cell: Cell) -> str:
    """Why a cell cannot be run at all; '' if it can."""
    done = self._ready[cell.subject.label]
    if done.kind:
      return f'subject: {done.error}'
    return done.value['errors'].get(cell.label, '')

  def _run_id(self, cell: Cell) -> str:
    """Of its repair."""
    if self.unready(cell):
      return self._untried_id(cell)
    return self._ready[cell.subject.label].value['run_ids'][cell.label]

  def _untried_id(self, cell: Cell) -> str:
    """Of one that cannot be run: there is nothing but the plan to name it by."""
    return record.run_id({}, cell.seed, cell=cell.label, suite=self._plan.name, unready=True)

  def _combination_ids(self, cell: Cell) -> dict[str, str]:
    """Post-processing -> run id."""
    return {name: postprocess_id(self.run_ids[cell], name) for name in self._plan.postprocess}

  def is_finished(self, cell: Cell) -> bool:
    """Whether the store has everything that this run is to put there."""
    row = self._store.rows.get(self.run_ids[cell])
    if row is None or not is_tried(row) or self._is_to_repeat(row):
      return False
    return row['counts'] is None or self._has_curve(row['run_id']) and not self.missing_combinations(cell)

  def missing_combinations(self, cell: Cell) -> dict[str, str]:
    """Post-processing -> run id of what the store lacks, or is to have again."""
    return {name: i for name, i in self._combination_ids(cell).items()
            if i not in self._store.rows or self._is_to_repeat(self._store.rows[i])}

  def has_repair(self, cell: Cell) -> bool:
    """Whether the store has a repaired model's row, whatever else is missing."""
    row = self._store.rows.get(self.run_ids[cell])
    return row is not None and row['counts'] is not None

  def _trace(self, run_id: str) -> dict[str, Any] | None:
    try:
      return Results((), self._store.folder).trace(run_id)
    except CorruptFileError:   # it is written again with the curve
      return None

  def _has_curve(self, run_id: str) -> bool:
    """Whether attack success is there at the plan's radii, or was tried and is not to be tried again."""
    radii = list(self._plan.attack_radii)
    if not radii:
      return True
    trace = self._trace(run_id) or {}
    return ((trace.get('asr_curve') or {}).get('radii') == radii
            or not self._retry and trace.get('attack_radii') == radii)

  def _is_to_repeat(self, row: Mapping[str, Any]) -> bool:
    return self._retry and row['outcome'] == 'FAILURE'

  def forget_failure(self, cell: Cell) -> None:
    """Takes away the record of a failure, so that the worker does not read it; of nothing else."""
    folder = folder_of(self._out, cell.label, self.run_ids[cell])
    result = job.finished(folder, self.run_ids[cell])
    if result is not None and result.row['outcome'] == 'FAILURE':
      (folder / 'result.json').unlink()

  def keep_unready(self, cell: Cell, reason: str) -> dict[str, Any]:
    """Records a cell that could not be run, unless the store knows more about it from earlier; returns its row."""
    row = self._failure(cell, reason, run_id=self._untried_id(cell), is_tried=False)
    mine = lambda r: ((r['suite'], r['subject'], r['approach'], r['seed'], r['postprocess'])
                      == (self._plan.name, cell.subject.label, cell.method, cell.seed, 'none'))
    known = [r for r in self._store.rows.values() if mine(r)]
    if not any(is_tried(r) or r['outcome_reason'] == row['outcome_reason'] for r in known):
      self._store.append(row)
    self._untried[cell] = row
    return row

  def keep(self, cell: Cell, done: Done) -> dict[str, Any]:
    """Puts what came of a cell into the store; returns the row of its repair."""
    for part in self._salvage(cell, done) if done.kind else done.value['parts']:
      stored = self._store.rows.get(part['row']['run_id'])
      if stored is not None and stored['outcome'] != 'FAILURE':
        if part['trace'] is not None:
          self._keep_curve(stored['run_id'], part['trace'])
        continue
      predictions = None
      if part['predictions'] is not None:
        with np.load(part['predictions'], allow_pickle=False) as arrays:
          predictions = {name: arrays[name] for name in ('before', 'after', 'labels')}
      self._store.append(part['row'], predictions=predictions, trace=part['trace'])
    if not done.kind and done.value['unready']:
      return self.keep_unready(cell, done.value['unready'])
    return self._store.rows[self.run_ids[cell]]

  def _keep_curve(self, run_id: str, trace: Mapping[str, Any]) -> None:
    """Adds the attack curve to what lies beside a row that is in the store; one at other radii gives way to it only."""
    if self._has_curve(run_id):
      return
    known = self._trace(run_id) or {}
    write_json(self._store.folder / 'traces' / f'{run_id}.json',
               {**trace, 'asr_curve': trace['asr_curve'] or known.get('asr_curve')})

  def _salvage(self, cell: Cell, done: Done) -> list[dict[str, Any]]:
    """The parts of a cell whose worker was lost: a repair that had ended stays, and what was missing has failed."""
    run_id = self.run_ids[cell]
    folder = folder_of(self._out, cell.label, run_id)
    failed = lambda **fields: {'row': self._failure(cell, done.error, done.seconds, **fields), 'trace': None,
                               'predictions': None}
    stored, result = self._store.rows.get(run_id), job.finished(folder, run_id)
    if result is None and (stored is None or stored['counts'] is None):
      return [failed()]
    parts, radii = [] if result is None else [repair_part(folder, result)], self._plan.attack_radii
    if radii and result is not None:
      parts[0]['trace'] |= saved_curve(folder, radii) or no_curve(parts[0]['trace'], radii, done.error)
    elif (trace := self._trace(run_id)) is not None:   # the folder is gone
      self._keep_curve(run_id, trace | no_curve(trace, radii, done.error))
    return parts + [combination_part(folder, name, i) or failed(run_id=i, postprocess=name)
                    for name, i in self.missing_combinations(cell).items()]

  def _failure(self, cell: Cell, reason: str, seconds: float = 0., run_id: str | None = None,
               postprocess: str = 'none', is_tried: bool = True) -> dict[str, Any]:
    done, subject = self._ready[cell.subject.label], cell.subject
    published = subjects.entry(subject.name).published if subject.width == 1 else ''
    facts = (done.value['facts'] if is_tried
             else record.blank_row() | {'subject': subject.label, 'published_subject': published})
    config = ({'repair': self.run_ids[cell]} if postprocess != 'none'
              else describe_config(_config(self._plan, cell, self._every)))
    return record.failed_row(
      facts, run_id=run_id or self._run_id(cell), suite=self._plan.name, seed=cell.seed,
      method=methods.get(cell.method), config=config, reason=reason, seconds=seconds, postprocess=postprocess)

  def rows(self) -> list[dict[str, Any]]:
    """Everything that the store has of the plan, and the reasons why it has nothing of a cell."""
    wanted = {i for c in self._every for i in (self.run_ids[c], *self._combination_ids(c).values())}
    wanted |= {row['run_id'] for row in self._untried.values()}
    known = [dict(row) for run_id, row in self._store.rows.items() if run_id in wanted]
    told = {row['run_id'] for row in known}
    return known + [row for cell, row in self._untried.items() if not told & {self.run_ids[cell], row['run_id']}]
