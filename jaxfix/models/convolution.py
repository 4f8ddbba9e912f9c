"""Interim lowering (its owner overwrites this file): patches and one matmul on CPU."""
import jax
import jax.numpy as jnp
from flax import linen as nn


def conv_general_dilated(lhs, rhs, window_strides, padding, lhs_dilation=None, rhs_dilation=None,
                         dimension_numbers=None, feature_group_count=1, batch_group_count=1, precision=None,
                         preferred_element_type=None):
  plain = (lhs.ndim == 4 and feature_group_count == 1 and batch_group_count == 1
           and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ()))))
  if jax.default_backend() != 'cpu' or not plain:
    return jax.lax.conv_general_dilated(
      lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
      batch_group_count, precision, preferred_element_type)
  kh, kw, cin, cout = rhs.shape
  sh, sw = window_strides
  if isinstance(padding, str):
    padding = jax.lax.padtype_to_pads(lhs.shape[1:3], (kh, kw), window_strides, padding)
  x = jnp.pad(lhs, ((0, 0), *map(tuple, padding), (0, 0)))
  oh, ow = (x.shape[1] - kh) // sh + 1, (x.shape[2] - kw) // sw + 1
  shifts = [x[:, i:i + sh * (oh - 1) + 1:sh, j:j + sw * (ow - 1) + 1:sw] for i in range(kh) for j in range(kw)]
  patches = jnp.concatenate(shifts, axis=-1)
  return jnp.einsum('nhwk,ko->nhwo', patches, rhs.reshape(kh * kw * cin, cout), precision=precision)


def max_pool(x, window, strides, padding):
  if tuple(window) == tuple(strides) and padding == 'VALID':
    h, w = x.shape[1] // window[0], x.shape[2] // window[1]
    x = x[:, :h * window[0], :w * window[1]].reshape(x.shape[0], h, window[0], w, window[1], x.shape[3])
    return x.max(axis=(2, 4))
  return nn.max_pool(x, window, strides, padding)


def avg_pool(x, window, strides, padding):
  return nn.avg_pool(x, window, strides, padding)
