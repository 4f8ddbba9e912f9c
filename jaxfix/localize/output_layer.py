"""The output layer as a network by itself: a repair of that layer alone needs one array of all before it.

A network that ends in a Dense layer is x -> W a(x) + b. While only W changes, the activations a(x) stay; `inputs`
computes them once, and `head` is the rest, a `Classifier` of them. Whatever localizes or searches in a network does so
in the head at the cost of one layer, whatever the network.
"""
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxfix import devices, intervene
from jaxfix.classifier import Classifier
from jaxfix.models.mlp import Mlp
from jaxfix.models.structure import trace_calls
from jaxfix.predict import DEFAULT_BATCH, padded_batches

HEAD_PATH = 'fc1'
"""Path of the layer in `head`."""


def output_layer(classifier: Classifier) -> str | None:
  """Path of the Dense layer whose outputs are the logits, or None if the network ends in something else."""
  flow = trace_calls(classifier)
  return next((call.path for call in flow.calls
               if call.kind == 'dense' and call.args[0].ndim == 2 and call.out is flow.logits), None)


def head(classifier: Classifier, path: str) -> Classifier:
  """The Dense layer `path`, the output layer, as a classifier of its inputs `[n, d]`; its weights are shared."""
  leaves = traverse_util.flatten_dict(dict(classifier.params), sep='/')
  kernel = leaves[f'{path}/kernel']
  bias = leaves.get(f'{path}/bias', jnp.zeros(kernel.shape[1], kernel.dtype))
  return Classifier({'params': {HEAD_PATH: {'kernel': kernel, 'bias': bias}}}, Mlp(kernel.shape[1], ()),
                    (kernel.shape[0],), kernel.shape[1])


def inputs(classifier: Classifier, x: Any, path: str, *, batch_size: int = DEFAULT_BATCH) -> np.ndarray:
  """`[n, d]` float32, on the host: what enters the layer `path`, in evaluation mode.

  Args:
    classifier: the network.
    x: `[n, *input_shape]`, raw, in memory or streamed; n >= 1.
    path: of a layer with inputs `[n, d]`.
    batch_size: samples computed at once; rounded up to a multiple of the number of devices.
  """
  batch_size = devices.round_up(batch_size, devices.data_mesh().size)
  classifier = devices.replicate(classifier)
  return np.concatenate([jax.device_get(_inputs(classifier, devices.shard_batch(batch), path=path))[:count]
                         for batch, count in padded_batches(x, batch_size)])


@functools.partial(jax.jit, static_argnames=('path',))
def _inputs(classifier: Classifier, x: jax.Array, *, path: str) -> jax.Array:
  return intervene.record(classifier, classifier.normalize(x), (path,))[path][0]
