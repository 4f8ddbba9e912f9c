"""t-tests, false discovery rate, flips and ranks, against SciPy, statsmodels and closed forms."""
import math

import hypothesis
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats import multitest

from jaxfix import errors, statistics
from tests.evaluate.properties import examples


class TTestTest(parameterized.TestCase):

  @parameterized.product(seed=(0, 1, 2, 3), sizes=((3, 3), (2, 7), (12, 5)))
  def test_against_scipy(self, seed, sizes):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(1, 1, sizes[0]), rng.normal(0, 3, sizes[1])
    for ours, equal in ((statistics.student, True), (statistics.welch, False)):
      found, expected = ours(a, b), stats.ttest_ind(a, b, equal_var=equal)
      np.testing.assert_allclose((found.t, found.p, found.df), (expected.statistic, expected.pvalue, expected.df),
                                 rtol=1e-9)
      interval = expected.confidence_interval(0.95)
      np.testing.assert_allclose(found.interval, (interval.low, interval.high), rtol=1e-9)
    d = rng.normal(0.5, 1, sizes[0])
    found, expected = statistics.paired(d), stats.ttest_1samp(d, 0)
    np.testing.assert_allclose((found.t, found.p), (expected.statistic, expected.pvalue), rtol=1e-9)

  def test_hedges_correction_tends_to_its_usual_approximation(self):
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 30), rng.normal(0, 1, 25)
    cohen = (a.mean() - b.mean()) / math.sqrt((29 * a.var(ddof=1) + 24 * b.var(ddof=1)) / 53)
    self.assertAlmostEqual(statistics.student(a, b).hedges_g, cohen * (1 - 3 / (4 * 53 - 1)), places=4)

  def test_swapping_changes_the_sign_only(self):
    one, other = statistics.welch([1, 2, 4], [3, 7]), statistics.welch([3, 7], [1, 2, 4])
    np.testing.assert_allclose((one.t, one.p, one.hedges_g), (-other.t, other.p, -other.hedges_g))
    np.testing.assert_allclose(one.interval, (-other.interval[1], -other.interval[0]))

  @parameterized.parameters(([1.], [1., 2., 3.]), ([], [1., 2.]))
  def test_too_few_values(self, a, b):
    for test in (statistics.student, statistics.welch):
      self.assertEqual(test(a, b).flag, 'untestable')
      self.assertTrue(math.isnan(test(a, b).p))
    self.assertEqual(statistics.paired(a).flag, 'untestable')

  def test_paired_without_spread(self):
    self.assertEqual((statistics.paired([0, 0, 0]).p, statistics.paired([0, 0, 0]).flag), (1, ''))
    self.assertEqual((statistics.paired([-2, -2]).p, statistics.paired([-2, -2]).t), (0, -math.inf))
    self.assertEqual(statistics.paired([-2, -2]).flag, 'degenerate')

  def test_paired_rounding_noise_is_no_difference(self):
    noise = [1e-17, 2e-17, 1.5e-17]
    self.assertEqual((statistics.paired(noise, scale=0.5).p, statistics.paired(noise, scale=0.5).flag), (1, ''))
    self.assertEqual(statistics.paired([0.1, 0.1 + 1e-16, 0.1], scale=0.5).flag, 'degenerate')
    # 0.3 against 0.1 + 0.2, and the like: equal but for rounding, which differs from repeat to repeat.
    a, b = [0.3, 0.6, 0.8], [0.1 + 0.2, 0.6 + 1.1e-16, 0.1 + 0.7]
    self.assertTrue(np.ptp(np.subtract(a, b)) > 0)
    (pair,) = statistics.groups({'x': {'d': a}, 'y': {'d': b}}, unit='paired').pairs
    self.assertEqual((pair.p, pair.significant, pair.flags), (1, False, ()))

  def test_not_finite(self):
    with self.assertRaisesRegex(errors.BadInputError, 'NaN'):
      statistics.student([1, math.nan], [1, 2])


class BenjaminiHochbergTest(absltest.TestCase):

  @examples(100)
  @hypothesis.given(st.lists(st.one_of(st.floats(0, 1), st.floats(0, 1e-3), st.just(math.nan)), max_size=40))
  def test_against_statsmodels_with_nan_taken_out(self, p):
    p = np.array(p, float)
    q, tested = statistics.benjamini_hochberg(p), ~np.isnan(p)
    np.testing.assert_array_equal(np.isnan(q), ~tested)
    if tested.any():
      rejected, expected, _, _ = multitest.multipletests(p[tested], 0.05, 'fdr_bh')
      np.testing.assert_allclose(q[tested], expected, rtol=1e-12)
      clear = abs(q[tested] - 0.05) > 1e-12
      np.testing.assert_array_equal((q[tested] <= 0.05)[clear], rejected[clear])

  def test_p_out_of_range(self):
    with self.assertRaises(errors.BadInputError):
      statistics.benjamini_hochberg([0.5, 1.5])


class McNemarTest(parameterized.TestCase):

  @parameterized.parameters((0, 0, 1.), (1, 0, 1.), (3, 3, 1.), (9, 1, 22 / 1024), (0, 8, 2 / 256), (6, 2, 74 / 256))
  def test_closed_form(self, fixed, broken, expected):
    self.assertAlmostEqual(statistics.mcnemar(fixed, broken), expected, places=12)
    self.assertAlmostEqual(statistics.mcnemar(broken, fixed), expected, places=12)

  def test_negative_count(self):
    with self.assertRaises(errors.BadInputError):
      statistics.mcnemar(-1, 2)


class BootstrapTest(absltest.TestCase):

  def predictions(self, n=400, seed=0, repeats=None):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 5, n)
    noisy = lambda rate, shape: np.where(rng.random(shape) < rate, (y + 1) % 5, y)
    return y, noisy(0.3, n), noisy(0.2, n if repeats is None else (repeats, n))

  def test_matches_resampling_the_inputs_themselves(self):
    y, before, after = self.predictions()
    found = statistics.bootstrap_flips({'d': (y, before, after)}, seed=3)
    rng, rates = np.random.default_rng(0), []
    for _ in range(4000):
      i = rng.integers(0, len(y), len(y))
      right0, right1 = before[i] == y[i], after[i] == y[i]
      rates.append((right1.mean(), (~right0 & right1).sum() / (~right0).sum(), (right0 & ~right1).mean()))
    right0, right1 = before == y, after == y
    expected = (right1.mean(), (~right0 & right1).sum() / (~right0).sum(), (right0 & ~right1).mean())
    for metric, value, drawn in zip(('acc', 'rr', 'nfr'), expected, np.array(rates).T, strict=True):
      interval = found[metric]
      self.assertAlmostEqual(interval.value, value, places=12)
      # An end of the interval from 4,000 resamples has a standard error of about 0.04 standard deviations.
      np.testing.assert_allclose((interval.low, interval.high), np.quantile(drawn, (0.025, 0.975)),
                                 atol=0.2 * drawn.std())
      self.assertEqual(interval.undefined, 0)

  def test_strata_shrink_the_interval_of_their_mean(self):
    one = statistics.bootstrap_flips({'d': self.predictions(seed=0)}, seed=3)['acc']
    many = statistics.bootstrap_flips({str(i): self.predictions(seed=i) for i in range(4)}, seed=3)['acc']
    self.assertAlmostEqual((many.high - many.low) / (one.high - one.low), 0.5, delta=0.07)

  def test_repeats_are_resampled_together(self):
    y, before, after = self.predictions()
    once = statistics.bootstrap_flips({'d': (y, before, after)}, seed=3)
    thrice = statistics.bootstrap_flips({'d': (y, before, np.stack([after] * 3))}, seed=3)
    for metric in once:   # three copies of one repeat know no more than one
      np.testing.assert_allclose((once[metric].low, once[metric].high), (thrice[metric].low, thrice[metric].high),
                                 atol=1e-12)
    y, before, three = self.predictions(repeats=3)
    value = statistics.bootstrap_flips({'d': (y, before, three)}, seed=3)['rr'].value
    wrong = before != y
    self.assertAlmostEqual(value, np.mean([(a[wrong] == y[wrong]).mean() for a in three]), places=12)

  def test_without_failures_there_is_no_repair_rate(self):
    y = np.arange(50) % 3
    found = statistics.bootstrap_flips({'d': (y, y, y)}, seed=3, resamples=100)
    self.assertTrue(math.isnan(found['rr'].value) and math.isnan(found['rr'].low))
    self.assertEqual((found['rr'].undefined, found['acc'].low, found['nfr'].high), (1, 1, 0))
    before = np.where(np.arange(50) == 0, y + 1, y)   # a resample misses the one failure with probability 0.98^50
    found = statistics.bootstrap_flips({'d': (y, before, y)}, seed=3, resamples=2000)
    self.assertAlmostEqual(found['rr'].undefined, 0.98 ** 50, delta=0.05)
    self.assertEqual((found['rr'].low, found['rr'].high), (1, 1))

  def test_bad_input(self):
    with self.assertRaises(errors.EmptySplitError):
      statistics.bootstrap_flips({}, seed=3)
    with self.assertRaisesRegex(errors.BadInputError, 'd has labels'):
      statistics.bootstrap_flips({'d': (np.zeros(3), np.zeros(3), np.zeros(4))}, seed=3)


class FriedmanTest(parameterized.TestCase):

  @parameterized.parameters(0, 1, 2)
  def test_against_scipy(self, seed):
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 6, (7, 4)).astype(float)   # with ties
    found = statistics.friedman({name: {str(d): table[d, i] for d in range(7)} for i, name in enumerate('ABCD')})
    expected = stats.friedmanchisquare(*table.T)
    np.testing.assert_allclose((found.statistic, found.p), expected, rtol=1e-9)
    np.testing.assert_allclose([found.mean_ranks[n] for n in 'ABCD'], stats.rankdata(-table, axis=1).mean(0))

  def test_critical_difference_and_its_p_value(self):
    # Demsar 2006, table 5 and section 3.2.2: q_0.05 is 2.569 for four classifiers, CD 1.25 on 14 data sets.
    rng = np.random.default_rng(0)
    values = {name: {str(d): rng.normal(i, 2) for d in range(14)} for i, name in enumerate('ABCD')}
    found = statistics.friedman(values)
    self.assertAlmostEqual(found.critical_difference, 2.569 * math.sqrt(4 * 5 / (6 * 14)), places=3)
    for (a, b), p in found.pairs.items():
      difference = found.mean_ranks[b] - found.mean_ranks[a]
      self.assertGreaterEqual(difference, 0)
      self.assertEqual(p < 0.05, difference > found.critical_difference)
    self.assertLen(found.pairs, 6)
    self.assertEqual({p < 0.05 for p in found.pairs.values()}, {True, False})

  def test_incomplete_data_sets_are_left_out(self):
    values = {'A': {'x': 1., 'y': 2., 'z': 1.}, 'B': {'x': 0., 'y': 3., 'z': math.nan}}
    found = statistics.friedman(values)
    self.assertEqual((found.datasets, found.statistic, found.p), (('x', 'y'), 0, 1))
    self.assertEqual(statistics.friedman({'A': {'x': 1.}, 'B': {}}).datasets, ())
    self.assertTrue(math.isnan(statistics.friedman({'A': {'x': 1., 'y': 2.}}).p))


if __name__ == '__main__':
  absltest.main()
