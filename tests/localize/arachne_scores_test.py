"""Sections 8.1, 8.2, 8.3, 8.9 and 8.11 of the Arachne specification: scores, fronts, samples, with numbers by hand."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax import linen as nn

from jaxfix import classifier as classifiers
from jaxfix import models
from jaxfix.errors import BadInputError, UnknownNameError
from jaxfix.localize import sampling
from jaxfix.localize.batches import make_batches
from jaxfix.localize.forward_impact import forward_impact, output_impact, raw_forward_impact
from jaxfix.localize.gradient_loss import gradient_loss
from jaxfix.localize.linear import kernel_layers
from jaxfix.localize.pareto import pareto_front
from jaxfix.models import layers
from jaxfix.search import score
from tests import tiny


def _last_layer():
  """Section 8.1: a single dense layer W = [[.5, -1], [.25, 1]], no bias."""
  c = classifiers.create(models.build('mlp', num_classes=2, hidden=()), input_shape=(2,), num_classes=2,
                         key=jax.random.key(0))
  return c.with_params({'fc1': {'kernel': jnp.array([[.5, -1.], [.25, 1.]]), 'bias': jnp.zeros(2)}})


_NEGATIVE = (np.array([[1., 2.]], np.float32), np.array([0]))
_POSITIVE = (np.array([[2., 1.], [1., 0.]], np.float32), np.array([0, 0]))


class LastLayerTest(absltest.TestCase):

  def test_scores_by_hand(self):
    c = _last_layer()
    negative, positive = make_batches(*_NEGATIVE), make_batches(*_POSITIVE)
    gl = [gradient_loss(c, b, paths=('fc1',))['fc1'] for b in (negative, positive)]
    np.testing.assert_allclose(gl[0], [[.5, .5], [1, 1]], atol=1e-6)
    np.testing.assert_allclose(gl[1], [[.373124, .373124], [.095349, .095349]], atol=1e-6)
    np.testing.assert_allclose(output_impact(c, negative, paths=('fc1',))['fc1'], [.5, .5], atol=1e-6)
    fi = [forward_impact(c, b, paths=('fc1',))['fc1'] for b in (negative, positive)]
    np.testing.assert_allclose(fi[0], np.array([[.5, .333333], [.5, .666667]]) * .5, atol=1e-6)
    np.testing.assert_allclose(fi[1], np.array([[.9, .833333], [.1, .166667]]) * .5, atol=1e-6)
    s_gl, s_fi = (v[0] / (1 + v[1]) for v in (gl, fi))
    np.testing.assert_allclose(s_gl, [[.364133, .364133], [.912951, .912951]], atol=1e-6)
    np.testing.assert_allclose(s_fi, [[.172414, .117647], [.238095, .307692]], atol=1e-6)
    self.assertEqual(pareto_front(np.ravel(s_gl), np.ravel(s_fi)).tolist(), [3])   # (1, 1)

  def test_the_mean_is_the_sum_over_the_number_of_samples(self):
    c, positive = _last_layer(), make_batches(*_POSITIVE)
    total = gradient_loss(c, positive, paths=('fc1',))['fc1']
    mean = gradient_loss(c, positive, paths=('fc1',), reduction='mean')['fc1']
    np.testing.assert_allclose(mean, total / 2, rtol=1e-6)

  def test_raw_impact_averages_over_all_samples_not_the_first(self):
    raw = raw_forward_impact(_last_layer(), make_batches(*_POSITIVE), paths=('fc1',))['fc1']
    np.testing.assert_allclose(raw, [[.75, 1.5], [.125, .5]], atol=1e-6)


class ConvolutionTest(absltest.TestCase):

  def test_shares_by_hand(self):
    """Section 8.11: 3x3 input 1..9, kernel [[1, -1], [2, 0]], valid; G picks one output position."""

    class OneConv(nn.Module):
      @nn.compact
      def __call__(self, x, train=False):
        x = layers.Conv(1, (2, 2), padding='VALID', use_bias=False, name='conv')(x)
        return layers.Dense(2, name='fc')(layers.Flatten(name='flatten')(x))

    c = classifiers.create(OneConv(), input_shape=(3, 3, 1), num_classes=2, key=jax.random.key(0))
    x = np.arange(1., 10).reshape(1, 3, 3, 1).astype(np.float32)
    for position, expected in ((0, [[1 / 11, 2 / 11], [8 / 11, 0]]), (3, [[5 / 27, 6 / 27], [16 / 27, 0]])):
      last = np.zeros((4, 2), np.float32)
      last[position] = (1., .5)   # the sum of outputs depends on this position alone
      c = c.with_params({'conv': {'kernel': jnp.array([[1., -1.], [2., 0.]])[..., None, None]},
                         'fc': {'kernel': jnp.asarray(last), 'bias': jnp.zeros(2)}})
      fi = forward_impact(c, make_batches(x, np.array([0])), paths=('conv',))['conv']
      np.testing.assert_allclose(fi[..., 0, 0], expected, atol=1e-6)

  @pytest.mark.slow
  def test_scores_do_not_depend_on_order_or_on_batches(self):
    problem = tiny.problem('resnet')
    paths = tuple(layer.path for layer in kernel_layers(problem.classifier))
    split = problem.repair.take(np.arange(50))
    back = split.take(np.arange(50)[::-1])
    for measure in (gradient_loss, forward_impact, raw_forward_impact):
      a = measure(problem.classifier, make_batches(split.x, split.y), paths=paths)
      b = measure(problem.classifier, make_batches(back.x, back.y, batch_size=16), paths=paths)
      for path in paths:
        self.assertEqual(a[path].shape, problem.classifier.params[path]['kernel'].shape)
        np.testing.assert_allclose(a[path], b[path], rtol=2e-3, atol=1e-5)

  def test_gradient_loss_is_the_derivative_of_the_summed_loss(self):
    problem = tiny.problem('resnet')
    split = problem.repair.take(np.arange(20))

    def loss(params):
      logits = problem.classifier.with_params(params).logits(split.x)
      return -jax.nn.log_softmax(logits)[np.arange(20), split.y].sum()

    expected = jax.jit(jax.grad(loss))(problem.classifier.params)['conv2']['kernel']
    got = gradient_loss(problem.classifier, make_batches(split.x, split.y), paths=('conv2',))['conv2']
    np.testing.assert_allclose(got, np.abs(expected), rtol=1e-3, atol=1e-4)

  def test_unknown_layers_are_named(self):
    with self.assertRaisesRegex(UnknownNameError, 'conv2'):
      kernel_layers(tiny.problem('resnet').classifier, ('conv3',))


class FrontTest(parameterized.TestCase):

  @parameterized.parameters(
    ([(1, 5), (2, 4), (3, 3), (2, 2), (5, 1), (5, 1)], [0, 1, 2, 4]),
    ([(97, 23), (55, 77), (34, 76), (80, 60), (99, 4), (81, 5), (5, 81), (30, 79), (15, 80), (70, 65), (90, 40),
      (40, 30)], [0, 1, 3, 4, 6, 7, 8, 9, 10]))
  def test_fronts_by_hand(self, points, expected):
    a, b = np.array(points, float).T
    self.assertEqual(pareto_front(a, b).tolist(), expected)

  def test_against_the_definition(self):
    rng = np.random.default_rng(0)
    for _ in range(30):
      a, b = rng.integers(0, 8, (2, 40)).astype(float)
      a[rng.random(40) < .1] = np.nan
      keep = []
      for p in range(40):
        beaten = (a >= a[p]) & (b >= b[p]) & ((a > a[p]) | (b > b[p]))
        equal = (a == a[p]) & (b == b[p])
        if not np.isnan(a[p]) and not beaten.any() and np.flatnonzero(equal)[0] == p:
          keep.append(p)
      self.assertEqual(pareto_front(a, b).tolist(), keep)

  def test_nothing_finite_is_an_empty_front(self):
    self.assertEqual(pareto_front(np.full(3, np.nan), np.ones(3)).tolist(), [])


class SamplingTest(parameterized.TestCase):

  @parameterized.parameters((10, (50, 30, 20), (5, 3, 2)), (7, (90, 9, 1), (6, 1, 1)))
  def test_shares_of_the_classes(self, total, counts, expected):
    self.assertEqual(tuple(sampling.balanced_counts(total, np.array(counts))), expected)
    labels, passing = np.repeat(np.arange(3), counts), np.arange(1000, 1000 + sum(counts))
    chosen = sampling.balanced_sample(passing, labels, total, key=jax.random.key(0))
    self.assertEqual(tuple(np.bincount(labels[chosen - 1000])), expected)
    self.assertLen(set(chosen.tolist()), sum(expected))

  def test_all_where_there_are_no_more(self):
    chosen = sampling.balanced_sample(np.array([4, 9]), np.array([2, 0]), 5, key=jax.random.key(0))
    self.assertEqual(chosen.tolist(), [4, 9])

  def test_failures_by_share_and_by_type(self):
    failing = np.arange(10, 40)
    chosen = sampling.choose_failures(failing, 0.1, key=jax.random.key(0))
    self.assertLen(set(chosen.tolist()) & set(failing.tolist()), 3)
    self.assertLen(sampling.choose_failures(failing[:2], 0.1, key=jax.random.key(0)), 1)
    y, predicted = np.array([1, 1, 2, 1]), np.array([2, 2, 0, 0])
    self.assertEqual(sampling.failures_of_type(failing[:4], y, predicted, 0).tolist(), [10, 11])
    self.assertEqual(sampling.failures_of_type(failing[:4], y, predicted, 1).tolist(), [13])   # (1, 0) before (2, 0)
    with self.assertRaisesRegex(BadInputError, '3 types'):
      sampling.failures_of_type(failing[:4], y, predicted, 3)

  @pytest.mark.slow
  def test_multiplications_of_a_suffix(self):
    c = classifiers.create(models.build('lenet5'), input_shape=(28, 28, 1), num_classes=10, key=jax.random.key(0))
    self.assertEqual(score.multiply_adds(c, ('fc3',)), 840)
    self.assertEqual(score.multiply_adds(c, ('fc2', 'conv1')),
                     24 * 24 * 25 * 6 + 36 * 54 * 16 + 144 * 120 + 120 * 84 + 84 * 10)


if __name__ == '__main__':
  absltest.main()
