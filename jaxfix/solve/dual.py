"""Lower bounds on a linear program's optimum that hold for any multipliers (V-section 11.4).

For `min c'x, L <= A x <= U, l <= x <= h` and any y, with r = c - A'y,

  bound(y) = sum_{y_i > 0} y_i L_i + sum_{y_i < 0} y_i U_i + sum_{r_j > 0} r_j l_j + sum_{r_j < 0} r_j h_j  <=  optimum.

So a solver's float64 multipliers are enough for a proof, if the bound itself is evaluated without error. Multipliers
of a side that does not exist (L_i or U_i infinite) are set to zero first. With c = 0 a positive bound proves
infeasibility.
Source: Neumaier and Shcherbina 2004, "Safe bounds in linear and mixed-integer linear programming", section 3.
"""
import dataclasses
import math
from fractions import Fraction

import numpy as np
import scipy.sparse

from jaxfix.errors import require
from jaxfix.solve.program import LinearProgram

_UNIT = 2.0**-53  # unit roundoff of float64


def safe_dual_bound(program: LinearProgram, y: np.ndarray) -> Fraction | float:
  """The bound for the program's float64 data and y `[r]`, without rounding error.

  About 0.2 microseconds for each non-zero in a row whose multiplier is not zero.

  Returns:
    A Fraction; -inf (float) where an infinite bound of a variable makes the bound empty.
  Raises:
    BadInputError: y has the wrong shape or is not finite.
  """
  y = _usable(program, y)
  used = np.flatnonzero(y)
  rows = scipy.sparse.csr_array(program.rows[used]) if len(used) else scipy.sparse.csr_array((0, program.num_columns))
  e_dual, e_rows = _digits(y), _digits(rows.data)
  # r as integers over one power of two, the larger of the two numbers of binary digits; one row at a time, since a
  # Python integer takes five times the memory of a float.
  e_r = max(_digits(program.cost), e_dual + e_rows)
  r, dual = _integers(program.cost, e_r), _integers(y, e_dual)
  for k, i in enumerate(used):
    part = slice(rows.indptr[k], rows.indptr[k + 1])
    r[rows.indices[part]] -= _integers(rows.data[part], e_rows) * (dual[i] << (e_r - e_dual - e_rows))
  falling, rising = (r < 0).astype(bool), (r > 0).astype(bool)
  if np.isinf(program.upper[falling]).any() or np.isinf(program.lower[rising]).any():
    return -math.inf
  at = np.where(falling, program.upper, np.where(rising, program.lower, 0.0))
  side = np.where(y > 0, program.row_lower, np.where(y < 0, program.row_upper, 0.0))
  e_at, e_side = _digits(at), _digits(side)
  columns = Fraction(int((r * _integers(at, e_at)).sum()), 2**(e_r + e_at))
  return columns + Fraction(int((dual * _integers(side, e_side)).sum()), 2**(e_dual + e_side))


def safe_dual_bound_float(program: LinearProgram, y: np.ndarray) -> float:
  """As `safe_dual_bound`, in float64, lowered by a bound on the rounding error: fast, never above the exact value.

  A sum of n products errs by at most g sum|a_i b_i|, g = n u / (1 - n u) (Higham, Accuracy and Stability, chapter 3).
  """
  y = _usable(program, y)
  g = 4 * (program.num_rows + 2) * _UNIT  # four times what the formula needs, for the rounding of the bound itself
  r = program.cost - program.rows.T @ y
  error = g * (np.abs(program.cost) + abs(program.rows).T @ np.abs(y))
  terms = []
  for end in (r - error, r + error):  # min(r l, r h) is concave in r: its least value is at an end of the interval
    at = np.where(end > 0, program.lower, np.where(end < 0, program.upper, 0.0))
    terms.append(end * at)
  columns = np.minimum(*terms)
  side = y * np.where(y > 0, program.row_lower, np.where(y < 0, program.row_upper, 0.0))
  if np.isinf(columns).any():
    return -math.inf
  size = np.abs(columns).sum() + np.abs(side).sum()
  return float(columns.sum() + side.sum() - 4 * (program.num_rows + program.num_columns + 2) * _UNIT * size)


def farkas_bound(program: LinearProgram, ray: np.ndarray) -> Fraction | float:
  """`safe_dual_bound` of the program with zero cost: a positive value proves that it has no feasible point."""
  return safe_dual_bound(dataclasses.replace(program, cost=np.zeros(program.num_columns)), ray)


def _usable(program: LinearProgram, y: np.ndarray) -> np.ndarray:
  y = np.asarray(y, np.float64)
  require(y.shape == (program.num_rows,), f'y must have shape ({program.num_rows},), got {y.shape}')
  require(bool(np.isfinite(y).all()), 'the multipliers y must be finite')
  missing = ((y > 0) & np.isinf(program.row_lower)) | ((y < 0) & np.isinf(program.row_upper))
  return np.where(missing, 0.0, y)


def _digits(values: np.ndarray) -> int:
  """The least e >= 0, up to trailing zeros, for which every value times 2**e is an integer."""
  mantissa, exponent = np.frexp(values)
  return max(0, 53 - int(exponent[mantissa != 0].min(initial=53)))


def _integers(values: np.ndarray, digits: int) -> np.ndarray:
  """`values * 2**digits` exactly, as an object array of Python integers; digits >= _digits(values)."""
  mantissa, exponent = np.frexp(values)
  whole = np.ldexp(mantissa, 53).astype(np.int64)
  left = np.where(whole != 0, exponent.astype(np.int64) - 53 + digits, 0)
  return np.left_shift(whole.astype(object), left.astype(object))
