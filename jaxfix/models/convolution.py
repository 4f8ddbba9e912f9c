"""Convolution and pooling that XLA compiles well on CPU, with the results of `lax` up to the order of summation.

On CPU a convolution becomes a copy of the input into patches and one matrix product. That matters where XLA's own
lowering is slow: a kernel with more taps than the image has pixels (3x3 on 2x2, the end of VGG16: 885 ms against 8),
gradients, one or two input channels, and a `vmap` over kernels, which would be a grouped convolution. All of it is
plain array code, so every transformation works, and a `vmap` over kernels is a matrix product with a batch axis. On
other platforms, and for dilated, grouped or non-NHWC convolutions, `lax.conv_general_dilated` runs.

Figures in comments: CPU milliseconds, two cores, jax 0.10.2, batch 32 unless said otherwise.
"""
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from jaxfix.errors import require

Pads = tuple[tuple[int, int], tuple[int, int]]

PATCH_BYTES = 4 * 2**20
"""Patches that are made at a time; the batch is cut into chunks. A second-level cache's worth: 3x3x64 on 32x32 takes
53 ms in chunks of 4.5 MiB, 71 of 9, 98 of 36 and 115 uncut."""

PATCHES_PER_WEIGHT = 2
"""A chunk may have this many times the kernel's bytes, since each chunk reads the kernel again: 3x3x512 on 4x4, value
and gradient, takes 78 ms uncut (9 MiB each), 87 in two chunks, 110 in eight."""

PATCH_LIMIT_BYTES = 256 * 2**20
"""No chunk has more; where the patches of a single image would, `lax` convolves."""

_NARROW_CHANNELS = 7   # fewer than half a cache line a tap: copying patches tap by tap is slower than multiplying zeros
_STRIP_COLUMNS = 96    # of the matrix of a strip; beyond, the zeros cost more than the copies
_MOST_STRIPS = 4       # a row of outputs is cut into at most this many strips
_UNROLLED_WINDOW = 16  # pixels of a pooling window whose ties are counted without a reduction


def conv_general_dilated(lhs: jax.Array, rhs: jax.Array, window_strides: Sequence[int],
                         padding: str | Sequence[tuple[int, int]], lhs_dilation: Sequence[int] | None = None,
                         rhs_dilation: Sequence[int] | None = None, dimension_numbers=None,
                         feature_group_count: int = 1, batch_group_count: int = 1, precision=None,
                         preferred_element_type=None) -> jax.Array:
  """`lax.conv_general_dilated`, argument for argument; give it to `flax.linen.Conv(conv_general_dilated=...)`.

  Which lowering runs is decided when the function is traced, from `jax.default_backend()` and the shapes. The one for
  CPU takes real floating-point NHWC images and HWIO kernels without dilation or groups, any stride and any padding that
  crops nothing. It differs from `lax` in two ways: sums run in another order (about 1e-6 of the largest term), and with
  fewer than 8 input channels a NaN or infinity in the input may spread along its row, as it is multiplied by zeros.

  Memory: `PATCH_BYTES` (more for large kernels, see the constants) for each member of a `vmap` whose input is batched.
  For gradients the patches of a batch that was cut are made again, not kept.

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
  pads = None
  if (jax.default_backend() == 'cpu' and feature_group_count == batch_group_count == 1
      and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
      and _is_plain(lhs, rhs, dimension_numbers)):
    pads = _explicit_pads(lhs.shape, rhs.shape, tuple(window_strides), padding)
  if pads is None:
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
                                    feature_group_count, batch_group_count, precision, preferred_element_type)
  if isinstance(precision, list):
    precision = tuple(precision)
  return _convolve(lhs, rhs, strides=tuple(window_strides), pads=pads, precision=precision,
                   dtype=preferred_element_type)


def max_pool(x: jax.Array, window: Sequence[int], strides: Sequence[int],
             padding: str | Sequence[tuple[int, int]] = 'VALID') -> jax.Array:
  """Maximum over windows of `[n, h, w, c]`, the values of `flax.linen.max_pool`.

  Where windows lie side by side (`strides` equal to `window`, 'VALID'; what is left over at the bottom and the right
  is cropped, as always with 'VALID') this is a maximum over two axes of a view, whose gradient is several times faster
  than that of the general form: 43 ms against 91 for a VGG block, 1.6 times in an attack on LeNet5.

  Derivative: here it is split evenly among the entries of a window that tie for the maximum, as with `jnp.max`. The
  general form (`lax.reduce_window`), used otherwise, gives all of it to the first. Both are subgradients.

  Args:
    x: `[n, h, w, c]`.
    window, strides: (height, width), positive.
    padding: 'VALID', 'SAME', or (before, after) for height and width; padding is never the maximum.
  Returns:
    `[n, oh, ow, c]`, the dtype of `x`.
  Raises:
    BadInputError: `x` has not four axes, or `window` or `strides` is not a pair of positive integers.
  """
  window, strides = _pool_arguments(x, window, strides)
  if window == strides and _pads_nothing(padding):
    return _window_max(_side_by_side(x, window))
  return nn.max_pool(x, window, strides, padding)


def avg_pool(x: jax.Array, window: Sequence[int], strides: Sequence[int],
             padding: str | Sequence[tuple[int, int]] = 'VALID') -> jax.Array:
  """Mean over windows of `[n, h, w, c]`, the values of `flax.linen.avg_pool`: padding counts as zeros.

  Args and raises: as `max_pool`. Windows that lie side by side are a mean over two axes of a view.
  """
  window, strides = _pool_arguments(x, window, strides)
  if window == strides and _pads_nothing(padding):
    return _side_by_side(x, window).mean((2, 4))
  return nn.avg_pool(x, window, strides, padding)


def _is_plain(lhs, rhs, dimension_numbers) -> bool:
  """Whether images are NHWC, kernels HWIO, both real floats of one dtype, and their shapes fit; `lax` has the rest."""
  if not (jnp.ndim(lhs) == jnp.ndim(rhs) == 4 and dimension_numbers is not None):
    return False
  wanted = lax.conv_dimension_numbers(lhs.shape, rhs.shape, ('NHWC', 'HWIO', 'NHWC'))
  return (lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers) == wanted
          and lhs.dtype == rhs.dtype and jnp.issubdtype(lhs.dtype, jnp.floating) and lhs.shape[3] == rhs.shape[2]
          and math.prod(lhs.shape) > 0 and math.prod(rhs.shape) > 0)


def _explicit_pads(image: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...], padding) -> Pads | None:
  """Padding as (before, after) for height and width; None where the fast path does not apply."""
  if len(strides) != 2 or min(strides) < 1 or (not isinstance(padding, str) and len(padding) != 2):
    return None
  pads = lax.padtype_to_pads(image[1:3], kernel[:2], strides, padding) if isinstance(padding, str) else padding
  pads = tuple((int(before), int(after)) for before, after in pads)
  sizes = [size + sum(pair) for size, pair in zip(image[1:3], pads, strict=True)]
  if min(p for pair in pads for p in pair) < 0 or any(s < k for s, k in zip(sizes, kernel[:2], strict=True)):
    return None
  return pads


@functools.partial(jax.jit, static_argnames=('strides', 'pads', 'precision', 'dtype'))
def _convolve(x: jax.Array, kernel: jax.Array, *, strides: tuple[int, int], pads: Pads, precision, dtype) -> jax.Array:
  """Convolution of `[n, h, w, cin]` with `[kh, kw, cin, cout]` by one matrix product for each chunk of the batch."""
  n, h, w, c = x.shape
  kh, kw, _, cout = kernel.shape
  oh, ow = (h + sum(pads[0]) - kh) // strides[0] + 1, (w + sum(pads[1]) - kw) // strides[1] + 1
  strips = _num_strips(kernel.shape, strides, ow)
  if strips:
    width = -(-ow // strips)
    matrix = _strip_matrix(kernel, width)
    cut = functools.partial(_strips, rows=kh, out_rows=oh, stride=strides[0], width=width, overlap=kw - 1)
    pads = pads[0], (pads[1][0], strips * width + kw - 1 - w - pads[1][0])
  else:
    matrix = kernel.reshape(kh * kw * c, cout)
    cut = functools.partial(_patches, kernel=(kh, kw), strides=strides, out=(oh, ow))

  def product(x):
    """`[m, h, w, cin]` to `[m, oh, ow, cout]`."""
    patches = cut(jnp.pad(x, ((0, 0), *pads, (0, 0))))
    y = jnp.matmul(patches, matrix, precision=precision, preferred_element_type=dtype)
    return y.reshape(*y.shape[:2], -1, cout)[:, :, :ow]

  chunk = _chunk_size(n, oh * max(strips, ow if not strips else 0) * matrix.shape[0] * x.dtype.itemsize,
                      matrix.size * x.dtype.itemsize)
  if chunk == n:
    return product(x)
  one = jax.checkpoint(lambda image: product(image[None])[0], prevent_cse=False)
  return lax.map(one, x, batch_size=chunk)


def _patches(x, kernel, strides, out):
  (kh, kw), (sh, sw), (oh, ow) = kernel, strides, out
  return jnp.concatenate([x[:, i:i + sh * (oh - 1) + 1:sh, j:j + sw * (ow - 1) + 1:sw]
                          for i in range(kh) for j in range(kw)], axis=-1)


def _strips(x, rows, out_rows, stride, width, overlap):
  n, _, w, c = x.shape
  x = x.reshape(n, -1, w * c)
  strips = (w - overlap) // width
  return jnp.concatenate([x[:, i:i + stride * (out_rows - 1) + 1:stride, s * width * c:((s + 1) * width + overlap) * c]
                          for s in range(strips) for i in range(rows)], axis=-1).reshape(n, out_rows, strips, -1)


def _num_strips(kernel, strides, ow):
  _, kw, c, cout = kernel
  if c > _NARROW_CHANNELS or kw == 1 or strides[1] != 1:
    return 0
  return next((s for s in range(1, _MOST_STRIPS + 1) if -(-ow // s) * cout <= _STRIP_COLUMNS), 0)


def _strip_matrix(kernel, width):
  kh, kw, c, cout = kernel.shape
  tap = np.zeros((kw, width + kw - 1, width), bool)
  for j in range(kw):
    tap[j, j + np.arange(width), np.arange(width)] = True
  spread = jnp.einsum('jab,ijco->iacbo', tap.astype(kernel.dtype), kernel, precision='highest')
  return spread.reshape(kh * (width + kw - 1) * c, width * cout)


def _chunk_size(n, image_bytes, matrix_bytes):
  budget = min(max(PATCH_BYTES, PATCHES_PER_WEIGHT * matrix_bytes), PATCH_LIMIT_BYTES)
  most = max(1, budget // image_bytes)
  if most >= n:
    return n
  divisor = max(d for d in range(1, most + 1) if n % d == 0)
  return divisor if 2 * divisor >= most else most


def _pool_arguments(x, window, strides):
  require(jnp.ndim(x) == 4, f'pooling wants [n, h, w, c], got {jnp.ndim(x)} axes')
  window, strides = tuple(window), tuple(strides)
  for name, pair in (('window', window), ('strides', strides)):
    require(len(pair) == 2 and min(pair) > 0, f'{name} of a pooling must be two positive integers, got {pair}')
  return window, strides


def _pads_nothing(padding):
  return padding == 'VALID' or (not isinstance(padding, str) and not any(p for pair in padding for p in pair))


def _side_by_side(x, window):
  n, h, w, c = x.shape
  h, w = h // window[0], w // window[1]
  return x[:, :h * window[0], :w * window[1]].reshape(n, h, window[0], w, window[1], c)


@jax.custom_jvp
def _window_max(x):
  return x.max((2, 4))


@_window_max.defjvp
def _window_max_jvp(primals, tangents):
  (x,), (dx,) = primals, tangents
  y = _window_max(x)
  top = x == y[:, :, None, :, None]
  if x.shape[2] * x.shape[4] <= _UNROLLED_WINDOW:
    ties = sum((x[:, :, i, :, j] == y).astype(x.dtype) for i in range(x.shape[2]) for j in range(x.shape[4]))
  else:
    ties = top.astype(x.dtype).sum((2, 4))
  return y, jnp.where(top, dx, 0).sum((2, 4)) * (1 / ties)
