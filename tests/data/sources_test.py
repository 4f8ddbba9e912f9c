import os
import pathlib
import tempfile
import time
from unittest import mock

from absl.testing import absltest, parameterized

from jaxfix import data
from jaxfix.data import prepared, sources
from jaxfix.errors import BadInputError, DataNotFoundError
from tests.data import fabricate

_WANTED = sources.Wanted('mnist', tfds='mnist', files=('a.npz', 'b.npz'), folders=('mnist',), layout='{train,test}',
                         downloadable=True, fetch='it is on the moon')


class LocateTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.user, self.tfds = self.root / 'user', self.root / 'tfds'
    self.user.mkdir()
    self.enterContext(mock.patch.dict(os.environ, {'TFDS_DATA_DIR': str(self.tfds), 'JAXFIX_DATA': ''}))
    self.download = self.enterContext(mock.patch.object(
      prepared, 'download', side_effect=DataNotFoundError('no network today')))

  def prepare(self, root, version='3.0.1', file_format='array_record'):
    folder = root / 'mnist' / version
    folder.mkdir(parents=True)
    (folder / 'dataset_info.json').write_text(f'{{"fileFormat": "{file_format}"}}')
    return folder

  def test_user_folder_goes_first_and_tfds_goes_first_in_it(self):
    self.prepare(self.tfds)
    (self.user / 'b.npz').write_text('')
    self.assertEqual(sources.locate(_WANTED, self.user).path, self.user / 'b.npz')
    (self.user / 'a.npz').write_text('')
    self.assertEqual(sources.locate(_WANTED, self.user).source, 'npz:a.npz')
    folder = self.prepare(self.user)
    self.assertEqual(sources.locate(_WANTED, self.user), sources.Location('tfds', folder))

  def test_image_folder(self):
    (self.user / 'mnist').mkdir()
    self.assertEqual(sources.locate(_WANTED, self.user).source, 'folder:mnist')

  def test_environment_names_the_folder_unless_an_argument_does(self):
    (self.user / 'a.npz').write_text('')
    with mock.patch.dict(os.environ, {'JAXFIX_DATA': str(self.user)}):
      self.assertEqual(sources.locate(_WANTED, None).path, self.user / 'a.npz')
      with self.assertRaises(DataNotFoundError):
        sources.locate(_WANTED, self.root)

  def test_newest_prepared_version_of_the_default_folder(self):
    self.prepare(self.tfds, '3.0.1')
    newest = self.prepare(self.tfds, '10.0.0')
    (self.tfds / 'mnist' / '11.0.0').mkdir()  # preparation was interrupted
    found = sources.locate(_WANTED, None)
    self.assertEqual((found.path, found.source), (newest, 'tfds:mnist:10.0.0'))
    self.download.assert_not_called()

  def test_download_comes_last(self):
    self.download.side_effect = None
    self.download.return_value = self.tfds / 'mnist' / '3.0.1'
    self.assertEqual(sources.locate(_WANTED, self.user).source, 'tfds:mnist:3.0.1')
    with self.assertRaises(DataNotFoundError):
      sources.locate(_WANTED, self.user, download=False)

  def test_message_names_what_where_and_how(self):
    self.prepare(self.tfds, file_format='tfrecord')
    with self.assertRaises(DataNotFoundError) as caught:
      sources.locate(_WANTED, self.user)
    message = str(caught.exception)
    for part in ("'mnist'", 'mnist/<version>', 'a.npz', 'b.npz', 'folder mnist/{train,test}', f'{self.user} (data_dir)',
                 f'{self.tfds} (TFDS)', 'tfrecord', 'no network today', 'JAXFIX_DATA', 'it is on the moon'):
      self.assertIn(part, message)
    self.assertNotIn('\n', message)

  def test_missing_user_folder(self):
    with self.assertRaisesRegex(DataNotFoundError, r'no folder .*nowhere \(data_dir\).*a.npz.*it is on the moon'):
      sources.locate(_WANTED, self.root / 'nowhere')
    with self.assertRaisesRegex(BadInputError, 'data_dir'):
      sources.locate(_WANTED, 3)

  @parameterized.parameters('cifar10', 'cifar10s', 'imagenet', 'mnist', 'tiny_imagenet', 'utkface')
  def test_every_data_set_reports_its_absence_in_one_line(self, name):
    with self.assertRaisesRegex(DataNotFoundError, 'not found') as caught:
      data.load(name, data_dir=self.user)
    self.assertIn(str(self.user), str(caught.exception))
    self.assertNotIn('\n', str(caught.exception))

  def test_loading_leaves_the_user_folder_alone(self):
    fabricate.write_mnist(self.user)
    before = sorted(self.user.rglob('*'))
    data.load('mnist', data_dir=self.user)
    self.assertEqual(sorted(self.user.rglob('*')), before)


class NoNetworkTest(absltest.TestCase):

  def test_a_dead_host_is_noticed_at_once(self):
    started = time.perf_counter()
    with mock.patch.object(prepared, '_HOSTS', {'mnist': 'http://127.0.0.1:9'}), self.assertRaisesRegex(
        DataNotFoundError, 'does not answer'):
      prepared.download('mnist')
    self.assertLess(time.perf_counter() - started, prepared._PROBE_SECONDS)


if __name__ == '__main__':
  absltest.main()
