"""Arachne, first generation: entries of the last dense kernel get new values by particle swarm.

J. Sohn, S. Kang, S. Yoo, "Search Based Repair of Deep Neural Networks", arXiv 1912.12463v1, 2019, in the form of
eAI-Repair-Toolkit. Localization looks at failing samples only: of the entries with the largest gradient loss, those
that none beats in gradient loss and forward impact. The fitness counts fixed failures and kept successes, each scaled
by the mean loss. Nothing is proven.
"""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix.classifier import Classifier
from jaxfix.clock import Clock
from jaxfix.errors import RepairFailure, Unadaptable, require
from jaxfix.localize import sampling
from jaxfix.localize.batches import make_batches
from jaxfix.localize.forward_impact import raw_forward_impact
from jaxfix.localize.gradient_loss import gradient_loss, identity
from jaxfix.localize.linear import kernel_layers
from jaxfix.localize.pareto import pareto_front
from jaxfix.localize.targets import Targets, edits, make_targets, siblings, write
from jaxfix.methods.method import Method
from jaxfix.problem import Problem, Repair, Trace
from jaxfix.search import particle_swarm as pso
from jaxfix.search import population, score


@dataclasses.dataclass(frozen=True)
class Config:
  """Defaults are eAI-Repair-Toolkit's where nothing else is said.

  Attributes:
    particles: 100.
    iterations: at most; 100.
    window: stop when that many iterations have brought nothing better than all before them; 10.
    phi: bound of the two random weights; 4.1.
    num_positives: passing samples in the fitness, drawn once; 200.
    candidates_per_failure: entries kept by gradient loss, per failing sample; 20.
    failure_share: share of the failing samples that is repaired, at least one; 0.1 (Arachne's later run scripts: the
      toolkit is given a set of failures).
    layer: path of the Dense layer to change; None for the last one, as published.
  """
  particles: int = 100
  iterations: int = 100
  window: int = 10
  phi: float = 4.1
  num_positives: int = 200
  candidates_per_failure: int = 20
  failure_share: float = 0.1
  layer: str | None = None

  def __post_init__(self):
    require(self.iterations >= 0, f'iterations must not be negative, got {self.iterations}.')
    require(self.num_positives >= 0, f'num_positives must not be negative, got {self.num_positives}.')
    require(self.candidates_per_failure >= 1,
            f'candidates_per_failure must be at least 1, got {self.candidates_per_failure}.')
    require(0 < self.failure_share <= 1, f'failure_share must lie in (0, 1], got {self.failure_share}.')
    _ = self.swarm  # checks its own fields

  @property
  def swarm(self) -> pso.Settings:
    """Constants of the search."""
    return pso.Settings(self.particles, self.phi, self.window)


def repair(problem: Problem, config: Config, key: jax.Array) -> Repair:
  """The algorithm; see `Config`. `key` is consumed.

  Raises:
    RepairFailure: no kernel entry could be localized.
  """
  key_failures, key_positives, key_search = jax.random.split(key, 3)
  clock, classifier, split = Clock(), problem.classifier, problem.failure_split
  with clock.phase('localize'):
    failing, passing = problem.failing_and_passing()
    negatives = sampling.choose_failures(failing, config.failure_share, key=key_failures)
    targets = _localize(problem, negatives, config)
  with clock.phase('search'):
    positives = sampling.plain_sample(passing, config.num_positives, key=key_positives)
    rows = np.concatenate([negatives, positives])
    part = split.take(rows)
    tiling = score.choose_tiling(classifier, targets.layers, config.particles, len(rows))
    samples = score.cache_samples(classifier, part.x, part.y, layers=targets.layers, rows=tiling.rows)
    outcome, counts = _search(classifier, targets, samples, len(negatives), len(positives), key=key_search,
                              settings=config.swarm, iterations=config.iterations, group=tiling.group)
    repaired = write(targets, classifier, outcome.best.vector)
    steps, patched, kept = int(outcome.steps), int(counts[0]), int(counts[2])
  found = edits(targets, classifier, repaired)
  notes = (f'Localized {len(found)} entries of the kernel of {targets.layers[0]}.',
           f'Fixed {patched} of the {len(negatives)} failing samples that the search aimed at; broke '
           f'{len(positives) - kept} of the {len(positives)} passing ones in its fitness, in {steps} iterations.')
  curves = {'best_fitness': np.asarray(outcome.best_curve)[:steps + 1],
            'mean_fitness': np.asarray(outcome.mean_curve)[:steps + 1]}
  return Repair(repaired, Trace(curves, steps, found, notes=notes), clock.seconds)


def _localize(problem: Problem, negatives: np.ndarray, config: Config) -> Targets:
  """Front of (gradient loss, forward impact) among the entries with the largest gradient loss."""
  classifier, path = problem.classifier, _layer(problem.classifier, config)
  part = problem.failure_split.take(negatives)
  batches = make_batches(part.x, part.y)
  loss = np.ravel(gradient_loss(classifier, batches, paths=(path,))[path])
  impact = np.ravel(raw_forward_impact(classifier, batches, paths=(path,))[path])
  usable = np.flatnonzero(~np.isnan(loss))
  first = np.sort(usable[np.argsort(-loss[usable], kind='stable')[:config.candidates_per_failure * len(negatives)]])
  chosen = first[pareto_front(loss[first], impact[first])]
  if not len(chosen):
    raise RepairFailure(f'Arachne localized nothing in the kernel of {path}: gradient loss or forward impact of every '
                        "entry is NaN. Activations overflow; check the scale of the model's inputs.")
  return make_targets(classifier, (path,), chosen)


@functools.partial(jax.jit, static_argnames=('settings', 'iterations', 'group'))
def _search(classifier: Classifier, targets: Targets, samples: score.Samples, num_neg: jax.Array, num_pos: jax.Array, *,
            key: jax.Array, settings: pso.Settings, iterations: int,
            group: int) -> tuple[population.Outcome, jax.Array]:
  """Particle swarm over the values at the targets, and the tally of its best particle."""
  def tally(candidates):
    return score.population_sums(functools.partial(score.tally, head=identity), classifier, targets, samples,
                                 candidates, group=group)

  def fitness(candidates, at_least):
    del at_least  # both terms need all samples
    return swarm_fitness(tally(candidates), num_neg, num_pos)

  kin = siblings(targets, classifier)
  search = pso.particle_swarm(kin.mean, kin.std, *pso.speed_bounds(kin.low, kin.high), settings)
  outcome = population.maximize(search, fitness, key=key, max_steps=iterations)
  return outcome, tally(outcome.best.vector[None])[0]


def swarm_fitness(sums: jax.Array, num_neg: jax.Array, num_pos: jax.Array) -> jax.Array:
  """(N_patched + 1) / (Loss(I_neg) + 1) + (N_intact + 1) / (Loss(I_pos) + 1), Loss the mean cross-entropy.

  Args:
    sums: `[..., 4]` of `score.tally`.
    num_neg, num_pos: samples in I_neg and I_pos.
  Returns:
    `[...]`, larger is better; 0 for a candidate whose losses are not finite.
  """
  patched, loss_neg, intact, loss_pos = jnp.moveaxis(sums, -1, 0)
  value = ((patched + 1) / (loss_neg / jnp.maximum(num_neg, 1) + 1)
           + (intact + 1) / (loss_pos / jnp.maximum(num_pos, 1) + 1))
  return jnp.where(jnp.isfinite(value), value, 0.)


def _layer(classifier: Classifier, config: Config) -> str:
  if config.layer is not None:
    return kernel_layers(classifier, (config.layer,))[0].path
  return [layer.path for layer in kernel_layers(classifier) if layer.kind == 'dense'][-1]


def _check(problem: Problem, config: Config) -> None:
  layers = kernel_layers(problem.classifier, None if config.layer is None else (config.layer,))
  if not any(layer.kind == 'dense' for layer in layers):
    raise Unadaptable('This Arachne changes the kernel of a Dense layer; '
                      + (f'{config.layer!r} is none.' if config.layer else 'this network has none.'))


METHOD = Method(
  name='arachne_pso', title='Arachne (PSO)', code='', level='neuron', config=Config(), repair=repair,
  changes='a few entries of the last Dense kernel', guarantee='none',
  requires='failing and passing samples; a last dense layer',
  source='Sohn, Kang, Yoo. Search Based Repair of Deep Neural Networks. arXiv 1912.12463v1, 2019; eAI-Repair-Toolkit',
  summary='finds a few suspicious weights of the last dense layer and gives them new values by particle swarm',
  may_change=lambda problem, config: lambda name: name == f'params/{_layer(problem.classifier, config)}/kernel',
  check=_check, changes_only_edits=True)
