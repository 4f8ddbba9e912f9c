import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from jaxfix import data
from jaxfix.data import image_folder
from jaxfix.errors import CorruptFileError, DataNotFoundError
from tests.data import fabricate


class ImageFolderTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def read(self):
    return image_folder.read(self.root, ('cat', 'dog'), (6, 5, 3))

  def test_classes_in_their_order_and_files_by_name(self):
    cats, dogs = fabricate.pixels(3, (6, 5, 3), 1), fabricate.pixels(2, (6, 5, 3), 2)
    fabricate.write_images(self.root / '1', dogs)
    fabricate.write_images(self.root / 'cat', cats)
    (self.root / 'cat' / 'notes.txt').write_text('not an image')
    (self.root / 'cat' / '._000.png').write_text('not an image either')
    (self.root / '.hidden').mkdir()
    x, y = self.read()
    np.testing.assert_array_equal(x, np.concatenate([cats, dogs]))
    np.testing.assert_array_equal(y, [0, 0, 0, 1, 1])
    self.assertEqual(y.dtype, np.int32)

  def test_unknown_class(self):
    fabricate.write_images(self.root / 'cow', fabricate.pixels(1, (6, 5, 3)))
    with self.assertRaisesRegex(CorruptFileError, 'cow is not one of the classes cat, dog'):
      self.read()

  def test_class_given_twice(self):
    fabricate.write_images(self.root / 'cat', fabricate.pixels(1, (6, 5, 3)))
    fabricate.write_images(self.root / '0', fabricate.pixels(1, (6, 5, 3)))
    with self.assertRaisesRegex(CorruptFileError, 'two folders for one class'):
      self.read()

  def test_wrong_size_and_damaged_file_are_named(self):
    fabricate.write_images(self.root / 'cat', fabricate.pixels(1, (5, 5, 3)))
    with self.assertRaisesRegex(CorruptFileError, r'000.png is 5x5, expected 6x5'):
      self.read()
    (self.root / 'cat' / '000.png').write_bytes(b'\x89PNG nothing')
    with self.assertRaisesRegex(CorruptFileError, r'000.png cannot be decoded'):
      self.read()

  def test_nothing_there(self):
    with self.assertRaisesRegex(DataNotFoundError, 'no class folders'):
      self.read()
    (self.root / 'cat').mkdir()
    with self.assertRaisesRegex(DataNotFoundError, 'no image files'):
      self.read()
    with self.assertRaisesRegex(DataNotFoundError, 'No folder'):
      image_folder.class_folders(self.root / 'nowhere')

  def test_mnist_from_folders(self):
    for part, n in (('train', 10), ('test', 4)):
      for digit in range(10):
        fabricate.write_images(self.root / 'mnist' / part / str(digit), fabricate.pixels(n, (28, 28, 1), digit))
    s = data.load('mnist', data_dir=self.root)
    self.assertEqual((s.source, len(s.train), len(s.valid), len(s.repair), len(s.test)),
                     ('folder:mnist', 90, 10, 20, 20))
    np.testing.assert_array_equal(s.pool.y, np.repeat(np.arange(10), 4))
    np.testing.assert_array_equal(s.pool.x[12], fabricate.pixels(4, (28, 28, 1), 3)[0])


if __name__ == '__main__':
  absltest.main()
