import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from jaxfix import data
from jaxfix.errors import CorruptFileError
from tests.data import fabricate
from tests.shared_data import shared_data


class MnistTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_small_copy_is_split_in_the_same_proportions(self):
    fabricate.write_mnist(self.folder)
    s = data.load('mnist', data_dir=self.folder)
    self.assertEqual([len(s.train), len(s.valid), len(s.repair), len(s.test), len(s.pool)], [90, 10, 20, 20, 40])
    self.assertEqual((s.train.x.shape, s.train.x.dtype, s.train.y.dtype), ((90, 28, 28, 1), np.uint8, np.int32))
    np.testing.assert_array_equal(s.pool.x[..., 0], fabricate.pixels(40, (28, 28), 2))
    np.testing.assert_array_equal(s.test.x, s.pool.x[s.indices['test']])
    np.testing.assert_array_equal(s.valid.x[..., 0], fabricate.pixels(100, (28, 28), 1)[s.indices['valid']])
    np.testing.assert_array_equal(s.valid.y, s.indices['valid'] % 10)

  def test_wrong_shape_and_label(self):
    fabricate.write_mnist(self.folder, x_test=np.zeros((40, 28, 27), np.uint8))
    with self.assertRaisesRegex(CorruptFileError, r"mnist.npz: 'x_test' is uint8 \(40, 28, 27, 1\)"):
      data.load('mnist', data_dir=self.folder)
    fabricate.write_mnist(self.folder, y_train=np.full(100, 10, np.uint8))
    with self.assertRaisesRegex(CorruptFileError, "'y_train' runs from 10 to 10, expected 0 to 9"):
      data.load('mnist', data_dir=self.folder)

  def test_the_real_set(self):
    s = data.load('mnist', data_dir=shared_data())
    self.assertEqual([len(s.train), len(s.valid), len(s.repair), len(s.test), len(s.pool)],
                     [54_000, 6_000, 5_000, 5_000, 10_000])
    self.assertEqual((s.source, s.mean, s.std), ('npz:mnist.npz', (0.,), (1.,)))
    # Class counts of the original test part (LeCun's files).
    np.testing.assert_array_equal(np.bincount(s.pool.y), [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009])
    self.assertEqual(s.split_sha256['train'][:16], '686583b6d14daddb')


if __name__ == '__main__':
  absltest.main()
