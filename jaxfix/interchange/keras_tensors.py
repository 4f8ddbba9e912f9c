"""Which array of a Keras file is which weight of a network here. Nothing is transposed: both keep the same layout."""
import re
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxfix.errors import CorruptFileError, require

Found = dict[tuple[str, str], tuple[str, np.ndarray]]
"""(Keras layer, role) -> (path in the file, array); a role is collection and name of a weight, 'params/kernel' say."""

_ROLES = {'kernel': 'params/kernel', 'W': 'params/kernel', 'bias': 'params/bias', 'b': 'params/bias',
          'gamma': 'params/scale', 'beta': 'params/bias', 'moving_mean': 'batch_stats/mean',
          'running_mean': 'batch_stats/mean', 'moving_variance': 'batch_stats/var',
          'running_std': 'batch_stats/var'}  # Keras 1 called it std and stored a variance
_ROLE = re.compile(rf'(?:^|[_/])({"|".join(_ROLES)})(?:_\d+)?(?::0)?$')  # dense/kernel:0, dense/kernel, dense_1_W:0

_STATE = 'seed_generator_state'  # of dropout; no weight


def collect(arrays: Mapping[str, np.ndarray], layers: Collection[str], where: str) -> Found:
  """Sorts arrays, stored as `layer/.../weight`, by layer and role.

  Raises:
    CorruptFileError: an array belongs to none of `layers`, or two are the same weight.
  """
  longest_first = sorted(layers, key=len, reverse=True)  # 'conv1/conv' is tried before 'conv1'
  found = {}
  for name, array in arrays.items():
    if _STATE in name:
      continue
    layer = next((layer for layer in longest_first if name.startswith(f'{layer}/')), None)
    role = _ROLE.search(name)
    require(layer is not None and role is not None, f'{where}: array {name!r} is no weight of the model.',
            CorruptFileError)
    key = layer, _ROLES[role.group(1)]
    require(key not in found, f'{where}: arrays {found.get(key, ("",))[0]!r} and {name!r} are the same weight.',
            CorruptFileError)
    found[key] = name, array
  return found


def assign(found: Found, template: Mapping[str, Any], layers: Mapping[str, str], where: str) -> Mapping[str, Any]:
  """Variables of the shapes of `template`, each array used exactly once.

  Args:
    found: result of `collect`.
    template: variables as `jax.ShapeDtypeStruct`s.
    layers: module path -> Keras layer.
    where: names the file in messages.
  Raises:
    CorruptFileError: a weight is missing, left over, of another shape, or does not hold floats.
  """
  found, flat = dict(found), {}
  for target, leaf in traverse_util.flatten_dict(template, sep='/').items():
    collection, _, rest = target.partition('/')
    path, _, weight = rest.rpartition('/')
    name, array = found.pop((layers[path], f'{collection}/{weight}'), (None, None))
    require(name is not None, f'{where}: the {weight} of layer {layers[path]!r} is missing.', CorruptFileError)
    require(array.shape == leaf.shape, f'{where}: array {name!r} has shape {array.shape}, but the model needs '
            f'{leaf.shape}.', CorruptFileError)
    require(np.issubdtype(array.dtype, np.floating), f'{where}: array {name!r} holds {array.dtype}, not floats.',
            CorruptFileError)
    flat[target] = array.astype(np.float32)
  require(not found, f'{where}: array {next(iter(found.values()), ("",))[0]!r} belongs to no weight of its layer.',
          CorruptFileError)
  return jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(flat, sep='/'))
