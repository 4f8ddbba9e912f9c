"""A population search as a record of pure functions, and the one loop that runs any of them.

A search knows nothing of networks; a fitness knows nothing of how candidates are made. `maximize` puts the two together
in a single `lax.while_loop`, so that a whole search is one compiled program.
"""
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Fitness = Callable[[jax.Array, jax.Array], jax.Array]
"""`(population [p, d], at_least [p]) -> fitness [p]`, float32, larger is better.

A fitness may stop early on a candidate that can no longer reach its `at_least` and return any smaller value for it.
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Best:
  """The best candidate seen so far: `vector` `[d]` and its fitness, a float32 scalar."""
  vector: jax.Array
  fitness: jax.Array


class Search(NamedTuple):
  """A population search.

  Attributes:
    init: `(key, fitness) -> state`: draws and evaluates the first population; `key` is consumed.
    step: `(state, fitness) -> state`: one generation.
    stopped: `state -> bool`: the search has given up.

  A state is a pytree with fields `fitness` `[p]` (of the current population) and `best` (`Best`).
  """
  init: Callable[[jax.Array, Fitness], Any]
  step: Callable[[Any, Fitness], Any]
  stopped: Callable[[Any], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
  """What `maximize` returns.

  Attributes:
    best: the best candidate.
    steps: generations run, an int32 scalar.
    best_curve, mean_curve: `[max_steps + 1]` best fitness so far and mean fitness of the population; entry 0 is the
      first population; entries after `steps` are NaN.
  """
  best: Best
  steps: jax.Array
  best_curve: jax.Array
  mean_curve: jax.Array


def maximize(search: Search, fitness: Fitness, *, key: jax.Array, max_steps: int,
             enough: jax.Array | float = jnp.inf) -> Outcome:
  """Runs a search until it stops, `max_steps` generations are over, or the best fitness reaches `enough`.

  Pure; call it inside `jit`. `key` is consumed.
  """
  def running(carry):
    state, steps, _ = carry
    return (steps < max_steps) & ~search.stopped(state) & (state.best.fitness < enough)

  def advance(carry):
    state, steps, curves = carry
    state = search.step(state, fitness)
    return state, steps + 1, curves.at[:, steps + 1].set(point(state))

  def point(state):
    return jnp.stack([state.best.fitness, state.fitness.mean()])

  state = search.init(key, fitness)
  curves = jnp.full((2, max_steps + 1), jnp.nan).at[:, 0].set(point(state))
  state, steps, curves = jax.lax.while_loop(running, advance, (state, jnp.int32(0), curves))
  return Outcome(state.best, steps, *curves)


def better(best: Best, population: jax.Array, fitness: jax.Array) -> Best:
  """`best`, or the first fittest of `population` if that is strictly fitter."""
  i = jnp.argmax(jnp.where(jnp.isnan(fitness), -jnp.inf, fitness))
  wins = fitness[i] > best.fitness
  return Best(jnp.where(wins, population[i], best.vector), jnp.where(wins, fitness[i], best.fitness))
