"""Bounds of a network on boxes, by interpreting its graph: intervals (IBP) and backward linear bounds (CROWN).

All functions speak of one box and are pure: `jax.vmap` makes thousands of them one program, and `bound_boxes` does so
with bounded memory. Backward, an affine operation is its own transpose (`jax.vjp`), so that no convolution is ever laid
out as a matrix; nonlinear ones are replaced by the lines of `relaxations`.

Guarantee: sound over the reals, computed in float32, rounded to nearest. A claim that must survive rounding goes
through `checker.py`.
Source: Gowal et al. 2018 (IBP); Zhang et al., NeurIPS 2018 (CROWN); Singh et al., POPL 2019 (DeepPoly); Xu et al.,
ICLR 2021 (alpha-CROWN).
"""
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxfix import devices
from jaxfix.errors import require
from jaxfix.verify import relaxations
from jaxfix.verify.graph import Graph, Node, operation
from jaxfix.verify.relaxations import Interval, Lines

_OFFSETS = frozenset(('add', 'concatenate', 'pad', 'select_n', 'sub'))   # affine operations that may add constants
BATCH_BYTES = 2**30
"""Memory that the coefficients of one batch of boxes may take in `bound_boxes`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearBounds:
  """lower_a x + lower_d <= objective(logits(x)) <= upper_a x + upper_d on the box; `interval` is what follows there.

  Attributes:
    interval: `[q]`, intersected with IBP.
    lower_a, upper_a: `[q, n]`.
    lower_d, upper_d: `[q]`.
  """
  interval: Interval
  lower_a: jax.Array
  lower_d: jax.Array
  upper_a: jax.Array
  upper_d: jax.Array


def ibp(graph: Graph, box: Interval, objective: jax.Array | None = None) -> Interval:
  """Interval bounds of objective @ logits, `[q]`.

  Args:
    graph: of the network.
    box: of inputs, `[*input_shape]` or `[n]`.
    objective: `[q, k]`; None for the logits themselves.
  """
  intervals = [_input(graph, box)]
  for node in graph.nodes[1:]:
    intervals.append(relaxations.image(graph, node, intervals))
  return _objective_image(objective, intervals[-1])


def crown(graph: Graph, box: Interval, objective: jax.Array | None = None, *,
          slopes: Mapping[int, jax.Array] | None = None) -> LinearBounds:
  """Backward linear bounds of objective @ logits; the bounds of every nonlinear operand are found in the same way.

  Args:
    graph: of the network.
    box: of inputs, `[*input_shape]` or `[n]`.
    objective: `[q, k]`; None for the logits themselves.
    slopes: lower slopes of ReLUs in the pass of the objective, node -> `[2 q, *shape]` (rows of lower bounds first),
      in [0, 1].
  """
  intervals = node_bounds(graph, box)
  return _objective_bounds(graph, intervals, objective, slopes)


def alpha_crown(graph: Graph, box: Interval, objective: jax.Array | None = None, *,
                steps: int = 20, learning_rate: float = 0.1) -> LinearBounds:
  """CROWN whose lower ReLU slopes, one for each row of the objective and neuron, are optimized by Adam on [0, 1].

  The bounds of nonlinear operands stay those of CROWN. Every step's bound is sound; each row keeps its best.

  Args:
    graph, box, objective: as for `crown`.
    steps: of projected gradient ascent, static.
    learning_rate: of Adam. Both as VeRe uses them.
  """
  intervals = node_bounds(graph, box)
  q = graph.num_outputs if objective is None else objective.shape[0]
  relus = [i for i, node in enumerate(graph.nodes) if node.op == 'relu']
  start = {i: jnp.broadcast_to(relaxations.default_slope(intervals[graph.nodes[i].inputs[0]]),
                               (2 * q, *graph.nodes[i].shape)) for i in relus}
  optimizer = optax.adam(learning_rate)
  bounds = functools.partial(_objective_bounds, graph, intervals, objective)

  def value(slopes):
    found = bounds(slopes)
    return -(found.interval.lower - found.interval.upper).sum(), found

  def step(carry, _):
    slopes, state, best = carry
    (_, found), gradient = jax.value_and_grad(value, has_aux=True)(slopes)
    updates, state = optimizer.update(gradient, state)
    slopes = {i: jnp.clip(slopes[i] + updates[i], 0, 1) for i in slopes}
    return (slopes, state, _better(best, found)), None

  (slopes, _, best), _ = lax.scan(step, (start, optimizer.init(start), bounds(None)), length=steps)
  return _better(best, bounds(slopes))


def _better(one: LinearBounds, other: LinearBounds) -> LinearBounds:
  """Row by row the larger lower and the smaller upper bound, each with its coefficients."""
  low, high = other.interval.lower > one.interval.lower, other.interval.upper < one.interval.upper
  pick = lambda where, name: jnp.where(where if getattr(one, name).ndim == 1 else where[:, None], getattr(other, name),
                                       getattr(one, name))
  return LinearBounds(
    Interval(jnp.maximum(one.interval.lower, other.interval.lower),
             jnp.minimum(one.interval.upper, other.interval.upper)),
    pick(low, 'lower_a'), pick(low, 'lower_d'), pick(high, 'upper_a'), pick(high, 'upper_d'))


def node_bounds(graph: Graph, box: Interval) -> list[Interval]:
  """Bounds of every node's value.

  Operands of nonlinear operations have CROWN's bounds, intersected with the interval's; the rest intervals from there.
  """
  intervals: list[Interval] = [_input(graph, box)]
  found: dict[int, Lines] = {}
  refined: set[int] = set()
  for i, node in enumerate(graph.nodes[1:], start=1):
    if node.op != 'affine':
      for j in dict.fromkeys(node.inputs):
        if j not in refined:
          refined.add(j)
          intervals[j] = _refine(graph, j, intervals, found)
      found[i] = relaxations.lines(node, [intervals[j] for j in node.inputs])
    intervals.append(relaxations.image(graph, node, intervals))
  return intervals


def _refine(graph: Graph, target: int, intervals: Sequence[Interval], found: Mapping[int, Lines]) -> Interval:
  """CROWN bounds of every entry of node `target`, intersected with those that are known."""
  shape = graph.nodes[target].shape
  unit = jnp.eye(math.prod(shape), dtype=intervals[target].lower.dtype).reshape(-1, *shape)
  a, d = _backward(graph, target, jnp.concatenate([unit, -unit]), found)
  return intervals[target].intersect(_both_sides(intervals[0], a, d, shape))


def _objective_bounds(graph: Graph, intervals: Sequence[Interval], objective: jax.Array | None,
                      slopes: Mapping[int, jax.Array] | None) -> LinearBounds:
  last = len(graph.nodes) - 1
  rows = jnp.eye(graph.num_outputs, dtype=intervals[0].lower.dtype) if objective is None else objective
  start = rows.reshape(len(rows), *graph.nodes[last].shape)
  found = {i: relaxations.lines(node, [intervals[j] for j in node.inputs], None if slopes is None else slopes.get(i))
           for i, node in enumerate(graph.nodes) if node.op not in ('affine', 'input')}
  a, d = _backward(graph, last, jnp.concatenate([start, -start]), found)
  q, a = len(rows), a.reshape(2 * len(rows), -1)
  interval = _both_sides(intervals[0], a, d, (q,)).intersect(_objective_image(objective, intervals[last]))
  return LinearBounds(interval, a[:q], d[:q], -a[q:], -d[q:])


def _backward(graph: Graph, target: int, start: jax.Array, found: Mapping[int, Lines]) -> tuple[jax.Array, jax.Array]:
  """a `[r, *shape of the input]` and d `[r]` with a x + d <= start . value of `target`, row by row (V§4.3).

  Args:
    graph: of the network.
    target: node whose value the rows of `start` `[r, *its shape]` speak of.
    start: coefficients.
    found: the lines of every nonlinear node before it.
  """
  states, d = {target: start}, jnp.zeros(len(start), start.dtype)
  for i in range(target, 0, -1):
    if i not in states:
      continue
    node, a = graph.nodes[i], states.pop(i)
    if node.op == 'affine':
      parts, offset = _transposed(graph, node, a)
      d = d + offset
    else:
      line, positive, axes = found[i], a >= 0, tuple(range(1, a.ndim))
      parts = [a * jnp.where(positive, low, high) for low, high in zip(line.lower, line.upper, strict=True)]
      d = d + (a * jnp.where(positive, line.lower_offset, line.upper_offset)).sum(axes)
    for j, part in zip(node.inputs, parts, strict=True):
      states[j] = states[j] + part if j in states else part
  return states.get(0, jnp.zeros((len(d), *graph.nodes[0].shape), d.dtype)), d


def _transposed(graph: Graph, node: Node, a: jax.Array) -> tuple[list[jax.Array], jax.Array | float]:
  """Coefficients of a node's inputs from those of its value, `[r, *shape]` each, and what its constants add."""
  places = [at for at, i in enumerate(node.operands) if i >= 0]

  def function(*values: jax.Array) -> jax.Array:
    arguments = [None if i >= 0 else graph.constants[~i] for i in node.operands]
    for at, value in zip(places, values, strict=True):
      arguments[at] = value
    return operation(node)(*arguments)

  at_zero, vjp = jax.vjp(function, *[jnp.zeros(graph.nodes[j].shape, a.dtype) for j in node.inputs])
  has_offset = node.primitive in _OFFSETS and len(node.inputs) < len(node.operands)
  offset = (a * at_zero).sum(tuple(range(1, a.ndim))) if has_offset else 0.
  return list(jax.vmap(vjp)(a)), offset


def _both_sides(box: Interval, a: jax.Array, d: jax.Array, shape: tuple[int, ...]) -> Interval:
  """Bounds of rows whose first half is lower and second half upper, on a box."""
  center, radius = (box.lower + box.upper).reshape(1, -1) / 2, (box.upper - box.lower).reshape(1, -1) / 2
  a = a.reshape(len(a), -1)
  # One pass over `a`; as products of a matrix and a vector in a batch it takes three times as long on CPU.
  least = (a * center - jnp.abs(a) * radius).sum(1) + d
  half = len(d) // 2
  return Interval(least[:half].reshape(shape), -least[half:].reshape(shape))


def _objective_image(objective: jax.Array | None, logits: Interval) -> Interval:
  low, high = logits.lower.reshape(-1), logits.upper.reshape(-1)
  if objective is None:
    return Interval(low, high)
  center, radius = objective @ ((low + high) / 2), jnp.abs(objective) @ ((high - low) / 2)
  return Interval(center - radius, center + radius)


def _input(graph: Graph, box: Interval) -> Interval:
  return Interval(*(jnp.asarray(side).reshape(graph.nodes[0].shape) for side in (box.lower, box.upper)))


# --- Many boxes ---


def bound_boxes(graph: Graph, lower: np.ndarray, upper: np.ndarray, objective: np.ndarray | None = None, *,
                method: str = 'crown', batch_size: int = 100) -> tuple[np.ndarray, np.ndarray]:
  """Bounds of objective @ logits on each of many boxes, as a host function.

  Args:
    graph: of the network.
    lower, upper: `[b, *input_shape]` or `[b, n]`, float32.
    objective: `[q, k]`, or `[b, q, k]` with one for each box; None for the logits.
    method: 'ibp', 'crown' or 'alpha_crown'.
    batch_size: boxes bounded at once, at most; fewer where their coefficients would take more than `BATCH_BYTES`.
  Returns:
    lower and upper bounds, `[b, q]` float32 each.
  Raises:
    BadInputError: shapes that do not fit, NaN, a lower bound above its upper, an unknown method.
  """
  require(method in _METHODS, f'method must be one of {", ".join(_METHODS)}, got {method!r}.')
  lower, upper = (np.asarray(side, np.float32).reshape(len(side), math.prod(np.shape(side)[1:]))
                  for side in (lower, upper))
  require(lower.shape == upper.shape and lower.shape[1] == graph.num_inputs,
          f'boxes have lower and upper bounds of shapes {lower.shape} and {upper.shape}; the network takes '
          f'{graph.num_inputs} inputs.')
  require(not np.isnan(lower).any() and not np.isnan(upper).any(), 'a box has NaN among its bounds.')
  require(bool((lower <= upper).all()), 'a box is empty: a lower bound lies above its upper bound.')
  if objective is not None:
    objective = np.asarray(objective, np.float32)
    require(objective.shape[-1:] == (graph.num_outputs,) and (
      objective.ndim == 2 or objective.ndim == 3 and len(objective) == len(lower)),
      f'objective has shape {objective.shape}; it must be [q, {graph.num_outputs}] or [{len(lower)}, q, '
      f'{graph.num_outputs}].')
  if method != 'ibp':
    batch_size = max(1, min(batch_size, BATCH_BYTES // box_bytes(graph)))
  parts = []
  for start in range(0, len(lower), batch_size):
    index = np.minimum(start + np.arange(batch_size), len(lower) - 1)   # padded to one shape
    rows = objective[index] if objective is not None and objective.ndim == 3 else objective
    found = _batched(graph, lower[index], upper[index], rows, method)
    parts.append([np.asarray(side)[:len(lower) - start] for side in (found.lower, found.upper)])
  if not parts:
    q = graph.num_outputs if objective is None else objective.shape[-2]
    return np.empty((0, q), np.float32), np.empty((0, q), np.float32)
  low, high = zip(*parts, strict=True)
  return np.concatenate(low), np.concatenate(high)


def box_bytes(graph: Graph) -> int:
  """About what CROWN's largest matrices of coefficients take for one box, in float32."""
  widths = [math.prod(node.shape) for node in graph.nodes if node.op not in ('affine', 'input')]
  return 4 * 2 * max(widths, default=1) * max(*widths, graph.num_inputs, 1)


_METHODS = {'ibp': ibp, 'crown': lambda *arguments: crown(*arguments).interval,
            'alpha_crown': lambda *arguments: alpha_crown(*arguments).interval}


@functools.partial(devices.jit, static_argnames='method')
def _batched(graph: Graph, lower: jax.Array, upper: jax.Array, objective: jax.Array | None, method: str) -> Interval:
  each = 0 if objective is not None and objective.ndim == 3 else None
  return jax.vmap(lambda low, high, rows: _METHODS[method](graph, Interval(low, high), rows), (0, 0, each))(
    lower, upper, objective)
