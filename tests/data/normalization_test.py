import numpy as np
from absl.testing import absltest

from jaxfix.data.normalization import channel_statistics
from tests.data import fabricate


class ChannelStatisticsTest(absltest.TestCase):

  def test_equals_float64_over_several_chunks(self):
    x = fabricate.pixels(9000, (3, 2, 3))
    mean, std = channel_statistics(x)
    np.testing.assert_allclose(mean, (x / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (x / 255).std((0, 1, 2)), rtol=1e-12)

  def test_order_does_not_matter_to_the_last_bit(self):
    x = fabricate.pixels(500, (4, 4, 3))
    self.assertEqual(channel_statistics(x), channel_statistics(x[::-1]))

  def test_constant_channel_stays_usable(self):
    self.assertEqual(channel_statistics(np.full((2, 2, 2, 1), 51, np.uint8)), ((0.2,), (1 / 255,)))


if __name__ == '__main__':
  absltest.main()
