"""Linear regions against worked examples, the network itself at random points, and areas that must add up."""
import functools

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError
from jaxfix.verify import Box
from jaxfix.verify.graph import trace
from jaxfix.verify.normal_form import evaluate, lower, values
from jaxfix.verify.regions import (
  KINKED,
  activation_pattern,
  affine_map,
  affine_maps,
  line_pieces,
  plane_pieces,
  region,
)
from tests import networks, tiny
from tests.shared_data import shared_data
from tests.verify import forms

_TIGHT = 1e-9   # V-section 12.8; rounding of these networks is some 1e-14
_RANDOM = (forms.random_mlp, forms.random_maxout, forms.random_coarse)


@functools.cache
def convolutional(kind):
  """Networks with max-pooling, one of them with a skip connection and batch normalization."""
  if kind == 'lenet5':
    return lower(trace(networks.network('lenet5', (8, 8, 1), seed=3, variant='small', width=.25)))
  from jaxfix.classifier import Classifier
  from jaxfix.models import layers
  module = tiny.TinyResNet(num_classes=3)
  shapes = layers.variable_shapes(module, (4, 4, 1))
  return lower(trace(networks.filled(Classifier(shapes, module, (4, 4, 1), 3), seed=1)))


def _form(kind, seed=0):
  rng = np.random.default_rng(seed)
  if kind == 'mlp':
    return forms.random_mlp(rng, (3, 9, 9, 4))
  if kind == 'maxout':
    return forms.random_maxout(rng, (3, 6, 6, 6, 4))
  return convolutional(kind)


def _area(corners):
  """Of a convex polygon `[v, n]`: a fan of triangles."""
  side, other = corners[1:-1] - corners[0], corners[2:] - corners[0]
  square = (side**2).sum(1) * (other**2).sum(1) - (side * other).sum(1)**2
  return .5 * np.sqrt(np.maximum(square, 0)).sum()


def _square(form, rng, half_width=2.):
  """Corners of a square around 0 in a random plane of input space."""
  axes = np.linalg.qr(rng.normal(size=(form.num_inputs, 2)))[0].T
  return half_width * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) @ axes


def _inside(corners, rng, count=20):
  return rng.dirichlet(np.ones(len(corners)), count) @ corners


class AffineMapTest(parameterized.TestCase):

  @parameterized.parameters((-1., (1, 0, 0), -.5, -.5), (1., (0, 0, 1), .5, -.5), (3., (0, 1, 1), 0., .5))
  def test_the_toy_network(self, x, pattern, jacobian, offset):
    form = forms.toy()
    np.testing.assert_array_equal(activation_pattern(form, np.array([x]))[3], np.array(pattern, bool))
    j, c = affine_map(form, [x])
    np.testing.assert_array_equal(j, [[jacobian]])
    np.testing.assert_array_equal(c, [offset])

  def test_zero_is_inactive_and_the_second_operand_wins_a_tie(self):
    self.assertFalse(activation_pattern(forms.toy(), np.zeros(1))[3].any())
    builder = forms.Builder(1)
    builder.add('maximum', builder.add('scale', 0, array=[2.]), 0)
    form = builder.form()
    found = activation_pattern(form, np.array([[-1.], [0.], [1.]]))[2]
    np.testing.assert_array_equal(found[:, 0], [False, False, True])
    self.assertEqual(affine_map(form, [0.])[0], 1.)

  @parameterized.product(kind=('mlp', 'maxout', 'lenet5', 'resnet'), seed=(0, 1))
  def test_every_map_gives_the_value_and_logits_nearby(self, kind, seed):
    form, rng = _form(kind, seed), np.random.default_rng(seed)
    x = rng.normal(size=form.num_inputs)
    for value, m in zip(values(form, x), affine_maps(form, activation_pattern(form, x)), strict=True):
      np.testing.assert_allclose(np.append(1., x) @ m, value, atol=_TIGHT)
    j, c = affine_map(form, x)
    near = x + 1e-6 * rng.normal(size=(20, form.num_inputs))
    np.testing.assert_allclose(near @ j.T + c, evaluate(form, near), atol=_TIGHT)

  def test_a_batch_of_patterns_is_the_patterns_of_the_batch(self):
    form = _form('maxout')
    x = np.random.default_rng(0).normal(size=(5, 3))
    batch = activation_pattern(form, x)
    for i, row in enumerate(x):
      for op, one, all_of_them in zip(form.ops, activation_pattern(form, row), batch, strict=True):
        if op.kind in KINKED:
          np.testing.assert_array_equal(one, all_of_them[i])
        else:
          self.assertIsNone(one)


class RegionTest(parameterized.TestCase):

  def test_the_toy_network(self):
    found = region(forms.toy(), [1.], Box([-2.], [3.]))
    # x >= 0, x <= 2, x >= 0 of the three neurons; then the box
    np.testing.assert_array_equal(found.a[:, 0], [-1, 1, -1, 1, -1])
    np.testing.assert_array_equal(found.b, [0, 2, 0, 3, 2])
    np.testing.assert_array_equal(found.scale, [1, 1, .5, 1, 1])
    np.testing.assert_array_equal(found.op, [3, 3, 3, 0, 0])
    np.testing.assert_array_equal(found.neuron, [0, 1, 2, 0, 0])

  @parameterized.product(kind=('mlp', 'maxout'), seed=(0, 1, 2, 3))
  def test_a_point_is_inside_if_and_only_if_it_has_the_pattern(self, kind, seed):
    form, rng = _form(kind, seed), np.random.default_rng(seed)
    x = rng.normal(size=form.num_inputs)
    found = region(form, x)
    np.testing.assert_allclose(np.linalg.norm(found.a, axis=1), 1.)
    points = x + np.linspace(.01, 3, 2000)[:, None] * rng.normal(size=(2000, form.num_inputs))
    inside = (points @ found.a.T <= found.b).all(axis=1)
    patterns = activation_pattern(form, points)
    same = np.all([(p == q).all(axis=1) for p, q in zip(patterns, found.pattern, strict=True) if q is not None], axis=0)
    self.assertTrue(0 < inside.sum() < len(points))
    np.testing.assert_array_equal(inside, same)
    np.testing.assert_allclose(points[inside] @ found.jacobian.T + found.offset, evaluate(form, points[inside]),
                               atol=_TIGHT)

  @parameterized.parameters('lenet5', 'resnet')
  def test_max_pooling_has_rows(self, kind):
    form, rng = _form(kind), np.random.default_rng(0)
    x = rng.normal(size=form.num_inputs)
    found = region(form, x)
    self.assertTrue((found.a @ x <= found.b + _TIGHT).all())
    self.assertIn('maximum', {form.ops[i].kind for i in found.op})
    # As far as the region reaches in random directions, and no further, the pattern is the same.
    for direction in rng.normal(size=(10, form.num_inputs)):
      speed = found.a @ direction
      reach = ((found.b - found.a @ x)[speed > 0] / speed[speed > 0]).min()
      end = x + reach * direction * np.array([[1 - 1e-6], [1 + 1e-6]])
      same = [np.all([(p[i] == q).all() for p, q in zip(activation_pattern(form, end), found.pattern, strict=True)
                      if q is not None]) for i in (0, 1)]
      self.assertEqual(same, [True, False])

  def test_entries_that_do_not_depend_on_the_input_give_no_row(self):
    form = forms.mlp([([[1., 0.], [0., 0.]], [0., 1.]), ([[1., 1.]], [0.])])
    self.assertEqual(region(form, [1., 1.]).neuron.tolist(), [0])

  def test_wrong_sizes_are_refused(self):
    for call in (lambda f: affine_map(f, [1., 2.]), lambda f: affine_map(f, [[1.]]), lambda f: affine_map(f, [np.nan]),
                 lambda f: region(f, [1.], Box([0., 0.], [1., 1.])), lambda f: activation_pattern(f, 1.)):
      with self.assertRaises(BadInputError):
        call(forms.toy())


class LinePiecesTest(parameterized.TestCase):

  def check(self, form, a, b, seed=0):
    ratios = line_pieces(form, a, b)
    self.assertEqual((ratios[0], ratios[-1]), (0., 1.))
    self.assertTrue((np.diff(ratios) > 0).all())
    at = lambda t: evaluate(form, a + t[:, None] * (b - a))
    t = np.random.default_rng(seed).uniform(size=100)
    piece = np.searchsorted(ratios, t) - 1
    local = (t - ratios[piece]) / np.diff(ratios)[piece]
    y = at(ratios)
    np.testing.assert_allclose(y[piece] + local[:, None] * (y[piece + 1] - y[piece]), at(t), atol=_TIGHT)
    return ratios

  def test_the_toy_network_exactly(self):
    np.testing.assert_array_equal(line_pieces(forms.toy(), [-2.], [3.]), [0, 2 / 5, 4 / 5, 1])

  @parameterized.product(kind=('mlp', 'maxout', 'lenet5', 'resnet'), seed=(0, 1))
  def test_the_network_is_affine_between_ratios_and_neighbours_differ(self, kind, seed):
    form, rng = _form(kind, seed), np.random.default_rng(seed)
    a = 3 * rng.normal(size=form.num_inputs)
    b = .5 * rng.normal(size=form.num_inputs) - a   # the line passes near 0, where the borders are
    ratios = self.check(form, a, b)
    self.assertGreater(len(ratios), 5)
    middle = (ratios[:-1] + ratios[1:]) / 2
    patterns = [p for p in activation_pattern(form, a + middle[:, None] * (b - a)) if p is not None]
    differ = np.any([(p[1:] != p[:-1]).any(axis=1) for p in patterns], axis=0)
    self.assertTrue(differ.all())

  @hypothesis.settings(max_examples=40, deadline=None)
  @hypothesis.given(seed=st.integers(0, 2**32 - 1), widths=st.lists(st.integers(1, 12), min_size=1, max_size=3),
                    inputs=st.integers(1, 5), make=st.sampled_from(_RANDOM))
  def test_random_networks(self, seed, widths, inputs, make):
    rng = np.random.default_rng(seed)
    form = make(rng, (inputs, *widths, 2))
    self.check(form, *(4 * rng.normal(size=(2, inputs))), seed)

  def test_no_line_at_all(self):
    np.testing.assert_array_equal(line_pieces(forms.toy(), [1.], [1.]), [0, 1])

  def test_ends_on_a_border_add_nothing(self):
    np.testing.assert_array_equal(line_pieces(forms.toy(), [0.], [2.]), [0, 1])

  def test_one_neuron_read_twice_crosses_once(self):
    layer = ([[.3, .7], [.3, .7], [-.3, -.7], [.6, 1.4]], [.1, .1, -.1, .2])
    form = forms.mlp([layer, (np.ones((1, 4)), [0.])])
    self.assertLen(line_pieces(form, [-1., -2.], [1., 3.]), 3)

  def test_wrong_sizes_are_refused(self):
    for a, b in (([1., 2.], [1.]), ([1.], [[1.]]), ([1.], [np.inf])):
      with self.assertRaises(BadInputError):
        line_pieces(forms.toy(), a, b)

  def test_between_two_digits(self):
    layers = np.load(shared_data('aprnn_mnist/mnist_relu_9x200.npz'))
    form = forms.mlp([(layers[f'W{i}'], layers[f'b{i}']) for i in range(9)])
    a, b = np.load(shared_data('mnist.npz'))['x_test'][:2].reshape(2, -1) / 255
    self.assertGreater(len(self.check(form, a, b)), 500)


class PlanePiecesTest(parameterized.TestCase):

  def check(self, form, corners, rng):
    found = plane_pieces(form, corners)
    self.assertAlmostEqual(sum(_area(found.corners(p)) for p in range(len(found.polygons))), _area(corners), delta=1e-8)
    for p, polygon in enumerate(found.polygons):
      weights = rng.dirichlet(np.ones(len(polygon)), 5)
      logits = evaluate(form, found.corners(p))
      np.testing.assert_allclose(weights @ logits, evaluate(form, weights @ found.corners(p)), atol=_TIGHT)
    self.assertLen(np.unique(np.round(found.vertices, 9), axis=0), len(found.vertices))
    np.testing.assert_array_equal(np.unique(np.concatenate(found.polygons)), np.arange(len(found.vertices)))
    self.assertLen(found.cuts, len(found.polygons) - 1)
    return found

  def test_one_layer_on_a_square(self):
    form = forms.mlp([(np.eye(2), [0., 0.]), (np.eye(2), [0., 0.])])
    found = self.check(form, np.array([[-1., -1.], [1., -1.], [1., 1.], [-1., 1.]]), np.random.default_rng(0))
    self.assertEqual([_area(found.corners(p)) for p in range(4)], [1.] * 4)
    self.assertLen(found.vertices, 9)

  def test_vertices_of_the_source(self):
    form = forms.mlp([(np.eye(2), [0., 0.]), (np.eye(2), [0., 0.])])
    found = plane_pieces(form, [[-1., -3.], [-.5, -3.], [-.5, 9.], [-1., 9.]])
    self.assertEqual({tuple(v) for v in found.vertices.tolist()},
                     {(-1., -3.), (-.5, -3.), (-.5, 9.), (-1., 9.), (-1., 0.), (-.5, 0.)})
    np.testing.assert_array_equal(found.cuts, [[3, 1, ~0, ~1]])
    self.assertGreater(found.corners(0)[:, 1].max(), 0)

  @parameterized.product(kind=('mlp', 'maxout', 'lenet5', 'resnet'), seed=(0, 1))
  def test_pieces_cover_and_the_network_is_affine_on_each(self, kind, seed):
    form, rng = _form(kind, seed), np.random.default_rng(seed)
    found = self.check(form, _square(form, rng, 1.), rng)
    self.assertGreater(len(found.polygons), 5)
    centres = np.array([found.corners(p).mean(axis=0) for p in range(len(found.polygons))])
    patterns = np.concatenate([p for p in activation_pattern(form, centres) if p is not None], axis=1)
    self.assertLen(np.unique(patterns, axis=0), len(patterns))

  @hypothesis.settings(max_examples=30, deadline=None)
  @hypothesis.given(seed=st.integers(0, 2**32 - 1), widths=st.lists(st.integers(1, 8), min_size=1, max_size=3),
                    inputs=st.integers(2, 5), make=st.sampled_from(_RANDOM))
  def test_random_networks(self, seed, widths, inputs, make):
    rng = np.random.default_rng(seed)
    form = make(rng, (inputs, *widths, 2))
    whole_numbers = np.zeros((4, inputs))
    whole_numbers[:, :2] = [[-2, -2], [2, -2], [2, 2], [-2, 2]]
    self.check(form, whole_numbers if make is forms.random_coarse else _square(form, rng), rng)

  @parameterized.parameters('mlp', 'maxout')
  def test_an_edge_is_cut_like_the_line(self, kind):
    form, rng = _form(kind), np.random.default_rng(5)
    corners = _square(form, rng)
    found = plane_pieces(form, corners)
    direction = corners[1] - corners[0]
    ratio = (found.vertices - corners[0]) @ direction / (direction @ direction)
    on_edge = np.linalg.norm(corners[0] + ratio[:, None] * direction - found.vertices, axis=1) < 1e-9
    np.testing.assert_allclose(np.sort(ratio[on_edge]), line_pieces(form, corners[0], corners[1]), atol=_TIGHT)

  @parameterized.parameters('mlp', 'maxout')
  def test_the_tree_of_cuts_leads_to_the_piece(self, kind):
    form, rng = _form(kind), np.random.default_rng(6)
    corners = _square(form, rng)
    found = plane_pieces(form, corners)
    points = _inside(corners, rng, 100)
    patterns = activation_pattern(form, points)
    for i, point in enumerate(points):
      at = 0
      while at >= 0:
        op, neuron, positive, negative = found.cuts[at]
        at = positive if patterns[op][i, neuron] else negative
      piece = found.corners(~at)
      fan = [_area(np.stack([point, piece[j - 1], piece[j]])) for j in range(len(piece))]
      self.assertAlmostEqual(sum(fan), _area(piece), delta=1e-7)   # the point lies in it

  def test_no_cut(self):
    found = plane_pieces(forms.absolute_sum(), [[2., 0.], [3., 0.], [3., 1.]])
    self.assertLen(found.polygons, 1)
    self.assertEqual(found.cuts.shape, (0, 4))

  def test_repeated_and_collinear_vertices(self):
    rng = np.random.default_rng(0)
    square = np.array([[-1., -1.], [1., -1.], [1., 1.], [-1., 1.]])
    form = forms.random_mlp(rng, (2, 6, 6, 2))
    wanted = self.check(form, square, rng)
    again = plane_pieces(form, square[[0, 0, 1, 2, 2, 2, 3, 0]])
    np.testing.assert_array_equal(again.vertices, wanted.vertices)
    clockwise = self.check(form, square[::-1], rng)
    self.assertLen(clockwise.polygons, len(wanted.polygons))
    collinear = self.check(form, np.insert(square, 1, [[-.3, -1.], [.2, -1.]], axis=0), rng)
    self.assertLen(collinear.polygons, len(wanted.polygons))

  def test_a_border_along_an_edge_and_one_through_vertices(self):
    form = forms.mlp([([[1., 0.], [1., -1.], [1., 1.]], [-1., 0., 0.]), (np.ones((1, 3)), [0.])])
    found = self.check(form, np.array([[-1., -1.], [1., -1.], [1., 1.], [-1., 1.]]), np.random.default_rng(0))
    self.assertLen(found.polygons, 4)   # both diagonals
    self.assertLen(found.vertices, 5)

  @parameterized.parameters(
    ([[0., 0.], [1., 0.]], 'vertices'), ([[0.], [1.], [2.]], 'inputs'), ([[0., 0.], [1., 1.], [2., 2.]], 'on a line'),
    ([[1., 1.], [1., 1.], [1., 1.]], 'distinct'), ([[0., 0.], [1., 1.], [1., 0.], [0., 1.]], 'convex'),
    ([[0., 0.], [2., 0.], [.5, .5], [0., 2.]], 'convex'), ([[0., 0.], [np.nan, 0.], [1., 1.]], 'NaN'),
    ([[np.cos(t), np.sin(t)] for t in 4 * np.pi * np.arange(5) / 5], 'convex'))   # a five-pointed star
  def test_other_shapes_are_refused(self, vertices, words):
    with self.assertRaisesRegex(BadInputError, words):
      plane_pieces(forms.absolute_sum(), vertices)

  def test_vertices_outside_a_plane_are_refused(self):
    with self.assertRaisesRegex(BadInputError, 'plane'):
      plane_pieces(_form('mlp'), [[0., 0., 0.], [1., 0., 0.], [1., 1., .1], [0., 1., 0.]])


if __name__ == '__main__':
  absltest.main()
