"""Sections 8.4 to 8.8 of the Arachne specification: operators and stops of the two searches, patched evaluation."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix.localize.targets import make_targets, siblings, write
from jaxfix.search import differential_evolution as de
from jaxfix.search import particle_swarm as pso
from jaxfix.search import population as populations
from jaxfix.search import weight_swarm
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
    step = jax.jit(lambda state, level: search.step(state, lambda p, at_least: jnp.full(len(p), level)))
    state = search.init(jax.random.key(0), lambda p, at_least: jnp.zeros(len(p)))
    steps = 0
    while steps < 100 and not bool(search.stopped(state)):
      level = 1. if steps >= 5 else 0.   # index 5 is the sixth
      state = step(state, level)
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
    self.assertAlmostEqual(float(weight_swarm.swarm_fitness(sums, 4, 200)), 176.30303, places=3)

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
    c = tiny.problem('mlp').classifier
    targets = make_targets(c, ('fc3',), np.array([0]))
    around = siblings(targets, c)
    kernel = np.asarray(c.params['fc3']['kernel'])
    for got, expected in ((around.mean, kernel.mean()), (around.std, kernel.std()), (around.low, kernel.min()),
                          (around.high, kernel.max())):
      np.testing.assert_allclose(got[0], expected, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
