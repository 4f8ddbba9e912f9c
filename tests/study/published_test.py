"""The printed figures: units, flags, the copy against its source, and what goes wrong with a folder."""
import math
import pathlib
import shutil
import tempfile
import unittest

from absl.testing import absltest, parameterized

from jaxfix.errors import CorruptFileError, DataNotFoundError
from jaxfix.study import published
from jaxfix.study.aggregate import DATASETS, ORDER

_PACKAGED = pathlib.Path(published.__file__).parent / 'published'
_SOURCE = pathlib.Path(__file__).resolve().parents[3] / 'shared' / 'reference'


class PublishedTest(parameterized.TestCase):

  def test_the_copies_are_the_printed_tables(self):
    if not _SOURCE.exists():
      raise unittest.SkipTest(f'needs {_SOURCE}, which is not in this checkout')
    for path in sorted(_SOURCE.glob('study_*.csv')):
      self.assertEqual((_PACKAGED / path.name).read_bytes(), path.read_bytes(), path.name)

  def test_everything_is_there_in_the_studys_order(self):
    p = published.load()
    self.assertEqual(tuple(p.approaches), ORDER)
    self.assertEqual(tuple(p.subjects), DATASETS)
    self.assertLen(p.cells, 80)
    self.assertEqual(sum(cell.outcome == 'OK' for cell in p.cells.values()), 63)
    self.assertEqual(tuple(p.letters), ORDER)
    self.assertLen(p.postprocessing, 24)

  @parameterized.parameters(
    ('AP', 'MNIST', 'acc', 0.9906, 0.00059, '99.06±0.059'), ('AP', 'MNIST', 'acc_rel', 0.0118, math.nan, '1.18'),
    ('HUDD', 'MNIST', 'rr', 0.5079, 0.00898, '50.79±0.898'), ('AP', 'UTKFace', 'aaod', 0.0140, 0.001, '0.0140±0.001'),
    ('AP', 'UTKFace', 'aaod_rel', 0.3053, math.nan, '30.53'), ('RA', 'CIFAR10', 'asr', 0.752, math.nan, '75.20'),
    ('DTR', 'ImageNet', 'acc', 0.7043, 0.0103, '70.43±1.0300'), ('AP', 'MNIST', 'seconds', 49560., math.nan, '13h46m'))
  def test_fractions_and_seconds_inside_and_the_printed_text(self, code, dataset, metric, mean, std, text):
    figure = published.load().figure(code, dataset, metric)
    self.assertAlmostEqual(figure.mean, mean)
    self.assertEqual(math.isnan(figure.std), math.isnan(std))
    if not math.isnan(std):
      self.assertAlmostEqual(figure.std, std)
    self.assertEqual(figure.text, text)

  def test_what_is_not_printed_is_absent(self):
    p = published.load()
    self.assertIsNone(p.figure('AP', 'ImageNet', 'acc'))
    self.assertEqual(p.outcome('AP', 'ImageNet'), 'CORRUPTED')
    self.assertIsNone(p.figure('AP', 'MNIST', 'aaod'))
    self.assertIsNone(p.figure('no such', 'MNIST', 'acc'))
    self.assertEqual(p.outcome('no such', 'MNIST'), '')

  def test_thirteen_cells_break_the_identity_and_two_their_relative_change(self):
    p = published.load()
    broken = {key for key, cell in p.cells.items() if 'nfr' in cell.doubtful}
    self.assertLen(broken, 13)
    self.assertIn(('HR', 'CIFAR10S'), broken)
    self.assertTrue(p.doubtful('IN', 'CIFAR10', 'acc_rel'))
    self.assertFalse(p.doubtful('IN', 'CIFAR10', 'rr'))
    self.assertTrue(p.doubtful('RA', 'MNIST', 'rr'))
    self.assertFalse(p.doubtful('HR', 'CIFAR10S', 'asr'))
    # recomputed from the figures themselves, at the resolution of the flags
    for (code, dataset), cell in p.cells.items():
      if cell.outcome == 'OK':
        before = p.subjects[dataset].orig_accuracy
        gap = cell.values['acc'].mean - (before + cell.values['rr'].mean * (1 - before) - cell.values['nfr'].mean)
        if abs(gap) > 0.0003:
          self.assertIn((code, dataset), broken)

  def test_another_folder(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    shutil.copytree(_PACKAGED, folder, dirs_exist_ok=True)
    (folder / 'study_text_averages.csv').unlink()
    other = published.load(folder)
    self.assertEqual(other.cells, published.load().cells)
    self.assertEqual(other.text_averages, {})
    table = folder / 'study_table6_time.csv'
    text = table.read_text()
    table.write_text(text.replace('49560', 'soon'))
    with self.assertRaisesRegex(CorruptFileError, 'soon'):
      published.load(folder)
    table.write_text(text.replace('published_text', 'printed', 1))
    with self.assertRaisesRegex(CorruptFileError, 'published_text'):
      published.load(folder)
    for lines in (text.rstrip('\n').rpartition(',')[0], text.rstrip('\n') + ',more'):
      table.write_text(lines)
      with self.assertRaisesRegex(CorruptFileError, 'study_table6_time.csv: row 80 does not'):
        published.load(folder)
    table.unlink()
    with self.assertRaisesRegex(DataNotFoundError, 'study_table6_time.csv'):
      published.load(folder)


if __name__ == '__main__':
  absltest.main()
