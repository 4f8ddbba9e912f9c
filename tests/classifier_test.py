"""`Classifier`: one value for `jit` and `vmap`, its normalization, its fingerprint, its checks."""
import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix import classifier as classifiers
from jaxfix import models
from jaxfix.errors import BadInputError
from tests.networks import images, network


def small(seed=0):
  return network('mlp', (5,), seed=seed, num_classes=3, hidden=(4,))


class ClassifierTest(parameterized.TestCase):

  def test_logits_are_those_of_the_weights(self):
    c, x = small(), images((5,))
    fc1, fc2 = c.params['fc1'], c.params['fc2']
    by_hand = np.maximum(x @ fc1['kernel'] + fc1['bias'], 0) @ fc2['kernel'] + fc2['bias']
    np.testing.assert_allclose(jax.jit(lambda c, x: c.logits(x))(c, x), by_hand, atol=1e-5)

  def test_pixels_are_divided_by_255_and_features_are_not(self):
    c = small()
    pixels = np.arange(10, dtype=np.uint8).reshape(2, 5)
    np.testing.assert_array_equal(c.normalize(pixels), pixels.astype(np.float32) / 255)
    features = pixels.astype(np.float64)
    z = c.normalize(features)
    self.assertEqual(z.dtype, jnp.float32)
    np.testing.assert_array_equal(z, features)

  def test_normalization_is_by_channel(self):
    variables, module = {'params': {}}, models.build('mlp')
    c = classifiers.Classifier(variables, module, (2, 2, 3), 2, mean=(0.1, 0.2, 0.3), std=(0.5, 1., 2.))
    x = np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3), dtype=np.uint8)
    np.testing.assert_allclose(c.normalize(x), (x / 255. - [0.1, 0.2, 0.3]) / [0.5, 1., 2.], atol=1e-6)
    one = classifiers.Classifier(variables, module, (2, 2, 3), 2, mean=(0.5,), std=(0.25,))
    np.testing.assert_allclose(one.normalize(x), (x / 255. - 0.5) / 0.25, atol=1e-6)

  def test_new_weights_of_equal_shape_compile_nothing(self):
    run = jax.jit(chex.assert_max_traces(lambda c, x: c.logits(x), n=1))
    x = images((5,))
    answers = [np.asarray(run(small(seed), x)) for seed in range(3)]
    self.assertGreater(np.abs(answers[0] - answers[1]).max(), 1e-3)

  def test_a_population_answers_as_its_members_do(self):
    members, x = [small(seed) for seed in range(3)], images((5,))
    population = classifiers.stack(members)
    together = jax.jit(jax.vmap(lambda c: c.logits(x)))(population)
    for i, c in enumerate(members):
      np.testing.assert_allclose(together[i], c.logits(x), atol=1e-5)
      chex.assert_trees_all_equal(classifiers.member(population, i), c)

  def test_stack_of_nothing_is_an_error(self):
    with self.assertRaisesRegex(BadInputError, 'at least one'):
      classifiers.stack([])

  def test_with_params_keeps_the_statistics(self):
    c = network('resnet18', (4, 4, 3), num_classes=3, width=1 / 32, units=(1,))
    other = network('resnet18', (4, 4, 3), seed=1, num_classes=3, width=1 / 32, units=(1,))
    mixed = c.with_params(other.params)
    chex.assert_trees_all_equal(mixed.params, other.params)
    chex.assert_trees_all_equal(mixed.variables['batch_stats'], c.variables['batch_stats'])
    chex.assert_trees_all_equal(c.with_variables(other.variables), other)

  def test_same_key_same_weights(self):
    make = lambda seed: classifiers.create(models.build('mlp'), input_shape=[2], num_classes=2,
                                           key=jax.random.key(seed), mean=[0.5], std=[2])
    a, b, other = make(0), make(0), make(1)
    self.assertEqual(classifiers.fingerprint(a), classifiers.fingerprint(b))
    self.assertNotEqual(classifiers.fingerprint(a), classifiers.fingerprint(other))
    self.assertEqual((a.input_shape, a.mean, a.std), ((2,), (0.5,), (2.,)))
    self.assertEqual(classifiers.num_params(a), 354)


class FingerprintTest(absltest.TestCase):

  def test_every_weight_counts_and_order_does_not(self):
    c = network('resnet18', (4, 4, 3), num_classes=3, width=1 / 32, units=(1,))
    own = classifiers.fingerprint(c)
    reordered = c.with_variables(dict(reversed(c.variables.items()))).with_params(dict(reversed(c.params.items())))
    self.assertEqual(classifiers.fingerprint(reordered), own)
    for i, leaf in enumerate(jax.tree.leaves(c.variables)):
      leaves, tree = jax.tree.flatten(c.variables)
      leaves[i] = np.nextafter(leaf, np.inf, dtype=np.float32)
      self.assertNotEqual(classifiers.fingerprint(c.with_variables(jax.tree.unflatten(tree, leaves))), own)

  def test_names_and_shapes_count(self):
    c = small()
    swapped = c.with_params({'fc1': c.params['fc2'], 'fc2': c.params['fc1']})
    self.assertNotEqual(classifiers.fingerprint(swapped), classifiers.fingerprint(c))
    flat = c.with_params(jax.tree.map(lambda a: a.reshape(-1), c.params))
    self.assertNotEqual(classifiers.fingerprint(flat), classifiers.fingerprint(c))


class ChecksTest(parameterized.TestCase):

  @parameterized.parameters(np.nan, np.inf)
  def test_the_first_bad_weight_is_named(self, bad):
    c = small()
    classifiers.check_finite(c, 'here')
    kernel = c.params['fc2']['kernel'].copy()
    kernel[1, 2] = bad
    with self.assertRaisesRegex(BadInputError, "here: weight 'params/fc2/kernel'"):
      classifiers.check_finite(c.with_params({**c.params, 'fc2': {**c.params['fc2'], 'kernel': kernel}}), 'here')

  def test_inputs_of_another_shape_are_refused(self):
    classifiers.check_inputs(small(), np.zeros((2, 5)), 'here')
    with self.assertRaisesRegex(BadInputError, r'here: inputs have shape \(4,\), but the model takes \(5,\)'):
      classifiers.check_inputs(small(), np.zeros((2, 4)), 'here')


if __name__ == '__main__':
  absltest.main()
