"""Sections 8.1, 8.2, 8.5, 8.8 and 8.12 of the DISTRREP specification: coefficients that merge patches."""
import itertools

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix.search import merge
from jaxfix.search.merge import Patch
from tests import networks


def _network(values, classes=2):
  """One dense layer whose kernel is `values`, in C order."""
  c = networks.network('mlp', (len(values) // classes,), num_classes=classes, hidden=())
  return c.with_params({'fc1': {**c.params['fc1'], 'kernel': np.array(values, np.float32).reshape(-1, classes)}})


def _patch(entries):
  return Patch(np.array(sorted(entries)), np.array([entries[k] for k in sorted(entries)], np.float32))


def _merge(original, *patches, orientation='original_to_repaired'):
  return merge.merge_patches(_network(original), 'fc1', [_patch(p) for p in patches], orientation)


def _decoded(merged, *coefficients):
  """Position -> value."""
  c = np.zeros(merged.used.size, np.float32)
  c[:len(coefficients)] = coefficients
  vector, used = np.asarray(merge.decode(merged, jnp.asarray(c))), np.asarray(merged.targets.used)
  return dict(zip(np.asarray(merged.targets.index[0])[used].tolist(), vector[used].tolist(), strict=True))


class MergeTest(parameterized.TestCase):

  @parameterized.parameters(
    ('min_max', .3, .7, ((0, .3), (.25, .4), (1, .7))),
    ('min_max', .3, -.1, ((0, -.1), (.5, .1), (1, .3))),
    ('original_to_repaired', .3, -.1, ((0, .3), (.5, .1), (1, -.1))))
  def test_an_entry_of_one_patch(self, orientation, original, repaired, expected):
    merged = _merge((original, 9, 9, 9), {0: repaired}, orientation=orientation)
    for c, value in expected:
      self.assertAlmostEqual(_decoded(merged, c)[0], value, places=6)

  @parameterized.parameters('min_max', 'original_to_repaired')
  def test_an_entry_of_several_patches_has_a_coefficient_of_its_own(self, orientation):
    merged = _merge((.2, .3, .4, .5), {0: .9, 1: 1.3}, {0: .5, 3: 1.5}, orientation=orientation)
    self.assertEqual(int(merged.used.sum()), 3)
    values = _decoded(merged, 1., 0., .5)
    np.testing.assert_allclose([values[k] for k in (0, 1, 3)], (.55, 1.3, .5), rtol=1e-6)

  def test_three_patches_share_pairwise(self):
    """Every entry that any two have, also where the third has another: the public code loses these."""
    merged = _merge((0.,) * 6, {0: 1., 1: 2., 2: 3.}, {1: 4., 2: -5.}, {2: 6., 5: 7.})
    self.assertEqual(int(merged.used.sum()), 5)
    self.assertEqual(_decoded(merged, 1, 1, 1, .5, 1), {0: 1., 1: 2., 2: 6., 5: 7.})
    self.assertEqual(_decoded(merged, 0, 0, 0, 0, 0), {0: 0., 1: 0., 2: -5., 5: 0.})

  def test_a_coefficient_outside_the_box_is_seen_and_one_that_fills_up_is_not(self):
    merged = _merge((0.,) * 6, {0: 1.}, {1: 1.}, {2: 1.})
    self.assertEqual(merged.used.tolist(), [True, True, True, False])
    rows = np.array([(0, 1, .5, .5), (-1e-6, .5, .5, .5), (.5, 1 + 1e-6, .5, .5), (.5, .5, .5, 9.)], np.float32)
    self.assertEqual(merge.inside(merged, jnp.asarray(rows)).tolist(), [True, False, False, True])

  def test_values_stay_between_original_and_repaired_and_meet_them_exactly(self):
    rng = np.random.default_rng(1)
    original = rng.normal(size=40).astype(np.float32)
    patches = [{int(k): float(original[k] + 10. ** rng.integers(-8, 2) * rng.normal()) for k in
                rng.choice(40, 12, replace=False)} for _ in range(3)]
    for orientation in ('original_to_repaired', 'min_max'):
      merged = _merge(original, *patches, orientation=orientation)
      q = int(merged.used.sum())
      for c in (*rng.uniform(size=(8, q)).astype(np.float32), np.zeros(q), np.ones(q)):
        for position, value in _decoded(merged, *c).items():
          ends = [original[position], *(np.float32(p[position]) for p in patches if position in p)]
          self.assertBetween(np.float32(value), min(ends), max(ends))
          if c[0] in (0, 1):
            self.assertIn(np.float32(value), ends)

  def test_the_order_of_the_patches_permutes_coefficients_only(self):
    patches = ({0: 1., 1: 2.}, {1: 3., 4: 4.}, {5: 5.})
    for orientation in ('original_to_repaired', 'min_max'):
      first = _merge((.5,) * 6, *patches, orientation=orientation)
      for order in itertools.permutations(range(3)):
        other = _merge((.5,) * 6, *(patches[i] for i in order), orientation=orientation)
        c = np.array((.1, .6, .9, .3), np.float32)
        self.assertEqual(_decoded(first, *c), _decoded(other, *c[[*order, 3]]))

  def test_one_patch_alone(self):
    merged = _merge((.1, .2, .3, .4), {0: 1., 1: 2.}, {1: 3., 2: 4.})
    original = np.array((.1, .2, .3, 0.), np.float32)
    np.testing.assert_array_equal(merge.values_of(merged, original, _patch({1: 3., 2: 4.})), np.float32((.1, 3, 4, 0)))


if __name__ == '__main__':
  absltest.main()
