"""Combines an original and a repaired model in several ways, and compares each combination with the original.

  python -m launch.postprocess --before=net.h5 --after=repaired.safetensors --subject=mnist_lenet5 --data_dir=DATA
  python -m launch.postprocess ... --method=sv,us --out=rows.json

Prints a table with the repaired model by itself (NO) first. Temperatures and weights are fitted on the validation
split, everything is measured on the test split; --out writes the rows of results as a JSON list. A method that cannot
be applied or fitted is a FAILURE with its reason, as in a study, and the others go on. Exits 1 if all are.
"""
import dataclasses

import jax
from absl import flags
from rich.table import Table

from jaxfix import evaluate, files, postprocess, subjects
from jaxfix.classifier import fingerprint
from jaxfix.errors import UnknownNameError, require
from jaxfix.problem import Repair
from jaxfix.study import record, summary
from launch import cli

_BEFORE = flags.DEFINE_string('before', None, 'Original: checkpoint (.safetensors) or Keras file (.h5).', required=True)
_AFTER = flags.DEFINE_string('after', None, 'Repaired: checkpoint or Keras file.', required=True)
_SUBJECT = flags.DEFINE_string('subject', None, f'One of {", ".join(subjects.NAMES)}.', required=True)
_METHOD = flags.DEFINE_list('method', list(postprocess.NAMES), f'Some of {", ".join(postprocess.NAMES)}.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where local data lies; also $JAXFIX_DATA.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the noise and of the attack.', lower_bound=0)
_SPLIT_SEED = flags.DEFINE_integer('split_seed', 0, 'Seed of the splits.', lower_bound=0)
_OUT = flags.DEFINE_string('out', None, 'File for the rows of results (JSON).')
_PGD = flags.DEFINE_bool('pgd', True, 'Whether to attack the models.')
_SAMPLES = flags.DEFINE_integer('pgd_samples', evaluate.ATTACK_SIZE, 'How many inputs to attack.', lower_bound=1)
_STEPS = flags.DEFINE_integer('pgd_steps', 40, 'Gradient steps.', lower_bound=1)


def _table(title: str, rows: list[dict]) -> Table:
  table = Table('', 'accuracy', 'fixed (RR)', 'broken (NFR)', 'attack success', 'AAOD', 'fitted', title=title,
                title_justify='left')
  for row in rows:
    if row['outcome'] == 'FAILURE':
      table.add_row(_name(row), row['outcome'], *['-'] * 4, row['outcome_reason'])
      continue
    fitted = ', '.join(f'{k} {v:.4g}' for k, v in row['config'].get('fitted', {}).items())
    table.add_row(_name(row), *(summary.percent(row[k]) for k in ('acc', 'rr', 'nfr')), _attacked(row),
                  '-' if row['aaod'] is None else f'{row["aaod"]:.4f}', fitted)
  return table


def _name(row: dict) -> str:
  return 'NO' if row['postprocess'] == 'none' else row['postprocess'].upper().replace('_', '-')


def _attacked(row: dict) -> str:
  return summary.percent(row['asr']) + (f' of {row["asr_n"]}' if row['asr_n'] else '')


def main() -> int:
  require(len(_METHOD.value) > 0, f'--method names none of {", ".join(postprocess.NAMES)}.')
  for name in _METHOD.value:
    if name not in postprocess.NAMES:
      raise UnknownNameError('post-processing method', name, postprocess.NAMES)
  if _OUT.value:
    files.check_writable(_OUT.value)
  key = jax.random.key(_SEED.value)
  subject = subjects.load(_SUBJECT.value, data_dir=_DATA_DIR.value, seed=_SPLIT_SEED.value)
  before, after = (subjects.read_model(path, subject) for path in (_BEFORE.value, _AFTER.value))
  subject = subjects.with_classifier(subject, before)
  pgd = evaluate.PGD(subject.pgd_epsilon, steps=_STEPS.value) if _PGD.value else None
  options = {'key': key, 'pgd': pgd, 'attack_size': _SAMPLES.value}
  attack = {'pgd': dataclasses.asdict(pgd), 'attack_size': _SAMPLES.value} if pgd else {'pgd': None}
  rows = []
  for name in ('none', *dict.fromkeys(_METHOD.value)):
    started, comparison, description, reason = record.utc_now(), None, {}, ''
    if name == 'none':
      comparison = evaluate.compare(before, after, subject.test, repair_split=subject.problem.repair, **options)
    else:
      try:
        comparison, description = postprocess.combine_and_compare(name, before, after, subject, **options)
      except Exception as e:   # like an approach, a combination that fails is an outcome
        reason = f'postprocess: {type(e).__name__}: {e}'
    counts = comparison.counts if comparison else None
    seconds = {'fit': description.pop('fit_seconds')} if description else {}
    settings = {k: v for k, v in description.items() if k != 'fitted'} | attack   # what was fitted is a result
    identifier = record.run_id(settings, _SEED.value, subject=subject.name, before=fingerprint(before),
                               after=fingerprint(after), split_sha256=dict(subject.split_sha256), postprocess=name)
    rows.append(record.make_row(
      outcome=evaluate.outcome(counts.acc_original, [counts.acc]) if counts else 'FAILURE', reason=reason,
      subject=subject, seed=_SEED.value, key=key, started=started, config=description | attack, comparison=comparison,
      repair=Repair(after, seconds=seconds), identifier=identifier, postprocess=name))
  cli.console().print(_table(f'{subject.name}: {len(subject.test)} test samples; original accuracy '
                             f'{summary.percent(rows[0]["acc_original"])}', rows))
  if _OUT.value:
    files.write_json(_OUT.value, rows)
  return 0 if any(row['outcome'] != 'FAILURE' for row in rows[1:]) else 1


if __name__ == '__main__':
  cli.run(main)
