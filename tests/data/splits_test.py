import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxfix import data
from jaxfix.data import splits
from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError, OutputError
from jaxfix.files import sha256_of_bytes


class ScaledSizesTest(parameterized.TestCase):

  @parameterized.parameters(
    ((17_778, 1_975, 1_976, 1_976), 23_705, (17_778, 1_975, 1_976, 1_976)),
    ((17_778, 1_975, 1_976, 1_976), 30_000, (17_778, 1_975, 1_976, 1_976)),
    ((17_778, 1_975, 1_976, 1_976), 23_314, (17_484, 1_942, 1_943, 1_943)),
    ((90_000, 10_000), 20_000, (18_000, 2_000)),
    ((3, 1), 2, (1, 0)),
    ((3, 1), 0, (0, 0)),
  )
  def test_sizes(self, published, num_rows, expected):
    self.assertEqual(splits.scaled_sizes(published, num_rows), expected)


class PoolsTest(parameterized.TestCase):

  def test_one_pool_is_a_partition_with_exact_sizes(self):
    rows = splits.one_pool(100, (60, 10, 15, 15), seed=0)
    self.assertEqual([len(rows[name]) for name in splits.SPLIT_NAMES], [60, 10, 15, 15])
    np.testing.assert_array_equal(np.sort(np.concatenate(list(rows.values()))), np.arange(100))
    self.assertTrue(all(r.dtype == np.int32 for r in rows.values()))

  def test_two_pools_partition_each_pool(self):
    rows = splits.two_pools(100, 40, (90, 10), (20, 20), seed=0)
    np.testing.assert_array_equal(np.sort(np.r_[rows['train'], rows['valid']]), np.arange(100))
    np.testing.assert_array_equal(np.sort(np.r_[rows['repair'], rows['test']]), np.arange(40))

  def test_order_is_random_and_depends_on_the_seed_alone(self):
    first, again, other = (splits.one_pool(100, (60, 10, 15, 15), seed=seed)['train'] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    self.assertFalse(np.array_equal(first, other))
    self.assertFalse(np.array_equal(first, np.sort(first)))

  def test_pools_of_equal_size_are_permuted_differently(self):
    rows = splits.two_pools(100, 100, (60, 40), (60, 40), seed=0)
    self.assertFalse(np.array_equal(rows['train'], rows['repair']))

  def test_renderings_of_an_image_stay_together(self):
    rows = splits.two_pools(100, 40, (90, 10), (20, 20), seed=0, renderings=2)
    for name in ('repair', 'test'):
      self.assertLen(rows[name], 20)
      np.testing.assert_array_equal(rows[name][0::2] + 20, rows[name][1::2])
    self.assertEmpty(set(rows['repair'] % 20) & set(rows['test'] % 20))

  def test_rest_is_the_ascending_complement(self):
    np.testing.assert_array_equal(splits.rest(5, np.array([3, 0])), [1, 2, 4])

  def test_hashes_of_the_study_split_of_mnist_are_pinned(self):
    # Any change of these bytes silently changes every published number; platforms and jax versions must agree.
    rows = splits.two_pools(60_000, 10_000, (54_000, 6_000), (5_000, 5_000), seed=0)
    self.assertEqual({name: sha256_of_bytes(r.astype('<i4').tobytes())[:16] for name, r in rows.items()},
                     {'train': '686583b6d14daddb', 'valid': '76ff0c0523732864',
                      'repair': 'fd6fa6d62977fa82', 'test': '7f8b09dc40463b61'})


class GivenIndicesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.rows = {'train': np.array([0, 1]), 'valid': np.array([2]), 'repair': np.array([0]), 'test': np.array([1])}

  def test_are_used_as_they_are(self):
    rows = splits.two_pools(3, 2, (2, 1), (1, 1), seed=0, indices=self.rows)
    np.testing.assert_array_equal(rows['train'], [0, 1])

  @parameterized.named_parameters(
    ('overlap', {'valid': np.array([1])}, 'leak'),
    ('twice', {'train': np.array([0, 0])}, 'twice'),
    ('high', {'train': np.array([3])}, 'another data set'),
    ('negative', {'train': np.array([-1])}, 'another data set'),
    ('float', {'train': np.array([0.])}, 'integer'),
    ('two_dimensional', {'train': np.array([[0]])}, 'flat'),
    ('extra_name', {'extra': np.array([0])}, 'must name'),
  )
  def test_are_checked(self, change, message):
    with self.assertRaisesRegex(BadInputError, message):
      splits.two_pools(3, 2, (2, 1), (1, 1), seed=0, indices=self.rows | change)

  def test_must_be_a_mapping(self):
    with self.assertRaisesRegex(BadInputError, 'mapping'):
      splits.one_pool(10, (4, 2, 2, 2), seed=0, indices='split.npz')


class FileTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_a_saved_split_can_be_loaded_and_used_again(self):
    first = data.load('digits', seed=3)
    path = self.folder / 'new' / 'split.npz'
    first.save_indices(path)
    self.assertEqual([p.name for p in path.parent.iterdir()], ['split.npz'])
    again = data.load('digits', seed=0, indices=data.load_indices(path))
    self.assertEqual(first.split_sha256, again.split_sha256)
    np.testing.assert_array_equal(first.test.x, again.test.x)

  def test_unwritable_folder(self):
    (self.folder / 'file').write_text('')
    with self.assertRaises(OutputError):
      data.load('digits').save_indices(self.folder / 'file' / 'split.npz')

  def test_errors_of_reading(self):
    path = self.folder / 'split.npz'
    with self.assertRaisesRegex(DataNotFoundError, 'split.npz'):
      data.load_indices(path)
    data.load('digits').save_indices(path)
    path.write_bytes(path.read_bytes()[:1000])
    with self.assertRaisesRegex(CorruptFileError, 'split.npz'):
      data.load_indices(path)
    np.savez(path, train=np.arange(3))
    with self.assertRaisesRegex(CorruptFileError, 'valid'):
      data.load_indices(path)
    np.savez(path, **{name: np.zeros(3) for name in splits.SPLIT_NAMES})
    with self.assertRaisesRegex(CorruptFileError, 'int32'):
      data.load_indices(path)
    np.savez(path, **{name: np.array([{}], object) for name in splits.SPLIT_NAMES})
    with self.assertRaisesRegex(CorruptFileError, 'split.npz'):
      data.load_indices(path)


if __name__ == '__main__':
  absltest.main()
