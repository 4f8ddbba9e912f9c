"""Particle swarm with one global best and constant inertia, as CARE's public code runs it.

Source: GlobalBestPSO of PySwarms 1.3.0 (Miranda, JOSS 2018) with the boundaries and the stop that CARE's authors set.
All particles start at one point, "no change", with speeds drawn from U(0, 1); what leaves the box comes in again on the
other side; the search ends when its best cost has hardly moved for `patience` iterations.

`population.maximize` counts steps from 0: T iterations of PySwarms are `max_steps = T - 1`, because the first
evaluation is that of `init`. The cost that PySwarms minimizes is minus the fitness here.
"""
import dataclasses

import jax
import jax.numpy as jnp

from jaxfix.errors import require
from jaxfix.search.population import Best, Fitness, Search, better


@dataclasses.dataclass(frozen=True)
class Settings:
  """Hashable constants of the search.

  Attributes:
    size: p, particles.
    inertia: w, share of the old velocity that is kept.
    own_pull, best_pull: c1 and c2, pulls towards a particle's own best position and the swarm's.
    ftol: the best cost stands still where it moves by less than ftol (1 + |best cost|).
    patience: the search stops after that many iterations in a row in which it stands still.
  """
  size: int = 20
  inertia: float = 0.8
  own_pull: float = 0.41
  best_pull: float = 0.41
  ftol: float = 1e-3
  patience: int = 10

  def __post_init__(self):
    require(self.size >= 1, f'A swarm needs a particle, got size {self.size}.')
    require(self.ftol >= 0, f'ftol must not be negative, got {self.ftol}.')
    require(self.patience >= 1, f'patience must be at least 1, got {self.patience}.')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """Positions and velocities `[p, d]`, fitness `[p]` at the positions, each particle's own best (`[p, d]`, `[p]`), the
  swarm's best, for how many iterations in a row that has stood still, and the key of the next iteration."""
  position: jax.Array
  velocity: jax.Array
  fitness: jax.Array
  own: jax.Array
  own_fitness: jax.Array
  best: Best
  still: jax.Array
  key: jax.Array


def global_best_swarm(start: jax.Array, lower: jax.Array, upper: jax.Array, settings: Settings = Settings()) -> Search:
  """The search.

  Args:
    start: `[d]` where all particles begin; it is evaluated first, and only what is strictly better replaces it.
    lower, upper: `[d]` box; lower < upper.
    settings: constants.
  """
  def init(key: jax.Array, fitness: Fitness) -> State:
    key_speed, key_next = jax.random.split(key)
    position = jnp.broadcast_to(start, (settings.size, start.size))
    velocity = jax.random.uniform(key_speed, position.shape)
    value = fitness(position, jnp.full(settings.size, -jnp.inf))
    best = better(Best(start, jnp.float32(-jnp.inf)), position, value)
    own_fitness = jnp.where(jnp.isnan(value), -jnp.inf, value)
    return State(position, velocity, value, position, own_fitness, best, jnp.int32(0), key_next)

  def step(state: State, fitness: Fitness) -> State:
    key_next, key_pull = jax.random.split(state.key)
    draws = jax.random.uniform(key_pull, (2, *state.position.shape))
    velocity = accelerate(state.position, state.velocity, state.own, state.best.vector, *draws, settings)
    position = wrap(state.position + velocity, lower, upper)
    value = fitness(position, state.own_fitness)
    wins = value > state.own_fitness
    own = jnp.where(wins[:, None], position, state.own)
    own_fitness = jnp.where(wins, value, state.own_fitness)
    best = better(state.best, position, value)
    quiet = stands_still(best.fitness, state.best.fitness, settings.ftol)
    return State(position, velocity, value, own, own_fitness, best, jnp.where(quiet, state.still + 1, 0), key_next)

  return Search(init, step, lambda state: state.still >= settings.patience)


def accelerate(position: jax.Array, velocity: jax.Array, own: jax.Array, best: jax.Array, draw_own: jax.Array,
               draw_best: jax.Array, settings: Settings) -> jax.Array:
  """w v + c1 U1 (own - x) + c2 U2 (best - x); the draws are per particle and component. No clamp."""
  return (settings.inertia * velocity + settings.own_pull * draw_own * (own - position)
          + settings.best_pull * draw_best * (best - position))


def wrap(position: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
  """Positions outside of [lower, upper] re-enter on the opposite side; the border belongs to the box."""
  width = upper - lower
  position = jnp.where(position < lower, upper - jnp.mod(lower - position, width), position)
  return jnp.where(position > upper, lower + jnp.mod(position - upper, width), position)


def stands_still(best: jax.Array, before: jax.Array, ftol: float) -> jax.Array:
  """|best - before| < ftol (1 + |before|); the same for costs and for fitness, their negatives."""
  return jnp.abs(best - before) < ftol * (1 + jnp.abs(before))
