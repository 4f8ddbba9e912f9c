"""Two classifiers on one split: everything that a row of results says about a repair.

`before` and `after` may have different architectures, if they take the same inputs and know the same classes.
"""
import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxfix import predict
from jaxfix.classifier import Classifier
from jaxfix.errors import EmptySplitError, require
from jaxfix.evaluate import fairness, robustness
from jaxfix.evaluate.correctness import FlipCounts, accuracy, flip_counts, relative_loss
from jaxfix.problem import Split, check_split

_NAN = float('nan')


@dataclasses.dataclass(frozen=True)
class Comparison:
  """One repaired model against the original. Fractions in [0, 1]; NaN where a metric is not defined (see `flags`).

  Attributes:
    counts: right and wrong before and after on the split; accuracies, repair rate and negative flips follow from it.
    repair_counts: the same on the repair split, or None if there was none.
    labels_before, labels_after: `[n]` int16 predicted labels; -1 for a row of logits that is not finite.
    pgd: settings of the attack, or None if there was none.
    asr_original, asr: attack success rates on the same inputs from the same starts.
    asr_original_interval, asr_interval: their 95% Wilson intervals.
    attacked: indices of the attacked inputs.
    asr_seconds: wall seconds of the attack on all models of the call, compilation included.
    aaod_original, aaod: NaN without groups.
    flags: sorted; 'no_failures', 'repair_no_failures' (a repair rate is undefined), 'nonfinite_outputs',
      'asr_n_reduced', 'too_few_correct', 'aaod_empty_class', 'normalization_differs' (the attack's space is not the
      same for both models).
  """
  counts: FlipCounts
  repair_counts: FlipCounts | None
  labels_before: np.ndarray
  labels_after: np.ndarray
  pgd: robustness.PGD | None = None
  asr_original: float = _NAN
  asr: float = _NAN
  asr_original_interval: tuple[float, float] = (_NAN, _NAN)
  asr_interval: tuple[float, float] = (_NAN, _NAN)
  attacked: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
  asr_seconds: float = 0.
  aaod_original: float = _NAN
  aaod: float = _NAN
  flags: tuple[str, ...] = ()

  @property
  def asr_rel(self) -> float:
    """(original - repaired) / original; positive is more robust."""
    return relative_loss(self.asr_original, self.asr)

  @property
  def aaod_rel(self) -> float:
    """(original - repaired) / original; positive is fairer."""
    return relative_loss(self.aaod_original, self.aaod)

  def metrics(self) -> dict[str, Any]:
    """The fields of the `metrics` group of a results row that come from evaluation: plain JSON types, None for NaN."""
    attacked = self.pgd is not None
    values = {
      'acc_original': self.counts.acc_original, 'acc': self.counts.acc, 'acc_rel': self.counts.acc_rel,
      'rr': self.counts.repair_rate, 'nfr': self.counts.negative_flip_rate,
      'rr_repair': self.repair_counts.repair_rate if self.repair_counts else None,
      'nfr_repair': self.repair_counts.negative_flip_rate if self.repair_counts else None,
      'counts': dataclasses.asdict(self.counts),
      'asr_original': self.asr_original, 'asr': self.asr, 'asr_rel': self.asr_rel,
      'asr_n': len(self.attacked) if attacked else None,
      'asr_eps': self.pgd.epsilon if attacked else None, 'asr_eps_space': self.pgd.eps_space if attacked else None,
      'aaod_original': self.aaod_original, 'aaod': self.aaod, 'aaod_rel': self.aaod_rel,
    }
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in values.items()}


def compare(before: Classifier, after: Classifier, split: Split, *, key: jax.Array, **options: Any) -> Comparison:
  """`compare_repeats` of a single repair, with the same options."""
  return compare_repeats(before, [after], split, key=key, **options)[0]


def compare_repeats(before: Classifier, after: Sequence[Classifier], split: Split, *, key: jax.Array,
                    pgd: robustness.PGD | None = None, repair_split: Split | None = None,
                    groups: np.ndarray | None = None, empty_class: fairness.EmptyClass = 'zero',
                    attack_size: int = robustness.ATTACK_SIZE, eligible: np.ndarray | None = None,
                    batch_size: int = predict.DEFAULT_BATCH) -> tuple[Comparison, ...]:
  """Compares the original with each of several repairs.

  The attack's inputs are drawn from those that the original and *all* of `after` get right, as in the study; the same
  inputs and the same starts for every model.

  Args:
    before: the original model.
    after: its repairs, the repeats of one approach.
    split: held-out samples, raw.
    key: consumed, by the attack.
    pgd: the attack; None for no ASR.
    repair_split: samples that the method has seen, for RR and NFR there, never mixed with those of `split`.
    groups: `[n]` zeros and ones for AAOD; None takes `split.group`; no AAOD if that is None too.
    empty_class: see `fairness.odds`.
    attack_size: how many inputs to attack.
    eligible: `[n]` bool, further restricts the attacked inputs: to what all compared approaches get right, or the
      repeats that are not in `after`.
    batch_size: of predictions.
  Returns:
    One comparison a repair, in order.
  Raises:
    EmptySplitError: no samples, no repairs, or a group without samples.
    BadInputError: shapes, labels, classes or groups do not fit together.
  """
  require(len(after) > 0, 'There is no repaired model to compare with.', EmptySplitError)
  groups = split.group if groups is None else np.asarray(groups)
  _check(before, after, split, repair_split, groups, eligible)

  labels = [predict.labels(c, split.x, batch_size=batch_size) for c in (before, *after)]
  counts = [flip_counts(split.y, labels[0], p) for p in labels[1:]]
  for c, p in zip(counts, labels[1:], strict=True):
    # acc_0 + RR (1 - acc_0) - NFR = acc, in integers.
    assert (c.num_right_before + c.fixed - c.broken) / c.num_samples == accuracy(split.y, p)
  repair_counts = [None] * len(after)
  if repair_split is not None and len(repair_split):
    seen = [predict.labels(c, repair_split.x, batch_size=batch_size) for c in (before, *after)]
    repair_counts = [flip_counts(repair_split.y, seen[0], p) for p in seen[1:]]

  attack, seconds = None, 0.
  if pgd is not None:
    start = time.perf_counter()
    correct = np.logical_and.reduce([p == split.y for p in labels])
    correct = correct if eligible is None else correct & np.asarray(eligible, bool)
    attack = robustness.attack_success((before, *after), split, correct, pgd=pgd, key=key, n=attack_size)
    seconds = time.perf_counter() - start

  odds = None
  if groups is not None:
    odds = [fairness.odds(split.y, p, groups, num_classes=before.num_classes, empty=empty_class) for p in labels]

  comparisons = []
  for i, repaired in enumerate(after, start=1):
    flags = {'no_failures'} if counts[i - 1].num_failures == 0 else set()
    if repair_counts[i - 1] is not None and repair_counts[i - 1].num_failures == 0:
      flags.add('repair_no_failures')
    if min(labels[0].min(), labels[i].min()) < 0:
      flags.add('nonfinite_outputs')
    fields = {}
    if attack is not None:
      flags.update(attack.flags)
      if (before.mean, before.std) != (repaired.mean, repaired.std):
        flags.add('normalization_differs')
      fields |= {'asr_original': attack.rates[0], 'asr': attack.rates[i], 'attacked': attack.indices,
                 'asr_original_interval': attack.intervals[0], 'asr_interval': attack.intervals[i]}
    if odds is not None:
      flags.update(odds[0].flags + odds[i].flags)
      fields |= {'aaod_original': odds[0].aaod, 'aaod': odds[i].aaod}
    comparisons.append(Comparison(
      counts[i - 1], repair_counts[i - 1], labels[0].astype(np.int16), labels[i].astype(np.int16), pgd=pgd,
      asr_seconds=seconds, flags=tuple(sorted(flags)), **fields))
  return tuple(comparisons)


def _check(before: Classifier, after: Sequence[Classifier], split: Split, repair_split: Split | None,
           groups: np.ndarray | None, eligible: np.ndarray | None) -> None:
  """Everything that can be refused before work."""
  require(len(split) > 0, 'Cannot evaluate on an empty split: give it samples.', EmptySplitError)
  for i, classifier in enumerate(after):
    require(classifier.num_classes == before.num_classes,
            f'Repair {i} has {classifier.num_classes} classes, but the original {before.num_classes}.')
    check_split(classifier, split, 'evaluation')
  check_split(before, split, 'evaluation')
  if repair_split is not None:
    check_split(before, repair_split, 'repair')
  if groups is not None:
    fairness.check_groups(groups, len(split))
  require(eligible is None or np.shape(eligible) == (len(split),),
          f'eligible has shape {np.shape(eligible)}, but the split {len(split)} rows.')
