"""Runs a plan: every cell that the store does not have yet, whatever happens to single ones.

The store is written by this process only. A cell's own folder is written by the worker that has it, before the store
is; so that whenever anything is killed, the same call again finds each finished repair in one of the two, and repeats
none.
"""
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxfix import methods, postprocess, subjects
from jaxfix.errors import BadInputError, JaxfixError
from jaxfix.methods.method import describe_config
from jaxfix.study import job, record
from jaxfix.study.cell import postprocess_id
from jaxfix.study.executor import Done, Executor, Task
from jaxfix.study.plan import Cell, Plan, SubjectPlan, cells
from jaxfix.study.store import Writer

_PREPARE, _RUN = 'jaxfix.study.cell:prepare', 'jaxfix.study.cell:run'
_NO_RESULT = ('FAILURE', 'UNADAPTABLE')


@dataclasses.dataclass(frozen=True)
class Watcher:
  """What is called while a study runs; nothing by default.

  Attributes:
    on_prepare: (subject) before its original is loaded or trained.
    on_matrix: (all cells, those that are finished already) once that is known.
    on_start: (label) of a cell that a worker begins.
    on_end: (cell, its row, seconds) when it is in the store.
  """
  on_prepare: Callable[[str], None] = lambda subject: None
  on_matrix: Callable[[Sequence[Cell], Sequence[Cell]], None] = lambda every, finished: None
  on_start: Callable[[str], None] = lambda label: None
  on_end: Callable[[Cell, Mapping[str, Any], float], None] = lambda cell, row, seconds: None


def check(plan: Plan) -> tuple[Cell, ...]:
  """The cells of a plan whose names, settings and post-processings all make sense.

  Raises:
    UnknownNameError, BadInputError: they do not; nothing has been done.
  """
  every = cells(plan)
  chosen = [methods.get(name) for name in dict.fromkeys(c.method for c in every)]
  for subject in plan.subjects:
    presets = {} if plan.published else subjects.entry(subject.name).presets
    for method in chosen:
      job.resolve(method, presets.get(method.name, {}), plan.settings, chosen)
  for name in plan.postprocess:
    if name not in postprocess.NAMES:
      raise BadInputError(f'Unknown post-processing {name!r}; known: {", ".join(postprocess.NAMES)}.')
  return every


def run(plan: Plan, *, out: str | os.PathLike, executor: Executor, data_dir: str | None = None,
        retry_failures: bool = False, watcher: Watcher | None = None) -> list[dict[str, Any]]:
  """Runs what is missing of a plan.

  Args:
    plan: what to run.
    out: folder of the study: the store, the originals and a folder for every cell.
    executor: what carries the cells out.
    data_dir: where local data lies.
    retry_failures: run cells again whose row is a FAILURE.
    watcher: is told what happens.
  Returns:
    The rows of the plan, of this call and of earlier ones.
  Raises:
    UnknownNameError, BadInputError: see `check`.
    OutputError: the store cannot be written.
    JaxfixError: no subject could be made ready (the message is that of the first one), or a worker could not load or
      write what it must: every further cell would fail alike.
  """
  every, watcher = check(plan), watcher or Watcher()
  place = {'out': str(pathlib.Path(out).absolute()), 'data_dir': data_dir}
  chosen = tuple(dict.fromkeys(c.method for c in every))
  with Writer(out) as store:
    ready = dict(_prepare(plan, every, place, chosen, executor, watcher))
    failed = {label: done for label, done in ready.items() if done.error}
    if len(failed) == len(ready):
      raise JaxfixError(next(iter(failed.values())).error)
    run_ids = {c: _run_id(c, ready[c.subject.label], plan) for c in every}
    finished = [c for c in every if _is_finished(run_ids[c], plan, store.rows, retry_failures)]
    watcher.on_matrix(every, finished)
    for cell in every:
      if cell not in finished and cell.subject.label in failed:
        row = _failed_row(cell, run_ids[cell], plan, {}, f'subject: {failed[cell.subject.label].error}')
        store.append(row)
        watcher.on_end(cell, row, 0.)
    pending = {c.label: c for c in every if c not in finished and c.subject.label not in failed}
    if retry_failures:
      for cell in pending.values():
        (pathlib.Path(out) / 'cells' / cell.label / 'result.json').unlink(missing_ok=True)
    same = {**place, 'suite': plan.name, 'postprocessing': plan.postprocess, 'attack_radii': plan.attack_radii}
    tasks = [Task(c.label, c.subject.label, _RUN,
                  {**same, **_shared(plan, c, chosen), 'label': c.label, 'run_id': run_ids[c],
                   'subject': dataclasses.asdict(c.subject)},
                  plan.time_limit_s, plan.memory_limit_bytes) for c in pending.values()]
    answers = executor.run(tasks, on_start=lambda task: watcher.on_start(task.name))
    for done in answers:
      cell = pending[done.task.name]
      if done.kind == 'user_error':
        raise JaxfixError(done.error)
      row = _keep(store, done, cell, run_ids[cell], plan, ready[cell.subject.label].value['facts'])
      watcher.on_end(cell, row, done.seconds)
    wanted = {i for run_id in run_ids.values() for i in (run_id, *_postprocess_ids(run_id, plan))}
    return [dict(row) for run_id, row in store.rows.items() if run_id in wanted]


def _prepare(plan: Plan, every: Sequence[Cell], place: Mapping[str, Any], chosen: Sequence[str], executor: Executor,
             watcher: Watcher) -> Iterator[tuple[str, Done]]:
  """Subject's label -> its facts and run ids, or the error."""
  tasks = []
  for subject in plan.subjects:
    wanted = [{'label': c.label, **_shared(plan, c, chosen)} for c in every if c.subject == subject]
    tasks.append(Task(subject.label, subject.label, _PREPARE,
                      {**place, 'subject': dataclasses.asdict(subject), 'cells': wanted}))
  for done in executor.run(tasks, on_start=lambda task: watcher.on_prepare(task.name)):
    yield done.task.name, done


def _shared(plan: Plan, cell: Cell, chosen: Sequence[str]) -> dict[str, Any]:
  """Arguments that name and run a cell alike."""
  return {'method': cell.method, 'seed': cell.seed, 'failures': cell.failures, 'settings': dict(plan.settings),
          'published': plan.published, 'chosen': chosen}


def _run_id(cell: Cell, ready: Done, plan: Plan) -> str:
  """Of the repair; of a subject that could not be made ready there is nothing but the plan to name it by."""
  if ready.error:
    return record.run_id({}, cell.seed, cell=cell.label, suite=plan.name, failed='subject')
  return ready.value['run_ids'][cell.label]


def _postprocess_ids(run_id: str, plan: Plan) -> list[str]:
  return [postprocess_id(run_id, name) for name in plan.postprocess]


def _is_finished(run_id: str, plan: Plan, rows: Mapping[str, Mapping[str, Any]], retry_failures: bool) -> bool:
  row = rows.get(run_id)
  if row is None:
    return False
  if row['outcome'] in _NO_RESULT:
    return not (retry_failures and row['outcome'] == 'FAILURE')
  return all(i in rows for i in _postprocess_ids(run_id, plan))


def _keep(store: Writer, done: Done, cell: Cell, run_id: str, plan: Plan, facts: Mapping[str, Any]) -> dict[str, Any]:
  """Puts what came of a cell into the store; returns the row of its repair."""
  if done.error:
    row = _failed_row(cell, run_id, plan, facts, done.error)
    store.append(row)
    return row
  for part in done.value:
    row, stored = part['row'], store.rows.get(part['row']['run_id'])
    if stored is not None and stored['outcome'] != 'FAILURE':
      continue
    predictions = None
    if part['predictions'] is not None:
      with np.load(part['predictions'], allow_pickle=False) as arrays:
        predictions = {name: arrays[name] for name in ('before', 'after', 'labels')}
    store.append(row, predictions=predictions, trace=part['trace'])
  return done.value[0]['row']


def _failed_row(cell: Cell, run_id: str, plan: Plan, facts: Mapping[str, Any], reason: str) -> dict[str, Any]:
  """The row of a cell whose worker could not write one."""
  method, subject = methods.get(cell.method), cell.subject
  chosen = [methods.get(name) for name in plan.methods or methods.names()]
  preset = {} if plan.published else subjects.entry(subject.name).presets.get(cell.method, {})
  config = describe_config(job.resolve(method, preset, plan.settings, chosen))
  return record.failed_row(facts or _unknown(subject), run_id=run_id, suite=plan.name, seed=cell.seed, method=method,
                           config=config, reason=reason)


def _unknown(subject: SubjectPlan) -> dict[str, Any]:
  """What is known of a subject that could not be made ready."""
  published = subjects.entry(subject.name).published if subject.width == 1 else ''
  return record.blank_row() | {'subject': subject.label, 'published_subject': published}
