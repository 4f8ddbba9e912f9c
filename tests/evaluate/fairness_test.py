"""AAOD: worked example, edge cases and properties. Against other libraries: tests/conformance/fairness_test.py."""
import math

import hypothesis
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jaxfix import errors
from jaxfix.evaluate import fairness
from tests.evaluate.correctness_test import AFTER, BEFORE, Y
from tests.evaluate.properties import examples

GROUP = np.arange(10) % 2
ROWS = st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 2), st.integers(0, 1)), min_size=2, max_size=60).filter(
  lambda rows: len({r[2] for r in rows}) == 2).map(np.array)


class OddsTest(parameterized.TestCase):

  def test_worked_example(self):
    self.assertAlmostEqual(fairness.odds(Y, BEFORE, GROUP, num_classes=3).aaod, 0.194444, places=6)
    self.assertAlmostEqual(fairness.odds(Y, AFTER, GROUP, num_classes=3).aaod, 0.305556, places=6)

  @examples(50)
  @hypothesis.given(ROWS)
  def test_range_and_symmetry(self, rows):
    y, p, g = rows.T
    there = fairness.odds(y, p, g, num_classes=3)
    self.assertBetween(there.aaod, 0, 1)
    self.assertAlmostEqual(there.aaod, fairness.odds(y, p, 1 - g, num_classes=3).aaod)
    relabel = np.array([2, 0, 1, -1])
    self.assertAlmostEqual(there.aaod, fairness.odds(relabel[y], relabel[p], g, num_classes=3).aaod)

  @examples(50)
  @hypothesis.given(ROWS)
  def test_equal_groups_have_no_difference(self, rows):
    y, p, _ = np.concatenate([rows, rows]).T
    twice = np.repeat([0, 1], len(rows))
    self.assertEqual(fairness.odds(y, p, twice, num_classes=3).aaod, 0)

  def test_binary_formula(self):
    rng = np.random.default_rng(0)
    for _ in range(50):
      y, p, g = rng.integers(0, 2, (3, 40))
      tpr, fpr = ([p[(g == k) & (y == v)].mean() for k in (0, 1)] for v in (1, 0))
      binary = 0.5 * (abs(tpr[0] - tpr[1]) + abs(fpr[0] - fpr[1]))  # equation 8
      self.assertAlmostEqual(fairness.odds(y, p, g, num_classes=2).aaod, binary, places=14)

  def test_absent_class_counts_as_zero_and_is_flagged(self):
    y, p, g = np.array([0, 1, 0, 1, 2]), np.array([0, 1, 0, 1, 2]), np.array([0, 0, 1, 1, 1])
    zero = fairness.odds(y, p, g, num_classes=3)
    self.assertAlmostEqual(zero.aaod, 0.5 / 3)  # TPR of class 2: 0 against 1
    self.assertEqual(zero.flags, ('aaod_empty_class',))
    skip = fairness.odds(y, p, g, num_classes=3, empty='skip')
    self.assertEqual(skip.aaod, 0)
    self.assertEqual(skip.flags, ('aaod_empty_class',))
    self.assertEqual(fairness.odds(Y, AFTER, GROUP, num_classes=3).flags, ())

  def test_no_class_in_both_groups(self):
    y, g = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])
    self.assertEqual(fairness.odds(y, y, g, num_classes=2).aaod, 0.5)
    self.assertTrue(math.isnan(fairness.odds(y, y, g, num_classes=2, empty='skip').aaod))

  def test_unusable_output_is_a_miss_and_no_false_alarm(self):
    y, g = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    self.assertEqual(fairness.odds(y, np.array([-1, -1, 0, 1]), g, num_classes=2).aaod, 0.5)

  @parameterized.parameters((np.zeros(10, int), errors.EmptySplitError, 'Group 1'),
                            (np.arange(10) % 3, errors.BadInputError, 'group'),
                            (GROUP[1:], errors.BadInputError, 'shape'))
  def test_bad_groups(self, group, error, message):
    with self.assertRaisesRegex(error, message):
      fairness.odds(Y, AFTER, group, num_classes=3)

  def test_labels_out_of_range(self):
    with self.assertRaisesRegex(errors.BadInputError, 'classes 0 to 1'):
      fairness.odds(Y, AFTER, GROUP, num_classes=2)


if __name__ == '__main__':
  absltest.main()
