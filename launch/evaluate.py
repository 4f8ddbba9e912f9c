"""Compares any two models on one split of a subject: accuracy, flips, attack success, fairness.

  python -m launch.evaluate --before=net.h5 --after=repaired.safetensors --subject=mnist_lenet5 --data_dir=DATA

The models may differ in architecture. Prints a table of what --split holds; --out writes the row of results as JSON,
with the repair rate on the repair split beside it. repair and valid are splits that a repair may have seen, pool is the
whole original test set.
"""
import dataclasses

import jax
from absl import flags
from rich.table import Table

from jaxfix import evaluate, files, subjects
from jaxfix.classifier import fingerprint
from jaxfix.errors import require
from jaxfix.problem import Repair
from jaxfix.study import record, summary
from launch import cli

_BEFORE = flags.DEFINE_string('before', None, 'Original: checkpoint (.safetensors) or Keras file (.h5).', required=True)
_AFTER = flags.DEFINE_string('after', None, 'Repaired: checkpoint or Keras file.', required=True)
_SUBJECT = flags.DEFINE_string('subject', None, f'One of {", ".join(subjects.NAMES)}.', required=True)
_SPLIT = flags.DEFINE_enum('split', 'test', ['test', 'repair', 'valid', 'pool'], 'Which samples to compare on.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where local data lies; also $JAXFIX_DATA.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the attack.', lower_bound=0)
_SPLIT_SEED = flags.DEFINE_integer('split_seed', 0, 'Seed of the splits.', lower_bound=0)
_OUT = flags.DEFINE_string('out', None, 'File for the row of results (JSON).')
_PGD = flags.DEFINE_bool('pgd', True, 'Whether to attack the models.')
_SAMPLES = flags.DEFINE_integer('pgd_samples', evaluate.ATTACK_SIZE, 'How many inputs to attack.', lower_bound=1)
_EPSILON = flags.DEFINE_float('pgd_epsilon', None, "Radius; default the subject's.", lower_bound=0)
_SPACE = flags.DEFINE_enum('pgd_eps_space', 'normalized', ['normalized', 'pixel'], 'Unit of the radius.')
_NORM = flags.DEFINE_enum('pgd_norm', 'linf', ['linf', 'l2'], 'Shape of the ball.')
_STEPS = flags.DEFINE_integer('pgd_steps', 40, 'Gradient steps.', lower_bound=1)
_STEPSIZE = flags.DEFINE_float('pgd_stepsize', None, 'Length of a step; default 1/30 of the radius.')
_RESTARTS = flags.DEFINE_integer('pgd_restarts', 1, 'Random starts.', lower_bound=1)
_STRONG = flags.DEFINE_bool('pgd_strong', False, '100 steps from each of 5 starts.')
_OUTPUT = flags.DEFINE_enum('pgd_attack_output', 'logits', ['logits', 'probs'], 'What the loss is computed from.')


def _attack(epsilon: float) -> evaluate.PGD | None:
  if not _PGD.value:
    return None
  pgd = evaluate.PGD(epsilon if _EPSILON.value is None else _EPSILON.value, norm=_NORM.value, steps=_STEPS.value,
                     abs_stepsize=_STEPSIZE.value, restarts=_RESTARTS.value, eps_space=_SPACE.value,
                     attack_output=_OUTPUT.value)
  return evaluate.strong(pgd) if _STRONG.value else pgd


def _table(title: str, comparison: evaluate.Comparison) -> Table:
  row, counts = comparison.metrics(), comparison.counts
  table = Table('', 'before', 'after', 'relative gain', title=title, title_justify='left')
  for name, key, show in (('accuracy', 'acc', summary.percent), ('attack success', 'asr', summary.percent),
                          ('AAOD', 'aaod', '{:.4f}'.format)):
    if row[key] is not None:
      table.add_row(name, show(row[f'{key}_original']), show(row[key]), summary.percent(row[f'{key}_rel'], sign=True))
  table.add_row('fixed (RR)', '', summary.counted(row['rr'], counts.fixed, counts.num_failures), '')
  table.add_row('broken (NFR)', '', summary.counted(row['nfr'], counts.broken, counts.num_samples), '')
  low, high = comparison.asr_interval
  attacked = f'attacked: {row["asr_n"]} inputs, 95% interval {low:.1%} to {high:.1%}' if row['asr_n'] else ''
  table.caption = '; '.join(filter(None, (attacked, ', '.join(comparison.flags)))) or None
  return table


def main() -> int:
  require(_EPSILON.value is not None or _SPACE.value == 'normalized',
          "--pgd_eps_space=pixel needs --pgd_epsilon: the subject's own radius is one of normalized inputs.")
  if _OUT.value:
    files.check_writable(_OUT.value)
  started, key = record.utc_now(), jax.random.key(_SEED.value)
  subject = subjects.load(_SUBJECT.value, data_dir=_DATA_DIR.value, seed=_SPLIT_SEED.value)
  before, after = (subjects.read_model(path, subject) for path in (_BEFORE.value, _AFTER.value))
  subject = subjects.with_classifier(subject, before)
  split = {'test': subject.test, 'pool': subject.pool, 'repair': subject.problem.repair,
           'valid': subject.problem.valid}[_SPLIT.value]
  pgd = _attack(subject.pgd_epsilon)
  comparison = evaluate.compare(before, after, split, key=key, pgd=pgd, attack_size=_SAMPLES.value,
                                repair_split=subject.problem.repair)
  cli.console().print(_table(f'{subject.name}, {_SPLIT.value}: {len(split)} samples', comparison))
  if _OUT.value:
    config = {'split': _SPLIT.value, 'pgd': dataclasses.asdict(pgd) if pgd else None}
    outcome = evaluate.outcome(comparison.counts.acc_original, [comparison.counts.acc])
    identifier = record.run_id(config, _SEED.value, subject=subject.name, before=fingerprint(before),
                               after=fingerprint(after), split_sha256=dict(subject.split_sha256))
    files.write_json(_OUT.value, record.make_row(
      subject=subject, seed=_SEED.value, key=key, started=started, outcome=outcome, config=config,
      repair=Repair(after), comparison=comparison, identifier=identifier))
  return 0


if __name__ == '__main__':
  cli.run(main)
