import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from jaxfix.data import packs
from jaxfix.errors import CorruptFileError
from tests.data import fabricate


class PackTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.folder / 'pack.npz'
    self.images = fabricate.pixels(6, (5, 4, 3))
    self.good = {**fabricate.encoded_part(self.images, 'train'), 'y_train': np.arange(6, dtype=np.uint8)}

  def write(self, **changed):
    np.savez(self.path, **{k: v for k, v in (self.good | changed).items() if v is not None})

  def read(self, **kwargs):
    return packs.read_part(self.path, 'train', (5, 4, 3), 10, **kwargs)

  def test_encoded_images(self):
    self.write()
    x, y = self.read()
    np.testing.assert_array_equal(x, self.images)
    np.testing.assert_array_equal(y, np.arange(6))
    self.assertEqual((x.dtype, y.dtype), (np.uint8, np.int32))

  def test_raw_pixels_go_first_and_labels_may_be_a_column(self):
    other = fabricate.pixels(6, (5, 4, 3), seed=9)
    self.write(x_train=other, y_train=np.arange(6)[:, None])
    x, y = self.read()
    np.testing.assert_array_equal(x, other)
    self.assertEqual(y.shape, (6,))

  def test_gray_files_get_three_equal_channels(self):
    gray = fabricate.pixels(6, (5, 4, 1))
    self.write(**fabricate.encoded_part(gray, 'train'))
    np.testing.assert_array_equal(self.read()[0], np.repeat(gray, 3, axis=-1))

  @parameterized.named_parameters(
    ('raw_shape', {'x_train': np.zeros((6, 4, 5, 3), np.uint8)}, r"'x_train' is uint8 \(6, 4, 5, 3\)"),
    ('raw_type', {'x_train': np.zeros((6, 5, 4, 3))}, "'x_train' is float64"),
    ('too_few_labels', {'y_train': np.arange(5)}, r"'y_train' is int64 \(5,\), expected 6"),
    ('label_high', {'y_train': np.array([0, 1, 2, 3, 4, 10])}, "'y_train' runs from 0 to 10, expected 0 to 9"),
    ('label_negative', {'y_train': np.array([0, 1, 2, 3, 4, -1])}, 'runs from -1'),
    ('label_float', {'y_train': np.zeros(6)}, "'y_train' is float64"),
    ('no_labels', {'y_train': None}, 'no array y_train'),
    ('no_images', {'jpeg_train': None}, 'neither x_train nor jpeg_train'),
    ('no_offsets', {'offsets_train': None}, 'neither'),
    ('offsets_short', {'offsets_train': np.arange(7)}, "'offsets_train' must rise from 0"),
    ('bytes_type', {'jpeg_train': np.zeros(10)}, "'jpeg_train' is float64"),
    ('pickled', {'y_train': np.array([{}] * 6, object)}, 'cannot be read'),
  )
  def test_defects_are_named(self, changed, message):
    self.write(**changed)
    with self.assertRaisesRegex(CorruptFileError, message) as caught:
      self.read()
    self.assertIn('pack.npz', str(caught.exception))

  def test_offsets_that_fall(self):
    offsets = self.good['offsets_train'].copy()
    offsets[[2, 3]] = offsets[[3, 2]]
    self.write(offsets_train=offsets)
    with self.assertRaisesRegex(CorruptFileError, "'offsets_train' must rise"):
      self.read()

  def test_undecodable_image_is_named(self):
    blob = self.good['jpeg_train'].copy()
    blob[self.good['offsets_train'][3]:self.good['offsets_train'][4]] = 0
    self.write(jpeg_train=blob)
    with self.assertRaisesRegex(CorruptFileError, 'image 3 cannot be decoded'):
      self.read()

  def test_image_of_another_size_is_named(self):
    self.write(**fabricate.encoded_part(fabricate.pixels(6, (7, 4, 3)), 'train'))
    with self.assertRaisesRegex(CorruptFileError, 'image 0 is 7x4, expected 5x4'):
      self.read()

  @parameterized.parameters(0, 1, 100, 0.5, 0.99)
  def test_truncated_file(self, keep):
    self.write()
    content = self.path.read_bytes()
    self.path.write_bytes(content[:keep if isinstance(keep, int) else int(keep * len(content))])
    with self.assertRaisesRegex(CorruptFileError, 'pack.npz'):
      self.read()

  def test_damage_inside_a_compressed_file(self):
    np.savez_compressed(self.path, **(self.good | {'y_train': np.arange(6)}))
    content = bytearray(self.path.read_bytes())
    content[200:400] = bytes(200)
    self.path.write_bytes(content)
    with self.assertRaisesRegex(CorruptFileError, 'pack.npz'):
      self.read()

  def test_single_array_is_no_archive(self):
    with open(self.path, 'wb') as f:
      np.save(f, np.zeros(3))
    with self.assertRaisesRegex(CorruptFileError, 'single array'):
      self.read()

  def test_cache_is_read_and_a_damaged_one_replaced(self):
    self.write()
    cache = self.folder / 'cache'
    first = self.read(cache_dir=cache)[0]
    [file] = cache.iterdir()
    with mock.patch.object(packs, 'decode_exact', side_effect=AssertionError('decoded again')):
      np.testing.assert_array_equal(self.read(cache_dir=cache)[0], first)
    file.write_bytes(file.read_bytes()[:200])
    np.testing.assert_array_equal(self.read(cache_dir=cache)[0], self.images)
    np.testing.assert_array_equal(np.load(file), self.images)

  def test_other_content_does_not_meet_the_cache(self):
    self.write()
    self.read(cache_dir=self.folder)
    other = fabricate.pixels(6, (5, 4, 3), seed=5)
    self.write(**fabricate.encoded_part(other, 'train'))
    np.testing.assert_array_equal(self.read(cache_dir=self.folder)[0], other)


if __name__ == '__main__':
  absltest.main()
