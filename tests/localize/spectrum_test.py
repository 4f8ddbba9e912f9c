"""Sections 8.1 to 8.3 and 8.9 of the GenMuNN specification: formulas and coverage, with numbers by hand."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax import linen as nn

from jaxfix import intervene, models, predict
from jaxfix.classifier import Classifier
from jaxfix.errors import BadInputError
from jaxfix.localize import spectrum as spectra
from jaxfix.localize.ablation import ablation_scores, ablation_weight_scores
from jaxfix.localize.batches import make_batches
from jaxfix.localize.linear import kernel
from jaxfix.localize.spectrum import FORMULAS, Counts, activation_points, suspiciousness, top_entries
from jaxfix.models import layers
from tests import networks

spectrum = networks.quick_jit(spectra.spectrum.__wrapped__, static_argnames=('paths',))
weight_scores = networks.quick_jit(spectra.weight_scores.__wrapped__, static_argnames=('formula', 'star'))

_COUNTS = Counts(8., 10., 2., 40.)


class FormulaTest(parameterized.TestCase):

  @parameterized.parameters(('tarantula', 2, .8), ('ochiai', 2, .5962848), ('dstar', 3, 42.6667), ('dstar', 2, 5.3333),
                            ('jaccard', 2, .4))
  def test_numbers_by_hand(self, formula, star, expected):
    np.testing.assert_allclose(suspiciousness(_COUNTS, formula, star), expected, rtol=1e-5)

  @parameterized.parameters(*FORMULAS)
  def test_nothing_covered_is_zero_and_never_nan(self, formula):
    for ep, nf, np_ in ((0., 3., 4.), (5., 3., 0.), (0., 0., 4.), (0., 0., 0.)):
      self.assertEqual(float(suspiciousness(Counts(0., ep, nf, np_), formula)), 0.)

  def test_all_failing_and_no_passing_is_the_largest_dstar(self):
    self.assertEqual(float(suspiciousness(Counts(4., 0., 0., 9.), 'dstar')), np.finfo(np.float32).max)

  def test_doubled_samples(self):
    doubled = jax.tree.map(lambda count: 2 * count, _COUNTS)
    for formula in ('tarantula', 'ochiai', 'jaccard'):
      np.testing.assert_allclose(suspiciousness(doubled, formula), suspiciousness(_COUNTS, formula), rtol=1e-6)
    np.testing.assert_allclose(suspiciousness(doubled, 'dstar'), 2 * suspiciousness(_COUNTS, 'dstar'), rtol=1e-6)

  def test_unknown_formula(self):
    with self.assertRaisesRegex(BadInputError, 'ochiai, tarantula'):
      suspiciousness(_COUNTS, 'zoltar')


def _linear(w):
  variables = {'params': {'fc1': {'kernel': np.asarray(w, np.float32), 'bias': np.zeros(2, np.float32)}}}
  return Classifier(variables, models.build('mlp', num_classes=2, hidden=()), (2,), 2)


class CoverageTest(absltest.TestCase):

  def test_dense_weights_by_hand(self):
    """8.2: the contributions of inputs 2 to sample 1 and 1 to sample 2 exceed their means."""
    w, x = np.array([[.5, -1], [.25, 1]]), np.array([[1., 2], [2, 1], [0, 1]], np.float32)
    c = _linear(w)
    contributions = np.abs(x[:, :, None] * w)
    np.testing.assert_allclose(contributions.mean(0), [[.5, 1], [.333333, 1.333333]], rtol=1e-5)
    labels = predict.labels(c, x)
    for batch_size in (2, 3):
      found = spectrum(c, make_batches(x, np.where([True, False, False], 1 - labels, labels), batch_size=batch_size),
                       paths=('fc1',))
      self.assertEqual((float(found.num_failing), float(found.num_passing)), (1, 2))
      np.testing.assert_array_equal(found.inputs['fc1'].ef, (0, 1))
      np.testing.assert_array_equal(found.inputs['fc1'].ep, (1, 0))
      np.testing.assert_array_equal(suspiciousness(found.inputs['fc1']), (0, 1))
      covered = contributions > contributions.mean(0)
      np.testing.assert_array_equal(covered[0], [[False, False], [True, True]])
      # neurons: logits (1, 1), (1.25, -1), (.25, 1)
      np.testing.assert_array_equal(found.neurons['fc1'].ef, (1, 1))
      np.testing.assert_array_equal(found.neurons['fc1'].ep, (2, 1))
      ochiai = np.array([1 / 3**.5, 1 / 2**.5])
      np.testing.assert_allclose(weight_scores(c, found)['fc1'], [[0, 0], ochiai], rtol=1e-6)

  def test_zero_weights_are_never_covered(self):
    x = np.array([[1., 2], [2, 1], [0, 1]], np.float32)
    c = _linear([[0, 1], [0, 1]])
    found = spectrum(c, make_batches(x, 1 - predict.labels(c, x), batch_size=3), paths=('fc1',))
    self.assertFalse(weight_scores(c, found)['fc1'][:, 0].any())

  def test_inputs_of_one_size_are_never_covered(self):
    """Pixels of the background, say: rounding may put the sum of equal sizes over their number below them."""
    c, rng = networks.network('mlp', (40,), hidden=(), num_classes=3), np.random.default_rng(0)
    x = np.tile(rng.normal(size=40).astype(np.float32), (100, 1))
    x[:, -1] = rng.normal(size=100)
    found = spectrum(c, make_batches(x, np.arange(100) % 3, batch_size=32), paths=('fc1',)).inputs['fc1']
    np.testing.assert_array_equal((found.ef + found.ep)[:-1], np.zeros(39))
    self.assertEqual((found.ef + found.ep)[-1], (np.abs(x[:, -1]) > np.abs(x[:, -1]).mean()).sum())

  def test_doubling_every_sample_changes_no_order(self):
    """8.9, through coverage: means and shares stay."""
    c, x = networks.network('mlp', (6,), hidden=(5,), num_classes=3), networks.images((6,), n=12)
    y = np.arange(12) % 3
    found = [spectrum(c, make_batches(np.repeat(x, k, 0), np.repeat(y, k), batch_size=12), paths=('fc1', 'fc2'))
             for k in (1, 2)]
    for formula, factor in (('tarantula', 1), ('ochiai', 1), ('dstar', 4)):   # a product of two D* of star 2
      once, twice = (weight_scores(c, s, formula=formula)['fc2'] for s in found)
      finite = np.asarray(once) < 1e30
      np.testing.assert_allclose(twice[finite], factor * once[finite], rtol=1e-5)
      self.assertTrue(finite.any())


class _Mixed(nn.Module):
  """A convolution with BatchNorm and ReLU, a residual sum, a dense layer with its activation."""

  @nn.compact
  def __call__(self, x, train=False):
    y = layers.Conv(3, (3, 3), use_bias=False, name='conv1')(x)
    y = layers.Relu(name='relu1')(layers.BatchNorm(name='bn1')(y, train))
    z = layers.BatchNorm(name='bn2')(layers.Conv(3, (3, 3), name='conv2')(y), train)
    y = layers.Relu(name='relu2')(layers.Add(name='add')(y, z))
    y = layers.Flatten(name='flatten')(y)
    y = layers.Dropout(.5, name='drop')(layers.Tanh(name='tanh')(layers.Dense(4, name='fc1')(y)), train)
    return layers.Dense(3, name='fc2')(y)


def _mixed():
  shapes = layers.variable_shapes(_Mixed(), (4, 4, 2))
  c = networks.filled(Classifier(shapes, _Mixed(), (4, 4, 2), 3))
  rng = np.random.default_rng(1)
  c.variables['params']['bn1']['bias'] = rng.normal(-1.5, 1., 3).astype(np.float32)
  return c, networks.images((4, 4, 2), n=9)


class NetworkTest(absltest.TestCase):

  def test_neurons_are_read_behind_what_follows_them(self):
    points = activation_points(_mixed()[0], ('conv1', 'conv2', 'fc1', 'fc2'))
    self.assertEqual(points, {'conv1': 'relu1', 'conv2': 'bn2', 'fc1': 'tanh', 'fc2': 'fc2'})

  def test_counts_against_numpy(self):
    c, x = _mixed()
    y = np.arange(9) % 3
    seen = networks.quick_jit(lambda c, x: intervene.record(c, x, ('relu1', 'bn2', 'fc1', 'tanh', 'fc2')))(c, x)
    wrong = np.asarray(seen['fc2'][1]).argmax(1) != y
    found = spectrum(c, make_batches(x, y, batch_size=4), paths=('conv1', 'conv2', 'fc1', 'fc2'), threshold=.1)
    self.assertEqual(set(found.inputs), {'fc1', 'fc2'})
    for path, point in (('conv1', 'relu1'), ('conv2', 'bn2'), ('fc1', 'tanh'), ('fc2', 'fc2')):
      out = np.asarray(seen[point][1])
      covered = out.mean(axis=tuple(range(1, out.ndim - 1))) > .1
      counts = found.neurons[path]
      np.testing.assert_array_equal(counts.ef, covered[wrong].sum(0))
      np.testing.assert_array_equal(counts.ep, covered[~wrong].sum(0))
      np.testing.assert_array_equal(counts.ef + counts.nf, np.full(covered.shape[1], wrong.sum()))
      np.testing.assert_array_equal(counts.ep + counts.np, np.full(covered.shape[1], (~wrong).sum()))
    size = np.abs(np.asarray(seen['fc1'][0]))
    np.testing.assert_array_equal(found.inputs['fc1'].ef, (size > size.mean(0) + 1e-7)[wrong].sum(0))
    scores = weight_scores(c, found)
    for path in found.neurons:
      self.assertEqual(scores[path].shape, kernel(c, path).shape)
      self.assertTrue(jnp.isfinite(scores[path]).all() and (scores[path] >= 0).all())
    w = np.abs(np.asarray(kernel(c, 'conv2')))
    share = w / w.max((0, 1, 2))
    np.testing.assert_allclose(scores['conv2'], suspiciousness(found.neurons['conv2']) * share, rtol=1e-5)

  @pytest.mark.slow
  def test_ablation_against_zeroed_weights(self):
    c, x = networks.network('mlp', (6,), hidden=(5, 4), num_classes=3), networks.images((6,), n=40)
    y = np.arange(40) % 3
    scores = ablation_scores(c, make_batches(x, y, batch_size=16), paths=('fc1', 'fc2', 'fc3'))
    self.assertEqual({path: s.shape for path, s in scores.items()}, {'fc1': (5,), 'fc2': (4,), 'fc3': (3,)})
    right = lambda c: np.mean(predict.labels(c, x) == y)
    for path, after in (('fc1', 'fc2'), ('fc2', 'fc3')):
      for unit, score in enumerate(scores[path]):
        params = jax.tree.map(np.array, dict(c.params))
        params[after]['kernel'][unit] = 0
        self.assertAlmostEqual(float(score), right(c.with_params(params)) - right(c), places=5)
    self.assertTrue(any(np.asarray(s).any() for s in scores.values()))
    weights = ablation_weight_scores(c, make_batches(x, y, batch_size=16), paths=('fc2',))['fc2']
    np.testing.assert_allclose(weights.max(0), np.abs(scores['fc2']), rtol=1e-6)


class TopTest(absltest.TestCase):

  def test_ties_go_to_the_larger_weight_then_the_lower_index(self):
    scores, w = np.array([[.5, .9], [.5, .5], [np.nan, .5]]), np.array([[1., 0], [-3, 2], [9, 2]])
    self.assertEqual(top_entries(scores, w, 6).tolist(), [1, 2, 3, 5, 0, 4])
    self.assertEqual(top_entries(scores, w, 3).tolist(), [1, 2, 3])


if __name__ == '__main__':
  absltest.main()
