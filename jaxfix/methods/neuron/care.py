"""CARE: the neurons with the largest causal effect on what is wrong are rescaled, by factors that a swarm finds.

B. Sun, J. Sun, L. H. Pham, J. Shi, "Causality-Based Neural Network Repair", ICSE 2022 (arXiv 2204.09274), in the form
for wrong predictions of Y. Ishimoto et al. Each neuron of a layer is forced to several values across its range; what
that does, on average, to accuracy is its causal effect, and the neurons with the largest are guilty. Particle swarm
looks for one factor for each of them. On the samples that it looks at the repaired network is never less accurate;
nothing is proven beyond them.

Decided here:

- The samples D are those of the problem's failure split, failing and passing together, at most 10,000 of them in the
  classes' proportions.
- The layer is the first hidden Dense layer behind the convolutions. Where the only Dense layer gives the classes, it is
  the feature vector that enters it. A factor of such a feature is folded into its row of the following kernel, which is
  exact for either sign; into what produces it (a pooling, a sum of residual branches) it could not be folded.
- Where a BatchNorm alone reads a layer, its outputs are the neurons, and its scale and bias take the factor.
- A neuron that never varies has effect 0. One whose effect is not a number, or was not looked at, is never guilty.
- Accuracy counts every sample once; the adaptation's code averages over batches, whatever their size.
- The published localization of wrong predictions looks at accuracy. `ace_target='failing_ce'` looks at the
  cross-entropy of the failing samples instead, which is the literal reading of the paper's definition.
- For fairness and safety the baseline E[Y] is subtracted as in the paper's definition; it does not change the ranking.
"""
import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import devices, predict
from jaxfix.classifier import Classifier
from jaxfix.clock import Clock
from jaxfix.errors import BadInputError, RepairFailure, Unadaptable, require
from jaxfix.localize import causal_effect, sampling
from jaxfix.localize.causal_effect import Effects, Measure, causal_effects
from jaxfix.localize.neuron_interventions import Samples, choose_group, keep_samples, scaled, split_factors, sums
from jaxfix.localize.neurons import Neurons, Unit, default_layer, find_neurons, scale_neurons
from jaxfix.methods.method import Method
from jaxfix.models.structure import layer_list
from jaxfix.predict import right
from jaxfix.problem import Problem, Repair, Split, Trace
from jaxfix.search import global_best_swarm as swarm
from jaxfix.search import population

Target = Literal['accuracy', 'failing_ce', 'backdoor', 'fairness', 'safety']

_ALPHA = {'accuracy': 1., 'failing_ce': 1., 'backdoor': 0.2, 'fairness': 0.3, 'safety': 0.2}
_BOUND = {'1+r': 1., 'r': 10.}
_MOST_VALUES = 64
_LISTED = 8


@dataclasses.dataclass(frozen=True)
class Config:
  """Defaults are the public codes' where nothing else is said.

  Attributes:
    layers: paths of the layers whose neurons may be scaled; None for one, see the top of this file.
    unit: in convolutional maps, 'channel' (ours: one neuron a channel plane) or 'position' (the public backdoor code:
      every number of the map), which can be folded into weights only where a Dense layer reads the map as it is.
    num_neurons: k, guilty neurons; None for `share` of the layers' neurons, but at least `least`.
    share: 0.05 (Fashion-MNIST; 0.2 for CIFAR-10 and GTSRB, 0.1 for tables).
    least: 5 (the backdoor code's k).
    stride: only neurons 0, stride, 2 stride, ... are looked at; 1 (ours; the adaptation takes 3 to save time).
    steps: S, values that a neuron is forced to; 4 (images and backdoors; 8 for tables, 16 for fairness).
    max_samples: about that many samples at most, stratified, at least one of every class; 10,000 (ours), None for all.
    ace_target: what effects are measured on, and what the search lowers beside keeping accuracy. 'accuracy' as
      published for wrong predictions; 'failing_ce' cross-entropy of failing samples; 'backdoor' probability of
      `target_class`; 'fairness' largest difference of that between values of `sensitive_feature`; 'safety' violations
      of the problem's spec.
    abs_ace: rank by the absolute value of effects; False: a neuron whose clamping improves things ranks last.
    alpha: weight of wrong predictions in the cost (1 - alpha) badness + alpha (1 - accuracy); None for 1 with
      'accuracy' and 'failing_ce', 0.3 with 'fairness' and 0.2 with 'backdoor' and 'safety' (the backdoor code also has
      0.9).
    target_class: t, for 'backdoor' and 'fairness'.
    sensitive_feature: for 'fairness', index of an input feature.
    sensitive_values: values that it can take; None for those that occur.
    factor_mode: '1+r' multiplies a neuron by 1 + r, |r| <= 1, from r = 0 (correctness and fairness codes); 'r' by r,
      |r| <= 10, from r = 1 (backdoor and safety codes).
    bound: of |r|; None for those.
    particles: 20 (the adaptation to images has 10).
    iterations: 100 (the adaptation has 50).
    inertia, own_pull, best_pull: w, c1, c2; 0.8, 0.41, 0.41.
    ftol, ftol_iter: the search stops when `ftol_iter` iterations in a row have moved the best cost by less than ftol
      (1 + |cost|); 1e-3 and 10.
  """
  layers: tuple[str, ...] | None = None
  unit: Unit = 'channel'
  num_neurons: int | None = None
  share: float = 0.05
  least: int = 5
  stride: int = 1
  steps: int = 4
  max_samples: int | None = 10_000
  ace_target: Target = 'accuracy'
  abs_ace: bool = False
  alpha: float | None = None
  target_class: int | None = None
  sensitive_feature: int | None = None
  sensitive_values: tuple[float, ...] | None = None
  factor_mode: Literal['1+r', 'r'] = '1+r'
  bound: float | None = None
  particles: int = 20
  iterations: int = 100
  inertia: float = 0.8
  own_pull: float = 0.41
  best_pull: float = 0.41
  ftol: float = 1e-3
  ftol_iter: int = 10

  def __post_init__(self):
    require(self.layers is None or len(self.layers) == len(set(self.layers)) > 0,
            f'layers must be distinct and at least one, got {self.layers}.')
    require(self.unit in ('channel', 'position'), f"unit must be 'channel' or 'position', got {self.unit!r}.")
    require(self.num_neurons is None or self.num_neurons >= 1, f'num_neurons must be >= 1, got {self.num_neurons}.')
    require(0 < self.share <= 1, f'share must lie in (0, 1], got {self.share}.')
    require(self.least >= 1, f'least must be at least 1, got {self.least}.')
    require(self.stride >= 1, f'stride must be at least 1, got {self.stride}.')
    require(self.steps >= 2, f'steps must be at least 2 (both ends of the range), got {self.steps}.')
    require(self.max_samples is None or self.max_samples >= 1, f'max_samples must be >= 1, got {self.max_samples}.')
    require(self.ace_target in _ALPHA, f'ace_target must be one of {", ".join(_ALPHA)}, got {self.ace_target!r}.')
    require(self.alpha is None or 0 <= self.alpha <= 1, f'alpha must lie in [0, 1], got {self.alpha}.')
    require(self.factor_mode in _BOUND, f"factor_mode must be '1+r' or 'r', got {self.factor_mode!r}.")
    require(self.bound is None or self.bound >= self.start and self.bound > 0,
            f'bound must be positive and let the search start at r = {self.start:g}, got {self.bound}.')
    require(self.iterations >= 1, f'iterations must be at least 1, got {self.iterations}.')
    require(self.ace_target not in ('backdoor', 'fairness') or self.target_class is not None,
            f'ace_target={self.ace_target!r} needs target_class.')
    require(self.ace_target != 'fairness' or self.sensitive_feature is not None,
            "ace_target='fairness' needs sensitive_feature, the index of an input feature.")
    _ = self.swarm  # checks its own fields

  @property
  def swarm(self) -> swarm.Settings:
    """Constants of the search."""
    return swarm.Settings(self.particles, self.inertia, self.own_pull, self.best_pull, self.ftol, self.ftol_iter)

  @property
  def start(self) -> float:
    """r of the unchanged network."""
    return 0. if self.factor_mode == '1+r' else 1.

  @property
  def weight(self) -> float:
    """alpha."""
    return _ALPHA[self.ace_target] if self.alpha is None else self.alpha


def repair(problem: Problem, config: Config, key: jax.Array) -> Repair:
  """The algorithm; see `Config`. `key` is consumed.

  Raises:
    RepairFailure: no neuron has an effect: all are constant, or all effects are NaN.
  """
  key_samples, key_search = jax.random.split(key)
  clock, classifier = Clock(), problem.classifier
  with clock.phase('localize'):
    part = _samples(problem, config, key_samples)
    layers, measure = _neurons(classifier, config), _measure(problem, config)
    keep = functools.partial(_keep, problem, config, part)
    kept = [keep((neurons,)) for neurons in layers]
    effects = [causal_effects(classifier, samples, measure, steps=config.steps, reduction=_reduction(config),
                              stride=config.stride) for samples in kept]
    chosen, effect = _guilty(effects, layers, config)
  with clock.phase('search'):
    samples = kept[0] if len(kept) == 1 else keep(layers)
    outcome = _search(classifier, samples, measure, jnp.asarray(chosen), config.weight, _box(config), key=key_search,
                      settings=config.swarm, iterations=config.iterations, offset=config.factor_mode == '1+r',
                      only_accuracy=config.weight == 1., group=choose_group(classifier, samples, config.particles))
    factors = np.asarray(outcome.best.vector) + (config.factor_mode == '1+r')
    repaired = _fold(classifier, layers, chosen, factors)
  with clock.phase('count'):
    before, after = (int((predict.labels(c, part.x) == part.y).sum()) for c in (classifier, repaired))
    lost = config.weight == 1. and after < before
    if lost:  # rounding: folded weights decide a near tie otherwise than scaled activations
      repaired, factors, after = classifier, np.ones_like(factors), before
  steps, total = int(outcome.steps), len(part)
  notes = (f'Guilty of {sum(n.count for n in layers)} neurons: {_listed(layers, chosen, effect, factors)}.',
           f'Right on {before} of the {total} samples before, {after} after, in {steps + 1} iterations.',
           *(['The swarm found nothing better than no change.'] if (factors == 1).all() else []))
  curves = {'best_fitness': np.asarray(outcome.best_curve)[:steps + 1],
            'mean_fitness': np.asarray(outcome.mean_curve)[:steps + 1]}
  objective = (before / total, after / total) if config.weight == 1. else None
  selected = {} if lost else dict.fromkeys(curves, steps)
  return Repair(repaired, Trace(curves, selected, notes=notes, objective=objective), clock.seconds)


def _samples(problem: Problem, config: Config, key: jax.Array) -> Split:
  """D: failing and passing samples together."""
  split = problem.failure_split
  most = len(split) if config.max_samples is None else config.max_samples
  rows = sampling.balanced_sample(np.arange(len(split)), split.y, most, key=key)
  if len(rows) == len(split):
    return split
  return split.view(rows) if hasattr(split, 'view') else split.take(rows)


def _neurons(classifier: Classifier, config: Config) -> tuple[Neurons, ...]:
  """Those of each layer, in the order of the forward pass."""
  found = [find_neurons(classifier, path, config.unit) for path in config.layers or (default_layer(classifier),)]
  if len(found) == 1:
    return tuple(found)
  same = [neurons.layer for neurons in found]
  require(len(set(same)) == len(same), f'layers {config.layers} name the same neurons twice: a BatchNorm takes the '
          f'place of the layer that it alone reads, which gives {same}. Name each once.')
  order = {layer.path: i for i, layer in enumerate(layer_list(classifier))}
  return tuple(sorted(found, key=lambda neurons: order[neurons.layer]))


def _measure(problem: Problem, config: Config) -> Measure:
  """How bad an output is: what neurons are guilty of."""
  if config.ace_target == 'safety':
    return causal_effect.Violation(tuple(
      tuple((clause.g.astype(np.float32), clause.h.astype(np.float32), np.bool_(clause.strict)) for clause in p.clauses)
      for p in problem.spec))
  return {'accuracy': causal_effect.Misclassified,
          'failing_ce': causal_effect.FailingCrossEntropy,
          'backdoor': lambda: causal_effect.TargetProbability(config.target_class),
          'fairness': lambda: causal_effect.Discrimination(config.target_class)}[config.ace_target]()


def _reduction(config: Config) -> causal_effect.Reduction:
  return 'spread' if config.ace_target in ('backdoor', 'failing_ce') else 'mean'


def _keep(problem: Problem, config: Config, part: Split, layers: tuple[Neurons, ...]) -> Samples:
  """The samples as activations, with versions of them for fairness, and with the properties that apply for safety."""
  keep = functools.partial(keep_samples, problem.classifier, y=part.y, neurons=layers)
  if config.ace_target == 'fairness':
    values = _sensitive_values(problem.failure_split.x, config)
    return keep(with_feature(part.x, config.sensitive_feature, values), versions=1 + len(values))
  if config.ace_target == 'safety':
    applies = np.concatenate([_inside(problem, batch)[:count] for batch, count in predict.padded_batches(part.x, 256)])
    return keep(part.x, applies=applies)
  return keep(part.x)


def with_feature(x: np.ndarray, feature: int, values: np.ndarray) -> np.ndarray:
  """Each sample, followed by copies of it in which one feature has each of `values`; `[n, ...]` to `[n * v, ...]`."""
  versions = np.repeat(x.reshape(len(x), 1, -1), 1 + len(values), axis=1)
  versions[:, 1:, feature] = values
  return versions.reshape(-1, *x.shape[1:])


def _sensitive_values(x: np.ndarray, config: Config) -> np.ndarray:
  if config.sensitive_values is not None:
    return np.asarray(config.sensitive_values, np.float32)
  return np.unique(x.reshape(len(x), -1)[:, config.sensitive_feature])


def _inside(problem: Problem, x: np.ndarray) -> np.ndarray:
  """`[n, p]` bool: which properties of the spec speak of which input."""
  z = np.asarray(problem.classifier.normalize(x), np.float64).reshape(len(x), -1)
  return np.stack([p.inputs.contains(z) for p in problem.spec], axis=1)


def _guilty(effects: list[Effects], layers: tuple[Neurons, ...], config: Config) -> tuple[np.ndarray, np.ndarray]:
  """`[k]` int32, the guilty neurons, counted through all layers, worst first; and the effects of all.

  Raises:
    RepairFailure: no neuron can be told from another.
  """
  effect = np.concatenate([np.ravel(e.effect) for e in effects])
  constant = np.concatenate([np.ravel(e.constant) for e in effects])
  names = ', '.join(neurons.layer for neurons in layers)
  if np.isnan(float(effects[0].baseline)):
    raise RepairFailure(f'CARE measures {config.ace_target!r}, but no sample it looks at counts in that, or outputs '
                        'overflow: give samples that do, or raise max_samples.')
  looked_at = ~np.isnan(effect)
  if looked_at.any() and constant[looked_at].all():
    raise RepairFailure(f'CARE localized nothing: every neuron of {names} whose effect is a number has the same '
                        'value in all samples. Name other layers.')
  if not looked_at.any():
    raise RepairFailure(f'CARE localized nothing: the causal effect of every neuron of {names} is NaN. Activations '
                        "overflow; check the scale of the model's inputs.")
  wanted = config.num_neurons or max(config.least, math.ceil(config.share * effect.size - 1e-9))
  order = causal_effect.rank(np.abs(effect) if config.abs_ace else effect)
  return order[:min(wanted, int(looked_at.sum()))].astype(np.int32), effect


def _box(config: Config) -> jax.Array:
  """`[3]`: where the search starts, and the lower and upper bound of r."""
  bound = _BOUND[config.factor_mode] if config.bound is None else config.bound
  return np.array([config.start, -bound, bound], np.float32)


@functools.partial(devices.jit, static_argnames=('settings', 'iterations', 'offset', 'only_accuracy', 'group'))
def _search(classifier: Classifier, samples: Samples, measure: Measure, chosen: jax.Array, alpha: jax.Array,
            box: jax.Array, *, key: jax.Array, settings: swarm.Settings, iterations: int, offset: bool,
            only_accuracy: bool, group: int) -> population.Outcome:
  """Particle swarm over the factors of the guilty neurons; the fitness is minus the cost."""
  def statistic(logits, labels):
    badness, counted = measure(logits, labels)
    return jnp.stack([right(logits[:, 0], labels.y).astype(jnp.float32), badness * counted, counted], axis=-1)

  def totals(candidates):
    return sums(lambda kept, r: scaled(classifier, samples, kept, chosen, r + 1 if offset else r), statistic, samples,
                candidates, group=group)

  def fitness(candidates, at_least):
    del at_least  # every term needs all samples
    found = totals(candidates)
    accuracy = found[:, 0] / count
    if only_accuracy:
      return accuracy - accuracy_before
    return -mixed_cost(found[:, 1] / found[:, 2], accuracy, alpha)

  start, lower, upper = (jnp.full(chosen.shape, value) for value in box)
  count = samples.labels.weight.sum()
  accuracy_before = (samples.labels.weight * ~samples.labels.failing).sum() / count
  search = swarm.global_best_swarm(start, lower, upper, settings)
  return population.maximize(search, fitness, key=key, max_steps=iterations - 1)


def mixed_cost(badness: jax.Array, accuracy: jax.Array, alpha: jax.Array) -> jax.Array:
  """(1 - alpha) badness + alpha (1 - accuracy)."""
  return (1 - alpha) * badness + alpha * (1 - accuracy)


@functools.partial(jax.jit, static_argnames=('layers',))
def _fold(classifier: Classifier, layers: tuple[Neurons, ...], chosen: jax.Array, factors: jax.Array) -> Classifier:
  """The network with the guilty neurons scaled by weights."""
  for neurons, part in zip(layers, split_factors(layers, chosen, factors), strict=True):
    classifier = scale_neurons(classifier, neurons, part)
  return classifier


def _listed(layers: tuple[Neurons, ...], chosen: np.ndarray, effect: np.ndarray, factors: np.ndarray) -> str:
  """'fc1 3 (effect 0.012, times 0.8), ...', worst first."""
  ends = np.cumsum([0, *(neurons.count for neurons in layers)])
  texts = []
  for i, factor in list(zip(chosen, factors, strict=True))[:_LISTED]:
    which = int(np.searchsorted(ends, i, side='right')) - 1
    at = np.unravel_index(i - ends[which], layers[which].values_shape)
    place = ','.join(str(int(j)) for j in at)
    texts.append(f'{layers[which].layer} {place} (effect {effect[i]:.3g}, times {factor:.3g})')
  rest = len(chosen) - len(texts)
  return '; '.join(texts) + (f'; and {rest} more' if rest else '')


def _check(problem: Problem, config: Config) -> None:
  classifier = problem.classifier
  for neurons in _neurons(classifier, config):
    if neurons.scaled_by is None:
      raise Unadaptable(f'CARE scales neurons by weights, and no weights scale the single {neurons.unit}s of '
                        f'{neurons.layer!r}. Name a Dense, Conv or BatchNorm layer, or one that such a layer reads.')
  require(config.target_class is None or 0 <= config.target_class < classifier.num_classes,
          f'target_class {config.target_class} is not one of {classifier.num_classes} classes.')
  if config.ace_target == 'fairness':
    _check_fairness(problem, config)
  if config.ace_target == 'safety':
    if not problem.spec:
      raise Unadaptable('CARE with ace_target=safety needs a spec, which this problem does not have.')
    if not all(hasattr(p.inputs, 'contains') for p in problem.spec):
      raise Unadaptable('CARE with ace_target=safety needs input sets of which membership can be tested: boxes, or '
                        'polytopes given by inequalities.')


def _check_fairness(problem: Problem, config: Config) -> None:
  x = problem.failure_split.x
  if hasattr(x, 'batches') or not np.issubdtype(x.dtype, np.floating):
    raise Unadaptable('CARE with ace_target=fairness changes one feature of an input; images have no such feature.')
  size = math.prod(problem.classifier.input_shape)
  require(0 <= config.sensitive_feature < size,
          f'sensitive_feature {config.sensitive_feature} is not one of {size} features.')
  values = len(_sensitive_values(x, config))
  require(1 <= values <= _MOST_VALUES, f'The sensitive feature has {values} values, at most {_MOST_VALUES} are '
          'supported: name some with sensitive_values.', BadInputError)


def _may_change(problem: Problem, config: Config):
  names = {name for neurons in _neurons(problem.classifier, config) for name in neurons.weights}
  return lambda name: name in names


METHOD = Method(
  name='care', title='CARE', code='CARE', level='neuron', config=Config(), repair=repair,
  changes='the weights that make a few neurons of one layer, by one factor a neuron', guarantee='none',
  requires='labeled samples, some of them failing; a hidden layer',
  source='Sun, Sun, Pham, Shi. Causality-Based Neural Network Repair. ICSE 2022',
  summary='finds the neurons with the largest causal effect and rescales them by particle swarm',
  may_change=_may_change, check=_check)
