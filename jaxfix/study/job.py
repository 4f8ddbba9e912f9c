"""The main job: one subject, one original model, some approaches; each repaired, measured and written down.

    OUT/original/            training run of the original (absent when a model was given)
    OUT/splits.npz           int32 row indices of every split
    OUT/METHOD/result.json   the record; written last, so that its presence means that the rest is whole
    OUT/METHOD/repaired.safetensors, repaired.json, predictions.npz, trace.json, log.txt
    OUT/report.html          all of them, to look at

Running the same job again repeats nothing that is finished and completes the rest.
"""
import contextlib
import dataclasses
import logging
import pathlib
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxfix import evaluate, history, methods, subjects
from jaxfix.classifier import fingerprint
from jaxfix.errors import (
  BadInputError,
  CorruptFileError,
  JaxfixError,
  RepairFailure,
  Unadaptable,
  UnknownNameError,
  require,
)
from jaxfix.evaluate import PGD, Comparison
from jaxfix.files import read_json, replacing, write_json, write_text
from jaxfix.interchange import checkpoint, class_importance
from jaxfix.methods.method import Method, describe_config
from jaxfix.problem import FailureSource, Repair, Subject
from jaxfix.recipe import Recipe
from jaxfix.study import memory, record
from jaxfix.train import Epoch

DEFAULT_METHODS = ('apricot', 'prdnn', 'arachne')

_log = logging.getLogger('jaxfix')
EVALUATION = 0x6576
"""Named stream of a seed's key: the attack's."""


@dataclasses.dataclass(frozen=True)
class Job:
  """What to do.

  Attributes:
    subject: name, see `jaxfix.subjects`.
    methods: names, see `jaxfix.methods`.
    out: folder of the results.
    seed: of the approaches and of the attack.
    split_seed: of the splits and of the training of the original, which stay the same over several seeds.
    data_dir: where local data lies.
    model: checkpoint or .h5 of the original; None trains the subject's own network first. A checkpoint in the folder of
      a training run has that run's history.
    width: of that network.
    recipe: of that training; None for the subject's own.
    failures: which split failing samples come from.
    class_importance: JSON file (`interchange.class_importance`) that replaces the subject's own.
    settings: 'option' or 'method.option' -> value as text.
    published: ignore the subject's presets and use the published defaults.
  """
  subject: str = 'digits_lenet5'
  methods: tuple[str, ...] = DEFAULT_METHODS
  out: str = 'out'
  seed: int = 0
  split_seed: int = 0
  data_dir: str | None = None
  model: str | None = None
  width: float = 1.
  recipe: Recipe | None = None
  failures: FailureSource = 'repair'
  class_importance: str | None = None
  settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
  published: bool = False


@dataclasses.dataclass(frozen=True)
class Result:
  """One approach's folder, read back."""
  row: dict[str, Any]
  trace: dict[str, Any]
  labels_before: np.ndarray | None = None
  labels_after: np.ndarray | None = None


def run(job: Job, *, on_epoch: Callable[[Epoch], None] = lambda epoch: None,
        on_start: Callable[[str], None] = lambda method: None) -> tuple[Subject, list[Result]]:
  """Does the job; everything is on disk when it returns.

  Args:
    job: what to do.
    on_epoch: called after every epoch of training the original.
    on_start: called with the name of each approach before it begins.
  Raises:
    JaxfixError: the job cannot be done as asked. What an approach cannot do is an outcome in its row, not an error.
  """
  chosen = [methods.get(name) for name in dict.fromkeys(job.methods)]
  require(len(chosen) > 0, f'No method was named; choose from {", ".join(methods.names())}.')
  row = subjects.entry(job.subject)
  configs = {m.name: resolve(m, {} if job.published else row.presets.get(m.name, {}), job.settings, chosen)
             for m in chosen}
  out = pathlib.Path(job.out)
  subject = prepare(job, on_epoch=on_epoch)
  _store_splits(out / 'splits.npz', subject.split_indices)
  results = []
  for method in chosen:
    on_start(method.name)
    results.append(repair_and_record(method, configs[method.name], subject, out / method.name, seed=job.seed))
  return subject, results


def _store_splits(path: pathlib.Path, indices: Mapping[str, np.ndarray]) -> None:
  """Raises `BadInputError` if the folder already has results of other splits: figures of the two do not compare."""
  try:
    with np.load(path, allow_pickle=False) as stored:
      same = set(stored.files) == set(indices) and all(np.array_equal(stored[k], v) for k, v in indices.items())
  except (OSError, ValueError, EOFError, zipfile.BadZipFile):   # none yet, or damaged
    with replacing(path) as partial, open(partial, 'wb') as f:
      np.savez(f, **indices)
    return
  require(same, f'{path.parent} holds results of other splits of the data; give another --out, or the --split_seed and '
          'the data of that run.')


def resolve(method: Method, preset: Mapping[str, Any], settings: Mapping[str, str], chosen: list[Method]) -> Any:
  """The config of one approach: published defaults, then the preset, then the settings that concern it.

  Raises:
    UnknownNameError: a setting is an option of none of the chosen approaches.
    BadInputError: a value has the wrong type or is out of range.
  """
  overrides = dict(preset)
  options = {m.name: {f.name for f in dataclasses.fields(m.config)} for m in chosen}
  for name, value in settings.items():
    target, dot, option = name.rpartition('.')
    if dot and target not in options:
      raise UnknownNameError('method in --set', target, options)
    owners = [target] if dot else [m for m, names in options.items() if option in names]
    if not any(option in options[m] for m in owners):
      raise UnknownNameError(f'option of {" or ".join(owners or options)}', option,
                             set().union(*(options[m] for m in owners or options)))
    if method.name in owners:
      overrides[option] = value
  return methods.configure(method, overrides)


def prepare(job: Job, *, on_epoch: Callable[[Epoch], None] = lambda epoch: None) -> Subject:
  """The subject with its original model: given, trained before in the same folder, or trained now.

  It has the history of that training if one of the approaches needs it; sixty epochs of a large network take gigabytes.
  """
  subject = subjects.load(job.subject, data_dir=job.data_dir, seed=job.split_seed, width=job.width, recipe=job.recipe,
                          failures=job.failures)
  if job.class_importance:
    given = class_importance.read(job.class_importance, subject.class_names)
    subject = dataclasses.replace(subject, problem=dataclasses.replace(subject.problem, class_importance=given))
  remembers = any('history' in methods.get(name).needs for name in job.methods)
  if job.model:
    original = subjects.read_model(job.model, subject)
    past = history.history_of(job.model, original) if remembers else None
  else:
    folder = pathlib.Path(job.out) / 'original'
    original = history.train_subject(subject, folder, seed=job.split_seed, on_epoch=on_epoch)
    past = history.load_history(folder) if remembers else None
  return subjects.with_classifier(subject, original, history=past)


def identify(method: Method, config: Any, subject: Subject, seed: int) -> str:
  """`run_id` of a repair: the same for everything that gives the same result."""
  problem = subject.problem
  guided_by = {'class_importance': repr(problem.class_importance)} if 'class_importance' in method.needs else {}
  if 'history' in method.needs:
    guided_by['history'] = [fingerprint(epoch) for epoch in problem.history or ()]
  if (code := record.code_beside(method.repair)) is not None:
    guided_by['approach_code'] = code
  return record.run_id(describe_config(config), seed, approach=method.name, subject=subject.name,
                       original=fingerprint(problem.classifier), failures=problem.failures,
                       split_sha256=dict(subject.split_sha256), source=subject.dataset_source,
                       platform=jax.default_backend(), **guided_by)


def repair_and_record(method: Method, config: Any, subject: Subject, folder: pathlib.Path, *, seed: int,
                      suite: str = '') -> Result:
  """Repairs by one approach, measures on the test split, and writes its folder; or reads it, if it is already there.

  Args:
    method, config: the approach, its resolved config.
    subject: with its original model.
    folder: of the results.
    seed: of the approach and of the attack.
    suite: name of the campaign, for the row.
  Raises:
    JaxfixError: the problem is malformed for every approach (`check_problem`), or the folder cannot be written.
  """
  key = jax.random.key(seed)
  described = describe_config(config)
  identifier = identify(method, config, subject, seed)
  if (done := finished(folder, identifier)) is not None:
    return done
  for name in ('result.json', 'repaired.safetensors', 'repaired.json', 'predictions.npz', 'trace.json'):
    (folder / name).unlink(missing_ok=True)   # the record first: from here on the folder is not whole
  started, before = record.utc_now(), memory.mark()
  repair = comparison = None
  with _logging_to(folder / 'log.txt'):
    _log.info('%s on %s, seed %d, run %s', method.name, subject.name, seed, identifier)
    _log.info('config %s', described)
    try:
      repair = methods.run(method, subject.problem, config, key=jax.random.fold_in(key, 0))
      for note in repair.trace.notes:
        _log.info('%s', note)
      _log.info('seconds by phase %s', {k: round(v, 3) for k, v in repair.seconds.items()})
      _save(folder, repair, subject=subject.name, approach=method.name, run_id=identifier)
      comparison = measure(subject, repair, key=jax.random.fold_in(key, EVALUATION))
      outcome, reason = _judge(comparison)
    except Unadaptable as e:
      outcome, reason = 'UNADAPTABLE', e.reason
    except Exception as e:  # the study's FAILURE: kept with its traceback, and the job goes on
      if isinstance(e, JaxfixError) and not isinstance(e, RepairFailure):
        raise   # the problem itself is malformed, for every approach
      phase = 'repair' if repair is None else 'evaluation'
      outcome, reason = 'FAILURE', f'{phase}: {type(e).__name__}: {e}'
      _log.error('%s', traceback.format_exc())
    row = record.make_row(subject=subject, seed=seed, key=key, started=started, outcome=outcome, reason=reason,
                          method=method, config=described, repair=repair, comparison=comparison,
                          identifier=identifier, suite=suite, peak_bytes=memory.peak_since(before))
    _log.info('%s %s', outcome, row['outcome_reason'])
  _write(folder, row, repair, comparison, subject.test.y)
  return finished(folder, identifier)


def measure(subject: Subject, repair: Repair, *, key: jax.Array) -> Comparison:
  """Original against repaired on the test split, with the subject's standard attack."""
  return evaluate.compare(subject.problem.classifier, repair.classifier, subject.test, key=key,
                          pgd=PGD(subject.pgd_epsilon), repair_split=subject.problem.repair)


def _judge(comparison: Comparison) -> tuple[str, str]:
  outcome = evaluate.outcome(comparison.counts.acc_original, [comparison.counts.acc])
  if outcome == 'OK':
    return outcome, ''
  return outcome, f'accuracy fell from {comparison.counts.acc_original:.4f} to {comparison.counts.acc:.4f}'


def _save(folder: pathlib.Path, repair: Repair, **meta: str) -> None:
  """The repaired model, before anything else is done with it: a repair may have taken hours."""
  checkpoint.save(folder / 'repaired.safetensors', repair.classifier, meta=meta)


def _write(folder: pathlib.Path, row: dict[str, Any], repair: Repair | None, comparison: Comparison | None,
           labels: np.ndarray) -> None:
  """Everything but the record first: a killed run leaves a folder without a record, which is done again."""
  trace = {'curves': {}, 'selected': {}, 'edits': [], 'solver': {}, 'notes': []}
  if repair is not None:
    trace = {**dataclasses.asdict(repair.trace), 'curves': {k: np.asarray(v) for k, v in repair.trace.curves.items()}}
  write_json(folder / 'trace.json', trace)
  if comparison is not None:
    with replacing(folder / 'predictions.npz') as partial, open(partial, 'wb') as f:
      np.savez(f, before=comparison.labels_before, after=comparison.labels_after, labels=labels.astype(np.int16))
  write_json(folder / 'result.json', row)


def finished(folder: pathlib.Path, identifier: str) -> Result | None:
  """The result in `folder`, if it is whole and that of the run `identifier`."""
  path = folder / 'result.json'
  if not path.exists():
    return None
  try:
    row = read_json(path)
    record.check_row(row)
    if row['run_id'] != identifier:
      return None
    trace = read_json(folder / 'trace.json')
    if row['counts'] is None:
      return Result(row, trace)
    if not (folder / 'repaired.safetensors').exists():
      return None
    with np.load(folder / 'predictions.npz', allow_pickle=False) as arrays:
      return Result(row, trace, arrays['before'], arrays['after'])
  except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, BadInputError,
          CorruptFileError):   # damaged in one way or another: it is made again
    return None


@contextlib.contextmanager
def _logging_to(path: pathlib.Path) -> Iterator[None]:
  """Within it, the package's log also goes to a file, one folder an approach."""
  write_text(path, '')
  handler = logging.FileHandler(path, encoding='utf-8')
  handler.setFormatter(logging.Formatter('%(asctime)s %(levelname)s %(message)s'))
  level, propagate = _log.level, _log.propagate
  _log.addHandler(handler)
  _log.setLevel(logging.INFO)
  _log.propagate = False
  try:
    yield
  finally:
    _log.removeHandler(handler)
    handler.close()
    _log.setLevel(level)
    _log.propagate = propagate
