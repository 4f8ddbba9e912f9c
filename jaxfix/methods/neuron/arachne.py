"""Arachne: a few kernel entries, found by bidirectional localization, get new values by differential evolution.

J. Sohn, S. Kang, S. Yoo, "Arachne: Search-Based Repair of Deep Neural Networks", ACM TOSEM 32(4), 2023 (arXiv
1912.12463), and its public code. An entry is suspect if the loss of failing samples moves with it and much of their
signal passes through it, and neither holds for passing samples; the entries that no other beats in both senses are the
targets. A population search then looks for values that turn failures right and keep successes right. No gradient step
is taken, and nothing is proven.

Decided here: failing and passing samples come from the problem's failure split (the study takes the training split);
what else differs from the public code is marked in `Config`.
"""
import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import devices, predict
from jaxfix.clock import Clock
from jaxfix.errors import RepairFailure, Unadaptable, require
from jaxfix.localize import sampling
from jaxfix.localize.batches import make_batches
from jaxfix.localize.forward_impact import ConvImpact, forward_impact
from jaxfix.localize.gradient_loss import Head, Reduction, gradient_loss, identity
from jaxfix.localize.linear import kernel_layers
from jaxfix.localize.pareto import pareto_front, public_code_front
from jaxfix.localize.targets import Targets, edits, make_targets, siblings, write
from jaxfix.methods.method import Method
from jaxfix.problem import Problem, Repair, Split, Trace
from jaxfix.search import differential_evolution as de
from jaxfix.search import population, score
from jaxfix.tiling import choose_tiling

_MOST_MULTIPLY_ADDS = 1e13
_POSITIVES_IF_COSTLY = 10_000


@dataclasses.dataclass(frozen=True)
class Config:
  """Defaults are those of the public code's run scripts where nothing else is said.

  Attributes:
    population: individuals; 100.
    generations: at most; 100.
    patience: stop when the best fitness stands still in more generations than this; None for max(10, generations / 10).
    crossover: probability that a component comes from the mutant; 0.7.
    factor_low, factor_high: the mutation factor is uniform between them, drawn once a generation; 0.5 and 1.
    update: 'sync' (ours, parallel) or 'async', the public code's order, in which an individual that was replaced is
      seen by those after it in the same generation; about `population` times slower.
    alpha: weight of a failing sample against a passing one; None for 10, or 2 with two classes (gender experiment).
    failure_share: share of the failing samples that is repaired and localized with, at least one; 0.1 (script of the
      second research question).
    failure_type: None for a random share of all failing samples; k for all those of the k-th most frequent type (true
      label, predicted label), 0 the most frequent (scripts of the other research questions).
    max_pos: passing samples in the fitness: a number (stratified), None for all as published, or 'auto' (ours): all,
      unless samples times multiplications of the patched part exceed 1e13, then 10,000.
    layers: paths of the Dense and Conv layers that may be changed; None for all.
    localizer: 'pareto' as published, or its baselines 'gradient_loss' and 'random'.
    num_targets: entries that the two baselines choose; 12 (the public code has 8, 12 and 14, by subject).
    gl_reduction: 'sum' (public code) or 'mean' (as restated elsewhere) over samples in the gradient loss.
    conv_fi: 'paper' normalizes a convolution's forward impact as a dense layer's (ours: the intended reading);
      'public' does as the public code does, its NaN included; the study ran that. See `localize.forward_impact`.
    compat_double_softmax: apply a softmax to the logits before every loss, as the public code does to a model that ends
      in one. Off: logits are what they say (ours).
  """
  population: int = 100
  generations: int = 100
  patience: int | None = None
  crossover: float = 0.7
  factor_low: float = 0.5
  factor_high: float = 1.
  update: Literal['sync', 'async'] = 'sync'
  alpha: float | None = None
  failure_share: float = 0.1
  failure_type: int | None = None
  max_pos: Literal['auto'] | int | None = 'auto'
  layers: tuple[str, ...] | None = None
  localizer: Literal['pareto', 'gradient_loss', 'random'] = 'pareto'
  num_targets: int = 12
  gl_reduction: Reduction = 'sum'
  conv_fi: ConvImpact = 'paper'
  compat_double_softmax: bool = False

  def __post_init__(self):
    require(self.generations >= 0, f'generations must not be negative, got {self.generations}.')
    require(self.patience is None or self.patience >= 0, f'patience must not be negative, got {self.patience}.')
    require(self.alpha is None or self.alpha > 0, f'alpha must be positive, got {self.alpha}.')
    require(0 < self.failure_share <= 1, f'failure_share must lie in (0, 1], got {self.failure_share}.')
    require(self.max_pos in ('auto', None) or self.max_pos >= 1, f'max_pos must be at least 1, got {self.max_pos}.')
    require(self.num_targets >= 1, f'num_targets must be at least 1, got {self.num_targets}.')
    for name, allowed in (('localizer', ('pareto', 'gradient_loss', 'random')), ('gl_reduction', ('sum', 'mean')),
                          ('conv_fi', ('paper', 'public'))):
      require(getattr(self, name) in allowed, f'{name} must be one of {allowed}, got {getattr(self, name)!r}.')
    _ = self.evolution  # checks its own fields

  @property
  def evolution(self) -> de.Settings:
    """Constants of the search."""
    patience = max(10, self.generations // 10) if self.patience is None else self.patience
    return de.Settings(self.population, self.crossover, self.factor_low, self.factor_high, patience, self.update)

  @property
  def head(self) -> Head:
    """What is applied to logits before a loss."""
    return jax.nn.softmax if self.compat_double_softmax else identity


def repair(problem: Problem, config: Config, key: jax.Array) -> Repair:
  """The algorithm; see `Config`. `key` is consumed.

  Raises:
    RepairFailure: no kernel entry could be localized.
  """
  key_failures, key_balance, key_targets, key_positives, key_search = jax.random.split(key, 5)
  clock, classifier, split = Clock(), problem.classifier, problem.failure_split
  with clock.phase('localize'):
    failing, passing = problem.failing_and_passing()
    negatives = _negatives(problem, failing, config, key_failures)
    balanced = sampling.balanced_sample(passing, split.y[passing], len(negatives), key=key_balance)
    targets, remarks = _localize(problem, negatives, balanced, config, key_targets)
  with clock.phase('search'):
    positives = _positives(problem, targets, passing, config, key_positives)
    alpha = config.alpha or (2. if classifier.num_classes == 2 else 10.)
    rows = np.concatenate([negatives, positives])
    tiling = choose_tiling(classifier, targets.layers, config.population, len(rows))
    samples = score.cache_samples(classifier, _inputs(split, rows), split.y[rows], layers=targets.layers,
                                  rows=tiling.rows)
    outcome = _search(classifier, targets, samples, alpha, len(positives) + alpha * len(negatives), key=key_search,
                      settings=config.evolution, generations=config.generations, group=tiling.group, head=config.head)
    repaired, steps = write(targets, classifier, outcome.best.vector), int(outcome.steps)
  with clock.phase('count'):
    right = predict.labels(repaired, _inputs(split, rows)) == split.y[rows]
    patched, kept = right[:len(negatives)].sum(), right[len(negatives):].sum()
  notes = (*remarks, f'Fixed {patched} of the {len(negatives)} failing samples that the search aimed at; broke '
           f'{len(positives) - kept} of the {len(positives)} passing ones, in {steps} generations.')
  curves = {'best_fitness': np.asarray(outcome.best_curve)[:steps + 1],
            'mean_fitness': np.asarray(outcome.mean_curve)[:steps + 1]}
  trace = Trace(curves, dict.fromkeys(curves, steps), edits(targets, classifier, repaired), notes=notes)
  return Repair(repaired, trace, clock.seconds)


def _negatives(problem: Problem, failing: np.ndarray, config: Config, key: jax.Array) -> np.ndarray:
  """I_neg: the failing samples to repair."""
  if config.failure_type is None:
    return sampling.choose_failures(failing, config.failure_share, key=key)
  split = problem.failure_split.take(failing)
  return sampling.failures_of_type(failing, split.y, predict.labels(problem.classifier, split.x), config.failure_type)


def _positives(problem: Problem, targets: Targets, passing: np.ndarray, config: Config, key: jax.Array) -> np.ndarray:
  """I_pos of the fitness: all passing samples, or as many as `max_pos` allows."""
  most = config.max_pos
  if most == 'auto':
    cost = len(passing) * score.multiply_adds(problem.classifier, targets.layers)
    most = _POSITIVES_IF_COSTLY if cost > _MOST_MULTIPLY_ADDS else None
  return passing if most is None else sampling.balanced_sample(passing, problem.failure_split.y[passing], most, key=key)


def _localize(problem: Problem, negatives: np.ndarray, balanced: np.ndarray, config: Config,
              key: jax.Array) -> tuple[Targets, tuple[str, ...]]:
  """The target entries T, and remarks."""
  classifier, split = problem.classifier, problem.failure_split
  paths = tuple(layer.path for layer in kernel_layers(classifier, config.layers))

  def suspicion(impact) -> np.ndarray:
    """S(w) = v(I_neg, w) / (1 + v(I_pos, w)), all kernels one after the other."""
    values = [impact(classifier, make_batches(part.x, part.y), paths=paths, head=config.head)
              for part in (split.take(negatives), split.take(balanced)) if len(part)]
    return np.concatenate([np.ravel(values[0][path] / (1 + values[1][path] if len(values) > 1 else 1))
                           for path in paths])

  loss = suspicion(functools.partial(gradient_loss, reduction=config.gl_reduction))
  if np.isnan(loss).all():
    raise RepairFailure('Arachne localized nothing: the gradient loss of every kernel entry is NaN. The losses of the '
                        "failing samples overflow; check the scale of the model's inputs.")
  if config.localizer == 'random':
    draws = np.asarray(jax.random.uniform(key, loss.shape))
    chosen = np.argsort(draws, kind='stable')[:config.num_targets]
  elif config.localizer == 'gradient_loss':
    chosen = np.argsort(-loss, kind='stable')[:config.num_targets]
  else:
    impact = suspicion(functools.partial(forward_impact, conv=config.conv_fi))
    chosen = (public_code_front if config.conv_fi == 'public' else pareto_front)(loss, impact)
    if not len(chosen):
      raise RepairFailure('Arachne localized nothing: no kernel entry has both a gradient loss and a forward impact '
                          'that are numbers.')
  targets = make_targets(classifier, paths, chosen)
  return targets, (f'Localized {len(chosen)} of {loss.size} kernel entries, in {", ".join(targets.layers)}.',)


@functools.partial(devices.jit, static_argnames=('settings', 'generations', 'group', 'head'))
def _search(classifier, targets: Targets, samples: score.Samples, alpha: jax.Array, optimum: jax.Array, *,
            key: jax.Array, settings: de.Settings, generations: int, group: int,
            head: Head) -> population.Outcome:
  """Differential evolution over the values at the targets.

  Fit(p) = sum over I_pos of s(x) + alpha sum over I_neg of s(x), in float32, as its maximum minus what is missing: only
  wrong samples add to that, so that no rounding is added up over the right ones.
  """
  def missing(logits, y, failing):
    return (jnp.where(failing, alpha, 1.) * (1 - score.credit(logits, y, head)))[:, None]

  def fitness(candidates, at_least):
    sums = score.population_sums(missing, classifier, targets, samples, candidates, group=group,
                                 interesting=lambda so_far: optimum - so_far[:, 0] >= at_least)
    return optimum - sums[:, 0]

  kin = siblings(targets, classifier)
  search = de.differential_evolution(kin.mean, kin.std, *de.value_box(kin.low, kin.high), targets.used, settings)
  return population.maximize(search, fitness, key=key, max_steps=generations, enough=optimum)


def _inputs(split: Split, rows: np.ndarray) -> Any:
  """`x` of those rows, still streamed if it is."""
  return split.view(rows).x if hasattr(split, 'view') else split.x[rows]


def _check(problem: Problem, config: Config) -> None:
  if not kernel_layers(problem.classifier, config.layers):
    raise Unadaptable('Arachne changes kernel entries of Dense and Conv layers; this network has none.')


def _may_change(problem: Problem, config: Config):
  names = {f'params/{layer.path}/kernel' for layer in kernel_layers(problem.classifier, config.layers)}
  return lambda name: name in names


METHOD = Method(
  name='arachne', title='Arachne', code='AR', level='neuron', config=Config(), repair=repair,
  changes='a few entries of Dense and Conv kernels', guarantee='none',
  requires='failing and passing samples; a dense or convolution kernel',
  source='Sohn, Kang, Yoo. Arachne: Search-Based Repair of Deep Neural Networks. ACM TOSEM 32(4), 2023',
  summary='finds a few suspicious weights and gives them new values by differential evolution',
  may_change=_may_change, check=_check, changes_only_edits=True)
