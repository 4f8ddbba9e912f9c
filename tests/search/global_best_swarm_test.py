"""Sections 8.3 to 8.5 of the CARE specification: one step, the periodic box, the stop."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError
from jaxfix.search import global_best_swarm as swarm
from jaxfix.search import population
from tests.networks import quick_jit


def _swarm(d=2, **settings):
  one = np.ones(d, np.float32)
  return swarm.global_best_swarm(0 * one, -one, one, swarm.Settings(**settings))


@functools.cache
def _stepper():
  """The search, and its first state and next state where the whole swarm costs the same; each compiled once."""
  search = _swarm(size=2)
  constant = lambda cost: lambda positions, at_least: jnp.full(len(positions), -cost)
  return (search, quick_jit(lambda key, cost: search.init(key, constant(cost))),
          quick_jit(lambda state, cost: search.step(state, constant(cost))))


def _iterations(costs):
  """Evaluations until the search stops, of a swarm that costs `costs[t]` at iteration t."""
  search, init, step = _stepper()
  state = init(jax.random.key(0), np.float32(costs[0]))
  for t, cost in enumerate(costs[1:], 1):
    if search.stopped(state):
      return t
    state = step(state, np.float32(cost))
  return len(costs)


class GlobalBestSwarmTest(parameterized.TestCase):

  def test_velocity_and_position_by_hand(self):
    v = swarm.accelerate(.2, .5, .1, -.4, .5, .25, swarm.Settings())
    self.assertAlmostEqual(v, .318, places=6)
    self.assertAlmostEqual(float(swarm.wrap(np.float32(.2 + v), -1., 1.)), .518, places=6)

  @parameterized.parameters((1.4, -.6), (-1.4, .6), (3.1, -.9), (.5, .5), (1., 1.), (-1., -1.))
  def test_what_leaves_the_box_comes_in_again(self, position, expected):
    self.assertAlmostEqual(float(swarm.wrap(np.float32(position), -1., 1.)), expected, places=5)

  @parameterized.named_parameters(
    ('constant', [0.] * 100, 11), ('one_improvement', [0.] * 5 + [-.05] * 95, 16),
    ('too_slow', [-.0005 * t for t in range(100)], 11), ('fast_enough', [-.002 * t for t in range(100)], 100),
    ('worse_later', [-.05] + [0.] * 99, 11))
  def test_when_it_stops(self, costs, expected):
    self.assertEqual(_iterations(costs), expected)

  def test_it_starts_at_no_change_improves_and_stays_in_the_box(self):
    seen = []

    def sphere(positions, at_least):
      jax.debug.callback(lambda p: seen.append(np.asarray(p)), positions)
      return -jnp.sum((positions - .5) ** 2, axis=1)

    run = quick_jit(lambda key: population.maximize(_swarm(), sphere, key=key, max_steps=99))
    outcome = run(jax.random.key(0))
    jax.effects_barrier()
    np.testing.assert_array_equal(seen[0], 0)
    curve = np.asarray(outcome.best_curve)[:int(outcome.steps) + 1]
    self.assertAlmostEqual(curve[0], -.5, places=6)
    self.assertTrue((np.diff(curve) >= 0).all())
    self.assertGreater(curve[-1], -.05)
    self.assertLessEqual(np.abs(seen).max(), 1 + 1e-6)
    self.assertLen(seen, int(outcome.steps) + 1)

  def test_where_nothing_is_better_the_start_is_the_answer(self):
    for cost in (lambda p: jnp.zeros(len(p)), lambda p: jnp.where((p == 0).all(axis=1), 0., jnp.nan)):
      outcome = quick_jit(lambda key, cost=cost: population.maximize(
        _swarm(), lambda p, at_least: cost(p), key=key, max_steps=99))(jax.random.key(1))
      np.testing.assert_array_equal(outcome.best.vector, 0)
      self.assertEqual(int(outcome.steps) + 1, 11)

  def test_bad_settings_are_refused(self):
    for change in ({'size': 0}, {'ftol': -1.}, {'patience': 0}):
      with self.assertRaises(BadInputError):
        swarm.Settings(**change)


if __name__ == '__main__':
  absltest.main()
