"""Architectures: published counts, paths, shapes, training against evaluation."""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax import linen as nn
from flax import traverse_util

from jaxfix import models
from jaxfix.errors import BadInputError, UnknownNameError
from jaxfix.models import layers, structure
from jaxfix.models.densenet import DenseNet121
from tests.networks import abstract, images, network, quick_jit


@functools.cache
def layer_list(classifier_name, input_shape, **options):
  return structure.layer_list(abstract(classifier_name, input_shape, **options))


def size(tree):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


class CountsTest(parameterized.TestCase):

  @parameterized.named_parameters(
    ('lenet5', 'lenet5', (28, 28, 1), {}, 29_450, 0),
    ('lenet5_classic', 'lenet5', (28, 28, 1), {'variant': 'classic'}, 61_706, 0),
    ('facenet_48', 'facenet', (48, 48, 3), {}, 1_568_450, 0),
    ('facenet_64', 'facenet', (64, 64, 3), {}, 2_485_954, 0),
    ('facenet_128', 'facenet', (128, 128, 3), {}, 8_777_410, 0),
    ('vgg16_study', 'vgg16', (32, 32, 3), {}, 15_253_578, 8_448),
    ('vgg16_cifar', 'vgg16', (32, 32, 3), {'variant': 'cifar'}, 14_728_266, 8_448),
    ('resnet18', 'resnet18', (32, 32, 3), {}, 11_173_962, 9_600),
    ('resnet18_tiny_imagenet', 'resnet18', (64, 64, 3), {'num_classes': 200}, 11_271_432, 9_600),
    ('resnet18_imagenet', 'resnet18', (224, 224, 3), {'num_classes': 1000, 'stem': 'imagenet'}, 11_689_512, 9_600),
    ('resnet50', 'resnet50', (32, 32, 3), {}, 23_520_842, 53_120),
    ('resnet101', 'resnet101', (32, 32, 3), {}, 42_512_970, 105_344),
    ('densenet121', 'densenet121', (32, 32, 3), {}, 6_956_298, 83_520),
    ('densenet121_imagenet', 'densenet121', (224, 224, 3), {'num_classes': 1000, 'form': 'imagenet'}, 7_978_856,
     83_648),
    ('alexnet', 'alexnet', (64, 64, 3), {}, 57_044_810, 0),
    ('mlp_3x100', 'mlp', (784,), {'num_classes': 10, 'hidden': (100,) * 3}, 99_710, 0),
    ('mlp_9x100', 'mlp', (784,), {'num_classes': 10, 'hidden': (100,) * 9}, 160_310, 0),
    ('mlp_300_100', 'mlp', (28, 28, 1), {'num_classes': 10, 'hidden': (300, 100)}, 266_610, 0),
    ('mlp_32_16', 'mlp', (784,), {'num_classes': 10, 'hidden': (32, 16)}, 25_818, 0),
    ('acas_xu', 'mlp', (5,), {'num_classes': 5, 'hidden': (50,) * 6}, 13_305, 0),
    ('toy', 'mlp', (2,), {'hidden': (16, 16)}, 354, 0))
  def test_published_number_of_parameters(self, name, input_shape, options, trainable, statistics):
    variables = abstract(name, input_shape, **options).variables
    self.assertEqual(size(variables['params']), trainable)
    self.assertEqual(size(variables.get('batch_stats', {})), statistics)

  @parameterized.parameters(('resnet50', 25_557_032), ('resnet101', 44_549_160))
  @pytest.mark.slow
  def test_imagenet_stem_of_the_deep_ones(self, name, trainable):
    variables = abstract(name, (224, 224, 3), num_classes=1000, stem='imagenet').variables
    self.assertEqual(size(variables['params']), trainable)

  @parameterized.named_parameters(
    ('resnet18', 'resnet18', (32, 32, 3), {}, 'keras', 69),
    ('densenet121', 'densenet121', (224, 224, 3), {'num_classes': 1000, 'form': 'imagenet'}, 'keras', 429),
    ('densenet121_study', 'densenet121', (224, 224, 3), {'num_classes': 1000, 'form': 'imagenet'}, 'study', 249),
    ('lenet5', 'lenet5', (28, 28, 1), {}, 'study', 8),
    ('facenet', 'facenet', (48, 48, 3), {}, 'study', 11),
    ('vgg16_study', 'vgg16', (32, 32, 3), {}, 'study', 42))
  def test_published_number_of_layers(self, name, input_shape, options, rule, number):
    self.assertEqual(structure.count_layers(layer_list(name, input_shape, **options), rule), number)

  def test_another_counting_rule_is_an_error(self):
    with self.assertRaisesRegex(BadInputError, 'rule'):
      structure.count_layers(layer_list('lenet5', (28, 28, 1)), 'mine')


class StructureTest(parameterized.TestCase):

  @parameterized.named_parameters(
    ('vgg16_study', 'vgg16', (32, 32, 3), {}, 3, ['fc1', 'fc2']),
    ('vgg16_cifar', 'vgg16', (32, 32, 3), {'variant': 'cifar'}, 1, []),
    ('facenet', 'facenet', (48, 48, 3), {}, 2, []),
    ('lenet5', 'lenet5', (28, 28, 1), {}, 3, []),
    ('resnet18', 'resnet18', (32, 32, 3), {}, 1, []),
    ('square_output_is_not_hidden', 'mlp', (4,), {'num_classes': 5, 'hidden': (5,)}, 2, []))
  def test_dense_runs_and_square_layers(self, name, input_shape, options, run, square):
    found = layer_list(name, input_shape, **options)
    self.assertEqual(structure.longest_dense_run(found), run)
    self.assertEqual([layer.path for layer in structure.square_dense(found)], square)

  @parameterized.named_parameters(
    ('lenet5', 'lenet5', (28, 28, 1), {}, 84), ('facenet', 'facenet', (48, 48, 3), {}, 128),
    ('vgg16', 'vgg16', (32, 32, 3), {}, 512), ('resnet18', 'resnet18', (32, 32, 3), {}, 512),
    ('resnet50', 'resnet50', (32, 32, 3), {}, 2048), ('alexnet', 'alexnet', (64, 64, 3), {}, 4096),
    ('densenet121', 'densenet121', (8, 8, 3), {'units': (2, 1)}, (64 + 64) // 2 + 32), ('mlp', 'mlp', (2,), {}, 16))
  def test_features_are_the_penultimate_vector(self, name, input_shape, options, d):
    c = abstract(name, input_shape, **options)
    logits, features = jax.eval_shape(functools.partial(c.module.apply, features=True), c.variables,
                                      jax.ShapeDtypeStruct((2, *input_shape), jnp.float32))
    self.assertEqual((logits.shape, features.shape), ((2, c.num_classes), (2, d)))

  @parameterized.named_parameters(
    ('lenet5', 'lenet5', (28, 28, 1), {}, 'fc3/kernel'), ('vgg16', 'vgg16', (32, 32, 3), {}, 'conv13/kernel'),
    ('resnet18', 'resnet18', (32, 32, 3), {}, 'stage4/unit2/conv2/kernel'),
    ('resnet50', 'resnet50', (32, 32, 3), {}, 'stage3/unit6/bn3/scale'),
    ('resnet_shortcut', 'resnet18', (32, 32, 3), {}, 'stage2/unit1/shortcut_conv/kernel'),
    ('densenet121', 'densenet121', (32, 32, 3), {}, 'stage4/unit16/conv2/kernel'),
    ('alexnet', 'alexnet', (64, 64, 3), {}, 'fc2/bias'), ('facenet', 'facenet', (48, 48, 3), {}, 'conv4/bias'))
  def test_parameter_paths(self, name, input_shape, options, path):
    params = abstract(name, input_shape, **options).variables['params']
    self.assertIn(path, traverse_util.flatten_dict(params, sep='/'))

  def test_lenet5_shapes(self):
    found = [layer for layer in layer_list('lenet5', (28, 28, 1)) if layer.kind in ('conv', 'maxpool')]
    self.assertEqual([layer.output_shape[0] for layer in found], [24, 8, 6, 3])

  def test_explicit_padding_gives_the_imagenet_pyramid(self):
    found = {layer.path: layer.output_shape for layer in layer_list(
      'densenet121', (224, 224, 3), form='imagenet', units=(1, 1, 1, 1))}
    sizes = [found[path][0] for path in ('conv1', 'pool1', *(f'transition{s}/pool' for s in (1, 2, 3)))]
    self.assertEqual(sizes, [112, 56, 28, 14, 7])
    found = {layer.path: layer.output_shape for layer in layer_list(
      'resnet18', (224, 224, 3), stem='imagenet', units=(1, 1, 1, 1))}
    sizes = [found[path][0] for path in ('conv1', 'pool1', *(f'stage{s}/unit1/add' for s in (2, 3, 4)))]
    self.assertEqual(sizes, [112, 56, 28, 14, 7])

  def test_width_multiplies_every_hidden_count(self):
    found = layer_list('vgg16', (32, 32, 3), width=0.125)
    self.assertEqual([layer.output_shape[-1] for layer in found if layer.kind == 'conv'][::6], [8, 32, 64])
    self.assertEqual([layer.output_shape[-1] for layer in found if layer.kind == 'dense'], [64, 64, 10])

  @parameterized.parameters(
    ('vgg16', {'variant': 'cifra'}, "Did you mean 'cifar'"), ('resnet18', {'stem': 'cifer'}, "Did you mean 'cifar'"),
    ('densenet121', {'form': 'image'}, "Did you mean 'imagenet'"), ('lenet5', {'variant': 'mine'}, 'variant of LeNet5'))
  def test_a_form_that_does_not_exist_is_an_error(self, name, options, message):
    with self.assertRaisesRegex(UnknownNameError, message):
      layers.variable_shapes(models.build(name, **options), (32, 32, 3))

  @parameterized.parameters(
    ('vgg16', {'variant': 'cifar', 'bn_epsilon': 0.5}), ('resnet50', {'units': (1, 2), 'width': 0.5}), ('alexnet', {}),
    ('densenet121', {'new_first': False}), ('facenet', {'dropout': 0.25}), ('resnet101', {}))
  def test_describe_names_the_model_that_build_makes(self, name, options):
    module = models.build(name, **options)
    description = models.describe(module)
    self.assertEqual(description['model'], name)
    self.assertEqual(models.build(name, **description['options']), module)


class ModeTest(parameterized.TestCase):

  @parameterized.named_parameters(
    ('resnet18', 'resnet18', (8, 8, 3), {'width': 1 / 16, 'units': (1, 1)}),
    ('densenet121', 'densenet121', (8, 8, 3), {'width': 1 / 8, 'units': (1, 1)}))
  def test_evaluation_leaves_statistics_alone_and_ignores_the_rest_of_the_batch(self, name, input_shape, options):
    c = network(name, input_shape, num_classes=3, **options)
    x = images(input_shape, 3)

    @functools.partial(quick_jit, static_argnames='train')
    def run(variables, x, train):
      return c.module.apply(variables, x, train=train, mutable=['batch_stats'], rngs={'dropout': jax.random.key(2)})

    pair, after = run(c.variables, x[:2], False)
    other, _ = run(c.variables, x[::2], False)
    np.testing.assert_allclose(pair[0], other[0], atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, after['batch_stats'], c.variables['batch_stats'])
    pair, after = run(c.variables, x[:2], True)
    other, _ = run(c.variables, x[::2], True)
    self.assertGreater(float(jnp.abs(pair[0] - other[0]).max()), 1e-3)
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), after['batch_stats'],
                         c.variables['batch_stats'])
    self.assertTrue(all(jax.tree.leaves(moved)))

  @parameterized.product(train=(True, False), rank=(2, 4))
  def test_batch_norm_agrees_with_flax(self, train, rank):
    rng = np.random.default_rng(0)
    x = rng.normal(1, 3, size=(4, 3, 2, 5) if rank == 4 else (4, 5)).astype(np.float32)
    ours, flax = layers.BatchNorm(0.1, 0.7), nn.BatchNorm(use_running_average=not train, momentum=0.7, epsilon=0.1)
    scale, bias, mean, var = rng.uniform(0.5, 1.5, (4, 5)).astype(np.float32)
    variables = {'params': {'scale': scale, 'bias': bias}, 'batch_stats': {'mean': mean, 'var': var}}
    y, after = quick_jit(functools.partial(ours.apply, train=train, mutable=['batch_stats']))(variables, x)
    y_flax, after_flax = quick_jit(functools.partial(flax.apply, mutable=['batch_stats']))(variables, x)
    np.testing.assert_allclose(y, y_flax, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after, after_flax)

  def test_dropout_keeps_the_mean_and_only_in_training(self):
    x = jnp.ones((100, 100))
    dropout = layers.Dropout(0.25)
    np.testing.assert_array_equal(dropout.apply({}, x), x)
    y = quick_jit(lambda x: dropout.apply({}, x, True, rngs={'dropout': jax.random.key(0)}))(x)
    y = np.asarray(y)
    self.assertAlmostEqual(float((y == 0).mean()), 0.25, delta=0.02)
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.75], rtol=1e-6)


class ArithmeticTest(parameterized.TestCase):

  @parameterized.parameters(1, 4, 6, 13)
  def test_adaptive_pooling_by_its_definition(self, h):
    x = np.random.default_rng(0).normal(size=(1, h, h, 2))
    y = np.asarray(quick_jit(layers.AdaptiveAvgPool((6, 6)).apply)({}, x.astype(np.float32)))
    for i in range(6):
      for j in range(6):
        rows, columns = (slice(math.floor(k * h / 6), math.ceil((k + 1) * h / 6)) for k in (i, j))
        np.testing.assert_allclose(y[0, i, j], x[0, rows, columns].mean((0, 1)), atol=1e-6)

  def test_average_pooling_that_does_not_count_pads(self):
    x = jnp.arange(9.).reshape(1, 3, 3, 1)
    y = layers.AvgPool((2, 2), padding='SAME', count_pads=False).apply({}, x)
    np.testing.assert_allclose(y[0, :, :, 0], [[2., 3.5], [6.5, 8.]])

  @parameterized.parameters(False, True)
  def test_residual_unit_by_its_formula(self, bottleneck):
    c = network('resnet50' if bottleneck else 'resnet18', (6, 6, 3), num_classes=3, width=1 / 32, units=(1, 1))
    params, stats = c.variables['params'], c.variables['batch_stats']

    def conv(x, *path, stride=1):
      kernel = functools.reduce(lambda tree, key: tree[key], path, params)['kernel']
      p = kernel.shape[0] // 2
      x = jnp.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
      return jax.lax.conv_general_dilated(x, kernel, (stride, stride), 'VALID',
                                          dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

    def bn(x, *path):
      p, s = (functools.reduce(lambda tree, key: tree[key], path, tree) for tree in (params, stats))
      normal = (x - s['mean'][None, None, None]) / jnp.sqrt(s['var'] + 1e-5)[None, None, None]
      return normal * p['scale'][None, None, None] + p['bias'][None, None, None]

    def unit(x, stage, stride):
      at = (stage, 'unit1')
      strides = (1, stride, 1) if bottleneck else (stride, 1)
      y = x
      for k, s in enumerate(strides, 1):
        y = bn(conv(y, *at, f'conv{k}', stride=s), *at, f'bn{k}')
        y = jax.nn.relu(y) if k < len(strides) else y
      if 'shortcut_conv' in params[stage]['unit1']:
        x = bn(conv(x, *at, 'shortcut_conv', stride=stride), *at, 'shortcut_bn')
      return jax.nn.relu(x + y)

    @quick_jit
    def by_formula(x):
      h = jax.nn.relu(bn(conv(x, 'conv1'), 'bn1'))
      h = unit(unit(h, 'stage1', 1), 'stage2', 2).mean((1, 2))
      return h @ params['fc1']['kernel'] + params['fc1']['bias'][None]

    x = images((6, 6, 3), 2)
    y = quick_jit(c.module.apply)(c.variables, x)
    np.testing.assert_allclose(y, by_formula(x), rtol=1e-4, atol=1e-5)
    self.assertGreater(float(jnp.abs(y[0] - y[1]).max()), 1e-3)  # the input still matters at this width

  def test_imagenet_stem_pads_evenly(self):
    c = network('densenet121', (16, 16, 3), num_classes=3, form='imagenet', width=1 / 16, units=())
    x = images((16, 16, 3), 2)

    def bn_relu(x, name):
      p, s = c.variables['params'][name], c.variables['batch_stats'][name]
      return np.maximum((x - s['mean']) / np.sqrt(s['var'] + 1.001e-5) * p['scale'] + p['bias'], 0)

    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    kernel = c.params['conv1']['kernel']
    h = np.stack([[np.tensordot(padded[:, i:i + 7, j:j + 7], kernel, 3) for j in range(0, 16, 2)]
                  for i in range(0, 16, 2)]).transpose(2, 0, 1, 3)
    padded = np.pad(bn_relu(h, 'bn1'), ((0, 0), (1, 1), (1, 1), (0, 0)))
    h = np.stack([[padded[:, i:i + 3, j:j + 3].max((1, 2)) for j in range(0, 8, 2)] for i in range(0, 8, 2)])
    pooled = bn_relu(h.transpose(2, 0, 1, 3), 'bn_last').mean((1, 2))
    want = pooled @ c.params['fc1']['kernel'] + c.params['fc1']['bias']
    np.testing.assert_allclose(quick_jit(c.module.apply)(c.variables, x), want, rtol=1e-4, atol=1e-5)

  def test_concatenation_order_is_a_permutation_of_weights(self):
    g, units = 2, (2, 1)
    old_first = network('densenet121', (8, 8, 3), num_classes=3, width=1 / 16, units=units, new_first=False)
    new_first = DenseNet121(3, width=1 / 16, units=units, new_first=True)
    flat = traverse_util.flatten_dict(old_first.variables, sep='/')

    def order(c0, k):  # position in [new, ..., old] -> channel in [old, ..., new], after k units
      return np.concatenate([c0 + np.arange(i * g, (i + 1) * g) for i in reversed(range(k))] + [np.arange(c0)])

    readers, c0 = {}, 4  # layer -> order of the channels it reads
    for s, n in enumerate(units, 1):
      for u in range(1, n + 1):
        readers |= dict.fromkeys((f'stage{s}/unit{u}/bn1', f'stage{s}/unit{u}/conv1'), order(c0, u - 1))
      end = ('transition1/bn1', 'transition1/conv1') if s == 1 else ('bn_last', 'fc1')
      readers |= dict.fromkeys(end, order(c0, n))
      c0 = (c0 + n * g) // 2
    permuted = dict(flat)
    for name, array in flat.items():
      _, path = name.split('/', 1)
      path, leaf = path.rsplit('/', 1)
      if path in readers and leaf != 'kernel' and path != 'fc1':
        permuted[name] = array[readers[path]]
      elif path in readers and leaf == 'kernel':
        permuted[name] = np.take(array, readers[path], axis=array.ndim - 2)
    x = images((8, 8, 3), 2)
    variables, other = (traverse_util.unflatten_dict(f, sep='/') for f in (flat, permuted))
    want = quick_jit(old_first.module.apply)(variables, x)
    run = quick_jit(new_first.apply)
    np.testing.assert_allclose(run(other, x), want, atol=1e-5)
    self.assertGreater(float(jnp.abs(run(variables, x) - want).max()), 1e-2)


if __name__ == '__main__':
  absltest.main()
