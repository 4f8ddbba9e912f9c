"""Where a piecewise linear network is affine: around a point, along a line, and on a polygon.

Whoever wants one affine map of the network asks for that of an activation pattern: one bit for each entry of `relu` and
`maximum`. A map of n variables is an array `[1 + n, size]` whose row 0 is the constant and whose row 1 + i is the
coefficient of variable i, so that the operations of a normal form, which act on the last axis, act on maps as well.

Everything here is float64 on the host, with the rounding of float64. A border between two pieces is where it is up to
that rounding; pieces thinner than it are not told apart.
"""
import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxfix.errors import require
from jaxfix.verify.normal_form import NormalForm, Op, apply, values
from jaxfix.verify.spec import Box

KINKED = ('relu', 'maximum')
"""Operations that are affine on either side of `kink == 0`."""

_FLAT_ROW = 1e-12   # norm below which a pre-activation does not depend on the input (V-section 5)
_SAME_RATIO = 1e-15   # some 4 units in the last place of 1: two neurons that cross together differ by rounding only
_ON_BORDER = 1e-12   # of the largest pre-activation of an operation: vertices nearer to a border lie on it
_FLAT_POLYGON = 1e-9   # of the extent of a polygon: how far its vertices may miss their plane, or a line

Pattern = tuple[np.ndarray | None, ...]
"""For each operation that is in `KINKED`, which entries are active, `[..., size]` bool; None for the others."""


@dataclasses.dataclass(frozen=True, eq=False)
class Region:
  """A linear region {x : a x <= b}, on which the network is jacobian x + offset.

  Attributes:
    a: `[m, n]`, rows of norm 1. b: `[m]`.
    scale: `[m]`, what a row was divided by: scale * (b - a x) is the distance of the pre-activation from its kink.
    op, neuron: `[m]` int, the operation and entry a row is about; rows of the box have op 0 and the input's index.
    jacobian: `[k, n]`. offset: `[k]`.
    pattern: that of the region.
  """
  a: np.ndarray
  b: np.ndarray
  scale: np.ndarray
  op: np.ndarray
  neuron: np.ndarray
  jacobian: np.ndarray
  offset: np.ndarray
  pattern: Pattern


@dataclasses.dataclass(frozen=True, eq=False)
class PlanePieces:
  """A convex polygon in input space, cut into convex polygons on which the network is affine.

  Attributes:
    whole: `[v, n]`, the vertices of the polygon.
    weights: `[m, v]`, each vertex of a piece as a convex combination of those of the polygon. A vertex is listed once,
      however many pieces meet there. For images these are far fewer numbers than the vertices.
    polygons: for each piece the indices of its vertices, in the order of the polygon that was cut.
    cuts: `[c, 4]` int, the tree of cuts: operation, entry, and what lies where its kink is > 0 and where it is < 0. A
      child i >= 0 is cut i, and ~p is piece p. The root is cut 0; without any cut there is piece 0 only.
  """
  whole: np.ndarray
  weights: np.ndarray
  polygons: tuple[np.ndarray, ...]
  cuts: np.ndarray

  @property
  def vertices(self) -> np.ndarray:
    """`[m, n]`."""
    return self.weights @ self.whole

  def corners(self, piece: int) -> np.ndarray:
    """The vertices `[v, n]` of a piece; their mean lies inside it."""
    return self.weights[self.polygons[piece]] @ self.whole


def kink(op: Op, arguments: Sequence[np.ndarray]) -> np.ndarray:
  """What an operation in `KINKED` is affine on either side of: z of relu(z), and a - b of max(a, b)."""
  return arguments[0] if op.kind == 'relu' else arguments[0] - arguments[1]


def activation_pattern(form: NormalForm, x: np.ndarray) -> Pattern:
  """The pattern at inputs `[..., n]`: an entry is active if its kink is > 0.

  The second operand of a `maximum` wins a tie, and a ReLU at 0 is inactive.
  """
  found = values(form, _inputs(form, x))
  return tuple(kink(op, [found[i] for i in op.inputs]) > 0 if op.kind in KINKED else None for op in form.ops)


def affine_maps(form: NormalForm, pattern: Pattern) -> list[np.ndarray]:
  """The maps `[1 + n, size]` from the input to every value, where a network has this pattern (of one input)."""
  n = form.num_inputs
  maps = [np.concatenate([np.zeros((1, n)), np.eye(n)])]
  for op, active in zip(form.ops[1:], pattern[1:], strict=True):
    arguments = [maps[i] for i in op.inputs]
    if op.kind in KINKED:
      maps.append(np.where(active, arguments[0], 0. if op.kind == 'relu' else arguments[1]))
    else:
      maps.append(affine_step(op, arguments))
  return maps


def affine_step(op: Op, arguments: Sequence[np.ndarray]) -> np.ndarray:
  """The map `[1 + v, size]` after an affine operation, from those of its operands `[1 + v, ...]`."""
  if op.kind != 'shift':
    return apply(op, arguments)
  moved = arguments[0].copy()
  moved[0] += op.array   # only the constant: every other affine operation is linear
  return moved


def affine_map(form: NormalForm, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(J `[k, n]`, c `[k]`): the network is J x + c on the region of the input x `[n]`."""
  final = affine_maps(form, activation_pattern(form, _point(form, x)))[-1]
  return final[1:].T, final[0]


def region(form: NormalForm, x: np.ndarray, box: Box | None = None) -> Region:
  """The closed region of the pattern at x, with its map.

  Entries whose kink does not depend on the input (norm of its gradient below 1e-12) give no row. Every comparison of a
  max-pooling gives one, those between losers too, so that the network may be affine beyond a border.

  Args:
    form: the network.
    x: `[n]`.
    box: its sides become rows as well, even where they do not touch the region; None for none.
  Guarantee: the network is jacobian x + offset wherever a x <= b, up to rounding.
  Source: V-section 5.
  """
  pattern = activation_pattern(form, _point(form, x))
  maps = affine_maps(form, pattern)
  rows, op_of, neuron_of = [np.zeros((1 + form.num_inputs, 0))], [], []
  for i, op in enumerate(form.ops):
    if op.kind in KINKED:
      rows.append(kink(op, [maps[j] for j in op.inputs]) * np.where(pattern[i], -1., 1.))   # <= 0 in the region
      op_of += [i] * op.size
      neuron_of += range(op.size)
  stacked = np.concatenate(rows, axis=1)
  norm = np.linalg.norm(stacked[1:], axis=0)
  kept = norm >= _FLAT_ROW
  scale = norm[kept]
  a, b = stacked[1:, kept].T / scale[:, None], -stacked[0, kept] / scale
  op, neuron = np.array(op_of, int)[kept], np.array(neuron_of, int)[kept]
  if box is not None:
    require(box.dimension == form.num_inputs, f'The box has {box.dimension} sides, the network {form.num_inputs} '
            'inputs.')
    sides = np.arange(box.dimension)
    a = np.concatenate([a, np.eye(box.dimension), -np.eye(box.dimension)])
    b = np.concatenate([b, box.upper, -box.lower])
    scale = np.concatenate([scale, np.ones(2 * box.dimension)])
    op = np.concatenate([op, np.zeros(2 * box.dimension, int)])
    neuron = np.concatenate([neuron, sides, sides])
  return Region(a, b, scale, op, neuron, maps[-1][1:].T, maps[-1][0], pattern)


def line_pieces(form: NormalForm, a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Ratios 0 = t_0 < ... < t_k = 1 such that the network is affine between a + t_i (b - a) and the next.

  Every crossing of a kink is a ratio, even where the logits do not show it. Ratios nearer to each other than 1e-15 are
  one. The middle of a piece is a point of its region.

  Args:
    form: the network.
    a, b: the ends, `[n]`; they may be equal.
  Source: ExactLine of Sotoudeh & Thakur, NeurIPS 2019; V-section 6.1.
  """
  ratios, last_use = np.array([0., 1.]), _last_use(form)
  live = {0: np.stack([_point(form, a), _point(form, b)])}   # values at the ratios, `[k + 1, size]`
  for i, op in enumerate(form.ops[1:], 1):
    if op.kind in KINKED:
      segment, local, crossed = _crossings(kink(op, [live[j] for j in op.inputs]), ratios)
      ratios = np.insert(ratios, segment + 1, crossed)
      live = {j: np.insert(v, segment + 1, v[segment] + local[:, None] * (v[segment + 1] - v[segment]), axis=0)
              for j, v in live.items()}
    live[i] = apply(op, [live[j] for j in op.inputs])
    live = {j: v for j, v in live.items() if last_use[j] > i}
  return ratios


def _crossings(z: np.ndarray, ratios: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Where entries of z `[k + 1, size]`, affine between the ratios, change sign: segment, ratio within it, ratio."""
  before, after = z[:-1], z[1:]
  segment, neuron = np.nonzero((before > 0) & (after < 0) | (before < 0) & (after > 0))
  start, end = before[segment, neuron], after[segment, neuron]
  local = start / (start - end)
  found = ratios[segment] + (ratios[segment + 1] - ratios[segment]) * local
  order = np.argsort(found)
  inside = np.minimum(found - ratios[segment], ratios[segment + 1] - found)[order] > _SAME_RATIO
  order = order[inside]
  order = order[np.diff(found[order], prepend=-1.) > _SAME_RATIO]
  return segment[order], local[order], found[order]


def plane_pieces(form: NormalForm, vertices: np.ndarray) -> PlanePieces:
  """Cuts a convex polygon in a plane of input space into convex polygons on which the network is affine.

  Args:
    form: the network.
    vertices: `[v, n]`, v >= 3, around the polygon in either direction. Repeated neighbours are dropped; vertices on an
      edge are kept.
  Returns:
    The pieces, which cover the polygon and share no more than their edges.
  Raises:
    BadInputError: the vertices lie in no plane, on a line, or do not go around a convex polygon once.
  Source: Sotoudeh, Tao & Thakur, TACAS 2021; V-section 6.2. Max-pooling by the kinks of pairs is ours.
  """
  corners, last_use = _polygon(form, vertices), _last_use(form)
  weights, live = np.eye(len(corners)), {0: corners}   # of the vertices, and the values there
  pieces, cuts = [(np.arange(len(corners)), None)], []   # polygons, and the place in `cuts` that points at each
  for i, op in enumerate(form.ops[1:], 1):
    if op.kind in KINKED:
      pieces, parents = _cut(i, kink(op, [live[j] for j in op.inputs]), pieces, cuts)
      weights, live = _extended(weights, parents), {j: _extended(v, parents) for j, v in live.items()}
    live[i] = apply(op, [live[j] for j in op.inputs])
    live = {j: v for j, v in live.items() if last_use[j] > i}
  for p, (_, place) in enumerate(pieces):
    if place is not None:
      cuts[place[0]][place[1]] = ~p
  return PlanePieces(corners, weights, tuple(polygon for polygon, _ in pieces), np.array(cuts, int).reshape(-1, 4))


_Piece = tuple[np.ndarray, tuple[int, int] | None]
_Parents = list[tuple[int, int, float]]   # of each new vertex: it lies at p + ratio * (q - p)


def _cut(op: int, z: np.ndarray, pieces: Sequence[_Piece], cuts: list[list[int]]) -> tuple[list[_Piece], _Parents]:
  """Cuts pieces along the zeros of every entry of z `[vertices, size]`, which is affine on each; notes the cuts."""
  near = _ON_BORDER * np.abs(z).max(initial=0.)
  rows = list(np.where(np.abs(z) <= near, 0., z))
  parents: _Parents = []
  between: dict[tuple[int, int, int], int] = {}   # neighbours share the new vertices of their common edge

  def crossing(p: int, q: int, neuron: int) -> int:
    p, q = min(p, q), max(p, q)
    if (p, q, neuron) not in between:
      ratio = rows[p][neuron] / (rows[p][neuron] - rows[q][neuron])
      row = rows[p] + ratio * (rows[q] - rows[p])
      row[np.abs(row) <= near] = 0.
      row[neuron] = 0.
      between[p, q, neuron] = len(rows)
      rows.append(row)
      parents.append((p, q, ratio))
    return between[p, q, neuron]

  finished, pending = [], list(reversed(pieces))
  while pending:
    polygon, place = pending.pop()
    around = np.array([rows[v] for v in polygon])
    split = (around.min(axis=0) < 0) & (around.max(axis=0) > 0)
    if not split.any():
      finished.append((polygon, place))
      continue
    neuron = int(np.argmax(split))
    positive, negative = [], []
    for at, sign in enumerate(np.sign(around[:, neuron])):
      v, after = int(polygon[at]), (at + 1) % len(polygon)
      if sign >= 0:
        positive.append(v)
      if sign <= 0:
        negative.append(v)
      if sign * around[after, neuron] < 0:
        new = crossing(v, int(polygon[after]), neuron)
        positive.append(new)
        negative.append(new)
    if place is not None:
      cuts[place[0]][place[1]] = len(cuts)
    pending += [(np.array(negative), (len(cuts), 3)), (np.array(positive), (len(cuts), 2))]
    cuts.append([op, neuron, 0, 0])
  return finished, parents


def _extended(rows: np.ndarray, parents: _Parents) -> np.ndarray:
  """Values `[vertices, size]` with those of the new vertices, which may lie between other new ones."""
  found = np.concatenate([rows, np.empty((len(parents), rows.shape[1]))])
  for v, (p, q, ratio) in enumerate(parents, len(rows)):
    found[v] = found[p] + ratio * (found[q] - found[p])
  return found


def _polygon(form: NormalForm, vertices: np.ndarray) -> np.ndarray:
  """The vertices `[v, n]` of a convex polygon without repeated neighbours, or BadInputError."""
  corners = _inputs(form, vertices)
  require(corners.ndim == 2 and len(corners) >= 3, f'A polygon is an array [v, {form.num_inputs}] of 3 or more '
          f'vertices, got shape {corners.shape}.')
  extent = np.abs(corners - corners[0]).max()
  step = np.abs(corners - np.roll(corners, -1, axis=0)).max(axis=1)
  corners = corners[step > _FLAT_POLYGON * extent]
  require(len(corners) >= 3, f'The polygon has {len(corners)} distinct vertices, it needs 3.')
  centred = corners - corners.mean(axis=0)
  _, singular, axes = np.linalg.svd(centred, full_matrices=False)
  require(len(singular) < 3 or singular[2] <= _FLAT_POLYGON * singular[0],
          'The vertices of the polygon do not lie in a plane.')
  require(len(singular) >= 2 and singular[1] > _FLAT_POLYGON * singular[0],
          'The vertices of the polygon lie on a line: use line_pieces.')
  flat = centred @ axes[:2].T
  edge = np.roll(flat, -1, axis=0) - flat
  edge /= np.linalg.norm(edge, axis=1, keepdims=True)
  before = np.roll(edge, 1, axis=0)
  turn = np.arctan2(before[:, 0] * edge[:, 1] - before[:, 1] * edge[:, 0], (before * edge).sum(axis=1))
  # Angles of a convex polygon have one sign and add up to one turn; 1e-6 rad is far above rounding, and a dent of that
  # angle is one that the shape as drawn does not have.
  require(abs(abs(turn.sum()) - 2 * np.pi) < 1e-6 and bool((turn * np.sign(turn.sum()) > -1e-6).all()),
          'The vertices do not go around a convex polygon once: put them in order.')
  return corners


def _last_use(form: NormalForm) -> list[int]:
  """For each operation the last one that takes its value; itself where there is none."""
  last = list(range(len(form.ops)))
  for i, op in enumerate(form.ops):
    for j in op.inputs:
      last[j] = i
  return last


def _inputs(form: NormalForm, x: np.ndarray) -> np.ndarray:
  x = np.asarray(x, np.float64)
  require(x.ndim > 0 and x.shape[-1] == form.num_inputs,
          f'The network takes inputs of {form.num_inputs} numbers, got shape {x.shape}.')
  require(bool(np.isfinite(x).all()), 'An input holds NaN or infinity.')
  return x


def _point(form: NormalForm, x: np.ndarray) -> np.ndarray:
  x = _inputs(form, x)
  require(x.ndim == 1, f'One input [{form.num_inputs}] is wanted, got shape {x.shape}.')
  return x
