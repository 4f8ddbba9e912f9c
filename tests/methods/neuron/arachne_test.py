"""Sections 8.4 and 8.10 of the Arachne specification, both generations, on tiny networks."""
import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix import methods, predict
from jaxfix.classifier import flat_weights
from jaxfix.errors import BadInputError, Unadaptable, UnknownNameError
from jaxfix.localize import sampling
from jaxfix.localize.targets import values
from jaxfix.methods.neuron import arachne, arachne_pso
from jaxfix.search import score
from tests import tiny

_SHORT = arachne.Config(population=12, generations=6, failure_share=0.5)
_SWARM = arachne_pso.Config(particles=12, iterations=6, failure_share=0.5)


def _fitness(classifier, negative, positive, alpha):
  """Section 4.1, step 3, in NumPy."""
  total = 0.
  for split, weight in ((positive, 1.), (negative, alpha)):
    logits = predict.logits(classifier, split.x).astype(np.float64)
    loss = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    loss -= logits[np.arange(len(split)), split.y]
    total += weight * np.where(logits.argmax(1) == split.y, 1., 1 / (1 + loss)).sum()
  return total


class FitnessTest(absltest.TestCase):

  def test_numbers_by_hand(self):
    """3 passing (2 kept, 1 broken with L = 3), 2 failing (1 fixed, 1 with L = 1), alpha 10: 17.25."""
    logit = lambda loss: float(-np.log(np.expm1(loss)))   # of the label against a 0: cross-entropy is then `loss`
    logits = jnp.array([[5., 0], [5., 0], [logit(3.), 0], [5., 0], [logit(1.), 0]])
    credit = score.credit(logits, jnp.zeros(5, jnp.int32), lambda v: v)
    np.testing.assert_allclose(credit, [1, 1, .25, 1, .5], atol=1e-5)
    np.testing.assert_allclose(credit[:3].sum() + 10 * credit[3:].sum(), 17.25, atol=1e-4)

  def test_ties_and_infinities(self):
    logits = jnp.array([[1., 1.], [1., 1.], [jnp.nan, 0.], [jnp.inf, 0.]])
    right = predict.right(logits, jnp.array([0, 1, 1, 0]))
    np.testing.assert_array_equal(right[:2], (True, False))   # the lowest index wins
    self.assertFalse(right[2:].any())
    self.assertEqual(float(score.credit(logits, jnp.array([0, 1, 1, 0]), lambda v: v)[2]), 0.)


@pytest.mark.slow   # a search compiles for ten seconds and more; the contract test runs both in the default suite
class ArachneTest(parameterized.TestCase):

  @parameterized.product(kind=('lenet5', 'resnet'), method=('arachne', 'arachne_pso'))
  def test_only_the_targets_change_and_the_best_fitness_never_falls(self, kind, method):
    problem = tiny.problem(kind)
    repair = methods.run(methods.get(method), problem, _SHORT if method == 'arachne' else _SWARM, key=jax.random.key(3))
    old, new = flat_weights(problem.classifier.variables), flat_weights(repair.classifier.variables)
    changed = {(name, tuple(map(int, i))) for name in old for i in np.argwhere(old[name] != new[name])}
    listed = {(f'params/{e.path}', e.index): e for e in repair.trace.edits}
    self.assertNotEmpty(changed)
    self.assertContainsSubset(changed, listed)
    for (name, index), edit in listed.items():
      self.assertEqual((old[name][index], new[name][index]), (np.float32(edit.before), np.float32(edit.after)))
    self.assertTrue((np.diff(repair.trace.curves['best_fitness']) >= 0).all())

  def _samples(self, problem, config, key):
    """I_neg and I_pos of a run with this key."""
    failing, passing = problem.failing_and_passing()
    negatives = sampling.choose_failures(failing, config.failure_share, key=jax.random.split(key, 5)[0])
    return problem.repair.take(negatives), problem.repair.take(passing)

  def test_the_reported_fitness_is_that_of_the_repaired_network(self):
    problem, key = tiny.problem('lenet5'), jax.random.key(4)
    repair = methods.run(arachne.METHOD, problem, _SHORT, key=key)
    negative, positive = self._samples(problem, _SHORT, key)
    np.testing.assert_allclose(repair.trace.curves['best_fitness'][-1],
                               _fitness(repair.classifier, negative, positive, 10.), rtol=1e-4)
    fixed = int((predict.labels(repair.classifier, negative.x) == negative.y).sum())
    broken = int((predict.labels(repair.classifier, positive.x) != positive.y).sum())
    self.assertIn(f'Fixed {fixed} of the {len(negative)} ', repair.trace.notes[-1])
    self.assertIn(f'broke {broken} of the {len(positive)} ', repair.trace.notes[-1])

  def test_unpatched_weights_have_the_fitness_of_the_original(self):
    """n+ + alpha * sum of 1 / (1 + L): a population at the old values, and no generation."""
    problem, key = tiny.problem('lenet5'), jax.random.key(0)
    config = dataclasses.replace(_SHORT, generations=0, population=5)

    def still(targets, classifier):
      old = values(targets, classifier)
      return mock.Mock(mean=old, std=jnp.zeros_like(old), low=old, high=old)

    jax.clear_caches()   # the stand-in must be traced
    with mock.patch.object(arachne, 'siblings', still):
      repair = methods.run(arachne.METHOD, problem, config, key=key)
    jax.clear_caches()
    np.testing.assert_allclose(repair.trace.curves['best_fitness'][0],
                               _fitness(problem.classifier, *self._samples(problem, config, key), 10.), rtol=1e-5)

  def test_values_stay_in_the_box_once_mutated(self):
    problem = tiny.problem('lenet5')
    config = dataclasses.replace(_SHORT, generations=40, crossover=1.)
    repair = methods.run(arachne.METHOD, problem, config, key=jax.random.key(1))
    for e in repair.trace.edits:
      kernel = np.asarray(problem.classifier.params[e.path.split('/')[0]]['kernel'])
      self.assertBetween(e.after, 2 * kernel.min() - 1e-5, 2 * kernel.max() + 1e-5)

  def test_it_repairs_what_it_set_out_to_repair(self):
    problem, key = tiny.problem('lenet5'), jax.random.key(0)
    config = dataclasses.replace(_SHORT, population=30, generations=30)
    repair = methods.run(arachne.METHOD, problem, config, key=key)
    negative, _ = self._samples(problem, config, key)
    self.assertGreater((predict.labels(repair.classifier, negative.x) == negative.y).sum(), 0)
    self.assertGreater(repair.trace.curves['best_fitness'][-1], repair.trace.curves['mean_fitness'][0])

  @parameterized.parameters('gradient_loss', 'random')
  def test_baseline_localizers_choose_so_many_targets(self, localizer):
    config = dataclasses.replace(_SHORT, localizer=localizer, num_targets=5, generations=1)
    repair = methods.run(arachne.METHOD, tiny.problem('lenet5'), config, key=jax.random.key(0))
    self.assertLen(repair.trace.edits, 5)

  def test_layers_can_be_named_and_must_exist(self):
    problem = tiny.problem('lenet5')
    repair = methods.run(arachne.METHOD, problem, dataclasses.replace(_SHORT, layers=('fc2',)), key=jax.random.key(0))
    self.assertEqual({e.path for e in repair.trace.edits}, {'fc2/kernel'})
    with self.assertRaises(UnknownNameError):
      methods.run(arachne.METHOD, problem, dataclasses.replace(_SHORT, layers=('fc9',)), key=jax.random.key(0))
    with self.assertRaisesRegex(Unadaptable, 'conv2'):
      methods.run(arachne_pso.METHOD, problem, dataclasses.replace(_SWARM, layer='conv2'), key=jax.random.key(0))

  def test_bad_settings_are_refused(self):
    for change in ({'population': 3}, {'alpha': 0.}, {'failure_share': 0.}, {'crossover': 2.}, {'factor_low': 2.},
                   {'update': 'both'}):
      with self.assertRaises(BadInputError):
        dataclasses.replace(_SHORT, **change)
    with self.assertRaises(BadInputError):
      dataclasses.replace(_SWARM, phi=4.)


if __name__ == '__main__':
  absltest.main()
