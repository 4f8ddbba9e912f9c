"""ONNX out: every architecture and every kind of layer in onnxruntime, and read back."""
import collections
import dataclasses
import pathlib
import sys
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from absl.testing import absltest, parameterized
from flax import linen as nn

from jaxfix.classifier import Classifier, flat_weights
from jaxfix.errors import BadInputError, JaxfixError, OutputError, UnsupportedLayerError
from jaxfix.interchange import onnx_read, onnx_write
from jaxfix.models import decoupled, layer_graph, layers
from tests.interchange import onnx_files
from tests.networks import filled, images, network, quick_jit
from tests.shared_data import shared_data

_logits = quick_jit(lambda classifier, x: classifier.logits(x))
NARROW = {'width': 1 / 16}


class WriteCase(parameterized.TestCase):

  def setUp(self):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.path = pathlib.Path(folder.name) / 'model.onnx'

  def operators(self):
    return collections.Counter(node.op_type for node in onnx.load(self.path).graph.node)

  def agrees(self, classifier, n=2, reads_back=True):
    """Writes, runs in onnxruntime, reads back, and compares all three. Logits agree to 1e-5 of the largest."""
    onnx_write.write(self.path, classifier)
    x = images(classifier.input_shape, n)
    ours = np.asarray(_logits(classifier, x))
    largest = max(1., np.abs(ours).max())
    np.testing.assert_allclose(onnx_files.run(self.path, x), ours, atol=1e-5 * largest)
    if reads_back:
      again = onnx_read.read(self.path)
      self.assertEqual((again.input_shape, again.num_classes), (classifier.input_shape, classifier.num_classes))
      np.testing.assert_allclose(_logits(again, x), ours, atol=1e-5 * largest)


class ArchitecturesTest(WriteCase):

  @parameterized.named_parameters(
    ('lenet5', 'lenet5', (28, 28, 1), {}), ('lenet5_small', 'lenet5', (8, 8, 1), {'variant': 'small'}),
    ('lenet5_classic', 'lenet5', (28, 28, 1), {'variant': 'classic'}), ('mlp', 'mlp', (4,), {}),
    ('mlp_of_images', 'mlp', (4, 4, 1), {}), ('facenet', 'facenet', (48, 48, 3), NARROW),
    ('vgg16', 'vgg16', (32, 32, 3), NARROW),
    ('resnet18_imagenet', 'resnet18', (64, 64, 3), {'stem': 'imagenet', **NARROW}),
    ('alexnet', 'alexnet', (64, 64, 3), NARROW))
  def test_logits(self, name, input_shape, options):
    self.agrees(network(name, input_shape, **options))

  def test_logits_of_units_with_shortcuts(self):
    self.agrees(network('resnet18', (8, 8, 3), **NARROW), reads_back=False)   # which would compile it again

  @parameterized.parameters('densenet121', 'resnet50')
  @pytest.mark.slow
  def test_deep_networks_read_back(self, name):
    self.agrees(network(name, (32, 32, 3), **NARROW))

  def test_axes_are_moved_once_and_what_is_not_needed_is_left_out(self):
    onnx_write.write(self.path, network('resnet18', (8, 8, 3), **NARROW))
    operators = self.operators()
    self.assertEqual(operators['Transpose'], 1)
    self.assertEqual(operators['ReduceMean'], 1)
    self.assertNotIn('ReduceSum', operators)
    onnx_write.write(self.path, network('lenet5', (28, 28, 1)))
    self.assertEqual(self.operators(), {'Transpose': 2, 'Conv': 2, 'Add': 5, 'Relu': 4, 'MaxPool': 2, 'Reshape': 1,
                                        'MatMul': 3})

  def test_the_file(self):
    onnx_write.write(self.path, network('lenet5', (28, 28, 1)))
    model = onnx.load(self.path)
    onnx.checker.check_model(model, full_check=True)
    self.assertEqual(model.producer_name, 'jaxfix')
    names = [node.name for node in model.graph.node]
    self.assertIn('conv1/Conv', names)
    self.assertIn('relu1/Relu', names)
    (x,), (y,) = model.graph.input, model.graph.output
    sizes = lambda tensor: [axis.dim_value or axis.dim_param for axis in tensor.type.tensor_type.shape.dim]
    self.assertEqual((x.name, sizes(x), y.name, sizes(y)), ('input', ['n', 28, 28, 1], 'logits', ['n', 10]))

  def test_one_sample(self):
    self.agrees(network('lenet5', (8, 8, 1), variant='small'), n=1, reads_back=False)

  def test_normalization_is_part_of_the_file(self):
    classifier = dataclasses.replace(network('lenet5', (8, 8, 3), variant='small'), mean=(0.1, 0.2, 0.3),
                                     std=(0.4, 0.5, 0.6))
    self.agrees(classifier)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    theirs = onnx_files.run(self.path, pixels.astype(np.float32) / 255)
    np.testing.assert_allclose(theirs, _logits(classifier, pixels), rtol=1e-5, atol=1e-4)
    again = onnx_read.read(self.path)
    self.assertEqual((again.mean, again.std), ((0.,), (1.,)))
    one = dataclasses.replace(network('mlp', (4,)), mean=(0.5,), std=(2.,))
    self.agrees(one)


IMAGES = (
  ('pad', 'zeropad', (('padding', ((1, 2), (0, 1))),), ('input',)),
  ('conv', 'conv', (('features', 4), ('kernel_size', (3, 2)), ('strides', (1, 2)), ('padding', 'SAME')), ('pad',)),
  ('bn', 'bn', (('epsilon', 1e-3),), ('conv',)),
  ('tanh', 'tanh', (), ('bn',)),
  ('groups', 'conv', (('features', 6), ('kernel_size', (2, 2)), ('feature_group_count', 2), ('kernel_dilation', (2, 1)),
                      ('padding', ((1, 1), (1, 0)))), ('tanh',)),
  ('max', 'maxpool', (('window', (3, 2)), ('strides', (2, 1)), ('padding', ((1, 0), (0, 1)))), ('groups',)),
  ('avg', 'avgpool', (('window', (3, 2)), ('strides', (1, 1)), ('padding', 'SAME')), ('max',)),
  ('avg2', 'avgpool', (('window', (2, 2)), ('strides', (1, 1)), ('padding', 'SAME'), ('count_pads', False)), ('max',)),
  ('avg3', 'avgpool', (('window', (2, 1)),), ('avg',)),
  ('sum', 'add', (), ('avg', 'avg2')),
  ('sigmoid', 'sigmoid', (), ('sum',)),
  ('both', 'concat', (), ('sigmoid', 'avg')),
  ('drop', 'dropout', (('rate', 0.5),), ('both',)),
  ('gap', 'gap', (), ('drop',)),
  ('gmp', 'gmp', (), ('both',)),
  ('whole', 'gmp', (), ('input',)),
  ('flat', 'flatten', (), ('avg3',)),
  ('all', 'concat', (), ('gap', 'gmp', 'flat', 'whole')),
  ('fc', 'dense', (('features', 3), ('use_bias', False)), ('all',)))

SHAPES = (
  ('turn', 'transpose', (('axes', (2, 0, 1)),), ('input',)),
  ('slice', 'slice', (('starts', (0, 1, 0)), ('stops', (2, 8, 7)), ('strides', (1, 2, 3))), ('turn',)),
  ('shift', 'shift', (('shape', (2, 1, 1)), ('form', 'c - x')), ('slice',)),
  ('scale', 'scale', (('shape', (1, 4, 3)), ('form', 'x / c')), ('shift',)),
  ('mean', 'mean', (('axes', (1,)),), ('scale',)),
  ('reshape', 'reshape', (('shape', (3, 2)),), ('mean',)),
  ('rows', 'dense', (('features', 4),), ('reshape',)),
  ('shift2', 'shift', (('shape', (3, 4)), ('form', 'x - c')), ('rows',)),
  ('scale2', 'scale', (('shape', (1, 1)),), ('shift2',)),
  ('flat', 'flatten', (), ('scale2',)),
  ('relu', 'relu', (), ('flat',)),
  ('fc', 'dense', (('features', 3),), ('relu',)))


class LayerGraphTest(WriteCase):

  @parameterized.named_parameters(('images', IMAGES), ('shapes', SHAPES))
  def test_every_kind_of_layer(self, records):
    self.agrees(network('layer_graph', (8, 9, 2), layers=records))

  def test_every_kind_is_tested(self):
    self.assertEqual({record[1] for record in IMAGES + SHAPES} | {'softmax'}, set(layer_graph.MAKERS))

  def test_softmax_inside(self):
    records = (('s', 'softmax', (), ('input',)), ('f', 'flatten', (), ('s',)),
               ('fc', 'dense', (('features', 3),), ('f',)))
    self.agrees(network('layer_graph', (5, 4), layers=records), reads_back=False)  # it is written as its parts

  def test_an_imported_network_keeps_its_weights_and_its_input(self):
    original = onnx_read.read(shared_data('acasxu/onnx/ACASXU_run2a_1_1_batch_2000.onnx'))
    self.agrees(original)
    again = onnx_read.read(self.path)
    self.assertEqual([r[1] for r in again.module.layers], [r[1] for r in original.module.layers])
    for ours, theirs in zip(flat_weights(again.variables).values(), flat_weights(original.variables).values(),
                            strict=True):
      np.testing.assert_array_equal(ours, theirs)


class DecoupledTest(WriteCase):

  @parameterized.parameters(('mlp', (4,), 'fc2', {}), ('lenet5', (8, 8, 1), 'conv2', {'variant': 'small'}))
  def test_repaired_values_go_through_the_decisions_of_before(self, name, input_shape, layer, options):
    base = network(name, input_shape, **options)
    rng = np.random.default_rng(0)
    value = jax.tree.map(lambda w: w + rng.normal(size=w.shape).astype(np.float32) / 5, dict(base.params[layer]))
    classifier = decoupled.decouple(base, layer, value)
    self.agrees(classifier, n=20, reads_back=False)
    x = images(input_shape, 20)
    changed = np.abs(np.asarray(_logits(classifier, x)) - _logits(base, x))
    self.assertGreater(changed.max(axis=1).min(), 1e-3)


class Foreign(nn.Module):
  """Operations that our own networks do not have."""

  @nn.compact
  def __call__(self, x, train=False):
    z = nn.Conv(4, (3, 3), strides=2, name='conv')(x)
    z = jnp.minimum(jnp.abs(z), 1.5) + jnp.maximum(-z, z * 0.5) + jnp.exp(-z * z) + jnp.log(jnp.abs(z) + 1)
    z = nn.avg_pool(z, (2, 2), (1, 1)) + z[:, :-1, 1:].transpose(0, 1, 2, 3)
    z = jnp.stack([z.sum(1), z.max(1)], axis=2).transpose(0, 2, 1, 3)
    z = jnp.pad(z, ((0, 0), (0, 0), (1, 0), (0, 2)), constant_values=0.5)
    return nn.Dense(3, name='fc')(z.reshape(len(z), -1))


class Sorting(nn.Module):

  @nn.compact
  def __call__(self, x, train=False):
    return layers.Relu(name='relu')(jnp.sort(nn.Dense(3, name='fc')(x)))


class Mixing(nn.Module):

  @nn.compact
  def __call__(self, x, train=False):
    return nn.Dense(3, name='fc')(x) - x.mean(0, keepdims=True)[:, :3]


def classifier_of(module, input_shape):
  return filled(Classifier(layers.variable_shapes(module, input_shape), module, input_shape, 3))


class OtherModulesTest(WriteCase):

  def test_any_module_of_known_operations(self):
    self.agrees(classifier_of(Foreign(), (8, 9, 2)), reads_back=False)

  def test_what_has_no_counterpart_is_refused(self):
    for module, message in ((Sorting(), "'sort' has no counterpart"), (Mixing(), 'a reduction over samples')):
      with self.assertRaisesRegex(UnsupportedLayerError, message):
        onnx_write.write(self.path, classifier_of(module, (4,)))
    records = (('f', 'flatten', (), ('input',)),)
    nothing = Classifier({'params': {}}, network('layer_graph', (3,), layers=records).module, (3,), 3)
    with self.assertRaisesRegex(UnsupportedLayerError, 'computes nothing'):
      onnx_write.write(self.path, nothing)
    self.assertFalse(self.path.exists())

  def test_weights_that_are_not_finite(self):
    classifier = jax.tree.map(lambda w: w * np.float32(np.nan), network('mlp', (4,)))
    with self.assertRaisesRegex(BadInputError, 'holds NaN or infinity'):
      onnx_write.write(self.path, classifier)

  def test_where_no_file_can_be(self):
    (self.path.parent / 'file').write_text('')
    with self.assertRaisesRegex(OutputError, 'Cannot write'):
      onnx_write.write(self.path.parent / 'file' / 'model.onnx', network('mlp', (4,)))

  def test_without_onnx_the_extra_is_named(self):
    with mock.patch.dict(sys.modules, {'onnx': None}), self.assertRaisesRegex(JaxfixError, r'jaxfix\[onnx\]'):
      onnx_write.write(self.path, network('mlp', (4,)))


if __name__ == '__main__':
  absltest.main()
