"""Small piecewise linear networks as mixed-integer linear programs (big-M), solved by HiGHS.

A variable stands for every input and for every entry of `relu` or `maximum` whose kink can have both signs; all other
values are affine expressions of those, kept as maps (see `regions`). max(a, b) is b + relu(a - b), so that ReLU is all
there is to encode:

  h = relu(z), l <= z <= u, binary s:   h >= z,  h <= z - l (1 - s),  0 <= h <= u s.

With s in [0, 1] that is the triangle relaxation, which also tightens the bounds l and u of later layers.

HiGHS gives no proof that could be checked. What follows from an optimum here is trusted to the solver, and no
certificate (V-section 7).
"""
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import scipy.sparse

from jaxfix.errors import require
from jaxfix.solve import LinearProgram, Solution, Status, safe_dual_bound_float, solve_lp, solve_milp
from jaxfix.verify.normal_form import NormalForm, Op, evaluate, values
from jaxfix.verify.regions import KINKED, affine_step, kink
from jaxfix.verify.spec import Clause, HPolytope, InputSet, Points, Property, VPolytope, check_sizes

Bounds = Sequence[tuple[np.ndarray, np.ndarray] | None]
"""(lower, upper), each `[size]`, of the value of every operation; None where nothing is known."""

_MARGIN = 1e-6   # of the largest activation: 1000 tolerances of the solver, whose errors a layer may magnify
_CLEAR = 100   # margins by which a point violates a clause clearly enough to stop looking for a worse one
_TIGHTENING = .25   # share of the time that goes into the bounds of pre-activations, at most
_INWARDS = (0., 1e-12, 1e-9, 1e-6)   # a solver's point may miss the set by its tolerance, 1e-9
_REASONS = {Status.TIME_LIMIT: 'time', Status.ITERATION_LIMIT: 'iterations', Status.MEMORY_LIMIT: 'memory',
            Status.INTERRUPTED: 'interrupted'}


@dataclasses.dataclass(frozen=True, eq=False)
class MilpOutcome:
  """What the programs said about a property.

  Attributes:
    verdict: 'safe' is the word of the solver. 'unsafe' is not: the network, evaluated in float64, violates the property
      at `counterexample`.
    reason: why the verdict is 'unknown': 'time', 'memory', 'iterations', 'interrupted', or 'numerics' (an input is too
      close to violation to tell, or the solver claims one that float64 does not confirm); else ''.
    counterexample: `[n]` float64, in the set, for 'unsafe' only.
    seconds: wall time.
    num_binaries: of one program; all clauses share them.
  """
  verdict: Literal['safe', 'unsafe', 'unknown']
  reason: str
  counterexample: np.ndarray | None
  seconds: float
  num_binaries: int


def decide(form: NormalForm, prop: Property, *, time_limit_s: float, bounds: Bounds | None = None) -> MilpOutcome:
  """Whether all clauses hold on the inputs: one program a clause, which looks for the worst violation.

  A clause is safe if the solver finds no input that violates it, or comes within 1e-6 of that (times the largest
  activation, where that exceeds 1).

  Args:
    form: the network.
    prop: on a Box, an HPolytope, or a VPolytope (as convex combinations of its vertices).
    time_limit_s: seconds, > 0, for everything.
    bounds: of the values of the network on the inputs. They must hold, and are checked at one input; loose ones cost
      time only.
  Returns:
    See MilpOutcome. No limit and no numerical trouble ends in 'safe'.
  Raises:
    BadInputError: the property is on points or vacuous, or of other sizes than the network; or `bounds` are wrong.
  Source: Tjeng et al., ICLR 2019; V-section 7.
  """
  start = time.monotonic()
  require(time_limit_s > 0, f'time_limit_s must be positive, got {time_limit_s}')
  require(not prop.is_vacuous, 'A property without inputs or clauses holds of any network: there is nothing to decide.')
  check_sizes((prop,), form.num_inputs, form.num_outputs)
  encoding = _encode(form, prop.inputs, bounds, start + _TIGHTENING * time_limit_s)
  outcome = lambda verdict, reason='', x=None: MilpOutcome(
    verdict, reason, x, time.monotonic() - start, encoding.num_binaries)
  reason = ''
  for clause in prop.clauses:
    left = start + time_limit_s - time.monotonic()
    if left <= 0:
      reason = reason or 'time'
      break
    solution = _solve(_violation(encoding, clause), left)
    if solution.x is not None:
      for x in _members(prop.inputs, solution.x):
        if not clause.holds(evaluate(form, x)):
          return outcome('unsafe', x=x)
    if solution.status is not Status.INFEASIBLE:
      reason = reason or _REASONS.get(solution.status, 'numerics')
  return outcome('unknown', reason) if reason else outcome('safe')


def output_range(form: NormalForm, inputs: InputSet, direction: np.ndarray, *, time_limit_s: float = 600.,
                 bounds: Bounds | None = None) -> tuple[float, float]:
  """The least and largest value of direction y over the logits y of all inputs; direction: `[k]`.

  Raises:
    SolverLimitError: a limit came before an optimum.
    BadInputError: as for `decide`.
  Guarantee: exact up to the tolerances of the solver, whose word it is.
  """
  return _range(form, inputs, direction, time_limit_s, bounds, relaxed=False)


def relaxed_range(form: NormalForm, inputs: InputSet, direction: np.ndarray, *, time_limit_s: float = 600.,
                  bounds: Bounds | None = None) -> tuple[float, float]:
  """Like `output_range` with the triangle relaxation of every unstable ReLU: a wider range, by linear programs.

  The triangles stand over the best bounds that such programs give for each layer in turn.
  """
  return _range(form, inputs, direction, time_limit_s, bounds, relaxed=True)


def _range(form: NormalForm, inputs: InputSet, direction: np.ndarray, time_limit_s: float, bounds: Bounds | None,
           relaxed: bool) -> tuple[float, float]:
  direction, deadline = np.asarray(direction, np.float64), time.monotonic() + time_limit_s
  require(direction.shape == (form.num_outputs,), f'The direction must have {form.num_outputs} entries, got shape '
          f'{direction.shape}.')
  require(inputs.dimension == form.num_inputs, f'The set has inputs of {inputs.dimension} numbers, the network takes '
          f'{form.num_inputs}.')
  require(not inputs.is_empty, 'There is no range over an empty set of inputs.')
  encoding = _encode(form, inputs, bounds, deadline - (1 - _TIGHTENING) * time_limit_s)
  wanted, ends = encoding.logits @ direction, []
  for sign in (1., -1.):
    program = encoding.program(sign * wanted[1:], relaxed=relaxed)
    left = max(deadline - time.monotonic(), 1e-3)
    solution = _solve(program, left).require_optimal('The range of an output')
    ends.append(float(sign * solution.objective + wanted[0]))
  return ends[0], ends[1]


@dataclasses.dataclass(frozen=True, eq=False)
class _Encoding:
  """Variables with their bounds, rows between them, and the logits as a map of them.

  Attributes:
    lower, upper: `[v]`. integer: `[v]` bool.
    rows: `[r, v]`. row_upper: `[r]`; rows have no lower side.
    logits: `[1 + v, k]`.
    largest: the largest activation that an unstable entry can have.
  """
  lower: np.ndarray
  upper: np.ndarray
  integer: np.ndarray
  rows: scipy.sparse.csr_array
  row_upper: np.ndarray
  logits: np.ndarray
  largest: float

  @property
  def num_binaries(self) -> int:
    return int(self.integer.sum())

  def program(self, cost: np.ndarray, relaxed: bool = False) -> LinearProgram:
    """min cost'x; without any integer variable, or `relaxed`, a linear program."""
    integrality = None if relaxed or not self.integer.any() else self.integer
    return LinearProgram(cost, self.rows, np.full(len(self.row_upper), -np.inf), self.row_upper, self.lower,
                         self.upper, integrality)


def _violation(encoding: _Encoding, clause: Clause) -> LinearProgram:
  """max t such that g y >= h + t in all rows of the clause; infeasible if it clearly holds. t is the last variable."""
  margin = _MARGIN * max(1., encoding.largest)
  rows = encoding.logits @ clause.g.T
  whole = encoding.program(np.zeros(len(encoding.lower)))
  added = np.concatenate([-rows[1:].T, np.ones((len(clause.h), 1))], axis=1)
  none = scipy.sparse.csr_array((whole.num_rows, 1))
  return dataclasses.replace(
    whole, cost=np.append(whole.cost, -1.),
    rows=scipy.sparse.vstack([scipy.sparse.hstack([whole.rows, none]), scipy.sparse.csr_array(added)], format='csr'),
    row_lower=np.append(whole.row_lower, np.full(len(clause.h), -np.inf)),
    row_upper=np.append(whole.row_upper, rows[0] - clause.h),
    lower=np.append(whole.lower, -margin), upper=np.append(whole.upper, _CLEAR * margin),
    integrality=None if whole.integrality is None else np.append(whole.integrality, False))


def _solve(program: LinearProgram, time_limit_s: float) -> Solution:
  if program.integrality is None:
    return solve_lp(program, time_limit_s=time_limit_s, ray=False)
  return solve_milp(program, time_limit_s=time_limit_s)


def _members(inputs: InputSet, variables: np.ndarray) -> Iterator[np.ndarray]:
  """Points of the set, at the solver's variables or next to them."""
  if isinstance(inputs, VPolytope):
    weights = np.maximum(variables[:len(inputs.vertices)], 0.)
    yield weights / weights.sum() @ inputs.vertices
    return
  box = inputs.box if isinstance(inputs, HPolytope) else inputs
  x = np.clip(variables[:box.dimension], box.lower, box.upper)
  if not isinstance(inputs, HPolytope):
    yield x
    return
  centre = x if inputs.contains(x) else _centre(inputs)
  for step in _INWARDS:
    nearby = np.clip(x + step * (centre - x), box.lower, box.upper)
    if inputs.contains(nearby):
      yield nearby


def _centre(inputs: HPolytope) -> np.ndarray:
  """A point of the box as far from every row as any is."""
  norms = np.linalg.norm(inputs.a, axis=1)
  count = len(inputs.b)
  deepest = LinearProgram(
    np.append(np.zeros(inputs.dimension), -1.), np.column_stack([inputs.a, norms]), np.full(count, -np.inf), inputs.b,
    np.append(inputs.box.lower, -np.inf), np.append(inputs.box.upper, 1 + np.ptp([inputs.box.lower, inputs.box.upper])))
  return solve_lp(deepest, ray=False).require_optimal('The centre of a polytope').x[:-1]


# --- From a network to rows ---


def _encode(form: NormalForm, inputs: InputSet, bounds: Bounds | None, tighten_until: float) -> _Encoding:
  require(not isinstance(inputs, Points), 'A property on points needs no program: evaluate the network there.')
  if bounds is not None:
    _check(bounds, form, inputs)
  encoder = _Encoder(tighten_until)
  maps = [encoder.inputs(inputs)]
  for op in form.ops[1:]:
    arguments = [encoder.padded(maps[j]) for j in op.inputs]
    if op.kind not in KINKED:
      maps.append(affine_step(op, arguments))
      continue
    z = kink(op, arguments)
    lower, upper = encoder.range_of(z, _given(op, bounds))
    found = encoder.rectified(z, lower, upper)
    maps.append(found if op.kind == 'relu' else found + encoder.padded(arguments[1]))
  return encoder.finish(encoder.padded(maps[-1]))


def _check(bounds: Bounds, form: NormalForm, inputs: InputSet) -> None:
  """Wrong bounds would make programs infeasible, which reads as 'safe': they must hold at one input at least."""
  require(len(bounds) == len(form.ops), f'There are bounds for {len(bounds)} operations, the network has '
          f'{len(form.ops)}.')
  if isinstance(inputs, VPolytope):
    x = inputs.vertices.mean(axis=0)
  else:
    x = _centre(inputs) if isinstance(inputs, HPolytope) else (inputs.lower + inputs.upper) / 2
  for i, (pair, value) in enumerate(zip(bounds, values(form, x), strict=True)):
    if pair is not None:
      excess = np.maximum(pair[0] - value, value - pair[1])
      require(excess.shape == value.shape and bool((excess <= _MARGIN * (1 + np.abs(value))).all()),
              f'The bounds given for operation {i} do not hold at {x}.')


def _given(op: Op, bounds: Bounds | None) -> tuple[np.ndarray, np.ndarray] | None:
  """What bounds of the operands say about the kink."""
  known = [bounds[i] for i in op.inputs] if bounds is not None else [None]
  if any(pair is None for pair in known):
    return None
  if op.kind == 'relu':
    return known[0]
  (a_lower, a_upper), (b_lower, b_upper) = known
  return a_lower - b_upper, a_upper - b_lower


class _Encoder:
  """Variables and rows so far. Maps are `[1 + v, size]`; older ones have fewer rows until they are `padded`."""

  def __init__(self, tighten_until: float):
    self.tighten_until = tighten_until
    self.lower, self.upper, self.integer = np.zeros(0), np.zeros(0), np.zeros(0, bool)
    self.rows: list[np.ndarray] = []   # of as many variables as there were
    self.row_upper: list[float] = []
    self.largest = 0.

  def variables(self, lower: np.ndarray, upper: np.ndarray, integer: bool = False) -> np.ndarray:
    """Adds variables; their indices."""
    self.lower, self.upper = np.append(self.lower, lower), np.append(self.upper, upper)
    self.integer = np.append(self.integer, np.full(len(lower), integer))
    return np.arange(len(self.lower) - len(lower), len(self.lower))

  def row(self, coefficients: np.ndarray, upper: float) -> None:
    self.rows.append(coefficients)
    self.row_upper.append(float(upper))

  def padded(self, m: np.ndarray) -> np.ndarray:
    return np.concatenate([m, np.zeros((1 + len(self.lower) - len(m), m.shape[1]))])

  def inputs(self, inputs: InputSet) -> np.ndarray:
    """The map of the inputs."""
    if isinstance(inputs, VPolytope):
      count = len(inputs.vertices)
      self.variables(np.zeros(count), np.ones(count))
      for sign in (1., -1.):   # the weights add up to 1
        self.row(np.full(count, sign), sign)
      return np.concatenate([np.zeros((1, inputs.dimension)), inputs.vertices])
    box = inputs.box if isinstance(inputs, HPolytope) else inputs
    self.variables(box.lower, box.upper)
    if isinstance(inputs, HPolytope):
      for a, b in zip(inputs.a, inputs.b, strict=True):
        self.row(a, b)
    return np.concatenate([np.zeros((1, box.dimension)), np.eye(box.dimension)])

  def range_of(self, z: np.ndarray, given: tuple[np.ndarray, np.ndarray] | None) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the expressions z: intervals, what the caller knows, and linear programs where the sign is open."""
    middle, radius = (self.lower + self.upper) / 2, (self.upper - self.lower) / 2
    centre, reach = z[0] + middle @ z[1:], radius @ np.abs(z[1:])
    lower, upper = centre - reach, centre + reach
    if given is not None:
      lower = np.maximum(lower, given[0])
      upper = np.maximum(lower, np.minimum(upper, given[1]))
    unstable = np.flatnonzero((lower < 0) & (upper > 0))
    if not self.rows or not len(unstable):   # without rows intervals are exact
      return lower, upper
    whole = self.finish(z).program(np.zeros(len(self.lower)), relaxed=True)
    for j in unstable:
      lower[j] = max(lower[j], z[0, j] + self.minimum(whole, z[1:, j]))
      if lower[j] < 0:
        upper[j] = max(lower[j], min(upper[j], z[0, j] - self.minimum(whole, -z[1:, j])))
    return lower, upper

  def minimum(self, whole: LinearProgram, cost: np.ndarray) -> float:
    """A lower bound that follows from the multipliers of the solver, whatever their quality; -inf out of time."""
    left = self.tighten_until - time.monotonic()
    if left <= 0:
      return -np.inf
    program = dataclasses.replace(whole, cost=cost)
    solution = solve_lp(program, time_limit_s=left, ray=False)
    return -np.inf if solution.row_dual is None else safe_dual_bound_float(program, solution.row_dual)

  def rectified(self, z: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """The map of relu(z)."""
    unstable = np.flatnonzero((lower < 0) & (upper > 0))
    self.largest = max(self.largest, upper[unstable].max(initial=0.))
    h = self.variables(np.zeros(len(unstable)), upper[unstable])
    s = self.variables(np.zeros(len(unstable)), np.ones(len(unstable)), integer=True)
    stable = (lower >= 0) | (upper <= 0)
    found = self.padded(np.where(stable & (lower >= 0), z, 0.))
    z = self.padded(z)
    for j, h_j, s_j in zip(unstable, h, s, strict=True):
      value, switch = np.zeros(len(self.lower)), np.zeros(len(self.lower))
      value[h_j], switch[s_j] = 1., 1.
      self.row(z[1:, j] - value, -z[0, j])                                            # z <= h
      self.row(value - z[1:, j] - lower[j] * switch, z[0, j] - lower[j])              # h <= z - l (1 - s)
      self.row(value - upper[j] * switch, 0.)                                         # h <= u s
      found[1 + h_j, j] = 1.
    return found

  def finish(self, logits: np.ndarray) -> _Encoding:
    rows = np.zeros((len(self.rows), len(self.lower)))
    for i, row in enumerate(self.rows):
      rows[i, :len(row)] = row
    return _Encoding(self.lower, self.upper, self.integer, scipy.sparse.csr_array(rows), np.array(self.row_upper),
                     logits, self.largest)
