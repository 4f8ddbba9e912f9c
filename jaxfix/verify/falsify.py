"""The search for counterexamples: gradient ascent from many starts, and exact confirmation of what it finds."""
import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import devices
from jaxfix.verify import checker
from jaxfix.verify.graph import Graph, evaluate
from jaxfix.verify.spec import Box, Clause, HPolytope, Property


def samples(box: Box, *, key: jax.Array, number: int = 4096) -> np.ndarray:
  """Inputs `[p, n]` float64 of a box: its centre, up to 64 corners, and `number` at random. `key` is consumed."""
  rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
  corners = rng.integers(0, 2, (64, box.dimension)) if box.dimension > 6 else (
    np.arange(2 ** box.dimension)[:, None] >> np.arange(box.dimension) & 1)
  share = np.concatenate([np.full((1, box.dimension), 0.5), corners, rng.random((number, box.dimension))])
  return box.lower + share * (box.upper - box.lower)


def attack(graph: Graph, p: Property, *, key: jax.Array, starts: int = 256, steps: int = 40) -> np.ndarray:
  """Inputs `[clauses * starts, n]` float64 of the box of a property, driven towards violating each of its clauses.

  Signed gradient ascent on the smallest g y - h of a clause (all rows of a clause must fail), with a step of a quarter
  of the box that shrinks to a thousandth of it.

  Args:
    graph: of the network.
    p: property on a box.
    key: consumed; one stream a clause.
    starts: random starts for each clause.
    steps: of ascent.
  """
  box: Box = p.inputs
  lower, upper = box.lower.astype(np.float32), box.upper.astype(np.float32)
  found = [_ascend(graph, lower, upper, c.g.astype(np.float32), c.h.astype(np.float32), jax.random.fold_in(key, i),
                   starts, steps) for i, c in enumerate(p.clauses)]
  return np.concatenate([np.asarray(x, np.float64) for x in found])


@functools.partial(devices.jit, static_argnames=('starts', 'steps'))
def _ascend(graph: Graph, lower: jax.Array, upper: jax.Array, g: jax.Array, h: jax.Array, key: jax.Array, starts: int,
            steps: int) -> jax.Array:
  def violation(x):
    return (g @ evaluate(graph, x)[-1].reshape(-1) - h).min()

  def step(x, size):
    return jnp.clip(x + size * (upper - lower) * jnp.sign(jax.vmap(jax.grad(violation))(x)), lower, upper), None

  x = lower + (upper - lower) * jax.random.uniform(key, (starts, lower.shape[0]))
  return jax.lax.scan(step, x, jnp.geomspace(0.25, 1e-3, steps))[0]


def confirm(network: tuple[checker.Op, ...], inputs: Box | HPolytope, clauses: tuple[Clause, ...],
            candidates: np.ndarray) -> np.ndarray | None:
  """The first of a few candidates `[p, n]` that lies in the set and violates a clause, both exactly; or None.

  A candidate is rounded to the nearest float32 that is in the box, where there is one, since float32 is what networks
  are run on.
  """
  box = inputs.box if isinstance(inputs, HPolytope) else inputs
  x = np.clip(candidates, box.lower, box.upper)
  single = x.astype(np.float32)
  inwards = np.where(single > box.upper, np.nextafter(single, np.float32(-np.inf)),
                     np.where(single < box.lower, np.nextafter(single, np.float32(np.inf)), single)).astype(np.float64)
  x = np.where((inwards >= box.lower) & (inwards <= box.upper), inwards, x)
  if isinstance(inputs, HPolytope):
    x = x[[_meets(inputs, point) for point in x]] if len(x) else x
  if not len(x):
    return None
  stated = tuple(checker.Clause(c.g, c.h, c.strict) for c in clauses)
  bad = np.flatnonzero(~checker.holds_exactly(network, stated, x))
  return x[bad[0]] if len(bad) else None


def _meets(polytope: HPolytope, x: np.ndarray) -> bool:
  """Whether a x <= b, exactly."""
  point = [Fraction(v) for v in x.tolist()]
  return all(sum(Fraction(a) * v for a, v in zip(row, point, strict=True)) <= Fraction(limit)
             for row, limit in zip(polytope.a.tolist(), polytope.b.tolist(), strict=True))
