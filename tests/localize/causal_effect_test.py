"""Sections 8.1, 8.6, 8.8 and 8.10 of the CARE specification, and the measures against NumPy."""
import dataclasses
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix import devices, models, predict
from jaxfix.classifier import Classifier
from jaxfix.errors import BadInputError, EmptySplitError, RepairFailure
from jaxfix.localize import causal_effect
from jaxfix.localize.causal_effect import causal_effects
from jaxfix.localize.neuron_interventions import clamped, keep_samples
from jaxfix.localize.neurons import find_neurons
from tests.networks import network, quick_jit


def _mlp(*layers):
  """Kernels and biases as a classifier."""
  params = {f'fc{i}': {'kernel': np.asarray(w, np.float32), 'bias': np.asarray(b, np.float32)}
            for i, (w, b) in enumerate(layers, 1)}
  widths = [np.shape(w)[1] for w, _ in layers]
  module = models.build('mlp', num_classes=widths[-1], hidden=tuple(widths[:-1]))
  return Classifier({'params': params}, module, (np.shape(layers[0][0])[0],), widths[-1])


def _random(hidden=6, d=4, c=3, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return _mlp((draw(d, hidden), draw(hidden)), (draw(hidden, c), draw(c))), draw(30, d), rng.integers(0, c, 30)


def _means(classifier, x, steps, badness):
  """E[Y | do(z_i = h_is)] `[m, S]` by brute force in NumPy, float64, and E[Y]; `badness` of logits `[n, c]`."""
  (w1, b1), (w2, b2) = ([np.asarray(classifier.params[name][k], np.float64) for k in ('kernel', 'bias')]
                        for name in ('fc1', 'fc2'))
  z = x.astype(np.float64) @ w1 + b1
  rest = lambda z: np.maximum(z, 0) @ w2 + b2
  out = np.zeros((z.shape[1], steps))
  for i in range(z.shape[1]):
    for s, h in enumerate(np.linspace(z[:, i].min(), z[:, i].max(), steps)):
      forced = z.copy()
      forced[:, i] = h
      out[i, s] = badness(rest(forced)).mean()
  return out, badness(rest(z)).mean()


_HAND_X = np.array([[2, 1], [1, 2], [3, 1], [1.4, 1]], np.float32)


def _hand(v=((1, 0), (0, 1))):
  return _mlp((np.eye(2), (0, 0)), (v, (0, .5)))


def _effects(classifier, x, y, measure=None, layer='fc1', unit='channel', route=None, **options):
  samples = keep_samples(classifier, x, np.asarray(y), (find_neurons(classifier, layer, unit),), route=route)
  found = causal_effects(classifier, samples, measure or causal_effect.Misclassified(), **options)
  return jax.tree.map(np.asarray, found)


class NumbersByHandTest(parameterized.TestCase):

  @parameterized.parameters('rank_one', 'suffix', 'whole')
  def test_accuracy_lost_on_four_samples(self, route):
    found = _effects(_hand(), _HAND_X, (0, 1, 0, 1), route=route)
    np.testing.assert_allclose(found.effect, (.375, .125), atol=1e-6)
    self.assertEqual(float(found.baseline), 0.)
    self.assertSequenceEqual(causal_effect.rank(found.effect).tolist(), (0, 1))

  def test_spread_of_target_probabilities(self):
    e = np.array([[.1, .2, .5, .9], [.3, .3, .35, .3]], np.float32)
    np.testing.assert_allclose(causal_effect.reduce_means(e, .7, 'spread'), (.8, .05), atol=1e-6)
    np.testing.assert_allclose(causal_effect.reduce_means(e, .1, 'mean'), (.325, .2125), atol=1e-6)

  def test_ranks_are_by_effect_then_by_index_and_numbers_come_first(self):
    self.assertSequenceEqual(causal_effect.rank(np.array([.1, np.nan, .5, -2., .5])).tolist(), (2, 4, 0, 3, 1))

  def test_constant_and_dead_neurons_have_no_effect(self):
    constant = _mlp((((1, 0), (0, 0)), (0, 3.)), (np.eye(2), (0, 0)))   # z_1 = 3 whatever the input
    found = _effects(constant, _HAND_X, (0, 1, 0, 1))
    self.assertSequenceEqual(found.constant.tolist(), (False, True))
    self.assertEqual(found.effect[1], 0.)
    self.assertNotEqual(found.effect[0], 0.)
    self.assertEqual(_effects(_hand(((1, 0), (0, 0))), _HAND_X, (0, 1, 0, 1)).effect[1], 0.)   # V[1, :] = 0

  @parameterized.parameters('rank_one', 'suffix')
  def test_a_sample_forced_to_its_own_value_stays_as_it_is(self, route):
    c, x, y = _random()
    samples = keep_samples(c, x[:1], y[:1], (find_neurons(c, 'fc1'),), route=route)
    own = samples.low[0]
    np.testing.assert_array_equal(own, samples.high[0])
    logits = quick_jit(lambda c, s, own: [clamped(c, s, tuple(a[0] for a in s.kept), i, own[i]) for i in range(6)])(
      c, samples, own)
    for each in logits:
      np.testing.assert_allclose(each, samples.logits[0, :, 0], atol=1e-6)


class BruteForceTest(parameterized.TestCase):

  def test_closed_form_is_brute_force(self):
    c, x, y = _random()
    means, baseline = _means(c, x, 4, lambda logits: logits.argmax(1) != y)
    expected = (means - baseline).mean(axis=1)
    self.assertGreater(np.ptp(expected), .05)
    for route in ('rank_one', 'whole'):
      np.testing.assert_allclose(_effects(c, x, y, route=route).effect, expected, atol=1e-5)

  @pytest.mark.slow
  def test_a_smooth_measure_and_a_target_class(self):
    c, x, y = _random(seed=1)
    softmax = lambda v: np.exp(v - v.max(1, keepdims=True)) / np.exp(v - v.max(1, keepdims=True)).sum(1, keepdims=True)
    means, _ = _means(c, x, 5, lambda logits: softmax(logits)[:, 2])
    found = _effects(c, x, y, causal_effect.TargetProbability(2), steps=5, reduction='spread')
    np.testing.assert_allclose(found.effect, means.max(1) - means.min(1), atol=1e-5)

    wrong = np.asarray(c.logits(x)).argmax(1) != y
    entropy = lambda logits: -np.log(softmax(logits)[np.arange(len(y)), y])[wrong]
    means, baseline = _means(c, x, 4, entropy)
    found = _effects(c, x, y, causal_effect.FailingCrossEntropy(), reduction='spread', stride=2)
    np.testing.assert_allclose(found.effect[::2], (means.max(1) - means.min(1))[::2], rtol=1e-4)
    self.assertTrue(np.isnan(found.effect[1::2]).all())
    self.assertAlmostEqual(float(found.baseline), baseline, places=4)

  def test_versions_of_a_sample_see_the_same_intervention(self):
    c, x, y = _random(seed=2)
    other = x.copy()
    other[:, 1] = -other[:, 1]
    both = np.stack([x, other], axis=1).reshape(-1, 4)
    samples = keep_samples(c, both, y, (find_neurons(c, 'fc1'),), versions=2)
    found = causal_effects(c, samples, causal_effect.Discrimination(1))
    softmax = lambda v: np.exp(v) / np.exp(v).sum(1, keepdims=True)
    gap = lambda logits: np.abs(np.subtract(*softmax(logits)[:, 1].reshape(-1, 2).T))
    means, baseline = _means(c, both, 4, gap)
    np.testing.assert_allclose(found.effect, (means - baseline).mean(1), atol=1e-5)

  def test_violations_count_where_a_property_applies(self):
    c, x, y = _random(seed=1)
    applies = x[:, :1] > 0
    clause = (np.array([[1, -1, 0], [0, 0, 1.]], np.float32), np.array([-.5, -1], np.float32), np.bool_(False))
    samples = keep_samples(c, x, y, (find_neurons(c, 'fc1'),), applies=applies)
    found = causal_effects(c, samples, causal_effect.Violation(((clause,),)))
    violated = lambda v: ((v[:, 0] - v[:, 1] > -.5) & (v[:, 2] > -1))[applies[:, 0]]
    means, baseline = _means(c, x, 4, violated)
    self.assertGreater(baseline, 0)
    np.testing.assert_allclose(found.effect, (means - baseline).mean(1), atol=1e-5)
    self.assertAlmostEqual(float(found.baseline), baseline, places=6)


class LayersTest(parameterized.TestCase):

  @parameterized.parameters(('conv2', 'channel', (8,)), ('pool2', 'position', (2, 2, 8)))
  @pytest.mark.slow   # three programs with convolutions each
  def test_routes_agree_on_convolutions(self, layer, unit, shape):
    c = network('lenet5', (8, 8, 1), num_classes=3, variant='small', width=.5)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 8, 8, 1)).astype(np.float32), rng.integers(0, 3, 12)
    measure, options = causal_effect.TargetProbability(1), {'steps': 2, 'reduction': 'spread', 'stride': 5}
    found = [_effects(c, x, y, measure, layer, unit, route, **options).effect for route in (None, 'whole')]
    self.assertEqual(found[0].shape, shape)
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    self.assertGreater(np.nanmax(found[0]), 1e-3)

  @pytest.mark.slow
  def test_a_right_answer_is_not_beaten_by_its_own_rounding(self):
    """At this size XLA makes logits twice, with and without a fused multiply-add, on the route of rank one."""
    c = network('mlp', (20,), num_classes=10, hidden=(84,))
    x = np.random.default_rng(0).normal(size=(1000, 20)).astype(np.float32)
    y, neurons = predict.labels(c, x), find_neurons(c, 'fc1')
    effects = [causal_effects(c, keep_samples(c, x, y, (neurons,), route=route), causal_effect.Misclassified()).effect
               for route in ('rank_one', 'suffix')]
    np.testing.assert_allclose(effects[0], effects[1], atol=1e-4)   # one sample more or less is 2.5e-4

  def test_blocks_of_samples_and_groups_of_interventions_change_nothing(self):
    c, x, y = _random()
    samples = keep_samples(c, x, y, (find_neurons(c, 'fc1'),))
    fold = lambda a: np.concatenate([np.asarray(a[0]), np.asarray(a[0, :6])]).reshape(3, 12, *a.shape[2:])
    labels = dataclasses.replace(jax.tree.map(fold, samples.labels),
                                 weight=(np.arange(36) < 30).astype(np.float32).reshape(3, 12))
    blocks = dataclasses.replace(samples, kept=tuple(map(fold, samples.kept)), logits=fold(samples.logits),
                                 labels=labels)
    options = {'steps': 4, 'reduction': 'mean', 'stride': 1}
    whole, parts = (causal_effect._causal_effects(c, s, causal_effect.Misclassified(), group=group, **options).effect
                    for s, group in ((samples, 24), (blocks, 5)))
    np.testing.assert_allclose(whole, parts, atol=1e-6)

  def test_activations_that_do_not_fit_are_refused_before_they_are_kept(self):
    c, x, y = _random()
    neurons = (find_neurons(c, 'fc1'),)
    needed = 4 * 30 * (6 + 3 + 3)   # values of the neurons, output of their reader, logits
    with mock.patch.object(devices, 'free_bytes', lambda: 2 * needed - 1), self.assertRaisesRegex(RepairFailure, 'fc1'):
      keep_samples(c, x, y, neurons)
    with mock.patch.object(devices, 'free_bytes', lambda: 2 * needed):
      keep_samples(c, x, y, neurons)

  def test_what_makes_no_sense_is_refused(self):
    c, x, y = _random()
    neurons = find_neurons(c, 'fc1')
    with self.assertRaises(EmptySplitError):
      keep_samples(c, x[:0], y[:0], (neurons,))
    samples = keep_samples(c, x, y, (neurons,))
    for options in ({'steps': 1}, {'stride': 0}, {'reduction': 'sum'}):
      with self.assertRaises(BadInputError):
        causal_effects(c, samples, causal_effect.Misclassified(), **options)
    with self.assertRaisesRegex(BadInputError, 'one layer'):
      keep_samples(c, x, y, (neurons, neurons), route='rank_one')


if __name__ == '__main__':
  absltest.main()
