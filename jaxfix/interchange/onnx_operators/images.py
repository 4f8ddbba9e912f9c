"""Converters of operators on images (batch, channel, height, width): convolution, pooling, padding."""
from collections.abc import Sequence

from jaxfix.errors import CorruptFileError, require
from jaxfix.interchange.onnx_draft import Draft, Value, channels_last
from jaxfix.interchange.onnx_file import Node
from jaxfix.interchange.onnx_operators import inputs
from jaxfix.interchange.onnx_operators.inputs import Tensor

Pads = tuple[tuple[int, int], tuple[int, int]]


def conv(draft: Draft, node: Node, x: Tensor, w: Tensor, b: Tensor | None = None) -> Value:
  value, w = _image(draft, node, x), inputs.floats(node, w, 'the kernel')
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
  params = {'kernel': w.transpose(2, 3, 1, 0)} | ({} if b is None else {'bias': inputs.floats(node, b, 'the bias')})
  value = draft.laid_out(value, channels_last(3))
  record = draft.append('conv', node.name, [value.record], options, params)
  return _new_image(record, w.shape[0], _sizes(node, value.shape[1:], extent, strides, pads))


def pool(draft: Draft, node: Node, x: Tensor) -> Value:
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


def global_average(draft: Draft, node: Node, x: Tensor) -> Value:
  value = draft.laid_out(_image(draft, node, x), channels_last(3))
  c = value.shape[0]
  return Value(draft.append('gap', node.name, [value.record]), (c,), (c, 1, 1), (0, 1, 2), True)


def pad(draft: Draft, node: Node, x: Tensor, pads: Tensor | None = None, fill: Tensor | None = None,
         axes: Tensor | None = None) -> Value:
  value = _image(draft, node, x)
  pads = node.get('pads') if pads is None else inputs.integers(node, pads, 'the padding')
  fill = node.get('value', 0.) if fill is None else float(inputs.floats(node, fill, 'the value').reshape(()))
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


def reduce(draft: Draft, node: Node, x: Tensor, axes: Tensor | None = None) -> Value:
  """Mean, or maximum over two axes of an image."""
  value, axes = inputs.computed(node, x), inputs.axes_of(node, axes)
  if not axes:
    raise node.unsupported('all axes at once')
  gone = {inputs.axis_in(node, axis, len(value.full_shape)) for axis in axes}
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


def _image(draft: Draft, node: Node, x: Tensor) -> Value:
  """The input of an operator on images, (batch, channel, height, width)."""
  value = inputs.in_batch(draft, node, inputs.computed(node, x))
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
