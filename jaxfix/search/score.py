"""Sums over samples of any statistic of patched networks, for a whole population of candidate patches.

Samples come in blocks; each block serves all candidates while its activations are at hand. A caller may say which
candidates are still of interest after each block: the others are dropped. With a statistic that never decreases a sum,
and the samples that most often fail placed first, a candidate that cannot reach its rival is found out early, and what
the search does is exactly what it would have done with full sums.
"""
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import devices, intervene
from jaxfix.classifier import Classifier
from jaxfix.errors import RepairFailure, require
from jaxfix.localize.gradient_loss import cross_entropy
from jaxfix.localize.linear import kernel
from jaxfix.localize.targets import Targets
from jaxfix.predict import padded_batches, right
from jaxfix.search.patch import make_patch, patched_suffix
from jaxfix.tiling import layers_from

Statistic = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(logits [n, c], y [n], failing [n]) -> [n, s]`: what is summed, with weight 1 a sample."""

_CACHE_BATCH = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
  """Labeled samples as the activations at which the patched part of the network begins.

  Attributes:
    cache: arrays `[rows, ...]` of `intervene.prefix`.
    y: `[rows]` int32 labels.
    failing: `[rows]` bool, the unpatched network gets it wrong.
    order: `[b, n]` int32 rows of the cache in `b` blocks, hardest first.
    weight: `[b, n]` float32, 1, or 0 for the rows that fill up the last block.
  """
  cache: intervene.Cache
  y: jax.Array
  failing: jax.Array
  order: jax.Array
  weight: jax.Array


def multiply_adds(classifier: Classifier, layers: tuple[str, ...]) -> int:
  """Multiplications a sample in the Dense and Conv layers at and after the first of `layers`."""
  return sum(kernel(classifier, layer.path).size * math.prod(layer.output_shape[:-1])
             for layer in layers_from(classifier, layers) if layer.kind in ('dense', 'conv'))


def cache_samples(classifier: Classifier, x: Any, y: np.ndarray, *, layers: tuple[str, ...], rows: int) -> Samples:
  """Runs the unpatched part of the network once and puts the samples in order: failing first, then by margin.

  Args:
    classifier: the unpatched network.
    x: `[n, *input_shape]`, raw, in memory or streamed.
    y: `[n]` labels.
    layers: paths of the patched layers.
    rows: samples a block.
  Raises:
    RepairFailure: the activations would take more than half of the free memory.
  """
  count = len(x)
  y = np.asarray(y, np.int32)
  _check_memory(classifier, count, layers)
  buffers, margins = None, []
  for i, (batch, real) in enumerate(padded_batches(x, min(_CACHE_BATCH, count))):
    labels = np.resize(y[i * len(batch):i * len(batch) + real], len(batch))
    activations, margin = _prefix_and_margin(classifier, batch, labels, layers=layers)
    if buffers is None:
      total = devices.round_up(count, len(batch))
      buffers = tuple(jnp.zeros((total, *a.shape[1:]), a.dtype) for a in activations)
    buffers = _write(buffers, activations, i * len(batch))
    margins.append(jax.device_get(margin)[:real])
  margin = np.concatenate(margins)
  order = np.lexsort((margin, margin >= 0))
  blocks = -(-count // rows)
  padded = np.resize(order, blocks * rows).astype(np.int32).reshape(blocks, rows)
  weight = (np.arange(blocks * rows) < count).astype(np.float32).reshape(blocks, rows)
  pad = buffers[0].shape[0] - count
  return Samples(buffers, jnp.asarray(np.pad(y, (0, pad))), jnp.asarray(np.pad(~(margin >= 0), (0, pad))),
                 jnp.asarray(padded), jnp.asarray(weight))


def _check_memory(classifier: Classifier, count: int, layers: tuple[str, ...]) -> None:
  one = jax.ShapeDtypeStruct((1, *classifier.input_shape), jnp.float32)
  cached = jax.eval_shape(lambda c, z: intervene.prefix(c, z, layers), classifier, one)
  needed = count * sum(math.prod(a.shape) * a.dtype.itemsize for a in cached)
  free = devices.free_bytes()
  require(needed <= free // 2, f'The activations before {layers[0]} of {count} samples take {needed / 2**30:.1f} GiB, '
          f'more than half of the {free / 2**30:.1f} GiB that are free; give fewer samples, or change a later layer.',
          RepairFailure)


@functools.partial(jax.jit, static_argnames=('layers',))
def _prefix_and_margin(classifier: Classifier, x: jax.Array, y: jax.Array, *, layers: tuple[str, ...]):
  z = classifier.normalize(x)
  return intervene.prefix(classifier, z, layers), margins(classifier.logits_of_normalized(z), y)


@functools.partial(jax.jit, donate_argnums=0)
def _write(buffers: intervene.Cache, activations: intervene.Cache, start: int) -> intervene.Cache:
  return tuple(jax.lax.dynamic_update_slice_in_dim(b, a, start, axis=0)
               for b, a in zip(buffers, activations, strict=True))


def margins(logits: jax.Array, y: jax.Array) -> jax.Array:
  """Own logit minus the largest other one, `[n]`; made negative where another class of lower index ties."""
  classes = jnp.arange(logits.shape[-1])
  own = jnp.where(classes == y[:, None], logits, 0).sum(axis=-1)
  gap = own - jnp.where(classes == y[:, None], -jnp.inf, logits).max(axis=-1)
  return jnp.where((gap == 0) & ~right(logits, y), -jnp.finfo(jnp.float32).tiny, gap)


def population_sums(statistic: Statistic, classifier: Classifier, targets: Targets, samples: Samples,
                    population: jax.Array, *, group: int,
                    interesting: Callable[[jax.Array], jax.Array] | None = None) -> jax.Array:
  """Sum over samples of `statistic`, for each candidate; `[p, s]` float32. Pure; call it inside `jit`.

  Args:
    statistic: of the logits of a block.
    classifier: the unpatched network.
    targets: the entries that candidates set.
    samples: what is summed over.
    population: `[p, d]` candidates.
    group: candidates evaluated together.
    interesting: `[p, s]` sums so far -> `[p]` bool; candidates for which it is False get no further samples. It must
      not become True again. None: all candidates see all samples.
  """
  size = population.shape[0]
  group = min(group, size)
  width = jax.eval_shape(statistic, *_block_shapes(classifier, samples)).shape[-1]
  slots = jnp.arange(devices.round_up(size, group))

  def one(patch, block):
    cache, y, failing, weight = block
    logits = patched_suffix(classifier, cache, targets, patch)
    return jnp.einsum('n,ns->s', weight, statistic(logits, y, failing))

  def add_block(carry):
    i, sums, alive = carry
    rows = samples.order[i]
    block = (tuple(a[rows] for a in samples.cache), samples.y[rows], samples.failing[rows], samples.weight[i])
    order = jnp.resize(jnp.argsort(~alive, stable=True), slots.shape)  # those of interest first
    count = alive.sum()
    ordered = jax.tree.map(lambda a: a[order], patches)

    def add_group(g, sums):
      members, patch = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, g * group, group), (order, ordered))
      gain = jax.vmap(one, (0, None))(patch, block)
      counts = (g * group + jnp.arange(group) < count)[:, None]
      return sums.at[members].add(jnp.where(counts, gain, 0))

    sums = jax.lax.fori_loop(0, -(-count // group), add_group, sums)
    return i + 1, sums, alive if interesting is None else alive & interesting(sums)

  def unfinished(carry):
    i, _, alive = carry
    return (i < samples.order.shape[0]) & alive.any()

  patches = jax.vmap(make_patch, (None, None, 0))(classifier, targets, population)
  start = (jnp.int32(0), jnp.zeros((size, width)), jnp.ones(size, bool))
  return jax.lax.while_loop(unfinished, add_block, start)[1]


def _block_shapes(classifier: Classifier, samples: Samples):
  n = samples.order.shape[1]
  return (jax.ShapeDtypeStruct((n, classifier.num_classes), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.int32),
          jax.ShapeDtypeStruct((n,), jnp.bool_))


def tally(logits: jax.Array, y: jax.Array, failing: jax.Array, head: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """A `Statistic`: `[n, 4]` failing and right, loss of failing, passing and right, loss of passing samples.

  `failing` and passing mean by the unpatched network; `head` is applied to the logits before the cross-entropy.
  """
  each = jnp.stack([right(logits, y).astype(jnp.float32), cross_entropy(head(logits), y)], axis=-1)
  return jnp.concatenate([jnp.where(failing[:, None], each, 0), jnp.where(failing[:, None], 0, each)], axis=-1)


def credit(logits: jax.Array, y: jax.Array, head: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """Arachne's s(x), `[n]` in [0, 1]: 1 if right, else 1 / (1 + cross-entropy); 0 if the logits are not finite."""
  loss = cross_entropy(head(logits), y)
  return jnp.where(right(logits, y), 1., jnp.where(jnp.isfinite(loss), 1 / (1 + loss), 0.))
