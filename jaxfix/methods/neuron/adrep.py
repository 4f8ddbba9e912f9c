"""AdRep: Arachne's particle swarm, which localizes again whenever it gets stuck.

D. Li Calsi, M. Duran, T. Laurent, X.-Y. Zhang, P. Arcaini, F. Ishikawa, "Adaptive Search-based Repair of Deep Neural
Networks", GECCO 2023, where the paper is silent in the form of its public code. A swarm gives new values to a few
entries of the last kernel; when its best fitness stagnates, or when localization blames other entries for what the best
network of a while ago still gets wrong, the best patch is kept, the samples that fail now are localized again, and a
new swarm goes on from there. The fitness stays about the failing and passing samples of the beginning. Nothing is
proven.

Decided here: patches add up, and the best network after any round is returned (the public code returns the last patch
alone); the switch criterion takes the place of Arachne's own stop; passing samples are not rebuilt at a switch, since
localization reads failing ones only; with failing samples of several classes, broken samples of all those classes count
as failing.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import predict
from jaxfix.classifier import Classifier
from jaxfix.clock import Clock
from jaxfix.errors import RepairFailure, Unadaptable, require
from jaxfix.localize import output_layer, sampling
from jaxfix.localize.batches import Batches, make_batches
from jaxfix.localize.gradient_front import batch_front
from jaxfix.localize.linear import kernel, with_kernels
from jaxfix.localize.output_layer import HEAD_PATH
from jaxfix.localize.targets import UNUSED, Targets, edits, make_targets, widen, write
from jaxfix.methods.method import Method
from jaxfix.problem import Problem, Repair, Split, Trace
from jaxfix.search import particle_swarm as pso
from jaxfix.search import score, weight_swarm

_SLOTS = 64
"""Targets of every round are padded to so many slots, so that one compiled swarm serves all rounds."""


@dataclasses.dataclass(frozen=True)
class Config:
  """Defaults are the public code's where nothing else is said.

  Attributes:
    particles: 100.
    iterations: of all rounds together; 100.
    rounds: at most; 10.
    criterion: when to localize again: 'stagnation' or 'localization', see `stagnated` and `_localization_moved`.
    window: iterations that the criterion looks back; 10 (published: 10 and 15).
    threshold: of the criterion; None for 0.02 ('stagnation'; published: 0.005, 0.01, 0.02) or 0.6 ('localization', the
      Jaccard index; published: 0.5, 0.6, 0.7). That of stagnation is halved at every switch. 0 never switches.
    phi: bound of the two random weights of the swarm; 4.1.
    num_positives: passing samples in the fitness, drawn once; 200.
    candidates_per_failure: entries kept by gradient loss, per failing sample; 20.
    failure_class: repair failing samples of this class only, as in the authors' experiments; None for all.
    failure_share: share of those failing samples that is repaired, at least one; 0.1 (as `arachne_pso`), and 1 suits a
      single class.
  """
  particles: int = 100
  iterations: int = 100
  rounds: int = 10
  criterion: Literal['stagnation', 'localization'] = 'stagnation'
  window: int = 10
  threshold: float | None = None
  phi: float = 4.1
  num_positives: int = 200
  candidates_per_failure: int = 20
  failure_class: int | None = None
  failure_share: float = 0.1

  def __post_init__(self):
    require(self.iterations >= 1, f'iterations must be at least 1, got {self.iterations}.')
    require(self.rounds >= 1, f'rounds must be at least 1, got {self.rounds}.')
    require(self.criterion in ('stagnation', 'localization'),
            f"criterion must be 'stagnation' or 'localization', got {self.criterion!r}.")
    require(self.window >= 1, f'window must be at least 1, got {self.window}.')
    require(self.threshold is None or 0 <= self.threshold <= 1, f'threshold must lie in [0, 1], got {self.threshold}.')
    require(self.num_positives >= 0, f'num_positives must not be negative, got {self.num_positives}.')
    require(self.candidates_per_failure >= 1,
            f'candidates_per_failure must be at least 1, got {self.candidates_per_failure}.')
    require(0 < self.failure_share <= 1, f'failure_share must lie in (0, 1], got {self.failure_share}.')
    _ = self.swarm  # checks its own fields

  @property
  def swarm(self) -> pso.Settings:
    """Constants of the search."""
    return pso.Settings(self.particles, self.phi)

  @property
  def first_threshold(self) -> float:
    """Of the first round."""
    if self.threshold is not None:
      return self.threshold
    return 0.02 if self.criterion == 'stagnation' else 0.6


@dataclasses.dataclass(frozen=True)
class _Pool:
  """What may count as failing: I_neg and the passing samples of its classes, as inputs `x` of the output layer."""
  x: np.ndarray
  y: np.ndarray
  batches: Batches

  def failing(self, head: Classifier) -> np.ndarray:
    """`[n]` bool: wrong now."""
    return predict.labels(head, self.x) != self.y


@dataclasses.dataclass(frozen=True)
class _Round:
  """The output layer after a round, its fitness, the targets, and the curves of its `steps` iterations."""
  head: Classifier
  fitness: float
  targets: Targets
  steps: int
  curves: np.ndarray


def repair(problem: Problem, config: Config, key: jax.Array) -> Repair:
  """The algorithm; see `Config`. `key` is consumed.

  Raises:
    RepairFailure: no sample of the chosen class fails, or no kernel entry could be localized.
  """
  key_failures, key_positives, key_search = jax.random.split(key, 3)
  clock, classifier, split = Clock(), problem.classifier, problem.failure_split
  path = _output_path(problem, config)
  with clock.phase('localize'):
    head, inputs = output_layer.head(classifier, path), output_layer.inputs(classifier, split.x, path)
    wrong = predict.labels(head, inputs) != split.y
    negatives, passing = _failures(split, wrong, config, key=key_failures), np.flatnonzero(~wrong)
    pool = _make_pool(inputs, split.y, negatives, passing)
    targets = _localize(head, pool, pool.failing(head), config)
  with clock.phase('search'):
    positives = sampling.part_even_sample(passing, split.y[passing], config.num_positives, key=key_positives)
    rows = np.concatenate([negatives, positives])
    part = Split(inputs[rows], split.y[rows])
    rounds = _adapt(head, targets, pool, part, len(negatives), config, key=key_search)
    best = int(np.argmax([r.fitness for r in rounds]))
    repaired = with_kernels(classifier, {path: kernel(rounds[best].head, HEAD_PATH)})
    right = predict.labels(rounds[best].head, part.x) == part.y
  found = edits(_union(classifier, path, rounds[:best + 1]), classifier, repaired)
  done = np.cumsum([r.steps for r in rounds])
  switches = f'switched after iterations {", ".join(map(str, done[:-1]))}' if len(rounds) > 1 else 'never switched'
  patched, broken = int(right[:len(negatives)].sum()), int((~right[len(negatives):]).sum())
  notes = (f'Localized {len(found)} entries of the kernel of {path} in the first {best + 1} of {len(rounds)} rounds; '
           f'{switches}.',
           f'Fixed {patched} of the {len(negatives)} failing samples that the search aimed at; broke {broken} of the '
           f'{len(positives)} passing ones in its fitness, in {done[-1]} iterations.')
  best_of_round, mean = np.concatenate([rounds[0].curves[:, :1], *(r.curves[:, 1:] for r in rounds)], axis=1)
  curves = {'best_fitness': np.maximum.accumulate(best_of_round), 'round_fitness': best_of_round, 'mean_fitness': mean}
  selected = dict.fromkeys(curves, int(done[best]))
  return Repair(repaired, Trace(curves, selected, found, notes=notes), clock.seconds)


def _failures(split: Split, wrong: np.ndarray, config: Config, *, key: jax.Array) -> np.ndarray:
  """Rows of I_neg."""
  failing = np.flatnonzero(wrong if config.failure_class is None else wrong & (split.y == config.failure_class))
  if not failing.size:
    raise RepairFailure(f'AdRep: no sample of class {config.failure_class} fails; there is nothing to repair.')
  return sampling.choose_failures(failing, config.failure_share, key=key)


def _make_pool(inputs: np.ndarray, y: np.ndarray, negatives: np.ndarray, passing: np.ndarray) -> _Pool:
  rows = np.concatenate([negatives, passing[np.isin(y[passing], y[negatives])]])
  return _Pool(inputs[rows], y[rows], make_batches(inputs[rows], y[rows]))


def _localize(head: Classifier, pool: _Pool, failing: np.ndarray, config: Config) -> Targets:
  """Entries to blame for the samples that fail now; at least `_SLOTS` slots."""
  weight = np.zeros(pool.batches.weight.shape, np.float32)
  weight.ravel()[:len(failing)] = failing
  batches = dataclasses.replace(pool.batches, weight=jnp.asarray(weight))
  return widen(batch_front(head, batches, HEAD_PATH, config.candidates_per_failure), _SLOTS)


def _adapt(head: Classifier, targets: Targets, pool: _Pool, part: Split, num_neg: int, config: Config, *,
           key: jax.Array) -> list[_Round]:
  """Rounds of searching until the criterion says to localize again, as long as iterations and failures are left."""
  samples, group = weight_swarm.cache_part(head, targets, part, config.particles)
  threshold, left, rounds = config.first_threshold, config.iterations, []
  for key_round in jax.random.split(key, config.rounds):
    vectors, curves, steps = jax.device_get(_swarm(
      head, targets, samples, num_neg, len(part) - num_neg, key=key_round, settings=config.swarm, group=group,
      iterations=config.iterations, left=left, window=config.window,
      threshold=threshold if config.criterion == 'stagnation' else -np.inf))
    steps = int(steps)
    if config.criterion == 'localization':
      steps = _localization_moved(head, targets, pool, vectors[:steps + 1], threshold, config)
    else:
      threshold /= 2
    head = write(targets, head, vectors[steps])
    rounds.append(_Round(head, float(curves[0, steps]), targets, steps, curves[:, :steps + 1]))
    left -= steps
    failing = pool.failing(head)
    if left == 0 or not failing.any():
      break
    try:
      targets = _localize(head, pool, failing, config)
    except RepairFailure:   # the patch overflows: its fitness is 0, and an earlier one is returned
      break
  return rounds


@functools.partial(jax.jit, static_argnames=('settings', 'group', 'iterations', 'window'))
def _swarm(head: Classifier, targets: Targets, samples: score.Samples, num_neg: jax.Array, num_pos: jax.Array, *,
           key: jax.Array, settings: pso.Settings, group: int, iterations: int, left: jax.Array, window: int,
           threshold: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """A swarm around the current values that runs for `left` iterations, at most `iterations`, or until it stagnates.

  Returns:
    The best particle after each iteration `[iterations + 1, d]` (0: the first positions); its fitness and the mean
    fitness of the swarm `[2, iterations + 1]`; and the number of iterations run. Entries after it are NaN.
  """
  swarm, evaluate, _ = weight_swarm.swarm_of_weights(head, targets, samples, num_neg, num_pos, settings=settings,
                                                     group=group, fitness=normalized_fitness, first='current')

  def record(state, vectors, curves, t):
    return (vectors.at[t].set(state.best.vector),
            curves.at[:, t].set(jnp.stack([state.best.fitness, state.fitness.mean()])))

  def running(carry):
    _, _, curves, t = carry
    return (t < left) & ~stagnated(curves[0], t, window, threshold)

  def advance(carry):
    state, vectors, curves, t = carry
    state = swarm.step(state, evaluate)
    return state, *record(state, vectors, curves, t + 1), t + 1

  state = swarm.init(key, evaluate)
  empty = jnp.full((iterations + 1, targets.used.size), jnp.nan), jnp.full((2, iterations + 1), jnp.nan)
  start = (state, *record(state, *empty, 0), jnp.int32(0))
  _, vectors, curves, t = jax.lax.while_loop(running, advance, start)
  return vectors, curves, t


def stagnated(best_curve: jax.Array, t: jax.Array, window: int, threshold: jax.Array) -> jax.Array:
  """The best fitness rose in the last `window` iterations by less than `threshold`, relatively.

  Args:
    best_curve: `[iterations + 1]` best fitness so far; entry 0, of the first positions, is not looked at.
    t: iterations run; there must be more than `window`.
    window: iterations to look back.
    threshold: of the relative rise.
  """
  before = best_curve[jnp.maximum(t - window, 0)]
  return (t > window) & ((best_curve[t] - before) / before < threshold)


def _localization_moved(head: Classifier, targets: Targets, pool: _Pool, vectors: np.ndarray, threshold: float,
                        config: Config) -> int:
  """The first iteration at which localization in the best network of a window ago blames other entries, or the last.

  'Other' is a Jaccard index with the current targets below `threshold`; a network without failing samples is other,
  unless `threshold` is 0, with which nothing is.
  What the swarm does does not depend on the criterion, so that it may be looked at afterwards.
  """
  moved = False
  for t in range(config.window + 1, len(vectors)):
    old = t - config.window
    if threshold and (old == 1 or not np.array_equal(vectors[old], vectors[old - 1])):
      then = write(targets, head, vectors[old])
      failing = pool.failing(then)
      moved = not failing.any() or jaccard(targets, _localize(then, pool, failing, config)) < threshold
    if moved:
      return t
  return len(vectors) - 1


def jaccard(a: Targets, b: Targets) -> float:
  """Shared entries over all entries of two sets of targets in the same kernel."""
  one, other = (set(np.asarray(t.index[0]).tolist()) - {UNUSED} for t in (a, b))
  return len(one & other) / len(one | other)


def normalized_fitness(sums: jax.Array, num_neg: jax.Array, num_pos: jax.Array) -> jax.Array:
  """(N_patched + 1) / ((Loss(I_neg) + 1) |I_neg|) + (N_intact + 1) / ((Loss(I_pos) + 1) |I_pos|), a `SwarmFitness`."""
  patched, loss_neg, intact, loss_pos = jnp.moveaxis(sums, -1, 0)
  num_neg, num_pos = jnp.maximum(num_neg, 1), jnp.maximum(num_pos, 1)
  value = ((patched + 1) / ((loss_neg / num_neg + 1) * num_neg) + (intact + 1) / ((loss_pos / num_pos + 1) * num_pos))
  return jnp.where(jnp.isfinite(value), value, 0.)


def _union(classifier: Classifier, path: str, rounds: list[_Round]) -> Targets:
  """Every entry that one of the rounds set."""
  index = np.unique(np.concatenate([np.asarray(r.targets.index[0]) for r in rounds]))
  return make_targets(classifier, (path,), index[index != UNUSED])


def _output_path(problem: Problem, config: Config) -> str:
  """Raises `Unadaptable` for a network that does not end in a Dense layer."""
  del config
  path = output_layer.output_layer(problem.classifier)
  if path is None:
    raise Unadaptable('AdRep changes the kernel of the output layer, but this network does not end in a Dense layer.')
  return path


def _may_change(problem: Problem, config: Config) -> Callable[[str], bool]:
  name = f'params/{_output_path(problem, config)}/kernel'
  return lambda weight: weight == name


METHOD = Method(
  name='adrep', title='AdRep', code='', level='neuron', config=Config(), repair=repair,
  changes='some entries of the last Dense kernel', guarantee='none',
  requires='failing and passing samples; a dense output layer',
  source='Li Calsi et al. Adaptive Search-based Repair of Deep Neural Networks. GECCO 2023; adaptiveRepair',
  summary='gives suspicious weights of the output layer new values by particle swarm and looks for others when it is '
          'stuck',
  may_change=_may_change, check=_output_path, changes_only_edits=True)
