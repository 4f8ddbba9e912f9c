"""Plain supervised training: one compiled program an epoch, for one classifier or a whole population.

Every epoch draws from `fold_in(key, epoch)`, so a run that continues from a checkpoint gives the weights of a run that
was never interrupted.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfix import devices, predict
from jaxfix.augment import augment
from jaxfix.classifier import Classifier
from jaxfix.errors import EmptySplitError, RepairFailure, require
from jaxfix.problem import Split
from jaxfix.recipe import Recipe

OptState = Any


def steps_per_epoch(n: int, batch_size: int) -> int:
  """Optimizer steps in a pass over n samples; the last batch may be partial."""
  return -(-n // batch_size)


def init_optimizer(classifier: Classifier, recipe: Recipe, num_samples: int) -> OptState:
  """Fresh optimizer state for training on `num_samples` samples an epoch."""
  return recipe.make_optimizer(steps_per_epoch(num_samples, recipe.batch_size)).init(classifier.params)


def _step(classifier: Classifier, opt_state: OptState, x: jax.Array, y: jax.Array, weight: jax.Array, recipe: Recipe,
          num_steps: int, key: jax.Array) -> tuple[Classifier, OptState, jax.Array, jax.Array]:
  """One optimizer step on a batch; `weight` `[b]` is 0 for rows that only fill the batch up."""
  k_augment, k_dropout = jax.random.split(key)
  z = classifier.normalize(augment(devices.constrain_batch(x), recipe.augment, key=k_augment))
  rest = {k: v for k, v in classifier.variables.items() if k != 'params'}

  def loss_of(params):
    logits, new = classifier.module.apply({'params': params, **rest}, z, train=True, mutable=list(rest),
                                          rngs={'dropout': k_dropout})
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)
    return (loss * weight).sum() / weight.sum(), (new, ((logits.argmax(-1) == y) * weight).sum())

  (loss, (new, num_right)), grads = jax.value_and_grad(loss_of, has_aux=True)(classifier.params)
  updates, opt_state = recipe.make_optimizer(num_steps).update(grads, opt_state, classifier.params)
  params = optax.apply_updates(classifier.params, updates)
  return classifier.with_variables({'params': params, **new}), opt_state, loss, num_right


def run_epochs(classifier: Classifier, opt_state: OptState, x: jax.Array, y: jax.Array, rows: jax.Array,
               epochs: jax.Array, key: jax.Array, recipe: Recipe) -> tuple[Classifier, OptState, jax.Array, jax.Array]:
  """Pure body of training: passes over some rows of data that lies on the device. `jit` or `vmap` it.

  Args:
    classifier, opt_state: where to start.
    x, y: all samples, `[n, ...]` raw and `[n]` int32.
    rows: `[m]` int32, which of them to train on.
    epochs: `[e]` int32 numbers of the epochs to run; epoch i uses `fold_in(key, i)`.
    key: of the whole training.
    recipe: static.
  Returns:
    classifier, opt_state, mean loss `[e]`, accuracy on the training batches `[e]`.
  """
  m, b = rows.shape[0], recipe.batch_size
  steps = steps_per_epoch(m, b)
  weight = (jnp.arange(steps * b) < m).astype(jnp.float32).reshape(steps, b)

  def epoch(carry, number):
    k_order, k_steps = jax.random.split(jax.random.fold_in(key, number))
    order = jax.random.permutation(k_order, rows)
    order = jnp.resize(order, (steps, b))  # the last batch is filled with rows of the first, at weight 0

    def step(carry, batch):
      indices, w, k = batch
      classifier, opt_state, loss, right = _step(*carry, x[indices], y[indices], w, recipe, steps, k)
      return (classifier, opt_state), (loss * w.sum(), right)

    carry, (losses, rights) = jax.lax.scan(step, carry, (order, weight, jax.random.split(k_steps, steps)))
    return carry, (losses.sum() / m, rights.sum() / m)

  (classifier, opt_state), (losses, accuracies) = jax.lax.scan(epoch, (classifier, opt_state), epochs)
  return classifier, opt_state, losses, accuracies


train_epochs = jax.jit(run_epochs, static_argnames='recipe')
"""Compiled `run_epochs`."""


@functools.partial(jax.jit, static_argnames=('recipe', 'num_steps'))
def train_chunk(classifier: Classifier, opt_state: OptState, x: jax.Array, y: jax.Array, weight: jax.Array,
                key: jax.Array, recipe: Recipe, num_steps: int):
  """Steps over batches that are already in order, for data too large for the device.

  Args:
    classifier, opt_state: where to start.
    x, y, weight: `[s, b, ...]` raw, `[s, b]` int32, `[s, b]` 0 or 1.
    key: consumed.
    recipe: static.
    num_steps: steps of a whole epoch, for the schedule.
  Returns:
    classifier, opt_state, sum of losses, number right.
  """
  def step(carry, batch):
    xb, yb, w, k = batch
    classifier, opt_state, loss, right = _step(*carry, xb, yb, w, recipe, num_steps, k)
    return (classifier, opt_state), (loss * w.sum(), right)

  keys = jax.random.split(key, x.shape[0])
  (classifier, opt_state), (losses, rights) = jax.lax.scan(step, (classifier, opt_state), (x, y, weight, keys))
  return classifier, opt_state, losses.sum(), rights.sum()


@dataclasses.dataclass(frozen=True)
class Epoch:
  """State and figures after an epoch; `number` counts from 1."""
  number: int
  classifier: Classifier
  opt_state: OptState
  loss: float
  train_accuracy: float
  valid_accuracy: float


_CHUNK_STEPS = 32


def _streamed_epoch(classifier: Classifier, opt_state: OptState, train: Any, recipe: Recipe, number: int,
                    key: jax.Array):
  """As one epoch of `run_epochs`, decoding `_CHUNK_STEPS` batches at a time."""
  m, b = len(train), recipe.batch_size
  steps = steps_per_epoch(m, b)
  k_order, k_steps = jax.random.split(jax.random.fold_in(key, number))
  order = np.resize(np.asarray(jax.random.permutation(k_order, m)), steps * b).reshape(steps, b)
  weight = (np.arange(steps * b) < m).astype(np.float32).reshape(steps, b)
  loss = right = 0.
  for start in range(0, steps, _CHUNK_STEPS):
    rows = order[start:start + _CHUNK_STEPS]
    part = train.take(rows.ravel())
    x = np.asarray(part.x)
    classifier, opt_state, l, r = train_chunk(
      classifier, opt_state, x.reshape(*rows.shape, *x.shape[1:]), np.asarray(part.y, np.int32).reshape(rows.shape),
      weight[start:start + _CHUNK_STEPS], jax.random.fold_in(k_steps, start), recipe, steps)
    loss, right = loss + float(l), right + float(r)
  return classifier, opt_state, loss / m, right / m


def fit(classifier: Classifier, train: Split, valid: Split, recipe: Recipe, *, key: jax.Array,
        start: Epoch | None = None, on_epoch: Callable[[Epoch], None] = lambda epoch: None) -> Classifier:
  """Trains for `recipe.epochs` epochs; the last weights are returned.

  Args:
    classifier: where to start (ignored when `start` is given).
    train: data in memory, or streamed (an object with `take` whose `x` has `batches`).
    valid: measured after every epoch; may be empty.
    recipe: optimizer, schedule, batch size, number of epochs.
    key: consumed.
    start: an earlier epoch of the same training to continue from.
    on_epoch: called after every epoch, to report and to keep a history.
  Raises:
    EmptySplitError: no training samples.
    RepairFailure: the loss became NaN or infinite.
  """
  require(len(train) > 0, 'The train split is empty; give it samples.', EmptySplitError)
  opt_state = init_optimizer(classifier, recipe, len(train))
  number = 0
  if start is not None:
    classifier, opt_state, number = start.classifier, start.opt_state, start.number
  streamed = not isinstance(train.x, (np.ndarray, jax.Array))
  classifier, opt_state = devices.replicate((classifier, opt_state))
  if not streamed:
    x, y = devices.replicate((train.x, np.asarray(train.y, np.int32)))
    rows = jnp.arange(len(train), dtype=jnp.int32)
  for i in range(number, recipe.epochs):
    if streamed:
      classifier, opt_state, loss, accuracy = _streamed_epoch(classifier, opt_state, train, recipe, i, key)
    else:
      classifier, opt_state, losses, accuracies = train_epochs(
        classifier, opt_state, x, y, rows, jnp.array([i], jnp.int32), key, recipe)
      loss, accuracy = float(losses[0]), float(accuracies[0])
    require(np.isfinite(loss), f'Training diverged in epoch {i + 1}: the loss is {loss}. Lower the learning rate.',
            RepairFailure)
    valid_accuracy = float((predict.labels(classifier, valid.x) == valid.y).mean()) if len(valid) else float('nan')
    on_epoch(Epoch(i + 1, classifier, opt_state, loss, accuracy, valid_accuracy))
  return classifier
