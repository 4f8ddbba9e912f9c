"""Sections 8.1, 8.4, 8.7, 8.9 and 8.11 of the MODE specification."""
import dataclasses

import numpy as np
from absl.testing import absltest

from jaxfix.localize import heat_maps as heat
from jaxfix.localize import probes
from tests.networks import network

_F = np.float32([(1, 0), (.8, .2), (.1, .9), (.6, .5)])
_Y, _PREDICTED = np.array([0, 0, 1, 0]), np.array([0, 0, 1, 1])


class HeatMapsTest(absltest.TestCase):

  def test_maps_by_hand(self):
    maps = heat.heat_maps(_F, _Y, _PREDICTED, 2)
    np.testing.assert_allclose(maps.correct, [(.9, .1), (.1, .9)], atol=1e-6)
    np.testing.assert_allclose(maps.wrong, [(.6, .5), (0, 0)], atol=1e-6)
    np.testing.assert_allclose(maps.confused, [(0, 0), (.6, .5)], atol=1e-6)
    for counts, expected in ((maps.num_correct, (2, 1)), (maps.num_wrong, (1, 0)), (maps.num_confused, (0, 1))):
      np.testing.assert_array_equal(counts, expected)
    np.testing.assert_allclose(heat.between_classes(maps, 0, 1), (.8, -.8), atol=1e-6)
    np.testing.assert_allclose(heat.wrong_against_correct(maps, 0), (-.3, .4), atol=1e-6)
    np.testing.assert_allclose(heat.confused_against_correct(maps, 1), (.5, -.4), atol=1e-6)

  def test_differences_between_classes_are_antisymmetric_and_empty_sets_give_none(self):
    rng = np.random.default_rng(0)
    y, predicted = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    maps = heat.heat_maps(rng.normal(size=(50, 4)).astype(np.float32), y, predicted, 4)
    self.assertGreater(np.abs(heat.between_classes(maps, 0, 2)).max(), 0)
    np.testing.assert_array_equal(heat.between_classes(maps, 0, 2), -heat.between_classes(maps, 2, 0))
    self.assertEqual(maps.num_correct[3], 0)
    np.testing.assert_array_equal(maps.correct[3], 0)
    for none in (heat.between_classes(maps, 0, 3), heat.wrong_against_correct(maps, 3),
                 heat.confused_against_correct(maps, 3)):
      np.testing.assert_array_equal(none, 0)

  def test_a_prediction_that_is_not_a_number_is_wrong_and_no_class_s(self):
    maps = heat.heat_maps(_F, _Y, np.array([0, -1, 1, -1]), 2)
    np.testing.assert_array_equal(maps.num_wrong, (2, 0))
    np.testing.assert_array_equal(maps.num_confused, (0, 0))

  def test_scaling_maps_the_range_to_the_unit_interval_around_0(self):
    features = np.float32([(0, 5, -2), (10, 5, 2), (5, 5, 1)])
    scaled = heat.fit_scaling(features)(features)
    np.testing.assert_allclose(scaled, [(-1, 0, -1), (1, 0, 1), (0, 0, .5)], atol=1e-6)

  def test_the_classes_that_a_class_is_taken_for(self):
    y, predicted = np.array([0] * 7 + [1]), np.array([2, 3, 3, 1, 2, 0, -1, 0])
    np.testing.assert_array_equal(heat.most_confused(y, predicted, 0, 2, 4), (2, 3))
    np.testing.assert_array_equal(heat.most_confused(y, predicted, 0, 9, 4), (2, 3, 1))
    np.testing.assert_array_equal(heat.most_confused(y, predicted, 1, None, 4), (0, 2, 3))
    self.assertEmpty(heat.most_confused(y, predicted, 3, 3, 4))

  def test_equal_predictions_have_no_distance(self):
    p = np.random.default_rng(0).dirichlet(np.ones(4), size=30)
    self.assertAlmostEqual(heat.distance(p, p), 0)
    self.assertAlmostEqual(heat.distance([[1., 0]], [[0, 1.]]), 1)
    self.assertGreater(heat.distance(p, p[::-1]), .01)

  def test_features_of_a_convolution_are_means_of_its_channels(self):
    classifier = network('lenet5', (28, 28, 1))
    params = {k: dict(v) for k, v in classifier.params.items()}
    params['conv1'] = {'kernel': 0 * params['conv1']['kernel'], 'bias': np.float32([.25, 1, 2, 3, 4, 5])}
    constant = dataclasses.replace(classifier, variables={'params': params})
    x = np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32)
    features, = probes.pooled_features(constant, x, (('relu1', 1),), batch_size=2)
    np.testing.assert_allclose(features, [[.25, 1, 2, 3, 4, 5]] * 2, atol=1e-6)


if __name__ == '__main__':
  absltest.main()
