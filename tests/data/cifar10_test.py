import pathlib
import tempfile

import numpy as np
import pytest
from absl.testing import absltest

from jaxfix import data
from tests.data import fabricate
from tests.shared_data import shared_data


class Cifar10Test(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_raw_pixels(self):
    arrays = fabricate.write_cifar10(self.folder)
    s = data.load('cifar10', data_dir=self.folder)
    self.assertEqual([len(s.train), len(s.valid), len(s.repair), len(s.test), len(s.pool)], [90, 10, 20, 20, 40])
    np.testing.assert_array_equal(s.train.x, arrays['x_train'][s.indices['train']])
    np.testing.assert_array_equal(s.repair.y, arrays['y_test'][s.indices['repair'], 0])
    self.assertEqual(s.class_names[3], 'cat')

  def test_constants_are_those_of_the_study(self):
    fabricate.write_cifar10(self.folder)
    s = data.load('cifar10', data_dir=self.folder)
    self.assertEqual(s.mean, (0.4914009, 0.48215896, 0.4465308))
    self.assertEqual(s.std, (0.24703279, 0.24348423, 0.26158753))

  @pytest.mark.slow
  def test_the_real_set(self):
    s = data.load('cifar10', data_dir=shared_data(), cache_dir=self.folder)
    self.assertEqual([len(s.train), len(s.valid), len(s.repair), len(s.test), len(s.pool)],
                     [45_000, 5_000, 5_000, 5_000, 10_000])
    np.testing.assert_array_equal(np.bincount(s.pool.y), np.full(10, 1000))
    self.assertEqual(s.source, 'npz:cifar10_jpeg.npz')
    # The pack is a JPEG copy, hence the tolerance.
    np.testing.assert_allclose(s.train.x.mean((0, 1, 2)) / 255, s.mean, atol=2e-3)
    self.assertLen(list(self.folder.iterdir()), 2)
    again = data.load('cifar10', data_dir=shared_data(), cache_dir=self.folder)
    np.testing.assert_array_equal(again.test.x, s.test.x)


if __name__ == '__main__':
  absltest.main()
