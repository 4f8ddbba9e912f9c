"""Exact decision by splitting the inputs: boxes are bounded by CROWN, and cut in half until each is proven or refuted.

For networks of few inputs (V§10). Thousands of boxes are bounded in one call, in float32; a box that looks safe is
accepted only when the checker's own bounds prove it, so that the tree of boxes that comes out is evidence as it stands.

  open boxes = {the box of the property}
  while there are open boxes:
    take a batch; bound every row of every clause from above (CROWN)
    safe if every clause has a row below its limit, and the checker agrees: a leaf
    otherwise look for a counterexample at the centre and at the corner where the linear bound is worst
    cut the rest in half along the input with the largest smear |coefficient| * width, sparing sides cut often

On an H-polytope a x <= b a linear program takes the place of the corner: its multipliers go into the evidence, and turn
the linear bound into one that holds where a x <= b (V§11.4).
"""
import functools
import time

import jax
import numpy as np

from jaxfix import devices
from jaxfix.errors import require
from jaxfix.solve import LinearProgram, Status, solve_lp
from jaxfix.verify import bounds, checker, falsify, normal_form
from jaxfix.verify.certificate import Evidence, network_of
from jaxfix.verify.graph import Graph
from jaxfix.verify.normal_form import NormalForm
from jaxfix.verify.relaxations import Interval
from jaxfix.verify.spec import Box, HPolytope, Property
from jaxfix.verify.verdict import Outcome, VacuousError, Verdict

BATCHES = (128, 2048)
"""Boxes bounded in one call: the smaller number until there are four times as many open."""

_LEAST_WIDTH = 1e-7
_EVENNESS = 1 / 3   # how much sides that were cut often are spared: the smear of a loose bound alone makes slivers
_SPARE = 1e-9
_MOST_SAMPLED = 2**26   # values of the network that are computed for samples: half a GiB, were they all kept
_BYTES_A_BOX = 200   # of an open box of few inputs, with what the tree keeps of it


def decide(graph: Graph, form: NormalForm, p: Property, *, key: jax.Array, time_limit_s: float = 600.,
           strength: str = 'real', most_boxes: int = 4_000_000) -> Outcome:
  """Whether a property holds on a box or an H-polytope.

  Args:
    graph, form: of one network.
    p: property; its inputs are a `Box` or an `HPolytope`.
    key: of the search for counterexamples, consumed.
    time_limit_s: seconds, > 0.
    strength: 'real' or 'float32', what is to be proven.
    most_boxes: give up beyond this many, reason 'memory'; 0 tries the whole box only.
  Returns:
    PROVED with evidence ('splits', or 'duals' for an H-polytope), REFUTED with a counterexample, or UNKNOWN with the
    reason.
  Raises:
    VacuousError: the set is empty, or no condition can fail.
    BadInputError: another kind of input set, or a limit that is not positive.
  """
  require(isinstance(p.inputs, (Box, HPolytope)), f'branch and bound takes boxes, not {type(p.inputs).__name__}.')
  require(time_limit_s > 0, f'time_limit_s must be positive, got {time_limit_s}.')
  require(strength in ('real', 'float32'), f"strength must be 'real' or 'float32', got {strength!r}.")
  if p.is_vacuous:
    raise VacuousError('the property holds of every network: its input set is empty, or its conditions cannot fail.')
  start = time.monotonic()
  search = _Search(graph, form, p, strength)
  outcome = functools.partial(Outcome, engine='branch and bound')
  done = lambda: {'num_boxes': search.num_boxes, 'decided': search.decided, 'seconds': time.monotonic() - start}
  # Easy cases first, before anything is compiled.
  number = min(4096, _MOST_SAMPLED // sum(op.size for op in form.ops))
  found = search.confirm(falsify.samples(search.box, key=jax.random.fold_in(key, 0), number=number))
  if found is None and search.proves_root():
    return outcome(Verdict.PROVED, evidence=search.evidence(), strength=strength, **done())
  if found is None:
    found = search.confirm(falsify.attack(graph, Property(search.box, p.clauses), key=jax.random.fold_in(key, 1)))
  if found is not None:
    return outcome(Verdict.REFUTED, counterexample=found, **done())
  while search.open:
    if time.monotonic() - start > time_limit_s:
      return outcome(Verdict.UNKNOWN, 'time', undecided=search.undecided(), **done())
    if search.num_boxes > most_boxes:
      return outcome(Verdict.UNKNOWN, 'memory', undecided=search.undecided(), **done())
    found = search.step()
    if found is not None:
      return outcome(Verdict.REFUTED, counterexample=found, **done())
    if search.too_narrow:
      return outcome(Verdict.UNKNOWN, 'numerics', undecided=search.undecided(), **done())
  return outcome(Verdict.PROVED, evidence=search.evidence(), strength=strength, **done())


def expected_bytes(graph: Graph, most_boxes: int = 4_000_000) -> int:
  """About the memory that `decide` may come to need."""
  return BATCHES[-1] * 4 * bounds.box_bytes(graph) + most_boxes * (_BYTES_A_BOX + 16 * graph.num_inputs)


class _Search:
  """The boxes that are open, and the tree so far.

  Node i of the tree is cut along `cuts[i]` (-1: not cut) and has the children `children[i]` and the one after it.
  """

  def __init__(self, graph: Graph, form: NormalForm, p: Property, strength: str):
    self.graph, self.form, self.p = graph, form, p
    self.network = network_of(form)
    # A hair more than is claimed: sums come out in another order when the checker groups boxes otherwise.
    self.clauses = tuple(checker.Clause(c.g, c.h - _SPARE * (1 + np.abs(c.h)), c.strict) for c in p.clauses)
    self.float32 = strength == 'float32'
    self.box = p.inputs.box if isinstance(p.inputs, HPolytope) else p.inputs
    self.free = self.box.lower < self.box.upper
    self.open = [(0, self.box.lower, self.box.upper, 1.)]   # node, lower, upper, share of the volume
    self.cuts, self.children = [-1], [-1]
    self.g = np.concatenate([c.g for c in p.clauses]).astype(np.float32)
    self.h = np.concatenate([c.h for c in p.clauses])
    self.clause_of = np.repeat(np.arange(len(p.clauses)), [len(c.h) for c in p.clauses])
    self.polytope = p.inputs if isinstance(p.inputs, HPolytope) else None
    self.multipliers: dict[int, np.ndarray] = {}            # of nodes whose proof needs them, `[rows, m]`
    self.num_boxes, self.decided, self.too_narrow = 0, 0., False

  def proves_root(self) -> bool:
    """Whether the checker's bounds prove the whole box at once."""
    self.num_boxes += 1
    holds = checker.boxes_hold(self.network, self.clauses, self.box.lower[None], self.box.upper[None], self.float32)
    self.decided = float(holds[0])
    return bool(holds[0])

  def step(self) -> np.ndarray | None:
    """Decides or cuts one batch of open boxes; a counterexample, if one turned up."""
    size = BATCHES[1] if len(self.open) >= 4 * BATCHES[0] else BATCHES[0]
    batch, self.open = self.open[-size:], self.open[:-size]
    lower, upper = np.array([b[1] for b in batch]), np.array([b[2] for b in batch])
    most, coefficients, offsets = self.bound(lower, upper, size)
    self.num_boxes += len(batch)
    missing = most - self.h                                   # [b, rows]: > 0 is not proven
    by_clause = np.stack([missing[:, self.clause_of == c].min(axis=1) for c in range(len(self.clauses))], axis=1)
    safe = (by_clause < 0).all(axis=1)
    if safe.any():
      safe[safe] = checker.boxes_hold(self.network, self.clauses, lower[safe], upper[safe], self.float32)
    self.decided += sum(batch[i][3] for i in np.flatnonzero(safe))
    rest = np.flatnonzero(~safe)
    points = np.zeros((0, lower.shape[1]))
    if self.polytope is not None:
      proven, points = self.by_duals(batch, rest, lower, upper, coefficients, offsets)
      self.decided += sum(batch[i][3] for i in rest[proven])
      rest = rest[~proven]
    if not len(rest):
      return None
    worst = by_clause[rest].argmax(axis=1)                    # a clause that is not proven, and its best row
    row = np.where(self.clause_of == worst[:, None], missing[rest], np.inf).argmin(axis=1)
    a = coefficients[rest, row]
    found = self.confirm(np.concatenate([points, (lower[rest] + upper[rest]) / 2,
                                         np.where(a > 0, upper[rest], lower[rest])]))
    if found is not None:
      return found
    width = upper[rest] - lower[rest]
    halvings = width / np.where(self.free, self.box.upper - self.box.lower, np.inf)   # 2^-k after k cuts
    smear = np.where(self.free, np.abs(a) * width * halvings**_EVENNESS, -1)
    if not (width.max(axis=1) > _LEAST_WIDTH).all():
      self.too_narrow = True
      self.open += [batch[i] for i in rest]
      return None
    for i, cut in zip(rest, smear.argmax(axis=1), strict=True):
      self.split(*batch[i], int(cut))
    return None

  def bound(self, lower: np.ndarray, upper: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Upper bounds `[b, rows]` of g y, and the linear bounds: coefficients `[b, rows, n]`, offsets `[b, rows]`.

    Boxes are padded to `size`, so that one program serves all batches.
    """
    pad = np.minimum(np.arange(size), len(lower) - 1)
    found = _bound(self.graph, lower[pad].astype(np.float32), upper[pad].astype(np.float32), self.g)
    return tuple(np.asarray(part, np.float64)[:len(lower)] for part in found)

  def by_duals(self, batch: list[tuple], rest: np.ndarray, lower: np.ndarray, upper: np.ndarray, a: np.ndarray,
               d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which boxes of `rest` are proven on the polytope, and the inputs `[p, n]` where the linear bounds are worst.

    One linear program for each row: max a x + d over the polytope in the box; its multipliers are kept.
    """
    q = np.zeros((len(rest), len(self.h), len(self.polytope.a)))
    points = []
    for at, i in enumerate(rest):
      for row in range(len(self.h)):
        program = LinearProgram(-a[i, row], self.polytope.a, np.full(len(self.polytope.b), -np.inf), self.polytope.b,
                                lower[i], upper[i])
        found = solve_lp(program, solver='simplex', time_limit_s=10.)
        if found.status is Status.OPTIMAL:
          q[at, row] = np.maximum(-found.row_dual, 0)
          points.append(found.x)
        elif found.ray is not None and found.ray_bound > 0:   # no such input in this box: enough of the ray says so
          gap = (np.abs(a[i, row]) * np.maximum(np.abs(lower[i]), np.abs(upper[i]))).sum() + abs(d[i, row])
          q[at, row] = np.maximum(-found.ray, 0) * (2 * (gap + abs(self.h[row]) + 1) / float(found.ray_bound))
    cuts = self.polytope.a, self.polytope.b, q
    proven = checker.boxes_hold(self.network, self.clauses, lower[rest], upper[rest], self.float32, cuts)
    self.multipliers.update({batch[i][0]: q[at] for at, i in enumerate(rest) if proven[at]})
    return proven, np.array(points).reshape(-1, lower.shape[1])

  def confirm(self, candidates: np.ndarray) -> np.ndarray | None:
    """A counterexample among candidates `[p, n]`: those that float64 finds violated go to exact arithmetic."""
    if self.polytope is not None:
      candidates = candidates[self.polytope.contains(candidates)]
    if not len(candidates):
      return None
    few = max(1, _MOST_SAMPLED // 8 // sum(op.size for op in self.form.ops))   # evaluated at once
    y = np.concatenate([normal_form.evaluate(self.form, candidates[i:i + few])
                        for i in range(0, len(candidates), few)])
    slack = np.min([c.slack(y) for c in self.p.clauses], axis=0)
    order = np.argsort(slack)[:4]
    return falsify.confirm(self.network, self.p.inputs, self.p.clauses, candidates[order[slack[order] <= 1e-9]])

  def split(self, node: int, lower: np.ndarray, upper: np.ndarray, share: float, cut: int) -> None:
    self.cuts[node], self.children[node] = cut, len(self.cuts)
    below, above = upper.copy(), lower.copy()
    below[cut] = above[cut] = checker.middle(lower[cut], upper[cut])
    self.open += [(len(self.cuts) + 1, above, upper, share / 2), (len(self.cuts), lower, below, share / 2)]
    self.cuts += [-1, -1]
    self.children += [-1, -1]

  def undecided(self) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper `[b, n]` of the open boxes."""
    return np.array([box[1] for box in self.open]), np.array([box[2] for box in self.open])

  def evidence(self) -> Evidence:
    """The cuts in preorder, and the multipliers of the leaves where any are needed."""
    nodes, stack = [], [0]
    while stack:
      node = stack.pop()
      nodes.append(node)
      if self.cuts[node] >= 0:
        stack += [self.children[node] + 1, self.children[node]]
    tree = np.array([self.cuts[node] for node in nodes], np.int16 if len(self.free) <= 2**15 else np.int32)
    if not self.multipliers:
      return 'splits', tree
    none = np.zeros((len(self.h), len(self.polytope.a)))
    rows = [self.multipliers.get(node, none).reshape(-1) for node in nodes]
    return 'duals', np.concatenate([tree[:, None], rows], axis=1, dtype=np.float64)


@devices.jit
def _bound(graph: Graph, lower: jax.Array, upper: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  def one(low, high):
    found = bounds.crown(graph, Interval(low, high), g)
    return found.interval.upper, found.upper_a, found.upper_d
  return jax.vmap(one)(lower, upper)
