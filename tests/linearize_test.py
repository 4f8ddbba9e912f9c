"""Rows of the logits' change in one layer's weights: against the network itself, and against the loops of the paper."""
import functools

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import linen as nn

from jaxfix import linearize
from jaxfix.classifier import Classifier
from jaxfix.clock import Clock
from jaxfix.errors import BadInputError, RepairFailure, Unadaptable
from jaxfix.linearize import Points
from jaxfix.models import decoupled, layers
from tests import tiny
from tests.networks import filled, images, network


@functools.cache
def _network(kind):
  return {
    'mlp': lambda: network('mlp', (5,), num_classes=4, hidden=(7, 6)),
    'lenet5': lambda: network('lenet5', (8, 8, 1), variant='small', width=0.5),
    'resnet': lambda: _with_random_weights(tiny.TinyResNet(), (8, 8, 1), 10),
  }[kind]()


def _with_random_weights(module, input_shape, num_classes):
  return filled(Classifier(layers.variable_shapes(module, input_shape), module, input_shape, num_classes))


def _points(net, n=6, rep=False):
  labels = np.arange(n) % net.num_classes
  return Points(images(net.input_shape, n), label=labels, rep=images(net.input_shape, n, seed=5) if rep else None)


def _dense(rows):
  matrix = rows.rows.rows(np.arange(len(rows.need))) if rows.dense else rows.rows
  return matrix.toarray() if hasattr(matrix, 'toarray') else matrix


class Bad(nn.Module):
  """A network with an operation that has no slope."""
  operation: str

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.Dense(3, name='fc1')(x)
    return {'round': jnp.round, 'gelu': nn.gelu, 'softmax': nn.softmax, 'average': lambda y: y.cumsum(-1) / 3,
            'square': lambda y: y * y, 'gate': lambda y: jnp.where(y > 0, 1., 2.)}[self.operation](x)


class RowsTest(parameterized.TestCase):

  @parameterized.parameters(
    ('mlp', 'fc1', False), ('mlp', 'fc2', True), ('lenet5', 'conv1', True), ('resnet', 'conv1', False))
  def test_the_decoupled_network_is_affine_in_its_weights(self, kind, layer, rep):
    net, rng = _network(kind), np.random.default_rng(3)
    points = _points(net, rep=rep)
    rows = linearize.constraints(net, layer, points, batch_size=4)
    change = rng.normal(size=len(rows.free)) * rows.free
    change *= 10 / np.linalg.norm(change)
    edited = decoupled.decouple(net, layer)
    delta = rows.unpack(change)
    with linearize.float64():
      exact = linearize.to_float64(edited)
      exact = exact.with_params({**exact.params, 'value': {k: v + delta[k] for k, v in exact.params['value'].items()}})
      rep = None if points.rep is None else np.float64(points.rep)
      logits = np.asarray(linearize._logits_at(exact, np.float64(points.z), rep))
    np.testing.assert_allclose(points.excess(logits).ravel(), rows.matvec(change) - rows.need, atol=1e-9)
    self.assertGreater(abs(rows.matvec(change)).max(), 1e-2)

  def test_rows_are_in_the_order_of_the_paper(self):
    net = _network('mlp')
    points = _points(net, 5)
    w = {name: {k: np.asarray(v, np.float64) for k, v in layer.items()} for name, layer in net.params.items()}
    expected = []
    for x, t in zip(np.float64(points.z), points.label, strict=True):
      h = np.maximum(x @ w['fc1']['kernel'] + w['fc1']['bias'], 0)
      z2 = h @ w['fc2']['kernel'] + w['fc2']['bias']
      tail = w['fc3']['kernel'].T * (z2 > 0)
      y = np.maximum(z2, 0) @ w['fc3']['kernel'] + w['fc3']['bias']
      for j in range(4):
        if j != t:
          u = tail[t] - tail[j]
          expected.append(np.concatenate([np.outer(u, h).ravel(), u, [y[j] - y[t]]]))
    expected = np.array(expected)
    rows = linearize.constraints(net, 'fc2', points)
    np.testing.assert_allclose(_dense(rows), expected[:, :-1], atol=1e-12)
    np.testing.assert_allclose(rows.need, expected[:, -1], atol=1e-12)
    np.testing.assert_array_equal(rows.point, np.repeat(np.arange(5), 3))

  def test_labels_are_a_short_way_to_write_conditions(self):
    net = _network('mlp')
    points = _points(net)
    a, b = points.conditions(np.arange(6), 4)
    self.assertEqual(a.shape, (6, 3, 4))
    same = Points(points.z, matrix=-a, limit=-b)
    one, other = (linearize.constraints(net, 'fc2', p) for p in (points, same))
    np.testing.assert_array_equal(_dense(one), _dense(other))
    np.testing.assert_array_equal(one.need, other.need)
    logits = np.random.default_rng(0).normal(size=(6, 4))
    own = np.take_along_axis(logits, points.label[:, None], 1)
    others = np.where(np.arange(4) == points.label[:, None], -np.inf, logits).max(1)
    np.testing.assert_allclose(points.excess(logits).min(1), own[:, 0] - others)

  @parameterized.parameters(('mlp', 'fc2'), ('resnet', 'conv1'))
  def test_a_mask_and_a_limit_leave_the_strongest_weights(self, kind, layer):
    net = _network(kind)
    points = _points(net)
    full = linearize.constraints(net, layer, points)
    mask = np.random.default_rng(0).random(full.shape) < 0.7
    few = linearize.constraints(net, layer, points, mask=mask, max_weights=5)
    self.assertEqual(few.num_free, 5 + full.has_bias * full.shape[-1])
    kept = few.unpack(few.free.astype(float))['kernel'] > 0
    self.assertFalse((kept & ~mask).any())
    strength = full.unpack(abs(_dense(full)[full.need > 0]).sum(0))['kernel']
    self.assertGreaterEqual(strength[kept].min(), strength[mask & ~kept].max())
    np.testing.assert_allclose(_dense(few), _dense(full)[:, few.columns])

  def test_a_second_call_compiles_nothing(self):
    net = _network('mlp')
    call = lambda: linearize.constraints(net, 'fc1', _points(net, 10), batch_size=4)
    call()
    clock = Clock()
    call()
    self.assertEqual(clock.num_compiled, 0)

  def test_float64_stays_inside(self):
    net = _network('mlp')
    points = _points(net)
    exact, plain = (linearize.logits_at(net, points, exact=e, batch_size=4) for e in (True, False))
    self.assertTrue(0 < abs(exact - plain).max() < 1e-5)
    self.assertEqual(jnp.ones(1).dtype, jnp.float32)
    self.assertEqual(net.params['fc1']['kernel'].dtype, np.float32)

  def test_matrices_that_are_too_large_are_refused(self):
    net = _network('resnet')
    with self.assertRaisesRegex(RepairFailure, 'max_weights'), _row_bytes(1000):
      linearize.constraints(net, 'conv1', _points(net))

  def test_malformed_points_are_refused(self):
    z = images((5,))
    for options, message in (({}, 'either label'), ({'label': np.zeros(3)}, 'label must have shape'),
                             ({'label': np.zeros(4), 'rep': z[:2]}, 'rep must have'),
                             ({'matrix': np.zeros((4, 2, 3)), 'limit': np.zeros((4, 3))}, 'matrix must be')):
      with self.assertRaisesRegex(BadInputError, message):
        Points(z, **options)
    with self.assertRaisesRegex(BadInputError, 'shape of the kernel'):
      linearize.constraints(_network('mlp'), 'fc1', _points(_network('mlp')), mask=np.ones((2, 2), bool))


class LayersTest(parameterized.TestCase):

  def test_the_last_layer_is_the_default(self):
    self.assertEqual(linearize.find_layer(_network('resnet'), None).path, 'fc2')
    self.assertEqual(linearize.find_layer(_network('resnet'), 'conv1').kind, 'conv')

  @parameterized.parameters(('conv9', 'no layer'), ('bn1', 'kind bn'))
  def test_other_layers_are_unadaptable(self, path, message):
    with self.assertRaisesRegex(Unadaptable, message):
      linearize.find_layer(_network('resnet'), path)

  @parameterized.parameters(('resnet', 'fc2', True), ('resnet', 'fc1', False), ('lenet5', 'conv2', False))
  def test_only_what_follows_decides_whether_the_tail_is_affine(self, kind, layer, affine):
    self.assertEqual(linearize.tail_is_affine(_network(kind), layer), affine)

  @parameterized.parameters(('gelu', False), ('softmax', False), ('average', True), ('square', False), ('gate', False))
  def test_tails(self, operation, affine):
    net = _with_random_weights(Bad(operation), (4,), 3)
    self.assertEqual(linearize.tail_is_affine(net, 'fc1'), affine)

  def test_an_operation_without_slope_is_named(self):
    with self.assertRaisesRegex(Unadaptable, "'round' after layer 'fc1'"):
      linearize.tail_is_affine(_with_random_weights(Bad('round'), (4,), 3), 'fc1')


def _row_bytes(limit):
  return absltest.mock.patch.object(linearize, 'ROW_BYTES', limit)


if __name__ == '__main__':
  absltest.main()
