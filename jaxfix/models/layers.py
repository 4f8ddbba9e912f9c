"""The layers that networks here are made of, each a Flax module, so that each has a path and can be intervened on.

`models.structure` lists and counts the layers of a network made of them.
"""
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxfix.errors import UnknownNameError
from jaxfix.models import convolution

Pads = tuple[tuple[int, int], tuple[int, int]]

Dense = nn.Dense
Conv = functools.partial(nn.Conv, conv_general_dilated=convolution.conv_general_dilated,
                         kernel_init=nn.initializers.he_normal())
"""`nn.Conv` with the same parameters, He initialization, and a lowering that is fast on CPU too."""


def pad_evenly(pixels: int) -> Pads:
  """The explicit padding of `pixels` on every side: 'SAME' at stride 2 would pad unevenly."""
  return (pixels, pixels), (pixels, pixels)


class BatchNorm(nn.Module):
  """Batch normalization over all axes but the last; running statistics in evaluation mode.

  Parameters `scale`, `bias`; batch statistics `mean`, `var` (biased, as Keras keeps them). Not a wrapper of
  `nn.BatchNorm`: a module inside would be a second call at the same path, which interventions would see twice.

  Attributes:
    epsilon: added to the variance, > 0.
    momentum: share of the old running value in the new one, in [0, 1].
    use_scale, use_bias: whether the affine parameters exist.
  """
  epsilon: float = 1e-5
  momentum: float = 0.9
  use_scale: bool = True
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    c = x.shape[-1:]
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, c, jnp.float32)
    running_var = self.variable('batch_stats', 'var', jnp.ones, c, jnp.float32)
    if train:
      axes = tuple(range(x.ndim - 1))
      mean, var = x.mean(axes), x.var(axes)
      if not self.is_initializing():
        running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
        running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var
    else:
      mean, var = running_mean.value, running_var.value
    factor = jax.lax.rsqrt(var + self.epsilon)
    if self.use_scale:
      factor = factor * self.param('scale', nn.initializers.ones, c, jnp.float32)
    along_channels = (1,) * (x.ndim - 1) + c
    y = (x - mean.reshape(along_channels)) * factor.reshape(along_channels)
    if self.use_bias:
      y = y + self.param('bias', nn.initializers.zeros, c, jnp.float32).reshape(along_channels)
    return y


class Relu(nn.Module):
  """max(x, 0)."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return nn.relu(x)


class Tanh(nn.Module):
  """Hyperbolic tangent."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return jnp.tanh(x)


class Sigmoid(nn.Module):
  """1 / (1 + exp(-x))."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return nn.sigmoid(x)


class Softmax(nn.Module):
  """Softmax over the last axis. Inside a network only: classifiers here end in logits."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return nn.softmax(x)


class MaxPool(nn.Module):
  """Maximum over windows of `[n, h, w, c]`; `padding` is 'VALID', 'SAME' or pairs for height and width."""
  window: tuple[int, int]
  strides: tuple[int, int] | None = None
  padding: str | Pads = 'VALID'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return convolution.max_pool(x, self.window, self.strides or self.window, self.padding)


class AvgPool(nn.Module):
  """Mean over windows of `[n, h, w, c]`; `count_pads` tells whether padding counts as zeros or not at all."""
  window: tuple[int, int]
  strides: tuple[int, int] | None = None
  padding: str | Pads = 'VALID'
  count_pads: bool = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    pool = lambda v: convolution.avg_pool(v, self.window, self.strides or self.window, self.padding)
    if self.count_pads or self.padding == 'VALID':
      return pool(x)
    return pool(x) / pool(jnp.ones((1, *x.shape[1:3], 1), x.dtype))  # the share of each window that is image


class AdaptiveAvgPool(nn.Module):
  """Means over `size` windows that cover height and width: `[n, h, w, c]` to `[n, *size, c]`.

  Window i of s covers rows floor(i h / s) to ceil((i + 1) h / s); where h < s, rows are repeated (the reference
  framework's definition).
  """
  size: tuple[int, int]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    for axis, s in zip((1, 2), self.size, strict=True):
      h = x.shape[axis]
      windows = [(i * h // s, -(-(i + 1) * h // s)) for i in range(s)]
      x = jnp.stack([jax.lax.slice_in_dim(x, start, stop, axis=axis).mean(axis) for start, stop in windows], axis)
    return x


class GlobalAvgPool(nn.Module):
  """Mean over height and width: `[n, h, w, c]` to `[n, c]`."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return x.mean(axis=(1, 2))


class GlobalMaxPool(nn.Module):
  """Maximum over height and width: `[n, h, w, c]` to `[n, c]`."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return x.max(axis=(1, 2))


class ZeroPad(nn.Module):
  """Zeros around height and width, `((top, bottom), (left, right))`."""
  padding: Pads

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return jnp.pad(x, ((0, 0), *self.padding, (0, 0)))


class Flatten(nn.Module):
  """`[n, ...]` to `[n, d]`, row-major (height, width, channel)."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1)


class Reshape(nn.Module):
  """Each sample, read row by row, in another shape: `[n, ...]` to `[n, *shape]`."""
  shape: tuple[int, ...]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], *self.shape)


class Transpose(nn.Module):
  """Each sample with its axes in the order `axes`; 0 is the first axis after that of the batch."""
  axes: tuple[int, ...]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return x.transpose(0, *(1 + axis for axis in self.axes))


class Slice(nn.Module):
  """Part of each sample: entries `starts[i]`, `starts[i] + strides[i]`, ... before `stops[i]` of axis i of a sample."""
  starts: tuple[int, ...]
  stops: tuple[int, ...]
  strides: tuple[int, ...]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return jax.lax.slice(x, (0, *self.starts), (x.shape[0], *self.stops), (1, *self.strides))


class Mean(nn.Module):
  """Mean over the axes `axes`, which vanish; 0 is the first axis after that of the batch."""
  axes: tuple[int, ...]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    return x.mean(axis=tuple(1 + axis for axis in self.axes))


class Shift(nn.Module):
  """A constant added or subtracted. Parameter `shift`, of the shape that is given.

  Attributes:
    shape: of the constant; it has the axes of one sample, 1 where it is repeated.
    form: 'x + c', 'x - c' or 'c - x'. One operation each, so that the constant is the one in the file it came from.
  """
  shape: tuple[int, ...]
  form: str = 'x + c'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    apply = choose('form', self.form, {'x + c': jnp.add, 'x - c': jnp.subtract, 'c - x': lambda x, c: c - x})
    return apply(x, self.param('shift', nn.initializers.zeros, self.shape, jnp.float32)[None])


class Scale(nn.Module):
  """Multiplication or division by a constant. Parameter `scale`, of the shape that is given.

  Attributes:
    shape: of the constant; it has the axes of one sample, 1 where it is repeated.
    form: 'x * c' or 'x / c'. One operation each, so that the constant is the one in the file it came from.
  """
  shape: tuple[int, ...]
  form: str = 'x * c'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    apply = choose('form', self.form, {'x * c': jnp.multiply, 'x / c': jnp.divide})
    return apply(x, self.param('scale', nn.initializers.ones, self.shape, jnp.float32)[None])


class Dropout(nn.Module):
  """Inverted dropout at `rate` in [0, 1) in training (rng stream 'dropout'); identity otherwise."""
  rate: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    if not train or not self.rate:
      return x
    keep = jax.random.bernoulli(self.make_rng('dropout'), 1 - self.rate, x.shape)
    return jnp.where(keep, x / (1 - self.rate), 0.)


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


def variable_shapes(module: nn.Module, input_shape: Sequence[int]) -> Mapping[str, Any]:
  """The variables of a network as `jax.ShapeDtypeStruct`s; nothing is computed or allocated."""
  z = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
  return jax.eval_shape(lambda z: module.init(jax.random.key(0), z, train=False), z)


def choose(option: str, value: str, choices: Mapping[str, Any]) -> Any:
  """`choices[value]`, for an attribute of a network that names one of its forms.

  Raises:
    UnknownNameError: `value` is not one of them; the message names `option`.
  """
  if value not in choices:
    raise UnknownNameError(option, value, choices)
  return choices[value]


def widths(base: Sequence[int], width: float) -> tuple[int, ...]:
  """`base` channel counts times the `width` multiplier, at least 1 each, rounded to the nearest integer."""
  return tuple(max(1, math.floor(b * width + 0.5)) for b in base)
