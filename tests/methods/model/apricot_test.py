"""Section 8 of the Apricot specification, test by test."""
import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix import classifier as classifiers
from jaxfix import methods, predict, train
from jaxfix.errors import RepairFailure, Unadaptable
from jaxfix.methods.model import apricot
from jaxfix.problem import Split
from jaxfix.recipe import Recipe
from tests import tiny

_W = jnp.array([0.5, 0.7, 0.9, 1.2, 1.6])
_RIGHT = np.array([1, 1, 1, 0, 0], bool)
_SHORT = apricot.Config(n_submodels=3, submodel_epochs=1, adjust_batch=40, retrain_epochs=1, max_retrain_epochs=3)


def _move(correct, step, strategy='both', one_sided='skip', w=1., ws=_W, failing=None):
  correct = np.atleast_2d(np.asarray(correct, bool)).T
  failing = np.ones(correct.shape[1], bool) if failing is None else failing
  return apricot.adjust({'w': jnp.float32(w)}, {'w': ws}, correct, failing, step, strategy, one_sided)['w']


def _one_by_one(correct, step, strategy, w, ws):
  """The loop of section 3.2, in float64."""
  n = len(ws)
  for c in np.asarray(correct, bool):
    a = c.sum()
    if a in (0, n):
      continue
    toward = a / n * (ws[c].mean() - w)
    away = (n - a) / n * (ws[~c].mean() - w)
    w = w + step * {'both': toward - away, 'corr': toward, 'incorr': -away}[strategy]
  return w


class AdjustTest(parameterized.TestCase):

  @parameterized.parameters(('both', 1e-3, 0.99966), ('corr', 1e-3, 0.99982), ('incorr', 1e-3, 0.99984),
                            ('both', -1e-3, 1.00034), ('corr', -1e-3, 1.00018), ('incorr', -1e-3, 1.00016))
  def test_one_move_by_hand(self, strategy, step, expected):
    np.testing.assert_allclose(_move([_RIGHT], step, strategy), expected, atol=1e-6)

  def test_two_moves_by_hand(self):
    second = [1, 0, 0, 0, 0]
    np.testing.assert_allclose(_move([_RIGHT], 0.1), 0.966, atol=1e-6)
    np.testing.assert_allclose(_move([_RIGHT, second], 0.1), 0.94596, atol=1e-6)

  @parameterized.product(strategy=('both', 'corr', 'incorr'), sign=(1, -1))
  def test_a_batch_equals_its_inputs_one_by_one(self, strategy, sign):
    rng = np.random.default_rng(0)
    for _ in range(35):
      correct = rng.random((6, 4)) < 0.5
      ws, w, step = rng.normal(size=4), rng.normal(), sign * rng.uniform(0, 0.2)
      got = _move(correct, step, strategy, w=w, ws=jnp.asarray(ws, jnp.float32))
      np.testing.assert_allclose(got, _one_by_one(correct, step, strategy, w, ws), rtol=1e-5, atol=1e-5)

  def test_as_many_right_as_wrong_is_a_pure_translation(self):
    correct = np.array([1, 1, 0, 0], bool)
    ws = jnp.array([2., 3., 5., 7.])
    shift = 0.1 / 4 * float((ws * jnp.array([1, 1, -1, -1])).sum())
    for w in (0., 1., -4.):
      np.testing.assert_allclose(_move([correct], 0.1, w=w, ws=ws), w + shift, atol=1e-6)

  def test_one_sided_inputs_and_passing_inputs_move_nothing(self):
    for correct in (np.ones(5, bool), np.zeros(5, bool)):
      self.assertEqual(float(_move([correct], 0.1)), 1.)
      self.assertNotEqual(float(_move([correct], 0.1, one_sided='use')), 1.)
    self.assertEqual(float(_move([_RIGHT], 0.1, failing=np.zeros(1, bool))), 1.)

  def test_equal_submodels_change_nothing_under_both(self):
    for count in range(6):
      correct = np.arange(5) < count
      np.testing.assert_allclose(_move([correct], 0.1, ws=jnp.ones(5), one_sided='use'), 1., atol=1e-6)


class SubsetsTest(absltest.TestCase):

  def test_balanced_distinct_and_of_the_stated_size(self):
    y = np.repeat(np.arange(3), (50, 13, 8))
    rows = apricot.subsets(y, 4, 0.2, key=jax.random.key(0))
    self.assertEqual(rows.shape, (4, 10 + 3 + 2))
    for subset in rows:
      self.assertLen(set(subset.tolist()), 15)
      np.testing.assert_array_equal(np.bincount(y[subset]), (10, 3, 2))
    self.assertFalse((np.sort(rows[0]) == np.sort(rows[1])).all())


class SubmodelsTest(absltest.TestCase):

  @pytest.mark.slow
  def test_one_program_equals_one_after_another(self):
    problem = tiny.problem('lenet5')
    config = dataclasses.replace(_SHORT, n_submodels=2, submodel_epochs=8, submodel_exec='vmap')   # 24 steps
    together = apricot.train_submodels(problem, config, key=jax.random.key(3))
    apart = apricot.train_submodels(problem, dataclasses.replace(config, submodel_exec='map'), key=jax.random.key(3))
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-5)
    kernels = together.params['fc1']['kernel']
    self.assertGreater(float(jnp.abs(kernels[0] - kernels[1]).max()), 0.01)

  def test_steps_of_the_study(self):
    self.assertEqual(train.steps_per_epoch(54_000, 64), 844)
    self.assertEqual(5_410 * train.steps_per_epoch(54_000, 64), 4_566_040)


class RepairTest(parameterized.TestCase):

  @pytest.mark.slow
  def test_no_move_and_no_retraining_returns_the_same_bits(self):
    problem = tiny.problem('resnet')
    config = dataclasses.replace(_SHORT, adj_lr=0., retrain_epochs=0)
    repaired = methods.run(apricot.METHOD, problem, config, key=jax.random.key(0)).classifier
    self.assertEqual(classifiers.fingerprint(repaired), classifiers.fingerprint(problem.classifier))

  def test_validation_accuracy_never_falls_and_better_weights_are_found(self):
    self._gets_better(tiny.problem('mlp'))

  @pytest.mark.slow   # compiles its training
  def test_batch_statistics_are_trained_too(self):
    problem = tiny.problem('resnet')
    repaired = self._gets_better(problem)
    before, after = problem.classifier.variables['batch_stats'], repaired.variables['batch_stats']
    self.assertGreater(float(jnp.abs(before['bn1']['mean'] - after['bn1']['mean']).max()), 0)

  def _gets_better(self, problem):
    accuracy = lambda c: (predict.labels(c, problem.valid.x) == problem.valid.y).mean()
    repair = methods.run(apricot.METHOD, problem, _SHORT, key=jax.random.key(0))
    self.assertGreater(accuracy(repair.classifier), accuracy(problem.classifier))
    self.assertEqual(accuracy(repair.classifier), max(
      repair.trace.curves['valid_accuracy_retrained'].max(), repair.trace.curves['valid_accuracy_adjusted'].max()))
    return repair.classifier

  @pytest.mark.slow
  def test_a_ruinous_adjustment_is_reverted_to_the_stored_best(self):
    problem = tiny.problem('resnet')
    config = dataclasses.replace(_SHORT, adj_lr=50., direction='script', retrain_epochs=0)
    repair = methods.run(apricot.METHOD, problem, config, key=jax.random.key(0))
    self.assertLess(repair.trace.curves['valid_accuracy_adjusted'].min(),
                    (predict.labels(problem.classifier, problem.valid.x) == problem.valid.y).mean())
    self.assertEqual(classifiers.fingerprint(repair.classifier), classifiers.fingerprint(problem.classifier))

  @pytest.mark.slow
  def test_the_budget_and_the_patience_end_the_loop(self):
    problem = tiny.problem()
    repair = methods.run(apricot.METHOD, problem, dataclasses.replace(_SHORT, adjust_batch=10, max_retrain_epochs=2),
                         key=jax.random.key(0))
    self.assertLen(repair.trace.curves['retrain_loss'], 2)
    config = dataclasses.replace(_SHORT, adjust_batch=10, adj_lr=0., retrain_epochs=0, patience=3)
    repair = methods.run(apricot.METHOD, problem, config, key=jax.random.key(0))
    self.assertLen(repair.trace.curves['valid_accuracy_adjusted'], 5)   # t = 4 is the first above 0 + 3

  def test_a_diverged_submodel_is_a_failure(self):
    problem = tiny.problem()
    submodels = classifiers.stack([problem.classifier] * 2)
    spoiled = submodels.with_params(jax.tree.map(lambda w: w.at[1].set(jnp.nan), submodels.params))
    spoil = mock.patch.object(apricot, 'train_submodels', lambda *args, **kwargs: spoiled)
    with spoil, self.assertRaisesRegex(RepairFailure, '1 of the 2 sub-models'):
      methods.run(apricot.METHOD, problem, dataclasses.replace(_SHORT, n_submodels=2), key=jax.random.key(0))

  def test_retraining_goes_on_where_the_schedule_has_ended(self):
    cosine = Recipe(optimizer='sgd', learning_rate=0.1, schedule='cosine', epochs=60)
    self.assertEqual(apricot.retraining_recipe(cosine),
                     dataclasses.replace(cosine, schedule='constant', learning_rate=0.1 * 0.1))
    constant = Recipe()
    self.assertIs(apricot.retraining_recipe(constant), constant)

  def test_no_failing_input_returns_the_model_with_a_note(self):
    problem = tiny.problem()
    right = predict.labels(problem.classifier, problem.repair.x) == problem.repair.y
    healthy = dataclasses.replace(problem, repair=problem.repair.take(right))
    repair = apricot.repair(healthy, _SHORT, jax.random.key(0))
    self.assertIs(repair.classifier, problem.classifier)
    self.assertEqual(repair.trace.notes, ('no_failing_input',))

  @pytest.mark.slow
  def test_only_one_kind_of_failure_guides_when_asked(self):
    problem = tiny.problem()
    predicted = predict.labels(problem.classifier, problem.repair.x)
    i = np.flatnonzero(predicted != problem.repair.y)[0]
    config = dataclasses.replace(_SHORT, true_label=int(problem.repair.y[i]), predicted_label=int(predicted[i]),
                                 retrain_epochs=0, adj_lr=0.)
    kind = int(((problem.repair.y == config.true_label) & (predicted == config.predicted_label)).sum())
    repair = apricot.repair(problem, config, jax.random.key(0))
    self.assertStartsWith(repair.trace.notes[0], f'{kind} failing inputs')

  def test_streamed_training_data_is_refused_before_work(self):
    problem = tiny.problem()

    class Streamed(list):
      shape = problem.train.x.shape
      dtype = np.dtype('uint8')

    streamed = dataclasses.replace(problem, train=Split(Streamed(problem.train.x), problem.train.y))
    with self.assertRaises(Unadaptable):
      methods.run(apricot.METHOD, streamed, _SHORT, key=jax.random.key(0))


class TrainTest(parameterized.TestCase):

  def test_continuing_gives_the_bits_of_an_undisturbed_run(self):
    problem = tiny.problem('resnet')
    recipe = Recipe(learning_rate=3e-3, batch_size=32, epochs=3, augment='shift')
    epochs = []
    whole = train.fit(problem.classifier, problem.train, problem.valid, recipe, key=jax.random.key(5),
                      on_epoch=epochs.append)
    continued = train.fit(problem.classifier, problem.train, problem.valid, recipe, key=jax.random.key(5),
                          start=epochs[0])
    self.assertEqual([e.number for e in epochs], [1, 2, 3])
    self.assertEqual(classifiers.fingerprint(whole), classifiers.fingerprint(continued))
    self.assertLess(epochs[2].loss, epochs[0].loss)

  @parameterized.parameters('adam', 'adamw', 'sgd')
  def test_every_optimizer_learns(self, optimizer):
    problem = tiny.problem()
    recipe = Recipe(optimizer=optimizer, learning_rate=1e-2, batch_size=64, epochs=4, schedule='cosine')
    losses = []
    train.fit(problem.classifier, problem.train, problem.valid, recipe, key=jax.random.key(0),
              on_epoch=lambda e: losses.append(e.loss))
    self.assertLess(losses[-1], losses[0])


if __name__ == '__main__':
  absltest.main()
