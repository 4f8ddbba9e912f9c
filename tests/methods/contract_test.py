"""What every registered approach promises, on tiny problems. A new approach needs at most a line in `quick.py`."""
import dataclasses
import functools
import time
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix import classifier as classifiers
from jaxfix import methods, models, predict
from jaxfix.classifier import flat_weights
from jaxfix.clock import Clock
from jaxfix.errors import BadInputError, EmptySplitError, NoFailingSamplesError, RepairFailure, Unadaptable
from jaxfix.files import jsonable
from jaxfix.methods.method import changed_weights, configure, describe_config
from jaxfix.problem import Repair, Split
from tests import tiny
from tests.methods.quick import config_of

_METHODS = tuple((f'_{name}', name) for name in methods.NAMES)


def _must_not_run(problem, config, key):
  raise AssertionError('work began before the problem was checked')


@functools.cache
def _twice(name, kind):
  """Both of two equal calls, what the second compiled, and the problem as it was before."""
  method, problem = methods.get(name), tiny.problem(kind)
  before = _snapshot(problem)
  first = methods.run(method, problem, config_of(method), key=jax.random.key(7))
  clock, start = Clock(), time.perf_counter()
  second = methods.run(method, problem, config_of(method), key=jax.random.key(7))
  return first, second, clock.num_compiled, time.perf_counter() - start, before


def _snapshot(problem):
  arrays = [a.copy() for s in (problem.train, problem.valid, problem.repair) for a in (s.x, s.y, s.group)]
  return arrays, classifiers.fingerprint(problem.classifier)


class ContractTest(parameterized.TestCase):
  """On a residual network with batch normalization; `LeNet5ContractTest` repeats it on another structure."""
  kind = 'resnet'

  @parameterized.named_parameters(*_METHODS)
  def test_the_same_key_gives_the_same_bits(self, name):
    first, second, *_ = _twice(name, self.kind)
    self.assertEqual(classifiers.fingerprint(first.classifier), classifiers.fingerprint(second.classifier))
    self.assertEqual(set(first.trace.curves), set(second.trace.curves))
    for curve, values in first.trace.curves.items():
      np.testing.assert_array_equal(values, second.trace.curves[curve])

  @parameterized.named_parameters(*_METHODS)
  def test_a_second_call_compiles_nothing(self, name):
    self.assertEqual(_twice(name, self.kind)[2], 0)

  @parameterized.named_parameters(*_METHODS)
  def test_inputs_are_left_as_they_were(self, name):
    before = _twice(name, self.kind)[4]
    after = _snapshot(tiny.problem(self.kind))
    self.assertEqual(before[1], after[1])
    for a, b in zip(before[0], after[0], strict=True):
      np.testing.assert_array_equal(a, b)

  @parameterized.named_parameters(*_METHODS)
  def test_only_declared_weights_differ(self, name):
    method, problem = methods.get(name), tiny.problem(self.kind)
    repaired = _twice(name, self.kind)[0].classifier
    old, new = flat_weights(problem.classifier.variables), flat_weights(repaired.variables)
    if repaired.module == problem.classifier.module:
      self.assertEqual({k: (v.shape, v.dtype) for k, v in old.items()}, {k: (v.shape, v.dtype) for k, v in new.items()})
      allowed = method.may_change(problem, config_of(method))
      for weight in old:
        if not allowed(weight):
          self.assertEqual(old[weight].tobytes(), new[weight].tobytes(), weight)
    else:
      self.assertFalse(method.keeps_architecture)
      models.describe(repaired.module)   # a checkpoint can name it

  @parameterized.named_parameters(*_METHODS)
  def test_the_repair_is_usable_and_its_trace_is_finite(self, name):
    problem, (first, second, _, wall, _) = tiny.problem(self.kind), _twice(name, self.kind)
    labels = predict.labels(first.classifier, problem.valid.x)
    self.assertTrue(((labels >= 0) & (labels < 10)).all())
    for values in first.trace.curves.values():
      self.assertTrue(np.isfinite(np.asarray(values)).all())
    accuracy = (labels == problem.valid.y).mean()
    for curve, place in first.trace.selected.items():
      self.assertBetween(place, 0, len(first.trace.curves[curve]) - 1)
      if curve.startswith('valid_accuracy'):
        np.testing.assert_allclose(first.trace.curves[curve][place], accuracy, atol=1e-6, err_msg=curve)
    jsonable([dict(first.trace.solver), list(first.trace.notes), first.certificate, describe_config(config_of(
      methods.get(name)))])
    if first.trace.objective is not None:
      self.assertGreaterEqual(first.trace.objective[1], first.trace.objective[0])
    self.assertTrue(all(s >= 0 for s in first.seconds.values()))
    self.assertLessEqual(sum(second.seconds.values()), wall + 0.05)
    self.assertGreater(sum(second.seconds.values()), 0)
    self.assertLessEqual(second.compile_seconds, sum(second.seconds.values()) + 0.05)


@pytest.mark.slow
class LeNet5ContractTest(ContractTest):
  kind = 'lenet5'


class RefusalTest(parameterized.TestCase):

  @parameterized.named_parameters(*_METHODS)
  def test_bad_problems_are_refused_before_work(self, name):
    method, problem = dataclasses.replace(methods.get(name), repair=_must_not_run), tiny.problem('mlp')
    right = predict.labels(problem.classifier, problem.repair.x) == problem.repair.y
    empty = problem.repair.take(np.zeros(0, int))
    broken = jax.tree.map(lambda w: w * np.nan, problem.classifier)
    cases = (
      (EmptySplitError, {'repair': empty}),
      (EmptySplitError, {'valid': empty}),
      (NoFailingSamplesError, {'repair': problem.repair.take(right)}),
      (BadInputError, {'repair': Split(problem.repair.x[:, :4], problem.repair.y)}),
      (BadInputError, {'repair': Split(problem.repair.x * np.nan, problem.repair.y)}),
      (BadInputError, {'train': Split(problem.train.x, problem.train.y + 5)}),
      (BadInputError, {'valid': Split(problem.valid.x, problem.valid.y[:-1])}),
      (BadInputError, {'classifier': broken}),
      (BadInputError, {'failures': 'test'}),
    )
    for error, change in cases:
      with self.subTest(sorted(change)[0], error=error.__name__), self.assertRaises(error) as caught:
        methods.run(method, dataclasses.replace(problem, **change), config_of(method), key=jax.random.key(0))
      self.assertNotIn('\n', str(caught.exception))

  @parameterized.named_parameters(*_METHODS)
  def test_unmet_needs_are_unadaptable_before_work(self, name):
    method, problem = methods.get(name), tiny.problem('mlp')
    problem = dataclasses.replace(problem, history=None, class_importance=None, spec=None)
    for need in {*method.needs, 'history', 'class_importance', 'spec'}:
      needy = dataclasses.replace(method, repair=_must_not_run, needs=(need,))
      with self.assertRaisesRegex(Unadaptable, need):
        methods.run(needy, problem, config_of(method), key=jax.random.key(0))
    with self.assertRaises(BadInputError):
      methods.run(method, tiny.problem('mlp'), object(), key=jax.random.key(0))

  def test_a_method_that_breaks_its_word_is_caught(self):
    problem, method = tiny.problem('mlp'), methods.get('arachne')

    def other(scale, layer):
      def repair(problem, config, key):
        params = problem.classifier.params
        scaled = jax.tree.map(lambda w: w * scale, params[layer])
        return Repair(problem.classifier.with_params({**params, layer: scaled}))
      return repair

    liar = dataclasses.replace(method, repair=other(2., 'fc1'), may_change=lambda p, c: lambda n: 'fc2' in n)
    with self.assertRaisesRegex(RepairFailure, 'fc1'):
      methods.run(liar, problem, key=jax.random.key(0))
    with self.assertRaisesRegex(RepairFailure, 'non-finite'):
      methods.run(dataclasses.replace(liar, repair=other(np.nan, 'fc2')), problem, key=jax.random.key(0))
    unlisted = dataclasses.replace(method, repair=other(2., 'fc3'), may_change=lambda p, c: lambda n: True)
    with self.assertRaisesRegex(RepairFailure, 'does not list'):
      methods.run(unlisted, problem, key=jax.random.key(0))
    changed = changed_weights(problem.classifier.variables, other(2., 'fc3')(problem, None, None).classifier.variables)
    self.assertEqual(changed.keys(), {'params/fc3/bias', 'params/fc3/kernel'})


class FailuresTest(parameterized.TestCase):

  def test_they_are_predicted_once_for_a_problem_and_again_for_another(self):
    problem = dataclasses.replace(tiny.problem('mlp'))
    with mock.patch.object(predict, 'labels', wraps=predict.labels) as labels:
      first, second = problem.failing_and_passing(), problem.failing_and_passing()
      self.assertEqual(labels.call_count, 1)
      other = dataclasses.replace(problem, failures='train').failing_and_passing()
      self.assertEqual(labels.call_count, 2)
    for a, b in zip(first, second, strict=True):
      np.testing.assert_array_equal(a, b)
    self.assertEqual(sum(map(len, other)), len(problem.train))


class ConfigureTest(parameterized.TestCase):

  @parameterized.parameters(
    ('apricot', 'n_submodels', '7', 7), ('apricot', 'adj_lr', '0.5', 0.5), ('apricot', 'submodel_epochs', 'none', None),
    ('apricot', 'submodel_epochs', '3', 3), ('apricot', 'strategy', 'corr', 'corr'),
    ('apricot', 'select_after_retrain', 'false', False))
  def test_text_becomes_the_type_of_the_field(self, name, option, text, expected):
    self.assertEqual(getattr(configure(methods.get(name), {option: text}), option), expected)

  @parameterized.parameters(
    ('n_submodel', '7', "Did you mean 'n_submodels'"), ('n_submodels', 'many', 'int'),
    ('n_submodels', '0', 'at least 1'), ('strategy', 'all', 'both, corr, incorr'),
    ('select_after_retrain', '1', 'true or false'))
  def test_what_does_not_fit_is_refused(self, option, text, message):
    with self.assertRaisesRegex((BadInputError, LookupError), message):
      configure(methods.get('apricot'), {option: text})

  def test_unknown_methods_name_their_neighbor(self):
    with self.assertRaisesRegex(LookupError, "Did you mean 'arachne'"):
      methods.get('arachnae')


if __name__ == '__main__':
  absltest.main()
