"""Sections 8.1 to 8.3, 8.5 and 8.11 of the I-REPAIR specification: influences, ratios, masks, margins by hand."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import linen as nn

from jaxfix import models
from jaxfix.classifier import Classifier
from jaxfix.localize import influence
from jaxfix.localize.batches import make_batches
from jaxfix.models import layers, structure
from tests import networks

_X = np.array([[1., 2.], [3., -1.]], np.float32)


def linear(kernel, bias=(0., 0.)):
  """A single dense layer."""
  kernel = np.asarray(kernel, np.float32)
  variables = {'params': {'fc1': {'kernel': kernel, 'bias': np.asarray(bias, np.float32)}}}
  return Classifier(variables, models.build('mlp', num_classes=2, hidden=()), (2,), 2)


def _both(x_general=_X, batch_size=2, **options):
  c = linear([[1, -1], [.5, .25]])
  sets = [make_batches(x, np.ones(len(x)), batch_size=batch_size) for x in (_X, x_general)]
  return c, networks.quick_jit(lambda c, s, g: influence.influences(c, s, g, **options))(c, *sets)


class InfluenceTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 5)
  def test_numbers_by_hand_in_batches_of_any_size(self, batch_size):
    c, found = _both(batch_size=batch_size)
    np.testing.assert_allclose(c.logits(_X), [[2, -.5], [2.5, -3.25]], atol=1e-6)
    general, specific = found.general['fc1']['kernel'], found.specific['fc1']['kernel']
    np.testing.assert_allclose(general, [[2, -2], [.5, -.5]], atol=1e-6)
    np.testing.assert_allclose(specific, [[1.957312, -1.957312], [.425728, -.425728]], atol=1e-6)
    self.assertEqual(float(found.num_remaining), 2)
    ratio = influence.influence_ratio(specific, general, .5)
    np.testing.assert_allclose(ratio, [[1.957312, 1.957312], [1.702913, 1.702913]], atol=1e-6)
    self.assertTrue(influence.edge_mask(specific, general, .5).all())
    self.assertFalse(influence.edge_mask(specific, general, 1.).any())

  def test_only_wrong_samples_have_specific_influence(self):
    c, sure = linear([[1, -1], [.5, .25]]), make_batches(_X, [0, 1], batch_size=2)
    found = networks.quick_jit(influence.influences)(c, sure, sure)
    p = jax.nn.softmax(c.logits(_X[1:]))[0]
    np.testing.assert_allclose(found.specific['fc1']['kernel'], np.outer(_X[1], p - np.array([0, 1])), rtol=1e-5)
    self.assertEqual(float(found.num_remaining), 1)

  def test_general_influence_by_cross_entropy(self):
    _, found = _both(general_influence='ce')
    np.testing.assert_allclose(found.general['fc1']['kernel'], found.specific['fc1']['kernel'], rtol=1e-5)

  @parameterized.parameters('both', 'specific')
  def test_the_gradient_is_that_of_the_mean_over_the_union(self, train_on):
    x = np.concatenate([_X, 2 * _X[:1]])
    c, found = _both(x_general=x, train_on=train_on)
    union = np.concatenate([_X, x]) if train_on == 'both' else _X

    def loss(params):
      return -jax.nn.log_softmax(c.with_params(params).logits(union))[:, 1].mean()

    expected, slope = jax.value_and_grad(loss)(c.params)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(found.gradient['fc1']['kernel'], slope['fc1']['kernel'], rtol=1e-5)

  def test_scores(self):
    specific, general = jnp.array([.2, .01, 0]), jnp.array([.5, .3, 0])
    for gamma, ratio, mask in ((.1, (4., 1 / 3, 1), (1, 0, 1)), (.5, (.8, 1 / 15, 1), (0, 0, 1)),
                               (1., (.4, 1 / 30, 1), (0, 0, 1))):
      np.testing.assert_allclose(influence.influence_ratio(specific, general, gamma), ratio, rtol=1e-5)
      np.testing.assert_array_equal(influence.edge_mask(specific, general, gamma), np.array(mask, bool))

  def test_margins(self):
    logits = jnp.array([[2., 1, 0], [0, 3, 1], [1, 1, 0], [jnp.nan, 1, 0]])
    np.testing.assert_allclose(logits[:2, 1] - logits[:2].max(1), (-1, 0))
    np.testing.assert_array_equal(influence.remaining(logits, jnp.ones(4, jnp.int32)), (True, False, False, True))
    p = jax.nn.softmax(logits[1])
    gap = float(p[1] - p[2])
    np.testing.assert_allclose(influence.softmax_margin(logits[1:2], jnp.array([1]), .9), .9 - gap, rtol=1e-5)
    for tau, wrong in ((gap - .01, False), (gap + .01, True)):
      self.assertEqual(bool(influence.remaining(logits[1:2], jnp.array([1]), tau)[0]), wrong)

  def test_nodes(self):
    specific, general = jnp.array([[.2, -.1], [0, .3]]), jnp.full((2, 2), .1)
    np.testing.assert_allclose(influence.node_ratio(specific, general, 1.), (.5, 1.5), rtol=1e-5)
    np.testing.assert_array_equal(influence.node_mask(specific, general, 1.), [[False, False], [True, True]])
    self.assertFalse(influence.node_mask(0 * specific, 0 * general, 1.).any())   # strict: nothing at exactly 1


class _Dropping(nn.Module):
  """BatchNorm and dropout, to see which of them runs in training mode."""

  @nn.compact
  def __call__(self, x, train=False):
    x = layers.BatchNorm(name='bn')(layers.Dense(64, name='fc1')(x), train)
    return layers.Dense(2, name='fc2')(layers.Dropout(.5, name='drop')(x, train))


class DropoutTest(absltest.TestCase):

  def test_the_loss_drops_units_and_the_influences_do_not(self):
    shapes = layers.variable_shapes(_Dropping(), (2,))
    c = networks.filled(Classifier(shapes, _Dropping(), (2,), 2))
    batches = make_batches(_X, [0, 1], batch_size=2)
    run = networks.quick_jit(lambda key, drop: influence.influences(c, batches, batches, dropout=drop, key=key),
                  static_argnums=1)
    plain, first, second = run(jax.random.key(0), False), run(jax.random.key(0), True), run(jax.random.key(1), True)
    for a, b in zip(jax.tree.leaves(first.general), jax.tree.leaves(plain.general), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5)
    self.assertLen({float(found.loss) for found in (plain, first, second)}, 3)


class RowsTest(absltest.TestCase):

  def test_memory_of_a_batch_is_bounded(self):
    c = linear(np.zeros((2, 2)))
    each = sum(np.prod(layer.output_shape) for layer in structure.layer_list(c))   # Flatten and Dense
    self.assertEqual(influence.rows_per_batch(c), 256)
    self.assertEqual(influence.rows_per_batch(c, budget_bytes=8 * 3 * each), 3)
    self.assertEqual(influence.rows_per_batch(c, budget_bytes=1), 1)


if __name__ == '__main__':
  absltest.main()
