"""`compare`: every metric against its own function, options, flags and refusals."""
import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix import errors, predict
from jaxfix.evaluate import compare, compare_repeats, correctness, fairness, robustness
from jaxfix.evaluate.robustness import PGD
from jaxfix.models.decoupled import decouple
from tests.evaluate import digits

KEY = jax.random.key(3)
ROW = {'acc_original', 'acc', 'acc_rel', 'rr', 'nfr', 'rr_repair', 'nfr_repair', 'counts', 'asr_original', 'asr',
       'asr_rel', 'asr_n', 'asr_eps', 'asr_eps_space', 'aaod_original', 'aaod', 'aaod_rel'}


def held_out():
  return digits.split().take(np.arange(1000, 1500))


def seen():
  return digits.split().take(np.arange(1500, 1797))


class CompareTest(parameterized.TestCase):

  def test_every_metric(self):
    before, after, split = digits.mlp(), digits.mlp(seed=1), held_out()
    c = compare(before, after, split, key=KEY, pgd=PGD(0.08), repair_split=seen(), attack_size=60)
    p0, p1 = predict.labels(before, split.x), predict.labels(after, split.x)
    np.testing.assert_array_equal(c.labels_before, p0)
    np.testing.assert_array_equal(c.labels_after, p1)
    self.assertEqual((c.labels_before.dtype, c.labels_after.dtype), (np.int16, np.int16))
    self.assertEqual(c.counts, correctness.flip_counts(split.y, p0, p1))
    self.assertGreater(c.counts.fixed, 0)
    self.assertGreater(c.counts.broken, 0)
    self.assertEqual(c.repair_counts, correctness.flip_counts(
      seen().y, *(predict.labels(m, seen().x) for m in (before, after))))
    self.assertEqual(c.aaod_original, fairness.odds(split.y, p0, split.group, num_classes=10).aaod)
    self.assertEqual(c.aaod, fairness.odds(split.y, p1, split.group, num_classes=10).aaod)
    both = (p0 == split.y) & (p1 == split.y)
    attack = robustness.attack_success([before, after], split, both, pgd=PGD(0.08), key=KEY, n=60)
    self.assertEqual((c.asr_original, c.asr), attack.rates)
    self.assertEqual((c.asr_original_interval, c.asr_interval), attack.intervals)
    np.testing.assert_array_equal(c.attacked, attack.indices)
    self.assertAlmostEqual(c.asr_rel, (c.asr_original - c.asr) / c.asr_original)
    self.assertAlmostEqual(c.aaod_rel, (c.aaod_original - c.aaod) / c.aaod_original)
    self.assertGreater(c.asr_seconds, 0)
    self.assertEqual(c.flags, ())

    row = c.metrics()
    self.assertEqual(set(row), ROW)
    self.assertEqual(json.loads(json.dumps(row, allow_nan=False)), row)
    self.assertEqual((row['rr'], row['nfr'], row['asr'], row['asr_n'], row['asr_eps'], row['asr_eps_space']),
                     (c.counts.repair_rate, c.counts.negative_flip_rate, c.asr, 60, 0.08, 'normalized'))
    self.assertEqual(sum(row['counts'].values()), 500)
    identity = row['acc_original'] + row['rr'] * (1 - row['acc_original']) - row['nfr']
    self.assertAlmostEqual(row['acc'], identity, places=12)

  def test_without_attack_groups_and_repair_split_their_metrics_are_empty(self):
    split = dataclasses.replace(held_out(), group=None)
    c = compare(digits.mlp(), digits.mlp(seed=1), split, key=KEY)
    row = c.metrics()
    empty = {k for k, v in row.items() if v is None}
    self.assertEqual(empty, {k for k in ROW if k.startswith(('asr', 'aaod')) or k.endswith('_repair')})
    self.assertTrue(math.isnan(c.asr_rel) and math.isnan(c.aaod_rel))

  def test_repeats_share_inputs_that_all_of_them_get_right(self):
    before, repeats, split = digits.mlp(), [digits.mlp(seed=1), digits.mlp(seed=2)], held_out()
    pair = compare_repeats(before, repeats, split, key=KEY, pgd=PGD(0.08), attack_size=60)
    right = np.logical_and.reduce([predict.labels(m, split.x) == split.y for m in (before, *repeats)])
    np.testing.assert_array_equal(pair[0].attacked, pair[1].attacked)
    self.assertTrue(right[pair[0].attacked].all())
    self.assertEqual(pair[0].asr_original, pair[1].asr_original)
    self.assertNotEqual(pair[0].counts, pair[1].counts)
    # The same scope without the other repeat at hand: its verdict comes in as a mask.
    alone = compare(before, repeats[0], split, key=KEY, pgd=PGD(0.08), attack_size=60, eligible=right)
    np.testing.assert_array_equal(alone.attacked, pair[0].attacked)
    self.assertEqual(alone.asr, pair[0].asr)

  def test_an_unchanged_model_changes_nothing(self):
    c = compare(digits.mlp(), digits.mlp(), held_out(), key=KEY, pgd=PGD(0.08), attack_size=60)
    self.assertEqual((c.counts.fixed, c.counts.broken, c.counts.acc_rel), (0, 0, 0))
    self.assertEqual((c.asr_rel, c.aaod_rel), (0, 0))
    self.assertGreater(c.asr, 0)

  def test_other_architecture(self):
    # A decoupled network whose value channel is its base's layer computes what its base computes.
    before = digits.mlp()
    c = compare(before, decouple(before, 'fc2'), held_out(), key=KEY, pgd=PGD(0.08), attack_size=60)
    self.assertEqual((c.counts.fixed, c.counts.broken), (0, 0))
    self.assertAlmostEqual(c.asr, c.asr_original, delta=0.02)

  def test_flags(self):
    before, split = digits.mlp(), digits.right(60)
    broken = before.with_params(jax.tree.map(lambda w: w * jnp.nan, before.params))
    c = compare(before, broken, split, key=KEY, pgd=PGD(0.08), repair_split=split)
    self.assertEqual(c.flags, ('aaod_empty_class', 'no_failures', 'nonfinite_outputs', 'repair_no_failures',
                               'too_few_correct'))
    self.assertEqual(set(c.labels_after.tolist()), {-1})
    self.assertEqual(c.metrics()['counts'], {'both_right': 0, 'fixed': 0, 'broken': 60, 'both_wrong': 0})
    self.assertIsNone(c.metrics()['rr'])
    self.assertEqual(c.metrics()['asr_n'], 0)
    self.assertIsNone(c.metrics()['asr'])
    scaled = dataclasses.replace(before, std=(1.01,))
    c = compare(before, scaled, split, key=KEY, pgd=PGD(0.08), attack_size=60)
    self.assertContainsSubset({'normalization_differs', 'no_failures'}, c.flags)

  def test_groups_can_be_given(self):
    split, groups = held_out(), (np.arange(500) < 200).astype(int)
    c = compare(digits.mlp(), digits.mlp(seed=1), split, key=KEY, groups=groups)
    self.assertEqual(c.aaod, fairness.odds(split.y, c.labels_after, groups, num_classes=10).aaod)

  @parameterized.named_parameters(
    ('no_samples', {'split': digits.Split(np.zeros((0, 8, 8, 1), np.float32), np.zeros(0, np.int32))}, 'empty split'),
    ('no_repairs', {'after': []}, 'no repaired model'),
    ('classes', {'after': [digits.dense(np.zeros((64, 2)), np.zeros(2), input_shape=(8, 8, 1))]}, '2 classes'),
    ('shape', {'after': [digits.dense(np.zeros((64, 10)), np.zeros(10))]}, 'shape'),
    ('one_group', {'groups': np.zeros(500, int)}, 'Group 1'),
    ('mask', {'eligible': np.ones(3, bool)}, 'eligible'))
  def test_refuses(self, change, message):
    arguments = {'before': digits.mlp(), 'after': [digits.mlp()], 'split': held_out(), 'key': KEY} | change
    with self.assertRaisesRegex(errors.BadInputError, message):
      compare_repeats(**arguments)


if __name__ == '__main__':
  absltest.main()
