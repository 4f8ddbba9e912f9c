"""Batches run side by side give what they give one after the other; compiler options are left out where unknown."""
import threading
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from jaxfix import devices


class MapConcurrentlyTest(absltest.TestCase):

  def test_results_are_in_order_and_the_first_item_goes_alone(self):
    where = {}

    def square(item):
      where[item] = threading.current_thread()
      return jnp.square(item)

    got = devices.map_concurrently(square, range(20))
    np.testing.assert_array_equal(got, np.arange(20) ** 2)
    here = threading.current_thread()
    self.assertEqual([item for item, thread in where.items() if thread is here], [0])

  def test_an_error_in_a_thread_is_raised(self):
    def fail_at_three(item):
      if item == 3:
        raise ValueError('three')
      return item

    with self.assertRaisesRegex(ValueError, 'three'):
      devices.map_concurrently(fail_at_three, range(5))

  def test_few_items_need_no_thread(self):
    with mock.patch.object(threading.Thread, 'start', side_effect=AssertionError):
      self.assertEqual(devices.map_concurrently(lambda i: i, []), [])
      self.assertEqual(devices.map_concurrently(lambda i: i, [7]), [7])


class JitTest(absltest.TestCase):

  def test_compiles_once_and_only_when_called(self):
    traced = mock.Mock(side_effect=lambda x, n: x @ x + n)
    traced.__name__ = 'traced'
    with mock.patch.object(jax, 'jit', wraps=jax.jit) as jit:
      call = devices.jit(traced, static_argnames='n')
      self.assertEqual(jit.call_count, 0)
      for _ in range(2):
        np.testing.assert_array_equal(call(jnp.ones((3, 3)), n=2), np.full((3, 3), 5))
    self.assertEqual(traced.call_count, 1)

  def test_an_unknown_option_is_left_out(self):
    self.addCleanup(devices.cpu_options.cache_clear)
    devices.cpu_options.cache_clear()
    unknown = mock.Mock()
    unknown.lower.side_effect = jax.errors.JaxRuntimeError('No such compile option')
    with mock.patch.object(jax, 'jit', return_value=unknown):
      self.assertIsNone(devices.cpu_options())

  def test_other_platforms_get_no_options(self):
    self.addCleanup(devices.cpu_options.cache_clear)
    devices.cpu_options.cache_clear()
    with mock.patch.object(jax, 'default_backend', lambda: 'gpu'):
      self.assertIsNone(devices.cpu_options())


if __name__ == '__main__':
  absltest.main()
