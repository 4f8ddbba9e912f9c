"""Average causal effect of neurons: how the network's outputs get worse or better when a neuron is forced to a value.

For neuron i the values are h_is, s = 0..S-1, evenly from the smallest to the largest that it has over the samples, both
ends included. Under do(z_i = h_is), which sets it in every sample whatever that sample is, a measure of how bad outputs
are has the mean E[Y | do(z_i = h_is)]. The effect is

  mean over s of E[Y | do(z_i = h_is)] - E[Y],   or   max_s - min_s of E[Y | do(z_i = h_is)].

With Y = "misclassified" the first is the mean loss of accuracy, acc_0 - acc(i, s).

Source: Sun, Sun, Pham, Shi, "Causality-Based Neural Network Repair", ICSE 2022, and the public code of it and of its
adaptation to wrong predictions (Ishimoto et al.). A neuron that never varies has effect 0: forcing it to its only value
changes nothing. (The authors' fairness code returns that value as if it were an effect.)
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import devices
from jaxfix.classifier import Classifier
from jaxfix.errors import require
from jaxfix.localize.gradient_loss import cross_entropy
from jaxfix.localize.neuron_interventions import Labels, Samples, choose_group, clamped, plain_sums, sums
from jaxfix.predict import right

Reduction = Literal['mean', 'spread']
Measure = Callable[[jax.Array, Labels], tuple[jax.Array, jax.Array]]
"""`(logits [n, v, c], labels) -> (badness [n], counted [n])`: how bad each output is, and whether the sample counts.

A pytree, so that its numbers are arguments of a compiled program. Those below see version 0, but for `Discrimination`.
"""


def _measure(cls):
  return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


@_measure
class Misclassified:
  """1 where the prediction is wrong."""

  def __call__(self, logits: jax.Array, labels: Labels) -> tuple[jax.Array, jax.Array]:
    wrong = 1. - right(logits[:, 0], labels.y)
    return wrong, jnp.ones_like(wrong)


@_measure
class FailingCrossEntropy:
  """Cross-entropy, in nats, of the samples that the unchanged network gets wrong; others do not count."""

  def __call__(self, logits: jax.Array, labels: Labels) -> tuple[jax.Array, jax.Array]:
    counted = labels.failing.astype(jnp.float32)
    return jnp.where(labels.failing, cross_entropy(logits[:, 0], labels.y), 0), counted


@_measure
class TargetProbability:
  """P_t(x), the softmax output of class `target`: what a backdoor drives up."""
  target: int | jax.Array

  def __call__(self, logits: jax.Array, labels: Labels) -> tuple[jax.Array, jax.Array]:
    probability = jax.nn.softmax(logits[:, 0])[:, self.target]
    return probability, jnp.ones_like(probability)


@_measure
class Discrimination:
  """max over versions x' of |P_t(x') - P_t(x)|: the versions differ from x in a sensitive feature alone."""
  target: int | jax.Array

  def __call__(self, logits: jax.Array, labels: Labels) -> tuple[jax.Array, jax.Array]:
    probability = jax.nn.softmax(logits)[:, :, self.target]
    return jnp.abs(probability - probability[:, :1]).max(axis=1), jnp.ones_like(labels.weight)


@_measure
class Violation:
  """1 where a property that speaks of the sample does not hold; samples that no property speaks of do not count.

  A property is a conjunction of clauses `(g, h, strict)`, and a clause holds of logits y if at least one row of
  g y <= h does (< if `strict`), as in `jaxfix.verify.spec`; g: `[r, c]`, h: `[r]`.

  Attributes:
    properties: for each, its clauses.
  """
  properties: tuple[tuple[tuple[jax.Array, jax.Array, bool], ...], ...]

  def __call__(self, logits: jax.Array, labels: Labels) -> tuple[jax.Array, jax.Array]:
    y = logits[:, 0]
    violated = jnp.zeros(len(y), bool)
    for p, clauses in enumerate(self.properties):
      for g, h, strict in clauses:
        slack = (h[None] - y @ g.T).max(axis=1)
        violated |= labels.applies[:, p] & ~jnp.where(strict, slack > 0, slack >= 0)
    return violated.astype(jnp.float32), labels.applies.any(axis=1).astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Effects:
  """What intervening on the neurons of a layer does; shapes `[m]` are those of the neurons, `[c]` or `[h, w, c]`.

  Attributes:
    effect: `[m]`; NaN where the neuron was not looked at (`stride`) or its outputs are not numbers.
    constant: `[m]` bool, the neuron has the same value in all samples.
    baseline: E[Y] of the network as it is.
  """
  effect: jax.Array
  constant: jax.Array
  baseline: jax.Array


def causal_effects(classifier: Classifier, samples: Samples, measure: Measure, *, steps: int = 4,
                   reduction: Reduction = 'mean', stride: int = 1) -> Effects:
  """Average causal effect of the neurons of one layer on `measure`; see the top of this file.

  The number of interventions is m S / stride; the samples' route decides what each costs.

  Args:
    classifier: the network; evaluation mode.
    samples: `keep_samples` of one layer's neurons.
    measure: Y, larger is worse.
    steps: S, at least 2.
    reduction: 'mean' over the values less the baseline, or 'spread', largest less smallest.
    stride: look at neurons 0, stride, 2 stride, ...
  """
  require(steps >= 2, f'A range has two ends: steps must be at least 2, got {steps}.')
  require(stride >= 1, f'stride must be at least 1, got {stride}.')
  require(reduction in ('mean', 'spread'), f"reduction must be 'mean' or 'spread', got {reduction!r}.")
  require(len(samples.neurons) == 1, 'Effects are of the neurons of one layer; keep samples for each layer by itself.')
  jobs = -(-samples.neurons[0].count // stride) * steps
  group = choose_group(classifier, samples, jobs)
  return _causal_effects(classifier, samples, measure, steps=steps, reduction=reduction, stride=stride, group=group)


@functools.partial(devices.jit, static_argnames=('steps', 'reduction', 'stride', 'group'))
def _causal_effects(classifier: Classifier, samples: Samples, measure: Measure, *, steps: int, reduction: Reduction,
                    stride: int, group: int) -> Effects:
  (neurons,), (low,), (high,) = samples.neurons, samples.low, samples.high
  looked_at = jnp.arange(0, neurons.count, stride)
  values = intervention_values(low[looked_at], high[looked_at], steps)
  jobs = jnp.repeat(looked_at, steps), values.ravel()
  statistic = functools.partial(badness_and_count, measure)
  totals = sums(lambda kept, job: clamped(classifier, samples, kept, *job), statistic, samples, jobs, group=group)
  baseline = jnp.divide(*plain_sums(statistic, samples))
  means = (totals[:, 0] / totals[:, 1]).reshape(-1, steps)
  constant = ~(high > low)
  effect = jnp.where(constant[looked_at] & ~jnp.isnan(baseline), 0., reduce_means(means, baseline, reduction))
  effect = jnp.full(neurons.count, jnp.nan).at[looked_at].set(effect)
  shape = neurons.values_shape
  return Effects(effect.reshape(shape), constant.reshape(shape), baseline)


def intervention_values(low: jax.Array, high: jax.Array, steps: int) -> jax.Array:
  """h_is = low_i + (high_i - low_i) s / (S - 1), `[m, S]`."""
  return low[:, None] + (high - low)[:, None] * (jnp.arange(steps) / (steps - 1))[None]


def reduce_means(means: jax.Array, baseline: jax.Array, reduction: Reduction) -> jax.Array:
  """Effects `[m]` from E[Y | do(z_i = h_is)] `[m, S]` and E[Y]."""
  if reduction == 'spread':
    return means.max(axis=1) - means.min(axis=1)
  return (means - baseline).mean(axis=1)


def badness_and_count(measure: Measure, logits: jax.Array, labels: Labels) -> jax.Array:
  """A `Statistic`, `[n, 2]`: badness of the samples that count, and 1 for each of those."""
  badness, counted = measure(logits, labels)
  return jnp.stack([badness * counted, counted], axis=-1)


def rank(effect: np.ndarray) -> np.ndarray:
  """Positions in the raveled effects, largest first, lower index first at a tie, NaN last; `[m]` int."""
  return np.argsort(-np.ravel(effect), kind='stable')   # NumPy sorts NaN to the end
