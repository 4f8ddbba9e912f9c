"""Patches of the same network, found independently, as one family of patches with a few coefficients in [0, 1].

A patch is kernel entries and their new values. An entry that one patch has moves with the coefficient of that patch; an
entry that several have, with one of its own. Nothing but the union of the entries changes, and no value leaves the
range of the original and the repaired ones.

Source: Li Calsi et al., "Distributed Repair of Deep Neural Networks", ICST 2023; eAI-Repair-Toolkit, whose list of
shared entries comes out empty: here it is every entry that two patches have.
"""
import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix.classifier import Classifier
from jaxfix.localize.linear import kernel
from jaxfix.localize.targets import UNUSED, Targets, make_targets

Orientation = Literal['original_to_repaired', 'min_max']


class Patch(NamedTuple):
  """`[k]` positions in one kernel's C order, distinct and ascending, and `[k]` float32 values there."""
  positions: np.ndarray
  values: np.ndarray


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Merge:
  """The family: `d` slots as in `Targets`, `q` coefficients, of which the first `count` do something.

  Attributes:
    targets: the union of all entries.
    driver: `[d]` int32, the coefficient that a slot follows: its patch's number or, if it is shared, `m` + its rank.
    start, end: `[d]` values at coefficient 0 and 1; 0 in unused slots.
    used: `[q]` bool; the others fill up, so that searches of a few sizes serve any number.
  """
  targets: Targets
  driver: jax.Array
  start: jax.Array
  end: jax.Array
  used: jax.Array


def merge_patches(classifier: Classifier, path: str, patches: Sequence[Patch],
                  orientation: Orientation = 'original_to_repaired') -> Merge:
  """The family of `m` patches of the kernel of layer `path`.

  Args:
    classifier: the unpatched network.
    path: of the layer.
    patches: at least one.
    orientation: of an entry that one patch has. 'original_to_repaired': coefficient 0 is the original value and 1 the
      repaired one. 'min_max', as in the toolkit: 0 is the smaller and 1 the larger of the two. Shared entries always
      run from the smallest to the largest of the original and all repaired values.
  """
  original = np.asarray(kernel(classifier, path)).ravel()
  union, times = np.unique(np.concatenate([patch.positions for patch in patches]), return_counts=True)
  shared = times > 1
  driver = np.where(shared, len(patches) + np.cumsum(shared) - 1, 0).astype(np.int32)
  low = high = original[union]
  repaired = original[union]
  for number, (positions, values) in enumerate(patches):
    at = np.searchsorted(union, positions)
    low, high = low.copy(), high.copy()
    low[at], high[at] = np.minimum(low[at], values), np.maximum(high[at], values)
    own = ~shared[at]
    driver[at[own]], repaired[at[own]] = number, values[own]
  by_range = shared | (orientation == 'min_max')
  targets = make_targets(classifier, (path,), union)
  fill = targets.used.size - union.size
  start, end = (np.pad(v, (0, fill)) for v in (np.where(by_range, low, original[union]),
                                               np.where(by_range, high, repaired)))
  count = len(patches) + int(shared.sum())
  used = np.arange(1 << (count - 1).bit_length()) < count
  return Merge(targets, *map(jnp.asarray, (np.pad(driver, (0, fill)), start, end, used)))


def decode(merge: Merge, coefficients: jax.Array) -> jax.Array:
  """Values `[..., d]` at the targets for coefficients `[..., q]`: exactly `start` at 0 and `end` at 1."""
  c = coefficients[..., merge.driver]
  between = (1 - c) * merge.start + c * merge.end
  # Rounding may step out of a range whose ends nearly agree.
  return jnp.where((c >= 0) & (c <= 1), jnp.clip(between, jnp.minimum(merge.start, merge.end),
                                                 jnp.maximum(merge.start, merge.end)), between)


def inside(merge: Merge, coefficients: jax.Array) -> jax.Array:
  """`[...]` bool: every coefficient that does something lies in [0, 1]; coefficients: `[..., q]`."""
  return (((coefficients >= 0) & (coefficients <= 1)) | ~merge.used).all(axis=-1)


def values_of(merge: Merge, original: np.ndarray, patch: Patch) -> np.ndarray:
  """`[d]`: the values at the targets if this patch alone is applied; `original`: `[d]` values of the network."""
  index = np.asarray(merge.targets.index[0])
  at = np.searchsorted(index, patch.positions)   # unused slots come last
  assert (index[at] == patch.positions).all() and (patch.positions < UNUSED).all()
  vector = np.array(original)
  vector[at] = patch.values
  return vector
