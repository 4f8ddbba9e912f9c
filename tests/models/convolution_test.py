"""`lax` and `flax.linen` are the oracles; the fast lowering must equal them and must be the one that runs."""
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax import linen as nn
from jax import lax

from jaxfix.errors import BadInputError
from jaxfix.models import convolution
from tests.networks import network, quick_jit

NHWC = ('NHWC', 'HWIO', 'NHWC')
TOLERANCE = 1e-5  # of the largest entry; the sums have other orders

# Images [n, h, w, c] and kernels [kh, kw, cout]: strips of rows (one, two, and a cut that leaves a rest), patches of
# pixels, a kernel with more taps than the image has pixels, 1x1.
CASES = {
  'one_strip': ((4, 8, 8, 6), (3, 3, 6)),
  'two_strips': ((2, 20, 20, 1), (5, 5, 6)),
  'strips_with_rest': ((2, 9, 31, 2), (3, 2, 4)),
  'pixels': ((3, 9, 10, 8), (3, 3, 5)),
  'larger_than_image': ((3, 2, 2, 16), (3, 3, 8)),
  'one_by_one': ((2, 7, 6, 12), (1, 1, 4)),
  'one_column': ((2, 7, 6, 3), (4, 1, 4)),
}
PLAIN = {'one_strip': 1, 'two_strips': 2, 'strips_with_rest': 3, 'pixels': 0, 'larger_than_image': 0, 'one_by_one': 0,
         'one_column': 0}


def example(name, dtype=jnp.float32, population=None):
  """Images and a kernel (or `population` of them) scaled so that outputs are of order 1."""
  (n, h, w, c), (kh, kw, cout) = CASES[name]
  rng = np.random.default_rng(len(name))   # NumPy: JAX would compile a program for each operation and shape
  shape = (kh, kw, c, cout) if population is None else (population, kh, kw, c, cout)
  kernel = rng.normal(size=shape) / np.sqrt(kh * kw * c)
  return jnp.asarray(rng.normal(size=(n, h, w, c)), dtype), jnp.asarray(kernel, dtype)


def ours(x, kernel, strides=(1, 1), padding='SAME', **options):
  return convolution.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC, **options)


def oracle(x, kernel, strides=(1, 1), padding='SAME', **options):
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC, **options)


def assert_close(got, wanted, tolerance=TOLERANCE):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    assert a.dtype == b.dtype, (a.dtype, b.dtype)
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(initial=1e-30))  # of the largest entry


def primitives(jaxpr):
  """Every equation of a jaxpr and of those inside it."""
  for eqn in jaxpr.eqns:
    yield eqn
    for value in jax.tree.leaves(tuple(eqn.params.values()), is_leaf=lambda v: hasattr(v, 'eqns')):
      inner = getattr(value, 'jaxpr', value)
      if hasattr(inner, 'eqns'):
        yield from primitives(inner)


def equations(function, *args, name):
  return [e for e in primitives(jax.make_jaxpr(function)(*args).jaxpr) if e.primitive.name == name]


class ConvolutionTest(parameterized.TestCase):

  @parameterized.parameters(*CASES)
  def test_equals_lax(self, name):
    x, kernel = example(name)
    for strides, paddings in (((1, 1), ('SAME', 'VALID', ((2, 1), (0, 3)))), ((2, 2), ('SAME_LOWER', 'VALID', 'SAME')),
                              ((3, 1), (((1, 1), (1, 1)), 'SAME'))):
      every = lambda conv, s=strides, ps=paddings: lambda x, k: [conv(x, k, s, p) for p in ps]
      assert_close(*quick_jit(lambda x, k, every=every: [every(ours)(x, k), every(oracle)(x, k)])(x, kernel))
      left = equations(every(ours), x, kernel, name='conv_general_dilated')
      self.assertLen(left, 1 if 'VALID' in paddings and name == 'larger_than_image' else 0)  # an empty result

  @parameterized.product(name=('two_strips', 'pixels'), dtype=(jnp.bfloat16, jnp.float16))
  def test_other_dtypes(self, name, dtype):
    x, kernel = example(name, dtype)
    # Half precisions round the result itself: one unit in the last place, 2**-8 or 2**-11, either way.
    assert_close(ours(x, kernel), oracle(x, kernel), tolerance=2 * float(jnp.finfo(dtype).eps))
    wide = ours(x, kernel, preferred_element_type=jnp.float32)
    assert_close(wide, oracle(x.astype(jnp.float32), kernel.astype(jnp.float32)))

  def test_cases_run_as_named(self):
    for name, strips in PLAIN.items():
      (image, (kh, kw, cout)) = CASES[name]
      plan = convolution._plan(image, (kh, kw, image[3], cout), (1, 1), 'VALID' if image[1] > 2 else 'SAME', 4)
      self.assertEqual((plan.strips, plan.chunk), (strips, image[0]), name)

  @parameterized.parameters(
    ('one_strip', (1, 1), True), ('two_strips', (2, 1), False), ('strips_with_rest', (1, 1), False),
    ('pixels', (2, 1), False), ('larger_than_image', (1, 1), False), ('one_by_one', (2, 2), True))
  def test_derivatives_equal_those_of_lax(self, name, strides, cut):
    x, kernel = example(name)
    dx, dk = np.cos(x), np.sin(3 * np.asarray(kernel))

    def derivatives(conv, x, k):
      f = lambda x, k: conv(x, k, strides)
      return jax.jvp(f, (x, k), (dx, dk)), jax.grad(lambda x, k: jnp.square(f(x, k)).mean(), (0, 1))(x, k)

    with mock.patch.object(convolution, '_chunk_size', (lambda n, most: 2) if cut else lambda n, most: n):
      assert_close(*quick_jit(lambda x, k: [derivatives(conv, x, k) for conv in (ours, oracle)])(x, kernel))

  @parameterized.parameters(
    ('two_strips', False, False), ('two_strips', True, True), ('pixels', True, False))
  def test_population_is_matrix_products(self, name, images, cut):
    x, kernels = example(name, population=3)
    x = np.stack([x, 2 * np.asarray(x), -np.asarray(x)]) if images else x

    def value_and_grad(conv):
      return jax.value_and_grad(lambda x, k: jnp.square(conv(x, k)).mean(), (0, 1))

    with mock.patch.object(convolution, '_chunk_size', (lambda n, most: 2) if cut else lambda n, most: n):
      run = quick_jit(jax.vmap(value_and_grad(ours), (0 if images else None, 0))).lower(x, kernels).compile()
    self.assertNotIn('convolution(', run.as_text())
    member = quick_jit(value_and_grad(oracle))
    wanted = [member(x[i] if images else x, kernels[i]) for i in range(3)]
    assert_close(run(x, kernels), jax.tree.map(lambda *leaves: np.stack(leaves), *wanted))

  def test_lax_would_group(self):
    """The test above can fail: what it forbids is what the oracle does."""
    x, kernels = example('pixels', population=3)
    grouped = jax.jit(jax.vmap(oracle)).lower(jnp.stack([x] * 3), kernels).compile().as_text()
    self.assertRegex(grouped, r'convolution\(.*feature_group_count=3')

  @parameterized.parameters(('two_strips', 6), ('pixels', 7))
  def test_cut_batches_equal_whole_ones(self, name, n):
    x, kernel = example(name)
    x = np.random.default_rng(n).normal(size=(n, *x.shape[1:])).astype(np.float32)
    value_and_grad = lambda: quick_jit(jax.value_and_grad(lambda x, k: jnp.square(ours(x, k)).mean(), (0, 1)))
    whole = value_and_grad()(x, kernel)
    with mock.patch.object(convolution, '_chunk_size', lambda n, most: 3):  # 7 leaves a remainder
      cut = value_and_grad()(x, kernel)
      self.assertLen(equations(ours, x, kernel, name='scan'), 1)
    assert_close(cut, whole)

  def test_chunks_keep_to_the_budget(self):
    plan = lambda n, budget: convolution._plan((n, 16, 16, 32), (3, 3, 32, 32), (1, 1), 'SAME', budget)
    patches = 16 * 16 * 9 * 32 * 4
    self.assertEqual(plan(4, 4).chunk, 4)
    self.assertEqual(plan(500, 4).chunk, 10)  # a divisor: 14 would fit
    self.assertEqual(plan(499, 4).chunk, convolution.PATCH_BYTES // patches)  # a prime: a remainder is left
    narrow = convolution._plan((4096, 28, 28, 1), (5, 5, 1, 6), (1, 1), 'VALID', 4)
    self.assertEqual(narrow.chunk, 4096)  # patches smaller than the output
    heavy = convolution._plan((32, 4, 4, 512), (3, 3, 512, 512), (1, 1), 'SAME', 4)
    self.assertEqual(heavy.chunk, 32)  # patches no larger than two kernels
    self.assertIsNone(convolution._plan((1, 512, 512, 64), (3, 3, 64, 64), (1, 1), 'SAME', 4))

  def test_memory_is_bounded_forward_and_backward(self):
    x, kernel = jnp.ones((64, 16, 16, 16)), jnp.ones((3, 3, 16, 16))
    patches = 9 * x.nbytes
    with mock.patch.object(convolution, 'PATCH_BYTES', patches // 32):
      grad = jax.jit(jax.grad(lambda x, k: jnp.sin(ours(x, k)).sum(), (0, 1))).lower(x, kernel).compile()
    # Uncut, the patches alone would be 9 inputs; cut, there are a few arrays like the input.
    self.assertLess(grad.memory_analysis().temp_size_in_bytes, 5 * x.nbytes)

  def test_second_call_compiles_nothing(self):
    x, kernel = jnp.ones((2, 11, 13, 9)), jnp.ones((3, 3, 9, 5))
    with mock.patch.object(convolution, '_patches', wraps=convolution._patches) as traced:
      for strides in ((2, 1), [2, 1], (2, 1)):
        ours(x, kernel, strides)
      self.assertEqual(traced.call_count, 1)
      ours(x[:1], kernel, (2, 1))
      self.assertEqual(traced.call_count, 2)

  @parameterized.parameters(
    {'rhs_dilation': (2, 2)}, {'lhs_dilation': (1, 2), 'padding': ((0, 0), (0, 0))}, {'batch_group_count': 2},
    {'padding': ((-1, 0), (0, 0))})
  def test_the_rest_is_left_to_lax(self, padding='VALID', **options):
    x, kernel = jnp.asarray(np.random.default_rng(0).normal(size=(4, 9, 9, 8))), jnp.ones((3, 3, 8, 4))
    run = functools.partial(ours, padding=padding, **options)
    self.assertLen(equations(run, x, kernel, name='conv_general_dilated'), 1)
    both = quick_jit(lambda x, k: (run(x, k), oracle(x, k, padding=padding, **options)))
    np.testing.assert_array_equal(*both(x, kernel))

  def test_groups_layouts_ranks_and_platforms_are_left_to_lax(self):
    x, kernel = example('pixels')
    wanted = lambda f, *args: self.assertLen(equations(f, *args, name='conv_general_dilated'), 1)
    wanted(functools.partial(ours, feature_group_count=2), x, kernel[:, :, :4, :4])
    conv = convolution.conv_general_dilated
    wanted(lambda x, k: conv(x, k, (1, 1), 'SAME'), jnp.ones((1, 3, 8, 8)), jnp.ones((4, 3, 3, 3)))
    wanted(lambda x, k: conv(x, k, (1,), 'SAME', dimension_numbers=('NWC', 'WIO', 'NWC')), jnp.ones((1, 8, 3)),
           jnp.ones((3, 3, 4)))
    wanted(ours, jnp.ones((2, 8, 8, 3), jnp.int32), jnp.ones((3, 3, 3, 4), jnp.int32))
    with mock.patch.object(jax, 'default_backend', lambda: 'gpu'):
      wanted(lambda x, k: ours(x, k), x, kernel)
    with self.assertRaises((TypeError, ValueError)):
      ours(x, kernel[:, :, 1:])

  @parameterized.parameters('two_strips', 'pixels')
  def test_precision_reaches_the_product(self, name):
    for precision in ('highest', lax.Precision.HIGHEST, [lax.Precision.HIGHEST, lax.Precision.HIGHEST]):
      products = equations(lambda x, k, p=precision: ours(x, k, precision=p), *example(name), name='dot_general')
      self.assertEqual(products[-1].params['precision'], (lax.Precision.HIGHEST, lax.Precision.HIGHEST))
    products = equations(ours, *example(name), name='dot_general')
    self.assertIsNone(products[-1].params['precision'])

  @parameterized.parameters(
    ({'strides': 2},), ({'kernel_size': (5, 5), 'padding': 'VALID'},), ({'kernel_size': (1, 1), 'use_bias': False},),
    ({'padding': 'CIRCULAR'},), ({'padding': 1},), ({'kernel_dilation': 2},))
  def test_drop_in_for_flax(self, options):
    options = {'features': 5, 'kernel_size': (3, 3), **options}
    fast, plain = nn.Conv(**options, conv_general_dilated=convolution.conv_general_dilated), nn.Conv(**options)
    # Two batch axes, which nn.Conv makes one.
    x = np.random.default_rng(0).normal(size=(2, 3, 12, 12, 3)).astype(np.float32)
    variables = quick_jit(fast.init)(jax.random.key(1), x)
    assert_close(*quick_jit(lambda v, x: [module.apply(v, x) for module in (fast, plain)])(variables, x))


class PoolingTest(parameterized.TestCase):

  @parameterized.product(window=((2, 2), (3, 2), (5, 5)), strides=(None, (2, 1)))
  def test_equals_flax(self, window, strides):
    x = np.random.default_rng(0).normal(size=(2, 11, 13, 3)).astype(np.float32)
    strides = strides or window

    def values(module, name, padding):
      pool = getattr(module, name)
      return jax.value_and_grad(lambda x: (jnp.square(y := pool(x, window, strides, padding)).mean(), y), has_aux=True)

    for padding in ('VALID', 'SAME', ((1, 0), (0, 1)), ((0, 0), (0, 0))):
      ours, theirs = quick_jit(lambda x, p=padding: [
        [values(module, name, p)(x) for name in ('max_pool', 'avg_pool')] for module in (convolution, nn)])(x)
      np.testing.assert_array_equal(ours[0][0][1], theirs[0][0][1])  # maxima are exact
      assert_close(ours, theirs)

  def test_side_by_side_needs_no_window_reduction(self):
    x = jnp.ones((2, 7, 7, 3))
    for pool in (convolution.max_pool, convolution.avg_pool):
      for padding in ('VALID', ((0, 0), (0, 0))):
        jaxpr = str(jax.make_jaxpr(jax.grad(lambda x, p=pool, q=padding: p(x, (3, 3), (3, 3), q).sum()))(x))
        self.assertNotIn('reduce_window', jaxpr)
        self.assertNotIn('select_and', jaxpr)

  @parameterized.parameters(2, 5)
  def test_ties_share_the_gradient(self, k):
    x = jnp.zeros((1, k, k, 1)).at[0, 0, 0].set(1.).at[0, -1, -1].set(1.)
    got = jax.grad(lambda x: convolution.max_pool(x, (k, k), (k, k)).sum())(x)
    np.testing.assert_allclose(got, x / 2)

  def test_jvp_and_vmap_and_second_derivative(self):
    x, dx = np.random.default_rng(1).normal(size=(2, 3, 6, 6, 2)).astype(np.float32)
    pool = lambda x: convolution.max_pool(x, (3, 3), (3, 3))
    plain = lambda x: nn.max_pool(x, (3, 3), (3, 3))

    def derivatives(f):
      curvature = jax.grad(lambda x: (jax.grad(lambda x: (f(x)**3).sum())(x) * dx).sum())(x)
      return jax.jvp(f, (x,), (dx,)), jax.vmap(f)(jnp.stack([x, dx])), curvature

    assert_close(*quick_jit(lambda: [derivatives(f) for f in (pool, plain)])())

  def test_only_nan(self):
    """A window without a maximum sends nothing back."""
    x = jnp.full((1, 4, 4, 2), jnp.nan)
    value, grad = jax.value_and_grad(lambda x: convolution.max_pool(x, (2, 2), (2, 2)).sum())(x)
    self.assertTrue(jnp.isnan(value))
    np.testing.assert_array_equal(grad, jnp.zeros_like(x))

  @pytest.mark.slow
  def test_a_maximum_that_is_computed_twice(self):
    """Without optimization XLA makes the input of a pooling of VGG16 twice, and rounds it otherwise the second time."""
    classifier = network('vgg16', (32, 32, 3), width=1 / 16, num_classes=10)
    x = np.random.default_rng(0).random((30, 32, 32, 3)).astype(np.float32)
    slopes = quick_jit(jax.grad(lambda params: (classifier.with_params(params).logits(x)**2).sum()))(classifier.params)
    for leaf in jax.tree.leaves(slopes):
      self.assertTrue(np.isfinite(leaf).all())

  def test_window_larger_than_image(self):
    self.assertEqual(convolution.max_pool(jnp.ones((2, 3, 3, 4)), (4, 4), (4, 4)).shape, (2, 0, 0, 4))

  @parameterized.parameters(((4, 4, 3), (2, 2), (2, 2)), ((1, 4, 4, 3), (2,), (2, 2)), ((1, 4, 4, 3), (2, 0), (2, 2)),
                            ((1, 4, 4, 3), (2, 2), (0, 2)))
  def test_bad_input(self, shape, window, strides):
    for pool in (convolution.max_pool, convolution.avg_pool):
      with self.assertRaises(BadInputError):
        pool(jnp.ones(shape), window, strides)


if __name__ == '__main__':
  absltest.main()
