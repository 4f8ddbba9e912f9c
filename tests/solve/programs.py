"""Random programs for the tests of `jaxfix.solve`."""
import numpy as np
import scipy.sparse

from jaxfix.solve import LinearProgram, RankOneRows


def feasible_program(seed: int, *, variables: int = 8, rows: int = 12, sparse: bool = False) -> LinearProgram:
  """Boxed, with one-sided, two-sided and equality rows, feasible by construction, degenerate for every third seed."""
  rng = np.random.default_rng(seed)
  a = rng.normal(size=(rows, variables)) * (rng.random((rows, variables)) < 0.7)
  if seed % 3 == 0:
    a[rows // 2:rows // 2 + 2] = a[:2]  # repeated rows: several bases, one vertex
  x = rng.uniform(-1, 1, variables)
  value, slack = a @ x, rng.uniform(0, 1, (2, rows)) * (rng.random((2, rows)) < 0.7)
  kind = rng.integers(0, 4, rows)
  lower = np.where(kind == 1, -np.inf, value - slack[0])
  upper = np.where(kind == 0, np.inf, value + slack[1])
  equal = (kind == 3) & (np.cumsum(kind == 3) <= 2)
  lower[equal] = upper[equal] = value[equal]
  return LinearProgram(rng.normal(size=variables), scipy.sparse.csr_array(a) if sparse else a, lower, upper,
                       np.full(variables, -2.0), np.full(variables, 2.0))


def rank_one_problem(seed: int, *, points: int, classes: int = 4, d_out: int = 5, d_in: int = 6,
                     wrong: float = 0.3) -> tuple[RankOneRows, np.ndarray]:
  """Rows and right-hand sides like those of a point repair: ReLU inputs, masked outputs, some `wrong` rows violated."""
  rng = np.random.default_rng(seed)
  h = np.maximum(rng.normal(size=(points, d_in)), 0)
  tail = rng.normal(size=(points, classes, d_out)) * (rng.random((points, 1, d_out)) < 0.6)
  u = (tail[:, :1] - tail[:, 1:]).reshape(-1, d_out)
  point = np.repeat(np.arange(points), classes - 1)
  wanted = rng.normal(size=(d_out, d_in + 1)) * 0.3  # a change that meets every row, so that the problem is feasible
  rows = RankOneRows(u, h, point)
  reach = rows.matvec(np.concatenate([wanted[:, :-1].ravel(), wanted[:, -1]]))
  rhs = reach - np.abs(rng.normal(size=len(u))) * 0.5
  violated = rng.random(len(u)) < wrong
  return rows, np.where(violated, rhs, np.minimum(rhs, -rng.uniform(0, 0.2, len(u))))
