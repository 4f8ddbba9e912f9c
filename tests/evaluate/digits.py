"""A small trained model on the digits that come with scikit-learn, for tests of evaluation. Takes about two seconds."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from jaxfix import models
from jaxfix.classifier import Classifier, create
from jaxfix.problem import Split


@functools.cache
def split() -> Split:
  """1,797 images `[8, 8, 1]`, float features in [0, 1]; groups by the parity of the row."""
  x, y = datasets.load_digits(return_X_y=True)
  return Split((x / 16).astype(np.float32).reshape(-1, 8, 8, 1), y.astype(np.int32),
               (np.arange(len(y)) % 2).astype(np.int32))


@functools.cache
def mlp(steps: int = 60, hidden: tuple[int, ...] = (32,)) -> Classifier:
  """A multilayer perceptron after `steps` full-batch Adam steps on the first 1,000 digits."""
  classifier = create(models.build('mlp', num_classes=10, hidden=hidden), input_shape=(8, 8, 1), num_classes=10,
                      key=jax.random.key(steps))
  optimizer = optax.adam(3e-3)
  x, y = jnp.asarray(split().x[:1000]), jnp.asarray(split().y[:1000])

  def loss(params):
    return optax.softmax_cross_entropy_with_integer_labels(classifier.with_params(params).logits(x), y).mean()

  def step(state, _):
    params, opt = state
    updates, opt = optimizer.update(jax.grad(loss)(params), opt)
    return (optax.apply_updates(params, updates), opt), None

  train = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0])
  return classifier.with_params(train(classifier.params))


def linear(weights: np.ndarray, bias: float = 0.) -> Classifier:
  """Two classes with logits (0, w x + b) on features `[d]`."""
  d = len(weights)
  classifier = create(models.build('mlp', num_classes=2, hidden=()), input_shape=(d,), num_classes=2,
                      key=jax.random.key(0))
  kernel = np.stack([np.zeros(d), weights], axis=1).astype(np.float32)
  return classifier.with_params({'fc1': {'kernel': jnp.asarray(kernel), 'bias': jnp.array([0, bias], jnp.float32)}})
