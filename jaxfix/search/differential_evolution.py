"""Differential evolution (rand/1/bin) as Arachne uses it.

Source: Sohn, Kang, Yoo, "Arachne", TOSEM 2023, and its public code. One mutation factor a generation, binomial
crossover, mutated components clipped to a box, replacement on a tie, and a stop when the best fitness stands still.
"""
import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxfix.errors import require
from jaxfix.search.population import Best, Fitness, Search, better

Update = Literal['sync', 'async']


@dataclasses.dataclass(frozen=True)
class Settings:
  """Hashable constants of the search.

  Attributes:
    size: p, individuals, at least 4.
    crossover: probability in [0, 1] that a component comes from the mutant.
    factor_low, factor_high: the mutation factor is uniform between them, drawn once a generation.
    patience: the search stops when the best fitness was the same in more than that many generations running.
    update: 'sync' evaluates a generation at once; 'async' lets later individuals see earlier replacements, as the
      public code does, one evaluation at a time.
  """
  size: int = 100
  crossover: float = 0.7
  factor_low: float = 0.5
  factor_high: float = 1.
  patience: int = 10
  update: Update = 'sync'

  def __post_init__(self):
    require(self.size >= 4, f'Differential evolution needs at least 4 individuals, got {self.size}.')
    require(0 <= self.crossover <= 1, f'crossover must lie in [0, 1], got {self.crossover}.')
    require(self.factor_low <= self.factor_high, f'mutation factors: {self.factor_low} exceeds {self.factor_high}.')
    require(self.update in ('sync', 'async'), f"update must be 'sync' or 'async', got {self.update!r}.")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """Population `[p, d]`, its fitness `[p]`, the best ever, the previous generation's best fitness (NaN before the
  first), how many generations that has not changed, and the key of the next generation."""
  population: jax.Array
  fitness: jax.Array
  best: Best
  previous: jax.Array
  unchanged: jax.Array
  key: jax.Array


def differential_evolution(mean: jax.Array, std: jax.Array, lower: jax.Array, upper: jax.Array, used: jax.Array,
                           settings: Settings = Settings()) -> Search:
  """The search.

  Args:
    mean, std: `[d]` of the normal distribution of the first population, which is not clipped.
    lower, upper: `[d]` box of mutated components.
    used: `[d]` bool; the component that is certain to be mutated is drawn among these.
    settings: constants.
  """
  def init(key: jax.Array, fitness: Fitness) -> State:
    key_first, key_next = jax.random.split(key)
    population = mean + std * jax.random.normal(key_first, (settings.size, mean.size))
    value = fitness(population, jnp.full(settings.size, -jnp.inf))
    best = better(Best(population[0], jnp.float32(-jnp.inf)), population, value)
    return State(population, value, best, jnp.float32(jnp.nan), jnp.int32(0), key_next)

  def step(state: State, fitness: Fitness) -> State:
    key_next, key_factor, key_rows = jax.random.split(state.key, 3)
    factor = jax.random.uniform(key_factor, minval=settings.factor_low, maxval=settings.factor_high)
    keys = jax.random.split(key_rows, settings.size)

    def propose(population, i, key):
      key_parents, key_cross = jax.random.split(key)
      a, b, c = population[distinct_others(i, settings.size, key=key_parents)]
      return crossover(population[i], mutate(a, b, c, factor, lower, upper), settings.crossover, used, key=key_cross)

    def generation(population, value):
      trials = jax.vmap(propose, (None, 0, 0))(population, jnp.arange(settings.size), keys)
      return replace(population, value, trials, fitness(trials, value))

    def one_by_one(i, carry):
      population, value = carry
      trial = propose(population, i, keys[i])[None]
      row, fit = replace(population[i][None], value[i][None], trial, fitness(trial, value[i][None]))
      return population.at[i].set(row[0]), value.at[i].set(fit[0])

    if settings.update == 'sync':
      population, value = generation(state.population, state.fitness)
    else:
      population, value = jax.lax.fori_loop(0, settings.size, one_by_one, (state.population, state.fitness))
    best = better(state.best, population, value)
    unchanged = jnp.where(best.fitness == state.previous, state.unchanged + 1, 0)
    return State(population, value, best, best.fitness, unchanged, key_next)

  return Search(init, step, lambda state: state.unchanged > settings.patience)


def distinct_others(i: jax.Array, size: int, *, key: jax.Array) -> jax.Array:
  """Three distinct integers of 0..size-1, none of them `i`, uniformly."""
  rank = jax.random.uniform(key, (size,)).at[i].set(2.)
  return jax.lax.top_k(-rank, 3)[1]


def mutate(a: jax.Array, b: jax.Array, c: jax.Array, factor: jax.Array, lower: jax.Array,
           upper: jax.Array) -> jax.Array:
  """clip(a + factor (b - c), lower, upper), `[d]`."""
  return jnp.clip(a + factor * (b - c), lower, upper)


def crossover(parent: jax.Array, mutant: jax.Array, probability: float, used: jax.Array, *,
              key: jax.Array) -> jax.Array:
  """Each component from the mutant with `probability`, and one component of the used ones for certain; `[d]`."""
  key_sure, key_each = jax.random.split(key)
  sure = jnp.argmax(jnp.where(used, jax.random.uniform(key_sure, parent.shape), -1.))
  taken = (jax.random.uniform(key_each, parent.shape) < probability) | (jnp.arange(parent.size) == sure)
  return jnp.where(taken, mutant, parent)


def replace(population: jax.Array, value: jax.Array, trials: jax.Array,
            trial_value: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Trials that are at least as fit as their parents take their places; `[p, d]` and `[p]`."""
  wins = trial_value >= value
  return jnp.where(wins[:, None], trials, population), jnp.where(wins, trial_value, value)


def value_box(low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Arachne's box around weights in [low, high]: each end doubled away from zero, or halved where it is past zero."""
  return jnp.where(low < 0, 2 * low, low / 2), jnp.where(high > 0, 2 * high, high / 2)
