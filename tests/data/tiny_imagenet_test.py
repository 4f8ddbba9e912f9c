import pathlib
import tempfile

import numpy as np
import pytest
from absl.testing import absltest

from jaxfix import data
from jaxfix.errors import CorruptFileError, DataNotFoundError
from tests.data import fabricate
from tests.shared_data import shared_data

_SYNSETS = ('n01', 'n02')


class TinyImageNetTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.train, self.val = fabricate.pixels(100, (64, 64, 3), 1), fabricate.pixels(40, (64, 64, 3), 2)

  def test_archive(self):
    np.savez(self.folder / 'tiny_imagenet.npz', class_names=np.array(['fish', 'frog']), y_train=np.arange(100) % 2,
             y_val=np.arange(40) % 2, **fabricate.encoded_part(self.train, 'train'), x_val=self.val)
    s = data.load('tiny_imagenet', data_dir=self.folder)
    self.assertEqual([len(s.train), len(s.valid), len(s.repair), len(s.test), len(s.pool)], [90, 10, 20, 20, 40])
    self.assertEqual((s.num_classes, s.class_names), (2, ('fish', 'frog')))
    np.testing.assert_array_equal(s.train.x, self.train[s.indices['train']])
    np.testing.assert_array_equal(s.pool.x, self.val)
    self.assertEqual((s.mean, s.std), ((0.480, 0.448, 0.397), (0.230, 0.226, 0.226)))

  def test_archive_with_a_label_beyond_its_names(self):
    np.savez(self.folder / 'tiny_imagenet.npz', class_names=np.array(['fish']), x_train=self.train, x_val=self.val,
             y_train=np.arange(100) % 2, y_val=np.zeros(40, int))
    with self.assertRaisesRegex(CorruptFileError, "'y_train' runs from 0 to 1, expected 0 to 0"):
      data.load('tiny_imagenet', data_dir=self.folder)

  def original_layout(self):
    root = self.folder / 'tiny-imagenet-200'
    for label, synset in enumerate(_SYNSETS):
      fabricate.write_images(root / 'train' / synset / 'images', self.train[label * 50:label * 50 + 50])
    fabricate.write_images(root / 'val' / 'images', self.val)
    lines = [f'{i:03d}.png\t{_SYNSETS[i % 2]}\t0\t0\t62\t62\n' for i in range(40)]
    (root / 'val' / 'val_annotations.txt').write_text(''.join(lines))
    return root

  def test_original_layout(self):
    self.original_layout()
    s = data.load('tiny_imagenet', data_dir=self.folder)
    self.assertEqual((s.source, s.class_names), ('folder:tiny-imagenet-200', _SYNSETS))
    np.testing.assert_array_equal(s.train.x, self.train[s.indices['train']])
    np.testing.assert_array_equal(s.train.y, s.indices['train'] // 50)
    np.testing.assert_array_equal(s.pool.x, self.val)
    np.testing.assert_array_equal(s.pool.y, np.arange(40) % 2)

  def test_bad_annotation(self):
    (self.original_layout() / 'val' / 'val_annotations.txt').write_text('000.png\tn99\n')
    with self.assertRaisesRegex(CorruptFileError, 'n99'):
      data.load('tiny_imagenet', data_dir=self.folder)

  def test_class_folders(self):
    for part, x in (('train', self.train), ('val', self.val)):
      for label, synset in enumerate(_SYNSETS):
        fabricate.write_images(self.folder / 'tiny_imagenet' / part / synset, x[label::2])
    s = data.load('tiny_imagenet', data_dir=self.folder)
    self.assertEqual([len(s.train), len(s.test)], [90, 20])
    np.testing.assert_array_equal(s.pool.x[:20], self.val[0::2])

  def test_empty_folder(self):
    (self.folder / 'tiny_imagenet').mkdir()
    with self.assertRaisesRegex(DataNotFoundError, 'No folder .*train'):
      data.load('tiny_imagenet', data_dir=self.folder)

  @pytest.mark.slow
  def test_the_real_set(self):
    s = data.load('tiny_imagenet', data_dir=shared_data())
    self.assertEqual([len(s.train), len(s.valid), len(s.repair), len(s.test), len(s.pool)],
                     [18_000, 2_000, 1_000, 1_000, 2_000])
    np.testing.assert_array_equal(np.bincount(s.pool.y), np.full(40, 50))


if __name__ == '__main__':
  absltest.main()
