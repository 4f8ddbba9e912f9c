"""Beside the letters: intervals over test inputs, ranks over subjects, paired differences; and when they are absent."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest
from scipy import stats

from jaxfix.study import published, store, tables
from jaxfix.study.store import Results
from tests.study.rows import PUBLISHED, make_row

_N = 1000


def _all(results):
  return {t.id: t for t in tables.all_tables(results, published.load())}


def _texts(found):
  return [[cell.text for cell in row] for row in found.rows]


def _labels(fixed, broken):
  """Predictions of 900 right before, of which the first `broken` are lost, and 100 wrong, of which `fixed` are won."""
  labels = np.zeros(_N, int)
  before = np.r_[np.zeros(900, int), np.ones(100, int)]
  after = np.r_[np.ones(broken, int), np.zeros(900 - broken + fixed, int), np.ones(100 - fixed, int)]
  return {'labels': labels, 'before': before, 'after': after}


class BootstrapTest(absltest.TestCase):

  def read(self, cells):
    """Of (approach, subject, seed, fixed, broken)."""
    folder = self.enter_context(tempfile.TemporaryDirectory())
    with store.Writer(pathlib.Path(folder)) as writer:
      for approach, subject, seed, fixed, broken in cells:
        writer.append(make_row(approach, subject, seed, counts=(900 - broken, fixed, broken, 100 - fixed)),
                      predictions=_labels(fixed, broken))
    return _all(store.read(folder))

  def test_rates_and_intervals_of_every_subject_and_of_all(self):
    found = self.read([('care', 'mnist_lenet5', 0, 40, 10), ('care', 'mnist_lenet5', 1, 40, 10),
                       ('care', 'digits_mlp', 0, 60, 0), ('arachne', 'mnist_lenet5', 0, 0, 0)])['T3.bootstrap']
    texts = {tuple(row[:2]): row[2:] for row in _texts(found)}
    self.assertEqual(list(texts), [('AR', 'MNIST'), ('CARE', 'MNIST'), ('CARE', 'digits_mlp‡'),
                                   ('CARE', 'mean over these 2')])
    self.assertTrue(any('stand-in' in note for note in found.notes))
    self.assertEqual([row[0] for row in texts.values()], ['1', '2', '1', '1 to 2'])
    care = texts['CARE', 'MNIST']
    self.assertEqual(care[1::2], ['93.00', '40.00', '1.00'])
    self.assertEqual(texts['CARE', 'mean over these 2'][3], '50.00')
    # the interval is nearly normal: 40 % of about 100 failures
    low, high = (float(x) for x in care[4].split(' to '))
    np.testing.assert_allclose((low, high), 40 + 196 * np.sqrt(.4 * .6 / 100) * np.array([-1, 1]), atol=1.)
    self.assertEqual(texts['AR', 'MNIST'][-2:], ['0.00', '0.00 to 0.00'])

  def test_rows_alone_have_none(self):
    self.assertNotIn('T3.bootstrap', _all(Results((make_row(),))))


def _rows(approaches, subjects, seeds=(0, 1)):
  """Approach k fixes 10 + 20 k + d of the 100 failures of subject d, and k + d more in the second seed."""
  fixed = lambda k, d, seed: 10 + 20 * k + d + seed * (k + d)
  return [make_row(a, subject, seed, counts=(895, fixed(k, d, seed), 5, 100 - fixed(k, d, seed)))
          for k, a in enumerate(approaches) for d, subject in enumerate(subjects) for seed in seeds]


class OverSubjectsTest(absltest.TestCase):

  def test_ranks_of_the_approaches_that_are_everywhere(self):
    rows = _rows(('care', 'arachne', 'irepair'), tuple(PUBLISHED)) + _rows(('hudd',), ('mnist_lenet5',))
    found = _all(Results(tuple(rows)))['T3.ranks']
    line = dict(zip(found.columns, next(row for row in _texts(found) if row[0] == 'RR'), strict=True))
    self.assertEqual(line['mean ranks'], 'IR 1.00, AR 2.00, CARE 3.00')
    statistic = stats.friedmanchisquare(*np.tile([[1], [2], [3]], 5))
    self.assertEqual((line['chi-square'], line['p']), (f'{statistic.statistic:.2f}', f'{statistic.pvalue:.3f}'))
    # q at 0.05 of three groups is 3.3145; 3.3145 / sqrt 2 * sqrt(3 * 4 / (6 * 5)) = 1.48
    self.assertEqual((line['critical difference'], line['worse than the first']), ('1.48', 'CARE'))
    self.assertEqual((line['subjects'], line['left out']), ('5', 'HUDD'))
    self.assertNotIn('T3.ranks', _all(Results(tuple(_rows(('care', 'arachne'), ('mnist_lenet5',))))))

  def test_paired_differences_from_five_common_subjects_on(self):
    subjects = tuple(PUBLISHED)
    rows = _rows(('care', 'arachne'), subjects) + _rows(('irepair',), subjects[:4])
    found = _all(Results(tuple(rows)))['T3.paired']
    pairs = {tuple(row[:3]): row[3:] for row in _texts(found)}
    self.assertEqual([names[1:] for names in pairs if names[0] == 'RR'], [('AR', 'CARE')])
    fixed = lambda k: np.array([10 + 20 * k + d + seed * (k + d) for d in range(5) for seed in (0, 1)])
    difference = fixed(1) - fixed(0)   # of 100 failures
    test = stats.ttest_1samp(difference, 0)
    self.assertEqual(pairs['RR', 'AR', 'CARE'][0], f'{difference.mean():+.2f}')
    low, high = test.confidence_interval(0.95)
    self.assertEqual(pairs['RR', 'AR', 'CARE'][1], f'{low:+.2f} to {high:+.2f}')
    self.assertEqual(pairs['RR', 'AR', 'CARE'][3], f'{test.pvalue:.0e}')
    self.assertNotIn('T3.paired', _all(Results(tuple(_rows(('care', 'arachne'), subjects[:4])))))


if __name__ == '__main__':
  absltest.main()
