"""Prices of patched output layers, against networks with the patch written into them."""
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix import predict
from jaxfix.localize.targets import make_targets, write
from jaxfix.search import output_patch
from tests import networks


def _prices(c, seed=0):
  table = np.random.default_rng(seed).uniform(1, 2, (c + 1, c + 1)).astype(np.float32)
  table[c] = 0
  return table


def _totals(head, targets, x, y, prices, population, size):
  touched = output_patch.touch(head, targets, x, y, size=size)
  return np.asarray(networks.quick_jit(output_patch.total_price)(touched, prices, jnp.asarray(population)))


class OutputPatchTest(parameterized.TestCase):

  @parameterized.parameters((3, (0, 1, 2, 3, 7)), (40, (0, 41, 42, 83, 199)), (5, tuple(range(0, 25, 3))))
  def test_it_is_the_price_of_the_written_network(self, c, positions):
    head = networks.network('mlp', (5,), num_classes=c, hidden=())
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(50, 5)).astype(np.float32), rng.integers(0, c, 50)
    targets, prices = make_targets(head, ('fc1',), np.array(positions)), _prices(c)
    population = rng.normal(size=(6, targets.used.size)).astype(np.float32) * 2
    for size in (6, 100_000):   # the latter asks for blocks of few samples
      totals = _totals(head, targets, x, y, prices, population, size)
      for vector, total in zip(population, totals, strict=True):
        labels = predict.labels(write(targets, head, vector), x)
        self.assertAlmostEqual(total, prices[y, labels].sum(), places=3)

  def test_a_tie_goes_to_the_lowest_class_and_what_is_no_number_is_wrong(self):
    head = networks.network('mlp', (2,), num_classes=4, hidden=())
    kernel = np.zeros((2, 4), np.float32)
    head = head.with_params({'fc1': {'kernel': kernel, 'bias': np.array((0, 1, 0, 1), np.float32)}})
    targets, prices = make_targets(head, ('fc1',), np.array([0, 2, 3])), _prices(4)   # classes 0, 2 and 3
    x = np.array([(1, 0), (np.inf, 0), (1, 0)], np.float32)
    for vector, label in (((0, 0, 0), 1), ((1, 0, 0), 0), ((0, 1, 0), 1), ((0, 0, 1), 3), ((2, 2, 1), 0)):
      totals = _totals(head, targets, x, np.array([1, 1, 3]), prices, np.array([(*vector, 9)], np.float32), 1)
      self.assertAlmostEqual(totals[0], prices[1, label] + prices[1, 4] + prices[3, label], places=5)

  def test_one_shape_one_program(self):
    head = networks.network('mlp', (5,), num_classes=40, hidden=())
    x, traced = networks.images((5,), 30), []

    def count(*arguments):
      traced.append(1)
      return output_patch.total_price(*arguments)

    total = networks.quick_jit(count)
    for positions in ((0, 41, 42), (7, 88, 9)):   # other entries, of other classes
      targets = make_targets(head, ('fc1',), np.array(positions))
      touched = output_patch.touch(head, targets, x, np.zeros(30, int), size=3)
      total(touched, jnp.asarray(_prices(40)), jnp.zeros((3, 4)))
    self.assertLen(traced, 1)
    self.assertEqual(jax.tree.map(jnp.shape, touched).logits, (1, 30, 4))


if __name__ == '__main__':
  absltest.main()
