"""HiGHS against SciPy and Clarabel; every status typed; rays that prove."""
import contextlib
import dataclasses
import itertools
import os
import tempfile
from unittest import mock

import numpy as np
import scipy.optimize
from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError
from jaxfix.solve import LinearProgram, Status, farkas_bound, highs, solve_lp, solve_milp, solve_qp
from tests.solve.programs import feasible_program

_INF = np.inf


def _scipy_optimum(program: LinearProgram) -> float:
  constraint = scipy.optimize.LinearConstraint(program.rows, program.row_lower, program.row_upper)
  found = scipy.optimize.milp(program.cost, constraints=constraint,
                              bounds=scipy.optimize.Bounds(program.lower, program.upper))
  assert found.status == 0, found.message
  return found.fun


def _infeasible(seed: int) -> LinearProgram:
  """A feasible program and one more row that contradicts a combination of two of its rows."""
  program = feasible_program(seed)
  sum_of_rows = program.rows[0] - program.rows[1]
  reach = 2.0 * np.abs(sum_of_rows).sum()
  return dataclasses.replace(
    program, rows=np.vstack([program.rows, sum_of_rows, sum_of_rows]),
    row_lower=np.concatenate([program.row_lower, [-_INF, 0.5 * reach]]),
    row_upper=np.concatenate([program.row_upper, [0.25 * reach, _INF]]))


class SolveLpTest(parameterized.TestCase):

  @parameterized.product(seed=tuple(range(6)), solver=('auto', 'ipm', 'simplex'))
  def test_optimum_is_scipys(self, seed, solver):
    program = feasible_program(seed, variables=15, rows=20, sparse=seed % 2 == 0)
    solution = solve_lp(program, solver=solver)
    self.assertEqual(solution.status, Status.OPTIMAL)
    self.assertAlmostEqual(solution.objective, _scipy_optimum(program), delta=1e-7)
    self.assertLess(solution.statistics.primal_residual, 1e-8)
    reduced = program.cost - program.rows.T @ solution.row_dual
    np.testing.assert_allclose(solution.col_dual, reduced, atol=1e-7)

  @parameterized.parameters(0, 1, 2)
  def test_optimum_is_clarabels(self, seed):
    program = feasible_program(seed)
    boxed = np.vstack([program.rows, np.eye(program.num_columns)])
    theirs = solve_qp(np.zeros((program.num_columns,) * 2), program.cost, boxed,
                      np.concatenate([program.row_lower, program.lower]),
                      np.concatenate([program.row_upper, program.upper]))
    self.assertEqual(theirs.statistics.solver, 'clarabel')
    self.assertAlmostEqual(solve_lp(program).objective, theirs.objective, delta=1e-6)

  @parameterized.product(seed=tuple(range(4)), solver=('ipm', 'simplex'))
  def test_infeasible_comes_with_a_proof(self, seed, solver):
    program = _infeasible(seed)
    solution = solve_lp(program, solver=solver)
    self.assertEqual(solution.status, Status.INFEASIBLE)
    self.assertGreater(solution.ray_bound, 0)
    self.assertEqual(solution.ray_bound, farkas_bound(program, solution.ray))
    self.assertIsNone(solution.x)

  @parameterized.parameters(highs._simplex_ray, highs._elastic_ray)
  def test_both_sources_of_rays_prove(self, source):
    program = _infeasible(7)
    self.assertGreater(farkas_bound(program, source(program, 10.0)), 0)

  @parameterized.product(solver=('ipm', 'simplex'), factor=(1.0, -1.0))
  def test_unbounded_is_told_from_infeasible(self, solver, factor):
    # min -x1, x1 <= x2 + 1, factor * x2 >= 1, x >= 0
    program = LinearProgram([-1.0, 0.0], [[1.0, -1.0], [0.0, factor]], [-_INF, 1.0], [1.0, _INF], [0.0] * 2, [_INF] * 2)
    self.assertEqual(solve_lp(program, solver=solver).status, Status.UNBOUNDED if factor > 0 else Status.INFEASIBLE)

  def test_no_rows(self):
    solution = solve_lp(LinearProgram([1.0, -1.0], np.zeros((0, 2)), [], [], [-2.0, 0.0], [5.0, 3.0]))
    np.testing.assert_array_equal(solution.x, [-2.0, 3.0])

  @parameterized.parameters('ipm', 'simplex')
  def test_time_limit_is_a_status(self, solver):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(300, 300))
    program = LinearProgram(rng.normal(size=300), a, a @ rng.uniform(-1, 1, 300) - 0.1, np.full(300, _INF),
                            np.full(300, -1.0), np.full(300, 1.0))
    solution = solve_lp(program, solver=solver, time_limit_s=1e-3)
    self.assertEqual(solution.status, Status.TIME_LIMIT)

  def test_large_programs_go_to_interior_point(self):
    program = feasible_program(1)
    self.assertEqual(solve_lp(program).statistics.solver, 'highs-simplex')
    large = dataclasses.replace(
      program, rows=np.tile(program.rows, (highs.SIMPLEX_UP_TO // program.num_nonzeros + 1, 1)),
      row_lower=np.tile(program.row_lower, highs.SIMPLEX_UP_TO // program.num_nonzeros + 1),
      row_upper=np.tile(program.row_upper, highs.SIMPLEX_UP_TO // program.num_nonzeros + 1))
    solution = solve_lp(large)
    self.assertEqual(solution.statistics.solver, 'highs-ipm')
    self.assertAlmostEqual(solution.objective, solve_lp(program).objective, delta=1e-7)

  def test_a_claimed_optimum_that_misses_a_row_is_numerical(self):
    program = feasible_program(0)
    with mock.patch.object(LinearProgram, 'max_violation', return_value=1.5e-7):
      solution = solve_lp(program)
    self.assertEqual(solution.status, Status.NUMERICAL)
    self.assertEqual(solution.statistics.primal_residual, 1.5e-7)
    self.assertEqual(solution.statistics.message, 'Optimal')

  def test_small_entries_are_kept(self):
    program = LinearProgram([1.0], [[1e-10]], [1e-6], [_INF], [0.0], [1e6])
    solution = solve_lp(program, feasibility_tolerance=1e-10)
    self.assertAlmostEqual(solution.x[0], 1e4, delta=2.0)

  def test_refuses(self):
    program = feasible_program(0)
    mixed = dataclasses.replace(program, integrality=np.ones(program.num_columns, bool))
    for arguments in ({'solver': 'magic'}, {'time_limit_s': 0.0}, {'feasibility_tolerance': 1e-12}):
      with self.assertRaises(BadInputError):
        solve_lp(program, **arguments)
    with self.assertRaisesRegex(BadInputError, 'solve_milp'):
      solve_lp(mixed)

  def test_prints_nothing(self):
    with tempfile.TemporaryFile() as file:
      kept = os.dup(1)
      os.dup2(file.fileno(), 1)
      try:
        with contextlib.redirect_stdout(None):
          solve_lp(feasible_program(0), solver='ipm')
      finally:
        os.dup2(kept, 1)
        os.close(kept)
      file.seek(0)
      self.assertEqual(file.read(), b'')


class SolveMilpTest(parameterized.TestCase):

  @parameterized.parameters(*range(4))
  def test_optimum_is_that_of_enumeration(self, seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(3, 5))
    upper = a @ np.ones(5) + rng.uniform(0, 1, 3)  # (1, ..., 1) is feasible
    program = LinearProgram(rng.normal(size=5), a, np.full(3, -_INF), upper, np.zeros(5), np.full(5, 2.0),
                            np.ones(5, bool))
    points = np.array(list(itertools.product(range(3), repeat=5)), float)
    best = (points @ program.cost)[(points @ a.T <= upper + 1e-12).all(1)].min()
    solution = solve_milp(program)
    self.assertEqual(solution.status, Status.OPTIMAL)
    self.assertAlmostEqual(solution.objective, best, delta=1e-7)
    self.assertAlmostEqual(solution.statistics.dual_bound, best, delta=1e-6)
    self.assertLess(solution.statistics.integrality_residual, 1e-7)
    self.assertIsNone(solution.row_dual)

  def test_infeasible_only_because_of_integrality(self):
    program = LinearProgram([1.0, 1.0], [[2.0, 2.0]], [1.0], [1.0], [0.0, 0.0], [5.0, 5.0])
    self.assertEqual(solve_milp(program).status, Status.OPTIMAL)
    whole = dataclasses.replace(program, integrality=np.array([True, True]))
    self.assertEqual(solve_milp(whole).status, Status.INFEASIBLE)

  def test_unbounded_is_told_from_infeasible(self):
    program = LinearProgram([-2.0, -1.0], [[1.0, 2.0], [0.0, 1.0]], [-_INF, 2.0], [_INF] * 2, [0.0] * 2, [_INF] * 2,
                            np.array([True, True]))
    self.assertEqual(solve_milp(program).status, Status.UNBOUNDED)

  def test_some_variables_integer(self):
    program = LinearProgram([-1.0, -1.0], [[2.0, 2.0]], [-_INF], [3.0], [0.0, 0.0], [1.0, 1.0], np.array([True, False]))
    solution = solve_milp(program)
    self.assertAlmostEqual(solution.objective, -1.5, delta=1e-8)
    self.assertLess(solution.statistics.integrality_residual, 1e-9)


if __name__ == '__main__':
  absltest.main()
