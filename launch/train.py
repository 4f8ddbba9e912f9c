"""Trains the network of a subject and keeps every epoch.

  python -m launch.train --subject=mnist_lenet5 --data_dir=DATA      # 97.5% or more in a few minutes on two cores

Writes OUT/model.safetensors, OUT/history/epoch_0001.safetensors and so on; interrupted, the same command continues.
"""
import dataclasses
import pathlib
import time

from absl import flags
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jaxfix import devices, history, predict, subjects
from jaxfix.files import write_json
from jaxfix.recipe import Recipe
from launch import cli

_SUBJECT = flags.DEFINE_string('subject', 'digits_lenet5', f'One of {", ".join(subjects.NAMES)}.')
_OUT = flags.DEFINE_string('out', None, 'Folder of the run. Default: out/SUBJECT/original.')
_SEED = flags.DEFINE_integer('seed', 0, 'Seed of the splits, the initial weights and the order.', lower_bound=0)
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where local data lies; also $JAXFIX_DATA.')
_WIDTH = flags.DEFINE_float('width', 1., 'Multiplies the channels of the network.', lower_bound=0.01)
_OPTIMIZER = flags.DEFINE_enum('optimizer', None, ['adam', 'adamw', 'sgd'], "Instead of the recipe's.")
_LEARNING_RATE = flags.DEFINE_float('learning_rate', None, "Instead of the recipe's.")
_BATCH_SIZE = flags.DEFINE_integer('batch_size', None, "Instead of the recipe's.", lower_bound=1)
_EPOCHS = flags.DEFINE_integer('epochs', None, "Instead of the recipe's.", lower_bound=1)
_AUGMENT = flags.DEFINE_enum('augment', None, ['none', 'shift', 'crop_flip'], "Instead of the recipe's.")


def _recipe() -> Recipe:
  given = {'optimizer': _OPTIMIZER.value, 'learning_rate': _LEARNING_RATE.value, 'batch_size': _BATCH_SIZE.value,
           'epochs': _EPOCHS.value, 'augment': _AUGMENT.value}
  return dataclasses.replace(subjects.entry(_SUBJECT.value).recipe,
                             **{k: v for k, v in given.items() if v is not None})


def main() -> int:
  console = cli.console()
  out = pathlib.Path(_OUT.value or f'out/{_SUBJECT.value}/original')
  recipe = _recipe()
  subject = subjects.load(_SUBJECT.value, data_dir=_DATA_DIR.value, seed=_SEED.value, width=_WIDTH.value,
                          recipe=recipe)
  console.print(f'{subject.name}: {len(subject.problem.train)} training samples from {subject.dataset_source}, '
                f'{devices.data_mesh().size} device(s), {recipe}')
  start = time.perf_counter()
  columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
  with Progress(*columns, console=console) as progress:
    task = progress.add_task('training', total=recipe.epochs)

    def on_epoch(epoch):
      progress.update(task, completed=epoch.number, description=f'loss {epoch.loss:.4f}')
      progress.console.print(f'epoch {epoch.number:3d}  loss {epoch.loss:.4f}  train {epoch.train_accuracy:.2%}  '
                             f'valid {epoch.valid_accuracy:.2%}  {time.perf_counter() - start:.0f} s')

    trained = history.train_subject(subject, out, seed=_SEED.value, on_epoch=on_epoch)
  seconds = time.perf_counter() - start
  right = int((predict.labels(trained, subject.test.x) == subject.test.y).sum())
  write_json(out / 'test.json', {'num_right': right, 'num_samples': len(subject.test)})
  console.print(f'test accuracy {right / len(subject.test):.2%} ({right}/{len(subject.test)}), {seconds:.0f} s; '
                f'{out / "model.safetensors"}', soft_wrap=True)
  return 0


if __name__ == '__main__':
  cli.run(main)
