import pathlib
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from jaxfix import data, predict
from jaxfix.data import images, prepared
from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError
from tests.data import fabricate
from tests.data.tfds_builder import prepare
from tests.shared_data import shared_data

_SYNSETS = ('n01440764', 'n01443537')


class StreamingTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    decode = images.decode_resized
    self.decode = self.enterContext(mock.patch.object(images, 'decode_resized', side_effect=decode))
    # Rows of the training part in the order of the loader: 50 images of the first class, then 50 of the second.
    self.x, self.x_val = fabricate.pixels(100, (24, 30, 3), 1), fabricate.pixels(40, (24, 30, 3), 2)

  def folders(self, **options):
    root = self.folder / 'imagenet'
    for label, synset in enumerate(_SYNSETS):
      fabricate.write_images(root / 'train' / synset, self.x[label * 50:label * 50 + 50])
      fabricate.write_images(root / 'val' / synset, self.x_val[label * 20:label * 20 + 20])
    return data.load('imagenet', data_dir=self.folder, image_size=16, **options)

  def tfds(self):
    def examples(x):
      return [{'image': fabricate.encode(image), 'label': int(i >= len(x) // 2), 'file_name': f'{i}.JPEG'}
              for i, image in enumerate(x)]
    prepare(self.folder, 'imagenet2012', {'train': examples(self.x), 'validation': examples(self.x_val)},
            (None, None, 3), list(_SYNSETS), texts=('file_name',))
    return data.load('imagenet', data_dir=self.folder, image_size=16)

  def expected(self, image):
    return np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.NEAREST))

  def test_loading_and_labels_decode_nothing(self):
    s = self.folders()
    self.assertEqual([len(s.train), len(s.valid), len(s.repair), len(s.test), len(s.pool)], [96, 3, 20, 20, 40])
    np.testing.assert_array_equal(s.train.y, s.indices['train'] // 50)
    np.testing.assert_array_equal(s.pool.y, np.repeat([0, 1], 20))
    self.assertEqual((s.train.x.shape, s.train.x.dtype, s.train.x.ndim), ((96, 16, 16, 3), np.uint8, 4))
    self.assertEqual((s.num_classes, s.class_names, s.source), (2, _SYNSETS, 'folder:imagenet'))
    self.decode.assert_not_called()

  def test_exactly_what_is_asked_is_decoded(self):
    s = self.folders()
    part = s.train.take(np.array([5, 2]))
    self.assertEqual(self.decode.call_count, 2)
    rows = s.indices['train'][[5, 2]]
    np.testing.assert_array_equal(part.x, [self.expected(self.x[row]) for row in rows])
    np.testing.assert_array_equal(part.y, rows // 50)
    np.testing.assert_array_equal(s.train.x[5], part.x[0])
    self.assertEqual(self.decode.call_count, 3)
    np.testing.assert_array_equal(s.train.x[2:6:3], part.x[::-1])
    self.assertEqual(self.decode.call_count, 5)
    mask = np.zeros(96, bool)
    mask[5] = True
    np.testing.assert_array_equal(s.train.take(mask).x, part.x[:1])
    self.assertEqual(self.decode.call_count, 6)

  def test_a_batch_is_decoded_when_it_is_reached(self):
    s = self.folders()
    batches = s.test.batches(8)
    first = next(batches)
    self.assertEqual((len(first), self.decode.call_count), (8, 8))
    self.assertEqual([len(batch) for batch in batches], [8, 4])
    self.assertEqual(self.decode.call_count, 20)
    arrays = list(s.test.x.batches(8))
    np.testing.assert_array_equal(arrays[0], first.x)
    np.testing.assert_array_equal(first.y, s.test.y[:8])
    np.testing.assert_array_equal(np.concatenate(arrays), s.test.x[:])

  def test_batched_prediction_takes_a_stream(self):
    s = self.folders()
    batches = list(predict.padded_batches(s.test.x, 8))
    self.assertEqual([(batch.shape, count) for batch, count in batches],
                     [((8, 16, 16, 3), 8), ((8, 16, 16, 3), 8), ((8, 16, 16, 3), 4)])
    self.assertEqual(self.decode.call_count, 20)

  def test_a_stream_is_never_loaded_whole_by_accident(self):
    s = self.folders()
    with self.assertRaisesRegex(BadInputError, 'batches'):
      np.asarray(s.train.x)
    with self.assertRaisesRegex(BadInputError, 'batch_size'):
      next(s.train.batches(0))
    self.decode.assert_not_called()

  def test_a_view_decodes_nothing(self):
    s = self.folders()
    view = s.train.view(np.array([4, 9]))
    np.testing.assert_array_equal(view.y, s.train.y[[4, 9]])
    self.decode.assert_not_called()
    np.testing.assert_array_equal(view.x[1], s.train.x[9])

  def test_tfds(self):
    s = self.tfds()
    self.assertEqual((s.source, s.class_names), ('tfds:imagenet2012:3.0.1', _SYNSETS))
    self.assertEqual([len(s.train), len(s.valid), len(s.repair), len(s.test), len(s.pool)], [96, 3, 20, 20, 40])
    self.assertEqual(int(s.pool.y.sum()), 20)
    self.decode.assert_not_called()
    part = s.test.take(np.arange(7))
    self.assertEqual(self.decode.call_count, 7)
    # TFDS shuffles, so look the images up.
    known = {self.expected(image).tobytes(): int(i >= 20) for i, image in enumerate(self.x_val)}
    self.assertEqual([known[image.tobytes()] for image in part.x], list(part.y))
    np.testing.assert_array_equal(part.y, s.test.y[:7])

  def test_tfds_reads_a_record_once_for_its_label(self):
    s = self.tfds()
    y = s.test.take(np.arange(20)).y
    with mock.patch.object(prepared.Records, 'read', side_effect=AssertionError('read again')):
      np.testing.assert_array_equal(s.test.y, y)

  def test_a_damaged_file_is_named_when_it_is_reached(self):
    s = self.folders()
    (self.folder / 'imagenet' / 'val' / _SYNSETS[1] / '003.png').write_bytes(b'nothing')
    with self.assertRaisesRegex(CorruptFileError, r'n01443537/003\.png cannot be decoded'):
      s.pool.take(np.array([23]))
    (self.folder / 'imagenet' / 'val' / _SYNSETS[1] / '003.png').unlink()
    with self.assertRaisesRegex(CorruptFileError, r'n01443537/003\.png cannot be read'):
      s.pool.take(np.array([23]))

  def test_folders_that_do_not_fit(self):
    root = self.folder / 'imagenet'
    fabricate.write_images(root / 'train' / 'n01', self.x[:2])
    with self.assertRaisesRegex(DataNotFoundError, 'No folder .*val'):
      data.load('imagenet', data_dir=self.folder)
    fabricate.write_images(root / 'val' / 'n02', self.x[:2])
    with self.assertRaisesRegex(CorruptFileError, 'n02 is no class of the training images'):
      data.load('imagenet', data_dir=self.folder)

  def test_bad_option(self):
    with self.assertRaisesRegex(BadInputError, 'image_size'):
      data.load('imagenet', image_size=0)

  def test_the_real_sample(self):
    s = data.load('imagenet', data_dir=shared_data())
    self.assertEqual([len(s.train), len(s.valid), len(s.repair), len(s.test), len(s.pool)], [80, 40, 40, 40, 120])
    self.assertEqual((s.num_classes, s.class_names[0], s.train.x.shape), (1000, 'tench', (80, 224, 224, 3)))
    np.testing.assert_array_equal(np.sort(np.concatenate([getattr(s, name).y for name in s.indices])),
                                  np.arange(0, 1000, 5))
    part = s.test.take(np.arange(4))
    self.assertEqual((part.x.shape, part.x.dtype, self.decode.call_count), ((4, 224, 224, 3), np.uint8, 4))
    self.assertEqual((s.mean, s.std), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


if __name__ == '__main__':
  absltest.main()
