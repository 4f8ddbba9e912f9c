"""Keras HDF5 files: the study's released models, files by real Keras, every spelling, every way to be wrong."""
import json
import pathlib
import sys
import tempfile
from unittest import mock

import h5py
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix import interchange, predict
from jaxfix.errors import (
  BadInputError,
  CorruptFileError,
  DataNotFoundError,
  JaxfixError,
  UnsupportedLayerError,
)
from jaxfix.interchange import keras_h5
from jaxfix.models.layer_graph import LayerGraph
from tests.interchange.keras_files import functional, layer, node2, node3, write
from tests.networks import images, quick_jit
from tests.shared_data import shared_data

GOLDENS = pathlib.Path(__file__).parent / 'goldens'


def conv(x, kernel, bias):
  """Valid convolution at stride 1."""
  windows = np.lib.stride_tricks.sliding_window_view(x, kernel.shape[:2], axis=(1, 2))  # [n, h, w, c, kh, kw]
  return np.tensordot(windows, kernel.transpose(2, 0, 1, 3), axes=3) + bias


def pool(x, k):
  n, h, w, c = x.shape
  return x[:, :h // k * k, :w // k * k].reshape(n, h // k, k, w // k, k, c).max((2, 4))


def relu(x):
  return np.maximum(x, 0)


class ReleasedModelsTest(parameterized.TestCase):
  """Accuracies: the data folder's NOTE.md, measured with Keras on the 10,000 MNIST test images."""

  @parameterized.parameters(('lenet5_ori_model', 9760), ('arachne_mnist_lenet5_fixed_model1', 9735))
  def test_accuracy_and_logits(self, name, right):
    self._check(name, right)

  @parameterized.parameters(
    ('apricot_mnist_lenet5_fixed_model1', 9897), ('apricot_mnist_lenet5_fixed_model2', 9896),
    ('apricot_mnist_lenet5_fixed_model3', 9896), ('arachne_mnist_lenet5_fixed_model2', 9758),
    ('arachne_mnist_lenet5_fixed_model3', 9757))
  @pytest.mark.slow
  def test_accuracy_and_logits_of_the_others(self, name, right):
    self._check(name, right)

  def _check(self, name, right):
    path = shared_data('fixing_study_lenet5') / f'{name}.h5'
    mnist = np.load(shared_data('mnist.npz'))
    x, y = mnist['x_test'][..., None], mnist['y_test']
    c = interchange.read_classifier(path)
    self.assertEqual((c.input_shape, c.num_classes), ((28, 28, 1), 10))
    logits = predict.logits(c, x, batch_size=1000)
    self.assertEqual((predict.labels_of_logits(logits) == y).sum(), right)
    with h5py.File(path) as f:
      w = {k: [f['model_weights'][k][k][f'{a}:0'][()] for a in ('kernel', 'bias')]
           for k in ('conv2d', 'conv2d_1', 'dense', 'dense_1', 'dense_2')}
    h = pool(relu(conv(x[::5] / np.float32(255), *w['conv2d'])), 3)
    h = pool(relu(conv(h, *w['conv2d_1'])), 2).reshape(len(x) // 5, -1)
    for k in ('dense', 'dense_1'):
      h = relu(h @ w[k][0] + w[k][1])
    want = h @ w['dense_2'][0] + w['dense_2'][1]
    # Apricot's logits reach 1000, where float32 itself is coarser than 1e-4.
    np.testing.assert_allclose(logits[::5], want, rtol=0, atol=max(1e-4, 1e-6 * np.abs(want).max()))


class GoldenTest(parameterized.TestCase):

  @parameterized.product(version=('keras2', 'keras3'), kind=('functional', 'sequential'))
  def test_a_file_by_keras_gives_what_keras_gave(self, version, kind):
    """Keras 2.15.0 on tensorflow-cpu 2.15.1, Keras 3.15.1 on jax (goldens/make_keras.py)."""
    c = keras_h5.read(GOLDENS / f'{version}_{kind}.h5')
    golden = np.load(GOLDENS / f'{version}_{kind}.npz')
    logits = np.asarray(quick_jit(lambda c, x: c.logits(x))(c, golden['x']), np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, golden['y'], atol=1e-6)
    self.assertLen(c.module.notes, 1)

  def test_both_kerases_describe_the_same_network(self):
    two, three = (keras_h5.read(GOLDENS / f'{version}_functional.h5') for version in ('keras2', 'keras3'))
    self.assertEqual(two, three.with_variables(two.variables))
    records = {name: dict(options) for name, _, options, _ in two.module.layers}
    self.assertEqual(records['b1'], {'epsilon': 1e-2, 'momentum': 0.9, 'use_scale': True, 'use_bias': True})
    self.assertEqual(records['b2'], {'epsilon': 1e-3, 'momentum': 0.99, 'use_scale': False, 'use_bias': True})


def arrays(seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return {'conv': {'kernel': draw(3, 2, 2, 4), 'bias': draw(4)}, 'fc': {'kernel': draw(16, 3), 'bias': draw(3)}}


def expected(x, w):
  h = pool(relu(conv(x, w['conv']['kernel'], w['conv']['bias'])), 2).reshape(len(x), -1)
  return h @ w['fc']['kernel'] + w['fc']['bias']


def entries(conv_name='conv', **shape):
  """A Sequential network in Keras 2 spelling, softmax fused."""
  shape = shape or {'batch_input_shape': [None, 6, 5, 2]}
  return [
    layer('Conv2D', conv_name, filters=4, kernel_size=[3, 2], strides=[1, 1], padding='valid', activation='relu',
          data_format='channels_last', dilation_rate=[1, 1], use_bias=True, **shape),
    layer('MaxPooling2D', 'pool', pool_size=[2, 2], strides=None, padding='valid'), layer('Flatten', 'flat'),
    layer('Dense', 'fc', units=3, activation='softmax', use_bias=True)]


def sequential(layers=None, **root):
  config = {'name': 's', 'layers': entries() if layers is None else layers, **root}
  return {'class_name': 'Sequential', 'config': config}


class FileCase(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'model.h5'

  def assert_reads(self, want=None):
    c, x = keras_h5.read(self.path), images((6, 5, 2))
    np.testing.assert_allclose(quick_jit(lambda c, x: c.logits(x))(c, x),
                               expected(x, arrays()) if want is None else want, rtol=1e-4, atol=1e-4)
    return c


class SpellingsTest(FileCase):

  @parameterized.named_parameters(
    ('dictionary', sequential(), {}), ('list', {'class_name': 'Sequential', 'config': entries()}, {}),
    ('no_suffix', sequential(), {'suffix': ''}), ('config_as_bytes', json.dumps(sequential()).encode(), {}),
    ('keras3_input', sequential([layer('InputLayer', 'in', batch_shape=[None, 6, 5, 2]), *entries(none=0)]), {}),
    ('shape_beside_the_layers', sequential(entries(none=0), build_input_shape=[None, 6, 5, 2]), {}),
    ('keras2_functional', functional([
      (layer('InputLayer', 'in', batch_input_shape=[None, 6, 5, 2]), ()),
      *zip(entries(), (['in'], ['conv'], ['pool'], ['flat']), strict=True)], ['in'], ['fc']), {}),
    ('keras3_functional_out_of_order', functional([
      *zip(entries()[::-1], (['flat'], ['pool'], ['conv'], ['in']), strict=True),
      (layer('InputLayer', 'in', batch_shape=[None, 6, 5, 2]), ())], ['in'], ['fc'], node3, 'Functional'), {}))
  def test_one_network_in_many_spellings(self, config, options):
    write(self.path, config, arrays(), keras_version='2.4.0', backend='tensorflow', **options)
    c = self.assert_reads()
    self.assertEqual([name for name, *_ in c.module.layers], ['conv', 'conv_relu', 'pool', 'flat', 'fc'])
    self.assertEqual(c.module.notes, ("The softmax of layer 'fc' was removed: the outputs are logits.",))

  def test_single_endpoints_without_a_list_around_them(self):
    config = functional([(layer('InputLayer', 'in', batch_shape=[None, 6, 5, 2]), ()),
                         *zip(entries(), (['in'], ['conv'], ['pool'], ['flat']), strict=True)], ['in'], ['fc'], node3)
    config['config'] |= {'input_layers': ['in', 0, 0], 'output_layers': ['fc', 0, 0]}
    write(self.path, config, arrays())
    self.assert_reads()

  def test_names_with_a_slash(self):
    w = arrays()
    write(self.path, sequential(entries('block/conv')), {'block/conv': w['conv'], 'fc': w['fc']})
    c = self.assert_reads()
    self.assertIn('block_conv', c.params)

  def test_keras_1(self):
    w = arrays()
    layers = [
      layer('Convolution2D', 'convolution2d_1', nb_filter=4, nb_row=3, nb_col=2, border_mode='valid', subsample=[1, 1],
            dim_ordering='tf', activation='relu', bias=True, batch_input_shape=[None, 6, 5, 2]),
      layer('MaxPooling2D', 'maxpooling2d_1', pool_size=[2, 2], strides=[2, 2], border_mode='valid',
            dim_ordering='tf'), layer('Flatten', 'flatten_1'), layer('Dropout', 'dropout_1', p=0.25),
      layer('Dense', 'dense_1', output_dim=3, activation='linear', bias=True),
      layer('BatchNormalization', 'bn_1', epsilon=0.5, momentum=0.5, mode=0, axis=-1),
      layer('Activation', 'activation_1', activation='softmax')]
    gamma, beta, mean, var = np.random.default_rng(1).uniform(0.5, 1.5, (4, 3)).astype(np.float32)
    write(self.path, {'class_name': 'Sequential', 'config': layers}, {
      'convolution2d_1': {'convolution2d_1_W': w['conv']['kernel'], 'convolution2d_1_b': w['conv']['bias']},
      'dense_1': {'dense_1_W': w['fc']['kernel'], 'dense_1_b': w['fc']['bias']},
      'bn_1': {'bn_1_gamma': gamma, 'bn_1_beta': beta, 'bn_1_running_mean': mean, 'bn_1_running_std': var}},
      keras_version='1.2.2')
    logits = expected(images((6, 5, 2)), w)
    c = self.assert_reads((logits - mean) / np.sqrt(var + 0.5) * gamma + beta)
    self.assertIn("'activation_1'", c.module.notes[0])

  def test_without_a_softmax_nothing_is_removed(self):
    layers = entries()
    layers[-1]['config']['activation'] = 'linear'
    write(self.path, sequential(layers), arrays())
    self.assertEqual(self.assert_reads().module.notes, ())

  def test_a_softmax_inside_stays(self):
    last = layer('Dense', 'last', units=2, use_bias=False)
    kernel = np.random.default_rng(2).normal(size=(3, 2)).astype(np.float32)
    write(self.path, sequential([*entries(), last]), arrays() | {'last': {'kernel': kernel}})
    e = np.exp(expected(images((6, 5, 2)), arrays()))
    self.assertEqual(self.assert_reads(e / e.sum(1, keepdims=True) @ kernel).module.notes, ())

  def test_state_of_dropout_is_no_weight(self):
    layers = entries()
    layers.insert(3, layer('Dropout', 'drop', rate=0.5, seed=None, noise_shape=None))
    write(self.path, sequential(layers), arrays() | {'drop': {'seed_generator_state': np.zeros(2, np.uint32)}})
    self.assert_reads()

  def test_doubles_and_halves_become_floats(self):
    w = arrays()
    w['conv']['kernel'] = w['conv']['kernel'].astype(np.float64)
    w['fc']['bias'] = w['fc']['bias'].astype(np.float16)
    write(self.path, sequential(), w)
    c = self.assert_reads(expected(images((6, 5, 2)), w))
    self.assertEqual({str(leaf.dtype) for group in c.params.values() for leaf in group.values()}, {'float32'})

  def test_normalization_is_the_callers(self):
    write(self.path, sequential(), arrays())
    c = keras_h5.read(self.path, mean=(0.1, 0.2), std=(0.3, 0.4))
    self.assertEqual((c.mean, c.std), ((0.1, 0.2), (0.3, 0.4)))
    self.assertIsInstance(c.module, LayerGraph)


def changed(index, class_name=None, **config):
  layers = entries()
  layers[index]['class_name'] = class_name or layers[index]['class_name']
  layers[index]['config'] |= config
  return sequential(layers)


class UnsupportedTest(FileCase):

  @parameterized.named_parameters(
    ('class', changed(0, 'SeparableConv2D'), "'conv' is of class SeparableConv2D"),
    ('nested_model', changed(2, 'Sequential'), "'flat' is of class Sequential"),
    ('channels_first', changed(0, data_format='channels_first'), r"'conv' \(Conv2D\).*channels_first"),
    ('theano_order', changed(0, dim_ordering='th', data_format=None), 'channels_last|channels_first'),
    ('activation', changed(0, activation='elu'), r"'conv' \(Conv2D\): activation is 'elu'"),
    ('activation_object', changed(0, activation={'class_name': 'LeakyReLU', 'config': {}}), 'LeakyReLU'),
    ('padding', changed(0, padding='full'), "padding is 'full'"),
    ('capped_relu', changed(2, 'ReLU', max_value=6.), r"'flat' \(ReLU\): max_value"),
    ('axis', changed(2, 'BatchNormalization', axis=1), r"'flat' \(BatchNormalization\): it works along axis 1"),
    ('renorm', changed(2, 'BatchNormalization', renorm=True), 'renorm'),
    ('keepdims', changed(2, 'GlobalAveragePooling2D', keepdims=True), 'keepdims'),
    ('noise_shape', changed(2, 'Dropout', rate=0.1, noise_shape=[1]), 'noise_shape'),
    ('open_input', sequential(entries(batch_input_shape=[None, None, 5, 2])), 'fixed input shape'),
    ('model_class', {'class_name': 'Graph', 'config': {}}, 'class Graph'),
    ('two_outputs', functional([], ['in'], ['a', 'b']), '1 inputs and 2 outputs'),
    ('called_twice', functional([(layer('Dense', 'd', units=3), ())], ['in'], ['d'],
                                lambda *_: node2('in') + node2('d')), "'d' .* called 2 times"),
    ('keyword_tensor', functional([(layer('Dense', 'd', units=3), ())], ['in'], ['d'],
                                  lambda *_: [{'args': [], 'kwargs': {'x': node3('in')[0]['args'][0]}}]), 'keyword'),
    ('second_output_of_a_layer', functional([(layer('Dense', 'd', units=3), ())], ['in'], ['d'],
                                            lambda *_: [[['in', 0, 1, {}]]]), "output 1 of layer 'in'"))
  def test_what_has_no_counterpart_is_named(self, config, message):
    write(self.path, config, arrays())
    with self.assertRaisesRegex(UnsupportedLayerError, message):
      keras_h5.read(self.path)

  def test_theano_kernels(self):
    write(self.path, sequential(), arrays(), backend='theano')
    with self.assertRaisesRegex(UnsupportedLayerError, 'theano'):
      keras_h5.read(self.path)


class WrongFileTest(FileCase):

  def refuses(self, error, message, config=None, **weights):
    write(self.path, sequential() if config is None else config, arrays() | weights)
    with self.assertRaisesRegex(error, message):
      keras_h5.read(self.path)

  def test_missing_weights(self):
    w = arrays()
    self.refuses(CorruptFileError, "the bias of layer 'fc' is missing", fc={'kernel': w['fc']['kernel']})
    self.refuses(CorruptFileError, "the (kernel|bias) of layer 'fc' is missing", fc={})

  def test_extra_weights(self):
    w = arrays()
    self.refuses(CorruptFileError, "'fc/fc/gamma:0' belongs to no weight", fc=w['fc'] | {'gamma': np.ones(3)})
    self.refuses(CorruptFileError, "'fc9/fc9/(kernel|bias):0' is no weight", fc9=w['fc'])
    self.refuses(CorruptFileError, "'fc/fc/alpha:0' is no weight", fc=w['fc'] | {'alpha': np.ones(3)})
    self.refuses(CorruptFileError, 'are the same weight', fc=w['fc'] | {'kernel_1': w['fc']['kernel']})

  def test_wrong_shapes_and_types(self):
    w = arrays()
    self.refuses(CorruptFileError, r"'fc/fc/kernel:0' has shape \(3, 16\), but the model needs \(16, 3\)",
                 fc=w['fc'] | {'kernel': w['fc']['kernel'].T})
    self.refuses(CorruptFileError, "'fc/fc/bias:0' holds int64", fc=w['fc'] | {'bias': np.arange(3)})
    self.refuses(BadInputError, "weight 'params/fc/bias' holds NaN",
                 fc=w['fc'] | {'bias': np.array([1, np.nan, 0], np.float32)})

  def test_configurations_that_make_no_sense(self):
    for config in ('{"class_name": "Sequ', '[]', '{}', '{"class_name": "Sequential", "config": {"layers": [{}]}}'):
      self.refuses(CorruptFileError, 'malformed', config)
    self.refuses(CorruptFileError, 'no layers', sequential([layer('InputLayer', 'in', batch_shape=[None, 2])]))
    self.refuses(CorruptFileError, 'malformed configuration', changed(0, kernel_size=[3]))
    self.refuses(CorruptFileError, 'do not fit together', changed(1, pool_size=[9, 9]))
    start = (layer('InputLayer', 'in', batch_shape=[None, 2]), ())
    self.refuses(CorruptFileError, 'does not compute', functional(
      [start, (layer('Dense', 'd', units=3), ['e'])], ['in'], ['d']))
    self.refuses(CorruptFileError, "no layer 'e'", functional(
      [start, (layer('Dense', 'd', units=3), ['in'])], ['in'], ['e']))
    self.refuses(CorruptFileError, 'has 2 inputs', functional(
      [start, (layer('Dense', 'd', units=3), ['in', 'in'])], ['in'], ['d']))

  def test_networks_that_are_no_classifiers(self):
    w = arrays()
    one = {'kernel': w['fc']['kernel'][:, :1], 'bias': w['fc']['bias'][:1]}
    self.refuses(BadInputError, r'outputs of shape \(1,\)', changed(3, units=1, activation='sigmoid'), fc=one)

  def test_weights_alone(self):
    write(self.path, None, arrays())
    with self.assertRaisesRegex(BadInputError, 'weights only'):
      keras_h5.read(self.path)

  @parameterized.parameters(0., 0.05, 0.3, 0.6, 0.9, 0.99)
  def test_truncated_files(self, share):
    write(self.path, sequential(), arrays())
    data = self.path.read_bytes()
    self.path.write_bytes(data[:int(share * len(data))])
    with self.assertRaisesRegex(CorruptFileError, 'model.h5'):
      keras_h5.read(self.path)

  def test_other_files(self):
    with self.assertRaisesRegex(DataNotFoundError, 'model.h5'):
      keras_h5.read(self.path)
    self.path.write_text('a text that is long enough')
    with self.assertRaisesRegex(CorruptFileError, 'not an HDF5 file'):
      keras_h5.read(self.path)

  def test_without_h5py_the_extra_is_named(self):
    write(self.path, sequential(), arrays())
    with mock.patch.dict(sys.modules, {'h5py': None}), self.assertRaisesRegex(JaxfixError, r'jaxfix\[keras\]'):
      keras_h5.read(self.path)


if __name__ == '__main__':
  absltest.main()
