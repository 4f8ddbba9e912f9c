"""Wall time by phase, and the share of compilation in it."""
import time

import jax
import jax.numpy as jnp
from absl.testing import absltest

from jaxfix import clock as clocks
from jaxfix.clock import Clock


def _nested(depth, x):
  """Functions traced within functions, `depth` deep."""
  for _ in range(depth):
    x = jax.jit(lambda x, inner=x: jnp.sin(x) + jnp.asarray(inner).sum())(x)
  return jax.jit(lambda x: _nested(depth - 1, x))(x) if depth else x


class ClockTest(absltest.TestCase):

  def test_phases_add_up(self):
    clock = Clock()
    for _ in range(2):
      with clock.phase('wait'):
        time.sleep(0.01)
    self.assertEqual(list(clock.seconds), ['wait'])
    self.assertGreaterEqual(clock.seconds['wait'], 0.02)

  def test_a_phase_that_raises_counts(self):
    clock = Clock()
    with self.assertRaises(ZeroDivisionError), clock.phase('divide'):
      1 / 0  # noqa: B018
    self.assertIn('divide', clock.seconds)

  def test_times_within_times_count_once(self):
    compilation = clocks._Compilation()
    for start, end in ((1., 2.), (3., 4.), (0.5, 5.), (6., 7.)):  # in the order in which they end
      compilation.add(start, end)
    self.assertEqual(compilation.seconds, 5.5)
    self.assertEqual(compilation.spans, [(0.5, 5.), (6., 7.)])

  def test_tracing_within_tracing_never_exceeds_the_wall(self):
    clock, start = Clock(), time.perf_counter()
    jax.block_until_ready(jax.jit(lambda x: _nested(4, x))(jnp.ones(3)))
    wall = time.perf_counter() - start
    self.assertGreater(clock.compile_seconds, 0)
    self.assertGreater(clock.num_compiled, 0)
    self.assertLessEqual(clock.compile_seconds, wall + 0.01)

  def test_a_second_call_compiles_nothing(self):
    double = jax.jit(lambda x: 2 * x)
    jax.block_until_ready(double(jnp.ones(3)))
    clock = Clock()
    jax.block_until_ready(double(jnp.ones(3)))
    self.assertEqual((clock.num_compiled, clock.compile_seconds), (0, 0.))


if __name__ == '__main__':
  absltest.main()
