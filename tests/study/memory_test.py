"""Peaks of memory: those of the work since a mark, not of what the process did before."""
import sys
from unittest import mock

import numpy as np
from absl.testing import absltest

from jaxfix.study import memory

_SIZE = 200 * 2**20


class MemoryTest(absltest.TestCase):

  @absltest.skipUnless(sys.platform == 'linux', 'elsewhere the host says nothing')
  def test_a_peak_before_the_mark_does_not_count(self):
    first = memory.mark()
    if not first.is_host_reset:
      self.skipTest('this kernel does not reset peaks')
    np.ones(_SIZE, np.uint8)   # freed at once
    high = memory.peak_since(first)
    low = memory.peak_since(memory.mark())
    self.assertGreater(low, 0)
    self.assertGreater(high - low, _SIZE // 2)

  def test_what_cannot_be_reset_is_not_claimed(self):
    with mock.patch.object(memory, '_RESET', memory._STATUS / 'none'):
      self.assertIsNone(memory.peak_since(memory.mark()))

  def test_an_accelerator_is_believed_where_it_exceeds_what_was_before(self):
    with mock.patch.object(memory, '_device_peak', side_effect=[100, 100, 100, 150]):
      first, unknown = memory.mark(), memory.peak_since(memory.Mark(100, True))
      self.assertIsNone(unknown)
      self.assertEqual(first.device_peak, 100)
      self.assertEqual((memory.peak_since(first), memory.peak_since(first)), (None, 150))


if __name__ == '__main__':
  absltest.main()
