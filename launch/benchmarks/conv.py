"""VGG16 on 32x32 images: forward pass and training step, against the same model with plain `lax` convolutions.

Only the convolutions differ: pooling, normalization and everything else is the same program on both sides.
"""
import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np
from flax import linen as nn

from jaxfix import classifier as classifiers
from jaxfix import models, train
from jaxfix.models import layers
from jaxfix.recipe import Recipe
from launch.benchmarks import pairs

BATCH = 32


def run(options: pairs.Options) -> list[dict[str, Any]]:
  """Two cases: forward and training step, images a second."""
  classifier = classifiers.create(models.build('vgg16'), input_shape=(32, 32, 3), num_classes=10,
                                  key=jax.random.key(0))
  rng = np.random.default_rng(0)
  x = jax.device_put(rng.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8))
  y = jax.device_put(rng.integers(0, 10, BATCH).astype(np.int32))
  recipe = Recipe(optimizer='sgd', learning_rate=0.05, batch_size=BATCH)
  opt_state, key = train.init_optimizer(classifier, recipe, BATCH), jax.random.key(1)

  def forward(c, x):
    return c.logits(x)

  def training_step(c, opt_state, x, y):
    one = np.ones((1, BATCH), np.float32)
    # Not the compiled `train_chunk` itself: what it has traced once, it would not trace again under another layer.
    return train.train_chunk.__wrapped__(c, opt_state, x[None], y[None], one, key, recipe, 1)

  results = []
  for name, function, arguments in (('forward', forward, (classifier, x)),
                                    ('training step', training_step, (classifier, opt_state, x, y))):
    ours = pairs.timed(functools.partial(_compile(function, arguments), *arguments))
    with _plain_convolutions():
      peer = pairs.timed(functools.partial(_compile(function, arguments), *arguments))
    results.append(pairs.compare(f'conv, VGG16 {name}, batch {BATCH}', 'images/s', BATCH, ours, peer,
                                 peer_name='plain lax', repeats=options.repeats))
  return results


def _compile(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[..., Any]:
  """Traced and compiled now; a new function object each time, since tracing is cached by it."""
  return jax.jit(lambda *args: function(*args)).lower(*arguments).compile()


@contextlib.contextmanager
def _plain_convolutions() -> Iterator[None]:
  with mock.patch.object(layers, 'Conv', nn.Conv):
    yield
