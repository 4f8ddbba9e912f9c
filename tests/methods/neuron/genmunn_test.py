"""Sections 8.3, 8.4, 8.7, 8.8 and 8.12 of the GenMuNN specification (others: `spectrum_test`, `genetic_test`)."""
import dataclasses
import unittest
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix import methods, predict
from jaxfix.classifier import flat_weights
from jaxfix.errors import BadInputError, NoFailingSamplesError, RepairFailure
from jaxfix.localize.batches import make_batches
from jaxfix.localize.linear import kernel, with_kernels
from jaxfix.methods.neuron import genmunn
from jaxfix.problem import Problem, Split
from jaxfix.search import genetic, score
from tests import networks, tiny

_SHORT = genmunn.Config(population=8, generations=6, rounds=2, max_changes=4)


def setUpModule():
  """Tests compile other searches; the contract test runs it as it is compiled for users."""
  for name, static in (('_search', ('paths', 'settings', 'generations')), ('spectrum', ('paths',)),
                       ('weight_scores', ('formula', 'star'))):
    quick = networks.quick_jit(getattr(genmunn, name).__wrapped__, static_argnames=static)
    patcher = mock.patch.object(genmunn, name, quick)
    patcher.start()
    unittest.addModuleCleanup(patcher.stop)


def _differences(before, after):
  old, new = flat_weights(before.variables), flat_weights(after.variables)
  return {(name, tuple(map(int, i))) for name in old for i in np.argwhere(old[name] != new[name])}


def _right(classifier, split):
  return int((predict.labels(classifier, split.x) == split.y).sum())


def _check_repair(test, **change):
  problem = tiny.problem('mlp')
  repair = methods.run(genmunn.METHOD, problem, dataclasses.replace(_SHORT, **change), key=jax.random.key(0))
  before, after = repair.trace.objective
  test.assertEqual(before, _right(problem.classifier, problem.repair) / 100)
  test.assertEqual(after, _right(repair.classifier, problem.repair) / 100)
  test.assertGreater(after, before)
  test.assertGreaterEqual(_right(repair.classifier, problem.valid), _right(problem.classifier, problem.valid))
  listed = {(f'params/{edit.path}', edit.index) for edit in repair.trace.edits}
  test.assertEqual(_differences(problem.classifier, repair.classifier) - listed, set())
  accepted = [entry for entry in repair.trace.solver['searches'] if entry['accepted']]
  test.assertLessEqual(len(listed), 4 * len(accepted))
  test.assertEqual(round(after * 100), accepted[-1]['right_after'])
  test.assertIn('reconstructed', repair.trace.notes[0])
  for entry in accepted:   # the search's count is that of the model it returns
    test.assertGreater(entry['right_after'], entry['right_before'])
  if change.get('layers'):
    test.assertTrue(all(name.split('/')[1] in ('fc2', 'fc3') for name, _ in listed))


class MutantTest(absltest.TestCase):

  def _genomes(self, c, paths, positions, settings, count=40):
    pool = jax.tree.map(jnp.asarray, genmunn.make_pool(c, paths, positions))
    draw = networks.quick_jit(jax.vmap(lambda k: genetic.random_genome(pool, settings, key=k)))
    return draw(jax.random.split(jax.random.key(0), count))

  def test_mutants_differ_in_few_entries_all_of_them_in_the_pool(self):
    """8.4: and none at all for an empty genome."""
    c, paths = tiny.problem('mlp').classifier, ('fc1', 'fc2', 'fc3')
    sizes = [kernel(c, path).size for path in paths]
    ends = np.cumsum(sizes)
    positions = np.array([0, 5, ends[0] - 1, ends[0], ends[0] + 7, ends[1], ends[2] - 1])
    genomes = self._genomes(c, paths, positions, genetic.Settings(max_entries=3))
    write = networks.quick_jit(lambda g: genmunn.mutant_of(c, paths, jnp.asarray(positions, jnp.int32), g))
    names, seen = [f'params/{path}/kernel' for path in paths], set()
    for i in range(40):
      genome = jax.tree.map(lambda a, i=i: np.asarray(a)[i], genomes)
      changed = {int(np.ravel_multi_index(index, kernel(c, name.split('/')[1]).shape)) + int(ends[names.index(name)])
                 - sizes[names.index(name)] for name, index in _differences(c, write(genome))}
      held = np.asarray(genome.entry)
      self.assertContainsSubset(changed, set(positions[held[held != genetic.EMPTY]].tolist()))
      self.assertLessEqual(len(changed), 3)
      seen |= changed
    self.assertEqual(seen, set(positions.tolist()))
    nothing = write(genetic.Genome(jnp.full(3, genetic.EMPTY), jnp.ones(3)))
    self.assertEmpty(_differences(c, nothing))
    x = tiny.problem('mlp').valid.x
    np.testing.assert_array_equal(predict.logits(nothing, x), predict.logits(c, x))

  def test_the_pool_knows_layers_and_neurons(self):
    c = tiny.problem('mlp').classifier   # kernels [64, 12], [12, 12], [12, 10]
    pool = genmunn.make_pool(c, ('fc1', 'fc3'), np.array([13, 768 + 11, 1, 25, -1]))
    fc1, fc3 = (np.asarray(kernel(c, path)) for path in ('fc1', 'fc3'))
    np.testing.assert_array_equal(pool.value, (fc1[1, 1], fc3[1, 1], fc1[0, 1], fc1[2, 1], 0))
    np.testing.assert_allclose(pool.spread[:3], (fc1.std(), fc3.std(), fc1.std()), rtol=1e-5)
    np.testing.assert_array_equal(pool.neuron[:4], (1, 12 + 1, 1, 1))
    np.testing.assert_array_equal(pool.used, (True,) * 4 + (False,))


  def test_scores_that_are_no_number_count_nothing_and_are_told(self):
    c, scores = tiny.problem('mlp').classifier, np.zeros((12, 10), np.float32)
    scores[3, 4], scores[5, 6] = np.nan, .5
    batches = make_batches(np.zeros((4, 8, 8, 1), np.float32), np.zeros(4, int))
    with (mock.patch.object(genmunn, 'weight_scores', lambda *args, **kwargs: {'fc3': scores}),
          self.assertWarnsRegex(UserWarning, '1 of 120 entries of fc3')):
      ranked = genmunn.localize(c, batches, ('fc3',), genmunn.Config(rho=1., layers=('fc3',)))
    self.assertEqual(ranked[0], 56)


class PlantedFaultTest(absltest.TestCase):

  def test_a_flipped_weight_is_found_and_flipped_back(self):
    """8.7: every entry of the last layer inverted once; only the planted one makes all samples right again."""
    problem = tiny.problem('mlp')
    c, x = problem.classifier, problem.train.x
    y = predict.labels(c, x)   # 100% accuracy
    for planted in np.argsort(-np.abs(np.ravel(kernel(c, 'fc3'))))[:10]:   # a unit may be silent, and its weights idle
      w = np.array(kernel(c, 'fc3'))
      w.ravel()[planted] *= -1
      broken = with_kernels(c, {'fc3': w})
      wrong = predict.labels(broken, x) != y
      if wrong.sum() > 10:
        break
    self.assertGreater(wrong.sum(), 10)

    config = genmunn.Config(population=120, elite=2, max_changes=1, operators=('inversion',), rho=1., layers=('fc3',))
    ranked = genmunn.localize(broken, make_batches(x, y), ('fc3',), config)
    self.assertEqual(sorted(ranked.tolist()), list(range(120)))
    pool = genmunn.make_pool(broken, ('fc3',), ranked)
    first = genetic.Genome(np.arange(120, dtype=np.int32)[:, None], -pool.value[:, None])
    samples = score.cache_samples(broken, x, y, layers=('fc3',), rows=100)
    outcome, mutant = genmunn._search(broken, pool, ranked.astype(np.int32), samples, int((~wrong).sum()), len(y),
                                      key=jax.random.key(0), paths=('fc3',), settings=config.settings(120),
                                      generations=0, first=first)
    self.assertEqual(int(outcome.fitness.right), len(y))
    self.assertEqual(ranked[int(outcome.best.entry[0])], planted)
    self.assertEmpty(_differences(c, mutant))


class RepairTest(parameterized.TestCase):

  def test_it_gets_better_where_it_says_and_worse_nowhere_it_looks(self):
    _check_repair(self)

  def test_keys(self):
    """8.8."""
    problem = tiny.problem('mlp')
    runs = [methods.run(genmunn.METHOD, problem, _SHORT, key=jax.random.key(seed)) for seed in (0, 0, 5)]
    self.assertEmpty(_differences(runs[0].classifier, runs[1].classifier))
    self.assertNotEmpty(_differences(runs[0].classifier, runs[2].classifier))

  def test_the_reported_fitness_is_that_of_the_mutant(self):
    problem = tiny.problem('mlp')
    repair = methods.run(genmunn.METHOD, problem, dataclasses.replace(_SHORT, rounds=1), key=jax.random.key(0))
    self.assertAlmostEqual(float(repair.trace.curves['best_accuracy'][-1]), repair.trace.objective[1], places=6)

  def test_a_mutant_that_is_worse_on_validation_is_refused(self):
    """8.12, end to end: validation labels that only the original gets right."""
    problem = tiny.problem('mlp')
    better = methods.run(genmunn.METHOD, problem, dataclasses.replace(_SHORT, rounds=1), key=jax.random.key(0))
    self.assertGreater(*reversed(better.trace.objective))
    old, new = (predict.labels(c, problem.train.x) for c in (problem.classifier, better.classifier))
    contrary = problem.train.take(old != new)
    contrary = Split(contrary.x, old[old != new])
    self.assertGreater(len(contrary), 0)
    verdict, counts = genmunn.accept(problem.classifier, better.classifier, problem.repair, contrary,
                                     _right(problem.classifier, problem.repair), len(contrary))
    self.assertFalse(verdict)
    self.assertEqual(counts, (_right(better.classifier, problem.repair), 0))
    strict = dataclasses.replace(problem, valid=contrary)
    refused = methods.run(genmunn.METHOD, strict, dataclasses.replace(_SHORT, rounds=1), key=jax.random.key(0))
    self.assertEmpty(_differences(problem.classifier, refused.classifier))
    self.assertEqual(*refused.trace.objective)
    self.assertIn('the original is returned', refused.trace.notes[-1])
    self.assertEmpty(refused.trace.edits)
    self.assertTrue(genmunn.accept(problem.classifier, better.classifier, problem.repair, problem.valid,
                                   _right(problem.classifier, problem.repair), 0)[0])
    self.assertFalse(genmunn.accept(problem.classifier, problem.classifier, problem.repair, problem.valid, 0, 0)[0])

  def test_d_keeps_all_failing_samples_and_the_cap(self):
    problem = tiny.problem('mlp')
    failing, _ = problem.failing_and_passing()
    for most, expected in ((90, 90), (10, len(failing)), (None, 100)):
      data = genmunn._data(problem, genmunn.Config(max_samples=most), jax.random.key(0))
      self.assertEqual((predict.labels(problem.classifier, data.x) != data.y).sum(), len(failing))
      self.assertAlmostEqual(len(data), expected, delta=5)   # every class of passing samples keeps its share

  def test_blocks_go_through_the_whole_ranking(self):
    blocks = list(genmunn._blocks(np.arange(23), genmunn.Config(schedule='sequential', block=10)))
    self.assertEqual([b.tolist() for b in blocks[:2]], [list(range(10)), list(range(10, 20))])
    self.assertEqual(blocks[2].tolist(), [20, 21, 22] + [-1] * 7)

  def test_no_block_is_searched_once_all_samples_are_right(self):
    problem = tiny.problem('mlp')
    failing, passing = problem.failing_and_passing()
    logits = predict.logits(problem.classifier, problem.repair.x[failing])
    nearest = failing[np.argmin(logits.max(1) - logits[np.arange(len(failing)), problem.repair.y[failing]])]
    split = problem.repair.take(np.append(passing[:20], nearest))
    config = dataclasses.replace(_SHORT, schedule='sequential', layers=('fc3',), rho=1., block=30, population=20)
    repair = methods.run(genmunn.METHOD, dataclasses.replace(problem, repair=split, valid=split), config,
                         key=jax.random.key(0))
    self.assertEqual(repair.trace.objective, (20 / 21, 1.))
    searches = repair.trace.solver['searches']
    self.assertTrue(searches[-1]['accepted'])
    self.assertLess(len(searches), 4)   # blocks of the 120 entries

  def test_what_cannot_be_done_says_so(self):
    problem, key = tiny.problem('mlp'), jax.random.key(0)
    _, passing = problem.failing_and_passing()
    fine = dataclasses.replace(problem, repair=problem.repair.take(passing))
    with self.assertRaises(NoFailingSamplesError):
      methods.run(genmunn.METHOD, fine, key=key)
    with self.assertRaisesRegex(RepairFailure, 'no sample'):   # 8.3
      genmunn.repair(fine, genmunn.Config(), key)
    with self.assertRaisesRegex(RepairFailure, 'localized nothing'):
      methods.run(genmunn.METHOD, problem, dataclasses.replace(_SHORT, threshold=1e9), key=key)
    for change in ({'rho': 0.}, {'star': 4}, {'formula': 'zoltar'}, {'layers': 0}, {'population': 1}, {'rounds': 0},
                   {'max_changes': 0}, {'max_samples': 0}, {'block': 0}, {'operators': ('flip',)}):
      with self.assertRaises(BadInputError):
        genmunn.Config(**change)


@pytest.mark.slow   # compiles searches over whole networks
class NetworksTest(parameterized.TestCase):

  @parameterized.parameters(('facenet', (48, 48, 3), 1 / 16), ('vgg16', (32, 32, 3), 1 / 16),
                            ('resnet18', (16, 16, 3), 1 / 16), ('densenet121', (32, 32, 3), 1 / 4))
  def test_it_runs_on(self, name, shape, width):
    c = networks.network(name, shape, width=width, num_classes=10)
    rng = np.random.default_rng(0)
    x = rng.random((30, *shape)).astype(np.float32)
    y = np.where(np.arange(30) < 20, predict.labels(c, x), rng.integers(0, 10, 30)).astype(np.int32)
    split = Split(x, y)
    config = dataclasses.replace(_SHORT, generations=2, rounds=1)
    repair = methods.run(genmunn.METHOD, Problem(c, split, split, split), config, key=jax.random.key(0))
    self.assertGreaterEqual(*reversed(repair.trace.objective))

  @parameterized.parameters({'schedule': 'sequential', 'rounds': 1, 'rho': .1, 'block': 30},
                            {'importance': 'ablation', 'layers': 2})
  def test_other_ways_to_go(self, **change):
    _check_repair(self, **change)

  def test_a_class_that_is_missing_and_a_single_failing_sample(self):
    problem = tiny.problem('mlp')
    failing, passing = problem.failing_and_passing()
    rows = np.concatenate([failing[:1], passing[problem.repair.y[passing] != 3][:20]])
    one = dataclasses.replace(problem, repair=problem.repair.take(rows))
    repair = methods.run(genmunn.METHOD, one, dataclasses.replace(_SHORT, rounds=1), key=jax.random.key(0))
    self.assertGreaterEqual(repair.trace.objective[1], repair.trace.objective[0])


if __name__ == '__main__':
  absltest.main()
