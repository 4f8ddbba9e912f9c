"""Networks with weights drawn by NumPy: initializing through JAX would compile one more program for each."""
import functools

import jax
import numpy as np

from jaxfix import models
from jaxfix.classifier import Classifier
from jaxfix.models import layers

quick_jit = functools.partial(
  jax.jit, compiler_options={'xla_backend_optimization_level': 0, 'xla_cpu_use_fusion_emitters': False}
  if jax.default_backend() == 'cpu' else None)
"""`jax.jit` that compiles five times as fast, for networks that run once on a handful of inputs."""


@functools.cache
def abstract(name, input_shape, **options):
  """A classifier of a registered architecture whose weights are shapes only."""
  module = models.build(name, **options)
  num_classes = getattr(module, 'num_classes', 3)  # a LayerGraph does not say; those of the tests have 3
  return Classifier(layers.variable_shapes(module, input_shape), module, tuple(input_shape), num_classes)


def filled(classifier, seed=0):
  """The classifier with random weights of the shapes that it has; vectors (scales, variances) are positive."""
  rng = np.random.default_rng(seed)

  def draw(leaf):
    if len(leaf.shape) == 1:
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    fan_in = np.prod(leaf.shape[:-1])
    return rng.normal(0, (2 / fan_in)**0.5, leaf.shape).astype(np.float32)

  return classifier.with_variables(jax.tree.map(draw, dict(classifier.variables)))


def network(name, input_shape, seed=0, **options):
  """A classifier with random weights: `network('resnet18', (8, 8, 3), width=1 / 16)`."""
  return filled(abstract(name, input_shape, **options), seed)


def images(input_shape, n=4, seed=0):
  """Random normalized inputs `[n, *input_shape]`."""
  return np.random.default_rng(seed).normal(size=(n, *input_shape)).astype(np.float32)
