import pathlib
import tempfile

import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix import data
from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError
from tests.data import fabricate
from tests.shared_data import shared_data


def images_of(split):
  return {image.tobytes() for image in split.x}


class UtkFaceTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    # 100 different faces; the last 20 rows repeat the first 20, with contradicting labels.
    x = fabricate.pixels(100, (48, 48, 3))
    self.x = np.concatenate([x, x[:20]])
    self.arrays = {**fabricate.encoded_part(self.x), 'gender': (np.arange(120) % 2).astype(np.uint8),
                   'race': (np.arange(120) % 5).astype(np.uint8),
                   'first_copy': np.r_[np.arange(100), np.arange(20)].astype(np.int32)}
    self.arrays['gender'][100:] = 1 - self.arrays['gender'][:20]

  def load(self, changed=None, **options):
    np.savez(self.folder / 'utkface_48.npz', **(self.arrays | (changed or {})))
    return data.load('utkface', data_dir=self.folder, **options)

  def test_no_image_is_in_two_splits(self):
    s = self.load()
    parts = [images_of(getattr(s, name)) for name in s.indices]
    self.assertEqual([len(p) for p in parts], [74, 8, 8, 8])  # 17,778, 1,975, 1,976, 1,976 of 23,705, times 100
    self.assertLen(set.union(*parts), sum(map(len, parts)))
    self.assertLen(s.pool, 26)
    self.assertEmpty(images_of(s.pool) & parts[0])

  def test_the_first_copy_keeps_its_labels(self):
    s = self.load()
    for name, rows in s.indices.items():
      split = getattr(s, name)
      np.testing.assert_array_equal(split.x, self.x[rows])
      np.testing.assert_array_equal(split.y, rows % 2)
      np.testing.assert_array_equal(split.group, (rows % 5 != 0).astype(np.int32))
    self.assertEqual((s.class_names, s.group_names), (('male', 'female'), ('white', 'nonwhite')))

  def test_duplicates_can_be_kept_and_then_leak(self):
    s = self.load(drop_duplicates=False)
    self.assertEqual(sum(map(len, s.indices.values())), 89 + 9 + 10 + 10)
    self.assertNotEmpty(images_of(s.train) & images_of(s.pool))

  def test_normalization(self):
    s = self.load()
    np.testing.assert_allclose(s.mean, s.train.x.mean((0, 1, 2)) / 255, rtol=1e-12)
    study = self.load(normalization='study')
    self.assertEqual((study.mean, study.std), ((0.03317774,) * 3, (0.18214759,) * 3))

  @parameterized.named_parameters(
    ('gender', {'gender': np.full(120, 2)}, "'gender' runs from 2"),
    ('race', {'race': np.full(120, 5)}, "'race' runs from 5"),
    ('later_copy', {'first_copy': np.full(120, 7)}, "'first_copy' points to a later row"),
    ('short', {'race': np.zeros(119, np.uint8)}, "'race' is uint8"),
  )
  def test_defects_are_named(self, changed, message):
    with self.assertRaisesRegex(CorruptFileError, message):
      self.load(changed)

  @parameterized.parameters({'image_size': 64}, {'image_size': 0}, {'normalization': 'x'})
  def test_bad_options(self, **options):
    with self.assertRaisesRegex(BadInputError, next(iter(options))):
      self.load(**options)

  def test_original_files(self):
    folder = self.folder / 'UTKFace'
    folder.mkdir()
    for i, x in enumerate(fabricate.pixels(100, (20, 20, 3))):
      (folder / f'{i:03d}_{i % 2}_{i % 5}_2017.jpg.chip.jpg').write_bytes(fabricate.encode(x))
    (folder / '200_0_0_2017.jpg').write_bytes((folder / '000_0_0_2017.jpg.chip.jpg').read_bytes())  # a copy
    (folder / '61_1_2017.jpg').write_bytes(b'')  # no race
    s = data.load('utkface', data_dir=self.folder, image_size=20)
    self.assertEqual([len(rows) for rows in s.indices.values()], [74, 8, 8, 8])
    self.assertEqual(s.source, 'folder:UTKFace')
    np.testing.assert_array_equal(s.train.x, fabricate.pixels(100, (20, 20, 3))[s.indices['train']])
    np.testing.assert_array_equal(s.train.y, s.indices['train'] % 2)
    self.assertEqual(data.load('utkface', data_dir=self.folder).train.x.shape, (74, 48, 48, 3))

  def test_folder_without_faces(self):
    (self.folder / 'UTKFace').mkdir()
    with self.assertRaisesRegex(DataNotFoundError, 'no files named'):
      data.load('utkface', data_dir=self.folder)

  @pytest.mark.slow
  def test_the_real_set(self):
    s = data.load('utkface', data_dir=shared_data())
    # 23,704 rows, 390 of them copies.
    self.assertEqual([len(s.train), len(s.valid), len(s.repair), len(s.test), len(s.pool)],
                     [17_484, 1_942, 1_943, 1_943, 23_314 - 17_484])
    parts = [images_of(getattr(s, name)) for name in s.indices]
    self.assertEmpty(parts[0] & parts[3])
    self.assertEmpty(parts[2] & parts[3])
    self.assertAlmostEqual(s.train.y.mean(), 0.477, delta=0.01)


if __name__ == '__main__':
  absltest.main()
