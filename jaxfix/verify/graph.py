"""The tracer: `x -> logits` of any Flax module as a small graph of operations that bounds, regions and checkers read.

`trace` takes the jaxpr of a classifier, inlines its calls, folds whatever does not depend on the input into constants,
and rewrites what can be said in simpler words (a pooling is a few `maximum`s, a minimum is a negated maximum). What is
left is affine (see `AFFINE`) or one of the operations in `NONLINEAR`. An operation that is neither is refused with its
name and the line of the model that it came from.

The graph is what a proof is about: its constants are float32, and those that a module computes from its weights (batch
normalization: scale / sqrt(var + epsilon)) are the float32 values that JAX computes.
"""
import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from jaxfix.classifier import Classifier, check_finite
from jaxfix.errors import Unadaptable
from jaxfix.models import convolution

MOVES = frozenset((
  'broadcast_in_dim', 'concatenate', 'dynamic_slice', 'expand_dims', 'gather', 'pad', 'reshape', 'rev', 'select_n',
  'slice', 'squeeze', 'stack', 'tile', 'transpose'))
"""Affine operations whose outputs are entries of their operands, or constants."""

SUMS = frozenset(('cumsum', 'reduce_sum', 'reduce_window_sum'))
"""Linear operations whose outputs are sums of entries of their operand."""

BILINEAR = frozenset(('conv_general_dilated', 'div', 'dot_general', 'mul'))
"""Linear in their computed operand when the other one is a constant."""

AFFINE = MOVES | SUMS | BILINEAR | {'add', 'neg', 'sub'}
"""Every primitive of a node with `op == 'affine'`."""

NONLINEAR = frozenset(('div', 'exp', 'log', 'logistic', 'maximum', 'mul', 'relu', 'tanh'))
"""Every other `op`, but 'input'. `maximum`, `mul` and `div` have two computed operands, the others one."""

_CALLS = ('checkpoint', 'closed_call', 'custom_jvp_call', 'custom_vjp_call', 'jit', 'pjit', 'remat', 'remat2')
_IDENTITIES = ('copy', 'copy_p', 'name', 'optimization_barrier', 'reduce_precision', 'stop_gradient')
_ELEMENTWISE = {'exp': 'exp', 'log': 'log', 'logistic': 'logistic', 'tanh': 'tanh'}
_BINARY = ('add', 'add_any', 'div', 'max', 'min', 'mul', 'sub')   # axes of length 1 are stretched without a word
_ADD, _BROADCAST, _CONCATENATE, _NEG, _RESHAPE, _SLICE, _SUB = (
  getattr(core.primitives, f'{name}_p') for name in ('add', 'broadcast_in_dim', 'concatenate', 'neg', 'reshape',
                                                     'slice', 'sub'))
_CONSTANT_OPERANDS = {'select_n': (0,), 'gather': (1,), 'pad': (1,), 'div': (1,)}   # those that must not be computed


@dataclasses.dataclass(frozen=True)
class Node:
  """One operation. Hashable, so that a graph's structure is static under `jit`.

  Attributes:
    op: 'input', 'affine', or one of `NONLINEAR`.
    operands: where the values come from: i >= 0 is node i, and ~j (negative) is constant j.
    shape: of the output, with a batch axis of 1 in front.
    jax_primitive: what an affine node does, else None.
    options: its parameters, (name, value) pairs.
  """
  op: str
  operands: tuple[int, ...]
  shape: tuple[int, ...]
  jax_primitive: core.Primitive | None = None
  options: tuple[tuple[str, Any], ...] = ()

  @property
  def primitive(self) -> str:
    """Name of the primitive of an affine node, else ''."""
    return self.jax_primitive.name if self.jax_primitive else ''

  @property
  def inputs(self) -> tuple[int, ...]:
    """The nodes among the operands."""
    return tuple(i for i in self.operands if i >= 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Graph:
  """A network as operations in the order of their evaluation; the last node is the logits `[1, k]`.

  A pytree whose leaves are the constants, so that networks of one structure share a compiled program.

  Attributes:
    constants: float32 arrays (index arrays of gathers are int32, predicates bool).
    nodes: node 0 is the input.
  """
  constants: tuple[Any, ...]
  nodes: tuple[Node, ...] = dataclasses.field(metadata={'static': True})

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Of one sample."""
    return self.nodes[0].shape[1:]

  @property
  def num_inputs(self) -> int:
    """n."""
    return math.prod(self.input_shape)

  @property
  def num_outputs(self) -> int:
    """k."""
    return math.prod(self.nodes[-1].shape)

  def with_dtype(self, dtype: Any) -> 'Graph':
    """The same graph with floating-point constants of another type (float64 within `linearize.float64()`)."""
    cast = lambda c: np.asarray(c, dtype) if jnp.issubdtype(c.dtype, jnp.floating) else c
    return Graph(tuple(map(cast, self.constants)), self.nodes)


def trace(classifier: Classifier) -> Graph:
  """The graph of `classifier.logits` for one float input (pixels / 255 for images), normalization included.

  Raises:
    Unadaptable: an operation that is neither affine nor in `NONLINEAR`; the reason names it and its line.
    BadInputError: a weight is NaN or infinite.
  """
  check_finite(classifier, 'verification')
  classifier = jax.device_get(classifier)
  with convolution.as_single_operations():
    closed = jax.make_jaxpr(classifier.logits)(jax.ShapeDtypeStruct((1, *classifier.input_shape), jnp.float32))
  builder = _Builder((1, *classifier.input_shape))
  outputs = builder.run(closed.jaxpr, list(closed.consts), [_Value(0)])
  return builder.finish(outputs[0])


def operation(node: Node) -> Callable[..., jax.Array]:
  """The function of an affine or nonlinear node: values of all its operands to its value. Traceable."""
  if node.op != 'affine':
    return _FUNCTIONS[node.op]
  options = dict(node.options)
  if node.primitive == 'dot_general':
    return lambda a, b: lax.dot_general(a, b, options['dimension_numbers'], precision=lax.Precision.HIGHEST)
  if node.primitive == 'conv_general_dilated':
    return lambda a, b: lax.conv_general_dilated(
      a, b, options['window_strides'], options['padding'], options['lhs_dilation'], options['rhs_dilation'],
      options['dimension_numbers'], options['feature_group_count'], options['batch_group_count'],
      precision=lax.Precision.HIGHEST)
  return lambda *operands: node.jax_primitive.bind(*operands, **options)


def operands(graph: Graph, node: Node, values: Sequence[Any] | Mapping[int, Any]) -> list[Any]:
  """What `operation(node)` takes: `values[i]` for nodes, the graph's constants for the rest."""
  return [values[i] if i >= 0 else graph.constants[~i] for i in node.operands]


def evaluate(graph: Graph, x: jax.Array) -> list[jax.Array]:
  """The value of every node for one input `[*input_shape]`; the last is the logits `[1, k]`. Traceable."""
  values = [x.reshape(graph.nodes[0].shape)]
  for node in graph.nodes[1:]:
    values.append(operation(node)(*operands(graph, node, values)))
  return values


_FUNCTIONS = {
  'relu': lambda x: jnp.maximum(x, 0), 'maximum': jnp.maximum, 'tanh': jnp.tanh, 'logistic': jax.nn.sigmoid,
  'exp': jnp.exp, 'log': jnp.log, 'mul': jnp.multiply, 'div': jnp.divide}


# --- From a jaxpr to nodes ---


@dataclasses.dataclass(frozen=True)
class _Value:
  """A value that depends on the input: the node that gives it. Everything else in an environment is an array."""
  node: int


class _Builder:
  """Collects nodes and constants while a jaxpr is walked. Methods named after operations add one and return it."""

  def __init__(self, input_shape: tuple[int, ...]):
    self.nodes = [Node('input', (), input_shape)]
    self.constants: list[np.ndarray] = []
    self.where = 'the model'

  def run(self, jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    env: dict[core.Var, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, arguments, strict=True))
    read = lambda v: v.val if isinstance(v, core.Literal) else env[v]
    for eqn in jaxpr.eqns:
      inner = eqn.params.get('jaxpr', eqn.params.get('call_jaxpr', eqn.params.get('fun_jaxpr')))
      values = [read(v) for v in eqn.invars]
      self.where = _line_of(eqn) or self.where   # inside a call that JAX traced earlier: the line of the call
      if eqn.primitive.name in _CALLS and inner is not None:
        results = self.run(getattr(inner, 'jaxpr', inner), getattr(inner, 'consts', ()), values)
      elif not any(isinstance(v, _Value) for v in values):
        results = eqn.primitive.bind(*values, **eqn.params)
        results = results if eqn.primitive.multiple_results else [results]
      else:
        results = self.convert(eqn.primitive, values, eqn.params)
      env.update(zip(eqn.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]

  def finish(self, output: Any) -> Graph:
    """The graph up to `output`, without nodes and constants that it does not need."""
    if not isinstance(output, _Value):
      raise Unadaptable('the logits of this network do not depend on its input.')
    needed = {0, output.node}
    for i in range(output.node, 0, -1):
      needed.update(self.nodes[i].inputs if i in needed else ())
    place = {old: new for new, old in enumerate(sorted(needed))}
    constants, nodes = [], []
    for old in sorted(needed):
      node = self.nodes[old]
      renamed = []
      for i in node.operands:
        if i < 0:
          constants.append(self.constants[~i])
        renamed.append(place[i] if i >= 0 else ~(len(constants) - 1))
      nodes.append(dataclasses.replace(node, operands=tuple(renamed)))
    return Graph(tuple(constants), tuple(nodes))

  def convert(self, primitive: core.Primitive, values: list[Any], params: Mapping[str, Any]) -> list[Any]:
    """Nodes for one equation of which at least one operand depends on the input."""
    name = primitive.name
    computed = [isinstance(v, _Value) for v in values]
    if name in _BINARY:
      shape = np.broadcast_shapes(*map(self.shape, values))
      values = [self.stretch(v, shape) for v in values]
    if name in _IDENTITIES:
      return values
    if name == 'convert_element_type' and jnp.issubdtype(params['new_dtype'], jnp.floating):
      return values
    if name == 'split':
      return self.split(values[0], params['sizes'], params['axis'])
    if name == 'square':
      return [self.nonlinear('mul', values[0], values[0])]
    if name == 'integer_pow' and params['y'] == 2:
      return [self.nonlinear('mul', values[0], values[0])]
    if name in ('add_any', 'add', 'sub'):
      return [self.affine(_SUB if name == 'sub' else _ADD, *values)]
    if name in ('max', 'min'):
      return [self.maximum(*values) if name == 'max' else self.neg(self.maximum(*map(self.neg, values)))]
    if name == 'abs':
      return [self.maximum(values[0], self.neg(values[0]))]
    if name == 'clamp':
      low, x, high = values
      return [self.neg(self.maximum(self.neg(self.maximum(x, low)), self.neg(high)))]
    if name == 'reduce_max':
      return [self.reduce_max(values[0], params['axes'])]
    if name == 'reduce_window_max':
      return [self.window_max(values[0], params)]
    if name in _ELEMENTWISE:
      return [self.nonlinear(_ELEMENTWISE[name], values[0])]
    if name in ('mul', 'div') and all(computed):
      return [self.nonlinear(name, *values)]
    if name == 'dynamic_slice' and sum(computed) == 1 and computed[0]:
      start = [int(np.clip(v, 0, s - d)) for v, s, d in
               zip(values[1:], self.shape(values[0]), params['slice_sizes'], strict=True)]
      return [self.slice(values[0], start, [a + d for a, d in zip(start, params['slice_sizes'], strict=True)])]
    if (name in AFFINE and not (name in BILINEAR and all(computed))
        and not any(computed[i] for i in _CONSTANT_OPERANDS.get(name, ()))):
      return [self.affine(primitive, *values, **params)]
    raise Unadaptable(f'unsupported op {name!r} in {self.where}: verification reads affine operations, ReLU, max '
                      'pooling, tanh, sigmoid, exp, log and products.')

  def shape(self, value: Any) -> tuple[int, ...]:
    return self.nodes[value.node].shape if isinstance(value, _Value) else np.shape(value)

  def operand(self, value: Any) -> int:
    if isinstance(value, _Value):
      return value.node
    array = np.asarray(value)
    self.constants.append(array.astype(np.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array)
    return ~(len(self.constants) - 1)

  def affine(self, primitive: core.Primitive, *values: Any, **params: Any) -> _Value:
    node = Node('affine', tuple(self.operand(v) for v in values), (), primitive, tuple(sorted(params.items())))
    return self.append(node, values)

  def nonlinear(self, op: str, *values: Any) -> _Value:
    return self.append(Node(op, tuple(self.operand(v) for v in values), ()), values)

  def append(self, node: Node, values: Sequence[Any]) -> _Value:
    shapes = [jax.ShapeDtypeStruct(self.shape(v), np.float32 if isinstance(v, _Value) else np.asarray(v).dtype)
              for v in values]
    self.nodes.append(dataclasses.replace(node, shape=tuple(jax.eval_shape(operation(node), *shapes).shape)))
    return _Value(len(self.nodes) - 1)

  def stretch(self, value: Any, shape: tuple[int, ...]) -> Any:
    if not isinstance(value, _Value) or self.shape(value) == shape:
      return value
    return self.affine(_BROADCAST, value, shape=shape, broadcast_dimensions=tuple(range(len(shape))), sharding=None)

  def neg(self, value: Any) -> Any:
    return self.affine(_NEG, value) if isinstance(value, _Value) else -np.asarray(value)

  def slice(self, value: _Value, start: Sequence[int], stop: Sequence[int], strides: Sequence[int] | None = None):
    return self.affine(_SLICE, value, start_indices=tuple(start), limit_indices=tuple(stop),
                       strides=None if strides is None else tuple(strides))

  def split(self, value: _Value, sizes: Sequence[int], axis: int) -> list[_Value]:
    parts, at = [], 0
    for size in sizes:
      parts.append(self.between(value, at, at + size, 1, axis))
      at += size
    return parts

  def maximum(self, a: Any, b: Any) -> _Value:
    """max(x, c) for a constant c is relu(x - c) + c; of two computed values it stays."""
    if isinstance(a, _Value) and isinstance(b, _Value):
      return self.nonlinear('maximum', a, b)
    x, c = (a, b) if isinstance(a, _Value) else (b, a)
    if not np.any(c):
      return self.nonlinear('relu', x)
    c = np.broadcast_to(np.asarray(c, np.float32), self.shape(x))
    if np.isneginf(c).all():
      return x
    return self.affine(_ADD, self.nonlinear('relu', self.affine(_SUB, x, c)), c)

  def reduce_max(self, value: _Value, axes: Sequence[int]) -> _Value:
    """A tournament along each axis: halves against each other, an odd one out passes."""
    for axis in axes:
      while (size := self.shape(value)[axis]) > 1:
        half = size // 2
        first, second, *odd = self.split(value, [half, half] + [1] * (size % 2), axis)
        value = self.maximum(first, second)
        value = self.affine(_CONCATENATE, value, *odd, dimension=axis) if odd else value
    kept = [s for i, s in enumerate(self.shape(value)) if i not in axes]
    return self.affine(_RESHAPE, value, new_sizes=tuple(kept), dimensions=None, sharding=None)

  def window_max(self, value: _Value, params: Mapping[str, Any]) -> _Value:
    """A maximum over each axis of the windows in turn; an entry beyond the border is replaced by the border's, which
    lies in the same window."""
    if any(d != 1 for d in (*params['base_dilation'], *params['window_dilation'])):
      raise Unadaptable(f'unsupported op reduce_window_max with dilation in {self.where}.')
    for axis, (window, stride, (before, after)) in enumerate(
        zip(params['window_dimensions'], params['window_strides'], params['padding'], strict=True)):
      size = self.shape(value)[axis]
      count = (size + before + after - window) // stride + 1
      taps = [np.arange(count) * stride - before + tap for tap in range(window)]
      inside = (np.stack(taps) >= 0) & (np.stack(taps) < size)
      if not inside.any(axis=0).all():
        raise Unadaptable(f'max pooling in {self.where} has a window that lies in the padding only.')
      parts = [self.take(value, tap, axis) for tap in taps]
      while len(parts) > 1:
        parts = [self.maximum(parts[0], parts[1]), *parts[2:]]
      value = parts[0]
    return value

  def take(self, value: _Value, index: np.ndarray, axis: int) -> _Value:
    """Entries `index` (equally spaced, those outside clipped) along an axis."""
    size = self.shape(value)[axis]
    before, after = int((index < 0).sum()), int((index >= size).sum())
    middle = index[before:len(index) - after]
    parts = [self.between(value, 0, 1, 1, axis)] * before
    if len(middle):
      stride = int(middle[1] - middle[0]) if len(middle) > 1 else 1
      parts.append(self.between(value, int(middle[0]), int(middle[-1]) + 1, stride, axis))
    parts += [self.between(value, size - 1, size, 1, axis)] * after
    return parts[0] if len(parts) == 1 else self.affine(_CONCATENATE, *parts, dimension=axis)

  def between(self, value: _Value, start: int, stop: int, stride: int, axis: int) -> _Value:
    shape = self.shape(value)
    along = lambda number, other: tuple(number if i == axis else other[i] for i in range(len(shape)))
    return self.slice(value, along(start, [0] * len(shape)), along(stop, shape), along(stride, [1] * len(shape)))


def _line_of(eqn: core.JaxprEqn) -> str:
  """'file.py:12', the innermost line outside JAX and Flax; '' where it is not known."""
  traceback = getattr(eqn.source_info, 'traceback', None)
  for frame in traceback.frames if traceback else ():
    parts = pathlib.Path(frame.file_name).parts
    if 'site-packages' not in parts and not frame.file_name.startswith('<'):
      return f'{parts[-1]}:{frame.line_num}'
  return ''
