import pathlib
import tempfile

import numpy as np
import pytest
from absl.testing import absltest, parameterized
from PIL import Image

from jaxfix import data
from jaxfix.data import cifar10s
from jaxfix.errors import BadInputError
from jaxfix.problem import Split
from tests.data import fabricate
from tests.shared_data import shared_data

_GRAY_CLASSES = {0, 2, 4, 6, 8}


def is_gray(x):
  return ((x[..., 0] == x[..., 1]) & (x[..., 1] == x[..., 2])).all(axis=(1, 2))


class GrayTest(absltest.TestCase):

  def test_equals_mode_l_of_pillow(self):
    x = fabricate.pixels(16, (64, 64, 3))
    want = np.stack([np.asarray(Image.fromarray(image).convert('L')) for image in x])
    np.testing.assert_array_equal(cifar10s.to_gray(x), np.repeat(want[..., None], 3, axis=-1))

  def test_extremes_do_not_overflow(self):
    x = np.array([[[[0, 0, 0], [255, 255, 255]]]], np.uint8)
    np.testing.assert_array_equal(cifar10s.to_gray(x), x)


class SkewTest(parameterized.TestCase):

  def test_counts_of_the_full_set(self):
    # The choice needs labels only, so the images may be of one pixel.
    y = np.random.default_rng(0).permutation(np.repeat(np.arange(10, dtype=np.int32), 5000))
    x = np.tile(np.array([200, 100, 0], np.uint8), (50_000, 1, 1, 1))
    pool = cifar10s.skewed(Split(x, y), skew=0.95, seed=42)
    for label in range(10):
      gray = int((pool.group[y == label] == cifar10s.GRAY).sum())
      self.assertEqual(gray, 4750 if label in _GRAY_CLASSES else 250)
    self.assertEqual(int((pool.group == cifar10s.GRAY).sum()), 25_000)
    np.testing.assert_array_equal(is_gray(pool.x), pool.group == cifar10s.GRAY)
    np.testing.assert_array_equal(pool.x[pool.group == cifar10s.COLOR], x[pool.group == cifar10s.COLOR])

  def test_rows_are_chosen_as_the_authors_choose_them(self):
    # From a plain-Python transcription of the description: 20 rows a class, 19 of which get the own rendering.
    y = np.tile(np.arange(10, dtype=np.int32), 20)
    group = cifar10s.skewed(Split(np.zeros((200, 1, 1, 3), np.uint8), y), skew=0.95, seed=42).group
    own = np.where(y % 2 == 0, cifar10s.GRAY, cifar10s.COLOR)
    np.testing.assert_array_equal(np.flatnonzero(group != own), [9, 86, 92, 95, 103, 124, 128, 137, 141, 190])

  @parameterized.parameters((1., 20, 0), (0., 0, 20), (0.5, 10, 10))
  def test_skew(self, skew, gray_in_gray_class, gray_in_color_class):
    y = np.tile(np.arange(10, dtype=np.int32), 20)
    group = cifar10s.skewed(Split(np.zeros((200, 1, 1, 3), np.uint8), y), skew=skew, seed=1).group
    self.assertEqual(int((group[y == 0] == cifar10s.GRAY).sum()), gray_in_gray_class)
    self.assertEqual(int((group[y == 1] == cifar10s.GRAY).sum()), gray_in_color_class)


class Cifar10sTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.arrays = fabricate.write_cifar10(self.folder)

  def load(self, **options):
    return data.load('cifar10s', data_dir=self.folder, **options)

  def test_sizes_and_groups(self):
    s = self.load()
    self.assertEqual([len(s.train), len(s.valid), len(s.repair), len(s.test), len(s.pool)], [90, 10, 40, 40, 80])
    self.assertEqual(s.group_names, ('gray', 'color'))
    for split in (s.train, s.valid, s.repair, s.test, s.pool):
      np.testing.assert_array_equal(is_gray(split.x), split.group == cifar10s.GRAY)
    np.testing.assert_array_equal(s.pool.x[:40], self.arrays['x_test'])
    np.testing.assert_array_equal(s.pool.x[40:], cifar10s.to_gray(self.arrays['x_test']))
    np.testing.assert_array_equal(s.pool.y[:40], s.pool.y[40:])

  def test_no_image_is_in_repair_and_test_under_the_default_unit(self):
    s = self.load()
    self.assertEmpty(set(s.indices['repair'] % 40) & set(s.indices['test'] % 40))
    for split in (s.repair, s.test):
      np.testing.assert_array_equal(np.bincount(split.group), [20, 20])
      np.testing.assert_array_equal(split.y[0::2], split.y[1::2])

  def test_the_literal_unit_leaks(self):
    s = self.load(split_unit='row')
    self.assertEqual((len(s.repair), len(s.test)), (40, 40))
    self.assertNotEmpty(set(s.indices['repair'] % 40) & set(s.indices['test'] % 40))

  def test_normalization(self):
    s = self.load()
    pixels = s.train.x.astype(np.float64) / 255
    np.testing.assert_allclose(s.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(s.std, pixels.std((0, 1, 2)), rtol=1e-12)
    study = self.load(normalization='study')
    self.assertEqual((study.mean, study.std), ((0.16384,) * 3, (0.33210605, 0.328938, 0.3250164)))

  @parameterized.parameters({'skew': 1.5}, {'split_unit': 'class'}, {'normalization': 'imagenet'})
  def test_bad_options(self, **options):
    with self.assertRaisesRegex(BadInputError, next(iter(options))):
      self.load(**options)

  @pytest.mark.slow
  def test_the_real_set(self):
    s = data.load('cifar10s', data_dir=shared_data())
    self.assertEqual([len(s.train), len(s.valid), len(s.repair), len(s.test), len(s.pool)],
                     [45_000, 5_000, 10_000, 10_000, 20_000])
    group, y = np.r_[s.train.group, s.valid.group], np.r_[s.train.y, s.valid.y]
    for label in range(10):
      self.assertEqual(int((group[y == label] == cifar10s.GRAY).sum()), 4750 if label in _GRAY_CLASSES else 250)
    np.testing.assert_array_equal(np.bincount(s.repair.group), [5000, 5000])
    np.testing.assert_array_equal(np.bincount(s.test.group), [5000, 5000])
    # Statistics of the same construction, computed independently (evaluation specification, section 10).
    np.testing.assert_allclose(s.mean, (0.491, 0.479, 0.462), atol=3e-3)
    np.testing.assert_allclose(s.std, (0.242, 0.241, 0.248), atol=3e-3)


if __name__ == '__main__':
  absltest.main()
