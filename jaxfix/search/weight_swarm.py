"""Particle swarm over the values of chosen kernel entries; fitness is a function of four sums over the samples.

Source: Sohn, Kang, Yoo, arXiv 1912.12463v1, in the form of eAI-Repair-Toolkit. NeuRecover, DistrRep and AdRep search
the same way with a fitness of their own.
"""
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxfix.classifier import Classifier
from jaxfix.localize.gradient_loss import identity
from jaxfix.localize.targets import Targets, siblings, values
from jaxfix.problem import Split
from jaxfix.search import particle_swarm as pso
from jaxfix.search import population, score
from jaxfix.tiling import choose_tiling

SwarmFitness = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(sums [..., 4] of score.tally, num_neg, num_pos) -> [...]`, larger is better. Pure and hashable: a function of a
module, or a frozen dataclass with `__call__`."""

First = Literal['siblings', 'current']


def cache_part(classifier: Classifier, targets: Targets, part: Split, size: int) -> tuple[score.Samples, int]:
  """The samples of `part` as `search` takes them, and how many of the `size` particles to evaluate together."""
  tiling = choose_tiling(classifier, targets.layers, size, len(part))
  samples = score.cache_samples(classifier, part.x, part.y, layers=targets.layers, rows=tiling.rows)
  return samples, tiling.group


@functools.partial(jax.jit, static_argnames=('settings', 'iterations', 'group', 'fitness', 'first'))
def search(classifier: Classifier, targets: Targets, samples: score.Samples, num_neg: jax.Array, num_pos: jax.Array, *,
           key: jax.Array, settings: pso.Settings, iterations: int, group: int, fitness: SwarmFitness,
           first: First = 'siblings') -> tuple[population.Outcome, jax.Array]:
  """Particle swarm over the values at the targets.

  Args:
    classifier: the unpatched network.
    targets: the entries that particles set.
    samples: failing and passing samples by the unpatched network, from `cache_part`.
    num_neg, num_pos: how many of each.
    key: consumed.
    settings: of the swarm.
    iterations: at most.
    group: particles evaluated together, from `cache_part`.
    fitness: of the four sums.
    first: where the first particles are drawn: around the mean of the whole kernel ('siblings', as published) or around
      the value of each entry ('current', AdRep); the spread is the kernel's in both.
  Returns:
    The outcome, and the four sums `[4]` of its best particle.
  """
  swarm, evaluate, tally = swarm_of_weights(classifier, targets, samples, num_neg, num_pos, settings=settings,
                                            group=group, fitness=fitness, first=first)
  outcome = population.maximize(swarm, evaluate, key=key, max_steps=iterations)
  return outcome, tally(outcome.best.vector[None])[0]


def swarm_of_weights(
    classifier: Classifier, targets: Targets, samples: score.Samples, num_neg: jax.Array, num_pos: jax.Array, *,
    settings: pso.Settings, group: int, fitness: SwarmFitness, first: First = 'siblings',
) -> tuple[population.Search, population.Fitness, Callable[[jax.Array], jax.Array]]:
  """What `search` runs: the swarm, its fitness, and `candidates [p, d] -> sums [p, 4]`. Pure; call it inside `jit`."""
  def tally(candidates):
    return score.population_sums(functools.partial(score.tally, head=identity), classifier, targets, samples,
                                 candidates, group=group)

  def evaluate(candidates, at_least):
    del at_least  # both terms need all samples
    return fitness(tally(candidates), num_neg, num_pos)

  kin = siblings(targets, classifier)
  center = kin.mean if first == 'siblings' else values(targets, classifier)
  return pso.particle_swarm(center, kin.std, *pso.speed_bounds(kin.low, kin.high), settings), evaluate, tally


def swarm_fitness(sums: jax.Array, num_neg: jax.Array, num_pos: jax.Array) -> jax.Array:
  """Arachne's: (N_patched + 1) / (Loss(I_neg) + 1) + (N_intact + 1) / (Loss(I_pos) + 1), Loss the mean cross-entropy.

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
