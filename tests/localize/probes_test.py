"""Sections 8.4 and 8.9 of the INNER specification, and what joint training of probes promises."""
import jax
import numpy as np
from absl.testing import absltest

from jaxfix.errors import BadInputError, EmptySplitError
from jaxfix.localize import probes
from tests.networks import network


def _clusters(n=120, d=4, classes=3, seed=0):
  """Separable features `[n, d]` around corners of a cube, and labels."""
  rng = np.random.default_rng(seed)
  y = np.arange(n, dtype=np.int32) % classes
  return (4 * np.eye(classes, d)[y] + rng.uniform(-1, 1, (n, d))).astype(np.float32), y


class ProbesTest(absltest.TestCase):

  def test_block_score_by_hand(self):
    fault = np.array([.1, .8, .1])
    self.assertAlmostEqual(probes.block_score(np.array([.7, .2, .1]), fault), 1.5534758, 5)
    both = np.array([.7, .2, .1])
    self.assertAlmostEqual(probes.block_score(both, both), .8018183, 5)

  def test_separable_features_are_learned_and_probes_do_not_disturb_each_other(self):
    features, y = _clusters()
    noise = np.random.default_rng(1).normal(size=(len(y), 4)).astype(np.float32)
    training = probes.Training(batch_size=50)   # the last batch is partial
    both, losses = probes.train_probes([features, noise], y, 3, training, key=jax.random.key(0))
    alike, _ = probes.train_probes([features, features], y, 3, training, key=jax.random.key(0))
    self.assertEqual(probes.accuracy(both[0], features, y), 1.)
    self.assertLess(probes.accuracy(both[1], noise, y), .9)
    self.assertEqual(losses.shape, (50, 2))
    self.assertLess(losses[-1, 0], .5 * losses[0, 0])
    np.testing.assert_array_equal(both[0]['kernel'], alike[0]['kernel'])
    np.testing.assert_allclose(probes.probabilities(both[0], features).sum(1), 1, atol=1e-5)

  def test_pooling(self):
    u = np.arange(32, dtype=np.float32).reshape(1, 4, 4, 2)
    np.testing.assert_allclose(probes.pool(u, 1), [[15, 16]])
    np.testing.assert_allclose(probes.pool(u, 2), [[5, 6, 9, 10, 21, 22, 25, 26]])
    np.testing.assert_array_equal(probes.pool(u[0, 0], 2), u[0, 0])

  def test_features_are_those_of_every_sample_once(self):
    classifier = network('mlp', (5,), hidden=(4, 3), num_classes=3)
    x = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    first, second = probes.pooled_features(classifier, x, (('relu1', 1), ('relu2', 1)), batch_size=3)
    fc1, fc2 = (classifier.params[name] for name in ('fc1', 'fc2'))
    by_hand = np.maximum(x @ fc1['kernel'] + fc1['bias'], 0)
    np.testing.assert_allclose(first, by_hand, atol=1e-5)
    np.testing.assert_allclose(second, np.maximum(by_hand @ fc2['kernel'] + fc2['bias'], 0), atol=1e-5)
    with self.assertRaises(EmptySplitError):
      probes.pooled_features(classifier, x[:0], (('relu1', 1),))
    with self.assertRaises(BadInputError):
      probes.Training(learning_rate=0.)


if __name__ == '__main__':
  absltest.main()
