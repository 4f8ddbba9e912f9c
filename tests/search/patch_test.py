"""Patched evaluation where it takes its shortcuts: channels followed through pooling, shared channels, many targets."""
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax import linen as nn

from jaxfix import classifier as classifiers
from jaxfix import devices, intervene
from jaxfix.errors import RepairFailure
from jaxfix.localize.linear import kernel
from jaxfix.localize.targets import make_targets, values, write
from jaxfix.models import layers
from jaxfix.search import score
from jaxfix.search.patch import make_patch, patched_suffix
from jaxfix.tiling import choose_tiling
from tests import tiny


class Branches(nn.Module):
  """Strides, padding, groups, average pooling, a dense layer on a map, and a side branch around the cut."""

  @nn.compact
  def __call__(self, x, train=False):
    x = layers.Relu(name='relu0')(layers.Conv(8, (3, 3), name='stem')(x))
    y = layers.Conv(16, (3, 3), strides=(2, 2), name='conv1')(x)
    y = layers.AvgPool((2, 2), name='pool')(layers.Relu(name='relu1')(y))
    y = layers.Relu(name='relu2')(layers.Conv(8, (2, 2), feature_group_count=2, name='grouped')(y))
    side = layers.Dense(8, name='side')(layers.GlobalAvgPool(name='gap')(x))
    y = layers.Dense(8, name='on_map')(y)
    y = layers.Add(name='add')(layers.GlobalAvgPool(name='gap2')(y), side)
    return layers.Dense(5, name='out')(layers.Relu(name='relu3')(y))


def _branches():
  return classifiers.create(Branches(), input_shape=(8, 8, 3), num_classes=5, key=jax.random.key(0))


def _compare(test, c, x, paths, positions, scale=1.):
  """The patched suffix against the whole network with the targets written."""
  targets = make_targets(c, paths, np.asarray(positions))
  vector = values(targets, c) + scale * jax.random.normal(jax.random.key(1), (targets.used.size,))
  z = c.normalize(x)
  cache = intervene.prefix(c, z, targets.layers)
  got = jax.jit(patched_suffix)(c, cache, targets, make_patch(c, targets, vector))
  whole = write(targets, c, vector).logits_of_normalized(z)
  test.assertGreater(float(jnp.abs(whole - c.logits_of_normalized(z)).max()), 1e-3)  # the patch does something
  np.testing.assert_allclose(got, whole, atol=1e-4)


class PatchTest(parameterized.TestCase):

  @parameterized.parameters('stem', 'conv1', 'grouped', 'side', 'on_map')
  @pytest.mark.slow
  def test_any_layer_can_come_first(self, path):
    c, size = _branches(), kernel(_branches(), path).size
    x = np.random.default_rng(0).random((9, 8, 8, 3), np.float32)
    _compare(self, c, x, (path,), [size // 3, size - 1])

  @pytest.mark.slow   # compiles for long; each branch by itself is above
  def test_side_branch_and_main_branch_together(self):
    c = _branches()
    x = np.random.default_rng(0).random((9, 8, 8, 3), np.float32)
    offset = kernel(c, 'conv1').size
    _compare(self, c, x, ('conv1', 'side', 'grouped'), [5, 17, offset + 3, offset + 64 + 7])

  @parameterized.parameters('conv1', 'conv2', 'fc1')
  def test_targets_that_share_a_channel_count_once(self, path):
    problem = tiny.problem('lenet5')
    channels = kernel(problem.classifier, path).shape[-1]
    _compare(self, problem.classifier, problem.valid.x, (path,), [1, 1 + channels, 1 + 3 * channels])

  def test_more_targets_than_are_unrolled(self):
    problem = tiny.problem('lenet5')
    _compare(self, problem.classifier, problem.valid.x, ('fc1', 'fc2'), np.arange(40) * 7, scale=.3)

  def test_a_candidate_leaves_nothing_behind_for_the_next(self):
    """The public code writes candidates through an alias into the weights that later ones start from."""
    problem = tiny.problem('lenet5')
    c, split = problem.classifier, problem.valid
    targets = make_targets(c, ('conv2', 'fc3'), np.array([4, kernel(c, 'conv2').size + 9]))
    old = values(targets, c)
    samples = score.cache_samples(c, split.x, split.y, layers=targets.layers, rows=50)
    statistic = lambda logits, y, failing: score.tally(logits, y, failing, lambda v: v)
    sums = jax.jit(lambda p: score.population_sums(statistic, c, targets, samples, p, group=1))
    alone, after_a_wild_one = sums(old[None])[0], sums(jnp.stack([old + 50., old]))[1]
    np.testing.assert_array_equal(alone, after_a_wild_one)
    np.testing.assert_array_equal(values(targets, c), old)


class SamplesTest(absltest.TestCase):

  def _sums(self, split, population):
    c = tiny.problem('lenet5').classifier
    targets = make_targets(c, ('fc2', 'fc3'), np.array([1, 5, 200]))
    samples = score.cache_samples(c, split.x, split.y, layers=targets.layers, rows=16)
    statistic = lambda logits, y, failing: score.tally(logits, y, failing, lambda v: v)
    return np.asarray(score.population_sums(statistic, c, targets, samples, population, group=3))

  def test_the_order_of_samples_changes_nothing(self):
    split = tiny.problem('lenet5').repair
    population = jax.random.normal(jax.random.key(0), (4, 4))
    shuffled = split.take(np.random.default_rng(0).permutation(len(split)))
    np.testing.assert_allclose(self._sums(split, population), self._sums(shuffled, population), rtol=1e-5)

  def test_failing_first_then_by_margin_and_filling_counts_nothing(self):
    problem = tiny.problem('lenet5')
    c, split = problem.classifier, problem.repair
    samples = score.cache_samples(c, split.x, split.y, layers=('fc3',), rows=16)
    rows = np.asarray(samples.order).ravel()[np.asarray(samples.weight).ravel() > 0]
    self.assertEqual(sorted(rows.tolist()), list(range(len(split))))
    logits = np.asarray(c.logits(split.x))
    own = logits[np.arange(len(split)), split.y]
    gap = own - np.where(np.arange(10) == split.y[:, None], -np.inf, logits).max(1)
    self.assertTrue((np.diff(gap[rows]) >= -1e-5).all())
    np.testing.assert_array_equal(np.asarray(samples.failing)[:len(split)], logits.argmax(1) != split.y)

  def test_scarce_memory_makes_tiles_smaller_and_refuses_what_does_not_fit(self):
    c, split = tiny.problem('lenet5').classifier, tiny.problem('lenet5').repair
    with mock.patch.object(devices, 'free_bytes', lambda: 64 << 30):
      plenty = choose_tiling(c, ('conv1',), 1000, 100_000)
    with mock.patch.object(devices, 'free_bytes', lambda: 32 << 20):
      scarce = choose_tiling(c, ('conv1',), 1000, 100_000)
    self.assertGreater(plenty.rows * plenty.group, scarce.rows * scarce.group)
    with mock.patch.object(devices, 'free_bytes', lambda: 1000), self.assertRaisesRegex(RepairFailure, 'fc2.*GiB'):
      score.cache_samples(c, split.x, split.y, layers=('fc2',), rows=16)

  def test_free_memory_is_a_positive_number_of_bytes(self):
    self.assertGreater(devices.free_bytes(), 1 << 20)
    with mock.patch('builtins.open', side_effect=FileNotFoundError):
      self.assertGreater(devices.free_bytes(), 1 << 20)


if __name__ == '__main__':
  absltest.main()
