"""Quadratic programs: closed forms, stationarity, statuses."""
import numpy as np
import scipy.sparse
from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError
from jaxfix.solve import Status, solve_qp

_INF = np.inf


class SolveQpTest(parameterized.TestCase):

  @parameterized.parameters('clarabel', 'osqp')
  def test_projection_onto_a_box(self, solver):
    target = np.array([2.0, -0.3, -5.0])
    solution = solve_qp(np.eye(3), -target, np.eye(3), np.full(3, -1.0), np.full(3, 1.0), solver=solver)
    self.assertEqual(solution.status, Status.OPTIMAL)
    np.testing.assert_allclose(solution.x, [1.0, -0.3, -1.0], atol=1e-6)
    np.testing.assert_allclose(solution.row_dual, [-1.0, 0.0, 4.0], atol=1e-5)  # x - target = y
    self.assertAlmostEqual(solution.objective, 0.5 * (1 + 0.09 + 1) - 2.0 - 0.09 - 5.0, delta=1e-6)

  def test_multipliers_of_all_kinds_of_rows_satisfy_stationarity(self):
    rng = np.random.default_rng(0)
    root, a = rng.normal(size=(4, 4)), rng.normal(size=(6, 4))
    value, q = a @ rng.normal(size=4), rng.normal(size=4)
    lower = np.where(np.arange(6) % 3 == 1, -_INF, value)
    upper = np.where(np.arange(6) % 3 == 2, _INF, value + (np.arange(6) != 0))
    solution = solve_qp(scipy.sparse.csr_array(root @ root.T), q, a, lower, upper)
    np.testing.assert_allclose(root @ root.T @ solution.x + q, a.T @ solution.row_dual, atol=1e-6)
    self.assertLess(solution.statistics.primal_residual, 1e-7)

  def test_infeasible_and_unbounded_are_statuses(self):
    self.assertEqual(solve_qp(np.eye(1), [0.0], [[1.0], [1.0]], [1.0, -_INF], [_INF, 0.0]).status, Status.INFEASIBLE)
    self.assertEqual(solve_qp(np.zeros((1, 1)), [1.0], [[1.0]], [-_INF], [0.0]).status, Status.UNBOUNDED)

  def test_refuses(self):
    for quadratic, solver in ((np.eye(2), 'clarabel'), ([[np.nan]], 'clarabel'), (np.eye(1), 'magic')):
      with self.assertRaises(BadInputError):
        solve_qp(quadratic, [0.0], [[1.0]], [0.0], [1.0], solver=solver)
    with self.assertRaisesRegex(BadInputError, 'symmetric'):
      solve_qp([[1.0, 1.0], [0.0, 1.0]], [0.0, 0.0], np.eye(2), [0.0, 0.0], [1.0, 1.0])


if __name__ == '__main__':
  absltest.main()
