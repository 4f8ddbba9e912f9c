"""Attack success rate (ASR) under projected gradient descent, in the model's normalized input space.

The defaults are the Fixing Study's attack, Foolbox 3.3 `LinfPGD` with its own defaults: 40 steps of epsilon / 30 along
the sign of the gradient, from a random start, projected onto the ball and the bounds, no early stop. It is not a
converged attack: 40 steps travel at most 4/3 epsilon, so that a third of the coordinates cannot reach the far face of
the ball from where they start. `strong` is the preset that can.

An attack is one compiled `scan`, with the gradient with respect to inputs only. Batches and starting points are made
once for all models of a comparison, and nothing returns to the host before all of them have been attacked. Sample i
starts from a key folded with its index in the split, so that neither batching nor order changes anything, and models
attacked under one key differ for no other reason than their weights.
"""
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import devices, predict
from jaxfix.classifier import Classifier, check_inputs
from jaxfix.errors import BadInputError, require
from jaxfix.problem import Split

ATTACK_SIZE = 500
"""Inputs that the study attacks."""
CPU_BATCH = 125
"""Inputs attacked at once on CPU, where several batches run side by side. Elsewhere `ATTACK_SIZE`."""
MIN_CANDIDATES = 50
"""With fewer inputs than this that every model gets right, the rate is not reported."""

# Named streams of the key of an evaluation.
_SELECT, _START = 0, 1
# Inputs may leave given bounds by this much through float32 rounding; they are clipped.
_BOUND_SLACK = 1e-5


@dataclasses.dataclass(frozen=True)
class PGD:
  """Settings of projected gradient descent. Defaults: Foolbox 3.3 `LinfPGD`, as the study called it.

  Attributes:
    epsilon: radius of the ball, >= 0, in the unit of `eps_space`.
    norm: 'linf', or 'l2' over all coordinates of a sample.
    steps: gradient steps, >= 1.
    rel_stepsize: length of a step in radii; the default is 0.01 / 0.3.
    abs_stepsize: length of a step in the unit of epsilon; takes the place of `rel_stepsize`.
    random_start: start from a point drawn uniformly in the ball instead of from the input.
    restarts: independent starts, >= 1; the attack succeeds if one of them does. More than one needs `random_start`.
    eps_space: 'normalized', the model's input, or 'pixel', where epsilon is in units of `pixels / 255`.
    attack_output: cross-entropy of the 'logits', or of the softmax taken as if it were logits ('probs'), which is what
      the study's Keras models, which end in softmax, were attacked on.
    bounds: (lowest, highest) valid value in `eps_space`. None: smallest and largest value of the attacked inputs in
      normalized space (as the study), 0 and 1 in pixel space.
    name: of the attack, for reports.
  """
  epsilon: float
  norm: Literal['linf', 'l2'] = 'linf'
  steps: int = 40
  rel_stepsize: float = 1 / 30
  abs_stepsize: float | None = None
  random_start: bool = True
  restarts: int = 1
  eps_space: Literal['normalized', 'pixel'] = 'normalized'
  attack_output: Literal['logits', 'probs'] = 'logits'
  bounds: tuple[float, float] | None = None
  name: str = 'pgd'

  def __post_init__(self):
    require(math.isfinite(self.epsilon) and self.epsilon >= 0, f'epsilon must be >= 0, got {self.epsilon}.')
    require(math.isfinite(self.stepsize) and self.stepsize >= 0, f'The step size must be >= 0, got {self.stepsize}.')
    require(self.steps >= 1, f'steps must be at least 1, got {self.steps}.')
    require(self.restarts >= 1, f'restarts must be at least 1, got {self.restarts}.')
    require(self.restarts == 1 or self.random_start, 'Restarts without random_start all repeat the same attack.')
    for field, known in (('norm', ('linf', 'l2')), ('eps_space', ('normalized', 'pixel')),
                         ('attack_output', ('logits', 'probs'))):
      value = getattr(self, field)
      require(value in known, f'{field} must be one of {", ".join(known)}, got {value!r}.')
    require(self.bounds is None or self.bounds[0] < self.bounds[1],
            f'bounds must be (lowest, highest) with lowest < highest, got {self.bounds}.')

  @property
  def stepsize(self) -> float:
    """Length of one step, in the unit of epsilon."""
    return self.rel_stepsize * self.epsilon if self.abs_stepsize is None else self.abs_stepsize


def strong(pgd: PGD) -> PGD:
  """The same ball under a stronger attack: 100 steps from each of 5 starts, named 'pgd_strong'."""
  return dataclasses.replace(pgd, steps=100, restarts=5, random_start=True, name='pgd_strong')


@dataclasses.dataclass(frozen=True)
class Attacked:
  """Result of `attack` on n inputs.

  Attributes:
    success: `[n]` bool: some restart ended at a wrong label. Non-finite logits count as wrong.
    adversarial: `[n, *input_shape]` float32, normalized: where the first successful restart ended, else the last one.
    finite: every logit that success was read from was finite.
  """
  success: np.ndarray
  adversarial: np.ndarray
  finite: bool


@dataclasses.dataclass(frozen=True)
class AttackSuccess:
  """Attack success rate of several models on the same inputs.

  Attributes:
    rates: one fraction a model; NaN with the flag 'too_few_correct'.
    intervals: 95% Wilson interval of each rate.
    indices: which samples of the split were attacked, ascending.
    successes: `[models, len(indices)]` bool.
    flags: 'asr_n_reduced', 'too_few_correct', 'nonfinite_outputs'.
  """
  rates: tuple[float, ...]
  intervals: tuple[tuple[float, float], ...]
  indices: np.ndarray
  successes: np.ndarray
  flags: tuple[str, ...] = ()


def select(correct: np.ndarray, *, n: int = ATTACK_SIZE, key: jax.Array) -> tuple[np.ndarray, tuple[str, ...]]:
  """Draws n of the samples that every model gets right, uniformly without replacement.

  Args:
    correct: `[N]` bool: right for the original and for all repeats.
    n: how many to attack.
    key: consumed.
  Returns:
    Ascending indices (all candidates if there are fewer than n; none if fewer than `MIN_CANDIDATES`), and flags.
  """
  require(n >= 1, f'The number of attacked inputs must be at least 1, got {n}.')
  candidates = np.flatnonzero(correct)
  if len(candidates) < min(n, MIN_CANDIDATES):
    return candidates[:0], ('too_few_correct',)
  if len(candidates) <= n:
    return candidates, ('asr_n_reduced',) if len(candidates) < n else ()
  # Of all N samples and not of the candidates only: two sets of candidates that overlap give draws that overlap.
  order = np.asarray(jax.random.permutation(key, len(correct)))
  return np.sort(order[np.asarray(correct)[order]][:n]), ()


def attack(classifier: Classifier, z: np.ndarray | jax.Array, y: np.ndarray, *, pgd: PGD, key: jax.Array,
           index: np.ndarray | None = None, batch_size: int | None = None) -> Attacked:
  """Attacks every input.

  Args:
    classifier: the model, in evaluation mode throughout.
    z: `[n, *input_shape]` normalized inputs.
    y: `[n]` true labels.
    pgd: settings; the bounds, where it gives none, are the smallest and largest value in z.
    key: for the random starts; models attacked under the same key start from the same points.
    index: `[n]` number of each sample, by which its start is drawn; None for 0..n-1.
    batch_size: samples attacked at once, rounded up to a multiple of the number of devices; None for `CPU_BATCH` or
      `ATTACK_SIZE`. Changes no result.
  Raises:
    BadInputError: z has another shape than the model takes, lies outside the bounds, or y has another length.
  """
  check_inputs(classifier, z, 'attack')
  require(len(z) > 0, 'attack: there is no input to attack.')
  require(len(z) == len(y), f'attack: {len(z)} inputs but {len(y)} labels.')
  inputs = _prepare(classifier, np.asarray(z, np.float32), y, np.arange(len(y)) if index is None else index, pgd, key,
                    batch_size)
  success, finite, adversarial = _run(classifier, inputs, pgd)
  return Attacked(*(np.asarray(part)[:len(y)] for part in (success, jnp.concatenate(adversarial))), bool(finite.all()))


def attack_success(classifiers: Sequence[Classifier], split: Split, correct: np.ndarray, *, pgd: PGD, key: jax.Array,
                   n: int = ATTACK_SIZE, batch_size: int | None = None) -> AttackSuccess:
  """Attack success rates of several models on the same n inputs, from the same starts.

  Args:
    classifiers: the original and its repairs. One with other normalization constants is attacked in its own space.
    split: raw inputs and labels.
    correct: `[len(split)]` bool: the samples to draw from, those that every model gets right (`predict.labels`).
    pgd: settings.
    key: consumed: draws the inputs and the starts.
    n: how many inputs.
    batch_size: as in `attack`.
  Raises:
    BadInputError: shapes do not fit, or inputs lie outside given bounds.
  """
  require(np.shape(correct) == (len(split),),
          f'correct has shape {np.shape(correct)}, but the split {len(split)} rows.')
  key_select, key_start = jax.random.fold_in(key, _SELECT), jax.random.fold_in(key, _START)
  indices, flags = select(correct, n=n, key=key_select)
  if not len(indices):
    nan = float('nan')
    return AttackSuccess((nan,) * len(classifiers), ((nan, nan),) * len(classifiers), indices,
                         np.zeros((len(classifiers), 0), bool), flags)
  chosen = split.take(indices)
  spaces, pending = {}, []
  for classifier in classifiers:
    check_inputs(classifier, chosen.x, 'attack')
    space = (classifier.mean, classifier.std)
    if space not in spaces:
      z = np.asarray(classifier.normalize(jnp.asarray(chosen.x)))
      spaces[space] = _prepare(classifier, z, chosen.y, indices, pgd, key_start, batch_size)
    pending.append(_run(classifier, spaces[space], pgd)[:2])
  successes, finite = (np.stack(parts)[:, :len(indices)] for parts in zip(*jax.device_get(pending), strict=True))
  if not finite.all():
    flags += ('nonfinite_outputs',)
  hits = successes.sum(axis=1).tolist()
  return AttackSuccess(tuple(h / len(indices) for h in hits), tuple(wilson(h, len(indices)) for h in hits), indices,
                       successes, flags)


def wilson(hits: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
  """Wilson score interval of a binomial proportion; z is the normal quantile, 95% two-sided by default."""
  p, shrink = hits / n, 1 / (1 + z * z / n)
  center, half = (p + z * z / (2 * n)) * shrink, z * shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
  # The interval touches 0 and 1 exactly there, where rounding would leave 1e-18.
  return (0. if hits == 0 else center - half), (1. if hits == n else center + half)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Ball:
  """The attack's geometry; `scale` `[c or 1]` turns a difference of normalized values into the unit of epsilon."""
  epsilon: jax.Array
  stepsize: jax.Array
  scale: jax.Array
  low: jax.Array
  high: jax.Array


def _ball(classifier: Classifier, z: np.ndarray, pgd: PGD) -> _Ball:
  """Checks the inputs against the bounds; bounds and scale broadcast against z."""
  mean, std = np.zeros(1, np.float32), np.ones(1, np.float32)
  bounds = pgd.bounds or (np.min(z), np.max(z))
  if pgd.eps_space == 'pixel':
    mean, std = np.asarray(classifier.mean, np.float32), np.asarray(classifier.std, np.float32)
    bounds = pgd.bounds or (0., 1.)
  shape = (*(1,) * (np.ndim(z) - 1), -1)
  low, high = (((np.float32(bound) - mean) / std).reshape(shape) for bound in bounds)
  slack = _BOUND_SLACK * np.maximum(1, np.maximum(abs(low), abs(high)))
  outside = ((z < low - slack) | (z > high + slack)).reshape(len(z), -1).any(axis=1)
  if outside.any():
    raise BadInputError(f'Input {int(np.argmax(outside))} leaves the bounds {tuple(map(float, bounds))} of the attack '
                        f'in {pgd.eps_space} space; widen them, or use the normalized space with bounds=None.')
  return _Ball(*(jnp.asarray(v, jnp.float32) for v in (pgd.epsilon, pgd.stepsize, std.reshape(shape), low, high)))


@dataclasses.dataclass(frozen=True)
class _Batch:
  """One padded batch on the devices: inputs, labels, sample numbers, and the starting points of each restart."""
  z: jax.Array
  y: jax.Array
  index: jax.Array
  starts: tuple[jax.Array, ...]


def _prepare(classifier: Classifier, z: np.ndarray, y: np.ndarray, index: np.ndarray, pgd: PGD, key: jax.Array,
             batch_size: int | None) -> tuple[_Ball, list[_Batch]]:
  """What does not depend on the weights, once for all models of one space."""
  ball = devices.replicate(_ball(classifier, z, pgd))
  batch_size = batch_size or (CPU_BATCH if jax.default_backend() == 'cpu' else ATTACK_SIZE)
  batch_size = devices.round_up(min(batch_size, len(z)), devices.data_mesh().size)
  columns = (z, np.asarray(y, np.int32), np.asarray(index, np.uint32))
  batches = []
  for parts in zip(*(predict.padded_batches(column, batch_size) for column in columns), strict=True):
    zb, yb, ib = (devices.shard_batch(part) for part, _ in parts)
    keys = [devices.replicate(jax.random.fold_in(key, r)) for r in range(pgd.restarts)]
    starts = [_start(k, ib, zb, ball, norm=pgd.norm) if pgd.random_start else zb for k in keys]
    batches.append(_Batch(zb, yb, ib, tuple(starts)))
  return ball, batches


def _run(classifier: Classifier, inputs: tuple[_Ball, list[_Batch]], pgd: PGD
         ) -> tuple[jax.Array, jax.Array, list[jax.Array]]:
  """Success and finiteness of every (padded) row, and where each batch ended."""
  ball, batches = inputs
  classifier = devices.replicate(classifier)

  def attack_batch(batch):
    descend = functools.partial(_descend, classifier.for_samples(batch.index), **_statics(pgd))
    success, finite, end = descend(batch.z, batch.y, batch.starts[0], ball)
    for start in batch.starts[1:]:
      again = descend(batch.z, batch.y, start, ball)
      end = jnp.where(_per_sample(success, end), end, again[2])
      success, finite = success | again[0], finite & again[1]
    return success, finite, end

  successes, finites, ends = zip(*devices.map_concurrently(attack_batch, batches), strict=True)
  return jnp.concatenate(successes), jnp.concatenate(finites), list(ends)


def _statics(pgd: PGD) -> dict[str, Any]:
  return {'norm': pgd.norm, 'steps': pgd.steps, 'probs': pgd.attack_output == 'probs'}


# Radius, step, bounds and scale are traced: a curve over epsilon compiles once.
@functools.partial(jax.jit, static_argnames='norm')
def _start(key: jax.Array, index: jax.Array, z: jax.Array, ball: _Ball, *, norm: str) -> jax.Array:
  """A point of each sample's ball, within the bounds."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
  return _PROJECT[norm](z, ball, z + _NOISE[norm](keys, z.shape[1:], ball))


@functools.partial(devices.jit, static_argnames=('norm', 'steps', 'probs'))
def _descend(classifier: Classifier, z: jax.Array, y: jax.Array, start: jax.Array, ball: _Ball, *, norm: str,
             steps: int, probs: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Success `[n]`, finite logits `[n]` and the end points of one run from `start`."""
  target = jax.nn.one_hot(y, classifier.num_classes)

  def loss(x):
    logits = classifier.surrogate.logits_of_normalized(x)
    return -jnp.sum(target * jax.nn.log_softmax(jax.nn.softmax(logits) if probs else logits))

  def step(x, _):
    return _PROJECT[norm](z, ball, x + _ASCENT[norm](jax.grad(loss)(x), ball)), None

  end, _ = jax.lax.scan(step, start, length=steps)
  logits = classifier.logits_of_normalized(end)
  finite = jnp.isfinite(logits).all(axis=-1)
  return ~finite | (logits.argmax(axis=-1) != y), finite, end


def _per_sample(values: jax.Array, z: jax.Array) -> jax.Array:
  """`values` `[n]` with axes of length 1 appended, to broadcast against z."""
  return values.reshape(-1, *(1,) * (z.ndim - 1))


def _norm(delta: jax.Array) -> jax.Array:
  return _per_sample(jnp.sqrt(jnp.sum(delta.reshape(len(delta), -1) ** 2, axis=1)), delta)


def _linf_project(z: jax.Array, ball: _Ball, x: jax.Array) -> jax.Array:
  # One clip for ball and bounds, which z lies in: their intersection is a box.
  radius = ball.epsilon / ball.scale
  return jnp.clip(x, jnp.maximum(z - radius, ball.low), jnp.minimum(z + radius, ball.high))


def _l2_project(z: jax.Array, ball: _Ball, x: jax.Array) -> jax.Array:
  delta = (x - z) * ball.scale
  delta = delta * jnp.minimum(1, ball.epsilon / jnp.maximum(_norm(delta), 1e-12))
  return jnp.clip(z + delta / ball.scale, ball.low, ball.high)  # towards z, so that the norm does not grow


def _linf_ascent(g: jax.Array, ball: _Ball) -> jax.Array:
  # The sign, but 0 where the gradient is NaN: a broken gradient is no success of the attack.
  return ball.stepsize / ball.scale * ((g > 0).astype(jnp.float32) - (g < 0).astype(jnp.float32))


def _l2_ascent(g: jax.Array, ball: _Ball) -> jax.Array:
  g = jnp.nan_to_num(g) / ball.scale
  return ball.stepsize / ball.scale * g / jnp.maximum(_norm(g), 1e-12)


def _linf_noise(keys: jax.Array, shape: tuple[int, ...], ball: _Ball) -> jax.Array:
  # Drawn flat: with the axes of an image the generator takes twice as long to compile.
  noise = jax.vmap(lambda k: jax.random.uniform(k, (math.prod(shape),), minval=-1, maxval=1))(keys)
  return ball.epsilon / ball.scale * noise.reshape(-1, *shape)


def _l2_noise(keys: jax.Array, shape: tuple[int, ...], ball: _Ball) -> jax.Array:
  """Uniform in the ball: the first d coordinates of a point drawn uniformly on the sphere in d + 2 dimensions."""
  d = math.prod(shape)
  points = jax.vmap(lambda k: jax.random.normal(k, (d + 2,)))(keys)
  points = points / _norm(points)
  return ball.epsilon / ball.scale * points[:, :d].reshape(-1, *shape)


_PROJECT = {'linf': _linf_project, 'l2': _l2_project}
_ASCENT = {'linf': _linf_ascent, 'l2': _l2_ascent}
_NOISE = {'linf': _linf_noise, 'l2': _l2_noise}
