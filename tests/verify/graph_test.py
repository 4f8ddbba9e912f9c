"""The tracer and the normal form: both compute what the network computes, and refuse what they cannot say."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax import linen as nn

from jaxfix.classifier import Classifier
from jaxfix.errors import BadInputError, Unadaptable
from jaxfix.models import layers
from jaxfix.verify import graph, normal_form
from tests import networks as zoo
from tests.verify import networks


class Sorted(nn.Module):
  """Has an operation that is not supported, on the line below."""

  @nn.compact
  def __call__(self, x, train=False):
    return jnp.sort(layers.Dense(3, name='fc')(x))


class Constant(nn.Module):
  """Ignores its input."""

  @nn.compact
  def __call__(self, x, train=False):
    return jnp.zeros((x.shape[0], 2)) + self.param('b', nn.initializers.zeros, (2,))


class TraceTest(parameterized.TestCase):

  @parameterized.parameters(*networks.SMALL)
  def test_graph_and_normal_form_compute_the_logits(self, kind):
    classifier = networks.KINDS[kind]()
    x = zoo.images(classifier.input_shape, 5, seed=1)
    want = networks.logits(classifier, x)
    traced = networks.graph(kind)
    got = zoo.quick_jit(jax.vmap(lambda x: graph.evaluate(traced, x)[-1].reshape(-1)))(x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    if kind != 'smooth':
      exact = normal_form.evaluate(networks.form(kind), x.reshape(5, -1).astype(np.float64))
      np.testing.assert_allclose(exact, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())

  @parameterized.parameters(('facenet', (48, 48, 3), 1 / 16))
  def test_architecture_has_a_graph_and_a_normal_form(self, name, shape, width):
    self._check_architecture(name, shape, width)

  @parameterized.parameters(('vgg16', (32, 32, 3), 1 / 32), ('alexnet', (64, 64, 3), 1 / 32),
                            ('resnet50', (8, 8, 3), 1 / 32), ('densenet121', (32, 32, 3), 1 / 8))
  @pytest.mark.slow
  def test_large_architecture_has_a_graph_and_a_normal_form(self, name, shape, width):
    self._check_architecture(name, shape, width)

  def _check_architecture(self, name, shape, width):
    classifier = zoo.network(name, shape, width=width)
    form = normal_form.lower(graph.trace(classifier))
    x = zoo.images(shape, 2)
    want = networks.logits(classifier, x)
    np.testing.assert_allclose(normal_form.evaluate(form, x.reshape(2, -1).astype(np.float64)), want, rtol=1e-4,
                               atol=1e-5 * np.abs(want).max())

  def test_graphs_of_one_structure_share_a_compiled_program(self):
    one, other = (graph.trace(networks.mlp((3, 5, 2), seed)) for seed in (0, 1))
    self.assertEqual(jax.tree.structure(one), jax.tree.structure(other))
    self.assertEqual(hash(one.nodes), hash(other.nodes))

  def test_an_unsupported_operation_is_named_with_its_line(self):
    classifier = networks.module(Sorted(), (4,), 3)
    with self.assertRaisesRegex(Unadaptable, r"'sort' in graph_test.py:\d+"):
      graph.trace(classifier)

  def test_a_network_that_ignores_its_input_is_refused(self):
    with self.assertRaisesRegex(Unadaptable, 'do not depend'):
      graph.trace(networks.module(Constant(), (4,), 2))

  def test_nan_weights_are_refused(self):
    classifier = networks.from_weights([([[np.nan]], [0]), ([[1]], [0])])
    with self.assertRaisesRegex(BadInputError, 'fc1/kernel.*NaN'):
      graph.trace(classifier)

  def test_a_smooth_network_has_no_normal_form(self):
    with self.assertRaisesRegex(Unadaptable, 'not piecewise linear'):
      normal_form.lower(networks.graph('smooth'))

  def test_fingerprint_sees_every_weight_and_the_structure(self):
    form = networks.hand_made()
    self.assertEqual(normal_form.fingerprint(form), normal_form.fingerprint(networks.hand_made()))
    seen = {normal_form.fingerprint(form)}
    for i, op in enumerate(form.ops):
      if op.array is not None:
        array = op.array.copy()
        array.reshape(-1)[0] = np.nextafter(array.reshape(-1)[0], np.float32(9))
        changed = form.ops[:i] + (normal_form.Op(op.kind, op.inputs, array, op.size),) + form.ops[i + 1:]
        seen.add(normal_form.fingerprint(normal_form.NormalForm(changed)))
    self.assertLen(seen, 5)

  def test_overlapping_pooling_with_padding(self):
    class Pooled(nn.Module):
      @nn.compact
      def __call__(self, x, train=False):
        x = layers.MaxPool((3, 3), (2, 2), layers.pad_evenly(1), name='pool')(x)
        x = layers.AvgPool((2, 2), (1, 1), 'SAME', name='mean')(x)
        return layers.GlobalMaxPool(name='gmp')(x)
    classifier = Classifier({'params': {}}, Pooled(), (7, 6, 2), 2)
    form = normal_form.lower(graph.trace(classifier))
    x = zoo.images((7, 6, 2), 3)
    np.testing.assert_allclose(normal_form.evaluate(form, x.reshape(3, -1).astype(np.float64)),
                               networks.logits(classifier, x), atol=1e-6)


if __name__ == '__main__':
  absltest.main()
