"""Networks with a few kernel entries changed, evaluated many at a time.

A patched layer is computed as (layer with its old kernel) + (what the changed entries add). The second part needs only
the inputs that meet those entries, so that no candidate ever has a kernel of its own: under `vmap` over candidates the
large products keep shared weights, whatever layer the targets lie in, and everything before the first patch, the first
patched layer's old output included, is computed once for all candidates. If the targets lie in the output layer, what
is left per candidate is one small matrix product, `logits[:, J] += x[:, I] * delta`.
"""
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxfix import intervene
from jaxfix.classifier import Classifier
from jaxfix.localize.linear import kernel, linear_map
from jaxfix.localize.targets import Targets, values


def patched_suffix(classifier: Classifier, cache: intervene.Cache, targets: Targets, vector: jax.Array) -> jax.Array:
  """Logits `[n, c]` of the network with `vector` at the targets.

  Equal to `intervene.suffix(write(targets, classifier, vector), cache, targets.layers)` up to rounding.

  Args:
    classifier: the unpatched network.
    cache: `intervene.prefix(classifier, z, targets.layers)`.
    targets: the entries.
    vector: `[d]` their new values.
  """
  deltas = targets.split(jnp.where(targets.used, vector - values(targets, classifier), 0.))
  patches = {path: (index, delta) for path, index, delta in zip(targets.layers, targets.index, deltas, strict=True)}
  with nn.intercept_methods(functools.partial(_add_patch, classifier, patches)):
    return intervene.suffix(classifier, cache, targets.layers)


def _add_patch(classifier: Classifier, patches: dict[str, tuple[jax.Array, jax.Array]], next_fun: Callable[..., Any],
               args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
  out = next_fun(*args, **kwargs)
  path = '/'.join(context.module.path)
  if context.method_name != '__call__' or path not in patches:
    return out
  # `intervene` sorts values into before and after the cut by data flow; the barrier puts this use of the input after.
  x, out = jax.lax.optimization_barrier((args[0], out))
  return out + _contribution(context.module, kernel(classifier, path).shape, x, *patches[path])


def _contribution(module: nn.Module, shape: tuple[int, ...], x: jax.Array, index: jax.Array,
                  delta: jax.Array) -> jax.Array:
  """What kernel entries `index` `[k]` add to the output of a layer with input `x` if each grows by `delta` `[k]`."""
  channels = shape[-1]
  if getattr(module, 'feature_group_count', 1) > 1:
    grown = jnp.zeros(shape).ravel().at[index].set(delta, mode='drop').reshape(shape)
    return linear_map(module)(grown, x)
  slots = jnp.arange(index.size)
  size = jnp.size(jnp.empty(shape)) if not shape else functools.reduce(lambda a, b: a * b, shape)
  tap = jnp.where(index < size, index // channels, size)
  taps = jnp.zeros((size // channels, index.size)).at[tap, slots].set(1., mode='drop')
  seen = linear_map(module, features=index.size)(taps.reshape(*shape[:-1], index.size), x)  # [n, ..., k]
  spread = jax.nn.one_hot(index % channels, channels) * delta[:, None]
  # A sum of few products fuses with what reads it; a matrix product of so short an inner axis would be stored first.
  return sum(seen[..., t, None] * spread[t] for t in range(index.size))
