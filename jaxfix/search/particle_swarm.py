"""Particle swarm with constriction, as the first generation of Arachne and its relatives use it.

Source: Sohn, Kang, Yoo, arXiv 1912.12463v1, in the form of eAI-Repair-Toolkit. Peculiar to it: particles move before
their velocity is renewed, the two random weights are scalars a particle, and speeds have a floor, so that particles
never settle.
"""
import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxfix.errors import require
from jaxfix.search.population import Best, Fitness, Search, better


@dataclasses.dataclass(frozen=True)
class Settings:
  """Hashable constants of the search.

  Attributes:
    size: p, particles.
    phi: > 4; each of the two random weights is uniform in [0, phi].
    window: the search stops when the last that many iterations have brought nothing better than all before them.
  """
  size: int = 100
  phi: float = 4.1
  window: int = 10

  def __post_init__(self):
    require(self.size >= 1, f'A swarm needs a particle, got size {self.size}.')
    require(self.phi > 4, f'phi must exceed 4 (the constriction is real only then), got {self.phi}.')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """Positions and velocities `[p, d]`, fitness `[p]` at the positions, each particle's own best (`[p, d]`, `[p]`), the
  swarm's best, iterations so far, the iteration that last improved it, and the key of the next iteration."""
  position: jax.Array
  velocity: jax.Array
  fitness: jax.Array
  own: jax.Array
  own_fitness: jax.Array
  best: Best
  iteration: jax.Array
  improved: jax.Array
  key: jax.Array


def particle_swarm(mean: jax.Array, std: jax.Array, slowest: jax.Array, fastest: jax.Array,
                   settings: Settings = Settings()) -> Search:
  """The search.

  Args:
    mean, std: `[d]` of the normal distribution of the first positions; the first velocities are 0.
    slowest, fastest: `[d]` bounds of |velocity|.
    settings: constants.
  """
  chi = constriction(settings.phi)

  def init(key: jax.Array, fitness: Fitness) -> State:
    key_first, key_next = jax.random.split(key)
    position = mean + std * jax.random.normal(key_first, (settings.size, mean.size))
    value = fitness(position, jnp.full(settings.size, -jnp.inf))
    best = better(Best(position[0], jnp.float32(-jnp.inf)), position, value)
    zero = jnp.int32(0)
    return State(position, jnp.zeros_like(position), value, position, value, best, zero, zero, key_next)

  def step(state: State, fitness: Fitness) -> State:
    key_next, key_weights = jax.random.split(state.key)
    rho = jax.random.uniform(key_weights, (2, settings.size, 1), maxval=settings.phi)
    position = state.position + state.velocity
    velocity = accelerate(position, state.velocity, state.own, state.best.vector, rho[0], rho[1], chi)
    velocity = bound_speed(velocity, slowest, fastest)
    value = fitness(position, state.own_fitness)
    wins = value > state.own_fitness
    own = jnp.where(wins[:, None], position, state.own)
    own_fitness = jnp.where(wins, value, state.own_fitness)
    best = better(state.best, position, value)
    iteration = state.iteration + 1
    improved = jnp.where(best.fitness > state.best.fitness, iteration, state.improved)
    return State(position, velocity, value, own, own_fitness, best, iteration, improved, key_next)

  def stopped(state: State) -> jax.Array:
    return (state.iteration > settings.window) & (state.iteration - state.improved >= settings.window)

  return Search(init, step, stopped)


def constriction(phi: float) -> float:
  """chi = 2 / (phi - 2 + sqrt(phi^2 - 4 phi)), phi > 4."""
  return 2 / (phi - 2 + math.sqrt(phi * phi - 4 * phi))


def accelerate(position: jax.Array, velocity: jax.Array, own: jax.Array, best: jax.Array, rho_own: jax.Array,
               rho_best: jax.Array, chi: float) -> jax.Array:
  """chi (v + rho_own (own - x) + rho_best (best - x)); x is the position after the move."""
  return chi * (velocity + rho_own * (own - position) + rho_best * (best - position))


def bound_speed(velocity: jax.Array, slowest: jax.Array, fastest: jax.Array) -> jax.Array:
  """|velocity| forced into [slowest, fastest], sign kept; the sign of 0 counts as minus."""
  speed = jnp.clip(jnp.abs(velocity), slowest, fastest)
  return jnp.where(velocity > 0, speed, -speed)


def speed_bounds(low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Arachne's: a fifth and five times the range of the weights [low, high]."""
  return (high - low) / 5, (high - low) * 5
