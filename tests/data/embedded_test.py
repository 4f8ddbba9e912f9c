"""The data sets that need no file: digits and moons."""
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix import data
from jaxfix.errors import BadInputError, UnknownNameError


class DigitsTest(parameterized.TestCase):

  def test_sizes_types_and_range(self):
    s = data.load('digits')
    self.assertEqual([len(s.train), len(s.valid), len(s.repair), len(s.test), len(s.pool)],
                     [1000, 197, 300, 300, 797])
    self.assertEqual((s.train.x.shape, s.train.x.dtype, s.train.y.dtype), ((1000, 8, 8, 1), np.float32, np.int32))
    self.assertEqual((s.train.x.min(), s.train.x.max()), (0., 1.))
    self.assertEqual((s.name, s.source, s.num_classes, s.mean, s.std, s.group_names),
                     ('digits', 'sklearn:digits', 10, (0.,), (1.,), ()))

  def test_hashes_are_pinned(self):
    self.assertEqual({k: v[:16] for k, v in data.load('digits').split_sha256.items()},
                     {'train': 'f7d82e80b67d0f3e', 'valid': '96164afd3feb1460',
                      'repair': 'c79d0099c007d635', 'test': '3ab33bd4892c5766'})

  def test_seed_decides(self):
    first, again, other = (data.load('digits', seed=seed) for seed in (1, 1, 2))
    self.assertEqual(first.split_sha256, again.split_sha256)
    np.testing.assert_array_equal(first.train.x, again.train.x)
    self.assertTrue(all(first.split_sha256[k] != other.split_sha256[k] for k in first.split_sha256))

  def test_indices_name_the_rows(self):
    s = data.load('digits')
    pool_of = splits_joined(s)
    self.assertLen(np.unique(pool_of), 1797)
    rows = s.indices['valid']
    order = np.sort(np.concatenate([s.indices[k] for k in ('valid', 'repair', 'test')]))
    np.testing.assert_array_equal(s.valid.x, s.pool.x[np.searchsorted(order, rows)])

  @parameterized.parameters(-1, 1.5, True, '0', 2**63)
  def test_bad_seed(self, seed):
    with self.assertRaisesRegex(BadInputError, 'seed'):
      data.load('digits', seed=seed)


def splits_joined(s):
  return np.concatenate(list(s.indices.values()))


class MoonsTest(parameterized.TestCase):

  def test_default(self):
    s = data.load('moons')
    self.assertEqual([len(s.train), len(s.valid), len(s.repair), len(s.test), len(s.pool)],
                     [1000, 200, 400, 400, 1000])
    self.assertEqual((s.train.x.shape, s.train.x.dtype), ((1000, 2), np.float32))
    self.assertEqual(set(s.train.y), {0, 1})

  def test_number_of_points_is_cut_in_proportion_both_ways(self):
    small, large = data.load('moons', num_samples=200), data.load('moons', num_samples=4000)
    self.assertEqual([len(small.train), len(small.test)], [100, 40])
    self.assertEqual([len(large.train), len(large.test)], [2000, 800])

  def test_split_seed_keeps_the_points_and_data_seed_changes_them(self):
    a, b, c = (data.load('moons', num_samples=200, **kw) for kw in ({}, {'seed': 1}, {'data_seed': 1}))
    rows = [np.concatenate([getattr(s, k).x for k in s.indices]) for s in (a, b, c)]
    ordered = [r[np.lexsort(r.T)] for r in rows]
    np.testing.assert_array_equal(ordered[0], ordered[1])
    self.assertFalse(np.array_equal(ordered[0], ordered[2]))

  def test_noise_zero_lies_on_the_circles(self):
    s = data.load('moons', num_samples=200, noise=0.)
    upper = s.train.x[s.train.y == 0]
    np.testing.assert_allclose(np.hypot(*upper.T), 1., atol=1e-6)

  @parameterized.parameters({'num_samples': 3}, {'noise': -1.}, {'noise': float('nan')}, {'data_seed': -1})
  def test_bad_options(self, **options):
    with self.assertRaisesRegex(BadInputError, next(iter(options))):
      data.load('moons', **options)


class RegistryTest(absltest.TestCase):

  def test_unknown_name_is_told_its_neighbor(self):
    with self.assertRaisesRegex(UnknownNameError, "'mnst'.*Did you mean 'mnist'"):
      data.load('mnst')

  def test_unknown_option_is_told_its_neighbor(self):
    with self.assertRaisesRegex(UnknownNameError, "Did you mean 'noise'"):
      data.load('moons', nois=0.1)

  def test_names_are_complete(self):
    self.assertEqual(data.NAMES, ('cifar10', 'cifar10s', 'digits', 'imagenet', 'mnist', 'moons', 'tiny_imagenet',
                                  'utkface'))


if __name__ == '__main__':
  absltest.main()
