"""The smallest change of a parameter vector that meets linear constraints: the core of the exact repair methods.

  min  w1 * (1/p) * sum_i c_i |d_i|  +  winf * max_i c_i |d_i|   (+ the price of soft constraints)
  s.t. R d >= e,  lower <= d <= upper

in the forms of V-section 8, for PRDNN, APRNN and the like. Three things keep it fast: columns that no row touches are
left out (their change is 0), rows enter only when they are violated, and the solver knows the structure (`interior.py`).
"""
import dataclasses
import functools
import time
from fractions import Fraction
from typing import Literal

import numpy as np
import scipy.sparse
import threadpoolctl

from jaxfix.errors import require
from jaxfix.solve.dual import farkas_bound
from jaxfix.solve.interior import InteriorResult, NormProgram, Slack, solve_norm_program, with_finite_slack
from jaxfix.solve.program import LinearProgram, Status, raise_unless_optimal
from jaxfix.solve.rows import ColumnSubset, MatrixRows, RankOneRows, RowOracle, as_rows
from jaxfix.solve.split_form import solve_split_form, split_form

Norm = Literal['l1', 'linf', 'l1n+linf']

_COLUMN_NORM = 1e-12       # V-section 8: columns below it are left out
_VIOLATION = 1e-9          # V-section 8, of a scaled row
_MAX_ROUNDS = 50           # V-section 8: then all rows at once
_ONE_THREAD_UP_TO = 2000   # rows: threads of small factorizations cost more than they bring, much more on a busy machine


@dataclasses.dataclass(frozen=True)
class Soft:
  """Constraints that may be missed at a price (PRDNN, section 4).

  Attributes:
    mode: 'linf', one slack s for all rows, price `weight * s`; 'l1', one a row, price `weight * mean(s)`.
    weight: > 0.
    lower: of the slack, finite. A negative one rewards a margin up to -lower: R d + s >= e with s < 0 asks for more.
    upper: of the slack, > lower; inf makes every problem feasible.
  """

  mode: Literal['linf', 'l1'] = 'l1'
  weight: float = 1.0
  lower: float = -0.05
  upper: float = np.inf

  def __post_init__(self):
    require(self.mode in ('linf', 'l1'), f"Soft.mode must be 'linf' or 'l1', got {self.mode!r}")
    require(0 < self.weight < np.inf, f'Soft.weight must be positive, got {self.weight}')
    require(-np.inf < self.lower < self.upper, f'Soft needs finite lower < upper, got {self.lower}, {self.upper}')


@dataclasses.dataclass(frozen=True, eq=False)
class MinimalChange:
  """Statistics and evidence of a solve; N rows, p parameters.

  Attributes:
    objective: recomputed from the change (and slack) in float64.
    lower_bound: no feasible change is cheaper, up to float64 rounding; for a bound without rounding evaluate
      `safe_dual_bound(*minimality_program(...))`.
    max_violation: of the rows as given (not scaled), soft slack included; recomputed from the change.
    slack: `[0]` for hard constraints, `[1]` for 'linf', `[N]` for 'l1'.
    row_dual: `[N]`, >= 0, multipliers of the rows as given; zero for rows that were never needed.
    cap_dual: `[p]`, >= 0, of `c_i |d_i| <= t`; zeros for the norm 'l1'.
    num_rows, num_columns: N and p. num_removed: columns left out. num_active: rows in the last round.
    rounds: solves; 1 without lazy rows. iterations: of the solver, over all rounds.
    seconds: wall time. solver: 'interior', 'highs-ipm' or 'highs-simplex'.
  """

  objective: float
  lower_bound: float
  max_violation: float
  slack: np.ndarray
  row_dual: np.ndarray
  cap_dual: np.ndarray
  num_rows: int
  num_columns: int
  num_removed: int
  num_active: int
  rounds: int
  iterations: int
  seconds: float
  solver: str

  @property
  def gap(self) -> float:
    """objective - lower_bound: how far from minimal the change can be."""
    return self.objective - self.lower_bound


@dataclasses.dataclass(frozen=True)
class _Problem:
  """The validated input. cost_l1 is the price of one c_i |d_i|; weights is c."""

  rows: RowOracle
  rhs: np.ndarray
  lower: np.ndarray
  upper: np.ndarray
  cost_l1: float
  cost_cap: float
  weights: np.ndarray
  soft: Soft | None

  def floor(self) -> float:
    """Slack of a row outside the working set: the least, which is the cheapest."""
    return self.soft.lower if self.soft is not None else 0.0


def minimal_change(rows: np.ndarray | scipy.sparse.sparray | RowOracle, rhs: np.ndarray, *,
                   bounds: float | tuple = 3.0, norm: Norm = 'l1n+linf', norm_weights: tuple[float, float] = (1.0, 1.0),
                   weights: np.ndarray | None = None, groups: np.ndarray | None = None, lazy: bool = True,
                   least_satisfied: int = 0, soft: Soft | None = None,
                   solver: Literal['auto', 'interior', 'ipm', 'simplex'] = 'auto',
                   time_limit_s: float = 600.0) -> tuple[np.ndarray, MinimalChange]:
  """The cheapest change `d` with `rows d >= rhs` within the bounds.

  Args:
    rows: `[N, p]`, dense or sparse, or a row oracle; `RankOneRows` for a dense layer.
    rhs: `[N]`, finite. Ask for a margin here.
    bounds: b for -b <= d <= b, or (lower, upper), each a number or `[p]`. Finite, and 0 lies within: no change is always
      allowed by the bounds. lower = upper = 0 keeps a parameter.
    norm: 'l1' (sum of c_i |d_i|), 'linf' (largest c_i |d_i|), or 'l1n+linf' (mean plus largest, PRDNN's default).
    norm_weights: (w1, winf), of the two terms; 'l1' uses the first and 'linf' the second.
    weights: `[p]`, > 0: c; None is all ones.
    groups: `[N]`, the point each row belongs to; used by `least_satisfied`. `RankOneRows` brings its own.
    lazy: start from the rows that d = 0 violates, solve, add the violated rows, repeat; after 50 rounds take all rows.
      The optimum is that of the full program.
    least_satisfied: rows of each group that enter from the start besides the violated ones.
    soft: allow rows to be missed at a price; None is hard constraints.
    solver: 'interior' is the structured interior point; 'ipm' and 'simplex' are HiGHS on the split form. 'auto' is the
      first, and HiGHS interior point where that loses accuracy.
    time_limit_s: seconds, > 0, for the whole call; checked between iterations.
  Returns:
    The change `[p]`, float64, and its statistics. It is exactly 0 where nothing needs to change.
  Raises:
    BadInputError: shapes, NaN, or options out of range.
    InfeasibleProgramError: no change within the bounds meets the rows; with `ray` `[N]` and its exact bound where found.
    SolverLimitError: the time limit, or no answer of the accuracy asked for.
  Source: V-section 8; PRDNN, section 4.
  """
  start = time.monotonic()
  problem = _problem(rows, rhs, bounds, norm, norm_weights, weights, soft)
  require(solver in ('auto', 'interior', 'ipm', 'simplex'), f'Unknown solver {solver!r}')
  require(time_limit_s > 0, f'time_limit_s must be positive, got {time_limit_s}')
  require(least_satisfied >= 0, f'least_satisfied must be >= 0, got {least_satisfied}')
  num_rows, num_columns = problem.rows.shape
  scale, touched = _scales(problem.rows)
  columns = np.flatnonzero(touched & (problem.lower < problem.upper))
  missing = (problem.rhs - problem.floor()) / scale  # what each row lacks at d = 0
  if (missing <= 0).all():
    slack = np.full({None: 0, 'linf': 1, 'l1': num_rows}[soft.mode if soft else None], problem.floor())
    return np.zeros(num_columns), _statistics(problem, np.zeros(num_columns), slack, None, np.zeros(0, np.int64), columns,
                                              scale, 0, 0, start, 'none')
  everything = np.arange(num_rows)
  groups = _groups(problem.rows, groups) if least_satisfied else None
  working = _first_rows(missing, groups, least_satisfied) if lazy else everything
  iterations = 0
  for rounds in range(1, _MAX_ROUNDS + 2):
    if rounds > _MAX_ROUNDS:
      working = everything
    left = time_limit_s - (time.monotonic() - start)
    found, name = _solve_rows(problem, working, columns, scale, solver, max(left, 0.01))
    iterations += found.iterations
    ray = bound = None
    if found.status is Status.INFEASIBLE:
      ray, bound = _ray(problem, working, found.row_dual, scale)
    raise_unless_optimal(found.status, f'The minimal change of {num_columns} parameters under {num_rows} constraints',
                         ray=ray, ray_bound=bound)
    delta = np.zeros(num_columns)
    delta[columns] = np.clip(found.d / problem.weights[columns], problem.lower[columns], problem.upper[columns])
    if len(working) == num_rows:
      break
    lift = found.slack[0] if soft is not None and soft.mode == 'linf' else problem.floor()
    violated = (problem.rhs - problem.rows.matvec(delta) - lift) / scale > _VIOLATION
    violated[working] = False
    if not violated.any():
      break
    working = np.union1d(working, np.flatnonzero(violated))
  return delta, _statistics(problem, delta, _full_slack(problem, found.slack, working), found, working, columns, scale,
                            rounds, iterations, start, name)


def minimality_program(rows: np.ndarray | scipy.sparse.sparray | RowOracle, rhs: np.ndarray, *,
                       bounds: float | tuple = 3.0, norm: Norm = 'l1n+linf',
                       norm_weights: tuple[float, float] = (1.0, 1.0), weights: np.ndarray | None = None,
                       soft: Soft | None = None, change: MinimalChange) -> tuple[LinearProgram, np.ndarray]:
  """The program that `minimal_change` solved, in split form with rows as given, and its multipliers from `change`.

  `safe_dual_bound(*minimality_program(...))` is an exact lower bound on what any feasible change costs: the evidence
  `lp-dual` of V-section 11.3. Arguments as for `minimal_change`. The rows become one matrix: mind the memory.
  Rows that were never needed have the multiplier 0 and are left out, which can only lower the optimum.
  """
  problem = _problem(rows, rhs, bounds, norm, norm_weights, weights, soft)
  used = np.flatnonzero(change.row_dual) if soft is None or soft.mode == 'linf' else np.arange(len(problem.rhs))
  slack = _slack(soft, np.ones(len(used)), len(problem.rhs))
  if slack is not None:
    program = NormProgram(as_rows(problem.rows), problem.rhs, problem.lower, problem.upper, problem.cost_l1,
                          problem.cost_cap, _slack(soft, np.ones(len(problem.rhs)), len(problem.rhs)))
    slack = dataclasses.replace(slack, upper=with_finite_slack(program).slack.upper)
  program = split_form(problem.rows.rows(used), problem.rhs[used], problem.lower, problem.upper, weights=problem.weights,
                       l1_cost=problem.cost_l1, cap_cost=problem.cost_cap, slack=slack)
  return program, np.concatenate([change.row_dual[used], -change.cap_dual if problem.cost_cap else np.zeros(0)])


def _problem(rows, rhs, bounds, norm, norm_weights, weights, soft) -> _Problem:
  rows = as_rows(rows)
  num_rows, p = rows.shape
  rhs = np.asarray(rhs, np.float64)
  require(rhs.shape == (num_rows,), f'rhs must have shape ({num_rows},), got {rhs.shape}')
  require(bool(np.isfinite(rhs).all()), 'rhs holds NaN or infinity')
  low, high = bounds if isinstance(bounds, tuple) else (-bounds, bounds)
  sides = []
  for side in (low, high):
    side = np.asarray(side, np.float64)
    require(side.shape in ((), (p,)), f'a bound must be a number or have shape ({p},), got {side.shape}')
    sides.append(np.broadcast_to(side, (p,)))
  require(bool(np.isfinite(sides).all()), 'bounds must be finite: a safe bound on the optimum needs them')
  require(bool((sides[0] <= 0).all() and (sides[1] >= 0).all()), 'bounds must contain 0: no change must be allowed')
  weights = np.ones(p) if weights is None else np.asarray(weights, np.float64)
  require(weights.shape == (p,), f'weights must have shape ({p},), got {weights.shape}')
  require(bool((np.isfinite(weights) & (weights > 0)).all()), 'weights must be positive and finite')
  require(norm in ('l1', 'linf', 'l1n+linf'), f"norm must be 'l1', 'linf' or 'l1n+linf', got {norm!r}")
  w1, winf = norm_weights
  require(0 <= w1 < np.inf and 0 <= winf < np.inf, f'norm_weights must be >= 0 and finite, got {norm_weights}')
  cost_l1 = {'l1': w1, 'linf': 0.0, 'l1n+linf': w1 / max(1, p)}[norm]
  cost_cap = 0.0 if norm == 'l1' else winf
  require(cost_l1 + cost_cap > 0, f'norm {norm!r} with norm_weights {norm_weights} prices nothing')
  return _Problem(rows, rhs, *sides, cost_l1, cost_cap, weights, soft)


def _scales(rows: RowOracle) -> tuple[np.ndarray, np.ndarray]:
  """Row factors max(1, largest |entry|), `[N]`, and which columns are not (almost) zero, `[p]`."""
  if isinstance(rows, MatrixRows | RankOneRows):
    return np.maximum(1.0, rows.row_scale()), rows.column_norm() >= _COLUMN_NORM
  num_rows, p = rows.shape
  scale, squares, step = np.ones(num_rows), np.zeros(p), max(1, 2**22 // max(1, p))
  for k in range(0, num_rows, step):  # one pass in blocks: an oracle's matrix need not fit into memory
    block = as_rows(rows.rows(np.arange(k, min(k + step, num_rows))))
    scale[k:k + step] = np.maximum(1.0, block.row_scale())
    squares += block.column_norm()**2
  return scale, np.sqrt(squares) >= _COLUMN_NORM


def _groups(rows: RowOracle, groups: np.ndarray | None) -> np.ndarray:
  if groups is None:
    return rows.point if isinstance(rows, RankOneRows) else np.zeros(rows.shape[0], np.int64)
  groups = np.asarray(groups)
  require(groups.shape == (rows.shape[0],), f'groups must have shape ({rows.shape[0]},), got {groups.shape}')
  return groups


def _first_rows(missing: np.ndarray, groups: np.ndarray | None, count: int) -> np.ndarray:
  """The violated rows and the `count` least satisfied of each group."""
  chosen = missing > 0
  if count:
    order = np.lexsort((-missing, groups))
    sorted_groups = groups[order]
    begins = np.flatnonzero(np.diff(sorted_groups, prepend=sorted_groups[0] - 1))
    rank = np.arange(len(order)) - np.repeat(begins, np.diff(begins, append=len(order)))
    satisfied_rank = rank - np.repeat(np.add.reduceat(chosen[order].astype(int), begins),
                                      np.diff(begins, append=len(order)))
    chosen[order[satisfied_rank < count]] = True
  return np.flatnonzero(chosen)


def _working_matrix(problem: _Problem, working: np.ndarray, scale: np.ndarray) -> MatrixRows | RankOneRows:
  rows = problem.rows
  if not isinstance(rows, MatrixRows | RankOneRows):
    return as_rows(rows.rows(working)).select(np.arange(len(working)), scale[working])
  return rows.select(working, scale[working])


def _slack(soft: Soft | None, scale: np.ndarray, num_rows: int) -> Slack | None:
  if soft is None:
    return None
  shared = soft.mode == 'linf'
  return Slack(1 / scale, shared, soft.weight if shared else soft.weight / num_rows, soft.lower, soft.upper)


@functools.cache
def _thread_pools() -> threadpoolctl.ThreadpoolController:
  return threadpoolctl.ThreadpoolController()


def _solve_rows(problem: _Problem, working: np.ndarray, columns: np.ndarray, scale: np.ndarray, solver: str,
                time_limit_s: float) -> tuple[InteriorResult, str]:
  """Solves with the working rows only; in the answer d is `c_i d_i` of the kept columns, duals are of the scaled rows."""
  start, matrix = time.monotonic(), _working_matrix(problem, working, scale)
  c = problem.weights[columns]
  program = NormProgram(
    rows=ColumnSubset(matrix, columns, 1 / c), rhs=problem.rhs[working] / scale[working], lower=problem.lower[columns] * c,
    upper=problem.upper[columns] * c, l1_cost=problem.cost_l1, cap_cost=problem.cost_cap,
    slack=_slack(problem.soft, scale[working], len(scale)))
  if solver in ('auto', 'interior'):
    with _thread_pools().limit(limits=1 if len(working) <= _ONE_THREAD_UP_TO else None):
      found = solve_norm_program(program, time_limit_s=time_limit_s)
    if solver == 'interior' or found.status not in (Status.NUMERICAL, Status.ITERATION_LIMIT):
      return found, 'interior'
    solver, time_limit_s = 'ipm', max(0.01, time_limit_s - (time.monotonic() - start))
  dense = matrix.rows(np.arange(len(working)))[:, columns]
  dense = dense.multiply(1 / c[None, :]) if scipy.sparse.issparse(dense) else dense / c
  return solve_split_form(program, dense, solver, time_limit_s)


def _full_slack(problem: _Problem, slack: np.ndarray, working: np.ndarray) -> np.ndarray:
  if problem.soft is None or problem.soft.mode == 'linf':
    return slack
  out = np.full(problem.rows.shape[0], problem.soft.lower)
  out[working] = slack
  return out


def _ray(problem: _Problem, working: np.ndarray, row_dual: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, Fraction | float]:
  """Farkas ray over all rows as given, and its exact bound; multipliers that the proof does not need are dropped."""
  y = row_dual / scale[working]
  y = y / max(y.max(initial=0.0), 1e-300)
  lift = problem.soft.upper if problem.soft is not None else 0.0
  for share in (1e-2, 1e-4, 1e-6, 1e-9, 0.0):
    kept = y > share
    program = LinearProgram(
      cost=np.zeros(problem.rows.shape[1]), rows=problem.rows.rows(working[kept]), row_upper=np.full(kept.sum(), np.inf),
      row_lower=problem.rhs[working[kept]] - lift, lower=problem.lower, upper=problem.upper)
    bound = farkas_bound(program, y[kept])
    if bound > 0:
      break
  ray = np.zeros(len(scale))
  ray[working[kept]] = y[kept]
  return ray, bound


def _statistics(problem, delta, slack, found, working, columns, scale, rounds, iterations, start, solver) -> MinimalChange:
  num_rows, p = problem.rows.shape
  size = problem.weights * np.abs(delta)
  soft = problem.soft
  price = 0.0
  if soft is not None:
    price = soft.weight * float(slack.mean())  # one slack: its own mean
  lower_bound, row_dual, cap_dual = 0.0, np.zeros(num_rows), np.zeros(p)
  objective = float(problem.cost_l1 * size.sum() + problem.cost_cap * size.max(initial=0.0) + price)
  if found is not None:
    row_dual[working] = found.row_dual / scale[working]
    cap_dual[columns] = found.cap_dual
    outside = num_rows - len(working)
    lower_bound = found.lower_bound + (
      soft.weight * soft.lower * outside / num_rows if soft is not None and soft.mode == 'l1' else 0.0)
  else:
    lower_bound = price
  lift = slack if len(slack) else 0.0
  violation = float((problem.rhs - problem.rows.matvec(delta) - lift).max(initial=0.0))
  return MinimalChange(
    objective=objective, lower_bound=lower_bound, max_violation=violation, slack=slack, row_dual=row_dual, cap_dual=cap_dual,
    num_rows=num_rows, num_columns=p, num_removed=p - len(columns), num_active=len(working), rounds=rounds,
    iterations=iterations, seconds=time.monotonic() - start, solver=solver)
