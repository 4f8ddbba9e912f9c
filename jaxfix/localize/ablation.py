"""Ablation: how the accuracy of a network changes when a neuron is silenced."""
import functools

import jax
import jax.numpy as jnp

from jaxfix import intervene
from jaxfix.classifier import Classifier
from jaxfix.localize.batches import Batches
from jaxfix.localize.linear import kernel
from jaxfix.localize.spectrum import activation_points, scale_by_size

_TOGETHER = 8   # neurons silenced side by side


@functools.partial(jax.jit, static_argnames=('paths',))
def ablation_scores(classifier: Classifier, batches: Batches, *, paths: tuple[str, ...]) -> dict[str, jax.Array]:
  """Change of accuracy, in [-1, 1], when the outgoing weights of a neuron are zeroed, that is, when it gives 0.

  One evaluation of the network behind the layer for each neuron and sample: for small networks.

  Args:
    classifier: the network; evaluation mode.
    batches: labeled samples.
    paths: Dense or Conv layers; a unit of the output layer, which has no outgoing weights, gives 0 all the same.
  Returns:
    path -> `[units]`.
  """
  points = activation_points(classifier, paths)

  def right(logits, batch):
    return (batch.weight * (logits.argmax(axis=-1) == batch.y)).sum()

  def changes(path):
    units = jnp.arange(kernel(classifier, path).shape[-1])

    def add(total, batch):
      cache = intervene.prefix(classifier, classifier.normalize(batch.x), (path,))

      def silenced(unit):
        mute = lambda h: jnp.where(jnp.arange(h.shape[-1]) == unit, 0, h)
        return right(intervene.suffix(classifier, cache, (path,), outputs={points[path]: mute}), batch)

      before = right(intervene.suffix(classifier, cache, (path,)), batch)
      return total + jax.lax.map(silenced, units, batch_size=_TOGETHER) - before, None

    return jax.lax.scan(add, jnp.zeros(units.size), batches)[0] / batches.count

  return {path: changes(path) for path in paths}


@functools.partial(jax.jit, static_argnames=('paths',))
def ablation_weight_scores(classifier: Classifier, batches: Batches, *, paths: tuple[str, ...]) -> dict[str, jax.Array]:
  """|Change of accuracy| of a neuron, times the share that a weight has in its largest incoming one; like kernels."""
  return {path: scale_by_size(kernel(classifier, path), jnp.abs(score))
          for path, score in ablation_scores(classifier, batches, paths=paths).items()}
