"""`Classifier`: a network and its weights as one value that `jit`, `vmap` and `device_put` take whole."""
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from jaxfix.errors import BadInputError, require

Params = Mapping[str, Any]


def _static(**kwargs: Any) -> Any:
  return dataclasses.field(metadata={'static': True}, **kwargs)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Classifier:
  """A Flax linen module (static) and its variables (pytree leaves), with what is needed to feed it.

  A *population* of `p` candidate repairs is one `Classifier` whose leaves have a leading axis `p` (`stack`), and
  `jax.vmap(lambda c: c.logits(x))(population)` evaluates it.

  Attributes:
    variables: `{'params': ..., 'batch_stats': ...}`, float32 leaves; no other collections.
    module: called as `module.apply(variables, z, train=False)`, returns logits `[n, c]`.
    input_shape: shape of one input, without the batch axis.
    num_classes: c.
    mean, std: per channel (or one for all), in the unit of `pixels / 255`, or of the features if those are floats.
  """
  variables: Mapping[str, Any]
  module: nn.Module = _static()
  input_shape: tuple[int, ...] = _static()
  num_classes: int = _static()
  mean: tuple[float, ...] = _static(default=(0.,))
  std: tuple[float, ...] = _static(default=(1.,))

  @property
  def params(self) -> Params:
    """The trainable weights, a nested dict."""
    return self.variables['params']

  def with_params(self, params: Params) -> 'Classifier':
    """The same network with other trainable weights (batch statistics are kept)."""
    return dataclasses.replace(self, variables={**self.variables, 'params': params})

  def with_variables(self, variables: Mapping[str, Any]) -> 'Classifier':
    """The same network with other variables."""
    return dataclasses.replace(self, variables=variables)

  def normalize(self, x: jax.Array) -> jax.Array:
    """Model input `[n, *input_shape]`, float32, of images (uint8, 0..255) or features (float, taken as they are)."""
    z = x.astype(jnp.float32) / 255 if x.dtype == jnp.uint8 else x.astype(jnp.float32)
    if self.mean == (0.,) and self.std == (1.,):
      return z
    ones = (1,) * (z.ndim - 1)
    return (z - jnp.asarray(self.mean, jnp.float32).reshape(*ones, -1)) / jnp.asarray(
      self.std, jnp.float32).reshape(*ones, -1)

  def logits_of_normalized(self, z: jax.Array) -> jax.Array:
    """Logits `[n, c]` of normalized inputs, in evaluation mode: the space in which attacks act."""
    return self.module.apply(self.variables, z, train=False)

  def logits(self, x: jax.Array) -> jax.Array:
    """Logits `[n, c]` of raw inputs `[n, *input_shape]`, in evaluation mode. Pure: use it under `jit` and `vmap`."""
    return self.logits_of_normalized(self.normalize(x))

  def for_samples(self, index: np.ndarray | jax.Array) -> 'Classifier':
    """The classifier for a batch of samples with these numbers `[n]`; differs where a model draws noise by sample."""
    return self

  @property
  def surrogate(self) -> 'Classifier':
    """What an attack differentiates; differs where a model has no useful gradient, or noise that it must not know."""
    return self


def layer_weights(classifier: Classifier, path: str) -> dict[str, Any]:
  """The trainable weights of the layer `path` ('stage2/conv1'): 'kernel', and 'bias' where it has one."""
  node = classifier.params
  for part in path.split('/'):
    node = node[part]
  return dict(node)


def with_layer_weights(classifier: Classifier, changes: Mapping[str, Mapping[str, Any]]) -> Classifier:
  """The same network with some weights replaced: layer -> name -> array. Every other leaf is shared, not copied."""
  flat = traverse_util.flatten_dict(dict(classifier.params), sep='/')
  flat |= {f'{path}/{name}': value for path, weights in changes.items() for name, value in weights.items()}
  return classifier.with_params(traverse_util.unflatten_dict(flat, sep='/'))


def create(module: nn.Module, *, input_shape: Sequence[int], num_classes: int, key: jax.Array,
           mean: Sequence[float] = (0.,), std: Sequence[float] = (1.,)) -> Classifier:
  """A classifier with freshly drawn weights. `key` is consumed."""
  input_shape = tuple(input_shape)
  variables = _init(module, input_shape, key)
  return Classifier(variables, module, input_shape, num_classes, tuple(map(float, mean)), tuple(map(float, std)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init(module: nn.Module, input_shape: tuple[int, ...], key: jax.Array) -> Mapping[str, Any]:
  return module.init(key, jnp.zeros((1, *input_shape), jnp.float32), train=False)


def stack(classifiers: Sequence[Classifier]) -> Classifier:
  """One population of the given classifiers, which must share module and shapes."""
  require(len(classifiers) > 0, 'A population needs at least one classifier.')
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *classifiers)


def member(population: Classifier, i: int) -> Classifier:
  """Classifier `i` of a population."""
  return jax.tree.map(lambda leaf: leaf[i], population)


def flat_weights(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'params/conv1/kernel': array, ...}` on the host, sorted by name."""
  flat = traverse_util.flatten_dict(jax.device_get(dict(variables)), sep='/')
  return {name: np.asarray(flat[name]) for name in sorted(flat)}


def fingerprint(classifier: Classifier) -> str:
  """Hex SHA-256 over the sorted weights: name, dtype, shape, bytes (batch statistics included)."""
  digest = hashlib.sha256()
  for name, array in flat_weights(classifier.variables).items():
    array = np.ascontiguousarray(array)
    digest.update(f'{name}\0{array.dtype.str}\0{array.shape}\0'.encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def num_params(classifier: Classifier) -> int:
  """Number of trainable scalars."""
  return sum(leaf.size for leaf in jax.tree.leaves(classifier.params))


def check_finite(classifier: Classifier, where: str) -> None:
  """Raises `BadInputError` naming the first weight array that holds NaN or infinity."""
  for name, array in flat_weights(classifier.variables).items():
    require(bool(np.isfinite(array).all()),
            f'{where}: weight {name!r} holds NaN or infinity; load another checkpoint or train again.')


def check_inputs(classifier: Classifier, x: Any, where: str) -> None:
  """Raises `BadInputError` unless `x` is `[n, *input_shape]`, uint8 or float."""
  shape = tuple(np.shape(x))
  if shape[1:] != classifier.input_shape:
    raise BadInputError(f'{where}: inputs have shape {shape[1:]}, but the model takes {classifier.input_shape}.')
