"""Sections 8.2, 8.3, 8.5, 8.6, 8.7, 8.8 and 8.10 of the MODE specification; heat maps have tests of their own."""
import dataclasses
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix import methods, predict
from jaxfix.classifier import fingerprint, flat_weights
from jaxfix.errors import BadInputError, Unadaptable, UnknownNameError
from jaxfix.localize import heat_maps as heat
from jaxfix.localize import probes as probing
from jaxfix.methods.neuron import mode
from jaxfix.recipe import Recipe
from tests import tiny
from tests.networks import network

_SHORT = mode.Config(batch=20, rounds=2, probe_epochs=3)


def _recorded(problem, config, key=0):
  """The run without training, and the batches that it would have trained on."""
  batches = []

  def keep(model, batch, *args, **kwargs):
    batches.append(batch)
    return model

  with mock.patch.object(mode.train, 'fit', keep):
    return methods.run(mode.METHOD, problem, config, key=jax.random.key(key)), batches


def _rows(x, among):
  """For each sample, the rows of `among` that it equals."""
  return [np.flatnonzero((among == one).reshape(len(among), -1).all(axis=1)).tolist() for one in x]


class ClassesTest(parameterized.TestCase):

  @parameterized.parameters((.91, .90, 'under'), (.95, .90, None), (.99, .85, 'over'), (np.nan, .5, None))
  def test_kinds_of_bugs(self, on_train, on_valid, expected):
    self.assertEqual(mode.bug_kind(on_train, on_valid, .92, .10), expected)

  def test_under_fitting_classes_come_first_and_of_each_kind_the_worst(self):
    on_train, on_valid = np.array([.99, .5, .99, .95, .6, .99]), np.array([.7, .4, .6, .94, .3, np.nan])
    found = mode.buggy_classes(on_train, on_valid, .92, .10)
    self.assertEqual(found, [(4, 'under'), (1, 'under'), (2, 'over'), (0, 'over')])
    y, predicted = np.array([0, 0, 1, 3]), np.array([0, 1, 1, 0])
    np.testing.assert_array_equal(mode.class_accuracies(y, predicted, 4), [.5, 1, np.nan, 0])


class SelectionTest(parameterized.TestCase):
  draws = np.random.default_rng(0).random(400)

  def test_most_similar_inputs_come_first(self):
    scores = np.float32([(.5, .5), (.9, .1), (.2, .7)]) @ np.float32([.8, -.8])
    np.testing.assert_allclose(scores, (0, .64, -.4), atol=1e-6)
    chosen = mode.choose_inputs(np.zeros(3, int), scores, 0, 3, 1., self.draws[:3])
    np.testing.assert_array_equal(chosen, (1, 0, 2))

  @parameterized.parameters((20, 2, 8), (1, 1, 9))
  def test_shares_of_a_batch(self, of_the_class, targeted, others):
    y = np.array([1] * of_the_class + [0, 2] * 20)
    chosen = mode.choose_inputs(y, self.draws[:len(y)], 1, 10, .25, self.draws[:len(y)])
    self.assertLen(set(chosen), 10)
    self.assertEqual(((y[chosen] == 1).sum(), (y[chosen] != 1).sum()), (targeted, others))
    np.testing.assert_array_equal(chosen[:targeted], np.argsort(-self.draws[:of_the_class])[:targeted])

  def test_ties_are_broken_at_random(self):
    y = np.zeros(400, int)
    first = mode.choose_inputs(y, np.zeros(400), 0, 100, 1., self.draws)
    other = mode.choose_inputs(y, np.zeros(400), 0, 100, 1., np.random.default_rng(1).random(400))
    for chosen in (first, other):
      self.assertBetween((chosen < 100).sum(), 10, 45)   # 25 expected, never the first hundred
    self.assertNotEqual(set(first), set(other))

  def test_templates(self):
    features = np.float32([(1, 0), (.8, .2), (.1, .9), (.6, .5)])
    maps = heat.heat_maps(features, np.array([0, 0, 1, 0]), np.array([0, 0, 1, 1]), 3)
    under, over = mode.Bug(0, 'under'), mode.Bug(1, 'over')
    np.testing.assert_allclose(mode.template(maps, under, np.array([1]), 'most_similar'), (.8, -.8), atol=1e-6)
    np.testing.assert_allclose(mode.template(maps, under, np.array([2, 1]), 'most_similar'), (.8, -.8), atol=1e-6)
    np.testing.assert_array_equal(mode.template(maps, under, np.array([2]), 'most_similar'), 0)
    np.testing.assert_allclose(mode.template(maps, over, np.array([]), 'most_similar'), (-.5, .4), atol=1e-6)
    np.testing.assert_allclose(mode.template(maps, over, np.array([]), 'least_similar'), (-.1, -.9), atol=1e-6)
    np.testing.assert_allclose(mode.template(maps, mode.Bug(0, 'over'), np.array([]), 'most_similar'), (-.3, .4),
                               atol=1e-6)   # nothing is taken for class 0: the map of its own failures


class LayerTest(absltest.TestCase):

  def _model(self, scale):
    return {'kernel': scale * np.eye(3, dtype=np.float32), 'bias': np.zeros(3, np.float32)}

  def test_under_fitting_takes_the_first_layer_whose_model_says_the_same(self):
    f = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    models, features = [self._model(5)] * 4, [f, f[::-1], f[::-1], f]
    y, bug = f.argmax(axis=1), mode.Bug(0, 'under')
    self.assertEqual(heat.distance(probing.probabilities(models[1], features[1]),
                                   probing.probabilities(models[2], features[2])), 0)
    self.assertEqual(mode.choose_layer(models, features, y, features, y, bug, .01), 2)
    self.assertEqual(mode.choose_layer(models[:2], features[:2], y, features[:2], y, bug, .01), 1)

  def test_over_fitting_takes_the_last_layer_with_a_smaller_gap(self):
    """Gaps of the class, by layer: 1/2, 0, 1, 1."""
    hit, miss = np.float32([1, 0, 0]), np.float32([0, 1, 0])
    on_train, on_valid = [np.stack([hit, hit])] * 4, [np.stack(pair) for pair in (
      (hit, miss), (hit, hit), (miss, miss), (miss, miss))]
    y, bug = np.array([0, 0]), mode.Bug(0, 'over')
    self.assertEqual(mode.choose_layer([self._model(1)] * 4, on_train, y, on_valid, y, bug, .01), 1)
    self.assertEqual(mode.choose_layer([self._model(1)] * 2, on_train[2:], y, on_valid[2:], y, bug, .01), 1)


class RepairTest(parameterized.TestCase):

  def test_without_a_buggy_class_the_model_is_returned_as_it_is(self):
    problem = tiny.problem('mlp')
    repair, batches = _recorded(problem, mode.Config(theta=0., gamma=1.))
    self.assertEqual(fingerprint(repair.classifier), fingerprint(problem.classifier))
    self.assertEmpty(batches)
    self.assertIn('Nothing to do', repair.trace.notes[0])

  @parameterized.parameters(
    {}, {'layer': 'auto', 'weigh': True, 'reselect': True}, {'layer': 'fc1', 'gamma': -1., 'theta': 0.},
    {'overfit': 'least_similar', 'gamma': -1., 'theta': 0.})
  def test_no_input_is_used_twice_and_none_comes_from_validation(self, **changes):
    problem = tiny.problem('mlp')
    config = dataclasses.replace(_SHORT, **changes)
    repair, batches = _recorded(problem, config)
    self.assertNotEmpty(batches)
    size = repair.trace.solver['new_inputs']
    new = 0
    seen = []
    for batch in batches:
      self.assertLen(batch, len(batches[0]))   # training meets one shape
      pool, valid = (_rows(batch.x, s.x) for s in (problem.repair, problem.valid))
      self.assertFalse(any(valid))   # the digits have no image twice
      inputs = [rows[0] for rows in pool if rows]
      self.assertTrue((problem.repair.y[inputs] == batch.y[:len(inputs)]).all())
      seen += inputs
      new += len(inputs)
    self.assertEqual(new, size)
    self.assertLen(set(seen), len(seen))
    self.assertEqual(fingerprint(repair.classifier), fingerprint(problem.classifier))

  def test_no_class_spends_the_share_of_another(self):
    problem = tiny.problem('mlp')
    repair, batches = _recorded(problem, mode.Config(batch=1000, rounds=5, probe_epochs=3, theta=1., max_classes=4))
    self.assertLen(batches, 4)   # every class takes its quarter of the 100 at once
    fresh = [sum(bool(rows) for rows in _rows(batch.x, problem.repair.x)) for batch in batches]
    self.assertEqual(fresh, [25] * 4)
    _, batches = _recorded(problem, mode.Config(batch=10, rounds=5, probe_epochs=3, theta=1., max_classes=4))
    fresh = [sum(bool(rows) for rows in _rows(batch.x, problem.repair.x)) for batch in batches]
    self.assertEqual(fresh[:10], [10, 10, 5] * 3 + [10])   # then the last class may have no input left

  @parameterized.parameters(('adam', 3e-3, 3e-4), ('adamw', 3e-3, 3e-4), ('sgd', 5e-2, 1e-4))
  def test_rate_of_retraining(self, optimizer, rate, expected):
    recipe = mode.retraining_recipe(Recipe(optimizer=optimizer, learning_rate=rate), mode.Config())
    self.assertEqual(recipe.optimizer, 'adam')
    self.assertAlmostEqual(recipe.learning_rate, expected)

  def test_scores_are_products_of_scaled_features_and_the_map(self):
    problem = tiny.problem('mlp')
    c = problem.classifier
    w = flat_weights(c.variables)
    h = np.asarray(problem.repair.x, np.float32).reshape(len(problem.repair), -1)
    for layer in ('fc1', 'fc2'):
      h = np.maximum(h @ w[f'params/{layer}/kernel'] + w[f'params/{layer}/bias'], 0)
    low, high = h.min(axis=0), h.max(axis=0)
    rng = np.random.default_rng(0)
    template, weights = rng.normal(size=12).astype('f'), rng.uniform(.5, 2, 12).astype('f')
    where = mode._taps(c, mode.Config())[-1]   # behind the activation of fc2
    analysis = mode.Analysis(where, heat.Scaling((low + high) / 2, (high - low) / 2), weights, template)
    label, pool = 3, np.arange(5, 90)
    found = mode.score_inputs(problem, c, label, pool, analysis)
    spread = np.where(high > low, high - low, 1)
    expected = np.where(high > low, 2 * (h - low) / spread - 1, 0) * weights @ template
    of_class = problem.repair.y[pool] == label
    np.testing.assert_allclose(found[of_class], expected[pool][of_class], atol=1e-4)

  def test_classes_that_are_missing_from_the_pool_are_passed_over(self):
    problem = tiny.problem('mlp')
    predicted = predict.labels(problem.classifier, problem.valid.x)
    worst = int(np.nanargmin(mode.class_accuracies(problem.valid.y, predicted, 10)))
    problem = dataclasses.replace(problem, repair=problem.repair.take(problem.repair.y != worst))
    repair, batches = _recorded(problem, dataclasses.replace(_SHORT, theta=.9, max_classes=1))
    self.assertEmpty(batches)
    self.assertIn(f'Class {worst}, under-fitting: no new inputs', ' '.join(repair.trace.notes))

  def test_what_is_missing_is_unadaptable(self):
    problem = tiny.problem('mlp')
    empty = problem.repair.take(np.zeros(0, int))
    single = network('mlp', (8, 8, 1), hidden=(), num_classes=10)
    for change, reason in (({'repair': empty, 'failures': 'train'}, 'repair split'),
                           ({'classifier': single, 'history': None}, 'hidden')):
      with self.assertRaisesRegex(Unadaptable, reason):
        methods.run(mode.METHOD, dataclasses.replace(problem, **change), _SHORT, key=jax.random.key(0))
    with self.assertRaises(UnknownNameError):
      methods.run(mode.METHOD, problem, dataclasses.replace(_SHORT, layer='fc9'), key=jax.random.key(0))

  def test_bad_settings_are_refused(self):
    for change in ({'rounds': 0}, {'share': 2.}, {'theta': -1.}, {'rate_factor': 0.}, {'confused': 0},
                   {'overfit': 'random'}, {'probe_rate': 0.}):
      with self.subTest(**change), self.assertRaises(BadInputError):
        dataclasses.replace(_SHORT, **change)


@pytest.mark.slow   # trains
class SlowRepairTest(parameterized.TestCase):

  @parameterized.parameters('mlp', 'lenet5', 'resnet')
  def test_accuracy_on_validation_never_falls_and_rises_with_a_larger_rate(self, kind):
    problem = tiny.problem(kind)
    repair = methods.run(mode.METHOD, problem, mode.Config(rate_factor=1.), key=jax.random.key(0))
    before, after = repair.trace.objective
    right = predict.labels(repair.classifier, problem.valid.x) == problem.valid.y
    self.assertAlmostEqual(after, right.mean(), 6)
    self.assertGreater(after, before)


if __name__ == '__main__':
  absltest.main()
