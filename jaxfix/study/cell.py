"""What a worker of a study does: make a subject ready, and carry out one cell of the matrix.

Both are functions of plain data (`executor.Task`), and both leave what they did in the study's folder, so that a
process that is killed is simply started again:

    OUT/originals/SUBJECT/original/         training of the original, where no model was given
    OUT/cells/SUBJECT/METHOD/seedN/RUN_ID/  the folder of `job.repair_and_record`, and beside its files
        attack_curve.json                   attack success against the radius
        NAME.json, NAME.npz                 row and predictions of the post-processing NAME
    OUT/splits/SUBJECT_HASH.npz             int32 row indices of every split; HASH is of the rows' `split_sha256`

Whatever goes wrong with an approach is an outcome of its cell, and so is what happens to one subject: that it cannot be
loaded any more, or has changed, leaves the cell untried. An error leaves `run` only if every further cell of every
subject would meet it too: the folder cannot be written, or the code has changed.
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
from jaxfix.files import read_json, replacing, sha256_of_json, write_json
from jaxfix.interchange import checkpoint
from jaxfix.methods.method import Method, describe_config
from jaxfix.problem import FailureSource, Repair, Subject
from jaxfix.study import job, memory, record
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
  _save_splits(pathlib.Path(out), loaded)
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


def _save_splits(out: pathlib.Path, subject: Subject) -> None:
  """Once for all cells and seeds; other data or another split has another name, so that each row finds its own."""
  path = out / 'splits' / f'{subject.name}_{sha256_of_json(dict(subject.split_sha256))[:16]}.npz'
  if not path.exists():   # what has this name is whole
    with replacing(path) as partial, open(partial, 'wb') as f:
      np.savez(f, **{name: np.asarray(subject.split_indices[name]) for name in sorted(subject.split_indices)})


def run(*, subject: Mapping[str, Any], out: str, data_dir: str | None, label: str, run_id: str, code: str, suite: str,
        postprocessing: Sequence[str], attack_radii: Sequence[float], **cell: Any) -> dict[str, Any]:
  """Carries out a cell, or reads what is there of it already.

  Args:
    subject: fields of a `SubjectPlan`.
    out: folder of the study.
    data_dir: where local data lies.
    label: of the cell.
    run_id: what `prepare` named it.
    code: `record.run_id({}, 0)` of the study: names the source of jaxfix and all versions.
    suite: name of the campaign.
    postprocessing: names in `jaxfix.postprocess`.
    attack_radii: multiples of the subject's radius.
    **cell: see `_resolved`.
  Returns:
    'parts': of the repair, then of each post-processing, unless there is no repaired model; 'unready': why the cell,
    or what is missing of it, could not even be tried, or ''.
  Raises:
    BadInputError: the code changed while the study ran.
    OutputError: the folder cannot be written.
  """
  place, subject_is_there = {'out': out, 'data_dir': data_dir}, False
  try:
    loaded = _load(json.dumps(subject), **place)
    subject_is_there = True
    method, config, prepared = _resolved(loaded, subject, place, **cell)
  except OutputError:
    raise
  except JaxfixError as e:   # the data is away; the history that this approach needs is damaged
    return {'parts': [], 'unready': str(e) if subject_is_there else f'subject: {e}'}
  folder, seed = folder_of(out, label, run_id), cell['seed']
  if job.identify(method, config, prepared, seed) != run_id:
    require(code == record.run_id({}, 0), f'{label}: the source of jaxfix, or the version of a library, changed while '
            'the study ran. Run the same command again: what is finished under the old one stays in the store.')
    return {'parts': [], 'unready': 'subject: its original, its data, its history or the source of the approach '
                                    'changed while the study ran; run it again'}
  key = jax.random.key(seed)
  try:
    result = job.repair_and_record(method, config, prepared, folder, seed=seed, suite=suite)
  except OutputError:
    raise
  except JaxfixError as e:   # to `launch.repair` a user's mistake; here an outcome like others
    row = record.make_row(subject=prepared, seed=seed, key=key, started=record.utc_now(), outcome='FAILURE',
                          reason=f'input: {e}', method=method, config=describe_config(config), suite=suite,
                          identifier=run_id)
    return {'parts': [_part(row)], 'unready': ''}
  part = repair_part(folder, result)
  if result.labels_after is None or not (attack_radii or postprocessing):
    return {'parts': [part], 'unready': ''}
  try:
    repaired = checkpoint.load(folder / 'repaired.safetensors')
  except JaxfixError as e:
    return {'parts': [part], 'unready': f'repaired model: {e}'}
  attack_key = jax.random.fold_in(key, job.EVALUATION)
  if attack_radii:
    part['trace'] |= _attack_curve(folder, prepared, result, repaired, attack_radii, attack_key)
  combined = [_combined(folder, name, method, prepared, result.row, repaired, attack_key, key, suite)
              for name in postprocessing]
  return {'parts': [part, *combined], 'unready': ''}


def folder_of(out: str, label: str, run_id: str) -> pathlib.Path:
  """Where a cell leaves its files."""
  return pathlib.Path(out) / 'cells' / label / run_id


def repair_part(folder: pathlib.Path, result: job.Result) -> dict[str, Any]:
  """What the store gets of a repair: `row`, `trace` (or None), path of the `predictions` (or None)."""
  trace = {k: v for k, v in result.trace.items() if k != 'solver'} | {
    'edits': len(result.trace['edits']), 'asr_curve': None, 'attack_radii': []}
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


def saved_curve(folder: pathlib.Path, radii: Sequence[float]) -> dict[str, Any] | None:
  """The fields of a trace that hold the attack curve of a cell, if it has been measured at these radii."""
  try:
    curve = read_json(folder / 'attack_curve.json')
    return {'asr_curve': curve, 'attack_radii': list(radii)} if curve['radii'] == list(radii) else None
  except (DataNotFoundError, CorruptFileError, KeyError, TypeError):
    return None


def no_curve(trace: Mapping[str, Any], radii: Sequence[float], reason: str) -> dict[str, Any]:
  """The same fields where it was tried and there is none."""
  return {'asr_curve': None, 'attack_radii': list(radii),
          'notes': [*trace['notes'], f'No attack curve: {" ".join(reason.split())}']}


def _attack_curve(folder: pathlib.Path, subject: Subject, result: job.Result, repaired: Classifier,
                  radii: Sequence[float], key: jax.Array) -> dict[str, Any]:
  """Attack success of original and repaired model at several radii, on the inputs and from the starts of the row's."""
  if (curve := saved_curve(folder, radii)) is not None:
    return curve
  y = subject.test.y
  correct = (result.labels_before == y) & (result.labels_after == y)
  try:
    successes = [attack_success((subject.problem.classifier, repaired), subject.test, correct, key=key,
                                pgd=PGD(radius * subject.pgd_epsilon)) for radius in radii]
  except Exception as e:   # the repair and its row stand without it
    return no_curve(result.trace, radii, f'{type(e).__name__}: {e}')
  write_json(folder / 'attack_curve.json', {
    'radii': list(radii), 'eps': [r * subject.pgd_epsilon for r in radii],
    'original': [s.rates[0] for s in successes], 'repaired': [s.rates[1] for s in successes],
    'n': len(successes[0].indices)})
  return saved_curve(folder, radii)


def _combined(folder: pathlib.Path, name: str, method: Method, subject: Subject, base: Mapping[str, Any],
              repaired: Classifier, attack_key: jax.Array, key: jax.Array, suite: str) -> dict[str, Any]:
  """The part of one post-processing of a repair."""
  identifier = postprocess_id(base['run_id'], name)
  if (part := combination_part(folder, name, identifier)) is not None:
    return part
  before = memory.mark()
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
                        config={'repair': base['run_id'], **fitted}, comparison=comparison,
                        peak_bytes=memory.peak_since(before), **common)
  with replacing(folder / f'{name}.npz') as partial, open(partial, 'wb') as f:
    np.savez(f, before=comparison.labels_before, after=comparison.labels_after, labels=subject.test.y.astype(np.int16))
  write_json(folder / f'{name}.json', row)
  return combination_part(folder, name, identifier)
