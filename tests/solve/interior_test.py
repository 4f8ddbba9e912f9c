"""The structured interior point: its bounds by definition, its steps where rounding matters."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix.solve import Status
from jaxfix.solve.interior import NormProgram, Slack, solve_norm_program
from jaxfix.solve.rows import RankOneRows, as_rows
from tests.solve.programs import rank_one_problem


def _program(seed: int, *, slack: str | None = None) -> NormProgram:
  rng = np.random.default_rng(seed)
  m, n = 6, 4
  soft = None
  if slack is not None:
    soft = Slack(rng.uniform(0.5, 2, m), slack == 'shared', cost=0.7, lower=-0.1, upper=0.8)
  return NormProgram(as_rows(rng.normal(size=(m, n))), rng.normal(size=m), -rng.uniform(0.1, 1, n),
                     rng.uniform(0.1, 1, n), l1_cost=0.3, cap_cost=1.2, slack=soft)


def _repair(rows: RankOneRows, rhs: np.ndarray, cap_cost: float) -> NormProgram:
  n = rows.shape[1]
  return NormProgram(rows.restrict(np.arange(n), np.ones(n)), rhs, np.full(n, -3.0), np.full(n, 3.0), 1 / n, cap_cost)


def _extremes(lower: float, upper: float) -> np.ndarray:
  return np.array([lower, 0.0, upper])


class BoundsTest(parameterized.TestCase):

  @parameterized.product(seed=(0, 1, 2, 3), slack=(None, 'shared', 'own'))
  def test_dual_bound_is_the_minimum_of_the_lagrangian(self, seed, slack):
    program, rng = _program(seed, slack=slack), np.random.default_rng(seed + 100)
    m, n = program.rows.shape
    y, z = rng.uniform(0, 1, m), rng.uniform(0, 1, n)
    gradient = program.rows.rmatvec(y)
    # Piecewise linear in each d_j and s_k: the least value is at 0 or at a bound.
    expected = program.rhs @ y
    for j in range(n):
      d = _extremes(program.lower[j], program.upper[j])
      expected += min((program.l1_cost + z[j]) * np.abs(d) - gradient[j] * d)
    if program.slack is not None:
      prices = program.slack.coefficient * y
      for price in ([prices.sum()] if program.slack.shared else prices):
        expected += min((program.slack.cost - price) * _extremes(-0.1, 0.8)[[0, 2]])
    self.assertAlmostEqual(program.dual_bound(y, z, gradient), expected, places=12)

  @parameterized.product(seed=(0, 1, 2, 3), slack=(None, 'shared', 'own'))
  def test_farkas_bound_is_what_the_rows_lack_at_best(self, seed, slack):
    program, rng = _program(seed, slack=slack), np.random.default_rng(seed + 100)
    m, n = program.rows.shape
    y = rng.uniform(0, 1, m)
    gradient = program.rows.rmatvec(y)
    best = sum(max(gradient[j] * _extremes(program.lower[j], program.upper[j])) for j in range(n))
    help_of_slack = 0.0 if program.slack is None else 0.8 * program.slack.coefficient @ y
    self.assertAlmostEqual(program.farkas_bound(y, gradient), program.rhs @ y - best - help_of_slack, places=12)

  def test_best_slack_is_the_least_that_is_enough(self):
    for slack in ('shared', 'own'):
      program = _program(5, slack=slack)
      values = program.rhs - np.array([-1.0, 0.0, 0.1, 0.2, 0.3, 2.0])
      chosen = program.best_slack(values)
      need = np.clip((program.rhs - values) / program.slack.coefficient, -0.1, 0.8)
      np.testing.assert_allclose(chosen, [need.max()] if slack == 'shared' else need)
      self.assertAlmostEqual(program.violation(values, chosen), 2.0 - 0.8 * program.slack.coefficient[5])


class SolveTest(parameterized.TestCase):

  @parameterized.parameters(0.0, 1.0)
  def test_reaches_its_tolerances(self, cap_cost):
    # Large enough to fail without the refinement of the row equation.
    rows, rhs = rank_one_problem(0, points=60, classes=10, d_out=20, d_in=40)
    found = solve_norm_program(_repair(rows, rhs, cap_cost))
    self.assertEqual(found.status, Status.OPTIMAL)
    self.assertLessEqual(found.violation, 1e-9)
    self.assertLessEqual(abs(found.objective - found.lower_bound), 1e-9 * found.objective)
    self.assertAlmostEqual(found.cap_dual.sum(), cap_cost, places=12)
    self.assertGreaterEqual(found.row_dual.min(), 0.0)

  def test_iteration_limit_is_a_status(self):
    rows, rhs = rank_one_problem(1, points=10)
    self.assertEqual(solve_norm_program(_repair(rows, rhs, 1.0), max_iterations=3).status, Status.ITERATION_LIMIT)


if __name__ == '__main__':
  absltest.main()
