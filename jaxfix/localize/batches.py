"""Samples on the device as equal batches, for scores that `lax.scan` sums over."""
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix.errors import EmptySplitError, require
from jaxfix.predict import padded_batches

DEFAULT_BATCH = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batches:
  """`b` batches of `n` labeled samples; the last is filled up with rows of weight 0.

  Attributes:
    x: `[b, n, *input_shape]`, raw (uint8 pixels or float32 features).
    y: `[b, n]` int32 labels.
    weight: `[b, n]` float32, 1 for samples and 0 for filling.
  """
  x: jax.Array
  y: jax.Array
  weight: jax.Array

  @property
  def count(self) -> jax.Array:
    """Number of samples, a float32 scalar."""
    return self.weight.sum()


def make_batches(x: Any, y: np.ndarray, *, batch_size: int = DEFAULT_BATCH) -> Batches:
  """All of `x` `[n, *input_shape]` and `y` `[n]` as `Batches`.

  Raises:
    EmptySplitError: there is no sample.
  """
  require(len(x) > 0, 'A score over no samples is undefined; give at least one.', EmptySplitError)
  images = np.stack([batch for batch, _ in padded_batches(x, batch_size)])
  labels = np.stack([batch for batch, _ in padded_batches(np.asarray(y, np.int32), batch_size)])
  weight = np.arange(labels.size).reshape(labels.shape) < len(x)
  return Batches(jnp.asarray(images), jnp.asarray(labels), jnp.asarray(weight, jnp.float32))
