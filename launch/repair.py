"""Repairs a model and reports what the repair did.

  python -m launch.repair                                    # digits, a small LeNet, one approach of each level
  python -m launch.repair --subject=mnist_lenet5 --data_dir=DATA --model=net.h5 --method=arachne --out=runs/arachne
  python -m launch.repair --list                             # the approaches, with needs and guarantees

Writes OUT/METHOD/ (result.json, repaired.safetensors, log.txt, ...) and OUT/report.html. Exits 0 if at least one
approach came to a result, 1 if all failed or were unadaptable, 2 on a user's mistake.
"""
import pathlib

from absl import flags
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jaxfix import methods, subjects
from jaxfix.study import job, repair_report, summary
from launch import cli

_SUBJECT = flags.DEFINE_string('subject', 'digits_lenet5', f'One of {", ".join(subjects.NAMES)}.')
_METHOD = flags.DEFINE_list('method', list(job.DEFAULT_METHODS), 'Approaches, separated by commas (see --list).')
_OUT = flags.DEFINE_string('out', None, 'Folder of the results. Default: out/SUBJECT.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the approaches and of the attack.', lower_bound=0)
_SPLIT_SEED = flags.DEFINE_integer('split_seed', 0, 'Seed of the splits and of the original.', lower_bound=0)
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where local data lies; also $JAXFIX_DATA.')
_MODEL = flags.DEFINE_string('model', None, 'Checkpoint (.safetensors) or Keras file (.h5) to repair.')
_WIDTH = flags.DEFINE_float('width', 1., "Multiplies the channels of the subject's network.", lower_bound=0.01)
_FAILURES = flags.DEFINE_enum('failures', 'repair', ['train', 'repair'], 'Split that failing samples come from.')
_IMPORTANCE = flags.DEFINE_string('class_importance', None, 'JSON file: which classes and mistakes matter most.')
_SET = flags.DEFINE_multi_string('set', [], 'Hyper-parameter, name=value or method.name=value; may be repeated.')
_PUBLISHED = flags.DEFINE_bool('published', False, "Use the published settings instead of the subject's presets.")
_PLUGIN = flags.DEFINE_list('plugin', [], 'Modules with approaches of your own, by dotted names.')
_LIST = flags.DEFINE_bool('list', False, 'List the approaches and exit.')


def main() -> int:
  console = cli.console()
  for module in _PLUGIN.value:
    methods.load_plugin(module)
  if _LIST.value:
    console.print(summary.method_table([methods.get(name) for name in methods.names()]))
    return 0
  out = pathlib.Path(_OUT.value or f'out/{_SUBJECT.value}')
  work = job.Job(subject=_SUBJECT.value, methods=tuple(_METHOD.value), out=str(out), seed=_SEED.value,
                 split_seed=_SPLIT_SEED.value, data_dir=_DATA_DIR.value, model=_MODEL.value, width=_WIDTH.value,
                 failures=_FAILURES.value, class_importance=_IMPORTANCE.value, settings=cli.settings(_SET.value),
                 published=_PUBLISHED.value)
  columns = (SpinnerColumn(), TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
  with Progress(*columns, console=console, transient=True) as progress:
    training = progress.add_task('training the original', total=subjects.entry(work.subject).recipe.epochs,
                                 visible=not work.model)
    repairing = progress.add_task('repairing', total=len(work.methods))

    def on_epoch(epoch):
      progress.update(training, completed=epoch.number, description=f'training: valid {epoch.valid_accuracy:.2%}')

    def on_start(name):
      progress.update(training, visible=False)
      progress.advance(repairing, 0 if progress.tasks[repairing].description == 'repairing' else 1)
      progress.update(repairing, description=f'repairing: {name}')

    subject, results = job.run(work, on_epoch=on_epoch, on_start=on_start)
  path = repair_report.write(out / 'report.html', subject, results, out / 'original')
  console.print(summary.result_table(subject, [r.row for r in results]))
  console.print(f'Repaired models in {out}/METHOD/, report in {path}', soft_wrap=True)
  return 0 if any(r.row['outcome'] in ('OK', 'CORRUPTED') for r in results) else 1


if __name__ == '__main__':
  cli.run(main)
