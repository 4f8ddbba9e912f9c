"""Sections 8.7 and 8.9 of the CARE specification, and CARE's options, on tiny networks."""
import dataclasses

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix import methods, predict
from jaxfix.classifier import Classifier, fingerprint, flat_weights
from jaxfix.errors import BadInputError, RepairFailure, Unadaptable, UnknownNameError
from jaxfix.localize.causal_effect import Effects
from jaxfix.localize.neuron_interventions import keep_samples, scaled
from jaxfix.localize.neurons import find_neurons
from jaxfix.methods.neuron import care
from jaxfix.models import build
from jaxfix.problem import Problem, Split
from jaxfix.verify.spec import Box, Points, Property, wins
from tests import tiny
from tests.networks import network, quick_jit

_SHORT = care.Config(particles=8, iterations=6)


def _table(seed=0, n=60, kernel=None):
  """A problem on 4 features, the last of them 0 or 1, with a hidden layer of 8 and random weights."""
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  params = {'fc1': {'kernel': draw(4, 8) if kernel is None else kernel, 'bias': draw(8)},
            'fc2': {'kernel': draw(8, 2), 'bias': draw(2)}}
  x = np.concatenate([draw(n, 3), rng.integers(0, 2, (n, 1)).astype(np.float32)], axis=1)
  split = Split(x, rng.integers(0, 2, n).astype(np.int32))
  c = Classifier({'params': params}, build('mlp', num_classes=2, hidden=(8,)), (4,), 2)
  return Problem(c, split, split, split)


def _accuracy(classifier, split):
  return (predict.labels(classifier, split.x) == split.y).mean()


class CostTest(absltest.TestCase):

  def test_numbers_by_hand(self):
    self.assertAlmostEqual(care.mixed_cost(.25, .95, .9), .07)

  def test_versions_differ_in_one_feature_and_leave_the_samples_alone(self):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    versions = care.with_feature(x, 1, np.array([7, 8]))
    np.testing.assert_array_equal(versions, [[0, 1, 2], [0, 7, 2], [0, 8, 2], [3, 4, 5], [3, 7, 5], [3, 8, 5]])
    np.testing.assert_array_equal(x, np.arange(6).reshape(2, 3))


class CareTest(parameterized.TestCase):

  def test_it_improves_and_what_it_reports_is_so(self):
    problem = _table()
    repair = methods.run(care.METHOD, problem, _SHORT, key=jax.random.key(0))
    before, after = _accuracy(problem.classifier, problem.repair), _accuracy(repair.classifier, problem.repair)
    self.assertGreater(after, before)
    np.testing.assert_allclose(repair.trace.objective, (before, after))
    np.testing.assert_allclose(repair.trace.curves['best_fitness'][-1], after - before, atol=1e-6)
    self.assertTrue((np.diff(repair.trace.curves['best_fitness']) >= 0).all())
    old, new = flat_weights(problem.classifier.variables), flat_weights(repair.classifier.variables)
    columns = (old['params/fc1/kernel'] != new['params/fc1/kernel']).any(axis=0)
    self.assertBetween(columns.sum(), 1, 5)   # ceil(0.05 * 8) is less than the least, 5
    np.testing.assert_array_equal(columns, old['params/fc1/bias'] != new['params/fc1/bias'])

  def test_where_nothing_is_better_the_network_comes_back_bit_for_bit(self):
    problem = _table()
    labels = predict.labels(problem.classifier, problem.repair.x)
    labels[0] = 1 - labels[0]
    x = np.concatenate([problem.repair.x[:1], problem.repair.x[:59]])   # one input with both labels: 59 of 60 is best
    problem = dataclasses.replace(problem, repair=Split(x, np.concatenate([1 - labels[:1], labels[:59]])))
    repair = methods.run(care.METHOD, problem, _SHORT, key=jax.random.key(0))
    self.assertEqual(fingerprint(repair.classifier), fingerprint(problem.classifier))
    self.assertIn('The swarm found nothing better than no change.', repair.trace.notes)
    self.assertEqual(*repair.trace.objective)

  @parameterized.parameters('rank_one', 'suffix')
  def test_factors_of_one_give_the_same_bits_and_others_what_scaled_weights_give(self, route):
    c, x = _table().classifier, _table().repair.x[:16]
    neurons = find_neurons(c, 'fc1')
    samples = keep_samples(c, x, np.zeros(16, int), (neurons,), route=route)
    run = quick_jit(lambda c, s, chosen, f: scaled(c, s, tuple(a[0] for a in s.kept), chosen, f))
    chosen = np.array([5, 1], np.int32)
    one, other = (np.asarray(run(c, samples, chosen, np.float32(f))) for f in ((1, 1), (-.5, 1.7)))
    through = np.asarray(run(c, samples, chosen[:0], np.zeros(0, np.float32)))   # the same program without a factor
    np.testing.assert_array_equal(one, through)
    np.testing.assert_allclose(one, predict.logits(c, x), atol=1e-6)   # another program: no more than rounding
    folded = care._fold(c, (neurons,), chosen, np.float32((-.5, 1.7)))
    np.testing.assert_allclose(other, predict.logits(folded, x), atol=1e-5)
    self.assertGreater(np.abs(other - one).max(), .1)

  def test_a_backdoor_is_driven_down(self):
    problem = _table(seed=1)
    config = dataclasses.replace(_SHORT, ace_target='backdoor', target_class=0, factor_mode='r', steps=2, iterations=12)
    repair = methods.run(care.METHOD, problem, config, key=jax.random.key(0))
    probability = lambda c: np.asarray(jax.nn.softmax(predict.logits(c, problem.repair.x)))[:, 0].mean()
    cost = lambda c: .8 * probability(c) + .2 * (1 - _accuracy(c, problem.repair))
    self.assertLess(probability(repair.classifier), probability(problem.classifier) - .05)
    np.testing.assert_allclose(-repair.trace.curves['best_fitness'][[0, -1]],
                               [cost(problem.classifier), cost(repair.classifier)], atol=1e-5)
    self.assertIsNone(repair.trace.objective)

  @parameterized.parameters(('fairness',), ('safety',), ('failing_ce',))
  @pytest.mark.slow
  def test_other_targets_lower_what_they_measure(self, target):
    problem = _table(seed=2)
    spec = (Property(Box(-np.ones(4) * 9, np.ones(4) * 9), wins(1, 2)),)
    config = dataclasses.replace(_SHORT, ace_target=target, alpha=.3, target_class=1, sensitive_feature=3,
                                 num_neurons=3, abs_ace=True)
    repair = methods.run(care.METHOD, dataclasses.replace(problem, spec=spec), config, key=jax.random.key(0))
    wrong = predict.labels(problem.classifier, problem.repair.x) != problem.repair.y

    def badness(c):
      logits = predict.logits(c, problem.repair.x).astype(np.float64)
      softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
      if target == 'failing_ce':
        return -np.log(softmax[np.arange(len(wrong)), problem.repair.y])[wrong].mean()
      if target == 'safety':
        return 1 - spec[0].holds(logits).mean()
      flipped = problem.repair.x.copy()
      flipped[:, 3] = 1 - flipped[:, 3]
      return np.abs(softmax[:, 1] - np.asarray(jax.nn.softmax(predict.logits(c, flipped)))[:, 1]).mean()

    cost = [.7 * badness(c) + .3 * (1 - _accuracy(c, problem.repair)) for c in (problem.classifier, repair.classifier)]
    np.testing.assert_allclose(-repair.trace.curves['best_fitness'][[0, -1]], cost, atol=1e-5)
    self.assertLess(cost[1], cost[0])

  @parameterized.parameters(('mlp', ('fc2', 'fc1')), ('lenet5', ('conv2',)), ('resnet', ('conv1',)),
                            ('resnet', ('conv2', 'fc1')), ('lenet5', ('pool2',)))
  @pytest.mark.slow
  def test_layers_can_be_named_and_accuracy_never_falls(self, kind, layers):
    problem = tiny.problem(kind)
    config = care.Config(layers=layers, num_neurons=6, stride=2 if kind == 'mlp' else 1, max_samples=80,
                         unit='position' if layers == ('pool2',) else 'channel')
    repair = methods.run(care.METHOD, problem, config, key=jax.random.key(1))
    self.assertGreaterEqual(repair.trace.objective[1], repair.trace.objective[0])
    self.assertGreater(repair.trace.objective[1], 0.)
    changed = [k for k, v in flat_weights(problem.classifier.variables).items()
               if v.tobytes() != flat_weights(repair.classifier.variables)[k].tobytes()]
    self.assertNotEmpty(changed)   # `run` has checked that they are declared

  def test_neurons_without_an_effect_are_never_guilty(self):
    neurons = find_neurons(_table().classifier, 'fc1')
    effect = np.float32([.1, np.nan, np.nan, np.nan, .3, np.nan, -.2, np.nan])   # stride 2; at 2, logits overflow
    effects = Effects(effect, np.zeros(8, bool), np.float32(.5))
    for wanted, expected in ((2, [4, 0]), (4, [4, 0, 6])):
      chosen, _ = care._guilty([effects], (neurons,), care.Config(stride=2, num_neurons=wanted))
      self.assertEqual(chosen.tolist(), expected)

  def test_neurons_that_were_not_looked_at_do_not_hide_that_all_others_are_constant(self):
    neurons = find_neurons(_table().classifier, 'fc1')
    effect = np.float32([0., np.nan] * 4)
    effects = Effects(effect, np.array([True, False] * 4), np.float32(.5))
    with self.assertRaisesRegex(RepairFailure, 'same value'):
      care._guilty([effects], (neurons,), care.Config(stride=2))

  def test_what_cannot_work_says_so_in_one_line(self):
    c = network('lenet5', (8, 8, 1), variant='small', width=.5)
    problem, key = Problem(c, *(tiny.digits(0, 60),) * 3), jax.random.key(0)
    for change, error, text in (
        ({'layers': ('fc9',)}, UnknownNameError, 'fc9'), ({'layers': ('fc3',)}, Unadaptable, 'logits'),
        ({'layers': ('conv2',), 'unit': 'position'}, Unadaptable, 'no weights scale'),
        ({'ace_target': 'safety'}, Unadaptable, 'spec'),
        ({'ace_target': 'backdoor', 'target_class': 10}, BadInputError, 'target_class'),
        ({'ace_target': 'fairness', 'target_class': 1, 'sensitive_feature': 64}, BadInputError, '64 features')):
      with self.subTest(str(change)), self.assertRaisesRegex(error, text) as caught:
        methods.run(care.METHOD, problem, dataclasses.replace(_SHORT, **change), key=key)
      self.assertNotIn('\n', str(caught.exception))
    with self.assertRaisesRegex(BadInputError, 'same neurons twice'):
      methods.run(care.METHOD, tiny.problem('resnet'), dataclasses.replace(_SHORT, layers=('conv1', 'bn1')), key=key)
    points = dataclasses.replace(problem, spec=(Property(Points(np.zeros((1, 64))), wins(1, 10)),))
    with self.assertRaisesRegex(Unadaptable, 'membership'):
      methods.run(care.METHOD, points, dataclasses.replace(_SHORT, ace_target='safety'), key=key)
    constant = _table(kernel=np.zeros((4, 8), np.float32))
    with self.assertRaisesRegex(RepairFailure, 'same value'):
      methods.run(care.METHOD, constant, _SHORT, key=key)

  def test_bad_settings_are_refused(self):
    for change in ({'layers': ()}, {'layers': ('fc1', 'fc1')}, {'unit': 'plane'}, {'num_neurons': 0}, {'share': 0.},
                   {'least': 0}, {'stride': 0}, {'steps': 1}, {'max_samples': 0}, {'ace_target': 'loss'}, {'alpha': 2.},
                   {'factor_mode': 'x'}, {'bound': 0.}, {'bound': .5, 'factor_mode': 'r'}, {'iterations': 0},
                   {'ace_target': 'backdoor'}, {'ace_target': 'fairness', 'target_class': 0}, {'particles': 0}):
      with self.subTest(str(change)), self.assertRaises(BadInputError):
        dataclasses.replace(care.Config(), **change)


if __name__ == '__main__':
  absltest.main()
