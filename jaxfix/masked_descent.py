"""Gradient descent on chosen entries of one layer, while chosen BatchNorm layers are in training mode."""
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxfix.classifier import Classifier, layer_weights, with_layer_weights
from jaxfix.models.layers import BatchNorm

Weights = Mapping[str, jax.Array]
"""What belongs to one layer: 'kernel', and 'bias' where it has one."""


def run(classifier: Classifier, x: jax.Array, output: str | None, moving: Sequence[str]
        ) -> tuple[jax.Array, Classifier]:
  """A forward pass with some BatchNorm layers in training mode.

  Args:
    classifier: the network.
    x: `[n, *input_shape]`, raw inputs.
    output: path of the layer whose output is wanted (the last, if it is called more than once); None for the logits.
    moving: paths of the BatchNorm layers that use and record the statistics of this batch.
  Returns:
    The output, and the network with the statistics after the pass, through which no gradient flows.
  """
  seen = []

  def note(next_fun, args, kwargs, context):
    path = '/'.join(context.module.path)
    if isinstance(context.module, BatchNorm) and path in moving:
      args, kwargs = args[:1], {'train': True}
    out = next_fun(*args, **kwargs)
    if path == output and context.method_name == '__call__':
      seen.append(out)
    return out

  with nn.intercept_methods(note):
    logits, new = classifier.module.apply(classifier.variables, classifier.normalize(x), train=False,
                                          mutable=['batch_stats'] if moving else [])
  after = classifier.with_variables({**classifier.variables, **jax.lax.stop_gradient(dict(new))})
  return (logits if output is None else seen[-1]), after


def descend(loss_of: Callable[[Weights, Classifier, Any], tuple[jax.Array, Classifier]], classifier: Classifier,
            batches: Any, target: str, mask: jax.Array, rate: jax.Array, train_bias: bool
            ) -> tuple[Classifier, jax.Array]:
  """Plain gradient descent on one layer, a step for each batch: W <- W - rate Q * dL/dW.

  Args:
    loss_of: `(weights of the layer, network, batch) -> (loss, network after the pass)`, to be differentiated in the
      first argument.
    classifier: the network before.
    batches: pytree whose leaves have the steps as their leading axis.
    target: path of the layer.
    mask: bool like its kernel, Q. Entries where it is False keep their bits.
    rate: scalar.
    train_bias: whether the bias of the layer, if it has one, is trained too, all of it.
  Returns:
    The network after the last step, and the loss before each step, `[steps]`.
  """
  def step(classifier, batch):
    own = layer_weights(classifier, target)
    trained = {k: v for k, v in own.items() if k == 'kernel' or (k == 'bias' and train_bias)}
    (loss, after), slope = jax.value_and_grad(loss_of, has_aux=True)(trained, classifier, batch)
    moved = {k: v - rate * slope[k] for k, v in trained.items()}
    moved['kernel'] = jnp.where(mask, moved['kernel'], own['kernel'])
    return with_layer_weights(after, {target: moved}), loss

  return jax.lax.scan(step, classifier, batches)
