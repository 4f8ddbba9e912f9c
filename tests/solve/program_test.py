"""The records: what they refuse, what they recompute, which exception a status becomes."""
import dataclasses
from fractions import Fraction

import numpy as np
import scipy.sparse
from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError, InfeasibleError, RepairFailure, SolverLimitError
from jaxfix.solve import InfeasibleProgramError, LinearProgram, Solution, Statistics, Status
from tests.solve.programs import feasible_program

_GOOD = {'cost': [1.0, 2.0], 'rows': [[1.0, 1.0]], 'row_lower': [1.0], 'row_upper': [np.inf], 'lower': [0.0, 0.0],
         'upper': [10.0, 10.0]}


class LinearProgramTest(parameterized.TestCase):

  @parameterized.named_parameters(
    ('cost_shape', {'cost': [1.0]}, 'cost must have shape'),
    ('row_shape', {'row_lower': [1.0, 1.0]}, 'row_lower must have shape'),
    ('rows_vector', {'rows': [1.0, 1.0]}, 'must be a matrix'),
    ('nan_cost', {'cost': [np.nan, 0.0]}, 'NaN at index 0'),
    ('nan_bound', {'upper': [1.0, np.nan]}, 'NaN at index 1'),
    ('nan_row', {'rows': [[np.nan, 1.0]]}, 'rows holds NaN'),
    ('nan_sparse_row', {'rows': scipy.sparse.csr_array([[np.nan, 1.0]])}, 'rows holds NaN'),
    ('infinite_cost', {'cost': [np.inf, 0.0]}, 'cost holds infinity'),
    ('crossed', {'lower': [0.0, 11.0]}, 'variable 1 has a lower bound above'),
    ('crossed_row', {'row_upper': [0.0]}, 'row 0 has a lower bound above'),
    ('infinite_lower', {'lower': [np.inf, 0.0], 'upper': [np.inf, 10.0]}, 'lower bound inf'),
    ('mask', {'integrality': [1, 0]}, 'integrality must be bool'))
  def test_refuses(self, change, message):
    with self.assertRaisesRegex(BadInputError, message):
      LinearProgram(**{**_GOOD, **change})

  def test_violation_is_that_of_the_worst_row_or_bound(self):
    program = LinearProgram(**_GOOD)
    self.assertEqual(program.max_violation(np.array([0.25, 0.25])), 0.5)
    self.assertEqual(program.max_violation(np.array([12.0, 0.0])), 2.0)
    self.assertEqual(program.max_violation(np.array([1.0, 0.0])), 0.0)
    self.assertEqual(program.max_violation(np.array([np.nan, 0.0])), np.inf)
    self.assertEqual(program.objective(np.array([1.0, 3.0])), 7.0)

  def test_sparse_and_dense_rows_agree(self):
    dense, sparse = feasible_program(4), feasible_program(4, sparse=True)
    x = np.linspace(-3, 3, dense.num_columns)
    self.assertEqual(dense.num_nonzeros, sparse.num_nonzeros)
    self.assertAlmostEqual(dense.max_violation(x), sparse.max_violation(x), places=14)

  def test_fraction_is_of_integer_variables_only(self):
    program = LinearProgram(**_GOOD, integrality=np.array([True, False]))
    self.assertEqual(program.max_fraction(np.array([1.0, 0.5])), 0.0)
    self.assertEqual(program.max_fraction(np.array([1.25, 0.5])), 0.25)


class StatusTest(parameterized.TestCase):

  @parameterized.parameters(*Status)
  def test_has_a_sentence(self, status):
    self.assertEndsWith(status.sentence, '.')

  @parameterized.parameters(
    (Status.INFEASIBLE, InfeasibleError), (Status.TIME_LIMIT, SolverLimitError), (Status.NUMERICAL, SolverLimitError),
    (Status.UNBOUNDED, RepairFailure))
  def test_becomes_an_exception_that_names_the_program(self, status, error):
    solution = Solution(status, Statistics('test', 0.0, 0, 1, 1, 1))
    with self.assertRaisesRegex(error, 'The repair of layer 2'):
      solution.require_optimal('The repair of layer 2')

  def test_infeasible_carries_ray_and_bound(self):
    solution = Solution(Status.INFEASIBLE, Statistics('test', 0.0, 0, 1, 1, 1), ray=np.array([0.0, 1.0]),
                        ray_bound=Fraction(1, 3))
    with self.assertRaisesRegex(InfeasibleProgramError, 'proved by 1 rows') as caught:
      solution.require_optimal('The repair')
    self.assertEqual(caught.exception.ray_bound, Fraction(1, 3))
    np.testing.assert_array_equal(caught.exception.ray, [0.0, 1.0])
    without = dataclasses.replace(solution, ray=None, ray_bound=None)
    with self.assertRaisesRegex(InfeasibleProgramError, 'by the word of the solver'):
      without.require_optimal('The repair')

  def test_optimal_passes_through(self):
    solution = Solution(Status.OPTIMAL, Statistics('test', 0.0, 0, 1, 1, 1))
    self.assertIs(solution.require_optimal('x'), solution)


if __name__ == '__main__':
  absltest.main()
