"""The smallest change of a parameter vector that meets linear constraints: the core of the exact repair methods.

  min  w1 * (1/p) * sum_i c_i |d_i|  +  winf * max_i c_i |d_i|   (+ the price of soft constraints)
  s.t. R d >= e,  lower <= d <= upper

in the forms of V-section 8, for PRDNN, APRNN and the like. Three things keep it fast: columns that no row touches are
left out (their change is 0), rows enter only once they are violated, and the solver knows the structure
(`interior.py`).
"""
import dataclasses
import time
from fractions import Fraction
from typing import Literal

import numpy as np
import scipy.sparse

from jaxfix.errors import require
from jaxfix.solve.dual import farkas_bound
from jaxfix.solve.interior import InteriorResult, NormProgram, Slack, solve_norm_program, with_finite_slack
from jaxfix.solve.program import LinearProgram, Status, raise_unless_optimal
from jaxfix.solve.rows import MatrixRows, RankOneRows, RowOracle, as_rows
from jaxfix.solve.split_form import solve_split_form, split_form

Norm = Literal['l1', 'linf', 'l1n+linf']

_COLUMN_NORM = 1e-12       # V-section 8: columns below it are left out
_VIOLATION = 1e-9          # V-section 8, of a scaled row
_MAX_ROUNDS = 50           # V-section 8: then all rows at once
_BLOCK = 2**22             # entries of a block of an oracle's rows: 32 MiB


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
    rounds: solves; 1 without lazy rows, 0 where d = 0 will do. iterations: of the solver, over all rounds.
    seconds: wall time. solver: 'interior', 'highs-ipm', 'highs-simplex', or 'none' where d = 0 will do.
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
    bounds: b for -b <= d <= b, or (lower, upper), each a number or `[p]`. Finite, and 0 lies within: no change is
      always allowed by the bounds. lower = upper = 0 keeps a parameter.
    norm: 'l1' (sum of c_i |d_i|), 'linf' (largest c_i |d_i|), or 'l1n+linf' (mean plus largest, PRDNN's default).
    norm_weights: (w1, winf), of the two terms; 'l1' uses the first and 'linf' the second.
    weights: `[p]`, > 0: c; None is all ones.
    groups: `[N]`, the point each row belongs to; used by `least_satisfied` only. `RankOneRows` brings its own.
    lazy: start from the rows that d = 0 violates, solve, add the violated rows, repeat; after 50 rounds take all rows.
      The optimum is that of the full program.
    least_satisfied: rows of each group that enter from the start besides the violated ones. V-section 8 proposes 8;
      with ten classes that is every row, and none was 2 to 20 times as fast on LeNet's dense layers.
    soft: allow rows to be missed at a price; None is hard constraints.
    solver: 'interior' is the structured interior point; 'ipm' and 'simplex' are HiGHS on the split form. 'auto' is the
      first, and HiGHS interior point where that loses accuracy.
    time_limit_s: seconds, > 0, for the whole call; checked between iterations.
  Returns:
    The change `[p]`, float64, and its statistics. It is exactly 0 where nothing needs to change. A scaled row (divided
    by max(1, its largest entry)) may be missed by 1e-9: put at least 100 times that into the margin.
  Raises:
    BadInputError: shapes, NaN, or options out of range.
    InfeasibleProgramError: no change within the bounds meets the rows; with `ray` `[N]` and its exact bound.
    SolverLimitError: the time limit, or no answer of the accuracy asked for.
  Source: V-section 8; PRDNN, section 4.
  """
  start = time.monotonic()
  problem = _problem(rows, rhs, bounds, norm, norm_weights, weights, soft)
  require(solver in ('auto', 'interior', 'ipm', 'simplex'), f'Unknown solver {solver!r}')
  require(time_limit_s > 0, f'time_limit_s must be positive, got {time_limit_s}')
  require(least_satisfied >= 0, f'least_satisfied must be >= 0, got {least_satisfied}')
  num_rows, num_columns = problem.rows.shape
  missing = (problem.rhs - problem.floor) / problem.scale  # what each row lacks at d = 0
  if (missing <= 0).all():
    return np.zeros(num_columns), _nothing_to_do(problem, start)
  everything = np.arange(num_rows)
  working = _first_rows(missing, _groups(problem.rows, groups), least_satisfied) if lazy else everything
  iterations = 0
  for rounds in range(1, _MAX_ROUNDS + 2):
    if rounds > _MAX_ROUNDS:
      working = everything
    found, name = _solve_rows(problem, working, solver, max(0.01, time_limit_s - (time.monotonic() - start)))
    iterations += found.iterations
    ray, bound = _ray(problem, working, found.row_dual) if found.status is Status.INFEASIBLE else (None, None)
    raise_unless_optimal(found.status, f'The minimal change of {num_columns} parameters under {num_rows} constraints',
                         ray=ray, ray_bound=bound)
    delta = np.zeros(num_columns)
    delta[problem.columns] = found.d / problem.weights[problem.columns]
    delta = np.clip(delta, problem.lower, problem.upper)
    outside = _violated(problem, delta, found.slack)
    outside[working] = False
    if not outside.any():
      break
    working = np.union1d(working, np.flatnonzero(outside))
  return delta, _statistics(problem, delta, found, working, rounds=rounds, iterations=iterations, start=start,
                            solver=name)


def minimality_program(rows: np.ndarray | scipy.sparse.sparray | RowOracle, rhs: np.ndarray, *,
                       bounds: float | tuple = 3.0, norm: Norm = 'l1n+linf',
                       norm_weights: tuple[float, float] = (1.0, 1.0), weights: np.ndarray | None = None,
                       soft: Soft | None = None, change: MinimalChange) -> tuple[LinearProgram, np.ndarray]:
  """The program that `minimal_change` solved, in split form with rows as given, and its multipliers from `change`.

  `safe_dual_bound(*minimality_program(...))` is an exact lower bound on what any feasible change costs: the evidence
  `lp-dual` of V-section 11.3. Arguments as for `minimal_change`; `change` is its second result. The rows that it needed
  become one matrix: mind the memory. Rows with multiplier 0 are left out for hard constraints and for a shared slack;
  the optimum of what is left can only be lower, so the bound holds for the whole.
  """
  problem = _problem(rows, rhs, bounds, norm, norm_weights, weights, soft)
  count = len(problem.rhs)
  used = np.arange(count) if soft is not None and soft.mode == 'l1' else np.flatnonzero(change.row_dual)
  slack = _slack(soft, np.ones(count), count)
  if slack is not None:
    whole = with_finite_slack(NormProgram(problem.rows, problem.rhs, problem.lower, problem.upper, problem.l1_cost,
                                          problem.cap_cost, slack))
    slack = dataclasses.replace(slack, coefficient=np.ones(len(used)), upper=whole.slack.upper)
  program = split_form(problem.rows.rows(used), problem.rhs[used], problem.lower, problem.upper,
                       weights=problem.weights, l1_cost=problem.l1_cost, cap_cost=problem.cap_cost, slack=slack)
  return program, np.concatenate([change.row_dual[used], -change.cap_dual if problem.cap_cost else np.zeros(0)])


@dataclasses.dataclass(frozen=True)
class _Problem:
  """The validated input.

  l1_cost, cap_cost: of sum c_i |d_i| and of max c_i |d_i|. scale: `[N]`, the row factors max(1, largest |entry|).
  columns: `[n]`, the parameters that can change and matter to a row.
  """

  rows: RowOracle
  rhs: np.ndarray
  lower: np.ndarray
  upper: np.ndarray
  l1_cost: float
  cap_cost: float
  weights: np.ndarray
  soft: Soft | None
  scale: np.ndarray
  columns: np.ndarray

  @property
  def floor(self) -> float:
    """The least slack, which is the cheapest: that of a row outside the working set."""
    return self.soft.lower if self.soft is not None else 0.0


def _problem(rows, rhs, bounds, norm, norm_weights, weights, soft) -> _Problem:
  rows = as_rows(rows)
  num_rows, p = rows.shape
  rhs = np.asarray(rhs, np.float64)
  require(rhs.shape == (num_rows,), f'rhs must have shape ({num_rows},), got {rhs.shape}')
  require(bool(np.isfinite(rhs).all()), 'rhs holds NaN or infinity')
  sides = [np.asarray(side, np.float64) for side in (bounds if isinstance(bounds, tuple) else (-bounds, bounds))]
  for side in sides:
    require(side.shape in ((), (p,)), f'a bound must be a number or have shape ({p},), got {side.shape}')
    require(bool(np.isfinite(side).all()), 'bounds must be finite: a safe bound on the optimum needs them')
  lower, upper = (np.broadcast_to(side, (p,)) for side in sides)
  require(bool((lower <= 0).all() and (upper >= 0).all()), 'bounds must contain 0: no change must be allowed')
  weights = np.ones(p) if weights is None else np.asarray(weights, np.float64)
  require(weights.shape == (p,), f'weights must have shape ({p},), got {weights.shape}')
  require(bool((np.isfinite(weights) & (weights > 0)).all()), 'weights must be positive and finite')
  require(norm in ('l1', 'linf', 'l1n+linf'), f"norm must be 'l1', 'linf' or 'l1n+linf', got {norm!r}")
  w1, winf = norm_weights
  require(0 <= w1 < np.inf and 0 <= winf < np.inf, f'norm_weights must be >= 0 and finite, got {norm_weights}')
  l1_cost = {'l1': w1, 'linf': 0.0, 'l1n+linf': w1 / max(1, p)}[norm]
  cap_cost = 0.0 if norm == 'l1' else winf
  require(l1_cost + cap_cost > 0, f'norm {norm!r} with norm_weights {norm_weights} prices nothing')
  scale, column_norm = _scales(rows)
  columns = np.flatnonzero((column_norm >= _COLUMN_NORM) & (lower < upper))
  return _Problem(rows, rhs, lower, upper, l1_cost, cap_cost, weights, soft, scale, columns)


def _scales(rows: RowOracle) -> tuple[np.ndarray, np.ndarray]:
  """Row factors max(1, largest |entry|), `[N]`, and Euclidean column norms, `[p]`."""
  if isinstance(rows, MatrixRows | RankOneRows):
    return np.maximum(1.0, rows.row_scale()), rows.column_norm()
  num_rows, p = rows.shape
  scale, squares, step = np.ones(num_rows), np.zeros(p), max(1, _BLOCK // max(1, p))
  for k in range(0, num_rows, step):  # one pass in blocks: an oracle's matrix need not fit into memory
    block = as_rows(rows.rows(np.arange(k, min(k + step, num_rows))))
    scale[k:k + step] = np.maximum(1.0, block.row_scale())
    squares += block.column_norm()**2
  return scale, np.sqrt(squares)


def _groups(rows: RowOracle, groups: np.ndarray | None) -> np.ndarray:
  if groups is None:
    return rows.point if isinstance(rows, RankOneRows) else np.zeros(rows.shape[0], np.int64)
  groups = np.asarray(groups)
  require(groups.shape == (rows.shape[0],), f'groups must have shape ({rows.shape[0]},), got {groups.shape}')
  return groups


def _first_rows(missing: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
  """The violated rows, and the `count` satisfied rows of each group that are nearest to violation."""
  satisfied = np.flatnonzero(missing <= 0)
  order = satisfied[np.lexsort((-missing[satisfied], groups[satisfied]))]
  begins = np.flatnonzero(np.append(True, np.diff(groups[order]) != 0)) if len(order) else np.zeros(0, np.int64)
  rank = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
  return np.union1d(np.flatnonzero(missing > 0), order[rank < count])


def _slack(soft: Soft | None, scale: np.ndarray, num_rows: int) -> Slack | None:
  """Slack in the scaled rows of the working set; the price of a mean over all rows."""
  if soft is None:
    return None
  shared = soft.mode == 'linf'
  return Slack(1 / scale, shared, soft.weight if shared else soft.weight / num_rows, soft.lower, soft.upper)


def _solve_rows(problem: _Problem, working: np.ndarray, solver: str, time_limit_s: float) -> tuple[InteriorResult, str]:
  """Solves with the working rows only. In the answer d is `c_i d_i` of the kept columns, duals are of scaled rows."""
  start, scale = time.monotonic(), problem.scale[working]
  if isinstance(problem.rows, MatrixRows | RankOneRows):
    part = problem.rows.select(working, scale)
  else:
    part = as_rows(problem.rows.rows(working)).select(np.arange(len(working)), scale)
  c = problem.weights[problem.columns]
  program = NormProgram(
    rows=part.restrict(problem.columns, 1 / c), rhs=problem.rhs[working] / scale,
    lower=problem.lower[problem.columns] * c, upper=problem.upper[problem.columns] * c,
    l1_cost=problem.l1_cost, cap_cost=problem.cap_cost, slack=_slack(problem.soft, scale, len(problem.rhs)))
  if not len(c):
    return _solve_without_columns(program), 'none'
  if solver in ('auto', 'interior'):
    found = solve_norm_program(program, time_limit_s=time_limit_s)
    if solver == 'interior' or found.status not in (Status.NUMERICAL, Status.ITERATION_LIMIT):
      return found, 'interior'
    solver, time_limit_s = 'ipm', max(0.01, time_limit_s - (time.monotonic() - start))
  return solve_split_form(program, solver, time_limit_s)


def _solve_without_columns(program: NormProgram) -> InteriorResult:
  """No parameter can help: the slack must, or the row that lacks most proves that nothing does."""
  nothing = np.zeros(len(program.rhs))
  slack = program.best_slack(nothing)
  violation, price = program.violation(nothing, slack), program.objective(np.zeros(0), slack)
  worst = (np.arange(len(nothing)) == program.rhs.argmax()).astype(np.float64)
  status = Status.INFEASIBLE if violation > _VIOLATION else Status.OPTIMAL
  return InteriorResult(status, np.zeros(0), slack, worst if violation > _VIOLATION else nothing, np.zeros(0), price,
                        price, violation, 0)


def _violated(problem: _Problem, delta: np.ndarray, slack: np.ndarray) -> np.ndarray:
  """Which rows `delta` misses: at the shared slack, or at the least slack of a row of its own."""
  lift = slack[0] if problem.soft is not None and problem.soft.mode == 'linf' else problem.floor
  return (problem.rhs - problem.rows.matvec(delta) - lift) / problem.scale > _VIOLATION


def _ray(problem: _Problem, working: np.ndarray, row_dual: np.ndarray) -> tuple[np.ndarray, Fraction | float]:
  """Farkas ray over all rows as given, and its exact bound; multipliers that the proof does not need are dropped."""
  y = row_dual / problem.scale[working]
  y = y / max(y.max(initial=0.0), 1e-300)
  lift = problem.soft.upper if problem.soft is not None else 0.0
  for share in (1e-2, 1e-4, 1e-6, 1e-9, 0.0):
    kept = y > share
    used = working[kept]
    program = LinearProgram(
      cost=np.zeros(len(problem.lower)), rows=problem.rows.rows(used), row_lower=problem.rhs[used] - lift,
      row_upper=np.full(len(used), np.inf), lower=problem.lower, upper=problem.upper)
    bound = farkas_bound(program, y[kept])
    if bound > 0:
      break
  ray = np.zeros(len(problem.rhs))
  ray[used] = y[kept]
  return ray, bound


def _nothing_to_do(problem: _Problem, start: float) -> MinimalChange:
  """d = 0 at the least slack meets every row, and nothing is cheaper."""
  num_rows, p = problem.rows.shape
  shape = 0 if problem.soft is None else 1 if problem.soft.mode == 'linf' else num_rows
  price = problem.soft.weight * problem.floor if problem.soft is not None else 0.0
  return MinimalChange(
    objective=price, lower_bound=price, max_violation=0.0, slack=np.full(shape, problem.floor, np.float64),
    row_dual=np.zeros(num_rows), cap_dual=np.zeros(p), num_rows=num_rows, num_columns=p,
    num_removed=p - len(problem.columns), num_active=0, rounds=0, iterations=0, seconds=time.monotonic() - start,
    solver='none')


def _statistics(problem: _Problem, delta: np.ndarray, found: InteriorResult, working: np.ndarray, *, rounds: int,
                iterations: int, start: float, solver: str) -> MinimalChange:
  (num_rows, p), soft = problem.rows.shape, problem.soft
  slack, lower_bound = found.slack, found.lower_bound
  if soft is not None and soft.mode == 'l1':
    slack = np.full(num_rows, soft.lower, np.float64)
    slack[working] = found.slack
    lower_bound += soft.weight * soft.lower * (num_rows - len(working)) / num_rows
  row_dual, cap_dual, size = np.zeros(num_rows), np.zeros(p), problem.weights * np.abs(delta)
  row_dual[working] = found.row_dual / problem.scale[working]
  cap_dual[problem.columns] = found.cap_dual
  price = soft.weight * float(slack.mean()) if soft is not None else 0.0  # one slack is its own mean
  lift = slack if soft is not None else 0.0
  return MinimalChange(
    objective=float(problem.l1_cost * size.sum() + problem.cap_cost * size.max(initial=0.0)) + price,
    lower_bound=lower_bound, max_violation=float((problem.rhs - problem.rows.matvec(delta) - lift).max(initial=0.0)),
    slack=slack, row_dual=row_dual, cap_dual=cap_dual, num_rows=num_rows, num_columns=p,
    num_removed=p - len(problem.columns), num_active=len(working), rounds=rounds, iterations=iterations,
    seconds=time.monotonic() - start, solver=solver)
