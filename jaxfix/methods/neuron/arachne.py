"""Arachne: find a handful of weights that matter for failures, and search new values for them.

Sohn, Kang, Yoo, TOSEM 2023 (the differential-evolution generation; the particle-swarm one is `arachne_pso`). Kernel
entries are scored by gradient loss and forward impact, on failing against passing samples; those that no other entry
beats in both are the targets. Differential evolution then looks for values of the targets that correct failures and
keep what is right. No gradient step is taken, and every other weight keeps its bits.
Guarantee: none; on its own objective the result is at least as good as every candidate that was tried.

Decided here, where the specification leaves room: a candidate is dropped in the middle of its evaluation as soon as it
cannot reach its rival any more, which changes no decision of the search; the fitness is summed as what is missing from
the optimum, which float32 resolves better than the sum of what is there.
"""
import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import predict
from jaxfix.classifier import Classifier
from jaxfix.clock import Clock
from jaxfix.errors import RepairFailure, Unadaptable, require
from jaxfix.localize import sampling
from jaxfix.localize.batches import make_batches
from jaxfix.localize.forward_impact import ConvImpact, forward_impact
from jaxfix.localize.gradient_loss import Head, Reduction, gradient_loss, identity
from jaxfix.localize.linear import kernel, kernel_layers
from jaxfix.localize.pareto import pareto_front
from jaxfix.localize.targets import Targets, edits, make_targets, siblings, write
from jaxfix.methods.method import Method
from jaxfix.problem import Problem, Repair, Split, Trace
from jaxfix.search import differential_evolution as de
from jaxfix.search import population as populations
from jaxfix.search import score


@dataclasses.dataclass(frozen=True)
class Config:
  """Defaults are those of the public run scripts, unless a comment says otherwise."""
  population: int = 100                        # individuals, >= 4
  generations: int = 100                       # at most
  alpha: float = 10.                           # weight of a failure in the fitness, > 0; the scripts: 2 for two classes
  failure_share: float = 0.1                   # of the failing samples that are repaired, in (0, 1], at least one
  failure_kind: int | None = None              # k: all failures of the k-th most frequent (label, prediction) instead
  patience: int = 10                           # generations without a change of the best fitness
  crossover: float = 0.7                       # probability
  factor_low: float = 0.5                      # of the mutation factor, drawn once a generation
  factor_high: float = 1.
  update: de.Update = 'sync'                   # 'async': as the public code, one individual at a time; slow
  layers: tuple[str, ...] | None = None        # paths of Dense and Conv layers; None: all
  localizer: Literal['pareto', 'gradient_loss', 'random'] = 'pareto'   # the others are the paper's baselines
  num_targets: int = 8                         # of the baselines (8, 12 and 14 in the scripts)
  gl_reduction: Reduction = 'sum'              # over the samples of a gradient loss
  conv_fi: ConvImpact = 'paper'                # 'public': what the released code, and so the study, computed
  compat_double_softmax: bool = False          # losses of a softmax of the softmax, as on Keras models in public code
  max_pos: int | None = None                   # passing samples in the fitness; None: all, or 10,000 where too costly

  def __post_init__(self):
    require(self.population >= 4, f'population must be at least 4, got {self.population}')
    require(self.generations >= 0, f'generations must not be negative, got {self.generations}')
    require(self.alpha > 0, f'alpha must be positive, got {self.alpha}')
    require(0 < self.failure_share <= 1, f'failure_share must be in (0, 1], got {self.failure_share}')
    require(self.failure_kind is None or self.failure_kind >= 1, 'failure_kind counts from 1')
    require(self.num_targets >= 1, f'num_targets must be at least 1, got {self.num_targets}')
    require(self.max_pos is None or self.max_pos >= 1, f'max_pos must be at least 1, got {self.max_pos}')
    _ = self.settings   # checks the rest

  @property
  def settings(self) -> de.Settings:
    """Those of the search."""
    return de.Settings(self.population, self.crossover, self.factor_low, self.factor_high, self.patience, self.update)

  @property
  def head(self) -> Head:
    """What losses are computed from."""
    return jax.nn.softmax if self.compat_double_softmax else identity


def repair(problem: Problem, config: Config, key: jax.Array) -> Repair:
  """Localizes, then searches. `key` is consumed."""
  clock, classifier = Clock(), problem.classifier
  k_samples, k_localize, k_search = jax.random.split(key, 3)
  with clock.phase('choose_samples'):
    negative, positive = choose_samples(problem, config, key=k_samples)
  with clock.phase('localize'):
    targets = localize(classifier, negative, positive, config, key=k_localize)
  with clock.phase('search'):
    outcome = search(classifier, targets, negative, positive, config, key=k_search)
    repaired = write(targets, classifier, outcome.best.vector)
    steps = int(outcome.steps)
  with clock.phase('count'):
    patched = _num_right(repaired, negative)
    broken = len(positive) - _num_right(repaired, positive)
  curves = {'best_fitness': np.asarray(outcome.best_curve)[:steps + 1],
            'mean_fitness': np.asarray(outcome.mean_curve)[:steps + 1]}
  notes = (f'{patched} of {len(negative)} chosen failures corrected, {broken} of {len(positive)} passing samples '
           f'broken, {steps} generations',)
  return Repair(repaired, Trace(curves, edits=edits(targets, classifier, repaired), notes=notes), clock.seconds)


def choose_samples(problem: Problem, config: Config, *, key: jax.Array) -> tuple[Split, Split]:
  """Section 2: I_neg, the failures to repair, and I_pos, the passing samples of the fitness. `key` is consumed."""
  k_failing, k_passing = jax.random.split(key)
  failing, passing = problem.failing_and_passing()
  split, classifier = problem.failure_split, problem.classifier
  if config.failure_kind is None:
    count = max(1, round(config.failure_share * len(failing)))
    failing = np.sort(np.asarray(jax.random.permutation(k_failing, failing))[:count])
  else:
    pairs = split.y[failing] * classifier.num_classes + predict.labels(classifier, split.x[failing])
    kinds, counts = np.unique(pairs, return_counts=True)
    require(config.failure_kind <= len(kinds),
            f'failure_kind is {config.failure_kind}, but there are only {len(kinds)} kinds of failures.', RepairFailure)
    failing = failing[pairs == kinds[np.argsort(-counts, kind='stable')[config.failure_kind - 1]]]
  limit = config.max_pos
  first = kernel_layers(classifier, config.layers)[0].path
  if limit is None and len(passing) * sampling.suffix_cost(classifier, first) > _MOST_MULTIPLICATIONS:
    limit = _STRATIFIED
  if limit is not None:
    passing = passing[sampling.balanced(split.y[passing], limit, key=k_passing)]
  return split.take(failing), split.take(passing)


_MOST_MULTIPLICATIONS, _STRATIFIED = 1e13, 10_000   # a pass over the passing samples; specification, section 7


def localize(classifier: Classifier, negative: Split, positive: Split, config: Config, *, key: jax.Array) -> Targets:
  """Section 3: the kernel entries to search, chosen over all layers together. `key` is consumed.

  Raises:
    RepairFailure: no entry has a finite score.
  """
  k_balanced, k_random = jax.random.split(key)
  paths = tuple(layer.path for layer in kernel_layers(classifier, config.layers))
  size = sum(kernel(classifier, path).size for path in paths)
  if config.localizer == 'random':
    chosen = np.asarray(jax.random.permutation(k_random, size))[:config.num_targets]
    return make_targets(classifier, paths, chosen)

  reference = positive.take(sampling.balanced(positive.y, len(negative), key=k_balanced))   # 3.1
  gl = _suspiciousness(functools.partial(gradient_loss, reduction=config.gl_reduction, head=config.head),
                       classifier, negative, reference, paths)
  if config.localizer == 'gradient_loss':
    require(bool(np.isfinite(gl).any()), 'No weight has a finite gradient loss.', RepairFailure)
    return make_targets(classifier, paths, np.argsort(-gl, kind='stable')[:config.num_targets])
  fi = _suspiciousness(functools.partial(forward_impact, conv=config.conv_fi, head=config.head),
                       classifier, negative, reference, paths)
  front = pareto_front(gl, fi)   # 3.5
  require(len(front) > 0, 'The Pareto front is empty: every weight has a NaN score.', RepairFailure)
  return make_targets(classifier, paths, front)


def _suspiciousness(measure, classifier: Classifier, negative: Split, reference: Split,
                    paths: tuple[str, ...]) -> np.ndarray:
  """Section 3.4: v(I_neg) / (1 + v(I_pos)) of every kernel entry, `[sum of sizes]`; v(I_neg) if nothing passes."""
  scores = measure(classifier, make_batches(negative.x, negative.y), paths=paths)
  if len(reference):
    passing = measure(classifier, make_batches(reference.x, reference.y), paths=paths)
    scores = {path: scores[path] / (1 + passing[path]) for path in paths}
  return np.concatenate([np.asarray(scores[path]).ravel() for path in paths])


def search(classifier: Classifier, targets: Targets, negative: Split, positive: Split, config: Config, *,
           key: jax.Array) -> populations.Outcome:
  """Section 4.1: differential evolution over the values of the targets, one compiled program. `key` is consumed."""
  x, y = np.concatenate([negative.x, positive.x]), np.concatenate([negative.y, positive.y])
  tiling = score.choose_tiling(classifier, targets.layers, config.population, len(y))
  samples = score.cache_samples(classifier, x, y, layers=targets.layers, rows=tiling.rows)
  optimum = len(positive) + config.alpha * len(negative)
  return _search(classifier, targets, samples, optimum, config.alpha, key, settings=config.settings,
                 group=1 if config.update == 'async' else tiling.group, generations=config.generations,
                 head=config.head)


@functools.partial(jax.jit, static_argnames=('settings', 'group', 'generations', 'head'))
def _search(classifier: Classifier, targets: Targets, samples: score.Samples, optimum: jax.Array, alpha: jax.Array,
            key: jax.Array, *, settings: de.Settings, group: int, generations: int, head: Head) -> populations.Outcome:
  around = siblings(targets, classifier)
  lower, upper = de.value_box(around.low, around.high)

  def missing(logits, y, failing):
    """alpha or 1, times 1 - s(x): what a sample lacks; never negative, so that a sum tells early who has lost."""
    return (jnp.where(failing, alpha, 1.) * (1 - score.credit(logits, y, head)))[:, None]

  def fitness(population, at_least):
    """Fit(p) = sum of s over I_pos + alpha sum of s over I_neg = optimum - missing (4.1, step 3)."""
    lacks = score.population_sums(missing, classifier, targets, samples, population, group=group,
                                  interesting=lambda sums: optimum - sums[:, 0] >= at_least)
    return optimum - lacks[:, 0]

  evolution = de.differential_evolution(around.mean, around.std, lower, upper, targets.used, settings)
  return populations.maximize(evolution, fitness, key=key, max_steps=generations, enough=optimum)


def _num_right(classifier: Classifier, split: Split) -> int:
  return int((predict.labels(classifier, split.x) == split.y).sum()) if len(split) else 0


def _check(problem: Problem, config: Config) -> None:
  if not kernel_layers(problem.classifier, config.layers):
    raise Unadaptable('Arachne changes kernels of Dense and Conv layers; this network has none.')


def _may_change(problem: Problem, config: Config):
  names = {f'params/{layer.path}/kernel' for layer in kernel_layers(problem.classifier, config.layers)}
  return names.__contains__


METHOD = Method(
  name='arachne', title='Arachne', code='AR', level='neuron', config=Config(), repair=repair, check=_check,
  changes='a few kernel entries', may_change=_may_change, guarantee='none',
  source='Sohn, Kang, Yoo, TOSEM 2023',
  summary='finds the weights that failures depend on most and searches new values by differential evolution')
