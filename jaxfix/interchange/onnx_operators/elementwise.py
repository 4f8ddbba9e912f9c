"""Converters of arithmetic with constants and of two values, of activations, softmax and dropout."""
import math
from collections.abc import Callable

import numpy as np

from jaxfix.interchange.onnx_draft import Draft, Value
from jaxfix.interchange.onnx_file import Node
from jaxfix.interchange.onnx_operators import inputs
from jaxfix.interchange.onnx_operators.inputs import Tensor


def arithmetic(kind: str, form: str, reverse: str | None, fold: Callable) -> Callable[..., Tensor]:
  """Converter of an operator of two inputs; `form` is for x and a constant c, `reverse` for c and x."""
  def convert(draft: Draft, node: Node, a: Tensor, b: Tensor) -> Tensor:
    if isinstance(a, Value) and isinstance(b, Value):
      return _of_two_values(draft, node, a, b)
    if isinstance(a, Value):
      return with_constant(draft, node, a, b, kind, form)
    if isinstance(b, Value):
      if reverse is None:
        raise node.unsupported('a constant divided by what depends on the input')
      return with_constant(draft, node, b, a, kind, reverse)
    a, b = (inputs.floats(node, c, 'a constant').astype(np.float64) for c in (a, b))
    return inputs.rounded(draft, node, fold(a, b))
  return convert


def _of_two_values(draft: Draft, node: Node, a: Value, b: Value) -> Value:
  if node.operator != 'Add':
    raise node.unsupported('both operands depend on the input of the network; only sums of such can be imported')
  if len(a.full_shape) != len(b.full_shape) or a.batched != b.batched:
    raise node.unsupported(f'a sum of {a.full_shape} and {b.full_shape}')
  a = draft.laid_out(a, a.order)
  b = draft.laid_out(b, a.order)
  record = draft.append('add', node.name, [a.record, b.record])
  return Value(record, np.broadcast_shapes(a.stored, b.stored), np.broadcast_shapes(a.shape, b.shape), a.order,
               a.batched)


def with_constant(draft: Draft, node: Node, value: Value, constant: np.ndarray, kind: str, form: str) -> Value:
  """A 'shift' or a 'scale' by a constant that is repeated along the axes that it lacks."""
  c = inputs.floats(node, constant, 'the constant')
  rank = len(value.full_shape)
  if value.batched and c.ndim >= rank and (c.ndim > rank or c.shape[0] != 1):  # it has something for the batch axis
    value = draft.whole(node, value)
  if c.ndim > rank:
    value = draft.reshaped(node, value, (1,) * (c.ndim - rank) + value.shape, keeps_batch=False)
  rank = len(value.full_shape)
  c = c.reshape((1,) * (rank - c.ndim) + c.shape)
  if value.batched:
    if c.shape[0] != 1:
      value = draft.whole(node, value)
    else:
      c = c[0]
  shape = np.broadcast_shapes(value.shape, c.shape)
  value = draft.laid_out(value, value.order)
  c = c.transpose(value.order)
  record = draft.append(kind, node.name, [value.record], {'shape': c.shape, 'form': form}, {kind: c})
  return Value(record, np.broadcast_shapes(value.stored, c.shape), shape, value.order, value.batched)


def activation(kind: str) -> Callable[..., Value]:
  return lambda draft, node, x: draft.elementwise(kind, node.name, inputs.computed(node, x))


def clip(draft: Draft, node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Value:
  bounds = []
  for name, bound, none in (('min', low, -math.inf), ('max', high, math.inf)):
    bound = node.get(name, none) if bound is None else float(inputs.floats(node, bound, f'the {name}').reshape(()))
    bounds.append(none if abs(bound) >= np.finfo(np.float32).max else bound)
  if bounds == [-math.inf, math.inf]:
    return inputs.computed(node, x)
  if bounds != [0, math.inf]:
    raise node.unsupported(f'it cuts to {bounds}; only from 0 upwards, as Relu does')
  return draft.elementwise('relu', node.name, inputs.computed(node, x))


def softmax(draft: Draft, node: Node, x: Tensor) -> Value:
  value, takes_rest = inputs.computed(node, x), node.opset < 13  # once it was along all axes from `axis` on
  axis = inputs.axis_in(node, node.get('axis', 1 if takes_rest else -1), len(value.full_shape))
  if takes_rest and math.prod(value.full_shape[axis + 1:]) > 1:
    raise node.unsupported('before version 13 it is along several axes at once')
  if axis == 0:
    value = draft.whole(node, value)
  axis -= value.batched
  value = draft.laid_out(value, (*(i for i in range(len(value.shape)) if i != axis), axis))
  return draft.elementwise('softmax', node.name, value)


def dropout(draft: Draft, node: Node, x: Tensor, ratio: Tensor | None = None,
             training: Tensor | None = None) -> Tensor:
  if training is not None and not (isinstance(training, np.ndarray) and not training.any()):
    raise node.unsupported('training mode')
  rate = node.get('ratio', 0.5) if ratio is None else float(inputs.floats(node, ratio, 'the ratio').reshape(()))
  if isinstance(x, np.ndarray) or not 0 < rate < 1:
    return x
  return Value(draft.append('dropout', node.name, [x.record], {'rate': rate}), x.stored, x.shape, x.order, x.batched)
