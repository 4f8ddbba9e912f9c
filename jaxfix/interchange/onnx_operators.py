"""ONNX operators as records of a `LayerGraph`: `CONVERTERS[operator](draft, node, *inputs)` gives the output.

An input is a `Value`, which depends on the network's input, an array, which does not, or None where it is left out.
"""
import math
import types
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxfix.errors import CorruptFileError, require
from jaxfix.interchange.onnx_draft import Draft, Value, channels_last
from jaxfix.interchange.onnx_file import Node

Tensor = Value | np.ndarray
Pads = tuple[tuple[int, int], tuple[int, int]]

_BATCH = np.iinfo(np.int64).min
"""Stands for the number of samples in the shape of a tensor, where the file leaves it open."""


def _floats(node: Node, array: Any, what: str) -> np.ndarray:
  """A constant that enters arithmetic."""
  if not isinstance(array, np.ndarray):
    raise node.unsupported(f'{what} is computed from the input of the network')
  if array.dtype != np.float32:
    raise node.unsupported(f'{what} is {array.dtype}. Convert the model to float32 first: a model in another type '
                           'gives other values than ours would')
  return array


def _integers(node: Node, array: Any, what: str) -> list[int]:
  if not isinstance(array, np.ndarray) or array.dtype.kind != 'i':
    raise node.unsupported(f'{what} is not a constant of integers')
  if (array == _BATCH).any():
    raise node.unsupported(f'{what} depends on the number of samples')
  return [int(i) for i in array.reshape(-1)]


def _computed(node: Node, value: Any) -> Value:
  if not isinstance(value, Value):
    raise node.unsupported('it computes with constants only; onnxsim or onnxruntime can fold them')
  return value


# ---- Linear layers


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


def _matmul(draft: Draft, node: Node, a: Tensor, b: Tensor) -> Value:
  from_left = isinstance(a, np.ndarray)
  value, w = (b, a) if from_left else (a, b)
  value, w = _computed(node, value), _floats(node, w, 'one factor')
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


def _gemm(draft: Draft, node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Value:
  value, w = _computed(node, a), _floats(node, b, 'the second factor')
  if node.get('transA', 0):
    raise node.unsupported('transA, which would mix the samples of a batch')
  require(len(value.full_shape) == 2 == w.ndim, f'ONNX node {node.name!r} (Gemm) has an input that is no matrix.',
          CorruptFileError)
  y = _product(draft, node, value, w.T if node.get('transB', 0) else w, len(value.shape) - 1)
  alpha, beta = (np.float32(node.get(name, 1.)) for name in ('alpha', 'beta'))
  if alpha != 1:
    y = _with_constant(draft, node, y, np.asarray(alpha), 'scale', 'x * c')
  if c is not None and beta != 0:
    c = _floats(node, c, 'the summand')
    y = _with_constant(draft, node, y, c if beta == 1 else _rounded(draft, node, np.float64(beta) * c), 'shift',
                       'x + c')
  return y


def _rounded(draft: Draft, node: Node, exact: np.ndarray) -> np.ndarray:
  """Arithmetic on constants, done in float64, as float32; a note says where that changes the function."""
  result = np.asarray(exact, np.float32)
  if not np.array_equal(result, exact, equal_nan=True):
    draft.notes.append(f'Constants that node {node.name!r} combines were rounded to float32.')
  return result


def _conv(draft: Draft, node: Node, x: Tensor, w: Tensor, b: Tensor | None = None) -> Value:
  value, w = _image(draft, node, x), _floats(node, w, 'the kernel')
  c, groups = value.shape[0], int(node.get('group', 1))
  require(w.ndim == 4 and w.shape[1] * groups == c and w.shape[0] % groups == 0, f'ONNX node {node.name!r} (Conv): a '
          f'kernel of shape {w.shape} in {groups} groups does not fit an image of shape {value.shape}.',
          CorruptFileError)
  kernel_size, strides, dilations = w.shape[2:], _pair(node, 'strides'), _pair(node, 'dilations')
  extent = tuple((k - 1) * d + 1 for k, d in zip(kernel_size, dilations, strict=True))
  pads = _pads(node, value.shape[1:], extent, strides)
  options = {'features': w.shape[0], 'kernel_size': kernel_size, 'strides': strides, 'padding': pads,
             'use_bias': b is not None}
  if dilations != (1, 1):
    options['kernel_dilation'] = dilations
  if groups != 1:
    options['feature_group_count'] = groups
  params = {'kernel': w.transpose(2, 3, 1, 0)} | ({} if b is None else {'bias': _floats(node, b, 'the bias')})
  value = draft.laid_out(value, channels_last(3))
  record = draft.append('conv', node.name, [value.record], options, params)
  return _new_image(record, w.shape[0], _sizes(node, value.shape[1:], extent, strides, pads))


def _batch_norm(draft: Draft, node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Value:
  if node.get('training_mode', 0) or not node.get('spatial', 1):
    raise node.unsupported('only inference with one mean for each channel')
  value = _in_batch(draft, node, _computed(node, x))
  if value.order[-1] != 0:
    value = draft.ordered(value, channels_last(len(value.shape)))
  value = draft.laid_out(value, value.order)
  # momentum matters in further training only; both sides give it the same meaning
  options = {'epsilon': float(np.float32(node.get('epsilon', 1e-5))), 'momentum': float(node.get('momentum', 0.9))}
  params = {'scale': _floats(node, scale, 'the scale'), 'bias': _floats(node, bias, 'the bias')}
  stats = {'mean': _floats(node, mean, 'the mean'), 'var': _floats(node, var, 'the variance')}
  record = draft.append('bn', node.name, [value.record], options, params, stats)
  return Value(record, value.stored, value.shape, value.order, True)


# ---- Arithmetic


def _arithmetic(kind: str, form: str, reverse: str | None, fold: Callable) -> Callable[..., Tensor]:
  """Converter of an operator of two inputs; `form` is for x and a constant c, `reverse` for c and x."""
  def convert(draft: Draft, node: Node, a: Tensor, b: Tensor) -> Tensor:
    if isinstance(a, Value) and isinstance(b, Value):
      return _of_two_values(draft, node, a, b)
    if isinstance(a, Value):
      return _with_constant(draft, node, a, b, kind, form)
    if isinstance(b, Value):
      if reverse is None:
        raise node.unsupported('a constant divided by what depends on the input')
      return _with_constant(draft, node, b, a, kind, reverse)
    a, b = (_floats(node, c, 'a constant').astype(np.float64) for c in (a, b))
    return _rounded(draft, node, fold(a, b))
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


def _with_constant(draft: Draft, node: Node, value: Value, constant: np.ndarray, kind: str, form: str) -> Value:
  """A 'shift' or a 'scale' by a constant that is repeated along the axes that it lacks."""
  c = _floats(node, constant, 'the constant')
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


def _activation(kind: str) -> Callable[..., Value]:
  return lambda draft, node, x: draft.elementwise(kind, node.name, _computed(node, x))


def _clip(draft: Draft, node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Value:
  bounds = []
  for name, bound, none in (('min', low, -math.inf), ('max', high, math.inf)):
    bound = node.get(name, none) if bound is None else float(_floats(node, bound, f'the {name}').reshape(()))
    bounds.append(none if abs(bound) >= np.finfo(np.float32).max else bound)
  if bounds == [-math.inf, math.inf]:
    return _computed(node, x)
  if bounds != [0, math.inf]:
    raise node.unsupported(f'it cuts to {bounds}; only from 0 upwards, as Relu does')
  return draft.elementwise('relu', node.name, _computed(node, x))


def _softmax(draft: Draft, node: Node, x: Tensor) -> Value:
  value, takes_rest = _computed(node, x), node.opset < 13  # once it was along all axes from `axis` on
  axis = _axis(node, node.get('axis', 1 if takes_rest else -1), len(value.full_shape))
  if takes_rest and math.prod(value.full_shape[axis + 1:]) > 1:
    raise node.unsupported('before version 13 it is along several axes at once')
  if axis == 0:
    value = draft.whole(node, value)
  axis -= value.batched
  value = draft.laid_out(value, (*(i for i in range(len(value.shape)) if i != axis), axis))
  return draft.elementwise('softmax', node.name, value)


def _dropout(draft: Draft, node: Node, x: Tensor, ratio: Tensor | None = None,
             training: Tensor | None = None) -> Tensor:
  if training is not None and not (isinstance(training, np.ndarray) and not training.any()):
    raise node.unsupported('training mode')
  rate = node.get('ratio', 0.5) if ratio is None else float(_floats(node, ratio, 'the ratio').reshape(()))
  if isinstance(x, np.ndarray) or not 0 < rate < 1:
    return x
  return Value(draft.append('dropout', node.name, [x.record], {'rate': rate}), x.stored, x.shape, x.order, x.batched)


# ---- Images


def _in_batch(draft: Draft, node: Node, value: Value) -> Value:
  """The tensor with its first axis as the batch axis."""
  if not value.batched and (len(value.shape) < 2 or value.shape[0] != 1):
    raise node.unsupported(f'its input has shape {value.full_shape}; the first axis must be open, or 1')
  return draft.reshaped(node, value, value.full_shape) if not value.batched else value


def _image(draft: Draft, node: Node, x: Tensor) -> Value:
  """The input of an operator on images, (batch, channel, height, width)."""
  value = _in_batch(draft, node, _computed(node, x))
  if len(value.shape) != 3:
    raise node.unsupported(f'its input has shape {value.full_shape}; only images with height and width')
  return value


def _new_image(record: str, channels: int, size: Sequence[int]) -> Value:
  """What an operator on images gives: stored as (height, width, channel)."""
  return Value(record, (*size, channels), (channels, *size), channels_last(3), True)


def _pair(node: Node, attribute: str) -> tuple[int, int]:
  a, b = node.get(attribute, (1, 1))
  return int(a), int(b)


def _pads(node: Node, size: Sequence[int], extent: Sequence[int], strides: Sequence[int]) -> Pads:
  """Padding before and after height and width; `extent` is the size of a window with its gaps."""
  mode = node.get('auto_pad', 'NOTSET')
  if mode == 'VALID':
    return (0, 0), (0, 0)
  if mode == 'NOTSET':
    top, left, bottom, right = (int(p) for p in node.get('pads', (0, 0, 0, 0)))
    if min(top, left, bottom, right) < 0:
      raise node.unsupported('negative padding')
    return (top, bottom), (left, right)
  pairs = []
  for n, k, s in zip(size, extent, strides, strict=True):
    total = max((-(-n // s) - 1) * s + k - n, 0)
    small, large = total // 2, total - total // 2
    pairs.append((small, large) if mode == 'SAME_UPPER' else (large, small))
  return tuple(pairs)


def _sizes(node: Node, size: Sequence[int], extent: Sequence[int], strides: Sequence[int],
           pads: Pads) -> tuple[int, int]:
  sizes = tuple((n + sum(p) - k) // s + 1 for n, k, s, p in zip(size, extent, strides, pads, strict=True))
  require(min(sizes) > 0, f'ONNX node {node.name!r} ({node.operator}): nothing is left of an image of '
          f'{size[0]} x {size[1]}.', CorruptFileError)
  return sizes


def _overhang(node: Node, size: Sequence[int], window: Sequence[int], strides: Sequence[int], pads: Pads) -> Pads:
  """The padding that ceil_mode adds at the end: one more window where one starts inside the image or before it."""
  if not node.get('ceil_mode', 0):
    return (0, 0), (0, 0)
  more = []
  for n, k, s, (before, after) in zip(size, window, strides, pads, strict=True):
    count = -((n + before + after - k) // -s) + 1
    count -= (count - 1) * s >= n + before
    more.append((0, max((count - 1) * s + k - n - before - after, 0)))
  return tuple(more)


def _pool(draft: Draft, node: Node, x: Tensor) -> Value:
  value, window, strides = _image(draft, node, x), _pair(node, 'kernel_shape'), _pair(node, 'strides')
  if _pair(node, 'dilations') != (1, 1):
    raise node.unsupported('dilations')
  size = value.shape[1:]
  pads = _pads(node, size, window, strides)
  more = _overhang(node, size, window, strides, pads)
  value, name = draft.laid_out(value, channels_last(3)), node.name
  if node.operator == 'AveragePool' and node.get('count_include_pad', 0) and more != ((0, 0), (0, 0)):
    # Padding counts, what lies beyond it does not: so make it part of the image.
    record = draft.append('zeropad', f'{name}_pads', [value.record], {'padding': pads})
    value = _new_image(record, value.shape[0], [n + sum(p) for n, p in zip(size, pads, strict=True)])
    size, pads, counts = value.shape[1:], ((0, 0), (0, 0)), False
  else:
    counts = bool(node.get('count_include_pad', 0))
  pads = tuple((before + a, after + b) for (before, after), (a, b) in zip(pads, more, strict=True))
  options = {'window': window, 'strides': strides, 'padding': pads}
  if node.operator == 'AveragePool':
    options['count_pads'] = counts
  record = draft.append('maxpool' if node.operator == 'MaxPool' else 'avgpool', name, [value.record], options)
  return _new_image(record, value.shape[0], _sizes(node, size, window, strides, pads))


def _global_average(draft: Draft, node: Node, x: Tensor) -> Value:
  value = draft.laid_out(_image(draft, node, x), channels_last(3))
  c = value.shape[0]
  return Value(draft.append('gap', node.name, [value.record]), (c,), (c, 1, 1), (0, 1, 2), True)


def _pad(draft: Draft, node: Node, x: Tensor, pads: Tensor | None = None, fill: Tensor | None = None,
         axes: Tensor | None = None) -> Value:
  value = _image(draft, node, x)
  pads = node.get('pads') if pads is None else _integers(node, pads, 'the padding')
  fill = node.get('value', 0.) if fill is None else float(_floats(node, fill, 'the value').reshape(()))
  if node.get('mode', 'constant') != 'constant' or fill != 0 or axes is not None or min(pads) < 0:
    raise node.unsupported('only zeros, given for all axes')
  batch, *pairs = zip(pads[:4], pads[4:], strict=True)
  still = [axis for axis, pair in enumerate(pairs) if pair == (0, 0)]
  if any(batch) or not still:
    raise node.unsupported('padding of other than two axes')
  last = value.order[-1] if value.order[-1] in still else still[0]
  value = draft.laid_out(value, (*(axis for axis in range(3) if axis != last), last))
  padding = tuple(pairs[axis] for axis in value.order[:2])
  record = draft.append('zeropad', node.name, [value.record], {'padding': padding})
  shape = tuple(n + sum(pair) for n, pair in zip(value.shape, pairs, strict=True))
  return Value(record, tuple(shape[axis] for axis in value.order), shape, value.order, True)


def _reduce(draft: Draft, node: Node, x: Tensor, axes: Tensor | None = None) -> Value:
  """Mean, or maximum over two axes of an image."""
  value, axes = _computed(node, x), _axes(node, axes)
  if not axes:
    raise node.unsupported('all axes at once')
  gone = {_axis(node, axis, len(value.full_shape)) for axis in axes}
  if 0 in gone:
    value = draft.whole(node, value)
  gone = {axis - value.batched for axis in gone}
  left = [axis for axis in range(len(value.shape)) if axis not in gone]
  is_global = value.batched and (len(gone), len(left)) == (2, 1)
  if node.operator == 'ReduceMax' and not is_global:
    raise node.unsupported('only over two axes of images')
  value = draft.laid_out(value, (*sorted(gone), *left) if is_global else value.order)
  if is_global:
    kind, options = 'gmp' if node.operator == 'ReduceMax' else 'gap', {}
  else:
    kind, options = 'mean', {'axes': tuple(i for i, axis in enumerate(value.order) if axis in gone)}
  record = draft.append(kind, node.name, [value.record], options)
  stored = tuple(value.shape[axis] for axis in value.order if axis not in gone)
  if node.get('keepdims', 1):
    shape = tuple(1 if axis in gone else n for axis, n in enumerate(value.shape))
    return Value(record, stored, shape, value.order, value.batched)
  order = tuple(left.index(axis) for axis in value.order if axis not in gone)
  return Value(record, stored, tuple(value.shape[axis] for axis in left), order, value.batched)


# ---- Shapes


def _axis(node: Node, axis: int, rank: int) -> int:
  require(-rank <= axis < rank, f'ONNX node {node.name!r} ({node.operator}) names axis {axis} of {rank}.',
          CorruptFileError)
  return axis % rank


def _full_shape(x: Tensor) -> tuple[int, ...]:
  return x.full_shape if isinstance(x, Value) else x.shape


def _as_shape(draft: Draft, node: Node, x: Tensor, shape: Sequence[int], keeps_batch: bool = True) -> Tensor:
  if isinstance(x, Value):
    return draft.reshaped(node, x, shape, keeps_batch)
  return x.reshape(shape)


def _shape(draft: Draft, node: Node, x: Tensor) -> np.ndarray:
  shape = np.array(_full_shape(x), np.int64)
  if isinstance(x, Value) and x.batched and not draft.fixed_batch:
    shape[0] = _BATCH
  return shape[node.get('start'):node.get('end')]


def _gather(draft: Draft, node: Node, x: Tensor, index: Tensor) -> np.ndarray:
  if not isinstance(x, np.ndarray):
    raise node.unsupported('a choice of entries that depend on the input')
  axis = _axis(node, node.get('axis', 0), x.ndim)
  return np.asarray(np.take(x, np.array(_integers(node, index, 'the choice')).reshape(index.shape), axis))


def _cast(draft: Draft, node: Node, x: Tensor) -> np.ndarray:
  int32, int64 = 6, 7  # TensorProto.DataType
  if not isinstance(x, np.ndarray) or x.dtype.kind != 'i' or node.get('to') not in (int32, int64):
    raise node.unsupported('a change of type of other than integers')
  return x  # one type of integers is as good as another here


def _reshape(draft: Draft, node: Node, x: Tensor, target: Tensor) -> Tensor:
  old = _full_shape(x)
  if isinstance(x, Value) and isinstance(target, np.ndarray) and target.size and target.flat[0] == _BATCH:
    target = np.array([old[0], *target.flat[1:]])  # the number of samples as before
  target = _integers(node, target, 'the shape')
  if 0 in target and node.get('allowzero', 0):
    raise node.unsupported('an axis of size 0')
  shape = [old[i] if n == 0 else n for i, n in enumerate(target)]
  size, known = math.prod(old), math.prod(n for n in shape if n != -1)
  if -1 in shape and known:
    shape[shape.index(-1)] = size // known
  require(math.prod(shape) == size and min(shape, default=1) > 0, f'ONNX node {node.name!r} (Reshape) makes shape '
          f'{tuple(target)} of {old}.', CorruptFileError)
  return _as_shape(draft, node, x, shape)


def _flatten(draft: Draft, node: Node, x: Tensor) -> Tensor:
  old = _full_shape(x)
  axis = node.get('axis', 1)
  axis = len(old) if axis == len(old) else _axis(node, axis, len(old))
  return _as_shape(draft, node, x, (math.prod(old[:axis]), math.prod(old[axis:])), keeps_batch=axis > 0)


def _axes(node: Node, axes: Tensor | None) -> list[int] | None:
  """The axes that a node names in an attribute or, since version 13, in an input."""
  return node.get('axes') if axes is None else _integers(node, axes, 'the choice of axes')


def _squeeze(draft: Draft, node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
  old, named = _full_shape(x), _axes(node, axes)
  if named is None:
    named = [i for i, n in enumerate(old) if n == 1 and not (i == 0 and isinstance(x, Value) and not draft.fixed_batch)]
  gone = {_axis(node, i, len(old)) for i in named}
  require(all(old[i] == 1 for i in gone), f'ONNX node {node.name!r} (Squeeze) removes axes {sorted(gone)} of {old}.',
          CorruptFileError)
  return _as_shape(draft, node, x, [n for i, n in enumerate(old) if i not in gone], keeps_batch=0 not in gone)


def _unsqueeze(draft: Draft, node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
  old, named = _full_shape(x), _axes(node, axes)
  rank = len(old) + len(named)
  new = {_axis(node, i, rank) for i in named}
  rest = iter(old)
  return _as_shape(draft, node, x, [1 if i in new else next(rest) for i in range(rank)], keeps_batch=0 not in new)


def _transpose(draft: Draft, node: Node, x: Tensor) -> Tensor:
  rank = len(_full_shape(x))
  axes = list(node.get('perm', range(rank)[::-1]))
  require(sorted(axes) == list(range(rank)), f'ONNX node {node.name!r} (Transpose) moves axes {axes} of {rank}.',
          CorruptFileError)
  if isinstance(x, np.ndarray):
    return x.transpose(axes)
  if x.batched and axes[0] != 0:
    x = draft.whole(node, x)
  if x.batched:
    axes = [axis - 1 for axis in axes[1:]]
  shape, order = tuple(x.shape[axis] for axis in axes), tuple(axes.index(axis) for axis in x.order)
  return Value(x.record, x.stored, shape, order, x.batched)


def _slice(draft: Draft, node: Node, x: Tensor, starts: Tensor | None = None, ends: Tensor | None = None,
           axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
  old = _full_shape(x)
  if starts is None:  # before version 10
    starts, ends, axes = node.get('starts'), node.get('ends'), node.get('axes')
  else:
    starts, ends = _integers(node, starts, 'the start'), _integers(node, ends, 'the end')
    axes = None if axes is None else _integers(node, axes, 'the choice of axes')
  steps = [1] * len(starts) if steps is None else _integers(node, steps, 'the step')
  if min(steps, default=1) < 1:
    raise node.unsupported('a negative step')
  taken = [slice(0, n, 1) for n in old]
  for axis, start, end, step in zip(range(len(starts)) if axes is None else axes, starts, ends, steps, strict=True):
    axis = _axis(node, axis, len(old))
    taken[axis] = slice(*slice(start, end, step).indices(old[axis]))
  if isinstance(x, np.ndarray):
    return x[tuple(taken)]
  counts = [len(range(s.start, s.stop, s.step)) for s in taken]
  require(min(counts) > 0, f'ONNX node {node.name!r} (Slice) takes nothing of {old}.', CorruptFileError)
  if x.batched and taken[0] != slice(0, 1, 1):
    x = draft.whole(node, x)
  value = draft.laid_out(x, x.order)
  shape, inner = tuple(counts[value.batched:]), taken[value.batched:]
  options = {'starts': tuple(inner[axis].start for axis in value.order),
             'stops': tuple(inner[axis].stop for axis in value.order),
             'strides': tuple(inner[axis].step for axis in value.order)}
  record = draft.append('slice', node.name, [value.record], options)
  return Value(record, tuple(shape[axis] for axis in value.order), shape, value.order, value.batched)


def _concat(draft: Draft, node: Node, *parts: Tensor) -> Tensor:
  axis = _axis(node, node.get('axis', 1), len(_full_shape(parts[0])))
  if all(isinstance(part, np.ndarray) for part in parts):
    return np.concatenate(parts, axis)
  if any(isinstance(part, np.ndarray) for part in parts):
    raise node.unsupported('it joins a constant to what depends on the input')
  if axis == 0:
    parts = [draft.whole(node, part) for part in parts]
  batched = parts[0].batched
  axis -= batched
  rest = lambda shape: (*shape[:axis], *shape[axis + 1:])
  require(all(part.batched == batched and rest(part.shape) == rest(parts[0].shape) for part in parts),
          f'ONNX node {node.name!r} (Concat) joins {[part.full_shape for part in parts]}.', CorruptFileError)
  order = *(i for i in range(len(parts[0].shape)) if i != axis), axis
  parts = [draft.laid_out(part, order) for part in parts]
  record, joined = draft.append('concat', node.name, [part.record for part in parts]), sum(p.shape[axis] for p in parts)
  shape = *parts[0].shape[:axis], joined, *parts[0].shape[axis + 1:]
  return Value(record, (*parts[0].stored[:-1], joined), shape, order, batched)


def _constant(draft: Draft, node: Node) -> np.ndarray:
  for name, dtype in (('value', None), ('value_float', np.float32), ('value_floats', np.float32),
                      ('value_int', np.int64), ('value_ints', np.int64)):
    if name in node.attributes:
      return np.asarray(node.attributes[name], dtype)
  raise node.unsupported('it is sparse, or holds text')


CONVERTERS = types.MappingProxyType({
  'Add': _arithmetic('shift', 'x + c', 'x + c', np.add),
  'AveragePool': _pool,
  'BatchNormalization': _batch_norm,
  'Cast': _cast,
  'Clip': _clip,
  'Concat': _concat,
  'Constant': _constant,
  'Conv': _conv,
  'Div': _arithmetic('scale', 'x / c', None, np.divide),
  'Dropout': _dropout,
  'Flatten': _flatten,
  'Gather': _gather,
  'Gemm': _gemm,
  'GlobalAveragePool': _global_average,
  'Identity': lambda draft, node, x: x,
  'MatMul': _matmul,
  'MaxPool': _pool,
  'Mul': _arithmetic('scale', 'x * c', 'x * c', np.multiply),
  'Pad': _pad,
  'ReduceMax': _reduce,
  'ReduceMean': _reduce,
  'Relu': _activation('relu'),
  'Reshape': _reshape,
  'Shape': _shape,
  'Sigmoid': _activation('sigmoid'),
  'Slice': _slice,
  'Softmax': _softmax,
  'Squeeze': _squeeze,
  'Sub': _arithmetic('shift', 'x - c', 'c - x', np.subtract),
  'Tanh': _activation('tanh'),
  'Transpose': _transpose,
  'Unsqueeze': _unsqueeze,
})
"""ONNX operator -> function of the draft, the node and its inputs that gives the output."""
