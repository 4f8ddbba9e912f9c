"""Sections 8.4 to 8.8 of the Arachne specification: operators and stops of the two searches, patched evaluation."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix import intervene
from jaxfix.localize.targets import make_targets, siblings, values, write
from jaxfix.methods.neuron import arachne_pso
from jaxfix.search import differential_evolution as de
from jaxfix.search import particle_swarm as pso
from jaxfix.search import population as populations
from jaxfix.search import score
from jaxfix.search.patch import patched_suffix
from tests import tiny


def _sphere(population, at_least):
  del at_least
  return -jnp.sum((population - 0.5) ** 2, axis=1)


def _evolution(d=3, **settings):
  one = jnp.ones(d)
  return de.differential_evolution(0 * one, one, -2 * one, 2 * one, one > 0, de.Settings(**settings))


class DifferentialEvolutionTest(parameterized.TestCase):

  @parameterized.parameters((-.4, .36, -.8, .72), (.1, .5, .05, 1.), (-.5, -.1, -1., -.05))
  def test_box(self, low, high, expected_low, expected_high):
    np.testing.assert_allclose(de.value_box(jnp.float32(low), jnp.float32(high)), (expected_low, expected_high),
                               rtol=1e-6)

  def test_mutation(self):
    a, b, c = jnp.array([1., 1.]), jnp.array([2., 0.]), jnp.array([0., 1.])
    np.testing.assert_allclose(de.mutate(a, b, c, .5, -9., 9.), (2, .5))
    np.testing.assert_allclose(de.mutate(a, b, c, .5, -1., 1.5), (1.5, .5))

  def test_parents_are_three_others(self):
    for i in range(5):
      picked = jax.vmap(lambda k, i=i: de.distinct_others(i, 5, key=k))(jax.random.split(jax.random.key(i), 50))
      for row in np.asarray(picked):
        self.assertLen({i, *row.tolist()}, 4)

  def test_at_least_one_component_comes_from_the_mutant(self):
    cross = lambda k: de.crossover(jnp.zeros(4), jnp.ones(4), 0., jnp.array([1, 1, 0, 1]) > 0, key=k)
    rows = np.asarray(jax.vmap(cross)(jax.random.split(jax.random.key(0), 60)))
    np.testing.assert_array_equal(rows.sum(axis=1), 1)
    np.testing.assert_array_equal(rows.sum(axis=0) > 0, (True, True, False, True))

  def test_a_constant_best_stops_after_twelve_generations(self):
    constant = lambda population, at_least: jnp.zeros(len(population))
    outcome = populations.maximize(_evolution(size=6), constant, key=jax.random.key(0), max_steps=100)
    self.assertEqual(int(outcome.steps), 12)

  def test_a_change_at_the_sixth_generation_stops_after_seventeen(self):
    search = _evolution(size=6)
    state = search.init(jax.random.key(0), lambda p, at_least: jnp.zeros(len(p)))
    steps = 0
    while steps < 100 and not bool(search.stopped(state)):
      level = 1. if steps >= 5 else 0.   # index 5 is the sixth
      state = search.step(state, lambda p, at_least, level=level: jnp.full(len(p), level))
      steps += 1
    self.assertEqual(steps, 17)

  def test_it_finds_an_optimum_and_never_gets_worse(self):
    for update in ('sync', 'async'):
      outcome = populations.maximize(_evolution(size=20, update=update), _sphere, key=jax.random.key(1), max_steps=60)
      curve = np.asarray(outcome.best_curve)[:int(outcome.steps) + 1]
      self.assertTrue((np.diff(curve) >= 0).all())
      np.testing.assert_allclose(outcome.best.vector, .5, atol=.05)

  def test_it_stops_when_enough_is_reached(self):
    outcome = populations.maximize(_evolution(size=20), _sphere, key=jax.random.key(1), max_steps=60, enough=-.1)
    self.assertGreaterEqual(float(outcome.best.fitness), -.1)
    self.assertLess(int(outcome.steps), 30)


class ParticleSwarmTest(absltest.TestCase):

  def test_numbers_by_hand(self):
    self.assertAlmostEqual(pso.constriction(4.1), 0.7298437881, places=9)
    chi = pso.constriction(4.1)
    v = pso.accelerate(jnp.array([.2]), jnp.array([.1]), jnp.array([.5]), jnp.array([.8]), 1., 2., chi)
    np.testing.assert_allclose(v, 1.16775, atol=1e-5)
    np.testing.assert_allclose(pso.speed_bounds(jnp.float32(-.3), jnp.float32(.2)), (.1, 2.5), rtol=1e-6)
    np.testing.assert_allclose(pso.bound_speed(jnp.array([.01, -.01, 9., 0.]), .1, 2.5), (.1, -.1, 2.5, -.1))
    sums = jnp.array([3., .5 * 4, 190., .1 * 200])   # 3 fixed, mean loss .5 of 4; 190 intact, mean loss .1 of 200
    self.assertAlmostEqual(float(arachne_pso.swarm_fitness(sums, 4, 200)), 176.30303, places=3)

  def test_it_improves_and_stops_without_improvement(self):
    one = jnp.ones(2)
    search = pso.particle_swarm(0 * one, one, .01 * one, one, pso.Settings(size=20))
    outcome = populations.maximize(search, _sphere, key=jax.random.key(0), max_steps=100)
    curve = np.asarray(outcome.best_curve)[:int(outcome.steps) + 1]
    self.assertTrue((np.diff(curve) >= 0).all())
    self.assertGreater(curve[-1], curve[0])
    constant = lambda population, at_least: jnp.zeros(len(population))
    outcome = populations.maximize(search, constant, key=jax.random.key(0), max_steps=100)
    self.assertEqual(int(outcome.steps), 11)


class PatchTest(parameterized.TestCase):

  @parameterized.parameters('lenet5', 'resnet')
  def test_patched_evaluation_equals_the_whole_network(self, kind):
    c, split = tiny.problem(kind).classifier, tiny.problem(kind).valid
    z = c.normalize(split.x)
    rng = np.random.default_rng(0)
    paths = ('conv1', 'conv2', 'fc1', 'fc2')
    for chosen in (paths, paths[1:2], paths[-1:]):
      size = sum(c.params[p]['kernel'].size for p in chosen)
      targets = make_targets(c, chosen, rng.choice(size, 5, replace=False))
      vector = values(targets, c) + jnp.asarray(rng.normal(size=targets.used.size), jnp.float32)
      cache = intervene.prefix(c, z, targets.layers)
      whole = write(targets, c, vector).logits_of_normalized(z)
      np.testing.assert_allclose(patched_suffix(c, cache, targets, vector), whole, atol=1e-4)
      np.testing.assert_allclose(patched_suffix(c, cache, targets, values(targets, c)), c.logits_of_normalized(z),
                                 atol=1e-5)

  def test_writing_touches_the_targets_and_nothing_else(self):
    c = tiny.problem('lenet5').classifier
    before = jax.tree.map(np.array, c.params)
    targets = make_targets(c, ('conv2', 'fc3'), np.array([3, c.params['conv2']['kernel'].size + 7]))
    after = write(targets, c, jnp.full(targets.used.size, 9.)).params
    for path, index in (('conv2', 3), ('fc3', 7)):
      flat = np.array(after[path]['kernel']).ravel()
      self.assertEqual(flat[index], 9.)
      flat[index] = before[path]['kernel'].ravel()[index]
      np.testing.assert_array_equal(flat, before[path]['kernel'].ravel())
    for path in ('conv1', 'fc1', 'fc2'):
      np.testing.assert_array_equal(after[path]['kernel'], before[path]['kernel'])
    for path in before:   # the public code writes through an alias into the weights that it started from
      np.testing.assert_array_equal(c.params[path]['kernel'], before[path]['kernel'])

  def test_siblings_are_the_whole_kernel(self):
    c = tiny.problem('lenet5').classifier
    targets = make_targets(c, ('fc3',), np.array([0]))
    around = siblings(targets, c)
    kernel = np.asarray(c.params['fc3']['kernel'])
    for got, expected in ((around.mean, kernel.mean()), (around.std, kernel.std()), (around.low, kernel.min()),
                          (around.high, kernel.max())):
      np.testing.assert_allclose(got[0], expected, rtol=1e-5)

  def test_sums_do_not_depend_on_tiles_and_dropping_losers_changes_no_winner(self):
    problem = tiny.problem('lenet5')
    c, split = problem.classifier, problem.repair
    targets = make_targets(c, ('fc2', 'fc3'), np.array([1, 5, 200]))
    population = values(targets, c) + jax.random.normal(jax.random.key(0), (7, targets.used.size))
    statistic = lambda logits, y, failing: (1 - score.credit(logits, y, lambda v: v))[:, None]

    def sums(rows, group, interesting=None):
      samples = score.cache_samples(c, split.x, split.y, layers=targets.layers, rows=rows)
      return np.asarray(jax.jit(lambda s: score.population_sums(
        statistic, c, targets, s, population, group=group, interesting=interesting))(samples))[:, 0]

    expected = []
    for vector in population:
      logits = write(targets, c, vector).logits(split.x)
      loss = -jax.nn.log_softmax(logits)[np.arange(len(split)), split.y]
      expected.append(float(jnp.where(logits.argmax(-1) == split.y, 0., 1 - 1 / (1 + loss)).sum()))
    for rows, group in ((100, 7), (32, 3), (7, 1)):
      np.testing.assert_allclose(sums(rows, group), expected, rtol=1e-4)
    limit = float(np.median(expected)) + 1e-3
    pruned = sums(7, 2, lambda s: s[:, 0] <= limit)
    for got, full in zip(pruned, expected, strict=True):
      if full <= limit:
        np.testing.assert_allclose(got, full, rtol=1e-4)
      else:
        self.assertGreater(got, limit)


if __name__ == '__main__':
  absltest.main()
