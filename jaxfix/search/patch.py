"""Networks with a few kernel entries changed, evaluated many at a time.

A patched layer is computed as (the layer with its old kernel) + (what the changed entries add). The second part needs
only the inputs that meet those entries, so that no candidate ever has a kernel of its own: under `vmap` over candidates
the large products keep shared weights, whatever layer the targets lie in, and everything before the first patch, the
first patched layer's old output included, is computed once for all candidates. If the targets lie in the output layer,
what is left per candidate is one small product, `logits[:, J] += x[:, I] * delta`.

Behind the first patched layer only the channels of its targets differ from the old network. They are followed through
ReLU and pooling to the next Dense or Conv layer, of which a candidate then costs the rows of those channels alone:
(layer of the old activations) + (rows of the changed channels) * (their change).
"""
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxfix import intervene
from jaxfix.classifier import Classifier
from jaxfix.localize.linear import kernel, linear_map
from jaxfix.localize.targets import UNUSED, Targets, values
from jaxfix.models import layers, structure

Patch = tuple[jax.Array, ...]
"""For each layer with targets, `[slots, channels]`: what each slot adds to each output channel, per unit of input."""

_UNROLLED_SLOTS = 16
_CHANNELWISE = (layers.Relu, layers.MaxPool, layers.AvgPool, layers.GlobalAvgPool, layers.Dropout)


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
  kernels = {path: kernel(classifier, path) for path in _kernel_paths(classifier)}
  with nn.intercept_methods(functools.partial(_call, kernels, changes, {})):
    return intervene.suffix(classifier, cache, targets.layers)


@dataclasses.dataclass(frozen=True)
class _Lean:
  """An activation of which all but a few channels are those of the unpatched network.

  Attributes:
    full: the whole activation, per candidate; never computed if nothing reads it.
    base: the same in the unpatched network, `[n, ..., channels]`, or flattened.
    channels: `[k]` int32, which ones differ.
    counted: `[k]` bool, False for slots that repeat an earlier one's channel and for unused ones.
    old, new: `[1, ..., k * n]` those channels of `base` and of `full`, not flattened, with the samples of a channel one
      after the other as channels of their own: to a function that treats each channel by itself it is all the same, and
      its innermost loop is long.
  """
  full: jax.Array
  base: jax.Array
  channels: jax.Array
  counted: jax.Array
  old: jax.Array
  new: jax.Array

  def apply(self, function: Callable[[jax.Array], jax.Array]) -> '_Lean':
    """After a function that treats each channel by itself."""
    return dataclasses.replace(self, full=function(self.full), base=function(self.base), old=function(self.old),
                               new=function(self.new))

  def change(self, weights: jax.Array, module: nn.Module) -> jax.Array:
    """What the changed channels add to a Dense or Conv layer with kernel `weights` `[..., channels, out]`.

    Where the activation was flattened before a Dense layer, that has a row for each position and channel.
    """
    change = self.new - self.old
    space, samples = change.shape[1:-1], self.base.shape[0]
    if self.base.ndim == 2:
      rows = weights.reshape(math.prod(space), -1, weights.shape[-1])[:, self.channels] * self.counted[:, None]
      return jnp.einsum('pkn,pko->no', change.reshape(math.prod(space), -1, samples), rows)
    rows = weights[..., self.channels, :] * self.counted[:, None]
    change = jnp.moveaxis(change.reshape(*space, -1, samples), -1, 0)
    return linear_map(module, features=weights.shape[-1])(rows, change)


def _call(kernels: dict[str, jax.Array], changes: dict[str, list[jax.Array]], lean: dict[int, _Lean],
          next_fun: Callable[..., Any], args: tuple, kwargs: dict, context: Any) -> Any:
  """Interceptor of module calls. `lean` maps the id of a traced activation to what is known about it."""
  module, path = context.module, '/'.join(context.module.path)
  if context.method_name != '__call__' or not args:
    return next_fun(*args, **kwargs)
  known = lean.get(id(args[0]))
  if known and isinstance(module, (*_CHANNELWISE, layers.Flatten)):
    if isinstance(module, layers.Flatten):
      known = dataclasses.replace(known, full=next_fun(known.full), base=next_fun(known.base))
    else:
      known = known.apply(lambda a: next_fun(a, *args[1:], **kwargs))
    lean[id(known.full)] = known
    return known.full
  if known and not _is_linear(module):
    known = None
  if path not in changes:
    return next_fun(known.base) + known.change(kernels[path], module) if known else next_fun(*args, **kwargs)

  index, rows = changes[path]
  taps = _taps(index, kernels[path].shape, getattr(module, 'feature_group_count', 1))
  wide = functools.partial(linear_map(module, features=index.size, groups=1), taps)
  if known:
    out = next_fun(known.base) + known.change(kernels[path], module)
    return out + _spread(wide(known.base) + known.change(taps, module), rows)
  out = next_fun(*args)
  # `intervene` sorts values into before and after the cut by data flow; the barrier puts this use of the input after.
  x, out = jax.lax.optimization_barrier((args[0], out))
  seen = wide(x)  # [n, ..., slots]
  full = out + _spread(seen, rows)
  channels = index % rows.shape[-1]
  if 2 * index.size <= rows.shape[-1]:
    repeats = (channels[:, None] == channels) & jnp.tri(index.size, k=-1, dtype=bool)
    counted = (index != UNUSED) & ~(repeats & (index != UNUSED)).any(axis=1)
    old, folded = (jnp.moveaxis(a, 0, -1) for a in (out[..., channels], seen))    # [..., k, n] and [..., slots, n]
    if index.size > _UNROLLED_SLOTS:
      added = jnp.einsum('...tn,tk->...kn', folded, rows[:, channels])
    else:
      added = sum(folded[..., t, None, :] * rows[t, channels, None] for t in range(index.size))
    old, new = (a.reshape(1, *a.shape[:-2], -1) for a in (old, old + added))
    lean[id(full)] = _Lean(full, out, channels, counted, old, new)
  return full


def _is_linear(module: nn.Module) -> bool:
  return isinstance(module, nn.Dense) or (isinstance(module, nn.Conv) and module.feature_group_count == 1)


def _spread(seen: jax.Array, rows: jax.Array) -> jax.Array:
  """`seen` `[n, ..., slots]` times `rows` `[slots, channels]`."""
  if rows.shape[0] > _UNROLLED_SLOTS:
    return seen @ rows
  # A sum of few products fuses with what reads it; a matrix product of so short an inner axis would be stored first.
  return sum(seen[..., t, None] * rows[t] for t in range(rows.shape[0]))


def _taps(index: jax.Array, shape: tuple[int, ...], groups: int) -> jax.Array:
  """Kernel `[..., cin, slots]` that picks, for each slot, the input that meets kernel entry `index`; 0 if unused."""
  *window, channels_in, channels_out = shape
  entry, channel = index // channels_out, index % channels_out
  place, within = entry // channels_in, entry % channels_in
  group = channel // (channels_out // groups)
  size = math.prod(window) * channels_in * groups
  flat = jnp.where(index < math.prod(shape), (place * groups + group) * channels_in + within, size)  # else dropped
  taps = jnp.zeros((size, index.size)).at[flat, jnp.arange(index.size)].set(1., mode='drop')
  return taps.reshape(*window, channels_in * groups, index.size)


def _kernel_paths(classifier: Classifier) -> list[str]:
  return [layer.path for layer in structure.layer_list(classifier) if layer.kind in ('dense', 'conv')]
