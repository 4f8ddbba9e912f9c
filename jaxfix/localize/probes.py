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
from scipy import special

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
  for batch, count in padded_batches(x, batch_size):   # one shape, whatever the number of samples
    parts.append([f[:count] for f in jax.device_get(_features(classifier, batch, where))])
  return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def train_probes(features: Sequence[np.ndarray], y: np.ndarray, num_classes: int, training: Training, *,
                 key: jax.Array) -> tuple[tuple[Probe, ...], np.ndarray]:
  """Linear classifiers of given features, one for each array of them.

  Args:
    features: for each probe `[n, d]`, of the same n samples, n >= 1.
    y: `[n]` int32 labels.
    num_classes: c.
    training: see `Training`.
    key: of initial weights (uniform in +-1 / sqrt(d)) and of the order of samples; consumed.
  Returns:
    the probes, and the mean cross-entropy of each epoch, `[epochs, probes]`, on the host.
  """
  k_init, k_order = jax.random.split(key)
  n = len(y)
  size = min(training.batch_size, n)
  steps = -(-n // size)
  # Drawn and sorted on the host: as part of the program below they would be most of what has to be compiled.
  order = np.argsort(np.asarray(jax.random.uniform(k_order, (training.epochs, n))), axis=1, kind='stable')
  rows = np.stack([np.resize(row, steps * size) for row in order]) if training.epochs else np.zeros((0, steps * size))
  weight = (np.arange(steps * size) < n).astype(np.float32).reshape(steps, size)
  sizes = [(f.shape[1] + 1) * num_classes for f in features]
  draws = np.split(np.asarray(jax.random.uniform(k_init, (sum(sizes),), minval=-1., maxval=1.)), np.cumsum(sizes)[:-1])
  probes = []
  for f, part in zip(features, draws, strict=True):
    part = part.reshape(-1, num_classes) * np.float32(f.shape[1] ** -0.5)
    probes.append({'kernel': part[:-1], 'bias': part[-1]})
  probes, losses = _descend(tuple(probes), tuple(features), np.asarray(y, np.int32),
                            rows.reshape(-1, steps, size).astype(np.int32), weight, training.learning_rate)
  return probes, np.asarray(losses)


@jax.jit
def _descend(probes: tuple[Probe, ...], features: tuple[jax.Array, ...], y: jax.Array, rows: jax.Array,
             weight: jax.Array, learning_rate: jax.Array) -> tuple[tuple[Probe, ...], jax.Array]:
  """Adam over batches `rows` `[epochs, s, b]` with `weight` `[s, b]`; the probes and `[epochs, probes]` losses."""
  optimizer = optax.adam(learning_rate)

  def loss_of(probes, rows, weight):
    each = jnp.stack([(weight * cross_entropy(scores(probe, f[rows]), y[rows])).sum() / weight.sum()
                      for probe, f in zip(probes, features, strict=True)])
    return each.sum(), each

  def step(carry, batch):
    probes, state = carry
    grads, each = jax.grad(loss_of, has_aux=True)(probes, *batch)
    updates, state = optimizer.update(grads, state, probes)
    return (optax.apply_updates(probes, updates), state), each * batch[1].sum()

  def epoch(carry, rows):
    carry, losses = jax.lax.scan(step, carry, (rows, weight))
    return carry, losses.sum(axis=0) / weight.sum()

  (probes, _), losses = jax.lax.scan(epoch, (probes, optimizer.init(probes)), rows)
  return probes, losses


def accuracy(probe: Probe, features: np.ndarray, y: np.ndarray) -> float:
  """Share of samples that a probe gets right, on the host."""
  return float((_host_scores(probe, features).argmax(axis=1) == y).mean())


def probabilities(probe: Probe, features: np.ndarray) -> np.ndarray:
  """Softmax of a probe, `[n, c]`, on the host."""
  return special.softmax(_host_scores(probe, features), axis=1)


def _host_scores(probe: Probe, features: np.ndarray) -> np.ndarray:
  return features @ np.asarray(probe['kernel']) + np.asarray(probe['bias'])


def block_score(normal: np.ndarray, fault: np.ndarray) -> float:
  """A_b = - sum_c f_b[c] log(c_b[c] + 1e-7): the cross-entropy of what a probe says of faulty inputs to normal ones.

  Args:
    normal, fault: `[c]` mean probabilities over normal and over faulty samples.
  """
  return float(-(np.asarray(fault, np.float64) * np.log(np.asarray(normal, np.float64) + 1e-7)).sum())
