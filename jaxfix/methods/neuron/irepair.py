"""I-REPAIR: fine-tuning of those parameters alone that matter more to the failing samples than to the passing ones.

P. Henriksen, F. Leofante, A. Lomuscio, "Repairing Misclassifications in Neural Networks Using Limited Data", ACM SAC
2022, and its public code. At every step two gradients say how much each parameter influences the failing samples that
are left, and a set of passing ones; where the ratio of the two reaches 1 a parameter is open, elsewhere closed. One
RMSprop step on both sets moves the open ones, until all failing samples are right or the budget is used up. Needs no
training data. Guarantee: none; batch statistics, and parameters that were never open, keep their bits.

Decided here: failing samples S and passing samples G both come from the problem's failure split, G with equally many
samples of each class as far as there are. What is returned is the weights with the best validation accuracy, at every
`eval_every`-th step and at the stop (`design/decisions.md`, 2); the original is not among them unless
`include_original` says so: it repairs nothing, the paper never returns it, and since most repairs cost some accuracy it
would win most of the time, which the study's figures rule out. Ties between classes count as right, as in the public
code, so a failing sample whose wrong label came from a tie is no work. The control with random masks opens, in every
array, the share of entries that the ratio would have opened. In the node variant everything but Dense kernels is
closed.
"""
import dataclasses
import functools
import time
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxfix import predict
from jaxfix.classifier import Classifier, Params
from jaxfix.clock import Clock
from jaxfix.errors import RepairFailure, Unadaptable, require
from jaxfix.localize import sampling
from jaxfix.localize.batches import Batches, make_batches
from jaxfix.localize.influence import (
  GeneralInfluence,
  Influences,
  TrainOn,
  edge_mask,
  influences,
  node_mask,
  rows_per_batch,
)
from jaxfix.methods.method import Method
from jaxfix.models.structure import layer_list
from jaxfix.problem import Problem, Repair, Trace

Mask = Literal['edges', 'nodes', 'random', 'none']

_MANY = 1000          # failing samples, beyond which the budget of steps is the small one
_STREAMED = 1024      # samples of each set, at most, from data that does not lie in memory
_FEWEST_GENERAL = 40
_DECAY, _EPSILON = 0.99, 1e-8


@dataclasses.dataclass(frozen=True)
class Config:
  """Defaults are the public scripts' where nothing else is said.

  Attributes:
    lr: of RMSprop, > 0; 1e-4 (fully connected networks on MNIST; the scripts take 1e-5 for ResNets).
    max_iters: steps at most; None (ours) for 5000, or 500 with more than 1000 failing samples.
    gamma: weight of the general influence, >= 0: larger opens fewer parameters. None for 0.5 (ours; the scripts sweep
      0.001 to 5), or 200 for nodes (default of the public function).
    gamma_grid: values to try one after the other, each a whole repair; validation picks. Empty: only `gamma`.
    mask: 'edges' judges each parameter; 'nodes' the inputs of Dense layers; controls: 'random', and 'none', which is
      plain fine-tuning.
    general_influence: gradient of the mean L1 norm of the logits, or of the cross-entropy.
    train_on: samples of the loss: both sets, or only the failing ones (a control).
    tau: a failing sample is fixed when its softmax output leads by so much, in [0, 1); 0 for a right label.
    max_specific: failing samples: a number (drawn evenly), None for all, or 'auto' (ours): all, but 1024 of data
      that is streamed.
    num_general: passing samples; None (ours) for as many as failing ones, at least 40 and one a class.
    l1: weight of the L1 norm of the parameters in the loss, >= 0; 0.
    dropout: the loss drops units where the network does in training, as the public code; influences never do.
    eval_every: steps between two validations; 10 (ours).
    select: 'validation' returns the best weights on the validation split (study), 'last' those at the stop (paper).
    include_original: the original weights take part in that selection.
    time_limit_s: seconds after which no further `eval_every` steps begin; None for no limit. What such a repair gives
      depends on the machine.
  """
  lr: float = 1e-4
  max_iters: int | None = None
  gamma: float | None = None
  gamma_grid: tuple[float, ...] = ()
  mask: Mask = 'edges'
  general_influence: GeneralInfluence = 'abs_logits'
  train_on: TrainOn = 'both'
  tau: float = 0.
  max_specific: Literal['auto'] | int | None = 'auto'
  num_general: int | None = None
  l1: float = 0.
  dropout: bool = True
  eval_every: int = 10
  select: Literal['validation', 'last'] = 'validation'
  include_original: bool = False
  time_limit_s: float | None = None

  def __post_init__(self):
    require(self.lr > 0, f'lr must be positive, got {self.lr}.')
    require(self.max_iters is None or self.max_iters >= 1, f'max_iters must be at least 1, got {self.max_iters}.')
    require(all(gamma >= 0 for gamma in self.gammas), f'gamma must not be negative, got {self.gammas}.')
    require(0 <= self.tau < 1, f'tau must lie in [0, 1), got {self.tau}.')
    require(self.max_specific in ('auto', None) or self.max_specific >= 1,
            f'max_specific must be at least 1, got {self.max_specific}.')
    require(self.num_general is None or self.num_general >= 1, f'num_general must be at least 1: {self.num_general}.')
    require(self.l1 >= 0, f'l1 must not be negative, got {self.l1}.')
    require(self.eval_every >= 1, f'eval_every must be at least 1, got {self.eval_every}.')
    require(self.time_limit_s is None or self.time_limit_s > 0, f'time_limit_s must be positive: {self.time_limit_s}.')
    for name, allowed in (('mask', ('edges', 'nodes', 'random', 'none')), ('train_on', ('both', 'specific')),
                          ('general_influence', ('abs_logits', 'ce')), ('select', ('validation', 'last'))):
      require(getattr(self, name) in allowed, f'{name} must be one of {allowed}, got {getattr(self, name)!r}.')

  @property
  def gammas(self) -> tuple[float, ...]:
    """The values to try."""
    if self.gamma_grid:
      return self.gamma_grid
    return ((200. if self.mask == 'nodes' else 0.5) if self.gamma is None else self.gamma,)


class Snapshot(NamedTuple):
  """Weights at a validation; `step` counts the steps taken, `accuracy` is on the validation split."""
  classifier: Classifier
  step: int
  accuracy: float


class Run(NamedTuple):
  """One repair at one gamma: its best and last weights, curves, mean open share of each array, why it stopped."""
  gamma: float
  best: Snapshot
  curves: dict[str, np.ndarray]
  open_share: dict[str, float]
  stop: str


def repair(problem: Problem, config: Config, key: jax.Array) -> Repair:
  """The algorithm; see `Config`. `key` is consumed.

  Raises:
    RepairFailure: there are no failing or no passing samples, or the loss is not finite.
  """
  key_specific, key_general, key_steps = jax.random.split(key, 3)
  clock, split = Clock(), problem.failure_split
  with clock.phase('select'):
    failing, passing = problem.failing_and_passing()
    require(len(failing) > 0, 'I-REPAIR has no failing samples to repair.', RepairFailure)
    require(len(passing) > 0, 'I-REPAIR weighs failing samples against passing ones, and there is none that the model '
            'gets right.', RepairFailure)
    specific = split.take(_choose_specific(problem, failing, config, key_specific))
    wanted = config.num_general or max(len(specific), _FEWEST_GENERAL, problem.classifier.num_classes)
    general = split.take(class_balanced(passing, split.y[passing], wanted, key=key_general))
    rows = min(rows_per_batch(problem.classifier), max(len(specific), len(general)))
    sets = [make_batches(part.x, part.y, batch_size=rows) for part in (specific, general)]
  runs = [_run(problem, *sets, gamma, config, key_steps, clock) for gamma in config.gammas]
  chosen = runs[int(np.argmax([run.best.accuracy for run in runs]))]

  repaired = chosen.best.classifier
  with clock.phase('validate'):
    fixed = int((predict.labels(repaired, specific.x) == specific.y).sum())
  notes = (f'Fixed {fixed} of the {len(specific)} failing samples, with {len(general)} passing ones as counterweight.',
           f'{chosen.stop}; the weights after step {chosen.best.step} are returned, with validation accuracy '
           f'{chosen.best.accuracy:.4f}.')
  if len(runs) > 1:
    notes += ('Best validation accuracy by gamma: '
              + ', '.join(f'{run.gamma:g}: {run.best.accuracy:.4f}' for run in runs) + '.',)
  solver = {'gamma': chosen.gamma, 'open_share': chosen.open_share}
  selected = {'valid_accuracy': -(-chosen.best.step // config.eval_every)}
  if chosen.best.step < len(chosen.curves['loss']):   # entries of before each step; the last weights have none
    selected |= dict.fromkeys(('loss', 'remaining'), chosen.best.step)
  return Repair(repaired, Trace(chosen.curves, selected, solver=solver, notes=notes), clock.seconds)


def class_balanced(indices: np.ndarray, y: np.ndarray, wanted: int, *, key: jax.Array) -> np.ndarray:
  """`wanted` of the indices, equally many of each class as far as there are, or all if there are no more; ascending.

  Args:
    indices: `[n]` integers.
    y: `[n]` their labels.
    wanted: number of samples.
    key: consumed.
  """
  if len(indices) <= wanted:
    return indices
  draws = np.asarray(jax.random.uniform(key, (len(indices),)))
  order = np.lexsort((draws, y))
  starts = np.searchsorted(y[order], y[order])
  turn = np.empty(len(indices), int)
  turn[order] = np.arange(len(indices)) - starts    # the first of each class, then the second of each, ...
  return np.sort(indices[np.lexsort((draws, turn))[:wanted]])


def rmsprop(params: Params, v: Params, gradient: Params, lr: jax.Array | float) -> tuple[Params, Params]:
  """v <- 0.99 v + 0.01 g^2; theta <- theta - lr g / (sqrt(v) + 1e-8). Where g is 0, theta keeps its bits."""
  v = jax.tree.map(lambda v, g: _DECAY * v + (1 - _DECAY) * g * g, v, gradient)
  params = jax.tree.map(lambda p, v, g: p - lr * g / (jnp.sqrt(v) + _EPSILON), params, v, gradient)
  return params, v


def _choose_specific(problem: Problem, failing: np.ndarray, config: Config, key: jax.Array) -> np.ndarray:
  most = config.max_specific
  if most == 'auto':
    most = None if isinstance(problem.failure_split.x, (np.ndarray, jax.Array)) else _STREAMED
  return failing if most is None else sampling.plain_sample(failing, most, key=key)


def _run(problem: Problem, specific: Batches, general: Batches, gamma: float, config: Config, key: jax.Array,
         clock: Clock) -> Run:
  """Steps of section 4 in compiled stretches of `eval_every`, with a validation after each."""
  classifier, valid = problem.classifier, problem.valid
  rule = _rule(classifier, config)
  budget = config.max_iters or (500 if int(specific.count) > _MANY else 5000)
  best = Snapshot(classifier, 0, _accuracy(classifier, valid))
  accuracies, losses, remaining = [best.accuracy], [], []
  if not config.include_original and config.select == 'validation':
    best = best._replace(accuracy=-1.)
  v = jax.tree.map(np.zeros_like, jax.device_get(dict(classifier.params)))
  shares, steps, stop, start = None, 0, 'The budget of steps is used up', time.monotonic()
  while steps < budget:
    if config.time_limit_s is not None and time.monotonic() - start > config.time_limit_s:
      stop = f'The time limit of {config.time_limit_s:g} s was reached after {steps} steps'
      break
    with clock.phase('steps'):
      classifier, v, curves, share, taken, done = jax.block_until_ready(_advance(
        classifier, v, specific, general, np.float32(gamma), np.float32(config.lr), np.float32(config.l1),
        np.int32(steps), np.int32(min(config.eval_every, budget - steps)), key, rule=rule, length=config.eval_every))
    taken = int(taken)
    steps += taken
    losses.extend(np.asarray(curves[0])[:taken].tolist())
    remaining.extend(np.asarray(curves[1])[:taken].tolist())
    require(bool(np.isfinite(losses).all()), f'The loss of I-REPAIR is not finite after {steps} steps; lower lr.',
            RepairFailure)
    shares = share if shares is None else jax.tree.map(np.add, shares, jax.device_get(share))
    if taken:
      with clock.phase('validate'):
        accuracies.append(_accuracy(classifier, valid))
      if config.select == 'last' or accuracies[-1] > best.accuracy:
        best = Snapshot(classifier, steps, accuracies[-1])
    if done:
      stop = f'All failing samples were right after {steps} steps'
      break
  if best.accuracy < 0:    # nothing was to be done
    best = best._replace(accuracy=accuracies[0])
  curves = {'loss': np.asarray(losses), 'remaining': np.asarray(remaining), 'valid_accuracy': np.asarray(accuracies)}
  shares = {name: float(total) / max(1, steps) for name, total in (jax.device_get(shares) or {}).items()}
  return Run(gamma, best, curves, shares, stop)


@dataclasses.dataclass(frozen=True)
class _Rule:
  """What is compiled into a step; the fields of `Config` of the same names, and what they mean for this network.

  Attributes:
    masked: names of the parameters that the ratio decides about ('conv1/kernel').
    free: names of those that always move.
  """
  mask: Mask
  tau: float
  general_influence: GeneralInfluence
  train_on: TrainOn
  dropout: bool
  masked: tuple[str, ...]
  free: tuple[str, ...]


def _rule(classifier: Classifier, config: Config) -> _Rule:
  found = layer_list(classifier)
  kinds = {layer.path: layer.kind for layer in found}
  masked, free = [], []
  for name in _flat(classifier.params):
    path, leaf = name.rsplit('/', 1)
    if config.mask == 'nodes':
      if kinds.get(path) == 'dense' and leaf == 'kernel':
        masked.append(name)
    else:   # a parameter outside Dense, Conv and BatchNorm has no mask
      (masked if config.mask != 'none' and kinds.get(path) in ('dense', 'conv', 'bn') else free).append(name)
  drops = config.dropout and any(layer.kind == 'dropout' for layer in found)
  return _Rule(config.mask, config.tau, config.general_influence, config.train_on, drops, tuple(masked), tuple(free))


@functools.partial(jax.jit, static_argnames=('rule', 'length'))
def _advance(classifier: Classifier, v: Params, specific: Batches, general: Batches, gamma: jax.Array, lr: jax.Array,
             l1: jax.Array, first: jax.Array, steps: jax.Array, key: jax.Array, *, rule: _Rule, length: int):
  """Up to `steps` (<= `length`) masked RMSprop steps; none once all specific samples are right.

  Returns:
    classifier, v, curves `[2, length]` (loss on the samples trained on and number of specific samples still wrong, both
    before the step), name -> sum over steps of the open share, steps taken, whether all specific samples are right.
  """
  def step(carry):
    classifier, v, curves, shares, i, _ = carry
    key_drop, key_mask = jax.random.split(jax.random.fold_in(key, first + i))
    found = influences(classifier, specific, general, tau=rule.tau, general_influence=rule.general_influence,
                       train_on=rule.train_on, dropout=rule.dropout, key=key_drop)
    masks = masks_of(found, gamma, rule, key=key_mask)
    gradient = jax.tree.map(lambda g, p: g + l1 * jnp.sign(p), found.gradient, dict(classifier.params))
    gradient = _nested({name: jnp.where(masks[name], g, 0) for name, g in _flat(gradient).items()})
    params, new_v = rmsprop(classifier.params, v, gradient, lr)
    done = found.num_remaining == 0
    moved = (classifier.with_params(params), new_v, curves.at[:, i].set(jnp.stack([found.loss, found.num_remaining])),
             {name: shares[name] + masks[name].mean(dtype=jnp.float32) for name in shares}, i + 1)
    still = (classifier, v, curves, shares, i)
    return *jax.tree.map(lambda a, b: jnp.where(done, a, b), still, moved), done

  start = (classifier.with_params(dict(classifier.params)), dict(v), jnp.zeros((2, length)),
           {name: jnp.float32(0) for name in _flat(classifier.params)}, jnp.int32(0), jnp.bool_(False))
  return jax.lax.while_loop(lambda carry: (carry[-2] < steps) & ~carry[-1], step, start)


def masks_of(found: Influences, gamma: jax.Array, rule: _Rule, *, key: jax.Array) -> dict[str, jax.Array]:
  """Parameter name -> mask of its shape, for one step; `key` is consumed by random masks."""
  specific, general = _flat(found.specific), _flat(found.general)
  masks = {}
  for i, name in enumerate(specific):
    s, g = specific[name], general[name]
    if name not in rule.masked:
      masks[name] = jnp.full(s.shape, name in rule.free)
    elif rule.mask == 'nodes':
      masks[name] = node_mask(s, g, gamma)
    else:
      masks[name] = edge_mask(s, g, gamma)
      if rule.mask == 'random':
        masks[name] = jax.random.uniform(jax.random.fold_in(key, i), s.shape) < masks[name].mean(dtype=jnp.float32)
  return masks


def _flat(params: Params) -> dict[str, Any]:
  return traverse_util.flatten_dict(dict(params), sep='/')


def _nested(flat: dict[str, Any]) -> Params:
  return traverse_util.unflatten_dict(flat, sep='/')


def _accuracy(classifier: Classifier, split) -> float:
  return float((predict.labels(classifier, split.x) == split.y).mean())


def _check(problem: Problem, config: Config) -> None:
  if config.mask == 'nodes' and not any(layer.kind == 'dense' for layer in layer_list(problem.classifier)):
    raise Unadaptable('I-REPAIR with nodes opens rows of Dense kernels; this network has none.')


def _may_change(problem: Problem, config: Config):
  rule = _rule(problem.classifier, config)
  names = {f'params/{name}' for name in (*rule.masked, *rule.free)}
  return lambda name: name in names


METHOD = Method(
  name='irepair', title='I-REPAIR', code='IR', level='neuron', config=Config(), repair=repair,
  changes='kernels, biases and BatchNorm scales and shifts, wherever the influence ratio opens them',
  guarantee='none', requires='failing and passing samples; no training data',
  source='Henriksen, Leofante, Lomuscio. Repairing Misclassifications in Neural Networks Using Limited Data. ACM SAC '
         '2022',
  summary='fine-tunes the parameters that influence failing samples more than passing ones',
  may_change=_may_change, check=_check)
