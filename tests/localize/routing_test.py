"""Sections 8.1 to 8.3 and 8.12 of the INNER specification."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix import intervene
from jaxfix.errors import BadInputError, EmptySplitError
from jaxfix.localize import probes, routing
from jaxfix.localize.blocks import blocks
from jaxfix.localize.gradient_loss import cross_entropy
from jaxfix.localize.linear import kernel, with_kernels
from tests.networks import network, quick_jit

_X, _W = np.float32([1, 2]), np.float32([[1, -1], [.5, 1]])


def _loss(masked):
  return cross_entropy(jax.nn.relu(jnp.asarray(_X) @ masked), jnp.int32(0))


class RouteTest(parameterized.TestCase):

  def test_the_gradient_by_hand(self):
    slope = quick_jit(jax.grad(_loss))(_W)
    np.testing.assert_allclose(slope, [[-.268941, .268941], [-.537883, .537883]], atol=1e-6)

  @parameterized.parameters(
    ('kernel', [[.99742, .99258], [.999841, .990159]]), ('mask', [[.99742, .99742], [.99742, .990159]]))
  def test_one_step_by_hand(self, gradient, expected):
    one = routing.Settings(steps=1, gradient=gradient)
    np.testing.assert_allclose(quick_jit(lambda w: routing.route(_loss, w, one))(_W), expected, atol=1e-6)

  def test_entries_without_a_gradient_decay_and_masks_stay_in_the_unit_interval(self):
    def masks(steps):
      settings = routing.Settings(steps=steps)
      flat = lambda masked: 0 * masked.sum()
      steep = lambda masked: 100 * (masked[0, 0] - masked[1, 1])
      return quick_jit(lambda w: tuple(routing.route(loss, w, settings) for loss in (flat, steep)))(_W)

    still, steep = masks(40)
    np.testing.assert_allclose(still, .8, atol=1e-5)
    self.assertEqual((float(steep[0, 0]), float(steep[1, 1])), (0, 1))
    for mask in masks(300):
      self.assertTrue(((mask >= 0) & (mask <= 1)).all())
    self.assertEqual(float(masks(300)[0].max()), 0)

  def test_settings_are_checked(self):
    for change in ({'steps': -1}, {'l1_step': -1.}, {'gradient': 'weights'}):
      with self.assertRaises(BadInputError):
        routing.Settings(**change)


class VotesTest(parameterized.TestCase):
  masks = np.float32([(.9, .2, .9, .4), (.9, .9, .1, .1), (1, 0, .8, .6)])

  def _counts(self):
    return np.asarray(quick_jit(jax.vmap(routing.votes))(self.masks)).sum(axis=0)

  def test_votes_by_hand(self):
    np.testing.assert_allclose(self.masks.mean(axis=1), (.6, .5, .6), atol=1e-6)
    np.testing.assert_array_equal(self._counts(), (3, 1, 2, 0))

  @parameterized.parameters(
    ('any_vote', 100, (0, 1, 2)), ('top_k', 2, (0, 2)), ('top_k', 100, (0, 1, 2)), ('majority', 100, (0, 2)))
  def test_kept_entries(self, keep, top, expected):
    np.testing.assert_array_equal(np.flatnonzero(routing.kept_entries(self._counts(), 3, keep, top)), expected)

  def test_ties_go_to_the_first_entries(self):
    np.testing.assert_array_equal(routing.kept_entries(np.array([[1, 2], [2, 1]]), 2, 'top_k', 3), [[1, 1], [1, 0]])

  def test_equal_entries_get_no_vote_and_rounding_gives_none(self):
    vote = quick_jit(routing.votes)
    self.assertFalse(vote(np.full(100_003, .8, np.float32)).any())
    mask = np.full(100_003, .8, np.float32)
    mask[7], mask[8] = .9, .7   # the mean is that of the others, give or take its rounding
    np.testing.assert_array_equal(np.flatnonzero(vote(mask)), [7])


class ChunkTest(parameterized.TestCase):

  @parameterized.parameters((1000, 100, 1 << 20, 32), (2_360_000, 100, 256 << 20, 7), (10**9, 100, 1 << 20, 1),
                            (10, 3, 1 << 20, 3))
  def test_memory_bounds_the_chunk(self, entries, samples, budget, expected):
    self.assertEqual(routing.chunk_size(entries, samples, budget), expected)

  def _set_up(self, name, **options):
    """A network of random weights, its last block, a probe for it, and inputs."""
    classifier = network(name, (8, 8, 1), **options)
    block = blocks(classifier)[-1]
    width = kernel(classifier, block.target).shape[-1] * block.grid ** 2
    rng = np.random.default_rng(0)
    probe = {'kernel': rng.normal(size=(width, 10)).astype(np.float32), 'bias': np.zeros(10, np.float32)}
    return classifier, block, probe, rng.random((5, 8, 8, 1), np.float32)

  def test_samples_together_give_what_one_after_the_other_gives(self):
    """The loop runs the whole network, shortcut included, for every step; the routing only what follows the kernel."""
    classifier, block, probe, x = self._set_up('resnet18', units=(1,), width=1 / 16)
    settings = routing.Settings(steps=4, step_size=.1)

    @jax.jit
    def one_step(classifier, x, mask):
      def said(weights):
        changed = with_kernels(classifier, {block.target: weights})
        u = intervene.record(changed, changed.normalize(x[None]), (block.output,))[block.output][1]
        return probes.scores(probe, probes.pool(u, block.grid))
      weights = kernel(classifier, block.target)
      label = said(weights).argmax(-1)
      slope = jax.grad(lambda w: cross_entropy(said(w), label).sum())(mask * weights)
      return jnp.clip(mask - settings.step_size * slope - settings.l1_step * jnp.sign(mask), 0, 1)

    expected = np.ones((len(x), *kernel(classifier, block.target).shape), np.float32)
    for i in range(len(x)):
      for _ in range(settings.steps):
        expected[i] = one_step(classifier, x[i], expected[i])
    together = jax.jit(functools.partial(routing.routing_masks, block=block, settings=settings))
    np.testing.assert_allclose(together(classifier, probe, x), expected, atol=1e-6)
    self.assertGreater(expected.std(), 1e-3)

  def test_chunks_change_nothing_and_filling_does_not_vote(self):
    classifier, block, probe, x = self._set_up('mlp', hidden=(8, 6))
    settings = routing.Settings(steps=4)
    masks = jax.jit(functools.partial(routing.routing_masks, block=block, settings=settings))(classifier, probe, x)
    expected = np.asarray(jax.jit(jax.vmap(routing.votes))(masks)).sum(axis=0)
    of_two = 2 * 4 * 4 * expected.size   # bytes: three chunks, the last with one sample
    counts = routing.count_votes(classifier, probe, x, block, settings, budget_bytes=of_two)
    self.assertLess(np.abs(counts - expected).mean(), .01)   # entries within rounding of a mean may differ
    self.assertGreater(len(np.unique(counts)), 2)
    self.assertLessEqual(counts.max(), len(x))

  def test_no_sample_is_an_error(self):
    classifier, block, probe, x = self._set_up('mlp')
    with self.assertRaises(EmptySplitError):
      routing.count_votes(classifier, probe, x[:0], block, routing.Settings())


if __name__ == '__main__':
  absltest.main()
