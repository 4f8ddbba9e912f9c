"""Primal-dual interior point for the minimal-change linear program, with its structure in the linear algebra.

The program (V-section 8, `v` bounds |d| and `t` caps `v`; `s` is the soft slack, absent for hard constraints)

  min  l1_cost * sum(v) + cap_cost * t + slack.cost * sum(s)
  s.t. R d + S s >= e,   |d| <= v <= t,   lower <= d <= upper,   slack.lower <= s <= slack.upper

has 2n + 1 variables and m + 3n rows, but only R (m rows) couples the columns. A Newton step eliminates `v`, `d`, `t`
and `s` in closed form and is left with an m x m positive definite system `R D^-1 R' + ...`. A general solver does not
see this: with n = 6,927 and m = 900 HiGHS interior point had not solved it in 250 s; this takes two seconds.

The result is a proposal with its own evidence: the violation is recomputed from `d`, and `lower_bound` is a bound on
the optimum that holds for whatever multipliers the iteration has (weak duality, V-section 11.4). Neither rests on
convergence.
Source: Mehrotra 1992 (predictor-corrector); the elimination is ours.
"""
import dataclasses
import functools
import time

import numpy as np
import scipy.linalg
import threadpoolctl

from jaxfix.solve.program import Status
from jaxfix.solve.rows import Rows

_ONE_THREAD_UP_TO = 4000  # rows: below, BLAS threads gain little, and on a busy machine their waiting costs a lot
_STEP = 0.995         # share of the way to the boundary of a step
_SHORT = 0.1          # a step shorter than this is replaced by one that centers
_CENTERING = 0.5      # share of the mean product that it aims at
_REFINEMENTS = 2      # of the row equation of each step: without them its residual stalls near 1e-8
_PATIENCE = 8         # iterations without progress after which rounding is taken to be in charge, near the end
_NEAR = 1e6           # errors (in tolerances) below it are near the end; before it progress may be out of sight


@dataclasses.dataclass(frozen=True)
class Slack:
  """Soft constraints: one slack shared by all rows, or one for each.

  Attributes:
    coefficient: `[m]`, > 0: of the slack in each row (1 / row factor for scaled rows).
    shared: one slack in all rows ('linf') or one a row ('l1').
    cost: > 0, of one unit of one slack.
    lower: finite; negative values reward a margin.
    upper: > lower; may be infinite.
  """

  coefficient: np.ndarray
  shared: bool
  cost: float
  lower: float
  upper: float = np.inf

  def sum_rows(self, y: np.ndarray) -> np.ndarray:
    """S'y: `[1]` or `[m]`."""
    return np.array([self.coefficient @ y]) if self.shared else self.coefficient * y


@dataclasses.dataclass(frozen=True)
class NormProgram:
  """The program above.  rows: m x n; rhs: `[m]`; lower, upper: `[n]`, finite, lower <= 0 <= upper, lower < upper."""

  rows: Rows
  rhs: np.ndarray
  lower: np.ndarray
  upper: np.ndarray
  l1_cost: float
  cap_cost: float
  slack: Slack | None = None

  def best_slack(self, row_values: np.ndarray) -> np.ndarray:
    """The cheapest slack, `[1]`, `[m]` or `[0]`, that the rows allow at `row_values = R d`, within its bounds."""
    if self.slack is None:
      return np.zeros(0)
    need = (self.rhs - row_values) / self.slack.coefficient
    if self.slack.shared:
      need = need.max(initial=-np.inf, keepdims=True)
    return np.clip(need, self.slack.lower, self.slack.upper)

  def violation(self, row_values: np.ndarray, slack: np.ndarray) -> float:
    """Largest amount by which a row misses its right-hand side; >= 0."""
    lift = self.slack.coefficient * slack if self.slack is not None else 0.0
    return float((self.rhs - row_values - lift).max(initial=0.0))

  def objective(self, d: np.ndarray, slack: np.ndarray) -> float:
    """Of `d` and `slack` alone: `v` and `t` take their best values."""
    size = np.abs(d)
    paid = self.slack.cost * slack.sum() if self.slack is not None else 0.0
    return float(self.l1_cost * size.sum() + self.cap_cost * size.max(initial=0.0) + paid)

  def dual_bound(self, y: np.ndarray, cap_dual: np.ndarray, gradient: np.ndarray) -> float:
    """Lower bound on the optimum for any y >= 0 `[m]`, cap_dual >= 0 `[n]` with sum <= cap_cost; gradient = R'y.

    cap_cost t >= sum(cap_dual * |d|), so the Lagrangian separates over the columns; each is least at 0 or at a bound.
    """
    price = self.l1_cost + cap_dual
    at_bounds = np.minimum(price * self.upper - gradient * self.upper, -price * self.lower - gradient * self.lower)
    bound = self.rhs @ y + np.minimum(0.0, at_bounds).sum()
    if self.slack is not None:
      bound += _least(self.slack.cost - self.slack.sum_rows(y), self.slack.lower, self.slack.upper)
    return float(bound)

  def farkas_bound(self, y: np.ndarray, gradient: np.ndarray) -> float:
    """Positive only if no `d` (and slack) within the bounds meets the rows; y >= 0 `[m]`, gradient = R'y."""
    bound = self.rhs @ y - np.maximum(gradient * self.lower, gradient * self.upper).sum()
    if self.slack is not None:
      bound += _least(-self.slack.sum_rows(y), self.slack.lower, self.slack.upper)
    return float(bound)


@dataclasses.dataclass(frozen=True)
class InteriorResult:
  """What the iteration found.

  Attributes:
    status: optimal, infeasible (then `row_dual` is the Farkas ray), time_limit, iteration_limit or numerical.
    d: `[n]`; slack: `[k]`; row_dual: `[m]`, >= 0; cap_dual: `[n]`, >= 0, sum = cap_cost (zeros where that is 0).
    objective: of `d` and `slack`. lower_bound: no point of the program is cheaper, up to float64 rounding.
    violation: of the rows at `d` and `slack`, >= 0.
    iterations: Newton systems factored.
  """

  status: Status
  d: np.ndarray
  slack: np.ndarray
  row_dual: np.ndarray
  cap_dual: np.ndarray
  objective: float
  lower_bound: float
  violation: float
  iterations: int


@dataclasses.dataclass(frozen=True)
class _Iterate:
  """Primal variables; then each kind of inequality's slack q > 0 and multiplier y > 0.

  box: rows v+d, v-d, t-v, upper-d, d-lower, `[5, n]`; soft: s-lower, upper-s, `[2, k]`; row: R d + S s - e, `[m]`.
  """

  d: np.ndarray
  v: np.ndarray
  t: float
  s: np.ndarray
  q_box: np.ndarray
  y_box: np.ndarray
  q_soft: np.ndarray
  y_soft: np.ndarray
  q_row: np.ndarray
  y_row: np.ndarray

  def gap(self) -> float:
    return (self.q_box * self.y_box).sum() + (self.q_soft * self.y_soft).sum() + self.q_row @ self.y_row

  def pairs(self) -> int:
    return self.q_box.size + self.q_soft.size + self.q_row.size

  def moved(self, step: '_Iterate', primal: float, dual: float) -> '_Iterate':
    length = {f.name: dual if f.name.startswith('y_') else primal for f in dataclasses.fields(self)}
    return _Iterate(**{name: getattr(self, name) + a * getattr(step, name) for name, a in length.items()})


def solve_norm_program(program: NormProgram, *, time_limit_s: float = 600.0, gap_tolerance: float = 1e-9,
                       accept_gap: float = 1e-7, feasibility_tolerance: float = 1e-9,
                       max_iterations: int = 100) -> InteriorResult:
  """Solves the program; see the module's docstring. BLAS is held to one thread up to 4,000 rows.

  Args:
    time_limit_s: seconds; checked between iterations.
    gap_tolerance: stop when objective - lower_bound is at most this share of the objective.
    accept_gap: the same, for calling the best iterate optimal when rounding ends the progress earlier.
    feasibility_tolerance: largest row violation of an optimal answer, in the rows' units.
  """
  with _thread_pools().limit(limits=1 if len(program.rhs) <= _ONE_THREAD_UP_TO else None, user_api='blas'):
    return _iterate(program, time_limit_s, gap_tolerance, accept_gap, feasibility_tolerance, max_iterations)


@functools.cache
def _thread_pools() -> threadpoolctl.ThreadpoolController:
  return threadpoolctl.ThreadpoolController()


def _iterate(program: NormProgram, time_limit_s: float, gap_tolerance: float, accept_gap: float,
             feasibility_tolerance: float, max_iterations: int) -> InteriorResult:
  start = time.monotonic()
  best, least, stalled, sound = None, np.inf, 0, with_finite_slack(program)
  now = _start(sound)
  for iteration in range(max_iterations):
    row_values, gradient = program.rows.matvec(now.d), program.rows.rmatvec(now.y_row)
    if program.farkas_bound(now.y_row, gradient) > 1e-9 * np.abs(program.rhs * now.y_row).sum():
      return _result(sound, now, row_values, gradient, Status.INFEASIBLE, iteration)
    found = _result(sound, now, row_values, gradient, Status.NUMERICAL, iteration)
    error = _error(found, feasibility_tolerance, gap_tolerance)
    stalled = 0 if error < 0.9 * least else stalled + 1
    if error < least:
      best, least = found, error
    out_of_time = time.monotonic() - start > time_limit_s
    if error <= 1.0 or stalled >= (_PATIENCE if least < _NEAR else 4 * _PATIENCE) or out_of_time:
      break
    now = _advance(sound, now, row_values, gradient)
    if now is None or not np.isfinite(now.gap()):
      break
  if _error(best, feasibility_tolerance, accept_gap) <= 1.0:
    return dataclasses.replace(best, status=Status.OPTIMAL)
  if out_of_time:
    return dataclasses.replace(best, status=Status.TIME_LIMIT)
  status = Status.ITERATION_LIMIT if iteration + 1 == max_iterations else Status.NUMERICAL
  return dataclasses.replace(best, status=status)


def _error(found: InteriorResult, feasibility_tolerance: float, gap_tolerance: float) -> float:
  """Violation and relative gap, the worse of the two, in units of its tolerance: at most 1 for an answer."""
  gap = abs(found.objective - found.lower_bound) / max(abs(found.objective), 1e-6)
  return max(found.violation / feasibility_tolerance, gap / gap_tolerance)


def _result(program: NormProgram, now: _Iterate, row_values: np.ndarray, gradient: np.ndarray, status: Status,
            iteration: int) -> InteriorResult:
  cap_dual = now.y_box[2] * (program.cap_cost / now.y_box[2].sum())
  slack = program.best_slack(row_values)
  return InteriorResult(
    status=status, d=now.d, slack=slack, row_dual=now.y_row, cap_dual=cap_dual, iterations=iteration,
    objective=program.objective(now.d, slack), lower_bound=program.dual_bound(now.y_row, cap_dual, gradient),
    violation=program.violation(row_values, slack))


def with_finite_slack(program: NormProgram) -> NormProgram:
  """Replaces an infinite upper bound of the slack by one that the optimum respects: d = 0 is a candidate."""
  slack = program.slack
  if slack is None or np.isfinite(slack.upper):
    return program
  at_zero = program.best_slack(np.zeros(len(program.rhs))) - slack.lower
  upper = slack.lower + max(1.0, 2 * float(at_zero.sum()))
  return dataclasses.replace(program, slack=dataclasses.replace(slack, upper=upper))


def _start(program: NormProgram) -> _Iterate:
  """Interior for everything but the rows, and dual feasible but for the rows and bounds: balanced products q * y."""
  n, m = len(program.lower), len(program.rhs)
  width = program.upper - program.lower
  d = np.clip(0.0, program.lower + 0.1 * width, program.upper - 0.1 * width)
  # As wide as the box: starting at a tenth of that took tight boxes more than 100 iterations, if they converged at all.
  v = np.abs(d) + 0.5 * np.median(width)
  t = 2.0 * float(v.max())
  y_cap = np.full(n, program.cap_cost / n if program.cap_cost else 0.1 * program.l1_cost)
  y_abs = (program.l1_cost + y_cap) / 2
  q_box = _box_rows(program, d, v, t)
  mu = float((q_box[0] * y_abs).mean())
  y_box = np.stack([y_abs, y_abs, y_cap, mu / q_box[3], mu / q_box[4]])
  slack = program.slack
  s, q_soft, y_soft, lift = np.zeros(0), np.zeros((2, 0)), np.zeros((2, 0)), 0.0
  if slack is not None:
    s = np.full(1 if slack.shared else m, slack.lower + 0.5 * min(slack.upper - slack.lower, 2.0))
    q_soft = np.stack([s - slack.lower, slack.upper - s])
    y_soft = np.maximum(mu / q_soft, [[slack.cost], [0.0]])
    lift = slack.coefficient * s
  q_row = np.maximum(program.rows.matvec(d) + lift - program.rhs, 0.1 * (float(np.abs(program.rhs).max()) or 1.0))
  return _Iterate(d, v, t, s, q_box, y_box, q_soft, y_soft, q_row, mu / q_row)


def _box_rows(program: NormProgram, d: np.ndarray, v: np.ndarray, t: float) -> np.ndarray:
  # Without a price on the cap, a constant that no |d| reaches keeps the same five rows.
  cap = t if program.cap_cost else 3 * max(-program.lower.min(), program.upper.max())
  return np.stack([v + d, v - d, cap - v, program.upper - d, d - program.lower])


@dataclasses.dataclass(frozen=True)
class _Newton:
  """The eliminated Newton matrix at one iterate. Names follow the derivation in `_newton`."""

  h_v: np.ndarray          # [n] coefficient of v in its own equation
  cross: np.ndarray        # [n] between d and v
  zeta: np.ndarray         # [n] between v and t
  inverse_d: np.ndarray    # [n] 1 / D
  k_over_d: np.ndarray     # [n] (coefficient of t in d's equation) / D
  tau: float               # of t after all else; 0 where there is no t
  inverse_s: np.ndarray    # [k] 1 / D of the slack
  rho: np.ndarray          # [m] R (k / D)
  factor: tuple            # Cholesky of the m x m matrix


def _newton(program: NormProgram, now: _Iterate) -> _Newton | None:
  """Eliminates v, d, t and s from F' diag(y / q) F.

  With a, b, z, u the weights y / q of v+d, v-d, t-v and of the two bounds together:
    d: (a + b + u) d + (a - b) v        = g_d + R'y
    v: (a - b) d + (a + b + z) v - z t  = g_v
    t: -z v + sum(z) t                  = g_t
  Eliminating v leaves D = u + (4ab + (a + b) z) / (a + b + z) for d; every difference that would cancel is expanded.
  """
  a, b, z, upper, lower = now.y_box / now.q_box
  u, both = upper + lower, a + b
  full = 4 * a * b + both * z + u * (both + z)
  inverse_d, k_over_d = (both + z) / full, (a - b) * z / full
  matrix = program.rows.gram(inverse_d)
  tau, rho = 0.0, np.zeros(len(now.q_row))
  if program.cap_cost:
    tau = float((z * (4 * a * b + both * u) / full).sum())
    rho = program.rows.matvec(k_over_d)
    matrix += np.outer(rho, rho / tau)
  inverse_s = 1.0 / (now.y_soft / now.q_soft).sum(0)
  diagonal = now.q_row / now.y_row
  if program.slack is not None:
    if program.slack.shared:
      matrix += np.outer(program.slack.coefficient, program.slack.coefficient * inverse_s)
    else:
      diagonal = diagonal + program.slack.coefficient**2 * inverse_s
  matrix[np.diag_indices(len(diagonal))] += diagonal
  factor = _cholesky(matrix)
  return None if factor is None else _Newton(both + z, a - b, z, inverse_d, k_over_d, tau, inverse_s, rho, factor)


def _cholesky(matrix: np.ndarray) -> tuple | None:
  """Factor of the matrix, or of the matrix with its diagonal raised as little as rounding needs; None if that fails."""
  for shift in (0.0, 1e-15, 1e-13, 1e-11):
    raised = matrix if not shift else matrix + shift * matrix.diagonal().max() * np.eye(len(matrix))
    try:
      return scipy.linalg.cho_factor(raised, lower=True, check_finite=False)
    except scipy.linalg.LinAlgError:
      continue
  return None


def _advance(program: NormProgram, now: _Iterate, row_values: np.ndarray, gradient: np.ndarray) -> _Iterate | None:
  """One predictor-corrector iteration; None where the Newton matrix cannot be factored."""
  newton = _newton(program, now)
  if newton is None:
    return None
  slack, cap = program.slack, program.cap_cost
  lift, pull = (slack.coefficient * now.s, slack.sum_rows(now.y_row)) if slack is not None else (0.0, 0.0)
  y = now.y_box
  r_d = -(y[0] - y[1] - y[3] + y[4] + gradient)
  r_v = program.l1_cost - (y[0] + y[1] - y[2])
  r_t = cap - y[2].sum() if cap else 0.0
  r_s = (slack.cost if slack is not None else 0.0) - (now.y_soft[0] - now.y_soft[1] + pull)
  p_box = now.q_box - _box_rows(program, now.d, now.v, now.t)
  p_row = program.rhs + now.q_row - row_values - lift

  def step(c_box: np.ndarray, c_soft: np.ndarray, c_row: np.ndarray) -> _Iterate:
    """Newton step towards products q * y that change by c_*."""
    w = (c_box + y * p_box) / now.q_box
    w_soft = c_soft / now.q_soft
    g_d, g_v = w[0] - w[1] - w[3] + w[4] - r_d, w[0] + w[1] - w[2] - r_v
    g_t, g_s = (w[2].sum() - r_t if cap else 0.0), w_soft[0] - w_soft[1] - r_s
    g_row = p_row + c_row / now.y_row
    dd, dv, dt, ds, dy = _solve(program, newton, g_d, g_v, g_t, g_s, g_row)
    for _ in range(_REFINEMENTS):
      reached = program.rows.matvec(dd) + (slack.coefficient * ds if slack is not None else 0.0)
      more = _solve(program, newton, 0.0, 0.0, 0.0, 0.0, g_row - reached - now.q_row / now.y_row * dy)
      dd, dv, dt, ds, dy = (x + e for x, e in zip((dd, dv, dt, ds, dy), more, strict=True))
    dq_box = np.stack([dv + dd, dv - dd, dt - dv, -dd, dd]) - p_box
    dq_soft = np.stack([ds, -ds])
    return _Iterate(dd, dv, dt, ds, dq_box, (c_box - y * dq_box) / now.q_box, dq_soft,
                    (c_soft - now.y_soft * dq_soft) / now.q_soft, (c_row - now.q_row * dy) / now.y_row, dy)

  products = (now.q_box * y, now.q_soft * now.y_soft, now.q_row * now.y_row)
  mu = now.gap() / now.pairs()
  affine = step(*(-c for c in products))
  ahead = now.moved(affine, *_lengths(now, affine, 1.0))
  target = mu * (ahead.gap() / ahead.pairs() / mu)**3
  second = (affine.q_box * affine.y_box, affine.q_soft * affine.y_soft, affine.q_row * affine.y_row)
  move = step(*(target - c - e for c, e in zip(products, second, strict=True)))
  lengths = _lengths(now, move, _STEP)
  if min(lengths) < _SHORT:  # badly centered: the products must become alike before they can shrink together
    move = step(*(_CENTERING * mu - c for c in products))
    lengths = _lengths(now, move, _STEP)
  return now.moved(move, *lengths)


def _solve(program: NormProgram, newton: _Newton, g_d, g_v, g_t, g_s, g_row) -> tuple:
  """The Newton system for given right-hand sides: (dd, dv, dt, ds, dy of the rows)."""
  rows, slack, cap = program.rows, program.slack, program.cap_cost
  b_d = (g_d - newton.cross * g_v / newton.h_v) * newton.inverse_d
  b_t = g_t + (newton.zeta * g_v / newton.h_v).sum() if cap else 0.0
  right = g_row - rows.matvec(b_d)
  if cap:
    right = right + newton.rho * ((b_t - newton.k_over_d @ (b_d / newton.inverse_d)) / newton.tau)
  if slack is not None:
    right = right - slack.coefficient * (newton.inverse_s * g_s)
  dy = scipy.linalg.cho_solve(newton.factor, right, check_finite=False)
  pull = rows.rmatvec(dy)
  dt = (b_t - newton.k_over_d @ (b_d / newton.inverse_d + pull)) / newton.tau if cap else 0.0
  dd = b_d + pull * newton.inverse_d - newton.k_over_d * dt
  dv = (g_v - newton.cross * dd + newton.zeta * dt) / newton.h_v
  ds = newton.inverse_s * (g_s + slack.sum_rows(dy)) if slack is not None else np.zeros(0)
  return dd, dv, dt, ds, dy


def _lengths(now: _Iterate, step: _Iterate, share: float) -> tuple[float, float]:
  """Longest primal and dual steps, at most 1, that keep slacks and multipliers positive, times `share`."""
  def longest(kind: str) -> float:
    least = min(float((getattr(step, kind + part) / getattr(now, kind + part)).min(initial=0.0))
                for part in ('box', 'soft', 'row'))
    return min(1.0, share / -least) if least < 0 else 1.0
  return longest('q_'), longest('y_')


def _least(price: np.ndarray, lower: float, upper: float) -> float:
  """Sum over the entries of min(price * s) for s in [lower, upper]; upper may be infinite."""
  falling = np.minimum(price, 0.0).sum()
  return float(np.maximum(price, 0.0).sum() * lower + (falling * upper if falling < 0 else 0.0))
