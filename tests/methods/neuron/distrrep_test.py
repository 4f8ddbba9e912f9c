"""Section 8 of the DISTRREP specification on the method itself: what is repaired, merging, and what is returned."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix import methods, predict
from jaxfix.classifier import Classifier, flat_weights
from jaxfix.errors import BadInputError, RepairFailure, Unadaptable
from jaxfix.localize.targets import write
from jaxfix.methods.neuron import distrrep
from jaxfix.models import layers
from jaxfix.problem import ClassImportance, Problem, Split
from jaxfix.search import class_score, merge, output_patch
from jaxfix.search import particle_swarm as pso
from tests import networks, tiny
from tests.localize.output_layer_test import _Ends

_SHORT = distrrep.Config(particles=8, iterations=4, merge_particles=8, merge_iterations=4, min_pair_failures=1)
_search = networks.quick_jit(distrrep.search_coefficients.__wrapped__, static_argnames=('settings', 'iterations'))
_score = networks.quick_jit(distrrep.merged_score)


def _data(*groups):
  """Samples of groups (count, true, predicted), without inputs."""
  y, predicted = (np.concatenate([np.full(g[0], g[i]) for g in groups]) for i in (1, 2))
  return distrrep._Data(np.zeros((len(y), 1), np.float32), y, predicted)


class PlanTest(parameterized.TestCase):
  """Section 2 of the specification."""
  data = _data((9, 0, 2), (7, 0, 1), (6, 0, 3), (3, 1, 0), (5, 1, 3), (20, 0, 0), (2, 2, 0), (4, 3, 3))

  def _plan(self, importance, data=None, **config):
    items, risks, remarks = distrrep._plan(importance, data or self.data, distrrep.Config(**config))
    return [(i.true, i.predicted, len(i.rows)) for i in items], risks, remarks

  def test_the_default_of_the_study(self):
    """Confusions first: the two most frequent of each critical class; leaving the critical classes is worst."""
    items, risks, remarks = self._plan(ClassImportance((0, 1), {0: 2, 1: 2}))
    self.assertEqual(items, [(0, 2, 9), (0, 1, 7), (1, 3, 5), (0, None, 22), (1, None, 8)])
    self.assertEqual(risks, {0: 2, 1: 2, (0, 2): 3, (0, 1): 1, (1, 3): 3})
    self.assertEqual(remarks, ())
    self.assertIn((1, 0, 3), self._plan(ClassImportance((0, 1), {0: 2}), min_pair_failures=3)[0])

  def test_rows_are_those_of_the_type(self):
    items, *_ = distrrep._plan(ClassImportance((1,), {1: 1}), self.data, distrrep.Config())
    for item in items:
      self.assertTrue((self.data.y[item.rows] == 1).all())
      self.assertTrue((self.data.predicted[item.rows] == 3).all() or item.predicted is None)
      self.assertFalse((self.data.predicted[item.rows] == 1).any())

  def test_only_the_classes_with_most_failures_are_repaired_against_anything(self):
    items, risks, _ = self._plan(ClassImportance((2, 1, 0), {0: 1}, ()), max_general=2)
    self.assertEqual(items, [(1, None, 8), (0, None, 22)])
    self.assertEqual(risks, {0: 2, 1: 2, 2: 2})

  def test_what_nothing_shows_is_skipped_with_a_remark(self):
    given = {(0, 1): 1.}
    items, risks, remarks = self._plan(ClassImportance((3, 2), {0: 1}, ((0, 1), (3, 0)), given))
    self.assertEqual(items, [(0, 1, 7), (2, None, 2)])
    self.assertEqual(risks, given)
    self.assertEqual(remarks, ('Skipped 3 taken for 0: no sample shows it.',
                               'Skipped 3 taken for anything else: no sample shows it.'))

  def test_if_nothing_is_left_it_fails(self):
    for importance in (ClassImportance((3,), {3: 1}), ClassImportance((), {3: 1}, ((3, 0),)),
                       ClassImportance((), {3: 1}, ((2, 1),))):
      with self.assertRaisesRegex(RepairFailure, 'None of the 56 samples shows') as caught:
        self._plan(importance)
      self.assertNotIn('\n', str(caught.exception))

  def test_no_number_is_a_mistake_but_no_confusion(self):
    items, *_ = self._plan(ClassImportance((0,), {0: 1}), _data((6, 0, -1), (5, 0, 0)))
    self.assertEqual(items, [(0, None, 6)])

  @parameterized.parameters(
    {'velocity_floor': -.1}, {'velocity_floor': 6.}, {'localizer': 'arachne'}, {'select': 'test'}, {'phi': 4.},
    {'merge_orientation': 'max_min'}, {'max_general': 0}, {'merge_positives': 0}, {'particles': 0}, {'iterations': -1})
  def test_options_out_of_range_are_refused(self, **options):
    with self.assertRaises(BadInputError):
      distrrep.Config(**options)


class MergeTest(absltest.TestCase):
  """Sections 8.5, 8.6, 8.11: merged models of a linear classifier of 4 classes with noisy labels."""

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(4)
    self.head = networks.network('mlp', (6,), num_classes=4, hidden=())
    self.kernel = np.asarray(self.head.params['fc1']['kernel'])
    self.x = rng.normal(size=(300, 6)).astype(np.float32)
    clean = predict.labels(self.head, self.x)
    self.y = np.where(rng.uniform(size=300) < .8, clean, rng.integers(0, 4, 300))
    self.stakes = class_score.make_stakes({0: 2, 1: 2, 2: 1, 3: 1}, {1: 2, (1, 0): 3, (0, 1): 1})
    self.prices = jnp.asarray(class_score.prices(self.stakes, self.y, 4))
    self.best = class_score.best_score(self.stakes, self.y)

  def _merge(self, *patches, size=100):
    merged = merge.merge_patches(self.head, 'fc1', [merge.Patch(np.array(p), self.kernel.ravel()[p] + np.float32(d))
                                                    for p, d in patches])
    return merged, output_patch.touch(self.head, merged.targets, self.x, self.y, size=size)

  def _scores(self, merged, touched, rows):
    return np.asarray(_score(merged, touched, self.prices, self.best, jnp.asarray(rows, jnp.float32)))

  def test_coefficients_outside_the_box_score_minus_one(self):
    merged, touched = self._merge(([1, 5], [2., 1.]), ([9], [1.]))
    scores = self._scores(merged, touched, [(0, 1), (-.01, .5), (.5, 1.01), (2, -2)])
    self.assertGreater(scores[0], 0)
    np.testing.assert_array_equal(scores[1:], -1)

  def test_one_patch_is_the_segment_from_the_original_to_the_repaired_network(self):
    shift = np.array([2., -1.5, 3.], np.float32)
    merged, touched = self._merge(([1, 5, 14], shift))
    grid = np.linspace(0, 1, 41)
    scores = self._scores(merged, touched, grid[:, None])
    by_hand = []
    for c in grid:
      kernel = self.kernel.copy().ravel()
      kernel[[1, 5, 14]] += np.float32(c) * shift
      moved = self.head.with_params({'fc1': {**self.head.params['fc1'], 'kernel': kernel.reshape(6, 4)}})
      by_hand.append(class_score.score(self.stakes, self.y, predict.labels(moved, self.x)))
    np.testing.assert_allclose(scores, by_hand, atol=1e-5)
    self.assertGreater(np.ptp(by_hand), .05)
    self.assertAlmostEqual(scores.max(), max(by_hand), places=5)
    start = write(merged.targets, self.head, merge.decode(merged, jnp.zeros(1)))
    self.assertEqual(predict.logits(start, self.x).tobytes(), predict.logits(self.head, self.x).tobytes())

  def test_the_swarm_finds_the_optimum_of_two_patches_against_each_other(self):
    """Entries of one class with opposite effects. With the published floor of the speed it only samples."""
    wide = np.abs(self.kernel).max()
    merged, touched = self._merge(([1, 5], [4 * wide, 3 * wide]), ([9, 13], [-3 * wide, -4 * wide]), size=1681)
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 41)] * 2), axis=-1).reshape(-1, 2)
    scores = self._scores(merged, touched, grid)
    self.assertGreater(np.ptp(scores), .1)
    outcome = _search(merged, touched, self.prices, self.best, 0., 5., key=jax.random.key(0),
                      settings=pso.Settings(100), iterations=100)
    self.assertGreaterEqual(float(outcome.best.fitness), scores.max() - .02)
    found = np.asarray(outcome.best.vector)
    self.assertTrue(((found >= 0) & (found <= 1)).all())
    np.testing.assert_allclose(self._scores(merged, touched, found[None])[0], outcome.best.fitness, atol=1e-6)


@functools.cache
def _run(select='search', critical=(0, 1)):
  problem = tiny.problem('mlp')
  importance = ClassImportance(critical, {c: 2. if c < 2 else 1. for c in range(10)})
  problem = dataclasses.replace(problem, class_importance=importance)
  return problem, methods.run(distrrep.METHOD, problem, dataclasses.replace(_SHORT, select=select),
                              key=jax.random.key(5))


@pytest.mark.slow   # two searches to compile; the contract test runs them in the default suite
class DistrrepTest(parameterized.TestCase):

  def test_only_the_union_of_the_entries_changes_and_stays_in_range(self):
    problem, repair = _run()
    old, new = flat_weights(problem.classifier.variables), flat_weights(repair.classifier.variables)
    for name in old:
      if name != 'params/fc3/kernel':
        self.assertEqual(old[name].tobytes(), new[name].tobytes(), name)
    changed = {tuple(map(int, i)) for i in np.argwhere(old['params/fc3/kernel'] != new['params/fc3/kernel'])}
    self.assertNotEmpty(changed)
    self.assertContainsSubset(changed, {edit.index for edit in repair.trace.edits})
    self.assertLessEqual(len(repair.trace.edits), sum(item['entries'] for item in repair.trace.solver['items']))

  def test_the_scores_told_are_those_of_the_models(self):
    problem, repair = _run()
    importance, items = problem.class_importance, repair.trace.solver['items']
    risks = {0: 2, 1: 2, **{(i['true'], i['predicted']): 1 if i['predicted'] < 2 else 3 for i in items
                            if i['predicted'] is not None}}
    stakes = class_score.make_stakes(importance.precisions, risks)
    for classifier, told in ((problem.classifier, 'score_before'), (repair.classifier, 'score_after')):
      labels = predict.labels(classifier, problem.repair.x)
      self.assertAlmostEqual(class_score.score(stakes, problem.repair.y, labels), repair.trace.solver[told], places=6)
    self.assertAlmostEqual(repair.trace.curves['best_score'][-1], repair.trace.solver['score_after'], places=5)
    self.assertTrue((np.diff(repair.trace.curves['best_score']) >= 0).all())

  def test_the_order_of_the_items_does_not_matter_to_their_repairs(self):
    """A repair that starts from the one before it does depend on it."""
    first, second = (_run(critical=order)[1].trace for order in ((0, 1), (1, 0)))
    by_type = lambda trace: {(i['true'], i['predicted']): i for i in trace.solver['items']}
    self.assertEqual(by_type(first), by_type(second))
    self.assertNotEqual(first.solver['items'], second.solver['items'])
    self.assertEqual({e.index for e in first.edits}, {e.index for e in second.edits})

  def test_repairs_are_bit_equal_in_any_order(self):
    head = networks.network('mlp', (6,), num_classes=4, hidden=())
    x = networks.images((6,), 120, seed=3)
    predicted = predict.labels(head, x)
    data = distrrep._Data(x, np.random.default_rng(0).permutation(predicted), predicted)
    importance = ClassImportance((0, 1), {0: 1})
    items, *_ = distrrep._plan(importance, data, _SHORT)
    positives = np.flatnonzero(data.y == predicted)
    found = {}
    for order in (1, -1):
      chosen = items[::order]
      targets = distrrep._pad([distrrep._localize(head, data, item, positives, _SHORT) for item in chosen])
      patches, _ = distrrep._repair_items(head, data, chosen, targets, positives, _SHORT, jax.random.key(1))
      for item, patch in zip(chosen, patches, strict=True):
        kernel = np.asarray(head.params['fc1']['kernel']).ravel()
        self.assertFalse(np.array_equal(kernel[patch.positions], patch.values))
        found.setdefault(str(item), []).append((patch.positions.tobytes(), patch.values.tobytes()))
    self.assertGreater(len(found), 2)
    for both in found.values():
      self.assertEqual(both[0], both[1])

  def test_the_validation_split_may_choose(self):
    problem, repair = _run(select='validation')
    before, after = repair.trace.objective
    self.assertGreaterEqual(after, before)
    self.assertIsNone(_run()[1].trace.objective)
    risks = {0: 2, 1: 2, **{(i['true'], i['predicted']): 1 if i['predicted'] < 2 else 3
                            for i in repair.trace.solver['items'] if i['predicted'] is not None}}
    stakes = class_score.make_stakes(problem.class_importance.precisions, risks)
    for classifier, told in ((problem.classifier, before), (repair.classifier, after)):
      labels = predict.labels(classifier, problem.valid.x)
      self.assertAlmostEqual(class_score.score(stakes, problem.valid.y, labels), told, places=6)

  @parameterized.product(kind=('lenet5', 'resnet'), options=(
    {'localizer': 'arachne_de', 'merge_positives': 20}, {'merge_orientation': 'min_max', 'velocity_floor': 0.}))
  def test_options_on_other_networks(self, kind, options):
    problem = tiny.problem(kind)
    repair = methods.run(distrrep.METHOD, problem, dataclasses.replace(_SHORT, **options), key=jax.random.key(5))
    self.assertGreater(repair.trace.solver['score_after'], -1)
    self.assertNotEmpty(repair.trace.edits)


def _problem(network, importance):
  split = Split(networks.images((8, 8, 1), 12), np.arange(12, dtype=np.int32) % 3)
  return Problem(network, split, split, split, class_importance=importance)


class RefusalTest(absltest.TestCase):

  def test_without_class_importance_it_does_not_apply(self):
    """The rule of the study: MNIST and UTKFace."""
    network = networks.network('mlp', (8, 8, 1), num_classes=3, hidden=())
    with self.assertRaisesRegex(Unadaptable, 'needs class_importance'):
      methods.run(distrrep.METHOD, _problem(network, None), key=jax.random.key(0))

  def test_a_network_that_does_not_end_in_a_dense_layer_is_refused(self):
    module = _Ends(bare=False)
    network = networks.filled(Classifier(layers.variable_shapes(module, (8, 8, 1)), module, (8, 8, 1), 3))
    with self.assertRaisesRegex(Unadaptable, 'does not end in one'):
      methods.run(distrrep.METHOD, _problem(network, ClassImportance((0,), {0: 1})), key=jax.random.key(0))


if __name__ == '__main__':
  absltest.main()
