"""Combinations as classifiers: scores, noise, attacks, and the comparison with the original."""
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix import clock, errors, evaluate, models, postprocess, predict
from jaxfix.classifier import create, fingerprint
from jaxfix.evaluate import PGD, robustness
from jaxfix.postprocess import NAMES, Config, rules
from jaxfix.problem import Problem, Split, Subject
from tests.evaluate import digits

KEY = jax.random.key(11)
X = digits.split().x[1000:1060]


def softmax(classifier, x):
  return np.asarray(jax.nn.softmax(predict.logits(classifier, x)))


@functools.cache
def pair():
  return digits.mlp(), digits.mlp(seed=1)


def processor(method, *models_, noise=0.3, dropout=0.5, **options):
  """Fitted; with more noise than the defaults, so that it shows."""
  old, new = models_ or pair()
  options |= {'noise': noise, 'dropout': dropout}
  return postprocess.postprocess(method, old, new, Config(**options)).fit(X, digits.split().y[1000:1060])


@functools.cache
def subject():
  split = digits.split()
  problem = Problem(pair()[0], split.take(np.arange(1000)), split.take(np.arange(1000, 1200)),
                    split.take(np.arange(1200, 1400)))
  test = split.take(np.arange(1400, 1797))
  return Subject('digits', problem, test, test, 0.05, tuple('0123456789'))


class ScoresTest(parameterized.TestCase):

  def test_votes_are_the_rules_applied_to_both_softmax_outputs(self):
    po, pn = (softmax(m, X) for m in pair())
    for method, rule in (('sv', rules.pool), ('hv', rules.hard_vote)):
      np.testing.assert_allclose(processor(method).scores(X), rule(po, pn), atol=1e-6)
    us = processor('us')
    zo = predict.logits(pair()[0], X)
    np.testing.assert_allclose(us.scores(X), (jax.nn.softmax(zo / us.fitted['temperature']) + pn) / 2, atol=1e-6)
    k = processor('us_k')
    np.testing.assert_allclose(k.scores(X), k.fitted['k'] * po + (1 - k.fitted['k']) * pn, atol=1e-6)
    cal, zn = processor('us_cal'), predict.logits(pair()[1], X)
    expected = sum(jax.nn.softmax(z / cal.fitted[f'temperature_{n}']) for z, n in ((zo, 'old'), (zn, 'new'))) / 2
    np.testing.assert_allclose(cal.scores(X), expected, atol=1e-6)

  @parameterized.parameters(*NAMES)
  def test_rows_sum_to_one_and_give_the_labels(self, method):
    p = processor(method)
    scores = p.scores(X, KEY)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(predict.labels(p.classifier(KEY), X), scores.argmax(axis=1))

  @parameterized.parameters(('sv', {}), ('hv', {}), ('us', {}), ('us_cal', {}), ('us_k', {}), ('up', {'noise': 0.}),
                            ('ud', {'dropout': 0.}))
  def test_twice_the_same_model_changes_no_label(self, method, options):
    old, _ = pair()
    p = processor(method, old, old, **options)
    np.testing.assert_array_equal(predict.labels(p.classifier(KEY), X), predict.labels(old, X))

  @parameterized.parameters('sv', 'hv', 'up', 'ud')   # the others are sv with other numbers
  def test_the_batch_size_changes_nothing(self, method):
    p = processor(method)
    whole = p.scores(X, KEY)
    np.testing.assert_allclose(p.scores(X, KEY, batch_size=17), whole, atol=2e-6)

  def test_two_classes_of_a_thousand_inputs(self):
    rng = np.random.default_rng(0)
    old, new = (digits.linear(rng.normal(size=6), bias) for bias in (0.2, -0.2))
    x = rng.normal(size=(1000, 6)).astype(np.float32)
    sv, hv = (predict.labels(processor_of.classifier(), x)
              for processor_of in (postprocess.postprocess(m, old, new) for m in ('sv', 'hv')))
    np.testing.assert_array_equal(sv, hv)

  @pytest.mark.slow
  def test_a_broken_model_gives_no_label(self):
    old, new = pair()
    broken = new.with_params(jax.tree.map(lambda w: w * jnp.nan, new.params))
    for method in ('sv', 'up', 'ud'):
      combined = postprocess.postprocess(method, old, broken, Config()).classifier(KEY)
      self.assertEqual(set(predict.labels(combined, X).tolist()), {-1})

  @pytest.mark.slow
  def test_models_with_other_normalization(self):
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(12, 3)), rng.normal(size=3)
    mean, std = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.5])
    old = digits.dense(kernel, bias, input_shape=(2, 2, 3), mean=tuple(mean), std=tuple(std))
    # The same function of pixels, as a network of unnormalized ones: kernel / std, bias - mean . kernel / std.
    scaled = kernel / np.tile(std, 4)[:, None]
    new = digits.dense(scaled, bias - np.tile(mean, 4) @ scaled, input_shape=(2, 2, 3))
    x = rng.integers(0, 256, (20, 2, 2, 3)).astype(np.uint8)
    np.testing.assert_allclose(postprocess.postprocess('sv', old, new).scores(x), softmax(old, x), atol=1e-5)

  @parameterized.parameters('sv', 'ud')
  @pytest.mark.slow
  def test_models_with_other_architecture(self, method):
    deep = models.build('mlp', num_classes=10, hidden=(8, 8))
    other = create(deep, input_shape=(8, 8, 1), num_classes=10, key=KEY)
    po, pn = (softmax(m, X) for m in (pair()[0], other))
    weight = 0.5 if method == 'sv' else 0.25   # ud: features of 32 and of 8 units, none dropped
    np.testing.assert_allclose(processor(method, pair()[0], other, dropout=0.).scores(X, KEY),
                               weight * po + (1 - weight) * pn, atol=1e-6)


class NoiseTest(parameterized.TestCase):

  @parameterized.parameters('up', 'ud')
  def test_the_key_decides(self, method):
    p = processor(method)
    one, again, other = (p.scores(X, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    self.assertGreater(abs(one - other).max(), 1e-3)

  @parameterized.parameters('up', 'ud')
  def test_a_key_is_needed(self, method):
    with self.assertRaisesRegex(errors.BadInputError, f'{method} draws noise'):
      processor(method).scores(X)

  @parameterized.parameters(True, False)
  def test_input_noise_by_hand(self, shared):
    # Two linear models; the draws are those of keys folded with draw, model and sample.
    rng = np.random.default_rng(0)
    old, new = (digits.dense(rng.normal(size=(4, 3)), rng.normal(size=3)) for _ in range(2))
    x = rng.normal(size=(5, 4)).astype(np.float32)
    p = postprocess.postprocess('up', old, new, Config(noise=0.5, draws=3, shared_noise=shared, clean=shared,
                                                       prior=not shared))
    draws = []
    for i, model in enumerate((old, new)):
      passes = []
      for t in range(3):
        stream = jax.random.fold_in(jax.random.fold_in(KEY, t), 0 if shared else i)
        noise = np.stack([jax.random.normal(jax.random.fold_in(stream, s), (4,)) for s in range(5)])
        passes.append(softmax(model, x + 0.5 * noise))
      draws.append(np.stack(passes))
    vo, vn = (np.clip(d.var(axis=0).sum(axis=1), 1e-3, 0.999)[:, None] for d in draws)
    if shared:   # also without the prior, and with weights on the clean outputs
      wo, (mo, mn) = vn / (vo + vn), (softmax(model, x) for model in (old, new))
    else:
      wo, (mo, mn) = vn / (2 * (vo + vn)), (d.mean(axis=0) for d in draws)
    np.testing.assert_allclose(p.scores(x, KEY), wo * mo + (1 - wo) * mn, atol=1e-5)

  def test_steady_models_are_weighted_one_to_three(self):
    # Without noise both variances are at their floor.
    po, pn = (softmax(m, X) for m in pair())
    np.testing.assert_allclose(processor('up', noise=0.).scores(X, KEY), 0.25 * po + 0.75 * pn, atol=1e-6)

  @pytest.mark.slow
  def test_dropout_before_the_last_layer_keeps_the_expected_logits(self):
    # One model twice; features 1, so that a pass's logit is the number of kept units over the share kept.
    model = digits.dense(np.eye(2)[:, [0, 0, 1]] * [[0.01, 0.01, 0], [0, 0, 0.01]], np.zeros(3))
    x = np.ones((4000, 2), np.float32)
    p = postprocess.postprocess('ud', model, model, Config(dropout=0.2, draws=2))
    # Probabilities are nearly linear in logits of this size: their mean is that of the whole network.
    np.testing.assert_allclose(p.scores(x, KEY).mean(axis=0), softmax(model, x[:1])[0], atol=3e-5)
    self.assertGreater(p.scores(x, KEY).std(axis=0).min(), 1e-4)

  def test_dropping_logits_is_another_thing(self):
    a, b = (processor('ud', site=site).scores(X, KEY) for site in ('features', 'logits'))
    self.assertGreater(abs(a - b).max(), 1e-3)

  def test_a_network_that_does_not_end_in_a_dense_layer(self):
    class Halved(models.build('mlp').__class__):
      def __call__(self, x, train=False, features=False):
        return 0.5 * super().__call__(x, train)

    odd = dataclasses.replace(digits.linear(np.ones(4)), module=Halved(num_classes=2, hidden=()))
    with self.assertRaisesRegex(errors.BadInputError, "site='logits'"):
      postprocess.postprocess('ud', odd, odd).classifier(KEY)
    p = postprocess.postprocess('ud', odd, odd, Config(site='logits'))
    self.assertEqual(p.scores(np.ones((3, 4), np.float32), KEY).shape, (3, 2))


class AttackTest(parameterized.TestCase):

  @parameterized.parameters(*NAMES)
  @pytest.mark.slow
  def test_no_radius_no_success(self, method):
    combined, split = processor(method).classifier(KEY), digits.split().take(np.arange(1000, 1200))
    correct = predict.labels(combined, split.x) == split.y
    result = robustness.attack_success([combined], split, correct, pgd=PGD(0.), key=KEY, n=60)
    self.assertEqual(result.rates, (0.,))

  def test_attack_goes_through_the_combination(self):
    # Along the gradient of log p of the linear pool, by hand in float64.
    rng = np.random.default_rng(1)
    (wo, wn), z, y = rng.normal(size=(2, 6, 3)), rng.normal(size=(40, 6)), rng.integers(0, 3, 40)
    old, new = digits.dense(wo, np.zeros(3)), digits.dense(wn, np.zeros(3))

    def gradient_of_p(w):
      p = np.exp(z @ w) / np.exp(z @ w).sum(axis=1, keepdims=True)
      own = p[np.arange(40), y][:, None]
      return own * (w[:, y].T - p @ w.T)   # d p_y / d z

    gradient = -(gradient_of_p(wo) + gradient_of_p(wn))
    pgd = PGD(0.1, random_start=False, bounds=(-100., 100.), steps=1, rel_stepsize=1.)
    combined = postprocess.postprocess('hv', old, new).classifier()   # attacked along the soft vote
    moved = robustness.attack(combined, z.astype(np.float32), y, pgd=pgd, key=KEY).adversarial - z
    clear = abs(gradient) > 1e-3
    np.testing.assert_allclose(moved[clear], 0.1 * np.sign(gradient)[clear], atol=1e-6)

  def test_the_hard_vote_judges_its_own_attack(self):
    split = digits.right(60)
    result = {m: robustness.attack(processor(m).classifier(), split.x, split.y, pgd=PGD(0.08), key=KEY)
              for m in ('sv', 'hv')}
    np.testing.assert_array_equal(result['sv'].adversarial, result['hv'].adversarial)
    for method, found in result.items():
      np.testing.assert_array_equal(found.success,
                                    predict.labels(processor(method).classifier(), found.adversarial) != split.y)

  @pytest.mark.slow
  def test_noise_is_fixed_in_the_attack_and_fresh_for_the_judge(self):
    self.check_noise('up')

  @pytest.mark.slow
  def test_the_same_for_dropout_and_in_other_batches(self):
    combined, split, order, whole = self.check_noise('ud')
    parts = robustness.attack(combined, split.x[order], split.y[order], pgd=PGD(0.1), key=KEY, index=order,
                              batch_size=17)
    self.assertGreaterEqual((parts.success == whole.success[order]).mean(), 58 / 60)

  def check_noise(self, method):
    combined, split = processor(method).classifier(KEY), digits.right(60)
    whole = robustness.attack(combined, split.x, split.y, pgd=PGD(0.1), key=KEY)
    # Judged by the draws of its own predictions, which the attack did not see.
    np.testing.assert_array_equal(whole.success, predict.labels(combined, whole.adversarial) != split.y)
    # The loss that the attack climbs is deterministic: fixed draws, other than the judge's.
    seen, again, judge = (softmax(c, split.x) for c in (combined.surrogate, combined.surrogate, combined))
    np.testing.assert_array_equal(seen, again)
    self.assertGreater(abs(seen - judge).max(), 1e-3)
    # Nothing is left of a radius of 0 by the judge's own draws.
    still = robustness.attack(combined, split.x, split.y, pgd=PGD(0.), key=KEY)
    np.testing.assert_array_equal(still.success, predict.labels(combined, split.x) != split.y)
    self.assertBetween(whole.success.mean(), 0.02, 0.98)
    order = np.random.default_rng(0).permutation(60)
    parts = robustness.attack(combined, split.x[order], split.y[order], pgd=PGD(0.1), key=KEY, index=order)
    self.assertGreaterEqual((parts.success == whole.success[order]).mean(), 58 / 60)   # signs of tiny gradients
    return combined, split, order, whole

  def test_the_second_attack_compiles_nothing(self):
    split = digits.right(60)
    for noise in (0.3, 0.1):
      watch = clock.Clock()
      combined = processor('up', noise=noise).classifier(jax.random.key(int(10 * noise)))
      robustness.attack(combined, split.x, split.y, pgd=PGD(0.1), key=KEY)
    self.assertEqual(watch.num_compiled, 0)


class CompareTest(parameterized.TestCase):

  @parameterized.parameters('hv', 'up', 'us')
  def test_one_call(self, method):
    self.check_one_call(method)

  @parameterized.parameters('sv', 'ud', 'us_cal', 'us_k')
  @pytest.mark.slow
  def test_one_call_of_the_others(self, method):
    self.check_one_call(method)

  def check_one_call(self, method):
    old, new = pair()
    comparison, description = postprocess.combine_and_compare(method, old, new, subject(), key=KEY, attack_size=60,
                                                              config=Config(noise=0.3, dropout=0.5))
    self.assertEqual(json.loads(json.dumps(description)), {**description, 'config': json.loads(json.dumps(
      description['config']))})
    self.assertEqual(description['method'], method)
    self.assertEqual(bool(description['fitted']), method.startswith('us'))
    test = subject().test
    np.testing.assert_array_equal(comparison.labels_before, predict.labels(old, test.x))
    wrong = comparison.labels_before != test.y
    self.assertEqual(comparison.counts.fixed, int((wrong & (comparison.labels_after == test.y)).sum()))
    metrics = comparison.metrics()
    self.assertEqual(metrics['asr_n'], 60)
    self.assertTrue(all(metrics[m] is not None for m in ('acc', 'rr', 'nfr', 'rr_repair', 'asr', 'aaod')))

  def test_the_fit_uses_the_validation_split(self):
    old, new = pair()
    valid = subject().problem.valid
    for method in ('us', 'us_cal', 'us_k'):
      _, description = postprocess.combine_and_compare(method, old, new, subject(), key=KEY, pgd=None)
      self.assertEqual(description['fitted'],
                       dict(postprocess.postprocess(method, old, new).fit(valid.x, valid.y).fitted))

  def test_a_combination_is_attacked_like_the_repair_by_itself(self):
    # Of a model with itself: the same inputs and the same starts, so the same figures.
    old, _ = pair()
    options = {'key': KEY, 'pgd': PGD(0.05, steps=3), 'attack_size': 60}
    alone = evaluate.compare(old, old, subject().test, **options)
    combined, _ = postprocess.combine_and_compare('sv', old, old, subject(), **options)
    np.testing.assert_array_equal(combined.attacked, alone.attacked)
    self.assertEqual(combined.asr_original, alone.asr_original)

  @pytest.mark.slow
  def test_repeats_are_attacked_on_common_inputs(self):
    old, new = pair()
    third = digits.mlp(seed=2)
    found = postprocess.combine_and_compare_repeats('sv', old, [new, third], subject(), key=KEY, attack_size=60)
    one, two = (comparison for comparison, _ in found)
    np.testing.assert_array_equal(one.attacked, two.attacked)
    self.assertEqual(one.asr_original, two.asr_original)
    right = [c.labels_after[one.attacked] == subject().test.y[one.attacked] for c in (one, two)]
    self.assertTrue(np.all(right))

  def test_soft_voting_lies_between_and_breaks_less(self):
    # A repaired model that is the original but for a tenth of the weight of another: votes pull it back.
    old, new = pair()
    test = subject().test
    plain = evaluate.compare(old, new, test, key=KEY).counts
    voted = postprocess.combine_and_compare('sv', old, new, subject(), key=KEY, pgd=None)[0].counts
    self.assertLess(voted.broken, plain.broken)

  def test_classifiers_name_their_parameters(self):
    # A fingerprint covers both models and what was fitted.
    old, new = pair()
    make = lambda t: postprocess.combined.pooled(old, new, temperatures=(t, 1.))
    self.assertEqual(fingerprint(make(2.)), fingerprint(make(2.)))
    self.assertNotEqual(fingerprint(make(2.)), fingerprint(make(3.)))

  def test_refused(self):
    old, _ = pair()
    with self.assertRaisesRegex(errors.UnknownNameError, "Did you mean 'us_k'"):
      postprocess.postprocess('us-k', old, old)
    with self.assertRaisesRegex(errors.BadInputError, 'Cannot combine a model of 10 classes'):
      postprocess.postprocess('sv', old, digits.linear(np.ones(4)))
    with self.assertRaisesRegex(errors.BadInputError, 'call fit'):
      postprocess.postprocess('us', old, old).scores(X)
    for method in ('us_cal', 'us_k'):
      with self.assertRaisesRegex(errors.BadInputError, 'give y_val'):
        postprocess.postprocess(method, old, old).fit(X)
    self.assertIsNotNone(postprocess.postprocess('us', old, old).fit(X).fitted)
    with self.assertRaises(errors.EmptySplitError):
      empty = dataclasses.replace(subject(), test=Split(subject().test.x[:0], subject().test.y[:0]))
      postprocess.combine_and_compare('sv', old, old, empty, key=KEY)


if __name__ == '__main__':
  absltest.main()
