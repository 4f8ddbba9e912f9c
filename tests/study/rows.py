"""Valid rows of results for tests: every row passes `record.check_row`, and the same arguments give the same row.

`make_row` is one row from counts; `make_rows` a matrix of approaches, subjects and seeds with plausible figures;
`unloaded_row` that of a cell whose subject could not be loaded.
"""
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxfix import methods
from jaxfix.study import record

APPROACHES = {
  'apricot': ('AP', 'model'), 'editable_training': ('ET', 'model'), 'fsgmix': ('FM', 'model'),
  'deeprepair': ('DR', 'model'), 'hudd': ('HUDD', 'model'), 'hybridrepair': ('HR', 'model'),
  'threem_dnn': ('3M', 'layer'), 'reassure': ('RA', 'layer'), 'prdnn': ('', 'layer'), 'archrepair': ('', 'block'),
  'arachne': ('AR', 'neuron'), 'care': ('CARE', 'neuron'), 'neurecover': ('NR', 'neuron'), 'irepair': ('IR', 'neuron'),
  'distrrep': ('DTR', 'neuron'), 'genmunn': ('GM', 'neuron'), 'vere': ('VERE', 'neuron'), 'inner': ('IN', 'neuron'),
  'adrep': ('', 'neuron'), 'mode': ('', 'neuron'),
}
"""Registry key -> the study's code and the level; any other name is a further neuron-level approach."""

PUBLISHED = {'mnist_lenet5': 'MNIST', 'utkface_facenet': 'UTKFace', 'cifar10_vgg16': 'CIFAR10',
             'cifar10s_resnet18': 'CIFAR10S', 'imagenet_densenet121': 'ImageNet'}
"""Subject -> its key in the published tables; any other subject has none."""

_VERSIONS = {'python': '3.11.0', 'jaxfix': '0.0.0', 'jax': '0', 'jaxlib': '0', 'flax': '0', 'optax': '0', 'numpy': '0',
             'cvxpy': '0', 'highspy': '0'}


def make_row(approach: str = 'apricot', subject: str = 'mnist_lenet5', seed: int = 0, *, outcome: str = 'OK',
             counts: tuple[int, int, int, int] = (970, 12, 5, 13), asr: tuple[float, float] | None = (0.8, 0.6),
             aaod: tuple[float, float] | None = None, seconds: float | None = 12.5, postprocess: str = 'none',
             n_params: int = 60_000, **fields: Any) -> dict[str, Any]:
  """One row.

  Args:
    approach, subject, seed, outcome, postprocess: its identity.
    counts: both_right, fixed, broken, both_wrong on the test split. FAILURE and UNADAPTABLE have no metrics.
    asr, aaod: (original, repaired) fractions, or None.
    seconds: of the repair.
    n_params: size of the original model.
    fields: any fields of the row to replace at the end.
  """
  code, category = APPROACHES.get(approach, ('', 'neuron'))
  identity = hashlib.sha256(repr((approach, subject, seed, postprocess)).encode()).hexdigest()
  n = sum(counts)
  row = dict.fromkeys(field for group in record.FIELDS.values() for field in group)
  row |= {
    'schema': record.SCHEMA, 'run_id': identity[:16], 'suite': 'test', 'approach': approach, 'approach_code': code,
    'category': category if postprocess == 'none' else 'postprocess', 'postprocess': postprocess, 'subject': subject,
    'published_subject': PUBLISHED.get(subject, ''), 'seed': seed, 'outcome': outcome,
    'outcome_reason': {'OK': '', 'CORRUPTED': 'accuracy fell', 'FAILURE': 'repair: RepairFailure: nothing localized',
                       'UNADAPTABLE': 'needs history, which this problem does not have'}[outcome],
    'flags': [], 'config': {'alpha': 1.5}, 'config_sha256': hashlib.sha256(b'{}').hexdigest(),
    'split_sha256': {s: hashlib.sha256(s.encode()).hexdigest() for s in ('train', 'valid', 'repair', 'test')},
    'n_train': 54_000, 'n_valid': 6000, 'n_repair': 5000, 'n_test': n, 'dataset_source': 'npz',
    'original_sha256': hashlib.sha256(subject.encode()).hexdigest(), 'n_params': n_params,
    'phase_seconds': {}, 'git_commit': 'c' * 40, 'git_dirty': False, 'versions': dict(_VERSIONS), 'device_kind': 'cpu',
    'device_count': 1, 'platform': 'cpu', 'host_cpu': 'a processor', 'started_utc': '2026-01-02T03:04:05Z',
    'ended_utc': '2026-01-02T03:05:05Z', 'prng_impl': 'threefry2x32', 'root_key': [0, seed],
    'deterministic': approach in ('threem_dnn', 'reassure', 'prdnn'),
  }
  if outcome in ('OK', 'CORRUPTED'):
    both_right, fixed, broken, both_wrong = counts
    before, after, failures = (both_right + broken) / n, (both_right + fixed) / n, fixed + both_wrong
    row |= {
      'repaired_sha256': hashlib.sha256(identity.encode()).hexdigest(), 'n_params_changed': n_params // 10,
      'l2_change': 1.25, 'linf_change': 0.5, 'n_failures': failures, 'acc_original': before, 'acc': after,
      'acc_rel': (after - before) / before if before else None, 'rr': fixed / failures if failures else None,
      'nfr': broken / n, 'rr_repair': 0.9, 'nfr_repair': 0.001,
      'counts': {'both_right': both_right, 'fixed': fixed, 'broken': broken, 'both_wrong': both_wrong},
      'repair_seconds': seconds, 'compile_seconds': None if seconds is None else 0.1 * seconds,
      'phase_seconds': {} if seconds is None else {'search': 0.75 * seconds, 'other': 0.25 * seconds}}
    if asr:
      row |= {'asr_original': asr[0], 'asr': asr[1], 'asr_rel': (asr[0] - asr[1]) / asr[0] if asr[0] else None,
              'asr_n': 500, 'asr_eps': 0.15, 'asr_eps_space': 'normalized'}
    if aaod:
      row |= {'aaod_original': aaod[0], 'aaod': aaod[1], 'aaod_rel': (aaod[0] - aaod[1]) / aaod[0] if aaod[0] else None}
  row |= fields
  record.check_row(row)
  return row


def unloaded_row(approach: str = 'arachne', subject: str = 'mnist_lenet5', seed: int = 0, **fields: Any
                 ) -> dict[str, Any]:
  """The row of a cell whose subject could not be loaded: of it nothing but the name is known, nor any device."""
  facts = record.blank_row() | {'subject': subject, 'published_subject': PUBLISHED.get(subject, '')}
  row = record.failed_row(facts, run_id='f' * 16, suite='test', seed=seed, method=methods.get(approach), config={},
                          reason='subject: DataNotFoundError: no file [/tmp/x]')
  return row | {'git_commit': 'c' * 40, 'git_dirty': False, **fields}


def make_rows(approaches: Sequence[str] = ('apricot', 'arachne', 'care'), subjects: Sequence[str] = ('mnist_lenet5',),
              seeds: Sequence[int] = (0, 1, 2), *, postprocess: Sequence[str] = ('none',), n_test: int = 1000,
              random_seed: int = 0, **fields: Any) -> list[dict[str, Any]]:
  """A matrix of OK rows, approach-major, with figures drawn from `random_seed`; `fields` as in `make_row`.

  Subjects of UTKFace and CIFAR10S have AAOD, the others none.
  """
  rng = np.random.default_rng(random_seed)
  rows = []
  for approach in approaches:
    for subject in subjects:
      failures, share = n_test // 10, rng.uniform(0.05, 0.6)
      robust, fair, time = rng.uniform(0.2, 0.9), rng.uniform(0.01, 0.03), rng.uniform(1, 5000)
      for seed in seeds:
        for method in postprocess:
          fixed, broken = int(failures * share) + int(rng.integers(0, 4)), int(rng.integers(0, n_test // 50))
          groups = (0.02, round(fair + rng.uniform(0, 0.002), 4))
          rows.append(make_row(
            approach, subject, seed, postprocess=method,
            counts=(n_test - failures - broken, fixed, broken, failures - fixed),
            asr=(0.8, round(robust + rng.uniform(0, 0.02), 3)),
            aaod=groups if subject.startswith(('utkface', 'cifar10s')) else None,
            seconds=round(time * rng.uniform(0.95, 1.05), 2), **fields))
  return rows


def write_store(folder, rows: Sequence[dict[str, Any]]) -> None:
  """`folder/results.jsonl`, one row a line."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'results.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
