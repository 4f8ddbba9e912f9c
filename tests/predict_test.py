"""Predictions: padding, streams, logits that are not finite, several devices."""
import os
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxfix import predict
from jaxfix.classifier import stack
from jaxfix.clock import Clock
from jaxfix.errors import BadInputError
from tests.networks import images, network


def small(seed=0):
  return network('mlp', (5,), seed=seed, num_classes=3, hidden=(4,))


class Stream:
  """Data that is decoded a batch at a time."""

  def __init__(self, x):
    self.x, self.shape, self.served = x, x.shape, []

  def __len__(self):
    return len(self.x)

  def batches(self, size):
    for i in range(0, len(self.x), size):
      self.served.append(len(self.x[i:i + size]))
      yield self.x[i:i + size]


class PaddingTest(parameterized.TestCase):

  @parameterized.parameters(1, 3, 7, 8, 100)
  def test_the_batch_size_changes_nothing(self, batch_size):
    c, x = small(), images((5,), 7)
    got = predict.logits(c, x, batch_size=batch_size)
    self.assertEqual((got.shape, got.dtype), ((7, 3), np.float32))
    np.testing.assert_allclose(got, c.logits(x), atol=1e-6)

  def test_batches_have_one_shape_and_are_filled_with_rows_of_their_own(self):
    x = np.arange(10).reshape(5, 2)
    (first, n1), (last, n2) = predict.padded_batches(x, 3)
    self.assertEqual((n1, n2), (3, 2))
    np.testing.assert_array_equal(first, x[:3])
    np.testing.assert_array_equal(last, x[[3, 4, 3]])

  def test_all_batches_run_one_program(self):
    c = small()
    predict.logits(c, images((5,), 9), batch_size=4)
    clock = Clock()
    predict.logits(small(1), images((5,), 6), batch_size=4)
    self.assertEqual(clock.num_compiled, 0)

  def test_streams_are_read_a_batch_at_a_time(self):
    x = images((5,), 7)
    stream = Stream(x)
    np.testing.assert_array_equal(predict.labels(small(), stream, batch_size=3),
                                  predict.labels(small(), x, batch_size=3))
    self.assertEqual(stream.served, [3, 3, 1])

  def test_population_labels_are_those_of_the_members(self):
    members, x = [small(seed) for seed in range(3)], images((5,), 7)
    got = predict.population_labels(stack(members), x, batch_size=4)
    self.assertEqual((got.shape, got.dtype), ((3, 7), np.int32))
    for i, c in enumerate(members):
      np.testing.assert_array_equal(got[i], predict.labels(c, x))

  def test_empty_and_misshapen_inputs_are_errors(self):
    with self.assertRaisesRegex(BadInputError, 'empty'):
      predict.labels(small(), np.zeros((0, 5), np.float32))
    with self.assertRaisesRegex(BadInputError, r'shape \(6,\)'):
      predict.labels(small(), np.zeros((2, 6), np.float32))


class LabelsTest(absltest.TestCase):

  def test_ties_go_to_the_lowest_index_and_what_is_not_finite_is_never_right(self):
    nan, inf = np.nan, np.inf
    logits = np.array([[0, 1, 1], [nan, 9, 0], [0, inf, 0], [0, -inf, 5], [2, 1, 0]])
    got = predict.labels_of_logits(logits)
    np.testing.assert_array_equal(got, [1, -1, -1, -1, 0])
    self.assertEqual(got.dtype, np.int32)

  def test_a_broken_weight_gives_no_label(self):
    c = small()
    bias = np.array([0, np.inf, 0], np.float32)
    broken = c.with_params({**c.params, 'fc2': {**c.params['fc2'], 'bias': bias}})
    np.testing.assert_array_equal(predict.labels(broken, images((5,), 3)), [-1, -1, -1])


_TWO_DEVICES = """
import sys
import tempfile
import jax, numpy as np
from jaxfix import devices, predict
from jaxfix.classifier import stack
from tests.networks import images, network
assert devices.data_mesh().size == 2, jax.devices()
make = lambda seed: network('mlp', (5,), seed=seed, num_classes=3, hidden=(4,))
x = images((5,), 13)
np.savez(sys.argv[1], logits=predict.logits(make(0), x, batch_size=5),
         labels=predict.population_labels(stack([make(0), make(1)]), x, batch_size=5))
"""


class TwoDevicesTest(absltest.TestCase):

  def test_two_devices_give_the_results_of_one(self):
    out = os.path.join(self.enterContext(tempfile.TemporaryDirectory()), 'two.npz')
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
           'PYTHONPATH': root}
    done = subprocess.run([sys.executable, '-c', _TWO_DEVICES, out], env=env, cwd=root, capture_output=True, text=True,
                          timeout=300)
    self.assertEqual(done.returncode, 0, done.stderr)
    two = np.load(out)
    x = images((5,), 13)
    np.testing.assert_allclose(two['logits'], predict.logits(small(0), x, batch_size=5), rtol=1e-5, atol=1e-6)
    population = stack([small(0), small(1)])
    np.testing.assert_array_equal(two['labels'], predict.population_labels(population, x, batch_size=5))


if __name__ == '__main__':
  absltest.main()
