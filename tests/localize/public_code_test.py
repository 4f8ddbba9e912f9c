"""What Arachne's public code computes for convolutions, followed on purpose by `conv_fi='public'`."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import linen as nn

from jaxfix import classifier as classifiers
from jaxfix.localize.batches import make_batches
from jaxfix.localize.forward_impact import forward_impact, output_impact
from jaxfix.localize.pareto import pareto_front, public_code_front
from jaxfix.models import layers


class ConvThen(nn.Module):
  """A valid 2x2 convolution, an activation, dense."""
  activation: type[nn.Module] = layers.Relu

  @nn.compact
  def __call__(self, x, train=False):
    x = self.activation(name='activation')(layers.Conv(3, (2, 2), padding='VALID', name='conv')(x))
    return layers.Dense(4, name='fc')(layers.Flatten(name='flatten')(x))


def _network(activation=layers.Relu):
  return classifiers.create(ConvThen(activation), input_shape=(4, 4, 2), num_classes=4, key=jax.random.key(0))


def _public_impact(x, kernel, g):
  """Signed products over their absolute sum in the whole set, a mean over samples, a sum over positions; loops."""
  total = np.zeros(kernel.shape)
  for h in range(3):
    for w in range(3):
      for k in range(3):
        products = x[:, h:h + 2, w:w + 2] * kernel[..., k]
        total[..., k] += (products / np.abs(products).sum()).mean(axis=0) * g[h, w, k]
  return total


def _one_by_one(a, b):
  """Points in order; each one still there drops what exceeds it in neither score."""
  alive = np.ones(len(a), bool)
  for p in range(len(a)):
    if alive[p]:
      alive &= (a > a[p]) | (b > b[p]) | (np.arange(len(a)) == p)
  return np.flatnonzero(alive).tolist()


class ConvolutionTest(parameterized.TestCase):

  def test_against_loops(self):
    c, rng = _network(), np.random.default_rng(0)
    x = rng.normal(size=(6, 4, 4, 2)).astype(np.float32)
    batches = make_batches(x, np.zeros(6), batch_size=4)
    g = np.asarray(output_impact(c, batches, paths=('conv',))['conv'], np.float64)
    expected = _public_impact(x.astype(np.float64), np.asarray(c.params['conv']['kernel'], np.float64), g)
    got = forward_impact(c, batches, paths=('conv',), conv='public')['conv']
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-8)
    self.assertLess(float(got.min()), 0)

  def test_dense_layers_are_as_in_the_paper(self):
    c, x = _network(), np.random.default_rng(0).normal(size=(6, 4, 4, 2)).astype(np.float32)
    batches = make_batches(x, np.zeros(6))
    paper, public = (forward_impact(c, batches, paths=('conv', 'fc'), conv=conv) for conv in ('paper', 'public'))
    np.testing.assert_array_equal(paper['fc'], public['fc'])

  def test_a_position_that_is_dead_in_all_samples_makes_the_whole_kernel_nan(self):
    c, x = _network(), np.random.default_rng(0).random((6, 4, 4, 2)).astype(np.float32)
    x[:, :2, :2] = 0
    batches = make_batches(x, np.zeros(6))
    self.assertTrue(jnp.isnan(forward_impact(c, batches, paths=('conv',), conv='public')['conv']).all())
    self.assertTrue(jnp.isfinite(forward_impact(c, batches, paths=('conv',), conv='paper')['conv']).all())

  @parameterized.parameters(layers.Relu, layers.Tanh, layers.Sigmoid)
  def test_output_impact_is_taken_behind_the_activation(self, activation):
    """A dead or saturated unit has a slope of 0 or little before its activation, not behind it: every unit counts."""
    c, x = _network(activation), np.random.default_rng(0).normal(size=(5, 4, 4, 2)).astype(np.float32)
    rows = np.asarray(c.params['fc']['kernel']).sum(axis=1).reshape(3, 3, 3)
    got = output_impact(c, make_batches(x, np.zeros(5)), paths=('conv',))['conv']
    np.testing.assert_allclose(got, np.abs(rows) / np.abs(rows).sum(), rtol=1e-4)


class FrontTest(parameterized.TestCase):

  @parameterized.parameters(0., .05, .3, 1.)
  def test_nan_is_compared_as_the_public_code_does(self, share):
    rng = np.random.default_rng(1)
    for _ in range(60):
      a, b = rng.integers(0, 9, (2, 25)).astype(float)
      b[rng.random(25) < share] = np.nan
      self.assertEqual(public_code_front(a, b).tolist(), _one_by_one(a, b))

  def test_without_nan_it_is_the_front(self):
    a, b = np.random.default_rng(2).random((2, 500))
    self.assertEqual(public_code_front(a, b).tolist(), pareto_front(a, b).tolist())


if __name__ == '__main__':
  absltest.main()
