"""GenMuNN (reconstructed): a few suspicious kernel entries are mutated; a genetic algorithm picks among the mutants.

H. Wu, Z. Li, Z. Cui, J. Liu, "GenMuNN: A Mutation-Based Approach to Repair Deep Neural Network Models", Int. J.
Modeling, Simulation, and Scientific Computing, 2022, and its precursor at DSA 2021. Weights of every layer are ranked
by spectrum analysis of failing and passing samples; mutants change a few of the top-ranked ones; selection, crossover
and mutation breed the mutant that is right most often. It replaces the model only if it is right on more samples and no
worse on the validation split, and the ranking begins anew on it. Guarantee: accuracy on the samples searched with, and
on the validation split, never falls.

No code and no text beyond the abstracts was at hand. Not confirmed, hence to be told with every figure: what the
spectrum is of (neurons and weights here), its formula, the mutation operators, the population's size, the stopping
rule, and whether fitness is accuracy on training or on test data. The defaults are meant to be conservative, as the
study's results are (most of its repairs return the original); `OURS_PLUS` is a stronger setting of ours.

Decided here: D is the problem's failure split (the study takes the training split). The search stalls by the count of
right samples, not by the loss that breaks ties; a mutant with the original's count never beats it. With importance by
ablation, a weight gets the absolute change of accuracy of the neuron that it leads into, times its size over the
largest one there. In rounds and blocks after the first, 'the original' is the model that the last accepted mutant made.
"""
import dataclasses
import functools
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import devices, intervene, predict
from jaxfix.classifier import Classifier
from jaxfix.clock import Clock
from jaxfix.errors import RepairFailure, Unadaptable, require
from jaxfix.localize import sampling
from jaxfix.localize.ablation import ablation_weight_scores
from jaxfix.localize.batches import Batches, make_batches
from jaxfix.localize.gradient_loss import cross_entropy
from jaxfix.localize.linear import kernel, kernel_layers, with_kernels
from jaxfix.localize.spectrum import FORMULAS, Formula, spectrum, top_entries, weight_scores
from jaxfix.localize.targets import UNUSED, edits, make_targets
from jaxfix.methods.method import Method
from jaxfix.problem import Problem, Repair, Split, Trace
from jaxfix.search import genetic, score
from jaxfix.tiling import choose_tiling

Importance = Literal['spectrum', 'ablation']
Schedule = Literal['joint', 'sequential']


@dataclasses.dataclass(frozen=True)
class Config:
  """Every default is a decision of the reconstruction.

  Attributes:
    population: individuals; 20.
    generations: at most, in one search; 50.
    patience: a search stops when the best accuracy has not grown in so many generations; 10.
    elite, crossover, mutation: individuals that survive; probabilities of two parents and of a mutation; 2, 0.8, 0.3.
    rho: share of a kernel's entries in the pool, in (0, 1], at least one entry a layer; 0.01.
    max_changes: entries that a mutant changes at most; 10.
    sigma, scale: of the Gaussian and the scaling operator, see `genetic.Settings`; 0.5, 0.5.
    operators: of `genetic.OPERATORS`.
    formula: of suspiciousness; 'ochiai'.
    star: exponent of D*, 2 or 3.
    threshold: a neuron is covered by a sample if its output exceeds this; 0.
    importance: 'spectrum', or 'ablation', the change of accuracy when a neuron is silenced (small networks).
    max_samples: size of D: all failing samples, even if they are more, and passing ones in the classes' proportions
      as far as there is room; None for all.
    rounds: localizations at most, each on the model that the last one made; 3.
    schedule: 'joint' searches the whole pool at once, 'sequential' (precursor) blocks of the ranking one by one.
    block: entries in a block; 10.
    layers: paths of the Dense and Conv layers to change, a number k for the last k of them, or None for all.
  """
  population: int = 20
  generations: int = 50
  patience: int = 10
  elite: int = 2
  crossover: float = 0.8
  mutation: float = 0.3
  rho: float = 0.01
  max_changes: int = 10
  sigma: float = 0.5
  scale: float = 0.5
  operators: tuple[str, ...] = genetic.OPERATORS
  formula: Formula = 'ochiai'
  star: int = 2
  threshold: float = 0.
  importance: Importance = 'spectrum'
  max_samples: int | None = 10_000
  rounds: int = 3
  schedule: Schedule = 'joint'
  block: int = 10
  layers: int | tuple[str, ...] | None = None

  def __post_init__(self):
    require(self.generations >= 0, f'generations must not be negative, got {self.generations}.')
    require(0 < self.rho <= 1, f'rho must lie in (0, 1], got {self.rho}.')
    require(self.star in (2, 3), f'star must be 2 or 3, got {self.star}.')
    require(self.max_samples is None or self.max_samples >= 1, f'max_samples must be at least 1: {self.max_samples}.')
    require(self.rounds >= 1, f'rounds must be at least 1, got {self.rounds}.')
    require(self.block >= 1, f'block must be at least 1, got {self.block}.')
    require(not isinstance(self.layers, int) or self.layers >= 1, f'layers must be at least 1, got {self.layers}.')
    require(self.layers != (), 'layers must name at least one layer; None is for all.')
    for name, allowed in (('formula', FORMULAS), ('importance', ('spectrum', 'ablation')),
                          ('schedule', ('joint', 'sequential'))):
      require(getattr(self, name) in allowed, f'{name} must be one of {allowed}, got {getattr(self, name)!r}.')
    _ = self.settings(1)  # checks its own fields

  def settings(self, pool_size: int) -> genetic.Settings:
    """Constants of a search over a pool of so many entries."""
    return genetic.Settings(self.population, self.elite, self.crossover, self.mutation,
                            min(self.max_changes, pool_size) if self.max_changes >= 1 else self.max_changes, self.sigma,
                            self.scale, tuple(self.operators), self.patience)


OURS_PLUS = Config(population=60, generations=200, patience=40, rho=0.05, max_changes=30, rounds=6)
"""Stronger than what the study ran, by its results; never use it for a comparison under the paper's name."""


def repair(problem: Problem, config: Config, key: jax.Array) -> Repair:
  """The algorithm; see `Config`. `key` is consumed.

  Raises:
    RepairFailure: no sample fails, or no kernel entry is suspicious.
  """
  key_samples, key_rounds = jax.random.split(key)
  clock, model = Clock(), problem.classifier
  paths = _paths(model, config)
  with clock.phase('localize'):
    data = _data(problem, config, key_samples)
    batches = make_batches(data.x, data.y)
    tiling = choose_tiling(model, paths, 1, len(data))
    samples = score.cache_samples(model, data.x, data.y, layers=paths, rows=tiling.rows)
  right = first_right = int((predict.labels(model, data.x) == data.y).sum())
  valid_right = _num_right(model, problem.valid)
  log, curves, changed = [], [], []
  for number in range(config.rounds):
    accepted_before = len(changed)
    with clock.phase('localize'):
      ranked = localize(model, batches, paths, config)
    if not len(ranked):
      require(number > 0, 'GenMuNN localized nothing: no kernel entry is suspicious, since no element is covered by a '
              'failing sample. Lower the threshold.', RepairFailure)
      break
    for b, block in enumerate(_blocks(ranked, config)):
      key_search = jax.random.fold_in(jax.random.fold_in(key_rounds, number), b)
      timer = Clock()
      with clock.phase('search'), timer.phase('search'):
        outcome, mutant = jax.block_until_ready(_search(
          model, make_pool(model, paths, block), _positions(block), samples, right, len(data), key=key_search,
          paths=paths, settings=config.settings(len(block)), generations=config.generations))
      seconds = max(1e-9, timer.seconds['search'] - timer.compile_seconds)
      with clock.phase('accept'):
        accepted, counts = accept(model, mutant, data, problem.valid, right, valid_right)
      entries = np.asarray(outcome.best.entry)
      patch = block[entries[entries != genetic.EMPTY]]
      log.append(_entry(number, outcome, seconds, accepted, patch, right, counts[0], model, paths))
      steps = int(outcome.generations) + 1
      curves.append(np.stack([np.asarray(outcome.best_curve)[:steps], np.asarray(outcome.mean_curve)[:steps]]))
      if accepted:
        model, (right, valid_right) = mutant, counts
        changed.extend(patch.tolist())
        if right == len(data):
          break
    if len(changed) == accepted_before or right == len(data):
      break
  found = edits(make_targets(model, paths, np.unique(changed)), problem.classifier, model) if changed else ()
  return Repair(model, _trace(log, curves, found, first_right, right, len(data)), clock.seconds)


def localize(model: Classifier, batches: Batches, paths: tuple[str, ...], config: Config) -> np.ndarray:
  """The pools of all layers, most suspicious first: `[k]` int64 positions in the kernels of `paths`, concatenated.

  Of each layer the rho share of its entries with the highest scores, at least one. Ties: within a layer the larger
  weight, then the index; between layers the earlier one. Empty if every score is 0.
  """
  if config.importance == 'ablation':
    scores = ablation_weight_scores(model, batches, paths=paths)
  else:
    found = spectrum(model, batches, paths=paths, threshold=np.float32(config.threshold))
    scores = weight_scores(model, found, formula=config.formula, star=config.star)
  pools, values, offset = [], [], 0
  for path in paths:
    w, s = np.asarray(kernel(model, path)), np.asarray(scores[path])
    if np.isnan(s).any():
      warnings.warn(f'{np.isnan(s).sum()} of {s.size} entries of {path} have scores that are no number, and count 0: '
                    'activations overflow.')
      s = np.nan_to_num(s)
    top = top_entries(s, w, max(1, int(np.ceil(config.rho * w.size - 1e-9))))
    pools.append(top + offset)
    values.append(s.ravel()[top])
    offset += w.size
  values = np.concatenate(values)
  if not values.any():
    return np.zeros(0, np.int64)
  return np.concatenate(pools)[np.argsort(-values, kind='stable')]


def make_pool(model: Classifier, paths: tuple[str, ...], positions: np.ndarray) -> genetic.Pool:
  """What the search needs to know of the entries at `positions` `[k]`, -1 for a slot that only fills up."""
  value, spread, neuron = (np.zeros(len(positions), kind) for kind in (np.float32, np.float32, np.int32))
  offset = units = 0
  for path in paths:
    w = np.asarray(kernel(model, path))
    inside = (positions >= offset) & (positions < offset + w.size)
    value[inside], spread[inside] = w.ravel()[positions[inside] - offset], w.std()
    neuron[inside] = units + (positions[inside] - offset) % w.shape[-1]
    offset, units = offset + w.size, units + w.shape[-1]
  return genetic.Pool(value, spread, neuron, positions >= 0)


def mutant_of(model: Classifier, paths: tuple[str, ...], positions: jax.Array, genome: genetic.Genome) -> Classifier:
  """The model with a genome's values written; bit-identical for an empty genome.

  Args:
    model: the original.
    paths: layers whose kernels `positions` `[k]` int32 count through.
    genome: of one mutant.
  """
  at = jnp.where(genome.entry == genetic.EMPTY, UNUSED, positions[genome.entry])
  kernels, offset = {}, 0
  for path in paths:
    w = kernel(model, path)
    local = jnp.where((at >= offset) & (at < offset + w.size), at - offset, UNUSED)
    kernels[path] = w.ravel().at[local].set(genome.value, mode='drop').reshape(w.shape)
    offset += w.size
  return with_kernels(model, kernels)


@functools.partial(devices.jit, static_argnames=('paths', 'settings', 'generations'))
def _search(model: Classifier, pool: genetic.Pool, positions: jax.Array, samples: score.Samples, right: jax.Array,
            num_samples: jax.Array, *, key: jax.Array, paths: tuple[str, ...], settings: genetic.Settings,
            generations: int, first: genetic.Genome | None = None) -> tuple[genetic.Outcome, Classifier]:
  """The genetic algorithm over one pool, and the best mutant (the model itself if none is right more often).

  Candidates are whole networks, evaluated one by one on blocks of samples: the entries of a mutant lie in any layer, so
  that there is no cached part that mutants share beyond the input of the first layer in `paths`, which `samples` holds;
  `score.population_sums` would spread each of the pool's thousands of entries over the channels of its layer.
  """
  def evaluate(genome):
    mutant = mutant_of(model, paths, positions, genome)

    def add(total, block):
      rows, weight = block
      logits = intervene.suffix(mutant, tuple(a[rows] for a in samples.cache), paths)
      y = samples.y[rows]
      right = (predict.right(logits, y) & (weight > 0)).sum(dtype=jnp.int32)
      return genetic.Fitness(total.right + right, total.loss + (weight * cross_entropy(logits, y)).sum()), None

    total, _ = jax.lax.scan(add, genetic.Fitness(jnp.int32(0), jnp.float32(0)), (samples.order, samples.weight))
    return genetic.Fitness(total.right, total.loss / num_samples)

  outcome = genetic.maximize(pool, settings, evaluate, original_right=right, num_samples=num_samples,
                             max_steps=generations, key=key, first=first)
  return outcome, mutant_of(model, paths, positions, outcome.best)


def accept(model: Classifier, mutant: Classifier, data: Split, valid: Any, right: int,
           valid_right: int) -> tuple[bool, tuple[int, int]]:
  """Whether a mutant replaces the model: more of `data` right, and no fewer of `valid`.

  Args:
    model, mutant: both; the model itself is never accepted.
    data, valid: D and the validation split.
    right, valid_right: how many of them the model gets right.
  Returns:
    the verdict, and how many of each the mutant gets right (the second is the model's if the first decides).
  """
  count = int((predict.labels(mutant, data.x) == data.y).sum())
  if mutant is model or count <= right:
    return False, (count, valid_right)
  valid_count = _num_right(mutant, valid)
  return valid_count >= valid_right, (count, valid_count)


def _data(problem: Problem, config: Config, key: jax.Array) -> Split:
  """D: the failing samples, and passing ones up to `max_samples`, in memory."""
  failing, passing = problem.failing_and_passing()
  require(len(failing) > 0, 'GenMuNN has nothing to localize: no sample of the failure split fails.', RepairFailure)
  if config.max_samples is not None and len(failing) + len(passing) > config.max_samples:
    room = config.max_samples - len(failing)
    passing = passing[:0] if room <= 0 else sampling.balanced_sample(
      passing, problem.failure_split.y[passing], room, key=key)
  return problem.failure_split.take(np.concatenate([failing, passing]))


def _blocks(ranked: np.ndarray, config: Config) -> Iterator[np.ndarray]:
  """The pool of each search; the last block of a sequence is filled up with -1."""
  if config.schedule == 'joint':
    yield ranked
    return
  for start in range(0, len(ranked), config.block):
    part = ranked[start:start + config.block]
    yield np.pad(part, (0, config.block - len(part)), constant_values=-1)


def _positions(block: np.ndarray) -> np.ndarray:
  return np.where(block < 0, UNUSED, block).astype(np.int32)


def _entry(number: int, outcome: genetic.Outcome, seconds: float, accepted: bool, patch: np.ndarray, right: int,
           mutant_right: int, model: Classifier, paths: tuple[str, ...]) -> dict[str, Any]:
  """One line of the log: a search; `seconds` without compilation."""
  ends = np.cumsum([kernel(model, path).size for path in paths])
  generations, evaluations = int(outcome.generations), int(outcome.evaluations)
  return {'round': number, 'generations': generations, 'evaluations': evaluations, 'seconds': seconds,
          'seconds_per_generation': seconds / (generations + 1), 'evaluations_per_second': evaluations / seconds,
          'accepted': accepted, 'patch_size': len(patch), 'right_before': right, 'right_after': mutant_right,
          'layers': [paths[i] for i in np.unique(np.searchsorted(ends, patch, side='right'))]}


def _trace(log: list[dict[str, Any]], curves: list[np.ndarray], found: tuple, before: int, after: int,
           num_samples: int) -> Trace:
  accepted = [entry for entry in log if entry['accepted']]
  layers = sorted({path for entry in accepted for path in entry['layers']})
  notes = ('GenMuNN (reconstructed): element of the spectrum, formula, operators and population are not confirmed.',
           f'{before} of {num_samples} samples right before, {after} after; {len(accepted)} of {len(log)} searches '
           'gave a mutant that was accepted.')
  notes += ((f'{len(found)} entries changed, in {", ".join(layers)}.',) if accepted else
            ('No mutant was right more often without loss on the validation split: the original is returned.',))
  best, mean = np.concatenate(curves, axis=1) / num_samples
  return Trace({'best_accuracy': best, 'mean_accuracy': mean}, edits=found, solver={'searches': log}, notes=notes,
               objective=(before / num_samples, after / num_samples))


def _num_right(classifier: Classifier, split: Any) -> int:
  return int((predict.labels(classifier, split.x) == split.y).sum())


def _paths(classifier: Classifier, config: Config) -> tuple[str, ...]:
  if isinstance(config.layers, int):
    return tuple(layer.path for layer in kernel_layers(classifier))[-config.layers:]
  return tuple(layer.path for layer in kernel_layers(classifier, config.layers))


def _check(problem: Problem, config: Config) -> None:
  if not _paths(problem.classifier, config):
    raise Unadaptable('GenMuNN changes kernel entries of Dense and Conv layers; this network has none.')


def _may_change(problem: Problem, config: Config):
  names = {f'params/{path}/kernel' for path in _paths(problem.classifier, config)}
  return lambda name: name in names


METHOD = Method(
  name='genmunn', title='GenMuNN (reconstructed)', code='GM', level='neuron', config=Config(), repair=repair,
  changes='a few entries of Dense and Conv kernels',
  guarantee='none; accuracy on the failure split (or the part of it that was searched with) and on the validation '
            'split never falls',
  requires='failing and passing samples; a dense or convolution kernel',
  source='Wu, Li, Cui, Liu. GenMuNN: A Mutation-Based Approach to Repair Deep Neural Network Models. Int. J. Modeling, '
         'Simulation, and Scientific Computing, 2022',
  summary='mutates a few weights that the spectrum of failing samples points to, by a genetic algorithm',
  may_change=_may_change, check=_check, changes_only_edits=True)
