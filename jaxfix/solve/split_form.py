"""The minimal-change program as an ordinary linear program: the split form of V-section 8.

d = plus - minus with plus, minus >= 0 needs no rows for |d|. Columns: plus `[p]`, minus `[p]`, then t where the cap
has a price, then the slacks. Rows: the constraints, then `c_i (plus_i + minus_i) - t <= 0` where the cap has a price.
It is what a general solver gets, and what a certificate of minimality is about.
"""
import numpy as np
import scipy.sparse

from jaxfix.solve.highs import solve_lp
from jaxfix.solve.interior import InteriorResult, NormProgram, Slack, with_finite_slack
from jaxfix.solve.program import LinearProgram, Status


def split_form(matrix: np.ndarray | scipy.sparse.sparray, rhs: np.ndarray, lower: np.ndarray, upper: np.ndarray, *,
               weights: np.ndarray, l1_cost: float, cap_cost: float, slack: Slack | None = None) -> LinearProgram:
  """min l1_cost * sum c_i |d_i| + cap_cost * max c_i |d_i| + slack price, as a `LinearProgram`.

  Args:
    matrix: `[m, p]`; rhs: `[m]`; lower <= 0 <= upper: `[p]`, finite; weights: `[p]`, c > 0.
    l1_cost, cap_cost: >= 0. slack: soft constraints; its upper bound must be finite if a dual bound is wanted.
  """
  matrix = scipy.sparse.csr_array(matrix)
  m, p = matrix.shape
  columns, cost, low, high = [matrix, -matrix], [l1_cost * weights] * 2, [np.zeros(2 * p)], [upper, -lower]
  if cap_cost:
    columns.append(scipy.sparse.csr_array((m, 1)))
    cost.append([cap_cost])
    low.append([0.0])
    high.append([float((weights * np.maximum(upper, -lower)).max(initial=0.0))])
  if slack is not None:
    lift = scipy.sparse.csr_array(slack.coefficient[:, None]) if slack.shared else (
      scipy.sparse.diags_array(slack.coefficient, format='csr'))
    columns.append(lift)
    for part, value in ((cost, slack.cost), (low, slack.lower), (high, slack.upper)):
      part.append(np.full(lift.shape[1], value))
  rows, row_lower, row_upper = scipy.sparse.hstack(columns, format='csr'), rhs, np.full(m, np.inf)
  if cap_cost:
    c, rest = scipy.sparse.diags_array(weights, format='csr'), rows.shape[1] - 2 * p
    minus_t = scipy.sparse.csr_array((np.full(p, -1.0), (np.arange(p), np.zeros(p, np.int64))), shape=(p, rest))
    rows = scipy.sparse.vstack([rows, scipy.sparse.hstack([c, c, minus_t])], format='csr')
    row_lower = np.concatenate([row_lower, np.full(p, -np.inf)])
    row_upper = np.concatenate([row_upper, np.zeros(p)])
  return LinearProgram(cost=np.concatenate(cost), rows=rows, row_lower=row_lower, row_upper=row_upper,
                       lower=np.concatenate(low), upper=np.concatenate(high))


def solve_split_form(program: NormProgram, solver: str, time_limit_s: float) -> tuple[InteriorResult, str]:
  """Solves `program` by HiGHS ('ipm' or 'simplex'): slower than `interior.py`, and independent of it."""
  program = with_finite_slack(program)
  n, m = len(program.lower), len(program.rhs)
  split = split_form(program.rows.rows(np.arange(m)), program.rhs, program.lower, program.upper, weights=np.ones(n),
                     l1_cost=program.l1_cost, cap_cost=program.cap_cost, slack=program.slack)
  solution = solve_lp(split, solver=solver, time_limit_s=time_limit_s)
  d = solution.x[:n] - solution.x[n:2 * n] if solution.x is not None else np.zeros(n)
  dual = solution.ray if solution.status is Status.INFEASIBLE else solution.row_dual
  dual = np.zeros(split.num_rows) if dual is None else dual
  row_dual, cap_dual = np.maximum(dual[:m], 0.0), np.zeros(n)
  if program.cap_cost:
    cap_dual = np.maximum(-dual[m:], 0.0)
    cap_dual *= min(1.0, program.cap_cost / max(float(cap_dual.sum()), 1e-300))
  values = program.rows.matvec(d)
  slack = program.best_slack(values)
  found = InteriorResult(
    status=solution.status, d=d, slack=slack, row_dual=row_dual, cap_dual=cap_dual,
    objective=program.objective(d, slack), violation=program.violation(values, slack),
    lower_bound=program.dual_bound(row_dual, cap_dual, program.rows.rmatvec(row_dual)),
    iterations=solution.statistics.iterations)
  return found, solution.statistics.solver
