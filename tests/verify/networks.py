"""Small networks of every kind for the tests of verification, and the worked example N1 of the specification."""
import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxfix import models
from jaxfix.classifier import Classifier
from jaxfix.models import layers
from jaxfix.verify.graph import trace
from jaxfix.verify.normal_form import NormalForm, Op, lower
from tests import networks, tiny


def mlp(sizes, seed=0, scale=1.):
  """A ReLU network of the given widths (inputs first) with random weights."""
  rng = np.random.default_rng(seed)
  weights = [(rng.normal(0, scale * (2 / a)**0.5, (a, b)), rng.normal(0, 0.3, b))
             for a, b in zip(sizes, sizes[1:], strict=False)]
  return from_weights(weights)


def from_weights(weights):
  """The MLP with weights [(w `[in, out]`, b `[out]`), ...]."""
  params = {f'fc{i + 1}': {'kernel': np.asarray(w, np.float32), 'bias': np.asarray(b, np.float32)}
            for i, (w, b) in enumerate(weights)}
  module = models.build('mlp', num_classes=len(weights[-1][1]), hidden=tuple(len(b) for _, b in weights[:-1]))
  return Classifier({'params': params}, module, (len(weights[0][0]),), len(weights[-1][1]))


def n1():
  """f(x) = 0.5 relu(-x) - 0.5 relu(x - 2) + relu(x / 2) - 0.5 (V-section 12.1)."""
  return from_weights([([[-1, 1, .5]], [0, -2, 0]), ([[.5], [-.5], [1]], [-.5])])


def kink():
  """y = relu(x1 + x2) + relu(x1 - x2) (V-section 12.4)."""
  return from_weights([([[1, 1], [1, -1]], [0, 0]), ([[1], [1]], [0])])


class Smooth(nn.Module):
  """Every smooth operation that bounds know: tanh, sigmoid, exp, log, products, quotients."""
  num_classes: int = 3

  @nn.compact
  def __call__(self, x, train=False):
    h = layers.Tanh(name='tanh')(layers.Dense(5, name='fc1')(x))
    g = layers.Sigmoid(name='sigmoid')(layers.Dense(5, name='fc2')(x))
    return nn.log_softmax(layers.Dense(self.num_classes, name='fc3')(h * g + h * h))


class Clipped(nn.Module):
  """Minima, maxima, absolute values and clipping, all of them piecewise linear."""
  num_classes: int = 3

  @nn.compact
  def __call__(self, x, train=False):
    h = layers.Dense(6, name='fc1')(x)
    h = jnp.clip(h, -0.5, 0.7) + jnp.abs(h) - jnp.minimum(h, h[:, ::-1]) + jnp.max(h, axis=1, keepdims=True)
    return layers.Dense(self.num_classes, name='fc2')(h)


@functools.cache
def abstract(module, shape):
  return layers.variable_shapes(module, shape)


def module(module, shape, num_classes, seed=0):
  """A module of this file with random weights."""
  return networks.filled(Classifier(abstract(module, shape), module, shape, num_classes), seed)


KINDS = {
  'mlp': lambda: mlp((4, 8, 8, 3)),
  'normalized': lambda: _normalized(),
  'lenet5': lambda: networks.network('lenet5', (12, 12, 1), variant='small', width=0.5),
  'resnet': lambda: module(tiny.TinyResNet(), (8, 8, 1), 10),
  'resnet18': lambda: networks.network('resnet18', (8, 8, 3), width=1 / 32),
  'facenet': lambda: networks.network('facenet', (48, 48, 3), width=1 / 32),
  'vgg16': lambda: networks.network('vgg16', (32, 32, 3), width=1 / 64),
  'alexnet': lambda: networks.network('alexnet', (64, 64, 3), width=1 / 64),
  'smooth': lambda: module(Smooth(), (4,), 3),
  'clipped': lambda: module(Clipped(), (4,), 3),
}
"""Kind -> a network."""

SMALL = ('mlp', 'normalized', 'lenet5', 'resnet', 'smooth', 'clipped')


def _normalized():
  return dataclasses.replace(networks.network('mlp', (2, 2, 3), num_classes=3, hidden=(6,)), mean=(0.1, 0.2, 0.3),
                             std=(0.3, 0.7, 1.1))


@functools.cache
def graph(kind):
  """The traced network of a kind."""
  return trace(KINDS[kind]())


@functools.cache
def form(kind):
  """Its normal form."""
  return lower(graph(kind))


def hand_made():
  """N1 in normal form, written by hand."""
  array = lambda a: np.array(a, np.float32)
  return NormalForm((Op('input', (), None, 1), Op('matmul', (0,), array([[-1, 1, .5]]), 3),
                     Op('shift', (1,), array([0, -2, 0]), 3), Op('relu', (2,), None, 3),
                     Op('matmul', (3,), array([[.5], [-.5], [1]]), 1), Op('shift', (4,), array([-.5]), 1)))


def logits(classifier, x):
  """Logits of inputs `[n, d]`, compiled quickly."""
  return np.asarray(networks.quick_jit(lambda x: classifier.logits(x))(x.reshape(-1, *classifier.input_shape)))
