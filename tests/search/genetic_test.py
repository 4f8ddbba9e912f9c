"""Sections 8.4 to 8.6, 8.8, 8.10 and 8.11 of the GenMuNN specification: operators and loop of the genetic algorithm."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError
from jaxfix.search import genetic
from jaxfix.search.genetic import EMPTY, Genome
from tests import networks

_K, _M = 30, 4
_SETTINGS = genetic.Settings(size=8, max_entries=_M)


def _pool(k=_K, used=None):
  rng = np.random.default_rng(0)
  used = k if used is None else used
  return jax.tree.map(jnp.asarray, genetic.Pool(
    rng.normal(size=k).astype(np.float32), np.full(k, .5, np.float32), (np.arange(k) % 5).astype(np.int32),
    np.arange(k) < used))


def _only(operator):
  return dataclasses.replace(_SETTINGS, operators=(operator,))


@functools.partial(networks.quick_jit, static_argnames=('settings', 'count'))
def _genomes(pool, settings, key, count=200):
  return jax.vmap(lambda k: genetic.random_genome(pool, settings, key=k))(jax.random.split(key, count))


@functools.partial(networks.quick_jit, static_argnames='settings')
def _operated(pool, settings, key, entry):
  genome = Genome(jnp.full(_M, EMPTY).at[0].set(entry), jnp.zeros(_M))
  return jax.vmap(lambda k: genetic.operate(genome, 0, pool, settings, key=k))(jax.random.split(key, 200))


def _entries(genome_entries):
  return [set(row[row != EMPTY].tolist()) for row in np.asarray(genome_entries)]


@networks.quick_jit
def _search(worth, base, loss_of_many, key):
  """Right samples: `base` and `worth` `[k]` of each entry held; loss: 1, or `loss_of_many` with two entries or more."""
  def evaluate(genome):
    held = genome.entry != EMPTY
    right = base + jnp.where(held, worth[jnp.where(held, genome.entry, 0)], 0).sum()
    return genetic.Fitness(right, jnp.where(genome.size > 1, loss_of_many, 1.))

  return genetic.maximize(_pool(), dataclasses.replace(_SETTINGS, size=12), evaluate, original_right=5,
                          num_samples=10_000, max_steps=40, key=key)


_NO_WORTH = np.zeros(_K, np.int32)


class GenomeTest(parameterized.TestCase):

  def test_draws_are_distinct_and_as_many_as_asked(self):
    """8.11, and that earlier ranks are likelier."""
    allowed = jnp.arange(_K) % 3 != 0
    draw = networks.quick_jit(jax.vmap(lambda d, count: genetic.draw_entries(allowed, count, d, 6)))
    counts = np.arange(3000) % 8
    rows = np.asarray(draw(jax.random.uniform(jax.random.key(0), (3000, _K)), counts))
    for row, count in zip(rows, counts, strict=True):
      held = row[row != EMPTY]
      self.assertLen(set(held.tolist()), min(count, 6))
      self.assertTrue((row[len(held):] == EMPTY).all())
    first = rows[counts > 0, 0]
    self.assertFalse((first % 3 == 0).any())
    weight = np.where(allowed, 1 / (1 + np.arange(_K)), 0)
    np.testing.assert_allclose(np.bincount(first, minlength=_K) / len(first), weight / weight.sum(), atol=.04)

  def test_fewer_come_if_fewer_are_there(self):
    few = genetic.draw_entries(jnp.arange(_K) < 2, jnp.int32(4), jax.random.uniform(jax.random.key(0), (_K,)), 4)
    self.assertEqual(_entries(few[None]), [{0, 1}])
    tiny = genetic.draw_entries(jnp.ones(2, bool), jnp.int32(4), jnp.array([.5, 0.]), 4)   # a draw of exactly 0
    self.assertEqual(_entries(tiny[None]), [{0, 1}])

  def test_random_genomes_stay_in_the_pool_and_within_their_size(self):
    """8.4."""
    genomes = _genomes(_pool(used=20), _SETTINGS, jax.random.key(0))
    sizes = np.asarray(genomes.size)
    self.assertEqual(set(sizes.tolist()), {1, 2, 3, 4})
    for row, size in zip(_entries(genomes.entry), sizes, strict=True):
      self.assertLen(row, size)   # distinct
      self.assertContainsSubset(row, range(20))

  @parameterized.named_parameters(('inversion', 'inversion', lambda w: -w), ('zero', 'zero', lambda w: 0 * w))
  def test_exact_operators(self, operator, expected):
    """8.5."""
    pool = _pool()
    genomes = _genomes(pool, _only(operator), jax.random.key(1))
    filled = np.asarray(genomes.entry) != EMPTY
    old = np.asarray(pool.value)[np.where(filled, genomes.entry, 0)]
    np.testing.assert_array_equal(np.asarray(genomes.value)[filled], expected(old)[filled])
    if operator == 'inversion':   # once more, from the new weights
      again = dataclasses.replace(pool, value=-pool.value)
      value = _operated(again, _only(operator), jax.random.key(2), 7).value[:, 0]
      np.testing.assert_array_equal(value, np.full(200, pool.value[7]))

  def test_random_operators_have_the_spread_they_should(self):
    pool, entry = _pool(), 3
    w = float(pool.value[entry])
    scaled = np.asarray(_operated(pool, _only('scale'), jax.random.key(0), entry).value[:, 0]) / w
    self.assertTrue(((scaled >= .5) & (scaled <= 1.5)).all())
    self.assertBetween(scaled.std(), .24, .34)   # uniform: .289
    fuzzed = np.asarray(_operated(pool, _only('gaussian'), jax.random.key(0), entry).value[:, 0]) - w
    self.assertBetween(fuzzed.std(), .2, .3)     # sigma .5 times spread .5
    self.assertBetween(abs(fuzzed.mean()), 0, .06)

  def test_a_swap_exchanges_two_weights_of_a_neuron_and_twice_is_nothing(self):
    """8.5."""
    pool = _pool()
    genomes = _operated(pool, _only('swap'), jax.random.key(0), 7)
    partners = set()
    for entry, value in zip(np.asarray(genomes.entry), np.asarray(genomes.value), strict=True):
      self.assertEqual(entry[0], 7)
      partners.add(int(entry[1]))
      self.assertEqual(entry[1] % 5, 2)
      once = np.asarray(pool.value).copy()
      once[entry[:2]] = value[:2]
      np.testing.assert_array_equal(once[entry[:2]], np.asarray(pool.value)[entry[1::-1]])
    self.assertEqual(partners, {2, 12, 17, 22, 27})
    swapped = dataclasses.replace(pool, value=jnp.asarray(once))
    twice = _operated(swapped, _only('swap'), jax.random.key(0), 7)
    row = int(np.flatnonzero(np.asarray(twice.entry)[:, 1] == entry[1])[0])
    np.testing.assert_array_equal(twice.value[row, :2], pool.value[entry[:2]])

  def test_a_swap_without_a_partner_falls_back(self):
    lonely = dataclasses.replace(_pool(), neuron=jnp.arange(_K))
    self.assertEqual(set(np.asarray(_operated(lonely, dataclasses.replace(_SETTINGS, operators=('swap', 'zero')),
                                              jax.random.key(0), 7).value[:, 0]).tolist()), {0.})
    kept = _operated(lonely, _only('swap'), jax.random.key(0), 7).value[:, 0]
    self.assertEqual(set(np.asarray(kept).tolist()), {float(lonely.value[7])})

  def test_children_hold_entries_of_their_parents(self):
    """8.10, and values come along; too many are cut from the end of the ranking."""
    a = Genome(jnp.array([2, 9, 4, EMPTY]), jnp.array([.2, .9, .4, 0]))
    b = Genome(jnp.array([9, 1, 7, 11]), jnp.array([-.9, -.1, -.7, -1.1]))
    cross = networks.quick_jit(jax.vmap(lambda k: genetic.crossover(a, b, key=k)))
    children = cross(jax.random.split(jax.random.key(0), 300))
    known = {2: {.2}, 4: {.4}, 9: {.9, -.9}, 1: {-.1}, 7: {-.7}, 11: {-1.1}}
    seen = {}
    for entry, value in zip(np.asarray(children.entry), np.asarray(children.value), strict=True):
      held = entry != EMPTY
      self.assertLen(set(entry[held].tolist()), held.sum())
      self.assertTrue(9 in entry or held.sum() == 4)   # both parents hold it
      for e, v in zip(entry[held].tolist(), value[held].tolist(), strict=True):
        seen.setdefault(e, set()).add(round(v, 4))
    self.assertEqual(seen, known)

  def test_mutation_changes_at_most_one_entry_or_a_pair(self):
    pool, settings = _pool(), dataclasses.replace(_SETTINGS, operators=('inversion',))
    start = Genome(jnp.array([2, EMPTY, 4, EMPTY]), jnp.array([.2, 0, .4, 0]))
    mutants = networks.quick_jit(jax.vmap(lambda k: genetic.mutate(start, pool, settings, key=k)))(
      jax.random.split(jax.random.key(0), 300))
    kinds = {1: 0, 2: 0, 3: 0}
    for row in _entries(mutants.entry):
      kinds[len(row)] += 1
      self.assertTrue(row < {2, 4} or row == {2, 4} or row > {2, 4})
    self.assertTrue(all(60 < count < 140 for count in kinds.values()), kinds)

  def test_mutation_of_empty_and_full_genomes(self):
    pool = _pool()
    mutate = networks.quick_jit(jax.vmap(lambda g, k: genetic.mutate(g, pool, _only('zero'), key=k), (None, 0)))
    keys = jax.random.split(jax.random.key(0), 50)
    empty = Genome(jnp.full(_M, EMPTY), jnp.zeros(_M))
    self.assertEqual({len(row) for row in _entries(mutate(empty, keys).entry)}, {1})
    full = Genome(jnp.arange(_M), jnp.ones(_M))
    self.assertEqual({len(row) for row in _entries(mutate(full, keys).entry)}, {3, 4})


class SearchTest(parameterized.TestCase):

  def test_fitness_is_lexicographic(self):
    fitness = genetic.Fitness(jnp.array([3, 4, 4, 4]), jnp.array([0., 2., 1., 1.]))
    genomes = Genome(jnp.array([[1, 2], [1, 2], [1, 2], [1, EMPTY]]), jnp.zeros((4, 2)))
    np.testing.assert_array_equal(genetic.ranking(fitness, genomes), (3, 2, 1, 0))

  def test_the_best_never_gets_worse_and_a_goal_is_found(self):
    """8.6. Of the pool, the ten first entries are worth 10 samples each, others cost 3."""
    worth = np.where(np.arange(_K) < 10, 10, -3)
    for seed in range(3):
      outcome = _search(worth, 0, 1., jax.random.key(seed))
      curve = np.asarray(outcome.best_curve)[:int(outcome.generations) + 1]
      self.assertTrue((np.diff(curve) >= 0).all())
      self.assertTrue(np.isfinite(curve).all())
      self.assertEqual(int(outcome.fitness.right), curve[-1])
      self.assertEqual(worth[np.asarray(outcome.best.entry)[:int(outcome.best.size)]].sum(), curve[-1])
      self.assertGreaterEqual(curve[-1], 37)
      self.assertLess(int(outcome.evaluations), 12 * (int(outcome.generations) + 1))   # the elite once only

  def test_constant_fitness_gives_the_original_after_patience(self):
    """8.6."""
    outcome = _search(_NO_WORTH, 5, 1., jax.random.key(0))
    self.assertEqual(int(outcome.best.size), 0)
    self.assertEqual(int(outcome.generations), 10)

  def test_ties_go_to_the_loss_and_nan_is_the_worst(self):
    for loss_of_many, sizes in ((np.nan, {0, 1}), (2., {0, 1}), (.5, {2, 3, 4})):
      outcome = _search(_NO_WORTH, 6, loss_of_many, jax.random.key(0))
      self.assertIn(int(outcome.best.size), sizes)
      self.assertEqual(float(outcome.fitness.loss), .5 if loss_of_many == .5 else 1.)

  def test_the_key_decides(self):
    """8.8."""
    runs = [_search(_NO_WORTH, 6, .5, jax.random.key(seed)) for seed in (0, 0, 1)]
    for a, b in zip(jax.tree.leaves(runs[0]), jax.tree.leaves(runs[1]), strict=True):
      np.testing.assert_array_equal(a, b)
    self.assertTrue((np.asarray(runs[0].best.value) != np.asarray(runs[2].best.value)).any())

  @parameterized.parameters({'size': 1}, {'elite': 0}, {'elite': 20}, {'crossover': 1.5}, {'mutation': -.1},
                            {'max_entries': 0}, {'sigma': -1.}, {'operators': ()}, {'operators': ('flip',)},
                            {'patience': 0})
  def test_settings_are_checked(self, **change):
    with self.assertRaises(BadInputError):
      genetic.Settings(**change)


if __name__ == '__main__':
  absltest.main()
