"""Convolution and pooling that XLA compiles well on CPU, with the results of `lax` up to the order of summation.

On CPU a convolution becomes a copy of the input into patches and one matrix product. That matters where XLA's own
lowering is slow: a kernel with more taps than the image has pixels (3x3x512 on 2x2, the end of VGG16: 885 ms against
8), the gradient with one input channel, and a `vmap` over kernels and inputs, which would be a grouped convolution.
All of it is plain array code, so every transformation works, and a `vmap` over kernels is a matrix product with a batch
axis. On other platforms, and for dilated, grouped or non-NHWC convolutions, `lax.conv_general_dilated` runs.

Times here are CPU milliseconds under jax 0.10.2, batch 32 unless said otherwise, least of several runs.
"""
import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from jaxfix.errors import require

Pads = tuple[tuple[int, int], tuple[int, int]]
Padding = str | Sequence[tuple[int, int]]

PATCH_BYTES = 4 * 2**20
"""Patches made at a time where the batch is cut: about a second-level cache. 3x3x64 on 32x32 takes 53 ms in chunks of
4.5 MiB, 71 of 9, 98 of 36, and 115 uncut (75 MiB)."""

PATCHES_PER_WEIGHT = 2
"""A chunk may also have this many times the kernel's bytes, since every chunk reads the kernel again: 3x3x512 on 4x4,
value and gradient, takes 78 ms uncut (9 MiB), 87 in two chunks, 110 in eight."""

PATCH_LIMIT_BYTES = 256 * 2**20
"""No chunk has more; where the patches of a single image would, `lax` convolves."""

_NARROW_CHANNELS = 7   # up to half a cache line a tap: there, copying tap by tap costs more than multiplying zeros
_STRIP_COLUMNS = 48    # most columns of the matrix of a strip; beyond, the zeros cost more than the copies
_MOST_STRIPS = 4       # parts that a row of outputs is cut into
_UNROLLED_WINDOW = 16  # most pixels of a pooling window whose ties are counted one by one: faster, but more code


_single_operations = contextvars.ContextVar('single_operations', default=False)


@contextlib.contextmanager
def as_single_operations() -> Iterator[None]:
  """Within it, convolution and max pooling are traced as one operation of `lax` each, on every platform: for readers
  of a traced program (`verify.graph`), to whom patches and views would say less."""
  token = _single_operations.set(True)
  try:
    yield
  finally:
    _single_operations.reset(token)


def conv_general_dilated(lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int], padding: Padding,
                         lhs_dilation: Sequence[int] | None = None, rhs_dilation: Sequence[int] | None = None,
                         dimension_numbers=None, feature_group_count: int = 1, batch_group_count: int = 1,
                         precision=None, preferred_element_type=None) -> jax.Array:
  """`lax.conv_general_dilated`, argument for argument; give it to `flax.linen.Conv(conv_general_dilated=...)`.

  Which lowering runs is decided when the function is traced, from `jax.default_backend()` and the shapes. The one for
  CPU takes real floating-point NHWC images and HWIO kernels without dilation or groups, any stride, and any padding
  that crops nothing. It differs from `lax` in two ways: sums run in another order (about 1e-6 of the largest term);
  and with fewer than 8 input channels and few output channels a NaN or infinity in the input may spread along its row
  of the output, as it is multiplied by zeros.

  Memory: the patches of a chunk, at most max(`PATCH_BYTES`, `PATCHES_PER_WEIGHT` times the kernel) or, uncut, what the
  input and the output take; for each member of a `vmap` over inputs. Of a batch that was cut, gradients make the
  patches again (as fast as keeping them: 178 ms against 190 to 240 for 3x3x64 on 32x32), so none are kept.

  Args:
    lhs: images, `[n, h, w, cin]` on the fast path.
    rhs: kernel, `[kh, kw, cin, cout]` on the fast path.
    window_strides: two positive integers.
    padding: 'SAME', 'SAME_LOWER', 'VALID', or (before, after) for height and width.
    lhs_dilation, rhs_dilation, feature_group_count, batch_group_count: as in `lax`; other than 1 goes to `lax`.
    dimension_numbers: as in `lax`; other than ('NHWC', 'HWIO', 'NHWC') goes to `lax`.
    precision: of the matrix product, as in `lax`.
    preferred_element_type: dtype of accumulation and result; None for that of the arguments.
  Returns:
    `[n, oh, ow, cout]`.
  Raises:
    TypeError, ValueError: from `lax`, for shapes or dtypes that do not fit each other.
  """
  plan = None
  if (jax.default_backend() == 'cpu' and not _single_operations.get()
      and feature_group_count == batch_group_count == 1
      and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
      and _is_plain(lhs, rhs, dimension_numbers)):
    plan = _plan(lhs.shape, rhs.shape, tuple(window_strides), padding, lhs.dtype.itemsize)
  if plan is None:
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
                                    feature_group_count, batch_group_count, precision, preferred_element_type)
  if isinstance(precision, list):
    precision = tuple(precision)
  return _convolve(lhs, rhs, plan=plan, precision=precision, dtype=preferred_element_type)


def max_pool(x: jax.Array, window: Sequence[int], strides: Sequence[int], padding: Padding = 'VALID') -> jax.Array:
  """Maximum over windows of `[n, h, w, c]`: exactly the values of `flax.linen.max_pool`.

  Where windows lie side by side (`strides` equal to `window`, no padding; what is left over at the bottom and the right
  is cropped, as 'VALID' does) this is a maximum over two axes of a view. Its gradient is several times faster on CPU:
  3x3 on 24x24x6, batch 500, with the ReLU before it, takes 13 ms in place of about 50.

  Derivative: in that case it is split evenly among the entries of a window that tie for the maximum, as with
  `jnp.max`. The general form (`lax.reduce_window`), used otherwise, gives all of it to the first. Both are
  subgradients.

  Args:
    x: `[n, h, w, c]`.
    window, strides: (height, width), positive.
    padding: 'VALID', 'SAME', or (before, after) for height and width; padding is never the maximum.
  Returns:
    `[n, oh, ow, c]`, the dtype of `x`.
  Raises:
    BadInputError: `x` has not four axes, or `window` or `strides` is not a pair of positive integers.
  """
  window, strides = _check_pooling(x, window, strides)
  if window == strides and _is_unpadded(padding) and not _single_operations.get():
    return _window_max(_side_by_side(x, window))
  return nn.max_pool(x, window, strides, padding)


def avg_pool(x: jax.Array, window: Sequence[int], strides: Sequence[int], padding: Padding = 'VALID') -> jax.Array:
  """Mean over windows of `[n, h, w, c]`, as `flax.linen.avg_pool`: padding counts as zeros.

  Arguments and errors are those of `max_pool`. Windows that lie side by side are a mean over two axes of a view.
  """
  window, strides = _check_pooling(x, window, strides)
  if window == strides and _is_unpadded(padding):
    return _side_by_side(x, window).mean((2, 4))
  return nn.avg_pool(x, window, strides, padding)


class _Plan(NamedTuple):
  """How a convolution runs. `out` is (height, width) of the result; a row of it is cut into `strips` parts, or, where
  that is 0, into pixels; `chunk` images go through one matrix product."""
  strides: tuple[int, int]
  pads: Pads
  out: tuple[int, int]
  strips: int
  chunk: int


def _is_plain(lhs, rhs, dimension_numbers) -> bool:
  """Whether images are NHWC, kernels HWIO, real floats of one dtype that fit each other; `lax` has all else."""
  if dimension_numbers is None or not jnp.ndim(lhs) == jnp.ndim(rhs) == 4:
    return False
  nhwc = lax.conv_dimension_numbers(lhs.shape, rhs.shape, ('NHWC', 'HWIO', 'NHWC'))
  return (lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) == nhwc
          and lhs.dtype == rhs.dtype and jnp.issubdtype(lhs.dtype, jnp.floating) and lhs.shape[3] == rhs.shape[2]
          and math.prod(lhs.shape) > 0 and math.prod(rhs.shape) > 0)


def _plan(image: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...], padding: Padding,
          itemsize: int) -> _Plan | None:
  """How to convolve images with a kernel of these shapes; None where that is up to `lax`."""
  (n, h, w, c), (kh, kw, _, cout) = image, kernel
  if len(strides) != 2 or min(strides) < 1 or (not isinstance(padding, str) and len(padding) != 2):
    return None
  if isinstance(padding, str):
    padding = lax.padtype_to_pads((h, w), (kh, kw), strides, padding)
  (top, bottom), (left, right) = pads = tuple((int(before), int(after)) for before, after in padding)
  if min(top, bottom, left, right) < 0 or h + top + bottom < kh or w + left + right < kw:
    return None
  oh, ow = (h + top + bottom - kh) // strides[0] + 1, (w + left + right - kw) // strides[1] + 1

  strips = 0
  if c <= _NARROW_CHANNELS and kw > 1 and strides[1] == 1:
    strips = next((s for s in range(1, _MOST_STRIPS + 1) if -(-ow // s) * cout <= _STRIP_COLUMNS), 0)
  width = -(-ow // strips) if strips else 1
  depth, columns = kh * (width + kw - 1) * c, width * cout    # of the matrix
  if strips:
    pads = pads[0], (left, strips * width + kw - 1 - w - left)

  patches = oh * (strips or ow) * depth * itemsize            # of one image
  if patches > PATCH_LIMIT_BYTES:
    return None
  if 4 * patches <= 5 * (h * w * c + oh * ow * cout) * itemsize:   # cutting would copy more than it saves
    budget = PATCH_LIMIT_BYTES
  else:
    budget = min(max(PATCH_BYTES, PATCHES_PER_WEIGHT * depth * columns * itemsize), PATCH_LIMIT_BYTES)
  return _Plan(strides, pads, (oh, ow), strips, _chunk_size(n, max(1, budget // patches)))


def _chunk_size(n: int, most: int) -> int:
  """Images in a chunk, at most `most`; a divisor of n if one is near, since a remainder is a second program."""
  if most >= n:
    return n
  divisor = max(d for d in range(1, most + 1) if n % d == 0)
  return divisor if 2 * divisor >= most else most


@functools.partial(jax.jit, static_argnames=('plan', 'precision', 'dtype'))
def _convolve(x: jax.Array, kernel: jax.Array, *, plan: _Plan, precision, dtype) -> jax.Array:
  """`[n, h, w, cin]` by `[kh, kw, cin, cout]` to `[n, oh, ow, cout]`."""
  kh, kw, c, cout = kernel.shape
  oh, ow = plan.out
  if plan.strips:
    matrix = _strip_matrix(kernel, -(-ow // plan.strips))
    patches = functools.partial(_strips, plan=plan, kernel_shape=kernel.shape)
  else:
    matrix = kernel.reshape(kh * kw * c, cout)
    patches = functools.partial(_patches, plan=plan, kernel_shape=kernel.shape)

  def product(x):
    padded = jnp.pad(x, ((0, 0), *plan.pads, (0, 0)))
    y = jnp.matmul(patches(padded), matrix, precision=precision, preferred_element_type=dtype)
    return y.reshape(*y.shape[:2], -1, cout)[:, :, :ow]

  if plan.chunk == x.shape[0]:
    return product(x)
  # The loop keeps XLA from merging the second making of the patches with the first, which is what the barrier is for.
  one_image = jax.checkpoint(lambda image: product(image[None])[0], prevent_cse=False)
  return lax.map(one_image, x, batch_size=plan.chunk)


def _patches(x: jax.Array, plan: _Plan, kernel_shape: tuple[int, ...]) -> jax.Array:
  """What each output pixel sees of a padded image: `[n, h, w, c]` to `[n, oh, ow, kh * kw * c]`."""
  (sh, sw), (oh, ow) = plan.strides, plan.out
  taps = [x[:, i:i + sh * (oh - 1) + 1:sh, j:j + sw * (ow - 1) + 1:sw]
          for i in range(kernel_shape[0]) for j in range(kernel_shape[1])]
  return jnp.concatenate(taps, axis=-1)


def _strips(x: jax.Array, plan: _Plan, kernel_shape: tuple[int, ...]) -> jax.Array:
  """What each strip of `width` output pixels sees: `[n, h, w, c]` to `[n, oh, strips, kh * (width + kw - 1) * c]`.

  A copy of whole stretches of rows, and kw times smaller than the patches of pixels.
  """
  n, h, w, c = x.shape
  kh, kw = kernel_shape[:2]
  oh, sh, width = plan.out[0], plan.strides[0], (w - kw + 1) // plan.strips
  rows = x.reshape(n, h, w * c)
  stretches = [rows[:, i:i + sh * (oh - 1) + 1:sh, s * width * c:(s * width + width + kw - 1) * c]
               for s in range(plan.strips) for i in range(kh)]
  return jnp.concatenate(stretches, axis=-1).reshape(n, oh, plan.strips, -1)


def _strip_matrix(kernel: jax.Array, width: int) -> jax.Array:
  """The convolution that makes `width` neighboring outputs, as a matrix `[kh * (width + kw - 1) * c, width * cout]`.

  Input column a feeds output column b through tap a - b; where there is no such tap the entry is zero.
  """
  kh, kw, c, cout = kernel.shape
  is_tap = np.zeros((kw, width + kw - 1, width), np.float32)
  for j in range(kw):
    is_tap[j, np.arange(width) + j, np.arange(width)] = 1
  # Highest precision: this is a copy, and must be exact whatever the precision of products.
  spread = jnp.einsum('jab,ijco->iacbo', is_tap.astype(kernel.dtype), kernel, precision='highest')
  return spread.reshape(kh * (width + kw - 1) * c, width * cout)


def _check_pooling(x, window, strides) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """`window` and `strides` as tuples."""
  require(jnp.ndim(x) == 4, f'pooling takes [n, h, w, c], got an array with {jnp.ndim(x)} axes')
  for name, pair in (('window', window), ('strides', strides)):
    require(len(pair) == 2 and min(pair) > 0, f'{name} of a pooling must be two positive integers, got {pair}')
  return tuple(window), tuple(strides)


def _is_unpadded(padding: Padding) -> bool:
  if isinstance(padding, str):
    return padding.upper() == 'VALID'
  return not any(p for pair in padding for p in pair)


def _side_by_side(x: jax.Array, window: tuple[int, int]) -> jax.Array:
  """`[n, h, w, c]` to `[n, oh, window height, ow, window width, c]`; rows and columns left over are cropped."""
  n, h, w, c = x.shape
  oh, ow = h // window[0], w // window[1]
  return x[:, :oh * window[0], :ow * window[1]].reshape(n, oh, window[0], ow, window[1], c)


@jax.custom_jvp
def _window_max(x: jax.Array) -> jax.Array:
  """Maximum over axes 2 and 4 of `[n, oh, window height, ow, window width, c]`."""
  return x.max((2, 4))


@_window_max.defjvp
def _window_max_jvp(primals, tangents):
  """Splits a window's derivative evenly among its largest entries. Ties are counted by comparing slices.

  Where XLA computes x twice and rounds otherwise, no entry may equal the maximum: the derivative is 0 then, not 0 / 0.
  """
  (x,), (dx,) = primals, tangents
  y = _window_max(x)
  if x.shape[2] * x.shape[4] <= _UNROLLED_WINDOW:
    ties = sum((x[:, :, i, :, j] == y).astype(x.dtype) for i in range(x.shape[2]) for j in range(x.shape[4]))
  else:
    ties = (x == y[:, :, None, :, None]).astype(x.dtype).sum((2, 4))

  def split(x, y, ties, dx):
    return jnp.where(x == y[:, :, None, :, None], dx, 0).sum((2, 4)) * (1 / jnp.maximum(ties, 1))

  if jax.default_backend() != 'cpu' or not y.size:
    return y, split(x, y, ties, dx)
  # A branch is compiled by itself. Fused with what comes after it, this would be computed in the wrong order of axes,
  # which costs an attack on LeNet5 a tenth of its time. The condition fails only if there is nothing but NaN.
  return y, jax.lax.cond(ties.max() > 0, split, lambda x, y, ties, dx: jnp.zeros_like(y), x, y, ties, dx)
