"""What bounds know of single operations: images of intervals, and lines that enclose nonlinear functions.

Float32 or float64 arithmetic, rounded to nearest: sound over the reals, not against rounding (`checker.py` is).
"""
import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxfix.verify.graph import MOVES, SUMS, Graph, Node, operands, operation


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Interval:
  """lower <= value <= upper, elementwise; two arrays of one shape."""
  lower: jax.Array
  upper: jax.Array

  def intersect(self, other: 'Interval') -> 'Interval':
    """Entries of both; where rounding has let them pass each other, the gap between them."""
    lower, upper = jnp.maximum(self.lower, other.lower), jnp.minimum(self.upper, other.upper)
    return Interval(jnp.minimum(lower, upper), jnp.maximum(lower, upper))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lines:
  """Planes below and above a function of its operands x_j: sum_j slope_j x_j + offset. Arrays of the operands' shape.

  Attributes:
    lower, upper: a slope for each operand.
    lower_offset, upper_offset: intercepts.
  """
  lower: tuple[jax.Array, ...]
  lower_offset: jax.Array
  upper: tuple[jax.Array, ...]
  upper_offset: jax.Array


def image(graph: Graph, node: Node, intervals: Sequence[Interval]) -> Interval:
  """The interval of a node's value from those of all nodes before it (IBP, V§3)."""
  low, high = (operands(graph, node, [getattr(i, side) for i in intervals]) for side in ('lower', 'upper'))
  function = operation(node)
  if node.op != 'affine':
    return _nonlinear_image(node, [Interval(a, b) for a, b in zip(low, high, strict=True)])
  if node.primitive in MOVES or node.primitive in SUMS or node.primitive == 'add':
    return Interval(function(*low), function(*high))
  if node.primitive == 'sub':
    return Interval(function(low[0], high[1]), function(high[0], low[1]))
  if node.primitive == 'neg':
    return Interval(-high[0], -low[0])
  # One operand is a constant: centre and radius go through the operation and through that of the constant's size.
  center = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
  radius = [(b - a) / 2 if i >= 0 else jnp.abs(a) for i, a, b in zip(node.operands, low, high, strict=True)]
  y, r = function(*center), function(*radius)
  return Interval(y - r, y + r)


def _nonlinear_image(node: Node, arguments: Sequence[Interval]) -> Interval:
  function, x = operation(node), arguments[0]
  if node.op == 'mul' and len(set(node.operands)) == 1:
    ends = jnp.square(x.lower), jnp.square(x.upper)
    crosses = (x.lower < 0) & (x.upper > 0)
    return Interval(jnp.where(crosses, 0, jnp.minimum(*ends)), jnp.maximum(*ends))
  if node.op in ('mul', 'div'):
    y = arguments[1]
    corners = [function(a, b) for a in (x.lower, x.upper) for b in (y.lower, y.upper)]
    low, high = jnp.minimum(*map(jnp.minimum, corners[:2], corners[2:])), jnp.maximum(
      *map(jnp.maximum, corners[:2], corners[2:]))
    bad = (y.lower <= 0) & (y.upper >= 0) if node.op == 'div' else jnp.zeros_like(low, bool)
    return Interval(jnp.where(bad, -jnp.inf, low), jnp.where(bad, jnp.inf, high))
  if node.op == 'log':
    return Interval(jnp.where(x.lower > 0, jnp.log(jnp.maximum(x.lower, 0)), -jnp.inf), jnp.log(x.upper))
  return Interval(function(*[a.lower for a in arguments]), function(*[a.upper for a in arguments]))   # monotone


def lines(node: Node, arguments: Sequence[Interval], slope: jax.Array | None = None) -> Lines:
  """Planes that enclose a nonlinear node on the box of its operands (V§4.2).

  Args:
    node: with `op` in `NONLINEAR`.
    arguments: of its operands.
    slope: of the lower line of an unstable ReLU, in [0, 1]: any value there is sound. None: 1 where u >= -l, else 0.
      It may have axes in front (one slope for each row that is bounded).
  """
  if node.op == 'relu':
    return _relu(arguments[0], slope)
  if node.op == 'maximum':
    return _maximum(*arguments)
  if node.op in ('tanh', 'logistic'):
    return _s_shaped(node, arguments[0])
  if node.op == 'exp':
    return _exp(arguments[0])
  if node.op == 'mul':
    return _product(node, *arguments)
  found = _nonlinear_image(node, arguments)   # log, div: constants
  zeros = tuple(jnp.zeros_like(a.lower) for a in arguments)
  return Lines(zeros, found.lower, zeros, found.upper)


def default_slope(x: Interval) -> jax.Array:
  """CROWN's lower slope of a ReLU: the one with the smaller area."""
  return (x.upper >= -x.lower).astype(x.lower.dtype)


def _relu(x: Interval, slope: jax.Array | None) -> Lines:
  unstable, active = (x.lower < 0) & (x.upper > 0), (x.lower >= 0).astype(x.lower.dtype)
  chord = x.upper / jnp.where(unstable, x.upper - x.lower, 1)
  lower = jnp.where(unstable, default_slope(x) if slope is None else slope, active)
  zero = jnp.zeros_like(x.lower)
  return Lines((lower,), zero, (jnp.where(unstable, chord, active),), jnp.where(unstable, -chord * x.lower, zero))


def _maximum(a: Interval, b: Interval) -> Lines:
  """Below: the operand with the larger lower bound. Above: the operand that surely wins, or the largest value."""
  dtype, zero = a.lower.dtype, jnp.zeros_like(a.lower)
  first, a_wins, b_wins = a.lower >= b.lower, a.lower >= b.upper, b.lower >= a.upper
  upper = (a_wins.astype(dtype), (b_wins & ~a_wins).astype(dtype))
  return Lines((first.astype(dtype), (~first).astype(dtype)), zero, upper,
               jnp.where(a_wins | b_wins, zero, jnp.maximum(a.upper, b.upper)))


def _s_shaped(node: Node, x: Interval) -> Lines:
  """Lines through the ends with the smaller of the slopes there; the chord where the function bends one way only."""
  function = operation(node)
  low, high = function(x.lower), function(x.upper)
  derivative = (lambda y: 1 - y * y) if node.op == 'tanh' else (lambda y: y * (1 - y))
  least = jnp.minimum(derivative(low), derivative(high))
  wide = x.upper - x.lower > 1e-6
  chord = jnp.where(wide, (high - low) / jnp.where(wide, x.upper - x.lower, 1), least)
  lower, upper = jnp.where(x.lower >= 0, chord, least), jnp.where(x.upper <= 0, chord, least)
  return Lines((lower,), low - lower * x.lower, (upper,), high - upper * x.upper)


def _exp(x: Interval) -> Lines:
  """Convex: a tangent below, the chord above."""
  at = jnp.minimum((x.lower + x.upper) / 2, x.lower + 0.99)   # there the tangent's value at `lower` is positive
  tangent, wide = jnp.exp(at), x.upper - x.lower > 1e-6
  low, high = jnp.exp(x.lower), jnp.exp(x.upper)
  chord = jnp.where(wide, (high - low) / jnp.where(wide, x.upper - x.lower, 1), high)
  return Lines((tangent,), tangent * (1 - at), (chord,), high - chord * x.upper)


def _product(node: Node, x: Interval, y: Interval) -> Lines:
  """McCormick's envelopes; for a square the tangent in the middle and the chord."""
  if len(set(node.operands)) == 1:
    middle = (x.lower + x.upper) / 2
    zero = jnp.zeros_like(middle)
    return Lines((2 * middle, zero), -middle * middle, (x.lower + x.upper, zero), -x.lower * x.upper)
  return Lines((y.lower, x.lower), -x.lower * y.lower, (y.upper, x.lower), -x.lower * y.upper)
