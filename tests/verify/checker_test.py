"""The checker of certificates, attacked: exact arithmetic against fractions, bounds against exact values at the very
points, float32 against other orders of summation, and certificates that are false, damaged or forged."""
import dataclasses
import fractions
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix.verify import certificate, checker
from jaxfix.verify.checker import Certificate, Clause, Op, Property, RejectedError
from jaxfix.verify.spec import wins
from tests.verify import forms, networks

_CHECKER = pathlib.Path(checker.__file__)
_LEAF = np.array([-1], np.int16)
Fraction = fractions.Fraction


# --- An evaluation that shares nothing with the checker's ---


def exact(network, x):
  """Values of all operations at one input `[n]`, as lists of fractions."""
  values = [[Fraction(float(v)) for v in x]]
  for op in network[1:]:
    a = [values[i] for i in op.inputs]
    c = None if op.array is None else [Fraction(float(v)) for v in op.array.reshape(-1)]
    if op.kind == 'gather':
      pool = [Fraction(0), *(v for part in a for v in part)]
      values.append([pool[i] for i in op.array])
    elif op.kind == 'matmul':
      d, k = op.array.shape
      values.append([sum((a[0][row * d + i] * c[i * k + j] for i in range(d)), Fraction(0))
                     for row in range(len(a[0]) // d) for j in range(k)])
    elif op.kind == 'sum':
      d = int(op.array[0])
      values.append([sum(a[0][i:i + d], Fraction(0)) for i in range(0, len(a[0]), d)])
    else:
      step = {'scale': lambda v, w: v * w, 'divide': lambda v, w: v / w, 'shift': lambda v, w: v + w,
              'add': lambda v, w: v + w, 'maximum': max, 'relu': lambda v, w: max(v, w)}[op.kind]
      other = [Fraction(0)] * op.size if op.kind == 'relu' else a[1] if op.kind in ('add', 'maximum') else c
      values.append([step(v, w) for v, w in zip(a[0], other, strict=True)])
  return values


def satisfies(network, clauses, x):
  """Whether all clauses hold at one input, in fractions."""
  y = exact(network, x)[-1]
  row = lambda g: sum((Fraction(float(a)) * b for a, b in zip(g, y, strict=True)), Fraction(0))
  below = lambda a, b, strict: a < b if strict else a <= b
  return all(any(below(row(g), Fraction(float(h)), c.strict) for g, h in zip(c.g, c.h, strict=True)) for c in clauses)


def mixed(rng, shape, spread=3.):
  """Random numbers of many magnitudes."""
  return rng.normal(size=shape) * 10.**rng.uniform(-spread, spread, shape)


def every_kind(rng, spread=3.):
  """A network with all ten operations: gathers with a repeated and a missing entry, a skip connection, two maxima."""
  b = forms.Builder(4)
  place = b.dense(0, mixed(rng, (6, 4), spread), mixed(rng, 6, spread))
  relu = b.add('relu', place)
  both = b.add('gather', relu, 0, array=[1, 3, 3, 0, 7, 10, 5, 6, 2, 4, 8, 9], size=12)
  summed = b.add('sum', both, array=[2], size=6)
  scaled = b.add('scale', summed, array=mixed(rng, 6, spread))
  divided = b.add('divide', scaled, array=rng.choice([3., -7., 0.1, 1.5], 6))
  added = b.add('add', divided, place)
  most = b.add('maximum', added, relu)
  again = b.add('maximum', most, b.add('shift', most, array=mixed(rng, 6, spread)))
  b.add('matmul', again, array=mixed(rng, (3, 2), spread), size=4)
  return certificate.network_of(b.form())


def mlp(rng, sizes, spread=0.):
  """A ReLU network of random weights, of as many magnitudes as `spread` says."""
  return certificate.network_of(forms.mlp([
    (mixed(rng, (o, i), spread) / np.sqrt(i), mixed(rng, o, spread) / 2)
    for i, o in zip(sizes[:-1], sizes[1:], strict=True)]))


def claim(network, kind, arrays, clauses, evidence, array=None, strength='real'):
  arrays = tuple(np.asarray(a, np.float64) for a in arrays)
  return Certificate(tuple(network), (Property(kind, arrays, tuple(clauses)),), strength, ((evidence, array),))


def at_most(g, h, strict=False):
  """One row g y <= h."""
  return Clause(np.atleast_2d(np.asarray(g, np.float64)), np.atleast_1d(np.asarray(h, np.float64)), strict)


def rounded_down(value):
  """The largest float64 that does not exceed a fraction."""
  near = float(value)
  return near if Fraction(near) <= value else float(np.nextafter(near, -np.inf))


class _Case(parameterized.TestCase):

  def reject(self, found, words=''):
    with self.assertRaisesRegex(RejectedError, words):
      checker.check_claim(found)


class ArithmeticTest(_Case):

  @parameterized.parameters(np.float32, np.float64)
  def test_integers_are_the_floats(self, dtype):
    rng, info = np.random.default_rng(0), np.finfo(dtype)
    bits = rng.integers(0, 2**63, 400, dtype=np.uint64).astype(np.uint64)
    anything = (bits >> np.uint64(32)).astype(np.uint32).view(np.float32) if dtype == np.float32 else bits.view(dtype)
    special = [0., -0., info.tiny, -info.tiny, info.smallest_subnormal, -info.smallest_subnormal, info.max, -info.max,
               1., -1., 1 + info.eps, 1 - info.epsneg, info.tiny - info.smallest_subnormal]
    for a in (anything[np.isfinite(anything)], np.array(special, dtype), np.zeros(3, dtype), np.zeros(0, dtype),
              np.array([info.smallest_subnormal], dtype), np.array([[-3., 0.], [8., 1e-30]], dtype)):
      whole, exponent = checker.integers(a)
      self.assertEqual(whole.shape, a.shape)
      for i, v in zip(whole.reshape(-1), a.reshape(-1).tolist(), strict=True):
        self.assertIsInstance(i, int)
        self.assertEqual(i * Fraction(2)**exponent, Fraction(v))

  @parameterized.parameters((3, 5, 2, 10), (1, 9000, 3, 60), (4, 4097, 1, 200), (2, 1, 2, 2000))
  def test_products_of_integers_are_exact(self, p, inner, k, bits):
    rng = np.random.default_rng(bits)
    one = lambda: int.from_bytes(rng.bytes(bits // 8 + 1), 'little') * int(rng.integers(-1, 2))
    draw = lambda *shape: np.array([one() for _ in range(int(np.prod(shape)))], object).reshape(shape)
    x, w = draw(p, inner), draw(inner, k)
    self.assertTrue((checker._product(x, checker._parts(w)) == x.dot(w)).all())

  def test_the_largest_parts_do_not_round(self):
    """Every product is the largest there is, all of one sign: the sums come as near to 2^53 as they can."""
    full = np.full((1, checker._MOST_INNER), 2**20 - 1, object)
    for sign in (1, -1):
      self.assertEqual(checker._product(full, checker._parts(sign * full.T))[0, 0],
                       sign * checker._MOST_INNER * (2**20 - 1)**2)

  @parameterized.product(seed=(0, 1, 2), spread=(0., 12.))
  def test_every_operation_is_exact(self, seed, spread):
    rng = np.random.default_rng(seed)
    network = every_kind(rng, spread)
    x = np.concatenate([mixed(rng, (4, 4), spread), np.zeros((1, 4)), [[5e-324, -5e-324, 1e308, 1.]]])
    self._agree(network, x)

  @parameterized.parameters('mlp', 'clipped', 'normalized', 'lenet5')
  def test_traced_networks_are_exact(self, kind):
    network = certificate.network_of(networks.form(kind))
    self._agree(network, np.random.default_rng(0).uniform(0, 1, (2, network[0].size)))

  def _agree(self, network, x):
    y, exponent, d = checker.exact_outputs(network, x)
    for row, point in zip(y, x, strict=True):
      self.assertEqual([Fraction(v, d) * Fraction(2)**exponent for v in row], exact(network, point)[-1])

  def test_worked_values(self):
    """f(-2), f(-1.5), ... of N1 (V-section 12.1)."""
    x = np.array([[-2.], [-1.5], [-.5], [0.], [1.], [2.], [3.]])
    y, exponent, d = checker.exact_outputs(certificate.network_of(networks.hand_made()), x)
    self.assertEqual([float(Fraction(int(v), d) * Fraction(2)**exponent) for v in y[:, 0]],
                     [.5, .25, -.25, -.5, 0, .5, .5])

  def test_numbers_beyond_the_limits_are_refused_not_rounded(self):
    ops = [Op('input', (), None, 1)] + [Op('divide', (i,), np.array([1 + 2**-23], np.float32), 1) for i in range(4)]
    y, _, d = checker.exact_outputs(tuple(ops), np.ones((1, 1)))
    self.assertEqual(Fraction(1) / d, Fraction(1, (2**23 + 1)**4))
    self.assertEqual(y[0, 0], 1)
    many = np.float32(1) + np.arange(1, 600, dtype=np.float32) * np.float32(2**-23)
    network = Op('input', (), None, len(many)), Op('divide', (0,), many, len(many))
    with self.assertRaisesRegex(RejectedError, 'divisors'):
      checker.exact_outputs(network, np.ones((1, len(many))))


class BoundsTest(_Case):

  def _contains(self, network, bounds, x, box=0):
    for op, values, (low, high) in zip(network, exact(network, x), bounds, strict=True):
      for v, a, b in zip(values, low[box].tolist(), high[box].tolist(), strict=True):
        self.assertTrue(a == -np.inf or Fraction(a) <= v, (op.kind, a, float(v)))
        self.assertTrue(b == np.inf or v <= Fraction(b), (op.kind, float(v), b))

  @parameterized.product(seed=(0, 1, 2, 3), spread=(0., 4., 15.), width=(0., 1e-9, 1.), refine=(False, True))
  def test_exact_values_lie_inside(self, seed, spread, width, refine):
    """On boxes of one point nothing but the account of rounding errors keeps the value inside."""
    rng = np.random.default_rng(seed)
    network = every_kind(rng, spread) if seed % 2 else mlp(rng, (4, 7, 7, 2), spread)
    lower = mixed(rng, (3, 4), min(spread, 4))
    upper = lower + width * np.abs(lower)
    with np.errstate(all='ignore'):
      bounds = checker.value_bounds(network, lower, upper, refine)
    for box in range(3):
      for x in (lower[box], upper[box], lower[box] + (upper[box] - lower[box]) * rng.random(4)):
        self._contains(network, bounds, np.clip(x, lower[box], upper[box]), box)

  @parameterized.parameters('mlp', 'clipped', 'normalized', 'lenet5')
  def test_traced_networks(self, kind):
    network, rng = certificate.network_of(networks.form(kind)), np.random.default_rng(1)
    center = rng.uniform(0, 1, network[0].size)
    lower, upper = center - 0.01, center + 0.01
    bounds = checker.value_bounds(network, lower[None], upper[None])
    for x in (lower, center, upper, np.where(rng.random(len(center)) < .5, lower, upper)):
      self._contains(network, bounds, x)

  def test_a_residual_network_by_sampling(self):
    """In float64, against which bounds a millionth wide of nothing need no exact arithmetic."""
    form = networks.form('resnet')
    network, rng = certificate.network_of(form), np.random.default_rng(2)
    center = rng.uniform(0, 1, form.num_inputs)
    bounds = checker.value_bounds(network, center[None] - 1e-3, center[None] + 1e-3, refine=False)
    x = center + rng.uniform(-1e-3, 1e-3, (20, form.num_inputs))
    for values, (low, high) in zip(networks_values(form, x), bounds, strict=True):
      self.assertTrue(((low <= values) & (values <= high)).all())

  @parameterized.product(seed=tuple(range(6)), spread=(0., 5.))
  def test_linear_bounds_hold_of_every_direction(self, seed, spread):
    rng = np.random.default_rng(seed)
    network = every_kind(rng, spread)
    lower = mixed(rng, (1, 4), 1.)
    upper = lower + rng.choice([0., 1e-12, .1], (1, 4))
    g = mixed(rng, (5, 4), spread)
    with np.errstate(all='ignore'):
      least = checker._backward(network, len(network) - 1, g, checker.value_bounds(network, lower, upper))[0]
    for x in (lower[0], upper[0], np.where(rng.random(4) < .5, lower[0], upper[0])):
      y = exact(network, x)[-1]
      for row, bound in zip(g, least.tolist(), strict=True):
        value = sum((Fraction(a) * b for a, b in zip(row.tolist(), y, strict=True)), Fraction(0))
        self.assertTrue(bound == -np.inf or Fraction(bound) <= value)

  def test_worked_values_of_n1(self):
    """Pre-activations and CROWN on [-1, 3] (V-section 12.2); outwards, by no more than rounding."""
    network = certificate.network_of(networks.hand_made())
    bounds = checker.value_bounds(network, np.array([[-1.]]), np.array([[3.]]))
    for found, expected in zip(bounds[2], ([-3, -3, -.5], [1, 1, 1.5]), strict=True):
      np.testing.assert_allclose(found[0], expected, atol=1e-12)
    least = checker._backward(network, 5, np.array([[1.], [-1.]]), bounds)[0]
    np.testing.assert_allclose(least, [-1., -1.], atol=1e-8)
    self.assertTrue((least <= -1).all())
    plain = checker.value_bounds(network, np.array([[-1.]]), np.array([[3.]]), refine=False)[-1]
    np.testing.assert_allclose([plain[0][0, 0], plain[1][0, 0]], [-1, 1.5], atol=1e-12)

  def test_worked_values_of_two_rays(self):
    """relu(x1 + x2) + relu(x1 - x2) on [-1, 1]^2: IBP [0, 4], CROWN from above 3 (V-section 12.4)."""
    network = certificate.network_of(forms.absolute_sum())
    box = -np.ones((1, 2)), np.ones((1, 2))
    low, high = checker.value_bounds(network, *box)[-1]
    np.testing.assert_allclose([low[0, 0], high[0, 0]], [0, 4], atol=1e-8)
    bounds = checker.value_bounds(network, *box)
    self.assertAlmostEqual(-checker._backward(network, len(network) - 1, -np.eye(1), bounds)[0, 0], 3, delta=1e-8)

  @parameterized.product(seed=tuple(range(4)), spread=(0., 3.))
  def test_a_limit_one_ulp_below_an_attained_value_is_never_proven(self, seed, spread):
    rng = np.random.default_rng(seed)
    network = mlp(rng, (3, 6, 6, 2), spread)
    x = mixed(rng, (1, 3), 1.)
    g = np.array([[1., -1.]])
    y = exact(network, x[0])[-1]
    limit = rounded_down(y[0] - y[1])
    holds = lambda h, strict=False: checker.boxes_hold(network, (at_most(g, h, strict),), x, x)[0]
    self.assertFalse(holds(np.nextafter(limit, -np.inf)))
    if Fraction(limit) == y[0] - y[1]:
      self.assertFalse(holds(limit, strict=True))
    self.assertTrue(holds(limit + 1e-6 * max(1., abs(limit), 10**(4 * spread))))

  def test_huge_and_infinite_prove_nothing(self):
    rng = np.random.default_rng(0)
    network = mlp(rng, (2, 4, 1), 0.)
    always = (at_most([[0.]], [1.]),)
    far = np.array([[1e308, 0.], [1e61, 0.], [-1e200, -1e200]])
    np.testing.assert_array_equal(checker.boxes_hold(network, always, far, far), [False] * 3)
    wide = np.array([[-1.7e308, -1.7e308]])
    np.testing.assert_array_equal(checker.boxes_hold(network, always, wide, -wide), [False])
    deep = [Op('input', (), None, 1)]
    for i in range(12):   # 3e38^12 is beyond float64: products overflow
      deep.append(Op('matmul', (i,), np.array([[3e38]], np.float32), 1))
    self.assertFalse(checker.boxes_hold(tuple(deep), always, np.ones((1, 1)), np.ones((1, 1)))[0])

  def test_no_box_and_no_row(self):
    network = mlp(np.random.default_rng(0), (2, 4, 1))
    self.assertEqual(checker.boxes_hold(network, (at_most([[1.]], [9.]),), np.zeros((0, 2)), np.zeros((0, 2))).shape,
                     (0,))
    nothing = Clause(np.zeros((0, 1)), np.zeros(0), False)
    self.assertFalse(checker.boxes_hold(network, (nothing,), np.zeros((1, 2)), np.zeros((1, 2)))[0])

  def test_longer_sums_than_the_account_covers_are_refused(self):
    size = checker._MOST_TERMS + 1
    network = Op('input', (), None, 1), Op('gather', (0,), np.ones(size, np.int32), size)
    with self.assertRaisesRegex(RejectedError, 'entries'):
      checker.value_bounds(network, np.zeros((1, 1)), np.ones((1, 1)), refine=False)


def networks_values(form, x):
  from jaxfix.verify.normal_form import values
  return values(form, x)


class Float32Test(_Case):

  def _evaluate(self, network, x, rng, flush):
    """Values of a float32 evaluation at one input `[n]`: sums in random order or halves, subnormals kept or not."""
    keep = (lambda v: np.where(np.abs(v) < np.finfo(np.float32).tiny, np.float32(0), v)) if flush else (lambda v: v)
    values = [keep(x.astype(np.float32))]

    def total(terms):
      terms = [keep(t) for t in terms]
      order = list(rng.permutation(len(terms)))
      while len(order) > 1:
        i, j = (order.pop(0), order.pop(0)) if rng.random() < .5 else (order.pop(), order.pop(0))
        terms.append(keep(np.float32(terms[i] + terms[j])))
        order.insert(0 if rng.random() < .5 else len(order), len(terms) - 1)
      return terms[order[0]]

    for op in network[1:]:
      a, c = [values[i] for i in op.inputs], op.array
      if op.kind == 'gather':
        v = np.concatenate([np.zeros(1, np.float32), *a])[c]
      elif op.kind == 'matmul':
        v = np.concatenate([[total(row[:, None] * c)] for row in a[0].reshape(-1, len(c))]).reshape(-1)
      elif op.kind == 'sum':
        v = np.array([total(list(row)) for row in a[0].reshape(-1, int(c[0]))])
      else:
        other = np.float32(0) if op.kind == 'relu' else c if c is not None else a[1]
        v = {'scale': np.multiply, 'divide': np.divide, 'shift': np.add, 'add': np.add, 'maximum': np.maximum,
             'relu': np.maximum}[op.kind](a[0], other)
      self.assertEqual(v.dtype, np.float32)
      values.append(keep(v))
    return values[-1]

  @parameterized.product(seed=tuple(range(5)), spread=(0., 3.), point=(False, True), flush=(False, True))
  def test_no_order_of_summation_is_further_than_the_bound(self, seed, spread, point, flush):
    rng = np.random.default_rng(seed)
    network = every_kind(rng, spread) if seed % 2 else mlp(rng, (4, 30, 30, 3), spread)
    lower = mixed(rng, (1, 4), 1.) * (1e-37 if seed == 4 else 1.)   # next to the subnormal numbers
    upper = lower + (0 if point else .1 * np.abs(lower))
    bound = checker.float32_error(network, lower, upper)[0]
    for _ in range(4):
      x = np.clip(lower[0] + (upper[0] - lower[0]) * rng.random(4), lower[0], upper[0])   # no float32, as a rule
      y = exact(network, x)[-1]
      for _ in range(3):
        for found, real, most in zip(self._evaluate(network, x, rng, flush).tolist(), y, bound.tolist(), strict=True):
          self.assertLessEqual(abs(Fraction(found) - real), Fraction(most) if np.isfinite(most) else np.inf)

  def test_the_bound_is_of_use(self):
    network = mlp(np.random.default_rng(0), (4, 30, 30, 3))
    error = checker.float32_error(network, np.zeros((1, 4)), np.ones((1, 4)))
    self.assertTrue((error < 3e-4).all() and (error > 1e-8).all(), error)

  def test_no_bound_near_the_largest_float32(self):
    network = mlp(np.random.default_rng(0), (2, 3, 1))
    x = np.array([[1e37, 0.], [1e300, 1.]])
    np.testing.assert_array_equal(checker.float32_error(network, x, x), np.full((2, 1), np.inf))

  def test_subnormal_weights_are_refused(self):
    network = Op('input', (), None, 1), Op('scale', (0,), np.array([1e-40], np.float32), 1)
    found = claim(network, 'points', ([[1.]],), [at_most([[1.]], [5.])], 'points')
    checker.check_claim(found)
    self.reject(dataclasses.replace(found, strength='float32'), 'subnormal')

  @parameterized.parameters(('points', 'points'), ('vpolytope', 'pieces'))
  def test_a_margin_below_the_error_is_not_enough(self, kind, evidence):
    network = mlp(np.random.default_rng(3), (2, 5, 1))
    x = np.array([[.3, -.4]])
    y = exact(network, x[0])[-1][0]
    error = float(checker.float32_error(network, x, x)[0, 0])
    make = lambda margin, strength: claim(network, kind, (x,), [at_most([[1.]], [float(y) + margin])], evidence,
                                          strength=strength)
    checker.check_claim(make(error / 2, 'real'))
    self.reject(make(error / 2, 'float32'), 'condition 0|violates')
    checker.check_claim(make(error * 1.01, 'float32'))

  @parameterized.parameters(('points', 'points'), ('vpolytope', 'pieces'))
  def test_the_error_does_not_vanish_below_the_smallest_float(self, kind, evidence):
    """The row 5e-324 y <= 0 is y <= 0; times the error of float32 it underflows to nothing."""
    network = Op('input', (), None, 3), Op('matmul', (0,), np.array([[1], [1], [-1]], np.float32), 1)
    x = np.array([[1., 2.**-24 + 2.**-47, 1 + 2.**-24 + 2.**-47 - 2.**-70]])
    x[0, 2] = np.float32(1)   # float32: (1 + 2^-24 (1 + 2^-23)) - 1 = 2^-23; real: less; the claim is y <= that
    y = exact(network, x[0])[-1][0]
    single = x[0].astype(np.float32)
    found = np.float32(np.float32(single[0] + single[1]) - single[2])
    self.assertGreater(Fraction(float(found)), y)
    shifted = (*network, Op('shift', (1,), np.array([-float(y)], np.float32), 1))
    self.assertEqual(exact(shifted, x[0])[-1][0], 0)
    for g in (1., 1e-300, 5e-324):
      made = claim(shifted, kind, (x,), [at_most([[g]], [0.])], evidence)
      checker.check_claim(made)
      self.reject(dataclasses.replace(made, strength='float32'))

  def test_a_point_that_is_no_float32_is_rounded(self):
    """y = relu(x) has no rounding of its own, but float32 takes 0.1 for something larger."""
    x, network = np.array([[0.1]]), (Op('input', (), None, 1), Op('relu', (0,), None, 1))
    single = float(np.float32(0.1))
    self.assertGreater(single, 0.1)
    found = claim(network, 'points', (x,), [at_most([[1.]], [(0.1 + single) / 2])], 'points')
    checker.check_claim(found)
    self.reject(dataclasses.replace(found, strength='float32'))


class PointsTest(_Case):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(5)
    self.network, self.x = mlp(rng, (3, 6, 6, 3)), rng.normal(size=(5, 3))
    self.y = [exact(self.network, x)[-1] for x in self.x]

  def test_true_to_the_last_ulp(self):
    g = np.array([1., -2., .5])
    worst = max(sum((Fraction(a) * v for a, v in zip(g.tolist(), y, strict=True)), Fraction(0)) for y in self.y)
    below = rounded_down(worst)
    make = lambda h, strict=False: claim(self.network, 'points', (self.x,), [at_most(g, h, strict)], 'points')
    checker.check_claim(make(np.nextafter(below, np.inf)))
    self.reject(make(np.nextafter(below, -np.inf)), 'violates condition 0')
    if Fraction(below) != worst:
      self.reject(make(below), 'violates')

  def test_equality_holds_unless_strict(self):
    network = certificate.network_of(networks.hand_made())
    make = lambda strict: claim(network, 'points', ([[3.], [2.]],), [at_most([[1.]], [.5], strict)], 'points')
    checker.check_claim(make(False))
    self.reject(make(True), 'violates')

  def test_one_row_of_a_clause_is_enough_and_every_clause_is_needed(self):
    network = certificate.network_of(networks.hand_made())
    either = Clause(np.array([[1.], [-1.]]), np.array([-.25, -.25]), False)   # y <= -.25 or y >= .25
    make = lambda *clauses: claim(network, 'points', ([[-2.], [-.5]],), clauses, 'points')
    checker.check_claim(make(either))
    self.reject(make(either, at_most([[1.]], [.4])), 'condition 1')

  def test_evidence_of_another_kind_is_no_evidence(self):
    clauses = [at_most([[0., 0, 0]], [1.])]
    for kind, arrays, evidence, array in (
        ('points', (self.x,), 'pieces', None), ('points', (self.x,), 'splits', _LEAF), ('points', (self.x,), 'points',
        _LEAF), ('points', (self.x,), 'trust', None), ('box', (self.x[0], self.x[0]), 'points', None),
        ('box', (self.x[0], self.x[0]), 'pieces', None), ('vpolytope', (self.x,), 'points', None),
        ('vpolytope', (self.x,), 'pieces', _LEAF), ('vpolytope', (self.x,), 'splits', _LEAF)):
      self.reject(claim(self.network, kind, arrays, clauses, evidence, array))


class PiecesTest(_Case):
  _N1 = certificate.network_of(networks.hand_made())

  @parameterized.parameters((0.5, False, True), (0.5, True, False), (np.nextafter(0.5, 0), False, False), (0.6, True,
                            True))
  def test_a_segment_over_every_kink(self, h, strict, holds):
    """N1 has its kinks at 0 and 2; on [-2, 3] its largest value is 1/2."""
    found = claim(self._N1, 'vpolytope', ([[-2.], [3.]],), [at_most([[1.]], [h], strict)], 'pieces')
    if holds:
      self.assertIn('segment in 3 pieces', checker.check_claim(found)[0])
    else:
      self.reject(found, 'condition 0')

  def test_the_violation_inside_is_found_though_the_ends_hold(self):
    """y >= -0.4 holds at -1 and 3, and fails in between, around 0."""
    found = claim(self._N1, 'vpolytope', ([[-2.], [3.]],), [at_most([[-1.]], [.4])], 'pieces')
    self.reject(found, 'condition 0')
    checker.check_claim(claim(self._N1, 'vpolytope', ([[-2.], [3.]],), [at_most([[-1.]], [.5])], 'pieces'))

  def test_vertices_exactly_on_a_kink(self):
    for ends in ((0., 2.), (-1., 0.), (0., 0.), (2., 3.), (0., 3.)):
      found = claim(self._N1, 'vpolytope', (np.array(ends)[:, None],), [at_most([[1.]], [.5])], 'pieces')
      checker.check_claim(found)

  def test_a_polygon_over_a_saddle(self):
    """Every corner of the square satisfies y <= 2 for y = relu(x1 + x2) + relu(x1 - x2); y >= -0 too."""
    square = [[-1., -1.], [1., -1.], [1., 1.], [-1., 1.]]
    network = certificate.network_of(forms.absolute_sum())
    make = lambda h, vertices=square: claim(network, 'vpolytope', (vertices,), [at_most([[1.]], [h])], 'pieces')
    self.assertIn('polygon in 4 pieces', checker.check_claim(make(2.))[0])
    self.assertIn('polygon in 4 pieces', checker.check_claim(make(2., square[::-1]))[0])
    self.reject(make(np.nextafter(2., 0)), 'condition 0')

  @parameterized.parameters(
    ([[-1., -1.], [1., 1.], [1., -1.], [-1., 1.]],),                   # corners crosswise
    ([[-1., -1.], [1., -1.], [0., 0.], [-1., 1.]],),                   # not convex
    ([[-1., -1.], [0., -1.], [1., -1.], [0., 1.]],),                   # three in a row
    ([[0., 1.], [-.6, -.8], [.95, .3], [-.95, .3], [.6, -.8]],),       # a star goes round twice
    ([[-1., -1.], [1., 1.], [0., 0.]],),                               # a line
    ([[-1., -1.], [1., -1.], [1., 1.], [1., 1.], [-1., 1.]],))         # one twice
  def test_what_is_no_polygon_is_not_cut(self, vertices):
    network = certificate.network_of(forms.absolute_sum())
    self.assertFalse(checker._is_polygon(checker.integers(np.array(vertices))[0]))
    self.reject(claim(network, 'vpolytope', (vertices,), [at_most([[1.]], [100.])], 'pieces'), 'neither a segment')

  @parameterized.parameters(0, 1, 2)
  def test_planes_in_space(self, seed):
    """Corners in a plane of five dimensions are a polygon; with one of them an ulp out of the plane they are not."""
    rng = np.random.default_rng(seed)
    axes = rng.integers(-8, 9, (2, 5)) / 8
    angles = np.arange(6) * np.pi / 3
    corners = np.round(np.stack([np.cos(angles), np.sin(angles)], axis=1) * 64) / 64 @ axes + 1
    self.assertTrue(checker._is_polygon(checker.integers(corners)[0]))
    self.assertTrue(checker._is_polygon(checker.integers(corners[::-1])[0]))
    corners[3, 2] = np.nextafter(corners[3, 2], 9)
    self.assertFalse(checker._is_polygon(checker.integers(corners)[0]))

  def test_a_polytope_must_lie_in_one_piece(self):
    network = certificate.network_of(forms.absolute_sum())
    square = np.array([[1., 0.], [2., 1.], [2., -1.], [3., 0.]])   # in no order, on the right of both kinks
    made = lambda v, h: claim(network, 'vpolytope', (v,), [at_most([[1.]], [h])], 'pieces')
    self.assertIn('polytope in 1 pieces', checker.check_claim(made(square, 6.))[0])
    self.reject(made(square, np.nextafter(6., 0)), 'condition 0')
    touching = square - [1, 0]   # a corner on both kinks
    self.assertIn('polytope', checker.check_claim(made(touching, 4.))[0])
    touching[0, 0] = np.nextafter(0, -1)   # and one ulp beyond
    self.reject(made(touching, 4.), 'changes its sign')

  def test_a_vertex_moved_by_an_ulp_across_a_row(self):
    network = Op('input', (), None, 2), Op('matmul', (0,), np.array([[1], [1]], np.float32), 1)
    triangle = np.array([[0., 0.], [1., 0.], [.25, .75]])
    make = lambda: claim(network, 'vpolytope', (triangle.copy(),), [at_most([[1.]], [1.])], 'pieces')
    checker.check_claim(make())
    triangle[2, 0] = np.nextafter(.25, 1)
    self.reject(make(), 'condition 0')

  @parameterized.product(seed=tuple(range(5)), maximum=(False, True))
  def test_random_polygons_agree_with_dense_points(self, seed, maximum):
    """The claim is y <= h for h just above and just below the largest exact value that points found."""
    rng = np.random.default_rng(seed)
    form = forms.random_maxout(rng, (2, 5, 5, 1)) if maximum else forms.random_coarse(rng, (2, 6, 6, 1))
    network = certificate.network_of(form)
    triangle = rng.normal(size=(3, 2))
    weights = rng.dirichlet(np.full(3, .5), 4000)
    most = networks_values(form, weights @ triangle)[-1].max()
    make = lambda h: claim(network, 'vpolytope', (triangle,), [at_most([[1.]], [h])], 'pieces')
    checker.check_claim(make(most + 1 + abs(most)))
    self.reject(make(most - 1e-9 * (1 + abs(most))), 'condition 0')

  def test_one_row_must_hold_on_a_whole_piece(self):
    """y <= 0 or y >= 0 holds everywhere, but on the piece [0, 2] of N1 neither row does at both ends."""
    either = Clause(np.array([[1.], [-1.]]), np.zeros(2), False)
    self.reject(claim(self._N1, 'vpolytope', ([[0.], [2.]],), [either], 'pieces'), 'condition 0')
    checker.check_claim(claim(self._N1, 'vpolytope', ([[0.], [1.]],), [either], 'pieces'))


def prove(network, clauses, lower, upper, most=4000):
  """A tree that the checker's bounds prove, by cutting the widest side: what branch and bound does, without JAX."""
  tree, stack = [], [(lower, upper)]
  while stack and len(tree) < most:
    low, high = stack.pop()
    if checker.boxes_hold(network, clauses, low[None], high[None])[0]:
      tree.append(-1)
      continue
    cut = int((high - low).argmax())
    below, above = high.copy(), low.copy()
    below[cut] = above[cut] = checker.middle(low[cut], high[cut])
    stack += [(above, high), (low, below)]
    tree.append(cut)
  return np.array(tree, np.int16)


class SplitsTest(_Case):
  _N1 = certificate.network_of(networks.hand_made())

  def _make(self, tree, h=.6, g=1., lower=-1., upper=3., dtype=np.int16, strict=True):
    return claim(self._N1, 'box', ([lower], [upper]), [at_most([[g]], [h], strict)], 'splits', np.array(tree, dtype))

  def test_the_worked_example(self):
    """y <= 0.6 and y >= -0.6 on [-1, 3] need two leaves (V-section 12.3), and one is not enough."""
    for g in (1., -1.):
      self.assertIn('2 boxes', checker.check_claim(self._make([0, -1, -1], g=g))[0])
      self.reject(self._make([-1], g=g), 'leaf 0 of 1')
      self.reject(self._make([0, -1, -1], .49, g), 'not proven')

  @parameterized.parameters(
    ([0, -1], 'lacks 1'), ([0], 'lacks 2'), ([], 'lacks 1'), ([0, -1, -1, -1], 'goes on'), ([-1, -1], 'goes on'),
    ([0, -1, -2], 'no input'), ([0, -1, -32768], 'no input'), ([1, -1, -1], 'does not exist'),
    ([32767, -1, -1], 'does not exist'))
  def test_trees_that_do_not_cover(self, tree, words):
    self.reject(self._make(tree, h=100.), words)

  def test_trees_of_another_type(self):
    checker.check_claim(self._make([0, -1, -1], dtype=np.int32))
    for tree in (np.array([0, -1, -1], np.int64), np.array([0., -1, -1]), np.array([[0, -1, -1]], np.int16), None,
                 np.array([0, -1, -1], '>i2'), np.array(-1, np.int16)):
      found = self._make([-1], h=100.)
      self.reject(dataclasses.replace(found, evidence=(('splits', tree),)), 'int16')

  def test_leaves_cover_the_box(self):
    rng = np.random.default_rng(0)
    lower, upper = np.array([-1., 0., 2.]), np.array([1., 3., 2.])
    tree, open_ = [], 1
    while open_:
      cut = -1 if len(tree) > 40 else int(rng.integers(-1, 3))
      tree.append(cut)
      open_ += 1 if cut >= 0 else -1
    low, high = checker.leaves(lower, upper, np.array(tree, np.int16))
    x = rng.uniform(lower, upper, (500, 3))
    inside = (x[:, None] >= low) & (x[:, None] <= high)
    self.assertTrue(inside.all(axis=2).any(axis=1).all())

  @parameterized.parameters((0., 5e-324), (-1.7e308, 1.7e308), (1., np.nextafter(1, 2)), (-5e-324, 5e-324), (2., 2.))
  def test_halves_of_any_side_cover_it(self, low, high):
    with np.errstate(over='ignore'):
      cut = checker.middle(np.float64(low), np.float64(high))
    self.assertTrue(low <= cut, cut)   # then [low, cut] and [cut, high] cover it, wherever beyond `high` the cut is

  def test_a_leaf_removed_or_a_cut_moved(self):
    rng = np.random.default_rng(4)
    network = mlp(rng, (2, 8, 8, 1), 0.)
    lower, upper = -np.ones(2), np.ones(2)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 201)] * 2), -1).reshape(-1, 2)
    y = np.array([float(v) for v in (lambda e: [Fraction(int(i), e[2]) * Fraction(2)**e[1] for i in e[0][:, 0]])(
      checker.exact_outputs(network, grid[::7]))])
    clauses = (at_most([[1.]], [y.max() + .03 * np.ptp(y)]),)
    tree = prove(network, clauses, lower, upper)
    self.assertGreater(len(tree), 10)
    make = lambda t: claim(network, 'box', (lower, upper), clauses, 'splits', t)
    checker.check_claim(make(tree))
    for i in np.flatnonzero(tree < 0):
      self.reject(make(np.delete(tree, i)))
    moved = 0
    for i in np.flatnonzero(tree >= 0):
      other = tree.copy()
      other[i] = 1 - other[i]
      try:   # another tree that covers the box may prove the claim as well: what it proves is true
        checker.check_claim(make(other))
      except RejectedError:
        moved += 1
    self.assertGreater(moved, 0)

  def test_float32_needs_its_margin(self):
    error = float(checker.float32_error(self._N1, np.array([[-1.]]), np.array([[1.]]))[0, 0])
    self.assertGreater(error, 1e-8)
    strong = lambda h: dataclasses.replace(self._make([0, -1, -1], h), strength='float32')
    checker.check_claim(strong(.6))
    checker.check_claim(self._make([0, -1, -1], .5 + error / 8))
    self.reject(strong(.5 + error / 8), 'not proven')


class DualsTest(_Case):
  """The row x1 + x2 <= 1 in the unit box, and polytopes around the inputs of random networks."""
  _SUM = Op('input', (), None, 2), Op('matmul', (0,), np.ones((2, 1), np.float32), 1)
  _SET = np.zeros(2), np.ones(2), np.ones((1, 2)), np.ones(1)

  def _make(self, q, h, arrays=_SET, tree=(-1,), **options):
    evidence = np.concatenate([np.reshape(tree, (-1, 1)), np.reshape(q, (len(tree), -1))], axis=1).astype(np.float64)
    return claim(self._SUM, 'hpolytope', arrays, [at_most([[1.]], [h])], 'duals', evidence, **options)

  def test_multipliers_prove_what_the_box_does_not(self):
    checker.check_claim(self._make([1.], 1 + 1e-8))
    checker.check_claim(self._make([1.5], 1.5 + 1e-8))    # any multiplier gives a bound
    checker.check_claim(self._make([0.], 2 + 1e-8))
    self.reject(self._make([0.], 1.9), 'not proven')
    self.reject(self._make([1.], np.nextafter(1., 0)), 'not proven')
    self.reject(self._make([1e300], 1.5), 'not proven')
    self.reject(self._make([-1.], 1e9), 'negative')
    checker.check_claim(self._make([1.], 1 + 1e-5, strength='float32'))
    self.reject(self._make([1.], 1 + 1e-8, strength='float32'), 'not proven')
    checker.check_claim(dataclasses.replace(self._make([0.], 2.1), evidence=(('splits', _LEAF),)))

  def test_multipliers_of_every_leaf(self):
    """Cut at x1 = 1/2; each leaf has its own, and that of the inner node counts for nothing."""
    tree = 0, -1, -1
    checker.check_claim(self._make([-5., 1., 1.], 1 + 1e-8, tree=tree))
    for q in ([1., 0., 1.], [1., 1., 0.]):
      self.reject(self._make(q, 1.4, tree=tree), 'not proven')
    for q in ([0., 1., -1.], [0., -1e-300, 1.]):
      self.reject(self._make(q, 9., tree=tree), 'negative')

  def test_malformed_evidence(self):
    good = self._make([1.], 3.)
    checker.check_claim(good)
    array = good.evidence[0][1]
    for bad in (None, array[0], array[:, :1], np.concatenate([array, array], axis=1), array.astype(np.float32),
                array * np.nan, array * [1., np.inf], array * .5, np.zeros((0, 2)), array * 40000., array - [1, 0],
                np.concatenate([array, array]), array.astype('>f8'), array[None],
                np.full((1, 2), 2.**31), np.full((1, 2), 2.**32 - 1)):
      self.reject(dataclasses.replace(good, evidence=(('duals', bad),)))
    for arrays in (self._SET[:3], (*self._SET[:2], np.ones((1, 3)), np.ones(1)), (*self._SET[:3], np.ones(2)),
                   (*self._SET[:2], np.ones(2), np.ones(1)), (*self._SET[:3], np.array([np.nan])),
                   (self._SET[1], self._SET[0], *self._SET[2:]),
                   (*self._SET[:2], np.ones((1, 2), np.float32), np.ones(1))):
      found = dataclasses.replace(good, spec=(dataclasses.replace(good.spec[0], arrays=arrays),))
      self.reject(found)
    for kind, some in (('box', self._SET[:2]), ('points', (np.zeros((1, 2)),)), ('vpolytope', (np.zeros((1, 2)),))):
      self.reject(dataclasses.replace(good, spec=(Property(kind, some, good.spec[0].clauses),)))
    none = (*self._SET[:2], np.zeros((0, 2)), np.zeros(0))   # no row: a box, whose leaf has no multiplier
    checker.check_claim(self._make(np.zeros((1, 0)), 2.1, none))
    self.reject(self._make(np.zeros((1, 0)), 1.9, none), 'not proven')
    nothing = (Clause(np.zeros((0, 1)), np.zeros(0), False),)
    self.reject(dataclasses.replace(good, spec=(dataclasses.replace(good.spec[0], clauses=nothing),),
                                    evidence=(('duals', np.full((1, 1), -1.)),)))

  @parameterized.product(seed=tuple(range(6)), spread=(0., 3.))
  def test_no_multiplier_proves_a_limit_that_an_input_exceeds(self, seed, spread):
    """All rows of the polytope pass through the very input where the value is attained."""
    rng = np.random.default_rng(seed)
    network = mlp(rng, (3, 6, 6, 2), spread)
    x = rng.integers(-8, 9, 3) / 8
    a = mixed(rng, (4, 3), spread)
    meets = [sum((Fraction(v) * Fraction(w) for v, w in zip(row.tolist(), x.tolist(), strict=True)), Fraction(0))
             for row in a]
    b = np.array([-rounded_down(-m) for m in meets])   # rounded up: x is inside
    y = exact(network, x)[-1]
    limit = np.nextafter(rounded_down(y[0] - y[1]), -np.inf)
    clauses = [at_most([[1., -1.]], [limit])]
    for _ in range(30):
      width = rng.choice([0., 1e-12, 1e-3, 1.])
      q = np.abs(mixed(rng, 4, 8.)) * rng.integers(0, 2, 4)
      found = claim(network, 'hpolytope', (x - width, x + width, a, b), clauses, 'duals',
                    np.concatenate([[-1.], q])[None])
      self.reject(found, 'not proven')


class ClaimTest(_Case):
  """Claims that say nothing, and networks and specifications that do not fit together."""

  def setUp(self):
    super().setUp()
    self.good = claim(certificate.network_of(networks.hand_made()), 'points', ([[0.]],), [at_most([[1.]], [.5])],
                      'points')
    checker.check_claim(self.good)

  def _with(self, **changes):
    return dataclasses.replace(self.good, spec=(dataclasses.replace(self.good.spec[0], **changes),))

  def test_nothing_claimed(self):
    self.reject(dataclasses.replace(self.good, spec=(), evidence=()), 'no property')
    self.reject(self._with(clauses=()), 'nothing is claimed')
    self.reject(self._with(arrays=(np.zeros((0, 1)),)), 'nothing is claimed')
    self.reject(self._with(kind='vpolytope', arrays=(np.zeros((0, 1)),)), 'nothing is claimed')
    self.reject(self._with(kind='box', arrays=(np.ones(1), np.zeros(1))), 'nothing is claimed')
    self.reject(dataclasses.replace(self.good, evidence=()), 'one evidence')
    self.reject(dataclasses.replace(self.good, evidence=self.good.evidence * 2), 'one evidence')

  @parameterized.parameters(('points', (), 'points', None), ('vpolytope', (), 'pieces', None),
                            ('box', (), 'splits', _LEAF))
  def test_a_clause_without_rows_never_holds(self, kind, _, evidence, array):
    arrays = ([0.], [1.]) if kind == 'box' else ([[0.]],)
    nothing = Clause(np.zeros((0, 1)), np.zeros(0), False)
    for clauses in ([nothing], [at_most([[1.]], [9.]), nothing]):
      self.reject(claim(self.good.network, kind, arrays, clauses, evidence, array))

  def test_malformed_specifications(self):
    nan, row = np.array([[np.nan]]), self.good.spec[0].clauses[0]
    for changes in (
        dict(kind='ball'), dict(arrays=(nan,)), dict(arrays=(np.array([[np.inf]]),)), dict(arrays=(np.zeros((1, 2)),)),
        dict(arrays=(np.zeros((1, 1), np.float32),)), dict(arrays=(np.zeros(1),)), dict(arrays=(None,)),
        dict(arrays=(np.zeros((1, 1)),) * 2), dict(kind='box'), dict(kind='box', arrays=(np.zeros((1, 1)),) * 2),
        *(dict(clauses=(c,)) for c in (
          Clause(nan, row.h, False), Clause(row.g, np.array([np.nan]), False), Clause(row.g, np.array([np.inf]), False),
          Clause(np.ones((1, 2)), row.h, False), Clause(row.g, np.zeros(2), False), Clause(None, row.h, False),
          Clause(row.g, None, False), Clause(row.g.astype(np.float32), row.h, False),
          Clause(row.g[0], row.h, False), Clause(row.g.astype('>f8'), row.h, False)))):
      with self.subTest(str(changes)):
        self.reject(self._with(**changes))

  def test_malformed_networks(self):
    f = lambda *a: np.array(a, np.float32)
    i = lambda *a: np.array(a, np.int32)
    start = Op('input', (), None, 2)
    bad = [
      (), (Op('relu', (0,), None, 2),), (Op('input', (), None, 0),), (Op('input', (0,), None, 2),),
      (Op('input', (), f(1, 2), 2),),
      *((start, op) for op in (
        Op('tanh', (0,), None, 2), Op('input', (), None, 2), Op('relu', (1,), None, 2), Op('relu', (-1,), None, 2),
        Op('relu', (), None, 2), Op('relu', (0, 0), None, 2), Op('relu', (0,), None, 3), Op('relu', (0,), f(0, 0), 2),
        Op('add', (0,), None, 2), Op('add', (0, 0, 0), None, 2), Op('maximum', (0,), None, 2),
        Op('gather', (0,), i(1, 3), 2), Op('gather', (0,), i(-1, 1), 2), Op('gather', (0,), i(1, 2), 3),
        Op('gather', (0,), np.array([1, 2]), 2), Op('gather', (0,), None, 2), Op('gather', (0,), i(), 0),
        Op('gather', (), i(0), 1), Op('sum', (0,), i(0), 2), Op('sum', (0,), i(-2), -1), Op('sum', (0,), i(3), 1),
        Op('sum', (0,), i(2, 2), 1), Op('sum', (0,), f(2), 1), Op('matmul', (0,), f(1, 2), 1),
        Op('matmul', (0,), np.ones((3, 1), np.float32), 1), Op('matmul', (0,), np.ones((2, 1), np.float32), 2),
        Op('matmul', (0,), np.ones((2, 1)), 1), Op('matmul', (0,), np.ones((2, 0), np.float32), 0),
        Op('matmul', (0,), f(np.nan, 1).reshape(2, 1), 1), Op('scale', (0,), f(np.inf, 1), 2),
        Op('scale', (0,), f(1), 2), Op('scale', (0,), f(1), 1), Op('shift', (0,), f(0, np.nan), 2),
        Op('divide', (0,), f(1, 0), 2), Op('divide', (0,), f(-0., 1), 2), Op('shift', (0,), None, 2)))]
    for network in bad:
      with self.subTest(str(network)):
        k = max(network[-1].size, 0) if network else 1
        self.reject(claim(network, 'points', (np.zeros((1, 2)),), [at_most(np.zeros((1, k)), [1.])], 'points'))

  def test_an_unknown_strength(self):
    self.reject(dataclasses.replace(self.good, strength='solver'), 'strength')

  def test_the_failing_property_is_named(self):
    bad = self._with(clauses=(at_most([[1.]], [-1.]),)).spec
    self.reject(dataclasses.replace(self.good, spec=self.good.spec + bad, evidence=self.good.evidence * 2),
                'property 1')


# --- Files ---


def pack(document, arrays):
  """The bytes of a certificate file."""
  out = io.BytesIO()
  np.savez_compressed(out, document=np.frombuffer(json.dumps(document, sort_keys=True).encode(), np.uint8), **arrays)
  return out.getvalue()


def unpack(data):
  with np.load(io.BytesIO(data)) as f:
    arrays = {name: f[name] for name in f.files}
  return json.loads(arrays.pop('document').tobytes()), arrays


def resealed(data, change):
  """A file with `change(document, arrays)` made to it and the hash of its content put right."""
  document, arrays = unpack(data)
  change(document, arrays)
  document['content_sha256'] = checker.content_sha256(document, arrays)
  return pack(document, arrays)


class _FileCase(_Case):

  def setUp(self):
    super().setUp()
    self.path = os.path.join(self.enter_context(tempfile.TemporaryDirectory()), 'c.npz')

  def saved(self, found):
    certificate.save(self.path, found)
    return pathlib.Path(self.path).read_bytes()

  def check(self, data):
    pathlib.Path(self.path).write_bytes(data)
    return checker.check(self.path)

  def reject_file(self, data, words=''):
    with self.assertRaisesRegex(RejectedError, words):
      self.check(data)


def points_claim(seed=0):
  """A points claim, each class ahead by less than a last bit can hide: limits are the exact margins, rounded up."""
  rng = np.random.default_rng(seed)
  network, x = mlp(rng, (4, 8, 8, 3)), rng.normal(size=(6, 4))
  y = np.array([[float(v) for v in exact(network, p)[-1]] for p in x])
  clauses = [at_most(c.g, np.nextafter((y @ c.g.T).max(axis=0), np.inf)) for c in wins(0, 3)]
  return claim(network, 'points', (x,), clauses, 'points')


def splits_claim(seed=0):
  """A box in some tens of leaves, whose limit is an attained value and 5 % of the range above it."""
  rng = np.random.default_rng(seed)
  network, lower, upper = mlp(rng, (2, 8, 8, 2)), -np.ones(2), np.ones(2)
  y, exponent, d = checker.exact_outputs(network, np.concatenate([rng.uniform(-1, 1, (500, 2)),
                                                                   [[1, 1], [1, -1], [-1, 1], [-1, -1]]]))
  gap = np.array([float(Fraction(int(a - b), d) * Fraction(2)**exponent) for a, b in y])
  clauses = (at_most([[1., -1.]], [gap.max() + .05 * np.ptp(gap)]),)
  return claim(network, 'box', (lower, upper), clauses, 'splits', prove(network, clauses, lower, upper))


class FileTest(_FileCase):

  def test_what_is_saved_is_read_and_checked(self):
    for found in (points_claim(), splits_claim()):
      report = self.check(self.saved(found))
      self.assertEqual(report.network_sha256, checker.network_sha256(found.network))
      self.assertEqual(report.spec_sha256, checker.spec_sha256(found.spec))
      self.assertEqual(report.strength, 'real')
      self.assertLen(report.counts, 1)

  def test_parts_of_two_certificates(self):
    """Two valid certificates; the network, the specification or the evidence of one in the other."""
    low, high = self.saved(splits_claim(1)), self.saved(splits_claim(4))   # limits -1.6 and 2.6
    for part, one, other in (('network', low, high), ('spec', high, low)):
      document, arrays = unpack(other)
      names = {name: f'b{name}' for name in arrays}
      text = json.dumps(document[part])
      for name in sorted(arrays, key=len, reverse=True):
        text = text.replace(f'"{name}"', f'"{names[name]}"')
      more = {names[name]: array for name, array in arrays.items()}

      def swap(doc, own, part=part, text=text, more=more):
        doc[part] = json.loads(text)
        own.update(more)

      def swap_hash(doc, own, part=part, claimed=document[f'{part}_sha256'], swap=swap):
        swap(doc, own)
        doc[f'{part}_sha256'] = claimed

      self.reject_file(resealed(one, swap), 'hash that the claim names')
      self.reject_file(resealed(one, swap_hash), 'not proven')

  def test_a_stale_hash(self):
    data = self.saved(splits_claim())
    document, arrays = unpack(data)

    def edit(doc, own):
      own['a0'] = own['a0'] * 2

    edited = {**arrays}
    edit(None, edited)
    self.reject_file(pack(document, edited), 'content')
    self.reject_file(resealed(data, edit), 'network does not have the hash')
    for key in ('strength', 'claim', 'network_sha256', 'spec_sha256', 'format'):
      self.reject_file(pack({**document, key: 'x'}, arrays))
    for key in ('network_sha256', 'spec_sha256'):
      self.reject_file(resealed(data, lambda doc, own, key=key: doc.update({key: '0' * 64})), 'hash that the claim')

  def test_malformed_files(self):
    data = self.saved(points_claim())

    def setter(*where):
      *path, value = where
      def change(document, arrays):
        at = document
        for key in path[:-1]:
          at = at[key]
        at[path[-1]] = value
      return change

    changes = [
      setter('format', 'jaxfix-cert-2'), setter('network', None), setter('network', []), setter('network', [[]]),
      setter('network', 0, 3, 'x'), setter('network', 0, 3, 1e400), setter('network', 0, 3, 10**30),
      setter('network', 1, 2, 'missing'), setter('network', 1, 2, ['a0']), setter('network', 1, 1, [7]),
      setter('network', 1, 1, 'x'), setter('network', 1, 0, 'input'), setter('spec', []), setter('spec', 0, 'kind', []),
      setter('spec', 0, 'arrays', 'a1'), setter('spec', 0, 'arrays', [None]), setter('spec', 0, 'clauses', []),
      setter('spec', 0, 'clauses', 0, [None, None, False]), setter('evidence', []), setter('evidence', [['points']]),
      setter('evidence', [['', None]]), setter('evidence', [['splits', 'a0']]), setter('evidence', {}),
      setter('strength', 'solver'), setter('strength', None), setter('network_sha256', None)]
    for i, change in enumerate(changes):
      with self.subTest(i):
        self.reject_file(resealed(data, change))
    for missing in ('format', 'network', 'spec', 'evidence', 'strength', 'network_sha256'):
      self.reject_file(resealed(data, lambda doc, own, missing=missing: doc.pop(missing)))
    out = io.BytesIO()
    np.save(out, np.zeros(3))
    for junk in (b'', b'PK', b'\x93NUMPY', b'hello' * 100, data[:-1], data[1:], data[:len(data) // 2], out.getvalue(),
                 pack([], {}), pack({}, {}), pack('x', {})):
      self.reject_file(junk, 'not a certificate')
    objects = io.BytesIO()
    np.savez(objects, document=np.array([{}], object))
    self.reject_file(objects.getvalue(), 'not a certificate')
    with self.assertRaises(OSError):
      checker.check(os.path.dirname(self.path))
    with self.assertRaises(FileNotFoundError):
      checker.check(self.path + 'x')

  def test_a_small_file_that_describes_a_huge_network(self):
    ops = [Op('input', (), None, 1)]
    for i in range(8):
      ops.append(Op('matmul', (i,), np.ones((1, 100), np.float32), 100**(i + 1)))
    found = claim(ops, 'box', ([0.], [1.]), [at_most(np.ones((1, 1)), [1.])], 'splits', _LEAF)
    found = dataclasses.replace(found, network=(*ops, Op('sum', (8,), np.array([10**9], np.int32), 10**7)))
    self.reject(found)   # the row has one entry, the output ten million
    ops = [*ops[:5], Op('sum', (4,), np.array([10**8], np.int32), 1)]
    self.reject(claim(ops, 'box', ([0.], [1.]), [at_most([[1.]], [1.])], 'splits', _LEAF), 'entries')

  def test_the_offset_of_the_directory(self):
    """zipfile answers some damage with an error of the operating system: that is a damaged file, not a missing one."""
    data = bytearray(self.saved(points_claim()))
    end = data.rindex(b'PK\5\6')
    for at in range(end, len(data)):
      for value in (0, 127, 255):
        damaged = bytearray(data)
        damaged[at] = value
        self._rejected_or_same(bytes(damaged), bytes(data))

  def _rejected_or_same(self, damaged, data):
    try:
      report = self.check(damaged)
    except RejectedError:
      return 'rejected'
    self.assertEqual(report, self.check(data))   # the damage was in something like a time stamp
    return 'same'


class CorruptionTest(_FileCase):
  """Damage and forgery at random: rejected, or what the file now claims is true, decided independently."""

  def test_corruptions(self):
    counts = self._run(150, seed=0)
    self.assertGreater(sum(v for (_, end), v in counts.items() if end == 'rejected'), 180)

  @pytest.mark.slow
  def test_two_thousand_corruptions(self):
    counts = self._run(1000, seed=1)
    for (kind, end), number in sorted(counts.items()):
      print(f'{kind:<24}{end:<12}{number:>6}')
    self.assertEqual(sum(counts.values()), 2000)

  def _run(self, each, seed):
    rng, counts = np.random.default_rng(seed), {}
    for name, found in (('points', points_claim(2)), ('splits', splits_claim(3))):
      data = self.saved(found)
      self.check(data)
      kinds = ['bit', 'truncated', 'content hash', 'claimed hash', 'limit', 'weight', 'input', 'row']
      kinds += ['leaf', 'cut'] if name == 'splits' else ['point']
      for i in range(each):
        kind = kinds[i % len(kinds)]
        end = getattr(self, f'_{kind.replace(" ", "_")}')(found, data, rng)
        counts[f'{name}: {kind}', end] = counts.get((f'{name}: {kind}', end), 0) + 1
    return counts

  def _end(self, data, changed):
    """'rejected'; or, if the file is accepted, 'still true' after the claim was decided in another way."""
    try:
      self.check(data)
    except RejectedError:
      return 'rejected'
    self.assertTrue(self._true(changed), 'a false claim was accepted')
    return 'still true'

  def _true(self, found):
    (p,) = found.spec
    if p.kind == 'points':
      return all(satisfies(found.network, p.clauses, x) for x in p.arrays[0])
    low, high = p.arrays   # a rectangle: exact, by its linear pieces
    corners = np.array([[low[0], low[1]], [high[0], low[1]], [high[0], high[1]], [low[0], high[1]]])
    pieces = dataclasses.replace(found, spec=(Property('vpolytope', (corners,), p.clauses),),
                                 evidence=(('pieces', None),))
    try:
      return bool(checker.check_claim(pieces))
    except RejectedError:
      return False

  def _bit(self, found, data, rng):
    damaged = bytearray(data)
    damaged[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    try:
      report = self.check(bytes(damaged))
    except RejectedError:
      return 'rejected'
    self.assertEqual(report.network_sha256, checker.network_sha256(found.network))
    self.assertEqual(report.spec_sha256, checker.spec_sha256(found.spec))
    self.assertEqual(report.strength, found.strength)
    return 'same claim'

  def _truncated(self, found, data, rng):
    self.reject_file(data[:rng.integers(len(data))], 'not a certificate')
    return 'rejected'

  def _content_hash(self, found, data, rng):
    document, arrays = unpack(data)
    name = str(rng.choice(sorted(arrays)))
    raw = bytearray(arrays[name].tobytes())
    raw[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
    arrays[name] = np.frombuffer(bytes(raw), arrays[name].dtype).reshape(arrays[name].shape)
    self.reject_file(pack(document, arrays), 'content')
    return 'rejected'

  def _claimed_hash(self, found, data, rng):
    other = '0123456789abcdef'
    key = str(rng.choice(['network_sha256', 'spec_sha256']))
    swap = bool(rng.random() < .3)

    def change(document, arrays):
      if swap:
        document['network_sha256'], document['spec_sha256'] = document['spec_sha256'], document['network_sha256']
      else:
        at, text = int(rng.integers(64)), document[key]
        document[key] = text[:at] + str(rng.choice(list(other.replace(text[at], '')))) + text[at + 1:]

    self.reject_file(resealed(data, change), 'hash that the claim names')
    return 'rejected'

  def _limit(self, found, data, rng):
    """The claim made false by moving its limit below a value that is attained; all hashes are right."""
    (p,) = found.spec
    x = p.arrays[0] if p.kind == 'points' else rng.uniform(*p.arrays, (200, 2))
    number = int(rng.integers(len(p.clauses)))
    c = p.clauses[number]
    y, exponent, d = checker.exact_outputs(found.network, x)
    attained = max(sum((Fraction(g) * int(v) for g, v in zip(c.g[0].tolist(), row, strict=True)), Fraction(0))
                   for row in y) * Fraction(2)**exponent / d
    h = np.nextafter(rounded_down(attained), -np.inf) - float(rng.choice([0., 1e-12, 1e-3]))
    clauses = tuple(dataclasses.replace(q, h=np.array([h])) if i == number else q for i, q in enumerate(p.clauses))
    changed = dataclasses.replace(found, spec=(dataclasses.replace(p, clauses=clauses),))
    self.reject_file(self.saved(changed), 'property 0')
    return 'rejected'

  def _weight(self, found, data, rng):
    """One bit of one weight flipped; all hashes are right."""
    at = int(rng.choice([i for i, op in enumerate(found.network) if op.array is not None]))
    array = found.network[at].array.copy()
    array.reshape(-1).view(np.uint32)[rng.integers(array.size)] ^= np.uint32(1 << int(rng.integers(32)))
    network = tuple(dataclasses.replace(op, array=array) if i == at else op for i, op in enumerate(found.network))
    changed = dataclasses.replace(found, network=network)
    return self._end(self.saved(changed), changed)

  def _input(self, found, data, rng):
    """One bit of the input set flipped; all hashes are right."""
    (p,) = found.spec
    arrays = [a.copy() for a in p.arrays]
    array = arrays[rng.integers(len(arrays))]
    array.reshape(-1).view(np.uint64)[rng.integers(array.size)] ^= np.uint64(1 << int(rng.integers(64)))
    changed = dataclasses.replace(found, spec=(dataclasses.replace(p, arrays=tuple(arrays)),))
    return self._end(self.saved(changed), changed)

  def _row(self, found, data, rng):
    """A row of a clause with another sign or another entry; all hashes are right."""
    (p,) = found.spec
    g = p.clauses[0].g.copy()
    g[0, rng.integers(g.shape[1])] += float(rng.choice([-2., -.5, .5, 2.]))
    clauses = (dataclasses.replace(p.clauses[0], g=g), *p.clauses[1:])
    changed = dataclasses.replace(found, spec=(dataclasses.replace(p, clauses=clauses),))
    return self._end(self.saved(changed), changed)

  def _point(self, found, data, rng):
    """A point moved, far or by an ulp; all hashes are right."""
    (p,) = found.spec
    x = p.arrays[0].copy()
    i, j = rng.integers(x.shape[0]), rng.integers(x.shape[1])
    x[i, j] = rng.choice([np.nextafter(x[i, j], 9), x[i, j] + rng.normal(), -x[i, j]])
    changed = dataclasses.replace(found, spec=(dataclasses.replace(p, arrays=(x,)),))
    return self._end(self.saved(changed), changed)

  def _leaf(self, found, data, rng):
    """A leaf dropped, so that the tree does not cover the box; all hashes are right."""
    tree = found.evidence[0][1]
    tree = np.delete(tree, rng.choice(np.flatnonzero(tree < 0)))
    self.reject_file(self.saved(dataclasses.replace(found, evidence=(('splits', tree),))), 'lacks|goes on')
    return 'rejected'

  def _cut(self, found, data, rng):
    """A subtree made a leaf, so that a box is claimed to be proven that was not; all hashes are right."""
    tree = found.evidence[0][1].tolist()
    at = int(rng.choice(np.flatnonzero(np.array(tree) >= 0)))
    open_, end = 1, at
    while open_:
      open_ += 1 if tree[end] >= 0 else -1
      end += 1
    tree[at:end] = [-1]
    self.reject_file(self.saved(dataclasses.replace(found, evidence=(('splits', np.array(tree, np.int16)),))),
                     'not proven')
    return 'rejected'


_HOOK = """
import importlib.abc, runpy, sys
class Block(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    if name.split('.')[0] in ('jax', 'jaxlib', 'scipy', 'flax', 'jaxfix', 'optax', 'highspy', 'launch', 'tests',
                              'ml_dtypes', 'absl', 'threadpoolctl'):
      raise ImportError(f'{name} is blocked')
sys.meta_path.insert(0, Block())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


class ProgramTest(_FileCase):

  def _run(self, *arguments):
    return subprocess.run([sys.executable, '-I', '-c', _HOOK, str(_CHECKER), *arguments], text=True,
                          capture_output=True, timeout=120, cwd=os.path.dirname(self.path))

  def test_it_needs_nothing_but_numpy(self):
    found = splits_claim()
    self.saved(found)
    done = self._run(self.path)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn('CERTIFIED (real)', done.stdout)
    self.assertIn(checker.network_sha256(found.network), done.stdout)
    self.saved(dataclasses.replace(found, evidence=(('splits', _LEAF),)))
    done = self._run(self.path)
    self.assertEqual((done.returncode, done.stderr), (1, ''))
    self.assertStartsWith(done.stdout, 'REJECTED: property 0: leaf 0 of 1')
    done = self._run(self.path + '.none')
    self.assertEqual(done.returncode, 2)
    self.assertStartsWith(done.stderr, 'error: ')

  def test_its_imports(self):
    lines = [line for line in _CHECKER.read_text().splitlines() if line.lstrip().startswith(('import ', 'from '))]
    modules = {line.split()[1].split('.')[0] for line in lines}
    self.assertEmpty(modules - set(sys.stdlib_module_names) - {'numpy'})

  def test_it_is_called_with_one_file(self):
    with self.assertNoLogs():
      self.assertEqual(checker.main([]), 2)
    self.saved(points_claim())
    self.assertEqual(checker.main([self.path]), 0)
    pathlib.Path(self.path).write_bytes(b'nothing')
    self.assertEqual(checker.main([self.path]), 1)


if __name__ == '__main__':
  absltest.main()
