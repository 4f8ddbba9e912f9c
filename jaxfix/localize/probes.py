"""Linear probes: what class the features inside a network already express, and which block's say it wrongly.

The features of every probed layer are computed once, pooled, and kept; then all probes are trained together in one
compiled program, without another pass through the network. Their losses are added, and since no two probes share a
weight, each is trained exactly as it would be alone.

Source: Chen, Zhou, Sun, Wang, Xuan, Yang, "Interpretability Based Neural Network Repair", ISSTA 2024, and its public
code. Ours: the pooling (the code's is not known) is an adaptive mean.
"""
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfix import intervene
from jaxfix.classifier import Classifier
from jaxfix.errors import EmptySplitError, require
from jaxfix.localize.blocks import Block
from jaxfix.localize.gradient_loss import cross_entropy
from jaxfix.models.layers import AdaptiveAvgPool
from jaxfix.predict import DEFAULT_BATCH, padded_batches

Probe = Mapping[str, jax.Array]
"""`{'kernel': [d, c], 'bias': [c]}`."""

Tap = tuple[str, int]
"""A layer's path and the side of the grid to which its maps are pooled."""


@dataclasses.dataclass(frozen=True)
class Training:
  """How probes are trained: Adam at `learning_rate`, `epochs` passes in batches of `batch_size`."""
  learning_rate: float = 0.01
  epochs: int = 50
  batch_size: int = 128

  def __post_init__(self):
    require(self.learning_rate > 0, f'The learning rate of probes must be positive, got {self.learning_rate}.')
    require(self.epochs >= 0, f'The number of probe epochs must not be negative, got {self.epochs}.')
    require(self.batch_size >= 1, f'The batch size of probes must be at least 1, got {self.batch_size}.')


def taps(blocks: Sequence[Block]) -> tuple[Tap, ...]:
  """Where the probes of blocks look."""
  return tuple((block.output, block.grid) for block in blocks)


def pool(u: jax.Array, grid: int) -> jax.Array:
  """Features `[n, d]` of a layer's output: maps are averaged over a `grid` x `grid`, vectors are what they are.

  >>> pool(jnp.arange(8.).reshape(1, 2, 2, 2), 1).tolist()
  [[3.0, 4.0]]
  """
  if u.ndim == 4 and grid > 1:
    u = AdaptiveAvgPool((grid, grid)).apply({}, u)
    return u.reshape(u.shape[0], -1)
  return u.mean(axis=tuple(range(1, u.ndim - 1)))


def scores(probe: Probe, features: jax.Array) -> jax.Array:
  """Logits `[..., c]` of a probe for features `[..., d]`."""
  return features @ probe['kernel'] + probe['bias']


@functools.partial(jax.jit, static_argnames=('where',))
def _features(classifier: Classifier, x: jax.Array, where: tuple[Tap, ...]) -> tuple[jax.Array, ...]:
  seen = intervene.record(classifier, classifier.normalize(x), [path for path, _ in where])
  return tuple(pool(seen[path][1], grid) for path, grid in where)


def pooled_features(classifier: Classifier, x: Any, where: tuple[Tap, ...], *,
                    batch_size: int = DEFAULT_BATCH) -> tuple[np.ndarray, ...]:
  """Pooled features `[n, d]` float32, on the host, of each tap.

  Args:
    classifier: the network; evaluation mode.
    x: `[n, *input_shape]`, raw, in memory or streamed.
    where: the taps.
    batch_size: rows computed at once.
  Raises:
    EmptySplitError: no sample.
    UnknownNameError: the network calls no layer of that path.
  """
  require(len(x) > 0, 'There are no features of no samples; give at least one.', EmptySplitError)
  parts = []
  for batch, count in padded_batches(x, min(batch_size, len(x))):
    parts.append([f[:count] for f in jax.device_get(_features(classifier, batch, where))])
  return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


@functools.partial(jax.jit, static_argnames=('num_classes', 'training'))
def train_probes(features: tuple[jax.Array, ...], y: jax.Array, num_classes: int, training: Training, *,
                 key: jax.Array) -> tuple[tuple[Probe, ...], jax.Array]:
  """Linear classifiers of given features, one for each array of them.

  Args:
    features: for each probe `[n, d]`, of the same n samples.
    y: `[n]` int32 labels.
    num_classes: c.
    training: static.
    key: of initial weights (uniform in +-1 / sqrt(d)) and of the order of samples; consumed.
  Returns:
    the probes, and the mean cross-entropy of each epoch, `[epochs, probes]`.
  """
  k_init, k_order = jax.random.split(key)
  n = y.shape[0]
  size = min(training.batch_size, n)
  steps = -(-n // size)
  weight = (jnp.arange(steps * size) < n).astype(jnp.float32).reshape(steps, size)
  optimizer = optax.adam(training.learning_rate)

  def fresh(key, d):
    k_kernel, k_bias = jax.random.split(key)
    bound = d ** -0.5
    return {'kernel': jax.random.uniform(k_kernel, (d, num_classes), minval=-bound, maxval=bound),
            'bias': jax.random.uniform(k_bias, (num_classes,), minval=-bound, maxval=bound)}

  def loss_of(probes, rows, weight):
    each = jnp.stack([(weight * cross_entropy(scores(probe, f[rows]), y[rows])).sum() / weight.sum()
                      for probe, f in zip(probes, features, strict=True)])
    return each.sum(), each

  def step(carry, batch):
    probes, state = carry
    grads, each = jax.grad(loss_of, has_aux=True)(probes, *batch)
    updates, state = optimizer.update(grads, state, probes)
    return (optax.apply_updates(probes, updates), state), each * batch[1].sum()

  def epoch(carry, key):
    rows = jnp.resize(jax.random.permutation(key, n), (steps, size))
    carry, losses = jax.lax.scan(step, carry, (rows, weight))
    return carry, losses.sum(axis=0) / n

  keys = jax.random.split(k_init, len(features))
  probes = tuple(fresh(k, f.shape[1]) for k, f in zip(keys, features, strict=True))
  start = probes, optimizer.init(probes)
  (probes, _), losses = jax.lax.scan(epoch, start, jax.random.split(k_order, training.epochs))
  return probes, losses


def accuracy(probe: Probe, features: np.ndarray, y: np.ndarray) -> float:
  """Share of samples that a probe gets right, on the host."""
  return float((np.argmax(features @ np.asarray(probe['kernel']) + np.asarray(probe['bias']), axis=1) == y).mean())


@jax.jit
def mean_probabilities(probe: Probe, features: jax.Array) -> jax.Array:
  """Mean over samples of the softmax of a probe, `[c]`."""
  return jax.nn.softmax(scores(probe, features), axis=-1).mean(axis=0)


def block_score(normal: np.ndarray, fault: np.ndarray) -> float:
  """A_b = - sum_c f_b[c] log(c_b[c] + 1e-7): the cross-entropy of what a probe says of faulty inputs to normal ones.

  Args:
    normal, fault: `[c]` mean probabilities over normal and over faulty samples.
  """
  return float(-(np.asarray(fault, np.float64) * np.log(np.asarray(normal, np.float64) + 1e-7)).sum())
