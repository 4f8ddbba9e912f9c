"""Section 8 of the AdRep specification."""
import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax import linen as nn

from jaxfix import methods, predict
from jaxfix.classifier import Classifier, flat_weights
from jaxfix.errors import BadInputError, RepairFailure, Unadaptable
from jaxfix.localize import output_layer, sampling
from jaxfix.localize.targets import UNUSED, Targets
from jaxfix.methods.neuron import adrep
from jaxfix.models import layers
from jaxfix.problem import Split
from jaxfix.search import weight_swarm
from tests import networks, tiny

_SHORT = adrep.Config(particles=8, iterations=12, window=2)


def _targets(*index):
  return Targets(('fc1',), (jnp.array([*index, UNUSED], jnp.int32),))


class CriterionTest(parameterized.TestCase):

  @parameterized.parameters(
    ((1, 1.1, 1.2, 1.205), False), ((1, 1.1, 1.2, 1.205, 1.206), True), ((1, 1.2, 1.3), False), ((1, 1), False),
    ((1, 1, 1), True))
  def test_stagnation_by_hand(self, log, expected):
    """Window 2, threshold .01; relative rises .0954545, .005, .3, too few, 0."""
    curve = np.full(10, np.nan, np.float32)
    curve[0] = .1   # of the first positions, which the log leaves out
    curve[1:len(log) + 1] = log
    self.assertEqual(bool(adrep.stagnated(jnp.asarray(curve), len(log), 2, .01)), expected)

  def test_jaccard_by_hand_and_strict(self):
    a, b = _targets(1, 2, 3), _targets(2, 3, 4)
    self.assertEqual(adrep.jaccard(a, b), .5)
    self.assertEqual(adrep.jaccard(a, a), 1.)
    problem = tiny.problem('mlp')
    path = output_layer.output_layer(problem.classifier)
    head = output_layer.head(problem.classifier, path)
    x = output_layer.inputs(problem.classifier, problem.repair.x, path)
    pool = adrep._make_pool(x, problem.repair.y, *problem.failing_and_passing())
    vectors = np.random.default_rng(0).normal(0, .1, (6, 4)).astype(np.float32)
    for threshold, expected in ((.5, 5), (.6, 3)):   # the earliest iteration after a window of 2, or never
      with mock.patch.object(adrep, '_localize', return_value=b):
        self.assertEqual(adrep._localization_moved(head, a, pool, vectors, threshold, _SHORT), expected)
    cured = mock.Mock(wraps=pool, failing=lambda c: np.zeros(3, bool))   # nothing fails any more
    for threshold, expected in ((.5, 3), (0., 5)):
      self.assertEqual(adrep._localization_moved(head, a, cured, vectors, threshold, _SHORT), expected)


class FitnessTest(absltest.TestCase):

  def test_numbers_by_hand(self):
    sums = jnp.array([3., .5 * 10, 190., .1 * 200])
    self.assertAlmostEqual(float(adrep.normalized_fitness(sums, 10, 200)), 1.1348485, places=5)
    self.assertEqual(float(adrep.normalized_fitness(jnp.full(4, jnp.inf), 10, 200)), 0.)


class SamplingTest(absltest.TestCase):

  def test_sizes_by_hand(self):
    self.assertEqual(sampling.part_even_counts(200, np.array([50, 30, 20])).tolist(), [88, 61, 48])
    labels, passing = np.repeat(np.arange(3), (500, 300, 200)), np.arange(1000, 2000)
    lucky = set()
    for seed in range(8):
      chosen = sampling.part_even_sample(passing, labels, 200, key=jax.random.key(seed))
      self.assertLen(set(chosen.tolist()), 200)
      extra = np.bincount(labels[chosen - 1000]) - (88, 61, 48)
      self.assertEqual(sorted(extra.tolist()), [0, 0, 3])
      lucky.add(int(extra.argmax()))
    self.assertGreater(len(lucky), 1)

  def test_what_a_class_lacks_comes_from_the_others(self):
    labels, passing = np.repeat(np.arange(2), (4, 300)), np.arange(304)
    chosen = sampling.part_even_sample(passing, labels, 200, key=jax.random.key(0))
    self.assertEqual(np.bincount(labels[chosen]).tolist(), [4, 196])
    self.assertEqual(sampling.part_even_sample(passing, labels, 304, key=jax.random.key(0)).tolist(), passing.tolist())
    self.assertEmpty(sampling.part_even_sample(passing, labels, 0, key=jax.random.key(0)))


class RepairTest(parameterized.TestCase):

  def _recorded(self, config, key):
    """A repair of the tiny MLP, and the calls of `_swarm` with what they returned."""
    calls, original = [], adrep._swarm

    def swarm(*args, **kwargs):
      result = original(*args, **kwargs)
      calls.append((args, kwargs, jax.device_get(result)))
      return result

    with mock.patch.object(adrep, '_swarm', swarm):
      return methods.run(adrep.METHOD, tiny.problem('mlp'), config, key=key), calls

  @parameterized.parameters(('stagnation', .02), ('localization', 1.))
  @pytest.mark.slow
  def test_rounds_go_on_from_the_best_patch_within_the_budget(self, criterion, threshold):
    config = dataclasses.replace(_SHORT, criterion=criterion, threshold=threshold)
    repair, calls = self._recorded(config, jax.random.key(3))
    self.assertGreater(len(calls), 1)
    steps = np.diff([kwargs['left'] for _, kwargs, _ in calls]) * -1
    self.assertTrue((steps >= config.window + 1).all())
    self.assertLessEqual(calls[-1][1]['left'] + steps.sum(), config.iterations)
    self.assertLessEqual(len(repair.trace.curves['mean_fitness']), config.iterations + 1)
    fitness = []
    for (args, _, (vectors, curves, _)), (later, *_), taken in zip(calls, calls[1:], steps, strict=False):
      kernel = np.array(args[0].params['fc1']['kernel'])
      index = np.asarray(args[1].index[0])
      self.assertLen(index, 64)
      kernel.ravel()[index[index != UNUSED]] = vectors[taken][index != UNUSED]
      np.testing.assert_array_equal(kernel, later[0].params['fc1']['kernel'])   # padding changed nothing
      fitness.append(curves[0, taken])
    if criterion == 'stagnation':
      np.testing.assert_allclose([kwargs['threshold'] for _, kwargs, _ in calls], threshold / 2.**np.arange(len(calls)))
    self.assertGreaterEqual(repair.trace.curves['best_fitness'][-1], max(fitness))
    chosen, = set(repair.trace.selected.values())
    self.assertEqual(repair.trace.curves['round_fitness'][chosen], repair.trace.curves['best_fitness'][-1])

  def test_without_a_switch_it_is_one_run_of_the_swarm(self):
    problem, key = tiny.problem('mlp'), jax.random.key(5)
    config = dataclasses.replace(_SHORT, threshold=0.)
    repair, calls = self._recorded(config, key)
    self.assertLen(calls, 1)
    (head, targets, samples, num_neg, num_pos), kwargs, _ = calls[0]
    settings = dataclasses.replace(config.swarm, window=config.iterations)   # Arachne's own stop is off
    outcome, _ = weight_swarm.search(
      head, targets, samples, num_neg, num_pos, key=kwargs['key'], settings=settings, iterations=config.iterations,
      group=kwargs['group'], fitness=adrep.normalized_fitness, first='current')
    self.assertEqual(int(outcome.steps), config.iterations)
    np.testing.assert_array_equal(repair.trace.curves['best_fitness'], outcome.best_curve)
    np.testing.assert_array_equal(repair.trace.curves['mean_fitness'], outcome.mean_curve)
    used = np.asarray(targets.used)
    np.testing.assert_array_equal(np.float32([e.after for e in repair.trace.edits]), outcome.best.vector[used])
    np.testing.assert_array_equal(outcome.best.vector[~used], 0)
    old, new = (flat_weights(c.variables)['params/fc3/kernel'] for c in (problem.classifier, repair.classifier))
    self.assertContainsSubset(np.flatnonzero(old != new).tolist(), np.asarray(targets.index[0])[used].tolist())

  def test_the_reported_fitness_is_that_of_the_whole_repaired_network(self):
    problem, key = tiny.problem('mlp'), jax.random.key(3)
    repair, calls = self._recorded(_SHORT, key)
    failing, passing = problem.failing_and_passing()
    keys = jax.random.split(key, 3)
    total = 0.
    for rows in (sampling.choose_failures(failing, _SHORT.failure_share, key=keys[0]),
                 sampling.part_even_sample(passing, problem.repair.y[passing], 200, key=keys[1])):
      part = problem.repair.take(rows)
      logits = predict.logits(repair.classifier, part.x).astype(np.float64)
      loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(rows)), part.y]
      total += ((logits.argmax(1) == part.y).sum() + 1) / ((loss.mean() + 1) * len(rows))
    np.testing.assert_allclose(repair.trace.curves['best_fitness'][-1], total, rtol=1e-4)

  def test_failing_are_those_of_the_set_and_broken_ones_of_its_classes(self):
    x, y = np.eye(6, dtype=np.float32), np.array([0, 0, 1, 1, 2, 0])
    pool = adrep._make_pool(x, y, np.array([1]), np.array([0, 2, 3, 4, 5]))   # sample 1, of class 0, fails
    self.assertEqual(pool.y.tolist(), [0, 0, 0])
    np.testing.assert_array_equal(pool.x, x[[1, 0, 5]])
    kernel = np.zeros((6, 3), np.float32)
    kernel[[0, 5], 0], kernel[1, 2] = 1., 1.
    head = networks.network('mlp', (6,), num_classes=3, hidden=())
    head = head.with_params({'fc1': {'kernel': kernel, 'bias': np.zeros(3, np.float32)}})
    self.assertEqual(pool.failing(head).tolist(), [True, False, False])
    kernel = kernel.copy()
    kernel[1], kernel[5] = (1, 0, 0), (0, 1, 0)   # fixed, and another broken
    head = head.with_params({'fc1': {'kernel': kernel, 'bias': np.zeros(3, np.float32)}})
    self.assertEqual(pool.failing(head).tolist(), [False, False, True])

  def test_a_class_without_failures_is_a_failure_and_no_dense_output_unadaptable(self):
    split = Split(np.zeros((3, 2), np.float32), np.array([0, 1, 1]))
    config = dataclasses.replace(_SHORT, failure_class=1, failure_share=1.)
    wrong = np.array([True, False, True])
    self.assertEqual(adrep._failures(split, wrong, config, key=jax.random.key(0)).tolist(), [2])
    with self.assertRaisesRegex(RepairFailure, 'class 4'):
      adrep._failures(split, wrong, dataclasses.replace(config, failure_class=4), key=jax.random.key(0))

    class Convolution(nn.Module):
      @nn.compact
      def __call__(self, x, train=False):
        return layers.GlobalAvgPool(name='pool')(layers.Conv(10, (3, 3), name='conv')(x))

    module, shape = Convolution(), (8, 8, 1)
    c = networks.filled(Classifier(layers.variable_shapes(module, shape), module, shape, 10))
    problem = dataclasses.replace(tiny.problem('mlp'), classifier=c, history=None)
    with self.assertRaisesRegex(Unadaptable, 'Dense'):
      methods.run(adrep.METHOD, problem, key=jax.random.key(0))

  def test_bad_settings_are_refused(self):
    for change in ({'iterations': 0}, {'rounds': 0}, {'criterion': 'both'}, {'window': 0}, {'threshold': 2.},
                   {'failure_share': 0.}, {'phi': 4.}, {'particles': 0}):
      with self.assertRaises(BadInputError):
        dataclasses.replace(_SHORT, **change)


if __name__ == '__main__':
  absltest.main()
