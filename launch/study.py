"""Runs approaches x subjects x seeds and keeps every result; run again, it continues and repeats nothing.

  python -m launch.study --plan=digits --workers=2 --out=out/digits
  python -m launch.study --plan=mnist --methods=care,inner --seeds=0,1,2 --data_dir=DATA --model=mnist_lenet5=net.h5 \\
      --out=out/mnist

Plans: digits, mnist, cifar10, utkface, cifar10s, imagenet, full, or the dotted name of a module with a PLAN. Writes
OUT/results.jsonl (one row a cell), predictions, traces, and a folder for every cell. `launch.report` makes the report.
Exits 0 if a repair came to a result, 1 if none did, 2 on a user's mistake.
"""
import dataclasses
import pathlib

from absl import flags

from jaxfix import methods
from jaxfix.errors import BadInputError, require
from jaxfix.study import campaign, plan
from jaxfix.study.estimate import Estimate
from jaxfix.study.executor import LocalExecutor
from jaxfix.study.progress import View
from launch import cli, configs, results

_EXECUTORS = {'local': LocalExecutor}

_PLAN = flags.DEFINE_string('plan', 'digits', f'One of {", ".join(configs.NAMES)}, or a module with a PLAN.')
_METHODS = flags.DEFINE_list('methods', [], "Approaches; default the plan's.")
_SUBJECTS = flags.DEFINE_list('subjects', [], "Of the plan's subjects, only these.")
_SEEDS = flags.DEFINE_list('seeds', [], "Repeats; default the plan's.")
_WORKERS = flags.DEFINE_integer('workers', 1, 'Cells at a time.', lower_bound=1)
_OUT = flags.DEFINE_string('out', None, 'Folder of the study. Default: out/study_PLAN.')
_EXECUTOR = flags.DEFINE_enum('executor', 'local', list(_EXECUTORS), 'What carries cells out: local, processes here.')
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where local data lies; also $JAXFIX_DATA.')
_MODEL = flags.DEFINE_multi_string('model', [], 'SUBJECT=FILE: the original of a subject; may be repeated.')
_SET = flags.DEFINE_multi_string('set', [], 'Hyper-parameter, name=value or method.name=value; may be repeated.')
_POST = flags.DEFINE_list('postprocess', None, "Post-processing of every repair; default the plan's; empty for none.")
_RADII = flags.DEFINE_list('attack_radii', None, "Multiples of the subject's attack radius at which attack success is "
                           "measured besides; default the plan's; empty for none.")
_TIME = flags.DEFINE_float('time_limit', None, "Seconds of a cell; default the plan's; inf for none.",
                           lower_bound=0.001)
_MEMORY = flags.DEFINE_float('memory_limit', None, "GiB of a cell's process; default the plan's; inf for none.",
                             lower_bound=0.001)
_PLUGIN = flags.DEFINE_list('plugin', [], 'Modules with approaches of your own, by dotted names.')
_RETRY = flags.DEFINE_bool('retry_failures', False, 'Run cells again that ended as FAILURE.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Show the plan and stop.')


def _asked() -> plan.Plan:
  """The plan as the flags change it."""
  seeds, radii = _numbers(_SEEDS, int, 'whole numbers'), _numbers(_RADII, float, 'numbers')
  asked = plan.restrict(
    configs.load(_PLAN.value), subject_names=_SUBJECTS.value, models=cli.settings(_MODEL.value, flag='model'),
    methods=tuple(_METHODS.value), seeds=seeds, settings=cli.settings(_SET.value), time_limit_s=_TIME.value,
    memory_limit_bytes=_MEMORY.value and _MEMORY.value * 2**30)
  given = {'postprocess': _POST.value, 'attack_radii': radii}   # which may also be given as none at all
  return dataclasses.replace(asked, **{name: tuple(part) for name, part in given.items() if part is not None})


def _numbers(flag: flags.FlagHolder, kind: type, words: str) -> tuple | None:
  try:
    return None if flag.value is None else tuple(kind(text) for text in flag.value)
  except ValueError as e:
    raise BadInputError(f'--{flag.name} takes {words} separated by commas, got {",".join(flag.value)!r}.') from e


def main() -> int:
  for module in _PLUGIN.value:
    methods.load_plugin(module)
  asked = _asked()
  out = pathlib.Path(_OUT.value or f'out/study_{asked.name}')
  cells = campaign.check(asked)
  estimate = Estimate.of(results.known_rows(out), asked.postprocess, len(asked.attack_radii))
  view = View(cli.console(), asked, cells, _WORKERS.value, estimate)
  view.show_plan()
  if _DRY_RUN.value:
    return 0
  executor = _EXECUTORS[_EXECUTOR.value](_WORKERS.value, out / 'workers.log', tuple(_PLUGIN.value))
  with view:
    rows = campaign.run(asked, out=out, executor=executor, data_dir=_DATA_DIR.value, retry_failures=_RETRY.value,
                        watcher=view.watcher())
  require(len(rows) > 0, 'The study has no rows.')
  view.show_outcomes(rows, out)
  return 0 if any(row['outcome'] in ('OK', 'CORRUPTED') for row in rows) else 1


if __name__ == '__main__':
  cli.run(main)
