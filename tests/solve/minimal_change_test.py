"""Minimal change: worked numbers, independent formulations, lazy rows, soft modes, proofs."""
import dataclasses
import itertools
from unittest import mock

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError, InfeasibleError, SolverLimitError
from jaxfix.solve import (
  LinearProgram,
  RankOneRows,
  Soft,
  Status,
  farkas_bound,
  minimal_change,
  minimality_program,
  safe_dual_bound,
)
from tests.solve.programs import rank_one_problem

_MODULE = 'jaxfix.solve.minimal_change'
_NORMS = ('l1', 'linf', 'l1n+linf')


@dataclasses.dataclass(frozen=True)
class _Oracle:
  """A row oracle of a user's own making: nothing but the three members of the protocol."""

  matrix: np.ndarray

  @property
  def shape(self):
    return self.matrix.shape

  def matvec(self, delta):
    return self.matrix @ delta

  def rows(self, indices):
    return self.matrix[indices]


def _dense(rows: RankOneRows) -> np.ndarray:
  return np.asarray(scipy.sparse.csr_array(rows.rows(np.arange(rows.shape[0]))).toarray())


def _scipy_optimum(a, e, *, norm, lower, upper, c=None, norm_weights=(1.0, 1.0), soft=None) -> float:
  """The form of the public codes: free d, a_i >= |c_i d_i|, t >= a_i, slacks; solved by SciPy."""
  n, p = a.shape
  c = np.ones(p) if c is None else c
  k = 0 if soft is None else 1 if soft.mode == 'linf' else n
  w1 = {'l1': norm_weights[0], 'linf': 0.0, 'l1n+linf': norm_weights[0] / p}[norm]
  winf = 0.0 if norm == 'l1' else norm_weights[1]
  cost = np.concatenate([np.zeros(p), np.full(p, w1), [winf], np.full(k, soft.weight / k if soft else 0.0)])
  lift = np.zeros((n, k)) if soft is None else np.ones((n, 1)) if soft.mode == 'linf' else np.eye(n)
  eye, zero = np.eye(p), np.zeros((p, k))
  upper_rows = np.vstack([
    np.hstack([-a, np.zeros((n, p)), np.zeros((n, 1)), -lift]),
    np.hstack([np.diag(c), -eye, np.zeros((p, 1)), zero]),
    np.hstack([-np.diag(c), -eye, np.zeros((p, 1)), zero]),
    np.hstack([np.zeros((p, p)), eye, -np.ones((p, 1)), zero])])
  bounds = [*zip(lower, upper, strict=True), *[(0, None)] * (p + 1)]
  bounds += [(soft.lower, None if np.isinf(soft.upper) else soft.upper)] * k if soft else []
  found = scipy.optimize.linprog(cost, upper_rows, np.concatenate([-e, np.zeros(3 * p)]), bounds=bounds)
  assert found.status == 0, found.message
  return found.fun


class WorkedNumbersTest(parameterized.TestCase):
  """PRDNN, section 8: repairs of the toy network N1, as rows."""

  @parameterized.parameters(('l1', 1.2), ('linf', 0.6), ('l1n+linf', 0.8))
  def test_1_two_points_first_layer(self, norm, optimum):
    rows, rhs = [], []
    for x, y in ((-1.5, 0.25), (-0.5, -0.25)):
      j = np.array([0.5 * x, 0, 0, 0.5, 0, 0])
      rows += [j, -j]
      rhs += [-0.1 - y, y - 0.1]
    delta, change = minimal_change(np.array(rows), np.array(rhs), norm=norm)
    self.assertAlmostEqual(change.objective, optimum, delta=1e-7)
    np.testing.assert_allclose(delta[[0, 3]], [0.6, 0.6], atol=1e-6)
    self.assertEqual(change.num_removed, 4)

  @parameterized.parameters(('l1', 0.6), ('linf', 0.3), ('l1n+linf', 0.45))
  def test_2_two_points_last_layer(self, norm, optimum):
    rows, rhs = [], []
    for x, y in ((-1.5, 0.25), (-0.5, -0.25)):
      j = np.array([-x, 0, 0, 1])
      rows += [j, -j]
      rhs += [-0.1 - y, y - 0.1]
    delta, change = minimal_change(np.array(rows), np.array(rhs), norm=norm)
    self.assertAlmostEqual(change.objective, optimum, delta=1e-7)
    np.testing.assert_allclose(delta, [-0.3, 0, 0, 0.3], atol=1e-6)

  @parameterized.parameters(('l1', 0.3), ('linf', 0.3), ('l1n+linf', 0.375))
  def test_3_segment_last_layer(self, norm, optimum):
    rows = np.array([[2, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 1]])
    _, change = minimal_change(rows, np.array([-0.7, 0.3, 0.3, -0.7]), norm=norm)
    self.assertAlmostEqual(change.objective, optimum, delta=1e-7)

  @parameterized.parameters(('l1', 0.9), ('linf', 0.6), ('l1n+linf', 0.75))
  def test_4_segment_first_layer(self, norm, optimum):
    rows = np.array([[-1, 0, 0, 0.5, 0, 0], [0, 0, 0, 0.5, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 2, 0, 0, 1]])
    _, change = minimal_change(rows, np.array([-0.7, 0.3, 0.3, -0.7]), norm=norm)
    self.assertAlmostEqual(change.objective, optimum, delta=1e-7)

  def test_5_a_row_without_parameters_proves_infeasibility(self):
    for rows in (np.array([[0.0, 0.0], [1.0, 0.0]]), np.zeros((2, 2))):
      with self.assertRaises(InfeasibleError) as caught:
        minimal_change(rows, np.array([0.3, 0.1]))
      self.assertGreater(caught.exception.ray_bound, 0)

  def test_6_nothing_to_do_is_exactly_zero(self):
    delta, change = minimal_change(np.ones((3, 4)), np.array([-1.0, 0.0, -0.5]))
    np.testing.assert_array_equal(delta, np.zeros(4))
    self.assertEqual((change.objective, change.lower_bound, change.rounds, change.solver), (0.0, 0.0, 0, 'none'))


class OptimumTest(parameterized.TestCase):

  @parameterized.product(norm=_NORMS, seed=(0, 1, 2))
  def test_is_that_of_an_independent_formulation(self, norm, seed):
    rng = np.random.default_rng(seed)
    rows, rhs = rank_one_problem(seed, points=12)
    p = rows.shape[1]
    c, lower, upper = rng.uniform(0.5, 2, p), -rng.uniform(0, 2, p), rng.uniform(1, 2, p)
    lower[:3] = upper[3:5] = 0.0  # one-sided
    delta, change = minimal_change(rows, rhs, norm=norm, weights=c, bounds=(lower, upper), norm_weights=(1.5, 0.5))
    optimum = _scipy_optimum(_dense(rows), rhs, norm=norm, lower=lower, upper=upper, c=c, norm_weights=(1.5, 0.5))
    self.assertAlmostEqual(change.objective, optimum, delta=1e-7 * max(1.0, optimum))
    self.assertTrue(((lower <= delta) & (delta <= upper)).all())
    self.assertLess(change.max_violation, 1e-8)
    size = c * np.abs(delta)
    w1, winf = {'l1': (1.5, 0.0), 'linf': (0.0, 0.5), 'l1n+linf': (1.5 / p, 0.5)}[norm]
    self.assertAlmostEqual(change.objective, w1 * size.sum() + winf * size.max(), places=12)

  @parameterized.parameters(*_NORMS)
  def test_no_point_of_a_grid_is_cheaper(self, norm):
    a, e = np.array([[1.0, 0.5], [-0.3, 1.0], [0.2, -1.0]]), np.array([0.4, 0.1, -0.6])
    grid = np.array(list(itertools.product(np.linspace(-1, 1, 201), repeat=2)))
    feasible = grid[(grid @ a.T >= e).all(1)]
    size = np.abs(feasible)
    price = {'l1': size.sum(1), 'linf': size.max(1), 'l1n+linf': size.mean(1) + size.max(1)}[norm]
    _, change = minimal_change(a, e, norm=norm, bounds=1.0)
    self.assertLessEqual(change.objective, price.min() + 1e-9)
    self.assertGreaterEqual(change.objective, price.min() - 0.03)  # three steps of the grid

  @parameterized.product(norm=_NORMS, solver=('ipm', 'simplex'))
  def test_is_that_of_highs(self, norm, solver):
    rows, rhs = rank_one_problem(3, points=20)
    _, least = minimal_change(rows, rhs, norm='linf')
    bounds = (-1.02 * least.objective, 5.0)  # tight below, loose above
    delta, ours = minimal_change(rows, rhs, norm=norm, bounds=bounds)
    _, theirs = minimal_change(rows, rhs, norm=norm, bounds=bounds, solver=solver)
    self.assertLess(delta.min(), 0.95 * bounds[0])
    self.assertEqual((ours.solver, theirs.solver), ('interior', f'highs-{solver}'))
    self.assertAlmostEqual(ours.objective, theirs.objective, delta=1e-7)
    self.assertLess(abs(theirs.gap), 1e-6)

  @parameterized.product(mode=('linf', 'l1'), limits=((0.0, np.inf), (-0.05, np.inf), (-2.0, 0.0), (-0.2, 0.3)))
  def test_soft_is_that_of_an_independent_formulation(self, mode, limits):
    rows, rhs = rank_one_problem(4, points=10)
    bounds = np.full(rows.shape[1], 1.0)
    soft = Soft(mode, 0.3, *limits)
    delta, change = minimal_change(rows, rhs, bounds=1.0, soft=soft)
    optimum = _scipy_optimum(_dense(rows), rhs, norm='l1n+linf', lower=-bounds, upper=bounds, soft=soft)
    self.assertAlmostEqual(change.objective, optimum, delta=1e-7)
    self.assertEqual(change.slack.shape, (1,) if mode == 'linf' else (30,))
    self.assertGreaterEqual((rows.matvec(delta) + change.slack - rhs).min(), -1e-8)

  @parameterized.parameters('linf', 'l1')
  def test_soft_makes_a_contradiction_feasible(self, mode):
    a, e = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), np.array([0.5, 0.5, -1.0])
    _, change = minimal_change(a, e, soft=Soft(mode, 10, 0))  # Python integers: the slack must stay a float
    np.testing.assert_allclose(change.slack, {'linf': [0.5], 'l1': [0.5, 0.5, 0.0]}[mode], atol=1e-7)

  def test_unhelpful_parameters_leave_it_to_the_slack(self):
    _, change = minimal_change(np.zeros((2, 3)), np.array([0.5, -1.0]), soft=Soft('l1', 1.0, 0.0))
    np.testing.assert_array_equal(change.slack, [0.5, 0.0])
    self.assertEqual(change.objective, 0.25)

  @parameterized.parameters(1e-3, 1.0, 1e3)
  def test_scales_with_the_problem(self, scale):
    rows, rhs = rank_one_problem(5, points=15)
    _, one = minimal_change(rows, rhs, bounds=2.0)
    _, other = minimal_change(rows, rhs * scale, bounds=2.0 * scale)
    self.assertAlmostEqual(other.objective / scale, one.objective, delta=2e-6 * max(1.0, 1 / scale) * one.objective)


class LazyTest(parameterized.TestCase):

  @parameterized.parameters(*_NORMS)
  def test_equals_all_rows_on_200_points(self, norm):
    rows, rhs = rank_one_problem(6, points=200, classes=3, wrong=0.05)
    _, full = minimal_change(rows, rhs, norm=norm, lazy=False)
    self.assertEqual((full.rounds, full.num_active), (1, 400))
    for least_satisfied in (0, 1):
      delta, lazy = minimal_change(rows, rhs, norm=norm, least_satisfied=least_satisfied)
      self.assertAlmostEqual(lazy.objective, full.objective, delta=1e-7)
      self.assertGreaterEqual((rows.matvec(delta) - rhs).min(), -1e-8)
      self.assertGreater(lazy.rounds, 1)
      self.assertLess(lazy.num_active, 400)

  @parameterized.parameters(Soft('linf', 0.1, -0.1, 1.0), Soft('l1', 1.0, -0.05))
  def test_soft_equals_all_rows(self, soft):
    rows, rhs = rank_one_problem(6, points=100, wrong=0.05)
    _, full = minimal_change(rows, rhs, soft=soft, lazy=False)
    _, lazy = minimal_change(rows, rhs, soft=soft)
    self.assertAlmostEqual(lazy.objective, full.objective, delta=1e-7)
    self.assertLessEqual(lazy.lower_bound, lazy.objective + 1e-9)
    self.assertLess(lazy.num_active, 300)

  def test_gives_up_and_takes_all_rows(self):
    rows, rhs = rank_one_problem(6, points=200, wrong=0.05)
    with mock.patch(f'{_MODULE}._MAX_ROUNDS', 1):
      _, change = minimal_change(rows, rhs)
    self.assertEqual((change.rounds, change.num_active), (2, 600))

  def test_first_rows_are_the_violated_and_the_nearest_of_each_group(self):
    from jaxfix.solve.minimal_change import _first_rows
    missing = np.array([0.5, -0.1, -0.3, -0.2, -0.9, -0.8, 0.1])
    groups = np.array([0, 0, 0, 0, 1, 1, 2])
    np.testing.assert_array_equal(_first_rows(missing, groups, 0), [0, 6])
    np.testing.assert_array_equal(_first_rows(missing, groups, 1), [0, 1, 5, 6])
    np.testing.assert_array_equal(_first_rows(missing, groups, 2), [0, 1, 3, 4, 5, 6])


class RowsTest(parameterized.TestCase):

  def test_every_kind_of_rows_gives_the_same_change(self):
    rows, rhs = rank_one_problem(7, points=30)
    matrix = _dense(rows)
    expected, _ = minimal_change(rows, rhs)
    for kind in (matrix, scipy.sparse.csr_array(matrix), scipy.sparse.coo_array(matrix), _Oracle(matrix)):
      delta, _ = minimal_change(kind, rhs)
      np.testing.assert_allclose(delta, expected, atol=1e-6)

  def test_an_oracle_is_read_in_blocks(self):
    rows, rhs = rank_one_problem(7, points=30)
    expected, _ = minimal_change(rows, rhs)
    with mock.patch(f'{_MODULE}._BLOCK', 7 * rows.shape[1]):
      delta, _ = minimal_change(_Oracle(_dense(rows)), rhs)
    np.testing.assert_allclose(delta, expected, atol=1e-6)

  def test_masked_parameters_do_not_change(self):
    rows, rhs = rank_one_problem(8, points=10)
    free = np.random.default_rng(0).random(rows.shape[1]) < 0.8
    delta, change = minimal_change(rows, rhs, bounds=(-3.0 * free, 3.0 * free))
    np.testing.assert_array_equal(delta[~free], 0.0)
    self.assertGreaterEqual(change.num_removed, (~free).sum())
    few, _ = minimal_change(_dense(rows)[:, free], rhs, norm_weights=(free.mean(), 1.0))  # the mean is over all p
    np.testing.assert_allclose(delta[free], few, atol=1e-6)


class EvidenceTest(parameterized.TestCase):

  @parameterized.product(norm=_NORMS, soft=(None, Soft('linf', 0.5, 0.0), Soft('l1', 0.5, -0.05)))
  def test_exact_bound_confirms_minimality(self, norm, soft):
    rows, rhs = rank_one_problem(9, points=25)
    _, change = minimal_change(rows, rhs, norm=norm, soft=soft)
    bound = safe_dual_bound(*minimality_program(rows, rhs, norm=norm, soft=soft, change=change))
    self.assertLessEqual(bound, change.objective + 1e-12)
    self.assertGreaterEqual(bound, change.objective - 1e-6)
    self.assertAlmostEqual(float(bound), change.lower_bound, delta=1e-6)

  @parameterized.parameters('interior', 'ipm', 'simplex')
  def test_infeasible_carries_a_proof(self, solver):
    rows, rhs = rank_one_problem(10, points=20)
    _, least = minimal_change(rows, rhs, norm='linf')
    bounds = 0.8 * least.objective
    with self.assertRaisesRegex(InfeasibleError, 'proved by') as caught:
      minimal_change(rows, rhs, bounds=bounds, solver=solver)
    ray, p = caught.exception.ray, rows.shape[1]
    self.assertEqual(ray.shape, rhs.shape)
    program = LinearProgram(np.zeros(p), _dense(rows), rhs, np.full(len(rhs), np.inf), np.full(p, -bounds),
                            np.full(p, bounds))
    self.assertGreater(caught.exception.ray_bound, 0)
    self.assertAlmostEqual(float(farkas_bound(program, ray)), float(caught.exception.ray_bound), places=9)

  def test_limited_slack_can_be_infeasible_too(self):
    a, e = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([1.0, 1.0])
    with self.assertRaises(InfeasibleError) as caught:
      minimal_change(a, e, soft=Soft('l1', 1.0, 0.0, 0.5))
    self.assertGreater(caught.exception.ray_bound, 0)

  @parameterized.parameters('interior', 'ipm', 'simplex')
  def test_a_proof_is_about_the_rows_as_given(self, solver):
    rows, rhs = rank_one_problem(10, points=20)
    factor = 10.0**np.random.default_rng(0).uniform(0, 4, len(rhs))
    _, least = minimal_change(rows, rhs, norm='linf')
    with self.assertRaisesRegex(InfeasibleError, 'proved by'):
      minimal_change(_dense(rows) * factor[:, None], rhs * factor, bounds=0.8 * least.objective, solver=solver)

  @parameterized.parameters('interior', 'ipm', 'simplex')
  def test_time_limit_is_typed(self, solver):
    rows, rhs = rank_one_problem(11, points=200, d_out=20, d_in=40)
    with self.assertRaisesRegex(SolverLimitError, 'time_limit'):
      minimal_change(rows, rhs, lazy=False, time_limit_s=1e-3, solver=solver)

  def test_lost_accuracy_goes_to_highs(self):
    rows, rhs = rank_one_problem(12, points=10)
    _, expected = minimal_change(rows, rhs)
    from jaxfix.solve import interior
    lost = lambda *a, **k: dataclasses.replace(interior.solve_norm_program(*a, **k), status=Status.NUMERICAL)
    with mock.patch(f'{_MODULE}.solve_norm_program', lost):
      _, change = minimal_change(rows, rhs)
      self.assertEqual(change.solver, 'highs-ipm')
      self.assertAlmostEqual(change.objective, expected.objective, delta=1e-7)
      with self.assertRaises(SolverLimitError):
        minimal_change(rows, rhs, solver='interior')

  @parameterized.named_parameters(
    ('nan_rows', {'rows': np.array([[np.nan, 1.0]])}, 'NaN'), ('nan_rhs', {'rhs': np.array([np.nan])}, 'NaN'),
    ('rhs_shape', {'rhs': np.zeros(2)}, 'rhs must have shape'), ('bounds', {'bounds': np.inf}, 'finite'),
    ('bounds_exclude_0', {'bounds': (0.5, 1.0)}, 'contain 0'),
    ('bounds_shape', {'bounds': (np.zeros(3), 1.0)}, 'a bound must be'),
    ('norm', {'norm': 'l2'}, 'norm must be'), ('weights', {'weights': np.zeros(2)}, 'positive'),
    ('norm_weights', {'norm_weights': (0.0, 0.0)}, 'prices nothing'), ('solver', {'solver': 'magic'}, 'Unknown solver'),
    ('groups', {'groups': np.zeros(4, int)}, 'groups must have'), ('time', {'time_limit_s': 0.0}, 'time_limit_s'))
  def test_refuses(self, change, message):
    arguments = {'rows': np.ones((1, 2)), 'rhs': np.ones(1), **change}
    with self.assertRaisesRegex(BadInputError, message):
      minimal_change(**arguments)

  @parameterized.parameters(
    ('l2', 1.0, 0.0, 1.0), ('l1', 0.0, 0.0, 1.0), ('l1', 1.0, 1.0, 1.0), ('l1', 1.0, -np.inf, 1.0))
  def test_soft_refuses(self, *arguments):
    with self.assertRaises(BadInputError):
      Soft(*arguments)


@pytest.mark.slow
class LargeTest(absltest.TestCase):

  def test_a_layer_of_lenet(self):
    # 144 x 120 parameters and 100 points of 10 classes: HiGHS does not finish this in four minutes.
    rows, rhs = rank_one_problem(0, points=100, classes=10, d_out=120, d_in=144)
    self.assertEqual(rows.shape, (900, 17_400))
    _, change = minimal_change(rows, rhs, lazy=False)
    self.assertLess(change.gap, 1e-8 * change.objective)
    self.assertLess(change.max_violation, 1e-8)
    self.assertLess(change.seconds, 120)


if __name__ == '__main__':
  absltest.main()
