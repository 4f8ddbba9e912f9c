"""Convex quadratic programs through CVXPY, in matrix form, with the outcomes of `program.py`."""
import time
from typing import Literal

import numpy as np
import scipy.sparse

from jaxfix.errors import require
from jaxfix.solve.program import LinearProgram, Solution, Statistics, Status

_OPTIONS = {
  'clarabel': lambda limit, tol: {'time_limit': limit, 'tol_gap_abs': tol, 'tol_gap_rel': tol, 'tol_feas': tol},
  'osqp': lambda limit, tol: {'time_limit': limit, 'eps_abs': tol, 'eps_rel': tol, 'max_iter': 1_000_000,
                              'polishing': True},
}
_STATUS = {
  'optimal': Status.OPTIMAL, 'infeasible': Status.INFEASIBLE, 'unbounded': Status.UNBOUNDED}


def solve_qp(quadratic: np.ndarray | scipy.sparse.sparray, linear: np.ndarray,
             rows: np.ndarray | scipy.sparse.sparray, row_lower: np.ndarray, row_upper: np.ndarray, *,
             solver: Literal['clarabel', 'osqp'] = 'clarabel', time_limit_s: float = 600.0,
             tolerance: float = 1e-9) -> Solution:
  """min x' quadratic x / 2 + linear'x  s.t.  row_lower <= rows x <= row_upper.

  Args:
    quadratic: `[v, v]`, symmetric positive semidefinite (CVXPY is told so, not asked to check); linear: `[v]`.
    rows: `[r, v]`; row_lower, row_upper: `[r]`, infinite for a side that does not exist. Bounds are rows.
    solver: Clarabel (interior point, accurate) or OSQP (first order, for large sparse programs of modest accuracy).
    time_limit_s: seconds, > 0. tolerance: of the solver; a point that misses a row by over 100 times that is
      `numerical`.
  Returns:
    A Solution: `row_dual` y satisfies quadratic x + linear = rows'y; there is no `col_dual` and no ray.
  Raises:
    BadInputError: shapes, NaN, or an unknown solver.
  """
  require(solver in _OPTIONS, f'solver must be one of {sorted(_OPTIONS)}, got {solver!r}')
  require(time_limit_s > 0, f'time_limit_s must be positive, got {time_limit_s}')
  free = np.full(np.shape(linear), np.inf)
  program = LinearProgram(linear, rows, row_lower, row_upper, -free, free)
  hessian = scipy.sparse.csc_array(quadratic).astype(np.float64)
  v = program.num_columns
  require(hessian.shape == (v, v), f'quadratic must have shape ({v}, {v}), got {hessian.shape}')
  require(bool(np.isfinite(hessian.data).all()), 'quadratic holds NaN or infinity')
  require(abs(hessian - hessian.T).max() <= 1e-12 * max(1.0, abs(hessian).max()), 'quadratic must be symmetric')

  import cvxpy  # 2 to 3 seconds: only for those who need it
  start, x = time.monotonic(), cvxpy.Variable(v)
  equal = program.row_lower == program.row_upper
  parts = {  # sign of CVXPY's multiplier in y: its Lagrangian adds multiplier * (left - right) of `left <= right`
    'equal': (equal, -1.0), 'lower': (np.isfinite(program.row_lower) & ~equal, 1.0),
    'upper': (np.isfinite(program.row_upper) & ~equal, -1.0)}
  a, constraints = program.rows, {}
  for name, (mask, _) in parts.items():
    if mask.any():
      left, low, high = a[mask] @ x, program.row_lower[mask], program.row_upper[mask]
      constraints[name] = left == low if name == 'equal' else left >= low if name == 'lower' else left <= high
  objective = cvxpy.quad_form(x, cvxpy.psd_wrap(hessian)) / 2 + program.cost @ x
  problem = cvxpy.Problem(cvxpy.Minimize(objective), list(constraints.values()))
  try:
    problem.solve(solver=solver.upper(), **_OPTIONS[solver](time_limit_s, tolerance))
    word = problem.status
  except cvxpy.error.SolverError as error:
    word = f'error: {error}'
  seconds = time.monotonic() - start
  status = _STATUS.get(word, Status.NUMERICAL)
  if word == 'user_limit':
    status = Status.TIME_LIMIT if seconds >= time_limit_s else Status.ITERATION_LIMIT
  point = x.value if status not in (Status.INFEASIBLE, Status.UNBOUNDED) else None
  residual = program.max_violation(point) if point is not None else np.inf
  if status is Status.OPTIMAL and residual > 100 * tolerance:
    status = Status.NUMERICAL
  row_dual = np.zeros(program.num_rows)
  for name, constraint in constraints.items():
    mask, sign = parts[name]
    row_dual[mask] += sign * (constraint.dual_value if constraint.dual_value is not None else np.nan)
  steps = problem.solver_stats.num_iters if problem.solver_stats is not None else None
  statistics = Statistics(
    solver=solver, seconds=seconds, iterations=int(steps or 0), num_rows=program.num_rows, num_columns=v,
    num_nonzeros=program.num_nonzeros, primal_residual=residual, message=word)
  return Solution(
    status=status, statistics=statistics, x=point, row_dual=row_dual if point is not None else None,
    objective=None if point is None else float(point @ (hessian @ point) / 2) + program.objective(point))
