"""The combination rules and the fits, on arrays: worked example, algebra, recovered parameters."""
import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st
from scipy import optimize, special

from jaxfix import errors
from jaxfix.postprocess import Config, fit, rules
from tests.evaluate.properties import examples

PO = np.array([[0.6652, 0.2447, 0.0900], [0.3672, 0.3006, 0.3322], [0.3497, 0.5217, 0.1286]], np.float32)
PN = np.array([[0.0453, 0.9094, 0.0453], [0.0177, 0.0177, 0.9647], [0.4533, 0.4102, 0.1365]], np.float32)
VO, VN = np.array([0.004, 0.0002, 0.05], np.float32), np.array([0.002, 0.0001, 0.01], np.float32)
BOUNDS = (0.05, 20.)


def softmax_pairs(n, c, seed):
  rng = np.random.default_rng(seed)
  return (special.softmax(rng.normal(0, 2, (n, c)), axis=1).astype(np.float32) for _ in range(2))


class WorkedExampleTest(absltest.TestCase):

  def close(self, found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-4)   # four printed digits, of inputs of four digits

  def test_soft_vote(self):
    p = rules.pool(PO, PN)
    self.close(p, [[0.3553, 0.5771, 0.0677], [0.1924, 0.1591, 0.6484], [0.4015, 0.4659, 0.1326]])
    self.assertEqual(p.argmax(axis=1).tolist(), [1, 2, 1])

  def test_hard_vote(self):
    self.assertEqual(rules.hard_vote(PO, PN).argmax(axis=1).tolist(), [1, 2, 1])
    np.testing.assert_array_equal(rules.hard_vote(PO, PN), np.stack([PN[0], PN[1], PO[2]]))

  def test_alignment_with_prior(self):
    # The variances of the example lie below the floor in the second row; the clamp is that of `variance`.
    vo, vn = (np.clip(v, rules.VARIANCE_FLOOR, 1 - rules.VARIANCE_FLOOR) for v in (VO, VN))
    wo, wn = rules.alignment_weights(vo, vn)
    self.close(wo, [0.1667, 0.25, 0.0833])
    self.close(wn, [0.8333, 0.75, 0.9167])
    p = rules.align(PO, PN, vo, vn)
    self.close(p, [[0.1486, 0.7987, 0.0527], [0.1050, 0.0884, 0.8066], [0.4447, 0.4195, 0.1359]])
    self.assertEqual(p.argmax(axis=1).tolist(), [1, 2, 0])

  def test_alignment_without_prior(self):
    vo, vn = (np.clip(v, rules.VARIANCE_FLOOR, 1 - rules.VARIANCE_FLOOR) for v in (VO, VN))
    self.close(rules.alignment_weights(vo, vn, prior=False)[0], [0.3333, 0.5, 0.1667])
    self.assertEqual(rules.align(PO, PN, vo, vn, prior=False).argmax(axis=1).tolist(), [1, 2, 0])

  def test_weights_of_the_paper(self):
    alpha_old, alpha_new = np.sqrt((VO + VN) / (2 * VN)), np.sqrt((VO + VN) / (2 * VO))
    p = (PO / alpha_old[:, None] + PN / alpha_new[:, None]) / 2
    np.testing.assert_allclose(rules.align(PO, PN, VO, VN, weights='paper'), p / p.sum(axis=1, keepdims=True),
                               rtol=2e-4)   # the rows of the example sum to 1 within 1e-4


class RulesTest(parameterized.TestCase):

  def test_soft_and_hard_vote_agree_for_two_classes_and_not_for_three(self):
    po, pn = softmax_pairs(20_000, 2, 0)
    # The second probability is 1 - the first, as exactly as float32 has it; a rounding apart is no disagreement.
    clear = abs(po.max(axis=1) - pn.max(axis=1)) > 1e-6
    labels = [np.asarray(rule(po, pn)).argmax(axis=1) for rule in (rules.pool, rules.hard_vote)]
    np.testing.assert_array_equal(labels[0][clear], labels[1][clear])
    self.assertGreater(clear.mean(), 0.99)
    po, pn = softmax_pairs(20_000, 3, 0)
    soft, hard = (np.asarray(rule(po, pn)).argmax(axis=1) for rule in (rules.pool, rules.hard_vote))
    self.assertBetween((soft == hard).mean(), 0.8, 0.99)
    either = lambda label: (label == po.argmax(axis=1)) | (label == pn.argmax(axis=1))
    self.assertTrue(either(hard).all())
    self.assertFalse(either(soft).all())

  def test_equal_confidence_goes_to_the_new_model(self):
    po = np.array([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1]], np.float32)
    pn = po[:, ::-1]
    np.testing.assert_array_equal(rules.hard_vote(po, pn), pn)

  @examples(100)
  @hypothesis.given(st.floats(1e-3, 0.999), st.floats(1e-3, 0.999), st.sampled_from(['variance', 'paper']),
                    st.booleans())
  def test_weights_sum_to_one_and_the_stabler_model_counts_more(self, vo, vn, weights, prior):
    wo, wn = rules.alignment_weights(np.float32([vo]), np.float32([vn]), weights=weights, prior=prior)
    np.testing.assert_allclose(wo + wn, 1, rtol=1e-6)
    if weights == 'variance' and prior:
      self.assertBetween(float(wo[0]), 0, 0.5)
    elif abs(vo - vn) > 1e-5:
      self.assertEqual(float(wo[0]) > 0.5, vo < vn)

  def test_variance_is_that_of_the_population_over_classes_and_clipped(self):
    p = np.random.default_rng(0).dirichlet(np.ones(4), (10, 6)).astype(np.float32)
    np.testing.assert_allclose(rules.variance(p), p.var(axis=0, ddof=0).sum(axis=1), rtol=1e-5)
    still = np.repeat(p[:1], 10, axis=0)
    np.testing.assert_array_equal(rules.variance(still), np.float32(1e-3))
    wild = np.stack([np.eye(4, dtype=np.float32)[:1], np.eye(4, dtype=np.float32)[1:2]] * 5) * 3
    np.testing.assert_array_equal(rules.variance(wild), np.float32(1 - 1e-3))

  def test_a_thousand_classes(self):
    rng = np.random.default_rng(0)
    z = rng.normal(0, 50, (2, 8, 1000)).astype(np.float32)   # most probabilities underflow
    po, pn = jax.nn.softmax(z)
    draws = jax.nn.softmax(z[:, None] + rng.normal(0, 1, (2, 10, 8, 1000)).astype(np.float32))
    for p in (rules.pool(po, pn), rules.hard_vote(po, pn), rules.align(po, pn, *map(rules.variance, draws))):
      self.assertEqual(p.dtype, jnp.float32)
      np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    self.assertTrue(np.isfinite(list(fit.fit_us(*z, reg=5e-4, bounds=BOUNDS).values())).all())


class FitTest(parameterized.TestCase):

  @functools.cached_property
  def logits(self):
    rng = np.random.default_rng(0)
    return (rng.normal(0, 3, (200, 5)).astype(np.float32), rng.normal(0, 1, (200, 5)).astype(np.float32),
            rng.integers(0, 5, 200))

  @parameterized.parameters(2., 0.3, 7.)
  def test_the_temperature_is_recovered(self, temperature):
    _, zn, _ = self.logits
    found = fit.fit_us(temperature * zn, zn, reg=0., bounds=BOUNDS)
    self.assertAlmostEqual(found['temperature'] / temperature, 1, places=3)
    self.assertLess(found['loss'], 1e-9)

  def test_against_a_search_of_scipy(self):
    zo, zn, _ = self.logits
    pn = special.softmax(zn.astype(float), axis=1)
    for reg in (0., 5e-4):
      loss = lambda t, reg=reg: np.mean((special.softmax(zo / t, axis=1) - pn) ** 2) + reg * t * t
      best = optimize.minimize_scalar(loss, bounds=BOUNDS, method='bounded', options={'xatol': 1e-8})
      found = fit.fit_us(zo, zn, reg=reg, bounds=BOUNDS)
      # A minimum is only known to the square root of float32's precision.
      self.assertAlmostEqual(found['temperature'] / best.x, 1, delta=3e-3)
      self.assertAlmostEqual(found['objective'], best.fun, delta=1e-7)
      self.assertAlmostEqual(found['loss'], found['objective'] - reg * found['temperature'] ** 2, places=6)

  def test_the_regularizer_pulls_towards_zero_and_is_dropped_below_a_temperature(self):
    zo, zn, _ = self.logits
    plain, pulled = (fit.fit_us(zo, zn, reg=reg, bounds=BOUNDS) for reg in (0., 5e-4))
    self.assertLess(pulled['temperature'], plain['temperature'])
    self.assertEqual(pulled['reg'], 5e-4)
    found = fit.fit_us(0.5 * zn, zn, reg=5e-4, bounds=BOUNDS)
    self.assertEqual(found['reg'], 0)
    self.assertAlmostEqual(found['temperature'], 0.5, places=3)

  def test_bounds_are_kept(self):
    _, zn, _ = self.logits
    for scale, bound in ((1000., 20.), (1e-3, 0.05)):
      self.assertAlmostEqual(fit.fit_us(scale * zn, zn, reg=0., bounds=BOUNDS)['temperature'] / bound, 1, places=5)

  def test_calibration_to_labels_against_scipy(self):
    zo, zn, y = self.logits
    y = np.where(np.random.default_rng(1).random(200) < 0.6, zo.argmax(axis=1), y)
    found = fit.fit_us_cal(zo, zn, y, bounds=BOUNDS)
    for z, name in ((zo, 'old'), (zn, 'new')):
      nll = lambda u, z=z: -np.mean(special.log_softmax(z / np.exp(u), axis=1)[np.arange(200), y])
      best = optimize.minimize_scalar(nll, bounds=np.log(BOUNDS), method='bounded', options={'xatol': 1e-9})
      self.assertAlmostEqual(found[f'temperature_{name}'] / np.exp(best.x), 1, delta=5e-3)
      self.assertAlmostEqual(found[f'nll_{name}'], best.fun, delta=2e-6)

  def test_mixture_against_brute_force(self):
    rng = np.random.default_rng(3)
    y = rng.integers(0, 4, 300)
    zo, zn = (rng.normal(0, 1, (300, 4)).astype(np.float32) + 1.5 * np.eye(4, dtype=np.float32)[y] for _ in range(2))
    found = fit.fit_us_k(zo, zn, y)
    po, pn = (special.softmax(z.astype(float), axis=1) for z in (zo, zn))
    right_old, right_new = po.argmax(axis=1) == y, pn.argmax(axis=1) == y
    best = None
    for k in np.arange(1001) / 1000:
      right = (k * po + (1 - k) * pn).argmax(axis=1) == y
      flips = (right_old & ~right).sum()
      if right.sum() >= right_new.sum() and (best is None or flips < best[0]):
        best = flips, k, right.mean()
    self.assertEqual((found['k'], found['nfr_valid'], found['acc_valid'], found['acc_valid_new']),
                     (best[1], best[0] / 300, best[2], right_new.mean()))
    self.assertGreater(found['k'], 0)

  def test_mixture_stays_with_the_new_model_where_any_of_the_old_costs_accuracy(self):
    y = np.zeros(4, int)
    zo, zn = np.float32([[0, 9.]] * 4), np.float32([[1e-4, 0.]] * 4)   # the old model is wrong and sure of it
    self.assertEqual(fit.fit_us_k(zo, zn, y), {'k': 0, 'nfr_valid': 0, 'acc_valid': 1, 'acc_valid_new': 1})

  def test_refused(self):
    zo, zn, y = self.logits
    with self.assertRaisesRegex(errors.BadInputError, 'original model gives logits that are not finite'):
      fit.fit_us(zo * np.nan, zn, reg=0., bounds=BOUNDS)
    with self.assertRaisesRegex(errors.BadInputError, '200 rows of logits, but 3 labels'):
      fit.fit_us_k(zo, zn, y[:3])
    with self.assertRaisesRegex(errors.BadInputError, 'shapes'):
      fit.fit_us(zo[:0], zn[:0], reg=0., bounds=BOUNDS)

  @parameterized.parameters({'draws': 1}, {'noise': -1.}, {'dropout': 1.}, {'site': 'input'}, {'weights': 'mean'},
                            {'reg': -1.}, {'temperatures': (1., 1.)})
  def test_options_are_checked(self, **options):
    with self.assertRaises(errors.BadInputError):
      Config(**options)


if __name__ == '__main__':
  absltest.main()
