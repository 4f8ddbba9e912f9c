"""The output layer by itself: it and its inputs are the whole network."""
import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax import linen as nn

from jaxfix import models, predict
from jaxfix.classifier import Classifier
from jaxfix.localize import output_layer
from jaxfix.models import layers
from tests import networks, tiny

_NETWORKS = (
  ('vgg16', 'fc3', (32, 32, 3), {'num_classes': 10, 'variant': 'study', 'width': 1 / 16}),
  ('facenet', 'fc2', (16, 16, 3), {'width': 1 / 16}),
  ('resnet18', None, (8, 8, 3), {'num_classes': 10, 'width': 1 / 16}),
  ('densenet121', 'fc1', (32, 32, 3), {'num_classes': 10}))


class _Ends(nn.Module):
  """A dense layer without bias, and something after it or not."""
  bare: bool = True

  @nn.compact
  def __call__(self, x, train=False, features=False):
    x = layers.Dense(3, name='fc1', use_bias=False)(layers.Flatten(name='flatten')(x))
    return x if self.bare else layers.Relu(name='relu')(x)


def _ends(bare):
  module = _Ends(bare)
  return networks.filled(Classifier(layers.variable_shapes(module, (4, 4, 1)), module, (4, 4, 1), 3))


class OutputLayerTest(parameterized.TestCase):

  @parameterized.parameters(models.build('mlp', num_classes=10, hidden=(12,)), tiny.TinyResNet())
  def test_head_and_inputs_are_the_network(self, module):
    network = networks.filled(Classifier(layers.variable_shapes(module, (8, 8, 1)), module, (8, 8, 1), 10))
    images, path = networks.images((8, 8, 1), 10), output_layer.output_layer(network)
    x, head = output_layer.inputs(network, images, path, batch_size=4), output_layer.head(network, path)
    self.assertEqual((path, x.shape), ('fc2', (10, *head.input_shape)))
    np.testing.assert_allclose(predict.logits(head, x), predict.logits(network, images), rtol=1e-4, atol=1e-4)

  @parameterized.parameters(*_NETWORKS)
  @pytest.mark.slow   # DenseNet is long to trace
  def test_networks_that_we_have_end_in_one(self, name, path, shape, options):
    found = output_layer.output_layer(networks.abstract(name, shape, **options))
    self.assertEqual(found, path or found)
    self.assertIsNotNone(found)

  def test_without_a_bias(self):
    network = _ends(bare=True)
    head, images = output_layer.head(network, 'fc1'), networks.images((4, 4, 1), 3)
    x = output_layer.inputs(network, images, 'fc1')
    np.testing.assert_allclose(predict.logits(head, x), predict.logits(network, images), atol=1e-5)
    self.assertLen(jax.tree.leaves(network.variables), 1)

  def test_a_network_that_ends_in_something_else_has_none(self):
    self.assertEqual(output_layer.output_layer(_ends(bare=True)), 'fc1')
    self.assertIsNone(output_layer.output_layer(_ends(bare=False)))


if __name__ == '__main__':
  absltest.main()
