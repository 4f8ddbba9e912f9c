"""Networks as integer programs: worked examples, exact optima from linear regions, and a brute force over patterns."""
import itertools
import time
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from scipy import optimize

from jaxfix.errors import BadInputError, SolverLimitError
from jaxfix.solve import Solution, Statistics, Status
from jaxfix.verify import Box, Clause, HPolytope, Points, Property, VPolytope, avoids, milp, wins
from jaxfix.verify.normal_form import evaluate, values
from jaxfix.verify.regions import plane_pieces, region
from tests.verify import forms, regions_test

_CLOSE = 1e-6   # of optima: the solver's tolerance is 1e-9, the layers magnify it
_SQUARE = Box([-1., -1.], [1., 1.])
_TRIANGLE = np.array([[-1., -.5], [1., -.8], [.3, .9]])


def _exact_range(form, corners, direction):
  """Over a polygon of a network with two inputs: an affine function is extreme at a vertex of a piece."""
  y = evaluate(form, plane_pieces(form, corners).vertices) @ direction
  return y.min(), y.max()


def _corners(box):
  (a, b), (c, d) = box.lower, box.upper
  return np.array([[a, b], [c, b], [c, d], [a, d]])


def _edges(triangle):
  """The triangle, given counter-clockwise, as rows in its bounding box."""
  along = np.roll(triangle, -1, axis=0) - triangle
  a = np.stack([along[:, 1], -along[:, 0]], axis=1)
  return HPolytope(a, (a * triangle).sum(axis=1), Box(triangle.min(axis=0) - .1, triangle.max(axis=0) + .1))


def _by_patterns(layers, box, direction):
  """Range over a box by two linear programs for each of the 2^M patterns of a ReLU network."""
  hidden = [len(b) for _, b in layers[:-1]]
  found = []
  for bits in itertools.product((0., 1.), repeat=sum(hidden)):
    j, c, rows, sides, left = np.eye(len(box.lower)), np.zeros(len(box.lower)), [], [], list(bits)
    for w, b in layers[:-1]:
      j, c = w @ j, w @ c + b
      active, left = np.array(left[:len(b)]), left[len(b):]
      sign = 1 - 2 * active
      rows.append(sign[:, None] * j)
      sides.append(-sign * c)
      j, c = active[:, None] * j, active * c
    w, b = layers[-1]
    gradient, constant = direction @ w @ j, direction @ (w @ c + b)
    for way in (1, -1):
      best = optimize.linprog(way * gradient, np.concatenate(rows), np.concatenate(sides),
                              bounds=np.stack([box.lower, box.upper], axis=1))
      if best.status == 0:
        found.append(way * best.fun + constant)
  return min(found), max(found)


class RangeTest(parameterized.TestCase):

  def test_the_toy_network(self):
    box = Box([-1.], [3.])
    np.testing.assert_allclose(milp.output_range(forms.toy(), box, [1.]), (-.5, .5), atol=_CLOSE)
    np.testing.assert_allclose(milp.output_range(forms.toy(), box, [-2.]), (-1., 1.), atol=_CLOSE)
    # The triangles over [-3, 1], [-3, 1] and [-1/2, 3/2], by hand: -x/4 + 3/4, x/4 + 1/4, 3x/8 + 3/8.
    # Least 0 - (x/4 + 1/4) / 2 + max(x/2, 0) - 1/2 at 0; greatest (-x/4 + 3/4) / 2 - max(x - 2, 0) / 2
    # + 3x/8 + 3/8 - 1/2 at 2.
    np.testing.assert_allclose(milp.relaxed_range(forms.toy(), box, [1.]), (-.625, .75), atol=_CLOSE)

  def test_a_sum_of_two(self):
    np.testing.assert_allclose(milp.output_range(forms.absolute_sum(), _SQUARE, [1.]), (0., 2.), atol=_CLOSE)
    np.testing.assert_allclose(milp.relaxed_range(forms.absolute_sum(), _SQUARE, [1.]), (0., 3.), atol=_CLOSE)

  @parameterized.product(make=(forms.random_mlp, forms.random_maxout), seed=(0, 1, 2))
  def test_two_inputs_against_the_pieces_of_a_plane(self, make, seed):
    rng = np.random.default_rng(seed)
    form, direction = make(rng, (2, 8, 8, 3)), rng.normal(size=3)
    wanted = _exact_range(form, _corners(_SQUARE), direction)
    np.testing.assert_allclose(milp.output_range(form, _SQUARE, direction), wanted, atol=_CLOSE)
    relaxed = milp.relaxed_range(form, _SQUARE, direction)
    self.assertTrue(relaxed[0] <= wanted[0] + _CLOSE and wanted[1] <= relaxed[1] + _CLOSE)

  @parameterized.parameters(0, 1)
  def test_polytopes_against_the_pieces_of_a_plane(self, seed):
    rng = np.random.default_rng(seed)
    form, direction = forms.random_mlp(rng, (2, 6, 6, 2)), rng.normal(size=2)
    wanted = _exact_range(form, _TRIANGLE, direction)
    for inputs in (VPolytope(_TRIANGLE), _edges(_TRIANGLE)):
      np.testing.assert_allclose(milp.output_range(form, inputs, direction), wanted, atol=_CLOSE)

  @parameterized.parameters((1, (3, 2)), (2, (2, 3)), (4, (3, 3)))
  def test_against_all_patterns(self, inputs, hidden):
    rng = np.random.default_rng(inputs)
    layers = forms.random_layers(rng, (inputs, *hidden, 2))
    # The normal form holds float32; the brute force must speak of the same numbers.
    layers = [(np.float32(w).astype(float), np.float32(b).astype(float)) for w, b in layers]
    box, direction = Box(-np.ones(inputs), 1.5 * np.ones(inputs)), rng.normal(size=2)
    np.testing.assert_allclose(milp.output_range(forms.mlp(layers), box, direction),
                               _by_patterns(layers, box, direction), atol=_CLOSE)

  @parameterized.parameters(3, 4, 5)
  def test_samples_lie_within_and_come_close(self, inputs):
    rng = np.random.default_rng(inputs)
    form, direction = forms.random_mlp(rng, (inputs, 8, 8, 2)), rng.normal(size=2)
    box = Box(-np.ones(inputs), np.ones(inputs))
    low, high = milp.output_range(form, box, direction)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 9 if inputs > 3 else 41)] * inputs), axis=-1).reshape(-1, inputs)
    y = evaluate(form, grid) @ direction
    self.assertTrue(low - _CLOSE <= y.min() and y.max() <= high + _CLOSE)
    self.assertLess(max(y.min() - low, high - y.max()), .1 * (high - low))

  @parameterized.parameters(('lenet5', .01), ('resnet', .02))
  def test_max_pooling_and_skip_connections(self, kind, radius):
    form, rng = regions_test.convolutional(kind), np.random.default_rng(0)
    x, direction = rng.normal(size=form.num_inputs), rng.normal(size=form.num_outputs)
    box = Box(x - radius, x + radius)
    low, high = milp.output_range(form, box, direction)
    # The linear regions of samples, each maximized over, are all but certainly all there are in so small a box.
    found, seen = [], set()
    for sample in rng.uniform(box.lower, box.upper, size=(200, form.num_inputs)):
      part = region(form, sample, box)
      key = b''.join(p.tobytes() for p in part.pattern if p is not None)
      if key not in seen:
        seen.add(key)
        for sign in (1, -1):
          best = optimize.linprog(sign * direction @ part.jacobian, part.a, part.b, bounds=(None, None))
          found.append(sign * best.fun + direction @ part.offset)
    self.assertGreater(len(seen), 1)
    np.testing.assert_allclose((low, high), (min(found), max(found)), atol=_CLOSE)

  def test_bounds_of_the_caller_are_used(self):
    rng = np.random.default_rng(0)
    form = forms.random_mlp(rng, (2, 8, 8, 2))
    box = Box([-.3, -.3], [.3, .3])
    pieces = plane_pieces(form, _corners(box))
    exact = [(v.min(axis=0), v.max(axis=0)) for v in values(form, pieces.vertices)]
    # A time of nothing for tightening shows what intervals alone leave open.
    loose = milp._encode(form, box, None, 0.)
    tight = milp._encode(form, box, exact, 0.)
    self.assertLess(tight.num_binaries, loose.num_binaries)
    np.testing.assert_allclose(milp.output_range(form, box, [1., -1.], bounds=exact),
                               milp.output_range(form, box, [1., -1.]), atol=_CLOSE)

  def test_tightening_saves_binaries(self):
    rng = np.random.default_rng(1)
    form = forms.random_mlp(rng, (2, 8, 8, 8, 2))
    box = Box([-.3, -.3], [.3, .3])
    self.assertLess(milp._encode(form, box, None, np.inf).num_binaries, milp._encode(form, box, None, 0.).num_binaries)

  def test_limits_and_wrong_sizes_raise(self):
    form = forms.random_mlp(np.random.default_rng(0), (4, 30, 30, 2))
    with self.assertRaises(SolverLimitError):
      milp.output_range(form, Box(-np.ones(4), np.ones(4)), [1., 0.], time_limit_s=1e-3)
    for inputs, direction in ((_SQUARE, [1.]), (Box([0.], [1.]), [1., 1.])):
      with self.assertRaises(BadInputError):
        milp.output_range(forms.toy(), inputs, direction)
    with self.assertRaisesRegex(BadInputError, 'empty'):
      milp.output_range(forms.toy(), Box([1.], [0.]), [1.])


class DecideTest(parameterized.TestCase):

  def decide(self, form, prop, **options):
    found = milp.decide(form, prop, **{'time_limit_s': 30., **options})
    if found.verdict == 'unsafe':
      self.assertFalse(prop.holds(evaluate(form, found.counterexample)))
      if isinstance(prop.inputs, Box | HPolytope):
        self.assertTrue(prop.inputs.contains(found.counterexample))
    else:
      self.assertIsNone(found.counterexample)
    self.assertEqual(found.verdict == 'unknown', bool(found.reason))
    return found

  @parameterized.product(make=(forms.random_mlp, forms.random_maxout), seed=(0, 1),
                         inputs=(_SQUARE, VPolytope(_TRIANGLE), _edges(_TRIANGLE)))
  def test_thresholds_around_the_exact_maximum(self, make, seed, inputs):
    rng = np.random.default_rng(seed)
    form, direction = make(rng, (2, 7, 7, 3)), rng.normal(size=3)
    _, most = _exact_range(form, _corners(inputs) if isinstance(inputs, Box) else _TRIANGLE, direction)
    below = lambda threshold, strict: Property(inputs, (Clause([direction], [threshold], strict),))
    for strict in (False, True):
      self.assertEqual(self.decide(form, below(most + 1e-3, strict)).verdict, 'safe')
      self.assertEqual(self.decide(form, below(most - 1e-3, strict)).verdict, 'unsafe')
      self.assertIn(self.decide(form, below(most, strict)).verdict, ('unknown', 'unsafe'))

  @parameterized.parameters(*range(8))
  def test_disjunctions_against_samples(self, seed):
    rng = np.random.default_rng(seed)
    form = forms.random_mlp(rng, (3, 6, 6, 3))
    regions = [(rng.normal(size=(2, 3)), rng.normal(size=2) - .5) for _ in range(2)]
    prop = Property(Box(-np.ones(3), np.ones(3)), avoids(regions))
    found = self.decide(form, prop)
    samples = prop.holds(evaluate(form, rng.uniform(-1, 1, size=(20000, 3))))
    if found.verdict == 'safe':
      self.assertTrue(samples.all())
    else:
      self.assertEqual(found.verdict, 'unsafe')

  def test_a_clause_holds_if_one_of_its_rows_does(self):
    form = forms.toy()   # values -1/2 to 1/2 on [-1, 3]
    both = Clause([[1.], [-1.]], [-2., .6])   # y <= -2 or y >= -0.6
    hole = Clause([[1.], [-1.]], [-.1, -.1])   # y <= -0.1 or y >= 0.1
    box = Box([-1.], [3.])
    self.assertEqual(self.decide(form, Property(box, (both,))).verdict, 'safe')
    found = self.decide(form, Property(box, (both, hole)))
    self.assertEqual(found.verdict, 'unsafe')
    self.assertLess(abs(evaluate(form, found.counterexample)[0]), .1)

  @parameterized.parameters(0, 1, 2, 3, 4)
  def test_a_planted_counterexample_is_found(self, seed):
    # relu(1 - 100 |x - p|_1) is 1 at p, and 0 but for a 10^-4-th of the box or less.
    rng = np.random.default_rng(seed)
    inputs = 2 + seed % 2
    place = rng.uniform(-.9, .9, inputs)
    eye = np.eye(inputs)
    form = forms.mlp([(np.concatenate([eye, -eye]), np.concatenate([-place, place])),
                      (np.full((1, 2 * inputs), -100.), [1.]), ([[1.]], [0.])])
    found = self.decide(form, Property(Box(-np.ones(inputs), np.ones(inputs)), (Clause([[1.]], [.9]),)))
    self.assertEqual(found.verdict, 'unsafe')
    self.assertLess(np.abs(found.counterexample - place).sum(), .0011)

  def test_classification(self):
    rng = np.random.default_rng(3)
    form = forms.random_mlp(rng, (4, 8, 8, 4))
    x = rng.normal(size=4)
    label = int(evaluate(form, x).argmax())
    self.assertEqual(self.decide(form, Property(Box(x - 1e-3, x + 1e-3), wins(label, 4))).verdict, 'safe')
    self.assertEqual(self.decide(form, Property(Box(x - 1e-3, x + 1e-3), wins((label + 1) % 4, 4))).verdict, 'unsafe')

  def test_no_time_is_unknown(self):
    form = forms.random_mlp(np.random.default_rng(0), (5, 20, 20, 2))
    _, most = milp.relaxed_range(form, Box(-np.ones(5), np.ones(5)), [1., 0.])
    prop = Property(Box(-np.ones(5), np.ones(5)), (Clause([[1., 0.]], [.9 * most]),))
    start = time.monotonic()
    found = self.decide(form, prop, time_limit_s=1e-3)
    self.assertEqual((found.verdict, found.reason), ('unknown', 'time'))
    self.assertLess(time.monotonic() - start, 2.)
    self.assertGreater(found.num_binaries, 20)

  @parameterized.parameters(*[s for s in Status if s is not Status.INFEASIBLE])
  def test_no_other_status_than_infeasible_is_safe(self, status):
    form = forms.random_mlp(np.random.default_rng(0), (2, 6, 6, 2))
    count = milp._encode(form, _SQUARE, None, np.inf).lower.size + 1
    for x in (None, np.zeros(count)):
      solution = Solution(status, Statistics('test', 0., 0, 0, 0, 0), x, 0.)
      with mock.patch.object(milp, 'solve_milp', return_value=solution):
        found = self.decide(form, Property(_SQUARE, (Clause([[1., 0.]], [1e3]),)))
      self.assertEqual(found.verdict, 'unknown')

  def test_stable_networks_need_no_binaries(self):
    found = self.decide(forms.toy(), Property(Box([.5], [1.5]), (Clause([[1.]], [.3]),)))
    self.assertEqual((found.verdict, found.num_binaries), ('safe', 0))

  def test_a_polytope_without_interior_is_decided(self):
    diagonal = HPolytope([[1., -1.], [-1., 1.]], [0., 0.], _SQUARE)
    form = forms.absolute_sum()   # on the diagonal max(2 x, 0)
    self.assertEqual(self.decide(form, Property(diagonal, (Clause([[1.]], [2.1]),))).verdict, 'safe')
    self.assertIn(self.decide(form, Property(diagonal, (Clause([[1.]], [1.9]),))).verdict, ('unsafe', 'unknown'))

  def test_a_clause_without_rows_fails_anywhere(self):
    found = self.decide(forms.toy(), Property(Box([-1.], [3.]), (Clause(np.zeros((0, 1)), np.zeros(0)),)))
    self.assertEqual(found.verdict, 'unsafe')

  def test_what_cannot_be_decided_is_refused(self):
    form, clause = forms.toy(), Clause([[1.]], [0.])
    for inputs, clauses, words in ((Points([[1.]]), (clause,), 'points'), (Box([1.], [0.]), (clause,), 'holds of'),
                                   (Box([0.], [1.]), (), 'holds of'), (_SQUARE, (clause,), 'inputs of 2')):
      with self.assertRaisesRegex(BadInputError, words):
        milp.decide(form, Property(inputs, clauses), time_limit_s=1.)
    prop = Property(Box([-1.], [3.]), (clause,))
    with self.assertRaisesRegex(BadInputError, 'time_limit_s'):
      milp.decide(form, prop, time_limit_s=0.)
    with self.assertRaisesRegex(BadInputError, 'bounds for 1 operations'):
      milp.decide(form, prop, time_limit_s=1., bounds=[None])
    wrong = [None] * len(form.ops)
    wrong[2] = (np.full(3, -9.), np.array([-2., -2., -2.]))
    with self.assertRaisesRegex(BadInputError, 'operation 2 do not hold'):
      milp.decide(form, prop, time_limit_s=1., bounds=wrong)


if __name__ == '__main__':
  absltest.main()
