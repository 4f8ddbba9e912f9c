"""Sections 8.1, 8.2, 8.3, 8.5 and 8.7 of the NeuRecover specification, with numbers by hand."""
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix import classifier as classifiers
from jaxfix import models
from jaxfix.localize import history
from jaxfix.localize.batches import make_batches
from jaxfix.localize.forward_impact import raw_forward_impact
from jaxfix.localize.gradient_loss import output_gradient
from jaxfix.models import layers
from tests import networks, tiny


def _score(*best_first):
  """Scores of entries 0, 1, ... that rank in this order."""
  score = np.zeros(len(best_first))
  score[list(best_first)] = np.arange(len(best_first), 0, -1)
  return score


class SetsTest(parameterized.TestCase):

  def test_degraded_and_improved(self):
    earlier, later = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 1, 0, 0])
    self.assertEqual(np.flatnonzero(history.degraded(earlier, later)).tolist(), [1, 4])
    self.assertEqual(np.flatnonzero(history.degraded(later, earlier)).tolist(), [2])

  @parameterized.parameters((1, []), (2, [0]), (3, [0]), (4, []))
  def test_entries_by_hand(self, k, expected):
    chosen = history.suspicious_entries(k, _score(3, 0, 2, 1), (_score(0, 3, 2, 1), _score(1, 3, 2, 0)),
                                        (_score(3, 0, 1, 2), _score(1, 3, 0, 2)))
    self.assertEqual(np.flatnonzero(chosen).tolist(), expected)

  def test_no_improved_sample_protects_nothing(self):
    nothing = np.zeros(4)
    chosen = history.suspicious_entries(4, _score(3, 0, 2, 1), (_score(0, 3, 2, 1), nothing),
                                        (_score(3, 0, 1, 2), nothing))
    self.assertTrue(chosen.all())

  def test_the_largest_first_at_a_tie_and_nan_last(self):
    score = np.array([[1., np.nan], [2., 2.]])
    np.testing.assert_array_equal(history.top_k(score, 1), [[False, False], [True, False]])
    np.testing.assert_array_equal(history.top_k(score, 3), [[True, False], [True, True]])
    self.assertFalse(history.top_k(score, 0).any())


class QuotaTest(absltest.TestCase):

  def test_numbers_by_hand(self):
    suspicion = [history.layer_suspicion(*shares) for shares in ((.2, .6, .25), (.8, .4, .75))]
    np.testing.assert_allclose(suspicion, (.0625, .5))
    self.assertEqual([history.quota(size, s, 1.) for size, s in zip((100, 40), suspicion, strict=True)], [6, 20])

  def test_halves_go_to_even_and_relaxed_quotas_are_capped(self):
    self.assertEqual([history.quota(5, .5, 1.), history.quota(7, .5, 1.)], [2, 4])
    self.assertEqual(history.quota(40, .5, 4., 0.5), 20)
    self.assertEqual(history.quota(40, .5, 4.), 40)

  def test_a_layer_without_impact_is_not_suspected(self):
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      self.assertEqual(history.layer_suspicion(0., 0., .5), 0.)
      self.assertEqual(history.layer_suspicion(0., .3, .5), 0.)
      self.assertEqual(history.shares_of_means({'a': np.zeros(3), 'b': np.zeros(2)}), {'a': 0., 'b': 0.})

  def test_shares_are_of_means_not_of_sums(self):
    shares = history.shares_of_means({'a': np.full((2, 5), 3.), 'b': np.array([0., 2.])})
    self.assertEqual(shares, {'a': .75, 'b': .25})


class HistoryTest(absltest.TestCase):

  def test_the_model_and_what_comes_after_it_are_not_earlier(self):
    first, last = networks.network('mlp', (4,), 0, hidden=()), networks.network('mlp', (4,), 1, hidden=())
    again = last.with_variables(jax.tree.map(np.array, dict(last.variables)))   # other arrays, the same weights
    self.assertEqual(history.before((first, last), again), (first,))
    self.assertEqual(history.before((first, last), first), ())
    self.assertEqual(history.before((first,), last), (first,))
    self.assertEqual(history.before((), last), ())

  def test_movement_is_of_every_array(self):
    module, shape = tiny.TinyResNet(), (8, 8, 1)
    abstract = classifiers.Classifier(layers.variable_shapes(module, shape), module, shape, 10)
    old, new = networks.filled(abstract, 0), networks.filled(abstract, 1)
    moved = history.weight_movement(old, new)
    self.assertEqual(set(moved), set(classifiers.flat_weights(old.variables)))
    np.testing.assert_array_equal(moved['batch_stats/bn1/mean'],
                                  np.abs(new.variables['batch_stats']['bn1']['mean']
                                         - old.variables['batch_stats']['bn1']['mean']))


class ImpactTest(absltest.TestCase):

  def _one_layer(self):
    module = models.build('mlp', num_classes=2, hidden=())
    return classifiers.Classifier({'params': {'fc1': {'kernel': jnp.array([[.5, -1.], [.25, 1.]]),
                                                      'bias': jnp.zeros(2)}}}, module, (2,), 2)

  def test_forward_impact_by_hand(self):
    sample = make_batches(np.array([[1., -2.]], np.float32), np.array([0]))
    impact = raw_forward_impact(self._one_layer(), sample, paths=('fc1',))['fc1']
    np.testing.assert_allclose(impact, [[.5, 1.], [.5, 2.]], atol=1e-6)

  def test_output_gradient_is_the_sum_of_inputs_and_vanishes_after_a_softmax(self):
    """d(sum_j sum_i o_i W_ij)/dW_ij = sum over samples of o_i: 1 + 3 and |-2 + 1.5|."""
    samples = make_batches(np.array([[1., -2.], [3., 1.5]], np.float32), np.array([0, 1]))
    gradient = output_gradient(self._one_layer(), samples, paths=('fc1',))['fc1']
    np.testing.assert_allclose(gradient, [[4., 4.], [.5, .5]], atol=1e-6)
    flat = output_gradient(self._one_layer(), samples, paths=('fc1',), head=jax.nn.softmax)['fc1']
    np.testing.assert_allclose(flat, 0., atol=1e-6)


if __name__ == '__main__':
  absltest.main()
