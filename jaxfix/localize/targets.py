"""Single kernel entries: which ones, their values, and networks that differ from another in nothing but them.

A candidate patch is a vector with one slot a target. Slots are padded layer by layer to a few sizes, so that another
random key, which localizes other entries of the same layers, meets programs that are already compiled.
"""
import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix.classifier import Classifier
from jaxfix.errors import require
from jaxfix.localize.linear import kernel, with_kernels
from jaxfix.problem import Edit

UNUSED = np.iinfo(np.int32).max
"""Index of a slot that only fills up; outside every array, so that writes to it are dropped."""

_SMALLEST_BUCKET = 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Targets:
  """Kernel entries that a search may change, `d` slots in all.

  Attributes:
    layers: paths of the layers that hold targets, in the order of the forward pass.
    index: for each of them `[slots]` int32, positions in the kernel's C order; `UNUSED` fills up.
  """
  layers: tuple[str, ...] = dataclasses.field(metadata={'static': True})
  index: tuple[jax.Array, ...]

  @property
  def used(self) -> jax.Array:
    """`[d]` bool: the slots that are targets."""
    return jnp.concatenate([index != UNUSED for index in self.index])

  def split(self, vector: jax.Array) -> tuple[jax.Array, ...]:
    """`[..., d]` cut into the slots of each layer."""
    return tuple(jnp.split(vector, np.cumsum([len(index) for index in self.index])[:-1], axis=-1))


def make_targets(classifier: Classifier, layers: Sequence[str], positions: np.ndarray) -> Targets:
  """Targets from positions in the concatenation of whole kernels.

  Args:
    classifier: the network.
    layers: paths whose raveled kernels are concatenated, in the order of the forward pass.
    positions: `[k]` integers into that concatenation, distinct.
  """
  positions = np.sort(np.asarray(positions, np.int64))
  require(positions.size > 0, 'A patch needs at least one target.')
  offsets = np.cumsum([0, *(kernel(classifier, path).size for path in layers)])
  require(positions[0] >= 0 and positions[-1] < offsets[-1],
          f'Target positions run from {positions[0]} to {positions[-1]}, but the kernels have {offsets[-1]} entries.')
  held, index = [], []
  for path, start, stop in zip(layers, offsets, offsets[1:], strict=False):
    inside = positions[(positions >= start) & (positions < stop)] - start
    if inside.size:
      padded = np.full(_bucket(inside.size), UNUSED, np.int32)
      padded[:inside.size] = inside
      held.append(path)
      index.append(jnp.asarray(padded))
  return Targets(tuple(held), tuple(index))


def widen(targets: Targets, slots: int) -> Targets:
  """The same targets with at least `slots` slots a layer, for searches of several sizes in one compiled program."""
  return Targets(targets.layers, tuple(
    jnp.asarray(np.pad(np.asarray(index), (0, max(0, slots - len(index))), constant_values=UNUSED))
    for index in targets.index))


@jax.jit
def values(targets: Targets, classifier: Classifier) -> jax.Array:
  """`[d]` float32: the weights at the targets; 0 in unused slots."""
  return jnp.concatenate([kernel(classifier, path).ravel().at[index].get(mode='fill', fill_value=0.)
                          for path, index in zip(targets.layers, targets.index, strict=True)])


@jax.jit
def write(targets: Targets, classifier: Classifier, vector: jax.Array) -> Classifier:
  """The network with `vector` `[d]` at the targets and every other weight untouched."""
  kernels = {}
  for path, index, part in zip(targets.layers, targets.index, targets.split(vector), strict=True):
    old = kernel(classifier, path)
    kernels[path] = old.ravel().at[index].set(part, mode='drop').reshape(old.shape)
  return with_kernels(classifier, kernels)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Siblings:
  """Statistics, for each slot, over all entries of the kernel that its target belongs to; `[d]` each.

  `std` is the population standard deviation. In unused slots everything is 0.
  """
  mean: jax.Array
  std: jax.Array
  low: jax.Array
  high: jax.Array


@jax.jit
def siblings(targets: Targets, classifier: Classifier) -> Siblings:
  """See `Siblings`."""
  def spread(statistic):
    per_layer = [jnp.broadcast_to(statistic(kernel(classifier, path)), index.shape)
                 for path, index in zip(targets.layers, targets.index, strict=True)]
    return jnp.where(targets.used, jnp.concatenate(per_layer), 0.)
  return Siblings(spread(jnp.mean), spread(jnp.std), spread(jnp.min), spread(jnp.max))


def edits(targets: Targets, before: Classifier, after: Classifier) -> tuple[Edit, ...]:
  """One `Edit` a target, in slot order, changed or not."""
  found = []
  for path, index in zip(targets.layers, targets.index, strict=True):
    old, new = np.asarray(kernel(before, path)), np.asarray(kernel(after, path))
    for flat in np.asarray(index)[np.asarray(index) != UNUSED]:
      at = tuple(map(int, np.unravel_index(flat, old.shape)))
      found.append(Edit(f'{path}/kernel', at, float(old[at]), float(new[at])))
  return tuple(found)


def _bucket(count: int) -> int:
  """The smallest power of two, at least `_SMALLEST_BUCKET`, that holds `count` slots."""
  return max(_SMALLEST_BUCKET, 1 << (count - 1).bit_length())
