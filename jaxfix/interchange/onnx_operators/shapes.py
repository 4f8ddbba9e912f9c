"""Converters of operators that move entries, and of arithmetic on shapes."""
import math
from collections.abc import Sequence

import numpy as np

from jaxfix.errors import CorruptFileError, require
from jaxfix.interchange.onnx_draft import Draft, Value
from jaxfix.interchange.onnx_file import Node
from jaxfix.interchange.onnx_operators import inputs
from jaxfix.interchange.onnx_operators.inputs import Tensor


def shape(draft: Draft, node: Node, x: Tensor) -> np.ndarray:
  shape = np.array(inputs.full_shape(x), np.int64)
  if isinstance(x, Value) and x.batched and not draft.fixed_batch:
    shape[0] = inputs.BATCH
  return shape[node.get('start'):node.get('end')]


def gather(draft: Draft, node: Node, x: Tensor, index: Tensor) -> np.ndarray:
  if not isinstance(x, np.ndarray):
    raise node.unsupported('a choice of entries that depend on the input')
  axis = inputs.axis_in(node, node.get('axis', 0), x.ndim)
  return np.asarray(np.take(x, np.array(inputs.integers(node, index, 'the choice')).reshape(index.shape), axis))


def cast(draft: Draft, node: Node, x: Tensor) -> np.ndarray:
  int32, int64 = 6, 7  # TensorProto.DataType
  if not isinstance(x, np.ndarray) or x.dtype.kind != 'i' or node.get('to') not in (int32, int64):
    raise node.unsupported('a change of type of other than integers')
  return x  # one type of integers is as good as another here


def reshape(draft: Draft, node: Node, x: Tensor, target: Tensor) -> Tensor:
  old = inputs.full_shape(x)
  if isinstance(x, Value) and isinstance(target, np.ndarray) and target.size and target.flat[0] == inputs.BATCH:
    target = np.array([old[0], *target.flat[1:]])  # the number of samples as before
  target = inputs.integers(node, target, 'the shape')
  if 0 in target and node.get('allowzero', 0):
    raise node.unsupported('an axis of size 0')
  shape = [old[i] if n == 0 else n for i, n in enumerate(target)]
  size, known = math.prod(old), math.prod(n for n in shape if n != -1)
  if -1 in shape and known:
    shape[shape.index(-1)] = size // known
  require(math.prod(shape) == size and min(shape, default=1) > 0, f'ONNX node {node.name!r} (Reshape) makes shape '
          f'{tuple(target)} of {old}.', CorruptFileError)
  return _as_shape(draft, node, x, shape)


def flatten(draft: Draft, node: Node, x: Tensor) -> Tensor:
  old = inputs.full_shape(x)
  axis = node.get('axis', 1)
  axis = len(old) if axis == len(old) else inputs.axis_in(node, axis, len(old))
  return _as_shape(draft, node, x, (math.prod(old[:axis]), math.prod(old[axis:])), keeps_batch=axis > 0)


def squeeze(draft: Draft, node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
  old, named = inputs.full_shape(x), inputs.axes_of(node, axes)
  if named is None:
    named = [i for i, n in enumerate(old) if n == 1 and not (i == 0 and isinstance(x, Value) and not draft.fixed_batch)]
  gone = {inputs.axis_in(node, i, len(old)) for i in named}
  require(all(old[i] == 1 for i in gone), f'ONNX node {node.name!r} (Squeeze) removes axes {sorted(gone)} of {old}.',
          CorruptFileError)
  return _as_shape(draft, node, x, [n for i, n in enumerate(old) if i not in gone], keeps_batch=0 not in gone)


def unsqueeze(draft: Draft, node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
  old, named = inputs.full_shape(x), inputs.axes_of(node, axes)
  rank = len(old) + len(named)
  new = {inputs.axis_in(node, i, rank) for i in named}
  rest = iter(old)
  return _as_shape(draft, node, x, [1 if i in new else next(rest) for i in range(rank)], keeps_batch=0 not in new)


def transpose(draft: Draft, node: Node, x: Tensor) -> Tensor:
  rank = len(inputs.full_shape(x))
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


def slice_(draft: Draft, node: Node, x: Tensor, starts: Tensor | None = None, ends: Tensor | None = None,
           axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
  old = inputs.full_shape(x)
  if starts is None:  # before version 10
    starts, ends, axes = node.get('starts'), node.get('ends'), node.get('axes')
  else:
    starts, ends = inputs.integers(node, starts, 'the start'), inputs.integers(node, ends, 'the end')
    axes = None if axes is None else inputs.integers(node, axes, 'the choice of axes')
  steps = [1] * len(starts) if steps is None else inputs.integers(node, steps, 'the step')
  if min(steps, default=1) < 1:
    raise node.unsupported('a negative step')
  taken = [slice(0, n, 1) for n in old]
  for axis, start, end, step in zip(range(len(starts)) if axes is None else axes, starts, ends, steps, strict=True):
    axis = inputs.axis_in(node, axis, len(old))
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


def concat(draft: Draft, node: Node, *parts: Tensor) -> Tensor:
  axis = inputs.axis_in(node, node.get('axis', 1), len(inputs.full_shape(parts[0])))
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


def constant(draft: Draft, node: Node) -> np.ndarray:
  for name, dtype in (('value', None), ('value_float', np.float32), ('value_floats', np.float32),
                      ('value_int', np.int64), ('value_ints', np.int64)):
    if name in node.attributes:
      return np.asarray(node.attributes[name], dtype)
  raise node.unsupported('it is sparse, or holds text')


def _as_shape(draft: Draft, node: Node, x: Tensor, shape: Sequence[int], keeps_batch: bool = True) -> Tensor:
  if isinstance(x, Value):
    return draft.reshaped(node, x, shape, keeps_batch)
  return x.reshape(shape)
