"""Influence of parameters on a set of failing samples against that on a set of passing ones: gradients, ratio, masks.

I_S is the gradient of the mean cross-entropy of the specific samples that are still wrong; I_G that of the mean L1 norm
of the logits of the general samples, labels not used. A parameter is open to repair where
(|I_S| + 1e-8) / (gamma |I_G| + 1e-8) >= 1, which includes those that influence neither.

Source: Henriksen, Leofante, Lomuscio, "Repairing Misclassifications in Neural Networks Using Limited Data", SAC 2022,
and its public code. There, gradients are of one full batch; here they are sums over batches, so memory is bounded.
"""
import dataclasses
import math
from typing import Literal

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxfix.classifier import Classifier, Params
from jaxfix.localize.batches import Batches
from jaxfix.localize.gradient_loss import cross_entropy
from jaxfix.models import layers, structure

GeneralInfluence = Literal['abs_logits', 'ce']
TrainOn = Literal['both', 'specific']

_EPSILON = 1e-8
_MOST_ROWS = 256


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Influences:
  """What one pass over both sets gives.

  Attributes:
    specific, general: I_S and I_G, signed, trees like the parameters.
    gradient: of `loss`, a tree like the parameters.
    loss: mean cross-entropy over the samples that are trained on, nats.
    num_remaining: specific samples that are still wrong, float32.
  """
  specific: Params
  general: Params
  gradient: Params
  loss: jax.Array
  num_remaining: jax.Array


def influences(classifier: Classifier, specific: Batches, general: Batches, *, tau: float = 0.,
               general_influence: GeneralInfluence = 'abs_logits', train_on: TrainOn = 'both',
               dropout: bool = False, key: jax.Array | None = None) -> Influences:
  """Both influences and the gradient of the training loss, in one pass over both sets. Pure; call it inside `jit`.

  Where dropout is off, the forward pass of a sample is shared by its influence and its part of the loss.

  Args:
    classifier: the network; BatchNorm uses running statistics throughout.
    specific, general: S and G, in batches of the same size: they are one scan, so that a network is compiled once.
    tau: see `remaining`; static.
    general_influence: 'abs_logits', or 'ce' for the cross-entropy of G in place of the L1 norm; static.
    train_on: the samples of the loss: both sets, or the specific one; static.
    dropout: drop units in the passes of the loss (never in those of the influences); static.
    key: for dropout; consumed.
  """
  chex.assert_equal_shape_suffix([specific.x, general.x], specific.x.ndim - 1)

  def logits_of(params, z, key):
    return _logits_with_dropout(classifier.with_params(params), z, key)

  def add(total, item):
    batch, is_specific, key = item
    z = classifier.normalize(batch.x)
    logits, pull = jax.vjp(lambda p: classifier.with_params(p).logits_of_normalized(z), classifier.params)
    weight = jnp.where(is_specific, batch.weight * remaining(logits, batch.y, tau), batch.weight)

    def influence_of(f):
      norm = jnp.abs(f).sum(axis=-1) if general_influence == 'abs_logits' else cross_entropy(f, batch.y)
      return (weight * jnp.where(is_specific, cross_entropy(f, batch.y), norm)).sum()

    def loss_of(f):
      trained = batch.weight if train_on == 'both' else batch.weight * is_specific
      return (trained * cross_entropy(f, batch.y)).sum()

    influence, = pull(jax.grad(influence_of)(logits))
    if dropout:
      logits, pull = jax.vjp(lambda p: logits_of(p, z, key), classifier.params)
    loss, slope = jax.value_and_grad(loss_of)(logits)
    gradient, = pull(slope)
    slot = is_specific.astype(jnp.int32)
    by_set, counts, *rest = total
    by_set = jax.tree.map(lambda t, g: t.at[slot].add(g), by_set, influence)
    return (by_set, counts.at[slot].add(weight.sum()), *jax.tree.map(jnp.add, tuple(rest), (gradient, loss))), None

  batches = jax.tree.map(lambda s, g: jnp.concatenate([s, g]), specific, general)
  is_specific = jnp.arange(batches.y.shape[0]) < specific.y.shape[0]
  keys = jax.random.split(jax.random.key(0) if key is None else key, len(is_specific))
  params = dict(classifier.params)
  start = (jax.tree.map(lambda p: jnp.zeros((2, *p.shape)), params), jnp.zeros(2), jax.tree.map(jnp.zeros_like, params),
           jnp.float32(0))
  (by_set, counts, gradient, loss), _ = jax.lax.scan(add, start, (batches, is_specific, keys))
  num_trained = batches.count if train_on == 'both' else specific.count
  i_g, i_s = (jax.tree.map(lambda t, slot=slot: t[slot] / jnp.maximum(counts[slot], 1), by_set) for slot in (0, 1))
  return Influences(i_s, i_g, jax.tree.map(lambda g: g / num_trained, gradient), loss / num_trained, counts[1])


def remaining(logits: jax.Array, y: jax.Array, tau: float = 0.) -> jax.Array:
  """`[n]` bool: the sample still counts as wrong.

  With `tau` 0 it is right if its own logit is the largest, ties included; with `tau` > 0 if its softmax output exceeds
  that of every other class by `tau`. NaN is wrong.
  """
  own = jnp.where(jnp.arange(logits.shape[-1]) == y[:, None], logits, 0).sum(axis=-1)
  if not tau:
    return ~(own >= logits.max(axis=-1))
  return ~(softmax_margin(logits, y, tau) <= 0)


def softmax_margin(logits: jax.Array, y: jax.Array, tau: float) -> jax.Array:
  """max(0, p_adv - p_y + tau), `[n]`; p the softmax, p_adv its largest value among the other classes."""
  p, own = jax.nn.softmax(logits), jnp.arange(logits.shape[-1]) == y[:, None]
  return jnp.maximum(0, jnp.where(own, -jnp.inf, p).max(axis=-1) - jnp.where(own, p, 0).sum(axis=-1) + tau)


def influence_ratio(specific: Params, general: Params, gamma: jax.Array | float) -> Params:
  """(|I_S| + 1e-8) / (gamma |I_G| + 1e-8), entry by entry; trees of any one structure."""
  return jax.tree.map(lambda s, g: (jnp.abs(s) + _EPSILON) / (gamma * jnp.abs(g) + _EPSILON), specific, general)


def edge_mask(specific: Params, general: Params, gamma: jax.Array | float) -> Params:
  """True where the ratio is at least 1: these entries may move."""
  return jax.tree.map(lambda ratio: ratio >= 1, influence_ratio(specific, general, gamma))


def node_ratio(specific: jax.Array, general: jax.Array, gamma: jax.Array | float) -> jax.Array:
  """The ratio of input nodes of a dense layer, `[in]`, from the gradients `[in, out]` of its kernel.

  A node's influence is the sum of its outgoing entries' gradients, sign kept.
  """
  return influence_ratio(specific.sum(axis=-1), general.sum(axis=-1), gamma)


def node_mask(specific: jax.Array, general: jax.Array, gamma: jax.Array | float) -> jax.Array:
  """`[in, out]` bool: all outgoing entries of the nodes whose ratio exceeds 1."""
  return jnp.broadcast_to(node_ratio(specific, general, gamma)[:, None] > 1, specific.shape)


def rows_per_batch(classifier: Classifier, budget_bytes: int | None = None) -> int:
  """Samples a batch, at most 256, so that the activations which a gradient needs fit a budget.

  Args:
    classifier: the network.
    budget_bytes: None for 256 MiB on CPU and 4 GiB on an accelerator.
  """
  if budget_bytes is None:
    budget_bytes = 256 << 20 if jax.default_backend() == 'cpu' else 4 << 30
  values = sum(math.prod(layer.output_shape) for layer in structure.layer_list(classifier))
  each = 8 * values   # with derivatives
  return int(min(_MOST_ROWS, max(1, budget_bytes // each)))


def _logits_with_dropout(classifier: Classifier, z: jax.Array, key: jax.Array) -> jax.Array:
  """Logits with dropout as in training and everything else, BatchNorm above all, in evaluation mode."""
  def interceptor(next_fun, args, kwargs, context):
    if isinstance(context.module, layers.Dropout) and context.method_name == '__call__':
      return next_fun(args[0], True)
    return next_fun(*args, **kwargs)

  with nn.intercept_methods(interceptor):
    return classifier.module.apply(classifier.variables, z, train=False, rngs={'dropout': key})

