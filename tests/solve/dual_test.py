"""Safe bounds: the worked numbers of V-section 11.4, exactness, and validity for multipliers of any quality."""
import math
from fractions import Fraction

import numpy as np
from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError
from jaxfix.solve import LinearProgram, farkas_bound, safe_dual_bound, safe_dual_bound_float, solve_lp
from tests.solve.programs import feasible_program

_INF = np.inf


def _by_definition(program: LinearProgram, y: np.ndarray) -> Fraction:
  """The formula of V-section 11.4, one Fraction at a time."""
  rows = program.rows.toarray() if hasattr(program.rows, 'toarray') else program.rows
  y = [Fraction(float(v)) for v in y]
  total = Fraction(0)
  for i, multiplier in enumerate(y):
    side = program.row_lower[i] if multiplier > 0 else program.row_upper[i]
    if multiplier != 0 and np.isinf(side):
      y[i] = Fraction(0)
    elif multiplier != 0:
      total += multiplier * Fraction(float(side))
  for j in range(program.num_columns):
    r = Fraction(float(program.cost[j])) - sum(y[i] * Fraction(float(rows[i, j])) for i in range(len(y)))
    if r != 0:
      total += r * Fraction(float(program.lower[j] if r > 0 else program.upper[j]))
  return total


class SafeDualBoundTest(parameterized.TestCase):

  def test_worked_number_of_an_optimal_program(self):
    program = LinearProgram([1, 2], [[1, 1]], [1], [_INF], [0, 0], [10, 10])
    solution = solve_lp(program)
    np.testing.assert_allclose(solution.row_dual, [1.0])
    np.testing.assert_allclose(solution.col_dual, [0.0, 1.0])
    self.assertEqual(safe_dual_bound(program, np.array([1.0])), 1)
    self.assertAlmostEqual(float(safe_dual_bound(program, np.array([1.001]))), 0.991, places=12)

  def test_worked_number_of_an_infeasible_program(self):
    program = LinearProgram([5, -3], [[1, 1], [1, 1]], [-_INF, 2], [1, _INF], [0, 0], [10, 10])
    self.assertEqual(farkas_bound(program, np.array([-1.0, 1.0])), 1)

  @parameterized.product(seed=tuple(range(12)), scale=(1.0, 1e-9, 1e9))
  def test_exact_value_is_the_definition(self, seed, scale):
    program = feasible_program(seed, sparse=seed % 2 == 0)
    y = np.random.default_rng(seed).normal(size=program.num_rows) * scale
    y[::4] = 0.0
    self.assertEqual(safe_dual_bound(program, y), _by_definition(program, y))

  def test_bound_of_100_programs_is_tight_and_never_above_the_optimum(self):
    for seed in range(100):
      program = feasible_program(seed)
      solution = solve_lp(program).require_optimal(f'seed {seed}')
      bound = safe_dual_bound(program, solution.row_dual)
      below = safe_dual_bound_float(program, solution.row_dual)
      with self.subTest(seed=seed):
        # The float objective itself may be 1e-15 off the optimum of an exact vertex.
        self.assertLessEqual(bound, solution.objective + 1e-12)
        self.assertGreaterEqual(bound, solution.objective - 1e-6)
        self.assertLessEqual(below, bound)
        self.assertGreaterEqual(below, float(bound) - 1e-9)

  @parameterized.parameters(*range(20))
  def test_any_multipliers_give_a_valid_bound(self, seed):
    program = feasible_program(seed)
    optimum = solve_lp(program).objective
    for y in np.random.default_rng(seed).normal(size=(20, program.num_rows)):
      bound = safe_dual_bound(program, y)
      self.assertLessEqual(bound, optimum + 1e-9)
      self.assertLessEqual(safe_dual_bound_float(program, y), bound)

  def test_infinite_bound_of_a_used_variable_makes_the_bound_empty(self):
    program = LinearProgram([-1.0], [[1.0]], [-_INF], [1.0], [0.0], [_INF])
    self.assertEqual(safe_dual_bound(program, np.array([0.0])), -math.inf)
    self.assertEqual(safe_dual_bound_float(program, np.array([0.0])), -math.inf)
    self.assertEqual(safe_dual_bound(program, np.array([-1.0])), -1)  # reduced cost 0: the bound is not used

  def test_multiplier_of_a_missing_side_counts_as_zero(self):
    program = LinearProgram([1.0], [[1.0]], [-_INF], [5.0], [-1.0], [1.0])
    self.assertEqual(safe_dual_bound(program, np.array([3.0])), -1)

  def test_refuses(self):
    program = feasible_program(0)
    for y in (np.zeros(3), np.full(program.num_rows, np.nan)):
      with self.assertRaises(BadInputError):
        safe_dual_bound(program, y)


if __name__ == '__main__':
  absltest.main()
