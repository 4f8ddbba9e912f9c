"""What a worker of a study does: make a subject ready, and carry out one cell of the matrix.

Both are functions of plain data (`executor.Task`), and both leave what they did in the study's folder, so that a
process that is killed is simply started again:

    OUT/originals/SUBJECT/original/     training of the original, where no model was given
    OUT/cells/SUBJECT/METHOD/seedN/     the folder of `job.repair_and_record`, and beside its files
        attack_curve.json               attack success against the radius
        NAME.json, NAME.npz             row and predictions of the post-processing NAME
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
from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError, NoFailingSamplesError, require
from jaxfix.evaluate import PGD, outcome
from jaxfix.evaluate.robustness import attack_success
from jaxfix.files import read_json, replacing, write_json
from jaxfix.interchange import checkpoint
from jaxfix.methods.method import Method, describe_config
from jaxfix.problem import FailureSource, Repair, Subject
from jaxfix.study import job, record
from jaxfix.study.plan import SubjectPlan


def prepare(*, subject: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], **place: Any) -> dict[str, Any]:
  """Loads or trains the original, and names every repair of the subject.

  Args:
    subject: fields of a `SubjectPlan`.
    cells: arguments of `run` that `_resolved` takes, each with a `label`.
    **place: `out`, `data_dir`.
  Returns:
    'run_ids': label -> run id, 'facts': a row with everything that all rows of the subject share.
  """
  loaded = _load(json.dumps(subject), **place)
  run_ids = {}
  for cell in cells:
    method, config, prepared = _resolved(loaded, subject, place, **{k: cell[k] for k in cell if k != 'label'})
    run_ids[cell['label']] = job.identify(method, config, prepared, cell['seed'])
  facts = record.make_row(subject=loaded, seed=0, key=jax.random.key(0), started=record.utc_now(), outcome='FAILURE')
  return {'run_ids': run_ids, 'facts': facts}


def run(*, subject: Mapping[str, Any], out: str, data_dir: str | None, label: str, run_id: str, suite: str,
        postprocessing: Sequence[str], attack_radii: Sequence[float], **cell: Any) -> list[dict[str, Any]]:
  """Carries out a cell, or reads what is there of it already.

  Args:
    subject: fields of a `SubjectPlan`.
    out: folder of the study.
    data_dir: where local data lies.
    label: of the cell, its folder below `OUT/cells`.
    run_id: what `prepare` named it.
    suite: name of the campaign.
    postprocessing: names in `jaxfix.postprocess`.
    attack_radii: multiples of the subject's radius.
    **cell: see `_resolved`.
  Returns:
    One record for the repair, then one for each post-processing, unless there is no repaired model: `row`,
    `trace` (or None), and the path of the `predictions` (or None).
  Raises:
    BadInputError: the cell would be another one by now: its code or its data changed while the study ran.
    JaxfixError: the subject cannot be loaded, or the folder cannot be written.
  """
  place = {'out': out, 'data_dir': data_dir}
  method, config, prepared = _resolved(_load(json.dumps(subject), **place), subject, place, **cell)
  folder, seed = pathlib.Path(out) / 'cells' / label, cell['seed']
  require(job.identify(method, config, prepared, seed) == run_id,
          f'{label}: the source of jaxfix, an original or its data changed while the study ran. Run the same command '
          'again: what is finished under the old one stays in the store.')
  key = jax.random.key(seed)
  try:
    result = job.repair_and_record(method, config, prepared, folder, seed=seed, suite=suite)
  except (BadInputError, NoFailingSamplesError) as e:   # malformed for every approach; in a study an outcome too
    row = record.make_row(subject=prepared, seed=seed, key=key, started=record.utc_now(), outcome='FAILURE',
                          reason=f'input: {e}', method=method, config=describe_config(config), suite=suite,
                          identifier=run_id)
    return [{'row': row, 'trace': None, 'predictions': None}]
  trace = {**result.trace, 'edits': len(result.trace['edits']), 'asr_curve': None}
  del trace['solver']
  if result.labels_after is None:
    return [{'row': result.row, 'trace': trace, 'predictions': None}]
  repaired = checkpoint.load(folder / 'repaired.safetensors')
  attack_key = jax.random.fold_in(key, job.EVALUATION)
  if attack_radii:
    trace['asr_curve'] = _attack_curve(folder / 'attack_curve.json', prepared, result, repaired, attack_radii,
                                       attack_key)
  records = [{'row': result.row, 'trace': trace, 'predictions': str(folder / 'predictions.npz')}]
  for name in postprocessing:
    records.append(_combined(folder, name, method, prepared, result.row, repaired, attack_key, key, suite))
  return records


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


def _attack_curve(path: pathlib.Path, subject: Subject, result: job.Result, repaired: Any, radii: Sequence[float],
                  key: jax.Array) -> dict[str, Any]:
  """Attack success of original and repaired model at several radii, on the inputs and from the starts of the row's."""
  try:
    curve = read_json(path)
    if curve['run_id'] == result.row['run_id'] and curve['radii'] == list(radii):
      return curve
  except (DataNotFoundError, CorruptFileError, KeyError, TypeError):
    pass
  y = subject.test.y
  correct = (result.labels_before == y) & (result.labels_after == y)
  rates, attacked = [], 0
  for radius in radii:
    success = attack_success((subject.problem.classifier, repaired), subject.test, correct, key=key,
                             pgd=PGD(radius * subject.pgd_epsilon))
    rates.append(success.rates)
    attacked = len(success.indices)
  curve = {'run_id': result.row['run_id'], 'radii': list(radii), 'eps': [r * subject.pgd_epsilon for r in radii],
           'original': [r[0] for r in rates], 'repaired': [r[1] for r in rates], 'n': attacked}
  write_json(path, curve)
  return read_json(path)


def _combined(folder: pathlib.Path, name: str, method: Method, subject: Subject, base: Mapping[str, Any], repaired: Any,
              attack_key: jax.Array, key: jax.Array, suite: str) -> dict[str, Any]:
  """The record of one post-processing of a repair."""
  path, predictions = folder / f'{name}.json', folder / f'{name}.npz'
  identifier = postprocess_id(base['run_id'], name)
  written = {'trace': None, 'predictions': str(predictions)}
  try:
    row = read_json(path)
    record.check_row(row)
    if row['run_id'] == identifier and predictions.exists():
      return {'row': row, **written}
  except (DataNotFoundError, CorruptFileError, BadInputError):
    pass
  started = record.utc_now()
  common = dict(subject=subject, seed=base['seed'], key=key, started=started, method=method, identifier=identifier,
                suite=suite, postprocess=name)
  try:
    comparison, fitted = postprocess.combine_and_compare(name, subject.problem.classifier, repaired, subject,
                                                         key=attack_key)
  except Exception as e:   # like an approach, a combination that fails is an outcome
    row = record.make_row(outcome='FAILURE', reason=f'postprocess: {type(e).__name__}: {e}',
                          config={'repair': base['run_id']}, **common)
    return {'row': row, 'trace': None, 'predictions': None}
  counts, seconds = comparison.counts, {'fit': fitted.pop('fit_seconds')}
  row = record.make_row(outcome=outcome(counts.acc_original, [counts.acc]), repair=Repair(repaired, seconds=seconds),
                        config={'repair': base['run_id'], **fitted}, comparison=comparison, **common)
  with replacing(predictions) as partial, open(partial, 'wb') as f:
    np.savez(f, before=comparison.labels_before, after=comparison.labels_after, labels=subject.test.y.astype(np.int16))
  write_json(path, row)
  return {'row': row, **written}
