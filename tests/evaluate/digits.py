"""Small models for tests of evaluation: one trained on the digits of scikit-learn, and linear ones."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from jaxfix import models, predict
from jaxfix.classifier import Classifier, create
from jaxfix.problem import Split

_OPTIMIZER = optax.adam(3e-3)


@functools.cache
def split() -> Split:
  """1,797 images `[8, 8, 1]`, float features in [0, 1]; groups by the parity of the row."""
  x, y = datasets.load_digits(return_X_y=True)
  return Split((x / 16).astype(np.float32).reshape(-1, 8, 8, 1), y.astype(np.int32),
               (np.arange(len(y)) % 2).astype(np.int32))


@functools.cache
def mlp(seed: int = 0) -> Classifier:
  """A multilayer perceptron after 60 full-batch Adam steps on the first 1,000 digits: right on about 9 of 10."""
  classifier = create(models.build('mlp', num_classes=10, hidden=(32,)), input_shape=(8, 8, 1), num_classes=10,
                      key=jax.random.key(seed))
  return _train(classifier, jnp.asarray(split().x[:1000]), jnp.asarray(split().y[:1000]))


@jax.jit
def _train(classifier: Classifier, x: jax.Array, y: jax.Array) -> Classifier:

  def loss(params):
    return optax.softmax_cross_entropy_with_integer_labels(classifier.with_params(params).logits(x), y).mean()

  def step(state, _):
    params, opt = state
    updates, opt = _OPTIMIZER.update(jax.grad(loss)(params), opt)
    return (optax.apply_updates(params, updates), opt), None

  start = classifier.params, _OPTIMIZER.init(classifier.params)
  return classifier.with_params(jax.lax.scan(step, start, length=60)[0][0])


def right(n: int) -> Split:
  """The first n digits that `mlp()` gets right."""
  return split().take(np.flatnonzero(predict.labels(mlp(), split().x) == split().y)[:n])


def dense(kernel: np.ndarray, bias: np.ndarray, *, input_shape: tuple[int, ...] | None = None,
          mean: tuple[float, ...] = (0.,), std: tuple[float, ...] = (1.,)) -> Classifier:
  """Logits x @ kernel + bias, kernel `[d, c]`, on inputs `[d]` or of `input_shape`."""
  weights = {'kernel': jnp.asarray(kernel, jnp.float32), 'bias': jnp.asarray(bias, jnp.float32)}
  return Classifier({'params': {'fc1': weights}}, models.build('mlp', num_classes=len(bias), hidden=()),
                    input_shape or (len(kernel),), len(bias), mean, std)


def linear(weights: np.ndarray, bias: float = 0.) -> Classifier:
  """Two classes with logits (0, w x + b) on features `[d]`."""
  return dense(np.stack([np.zeros(len(weights)), weights], axis=1), np.array([0, bias]))
