"""Arachne, first generation: entries of the last dense kernel get new values by particle swarm.

J. Sohn, S. Kang, S. Yoo, "Search Based Repair of Deep Neural Networks", arXiv 1912.12463v1, 2019, in the form of
eAI-Repair-Toolkit. Localization looks at failing samples only: of the entries with the largest gradient loss, those
that none beats in gradient loss and forward impact. The fitness counts fixed failures and kept successes, each scaled
by the mean loss. Nothing is proven.
"""
import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from jaxfix.clock import Clock
from jaxfix.errors import require
from jaxfix.localize import sampling
from jaxfix.localize.gradient_front import gradient_front
from jaxfix.localize.linear import dense_layer
from jaxfix.localize.targets import edits, write
from jaxfix.methods.method import Method
from jaxfix.problem import Problem, Repair, Trace
from jaxfix.search import particle_swarm as pso
from jaxfix.search import weight_swarm


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
    targets = gradient_front(classifier, split.take(negatives), dense_layer(classifier, config.layer),
                             config.candidates_per_failure)
  with clock.phase('search'):
    positives = sampling.plain_sample(passing, config.num_positives, key=key_positives)
    part = split.take(np.concatenate([negatives, positives]))
    samples, group = weight_swarm.cache_part(classifier, targets, part, config.particles)
    outcome, counts = weight_swarm.search(
      classifier, targets, samples, len(negatives), len(positives), key=key_search, settings=config.swarm,
      iterations=config.iterations, group=group, fitness=weight_swarm.swarm_fitness)
    repaired = write(targets, classifier, outcome.best.vector)
    steps, patched, kept = int(outcome.steps), int(counts[0]), int(counts[2])
  found = edits(targets, classifier, repaired)
  notes = (f'Localized {len(found)} entries of the kernel of {targets.layers[0]}.',
           f'Fixed {patched} of the {len(negatives)} failing samples that the search aimed at; broke '
           f'{len(positives) - kept} of the {len(positives)} passing ones in its fitness, in {steps} iterations.')
  curves = {'best_fitness': np.asarray(outcome.best_curve)[:steps + 1],
            'mean_fitness': np.asarray(outcome.mean_curve)[:steps + 1]}
  return Repair(repaired, Trace(curves, dict.fromkeys(curves, steps), found, notes=notes), clock.seconds)


def _may_change(problem: Problem, config: Config) -> Callable[[str], bool]:
  """Raises `Unadaptable` without a Dense layer to change."""
  kernel = f'params/{dense_layer(problem.classifier, config.layer)}/kernel'
  return lambda name: name == kernel


METHOD = Method(
  name='arachne_pso', title='Arachne (PSO)', code='', level='neuron', config=Config(), repair=repair,
  changes='a few entries of the last Dense kernel', guarantee='none',
  requires='failing and passing samples; a last dense layer',
  source='Sohn, Kang, Yoo. Search Based Repair of Deep Neural Networks. arXiv 1912.12463v1, 2019; eAI-Repair-Toolkit',
  summary='finds a few suspicious weights of the last dense layer and gives them new values by particle swarm',
  may_change=_may_change, check=_may_change, changes_only_edits=True)
