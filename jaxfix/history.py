"""Training that keeps a checkpoint of every epoch, continues after an interruption, and can be read back as history.

    OUT/run.json                      what is being trained; another run may not continue in the same folder
    OUT/history/epoch_0001.safetensors ...   with sidecars, one a finished epoch
    OUT/history/state.safetensors     optimizer state after the epoch that its metadata names
    OUT/history/curves.json           loss and accuracies by epoch
    OUT/model.safetensors             the last weights; present only when training is complete
"""
import contextlib
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from jaxfix import models, train
from jaxfix.classifier import Classifier, fingerprint
from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError, require
from jaxfix.files import jsonable, read_json, replacing, write_json
from jaxfix.interchange import checkpoint
from jaxfix.problem import Subject
from jaxfix.train import Epoch


def identity(subject: Subject, seed: int) -> dict[str, Any]:
  """What decides the weights of a training run, JSON-able."""
  problem = subject.problem
  recipe = {k: getattr(problem.recipe, k) for k in problem.recipe.__dataclass_fields__}
  return {'subject': subject.name, 'seed': seed, 'recipe': recipe, 'model': models.describe(problem.classifier.module),
          'split_sha256': dict(subject.split_sha256), 'initial_weights': fingerprint(problem.classifier)}


def train_subject(subject: Subject, out: str | os.PathLike, *, seed: int,
                  on_epoch: Callable[[Epoch], None] = lambda epoch: None) -> Classifier:
  """Trains the subject's network from its initial weights, or continues, or returns the finished model of `out`.

  Args:
    subject: as loaded, with fresh weights.
    out: folder of this run.
    seed: of the order of samples and the augmentation.
    on_epoch: called after every epoch that is trained now.
  Raises:
    BadInputError: `out` holds another run.
    OutputError: `out` cannot be written.
  """
  out = pathlib.Path(out)
  what = identity(subject, seed)
  if (out / 'run.json').exists():
    require(read_json(out / 'run.json') == jsonable(what),
            f'{out} holds another training run (see run.json there); choose another output folder.')
  write_json(out / 'run.json', what)
  with contextlib.suppress(DataNotFoundError, CorruptFileError):   # not finished, or cut off while it was saved
    return checkpoint.load(out / 'model.safetensors')

  problem = subject.problem
  start, curves = _resume(out, subject)

  def keep(epoch: Epoch) -> None:
    path = epoch_path(out, epoch.number)
    checkpoint.save(path, epoch.classifier, meta={'epoch': epoch.number, 'subject': subject.name})
    curves.append({'epoch': epoch.number, 'loss': epoch.loss, 'train_accuracy': epoch.train_accuracy,
                   'valid_accuracy': epoch.valid_accuracy})
    write_json(out / 'history/curves.json', curves)
    _save_state(out, epoch)   # last: what a killed run continues from; anything newer than it is made again
    on_epoch(epoch)

  key = jax.random.fold_in(jax.random.key(seed), 1)
  trained = train.fit(problem.classifier, problem.train, problem.valid, problem.recipe, key=key, start=start,
                      on_epoch=keep)
  checkpoint.save(out / 'model.safetensors', trained, meta={'subject': subject.name, 'seed': seed})
  return trained


def epoch_path(out: str | os.PathLike, number: int) -> pathlib.Path:
  """Checkpoint of epoch `number` (from 1) of the run in `out`."""
  return pathlib.Path(out) / 'history' / f'epoch_{number:04d}.safetensors'


def load_history(out: str | os.PathLike) -> tuple[Classifier, ...]:
  """All epochs of the run in `out`, oldest first; empty where there is none."""
  return tuple(checkpoint.load(path) for path in sorted(pathlib.Path(out).glob('history/epoch_*.safetensors')))


def history_of(model: str | os.PathLike, classifier: Classifier) -> tuple[Classifier, ...] | None:
  """The epochs of the training run in whose folder the file `model` lies, if `classifier` is one of them; else None.

  Args:
    model: the file that `classifier` was read from: OUT/model.safetensors or OUT/history/epoch_0001.safetensors.
    classifier: what was read; where it is an epoch but the last, those after it are left out.
  """
  folder = pathlib.Path(model).resolve().parent
  run = folder.parent if folder.name == 'history' else folder
  wanted = fingerprint(classifier)
  epochs = load_history(run) if (run / 'run.json').exists() else ()
  numbers = [i for i, epoch in enumerate(epochs) if fingerprint(epoch) == wanted]
  return epochs[:numbers[-1] + 1] if numbers else None


def load_curves(out: str | os.PathLike) -> list[Mapping[str, float]]:
  """Loss and accuracies by epoch of the run in `out`; empty where there is none."""
  path = pathlib.Path(out) / 'history/curves.json'
  return read_json(path) if path.exists() else []


def _save_state(out: pathlib.Path, epoch: Epoch) -> None:
  leaves = {f'{i:05d}': np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(jax.device_get(epoch.opt_state)))}
  meta = {'epoch': str(epoch.number), 'classifier': fingerprint(epoch.classifier), 'loss': repr(epoch.loss)}
  with replacing(out / 'history/state.safetensors') as partial:
    safetensors.numpy.save_file(leaves, partial, metadata=meta)


def _resume(out: pathlib.Path, subject: Subject) -> tuple[Epoch | None, list[dict[str, Any]]]:
  """The last epoch whose weights and optimizer state are both whole, and the curves up to it."""
  path = out / 'history/state.safetensors'
  try:
    with safetensors.safe_open(path, 'np') as f:
      meta, leaves = f.metadata(), [f.get_tensor(name) for name in sorted(f.keys())]
    number = int(meta['epoch'])
    classifier = checkpoint.load(epoch_path(out, number))
    if fingerprint(classifier) != meta['classifier']:
      return None, []
    curves = [c for c in load_curves(out) if c['epoch'] <= number]
  except (FileNotFoundError, DataNotFoundError, CorruptFileError, BadInputError, safetensors.SafetensorError, KeyError):
    return None, []   # nothing that can be continued: begin again
  fresh = train.init_optimizer(subject.problem.classifier, subject.problem.recipe, len(subject.problem.train))
  structure = jax.tree.structure(fresh)
  if structure.num_leaves != len(leaves):
    return None, []
  return Epoch(number, classifier, jax.tree.unflatten(structure, leaves), float(meta['loss']), 0., 0.), curves
