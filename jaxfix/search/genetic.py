"""A genetic algorithm over sparse patches: which few entries of a pool to change, and to what.

A genome is a list of at most `max_entries` (entry, value) pairs. Its fitness is lexicographic: more right samples, then
a lower loss, then fewer entries. Parents come from binary tournaments; uniform crossover of the union of their entries;
mutation redraws, adds or drops one entry; the elite survives.

Why not `population.maximize`: its candidates are dense vectors `[d]` with one float32 fitness. A pool has 1% of all
weights, far more than the ten entries that a genome holds, and a count of right samples and a loss do not fit into one
float32 without rounding that would decide tournaments. The loop here is one `lax.while_loop` all the same. It evaluates
genomes one after the other (`lax.map`): the samples of an evaluation fill the device, and a genome that survived or was
copied from a parent is not evaluated again.

Source: reconstruction, see `methods/neuron/genmunn.py`; the operators are those of mutation testing of networks.
"""
import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix.errors import require

EMPTY = np.iinfo(np.int32).max
"""Entry of a slot that holds nothing; sorts last."""

Operator = Literal['gaussian', 'scale', 'inversion', 'zero', 'swap']
OPERATORS: tuple[Operator, ...] = ('gaussian', 'scale', 'inversion', 'zero', 'swap')
_SWAP, _KEEP = OPERATORS.index('swap'), len(OPERATORS)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Hashable constants of the search.

  Attributes:
    size: p, individuals, at least 2.
    elite: best individuals that survive a generation, in [1, size).
    crossover: probability that a child has two parents.
    mutation: probability that a child is mutated.
    max_entries: m, entries a genome holds at most.
    sigma: standard deviation of the Gaussian operator, per standard deviation of the entry's kernel, >= 0.
    scale: s; the scale operator multiplies by 1 + U(-s, s), >= 0.
    operators: names of `OPERATORS`, drawn uniformly; swap exchanges an entry with another of its neuron, and where
      there is none, or no slot left for it, one of the others is drawn.
    patience: the search stops when the count of right samples has not grown in that many generations.
  """
  size: int = 20
  elite: int = 2
  crossover: float = 0.8
  mutation: float = 0.3
  max_entries: int = 10
  sigma: float = 0.5
  scale: float = 0.5
  operators: tuple[Operator, ...] = OPERATORS
  patience: int = 10

  def __post_init__(self):
    require(self.size >= 2, f'A genetic algorithm needs at least 2 individuals, got {self.size}.')
    require(1 <= self.elite < self.size, f'elite must lie in [1, {self.size}), the population, got {self.elite}.')
    for name in ('crossover', 'mutation'):
      require(0 <= getattr(self, name) <= 1, f'{name} must lie in [0, 1], got {getattr(self, name)}.')
    require(self.max_entries >= 1, f'A genome must hold at least 1 entry, got {self.max_entries}.')
    require(self.sigma >= 0 and self.scale >= 0, f'sigma and scale must be >= 0, got {self.sigma}, {self.scale}.')
    require(len(self.operators) > 0 and set(self.operators) <= set(OPERATORS),
            f'operators must be some of {", ".join(OPERATORS)}, got {self.operators}.')
    require(self.patience >= 1, f'patience must be at least 1, got {self.patience}.')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pool:
  """The entries that may change, most suspicious first; `[k]` each.

  Attributes:
    value: weights before the search.
    spread: standard deviation of the kernel that each belongs to.
    neuron: int32, equal for entries of the same unit or channel.
    used: False for slots that only fill up, which come last.
  """
  value: jax.Array
  spread: jax.Array
  neuron: jax.Array
  used: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Genome:
  """A patch: `entry` `[m]` int32 positions in the pool, distinct, or `EMPTY`; `value` `[m]` what they are set to."""
  entry: jax.Array
  value: jax.Array

  @property
  def size(self) -> jax.Array:
    """Entries held; the shape without its last axis."""
    return (self.entry != EMPTY).sum(axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Fitness:
  """`right`: samples that are right, int32; `loss`: mean loss, float32, infinite instead of NaN."""
  right: jax.Array
  loss: jax.Array


Evaluate = Callable[[Genome], Fitness]
"""Of one genome; scalars."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
  """A generation.

  Attributes:
    genomes: the population, leading axis p; the best first once it is assessed.
    fitness: `[p]`, of those that are `known` `[p]`; the others are evaluated by the next step.
    best, best_fitness: of all genomes so far, the empty one included.
    stall: generations since the count of right samples last grew, the first population not counted.
    evaluations: genomes evaluated so far.
    key: of the next generation.
  """
  genomes: Genome
  fitness: Fitness
  known: jax.Array
  best: Genome
  best_fitness: Fitness
  stall: jax.Array
  evaluations: jax.Array
  key: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Outcome:
  """What `maximize` returns.

  Attributes:
    best, fitness: the best genome; the empty one, with the right samples of the original, if none has more of them.
    generations: bred after the first population, int32.
    evaluations: genomes evaluated, int32.
    best_curve, mean_curve: `[max_steps + 1]` right samples of the best so far, and mean of the population; entry 0 is
      the first population, entries after `generations` are NaN.
  """
  best: Genome
  fitness: Fitness
  generations: jax.Array
  evaluations: jax.Array
  best_curve: jax.Array
  mean_curve: jax.Array


def maximize(pool: Pool, settings: Settings, evaluate: Evaluate, *, original_right: jax.Array, num_samples: jax.Array,
             max_steps: int, key: jax.Array, first: Genome | None = None) -> Outcome:
  """Runs the search until it stalls, `max_steps` generations are bred, or every sample is right.

  Pure; call it inside `jit`.

  Args:
    pool: the entries.
    settings: constants.
    evaluate: of one genome.
    original_right: right samples of the original, that is, of the empty genome: a genome must have more to be best.
    num_samples: samples of an evaluation.
    max_steps: generations at most.
    key: consumed.
    first: the first population, leading axis `settings.size`; None to draw it.
  """
  def running(carry):
    state, generation, _ = carry
    return (generation <= max_steps) & (state.stall < settings.patience) & (state.best_fitness.right < num_samples)

  def advance(carry):
    state, generation, curves = carry
    state = assess(state, evaluate)
    counts = state.fitness.right.astype(jnp.float32)
    curves = curves.at[:, generation].set(jnp.stack([state.best_fitness.right.astype(jnp.float32), counts.mean()]))
    return breed(state, pool, settings), generation + 1, curves

  state = init(pool, settings, original_right, key=key, first=first)
  curves = jnp.full((2, max_steps + 1), jnp.nan)
  state, generations, curves = jax.lax.while_loop(running, advance, (state, jnp.int32(0), curves))
  return Outcome(state.best, state.best_fitness, generations - 1, state.evaluations, *curves)


def init(pool: Pool, settings: Settings, original_right: jax.Array, *, key: jax.Array,
         first: Genome | None = None) -> State:
  """The first population, not yet evaluated. `key` is consumed."""
  key_first, key_next = jax.random.split(key)
  p, m = settings.size, settings.max_entries
  if first is None:
    first = jax.vmap(lambda k: random_genome(pool, settings, key=k))(jax.random.split(key_first, p))
  nothing = Genome(jnp.full(m, EMPTY, jnp.int32), jnp.zeros(m))
  fitness = Fitness(jnp.zeros(p, jnp.int32), jnp.full(p, jnp.inf))
  # At equal counts nothing precedes the original, whatever its loss: a mutant is accepted for its count alone.
  original = Fitness(jnp.asarray(original_right, jnp.int32), jnp.float32(-jnp.inf))
  return State(first, fitness, jnp.zeros(p, bool), nothing, original, jnp.int32(-1), jnp.int32(0), key_next)


def assess(state: State, evaluate: Evaluate) -> State:
  """Evaluates the genomes that are not known, puts the best first, and renews the best of all."""
  def one(item):
    genome, fitness, known = item
    def fresh() -> Fitness:
      found = evaluate(genome)
      return Fitness(found.right, jnp.where(jnp.isnan(found.loss), jnp.inf, found.loss))

    return jax.lax.cond(known, lambda: fitness, fresh)

  fitness = jax.lax.map(one, (state.genomes, state.fitness, state.known))
  order = ranking(fitness, state.genomes)
  genomes, fitness = jax.tree.map(lambda a: a[order], (state.genomes, fitness))
  leader, leader_fitness = jax.tree.map(lambda a: a[0], (genomes, fitness))
  wins = (leader_fitness.right > state.best_fitness.right) | (
    (leader_fitness.right == state.best_fitness.right) & ((leader_fitness.loss < state.best_fitness.loss) | (
      (leader_fitness.loss == state.best_fitness.loss) & (leader.size < state.best.size))))
  best, best_fitness = jax.tree.map(lambda a, b: jnp.where(wins, a, b), (leader, leader_fitness),
                                    (state.best, state.best_fitness))
  grown = best_fitness.right > state.best_fitness.right
  return dataclasses.replace(
    state, genomes=genomes, fitness=fitness, known=jnp.ones_like(state.known), best=best, best_fitness=best_fitness,
    stall=jnp.where(grown, 0, state.stall + 1), evaluations=state.evaluations + (~state.known).sum(dtype=jnp.int32))


def breed(state: State, pool: Pool, settings: Settings) -> State:
  """The next population of an assessed one: elite and children; children equal to a parent keep its fitness."""
  key_next, key_children = jax.random.split(state.key)

  def child(key):
    key_draws, key_cross, key_mutate = jax.random.split(key, 3)
    draws = jax.random.uniform(key_draws, (6,))
    a, b = _integer(draws[:4].reshape(2, 2), settings.size).min(axis=1)   # two tournaments of two
    mates, mutates = draws[4] < settings.crossover, draws[5] < settings.mutation
    parent = jax.tree.map(lambda g: g[a], state.genomes)
    crossed = crossover(parent, jax.tree.map(lambda g: g[b], state.genomes), key=key_cross)
    genome = jax.tree.map(lambda c, p: jnp.where(mates, c, p), crossed, parent)
    genome = jax.tree.map(lambda c, p: jnp.where(mutates, c, p), mutate(genome, pool, settings, key=key_mutate), genome)
    return genome, jax.tree.map(lambda f: f[a], state.fitness), ~mates & ~mutates

  children = jax.vmap(child)(jax.random.split(key_children, settings.size - settings.elite))
  survivors = jax.tree.map(lambda a: a[:settings.elite], (state.genomes, state.fitness, state.known))
  genomes, fitness, known = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), survivors, children)
  return dataclasses.replace(state, genomes=genomes, fitness=fitness, known=known, key=key_next)


def ranking(fitness: Fitness, genomes: Genome) -> jax.Array:
  """`[p]` indices, best first: most right samples, then lowest loss, then fewest entries, then lowest index."""
  return jnp.lexsort((genomes.size, fitness.loss, -fitness.right))


def random_genome(pool: Pool, settings: Settings, *, key: jax.Array) -> Genome:
  """m ~ U{1..max_entries} distinct entries, each with one operator; a swap may add its partner. `key` is consumed."""
  key_entries, key_operators = jax.random.split(key)
  most = settings.max_entries
  draws = jax.random.uniform(key_entries, (1 + pool.used.size,))
  entry = draw_entries(pool.used, 1 + _integer(draws[0], most), draws[1:], most)
  drawn = entry != EMPTY
  genome = Genome(entry, jnp.where(drawn, pool.value[jnp.where(drawn, entry, 0)], 0.))

  def change(slot, genome):
    changed = operate(genome, slot, pool, settings, key=jax.random.fold_in(key_operators, slot))
    return jax.tree.map(lambda a, b: jnp.where(drawn[slot], a, b), changed, genome)

  return jax.lax.fori_loop(0, most, change, genome)


def draw_entries(allowed: jax.Array, count: jax.Array, draws: jax.Array, most: int) -> jax.Array:
  """`count` distinct entries without replacement, probability proportional to 1 / (rank + 1), by Gumbel top-m.

  Args:
    allowed: `[k]` bool, entries to draw from; rank is the position.
    count: of entries, at most `most`; fewer come if fewer are allowed.
    draws: `[k]` uniform in [0, 1).
    most: static.
  Returns:
    `[most]` int32, `EMPTY` after the last.
  """
  gumbel = -jnp.log(-jnp.log(jnp.maximum(draws, jnp.finfo(jnp.float32).tiny)))
  score, entry = jax.lax.top_k(jnp.where(allowed, gumbel - jnp.log1p(jnp.arange(allowed.size, dtype=jnp.float32)),
                                         -jnp.inf), min(most, allowed.size))
  entry = jnp.where((jnp.arange(entry.size) < count) & (score > -jnp.inf), entry, EMPTY).astype(jnp.int32)
  return jnp.pad(entry, (0, most - entry.size), constant_values=EMPTY)


def operate(genome: Genome, slot: jax.Array, pool: Pool, settings: Settings, *, key: jax.Array) -> Genome:
  """The genome with a random operator applied to the old weight of the entry in `slot`. `key` is consumed."""
  draws = jax.random.uniform(key, (4 + pool.used.size,))
  entry = genome.entry[slot]
  w = pool.value[entry]

  kin = pool.used & (pool.neuron == pool.neuron[entry]) & (jnp.arange(pool.used.size) != entry)
  partner = jnp.argmax(jnp.where(kin, draws[4:], -1.)).astype(jnp.int32)
  held = (genome.entry == partner) | (genome.entry == EMPTY)
  place = jnp.argmax(jnp.where(genome.entry == partner, 2, genome.entry == EMPTY))

  names = jnp.array([OPERATORS.index(name) for name in settings.operators])
  others = jnp.array([OPERATORS.index(name) for name in settings.operators if name != 'swap'] or [_KEEP])
  drawn = names[_integer(draws[0], names.size)]
  drawn = jnp.where((drawn == _SWAP) & ~(kin.any() & held.any()), others[_integer(draws[1], others.size)], drawn)
  normal = jax.scipy.special.ndtri(jnp.clip(draws[2], 1e-7, 1 - 1e-7))
  factor = 1 + settings.scale * (2 * draws[3] - 1)
  values = jnp.stack([w + settings.sigma * pool.spread[entry] * normal, w * factor, -w, jnp.float32(0),
                      pool.value[partner], w])
  swapped = Genome(genome.entry.at[place].set(partner), genome.value.at[place].set(w))
  genome = jax.tree.map(lambda a, b: jnp.where(drawn == _SWAP, a, b), swapped, genome)
  return Genome(genome.entry, genome.value.at[slot].set(values[drawn]))


def crossover(a: Genome, b: Genome, *, key: jax.Array) -> Genome:
  """Uniform crossover of one-dimensional genomes over the union of their entries. `key` is consumed.

  An entry that both hold comes from either; one that only one holds comes with probability 1/2. If there are too many,
  the most suspicious stay.
  """
  coin_a, coin_b = jax.random.bernoulli(key, shape=(2, a.entry.size))
  same = (a.entry[:, None] == b.entry) & (a.entry != EMPTY)[:, None]
  keep_b = jnp.where(same.any(axis=0), (same & ~coin_a[:, None]).any(axis=0), coin_b)
  entry = jnp.where(jnp.concatenate([coin_a, keep_b]), jnp.concatenate([a.entry, b.entry]), EMPTY)
  order = jnp.argsort(entry)[:a.entry.size]
  return Genome(entry[order], jnp.concatenate([a.value, b.value])[order])


def mutate(genome: Genome, pool: Pool, settings: Settings, *, key: jax.Array) -> Genome:
  """Redraws the value of one entry, adds one, or drops one, with equal chance. `key` is consumed.

  An empty genome gets an entry; one that is full, or holds the whole pool, has one redrawn in place of an addition.
  """
  key_draws, key_operator = jax.random.split(key)
  filled = genome.entry != EMPTY
  draws = jax.random.uniform(key_draws, (1 + filled.size + pool.used.size,))
  absent = pool.used.at[genome.entry].set(False, mode='drop')
  new = draw_entries(absent, jnp.int32(1), draws[1 + filled.size:], 1)[0]
  kind = _integer(draws[0], 3)
  adds = ((kind == 1) | ~filled.any()) & ~filled.all() & (new != EMPTY)
  drops = (kind == 2) & filled.any()
  slot = jnp.where(adds, jnp.argmin(filled), jnp.argmax(jnp.where(filled, draws[1:1 + filled.size], -1.)))
  entry = genome.entry.at[slot].set(jnp.where(adds, new, jnp.where(drops, EMPTY, genome.entry[slot])))
  genome = Genome(entry, genome.value)
  changed = operate(genome, slot, pool, settings, key=key_operator)
  return jax.tree.map(lambda a, b: jnp.where(drops, a, b), genome, changed)


def _integer(draw: jax.Array, n: int) -> jax.Array:
  """Uniform in 0..n-1 from uniform in [0, 1)."""
  return jnp.minimum((draw * n).astype(jnp.int32), n - 1)
