"""Arachne, first generation: particle swarm over a few weights of the last dense layer.

Sohn, Kang, Yoo, arXiv 1912.12463v1 (2019), as re-implemented in eAI-Repair-Toolkit; NeuRecover, DISTRREP and AdRep are
built on it. Localization looks at failures only: the entries with the largest gradient loss, and of those the ones that
no other beats in both gradient loss and forward impact. Particles then move through the values of these entries.
Guarantee: none; on its own objective the result is at least as good as every candidate that was tried.

Decided here, where the specification leaves room: the share of failures that is repaired, and the double softmax, are
options as in `arachne`.
"""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import predict
from jaxfix.classifier import Classifier
from jaxfix.clock import Clock
from jaxfix.errors import RepairFailure, Unadaptable, require
from jaxfix.localize.batches import make_batches
from jaxfix.localize.forward_impact import raw_forward_impact
from jaxfix.localize.gradient_loss import Head, cross_entropy, gradient_loss, identity
from jaxfix.localize.linear import kernel_layers
from jaxfix.localize.pareto import pareto_front
from jaxfix.localize.targets import Targets, edits, make_targets, siblings, write
from jaxfix.methods.method import Method
from jaxfix.problem import Problem, Repair, Split, Trace
from jaxfix.search import particle_swarm as pso
from jaxfix.search import population as populations
from jaxfix.search import score


@dataclasses.dataclass(frozen=True)
class Config:
  """Defaults are those of eAI-Repair-Toolkit, unless a comment says otherwise."""
  population: int = 100                  # particles, >= 1
  generations: int = 100                 # iterations, at most
  window: int = 10                       # the search stops when that many iterations brought nothing better
  phi: float = 4.1                       # > 4
  candidates: int = 20                   # N_g, entries by gradient loss, for each chosen failure
  num_passing: int = 200                 # passing samples of the fitness, drawn once
  failure_share: float = 0.1             # of the failing samples, in (0, 1], at least one; Arachne's second generation
  layer: str | None = None               # a Dense layer; None: the last one
  compat_double_softmax: bool = False    # losses of a softmax of the softmax

  def __post_init__(self):
    require(self.generations >= 0, f'generations must not be negative, got {self.generations}')
    require(self.candidates >= 1, f'candidates must be at least 1, got {self.candidates}')
    require(self.num_passing >= 1, f'num_passing must be at least 1, got {self.num_passing}')
    require(0 < self.failure_share <= 1, f'failure_share must be in (0, 1], got {self.failure_share}')
    _ = self.settings   # checks the rest

  @property
  def settings(self) -> pso.Settings:
    """Those of the search."""
    return pso.Settings(self.population, self.phi, self.window)

  @property
  def head(self) -> Head:
    """What losses are computed from."""
    return jax.nn.softmax if self.compat_double_softmax else identity


def repair(problem: Problem, config: Config, key: jax.Array) -> Repair:
  """Localizes, then searches. `key` is consumed."""
  clock, classifier = Clock(), problem.classifier
  k_failing, k_passing, k_search = jax.random.split(key, 3)
  with clock.phase('choose_samples'):
    failing, passing = problem.failing_and_passing()
    count = max(1, round(config.failure_share * len(failing)))
    negative = problem.failure_split.take(np.sort(np.asarray(jax.random.permutation(k_failing, failing))[:count]))
    positive = problem.failure_split.take(
      np.sort(np.asarray(jax.random.permutation(k_passing, passing))[:config.num_passing]))
  with clock.phase('localize'):
    targets = localize(classifier, negative, config)
  with clock.phase('search'):
    outcome = search(classifier, targets, negative, positive, config, key=k_search)
    repaired = write(targets, classifier, outcome.best.vector)
    steps = int(outcome.steps)
  with clock.phase('count'):
    patched = int((predict.labels(repaired, negative.x) == negative.y).sum())
  curves = {'best_fitness': np.asarray(outcome.best_curve)[:steps + 1],
            'mean_fitness': np.asarray(outcome.mean_curve)[:steps + 1]}
  notes = (f'{patched} of {len(negative)} chosen failures corrected, {steps} iterations',)
  return Repair(repaired, Trace(curves, edits=edits(targets, classifier, repaired), notes=notes), clock.seconds)


def localize(classifier: Classifier, negative: Split, config: Config) -> Targets:
  """Section 3.5: of the N_g entries with the largest gradient loss, the front of gradient loss and forward impact.

  Raises:
    RepairFailure: no entry has a finite score.
  """
  path = _layer(classifier, config)
  batches = make_batches(negative.x, negative.y)
  gl = np.asarray(gradient_loss(classifier, batches, paths=(path,), head=config.head)[path]).ravel()
  fi = np.asarray(raw_forward_impact(classifier, batches, paths=(path,))[path]).ravel()
  largest = np.sort(np.argsort(-gl, kind='stable')[:config.candidates * len(negative)])
  front = largest[pareto_front(gl[largest], fi[largest])]
  require(len(front) > 0, 'The Pareto front is empty: every weight has a NaN score.', RepairFailure)
  return make_targets(classifier, (path,), front)


def search(classifier: Classifier, targets: Targets, negative: Split, positive: Split, config: Config, *,
           key: jax.Array) -> populations.Outcome:
  """Section 4.2: a particle swarm over the values of the targets, one compiled program. `key` is consumed."""
  x, y = np.concatenate([negative.x, positive.x]), np.concatenate([negative.y, positive.y])
  tiling = score.choose_tiling(classifier, targets.layers, config.population, len(y))
  samples = score.cache_samples(classifier, x, y, layers=targets.layers, rows=tiling.rows)
  sizes = jnp.array([len(negative), max(1, len(positive))], jnp.float32)
  return _search(classifier, targets, samples, sizes, key, settings=config.settings, group=tiling.group,
                 generations=config.generations, head=config.head)


@functools.partial(jax.jit, static_argnames=('settings', 'group', 'generations', 'head'))
def _search(classifier: Classifier, targets: Targets, samples: score.Samples, sizes: jax.Array, key: jax.Array, *,
            settings: pso.Settings, group: int, generations: int, head: Head) -> populations.Outcome:
  around = siblings(targets, classifier)
  slowest, fastest = pso.speed_bounds(around.low, around.high)

  def statistic(logits, y, failing):
    """Right and loss of a failing sample, right and loss of a passing one; zeros for the other kind."""
    right, loss = score.right(logits, y).astype(jnp.float32), cross_entropy(head(logits), y)
    own, other = failing.astype(jnp.float32), 1. - failing
    return jnp.stack([own * right, own * loss, other * right, other * loss], axis=-1)

  def fitness(population, at_least):
    del at_least   # losses are unbounded, so nothing can be said before the last sample
    sums = score.population_sums(statistic, classifier, targets, samples, population, group=group)
    return swarm_fitness(sums[:, 0], sums[:, 1] / sizes[0], sums[:, 2], sums[:, 3] / sizes[1])

  swarm = pso.particle_swarm(around.mean, around.std, slowest, fastest, settings)
  return populations.maximize(swarm, fitness, key=key, max_steps=generations)


def swarm_fitness(patched: jax.Array, loss_failing: jax.Array, intact: jax.Array, loss_passing: jax.Array) -> jax.Array:
  """(N_patched + 1) / (Loss(I_neg) + 1) + (N_intact + 1) / (Loss(I_pos) + 1), losses being means (4.2, step 5)."""
  return (patched + 1) / (loss_failing + 1) + (intact + 1) / (loss_passing + 1)


def _layer(classifier: Classifier, config: Config) -> str:
  dense = [layer.path for layer in kernel_layers(classifier, (config.layer,) if config.layer else None)
           if layer.kind == 'dense']
  if not dense:
    raise Unadaptable('Arachne (PSO) changes the kernel of a Dense layer; '
                      + (f'{config.layer!r} is none.' if config.layer else 'this network has none.'))
  return dense[-1]


METHOD = Method(
  name='arachne_pso', title='Arachne (PSO)', code='', level='neuron', config=Config(), repair=repair,
  check=lambda problem, config: _layer(problem.classifier, config) and None,
  changes='a few kernel entries of the last dense layer',
  may_change=lambda problem, config: f'params/{_layer(problem.classifier, config)}/kernel'.__eq__,
  guarantee='none', source='Sohn, Kang, Yoo, arXiv 1912.12463v1, 2019',
  summary='finds weights of the last dense layer that failures depend on and moves a particle swarm through values')
