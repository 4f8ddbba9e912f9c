"""What a worker of a study does: make a subject ready, and carry out one cell of the matrix.

Both are functions of plain data (`executor.Task`), and both leave what they did in the study's folder, so that a
process that is killed is simply started again:

    OUT/originals/SUBJECT/original/         training of the original, where no model was given
    OUT/cells/SUBJECT/METHOD/seedN/RUN_ID/  the folder of `job.repair_and_record`, and beside its files
        attack_curve.json                   attack success against the radius
        NAME.json, NAME.npz                 row and predictions of the post-processing NAME

Whatever goes wrong with an approach is an outcome of its cell. An error leaves `run` only if every further cell would
meet it too: the subject cannot be loaded any more, the folder cannot be written, the code has changed.
"""
import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxfix import history, methods, postprocess, subjects
from jaxfix.classifier import Classifier
from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError, JaxfixError, OutputError, require
from jaxfix.evaluate import PGD, outcome
from jaxfix.evaluate.robustness import attack_success
from jaxfix.files import read_json, replacing, write_json
from jaxfix.interchange import checkpoint
from jaxfix.methods.method import Method, describe_config
from jaxfix.problem import FailureSource, Repair, Subject
from jaxfix.study import job, record
from jaxfix.study.plan import SubjectPlan


def prepare(*, subject: Mapping[str, Any], out: str, data_dir: str | None, cells: Sequence[Mapping[str, Any]],
            **shared: Any) -> dict[str, Any]:
  """Loads or trains the original, and names every repair of the subject.

  Args:
    subject: fields of a `SubjectPlan`.
    out: folder of the study.
    data_dir: where local data lies.
    cells: `label`, `method`, `seed`, `failures` of each.
    **shared: `settings`, `published`, `chosen` (see `_resolved`).
  Returns:
    'run_ids': label -> run id; 'errors': label -> one line, of cells that cannot be named; 'facts': a row with what
    all rows of the subject share.
  """
  place = {'out': out, 'data_dir': data_dir}
  loaded = _load(json.dumps(subject), **place)
  run_ids, errors = {}, {}
  for cell in cells:
    which = {k: cell[k] for k in ('method', 'seed', 'failures')}
    try:
      method, config, prepared = _resolved(loaded, subject, place, **which, **shared)
      run_ids[cell['label']] = job.identify(method, config, prepared, cell['seed'])
    except JaxfixError as e:   # its history is damaged, say
      errors[cell['label']] = str(e)
  facts = record.make_row(subject=loaded, seed=0, key=jax.random.key(0), started=record.utc_now(), outcome='FAILURE')
  return {'run_ids': run_ids, 'errors': errors, 'facts': facts}


def run(*, subject: Mapping[str, Any], out: str, data_dir: str | None, label: str, run_id: str, suite: str,
        postprocessing: Sequence[str], attack_radii: Sequence[float], **cell: Any) -> list[dict[str, Any]]:
  """Carries out a cell, or reads what is there of it already.

  Args:
    subject: fields of a `SubjectPlan`.
    out: folder of the study.
    data_dir: where local data lies.
    label: of the cell.
    run_id: what `prepare` named it.
    suite: name of the campaign.
    postprocessing: names in `jaxfix.postprocess`.
    attack_radii: multiples of the subject's radius.
    **cell: see `_resolved`.
  Returns:
    `parts` of the repair, then of each post-processing, unless there is no repaired model.
  Raises:
    BadInputError: the cell would be another one by now: its code or its data changed while the study ran.
    JaxfixError: the subject cannot be loaded.
    OutputError: the folder cannot be written.
  """
  place = {'out': out, 'data_dir': data_dir}
  method, config, prepared = _resolved(_load(json.dumps(subject), **place), subject, place, **cell)
  folder, seed = folder_of(out, label, run_id), cell['seed']
  require(job.identify(method, config, prepared, seed) == run_id,
          f'{label}: the source of jaxfix, an original or its data changed while the study ran. Run the same command '
          'again: what is finished under the old one stays in the store.')
  key = jax.random.key(seed)
  try:
    result = job.repair_and_record(method, config, prepared, folder, seed=seed, suite=suite)
  except OutputError:
    raise
  except JaxfixError as e:   # to `launch.repair` a user's mistake; here an outcome like others
    row = record.make_row(subject=prepared, seed=seed, key=key, started=record.utc_now(), outcome='FAILURE',
                          reason=f'input: {e}', method=method, config=describe_config(config), suite=suite,
                          identifier=run_id)
    return [_part(row)]
  part = repair_part(folder, result)
  if result.labels_after is None:
    return [part]
  attack_key = jax.random.fold_in(key, job.EVALUATION)
  repaired = checkpoint.load(folder / 'repaired.safetensors')
  if attack_radii:
    part['trace'] |= _attack_curve(folder / 'attack_curve.json', prepared, result, repaired, attack_radii, attack_key)
  return [part, *(_combined(folder, name, method, prepared, result.row, repaired, attack_key, key, suite)
                  for name in postprocessing)]


def folder_of(out: str, label: str, run_id: str) -> pathlib.Path:
  """Where a cell leaves its files."""
  return pathlib.Path(out) / 'cells' / label / run_id


def repair_part(folder: pathlib.Path, result: job.Result) -> dict[str, Any]:
  """What the store gets of a repair: `row`, `trace` (or None), path of the `predictions` (or None)."""
  trace = {k: v for k, v in result.trace.items() if k != 'solver'} | {
    'edits': len(result.trace['edits']), 'asr_curve': None}
  return _part(result.row, trace, None if result.labels_after is None else folder / 'predictions.npz')


def combination_part(folder: pathlib.Path, name: str, run_id: str) -> dict[str, Any] | None:
  """The same of a post-processing, if it has been done."""
  try:
    row = read_json(folder / f'{name}.json')
    record.check_row(row)
  except (DataNotFoundError, CorruptFileError, BadInputError):
    return None
  predictions = folder / f'{name}.npz'
  return _part(row, predictions=predictions) if row['run_id'] == run_id and predictions.exists() else None


def _part(row: Mapping[str, Any], trace: Mapping[str, Any] | None = None, predictions: pathlib.Path | None = None
          ) -> dict[str, Any]:
  return {'row': row, 'trace': trace, 'predictions': predictions and str(predictions)}


def postprocess_id(run_id: str, name: str) -> str:
  """`run_id` of the combination `name` of a repair with its original."""
  return record.run_id({'repair': run_id}, 0, postprocess=name)


@functools.lru_cache(maxsize=1)
def _load(subject: str, *, out: str, data_dir: str | None) -> Subject:
  """The subject with its original, kept from one cell to the next."""
  plan = SubjectPlan.of(json.loads(subject))
  loaded = job.prepare(job.Job(
    subject=plan.name, methods=(), out=str(pathlib.Path(out) / 'originals' / plan.label), split_seed=plan.split_seed,
    data_dir=data_dir, model=plan.model, width=plan.width, recipe=plan.recipe, class_importance=plan.class_importance))
  published = loaded.published if plan.width == 1 else ''
  return dataclasses.replace(loaded, name=plan.label, published=published)


@functools.lru_cache(maxsize=1)
def _history(subject: str, *, out: str, data_dir: str | None) -> tuple | None:
  """Earlier checkpoints of the original, or None: sixty epochs of a large network take gigabytes, so they are read only
  for an approach that needs them."""
  plan = SubjectPlan.of(json.loads(subject))
  if plan.model:
    return history.history_of(plan.model, _load(subject, out=out, data_dir=data_dir).problem.classifier)
  return history.load_history(pathlib.Path(out) / 'originals' / plan.label / 'original')


def _resolved(loaded: Subject, subject: Mapping[str, Any], place: Mapping[str, Any], *, method: str, seed: int,
              failures: FailureSource, settings: Mapping[str, Any], published: bool, chosen: Sequence[str]
              ) -> tuple[Method, Any, Subject]:
  """The approach, its resolved config, and the subject as this approach gets it.

  Args:
    loaded: of `_load`.
    subject, place: what it was loaded from.
    method: name of the approach.
    seed: of the repeat.
    failures: which split failing samples come from.
    settings, published, chosen: of the plan (`job.resolve`), and the names of all its approaches.
  """
  found = methods.get(method)
  preset = {} if published else subjects.entry(subject['name']).presets.get(method, {})
  config = job.resolve(found, preset, settings, [methods.get(name) for name in chosen])
  problem = dataclasses.replace(loaded.problem, failures=failures)
  if 'history' in found.needs:
    problem = dataclasses.replace(problem, history=_history(json.dumps(subject), **place))
  return found, config, dataclasses.replace(loaded, problem=problem)


def _attack_curve(path: pathlib.Path, subject: Subject, result: job.Result, repaired: Classifier,
                  radii: Sequence[float], key: jax.Array) -> dict[str, Any]:
  """Attack success of original and repaired model at several radii, on the inputs and from the starts of the row's.

  Returns:
    'asr_curve', and why there is none.
  """
  try:
    curve = read_json(path)
    if curve['radii'] == list(radii):
      return {'asr_curve': curve}
  except (DataNotFoundError, CorruptFileError, KeyError, TypeError):
    pass
  y = subject.test.y
  correct = (result.labels_before == y) & (result.labels_after == y)
  try:
    successes = [attack_success((subject.problem.classifier, repaired), subject.test, correct, key=key,
                                pgd=PGD(radius * subject.pgd_epsilon)) for radius in radii]
  except Exception as e:   # the repair and its row stand without it
    return {'asr_curve': None, 'notes': [*result.trace['notes'], f'No attack curve: {type(e).__name__}: {e}']}
  write_json(path, {'radii': list(radii), 'eps': [r * subject.pgd_epsilon for r in radii],
                    'original': [s.rates[0] for s in successes], 'repaired': [s.rates[1] for s in successes],
                    'n': len(successes[0].indices)})
  return {'asr_curve': read_json(path)}


def _combined(folder: pathlib.Path, name: str, method: Method, subject: Subject, base: Mapping[str, Any],
              repaired: Classifier, attack_key: jax.Array, key: jax.Array, suite: str) -> dict[str, Any]:
  """The part of one post-processing of a repair."""
  identifier = postprocess_id(base['run_id'], name)
  if (part := combination_part(folder, name, identifier)) is not None:
    return part
  common = dict(subject=subject, seed=base['seed'], key=key, started=record.utc_now(), method=method,
                identifier=identifier, suite=suite, postprocess=name)
  try:
    comparison, fitted = postprocess.combine_and_compare(name, subject.problem.classifier, repaired, subject,
                                                         key=attack_key)
  except Exception as e:   # like an approach, a combination that fails is an outcome
    return _part(record.make_row(outcome='FAILURE', reason=f'postprocess: {type(e).__name__}: {e}',
                                 config={'repair': base['run_id']}, **common))
  counts, seconds = comparison.counts, {'fit': fitted.pop('fit_seconds')}
  row = record.make_row(outcome=outcome(counts.acc_original, [counts.acc]), repair=Repair(repaired, seconds=seconds),
                        config={'repair': base['run_id'], **fitted}, comparison=comparison, **common)
  with replacing(folder / f'{name}.npz') as partial, open(partial, 'wb') as f:
    np.savez(f, before=comparison.labels_before, after=comparison.labels_after, labels=subject.test.y.astype(np.int16))
  write_json(folder / f'{name}.json', row)
  return combination_part(folder, name, identifier)
