"""Networks with a few kernel entries changed, evaluated many at a time.

A patched layer is computed as (the layer with its old kernel) + (what the changed entries add). The second part needs
only the inputs that meet those entries, so that no candidate ever has a kernel of its own: under `vmap` over candidates
the large products keep shared weights, whatever layer the targets lie in, and everything before the first patch, the
first patched layer's old output included, is computed once for all candidates. If the targets lie in the output layer,
what is left per candidate is one small product, `logits[:, J] += x[:, I] * delta`.
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

Patch = tuple[jax.Array, ...]
"""For each layer with targets, `[slots, channels]`: what each slot adds to each output channel, per unit of input."""

_UNROLLED_SLOTS = 16


def make_patch(classifier: Classifier, targets: Targets, vector: jax.Array) -> Patch:
  """The patch that sets the targets to `vector` `[d]`; `vmap` it over a population.

  Make patches outside the loop that uses them: inside, XLA on CPU would fuse their making into the loop over samples
  and repeat it for every number that they are multiplied with.
  """
  deltas = targets.split(jnp.where(targets.used, vector - values(targets, classifier), 0.))
  rows = []
  for path, index, delta in zip(targets.layers, targets.index, deltas, strict=True):
    channels = kernel(classifier, path).shape[-1]
    rows.append(jax.nn.one_hot(index % channels, channels) * delta[:, None])
  return tuple(rows)


def patched_suffix(classifier: Classifier, cache: intervene.Cache, targets: Targets, patch: Patch) -> jax.Array:
  """Logits `[n, c]` of the patched network.

  Equal, up to rounding, to `intervene.suffix` of the network that `localize.targets.write` gives.

  Args:
    classifier: the unpatched network.
    cache: `intervene.prefix(classifier, z, targets.layers)`.
    targets: the entries.
    patch: their change, from `make_patch`.
  """
  changes = {path: change for path, *change in zip(targets.layers, targets.index, patch, strict=True)}
  with nn.intercept_methods(functools.partial(_add_patch, classifier, changes)):
    return intervene.suffix(classifier, cache, targets.layers)


def _add_patch(classifier: Classifier, changes: dict[str, list[jax.Array]], next_fun: Callable[..., Any], args: tuple,
               kwargs: dict, context: Any) -> Any:
  out = next_fun(*args, **kwargs)
  path = '/'.join(context.module.path)
  if context.method_name != '__call__' or path not in changes:
    return out
  # `intervene` sorts values into before and after the cut by data flow; the barrier puts this use of the input after.
  x, out = jax.lax.optimization_barrier((args[0], out))
  index, rows = changes[path]
  taps = _taps(index, kernel(classifier, path).shape, getattr(context.module, 'feature_group_count', 1))
  seen = linear_map(context.module, features=index.size, groups=1)(taps, x)  # [n, ..., slots]
  if index.size > _UNROLLED_SLOTS:
    return out + seen @ rows
  # A sum of few products fuses with what reads it; a matrix product of so short an inner axis would be stored first.
  return out + sum(seen[..., t, None] * rows[t] for t in range(index.size))


def _taps(index: jax.Array, shape: tuple[int, ...], groups: int) -> jax.Array:
  """Kernel `[..., cin, slots]` that picks, for each slot, the input that meets kernel entry `index`; zeros if unused."""
  *window, channels_in, channels_out = shape
  entry, channel = index // channels_out, index % channels_out
  place, within = entry // channels_in, entry % channels_in
  group = channel // (channels_out // groups)
  size = functools.reduce(lambda a, b: a * b, window, 1) * channels_in * groups
  flat = (place * groups + group) * channels_in + within
  flat = jnp.where(entry < size // groups, flat, size)  # unused slots lie outside and are dropped
  taps = jnp.zeros((size, index.size)).at[flat, jnp.arange(index.size)].set(1., mode='drop')
  return taps.reshape(*window, channels_in * groups, index.size)
