"""What must hold of a network: sets of inputs, and linear conditions on the logits that must hold on all of them.

Every object here describes what is *safe*. A condition is a conjunction of clauses, and a clause a disjunction of
linear inequalities, so that both "class c wins" (one inequality a clause) and the negation of an unsafe region (one
clause a conjunct of it) are one type.

Numbers are float64. A set may be empty; then everything holds on it, and whoever decides a property must say that it
holds for that reason alone (`Property.is_vacuous`).
"""
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from jaxfix.errors import require

_MOST_FREE = 16   # free dimensions of a box whose corners are listed


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
  """All x with lower <= x <= upper, elementwise; both `[n]` float64, finite. Empty if a lower exceeds its upper."""
  lower: np.ndarray
  upper: np.ndarray

  def __post_init__(self):
    lower, upper = _vector('lower', self.lower), _vector('upper', self.upper)
    require(len(lower) == len(upper), f'A box has {len(lower)} lower and {len(upper)} upper bounds.')
    _freeze(self, lower=lower, upper=upper)

  @property
  def dimension(self) -> int:
    """n."""
    return len(self.lower)

  @property
  def is_empty(self) -> bool:
    """No x is inside."""
    return bool((self.lower > self.upper).any())

  def contains(self, x: np.ndarray) -> np.ndarray:
    """`[..., n]` to `[...]` bool."""
    return ((x >= self.lower) & (x <= self.upper)).all(axis=-1)

  def vertices(self) -> 'VPolytope':
    """The corners, 2^d for d dimensions that are not a single value.

    Raises:
      BadInputError: d > 16, or the box is empty.
    """
    require(not self.is_empty, 'An empty box has no vertices.')
    free = np.flatnonzero(self.lower < self.upper)
    require(len(free) <= _MOST_FREE, f'A box with {len(free)} free dimensions has 2^{len(free)} vertices; '
            f'at most {_MOST_FREE} free dimensions are listed.')
    corners = np.tile(self.lower, (2 ** len(free), 1))
    for bit, i in enumerate(free):
      corners[np.arange(len(corners)) >> bit & 1 == 1, i] = self.upper[i]
    return VPolytope(corners)


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
  """Finitely many inputs `[p, n]` float64."""
  x: np.ndarray

  def __post_init__(self):
    _freeze(self, x=_matrix('points', self.x))

  @property
  def dimension(self) -> int:
    """n."""
    return self.x.shape[1]

  @property
  def is_empty(self) -> bool:
    """There is no point."""
    return not len(self.x)


@dataclasses.dataclass(frozen=True, eq=False)
class VPolytope:
  """Convex hull of the rows of `vertices` `[v, n]` float64."""
  vertices: np.ndarray

  def __post_init__(self):
    _freeze(self, vertices=_matrix('vertices', self.vertices))

  @property
  def dimension(self) -> int:
    """n."""
    return self.vertices.shape[1]

  @property
  def is_empty(self) -> bool:
    """There is no vertex."""
    return not len(self.vertices)


@dataclasses.dataclass(frozen=True, eq=False)
class HPolytope:
  """All x of a box with a x <= b; a `[m, n]`, b `[m]` float64. The box keeps it bounded."""
  a: np.ndarray
  b: np.ndarray
  box: Box

  def __post_init__(self):
    a, b = _matrix('a', self.a), _vector('b', self.b)
    require(len(a) == len(b), f'A polytope has {len(a)} rows but {len(b)} right-hand sides.')
    require(a.shape[1] == self.box.dimension, f'The rows of a polytope have {a.shape[1]} entries, its box '
            f'{self.box.dimension}.')
    _freeze(self, a=a, b=b)

  @property
  def dimension(self) -> int:
    """n."""
    return self.box.dimension

  @functools.cached_property
  def is_empty(self) -> bool:
    """No x is inside; one linear program."""
    if self.box.is_empty:
      return True
    from scipy import optimize  # slow to import, and seldom needed
    found = optimize.linprog(np.zeros(self.dimension), self.a, self.b,
                             bounds=np.stack([self.box.lower, self.box.upper], axis=1))
    return found.status == 2

  def contains(self, x: np.ndarray) -> np.ndarray:
    """`[..., n]` to `[...]` bool."""
    return self.box.contains(x) & (x @ self.a.T <= self.b).all(axis=-1)


InputSet = Box | Points | VPolytope | HPolytope


@dataclasses.dataclass(frozen=True, eq=False)
class Clause:
  """Holds of logits y if at least one row of g y <= h does; g `[r, k]`, h `[r]` float64.

  `strict` asks for <: the negation of an unsafe region, whose border belongs to it. A clause without rows never holds.
  """
  g: np.ndarray
  h: np.ndarray
  strict: bool = False

  def __post_init__(self):
    g, h = _matrix('g', self.g), _vector('h', self.h)
    require(len(g) == len(h), f'A clause has {len(g)} rows but {len(h)} right-hand sides.')
    _freeze(self, g=g, h=h)

  @property
  def num_outputs(self) -> int:
    """k."""
    return self.g.shape[1]

  @functools.cached_property
  def always_holds(self) -> bool:
    """No logits violate it: its rows contradict each other's negations. One linear program where there are several."""
    if len(self.h) < 2:
      return len(self.h) == 1 and not self.g.any() and bool(self.h[0] > 0 if self.strict else self.h[0] >= 0)
    from scipy import optimize  # slow to import, and seldom needed
    # The largest t <= 1 with g y >= h + t in all rows: violation needs t >= 0, or t > 0 where the clause is not strict.
    rows = np.concatenate([-self.g, np.ones((len(self.h), 1))], axis=1)
    found = optimize.linprog([0.] * self.num_outputs + [-1.], rows, -self.h,
                             bounds=[(None, None)] * self.num_outputs + [(None, 1.)])
    near = 1e-9 * (1 + np.abs(self.h).max())
    return found.status == 0 and bool(-found.fun < -near if self.strict else -found.fun <= near)

  def slack(self, y: np.ndarray) -> np.ndarray:
    """`[..., k]` to `[...]`: the largest h - g y of any row; the clause holds where it is >= 0, or > 0 if strict."""
    return (self.h - y @ self.g.T).max(axis=-1, initial=-np.inf)

  def holds(self, y: np.ndarray) -> np.ndarray:
    """`[..., k]` to `[...]` bool; False where y is not finite."""
    slack = self.slack(y)
    return (slack > 0 if self.strict else slack >= 0) & np.isfinite(y).all(axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Property:
  """All `clauses` hold of the logits of every input in `inputs`."""
  inputs: InputSet
  clauses: tuple[Clause, ...]

  def __post_init__(self):
    outputs = {clause.num_outputs for clause in self.clauses}
    require(len(outputs) <= 1, f'The clauses of a property speak of {sorted(outputs)} outputs.')

  @property
  def is_vacuous(self) -> bool:
    """It holds of any network: there is no input to look at, or nothing that could fail."""
    return self.inputs.is_empty or all(clause.always_holds for clause in self.clauses)

  def holds(self, y: np.ndarray) -> np.ndarray:
    """`[..., k]` logits to `[...]` bool: every clause holds there."""
    return np.all([clause.holds(y) for clause in self.clauses], axis=0) if self.clauses else np.ones(y.shape[:-1], bool)


Spec = tuple[Property, ...]
"""A union of input sets, each with its condition: every property must hold."""


def wins(label: int, num_outputs: int, margin: float = 0., *, smallest: bool = False) -> tuple[Clause, ...]:
  """The output `label` exceeds every other one by `margin`, or falls below it, where the smallest output wins.

  With margin 0 that is strict: a tie is decided by order in an argmax, and so is no win here.

  Args:
    label: the winner.
    num_outputs: k.
    margin: >= 0, in logits.
    smallest: for networks that choose the smallest output, as ACAS Xu does.
  """
  require(0 <= label < num_outputs, f'Label {label} is not one of {num_outputs} outputs.')
  require(np.isfinite(margin) and margin >= 0, f'The margin must be >= 0 and finite, got {margin}.')
  sign = -1. if smallest else 1.
  unit = np.eye(num_outputs)
  return tuple(Clause(sign * (unit[j] - unit[label])[None], [-margin], strict=margin == 0)
               for j in range(num_outputs) if j != label)


def avoids(conjuncts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[Clause, ...]:
  """The logits are in none of the unsafe regions {y | g y <= h}: one strict clause a region."""
  return tuple(Clause(-np.asarray(g, float), -np.asarray(h, float), strict=True) for g, h in conjuncts)


def check_sizes(spec: Spec, num_inputs: int, num_outputs: int) -> None:
  """Raises `BadInputError` if the spec is about networks of other sizes."""
  for i, p in enumerate(spec):
    require(p.inputs.dimension == num_inputs,
            f'Property {i} has inputs of {p.inputs.dimension} numbers, the network takes {num_inputs}.')
    for clause in p.clauses:
      require(clause.num_outputs == num_outputs,
              f'Property {i} speaks of {clause.num_outputs} outputs, the network has {num_outputs}.')


def _vector(name: str, values: np.ndarray) -> np.ndarray:
  values = np.array(values, np.float64)
  require(values.ndim == 1, f'{name} must have one axis, got shape {values.shape}.')
  require(bool(np.isfinite(values).all()), f'{name} holds NaN or infinity.')
  return values


def _matrix(name: str, values: np.ndarray) -> np.ndarray:
  values = np.array(values, np.float64)
  require(values.ndim == 2, f'{name} must have two axes, got shape {values.shape}.')
  require(bool(np.isfinite(values).all()), f'{name} holds NaN or infinity.')
  return values


def _freeze(record: object, **arrays: np.ndarray) -> None:
  """Stores arrays in a frozen record, read-only."""
  for name, array in arrays.items():
    array.setflags(write=False)
    object.__setattr__(record, name, array)
