"""Accuracy, repair rate and negative flips against worked examples, set arithmetic and the accounting identity."""
import math
from fractions import Fraction

import hypothesis
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jaxfix import errors
from jaxfix.evaluate import correctness
from tests.evaluate.properties import examples

Y = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
BEFORE = np.array([0, 0, 1, 1, 1, 0, 2, 2, 0, 1])
AFTER = np.array([0, 0, 0, 1, 2, 0, 2, 2, 2, 0])

LABELS = st.lists(st.tuples(*[st.integers(-1, 3)] * 3), min_size=1, max_size=60).map(
  lambda rows: (np.abs(np.array(rows)[:, 0]), np.array(rows)[:, 1], np.array(rows)[:, 2]))


class FlipCountsTest(parameterized.TestCase):

  def test_worked_example(self):
    counts = correctness.flip_counts(Y, BEFORE, AFTER)
    self.assertEqual(counts, correctness.FlipCounts(both_right=5, fixed=2, broken=1, both_wrong=2))
    self.assertEqual((counts.acc_original, counts.acc, counts.num_failures), (0.6, 0.7, 4))
    self.assertAlmostEqual(counts.acc_rel, 0.16667, places=5)
    self.assertEqual((counts.repair_rate, counts.negative_flip_rate), (0.5, 0.1))
    self.assertAlmostEqual(counts.net_flips, 0.1)

  @examples(50)
  @hypothesis.given(LABELS)
  def test_counts_are_those_of_set_arithmetic(self, labels):
    y, before, after = labels
    failed = {i for i in range(len(y)) if before[i] != y[i]}
    right_now = {i for i in range(len(y)) if after[i] == y[i]}
    counts = correctness.flip_counts(y, before, after)
    self.assertEqual(counts.fixed, len(failed & right_now))
    self.assertEqual(counts.broken, len((set(range(len(y))) - failed) - right_now))
    self.assertEqual(counts.both_wrong, len(failed - right_now))
    self.assertEqual(counts.num_samples, len(y))
    self.assertEqual(counts.acc, correctness.accuracy(y, after))
    if failed:
      self.assertEqual(counts.repair_rate, len(failed & right_now) / len(failed))

  @examples(50)
  @hypothesis.given(LABELS)
  def test_accounting_identity_is_exact(self, labels):
    counts = correctness.flip_counts(*labels)
    n, failures = counts.num_samples, counts.num_failures
    before = Fraction(counts.num_right_before, n)
    rate = Fraction(counts.fixed, failures) if failures else Fraction(0)
    self.assertEqual(Fraction(counts.num_right_after, n), before + rate * (1 - before) - Fraction(counts.broken, n))

  def test_without_failures_the_repair_rate_is_undefined(self):
    counts = correctness.flip_counts(Y, Y, AFTER)
    self.assertTrue(math.isnan(counts.repair_rate))
    self.assertEqual(counts.negative_flip_rate, 0.3)

  def test_nothing_right_before_leaves_the_relative_change_undefined(self):
    self.assertTrue(math.isnan(correctness.flip_counts(Y, Y + 1, AFTER).acc_rel))

  def test_unusable_output_is_wrong(self):
    self.assertEqual(correctness.accuracy(Y, np.full(10, -1)), 0)

  @parameterized.parameters((lambda: correctness.accuracy(Y[:0], Y[:0]),),
                            (lambda: correctness.flip_counts(Y[:0], Y[:0], Y[:0]),),
                            (lambda: correctness.outcome(0.9, []),))
  def test_no_samples_is_an_error(self, call):
    with self.assertRaises(errors.EmptySplitError):
      call()

  def test_lengths_must_agree(self):
    with self.assertRaisesRegex(errors.BadInputError, r'shape \(9,\)'):
      correctness.flip_counts(Y, BEFORE, AFTER[1:])


class OutcomeTest(parameterized.TestCase):

  @parameterized.parameters((0.9, [0.81], 'OK'),  # exactly a tenth
                            (0.9, [0.8098], 'CORRUPTED'),
                            (0.7, [0.63, 0.63, 0.63], 'OK'),  # a tenth, but for rounding
                            (0.6, [0.5], 'CORRUPTED'),  # 10 points are more than a tenth of 0.6
                            (0.9, [0.9, 0.9, 0.64], 'OK'),  # the mean decides
                            (0.9, [0.9, 0.9, 0.62], 'CORRUPTED'),
                            (0.5, [0.6], 'OK'),
                            (0., [0.], 'OK'))
  def test_threshold_is_a_tenth_of_the_original_accuracy(self, original, accs, expected):
    self.assertEqual(correctness.outcome(original, accs), expected)

  @examples(50)
  @hypothesis.given(st.integers(1, 5000))
  def test_an_exact_tenth_is_never_corrupted_and_one_sample_more_is(self, tenth):
    n = 10 * tenth
    self.assertEqual(correctness.outcome(n / 50_000, [9 * tenth / 50_000]), 'OK')
    self.assertEqual(correctness.outcome(n / 50_000, [(9 * tenth - 1) / 50_000]), 'CORRUPTED')


if __name__ == '__main__':
  absltest.main()
