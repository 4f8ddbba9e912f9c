"""PGD: closed forms, invariances, edge cases. Against Foolbox: tests/conformance/foolbox_test.py."""
import dataclasses
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jaxfix import clock, errors, models, predict
from jaxfix.evaluate import robustness
from jaxfix.evaluate.robustness import PGD
from jaxfix.problem import Split
from tests.evaluate import digits
from tests.evaluate.properties import examples

KEY = jax.random.key(5)
WIDE = (-100., 100.)
PLAIN = PGD(0.1, random_start=False, bounds=WIDE)


def digits_and_model():
  """The trained model and 60 digits that it gets right: one shape everywhere, so that little is compiled."""
  return digits.mlp(), digits.right(60)


class ClosedFormTest(parameterized.TestCase):

  @parameterized.parameters('linf', 'l2')
  def test_linear_model_falls_iff_the_dual_norm_reaches_the_margin(self, norm):
    # x flips iff epsilon * ||w||_dual > margin; 40 steps of epsilon / 30 reach the face.
    rng = np.random.default_rng(0)
    w, z = rng.normal(size=6), rng.normal(size=(200, 6)).astype(np.float32)
    model = digits.linear(w, bias=0.3)
    margin = np.abs(z @ w + 0.3)
    y = (z @ w + 0.3 > 0).astype(np.int32)
    dual = np.abs(w).sum() if norm == 'linf' else np.linalg.norm(w)
    for epsilon in (0.05, 0.2, 0.5):
      clear = np.abs(epsilon * dual - margin) > 1e-4
      result = robustness.attack(model, z, y, pgd=dataclasses.replace(PLAIN, epsilon=epsilon, norm=norm), key=KEY)
      np.testing.assert_array_equal(result.success[clear], (epsilon * dual > margin)[clear])
      self.assertBetween(result.success.mean(), 0.01, 0.99)

  def test_rounding_at_the_face_of_the_ball(self):
    model = digits.linear(np.ones(4))
    z = np.full((1, 4), 0.25, np.float32)  # margin 1
    for epsilon, expected in ((0.249, False), (0.251, True)):
      result = robustness.attack(model, z, np.array([1]), pgd=dataclasses.replace(PLAIN, epsilon=epsilon), key=KEY)
      self.assertEqual(result.success.tolist(), [expected])

  def test_bounds_hold_the_attack_back(self):
    model, z = digits.linear(np.ones(4)), np.full((1, 4), 0.25, np.float32)
    pgd = dataclasses.replace(PLAIN, epsilon=1., bounds=(0.1, 1.))
    result = robustness.attack(model, z, np.array([1]), pgd=pgd, key=KEY)
    self.assertFalse(result.success.any())
    np.testing.assert_allclose(result.adversarial, 0.1)

  def test_pixel_space_divides_the_radius_by_the_std_of_each_channel(self):
    std, mean = (0.25, 0.5, 2.), (0.4, 0.5, 0.6)
    model = digits.dense(np.random.default_rng(0).normal(size=(12, 2)), np.zeros(2), input_shape=(2, 2, 3), mean=mean,
                         std=std)
    x = np.full((1, 2, 2, 3), 128, np.uint8)
    z = np.asarray(model.normalize(jnp.asarray(x)))
    for norm, low, high in (('linf', 0.02, 0.02), ('l2', 0, 0.02)):
      pgd = PGD(0.02, norm=norm, eps_space='pixel', random_start=False)
      moved = np.abs((robustness.attack(model, z, np.array([0]), pgd=pgd, key=KEY).adversarial - z) * np.array(std))
      size = moved.max(axis=(1, 2)) if norm == 'linf' else np.sqrt((moved ** 2).sum())
      self.assertTrue((size >= low - 1e-5).all() and (size <= high + 1e-5).all(), size)

  def test_valid_pixels_bound_the_attack_in_pixel_space(self):
    model = digits.dense(np.random.default_rng(0).normal(size=(16, 2)), np.zeros(2), input_shape=(4, 4, 1),
                         mean=(0.3,), std=(0.2,))
    x = np.where(np.arange(16).reshape(1, 4, 4, 1) % 2, 255, 0).astype(np.uint8)
    z = model.normalize(jnp.asarray(x))
    pixels = robustness.attack(model, z, np.array([0]), pgd=PGD(0.3, eps_space='pixel', random_start=False),
                               key=KEY).adversarial * 0.2 + 0.3
    self.assertBetween(pixels.min(), -1e-6, 0.1)
    self.assertBetween(pixels.max(), 0.9, 1 + 1e-6)


class AttackTest(parameterized.TestCase):

  def test_no_radius_no_success(self):
    model, split = digits_and_model()
    for pgd in (PGD(0.), PGD(0., norm='l2'), PGD(0., abs_stepsize=0.1)):
      result = robustness.attack(model, split.x, split.y, pgd=pgd, key=KEY)
      self.assertFalse(result.success.any())
      np.testing.assert_array_equal(result.adversarial, split.x)

  @examples(20)
  @hypothesis.given(st.floats(0, 2), st.sampled_from(['linf', 'l2']), st.integers(0, 3))
  def test_stays_in_the_ball_and_the_bounds(self, epsilon, norm, seed):
    model, split = digits_and_model()
    x = robustness.attack(model, split.x, split.y, pgd=PGD(epsilon, norm=norm), key=jax.random.key(seed)).adversarial
    self.assertBetween(x.min(), 0, 1)
    self.assertBetween(x.max(), 0, 1)
    moved = (x - split.x).reshape(len(x), -1)
    self.assertLessEqual(np.linalg.norm(moved, axis=1, ord={'linf': np.inf, 'l2': 2}[norm]).max(), epsilon + 1e-6)

  def test_batches_and_order_change_nothing(self):
    model, split = digits_and_model()
    still = PGD(0.1, abs_stepsize=0.)  # stays at its random start: every bit can be compared
    whole = robustness.attack(model, split.x, split.y, pgd=still, key=KEY)
    order = np.random.default_rng(0).permutation(60)
    parts = robustness.attack(model, split.x[order], split.y[order], pgd=still, key=KEY, index=order, batch_size=17)
    np.testing.assert_array_equal(parts.adversarial, whole.adversarial[order])
    whole = robustness.attack(model, split.x, split.y, pgd=PGD(0.1), key=KEY)
    parts = robustness.attack(model, split.x[order], split.y[order], pgd=PGD(0.1), key=KEY, index=order, batch_size=17)
    np.testing.assert_array_equal(parts.success, whole.success[order])
    self.assertBetween(whole.success.mean(), 0.1, 0.95)

  @parameterized.parameters('linf', 'l2')
  def test_start_is_uniform_in_the_ball(self, norm):
    model, z = digits.linear(np.ones(3)), np.zeros((4000, 3), np.float32)
    pgd = PGD(2., norm=norm, abs_stepsize=0., bounds=WIDE)
    start = robustness.attack(model, z, np.zeros(4000, int), pgd=pgd, key=KEY, batch_size=4000).adversarial
    # The share within half the radius is 2^-d for both norms (the box or ball of half the size).
    inside = np.linalg.norm(start, axis=1, ord=np.inf if norm == 'linf' else 2) < 1
    self.assertAlmostEqual(inside.mean(), 1 / 8, delta=0.02)  # 4 standard deviations
    np.testing.assert_allclose(start.mean(axis=0), 0, atol=0.08)
    self.assertGreater(len(np.unique(start[:, 0])), 3990)  # of 2^23 values, a few meet

  def test_key_decides_the_start(self):
    model, split = digits_and_model()
    runs = [robustness.attack(model, split.x, split.y, pgd=PGD(0.1, abs_stepsize=0.), key=jax.random.key(k)).adversarial
            for k in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    self.assertFalse(np.array_equal(runs[0], runs[2]))

  def test_restarts_only_add_successes(self):
    model, split = digits_and_model()
    noise = PGD(0.6, abs_stepsize=0.)  # the starting points alone, without a descent that makes them all alike
    one = robustness.attack(model, split.x, split.y, pgd=noise, key=KEY)
    five = robustness.attack(model, split.x, split.y, pgd=dataclasses.replace(noise, restarts=5), key=KEY)
    self.assertTrue((five.success | ~one.success).all())
    self.assertGreater(five.success.sum(), one.success.sum())
    np.testing.assert_array_equal(five.adversarial[one.success], one.adversarial[one.success])
    np.testing.assert_array_equal(predict.labels(model, five.adversarial) != split.y, five.success)

  def test_strong_preset_has_its_own_name(self):
    self.assertEqual(robustness.strong(PGD(0.1)), PGD(0.1, steps=100, restarts=5, name='pgd_strong'))

  @parameterized.parameters('logits', 'probs')
  def test_one_step_follows_the_sign_of_the_gradient(self, output):
    # Three classes, logits x W: the gradient by hand, in float64.
    rng = np.random.default_rng(1)
    w, z, y = rng.normal(size=(6, 3)), rng.normal(size=(40, 6)), rng.integers(0, 3, 40)
    model = digits.dense(w, np.zeros(3))

    def softmax(v):
      return np.exp(v) / np.exp(v).sum(axis=1, keepdims=True)

    p = softmax(z @ w)
    if output == 'probs':
      outer = softmax(p) - np.eye(3)[y]
      gradient = (p * (outer - (p * outer).sum(axis=1, keepdims=True))) @ w.T
    else:
      gradient = (p - np.eye(3)[y]) @ w.T
    pgd = dataclasses.replace(PLAIN, steps=1, rel_stepsize=1., attack_output=output)
    moved = robustness.attack(model, z.astype(np.float32), y, pgd=pgd, key=KEY).adversarial - z
    clear = np.abs(gradient) > 1e-4
    np.testing.assert_allclose(moved[clear], 0.1 * np.sign(gradient)[clear], atol=1e-6)
    self.assertGreater(clear.mean(), 0.8)

  def test_second_attack_compiles_nothing_whatever_the_radius(self):
    model, split = digits_and_model()
    robustness.attack(model, split.x, split.y, pgd=PGD(0.1), key=KEY)
    watch = clock.Clock()
    robustness.attack(model, split.x, split.y, pgd=PGD(0.2, rel_stepsize=0.1, bounds=WIDE), key=jax.random.key(9))
    self.assertEqual(watch.num_compiled, 0)

  def test_broken_gradient_is_no_success_but_broken_logits_are(self):
    # sqrt(max(x, 0)) has gradient NaN at 0 inputs, and finite logits.
    class Root(models.build('mlp').__class__):
      def __call__(self, x, train=False, features=False):
        return super().__call__(x, train) + 0 * jnp.sqrt(jnp.abs(x)).sum(axis=1, keepdims=True)

    base = digits.linear(np.ones(4))
    model = dataclasses.replace(base, module=Root(num_classes=2, hidden=()))
    z = np.zeros((3, 4), np.float32) + np.array([[0.], [0.], [1.]], np.float32)
    result = robustness.attack(model, z, np.array([0, 0, 1]), pgd=dataclasses.replace(PLAIN, epsilon=0.1), key=KEY)
    self.assertEqual((result.success.tolist(), result.finite), ([False, False, False], True))
    broken = base.with_params(jax.tree.map(lambda w: w * jnp.inf, base.params))
    result = robustness.attack(broken, z, np.array([0, 0, 1]), pgd=PLAIN, key=KEY)
    self.assertEqual((result.success.tolist(), result.finite), ([True, True, True], False))

  def test_inputs_outside_given_bounds_are_refused(self):
    with self.assertRaisesRegex(errors.BadInputError, 'Input 1 leaves the bounds'):
      robustness.attack(digits.linear(np.ones(1)), np.array([[0.5], [1.5]]), np.zeros(2, int),
                        pgd=dataclasses.replace(PLAIN, bounds=(0, 1)), key=KEY)

  def test_shapes_are_checked(self):
    model = digits.linear(np.ones(2))
    with self.assertRaisesRegex(errors.BadInputError, 'takes'):
      robustness.attack(model, np.zeros((2, 3)), np.zeros(2, int), pgd=PLAIN, key=KEY)
    with self.assertRaisesRegex(errors.BadInputError, '2 inputs but 3 labels'):
      robustness.attack(model, np.zeros((2, 2)), np.zeros(3, int), pgd=PLAIN, key=KEY)

  @parameterized.parameters({'epsilon': -1.}, {'epsilon': math.nan}, {'epsilon': 1., 'steps': 0},
                            {'epsilon': 1., 'restarts': 0}, {'epsilon': 1., 'norm': 'l1'},
                            {'epsilon': 1., 'eps_space': 'lab'}, {'epsilon': 1., 'attack_output': 'labels'},
                            {'epsilon': 1., 'bounds': (1., 0.)}, {'epsilon': 1., 'rel_stepsize': -1.},
                            {'epsilon': 1., 'restarts': 2, 'random_start': False})
  def test_settings_are_checked(self, **settings):
    with self.assertRaises(errors.BadInputError):
      PGD(**settings)


class AttackSuccessTest(parameterized.TestCase):

  def test_models_share_inputs_and_starts(self):
    model, split = digits.mlp(), digits.split()
    other = digits.mlp(seed=1)
    correct = np.logical_and(*(predict.labels(c, split.x) == split.y for c in (model, other)))
    result = robustness.attack_success([model, other, model], split, correct, pgd=PGD(0.08), key=KEY, n=60)
    self.assertLen(result.indices, 60)
    self.assertTrue(correct[result.indices].all())
    self.assertEqual(result.rates[0], result.rates[2])
    np.testing.assert_array_equal(result.successes[0], result.successes[2])
    self.assertNotEqual(result.rates[0], result.rates[1])
    self.assertEqual(result.rates[1], result.successes[1].mean())
    self.assertEqual(result.flags, ())

  def test_a_model_with_another_normalization_is_attacked_in_its_own_space(self):
    # The same function of raw inputs, in units a tenth as large: ten times the radius gives the same rate.
    model, split = digits_and_model()
    kernel = model.params['fc1']['kernel']
    shifted = dataclasses.replace(model.with_params({**model.params, 'fc1': {**model.params['fc1'],
                                                                            'kernel': kernel / 10}}), std=(0.1,))
    ones = np.ones(60, bool)
    rates = [robustness.attack_success([c], split, ones, pgd=PGD(e), key=KEY, n=60).rates[0]
             for c, e in ((model, 0.08), (shifted, 0.8))]
    self.assertAlmostEqual(rates[0], rates[1], delta=0.02)

  def test_few_candidates(self):
    model, split = digits_and_model()
    for available, size, flag in ((60, 60, 'asr_n_reduced'), (49, 0, 'too_few_correct'), (0, 0, 'too_few_correct')):
      result = robustness.attack_success([model], split, np.arange(60) < available, pgd=PGD(0.05), key=KEY)
      self.assertLen(result.indices, size)
      self.assertEqual(result.flags, (flag,))
      self.assertEqual(math.isnan(result.rates[0]), size == 0)

  def test_selection_is_uniform_and_follows_the_key(self):
    correct = np.arange(300) % 3 > 0
    draws = [robustness.select(correct, n=50, key=jax.random.key(k))[0] for k in range(300)]
    counts = np.bincount(np.concatenate(draws), minlength=300)
    self.assertEqual(counts[~correct].sum(), 0)
    # 300 draws of 50 of 200: mean 75, standard deviation 7.5; 5 deviations either way.
    self.assertBetween(counts[correct].min(), 38, 75)
    self.assertBetween(counts[correct].max(), 75, 112)
    np.testing.assert_array_equal(draws[0], robustness.select(correct, n=50, key=jax.random.key(0))[0])
    self.assertLen(np.unique(draws[0]), 50)

  def test_wrong_mask(self):
    model, split = digits_and_model()
    with self.assertRaisesRegex(errors.BadInputError, 'correct has shape'):
      robustness.attack_success([model], split, np.ones(59, bool), pgd=PGD(0.1), key=KEY)

  def test_images_are_normalized_before_the_attack(self):
    model, split = digits_and_model()
    pixels = Split((split.x * 255).astype(np.uint8), split.y)
    ones = np.ones(60, bool)
    rates = [robustness.attack_success([model], s, ones, pgd=PGD(0.08), key=KEY).rates[0] for s in (split, pixels)]
    self.assertAlmostEqual(rates[0], rates[1], delta=0.05)


class WilsonTest(parameterized.TestCase):

  @parameterized.parameters((0, 10, 0., 0.2775), (10, 10, 0.7225, 1.), (81, 263, 0.2553, 0.3662))
  def test_published_values(self, hits, n, low, high):
    # Newcombe 1998, table 1 (81 of 263), and the closed form n / (n + z^2) at the ends.
    np.testing.assert_allclose(robustness.wilson(hits, n), (low, high), atol=5e-5)

  @examples(50)
  @hypothesis.given(st.integers(1, 1000), st.data())
  def test_holds_the_rate(self, n, data):
    hits = data.draw(st.integers(0, n))
    low, high = robustness.wilson(hits, n)
    self.assertTrue(0 <= low <= hits / n <= high <= 1)


if __name__ == '__main__':
  absltest.main()
