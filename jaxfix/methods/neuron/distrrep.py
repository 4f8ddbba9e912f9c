"""DISTRREP: every critical misclassification is repaired by itself, then the patches are merged by what is at stake.

D. Li Calsi, M. Duran, X.-Y. Zhang, P. Arcaini, F. Ishikawa, "Distributed Repair of Deep Neural Networks", ICST 2023,
and eAI-Repair-Toolkit (drweightmerge). For each type of mistake (a class taken for another, or a class for anything
else) the first generation of Arachne localizes entries of the output layer and searches values for them, always from
the original network. One coefficient a patch, and one an entry that several patches have, say how far each goes; a
second particle swarm chooses them for a score that weighs classes by importance and mistakes by risk. Nothing is
proven.

Decided here, where the paper is silent or its public code does otherwise:
- The toolkit repairs one model object in sequence; here all repairs start from the original, and their result does not
  depend on their order. Its list of shared entries is empty in effect; here it holds what two patches have.
- The failing samples of a type are all those in the problem's failure split; the score is over that whole split.
- An importance that names no confusions gets, for each critical class, its two most frequent wrong predictions, if they
  have `min_pair_failures` samples; one that names no risks gets 2 for any mistake of a critical class, 3 for such a
  confusion with a class that is not critical and 1 for others. All critical classes count in the score, also those
  that `max_general` leaves without a repair of their own.
- A problem without class importance is unadaptable (the study's rule: MNIST, UTKFace); a user may give one.
"""
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import predict
from jaxfix.classifier import Classifier
from jaxfix.clock import Clock
from jaxfix.errors import RepairFailure, Unadaptable, require
from jaxfix.localize import output_layer, sampling
from jaxfix.localize.batches import make_batches
from jaxfix.localize.forward_impact import forward_impact
from jaxfix.localize.gradient_front import gradient_front
from jaxfix.localize.gradient_loss import gradient_loss
from jaxfix.localize.output_layer import HEAD_PATH
from jaxfix.localize.pareto import pareto_front
from jaxfix.localize.targets import UNUSED, Targets, edits, make_targets, values, write
from jaxfix.methods.method import Method
from jaxfix.problem import ClassImportance, Problem, Repair, Split, Trace
from jaxfix.search import class_score, merge, output_patch, population, score, weight_swarm
from jaxfix.search import particle_swarm as pso
from jaxfix.tiling import choose_tiling

_MERGED = 'the merged model'
_CRITICAL_RISK, _LEAVING_RISK, _OTHER_RISK = 2., 3., 1.


@dataclasses.dataclass(frozen=True)
class Config:
  """Defaults are eAI-Repair-Toolkit's where nothing else is said.

  Attributes:
    particles, iterations: of the repair of each type, at most; 100 and 100.
    merge_particles, merge_iterations: of the search for coefficients, at most; 100 and 100.
    window: both searches stop when that many iterations have brought nothing better; 10.
    phi: bound of the two random weights; 4.1.
    num_positives: passing samples in the fitness of every repair, drawn once; 200.
    candidates_per_failure: entries kept by gradient loss, per failing sample; 20.
    localizer: 'arachne_pso' as published; 'arachne_de' (ours) takes the bidirectional scores of Arachne's second
      generation over the whole kernel.
    merge_orientation: 'original_to_repaired' (ours): coefficient 0 keeps an entry that one patch has and 1 gives it its
      repaired value; 'min_max' as in the toolkit: 0 is the smaller and 1 the larger value. See `search.merge`.
    velocity_floor, velocity_ceiling: bounds of a coefficient's speed; 0.2 and 5. With this floor most moves leave
      [0, 1], where the score is -1, and the first particles decide; 0 makes a search of it (ours).
    select: 'search' returns the merged model; 'validation' (ours) whichever of the original, the single patches and the
      merged model scores best on the validation split.
    max_general: critical classes that are repaired against everything, those with most failures; 8 (ours, for
      ImageNet; CIFAR-10 has 4).
    min_pair_failures: failing samples that a confusion needs to be repaired if the importance does not name it; 5
      (ours).
    merge_positives: passing samples in the score of merged models, in the classes' proportions; None for all (ours: the
      toolkit's is a set that the user gives).
  """
  particles: int = 100
  iterations: int = 100
  merge_particles: int = 100
  merge_iterations: int = 100
  window: int = 10
  phi: float = 4.1
  num_positives: int = 200
  candidates_per_failure: int = 20
  localizer: Literal['arachne_pso', 'arachne_de'] = 'arachne_pso'
  merge_orientation: merge.Orientation = 'original_to_repaired'
  velocity_floor: float = 0.2
  velocity_ceiling: float = 5.
  select: Literal['search', 'validation'] = 'search'
  max_general: int = 8
  min_pair_failures: int = 5
  merge_positives: int | None = None

  def __post_init__(self):
    for name in ('iterations', 'merge_iterations', 'num_positives'):
      require(getattr(self, name) >= 0, f'{name} must not be negative, got {getattr(self, name)}.')
    for name in ('candidates_per_failure', 'max_general', 'min_pair_failures'):
      require(getattr(self, name) >= 1, f'{name} must be at least 1, got {getattr(self, name)}.')
    require(self.merge_positives is None or self.merge_positives >= 1,
            f'merge_positives must be at least 1 or None, got {self.merge_positives}.')
    require(0 <= self.velocity_floor <= self.velocity_ceiling,
            f'velocity_floor must lie in [0, velocity_ceiling], got {self.velocity_floor} and {self.velocity_ceiling}.')
    for name, allowed in (('localizer', ('arachne_pso', 'arachne_de')), ('select', ('search', 'validation')),
                          ('merge_orientation', ('original_to_repaired', 'min_max'))):
      require(getattr(self, name) in allowed, f'{name} must be one of {allowed}, got {getattr(self, name)!r}.')
    _ = self.swarm, self.merge_swarm  # check their own fields

  @property
  def swarm(self) -> pso.Settings:
    """Constants of the repair of each type."""
    return pso.Settings(self.particles, self.phi, self.window)

  @property
  def merge_swarm(self) -> pso.Settings:
    """Constants of the search for coefficients."""
    return pso.Settings(self.merge_particles, self.phi, self.window)


@dataclasses.dataclass(frozen=True)
class Item:
  """A type of mistake to repair: class `true` taken for `predicted`, or, if that is None, for anything else.

  `rows` are the samples of the failure split that show it.
  """
  true: int
  predicted: int | None
  rows: np.ndarray

  def __str__(self) -> str:
    return f'{self.true} taken for {"anything else" if self.predicted is None else self.predicted}'


@dataclasses.dataclass(frozen=True)
class _Data:
  """The failure split at the output layer: its inputs `x` `[n, d]`, labels, and predictions of the original `[n]`."""
  x: np.ndarray
  y: np.ndarray
  predicted: np.ndarray

  def take(self, rows: np.ndarray) -> Split:
    """Samples of the head."""
    return Split(self.x[rows], self.y[rows])


def repair(problem: Problem, config: Config, key: jax.Array) -> Repair:
  """The algorithm; see `Config`. `key` is consumed.

  Raises:
    RepairFailure: no sample shows any of the mistakes that are to be repaired, or none could be localized.
  """
  key_positives, key_union, key_items, key_merge = jax.random.split(key, 4)
  clock, classifier, split = Clock(), problem.classifier, problem.failure_split
  with clock.phase('forward'):
    path = output_layer.output_layer(classifier)
    head = output_layer.head(classifier, path)
    x = output_layer.inputs(classifier, split.x, path)
    data = _Data(x, np.asarray(split.y), predict.labels(head, x))
    passing = np.flatnonzero(data.predicted == data.y)
  items, risks, remarks = _plan(problem.class_importance, data, config)
  stakes = class_score.make_stakes(problem.class_importance.precisions, risks)
  positives = sampling.plain_sample(passing, config.num_positives, key=key_positives)
  with clock.phase('localize'):
    targets = _pad([_localize(head, data, item, positives, config) for item in items])
  with clock.phase('repair'):
    patches, facts = _repair_items(head, data, items, targets, positives, config, key_items)
  with clock.phase('merge'):
    merged = merge.merge_patches(head, HEAD_PATH, patches, config.merge_orientation)
    union = _union(data, config, key_union)
    outcome = _merge(head, merged, union, stakes, config, key_merge)
    vector, steps = merge.decode(merged, outcome.best.vector), int(outcome.steps)
  with clock.phase('select'):
    vector, chosen, objective = _select(problem, head, path, merged, patches, vector, stakes, items, config)
  everywhere = Targets((path,), merged.targets.index)
  repaired = write(everywhere, classifier, vector)
  found = edits(everywhere, classifier, repaired)
  before, after = (class_score.score(stakes, union.y, labels) for labels in (
    union.predicted, predict.labels(write(merged.targets, head, vector), union.x)))
  shared = int(merged.used.sum()) - len(items)
  notes = (*remarks, f'Repaired {len(items)} types of mistakes: {"; ".join(map(str, items))}.',
           f'Merged {len(found)} entries of the kernel of {path}, {shared} of them shared by several repairs, in '
           f'{steps} iterations; returned {chosen}.',
           f'Score over {len(union.y)} samples: {before:.4f} before, {after:.4f} after, '
           f'{class_score.best_score(stakes, union.y):.4f} without a mistake.')
  curves = {'best_score': np.asarray(outcome.best_curve)[:steps + 1],
            'mean_score': np.asarray(outcome.mean_curve)[:steps + 1]}
  coefficients = np.asarray(outcome.best.vector)[np.asarray(merged.used)].tolist()
  solver = {'items': facts, 'coefficients': coefficients, 'score_before': before, 'score_after': after}
  selected = dict.fromkeys(curves, steps) if chosen == _MERGED else {}
  return Repair(repaired, Trace(curves, selected, found, solver, notes, objective), clock.seconds)


def _plan(importance: ClassImportance, data: _Data, config: Config
          ) -> tuple[list[Item], Mapping[class_score.Mistake, float], tuple[str, ...]]:
  """What is repaired (confusions, then whole classes), the risks of mistakes, and remarks."""
  wrong = data.predicted != data.y
  failures = {c: np.flatnonzero(wrong & (data.y == c)) for c in importance.critical}
  confusions = importance.confusions
  if confusions is None:
    confusions = tuple((c, d) for c in importance.critical
                       for d in _frequent_predictions(data.predicted[failures[c]], config.min_pair_failures))
  # The sort is stable: of classes with as many failures, the one that was named first is repaired.
  general = sorted(importance.critical, key=lambda c: -len(failures[c]))[:config.max_general]
  wanted = [Item(c, d, np.flatnonzero((data.y == c) & (data.predicted == d))) for c, d in confusions]
  wanted += [Item(c, None, failures[c]) for c in importance.critical if c in general]
  items = [item for item in wanted if len(item.rows)]
  if not items:
    raise RepairFailure(f'None of the {len(data.y)} samples shows a mistake that the class importance names: '
                        f'{"; ".join(map(str, wanted)) or "no critical class has failures"}. Give failing samples of '
                        'these, or name others.')
  risks = importance.risks
  if risks is None:
    inner = dict.fromkeys(importance.critical, _CRITICAL_RISK)
    risks = inner | {(c, d): _LEAVING_RISK if c in inner and d not in inner else _OTHER_RISK for c, d in confusions}
  return items, risks, tuple(f'Skipped {item}: no sample shows it.' for item in wanted if not len(item.rows))


def _frequent_predictions(predicted: np.ndarray, at_least: int) -> list[int]:
  """The two most frequent classes that occur often enough; a tie goes to the lower class."""
  classes, counts = np.unique(predicted[predicted >= 0], return_counts=True)
  return [int(classes[i]) for i in np.argsort(-counts, kind='stable')[:2] if counts[i] >= at_least]


def _localize(head: Classifier, data: _Data, item: Item, positives: np.ndarray, config: Config) -> Targets:
  """Entries of the output kernel to blame for one type of mistake."""
  part = data.take(item.rows)
  if config.localizer == 'arachne_pso':
    return gradient_front(head, part, HEAD_PATH, config.candidates_per_failure)
  sets = [make_batches(s.x, s.y) for s in (part, data.take(positives)) if len(s)]

  def suspicion(impact) -> np.ndarray:
    """S(w) = v(I_neg, w) / (1 + v(I_pos, w))."""
    value = [np.ravel(impact(head, batches, paths=(HEAD_PATH,))[HEAD_PATH]) for batches in sets]
    return value[0] / (1 + value[1] if len(value) > 1 else 1)

  chosen = pareto_front(suspicion(gradient_loss), suspicion(forward_impact))
  if not len(chosen):
    raise RepairFailure(f'DISTRREP localized nothing for {item}: gradient loss or forward impact of every entry is '
                        "NaN. Activations overflow; check the scale of the model's inputs.")
  return make_targets(head, (HEAD_PATH,), chosen)


def _pad(targets: list[Targets]) -> list[Targets]:
  """The same targets with equally many slots, so that one compiled search serves all items."""
  most = max(len(t.index[0]) for t in targets)
  return [Targets(t.layers, (jnp.asarray(np.pad(np.asarray(t.index[0]), (0, most - len(t.index[0])),
                                                constant_values=UNUSED)),)) for t in targets]


def _repair_items(head: Classifier, data: _Data, items: list[Item], targets: list[Targets], positives: np.ndarray,
                  config: Config, key: jax.Array) -> tuple[list[merge.Patch], list[dict[str, Any]]]:
  """Stage 1: Arachne's swarm on each item, from the original network; its values, and facts for the trace.

  The activations are cached once; an item is a list of rows of them, as long as the longest.
  """
  rows = np.unique(np.concatenate([*(item.rows for item in items), positives]))
  longest = max(len(item.rows) for item in items) + len(positives)
  tiling = choose_tiling(head, (HEAD_PATH,), config.particles, longest)
  part = data.take(rows)
  cached = score.cache_samples(head, part.x, part.y, layers=(HEAD_PATH,), rows=tiling.rows)
  blocks = -(-longest // tiling.rows)
  patches, facts = [], []
  for item, entries in zip(items, targets, strict=True):
    own = np.searchsorted(rows, np.concatenate([item.rows, positives]))
    order, weight = (np.zeros(blocks * tiling.rows, kind) for kind in (np.int32, np.float32))
    order[:len(own)], weight[:len(own)] = own, 1
    samples = dataclasses.replace(cached, order=jnp.asarray(order.reshape(blocks, -1)),
                                  weight=jnp.asarray(weight.reshape(blocks, -1)))
    # The stream belongs to the type of mistake, not to its place in the list.
    own_key = jax.random.fold_in(jax.random.fold_in(key, item.true),
                                 head.num_classes if item.predicted is None else item.predicted)
    outcome, sums = weight_swarm.search(
      head, entries, samples, len(item.rows), len(positives), key=own_key, settings=config.swarm,
      iterations=config.iterations, group=tiling.group, fitness=weight_swarm.swarm_fitness)
    used = np.asarray(entries.used)
    patches.append(merge.Patch(np.asarray(entries.index[0])[used], np.asarray(outcome.best.vector)[used]))
    facts.append({'true': item.true, 'predicted': item.predicted, 'failing': len(item.rows), 'entries': int(used.sum()),
                  'fixed': int(sums[0]), 'broken': len(positives) - int(sums[2]), 'iterations': int(outcome.steps)})
  return patches, facts


def _union(data: _Data, config: Config, key: jax.Array) -> _Data:
  """U: all failing samples and the passing ones that merged models are scored on."""
  failing, passing = (np.flatnonzero(of) for of in (data.predicted != data.y, data.predicted == data.y))
  if config.merge_positives is not None:
    passing = sampling.balanced_sample(passing, data.y[passing], config.merge_positives, key=key)
  rows = np.sort(np.concatenate([failing, passing]))
  return _Data(data.x[rows], data.y[rows], data.predicted[rows])


def _merge(head: Classifier, merged: merge.Merge, union: _Data, stakes: class_score.Stakes, config: Config,
           key: jax.Array) -> population.Outcome:
  """Stage 2: particle swarm over the coefficients."""
  touched = output_patch.touch(head, merged.targets, union.x, union.y, size=config.merge_particles)
  prices = jnp.asarray(class_score.prices(stakes, union.y, head.num_classes))
  return search_coefficients(merged, touched, prices, class_score.best_score(stakes, union.y), config.velocity_floor,
                             config.velocity_ceiling, key=key, settings=config.merge_swarm,
                             iterations=config.merge_iterations)


@functools.partial(jax.jit, static_argnames=('settings', 'iterations'))
def search_coefficients(merged: merge.Merge, touched: output_patch.Touched, prices: jax.Array, best: jax.Array,
                        slowest: jax.Array, fastest: jax.Array, *, key: jax.Array, settings: pso.Settings,
                        iterations: int) -> population.Outcome:
  """Coefficients `[q]` with the best score, by particle swarm. `key` is consumed.

  Args:
    merged: the patches.
    touched: the samples.
    prices, best: of mistakes, and the score without one.
    slowest, fastest: bounds of the speed of a coefficient.
    settings, iterations: of the swarm.
  """
  def fitness(candidates, at_least):
    del at_least
    return merged_score(merged, touched, prices, best, candidates)

  used = merged.used.astype(jnp.float32)
  swarm = pso.particle_swarm(0.5 * used, 0.125 * used, slowest * used, fastest * used, settings)
  return population.maximize(swarm, fitness, key=key, max_steps=iterations)


def merged_score(merged: merge.Merge, touched: output_patch.Touched, prices: jax.Array, best: jax.Array,
                 coefficients: jax.Array) -> jax.Array:
  """The score `[p]` of merged models with coefficients `[p, q]`; -1 if any lies outside [0, 1]."""
  cost = output_patch.total_price(touched, prices, merge.decode(merged, coefficients))
  return jnp.where(merge.inside(merged, coefficients), best - cost, -1.)


def _select(problem: Problem, head: Classifier, path: str, merged: merge.Merge, patches: list[merge.Patch],
            vector: jax.Array, stakes: class_score.Stakes, items: list[Item], config: Config
            ) -> tuple[jax.Array, str, tuple[float, float] | None]:
  """Values at the targets to return, what they are, and their score on the validation split against the original's."""
  names = [_MERGED, 'the original model', *(f'the repair of {item} alone' for item in items)]
  if config.select == 'search':
    return vector, names[0], None
  x, y = output_layer.inputs(problem.classifier, problem.valid.x, path), np.asarray(problem.valid.y)
  original = np.asarray(values(merged.targets, head))
  vectors = [np.asarray(vector), original, *(merge.values_of(merged, original, patch) for patch in patches)]
  scores = [class_score.score(stakes, y, predict.labels(write(merged.targets, head, v), x)) for v in vectors]
  best = int(np.argmax(scores))
  return jnp.asarray(vectors[best]), names[best], (scores[1], scores[best])


def _check(problem: Problem, config: Config) -> None:
  if output_layer.output_layer(problem.classifier) is None:
    raise Unadaptable('DISTRREP changes the Dense layer whose outputs are the class scores; this network does not end '
                      'in one.')


def _may_change(problem: Problem, config: Config):
  name = f'params/{output_layer.output_layer(problem.classifier)}/kernel'
  return lambda other: other == name


METHOD = Method(
  name='distrrep', title='DISTRREP', code='DTR', level='neuron', config=Config(), repair=repair,
  changes='a few entries of the output kernel', guarantee='none',
  requires='failing samples of critical classes; importance of classes and risks of mistakes; a dense output layer',
  needs=('class_importance',),
  source='Li Calsi, Duran, Zhang, Arcaini, Ishikawa. Distributed Repair of Deep Neural Networks. ICST 2023',
  summary='repairs each critical kind of mistake by itself and merges the patches by what is at stake',
  may_change=_may_change, check=_check, changes_only_edits=True)
