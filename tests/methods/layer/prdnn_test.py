"""PRDNN point repair: the numbers of its specification, solved by hand or by linear programs, and what it promises."""
import dataclasses
import functools
from fractions import Fraction
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from absl.testing import absltest, parameterized

from jaxfix import classifier as classifiers
from jaxfix import linearize, methods, models, predict
from jaxfix.classifier import Classifier
from jaxfix.clock import Clock
from jaxfix.errors import BadInputError, InfeasibleError, RepairFailure, SolverLimitError, Unadaptable
from jaxfix.files import jsonable
from jaxfix.linearize import Points
from jaxfix.methods.layer import prdnn
from jaxfix.methods.layer.prdnn import Config
from jaxfix.models import layers
from jaxfix.models.decoupled import base_classifier, decouple
from jaxfix.problem import Problem, Split
from jaxfix.solve import minimal_change
from tests import tiny
from tests.networks import filled, images, network

_CLOSE = 1e-7   # of optima: the solver's gap is 1e-9 of the objective


def _mlp(*layers, input_size=1):
  """A multilayer perceptron of given (kernel, bias) pairs."""
  params = {f'fc{i + 1}': {'kernel': jnp.asarray(w, jnp.float32), 'bias': jnp.asarray(b, jnp.float32)}
            for i, (w, b) in enumerate(layers)}
  module = models.build('mlp', num_classes=len(layers[-1][1]), hidden=tuple(len(b) for _, b in layers[:-1]))
  return Classifier({'params': params}, module, (input_size,), len(layers[-1][1]))


@functools.cache
def _toy():
  """The network N1: 0.5 relu(-x) - 0.5 relu(x - 2) + relu(x / 2) - 0.5."""
  return _mlp(([[-1, 1, 0.5]], [0, -2, 0]), ([[0.5], [-0.5], [1]], [-0.5]))


def _between(x, low, high):
  """Points of one dimension at which the one output must lie within limits; None for a side without one."""
  x = np.float32(x).reshape(-1, 1)
  rows = [(sign, limit) for sign, limit in ((1., high), (-1., None if low is None else -low)) if limit is not None]
  matrix = np.tile(np.array([[sign] for sign, _ in rows]), (len(x), 1, 1))
  return Points(x, matrix=matrix, limit=np.tile([limit for _, limit in rows], (len(x), 1)))


def _with_rep(points, rep):
  return dataclasses.replace(points, rep=np.float32(rep).reshape(-1, 1))


_SEGMENT = _with_rep(_between([-2, 0, 0, 2], -0.2, None), [-1, -1, 1, 1])   # the pieces [-2, 0] and [0, 2]


def _optimum(points, layer, norm):
  config = Config(layer=layer, norm=norm)
  rows = linearize.constraints(_toy(), layer, points)
  solved = prdnn.smallest_change(rows, 0., config)
  return solved.statistics.objective, rows.unpack(solved.change)


@functools.cache
def _problem(kind):
  """Random weights, whose own predictions are the labels, but for a few samples."""
  if kind == 'resnet':
    net = tiny.TinyResNet()
    net = filled(Classifier(layers.variable_shapes(net, (8, 8, 1)), net, (8, 8, 1), 10))
  else:
    net = network('lenet5', (8, 8, 1), variant='small', width=0.5)
  x = images((8, 8, 1), 40)
  predicted = predict.labels(net, x)
  y = np.where(np.arange(40) % 8 == 0, (predicted + 1) % 10, predicted).astype(np.int32)
  return Problem(net, Split(x, y), Split(x, y), Split(x[:32], y[:32]))


@functools.cache
def _repaired(kind, layer, **options):
  problem = _problem(kind)
  config = Config(layer=layer, **options)
  return problem, methods.run(prdnn.METHOD, problem, config, key=jax.random.key(0))


class ToyTest(parameterized.TestCase):
  """Section 8 of the specification; V-section 12.1."""

  @parameterized.parameters(
    ('fc1', 'l1', 1.2), ('fc1', 'linf', 0.6), ('fc1', 'l1n+linf', 0.8),      # test 1
    ('fc2', 'l1', 0.6), ('fc2', 'linf', 0.3), ('fc2', 'l1n+linf', 0.45))     # test 2
  def test_two_points(self, layer, norm, expected):
    points = _between([-1.5, -0.5], -0.1, 0.1)
    np.testing.assert_array_equal(linearize.logits_at(_toy(), points, exact=True), [[0.25], [-0.25]])
    objective, change = _optimum(points, layer, norm)
    self.assertAlmostEqual(objective, expected, delta=_CLOSE)
    if (layer, norm) == ('fc1', 'l1'):
      np.testing.assert_allclose(change['kernel'], [[0.6, 0, 0]], atol=_CLOSE)
      np.testing.assert_allclose(change['bias'], [0.6, 0, 0], atol=_CLOSE)
    if (layer, norm) == ('fc2', 'l1'):
      np.testing.assert_allclose(change['kernel'], [[-0.3], [0], [0]], atol=_CLOSE)
      np.testing.assert_allclose(change['bias'], [0.3], atol=_CLOSE)

  @parameterized.parameters(
    ('fc2', 'l1', 0.3), ('fc2', 'linf', 0.3), ('fc2', 'l1n+linf', 0.375),    # test 3
    ('fc1', 'l1', 0.9), ('fc1', 'linf', 0.6), ('fc1', 'l1n+linf', 0.75))     # test 4
  def test_a_segment_by_its_pieces(self, layer, norm, expected):
    objective, change = _optimum(_SEGMENT, layer, norm)
    self.assertAlmostEqual(objective, expected, delta=_CLOSE)
    if (layer, norm) == ('fc1', 'l1'):
      np.testing.assert_allclose(change['bias'], [0.6, 0, 0.3], atol=_CLOSE)
      np.testing.assert_allclose(change['kernel'], 0, atol=_CLOSE)

  def test_a_repaired_segment_is_right_everywhere_but_where_the_masks_are_of_no_piece(self):
    repair = prdnn.repair_points(_toy(), _SEGMENT, Config(layer='fc1'))
    line = np.linspace(-2, 2, 10_001)
    line = _between(line[line != 0], -0.2, None)
    self.assertGreaterEqual(line.excess(linearize.logits_at(repair.classifier, line, exact=True)).min(), 0)
    at_zero = linearize.logits_at(repair.classifier, _between([0.], -0.2, None), exact=True)
    np.testing.assert_array_equal(at_zero, [[-0.5]])   # no neuron is on: the bias, whatever the change
    self.assertEqual(repair.certificate['boundary'], {'num_points': 4, 'num_violated': 2, 'violated': [1, 2]})
    self.assertEqual(repair.certificate['points']['num_failing_proven'], 4)

  def test_masks_that_no_piece_has_cannot_be_repaired(self):   # test 5
    own = _between([-2, 0, 2], -0.2, None)
    with self.assertRaises(InfeasibleError):
      prdnn.repair_points(_toy(), own, Config(layer='fc1', on_infeasible='raise'))
    with self.assertRaises(InfeasibleError):
      prdnn.repair_points(_toy(), _SEGMENT, Config(layer='fc1', on_infeasible='raise'), boundary='add')
    repair = prdnn.repair_points(_toy(), _SEGMENT, Config(layer='fc2', on_infeasible='raise'), boundary='add')
    self.assertEqual(repair.certificate['network']['architecture'], 'original')

  def test_what_is_right_is_left_alone(self):   # test 6
    net = _mlp((np.eye(2), [0, 0]), (np.eye(2), [0, 0]), input_size=2)
    points = Points(np.float32([(1, .5), (2, -.5), (4, 5)]), label=np.array([0, 0, 1]))
    for layer in ('fc1', 'fc2'):
      repair = prdnn.repair_points(net, points, Config(layer=layer, margin=0.05))
      after = repair.classifier.params['value'] if layer == 'fc1' else repair.classifier.params['fc2']
      self.assertEqual(after['kernel'].tobytes(), net.params[layer]['kernel'].tobytes())
      self.assertEqual(after['bias'].tobytes(), net.params[layer]['bias'].tobytes())

  def test_contradictions_come_with_a_proof(self):   # test 10
    points = Points(np.float32([[1.]]), matrix=np.array([[[1.], [-1.]]]), limit=np.array([[-1., -1.]]))   # <= -1, >= 1
    with self.assertRaisesRegex(InfeasibleError, 'contradict') as caught:
      prdnn.repair_points(_toy(), points, Config(layer='fc1', on_infeasible='raise'))
    ray, config = caught.exception.ray, Config()
    rows = linearize.constraints(_toy(), 'fc1', points)
    matrix = rows.rows.rows(np.arange(2))
    matrix = matrix.toarray() if hasattr(matrix, 'toarray') else matrix
    self.assertTrue((ray >= 0).all())
    exact = lambda a: [Fraction(float(x)) for x in a]
    columns = [sum(y * a for y, a in zip(exact(ray), exact(column), strict=True)) for column in matrix.T]
    bound = sum(y * e for y, e in zip(exact(ray), exact(rows.need + config.margin), strict=True)) - sum(
      abs(c) * Fraction(config.bounds) for c in columns)
    self.assertGreater(bound, 0)


class ProgramTest(parameterized.TestCase):

  def test_lazy_rows_give_the_optimum_of_all_rows(self):   # test 11
    net = network('mlp', (6,), num_classes=3, hidden=(10,))
    z = images((6,), 200)
    nearly = jax.device_get(net.logits_of_normalized(z)).argmax(1)
    label = np.where(np.arange(200) % 20 == 0, (nearly + 1) % 3, nearly)
    rows = linearize.constraints(net, 'fc1', Points(z, label=label))
    right = rows.need + 1e-3
    lazy, full = (minimal_change(rows.rows, right, lazy=lazy)[1] for lazy in (True, False))
    self.assertLess(lazy.num_active, 400)
    self.assertEqual(full.num_active, 400)
    self.assertAlmostEqual(lazy.objective, full.objective, delta=1e-7)
    self.assertAlmostEqual(lazy.objective, _oracle(rows, right), delta=1e-6)

  def test_the_mean_is_over_the_weights_that_may_change(self):
    points, mask = _between([-1.5, -0.5], -0.1, 0.1), np.array([[True, False, False]])
    rows = linearize.constraints(_toy(), 'fc1', points, mask=mask)
    solved = prdnn.smallest_change(rows, 0., Config(layer='fc1'))
    self.assertAlmostEqual(solved.statistics.objective, 0.6 + 1.2 / 4, delta=_CLOSE)   # one weight, three biases
    unnormalized = prdnn.smallest_change(rows, 0., Config(layer='fc1', normalize_objective=False))
    self.assertAlmostEqual(unnormalized.statistics.objective, 0.6 + 1.2, delta=_CLOSE)

  def test_soft_constraints(self):
    points = _between([-1.5, -0.5], -0.1, 0.1)
    rows = linearize.constraints(_toy(), 'fc1', points)
    config = Config(layer='fc1', norm='linf', soft='linf', soft_weight=0.1, slack_lower=0.)
    repair = lambda **options: prdnn.repair_points(_toy(), points, dataclasses.replace(config, **options))
    # Half a slack of 0.15 is the whole need, and a price of 0.1 is less than the 0.6 that a change costs.
    with self.assertRaisesRegex(RepairFailure, 'even one'):
      repair()
    full = repair(soft_weight=100.)
    self.assertEqual(full.certificate['points']['num_failing_proven'], 2)
    self.assertTrue(full.certificate['optimality']['soft'])
    self.assertLessEqual(rows.need.max(), 0.16)


def _oracle(rows, right):
  """Optimum of the mean plus the largest change, by SciPy, in |.| variables."""
  matrix = rows.rows.rows(np.arange(len(right)))
  matrix = matrix.toarray() if hasattr(matrix, 'toarray') else matrix
  p = matrix.shape[1]
  eye, zero = np.eye(p), np.zeros((len(right), p + 1))
  a = np.block([[-matrix, zero], [eye, -eye, np.zeros((p, 1))], [-eye, -eye, np.zeros((p, 1))],
                [np.zeros((p, p)), eye, -np.ones((p, 1))]])
  b = np.concatenate([-right, np.zeros(3 * p)])
  cost = np.concatenate([np.zeros(p), np.full(p, 1 / p), [1.]])
  return scipy.optimize.linprog(cost, A_ub=a, b_ub=b, bounds=[(-3, 3)] * p + [(0, None)] * (p + 1)).fun


class RepairTest(parameterized.TestCase):

  @parameterized.parameters(('lenet5', 'fc1'), ('lenet5', None), ('resnet', 'conv2'))
  def test_every_failing_sample_is_repaired_and_every_claim_can_be_recomputed(self, kind, layer):
    problem, repair = _repaired(kind, layer)
    failing, passing = problem.failing_and_passing()
    after = predict.logits(repair.classifier, problem.repair.x)
    np.testing.assert_array_equal(after.argmax(1)[failing], problem.repair.y[failing])
    claim = repair.certificate
    self.assertEqual(claim['points']['num_failing_proven'], len(failing))
    self.assertEqual(claim['points']['num_kept_proven'], len(passing))
    self.assertEqual((claim['samples']['failing'], claim['samples']['kept']), (failing.tolist(), passing.tolist()))
    self.assertEqual(claim['network']['sha256'], classifiers.fingerprint(repair.classifier))
    self.assertEqual(claim['network']['original_sha256'], classifiers.fingerprint(problem.classifier))
    own = np.take_along_axis(after, problem.repair.y[:, None], 1)[:, 0]
    other = np.where(np.arange(10) == problem.repair.y[:, None], -np.inf, after).max(1)
    self.assertAlmostEqual(claim['margin']['achieved_float32'], (own - other).min(), delta=1e-5)
    self.assertGreater(claim['margin']['achieved_float64'], 0)
    self.assertLess(claim['optimality']['gap'], 1e-6 * claim['optimality']['objective'])
    self.assertGreaterEqual(claim['optimality']['gap'], -1e-12)
    self.assertEqual(claim['optimality']['bound_arithmetic'], 'rational')
    jsonable(claim)

  def test_only_the_last_layer_of_the_plain_network_changes(self):
    problem, repair = _repaired('lenet5', None)
    self.assertEqual(repair.classifier.module, problem.classifier.module)
    changed = methods.method.changed_weights(problem.classifier.variables, repair.classifier.variables)
    self.assertEqual(set(changed), {'params/fc3/kernel', 'params/fc3/bias'})

  @parameterized.parameters(('lenet5', 'fc1'), ('resnet', 'conv2'))
  def test_the_base_of_a_decoupled_network_is_the_original(self, kind, layer):
    problem, repair = _repaired(kind, layer)
    self.assertEqual(repair.certificate['network']['architecture'], 'decoupled')
    base = base_classifier(repair.classifier)
    self.assertEqual(classifiers.fingerprint(base), classifiers.fingerprint(problem.classifier))
    value, own = repair.classifier.params['value'], problem.classifier.params[layer]
    self.assertEqual({k: v.shape for k, v in value.items()}, {k: v.shape for k, v in own.items()})
    change = max(abs(np.asarray(value[name]) - own[name]).max() for name in own)
    self.assertTrue(0 < change <= 3)

  @parameterized.parameters(('lenet5', 'fc1'), ('resnet', 'conv2'))
  def test_the_same_key_gives_the_same_bits_and_compiles_nothing(self, kind, layer):
    problem, first = _repaired(kind, layer)
    before = classifiers.fingerprint(problem.classifier)
    clock = Clock()
    second = methods.run(prdnn.METHOD, problem, Config(layer=layer), key=jax.random.key(0))
    self.assertEqual(clock.num_compiled, 0)
    self.assertEqual(classifiers.fingerprint(first.classifier), classifiers.fingerprint(second.classifier))
    self.assertEqual(first.certificate, second.certificate)
    self.assertEqual(classifiers.fingerprint(problem.classifier), before)

  def test_without_fold_the_last_layer_is_decoupled_and_computes_the_same(self):
    problem, folded = _repaired('lenet5', None)
    _, split = _repaired('lenet5', None, fold=False)
    self.assertEqual(split.classifier.module.layer, 'fc3')
    np.testing.assert_allclose(predict.logits(split.classifier, problem.valid.x),
                               predict.logits(folded.classifier, problem.valid.x), atol=1e-5)

  def test_kept_points_limit_the_damage(self):
    problem, with_kept = _repaired('lenet5', None)
    _, without = _repaired('lenet5', None, keep_points=0)
    _, passing = problem.failing_and_passing()
    broken = [int((predict.labels(r.classifier, problem.repair.x) != problem.repair.y)[passing].sum())
              for r in (with_kept, without)]
    self.assertEqual(broken[0], 0)
    self.assertGreater(broken[1], 0)

  def test_few_weights_may_be_enough(self):
    problem, repair = _repaired('lenet5', 'conv2', max_weights=40, keep_points=0)
    value, own = repair.classifier.params['value'], problem.classifier.params['conv2']
    self.assertLessEqual(np.count_nonzero(np.asarray(value['kernel']) != own['kernel']), 40)


class InfeasibleTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.net = network('mlp', (5,), num_classes=3, hidden=(7, 6))
    z = images((5,), 4)
    right = jax.device_get(self.net.logits_of_normalized(z)).argmax(1)
    self.z, self.right, self.wrong = z, right, (right + 1) % 3

  def test_contradicting_failures_are_dropped_or_raised(self):
    points = Points(self.z[[0, 0, 1]], label=np.array([self.wrong[0], self.right[0], self.wrong[1]]))
    with self.assertRaises(InfeasibleError):
      prdnn.repair_points(self.net, points, Config(on_infeasible='raise'))
    repair = prdnn.repair_points(self.net, points, Config(on_infeasible='drop'))
    self.assertEqual(repair.certificate['points']['num_failing_proven'], 2)
    self.assertLen(repair.certificate['points']['not_proven'], 1)
    self.assertIn(repair.certificate['points']['not_proven'][0], (0, 1))
    self.assertRegex(repair.trace.notes[0], '1 of 3 failing points')

  @parameterized.parameters('raise', 'drop')
  def test_where_kept_points_take_too_long_the_failing_ones_are_repaired_alone(self, on_infeasible):
    real = prdnn.smallest_change

    def slow_with_kept_points(rows, margin, config, *, demanded=None, soft=None):
      if soft is not None or demanded.all():
        raise SolverLimitError('time')
      return real(rows, margin, config, demanded=demanded)

    points = Points(self.z[:3], label=np.array([self.wrong[0], self.wrong[1], self.right[2]]))
    with mock.patch.object(prdnn, 'smallest_change', slow_with_kept_points):
      repair = prdnn.repair_points(self.net, points, Config(on_infeasible=on_infeasible), num_kept=1)
    self.assertEqual(repair.certificate['points']['num_failing_proven'], 2)

  @parameterized.parameters('raise', 'drop')
  def test_kept_points_give_way_to_failing_ones(self, on_infeasible):
    points = Points(self.z[[0, 1, 0, 2]], label=np.array([self.wrong[0], self.wrong[1], self.right[0], self.right[2]]))
    repair = prdnn.repair_points(self.net, points, Config(on_infeasible=on_infeasible), num_kept=2)
    claim = repair.certificate['points']
    self.assertEqual((claim['num_failing_proven'], claim['num_kept_proven'], claim['not_proven']), (2, 1, [2]))
    self.assertRegex(repair.trace.notes[0], '1 of 2 kept points')

  def test_the_margin_doubles_until_the_cast_weights_hold(self):
    points, real, calls = Points(self.z, label=self.wrong), linearize.logits_at, []

    def broken_twice(classifier, points, *, exact, **options):
      calls.append(exact)
      logits = real(classifier, points, exact=exact, **options)
      return -logits if len(calls) in (1, 4) else logits   # float64 fails first, float32 the second time

    with mock.patch.object(prdnn.linearize, 'logits_at', broken_twice):
      repair = prdnn.repair_points(self.net, points, Config(margin=0.01))
    self.assertLen(calls, 6)
    self.assertEqual(repair.certificate['margin']['asked'], 0.04)
    self.assertGreater(repair.certificate['margin']['achieved_float64'], 0.039)

  def test_a_margin_below_float32_fails_in_the_end(self):
    points = Points(self.z, label=self.wrong)
    with self.assertRaisesRegex(RepairFailure, 'Raise margin'):
      prdnn.repair_points(self.net, points, Config(margin=1e-12))


class ChoiceTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.net = network('mlp', (5,), num_classes=3, hidden=(7, 6))
    x = images((5,), 300)
    predicted = jax.device_get(self.net.logits_of_normalized(x)).argmax(1)
    y = np.where(np.arange(300) % 3 == 0, (predicted + 1) % 3, predicted).astype(np.int32)
    split = Split(x, y)
    self.problem = Problem(self.net, split, split, split)

  def _choose(self, **options):
    return prdnn.choose_points(self.problem, Config(**options), key=jax.random.key(1))

  def test_all_points_unless_there_is_a_limit(self):
    failing, kept = self._choose()
    np.testing.assert_array_equal(failing, np.arange(0, 300, 3))
    np.testing.assert_array_equal(np.union1d(failing, kept), np.arange(300))

  def test_a_limit_treats_classes_alike(self):
    failing, kept = self._choose(max_points=9, keep_points=12)
    self.assertEqual((len(failing), len(kept)), (9, 12))
    wrong = np.arange(0, 300, 3)
    for chosen, available in ((failing, wrong), (kept, np.setdiff1d(np.arange(300), wrong))):
      counts, most = (np.bincount(self.problem.repair.y[i], minlength=3) for i in (chosen, available))
      self.assertTrue(set(chosen) <= set(available))
      for c in range(3):   # fewer than another class only where there are no more
        self.assertTrue(counts[c] >= counts.max() - 1 or counts[c] == most[c])

  def test_the_middle_of_the_distances(self):
    failing, kept = self._choose(central_failing=0.5, central_passing=0.2)
    self.assertEqual((len(failing), len(kept)), (50, 40))
    x = np.float64(self.problem.repair.x)
    w = {name: {k: np.float64(v) for k, v in layer.items()} for name, layer in self.net.params.items()}
    for name in ('fc1', 'fc2'):
      x = np.maximum(x @ w[name]['kernel'] + w[name]['bias'], 0)
    logits, kernel = x @ w['fc3']['kernel'] + w['fc3']['bias'], w['fc3']['kernel']
    distance = np.array([max((c[j] - c[t]) / np.linalg.norm(kernel[:, j] - kernel[:, t]) for j in range(3) if j != t)
                         for c, t in zip(logits, self.problem.repair.y, strict=True)])[::3]
    order = np.argsort(distance) * 3
    np.testing.assert_array_equal(failing, np.sort(order[25:75]))

  def test_unfit_networks_and_options_are_refused_before_work(self):
    method = dataclasses.replace(prdnn.METHOD, repair=mock.Mock(side_effect=AssertionError('work began')))
    decoupled = dataclasses.replace(self.problem, classifier=decouple(self.net, 'fc1'))
    for message, problem, config in (('no layer', self.problem, Config(layer='fc9')),
                                     ('kind relu', self.problem, Config(layer='relu1')),
                                     ('decoupled network already', decoupled, Config())):
      with self.assertRaisesRegex(Unadaptable, message):
        methods.run(method, problem, config, key=jax.random.key(0))
    for options in ({'margin': 0.}, {'bounds': -1.}, {'keep_points': -1}, {'central_passing': 0.}, {'max_weights': 0},
                    {'slack_lower': 1., 'slack_upper': 0.}):
      with self.assertRaises(BadInputError):
        Config(**options)


if __name__ == '__main__':
  absltest.main()
