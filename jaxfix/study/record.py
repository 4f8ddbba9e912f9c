"""The one record of a repair: what `launch/repair.py` writes as `result.json`, and a study as a line of its store.

Fractions, seconds, bytes; null, never NaN. Raw counts stand beside the rates, and a row whose counts do not add up is
refused.

Decided here: whether the compilation cache was warm has no field, since `compile_seconds` says it. No cache outlives a
process, and what counts is what JAX reports of tracing, lowering and XLA during the repair (`clock`): the first cell of
an approach on a subject in a process pays for its programs, and where a later one shows next to nothing it found them
warm. Of rows of one approach and subject, one with a small part of the others' `compile_seconds` was warm.
"""
import datetime
import functools
import importlib.metadata
import math
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jaxfix
from jaxfix.classifier import Classifier, fingerprint, flat_weights, num_params
from jaxfix.errors import BadInputError, require
from jaxfix.evaluate import Comparison
from jaxfix.files import jsonable, sha256_of_bytes, sha256_of_json
from jaxfix.methods.method import Method
from jaxfix.problem import Repair, Subject
from jaxfix.study import schema

SCHEMA = 'jaxfix-results/1'

FIELDS = {
  'identity': ('schema', 'run_id', 'suite', 'approach', 'approach_code', 'category', 'postprocess', 'subject',
               'published_subject', 'seed'),
  'outcome': ('outcome', 'outcome_reason', 'flags'),
  'config': ('config', 'config_sha256'),
  'data': ('split_sha256', 'n_train', 'n_valid', 'n_repair', 'n_test', 'n_failures', 'dataset_source'),
  'models': ('original_sha256', 'repaired_sha256', 'n_params', 'n_params_changed', 'l2_change', 'linf_change'),
  'metrics': ('acc_original', 'acc', 'acc_rel', 'rr', 'nfr', 'rr_repair', 'nfr_repair', 'counts', 'asr_original', 'asr',
              'asr_rel', 'asr_n', 'asr_eps', 'asr_eps_space', 'aaod_original', 'aaod', 'aaod_rel', 'corruption_acc',
              'certificate'),
  'time': ('repair_seconds', 'compile_seconds', 'phase_seconds', 'peak_memory_bytes'),
  'provenance': ('git_commit', 'git_dirty', 'versions', 'device_kind', 'device_count', 'platform', 'host_cpu',
                 'started_utc', 'ended_utc', 'prng_impl', 'root_key', 'deterministic'),
}
"""Groups of fields, in the order in which a row prints them."""

VOLATILE = ('repair_seconds', 'compile_seconds', 'phase_seconds', 'peak_memory_bytes', 'started_utc', 'ended_utc',
            'git_commit', 'git_dirty')
"""Fields that may differ between two runs of the same thing: times, and what a commit of other files changes."""
OUTCOMES = ('OK', 'CORRUPTED', 'FAILURE', 'UNADAPTABLE')
_METRICS = tuple(f for f in FIELDS['metrics'] if f not in ('corruption_acc', 'certificate'))


def run_id(config: Mapping[str, Any], seed: int, **what: Any) -> str:
  """16 hex digits that name a run by what determines it: config, seed, code, versions, and `what` (model, data)."""
  return sha256_of_json({'config': config, 'seed': seed, 'code': _code(), 'versions': versions(), **what})[:16]


def make_row(*, subject: Subject, seed: int, key: jax.Array, started: str, outcome: str, reason: str = '',
             method: Method | None = None, config: Mapping[str, Any] | None = None, repair: Repair | None = None,
             comparison: Comparison | None = None, identifier: str = '', suite: str = '', postprocess: str = 'none',
             peak_bytes: int | None = None) -> dict[str, Any]:
  """The row of one repair, or, without `method`, of a comparison of two given models.

  Args:
    subject: its problem holds the original model.
    seed, key: of the approach.
    started: `utc_now()` at the start.
    outcome, reason: one of `OUTCOMES`, and one line that explains it.
    method, config, repair: the approach, its resolved config, and what it returned, where it did.
    comparison: original against repaired on the test split; metrics are null without it.
    identifier: `run_id` of the run.
    suite: name of the campaign.
    postprocess: 'none', or how original and repaired model were combined; then the category is 'postprocess'.
    peak_bytes: `memory.peak_since` the start.
  Raises:
    BadInputError: the row breaks the schema or the accounting identity.
  """
  problem, config = subject.problem, dict(config or {})
  commit, dirty = git_state()
  metrics = comparison.metrics() if comparison else dict.fromkeys(_METRICS)
  row = {
    'schema': SCHEMA, 'run_id': identifier, 'suite': suite,
    'approach': method.name if method else '', 'approach_code': method.code if method else '',
    'category': 'postprocess' if postprocess != 'none' else method.level if method else '', 'postprocess': postprocess,
    'subject': subject.name,
    'published_subject': subject.published, 'seed': seed,
    'outcome': outcome, 'outcome_reason': ' '.join(reason.split()),
    'flags': list(comparison.flags if comparison else ()),
    'config': config, 'config_sha256': sha256_of_json(config),
    'split_sha256': dict(subject.split_sha256), 'n_train': len(problem.train), 'n_valid': len(problem.valid),
    'n_repair': len(problem.repair), 'n_test': comparison.counts.num_samples if comparison else len(subject.test),
    'n_failures': comparison.counts.num_failures if comparison else None, 'dataset_source': subject.dataset_source,
    **_models(problem.classifier, repair.classifier if repair else None),
    **metrics, 'corruption_acc': None, 'certificate': repair.certificate if repair else None,
    'repair_seconds': sum(repair.seconds.values()) if repair and repair.seconds else None,
    'compile_seconds': repair.compile_seconds if repair and repair.seconds else None,
    'phase_seconds': dict(repair.seconds) if repair else {}, 'peak_memory_bytes': peak_bytes,
    'git_commit': commit, 'git_dirty': dirty, 'versions': versions(),
    'device_kind': jax.devices()[0].device_kind, 'device_count': jax.device_count(),
    'platform': jax.default_backend(), 'host_cpu': host_cpu(), 'started_utc': started, 'ended_utc': utc_now(),
    'prng_impl': str(jax.random.key_impl(key)), 'root_key': np.asarray(jax.random.key_data(key)).ravel().tolist(),
    'deterministic': bool(method and method.deterministic),
  }
  row = jsonable(row)
  check_row(row)
  return {field: row[field] for group in FIELDS.values() for field in group}


def blank_row() -> dict[str, Any]:
  """A row of which only the code is known; every other field is null or empty."""
  commit, dirty = git_state()
  row = dict.fromkeys(field for group in FIELDS.values() for field in group)
  return row | {'schema': SCHEMA, 'postprocess': 'none', 'published_subject': '', 'flags': [], 'config': {},
                'split_sha256': {}, 'phase_seconds': {}, 'git_commit': commit, 'git_dirty': dirty,
                'versions': versions(), 'host_cpu': host_cpu(), 'dataset_source': '', 'deterministic': False}


def failed_row(facts: Mapping[str, Any], *, run_id: str, suite: str, seed: int, method: Method,
               config: Mapping[str, Any], reason: str, seconds: float = 0., postprocess: str = 'none'
               ) -> dict[str, Any]:
  """The FAILURE of a repair, or of its post-processing, whose process wrote no row: it broke a limit, or died.

  Args:
    facts: a row of the same subject, or `blank_row()` with its name.
    run_id, suite, seed, method, config, postprocess: as in `make_row`.
    reason: one line.
    seconds: wall time that was spent.
  Raises:
    BadInputError: the row breaks the schema.
  """
  config, now = dict(config), datetime.datetime.now(datetime.UTC)
  row = dict(facts) | {
    'run_id': run_id, 'suite': suite, 'approach': method.name, 'approach_code': method.code,
    'category': method.level if postprocess == 'none' else 'postprocess', 'postprocess': postprocess, 'seed': seed,
    'outcome': 'FAILURE', 'outcome_reason': ' '.join(reason.split()), 'config': jsonable(config),
    'config_sha256': sha256_of_json(config), 'peak_memory_bytes': None, 'root_key': None,
    'started_utc': _iso(now - datetime.timedelta(seconds=seconds)), 'ended_utc': _iso(now),
    'deterministic': method.deterministic}
  check_row(row)
  return row


def check_row(row: Mapping[str, Any]) -> None:
  """Checks a row, read or about to be written, against the schema and the identity acc = acc_0 + RR (1 - acc_0) - NFR.

  Raises:
    BadInputError: unknown schema, unknown or missing fields, a value of another type (`schema`), an unknown outcome,
      or counts that do not add up.
  """
  require(row.get('schema') == SCHEMA, f'Row has schema {row.get("schema")!r}, expected {SCHEMA!r}.')
  known = {field for group in FIELDS.values() for field in group}
  for kind, names in (('unknown', set(row) - known), ('missing', known - set(row))):
    require(not names, f'Row {row.get("run_id")!r} has {kind} fields: {", ".join(sorted(names))}.')
  if wrong := schema.misfit(row):
    raise BadInputError(f'Row {row["run_id"]!r}: {wrong}.')
  require(row['outcome'] in OUTCOMES, f'Row {row["run_id"]!r}: outcome {row["outcome"]!r} is none of {OUTCOMES}.')
  if (counts := row['counts']) is None:
    return
  names = ('both_right', 'fixed', 'broken', 'both_wrong')
  require(isinstance(counts, Mapping) and all(isinstance(counts.get(k), int) and counts[k] >= 0 for k in names)
          and any(counts[k] for k in names), f'Row {row["run_id"]!r}: counts must be the numbers {", ".join(names)}.')
  both_right, fixed, broken, both_wrong = (counts[k] for k in names)
  n = both_right + fixed + broken + both_wrong
  expected = {'n_test': n, 'n_failures': fixed + both_wrong, 'acc_original': (both_right + broken) / n,
              'acc': (both_right + fixed) / n, 'nfr': broken / n,
              'rr': fixed / (fixed + both_wrong) if fixed + both_wrong else None}
  for field, value in expected.items():
    same = row[field] == value or (None not in (row[field], value) and math.isclose(row[field], value, rel_tol=1e-12))
    if not same:
      raise BadInputError(f'Row {row["run_id"]!r}: {field} is {row[field]}, but its counts give {value}.')


def _models(original: Classifier, repaired: Classifier | None) -> dict[str, Any]:
  row = {'original_sha256': fingerprint(original), 'repaired_sha256': None, 'n_params': num_params(original),
         'n_params_changed': None, 'l2_change': None, 'linf_change': None}
  if repaired is None:
    return row
  row['repaired_sha256'] = fingerprint(repaired)
  if repaired.module != original.module:
    return row   # no weight of one corresponds to a weight of the other
  old, new = flat_weights({'params': original.params}), flat_weights({'params': repaired.params})
  change = np.concatenate([(new[k].astype(np.float64) - old[k]).ravel() for k in old])
  return row | {'n_params_changed': int(np.count_nonzero(change)), 'l2_change': float(np.linalg.norm(change)),
                'linf_change': float(np.abs(change).max(initial=0.))}


def utc_now() -> str:
  """The time, ISO 8601 with seconds, UTC."""
  return _iso(datetime.datetime.now(datetime.UTC))


def _iso(moment: datetime.datetime) -> str:
  return moment.strftime('%Y-%m-%dT%H:%M:%SZ')


@functools.cache
def versions() -> dict[str, str]:
  """Versions of everything that a number may depend on."""
  names = ('jax', 'jaxlib', 'flax', 'optax', 'numpy', 'scipy', 'scikit-learn', 'cvxpy', 'highspy')
  return {'python': platform.python_version(), 'jaxfix': jaxfix.__version__,
          **{name: importlib.metadata.version(name) for name in names}}


@functools.cache
def git_state() -> tuple[str, bool]:
  """Commit of the source tree and whether it has uncommitted changes; ('', False) for an installed package."""
  folder = pathlib.Path(jaxfix.__file__).parent

  def git(*arguments: Sequence[str]) -> str:
    return subprocess.run(['git', '-C', folder, *arguments], capture_output=True, text=True, check=True).stdout.strip()

  try:
    top = pathlib.Path(git('rev-parse', '--show-toplevel'))
    if not (top / 'jaxfix' / '__init__.py').samefile(folder / '__init__.py'):
      return '', False   # somebody else's repository around an installed package
    return git('rev-parse', 'HEAD'), bool(git('status', '--porcelain', '--untracked-files=no'))
  except (OSError, subprocess.CalledProcessError):
    return '', False


# Of the study only these have a part in what a row says; the others show rows, or carry cells out.
_MAKE_ROWS = ('cell.py', 'job.py', 'memory.py', 'plan.py', 'record.py', 'schema.py')


@functools.cache
def _code() -> str:
  """SHA-256 over the source files that a row depends on: results of other code are never taken for this code's."""
  folder = pathlib.Path(jaxfix.__file__).parent
  shows = lambda path: (path.parts[0] == 'statistics'
                        or path.parts[0] == 'study' and path.parts[1:] not in {(name,) for name in _MAKE_ROWS})
  return _hash_of(folder, lambda path: not shows(path))


def _hash_of(folder: pathlib.Path, wanted: Callable[[pathlib.Path], bool] = lambda path: True) -> str:
  files = {f.relative_to(folder): f for f in sorted(folder.rglob('*.py'))}
  return sha256_of_json({str(name): sha256_of_bytes(f.read_bytes()) for name, f in files.items() if wanted(name)})


def code_beside(function: Callable) -> str | None:
  """SHA-256 of the source of the package, or module, that an approach comes from; None for one of jaxfix."""
  while inner := getattr(function, 'func', None) or getattr(function, '__wrapped__', None):   # partial, jit
    function = inner
  top = getattr(function, '__module__', type(function).__module__).partition('.')[0]
  if top == 'jaxfix':
    return None
  module = sys.modules.get(top)
  if folders := getattr(module, '__path__', None):
    return sha256_of_json([_hash_of(pathlib.Path(folder)) for folder in folders])
  try:
    return sha256_of_bytes(pathlib.Path(module.__file__).read_bytes())
  except (OSError, AttributeError, TypeError):   # defined in no file
    return top


@functools.cache
def host_cpu() -> str:
  """Model name of the processor; no host or user name."""
  try:
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  except OSError:
    pass
  return platform.processor() or platform.machine()

