"""Gradient loss: how much the loss of a set of samples moves with each kernel entry.

Source: Sohn, Kang, Yoo, "Arachne", TOSEM 2023, and its public code (absolute value after the sum over samples, so that
opposite gradients cancel).
"""
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxfix.classifier import Classifier
from jaxfix.localize.batches import Batches
from jaxfix.localize.linear import kernel, with_kernels

Reduction = Literal['sum', 'mean']
Head = Callable[[jax.Array], jax.Array]


def identity(logits: jax.Array) -> jax.Array:
  """The usual head: scores are the logits themselves."""
  return logits


def cross_entropy(scores: jax.Array, y: jax.Array) -> jax.Array:
  """Softmax cross-entropy `[...]`, in nats, of scores `[..., c]` and labels `[...]`."""
  own = jnp.where(y[..., None] == jnp.arange(scores.shape[-1]), scores, 0).sum(axis=-1)
  return jax.nn.logsumexp(scores, axis=-1) - own


@functools.partial(jax.jit, static_argnames=('paths', 'reduction', 'head'))
def gradient_loss(classifier: Classifier, batches: Batches, *, paths: tuple[str, ...], reduction: Reduction = 'sum',
                  head: Head = identity) -> dict[str, jax.Array]:
  """GL(w) = |sum over x of dL(x)/dw| with L the cross-entropy, in evaluation mode.

  Args:
    classifier: the network.
    batches: the set of samples.
    paths: Dense or Conv layers.
    reduction: 'sum' as in the public code, or 'mean' (divided by the number of samples).
    head: applied to the logits before the loss; `jax.nn.softmax` restores the double softmax of public code.
  Returns:
    path -> array like that layer's kernel, float32, >= 0.
  """
  def loss(kernels, batch):
    scores = head(with_kernels(classifier, kernels).logits(batch.x))
    return jnp.where(batch.weight > 0, cross_entropy(scores, batch.y), 0).sum()

  scale = 1. if reduction == 'sum' else 1 / batches.count
  return jax.tree.map(lambda g: jnp.abs(g) * scale, _summed_gradient(loss, classifier, batches, paths))


@functools.partial(jax.jit, static_argnames=('paths', 'head'))
def output_gradient(classifier: Classifier, batches: Batches, *, paths: tuple[str, ...],
                    head: Head = identity) -> dict[str, jax.Array]:
  """B(w) = |sum over x of d(sum_c out_c(x))/dw|, in evaluation mode: `gradient_loss` without a loss.

  NeuRecover's backward impact in eAI-Repair-Toolkit. With softmax outputs it is 0 up to rounding.
  Args and returns: see `gradient_loss`.
  """
  def total_output(kernels, batch):
    scores = head(with_kernels(classifier, kernels).logits(batch.x))
    return jnp.where(batch.weight[:, None] > 0, scores, 0).sum()

  return jax.tree.map(jnp.abs, _summed_gradient(total_output, classifier, batches, paths))


def _summed_gradient(objective: Callable[[dict[str, jax.Array], Batches], jax.Array], classifier: Classifier,
                     batches: Batches, paths: tuple[str, ...]) -> dict[str, jax.Array]:
  """Sum over batches of the gradient of `(kernels, batch) -> scalar`."""
  def add(total, batch):
    return jax.tree.map(jnp.add, total, jax.grad(objective)(kernels, batch)), None

  kernels = {path: kernel(classifier, path) for path in paths}
  return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, kernels), batches)[0]
