"""The normal form of a piecewise linear network: ten operations on flat vectors, and nothing of JAX in it.

This is what exact methods read (linear regions, MILP, certificates), and what a certificate carries, so that a checker
needs NumPy only. A value is a vector; operation i gives value i, the last one the logits.

  input                     the n inputs, row-major
  gather    index           entries of the operands, put end to end: index j > 0 is entry j - 1, index 0 is the number 0
  matmul    w [d, k]        operand, as rows of d, times w; row-major
  scale     c               operand * c, elementwise; c has the operand's length
  divide    c               operand / c
  shift     c               operand + c
  sum       d               sums of d entries in a row each
  add                       operand + operand
  relu                      max(operand, 0)
  maximum                   max(operand, operand)

Numbers are the float32 of the traced network, exactly; convolutions are a gather of patches and a matmul.
"""
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxfix.errors import Unadaptable
from jaxfix.verify.graph import BILINEAR, MOVES, Graph, Node, operation

_MOST_PATCHES = 2**24   # entries of a gather; ids pass through float32, which holds integers up to here


@dataclasses.dataclass(frozen=True, eq=False)
class Op:
  """One operation.

  Attributes:
    kind: see the module's docstring.
    inputs: which values it takes.
    array: the constant of the operation (index int32, else float32; `sum` keeps its d in one int32), or None.
    size: length of its value.
  """
  kind: str
  inputs: tuple[int, ...]
  array: np.ndarray | None
  size: int


@dataclasses.dataclass(frozen=True, eq=False)
class NormalForm:
  """A piecewise linear network; `ops[0]` is the input."""
  ops: tuple[Op, ...]

  @property
  def num_inputs(self) -> int:
    """n."""
    return self.ops[0].size

  @property
  def num_outputs(self) -> int:
    """k."""
    return self.ops[-1].size

  @property
  def num_activations(self) -> int:
    """M: entries of `relu` and `maximum`."""
    return sum(op.size for op in self.ops if op.kind in ('relu', 'maximum'))


def lower(graph: Graph) -> NormalForm:
  """The normal form of a traced network.

  Raises:
    Unadaptable: it is not piecewise linear, or has an operation without a counterpart (grouped convolutions, products
      with a batch axis, cumulative sums); the reason names it.
  """
  lowering = _Lowering(graph)
  for node in graph.nodes[1:]:
    lowering.places.append(lowering.convert(node))
  return _pruned(lowering.ops, lowering.places[-1])


def evaluate(form: NormalForm, x: np.ndarray) -> np.ndarray:
  """Logits `[..., k]` of inputs `[..., n]`, in the floating-point type of `x` (use float64)."""
  return values(form, x)[-1]


def values(form: NormalForm, x: np.ndarray) -> list[np.ndarray]:
  """The value `[..., size]` of every operation at inputs `[..., n]`."""
  found: list[np.ndarray] = [x]
  for op in form.ops[1:]:
    found.append(apply(op, [found[i] for i in op.inputs]))
  return found


def apply(op: Op, arguments: Sequence[np.ndarray]) -> np.ndarray:
  """The value of an operation, in the floating-point type of its arguments `[..., size]`."""
  x, c = arguments[0], op.array
  if op.kind == 'gather':
    zero = np.zeros((*x.shape[:-1], 1), x.dtype)
    return np.concatenate([zero, *arguments], axis=-1)[..., c]
  if op.kind == 'matmul':
    rows = x.reshape(*x.shape[:-1], -1, c.shape[0])
    return (rows @ c.astype(x.dtype)).reshape(*x.shape[:-1], op.size)
  if op.kind == 'sum':
    return x.reshape(*x.shape[:-1], -1, int(c[0])).sum(axis=-1)
  if op.kind == 'add':
    return x + arguments[1]
  if op.kind == 'relu':
    return np.maximum(x, 0)
  if op.kind == 'maximum':
    return np.maximum(x, arguments[1])
  c = c.astype(x.dtype)
  return {'scale': lambda: x * c, 'divide': lambda: x / c, 'shift': lambda: x + c}[op.kind]()


def fingerprint(form: NormalForm) -> str:
  """Hex SHA-256 of the network: of each operation its kind, inputs and array (dtype, shape, little-endian bytes)."""
  digest = hashlib.sha256()
  for op in form.ops:
    digest.update(f'{op.kind}\0{",".join(map(str, op.inputs))}\0{op.size}\0'.encode())
    if op.array is not None:
      array = np.ascontiguousarray(op.array, op.array.dtype.newbyteorder('<'))
      digest.update(f'{array.dtype.str}\0{",".join(map(str, array.shape))}\0'.encode() + array.tobytes())
  return digest.hexdigest()


class _Lowering:
  """Operations so far, and for each node of the graph the operation that gives its value, flattened."""

  def __init__(self, graph: Graph):
    self.graph = graph
    self.ops = [Op('input', (), None, graph.num_inputs)]
    self.places = [0]

  def convert(self, node: Node) -> int:
    if node.op != 'affine':
      if node.op not in ('relu', 'maximum'):
        raise Unadaptable(f'{node.op!r} is not piecewise linear.')
      return self.add(node.op, *(self.places[i] for i in node.inputs))
    name = node.primitive
    if name in MOVES:
      return self.move(node)
    if name in BILINEAR:
      return {'dot_general': self.dot_general, 'conv_general_dilated': self.convolution, 'mul': self.scale,
              'div': self.scale}[name](node)
    if name in ('add', 'sub', 'neg'):
      return self.combine(node)
    if name == 'reduce_sum':
      axes = dict(node.options)['axes']
      shape = self.graph.nodes[node.inputs[0]].shape
      kept = [i for i in range(len(shape)) if i not in axes]
      return self.sums(node, np.transpose(self.ids(node.inputs[0]), (*kept, *axes)).reshape(node_size(node), -1))
    if name == 'reduce_window_sum':
      return self.sums(node, self.windows(node))
    raise Unadaptable(f'{name!r} has no normal form.')

  def add(self, kind: str, *inputs: int, array: np.ndarray | None = None, size: int | None = None) -> int:
    self.ops.append(Op(kind, inputs, array, self.ops[inputs[0]].size if size is None else size))
    return len(self.ops) - 1

  def ids(self, node: int) -> np.ndarray:
    """1, 2, ... in the shape of a node's value: the indices of a gather from it."""
    shape = self.graph.nodes[node].shape
    return np.arange(1, 1 + int(np.prod(shape)), dtype=np.int32).reshape(shape)

  def gather(self, inputs: Sequence[int], index: np.ndarray) -> int:
    """A gather; gathers of gathers become one, and one that moves nothing none."""
    index = np.asarray(index, np.int32).reshape(-1)
    if len(inputs) == 1 and self.ops[inputs[0]].kind == 'gather':
      before = self.ops[inputs[0]]
      inputs, index = before.inputs, np.concatenate([[0], before.array])[index].astype(np.int32)
    if len(inputs) == 1 and np.array_equal(index, np.arange(1, 1 + self.ops[inputs[0]].size)):
      return inputs[0]
    return self.add('gather', *inputs, array=index, size=len(index))

  def shift(self, place: int, offset: np.ndarray) -> int:
    offset = np.asarray(offset, np.float32).reshape(-1)
    return self.add('shift', place, array=offset) if offset.any() else place

  def move(self, node: Node) -> int:
    """Data movement: what the operation does to indices; constants that it brings in are a shift."""
    keep = {'select_n': (0,), 'gather': (1,)}.get(node.primitive, ())   # operands that say where, not what
    start, indices, zeros = 0, [], []
    for at, i in enumerate(node.operands):
      if i >= 0:
        ids = self.ids(i)
        indices.append(ids + start)
        zeros.append(np.zeros(ids.shape, np.float32))
        start += ids.size
      else:
        constant = self.graph.constants[~i]
        indices.append(constant if at in keep else np.zeros(np.shape(constant), np.int32))
        zeros.append(constant)
    run = operation(node)
    place = self.gather([self.places[i] for i in node.inputs], np.asarray(run(*indices)))
    return self.shift(place, np.asarray(run(*zeros))) if len(node.inputs) < len(node.operands) else place

  def combine(self, node: Node) -> int:
    """add, sub, neg."""
    signs = {'add': (1, 1), 'sub': (1, -1), 'neg': (-1,)}[node.primitive]
    terms, offset = [], 0.
    for i, sign in zip(node.operands, signs, strict=True):
      if i < 0:
        offset = sign * self.graph.constants[~i]
      else:
        terms.append(self.places[i] if sign > 0 else self.scaled(self.places[i], -1.))
    place = terms[0] if len(terms) == 1 else self.add('add', *terms)
    return self.shift(place, np.broadcast_to(offset, node.shape))

  def scaled(self, place: int, c: Any, kind: str = 'scale') -> int:
    return self.add(kind, place, array=np.full(self.ops[place].size, c, np.float32))

  def scale(self, node: Node) -> int:
    (place,) = (self.places[i] for i in node.inputs)
    (constant,) = (self.graph.constants[~i] for i in node.operands if i < 0)
    c = np.broadcast_to(constant, node.shape).reshape(-1).astype(np.float32)
    return self.add('scale' if node.primitive == 'mul' else 'divide', place, array=c)

  def dot_general(self, node: Node) -> int:
    contract, batch = dict(node.options)['dimension_numbers']
    if any(batch):
      raise Unadaptable('a product with a batch axis has no normal form.')
    side = 0 if node.operands[0] >= 0 else 1
    x, w = self.ids(node.operands[side]), self.graph.constants[~node.operands[1 - side]]
    free = [[i for i in range(np.ndim(a)) if i not in axes] for a, axes in
            ((x, contract[side]), (w, contract[1 - side]))]
    rows = np.transpose(x, (*free[0], *contract[side]))
    matrix = np.transpose(w, (*contract[1 - side], *free[1]))
    inner = int(np.prod(matrix.shape[:len(contract[0])]))
    place = self.gather([self.places[node.operands[side]]], rows)
    matrix = np.ascontiguousarray(matrix.reshape(inner, -1), np.float32)
    place = self.add('matmul', place, array=matrix, size=x.size // inner * matrix.shape[1])
    if side == 0:
      return place
    out = np.arange(1, 1 + node_size(node)).reshape(x.size // inner, matrix.shape[1]).T   # [free of w, free of x]
    return self.gather([place], out)

  def convolution(self, node: Node) -> int:
    options, kernel = dict(node.options), None
    if node.operands[1] < 0:
      kernel = self.graph.constants[~node.operands[1]]
      nhwc = lax.conv_dimension_numbers(self.graph.nodes[node.inputs[0]].shape, kernel.shape, ('NHWC', 'HWIO', 'NHWC'))
    if kernel is None or options['dimension_numbers'] != nhwc or (
        options['feature_group_count'] != 1 or options['batch_group_count'] != 1):
      raise Unadaptable('a convolution that is grouped, or not NHWC, has no normal form.')
    patches = self.patches(node.inputs[0], kernel.shape[:2], options['window_strides'], options['padding'],
                           options['lhs_dilation'], options['rhs_dilation'])
    place = self.gather([self.places[node.inputs[0]]], patches)
    matrix = np.ascontiguousarray(np.transpose(kernel, (2, 0, 1, 3)).reshape(-1, kernel.shape[3]), np.float32)
    return self.add('matmul', place, array=matrix, size=node_size(node))

  def patches(self, node: int, window: Sequence[int], strides: Sequence[int], padding: Any,
              lhs_dilation: Sequence[int] | None = None, rhs_dilation: Sequence[int] | None = None) -> np.ndarray:
    """Indices `[1, h, w, c * window]` of what each window of an image sees; 0 is padding."""
    ids = self.ids(node)
    found = jax.eval_shape(lambda x: _patches(x, window, strides, padding, lhs_dilation, rhs_dilation),
                           jax.ShapeDtypeStruct(ids.shape, np.float32))
    if max(ids.size, int(np.prod(found.shape))) > _MOST_PATCHES:
      raise Unadaptable(f'a convolution whose patches have {int(np.prod(found.shape))} entries is too large for exact '
                        f'methods; at most {_MOST_PATCHES} are laid out.')
    return np.asarray(_patches(ids.astype(np.float32), window, strides, padding, lhs_dilation, rhs_dilation), np.int32)

  def windows(self, node: Node) -> np.ndarray:
    """Indices `[size, window]` of a sum over windows of height and width."""
    options = dict(node.options)
    window, strides, padding = (options[k] for k in ('window_dimensions', 'window_strides', 'padding'))
    if len(window) != 4 or window[0] != 1 or window[3] != 1 or any(
        d != 1 for d in (*options['base_dilation'], *options['window_dilation'])):
      raise Unadaptable('a sum over windows of other axes than height and width has no normal form.')
    found = self.patches(node.inputs[0], window[1:3], strides[1:3], padding[1:3])
    return found.reshape(node_size(node), window[1] * window[2])   # patches list all taps of a channel in a row

  def sums(self, node: Node, index: np.ndarray) -> int:
    place = self.gather([self.places[node.inputs[0]]], index)
    return self.add('sum', place, array=np.array([index.shape[1]], np.int32), size=len(index))


def _patches(x: Any, window: Sequence[int], strides: Sequence[int], padding: Any, lhs_dilation: Sequence[int] | None,
             rhs_dilation: Sequence[int] | None) -> jax.Array:
  return lax.conv_general_dilated_patches(x, tuple(window), tuple(strides), padding, lhs_dilation, rhs_dilation,
                                          dimension_numbers=('NHWC', 'HWIO', 'NHWC'), precision=lax.Precision.HIGHEST)


def node_size(node: Node) -> int:
  """Entries of a node's value."""
  return int(np.prod(node.shape))


def _pruned(ops: Sequence[Op], last: int) -> NormalForm:
  """The operations that `last` needs, in order."""
  needed = {0, last}
  for i in range(last, 0, -1):
    needed.update(ops[i].inputs if i in needed else ())
  place = {old: new for new, old in enumerate(sorted(needed))}
  return NormalForm(tuple(dataclasses.replace(ops[i], inputs=tuple(place[j] for j in ops[i].inputs))
                          for i in sorted(needed)))


