"""Predictions over a whole split: batches of one padded shape, so that everything compiles once."""
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import devices
from jaxfix.classifier import Classifier, check_inputs
from jaxfix.errors import require

DEFAULT_BATCH = 256


def padded_batches(x: Any, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
  """Yields `(batch, count)`: batches of exactly `batch_size` rows, the last one filled up with its own first row."""
  if hasattr(x, 'batches'):  # streamed data: decodes one batch at a time
    parts = x.batches(batch_size)
  else:
    parts = (x[i:i + batch_size] for i in range(0, len(x), batch_size))
  for part in parts:
    count = len(part)
    if count < batch_size:
      part = np.concatenate([part, np.repeat(part[:1], batch_size - count, axis=0)])
    yield part, count


@jax.jit
def _logits(classifier: Classifier, x: jax.Array) -> jax.Array:
  return classifier.logits(x)


@functools.partial(jax.jit)
def _population_logits(population: Classifier, x: jax.Array) -> jax.Array:
  return jax.vmap(lambda c: c.logits(x))(population)


def _run(function, classifier: Classifier, x: Any, batch_size: int, axis: int) -> np.ndarray:
  check_inputs(classifier, x, 'prediction')
  require(len(x) > 0, 'Cannot predict on an empty split.')
  batch_size = devices.round_up(batch_size, devices.data_mesh().size)
  classifier = devices.replicate(classifier)
  out = []
  for i, (batch, count) in enumerate(padded_batches(x, batch_size)):
    numbers = np.arange(i * batch_size, (i + 1) * batch_size, dtype=np.uint32)
    result = jax.device_get(function(classifier.for_samples(numbers), devices.shard_batch(batch)))
    out.append(np.take(result, range(count), axis=axis))
  return np.concatenate(out, axis=axis)


def logits(classifier: Classifier, x: Any, *, batch_size: int = DEFAULT_BATCH) -> np.ndarray:
  """Logits `[n, c]`, float32, on the host.

  Args:
    classifier: the model.
    x: `[n, *input_shape]`, raw (uint8 pixels or float features), in memory or streamed.
    batch_size: rows computed at once; rounded up to a multiple of the number of devices.
  Raises:
    BadInputError: `x` is empty or its shape is not the model's.
  """
  return _run(_logits, classifier, x, batch_size, axis=0)


def labels(classifier: Classifier, x: Any, *, batch_size: int = DEFAULT_BATCH) -> np.ndarray:
  """Predicted labels `[n]` int32 (`labels_of_logits`). Raises as `logits`."""
  return labels_of_logits(logits(classifier, x, batch_size=batch_size))


def population_labels(population: Classifier, x: Any, *, batch_size: int = DEFAULT_BATCH) -> np.ndarray:
  """Predicted labels `[p, n]` int32 of every member of a population. Raises as `logits`."""
  return labels_of_logits(_run(_population_logits, population, x, batch_size, axis=1))


def labels_of_logits(values: np.ndarray) -> np.ndarray:
  """Argmax over the last axis, lowest index first; -1, never a right answer, where any logit is not finite."""
  return np.where(np.isfinite(values).all(axis=-1), values.argmax(axis=-1), -1).astype(np.int32)


def right(logits: jax.Array, y: jax.Array) -> jax.Array:
  """`[n]` bool: the label is the first largest logit. For use inside `jit`; NaN is wrong.

  Like `argmax(logits) == y`, without its slow reduction. The own class is not compared with itself: where XLA computes
  logits twice, once with a fused multiply-add and once without, it would exceed itself by a rounding.
  """
  classes = jnp.arange(logits.shape[-1])
  own = jnp.where(classes == y[:, None], logits, 0).sum(axis=-1, keepdims=True)
  beaten = (classes != y[:, None]) & ((logits > own) | ((logits == own) & (classes < y[:, None])))
  return ~beaten.any(axis=-1) & jnp.isfinite(logits).all(axis=-1)
