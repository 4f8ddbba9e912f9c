"""Bounds hold every output, are as tight as the worked examples say, and are one program for many boxes."""
import functools

import chex
import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfix.errors import BadInputError
from jaxfix.verify import bounds, graph, milp, relaxations
from jaxfix.verify.graph import Node
from jaxfix.verify.normal_form import lower
from jaxfix.verify.relaxations import Interval
from jaxfix.verify.spec import Box
from tests import networks as zoo
from tests.verify import networks


@functools.cache
def bounder(kind):
  """Compiled: lower and upper `[b, n]` -> bounds by IBP, CROWN and alpha-CROWN."""
  traced = networks.graph(kind)

  def all_methods(low, high):
    box = Interval(low, high)
    return bounds.ibp(traced, box), bounds.crown(traced, box), bounds.alpha_crown(traced, box, steps=3).interval
  return zoo.quick_jit(jax.vmap(all_methods))


@functools.cache
def runner(kind):
  traced = networks.graph(kind)
  return zoo.quick_jit(jax.vmap(jax.vmap(lambda x: graph.evaluate(traced, x)[-1].reshape(-1))))


class SoundnessTest(parameterized.TestCase):

  @parameterized.parameters('mlp', 'normalized', 'smooth', 'clipped')
  def test_no_sampled_output_leaves_the_bounds(self, kind):
    self._check(kind)

  @parameterized.parameters('lenet5', 'resnet', 'resnet18', 'facenet', 'vgg16', 'alexnet')
  @pytest.mark.slow
  def test_no_sampled_output_leaves_the_bounds_of_larger_networks(self, kind):
    self._check(kind)

  def _check(self, kind):
    n = networks.graph(kind).num_inputs

    @settings(max_examples=12, deadline=None)
    @given(st.integers(0, 2**32 - 1), st.sampled_from((1e-4, 0.02, 0.1, 0.5, 2.)))
    def check(seed, size):
      rng = np.random.default_rng(seed)
      low = rng.normal(size=(4, n)).astype(np.float32)
      high = low + (size * rng.random((4, n)) * rng.integers(0, 2, (4, n))).astype(np.float32)
      share = np.concatenate([rng.random((4, 60, n)), rng.integers(0, 2, (4, 60, n))], axis=1).astype(np.float32)
      x = low[:, None] + share * (high - low)[:, None]
      y = np.asarray(runner(kind)(x))
      interval, linear, optimized = bounder(kind)(low, high)
      near = 1e-4 * (1 + np.abs(y).max())   # float32, rounded to nearest
      for found in (interval, linear.interval, optimized):
        self.assertTrue((np.asarray(found.lower)[:, None] <= y + near).all())
        self.assertTrue((y <= np.asarray(found.upper)[:, None] + near).all())
      affine = lambda a, d: np.einsum('bqn,bpn->bpq', np.asarray(a), x) + np.asarray(d)[:, None]
      wide = near * (1 + np.abs(np.asarray(linear.lower_a)).sum(-1) + np.abs(np.asarray(linear.upper_a)).sum(-1))
      self.assertTrue((affine(linear.lower_a, linear.lower_d) <= y + wide[:, None]).all())
      self.assertTrue((y <= affine(linear.upper_a, linear.upper_d) + wide[:, None]).all())
      self.assertTrue((np.asarray(optimized.lower) >= np.asarray(linear.interval.lower) - near).all())
      self.assertTrue((np.asarray(optimized.upper) <= np.asarray(linear.interval.upper) + near).all())

    check()

  @parameterized.parameters('relu', 'maximum', 'tanh', 'logistic', 'exp', 'mul', 'square', 'div', 'log')
  def test_lines_enclose_their_function(self, op):
    operands = {'maximum': (1, 2), 'mul': (1, 2), 'div': (1, 2), 'square': (1, 1)}.get(op, (1,))
    node = Node('mul' if op == 'square' else op, operands, (500,))
    rng = np.random.default_rng(0)
    intervals = []
    for _ in operands:
      ends = np.sort(rng.normal(0, 2, (2, 500)).astype(np.float32), axis=0)
      ends[1, :50] = ends[0, :50]   # points
      intervals.append(Interval(*(np.exp(ends) if op in ('log', 'div') else ends)))
    if op == 'square':
      intervals[1] = intervals[0]
    share = rng.random((len(operands), 40, 500))
    share[:, 0], share[:, 1] = 0, 1
    x = [i.lower + s * (i.upper - i.lower) for i, s in zip(intervals, share, strict=True)]
    x = [x[0], x[0]] if op == 'square' else x
    y = np.asarray(graph.operation(node)(*x))
    lines = jax.tree.map(np.asarray, relaxations.lines(node, intervals))
    below = sum(s * v for s, v in zip(lines.lower, x, strict=True)) + lines.lower_offset
    above = sum(s * v for s, v in zip(lines.upper, x, strict=True)) + lines.upper_offset
    near = 1e-4 * (1 + np.abs(y))
    self.assertTrue((below <= y + near).all())
    self.assertTrue((y <= above + near).all())
    image = jax.tree.map(np.asarray, relaxations._nonlinear_image(node, intervals))
    self.assertTrue(((image.lower <= y + near) & (y <= image.upper + near)).all())

  def test_any_slope_between_0_and_1_is_sound(self):
    traced = graph.trace(networks.mlp((3, 6, 6, 2), seed=3))
    box = Interval(-np.ones(3, np.float32), np.ones(3, np.float32))
    x = np.random.default_rng(1).uniform(-1, 1, (1, 2000, 3)).astype(np.float32)
    y = np.asarray(zoo.quick_jit(jax.vmap(lambda x: graph.evaluate(traced, x)[-1].reshape(-1)))(x[0]))
    run = zoo.quick_jit(lambda slopes: bounds.crown(traced, box, slopes=slopes).interval)
    for seed in range(5):
      rng = np.random.default_rng(seed)
      slopes = {i: rng.random((4, *node.shape)).astype(np.float32) for i, node in enumerate(traced.nodes)
                if node.op == 'relu'}
      found = run(slopes)
      self.assertTrue(((found.lower <= y + 1e-4) & (y <= found.upper + 1e-4)).all())


class TightnessTest(absltest.TestCase):

  def test_worked_example_n1(self):
    traced = graph.trace(networks.n1())
    box = Interval(np.float32([-1]), np.float32([3]))
    run = zoo.quick_jit(lambda b: (bounds.ibp(traced, b), bounds.crown(traced, b), bounds.node_bounds(traced, b)))
    interval, linear, nodes = jax.tree.map(np.asarray, run(box))
    np.testing.assert_allclose([interval.lower[0], interval.upper[0]], [-1, 1.5], atol=1e-6)
    np.testing.assert_allclose([linear.lower_a[0, 0], linear.lower_d[0]], [0.375, -0.625], atol=1e-6)
    np.testing.assert_allclose([linear.upper_a[0, 0], linear.upper_d[0]], [0.25, 0.25], atol=1e-6)
    np.testing.assert_allclose([linear.interval.lower[0], linear.interval.upper[0]], [-1, 1], atol=1e-6)
    operand = nodes[next(node.inputs[0] for node in traced.nodes if node.op == 'relu')]
    np.testing.assert_allclose([operand.lower[0], operand.upper[0]], [[-3, -3, -0.5], [1, 1, 1.5]], atol=1e-6)

  def test_worked_example_of_two_slopes(self):
    traced = graph.trace(networks.kink())
    box = Interval(-np.ones(2, np.float32), np.ones(2, np.float32))
    relu = next(i for i, node in enumerate(traced.nodes) if node.op == 'relu')

    def raw(slope):
      found = bounds.crown(traced, box, slopes={relu: np.full((2, 1, 2), slope, np.float32)})
      return (-np.abs(found.lower_a).sum() + found.lower_d[0], np.abs(found.upper_a).sum() + found.upper_d[0],
              found.interval.lower[0])
    with jax.disable_jit():
      np.testing.assert_allclose(raw(1.), (-2, 3, 0), atol=1e-6)   # cut with IBP, the lower bound is 0
      np.testing.assert_allclose(raw(0.), (0, 3, 0), atol=1e-6)
      interval = bounds.ibp(traced, box)
    np.testing.assert_allclose([interval.lower[0], interval.upper[0]], [0, 4], atol=1e-6)

  def test_bounds_lie_between_the_exact_range_and_each_other(self):
    # The exact range lies inside the LP relaxation's, and that inside alpha-CROWN's, CROWN's and IBP's.
    for seed in range(2):
      classifier = networks.mlp((3, 6, 5, 1), seed)
      traced = graph.trace(classifier)
      form, box = lower(traced), Box(-np.ones(3), np.ones(3))
      exact = milp.output_range(form, box, np.ones(1))
      relaxed = milp.relaxed_range(form, box, np.ones(1))
      for method in ('alpha_crown', 'crown', 'ibp'):
        low, high = bounds.bound_boxes(traced, -np.ones((1, 3)), np.ones((1, 3)), method=method)
        self.assertLessEqual(low[0, 0], min(exact[0], relaxed[0]) + 1e-4, method)
        self.assertGreaterEqual(high[0, 0], max(exact[1], relaxed[1]) - 1e-4, method)

  def test_optimized_slopes_reach_the_linear_program_with_one_hidden_layer(self):
    # With one layer the bounds of neurons are exact, and the best slopes are the dual of the triangle relaxation.
    classifier = networks.mlp((2, 8, 1), seed=5)
    traced = graph.trace(classifier)
    relaxed = milp.relaxed_range(lower(traced), Box(-np.ones(2), np.ones(2)), np.ones(1))
    box = Interval(-np.ones(2, np.float32), np.ones(2, np.float32))
    found = zoo.quick_jit(lambda b: bounds.alpha_crown(traced, b, steps=200, learning_rate=0.05).interval)(box)
    np.testing.assert_allclose([found.lower[0], found.upper[0]], relaxed, atol=0.02)


class BoxesTest(parameterized.TestCase):

  def test_one_program_for_every_batch(self):
    traced = graph.trace(networks.mlp((3, 5, 2), seed=1))
    once = chex.assert_max_traces(lambda low, high: bounds.crown(traced, Interval(low, high)).interval, n=1)
    run = zoo.quick_jit(once)
    for seed in range(3):
      low = np.random.default_rng(seed).normal(size=3).astype(np.float32)
      run(low, low + 1)

  @parameterized.parameters('ibp', 'crown', 'alpha_crown')
  def test_batches_and_their_order_change_nothing(self, method):
    traced = graph.trace(networks.mlp((3, 5, 2), seed=1))
    rng = np.random.default_rng(0)
    low = rng.normal(size=(7, 3))
    objective = np.array([[1., -1.]])
    one = bounds.bound_boxes(traced, low, low + 0.5, objective, method=method, batch_size=3)
    order = rng.permutation(7)
    other = bounds.bound_boxes(traced, low[order], low[order] + 0.5, np.tile(objective, (7, 1, 1)), method=method,
                               batch_size=7)
    self.assertEqual(one[0].shape, (7, 1))
    for a, b in zip(one, other, strict=True):
      np.testing.assert_allclose(a[order], b, rtol=1e-5, atol=1e-5)

  def test_no_boxes(self):
    low, high = bounds.bound_boxes(networks.graph('mlp'), np.zeros((0, 4)), np.zeros((0, 4)))
    self.assertEqual((low.shape, high.shape), ((0, 3), (0, 3)))

  @parameterized.parameters(
    (np.zeros((2, 5)), np.zeros((2, 5)), 'crown', 'takes 4 inputs'),
    (np.ones((2, 4)), np.zeros((2, 4)), 'crown', 'empty'),
    (np.full((2, 4), np.nan), np.zeros((2, 4)), 'ibp', 'NaN'), (np.zeros((2, 4)), np.zeros((2, 4)), 'other', 'method'))
  def test_bad_boxes_are_refused(self, low, high, method, message):
    with self.assertRaisesRegex(BadInputError, message):
      bounds.bound_boxes(networks.graph('mlp'), low, high, method=method)

  def test_a_bad_objective_is_refused(self):
    with self.assertRaisesRegex(BadInputError, 'objective'):
      bounds.bound_boxes(networks.graph('mlp'), np.zeros((2, 4)), np.zeros((2, 4)), np.ones((1, 2)))


if __name__ == '__main__':
  absltest.main()
