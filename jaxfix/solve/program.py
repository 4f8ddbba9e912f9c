"""What is solved and what comes back: a linear program, the outcome of a solve, and the errors for bad outcomes."""
import dataclasses
import enum
from fractions import Fraction

import numpy as np
import scipy.sparse

from jaxfix.errors import InfeasibleError, RepairFailure, SolverLimitError, require


class Status(enum.Enum):
  """How a solve ended; `sentence` says it in words."""

  OPTIMAL = 'optimal'
  INFEASIBLE = 'infeasible'
  UNBOUNDED = 'unbounded'
  TIME_LIMIT = 'time_limit'
  ITERATION_LIMIT = 'iteration_limit'
  MEMORY_LIMIT = 'memory_limit'
  NUMERICAL = 'numerical'
  INTERRUPTED = 'interrupted'

  @property
  def sentence(self) -> str:
    return _SENTENCES[self]


_SENTENCES = {
  Status.OPTIMAL: 'The solver claims an optimum, and the point meets every row and bound when recomputed in float64.',
  Status.INFEASIBLE: 'No point meets all rows and bounds.',
  Status.UNBOUNDED: 'The objective has no lower limit: a bound on a variable or a row is missing.',
  Status.TIME_LIMIT: 'The time limit came before an answer.',
  Status.ITERATION_LIMIT: 'The iteration limit came before an answer.',
  Status.MEMORY_LIMIT: 'The solver ran out of memory.',
  Status.NUMERICAL: 'The solver gave up for lack of accuracy, or its point violates a row or bound: scale the rows.',
  Status.INTERRUPTED: 'The solver was interrupted.',
}


@dataclasses.dataclass(frozen=True, eq=False)
class LinearProgram:
  """min cost'x  s.t.  row_lower <= rows x <= row_upper,  lower <= x <= upper,  x_j integer where `integrality`.

  Attributes:
    cost: `[v]`, finite.
    rows: `[r, v]`, dense float64 or SciPy CSR, finite. Other sparse formats are converted.
    row_lower, row_upper: `[r]`; -inf and inf for a side that does not exist.
    lower, upper: `[v]`; may be infinite, but a bound from `safe_dual_bound` needs finite ones.
    integrality: `[v]`, bool, or None for a linear program.
  Raises:
    BadInputError: a wrong shape, NaN, an infinite entry where a finite one is needed, or a lower bound above its upper.
  """

  cost: np.ndarray
  rows: np.ndarray | scipy.sparse.csr_array
  row_lower: np.ndarray
  row_upper: np.ndarray
  lower: np.ndarray
  upper: np.ndarray
  integrality: np.ndarray | None = None

  def __post_init__(self):
    rows = scipy.sparse.csr_array(self.rows) if scipy.sparse.issparse(self.rows) else np.asarray(self.rows)
    require(rows.ndim == 2, f'LinearProgram.rows must be a matrix, got shape {rows.shape}')
    r, v = rows.shape
    object.__setattr__(self, 'rows', rows.astype(np.float64))
    for name, length in (('cost', v), ('lower', v), ('upper', v), ('row_lower', r), ('row_upper', r)):
      value = np.asarray(getattr(self, name), np.float64)
      require(value.shape == (length,), f'LinearProgram.{name} must have shape ({length},), got {value.shape}')
      require(not np.isnan(value).any(), f'LinearProgram.{name} holds NaN at index {_first(np.isnan(value))}')
      object.__setattr__(self, name, value)
    entries = rows.data if scipy.sparse.issparse(rows) else rows
    require(bool(np.isfinite(entries).all()), 'LinearProgram.rows holds NaN or infinity')
    require(bool(np.isfinite(self.cost).all()), 'LinearProgram.cost holds infinity')
    for low, high, of in ((self.lower, self.upper, 'variable'), (self.row_lower, self.row_upper, 'row')):
      require(bool((low <= high).all()), f'{of} {_first(low > high)} has a lower bound above its upper bound')
      require(bool((low < np.inf).all() and (high > -np.inf).all()), f'a {of} has a lower bound inf or upper -inf')
    if self.integrality is not None:
      mask = np.asarray(self.integrality)
      require(mask.shape == (v,) and mask.dtype == bool, f'LinearProgram.integrality must be bool of shape ({v},)')
      object.__setattr__(self, 'integrality', mask)

  @property
  def num_rows(self) -> int:
    return self.rows.shape[0]

  @property
  def num_columns(self) -> int:
    return self.rows.shape[1]

  @property
  def num_nonzeros(self) -> int:
    return int(self.rows.count_nonzero() if scipy.sparse.issparse(self.rows) else np.count_nonzero(self.rows))

  def objective(self, x: np.ndarray) -> float:
    """cost'x for x: `[v]`."""
    return float(self.cost @ x)

  def max_violation(self, x: np.ndarray) -> float:
    """Largest amount by which x `[v]` misses a row or a bound, in float64; 0 for a feasible point, inf for NaN."""
    value = self.rows @ x
    sides = (self.row_lower - value, value - self.row_upper, self.lower - x, x - self.upper)
    worst = max(float(side.max(initial=0.0)) for side in sides)
    return worst if np.isfinite(x).all() else np.inf

  def max_fraction(self, x: np.ndarray) -> float:
    """Largest distance of an integer variable from an integer."""
    if self.integrality is None:
      return 0.0
    return float(np.abs(x - np.round(x))[self.integrality].max(initial=0.0))


def _first(mask: np.ndarray) -> int:
  return int(np.argmax(mask)) if mask.any() else -1


@dataclasses.dataclass(frozen=True)
class Statistics:
  """How an answer was found.

  Attributes:
    solver: what ran, such as 'highs-ipm'.
    seconds: wall time, the search for a Farkas ray included.
    iterations: of the solver's main loop (simplex pivots, interior-point steps, branch-and-bound nodes).
    num_rows, num_columns, num_nonzeros: of the program as given.
    primal_residual: `max_violation` of the point, recomputed here from the data; inf where there is no point.
    integrality_residual: `max_fraction` of the point.
    dual_bound: lower bound on the optimum that the solver claims (mixed-integer only), else None.
    message: the solver's own word for its status.
  """

  solver: str
  seconds: float
  iterations: int
  num_rows: int
  num_columns: int
  num_nonzeros: int
  primal_residual: float = np.inf
  integrality_residual: float = 0.0
  dual_bound: float | None = None
  message: str = ''


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
  """Outcome of a solve. Only `status == OPTIMAL` makes `x` an answer; at a limit it is the last point, if any.

  Attributes:
    x: `[v]`, float64, or None.
    objective: cost'x recomputed from the data, or None.
    row_dual: `[r]`, and col_dual: `[v]`, with col_dual = cost - rows'row_dual at an exact optimum; or None.
    ray: `[r]`, Farkas multipliers of an infeasible program, or None.
    ray_bound: exact value of the safe bound with zero cost: positive proves infeasibility. None without a ray.
  """

  status: Status
  statistics: Statistics
  x: np.ndarray | None = None
  objective: float | None = None
  row_dual: np.ndarray | None = None
  col_dual: np.ndarray | None = None
  ray: np.ndarray | None = None
  ray_bound: Fraction | float | None = None

  def require_optimal(self, what: str) -> 'Solution':
    """This solution, if it is optimal; `what` names the program in the error.

    Raises:
      InfeasibleProgramError, SolverLimitError, RepairFailure: by status.
    """
    raise_unless_optimal(self.status, what, ray=self.ray, ray_bound=self.ray_bound)
    return self


class InfeasibleProgramError(InfeasibleError):
  """A program without a solution, with the proof where one was found.

  Attributes:
    ray: `[r]`, Farkas multipliers of the rows, or None.
    ray_bound: exact safe bound of the ray with zero cost; positive is a proof. None without a ray.
  """

  def __init__(self, message: str, ray: np.ndarray | None = None, ray_bound: Fraction | float | None = None):
    super().__init__(message)
    self.ray = ray
    self.ray_bound = ray_bound


def raise_unless_optimal(status: Status, what: str, *, ray: np.ndarray | None = None,
                         ray_bound: Fraction | float | None = None) -> None:
  """Turns every status but optimal into its exception; `what` names the program, as in 'The repair of layer 2'."""
  if status is Status.OPTIMAL:
    return
  if status is Status.INFEASIBLE:
    proved = ray_bound is not None and ray_bound > 0
    proof = f'proved by {np.count_nonzero(ray)} rows' if proved else 'by the word of the solver'
    raise InfeasibleProgramError(
      f'{what} has no solution ({proof}). Either (a) two constraints contradict each other, (b) the bounds on the '
      'variables are too tight, or (c) the margin is too large.', ray, ray_bound)
  limits = (Status.TIME_LIMIT, Status.ITERATION_LIMIT, Status.MEMORY_LIMIT, Status.NUMERICAL)
  error = SolverLimitError if status in limits else RepairFailure
  raise error(f'{what} was not solved: {status.value}. {status.sentence}')
