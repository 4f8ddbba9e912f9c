"""Converters of products with matrices, and of BatchNorm."""
import numpy as np

from jaxfix.errors import CorruptFileError, require
from jaxfix.interchange.onnx_draft import Draft, Value, channels_last
from jaxfix.interchange.onnx_file import Node
from jaxfix.interchange.onnx_operators import elementwise, inputs
from jaxfix.interchange.onnx_operators.inputs import Tensor


def _product(draft: Draft, node: Node, value: Value, kernel: np.ndarray, axis: int) -> Value:
  """Product with `kernel` `[d, k]` along one axis of `value`, which then has size k."""
  require(value.shape[axis] == kernel.shape[0], f'ONNX node {node.name!r} ({node.operator}) multiplies '
          f'{value.full_shape} with a matrix that has {kernel.shape[0]} rows.', CorruptFileError)
  rank = len(value.shape)
  value = draft.laid_out(value, (*(i for i in range(rank) if i != axis), axis))
  k = kernel.shape[1]
  record = draft.append('dense', node.name, [value.record], {'features': k, 'use_bias': False}, {'kernel': kernel})
  shape = *value.shape[:axis], k, *value.shape[axis + 1:]
  return Value(record, (*value.stored[:-1], k), shape, value.order, value.batched)


def matmul(draft: Draft, node: Node, a: Tensor, b: Tensor) -> Value:
  from_left = isinstance(a, np.ndarray)
  value, w = (b, a) if from_left else (a, b)
  value, w = inputs.computed(node, value), inputs.floats(node, w, 'one factor')
  if w.ndim not in (1, 2):
    raise node.unsupported(f'a constant of shape {w.shape}; only matrices and vectors')
  kernel = w[:, None] if w.ndim == 1 else w.T if from_left else w
  along_rows = from_left and len(value.full_shape) > 1
  if len(value.shape) < 1 + along_rows:  # the product is along the batch axis
    value = draft.whole(node, value)
  axis = len(value.shape) - 1 - along_rows
  value = _product(draft, node, value, kernel, axis)
  if w.ndim == 1:  # the axis is gone
    full_axis = axis + value.batched
    shape = (*value.full_shape[:full_axis], *value.full_shape[full_axis + 1:])
    value = draft.reshaped(node, value, shape, keeps_batch=full_axis > 0)
  return value


def gemm(draft: Draft, node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Value:
  value, w = inputs.computed(node, a), inputs.floats(node, b, 'the second factor')
  if node.get('transA', 0):
    raise node.unsupported('transA, which would mix the samples of a batch')
  require(len(value.full_shape) == 2 == w.ndim, f'ONNX node {node.name!r} (Gemm) has an input that is no matrix.',
          CorruptFileError)
  y = _product(draft, node, value, w.T if node.get('transB', 0) else w, len(value.shape) - 1)
  alpha, beta = (np.float32(node.get(name, 1.)) for name in ('alpha', 'beta'))
  if alpha != 1:
    y = elementwise.with_constant(draft, node, y, np.asarray(alpha), 'scale', 'x * c')
  if c is not None and beta != 0:
    c = inputs.floats(node, c, 'the summand')
    c = c if beta == 1 else inputs.rounded(draft, node, np.float64(beta) * c)
    y = elementwise.with_constant(draft, node, y, c, 'shift', 'x + c')
  return y


def batch_norm(draft: Draft, node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Value:
  if node.get('training_mode', 0) or not node.get('spatial', 1):
    raise node.unsupported('only inference with one mean for each channel')
  value = inputs.in_batch(draft, node, inputs.computed(node, x))
  if value.order[-1] != 0:
    value = draft.ordered(value, channels_last(len(value.shape)))
  value = draft.laid_out(value, value.order)
  # momentum matters in further training only; both sides give it the same meaning
  options = {'epsilon': float(np.float32(node.get('epsilon', 1e-5))), 'momentum': float(node.get('momentum', 0.9))}
  params = {'scale': inputs.floats(node, scale, 'the scale'), 'bias': inputs.floats(node, bias, 'the bias')}
  stats = {'mean': inputs.floats(node, mean, 'the mean'), 'var': inputs.floats(node, var, 'the variance')}
  record = draft.append('bn', node.name, [value.record], options, params, stats)
  return Value(record, value.stored, value.shape, value.order, True)
