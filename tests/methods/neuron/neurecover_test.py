"""Sections 8.4, 8.6, 8.8 and 8.9 of the NeuRecover specification, on tiny networks."""
import dataclasses
import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax import linen as nn

from jaxfix import classifier as classifiers
from jaxfix import methods, predict
from jaxfix.classifier import flat_weights
from jaxfix.errors import BadInputError, RepairFailure, Unadaptable
from jaxfix.localize import history
from jaxfix.localize.targets import UNUSED
from jaxfix.methods.neuron import neurecover
from jaxfix.models import layers
from tests import networks, tiny

_SHORT = neurecover.Config(particles=8, iterations=4, include_bias_in_norm=False)   # those of the contract test


def _localize(problem, config):
  """{(path, flat index)}, and the rows of degraded and improved samples."""
  earlier, later, *rows = neurecover._compare(problem, np.arange(len(problem.failure_split)), config)
  targets, _ = neurecover._localize(problem.classifier, earlier, later, problem.failure_split, *rows, config)
  return _entries(targets), rows


def _entries(targets):
  return {(path, int(i)) for path, index in zip(targets.layers, targets.index, strict=True)
          for i in np.asarray(index) if i != UNUSED}


def _layer_inputs_and_gradients(problem, rows):
  """For an MLP, in NumPy and float64: path -> (inputs `[n, in]`, d loss / d output `[n, out]`)."""
  params = jax.tree.map(lambda a: np.asarray(a, np.float64), dict(problem.classifier.params))
  split, paths = problem.failure_split.take(rows), sorted(params)
  h, inputs = split.x.reshape(len(rows), -1).astype(np.float64), {}
  for path in paths:
    inputs[path] = h
    out = h @ params[path]['kernel'] + params[path]['bias']
    h = np.maximum(out, 0)
  slope = np.exp(out - out.max(1, keepdims=True))
  slope = slope / slope.sum(1, keepdims=True) - np.eye(10)[split.y]
  found = {}
  for path in reversed(paths):
    found[path] = inputs[path], slope
    slope = (slope @ params[path]['kernel'].T) * (inputs[path] > 0)
  return {path: found[path] for path in paths}


def _oracle(problem, rows, rate):
  """Section 3, steps 2 to 9, with Python sets, as the toolkit does; also the quotas and T_imp."""
  params, kernels = problem.classifier.params, {}
  old = problem.history[0].params
  for path in sorted(params):
    kernels[path] = np.asarray(params[path]['kernel'], np.float64)
  moved = {path: np.abs(w - np.asarray(old[path]['kernel'])) for path, w in kernels.items()}
  forward, backward = [], []
  for part in rows:
    seen = _layer_inputs_and_gradients(problem, part)
    forward.append({p: np.mean([np.abs(o[:, None] * kernels[p]) for o in seen[p][0]], axis=0) for p in kernels})
    backward.append({p: np.abs(sum(np.outer(o, g) for o, g in zip(*seen[p], strict=True))) for p in kernels})
  mean_of = lambda arrays, p: arrays[p].mean() / sum(a.mean() for a in arrays.values())
  best = lambda score, k: set(np.argsort(-score.ravel(), kind='stable')[:k].tolist())
  chosen, protected, quotas = set(), set(), {}
  for p in kernels:
    deg, imp = mean_of(forward[0], p), mean_of(forward[1], p)
    k = quotas[p] = round(kernels[p].size * deg / (deg + imp) * mean_of(moved, p) * rate)
    t_imp = best(forward[1][p], k) & best(backward[1][p], k)
    protected |= {(p, i) for i in t_imp}
    chosen |= {(p, i) for i in (best(forward[0][p], k) & best(backward[0][p], k) & best(moved[p], k)) - t_imp}
  return chosen, protected, quotas


def _plant(problem, unit, size):
  """The problem with one weight of its last layer changed, the healthy network as history; and that entry."""
  healthy, params = problem.classifier, problem.classifier.params
  row = int(_layer_inputs_and_gradients(problem, np.arange(100))['fc3'][0].mean(axis=0).argmax())
  kernel = np.array(params['fc3']['kernel'])
  kernel[row, unit] += size
  sick = healthy.with_params({**params, 'fc3': {**params['fc3'], 'kernel': kernel}})
  return dataclasses.replace(problem, classifier=sick, history=(healthy,)), row * kernel.shape[1] + unit


class FitnessTest(absltest.TestCase):

  def test_numbers_by_hand(self):
    sums = jnp.array([3., .5 * 10, 190., .1 * 200])
    self.assertAlmostEqual(float(neurecover.RegressionFitness(1.)(sums, 10, 200)), 2.6393939, places=5)
    best = jnp.array([10., 0., 200., 0.])
    self.assertAlmostEqual(float(neurecover.RegressionFitness(3.)(best, 10, 200)), 2 * (1 + 3.), places=5)
    self.assertEqual(float(neurecover.RegressionFitness()(jnp.full(4, jnp.nan), 10, 200)), 0.)

  def test_a_large_alpha_leaves_the_term_of_kept_successes(self):
    rng = np.random.default_rng(1)
    sums = np.stack([rng.integers(0, 11, 40), rng.uniform(0, 50, 40), rng.permutation(200)[:40],
                     rng.uniform(0, 400, 40)], axis=1).astype(np.float32)
    kept = (sums[:, 2] / 200 + 1) / (sums[:, 3] / 200 + 1)
    values = np.asarray(neurecover.RegressionFitness(1e4)(jnp.asarray(sums), 10, 200))
    self.assertEqual(values.argmax(), kept.argmax())
    fixed = (sums[:, 0] / 10 + 1) / (sums[:, 1] / 10 + 1)
    values = np.asarray(neurecover.RegressionFitness(0.)(jnp.asarray(sums), 10, 200))
    self.assertEqual(values.argmax(), fixed.argmax())
    self.assertNotEqual(kept.argmax(), fixed.argmax())


class LocalizationTest(parameterized.TestCase):

  @parameterized.parameters(1., 2., 4.)
  def test_against_sets_in_numpy(self, rate):
    problem = tiny.problem('mlp')
    found, rows = _localize(problem, dataclasses.replace(_SHORT, reduction_rate=rate))
    expected, protected, quotas = _oracle(problem, rows, rate)
    self.assertNotEmpty(expected)
    self.assertEqual(found, expected)
    self.assertEmpty(found & protected)
    self.assertLessEqual(len(found), sum(quotas.values()))

  def test_the_order_of_samples_does_not_matter(self):
    problem = tiny.problem('mlp')
    order = np.random.default_rng(0).permutation(len(problem.repair))
    config = dataclasses.replace(_SHORT, reduction_rate=4.)
    shuffled = dataclasses.replace(problem, repair=problem.repair.take(order))
    self.assertEqual(_localize(problem, config)[0], _localize(shuffled, config)[0])

  def test_at_most_so_many_and_those_that_moved_and_weigh_most(self):
    problem = tiny.problem('mlp')
    config = dataclasses.replace(_SHORT, reduction_rate=4.)
    every, rows = _localize(problem, config)
    few, _ = _localize(problem, dataclasses.replace(config, max_targets=5))
    moved = history.weight_movement(*problem.history)
    seen = _layer_inputs_and_gradients(problem, rows[0])
    weight = {(p, i): moved[f'params/{p}/kernel'].ravel()[i] * np.abs(seen[p][0].T @ seen[p][1]).ravel()[i]
              for p, i in every}
    self.assertEqual(few, set(sorted(every, key=weight.get)[-5:]))

  def test_relaxed_quotas_only_if_asked_for(self):
    problem, config = tiny.problem('mlp'), neurecover.Config(backward='logit_sum')
    with self.assertRaisesRegex(RepairFailure, 'localized nothing'):
      _localize(problem, config)
    relaxed, _ = _localize(problem, dataclasses.replace(config, allow_relax=True))
    self.assertEqual(relaxed, _localize(problem, dataclasses.replace(config, reduction_rate=2.))[0])

  def test_relaxing_only_raises_the_rate(self):
    problem, tried = tiny.problem('mlp'), []
    config = neurecover.Config(reduction_rate=2., allow_relax=True)
    nothing = lambda quota, moved, *_: np.zeros(moved.shape, bool)
    with (mock.patch.object(history, 'quota', lambda size, suspicion, rate, share: tried.append((rate, share))),
          mock.patch.object(history, 'suspicious_entries', nothing), self.assertRaises(RepairFailure)):
      _localize(problem, config)
    self.assertEqual(list(dict.fromkeys(tried)), [(2., 1.), (4., .5)])

  @pytest.mark.slow   # scores of convolutions take long to compile
  def test_convolutions_and_the_sum_of_logits_if_asked_for(self):
    problem = tiny.problem('lenet5')
    found, _ = _localize(problem, dataclasses.replace(_SHORT, conv_support=True, reduction_rate=4.))
    self.assertContainsSubset({path for path, _ in found}, {'conv1', 'conv2', 'fc1', 'fc2', 'fc3'})
    self.assertTrue(any(path.startswith('conv') for path, _ in found))
    dense, _ = _localize(problem, dataclasses.replace(_SHORT, reduction_rate=4.))
    self.assertTrue(all(path.startswith('fc') for path, _ in dense))
    other, _ = _localize(problem, dataclasses.replace(_SHORT, backward='logit_sum', reduction_rate=4.))
    self.assertNotEqual(other, dense)

  def test_a_planted_fault_is_found_unless_it_helped_others(self):
    """One weight of a trained network is changed so that samples flip: it moved most, and weighs on what flipped."""
    outcomes = []
    for unit, size in itertools.product(range(10), (-4., 4.)):
      planted, entry = _plant(tiny.problem('mlp'), unit, size)
      moved = history.weight_movement(planted.history[0], planted.classifier)
      self.assertEqual(np.flatnonzero(moved['params/fc3/kernel']).tolist(), [entry])
      try:
        found, rows = _localize(planted, neurecover.Config())
      except RepairFailure:   # nothing flipped, or nothing but what helped others
        continue
      protected = _oracle(planted, rows, 1.)[1] if rows[1].size else set()
      self.assertEqual(('fc3', entry) in found, ('fc3', entry) not in protected)
      outcomes.append(('fc3', entry) in found)
    self.assertGreaterEqual(sum(outcomes), 2)


class HistoryTest(parameterized.TestCase):

  def test_no_earlier_checkpoint_is_unadaptable_before_work(self):
    problem = tiny.problem('mlp')
    method = dataclasses.replace(neurecover.METHOD, repair=lambda *args: self.fail('work began'))
    for past, change in ((None, {}), ((), {}), ((problem.classifier,), {}), (problem.history, {'history_gap': 2}),
                         (problem.history, {'pair': (-1, -2)}), (problem.history, {'pair': (0, 5)})):
      with self.subTest(change=change), self.assertRaisesRegex(Unadaptable, 'history|checkpoint'):
        methods.run(method, dataclasses.replace(problem, history=past), dataclasses.replace(_SHORT, **change),
                    key=jax.random.key(0))

  def test_a_gap_that_is_not_used_is_not_checked(self):
    config = dataclasses.replace(_SHORT, history_gap=7, pair_select='max_deg')
    neurecover.METHOD.check(tiny.problem('mlp'), config)
    for past in ((), (tiny.problem('mlp').classifier,)):   # it still needs an earlier checkpoint
      with self.assertRaisesRegex(Unadaptable, 'holds none'):
        neurecover.METHOD.check(dataclasses.replace(tiny.problem('mlp'), history=past), config)

  def test_a_network_without_a_dense_layer_is_unadaptable(self):
    class Convolution(nn.Module):
      @nn.compact
      def __call__(self, x, train=False):
        return layers.GlobalAvgPool(name='pool')(layers.Conv(10, (3, 3), name='conv')(x))

    problem = tiny.problem('mlp')
    c = classifiers.Classifier(layers.variable_shapes(Convolution(), (8, 8, 1)), Convolution(), (8, 8, 1), 10)
    c = networks.filled(c)
    problem = dataclasses.replace(problem, classifier=c, history=(networks.filled(c, 1),))
    with self.assertRaisesRegex(Unadaptable, 'conv_support'):
      methods.run(neurecover.METHOD, problem, key=jax.random.key(0))
    self.assertEqual(neurecover._paths(c, neurecover.Config(conv_support=True)), ('conv',))

  def test_the_same_weights_twice_are_a_failure(self):
    """Nothing is degraded between equal checkpoints."""
    problem = tiny.problem('mlp')
    problem = dataclasses.replace(problem, history=(problem.classifier, problem.classifier))
    with self.assertRaisesRegex(RepairFailure, 'no sample was right'):
      methods.run(neurecover.METHOD, problem, key=jax.random.key(0))

  def test_pairs_by_gap_by_position_and_by_most_degraded(self):
    problem = tiny.problem('mlp')
    rng = np.random.default_rng(0)
    noisy = lambda c: c.with_params(jax.tree.map(lambda w: np.asarray(w + rng.normal(0, .1, w.shape), 'f'), c.params))
    past = (*map(noisy, problem.history * 3), *problem.history)
    problem = dataclasses.replace(problem, history=past)
    rows, right = np.arange(100), [predict.labels(c, problem.repair.x) == problem.repair.y for c in problem.history]
    degraded = [int((r & ~right[-1]).sum()) for r in right[:-1]]
    most = max(i for i, count in enumerate(degraded) if count == max(degraded))
    cases = (({'history_gap': 1}, -2, -1), ({'history_gap': 3}, -4, -1), ({'pair': (0, -2)}, 0, -2),
             ({'pair_select': 'max_deg'}, most, -1))
    for change, first, last in cases:
      with self.subTest(**change):
        earlier, later, rows_deg, rows_imp = neurecover._compare(problem, rows, neurecover.Config(**change))
        fingerprint = classifiers.fingerprint
        self.assertEqual(fingerprint(earlier), fingerprint(problem.history[first]))
        self.assertEqual(fingerprint(later), fingerprint(problem.history[last]))
        self.assertEqual(rows_deg.tolist(), np.flatnonzero(right[first] & ~right[last]).tolist())
        self.assertEqual(rows_imp.tolist(), np.flatnonzero(~right[first] & right[last]).tolist())

  def test_failing_samples_of_one_class_or_one_type(self):
    problem = tiny.problem('mlp')
    split, predicted = problem.repair, predict.labels(problem.classifier, problem.repair.x)
    wrong = predicted != split.y
    some = int(split.y[wrong][0])
    chosen = neurecover._failures(split, predicted, dataclasses.replace(_SHORT, failure_class=some))
    self.assertEqual(chosen.tolist(), np.flatnonzero(wrong & (split.y == some)).tolist())
    kind = neurecover._failures(split, predicted, dataclasses.replace(_SHORT, failure_type=0))
    self.assertLen({(split.y[i], predicted[i]) for i in kind}, 1)
    with self.assertRaisesRegex(RepairFailure, 'class 11'):
      neurecover._failures(split, predicted, dataclasses.replace(_SHORT, failure_class=11))


class RepairTest(absltest.TestCase):

  @pytest.mark.slow   # the contract's checks see it too
  def test_only_localized_entries_of_dense_kernels_change(self):
    problem = tiny.problem('mlp')
    repair = methods.run(neurecover.METHOD, problem, _SHORT, key=jax.random.key(3))
    expected, _ = _localize(problem, _SHORT)
    old, new = flat_weights(problem.classifier.variables), flat_weights(repair.classifier.variables)
    changed = {(name, int(i)) for name in old for i in np.flatnonzero(old[name].view('u4') != new[name].view('u4'))}
    self.assertNotEmpty(changed)
    self.assertContainsSubset(changed, {(f'params/{path}/kernel', i) for path, i in expected})
    self.assertLen(repair.trace.edits, len(expected))
    self.assertTrue((np.diff(repair.trace.curves['best_fitness']) >= 0).all())

  @pytest.mark.slow   # two more swarms to compile
  def test_a_planted_fault_is_undone_and_alpha_prevents_regressions(self):
    problem = tiny.problem('mlp')
    planted, entry = _plant(problem, 6, 4.)
    right = [predict.labels(c, problem.repair.x) == problem.repair.y for c in (problem.classifier, planted.classifier)]
    spoiled, kept = right[0] & ~right[1], right[1]
    self.assertGreater(spoiled.sum(), 10)
    found = []
    for alpha in (0., 100.):
      config = neurecover.Config(particles=50, max_targets=1, alpha=alpha)   # the one that moved
      repair = methods.run(neurecover.METHOD, planted, config, key=jax.random.key(0))
      self.assertEqual([np.ravel_multi_index(e.index, (12, 10)) for e in repair.trace.edits], [entry])
      found.append(predict.labels(repair.classifier, problem.repair.x) == problem.repair.y)
    self.assertGreaterEqual(found[0][spoiled].mean(), 0.9)
    self.assertTrue(found[1][kept].all())

  def test_bad_settings_are_refused(self):
    for change in ({'alpha': -1.}, {'reduction_rate': 0.}, {'history_gap': 0}, {'pair': (1, 2, 3)},
                   {'pair_select': 'best'}, {'backward': 'mse'}, {'max_targets': 0}, {'phi': 4.},
                   {'failure_class': 1, 'failure_type': 0}):
      with self.assertRaises(BadInputError):
        dataclasses.replace(_SHORT, **change)


if __name__ == '__main__':
  absltest.main()
