"""Linear and mixed-integer programs by HiGHS, called directly; silent, always with a time limit.

A solver's 'optimal' is a proposal: the point is checked against the data in float64 before the status says so.
"""
import time
from fractions import Fraction
from typing import Literal

import highspy
import numpy as np
import scipy.sparse

from jaxfix.errors import BadInputError, RepairFailure, require
from jaxfix.solve.dual import farkas_bound
from jaxfix.solve.program import LinearProgram, Solution, Statistics, Status

Solver = Literal['auto', 'ipm', 'simplex']

# Measured on two cores on repair programs: simplex wins up to some 2e5 non-zeros, interior point from there on.
SIMPLEX_UP_TO = 200_000
_RESIDUAL_FACTOR = 100  # a point may miss a row by this many feasibility tolerances: HiGHS measures after its scaling

_STATUS = {
  highspy.HighsModelStatus.kOptimal: Status.OPTIMAL,
  highspy.HighsModelStatus.kModelEmpty: Status.OPTIMAL,
  highspy.HighsModelStatus.kInfeasible: Status.INFEASIBLE,
  highspy.HighsModelStatus.kUnbounded: Status.UNBOUNDED,
  highspy.HighsModelStatus.kTimeLimit: Status.TIME_LIMIT,
  highspy.HighsModelStatus.kIterationLimit: Status.ITERATION_LIMIT,
  highspy.HighsModelStatus.kSolutionLimit: Status.ITERATION_LIMIT,
  highspy.HighsModelStatus.kMemoryLimit: Status.MEMORY_LIMIT,
  highspy.HighsModelStatus.kInterrupt: Status.INTERRUPTED,
  highspy.HighsModelStatus.kHighsInterrupt: Status.INTERRUPTED,
}


def solve_lp(program: LinearProgram, *, solver: Solver = 'auto', crossover: bool | None = None,
             time_limit_s: float = 600.0, feasibility_tolerance: float = 1e-9, optimality_tolerance: float = 1e-9,
             ray: bool = True) -> Solution:
  """Solves a linear program.

  Args:
    program: `program.integrality` must be None.
    solver: 'auto' is simplex up to 2e5 non-zeros and interior point beyond: simplex is slow on large dense programs.
    crossover: of an interior-point answer to a vertex; None lets HiGHS decide (it does so if the answer is imprecise).
    time_limit_s: seconds, > 0. Interior point looks at the clock between iterations only. The search for a ray has the
      same limit again.
    feasibility_tolerance: absolute, of rows and bounds, in [1e-10, 1].
    optimality_tolerance: in [1e-10, 1]: of reduced costs for simplex, of the relative gap for interior point.
    ray: look for a Farkas ray of an infeasible program. It can cost as much as the solve.
  Returns:
    A Solution. `status` is `numerical` where HiGHS claims an optimum that misses a row or bound by more than 100
    feasibility tolerances.
  Raises:
    BadInputError: an option out of range, or a program with integer variables.
  """
  require(program.integrality is None, 'solve_lp takes no integer variables: use solve_milp')
  require(solver in ('auto', 'ipm', 'simplex'), f"solver must be 'auto', 'ipm' or 'simplex', got {solver!r}")
  _check_limits(time_limit_s, feasibility_tolerance, optimality_tolerance)
  start = time.monotonic()
  if solver == 'auto':
    solver = 'simplex' if program.num_nonzeros <= SIMPLEX_UP_TO else 'ipm'
  options = {
    'solver': solver, 'run_crossover': 'choose' if crossover is None else 'on' if crossover else 'off',
    'time_limit': time_limit_s, 'primal_feasibility_tolerance': feasibility_tolerance,
    'dual_feasibility_tolerance': optimality_tolerance, 'ipm_optimality_tolerance': optimality_tolerance}
  highs = _run(program, options)
  status = _status(highs)
  found, bound = _farkas_ray(program, solver, time_limit_s) if ray and status is Status.INFEASIBLE else (None, None)
  return _solution(program, highs, status, f'highs-{solver}', start, feasibility_tolerance, ray=found, ray_bound=bound)


def solve_milp(program: LinearProgram, *, time_limit_s: float = 600.0, feasibility_tolerance: float = 1e-9,
               relative_gap: float = 0.0) -> Solution:
  """Solves a mixed-integer linear program by branch and bound.

  HiGHS gives no proof that can be checked: an optimum or an 'infeasible' rests on the solver alone (V-section 7).

  Args:
    program: with `integrality`; None is an ordinary linear program.
    time_limit_s: seconds, > 0. At the limit `x` is the best point found, if any.
    feasibility_tolerance: absolute, of rows, bounds and integrality, in [1e-10, 1].
    relative_gap: stop when the bound is this close to the best point.
  Returns:
    A Solution without multipliers; `statistics.dual_bound` is the claimed lower bound on the optimum.
  Raises:
    BadInputError: an option out of range.
  """
  _check_limits(time_limit_s, feasibility_tolerance, feasibility_tolerance)
  require(relative_gap >= 0, f'relative_gap must be >= 0, got {relative_gap}')
  start = time.monotonic()
  options = {
    'time_limit': time_limit_s, 'mip_rel_gap': relative_gap, 'mip_abs_gap': 0.0 if relative_gap == 0 else 1e-9,
    'mip_feasibility_tolerance': feasibility_tolerance, 'primal_feasibility_tolerance': feasibility_tolerance}
  highs = _run(program, options)
  return _solution(program, highs, _status(highs), 'highs-mip', start, feasibility_tolerance)


def _check_limits(time_limit_s: float, *tolerances: float) -> None:
  require(time_limit_s > 0, f'time_limit_s must be positive, got {time_limit_s}')
  for tolerance in tolerances:
    require(1e-10 <= tolerance <= 1, f'a tolerance must lie in [1e-10, 1], got {tolerance}')


def _run(program: LinearProgram, options: dict[str, str | float]) -> highspy.Highs:
  highs = highspy.Highs()
  # HiGHS drops matrix entries below 1e-9 unless told otherwise; repaired points may depend on them.
  for name, value in {'output_flag': False, 'small_matrix_value': 1e-12, **options}.items():
    if highs.setOptionValue(name, value) != highspy.HighsStatus.kOk:
      raise BadInputError(f'HiGHS {highs.version()} does not accept {name}={value!r}')
  if highs.passModel(_model(program)) == highspy.HighsStatus.kError:
    raise RepairFailure('HiGHS refused the program: an entry of the rows is probably larger than 1e15')
  highs.run()
  if highs.getModelStatus() == highspy.HighsModelStatus.kUnboundedOrInfeasible:
    # The presolve of mixed-integer programs may see that one of the two holds; without it the answer says which.
    highs.setOptionValue('presolve', 'off')
    highs.clearSolver()
    highs.run()
  return highs


def _model(program: LinearProgram) -> highspy.HighsLp:
  rows = scipy.sparse.csr_array(program.rows)
  lp = highspy.HighsLp()
  lp.num_col_, lp.num_row_ = program.num_columns, program.num_rows
  lp.col_cost_, lp.col_lower_, lp.col_upper_ = program.cost, program.lower, program.upper
  lp.row_lower_, lp.row_upper_ = program.row_lower, program.row_upper
  lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
  lp.a_matrix_.start_, lp.a_matrix_.index_, lp.a_matrix_.value_ = rows.indptr, rows.indices, rows.data
  if program.integrality is not None:
    kinds = (highspy.HighsVarType.kContinuous, highspy.HighsVarType.kInteger)
    lp.integrality_ = [kinds[int(integer)] for integer in program.integrality]
  return lp


def _status(highs: highspy.Highs) -> Status:
  return _STATUS.get(highs.getModelStatus(), Status.NUMERICAL)


def _solution(program: LinearProgram, highs: highspy.Highs, status: Status, solver: str, start: float,
              feasibility_tolerance: float, *, ray: np.ndarray | None = None,
              ray_bound: Fraction | float | None = None) -> Solution:
  found, info = highs.getSolution(), highs.getInfo()
  integer = program.integrality is not None
  x = row_dual = col_dual = None
  if found.value_valid and status not in (Status.INFEASIBLE, Status.UNBOUNDED):
    x = np.array(found.col_value, np.float64)
    if found.dual_valid and not integer:
      row_dual, col_dual = np.array(found.row_dual, np.float64), np.array(found.col_dual, np.float64)
  residual, fraction = (program.max_violation(x), program.max_fraction(x)) if x is not None else (np.inf, 0.0)
  if status is Status.OPTIMAL and max(residual, fraction) > _RESIDUAL_FACTOR * feasibility_tolerance:
    status = Status.NUMERICAL
  counts = (info.simplex_iteration_count, info.ipm_iteration_count, info.crossover_iteration_count)
  statistics = Statistics(
    solver=solver, seconds=time.monotonic() - start,
    iterations=max(0, info.mip_node_count) if integer else sum(max(0, count) for count in counts),
    num_rows=program.num_rows, num_columns=program.num_columns, num_nonzeros=program.num_nonzeros,
    primal_residual=residual, integrality_residual=fraction,
    dual_bound=float(info.mip_dual_bound) if integer and np.isfinite(info.mip_dual_bound) else None,
    message=highs.modelStatusToString(highs.getModelStatus()))
  return Solution(status=status, statistics=statistics, x=x, objective=None if x is None else program.objective(x),
                  row_dual=row_dual, col_dual=col_dual, ray=ray, ray_bound=ray_bound)


def _farkas_ray(program: LinearProgram, solver: str,
                time_limit_s: float) -> tuple[np.ndarray | None, Fraction | float | None]:
  """Multipliers that prove infeasibility and their exact bound; of two sources the first whose bound is positive.

  Simplex without presolve has a ray at hand when it stops. Interior point has none: then the multipliers of the elastic
  program, which minimizes the largest violation, do the same and cost one more solve.
  """
  ray = bound = None
  for source in (_simplex_ray, _elastic_ray) if solver == 'simplex' else (_elastic_ray, _simplex_ray):
    ray = source(program, time_limit_s)
    if ray is not None:
      largest = np.abs(ray).max(initial=0.0)
      ray = ray / largest if largest > 0 else ray
      bound = farkas_bound(program, ray)
      if bound > 0:
        return ray, bound
  return ray, bound


def _simplex_ray(program: LinearProgram, time_limit_s: float) -> np.ndarray | None:
  highs = _run(program, {'solver': 'simplex', 'presolve': 'off', 'time_limit': time_limit_s})
  outcome = highs.getDualRay()  # (status, exists, ray)
  return np.array(outcome[2], np.float64) if outcome[1] else None


def _elastic_ray(program: LinearProgram, time_limit_s: float) -> np.ndarray | None:
  rows, below, above = (scipy.sparse.csr_array(program.rows), np.isfinite(program.row_lower),
                        np.isfinite(program.row_upper))
  ones = lambda k, sign: scipy.sparse.csr_array(np.full((k, 1), sign))
  stacked = scipy.sparse.vstack([
    scipy.sparse.hstack([rows[below], ones(below.sum(), 1.0)]),
    scipy.sparse.hstack([rows[above], ones(above.sum(), -1.0)])], format='csr')
  count = stacked.shape[0]
  lower, upper = np.full(count, -np.inf), np.full(count, np.inf)
  lower[:below.sum()], upper[below.sum():] = program.row_lower[below], program.row_upper[above]
  elastic = LinearProgram(
    cost=np.append(np.zeros(program.num_columns), 1.0), rows=stacked, row_lower=lower, row_upper=upper,
    lower=np.append(program.lower, 0.0), upper=np.append(program.upper, np.inf))
  highs = _run(elastic, {'solver': 'ipm', 'time_limit': time_limit_s})
  found = highs.getSolution()
  if _status(highs) is not Status.OPTIMAL or not found.dual_valid:
    return None
  dual, ray = np.array(found.row_dual, np.float64), np.zeros(program.num_rows)
  ray[below] += np.maximum(dual[:below.sum()], 0.0)
  ray[above] += np.minimum(dual[below.sum():], 0.0)
  return ray
