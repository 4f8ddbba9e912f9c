"""Routing: for one sample, a sparse mask over a layer's kernel that keeps what a probe behind the layer says.

A mask starts at 1 everywhere. Each step it follows the gradient of the probe's cross-entropy to the label that it gave
before, and shrinks by an L1 step: entries that the decision needs stay, others decay. An entry gets the vote of a
sample if it ends above the mean of the sample's mask.

Only what lies between the layer's input and the probe is evaluated: the input, and what bypasses the layer, are
computed once for each sample. Samples are independent, so that a chunk of them is a `vmap`; masks of more samples never
exist at the same time, since only the votes are kept.

Source: Chen et al., "Interpretability Based Neural Network Repair", ISSTA 2024, and its public code.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import devices, intervene
from jaxfix.classifier import Classifier
from jaxfix.errors import EmptySplitError, require
from jaxfix.localize.blocks import Block, truncate
from jaxfix.localize.gradient_loss import cross_entropy
from jaxfix.localize.linear import kernel, with_kernels
from jaxfix.localize.probes import Probe, pool, scores
from jaxfix.predict import padded_batches

Gradient = Literal['kernel', 'mask']
Keep = Literal['any_vote', 'top_k', 'majority']

_MASKS_AT_ONCE = 4      # mask, masked kernel, its gradient and a temporary, for each sample of a chunk
_LARGEST_CHUNK = 32
_ROUNDING = 1e-5        # relative; the mean of a million float32 entries is no better known


@dataclasses.dataclass(frozen=True)
class Settings:
  """Constants of routing; see `localize.routing`.

  Attributes:
    steps: 40.
    step_size: of the gradient step; 0.009.
    l1_step: what an entry loses in every step; 0.005.
    gradient: with respect to the masked 'kernel', as in the public code, or to the 'mask' (chain rule, times W).
  """
  steps: int = 40
  step_size: float = 0.009
  l1_step: float = 0.005
  gradient: Gradient = 'kernel'

  def __post_init__(self):
    require(self.steps >= 0, f'The number of routing steps must not be negative, got {self.steps}.')
    require(self.step_size >= 0 and self.l1_step >= 0,
            f'The two steps of routing must not be negative, got {self.step_size} and {self.l1_step}.')
    require(self.gradient in ('kernel', 'mask'), f"The routing gradient must be 'kernel' or 'mask', got "
            f'{self.gradient!r}.')


def route(loss: Callable[[jax.Array], jax.Array], weights: jax.Array, settings: Settings) -> jax.Array:
  """The mask, like `weights`, in [0, 1], after `settings.steps` steps. Pure.

  M <- clip(M - step_size g - l1_step sign(M), 0, 1), with g the gradient of `loss` at M * W.

  Args:
    loss: of masked weights; a scalar.
    weights: W.
    settings: static.
  """
  def step(_, mask):
    slope = jax.grad(loss)(mask * weights)
    if settings.gradient == 'mask':
      slope = slope * weights
    return jnp.clip(mask - settings.step_size * slope - settings.l1_step * jnp.sign(mask), 0, 1)

  return jax.lax.fori_loop(0, settings.steps, step, jnp.ones_like(weights))


def votes(mask: jax.Array) -> jax.Array:
  """Entries of one mask above its mean, bool like `mask`. None where all are equal.

  Heights are taken above the smallest entry: most entries have one and the same value, and whether they lie above a
  mean close to it must not be left to rounding.
  """
  height = mask - mask.min()
  return height > height.mean() * (1 + _ROUNDING)


def chunk_size(num_entries: int, num_samples: int, budget_bytes: int | None = None) -> int:
  """Samples whose masks are in memory at once.

  Args:
    num_entries: of the kernel.
    num_samples: in all.
    budget_bytes: None for 256 MiB on CPU, 2 GiB on an accelerator, and at most about an eighth of the free memory (a
      power of two, so that the same machine rounds the same way).
  """
  if budget_bytes is None:
    usual = 256 << 20 if jax.default_backend() == 'cpu' else 2 << 30
    budget_bytes = min(usual, 1 << max(20, devices.free_bytes().bit_length() - 4))
  return int(np.clip(budget_bytes // (4 * _MASKS_AT_ONCE * num_entries), 1, min(_LARGEST_CHUNK, num_samples)))


def count_votes(classifier: Classifier, probe: Probe, x: Any, block: Block, settings: Settings, *,
                budget_bytes: int | None = None) -> np.ndarray:
  """Votes of samples for the entries of a block's target kernel: int32 like that kernel.

  Args:
    classifier: the network; evaluation mode.
    probe: of the block's output.
    x: `[n, *input_shape]`, raw, n >= 1; in memory or streamed.
    block: where.
    settings: of routing.
    budget_bytes: see `chunk_size`.
  Raises:
    EmptySplitError: no sample.
  """
  require(len(x) > 0, 'Routing needs at least one sample.', EmptySplitError)
  size = chunk_size(kernel(classifier, block.target).size, len(x), budget_bytes)
  total = 0
  for chunk, count in padded_batches(x, size):
    masks_of = np.arange(size) < count
    total = total + np.asarray(_chunk_votes(classifier, probe, chunk, masks_of, block=block, settings=settings))
  return total


def routing_masks(classifier: Classifier, probe: Probe, x: jax.Array, *, block: Block, settings: Settings) -> jax.Array:
  """The mask of each sample, `[n, *kernel]`. Pure; all of them are in memory.

  Args:
    classifier, probe, block, settings: as in `count_votes`.
    x: `[n, *input_shape]`, raw.
  """
  part, path = truncate(classifier, block.output), (block.target,)
  weights = kernel(classifier, block.target)
  cache = intervene.prefix(part, classifier.normalize(x), path)

  def said(weights, cache):
    return scores(probe, pool(intervene.suffix(with_kernels(part, {block.target: weights}), cache, path), block.grid))

  def one(cache, label):
    single = tuple(a[None] for a in cache)
    return route(lambda masked: cross_entropy(said(masked, single), label).sum(), weights, settings)

  return jax.vmap(one)(cache, said(weights, cache).argmax(axis=-1, keepdims=True))


@functools.partial(devices.jit, static_argnames=('block', 'settings'))
def _chunk_votes(classifier: Classifier, probe: Probe, x: jax.Array, counted: jax.Array, *, block: Block,
                 settings: Settings) -> jax.Array:
  masks = routing_masks(classifier, probe, x, block=block, settings=settings)
  each = jax.vmap(votes)(masks) & counted.reshape(-1, *(1,) * (masks.ndim - 1))
  return each.sum(axis=0, dtype=jnp.int32)


def kept_entries(counts: np.ndarray, num_samples: int, keep: Keep, top: int) -> np.ndarray:
  """Which entries carry the faulty behavior, bool like `counts`; an entry without a vote never does.

  Args:
    counts: votes of each entry.
    num_samples: samples that voted.
    keep: 'any_vote' (public code: one is enough), 'top_k' (the `top` entries with most votes; at a tie the first), or
      'majority' (votes of at least half of the samples).
    top: for 'top_k'.
  """
  if keep == 'any_vote':
    return counts >= 1
  if keep == 'majority':
    return counts >= max(1, -(-num_samples // 2))
  kept = np.zeros(counts.size, bool)
  kept[np.argsort(-counts.ravel(), kind='stable')[:top]] = True
  return kept.reshape(counts.shape) & (counts >= 1)
