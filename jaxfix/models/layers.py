"""The layers that networks here are made of, each a Flax module, so that each has a path and can be intervened on.

`layer_list` gives the layers of any network made of them, in order.
"""
import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxfix.classifier import Classifier
from jaxfix.models import convolution

Dense = nn.Dense
Conv = functools.partial(nn.Conv, conv_general_dilated=convolution.conv_general_dilated)
"""`nn.Conv` with the same parameters and a lowering that is fast on CPU too."""


class BatchNorm(nn.Module):
  """Batch normalization over all axes but the last; running statistics in evaluation mode.

  Parameters `scale`, `bias`; batch statistics `mean`, `var`. `momentum` is the share of the old running value.
  """
  epsilon: float = 1e-5
  momentum: float = 0.9

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    norm = nn.BatchNorm(use_running_average=not train, momentum=self.momentum, epsilon=self.epsilon)
    nn.share_scope(self, norm)  # parameters lie at this module's own path
    return norm(x)


class Relu(nn.Module):
  """max(x, 0)."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return nn.relu(x)


class MaxPool(nn.Module):
  """Maximum over windows of `[n, h, w, c]`; `padding` is 'VALID', 'SAME' or pairs for height and width."""
  window: tuple[int, int]
  strides: tuple[int, int] | None = None
  padding: str | tuple[tuple[int, int], ...] = 'VALID'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return convolution.max_pool(x, self.window, self.strides or self.window, self.padding)


class AvgPool(nn.Module):
  """Mean over windows of `[n, h, w, c]`."""
  window: tuple[int, int]
  strides: tuple[int, int] | None = None
  padding: str | tuple[tuple[int, int], ...] = 'VALID'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return convolution.avg_pool(x, self.window, self.strides or self.window, self.padding)


class GlobalAvgPool(nn.Module):
  """Mean over height and width: `[n, h, w, c]` to `[n, c]`."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return x.mean(axis=(1, 2))


class ZeroPad(nn.Module):
  """Zeros around height and width, `((top, bottom), (left, right))`."""
  padding: tuple[tuple[int, int], tuple[int, int]]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), *self.padding, (0, 0)))


class Flatten(nn.Module):
  """`[n, ...]` to `[n, d]`, row-major (height, width, channel)."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


class Dropout(nn.Module):
  """Inverted dropout at `rate` in training (rng stream 'dropout'); identity otherwise."""
  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    return nn.Dropout(self.rate, deterministic=not train)(x)


class Add(nn.Module):
  """Sum of its arguments: the end of a residual unit."""

  @nn.compact
  def __call__(self, *xs: jax.Array) -> jax.Array:
    return sum(xs[1:], start=xs[0])


class Concat(nn.Module):
  """Its arguments one after the other along the channels."""

  @nn.compact
  def __call__(self, *xs: jax.Array) -> jax.Array:
    return jnp.concatenate(xs, axis=-1)


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer of a network: `kind` is one of the values of `KINDS`; shapes are those of one sample."""
  name: str
  kind: str
  path: str
  input_shape: tuple[int, ...]
  output_shape: tuple[int, ...]


KINDS = {nn.Conv: 'conv', nn.Dense: 'dense', BatchNorm: 'bn', Relu: 'relu', MaxPool: 'maxpool', AvgPool: 'avgpool',
         GlobalAvgPool: 'gap', ZeroPad: 'zeropad', Flatten: 'flatten', Dropout: 'dropout', Add: 'add',
         Concat: 'concat'}


def layer_list(classifier: Classifier) -> tuple[Layer, ...]:
  """The layers of a network in the order in which a forward pass calls them; composite modules are looked into.

  Works on any Flax module made of the layers in this file; other leaf modules are not listed.
  """
  found = []

  def note(next_fun, args, kwargs, context):
    out = next_fun(*args, **kwargs)
    kind = KINDS.get(type(context.module))
    if context.method_name == '__call__' and kind:
      path = context.module.path
      found.append(Layer(path[-1], kind, '/'.join(path), args[0].shape[1:], out.shape[1:]))
    return out

  z = jax.ShapeDtypeStruct((1, *classifier.input_shape), jnp.float32)
  with nn.intercept_methods(note):
    jax.eval_shape(lambda v, z: classifier.module.apply(v, z, train=False), classifier.variables, z)
  return tuple(found)


def widths(base: Sequence[int], width: float) -> tuple[int, ...]:
  """`base` channel counts times the `width` multiplier, at least 1 each, rounded to the nearest integer."""
  return tuple(max(1, math.floor(b * width + 0.5)) for b in base)
