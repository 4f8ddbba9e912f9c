"""NeuRecover: undo what the last part of training spoiled, guided by an earlier checkpoint.

S. Tokui, S. Tokumoto, A. Yoshii, F. Ishikawa, T. Nakagawa, K. Munakata, S. Kikuchi, "NeuRecover: Regression-Controlled
Repair of Deep Neural Networks with Training History", SANER 2022, where the paper is silent in the form of
eAI-Repair-Toolkit. Samples that an earlier checkpoint got right and the model gets wrong are degraded; the other way
round, improved. Kernel entries that weigh heavily on degraded samples, moved much since that checkpoint and do not
weigh heavily on improved samples get new values by Arachne's particle swarm, with a fitness that weighs kept successes
by alpha. Nothing is proven.

Decided here: without improved samples no entry is protected (the toolkit divides 0 by 0); positives in the fitness are
a stratified sample, in which every class with a passing sample has one; a NaN among the scores counts 0 and is noted.
"""
import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import predict
from jaxfix.classifier import Classifier
from jaxfix.clock import Clock
from jaxfix.errors import RepairFailure, Unadaptable, require
from jaxfix.localize import history, sampling
from jaxfix.localize.batches import Batches, make_batches
from jaxfix.localize.forward_impact import raw_forward_impact
from jaxfix.localize.gradient_loss import gradient_loss, output_gradient
from jaxfix.localize.linear import kernel_layers
from jaxfix.localize.targets import Targets, edits, make_targets, write
from jaxfix.methods.method import Method
from jaxfix.problem import Edit, Problem, Repair, Split, Trace
from jaxfix.search import particle_swarm as pso
from jaxfix.search import weight_swarm

_RELAXED_RATES = (2., 4.)


@dataclasses.dataclass(frozen=True)
class Config:
  """Defaults are eAI-Repair-Toolkit's where nothing else is said.

  Attributes:
    particles: 100.
    iterations: at most; 100.
    window: stop when that many iterations have brought nothing better than all before them; 10.
    phi: bound of the two random weights of the swarm; 4.1.
    num_positives: passing samples in the fitness, drawn once; about 200. Ours are stratified and without replacement.
    alpha: weight of kept successes in the fitness; more means fewer regressions; 1.
    reduction_rate: rho, multiplies the quota of every layer; 1.
    history_gap: how many checkpoints before the model the earlier one lies; 1 (the epoch before).
    pair: positions of the two checkpoints to compare in (earlier checkpoints, oldest first, then the model), negative
      ones from the end; replaces `history_gap`. None for (-1 - history_gap, -1).
    pair_select: 'gap' as above; 'max_deg' (ours) compares the model with the checkpoint, the latest at a tie, that has
      most degraded samples: neighbors of a converged training differ in few or none.
    backward: backward impact: 'ce' (ours, as the paper says) is the gradient of the cross-entropy; 'logit_sum' of the
      sum of the logits (the toolkit takes the outputs; after a softmax their sum is constant).
    conv_support: kernels of convolutions may be changed too (ours); off: only those of Dense layers.
    include_bias_in_norm: how far an array moved is related to all arrays, biases and BatchNorm included, none of which
      can be localized; off: to kernels only.
    allow_relax: where nothing is localized, try again with rates 2 and 4, if they are higher, and quotas of at most
      half a layer (ours); off: that is a failure, as in the study.
    max_targets: at most so many entries, those with the largest movement times backward impact; 1000 (ours).
    failure_class: repair failing samples of this class only; None for all.
    failure_type: repair those of the k-th most frequent pair of true and predicted label only, 0 the most frequent.
  """
  particles: int = 100
  iterations: int = 100
  window: int = 10
  phi: float = 4.1
  num_positives: int = 200
  alpha: float = 1.
  reduction_rate: float = 1.
  history_gap: int = 1
  pair: tuple[int, ...] | None = None
  pair_select: Literal['gap', 'max_deg'] = 'gap'
  backward: Literal['ce', 'logit_sum'] = 'ce'
  conv_support: bool = False
  include_bias_in_norm: bool = True
  allow_relax: bool = False
  max_targets: int = 1000
  failure_class: int | None = None
  failure_type: int | None = None

  def __post_init__(self):
    require(self.iterations >= 0, f'iterations must not be negative, got {self.iterations}.')
    require(self.num_positives >= 0, f'num_positives must not be negative, got {self.num_positives}.')
    require(0 <= self.alpha < float('inf'), f'alpha must be finite and not negative, got {self.alpha}.')
    require(0 < self.reduction_rate < float('inf'), f'reduction_rate must be positive, got {self.reduction_rate}.')
    require(self.history_gap >= 1, f'history_gap must be at least 1, got {self.history_gap}.')
    require(self.pair is None or len(self.pair) == 2, f'pair must be two positions, got {self.pair}.')
    for name, allowed in (('pair_select', ('gap', 'max_deg')), ('backward', ('ce', 'logit_sum'))):
      require(getattr(self, name) in allowed, f'{name} must be one of {allowed}, got {getattr(self, name)!r}.')
    require(self.max_targets >= 1, f'max_targets must be at least 1, got {self.max_targets}.')
    require(self.failure_class is None or self.failure_type is None,
            'failure_class and failure_type exclude each other; set one.')
    _ = self.swarm  # checks its own fields

  @property
  def swarm(self) -> pso.Settings:
    """Constants of the search."""
    return pso.Settings(self.particles, self.phi, self.window)


@dataclasses.dataclass(frozen=True)
class RegressionFitness:
  """(N_patched / |I_neg| + 1) / (Loss(I_neg) + 1) + alpha (N_intact / |I_pos| + 1) / (Loss(I_pos) + 1).

  Loss is the mean cross-entropy; the largest value is 2 (1 + alpha). See `weight_swarm.SwarmFitness`.
  """
  alpha: float = 1.

  def __call__(self, sums: jax.Array, num_neg: jax.Array, num_pos: jax.Array) -> jax.Array:
    patched, loss_neg, intact, loss_pos = jnp.moveaxis(sums, -1, 0)
    num_neg, num_pos = jnp.maximum(num_neg, 1), jnp.maximum(num_pos, 1)
    value = ((patched / num_neg + 1) / (loss_neg / num_neg + 1)
             + self.alpha * (intact / num_pos + 1) / (loss_pos / num_pos + 1))
    return jnp.where(jnp.isfinite(value), value, 0.)


def repair(problem: Problem, config: Config, key: jax.Array) -> Repair:
  """The algorithm; see `Config`. `key` is consumed.

  Raises:
    RepairFailure: no sample is degraded, or no kernel entry could be localized.
  """
  key_positives, key_search = jax.random.split(key)
  clock, classifier, split = Clock(), problem.classifier, problem.failure_split
  with clock.phase('history'):
    predicted = predict.labels(classifier, split.x)
    negatives, passing = _failures(split, predicted, config), np.flatnonzero(predicted == split.y)
    earlier, later, rows_deg, rows_imp = _compare(problem, np.union1d(negatives, passing), config)
  with clock.phase('localize'):
    targets, notes = _localize(classifier, earlier, later, split, rows_deg, rows_imp, config)
  with clock.phase('search'):
    positives = sampling.balanced_sample(passing, split.y[passing], config.num_positives, key=key_positives)
    part = split.take(np.concatenate([negatives, positives]))
    samples, group = weight_swarm.cache_part(classifier, targets, part, config.particles)
    outcome, counts = weight_swarm.search(
      classifier, targets, samples, len(negatives), len(positives), key=key_search, settings=config.swarm,
      iterations=config.iterations, group=group, fitness=RegressionFitness(config.alpha))
    repaired = write(targets, classifier, outcome.best.vector)
    steps, patched, kept = int(outcome.steps), int(counts[0]), int(counts[2])
  found = edits(targets, classifier, repaired)
  notes = (f'{len(rows_deg)} samples were right at the earlier checkpoint and wrong at the later one; '
           f'{len(rows_imp)} the other way round.', *notes, _where(found),
           f'Fixed {patched} of the {len(negatives)} failing samples that the search aimed at; broke '
           f'{len(positives) - kept} of the {len(positives)} passing ones in its fitness, in {steps} iterations.')
  curves = {'best_fitness': np.asarray(outcome.best_curve)[:steps + 1],
            'mean_fitness': np.asarray(outcome.mean_curve)[:steps + 1]}
  return Repair(repaired, Trace(curves, dict.fromkeys(curves, steps), found, notes=notes), clock.seconds)


def _failures(split: Split, predicted: np.ndarray, config: Config) -> np.ndarray:
  """Rows of I_neg."""
  failing = np.flatnonzero(predicted != split.y)
  if config.failure_type is not None:
    return sampling.failures_of_type(failing, split.y[failing], predicted[failing], config.failure_type)
  if config.failure_class is not None:
    failing = failing[split.y[failing] == config.failure_class]
    if not failing.size:
      raise RepairFailure(f'NeuRecover: no sample of class {config.failure_class} fails; there is nothing to repair.')
  return failing


def _compare(problem: Problem, rows: np.ndarray,
             config: Config) -> tuple[Classifier, Classifier, np.ndarray, np.ndarray]:
  """The two checkpoints, and which of `rows` are degraded and improved between them (3.1)."""
  split = problem.failure_split

  def right(checkpoint):
    return predict.labels(checkpoint, split.x) == split.y

  if config.pair_select == 'max_deg':
    later, candidates = problem.classifier, _earlier(problem)[::-1]
    right_now, rights = right(later), [right(checkpoint) for checkpoint in candidates]
    best = int(np.argmax([history.degraded(before, right_now)[rows].sum() for before in rights]))
    earlier, right_before = candidates[best], rights[best]
  else:
    earlier, later = _pair(problem, config)
    right_before, right_now = right(earlier), right(later)
  rows_deg = rows[history.degraded(right_before, right_now)[rows]]
  rows_imp = rows[history.degraded(right_now, right_before)[rows]]
  if not rows_deg.size:
    raise RepairFailure('NeuRecover: no sample was right at the earlier checkpoint and wrong at the later one; compare '
                        "with an older one (history_gap, or pair_select='max_deg').")
  return earlier, later, rows_deg, rows_imp


def _earlier(problem: Problem) -> tuple[Classifier, ...]:
  """The checkpoints before the model, oldest first.

  Raises:
    Unadaptable: there is none.
  """
  found = tuple(history.before(problem.history, problem.classifier))
  if not found:
    raise Unadaptable('NeuRecover needs at least one checkpoint of the same training that is older than the model; '
                      'the history holds none.')
  return found


def _pair(problem: Problem, config: Config) -> tuple[Classifier, Classifier]:
  """The earlier and the later checkpoint by position.

  Raises:
    Unadaptable: there are not that many.
  """
  line = (*_earlier(problem), problem.classifier)
  a, b = config.pair or (-1 - config.history_gap, -1)
  where = [i + len(line) if i < 0 else i for i in (a, b)]
  if not 0 <= where[0] < where[1] < len(line):
    raise Unadaptable(f'NeuRecover was told to compare checkpoints {a} and {b}, but there are {len(line) - 1} earlier '
                      'checkpoints and the model, and the first must be the older one.')
  return line[where[0]], line[where[1]]


def _localize(classifier: Classifier, earlier: Classifier, later: Classifier, split: Split, rows_deg: np.ndarray,
              rows_imp: np.ndarray, config: Config) -> tuple[Targets, tuple[str, ...]]:
  """Section 3, steps 2 to 9, and remarks."""
  paths = _paths(classifier, config)
  moved = history.weight_movement(earlier, later)
  sets = _two_sets(split, rows_deg, rows_imp)
  backward, nan_b = _scores(gradient_loss if config.backward == 'ce' else output_gradient, classifier, sets, paths)
  forward, nan_f = _scores(raw_forward_impact, classifier, sets, paths)
  forward_shares = [history.shares_of_means(impact) for impact in forward]
  movement = history.shares_of_means({name: array for name, array in moved.items()
                                      if config.include_bias_in_norm or name.endswith('/kernel')})
  moved = {path: moved[f'params/{path}/kernel'] for path in paths}
  suspicion = {path: history.layer_suspicion(*(share[path] for share in forward_shares),
                                             movement[f'params/{path}/kernel']) for path in paths}
  notes = ('Some scores were not a number and count 0.',) if nan_b or nan_f else ()
  relaxed = [rate for rate in _RELAXED_RATES if config.allow_relax and rate > config.reduction_rate]
  for rate, share in ((config.reduction_rate, 1.), *((rate, 0.5) for rate in relaxed)):
    suspected = [history.suspicious_entries(
      history.quota(moved[path].size, suspicion[path], rate, share), moved[path],
      (forward[0][path], forward[1][path]), (backward[0][path], backward[1][path])).ravel() for path in paths]
    chosen = np.flatnonzero(np.concatenate(suspected))
    if chosen.size:
      break
  else:
    raise RepairFailure('NeuRecover localized nothing: no entry both weighs on degraded samples and moved, without '
                        'weighing on improved ones. Compare with an older checkpoint (history_gap), or raise the '
                        'quotas (reduction_rate, allow_relax).')
  if rate != config.reduction_rate:
    notes += (f'Nothing was localized at reduction rate {config.reduction_rate:g}; {rate:g} was used.',)
  if chosen.size > config.max_targets:
    weight = np.concatenate([(moved[path] * backward[0][path]).ravel() for path in paths])[chosen]
    notes += (f'Of {chosen.size} localized entries {config.max_targets} were kept (max_targets).',)
    chosen = chosen[history.top_k(weight, config.max_targets)]
  return make_targets(classifier, paths, chosen), notes


def _two_sets(split: Split, rows_deg: np.ndarray, rows_imp: np.ndarray) -> tuple[Batches, Batches]:
  """Degraded and improved samples as the same batches with other weights: one shape, one program."""
  part = split.take(np.concatenate([rows_deg, rows_imp]))
  batches = make_batches(part.x, part.y)
  first = jnp.asarray(np.arange(batches.y.size).reshape(batches.y.shape) < len(rows_deg), jnp.float32)
  return tuple(dataclasses.replace(batches, weight=batches.weight * mask) for mask in (first, 1 - first))


def _scores(measure: Callable[..., Mapping[str, jax.Array]], classifier: Classifier, sets: tuple[Batches, Batches],
            paths: tuple[str, ...]) -> tuple[list[dict[str, np.ndarray]], bool]:
  """`measure` of (degraded, improved) samples on the host; 0 of an empty set; and whether there was a NaN."""
  found, nan = [], False
  for batches in sets:
    scores = jax.device_get(measure(classifier, batches, paths=paths))
    if batches.count == 0:
      scores = jax.tree.map(np.zeros_like, scores)
    nan |= any(np.isnan(score).any() for score in scores.values())
    found.append({path: np.nan_to_num(score, nan=0.) for path, score in scores.items()})
  return found, nan


def _where(found: tuple[Edit, ...]) -> str:
  paths = [edit.path for edit in found]
  return f'Localized {len(found)} entries: ' + ', '.join(f'{paths.count(p)} in {p}' for p in dict.fromkeys(paths)) + '.'


def _paths(classifier: Classifier, config: Config) -> tuple[str, ...]:
  """Layers whose kernels may be changed.

  Raises:
    Unadaptable: there is none.
  """
  paths = tuple(layer.path for layer in kernel_layers(classifier) if config.conv_support or layer.kind == 'dense')
  if not paths:
    raise Unadaptable('NeuRecover changes kernels of Dense layers; this network has none'
                      + ('.' if config.conv_support else ' (conv_support=true lets it change convolutions).'))
  return paths


def _check(problem: Problem, config: Config) -> None:
  _paths(problem.classifier, config)
  _earlier(problem)
  if config.pair_select == 'gap':
    _pair(problem, config)


def _may_change(problem: Problem, config: Config) -> Callable[[str], bool]:
  names = {f'params/{path}/kernel' for path in _paths(problem.classifier, config)}
  return lambda name: name in names


METHOD = Method(
  name='neurecover', title='NeuRecover', code='NR', level='neuron', config=Config(), repair=repair,
  changes='single entries of Dense kernels', guarantee='none', needs=('history',),
  requires='failing and passing samples; a dense layer; an earlier checkpoint of the same training',
  source='Tokui et al. NeuRecover: Regression-Controlled Repair of Deep Neural Networks with Training History. SANER '
         '2022; eAI-Repair-Toolkit',
  summary='finds weights that an earlier checkpoint shows to have been spoiled and gives them new values by particle '
          'swarm',
  may_change=_may_change, check=_check, changes_only_edits=True)
