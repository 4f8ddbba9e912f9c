"""DenseNet121's weight files: both layouts, whole and damaged."""
import pathlib
import tempfile

import chex
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax import traverse_util

from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError
from jaxfix.interchange import keras_weights
from jaxfix.models.densenet import DenseNet121
from tests.interchange.keras_files import write, write_numbered
from tests.networks import network

OPTIONS = {'form': 'imagenet', 'width': 1 / 8, 'units': (2, 1), 'num_classes': 3}
SHAPE = (32, 32, 3)
_WEIGHTS = {'conv2d': (('params', 'kernel', 'kernel'),), 'dense': (('params', 'kernel', 'kernel'),
                                                                   ('params', 'bias', 'bias')),
            'batch_normalization': (('params', 'scale', 'gamma'), ('params', 'bias', 'beta'),
                                    ('batch_stats', 'mean', 'moving_mean'), ('batch_stats', 'var', 'moving_variance'))}

# Keras' own order and names for two stages of 2 and 1 dense layers, written out (keras.applications, 3.15.1).
ORDER = (('conv1', 'conv1_conv'), ('bn1', 'conv1_bn'),
         ('stage1/unit1/bn1', 'conv2_block1_0_bn'), ('stage1/unit1/conv1', 'conv2_block1_1_conv'),
         ('stage1/unit1/bn2', 'conv2_block1_1_bn'), ('stage1/unit1/conv2', 'conv2_block1_2_conv'),
         ('stage1/unit2/bn1', 'conv2_block2_0_bn'), ('stage1/unit2/conv1', 'conv2_block2_1_conv'),
         ('stage1/unit2/bn2', 'conv2_block2_1_bn'), ('stage1/unit2/conv2', 'conv2_block2_2_conv'),
         ('transition1/bn1', 'pool2_bn'), ('transition1/conv1', 'pool2_conv'),
         ('stage2/unit1/bn1', 'conv3_block1_0_bn'), ('stage2/unit1/conv1', 'conv3_block1_1_conv'),
         ('stage2/unit1/bn2', 'conv3_block1_1_bn'), ('stage2/unit1/conv2', 'conv3_block1_2_conv'),
         ('bn_last', 'bn'), ('fc1', 'predictions'))


def class_of(name):
  return 'conv2d' if name.endswith('conv') else 'batch_normalization' if name.endswith('bn') else 'dense'


def keras_arrays(c, order=ORDER):
  """[(Keras layer, {weight: array})] of our variables, in Keras' order."""
  flat = traverse_util.flatten_dict(c.variables, sep='/')
  return [(theirs, {weight: flat[f'{collection}/{ours}/{leaf}']
                    for collection, leaf, weight in _WEIGHTS[class_of(theirs)]}) for ours, theirs in order]


class KerasWeightsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.c = network('densenet121', SHAPE, **OPTIONS)
    self.layers = keras_arrays(self.c)

  def read(self, name='d.h5'):
    return keras_weights.read(self.folder / name, DenseNet121(**OPTIONS), input_shape=SHAPE)

  def write_numbered(self, layers):
    write_numbered(self.folder / 'd.weights.h5', [(class_of(name), list(w.values())) for name, w in layers])

  @parameterized.product(suffix=(':0', ''), group=('', 'model_weights'), slash=(False, True))
  def test_legacy_files_give_back_the_weights(self, suffix, group, slash):
    spelled = {name.replace('conv1_', 'conv1/') if slash and name.startswith('conv1_') else name: w
               for name, w in self.layers}
    write(self.folder / 'd.h5', None, spelled, suffix=suffix, group=group)
    c = self.read()
    chex.assert_trees_all_equal(c.variables, self.c.variables)
    self.assertEqual((c.num_classes, c.input_shape, c.mean, c.std),
                     (3, SHAPE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

  def test_numbered_files_give_back_the_weights(self):
    self.write_numbered(self.layers)
    chex.assert_trees_all_equal(self.read('d.weights.h5').variables, self.c.variables)

  def test_a_shuffled_order_is_detected(self):
    self.write_numbered(self.layers[1:] + self.layers[:1])
    with self.assertRaisesRegex(CorruptFileError, 'has shape .* but the model needs'):
      self.read('d.weights.h5')

  @parameterized.parameters(False, True)
  def test_a_layer_too_few_or_too_many(self, numbered):
    for layers in (self.layers[:3] + self.layers[4:], [*self.layers, ('bn9_bn', self.layers[1][1])]):
      if numbered:
        self.write_numbered(layers)
      else:
        write(self.folder / 'd.h5', None, dict(layers))
      with self.assertRaises(CorruptFileError):
        self.read('d.weights.h5' if numbered else 'd.h5')

  def test_other_files_and_forms(self):
    with self.assertRaises(DataNotFoundError):
      self.read('none.h5')
    with self.assertRaisesRegex(BadInputError, "form 'imagenet'"):
      keras_weights.read(self.folder / 'd.h5', DenseNet121())
    self.layers[0][1]['kernel'] = self.layers[0][1]['kernel'] * np.nan
    self.write_numbered(self.layers)
    with self.assertRaisesRegex(BadInputError, "'params/conv1/kernel' holds NaN"):
      self.read('d.weights.h5')

  def test_the_standard_network_has_606_arrays(self):
    names = keras_weights.keras_names(DenseNet121(form='imagenet', num_classes=1000)).values()
    self.assertLen(set(names), 242)
    self.assertEqual(sum(len(_WEIGHTS[class_of(name)]) for name in names), 606)

  @pytest.mark.slow
  def test_the_standard_network_in_full(self):
    c = network('densenet121', (224, 224, 3), form='imagenet', num_classes=1000)
    order = keras_weights.keras_names(c.module).items()
    layers = keras_arrays(c, order)
    self.assertEqual(sum(a.size for _, w in layers for a in w.values()), 8_062_504)
    self.write_numbered(layers)
    chex.assert_trees_all_equal(keras_weights.read(self.folder / 'd.weights.h5').variables, c.variables)
    write(self.folder / 'd.h5', None, dict(layers))
    chex.assert_trees_all_equal(keras_weights.read(self.folder / 'd.h5').variables, c.variables)


if __name__ == '__main__':
  absltest.main()
