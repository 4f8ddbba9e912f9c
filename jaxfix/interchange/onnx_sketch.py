"""An ONNX graph in the making: what each operation of JAX is in ONNX. `CONVERTERS[primitive]` adds the nodes.

ONNX wants images as (batch, channel, height, width). A `Value` says in which order the axes of a tensor are, so that a
transposition is written only where the order matters, and inverse ones never meet.
"""
import dataclasses
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxfix.errors import UnsupportedLayerError

OPSET = 13
"""Operator version of the files: from 2020, so that old and small runtimes have it."""


@dataclasses.dataclass(frozen=True)
class Value:
  """A tensor that depends on the input of the network.

  Attributes:
    tensor: its name in ONNX.
    shape: in JAX, with a batch axis of 1 in front.
    order: permutation; axis i of the ONNX tensor is axis `order[i]` of the JAX array. The batch stays in front.
    mean: for a sum over a fixed number of entries, the tensor with their mean, and that number.
  """
  tensor: str
  shape: tuple[int, ...]
  order: tuple[int, ...]
  mean: tuple[str, int] | None = None


Operand = Value | np.ndarray


@dataclasses.dataclass(frozen=True)
class Node:
  """An operation; its first output has its name."""
  operator: str
  name: str
  inputs: tuple[str, ...]
  outputs: tuple[str, ...]
  attributes: Mapping[str, Any]


class Sketch:
  """Nodes and constants, in order: the one thing that changes while a network is written.

  Attributes:
    nodes: in the order of their evaluation.
    constants: name -> array.
    scope: path of the layer that is being written, for names and messages.
  """

  def __init__(self):
    self.nodes: dict[str, Node] = {}
    self.constants: dict[str, np.ndarray] = {}
    self.scope = ''
    self._transposed: dict[tuple, str] = {}

  def unsupported(self, what: str) -> UnsupportedLayerError:
    """The error to raise for something that has no counterpart in ONNX."""
    return UnsupportedLayerError(f'Layer {self.scope!r} cannot be written as ONNX: {what}.')

  def add(self, operator: str, inputs: Sequence[str | np.ndarray], **attributes: Any) -> str:
    """Adds a node; arrays among its inputs become constants. Returns the name of its first output."""
    name = first = f'{self.scope}/{operator}' if self.scope else operator
    count = 1
    while name in self.nodes:
      count += 1
      name = f'{first}_{count}'
    names = []
    for i, given in enumerate(inputs):
      if not isinstance(given, str):
        self.constants[f'{name}/constant{i}'] = np.ascontiguousarray(given)
        given = f'{name}/constant{i}'
      names.append(given)
    self.nodes[name] = Node(operator, name, tuple(names), (name,), attributes)
    return name

  def second_output(self, name: str) -> str:
    """Asks for the second output of a node, and returns its name."""
    self.nodes[name] = dataclasses.replace(self.nodes[name], outputs=(name, f'{name}/second'))
    return f'{name}/second'

  def ordered(self, value: Value, order: Sequence[int]) -> str:
    """The tensor of `value` with its axes in another order."""
    axes = tuple(value.order.index(axis) for axis in order)
    if axes == tuple(range(len(axes))):
      return value.tensor
    key = value.tensor, axes
    if key not in self._transposed:
      self._transposed[key] = self.add('Transpose', [value.tensor], perm=axes)
    return self._transposed[key]

  def rows(self, value: Value) -> str:
    """The tensor of `value` with its axes as in JAX."""
    return self.ordered(value, range(len(value.shape)))

  def needed(self, output: str) -> list[Node]:
    """The nodes that the tensor `output` depends on, in order."""
    wanted, found = {output}, []
    for node in reversed(self.nodes.values()):
      if wanted.intersection(node.outputs):
        found.append(node)
        wanted.update(node.inputs)
    return found[::-1]


Converter = Callable[[Sketch, Sequence[Operand], Mapping[str, Any], tuple[int, ...]], Value]
"""`(sketch, operands, parameters of the primitive, shape of the result)` to the result."""


def _like(shape: tuple[int, ...], tensor: str) -> Value:
  """A value whose axes are as in JAX."""
  return Value(tensor, shape, tuple(range(len(shape))))


def _elementwise(operator: str) -> Converter:
  def convert(sketch, operands, params, shape):
    order = next(v.order for v in operands if isinstance(v, Value))
    inputs = []
    for v in operands:
      if isinstance(v, Value):
        inputs.append(sketch.ordered(v, order))
        continue
      constant = np.asarray(v, np.float32)
      if constant.ndim and constant.shape[0] != 1:
        raise sketch.unsupported('a constant that differs between samples')
      inputs.append(constant.transpose(order) if constant.ndim else constant)
    return Value(sketch.add(operator, inputs), shape, order)
  return convert


def _select(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
  which, if_false, if_true = operands if len(operands) == 3 else (None, None, None)
  if not isinstance(which, Value):
    raise sketch.unsupported('a choice that does not depend on the input, or among more than two')
  return _elementwise('Where')(sketch, [which, if_true, if_false], params, shape)


def _max(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
  computed = [v for v in operands if isinstance(v, Value)]
  if len(computed) == 1 and not any(np.any(v) for v in operands if not isinstance(v, Value)):
    return dataclasses.replace(computed[0], tensor=sketch.add('Relu', [computed[0].tensor]), mean=None)
  return _elementwise('Max')(sketch, operands, params, shape)


def _divide(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
  x, by = operands
  if isinstance(x, Value) and x.mean and not isinstance(by, Value) and np.all(by == x.mean[1]):
    return dataclasses.replace(x, tensor=x.mean[0], mean=None)
  return _elementwise('Div')(sketch, operands, params, shape)


def _dot(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
  x, w = operands
  (along_x, along_w), (batch, _) = params['dimension_numbers']
  if not isinstance(x, Value) or isinstance(w, Value) or batch or len(along_x) != 1 or w.ndim != 2 or along_x[0] == 0:
    raise sketch.unsupported('a product other than that of an activation and a matrix of weights')
  free = [axis for axis in range(len(x.shape)) if axis != along_x[0]]
  kernel = w if along_w[0] == 0 else w.T
  return _like(shape, sketch.add('MatMul', [sketch.ordered(x, (*free, along_x[0])), kernel]))


def _conv(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
  x, kernel = operands
  numbers = params['dimension_numbers']
  if not isinstance(x, Value) or isinstance(kernel, Value) or params['batch_group_count'] != 1 or numbers.lhs_spec[0]:
    raise sketch.unsupported('a convolution with computed weights')
  if set(params['lhs_dilation']) != {1} or min(min(p) for p in params['padding']) < 0:
    raise sketch.unsupported('a transposed convolution')
  tensor = sketch.add('Conv', [sketch.ordered(x, numbers.lhs_spec), np.transpose(kernel, numbers.rhs_spec)],
                      strides=params['window_strides'], pads=_pads(params['padding']), dilations=params['rhs_dilation'],
                      group=params['feature_group_count'])
  return Value(tensor, shape, tuple(numbers.out_spec))


def _pads(pairs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
  """All paddings before, then all after."""
  return *(before for before, _ in pairs), *(after for _, after in pairs)


def _window(sketch: Sketch, x: Value, params: Mapping[str, Any]) -> tuple[str, tuple[int, ...], dict[str, Any]]:
  """The input of a pooling, the order of its axes, and the attributes of the operation."""
  names = 'window_dimensions', 'window_strides', 'padding', 'base_dilation', 'window_dilation'
  window, strides, padding, base, dilation = (params[name] for name in names)
  spatial = range(1, len(window) - 1)
  rest = [(window[i], strides[i], *padding[i]) for i in (0, len(window) - 1)]
  if rest != [(1, 1, 0, 0)] * 2 or set(base) != {1} or not spatial:
    raise sketch.unsupported('a pooling over other axes than height and width')
  order = 0, len(window) - 1, *spatial
  pick = lambda values: tuple(values[axis] for axis in spatial)
  attributes = {'kernel_shape': pick(window), 'strides': pick(strides), 'pads': _pads(pick(padding))}
  if set(dilation) != {1}:
    attributes['dilations'] = pick(dilation)
  return sketch.ordered(x, order), order, attributes


def _max_pool(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
  tensor, order, attributes = _window(sketch, operands[0], params)
  return Value(sketch.add('MaxPool', [tensor], **attributes), shape, order)


def _choose_by_max(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any],
                   shape: tuple[int, ...]) -> Value:
  """Entries of the first operand from where the second has the maxima of its windows: the derivative of a pooling."""
  chosen, by = operands
  if params['select_prim'].name != 'ge' or not all(isinstance(v, Value) for v in operands):
    raise sketch.unsupported('the derivative of a pooling other than that of a maximum')
  tensor, order, attributes = _window(sketch, by, params)
  index = sketch.second_output(sketch.add('MaxPool', [tensor], **attributes))  # among all entries, samples included
  flat = sketch.add('Reshape', [sketch.ordered(chosen, order), np.array([-1])])
  return Value(sketch.add('Gather', [flat, index], axis=0), shape, order)


def _sum_pool(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
  tensor, order, attributes = _window(sketch, operands[0], params)
  if 'dilations' in attributes:
    raise sketch.unsupported('a sum over windows with gaps')
  mean, count = sketch.add('AveragePool', [tensor], count_include_pad=1, **attributes), math.prod(
    attributes['kernel_shape'])
  return Value(sketch.add('Mul', [mean, np.float32(count)]), shape, order, (mean, count))


def _reduced(sketch: Sketch, x: Value, axes: Sequence[int]) -> tuple[list[int], tuple[int, ...]]:
  """Which axes of the ONNX tensor go, and the order of those of the result."""
  if 0 in axes:
    raise sketch.unsupported('a reduction over samples')
  left = [axis for axis in range(len(x.shape)) if axis not in axes]
  return [x.order.index(axis) for axis in axes], tuple(left.index(axis) for axis in x.order if axis in left)


def _sum(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
  x, (axes, order) = operands[0], _reduced(sketch, operands[0], params['axes'])
  mean = sketch.add('ReduceMean', [x.tensor], axes=axes, keepdims=0)
  count = math.prod(x.shape[axis] for axis in params['axes'])
  total = sketch.add('ReduceSum', [x.tensor, np.array(axes)], keepdims=0)
  return Value(total, shape, order, (mean, count))


def _reduce_max(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any],
                shape: tuple[int, ...]) -> Value:
  axes, order = _reduced(sketch, operands[0], params['axes'])
  return Value(sketch.add('ReduceMax', [operands[0].tensor], axes=axes, keepdims=0), shape, order)


def _reshape(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
  if not shape or shape[0] != 1:
    raise sketch.unsupported('a reshape of the batch axis')
  if shape == operands[0].shape:
    return operands[0]
  target = np.array([0, *shape[1:]])  # 0: as many as before
  return _like(shape, sketch.add('Reshape', [sketch.rows(operands[0]), target]))


def _broadcast(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
  x, kept = operands[0], params['broadcast_dimensions']
  if kept[0] != 0 or shape[0] != 1:
    raise sketch.unsupported('a broadcast of the batch axis')
  thin = tuple(x.shape[kept.index(axis)] if axis in kept else 1 for axis in range(len(shape)))
  value = _reshape(sketch, [x], {}, thin)
  return value if thin == shape else _like(shape, sketch.add('Expand', [sketch.rows(value), np.array(shape)]))


def _transpose(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
  axes = list(params['permutation'])
  if axes[0] != 0:
    raise sketch.unsupported('a transposition of the batch axis')
  return Value(operands[0].tensor, shape, tuple(axes.index(axis) for axis in operands[0].order))


def _concatenate(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any],
                 shape: tuple[int, ...]) -> Value:
  axis, computed = params['dimension'], [v for v in operands if isinstance(v, Value)]
  if axis == 0 or len(computed) < len(operands):
    raise sketch.unsupported('constants or samples joined to activations')
  order = computed[0].order
  return Value(sketch.add('Concat', [sketch.ordered(v, order) for v in computed], axis=order.index(axis)), shape, order)


def _stack(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
  axis = params['axis']
  thin = (*shape[:axis], 1, *shape[axis + 1:])
  parts = [_reshape(sketch, [v], {}, thin) if isinstance(v, Value) else v for v in operands]
  return _concatenate(sketch, parts, {'dimension': axis}, shape)


def _slice(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
  x, start, stop = operands[0], params['start_indices'], params['limit_indices']
  steps = params['strides'] or (1,) * len(start)
  axes = [i for i, n in enumerate(x.shape) if (start[i], stop[i], steps[i]) != (0, n, 1)]
  if not axes:
    return x
  if axes[0] == 0:
    raise sketch.unsupported('a choice among samples')
  pick = lambda values: np.array([values[axis] for axis in axes])
  tensor = sketch.add('Slice', [x.tensor, pick(start), pick(stop), np.array([x.order.index(axis) for axis in axes]),
                                pick(steps)])
  return Value(tensor, shape, x.order)


def _pad(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
  x, fill = operands
  config = [params['padding_config'][axis] for axis in x.order]
  if isinstance(fill, Value) or config[0] != (0, 0, 0) or any(min(low, high) < 0 or gap for low, high, gap in config):
    raise sketch.unsupported('padding of samples, with gaps, or by negative amounts')
  pads = np.array(_pads([(low, high) for low, high, _ in config]))
  return Value(sketch.add('Pad', [x.tensor, pads, np.float32(fill)]), shape, x.order)


def _same(sketch: Sketch, operands: Sequence[Operand], params: Mapping[str, Any], shape: tuple[int, ...]) -> Value:
  return operands[0]


CONVERTERS = types.MappingProxyType({
  'abs': _elementwise('Abs'),
  'add': _elementwise('Add'),
  'broadcast_in_dim': _broadcast,
  'concatenate': _concatenate,
  'conv_general_dilated': _conv,
  'convert_element_type': _same,
  'copy': _same,
  'div': _divide,
  'dot_general': _dot,
  'eq': _elementwise('Equal'),
  'exp': _elementwise('Exp'),
  'expand_dims': _reshape,
  'ge': _elementwise('GreaterOrEqual'),
  'gt': _elementwise('Greater'),
  'le': _elementwise('LessOrEqual'),
  'log': _elementwise('Log'),
  'logistic': _elementwise('Sigmoid'),
  'lt': _elementwise('Less'),
  'max': _max,
  'min': _elementwise('Min'),
  'mul': _elementwise('Mul'),
  'neg': _elementwise('Neg'),
  'optimization_barrier': _same,
  'pad': _pad,
  'reduce_max': _reduce_max,
  'reduce_sum': _sum,
  'reduce_window_max': _max_pool,
  'reduce_window_sum': _sum_pool,
  'reshape': _reshape,
  'select_and_gather_add': _choose_by_max,
  'select_n': _select,
  'slice': _slice,
  'squeeze': _reshape,
  'stack': _stack,
  'stop_gradient': _same,
  'sub': _elementwise('Sub'),
  'tanh': _elementwise('Tanh'),
  'transpose': _transpose,
})
"""JAX primitive -> function that writes it."""
