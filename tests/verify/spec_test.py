"""Sets of inputs and conditions on outputs, by hand and against brute force."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError
from jaxfix.verify import Box, Clause, HPolytope, Points, Property, VPolytope, avoids, wins
from jaxfix.verify.spec import check_sizes


class InputSetTest(parameterized.TestCase):

  def test_corners_of_a_box_are_those_of_its_free_dimensions(self):
    box = Box([0., 5., -1.], [1., 5., 2.])
    got = {tuple(v) for v in box.vertices().vertices.tolist()}
    self.assertEqual(got, {(0., 5., -1.), (1., 5., -1.), (0., 5., 2.), (1., 5., 2.)})
    self.assertTrue(box.contains(box.vertices().vertices).all())
    np.testing.assert_array_equal(box.contains(np.array([[.5, 5., 0.], [.5, 5.1, 0.]])), [True, False])

  def test_too_many_corners_are_refused(self):
    with self.assertRaisesRegex(BadInputError, '17 free dimensions'):
      Box(np.zeros(17), np.ones(17)).vertices()

  def test_empty_sets(self):
    self.assertTrue(Box([0., 1.], [1., 0.]).is_empty)
    self.assertFalse(Box([0., 1.], [1., 1.]).is_empty)
    self.assertTrue(Points(np.zeros((0, 3))).is_empty)
    self.assertTrue(VPolytope(np.zeros((0, 3))).is_empty)
    box = Box([0., 0.], [1., 1.])
    self.assertFalse(HPolytope([[1., 1.]], [0.], box).is_empty)     # a corner is left
    self.assertTrue(HPolytope([[1., 1.]], [-.1], box).is_empty)
    self.assertTrue(HPolytope([[1., 1.]], [9.], Box([0., 1.], [1., 0.])).is_empty)

  @parameterized.parameters(
    (lambda: Box([0.], [1., 2.]), 'lower and 2 upper'), (lambda: Box([np.nan], [1.]), 'NaN'),
    (lambda: Box([0.], [np.inf]), 'infinity'), (lambda: Points([1., 2.]), 'two axes'),
    (lambda: HPolytope([[1., 2.]], [0.], Box([0.], [1.])), 'entries'),
    (lambda: HPolytope([[1.]], [0., 1.], Box([0.], [1.])), 'right-hand'),
    (lambda: Clause([[1.]], [np.nan]), 'NaN'), (lambda: wins(3, 3), 'not one of'), (lambda: wins(0, 3, -1.), 'margin'))
  def test_malformed_parts_are_refused(self, make, words):
    with self.assertRaisesRegex(BadInputError, words):
      make()

  def test_arrays_are_copies_that_nobody_can_change(self):
    lower = np.zeros(2)
    box = Box(lower, np.ones(2))
    lower[0] = 7
    self.assertEqual(box.lower[0], 0)
    with self.assertRaises(ValueError):
      box.lower[0] = 7


class ConditionTest(parameterized.TestCase):

  @parameterized.product(smallest=(False, True), margin=(0., .5))
  def test_wins_against_brute_force(self, smallest, margin):
    y = np.random.default_rng(0).normal(size=(500, 4)).round(1)   # rounded: ties happen
    clauses = wins(2, 4, margin, smallest=smallest)
    others = np.delete(y, 2, axis=1)
    lead = others.min(1) - y[:, 2] if smallest else y[:, 2] - others.max(1)
    wanted = lead > 0 if margin == 0 else lead >= margin
    got = Property(Points(np.zeros((1, 2))), clauses).holds(y)
    clear = np.abs(lead - margin) > 1e-9
    self.assertGreater((~clear).sum(), 0)
    np.testing.assert_array_equal(got[clear], wanted[clear])
    if margin == 0:
      self.assertFalse(got[lead == 0].any())

  def test_avoids_is_the_negation_of_its_regions(self):
    rng = np.random.default_rng(1)
    regions = [(rng.normal(size=(2, 3)), rng.normal(size=2)), (rng.normal(size=(1, 3)), rng.normal(size=1))]
    y = rng.normal(size=(300, 3))
    inside = np.any([(y @ g.T <= h).all(axis=1) for g, h in regions], axis=0)
    self.assertTrue(0 < inside.sum() < 300)
    np.testing.assert_array_equal(Property(Points(y), avoids(regions)).holds(y), ~inside)

  def test_the_border_of_an_unsafe_region_is_unsafe(self):
    (clause,) = avoids([([[1., 0.]], [2.])])
    np.testing.assert_array_equal(clause.holds(np.array([[2., 0.], [2.1, 0.], [1.9, 0.]])), [False, True, False])

  def test_outputs_that_are_not_numbers_hold_nothing(self):
    (clause,) = avoids([([[1., 0.]], [2.])])
    self.assertFalse(clause.holds(np.array([3., np.nan])))
    self.assertFalse(clause.holds(np.array([np.inf, 0.])))

  def test_vacuous_truth_is_known_as_such(self):
    self.assertTrue(Property(Points(np.zeros((0, 2))), wins(0, 2)).is_vacuous)
    self.assertTrue(Property(Box([0.], [1.]), ()).is_vacuous)
    self.assertFalse(Property(Box([0.], [1.]), wins(0, 2)).is_vacuous)
    nothing = Clause(np.zeros((0, 2)), np.zeros(0))
    self.assertFalse(nothing.holds(np.zeros(2)))
    self.assertFalse(nothing.always_holds)

  def test_conditions_that_cannot_fail_are_known_as_such(self):
    box = Box([0.], [1.])
    up, both = [[1., 0.]], [[1., 0.], [-1., 0.]]
    for clause, always in (
        (Clause(both, [1., -0.5]), True),                  # unsafe: y0 > 1 and y0 < 0.5
        (Clause(both, [1., -0.5], strict=True), True),
        (Clause(both, [0.5, -1.]), False),                 # unsafe: 0.5 < y0 < 1
        (Clause(both, [1., -1.]), True),                   # unsafe: y0 > 1 and y0 < 1
        (Clause(both, [1., -1.], strict=True), False),     # unsafe: y0 = 1
        (Clause(up, [1.]), False), (Clause([[0., 0.]], [0.]), True), (Clause([[0., 0.]], [0.], strict=True), False)):
      with self.subTest(clause):
        self.assertEqual(clause.always_holds, always)
        self.assertEqual(Property(box, (clause,)).is_vacuous, always)
        self.assertFalse(Property(box, (clause, Clause(up, [1.]))).is_vacuous)

  def test_sizes_are_checked(self):
    spec = (Property(Box([0.], [1.]), wins(0, 2)),)
    check_sizes(spec, 1, 2)
    with self.assertRaisesRegex(BadInputError, 'inputs of 1 numbers, the network takes 3'):
      check_sizes(spec, 3, 2)
    with self.assertRaisesRegex(BadInputError, 'speaks of 2 outputs, the network has 5'):
      check_sizes(spec, 1, 5)
    with self.assertRaisesRegex(BadInputError, 'outputs'):
      Property(Box([0.], [1.]), (*wins(0, 2), *wins(0, 3)))


if __name__ == '__main__':
  absltest.main()
