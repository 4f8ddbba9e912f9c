"""Every approach on every network of the study, narrow and hardly trained: it repairs, or says in one line why not."""
import functools

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix import classifier as classifiers
from jaxfix import methods, models, predict
from jaxfix.errors import RepairFailure, Unadaptable
from jaxfix.problem import Problem, Split
from jaxfix.recipe import Recipe
from tests import tiny
from tests.methods.quick import config_of

_NETWORKS = {
  'vgg16': ('vgg16', {'variant': 'study', 'width': 0.0625}, 32),
  'resnet18': ('resnet18', {'width': 0.0625}, 32),
  'facenet': ('facenet', {'width': 0.125}, 48),
  'densenet121': ('densenet121', {'width': 0.125}, 32),
}


def _images(first: int, last: int, size: int) -> Split:
  """Digits as color images of that size."""
  split = tiny.digits(first, last)
  scale = -(-size // 8)
  x = np.kron(split.x, np.ones((1, scale, scale, 1), np.float32))[:, :size, :size]
  return Split(np.repeat(x, 3, axis=-1), split.y, split.group)


@functools.cache
def _problem(network: str) -> Problem:
  """A network with random weights; its history is two others on the way to it."""
  name, options, size = _NETWORKS[network]
  module = models.build(name, num_classes=10, **options)
  fresh = classifiers.create(module, input_shape=(size, size, 3), num_classes=10, key=jax.random.key(0))
  earlier = tuple(fresh.with_params(jax.tree.map(lambda w, f=f: w * f, fresh.params)) for f in (0.5, 0.9))
  return Problem(fresh, _images(0, 64, size), _images(64, 96, size), _images(96, 160, size),
                 Recipe(batch_size=32, epochs=1), history=(*earlier, fresh), class_importance=tiny.IMPORTANCE)


class ArchitecturesTest(parameterized.TestCase):

  @parameterized.named_parameters(*((f'_{network}_{name}', network, name)
                                    for network in _NETWORKS for name in methods.NAMES))
  @pytest.mark.slow
  def test_repairs_or_says_why_not(self, network, name):
    problem, method = _problem(network), methods.get(name)
    try:
      repair = methods.run(method, problem, config_of(method), key=jax.random.key(1))
    except (RepairFailure, Unadaptable) as e:
      self.assertRegex(str(e), r'^[^\n]{20,}$')
      print(f'{network} {name}: {type(e).__name__}: {e}')
      return
    logits = predict.logits(repair.classifier, problem.valid.x)
    self.assertEqual(logits.shape, (32, 10))
    self.assertTrue(np.isfinite(logits).all())
    if method.keeps_architecture:
      self.assertEqual(repair.classifier.module, problem.classifier.module)


if __name__ == '__main__':
  absltest.main()
