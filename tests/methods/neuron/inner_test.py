"""Sections 8.5 to 8.8, 8.10 and 8.11 of the INNER specification, and what the repair does to BatchNorm."""
import dataclasses
import warnings
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from sklearn import neural_network

from jaxfix import intervene, methods, models, predict
from jaxfix.classifier import Classifier, flat_weights
from jaxfix.errors import BadInputError, RepairFailure, Unadaptable
from jaxfix.localize import probes as probing
from jaxfix.localize.blocks import Block, blocks
from jaxfix.methods.method import changed_weights
from jaxfix.methods.neuron import inner
from jaxfix.models.layers import variable_shapes
from jaxfix.problem import Problem, Split
from tests import tiny
from tests.networks import filled, network, quick_jit

_SHORT = inner.Config(epochs=2, probe_epochs=5, routing_steps=5, num_blocks=1, rate=0.05)


class LossTest(parameterized.TestCase):

  def test_alignment_by_hand(self):
    one = np.ones(1, np.float32)
    loss = quick_jit(inner.alignment_loss)
    fault, normal, y = np.float32([[0, 3]]), np.float32([[3, 0]]), np.array([0])
    self.assertAlmostEqual(float(loss(fault, y, one, normal, one > 0, 1., 3.)), 3.0485874, 5)
    self.assertAlmostEqual(float(loss(fault, y, one, normal, one > 0, 0., 3.)), 1.0443203, 5)
    self.assertAlmostEqual(float(loss(fault, y, one, normal, one > 0, .8, 3.)), 2.6477339, 5)
    self.assertAlmostEqual(float(loss(fault, y, one, normal, one < 0, .8, 3.)), .8 * 3.0485874, 5)

  def test_filling_does_not_count_and_no_gradient_flows_to_normal_samples(self):
    rng = np.random.default_rng(0)
    fault, normal = rng.normal(size=(2, 3, 4)).astype(np.float32)
    y, paired = np.array([0, 1, 2]), np.ones(3, bool)
    run = quick_jit(jax.value_and_grad(inner.alignment_loss, argnums=3))
    part, _ = run(fault, y, np.float32([1, 1, 0]), normal, paired, .8, 3.)
    alone = [float(run(fault, y, np.eye(3, dtype=np.float32)[i], normal, paired, .8, 3.)[0]) for i in range(2)]
    self.assertAlmostEqual(float(part), np.mean(alone), 5)
    np.testing.assert_array_equal(run(fault, y, np.ones(3, np.float32), normal, paired, .8, 3.)[1], 0)

  def test_pairs_have_the_same_label_where_there_is_one(self):
    fault, normal = np.array([1, 2, 1, 3, 1, 2]), np.array([2, 1, 0, 1])
    found = inner.partners(fault, normal, 'same_label')
    np.testing.assert_array_equal(found, [1, 0, 3, -1, 1, 0])
    np.testing.assert_array_equal(normal[found[found >= 0]], fault[found >= 0])
    np.testing.assert_array_equal(inner.partners(fault, normal, 'index'), [0, 1, 2, 3, 0, 1])
    np.testing.assert_array_equal(inner.partners(fault, normal[:0], 'index'), [-1] * 6)

  @parameterized.parameters((.81, .14, True), (.79, .14, False), (.81, .15, False))
  def test_success(self, accuracy, fault_rate, expected):
    self.assertEqual(inner.is_success(accuracy, .90, fault_rate, .10, .15), expected)

  def test_accurate_states_come_first_and_repaired_ones_next(self):
    """(accuracy, fixed), worst to best, from 0.90."""
    order = ((.10, 90), (.79, 80), (.81, 3), (.88, 5), (.80, 9), (.895, 0), (.92, 0))
    ranks = [inner.rank_of(accuracy, fixed, .90) for accuracy, fixed in order]
    self.assertEqual(ranks, sorted(ranks))
    self.assertLen(set(ranks), len(ranks))


class StepTest(parameterized.TestCase):
  """One pass of either phase on a network with BatchNorm, with a mask of our own."""

  def _set_up(self, **changes):
    module, config = tiny.TinyResNet(), dataclasses.replace(_SHORT, **changes)
    classifier = filled(Classifier(variable_shapes(module, (8, 8, 1)), module, (8, 8, 1), 10))
    fault, normal = tiny.digits(0, 20), tiny.digits(20, 60)
    samples = inner.Samples(fault, fault, normal)
    rng = np.random.default_rng(0)
    kernel = classifier.params['conv2']['kernel']
    probe = {'kernel': rng.normal(size=(16, 10)).astype(np.float32), 'bias': np.zeros(10, np.float32)}
    mask = rng.random(kernel.shape) < .3
    part = inner.make_part(classifier, Block('conv2', 'pool', 2), probe, mask, config)
    return classifier, part, samples, inner.batches(samples, config), config

  def _check_masked(self, before, after, mask, moved):
    old, new = flat_weights(before.variables), flat_weights(after.variables)
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    self.assertEqual(changed, {'params/conv2/kernel', *moved})
    differs = old['params/conv2/kernel'] != new['params/conv2/kernel']
    self.assertFalse(differs[~mask].any())
    self.assertGreater(differs[mask].mean(), .9)

  def test_alignment_moves_masked_entries_only_and_nothing_without_a_mask_or_a_rate(self):
    classifier, part, samples, rows, config = self._set_up(bn_mode='frozen')
    after, losses = inner.align(classifier, part, samples, rows, config)
    self._check_masked(classifier, after, part.mask, ())
    self.assertTrue(np.isfinite(losses).all())
    for mask, rate in ((np.zeros_like(part.mask), config.rate), (np.ones_like(part.mask), 0.)):
      still, _ = inner.align(classifier, part._replace(mask=mask), samples, rows,
                             dataclasses.replace(config, rate=rate))
      self.assertEqual(changed_weights(classifier.variables, still.variables), {})

  def test_in_train_mode_statistics_up_to_the_probe_move_by_both_batches(self):
    classifier, part, samples, rows, config = self._set_up()
    after, _ = inner.align(classifier, part, samples, rows, config)
    stats = [f'batch_stats/{bn}/{what}' for bn in ('bn1', 'bn2') for what in ('mean', 'var')]
    self._check_masked(classifier, after, part.mask, stats)
    before_bn = quick_jit(lambda c, x: intervene.record(c, c.normalize(x), ('bn1',))['bn1'][0])
    expected = np.asarray(classifier.variables['batch_stats']['bn1']['mean'])
    pair = rows[2].ravel()
    for x in (samples.fault.x, samples.normal.x[np.maximum(pair, 0)]):
      expected = .9 * expected + .1 * np.asarray(before_bn(classifier, x)).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(after.variables['batch_stats']['bn1']['mean'], expected, atol=1e-5)

  def test_statistics_see_a_faulty_sample_in_place_of_a_partner_that_is_missing(self):
    classifier, part, samples, _, config = self._set_up()
    samples = samples._replace(normal=samples.normal.take(samples.normal.y < 3))
    rows = inner.batches(samples, config)
    pair = rows[2].ravel()
    self.assertBetween((pair < 0).mean(), .3, .9)
    after, _ = inner.align(classifier, part, samples, rows, config)
    before_bn = quick_jit(lambda c, x: intervene.record(c, c.normalize(x), ('bn1',))['bn1'][0])
    expected = np.asarray(classifier.variables['batch_stats']['bn1']['mean'])
    partner = np.where((pair < 0)[:, None, None, None], samples.fault.x, samples.normal.x[pair])
    for x in (samples.fault.x, partner):
      expected = .9 * expected + .1 * np.asarray(before_bn(classifier, x)).mean(axis=(0, 1, 2))
    np.testing.assert_allclose(after.variables['batch_stats']['bn1']['mean'], expected, atol=1e-5)

  def test_consolidation_lowers_the_loss_of_the_faulty_samples(self):
    classifier, part, samples, rows, config = self._set_up(bn_mode='frozen', rate=.1)
    key, losses, current = jax.random.key(0), [], classifier
    for number in range(5):
      current, loss = inner.consolidate(current, part, samples, rows, config, 'none', number, key=key)
      losses.append(float(loss[0]))
    self._check_masked(classifier, current, part.mask, ())
    self.assertTrue((np.diff(losses) < 0).all())


class NoFaultTest(absltest.TestCase):

  def test_without_a_fault_little_changes(self):
    """Faulty samples that are the normal ones: against relabeled ones, the pass moves next to nothing."""
    train, valid = tiny.digits(0, 600), tiny.digits(600, 1000)
    fitted = neural_network.MLPClassifier((32,), max_iter=30, learning_rate_init=.005, random_state=0)
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')   # it says that 30 epochs are few
      fitted.fit(train.x.reshape(len(train), -1), train.y)
    params = {f'fc{i + 1}': {'kernel': w.astype(np.float32), 'bias': b.astype(np.float32)}
              for i, (w, b) in enumerate(zip(fitted.coefs_, fitted.intercepts_, strict=True))}
    module = models.build('mlp', num_classes=10, hidden=(32,))
    classifier = Classifier({'params': params}, module, (8, 8, 1), 10)
    right = np.flatnonzero(predict.labels(classifier, train.x) == train.y)[:200]
    normal = train.take(right)
    config = inner.Config()
    cut = blocks(classifier)
    features = probing.pooled_features(classifier, train.x, probing.taps(cut))
    probes, _ = probing.train_probes(features, train.y, 10, config.probing, key=jax.random.key(0))
    before = (predict.labels(classifier, valid.x) == valid.y).mean()
    self.assertGreater(before, .8)

    def run(fault):
      samples = inner.Samples(train, fault, normal)
      current = classifier
      for block, probe in zip(cut, probes, strict=True):
        mask = np.ones_like(classifier.params[block.target]['kernel'], bool)
        for _ in range(2):
          part = inner.make_part(classifier, block, probe, mask, config)
          current, _ = inner.align(current, part, samples, inner.batches(samples, config), config)
      moved = sum(float(((current.params[b.target]['kernel'] - params[b.target]['kernel'])**2).sum()) for b in cut)
      return current, moved**.5

    repaired, moved = run(normal)
    _, relabeled = run(Split(normal.x, (normal.y + 1) % 10))
    self.assertLess(moved, .2 * relabeled)
    self.assertLess(abs((predict.labels(repaired, valid.x) == valid.y).mean() - before), .01)


class RepairTest(parameterized.TestCase):

  def test_networks_without_hidden_blocks_are_refused(self):
    problem = tiny.problem('mlp')
    single = network('mlp', (8, 8, 1), hidden=(), num_classes=10)
    with self.assertRaisesRegex(Unadaptable, 'hidden'):
      methods.run(inner.METHOD, dataclasses.replace(problem, classifier=single, history=None), _SHORT,
                  key=jax.random.key(0))

  def test_bad_settings_are_refused(self):
    for change in ({'epochs': 0}, {'alpha': 2.}, {'rate': -1.}, {'temperature': 0.}, {'keep': 'all'},
                   {'bn_mode': 'eval'}, {'route_grad': 'weights'}, {'probe_rate': 0.}, {'augment': 'flip'}):
      with self.subTest(**change), self.assertRaises(BadInputError):
        dataclasses.replace(_SHORT, **change)

  def test_few_training_failures_are_replaced_by_those_of_the_repair_split(self):
    problem = tiny.problem('mlp')
    right = predict.labels(problem.classifier, problem.train.x) == problem.train.y
    few = problem.train.take(np.concatenate([np.flatnonzero(right), np.flatnonzero(~right)[:3]]))
    problem = dataclasses.replace(problem, train=few, failures='train')
    samples, notes = inner.choose_samples(problem, _SHORT, key=jax.random.key(0))
    failing = dataclasses.replace(problem, failures='repair').failing_and_passing()[0]
    in_order = lambda x: x[np.lexsort(x.reshape(len(x), -1).T)]
    np.testing.assert_array_equal(in_order(samples.fault.x), in_order(problem.repair.x[failing]))
    self.assertIn('3 failing samples', notes[0])
    samples, notes = inner.choose_samples(tiny.problem('mlp'), _SHORT, key=jax.random.key(0))
    self.assertEqual(notes, ())
    labels = predict.labels(problem.classifier, samples.normal.x)
    np.testing.assert_array_equal(labels, samples.normal.y)
    self.assertTrue((predict.labels(problem.classifier, samples.fault.x) != samples.fault.y).all())

  def test_data_that_are_sorted_by_class_localize_with_all_classes(self):
    problem = tiny.problem('mlp')
    by_class = dataclasses.replace(problem, repair=problem.repair.take(np.argsort(problem.repair.y, kind='stable')))
    samples, _ = inner.choose_samples(by_class, _SHORT, key=jax.random.key(0))
    self.assertGreater(len(samples.fault), 10)
    for part in (samples.fault, samples.normal):
      self.assertTrue((np.diff(part.y) < 0).any())
      self.assertGreater(len(set(part.y[:len(part) // 2])), len(set(part.y)) // 2)

  @parameterized.parameters(True, False)
  def test_only_kept_entries_of_selected_blocks_change_and_their_bias(self, train_bias):
    problem, parts = tiny.problem('mlp'), []
    config = dataclasses.replace(_SHORT, train_bias=train_bias, bn_mode='frozen', keep='top_k', top_k=30, select='last')
    make = inner.make_part
    with mock.patch.object(inner, 'make_part', lambda *args: parts.append(make(*args)) or parts[-1]):
      repair = methods.run(inner.METHOD, problem, config, key=jax.random.key(0))
    part, = parts
    old, new = flat_weights(problem.classifier.variables), flat_weights(repair.classifier.variables)
    target = f'params/{part.block.target}'
    changed = {name for name in old if (old[name] != new[name]).any()}
    self.assertEqual(changed, {f'{target}/kernel', *([f'{target}/bias'] if train_bias else [])})
    moved = old[f'{target}/kernel'] != new[f'{target}/kernel']
    self.assertFalse((moved & ~part.mask).any())
    self.assertBetween(moved.sum(), 1, 30)

  def test_declared_weights_follow_the_settings(self):
    module = tiny.TinyResNet()
    classifier = Classifier(variable_shapes(module, (8, 8, 1)), module, (8, 8, 1), 10)
    problem = dataclasses.replace(tiny.problem('mlp'), classifier=filled(classifier), history=None)
    cases = (
      ({}, {'conv2/kernel', 'fc1/kernel', 'fc1/bias', 'bn1/mean', 'bn1/var', 'bn2/mean', 'bn2/var'}),
      ({'bn_mode': 'frozen'}, {'conv2/kernel', 'fc1/kernel', 'fc1/bias'}),
      ({'bn_mode': 'frozen', 'train_bias': False}, {'conv2/kernel', 'fc1/kernel'}))
    for change, expected in cases:
      allowed = inner.METHOD.may_change(problem, dataclasses.replace(_SHORT, **change))
      names = flat_weights(problem.classifier.variables)
      self.assertEqual({name.split('/', 1)[1] for name in names if allowed(name)}, expected)


@pytest.mark.slow   # compiles a program for each block, phase and kind of settings
class SlowRepairTest(parameterized.TestCase):

  @parameterized.product(kind=('mlp', 'lenet5', 'resnet'), parity=(False, True))
  def test_it_repairs_some_of_what_it_aims_at(self, kind, parity):
    problem = tiny.problem(kind)
    config = inner.Config(epochs=10, rate=.05)
    if parity:
      config = dataclasses.replace(config, route_grad='mask', pairing='index', keep='top_k', top_k=20, augment='rotate',
                                   select='last', bn_mode='frozen')
    repair = methods.run(inner.METHOD, problem, config, key=jax.random.key(0))
    failing, _ = problem.failing_and_passing()
    fixed = predict.labels(repair.classifier, problem.repair.x[failing]) == problem.repair.y[failing]
    self.assertGreater(fixed.sum(), 0)
    for name, count in changed_weights(problem.classifier.variables, repair.classifier.variables).items():
      if parity and name.endswith('kernel'):
        self.assertLessEqual(count, 20)

  def test_nothing_kept_is_a_failure(self):
    with self.assertRaisesRegex(RepairFailure, 'localized nothing'):
      methods.run(inner.METHOD, tiny.problem('mlp'), dataclasses.replace(_SHORT, routing_steps=0),
                  key=jax.random.key(0))

  def test_a_loss_of_any_block_that_is_not_finite_is_a_failure(self):
    losses = iter((np.nan, 1.))
    with (mock.patch.object(inner, 'align', lambda current, *_: (current, np.full(2, next(losses)))),
          self.assertRaisesRegex(RepairFailure, r'diverged in epoch 1: .* \[nan, 1.0\]')):
      methods.run(inner.METHOD, tiny.problem('mlp'), dataclasses.replace(_SHORT, num_blocks=2), key=jax.random.key(0))

  def test_one_failing_sample_without_company(self):
    problem: Problem = tiny.problem('mlp')
    failing, _ = problem.failing_and_passing()
    alone = dataclasses.replace(problem, repair=problem.repair.take(failing[:1]))
    repair = methods.run(inner.METHOD, alone, _SHORT, key=jax.random.key(0))
    self.assertIn('1 faulty and 0 normal', repair.trace.notes[-2])


if __name__ == '__main__':
  absltest.main()
