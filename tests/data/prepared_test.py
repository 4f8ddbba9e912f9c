"""The TFDS path, executed: data sets are prepared in a temporary folder, and read back, without TensorFlow."""
import contextlib
import functools
import gzip
import http.server
import io
import os
import pathlib
import struct
import tarfile
import tempfile
import threading
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest

from jaxfix import data
from jaxfix.data import prepared
from jaxfix.errors import CorruptFileError, DataNotFoundError
from tests.data import fabricate
from tests.data.tfds_builder import prepare


class TfdsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.digits = list(map(str, range(10)))

  def mnist(self, n_train=100, n_test=40, labels=None):
    x = fabricate.pixels(n_train + n_test, (28, 28, 1))
    y = np.arange(n_train + n_test) % 10 if labels is None else labels
    examples = [{'image': fabricate.encode(image), 'label': int(label)} for image, label in zip(x, y, strict=True)]
    folder = prepare(self.root, 'mnist', {'train': examples[:n_train], 'test': examples[n_train:]}, (28, 28, 1),
                     self.digits)
    return folder, x, y

  def test_mnist(self):
    _, x, y = self.mnist()
    s = data.load('mnist', data_dir=self.root)
    self.assertEqual((s.source, len(s.train), len(s.valid), len(s.repair), len(s.test)),
                     ('tfds:mnist:3.0.1', 90, 10, 20, 20))
    # TFDS shuffles, so compare as sets of (image, label).
    want = {(image.tobytes(), int(label)) for image, label in zip(x[100:], y[100:], strict=True)}
    self.assertEqual({(image.tobytes(), int(label)) for image, label in zip(s.pool.x, s.pool.y, strict=True)}, want)

  def test_cifar10_gets_its_original_order_back(self):
    x = fabricate.pixels(140, (32, 32, 3))
    examples = [{'image': fabricate.encode(image), 'label': i % 10, 'id': f'train_{i:05d}'}
                for i, image in enumerate(x)]
    prepare(self.root, 'cifar10', {'train': examples[:100], 'test': examples[100:]}, (32, 32, 3),
            self.digits, texts=('id',))
    s = data.load('cifar10', data_dir=self.root)
    np.testing.assert_array_equal(s.pool.x, x[100:])
    np.testing.assert_array_equal(s.train.x, x[:100][s.indices['train']])
    np.testing.assert_array_equal(s.train.y, s.indices['train'] % 10)

  def test_truncated_and_missing_shards(self):
    folder, *_ = self.mnist()
    [shard] = folder.glob('mnist-train*')
    os.truncate(shard, shard.stat().st_size // 2)
    with self.assertRaisesRegex(CorruptFileError, r'3\.0\.1 \(train\)'):
      data.load('mnist', data_dir=self.root)
    shard.unlink()
    with self.assertRaisesRegex(CorruptFileError, r'3\.0\.1 \(train\)'):
      data.load('mnist', data_dir=self.root)

  def test_damaged_description(self):
    folder, *_ = self.mnist()
    (folder / 'dataset_info.json').write_text('{"fileFormat"')
    with self.assertRaisesRegex(CorruptFileError, 'dataset_info.json'):
      data.load('mnist', data_dir=self.root)
    (folder / 'dataset_info.json').write_text('{"fileFormat": "array_record", "name": "mnist", "version": "3.0.1"}')
    with self.assertRaisesRegex(CorruptFileError, 'train'):
      data.load('mnist', data_dir=self.root)

  def test_wrong_image_size(self):
    examples = [{'image': fabricate.encode(x), 'label': 0} for x in fabricate.pixels(4, (9, 9, 1))]
    prepare(self.root, 'mnist', {'train': examples, 'test': examples}, (9, 9, 1), self.digits)
    with self.assertRaisesRegex(CorruptFileError, 'image 0 is 9x9, expected 28x28'):
      data.load('mnist', data_dir=self.root)

  def test_records_are_random_access(self):
    folder, *_ = self.mnist(n_train=20, n_test=10)
    records = prepared.Records(folder, 'train')
    everything = [record for chunk in records.chunks() for record in chunk]
    self.assertLen(everything, 20)
    self.assertEqual(records.read(np.array([7, 2])), [everything[7], everything[2]])
    self.assertEqual(records.names, tuple(self.digits))


class DownloadTest(absltest.TestCase):
  """TFDS's own builders, fed by a local server, with the generators that need no TensorFlow."""

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.www = self.root / 'www'
    self.www.mkdir()
    handler = functools.partial(_SilentHandler, directory=os.fspath(self.www))
    server = self.enterContext(http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    self.addCleanup(server.shutdown)
    self.url = f'http://127.0.0.1:{server.server_address[1]}/'
    tfds.disable_progress_bar()
    self.enterContext(contextlib.redirect_stdout(io.StringIO()))
    self.enterContext(mock.patch.dict(os.environ, {'TFDS_DATA_DIR': str(self.root / 'tfds'), 'JAXFIX_DATA': ''}))
    self.enterContext(mock.patch.object(prepared, '_HOSTS', {'mnist': self.url, 'cifar10': self.url}))

  def serve_mnist(self, magic=2051):
    for part, n in (('train', 100), ('t10k', 40)):
      x = fabricate.pixels(n, (28, 28, 1))
      with gzip.open(self.www / f'{part}-images-idx3-ubyte.gz', 'wb') as f:
        f.write(struct.pack('>4i', magic, n, 28, 28) + x.tobytes())
      with gzip.open(self.www / f'{part}-labels-idx1-ubyte.gz', 'wb') as f:
        f.write(struct.pack('>2i', 2049, n) + bytes(i % 10 for i in range(n)))
    return x

  def test_mnist(self):
    x = self.serve_mnist()
    with mock.patch.object(tfds.image_classification.mnist.MNIST, 'URL', self.url):
      s = data.load('mnist')
    self.assertEqual((s.source, len(s.train), len(s.test)), ('tfds:mnist:3.0.1', 90, 20))
    want = {(image.tobytes(), i % 10) for i, image in enumerate(x)}
    self.assertEqual({(image.tobytes(), int(label)) for image, label in zip(s.pool.x, s.pool.y, strict=True)}, want)
    self.www.rename(self.root / 'gone')  # the second time nothing is fetched
    self.assertEqual(data.load('mnist').split_sha256, s.split_sha256)

  def test_cifar10(self):
    x = fabricate.pixels(140, (32, 32, 3))
    planes = x.transpose(0, 3, 1, 2).reshape(140, -1)
    rows = np.concatenate([np.arange(140, dtype=np.uint8)[:, None] % 10, planes], axis=1)
    files = {f'data_batch_{i + 1}.bin': rows[20 * i:20 * i + 20].tobytes() for i in range(5)}
    files |= {'test_batch.bin': rows[100:].tobytes(), 'batches.meta.txt': '\n'.join(
      ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']).encode()}
    with tarfile.open(self.www / 'cifar.tar.gz', 'w:gz') as archive:
      for name, content in files.items():
        member = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    cifar = tfds.image_classification.cifar.Cifar10
    original = cifar._cifar_info.fget
    with mock.patch.object(cifar, '_cifar_info', property(
        lambda builder: original(builder)._replace(url=self.url + 'cifar.tar.gz'))):
      s = data.load('cifar10')
    self.assertEqual(s.source, 'tfds:cifar10:3.0.2')
    np.testing.assert_array_equal(s.pool.x, x[100:])
    np.testing.assert_array_equal(s.pool.y, np.arange(100, 140) % 10)
    np.testing.assert_array_equal(s.train.x, x[:100][s.indices['train']])

  def test_a_failed_preparation_becomes_one_line(self):
    self.serve_mnist(magic=0)
    with mock.patch.object(tfds.image_classification.mnist.MNIST, 'URL', self.url), self.assertRaisesRegex(
        DataNotFoundError, r'a TFDS download \(CorruptFileError: the downloaded MNIST') as caught:
      data.load('mnist')
    self.assertNotIn('\n', str(caught.exception))


class _SilentHandler(http.server.SimpleHTTPRequestHandler):

  def log_message(self, *args):
    del args


if __name__ == '__main__':
  absltest.main()
