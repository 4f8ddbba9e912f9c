"""Apricot: weight adaptation guided by sub-models trained on subsets of the training data.

Zhang and Chan, ASE 2019. The same architecture is trained on many subsets. For an input that the model gets wrong, the
sub-models that get it right say where every weight should move, and those that also get it wrong say where not. Batches
of such moves alternate with a few epochs of ordinary training, and the validation split keeps or reverts.
Guarantee: none beyond validation accuracy, which never falls below the original's.

Decided here, where the specification leaves room: the failing inputs come from the problem's failure split (the study
takes the training split); one pass over it at most. That nothing fails is an error of the problem
(`NoFailingSamplesError`), raised before this is called; only where none is of the chosen kind is the model returned as
it is. A budget of retraining epochs ends the loop before the round that would exceed it. Sub-models in evaluation mode
use the batch statistics of their own training; one that diverged is a failure, since its weights would spoil every
move. Where the original was trained on a cosine schedule, which has ended, retraining goes on at a tenth of its peak.
"""
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxfix import classifier as classifiers
from jaxfix import predict, train
from jaxfix.classifier import Classifier
from jaxfix.clock import Clock
from jaxfix.errors import RepairFailure, Unadaptable, require
from jaxfix.methods.method import Method
from jaxfix.problem import Problem, Repair, Trace
from jaxfix.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Config:
  """Defaults are the public script's and, for the two budgets, those that the study's released files imply."""
  n_submodels: int = 20
  subset_fraction: float = 0.2               # of every class, in (0, 1]
  submodel_epochs: int | None = None         # None: as many as the model's own recipe
  submodel_init: Literal['fresh', 'warm'] = 'fresh'
  submodel_exec: Literal['auto', 'vmap', 'map'] = 'auto'   # one program, or one after another (wide networks)
  strategy: Literal['both', 'corr', 'incorr'] = 'both'
  direction: Literal['toward_correct', 'script'] = 'toward_correct'   # 'script': the public script's sign
  adj_lr: float = 1e-3                       # >= 0
  one_sided: Literal['skip', 'use'] = 'skip'   # inputs that all sub-models, or none, get right
  adjust_batch: int = 50                     # samples of the failure split a round
  retrain_epochs: int = 5                    # after each round; 0 for none
  max_retrain_epochs: int = 5400             # over all rounds
  patience: int = 100                        # rounds without improvement
  select_after_retrain: bool = True          # retrained weights may be returned, not only adjusted ones
  true_label: int | None = None              # both given: only failures of this kind guide the moves
  predicted_label: int | None = None

  def __post_init__(self):
    require(self.n_submodels >= 1, f'n_submodels must be at least 1, got {self.n_submodels}')
    require(0 < self.subset_fraction <= 1, f'subset_fraction must be in (0, 1], got {self.subset_fraction}')
    require(self.adj_lr >= 0, f'adj_lr must not be negative, got {self.adj_lr}')
    require(self.adjust_batch >= 1, f'adjust_batch must be at least 1, got {self.adjust_batch}')
    require(min(self.retrain_epochs, self.max_retrain_epochs) >= 0, 'numbers of epochs must not be negative')
    require(self.submodel_epochs is None or self.submodel_epochs >= 0, 'submodel_epochs must not be negative')
    require((self.true_label is None) == (self.predicted_label is None),
            'true_label and predicted_label go together: give both or neither')


def repair(problem: Problem, config: Config, key: jax.Array) -> Repair:
  """Apricot, section 3.5 of its specification. `key` is consumed."""
  clock = Clock()
  k_submodels, k_order, k_retrain = jax.random.split(key, 3)
  failures = problem.failure_split
  start_labels = predict.labels(problem.classifier, failures.x)
  if not _kind(config, failures.y, start_labels).any():
    return Repair(problem.classifier, Trace(notes=('no_failing_input',)))

  with clock.phase('train_submodels'):
    submodels = train_submodels(problem, config, key=k_submodels)
    diverged = _diverged(submodels)
    require(not diverged.any(), f'{int(diverged.sum())} of the {config.n_submodels} sub-models have weights that are '
            'not finite after training; lower the learning rate of the recipe.', RepairFailure)
  with clock.phase('judge_submodels'):
    correct = predict.population_labels(submodels, failures.x) == failures.y[None]   # C of section 3.1, [n, N]

  model = best = problem.classifier
  best_accuracy = _accuracy(model, problem.valid)
  recipe = retraining_recipe(problem.recipe)
  opt_state = train.init_optimizer(model, recipe, len(problem.train))
  x, y = jax.device_put((problem.train.x, np.asarray(problem.train.y, np.int32)))
  rows = jnp.arange(len(y), dtype=jnp.int32)
  adjusted, retrained, losses = [], [], []
  last, selected, epochs_done, moves = 0, {}, 0, 0

  for t, batch in enumerate(_batches(len(failures), config.adjust_batch, key=k_order)):
    if epochs_done + config.retrain_epochs > config.max_retrain_epochs:
      break
    with clock.phase('adjust'):
      at_start = predict.labels(model, failures.x[batch], batch_size=config.adjust_batch)
      failing = _kind(config, failures.y[batch], at_start)
      moves += int(failing.sum())
      pad = config.adjust_batch - len(batch)
      model = model.with_params(adjust(model.params, submodels.params, np.pad(correct[:, batch], ((0, 0), (0, pad))),
                                       np.pad(failing, (0, pad)), *_signs(config)))
    with clock.phase('validate'):
      accuracy = _accuracy(model, problem.valid)
    adjusted.append(accuracy)
    if accuracy > best_accuracy:
      best, best_accuracy, last, selected = model, accuracy, t, {'valid_accuracy_adjusted': t}
    else:
      if accuracy != best_accuracy:
        model = best   # weights and batch statistics
      if t > last + config.patience:
        break
    if config.retrain_epochs:
      with clock.phase('retrain'):
        numbers = jnp.arange(epochs_done, epochs_done + config.retrain_epochs, dtype=jnp.int32)
        model, opt_state, loss, _ = train.train_epochs(model, opt_state, x, y, rows, numbers, k_retrain, recipe)
        losses.extend(np.asarray(loss).tolist())
        epochs_done += config.retrain_epochs
      require(bool(np.isfinite(losses[-1])), f'Retraining diverged in round {t}: the loss is {losses[-1]}.',
              RepairFailure)
      with clock.phase('validate'):
        accuracy = _accuracy(model, problem.valid)
      retrained.append(accuracy)
      if config.select_after_retrain and accuracy > best_accuracy:
        best, best_accuracy, last, selected = model, accuracy, t, {'valid_accuracy_retrained': t}

  curves = {'valid_accuracy_adjusted': adjusted, 'valid_accuracy_retrained': retrained, 'retrain_loss': losses}
  notes = (f'{moves} failing inputs guided moves; {epochs_done} retraining epochs',)
  if not selected:
    notes += ('no visited weights beat the original on the validation split: the original is returned',)
  trace = Trace({k: np.asarray(v, np.float64) for k, v in curves.items() if v}, selected=selected, notes=notes)
  return Repair(best, trace, clock.seconds)


def retraining_recipe(recipe: Recipe) -> Recipe:
  """The recipe for retraining a trained model: the original's, at a constant rate."""
  if recipe.schedule == 'constant':
    return recipe
  return dataclasses.replace(recipe, schedule='constant', learning_rate=0.1 * recipe.learning_rate)


@jax.jit
def _diverged(population: Classifier) -> jax.Array:
  """`[n]` bool: some weight of the member is NaN or infinite."""
  leaves = jax.tree.leaves(population.variables)
  return ~jnp.stack([jnp.isfinite(leaf).reshape(len(leaf), -1).all(axis=1) for leaf in leaves]).all(axis=0)


def train_submodels(problem: Problem, config: Config, *, key: jax.Array) -> Classifier:
  """Section 3.1: a population of `n_submodels` classifiers, each trained on its own class-balanced subset."""
  k_subsets, k_init, k_train = jax.random.split(key, 3)
  rows = subsets(problem.train.y, config.n_submodels, config.subset_fraction, key=k_subsets)
  require(rows.shape[1] > 0, f'subset_fraction={config.subset_fraction:g} leaves no sample of any class; raise it.')
  epochs = problem.recipe.epochs if config.submodel_epochs is None else config.submodel_epochs
  recipe = dataclasses.replace(problem.recipe, epochs=epochs)
  if config.submodel_init == 'warm':
    population = classifiers.stack([problem.classifier] * config.n_submodels)
  else:
    keys = jax.random.split(k_init, config.n_submodels)
    population = problem.classifier.with_variables(
      _init_population(problem.classifier.module, problem.classifier.input_shape, keys))
  x, y = jax.device_put((problem.train.x, np.asarray(problem.train.y, np.int32)))
  keys = jax.random.split(k_train, config.n_submodels)
  numbers = jnp.arange(epochs, dtype=jnp.int32)
  if _as_one_program(problem.classifier, config):
    return _train_population(population, x, y, jnp.asarray(rows), numbers, keys, recipe)
  trained = []
  for j in range(config.n_submodels):
    one = classifiers.member(population, j)
    state = train.init_optimizer(one, recipe, rows.shape[1])
    trained.append(train.train_epochs(one, state, x, y, jnp.asarray(rows[j]), numbers, keys[j], recipe)[0])
  return classifiers.stack(trained)


_VMAP_LIMIT = 2_000_000  # parameters of one sub-model; a bound on memory, not measured


def _as_one_program(classifier: Classifier, config: Config) -> bool:
  if config.submodel_exec == 'auto':
    return classifiers.num_params(classifier) <= _VMAP_LIMIT
  return config.submodel_exec == 'vmap'


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init_population(module: nn.Module, input_shape: tuple[int, ...], keys: jax.Array) -> Mapping[str, Any]:
  return jax.vmap(lambda k: module.init(k, jnp.zeros((1, *input_shape), jnp.float32), train=False))(keys)


@functools.partial(jax.jit, static_argnames='recipe')
def _train_population(population: Classifier, x, y, rows, numbers, keys, recipe: Recipe) -> Classifier:
  def one(classifier, rows, key):
    state = train.init_optimizer(classifier, recipe, rows.shape[0])
    return train.run_epochs(classifier, state, x, y, rows, numbers, key, recipe)[0]
  return jax.vmap(one)(population, rows, keys)


def subsets(y: np.ndarray, n: int, fraction: float, *, key: jax.Array) -> np.ndarray:
  """`[n, m]` int32 rows: of each class `round(fraction * N_c)`, without replacement in a subset. `key` is consumed."""
  order = np.asarray(jax.random.uniform(key, (n, len(y))))
  chosen = []
  for c in np.unique(y):
    members = np.flatnonzero(y == c)
    take = int(np.floor(fraction * len(members) + 0.5))
    chosen.append(members[np.argsort(order[:, members], axis=1, kind='stable')[:, :take]])
  return np.concatenate(chosen, axis=1).astype(np.int32)


@functools.partial(jax.jit, static_argnames=('strategy', 'one_sided'))
def adjust(params, submodels, correct: jax.Array, failing: jax.Array, step: float, strategy: str, one_sided: str):
  """Sections 3.2 to 3.4: the moves of a whole batch at once, exactly those of its failing inputs one by one.

  Each move is affine in the weights, so a batch composes to `A w + sum_j c_j W_j`; only n + 1 scalars are scanned.

  Args:
    params: w, a pytree.
    submodels: W, the same pytree with a leading axis n.
    correct: `[n, b]` bool, C: sub-model j is right on sample i.
    failing: `[b]` bool; other samples move nothing.
    step: s * adj_lr, negative for the script's direction.
    strategy, one_sided: as in `Config`.
  """
  n = correct.shape[0]
  right = correct.astype(jnp.float32)
  sigma, share = {
    'both': (2 * right - 1, (2 * right - 1).sum(0) / n),   # (a_i - b_i) / n
    'corr': (right, right.sum(0) / n),                      # a_i / n
    'incorr': (right - 1, (right - 1).sum(0) / n),          # -b_i / n
  }[strategy]
  two_sided = correct.any(0) & ~correct.all(0)
  moves = failing & two_sided if one_sided == 'skip' else failing

  def move(carry, sample):
    a, c = carry
    sigma_i, share_i, on = sample
    r = jnp.where(on, 1 - step * share_i, 1.)
    return (r * a, r * c + jnp.where(on, step / n, 0.) * sigma_i), None

  (a, c), _ = jax.lax.scan(move, (jnp.float32(1), jnp.zeros(n, jnp.float32)), (sigma.T, share, moves))
  moved = jax.tree.map(lambda w, ws: a * w + jnp.tensordot(c, ws, 1), params, submodels)
  return jax.tree.map(lambda w, m: jnp.where(moves.any(), m, w), params, moved)


def _check(problem: Problem, config: Config) -> None:
  if not isinstance(problem.train.x, (np.ndarray, jax.Array)):
    raise Unadaptable('Apricot retrains on the whole training split, which must be in memory; this one is streamed.')
  for label in (config.true_label, config.predicted_label):
    require(label is None or 0 <= label < problem.classifier.num_classes,
            f'apricot: label {label} is not a class of the model (0 to {problem.classifier.num_classes - 1}).')


def _signs(config: Config) -> tuple[float, str, str]:
  step = config.adj_lr if config.direction == 'toward_correct' else -config.adj_lr
  return step, config.strategy, config.one_sided


def _kind(config: Config, y: np.ndarray, predicted: np.ndarray) -> np.ndarray:
  """Mask of the failing samples that may guide moves."""
  if config.true_label is None:
    return predicted != y
  return (y == config.true_label) & (predicted == config.predicted_label) & (predicted != y)


def _batches(n: int, size: int, *, key: jax.Array) -> list[np.ndarray]:
  order = np.asarray(jax.random.permutation(key, n))
  return [order[i:i + size] for i in range(0, n, size)]


def _accuracy(classifier: Classifier, split) -> float:
  return float((predict.labels(classifier, split.x) == split.y).mean())


METHOD = Method(
  name='apricot', title='Apricot', code='AP', level='model', config=Config(), repair=repair,
  changes='all trainable weights',
  may_change=lambda problem, config: lambda name: True, check=_check,
  guarantee='none; validation accuracy never falls',
  requires='failing samples, training data in memory',
  source='Zhang and Chan, ASE 2019',
  summary='moves all weights toward sub-models that are right where the model fails, between epochs of retraining')
