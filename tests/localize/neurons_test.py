"""Neurons of a layer: found in every architecture, and scaled by weights exactly as an intervention scales them.

Sections 8.2 and, for folding, 8.9 of the CARE specification.
"""
import jax
import numpy as np
from absl.testing import absltest, parameterized
from flax import linen as nn

from jaxfix import intervene
from jaxfix.classifier import Classifier, flat_weights
from jaxfix.errors import Unadaptable, UnknownNameError
from jaxfix.localize.neurons import default_layer, find_neurons, scale_neurons
from jaxfix.models import layers
from tests.networks import abstract, filled, images, network, quick_jit

_NETWORKS = {
  'mlp': (('mlp', (5,)), {'hidden': (7, 6)}),
  'lenet5': (('lenet5', (28, 28, 1)), {}),
  'facenet': (('facenet', (16, 16, 3)), {'width': 1 / 16}),
  'vgg16': (('vgg16', (32, 32, 3)), {'width': 1 / 16}),
  'vgg16_cifar': (('vgg16', (32, 32, 3)), {'width': 1 / 16, 'variant': 'cifar'}),
  'resnet18': (('resnet18', (8, 8, 3)), {'width': 1 / 16, 'units': (1, 1)}),
  'densenet121': (('densenet121', (8, 8, 3)), {'width': 1 / 8, 'units': (2, 1)}),
}


def _model(name, make=network):
  arguments, options = _NETWORKS[name]
  return make(*arguments, num_classes=3, **options)


class Bypass(nn.Module):
  """The hidden layer reaches the logits beside its reader too, outside of any module."""

  @nn.compact
  def __call__(self, x, train=False, features=False):
    h = layers.Dense(3, name='fc1')(x)
    r = layers.Relu(name='relu1')(h)
    return layers.Dense(3, name='fc2')(r) + h


class Twice(nn.Module):
  """One layer, called twice."""

  @nn.compact
  def __call__(self, x, train=False, features=False):
    fc1 = layers.Dense(4, name='fc1')
    return layers.Dense(3, name='fc2')(layers.Relu(name='relu1')(fc1(layers.Relu(name='relu0')(fc1(x)))))


class SharedNorm(nn.Module):
  """Two layers, normalized by one BatchNorm."""

  @nn.compact
  def __call__(self, x, train=False, features=False):
    bn = layers.BatchNorm(name='bn')
    return layers.Dense(3, name='fc3')(bn(layers.Dense(4, name='fc2')(bn(layers.Dense(4, name='fc1')(x)))))


def _classifier(module, input_shape):
  return filled(Classifier(layers.variable_shapes(module, input_shape), module, input_shape, 3))


class FindTest(parameterized.TestCase):

  @parameterized.parameters(
    ('mlp', 'fc1', 'column', 'fc2', ('relu',)), ('lenet5', 'fc1', 'column', 'fc2', ('relu',)),
    ('facenet', 'fc1', 'column', 'fc2', ('relu',)), ('vgg16', 'fc1', 'column', 'fc2', ('relu',)),
    ('vgg16_cifar', 'flatten', 'row', 'fc1', ()), ('resnet18', 'gap', 'row', 'fc1', ()),
    ('densenet121', 'gap', 'row', 'fc1', ()))
  def test_default_layer(self, name, layer, scaled_by, reader, activations):
    c = _model(name, abstract)
    self.assertEqual(default_layer(c), layer)
    neurons = find_neurons(c, layer)
    self.assertEqual((neurons.scaled_by, neurons.reader, neurons.activations), (scaled_by, reader, activations))
    self.assertLen(neurons.shape, 1)

  def test_batch_norm_takes_the_place_of_the_layer_that_it_alone_reads(self):
    self.assertEqual(find_neurons(_model('vgg16', abstract), 'conv3').layer, 'bn3')
    self.assertEqual(find_neurons(_model('densenet121', abstract), 'stage1/unit1/conv2').layer, 'stage1/unit1/conv2')

  def test_positions_are_neurons_where_a_dense_layer_reads_them(self):
    c = _model('lenet5', abstract)
    pool = find_neurons(c, 'pool2', 'position')
    self.assertEqual((pool.count, pool.scaled_by, pool.reader), (144, 'row', 'fc1'))
    conv = find_neurons(c, 'conv2', 'position')
    self.assertEqual((conv.count, conv.scaled_by, conv.reader), (6 * 6 * 16, None, None))

  def test_what_bypasses_a_reader_is_noticed(self):
    neurons = find_neurons(_classifier(Bypass(), (4,)), 'fc1')
    self.assertEqual((neurons.scaled_by, neurons.reader), ('column', None))
    self.assertEqual(find_neurons(_classifier(Bypass(), (4,)), 'relu1').scaled_by, 'row')

  def test_weights_that_serve_other_inputs_too_do_not_scale_neurons(self):
    neurons = find_neurons(_classifier(Twice(), (4,)), 'relu0')   # what reads it has read the network's inputs before
    self.assertEqual((neurons.scaled_by, neurons.reader), (None, None))
    neurons = find_neurons(_classifier(SharedNorm(), (4,)), 'fc1')
    self.assertEqual((neurons.layer, neurons.scaled_by), ('fc1', 'column'))

  def test_layers_that_do_not_fit_are_refused(self):
    c = _model('lenet5', abstract)
    with self.assertRaisesRegex(UnknownNameError, "Did you mean 'fc1'"):
      find_neurons(c, 'fc11')
    with self.assertRaisesRegex(Unadaptable, 'logits'):
      find_neurons(c, 'fc3')
    with self.assertRaisesRegex(Unadaptable, 'called 2 times'):
      find_neurons(_classifier(Twice(), (4,)), 'fc1')
    with self.assertRaisesRegex(Unadaptable, 'no hidden vector layer'):
      default_layer(abstract('mlp', (5,), hidden=()))


class ScaleTest(parameterized.TestCase):

  @parameterized.parameters(
    ('mlp', 'fc1', 'channel'), ('lenet5', 'conv1', 'channel'), ('lenet5', 'pool2', 'channel'),
    ('lenet5', 'pool2', 'position'), ('lenet5', 'pool1', 'channel'), ('resnet18', 'conv1', 'channel'),
    ('resnet18', 'gap', 'channel'))
  def test_weights_do_what_an_intervention_does(self, name, layer, unit):
    c = _model(name)
    neurons = find_neurons(c, layer, unit)
    factors = np.random.default_rng(0).uniform(-1, 2, neurons.count).astype(np.float32)
    z = images(c.input_shape)

    @quick_jit
    def run(c, z, factors):
      hooked = intervene.apply(c, z, outputs={neurons.layer: lambda h: h * neurons.along(factors)})
      return hooked, scale_neurons(c, neurons, factors).logits_of_normalized(z), c.logits_of_normalized(z)

    hooked, folded, plain = run(c, z, factors)
    scale = np.abs(hooked).max()
    np.testing.assert_allclose(folded / scale, hooked / scale, atol=1e-5)
    self.assertGreater(np.abs(hooked - plain).max(), 1e-2)
    before, after = (flat_weights(v.variables) for v in (c, scale_neurons(c, neurons, factors)))
    self.assertContainsSubset({k for k in before if before[k].tobytes() != after[k].tobytes()}, neurons.weights)

  def test_a_scaled_affine_map_is_the_map_of_scaled_weights(self):
    """(X W + b)(1 + r) = X (W (1 + r)) + b (1 + r)."""
    c, x = _model('mlp'), images((5,))
    neurons = find_neurons(c, 'fc1')
    r = np.random.default_rng(1).uniform(-1, 1, neurons.count).astype(np.float32)
    after = scale_neurons(c, neurons, 1 + r).params['fc1']
    before = jax.tree.map(np.asarray, c.params['fc1'])
    np.testing.assert_allclose(x @ np.asarray(after['kernel']) + after['bias'],
                               (x @ before['kernel'] + before['bias']) * (1 + r), atol=1e-5)

  @parameterized.parameters(('lenet5', 'fc1'), ('resnet18', 'conv1'), ('resnet18', 'gap'))
  def test_factors_of_one_keep_every_bit(self, name, layer):
    c = _model(name)
    neurons = find_neurons(c, layer)
    same = scale_neurons(c, neurons, np.ones(neurons.count, np.float32))
    before, after = flat_weights(c.variables), flat_weights(same.variables)
    self.assertEqual({k: v.tobytes() for k, v in before.items()}, {k: v.tobytes() for k, v in after.items()})


if __name__ == '__main__':
  absltest.main()
