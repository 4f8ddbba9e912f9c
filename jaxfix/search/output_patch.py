"""Predictions of many networks that differ in a few kernel entries of the output layer.

The logits of all but the touched classes are those of the original network, and of these only the largest can win. So a
candidate costs the product of the inputs that meet its entries with the touched classes, and one comparison a sample,
however many classes there are.
"""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import devices, predict
from jaxfix.classifier import Classifier
from jaxfix.localize.targets import UNUSED, Targets, values

_CPU_BYTES, _ACCELERATOR_BYTES = 4 << 20, 256 << 20   # of a block's logits; the former suit the caches of a CPU
_MOST_ROWS = 1024


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Touched:
  """What all candidates share: `b` blocks of `n` samples, `d` slots, `t` touched classes.

  Attributes:
    inputs: `[b, n, d]` the inputs that meet the targets; 0 in unused slots.
    logits: `[b, n, t]` of the touched classes in the original network.
    rest, rest_class: `[b, n]` the largest of the other logits (-infinity if there are none) and its class.
    y: `[b, n]` int32 labels; c in rows that fill up the last block.
    classes: `[t]` int32 touched classes, ascending; c in columns that fill up.
    column: `[d, t]` float32, 1 where a slot belongs to a class.
    original: `[d]` values of the targets in the original network.
  """
  inputs: jax.Array
  logits: jax.Array
  rest: jax.Array
  rest_class: jax.Array
  y: jax.Array
  classes: jax.Array
  column: jax.Array
  original: jax.Array


def touch(head: Classifier, targets: Targets, x: np.ndarray, y: np.ndarray, *, size: int) -> Touched:
  """What `total_price` needs of the samples.

  Args:
    head: the output layer (`localize.output_layer.head`).
    targets: entries of its kernel.
    x: `[n, d]` inputs of the output layer.
    y: `[n]` labels.
    size: candidates that will be evaluated at once; with more of them, blocks have fewer samples.
  """
  c, index = head.num_classes, np.asarray(targets.index[0])
  real = index != UNUSED
  row, of_class = np.where(real, index // c, 0), np.where(real, index % c, c)
  touched = np.unique(of_class[real])
  classes = np.full(1 << (touched.size - 1).bit_length(), c, np.int32)
  classes[:touched.size] = touched

  logits = predict.logits(head, x)
  # A sample whose logits are not all finite is wrong in every candidate: nothing beats its best other class, c.
  lost = ~np.isfinite(logits).all(axis=1)
  met = np.where(real & ~lost[:, None], x[:, row], 0)
  own = np.where(lost[:, None], 0, np.pad(logits, ((0, 0), (0, 1)), constant_values=-np.inf)[:, classes])
  logits[:, touched] = -np.inf
  rest = np.where(lost, np.inf, logits.max(axis=1))
  rest_class = np.where(lost, c, logits.argmax(axis=1))

  block_bytes = _CPU_BYTES if jax.default_backend() == 'cpu' else _ACCELERATOR_BYTES
  rows = max(1, min(block_bytes // (4 * size * classes.size), _MOST_ROWS, len(x)))

  def blocks(array: np.ndarray, dtype: type, fill: int = 0) -> jax.Array:
    padded = np.full((devices.round_up(len(x), rows), *array.shape[1:]), fill, dtype)
    padded[:len(x)] = array
    return jnp.asarray(padded.reshape(-1, rows, *array.shape[1:]))

  return Touched(blocks(met, np.float32), blocks(own, np.float32), blocks(rest, np.float32),
                 blocks(rest_class, np.int32), blocks(y, np.int32, fill=c), jnp.asarray(classes),
                 jnp.asarray(real[:, None] & (of_class[:, None] == classes), jnp.float32), values(targets, head))


def total_price(touched: Touched, prices: jax.Array, population: jax.Array) -> jax.Array:
  """Sum over samples of the price of what they are taken for, `[p]` float32. Pure; call it inside `jit`.

  Args:
    touched: the samples.
    prices: `[c + 1, c + 1]`, by label and predicted class (`class_score.prices`).
    population: `[p, d]` values at the targets.
  """
  moves = touched.column * (population - touched.original)[..., None]   # [p, d, t]

  def add(total, block):
    inputs, logits, rest, rest_class, y = block
    z = logits + jnp.einsum('nd,pdt->pnt', inputs, moves)
    best, first = z.max(axis=-1), touched.classes[z.argmax(axis=-1)]
    wins = (best > rest) | ((best == rest) & (first < rest_class))
    return total + prices[y, jnp.where(wins, first, rest_class)].sum(axis=-1), None

  blocks = (touched.inputs, touched.logits, touched.rest, touched.rest_class, touched.y)
  return jax.lax.scan(add, jnp.zeros(len(population)), blocks)[0]
