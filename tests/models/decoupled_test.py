"""Decoupled networks: the numbers of the method's specification, and the theorems on networks of every kind."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import linen as nn

from jaxfix import classifier as classifiers
from jaxfix import intervene, models
from jaxfix.classifier import Classifier, flat_weights
from jaxfix.errors import BadInputError, UnknownNameError
from jaxfix.linearize import float64, to_float64
from jaxfix.models import layers, structure
from jaxfix.models.decoupled import Decoupled, base_classifier, decouple
from tests.networks import images, network, quick_jit

_RESNET = functools.partial(network, 'resnet18', (8, 8, 3), num_classes=3, width=1 / 16, units=(1, 1))
_MLP = functools.partial(network, 'mlp', (5,), num_classes=3, hidden=(7, 6))


class Chain(nn.Module):
  """Operations in order: a number is a Dense layer of that width, 'conv' a 1x1 convolution to two channels."""
  steps: tuple

  @nn.compact
  def __call__(self, x, train=False):
    for i, step in enumerate(self.steps):
      if isinstance(step, int):
        x = nn.Dense(step, name=f'layer{i}')(x)
      elif step == 'conv':
        x = nn.Conv(2, (1, 1), name=f'layer{i}')(x)
      elif step == 'relu':
        x = nn.relu(x)
      elif step == 'hard_tanh':
        x = nn.hard_tanh(x)
      elif step == 'pool':
        x = layers.Flatten()(layers.MaxPool((2, 2))(x))
    return x


def _scaled_identity(scale, shift, kernel_shape=(2, 2)):
  return {'kernel': scale * jnp.eye(kernel_shape[-1]).reshape(kernel_shape), 'bias': jnp.full(kernel_shape[-1], shift)}


def _chain(steps, input_shape, params):
  return Classifier({'params': params}, Chain(steps), input_shape, 2)


@quick_jit
def _evaluate(classifier, z, rep):
  options = {} if rep is None else {'rep': rep}
  return classifier.module.apply(classifier.variables, z, **options)


def _at(classifier, z, rep=None):
  return np.asarray(_evaluate(classifier, np.asarray(z), rep))


def _other_values(classifier, seed=1):
  """The decoupled network with random weights in the value channel."""
  rng = np.random.default_rng(seed)
  value = jax.tree.map(lambda w: rng.normal(size=w.shape).astype(np.float32), classifier.params['value'])
  return classifier.with_params({**classifier.params, 'value': value})


def _two_channels(params, value, layer, x, rep):
  """Activation and value channel of a ReLU multilayer perceptron, one layer after the other, in NumPy."""
  a, v = rep, x
  names = sorted(params)
  for name in names:
    own = params[name]
    other = value if name == layer else own
    a, v = a @ own['kernel'] + own['bias'], v @ other['kernel'] + other['bias']
    if name != names[-1]:
      a, v = np.maximum(a, 0), np.where(a > 0, v, 0)
  return v


class DecoupledTest(parameterized.TestCase):

  def test_published_numbers_of_an_edited_second_layer(self):
    net = _chain((2, 'relu', 2, 'relu'), (2,), {'layer0': _scaled_identity(1., 1.), 'layer2': _scaled_identity(2., 0.)})
    out = _at(decouple(net, 'layer2', _scaled_identity(3., 0.)), [[-2., 1.]])
    np.testing.assert_array_equal(out, [[0., 6.]])

  def test_published_numbers_with_representatives(self):
    one = functools.partial(_scaled_identity, kernel_shape=(1, 1))
    net = _chain((1, 'relu'), (1,), {'layer0': one(1., 0.)})
    out = _at(decouple(net, 'layer0', one(1., 1.)), [[0.], [0.]], rep=jnp.array([[1.], [-1.]]))
    np.testing.assert_array_equal(out, [[1.], [0.]])

  def test_published_numbers_of_hard_tanh(self):
    net = _chain((2, 'hard_tanh'), (2,), {'layer0': _scaled_identity(1., 1.)})
    out = _at(decouple(net, 'layer0', _scaled_identity(2., 0.)), [[0.5, -0.9]])
    np.testing.assert_allclose(out, [[1., -1.8]], rtol=1e-6)   # saturated: 1; else the value

  def test_published_numbers_of_max_pooling(self):
    conv = functools.partial(_scaled_identity, kernel_shape=(1, 1, 2, 2))
    net = _chain(('conv', 'pool'), (2, 2, 2), {'layer0': conv(1., 1.)})
    x = np.float32([1, 2, -1, -2.5, 0, 0.5, 1.5, -3.5]).reshape(1, 2, 2, 2)
    np.testing.assert_array_equal(_at(decouple(net, 'layer0', conv(-1., 0.)), x), [[-1.5, -2.]])

  @parameterized.parameters('conv1', 'stage2/unit1/shortcut_conv')
  def test_equal_channels_give_the_original_network(self, layer):
    net, z = _RESNET(), images((8, 8, 3))
    same = decouple(net, layer)
    np.testing.assert_allclose(_at(same, z), _at(net, z), rtol=1e-5)   # two programs, so two roundings
    self.assertGreater(abs(_at(_other_values(same), z) - _at(net, z)).max(), 0.1)

  @parameterized.product(layer=('fc1', 'fc2', 'fc3'), with_rep=(False, True))
  def test_it_is_two_channels_side_by_side(self, layer, with_rep):
    net = _other_values(decouple(_MLP(), layer))
    z, rep = images((5,), 20), images((5,), 20, seed=9) if with_rep else None
    params = jax.tree.map(lambda w: np.asarray(w, np.float64), dict(net.params))
    expected = _two_channels(params['base'], params['value'], layer, z, z if rep is None else rep)
    with float64():
      out = _at(to_float64(net), np.float64(z), None if rep is None else np.float64(rep))
    np.testing.assert_allclose(out, expected, atol=1e-12)

  @parameterized.parameters('fc1', 'fc2', 'fc3')
  def test_it_is_affine_where_the_base_is(self, layer):
    base = _MLP()
    net, ends = _other_values(decouple(base, layer)), images((5,), 2)
    t = np.linspace(-3, 3, 2001)[:, None]
    line = ends[0] + t * (ends[1] - ends[0])
    with float64():
      exact = to_float64(base)
      hidden = quick_jit(lambda line: intervene.record(exact, line, ('fc1', 'fc2')))(line)
      out = _at(to_float64(net), line)
    pattern = np.concatenate([np.asarray(hidden[name][1]) > 0 for name in ('fc1', 'fc2')], axis=1)
    same = (pattern[2:] == pattern[1:-1]).all(1) & (pattern[1:-1] == pattern[:-2]).all(1)
    bend = abs(out[2:] - 2 * out[1:-1] + out[:-2]).max(1)
    self.assertLess(bend[same].max(), 1e-10)
    self.assertGreater((~same).sum(), 4)   # several pieces, or the test says nothing
    if layer != 'fc3':
      self.assertGreater(bend[~same].max(), 1e-3)

  @parameterized.parameters('fc1', 'fc3')
  def test_the_gradient_is_that_of_the_piece(self, layer):
    net, z = _other_values(decouple(_MLP(), layer)), images((5,), 8)
    with float64():
      exact = to_float64(net)
      score = lambda x: exact.logits_of_normalized(x[None])[0, 1]
      gradient = np.asarray(quick_jit(jax.vmap(jax.grad(score)))(np.float64(z)))
      step = 1e-7 * np.eye(5)
      slopes = (_at(exact, (z[:, None] + step).reshape(-1, 5)) - _at(exact, (z[:, None] - step).reshape(-1, 5))) / 2e-7
    np.testing.assert_allclose(gradient, slopes[:, 1].reshape(8, 5), atol=1e-6)

  def test_gradients_through_convolutions_and_pooling_are_finite_in_float32(self):
    net = _other_values(decouple(network('lenet5', (8, 8, 1), variant='small', width=0.5), 'conv2'))
    loss = lambda z: jax.nn.log_softmax(net.logits_of_normalized(z))[:, 0].sum()
    gradient = quick_jit(jax.grad(loss))(images((8, 8, 1)))
    self.assertTrue(np.isfinite(gradient).all())
    self.assertGreater(abs(gradient).max(), 0)

  def test_batch_statistics_are_those_of_the_base_and_of_evaluation(self):
    net, z = decouple(_RESNET(), 'conv1'), images((8, 8, 3))
    doubled = net.with_variables({**net.variables, 'batch_stats': jax.tree.map(lambda s: 2 * s,
                                                                               net.variables['batch_stats'])})
    self.assertGreater(abs(_at(doubled, z) - _at(net, z)).max(), 1e-3)
    with self.assertRaisesRegex(BadInputError, 'no training mode'):
      net.module.apply(net.variables, z, train=True, mutable=['batch_stats'])

  def test_a_fresh_network_computes_what_its_base_does(self):
    module, z = Decoupled(models.build('mlp', hidden=(4,)), 'fc1'), images((3,))
    net = Classifier(quick_jit(module.init)(jax.random.key(0), z), module, (3,), 2)
    shapes = {name: w.shape for name, w in flat_weights(net.variables).items() if 'fc1' in name or 'value' in name}
    self.assertEqual(shapes, {'params/base/fc1/kernel': (3, 4), 'params/base/fc1/bias': (4,),
                              'params/value/kernel': (3, 4), 'params/value/bias': (4,)})
    np.testing.assert_array_equal(_at(net, z), _at(base_classifier(net), z))
    conv = Decoupled(_RESNET().module, 'conv1')
    self.assertEqual(_init(conv, images((8, 8, 3)))['params']['value']['kernel'].shape, (3, 3, 3, 4))

  def test_it_can_be_described_and_built_again(self):
    net = decouple(_RESNET(), 'conv1')
    record = models.describe(net.module)
    self.assertEqual(record['model'], 'decoupled')
    self.assertEqual(models.build('decoupled', **record['options']), net.module)

  def test_the_base_comes_back_bit_for_bit(self):
    net = _RESNET()
    back = base_classifier(_other_values(decouple(net, 'conv1')))
    self.assertEqual(back.module, net.module)
    self.assertEqual(classifiers.fingerprint(back), classifiers.fingerprint(net))
    with self.assertRaisesRegex(BadInputError, 'not a decoupled'):
      base_classifier(net)

  def test_interventions_reach_the_value_layer_and_what_precedes_it(self):
    net, z = _other_values(decouple(_MLP(), 'fc2')), images((5,))
    self.assertEqual([layer.path for layer in structure.layer_list(net) if layer.kind == 'dense'],
                     ['base/fc1', 'value', 'base/fc2', 'base/fc3'])
    seen = quick_jit(lambda net, z: intervene.record(net, z, ('base/fc1', 'value')))(net, z)
    np.testing.assert_array_equal(np.maximum(seen['base/fc1'][1], 0), seen['value'][0])
    cache = quick_jit(lambda net, z: intervene.prefix(net, z, ('value',)))(net, z)
    changed = _other_values(net, seed=2)
    out = quick_jit(lambda net, cache: intervene.suffix(net, cache, ('value',)))(changed, cache)
    np.testing.assert_allclose(out, _at(changed, z), rtol=1e-5, atol=1e-5)

  def test_the_last_layer_needs_no_second_channel(self):
    net, z = _MLP(), np.float64(images((5,), 1000))
    with float64():
      edited = _other_values(decouple(net, 'fc3'))
      folded = net.with_params({**net.params, 'fc3': edited.params['value']})
      np.testing.assert_array_equal(_at(to_float64(edited), z), _at(to_float64(folded), z))

  def test_mistakes_are_named(self):
    net, z = _RESNET(), images((8, 8, 3))
    value = {'kernel': jnp.zeros((3, 3, 3, 5))}
    cases = (
      (UnknownNameError, "Did you mean 'conv1'", lambda: decouple(net, 'konv1')),
      (UnknownNameError, "Did you mean 'conv1'", lambda: _init(Decoupled(net.module, 'konv1'), z)),
      (BadInputError, 'Dense and Conv', lambda: decouple(net, 'bn1')),
      (BadInputError, 'is a BatchNorm', lambda: _init(Decoupled(net.module, 'bn1'), z)),
      (BadInputError, 'needs arrays of shapes', lambda: decouple(net, 'conv1', value)),
      (BadInputError, 'more than once', lambda: _init(Decoupled(Twice(), 'layer'), z)),
    )
    for error, message, call in cases:
      with self.subTest(message), self.assertRaisesRegex(error, message) as caught:
        call()
      self.assertNotIn('\n', str(caught.exception))


class Twice(nn.Module):
  """One layer, applied two times."""

  @nn.compact
  def __call__(self, x, train=False):
    layer = nn.Dense(3, name='layer')
    return layer(layer(x))


def _init(module, z):
  return jax.eval_shape(lambda: module.init(jax.random.key(0), z))


if __name__ == '__main__':
  absltest.main()
