"""Tiny trained problems for tests: real failures, and nothing that takes longer than a second or two."""
import functools

import jax
import numpy as np
from flax import linen as nn
from sklearn import datasets

from jaxfix import classifier as classifiers
from jaxfix import models, train
from jaxfix.models import layers
from jaxfix.problem import ClassImportance, Problem, Split
from jaxfix.recipe import Recipe


class TinyResNet(nn.Module):
  """One residual unit with BatchNorm on 8x8 images, for tests of skip connections and batch statistics."""
  num_classes: int = 10

  @nn.compact
  def __call__(self, x, train=False, features=False):
    x = layers.Conv(4, (3, 3), name='stem')(x)
    y = layers.Conv(4, (3, 3), use_bias=False, name='conv1')(x)
    y = layers.Relu(name='relu1')(layers.BatchNorm(name='bn1')(y, train))
    y = layers.BatchNorm(name='bn2')(layers.Conv(4, (3, 3), use_bias=False, name='conv2')(y), train)
    x = layers.Relu(name='relu2')(layers.Add(name='add')(y, x))
    x = layers.Flatten(name='flatten')(layers.MaxPool((2, 2), name='pool')(x))
    x = layers.Relu(name='relu3')(layers.Dense(16, name='fc1')(x))
    logits = layers.Dense(self.num_classes, name='fc2')(x)
    return (logits, x) if features else logits


@functools.cache
def digits(first: int, last: int) -> Split:
  """Rows `first` to `last` of scikit-learn's digits, `[n, 8, 8, 1]` float32 in [0, 1]."""
  bunch = datasets.load_digits()
  x = (bunch.images[..., None] / 16).astype(np.float32)
  y = bunch.target[first:last].astype(np.int32)
  return Split(x[first:last], y, y % 2)


IMPORTANCE = ClassImportance(critical=(0, 1), precisions={c: 2 if c < 2 else 1 for c in range(10)})
RECIPE = Recipe(learning_rate=3e-3, batch_size=32, epochs=2)


@functools.cache
def problem(kind: str = 'mlp', epochs: int = RECIPE.epochs) -> Problem:
  """A lightly trained network on 400 digits with failures in every split. Kinds: 'mlp', 'lenet5', 'resnet'.

  Its history is every epoch, the last of which is the network itself, as `jaxfix.history.load_history` gives it.
  """
  module = {
    'mlp': lambda: models.build('mlp', num_classes=10, hidden=(12, 12)),
    'lenet5': lambda: models.build('lenet5', variant='small', width=0.5),
    'resnet': TinyResNet,
  }[kind]()
  fresh = classifiers.create(module, input_shape=(8, 8, 1), num_classes=10, key=jax.random.key(0))
  recipe = Recipe(learning_rate=RECIPE.learning_rate, batch_size=RECIPE.batch_size, epochs=epochs)
  train_split, valid, repair = digits(0, 400), digits(400, 500), digits(500, 600)
  history = []
  trained = train.fit(fresh, train_split, valid, recipe, key=jax.random.key(1),
                      on_epoch=lambda epoch: history.append(epoch.classifier))
  return Problem(trained, train_split, valid, repair, recipe, history=tuple(history), class_importance=IMPORTANCE)
