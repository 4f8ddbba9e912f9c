"""Sections 8.3, 8.4, 8.7 and 8.10 of the DISTRREP specification: weights, risks and counts of confusions."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError
from jaxfix.search import class_score
from jaxfix.search.class_score import Stakes, make_stakes


def _labels(*groups):
  """y and predictions of groups (count, true, predicted)."""
  y, predicted = (np.concatenate([np.full(g[0], g[i]) for g in groups]) for i in (1, 2))
  return y, predicted


class ClassScoreTest(parameterized.TestCase):

  def test_numbers_by_hand(self):
    """A: 100 samples, 20 wrong, 12 of them taken for B; B: 50 samples, 10 wrong. w = (.6, .4), r_A = r_AB = .5."""
    y, predicted = _labels((80, 0, 0), (12, 0, 1), (8, 0, 2), (40, 1, 1), (10, 1, 2))
    stakes = Stakes({0: .6, 1: .4}, {0: .5, (0, 1): .5})
    self.assertAlmostEqual(class_score.score(stakes, y, predicted), .72)
    prices = class_score.prices(stakes, y, 3)
    self.assertAlmostEqual(class_score.best_score(stakes, y) - prices[y, predicted].sum(), .72, places=6)

  def test_weights_and_risks_sum_to_one(self):
    stakes = make_stakes({'car': .1, 'bus': .3}, {'car': .1, ('pedestrian', 'rider'): .2})
    np.testing.assert_allclose(list(stakes.precisions.values()), (.25, .75))
    np.testing.assert_allclose(list(stakes.risks.values()), (1 / 3, 2 / 3))

  @parameterized.parameters(({0: 0.},), ({0: 1., 1: -.5},), ({},), ({0: float('nan')},), ({0: float('inf')},))
  def test_sums_of_zero_and_negative_values_are_refused(self, weights):
    with self.assertRaisesRegex(BadInputError, 'precisions'):
      make_stakes(weights, {0: 1.})
    with self.assertRaisesRegex(BadInputError, 'risks'):
      make_stakes({0: 1.}, weights)

  def test_a_perfect_model_has_all_the_weight(self):
    y = np.array([0, 0, 1, 2, 2])
    stakes = make_stakes({0: 2, 1: 1, 2: 5}, {0: 1, (1, 2): 1})
    self.assertAlmostEqual(class_score.score(stakes, y, y), 1.)
    self.assertAlmostEqual(class_score.best_score(stakes, y), 1.)
    self.assertAlmostEqual(class_score.score(stakes, y[2:], y[2:]), 6 / 8)   # class 0 has no samples: left out

  def test_counts_of_confusions(self):
    """y = (0, 0, 1, 2), predictions (0, 1, 1, 0): E_0 = 1, E_(0 -> 1) = 1, E_1 = 0, E_2 = 1, n = (2, 1, 1)."""
    y, predicted = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0])
    for risk, expected in ((0, 1 / 2), ((0, 1), 1 / 2), ((0, 2), 0), (1, 0), (2, 1), ((2, 0), 1)):
      stakes = Stakes({}, {risk: 1.})   # the score is then minus half of E / n
      self.assertAlmostEqual(-2 * class_score.score(stakes, y, predicted), expected, msg=risk)
      self.assertAlmostEqual(2 * class_score.prices(stakes, y, 3)[y, predicted].sum(), expected, msg=risk)

  def test_prices_add_up_to_the_score(self):
    rng = np.random.default_rng(0)
    y, predicted = rng.integers(0, 5, 400), rng.integers(-1, 6, 400)
    y = y[y != 3]   # one class has no samples
    predicted = predicted[:len(y)]
    stakes = make_stakes({0: 2, 1: 1, 3: 1, 4: .5}, {0: 2, (0, 4): 3, (2, 0): 1, (3, 1): 1, 4: .1})
    prices = class_score.prices(stakes, y, 6)
    self.assertEqual(prices.shape, (7, 7))
    self.assertTrue((prices >= 0).all())
    self.assertFalse(prices[-1].any())   # rows that are no samples
    total = class_score.best_score(stakes, y) - prices[y, np.where(predicted < 0, 6, predicted)].sum()
    self.assertAlmostEqual(total, class_score.score(stakes, y, predicted), places=5)


if __name__ == '__main__':
  absltest.main()
