"""NNet files: real networks against their weights, against maraboupy's reader, round trips, damaged files."""
import dataclasses
import pathlib
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized
from maraboupy import MarabouNetworkNNet

from jaxfix import interchange
from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError
from jaxfix.interchange import nnet
from tests.networks import network, quick_jit
from tests.shared_data import shared_data

SCALING = nnet.NNetScaling((0., -1., 2.), (1., 1 / 3, 4.), (0.1, 0.2, 0.3), (1., 2., 1e-7), 7.5188840201005975, 373.9)
LAYERS = (('dense1', 'dense', (('features', 4),), ('input',)), ('relu1', 'relu', (), ('dense1',)),
          ('dense2', 'dense', (('features', 3),), ('relu1',)))


def logits(classifier, x):
  return np.asarray(quick_jit(lambda c, x: c.logits(x))(classifier, x))


class FileCase(parameterized.TestCase):

  def setUp(self):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.path = pathlib.Path(folder.name) / 'model.nnet'

  def write(self, seed=0):
    classifier = network('layer_graph', (3,), seed, layers=LAYERS)
    nnet.write(self.path, classifier, SCALING)
    return classifier


class RealFilesTest(FileCase):

  @parameterized.parameters(
    ('acasxu/nnet/ACASXU_run2a_1_1_batch_2000.nnet', 'acasxu/acasxu_37.npz', '1_1'),
    ('acasxu/nnet/ACASXU_run2a_2_9_batch_2000.nnet', 'acasxu/acasxu_37.npz', '2_9'),
    ('acasxu/nnet/ACASXU_run2a_3_3_batch_2000.nnet', 'acasxu/acasxu_37.npz', '3_3'),
    ('hcas/HCAS_rect_v6_pra1_tau05_25HU_3000.nnet', 'hcas/hcas_40.npz', 'pra1_tau05'),
    ('hcas/HCAS_rect_v6_pra1_tau20_25HU_3000.nnet', 'hcas/hcas_40.npz', 'pra1_tau20'))
  def test_weights_and_scaling(self, file, arrays, name):
    path = shared_data(file)
    classifier, scaling = nnet.read_with_scaling(path)
    self.assertEqual(interchange.read_classifier(path).module, classifier.module)
    with np.load(shared_data(arrays)) as reference:
      for i in range(len(classifier.params)):
        np.testing.assert_array_equal(classifier.params[f'dense{i + 1}']['kernel'], reference[f'{name}/W{i}'].T)
        np.testing.assert_array_equal(classifier.params[f'dense{i + 1}']['bias'], reference[f'{name}/b{i}'])
      self.assertNotIn(f'{name}/W{len(classifier.params)}', reference.files)
      if 'acasxu' in file:  # HorizontalCAS has other constants in each file
        for field in dataclasses.fields(scaling):
          np.testing.assert_array_equal(getattr(scaling, field.name), reference[field.name])
    nnet.write(self.path, classifier, scaling)
    again, scaling_again = nnet.read_with_scaling(self.path)
    self.assertEqual((again.module, scaling_again), (classifier.module, scaling))
    jax.tree.map(np.testing.assert_array_equal, again.params, classifier.params)

  def test_units(self):
    """The box of property 1, in raw units and as the published network-unit files have it."""
    _, scaling = nnet.read_with_scaling(shared_data('acasxu/nnet/ACASXU_run2a_1_1_batch_2000.nnet'))
    pi = 3.141592653589793
    x = scaling.to_network([[55947.691, -pi, -pi, 1145, 0], [60760, pi, pi, 1200, 60], [62000, 4, -4, 2000, -5]])
    self.assertEqual(x.dtype, np.float64)
    np.testing.assert_allclose(x[:2], [[0.6, -0.5, -0.5, 0.45, -0.5], [0.679857769, 0.5, 0.5, 0.5, -0.45]], atol=1e-7)
    np.testing.assert_allclose(x[2], [0.679857769, 0.5, -0.5, 0.5, -0.5], atol=1e-7)  # clipped to the bounds
    self.assertAlmostEqual(scaling.to_raw(3.991125645861615), 1500, places=9)


class RoundTripTest(FileCase):

  def test_the_same_weights_and_scaling(self):
    classifier = self.write()
    again, scaling = nnet.read_with_scaling(self.path)
    self.assertEqual(scaling, SCALING)
    jax.tree.map(np.testing.assert_array_equal, again.params, dict(classifier.params))
    self.assertEqual((again.input_shape, again.num_classes), ((3,), 3))

  def test_every_float32_survives(self):
    bits = np.random.default_rng(0).integers(0, 1 << 32, 120_000, np.uint32).view(np.float32)
    kernel = bits[np.isfinite(bits)][:99_000].reshape(3, -1)
    k = kernel.shape[1]
    shallow = network('layer_graph', (3,), layers=(('dense1', 'dense', (('features', k),), ('input',)),))
    classifier = shallow.with_params({'dense1': {'kernel': kernel, 'bias': kernel[0]}})
    nnet.write(self.path, classifier, SCALING)
    again = nnet.read(self.path).params['dense1']
    np.testing.assert_array_equal(np.asarray(again['kernel']).view(np.uint32), kernel.view(np.uint32))

  def test_another_reader_sees_the_same_network(self):
    classifier = self.write()
    other = MarabouNetworkNNet.MarabouNetworkNNet(str(self.path), normalize=False)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    theirs = [other.evaluateNNet(v) for v in x]
    np.testing.assert_allclose(logits(classifier, x), theirs, atol=1e-5)

  def test_other_networks_that_fit(self):
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    flat = (('f', 'flatten', (), ('input',)), ('d', 'dense', (('features', 2), ('use_bias', False)), ('f',)))
    for classifier in (network('mlp', (3,), num_classes=3, hidden=(4, 5)), network('layer_graph', (3,), layers=flat)):
      nnet.write(self.path, classifier, SCALING)
      np.testing.assert_allclose(logits(nnet.read(self.path), x), logits(classifier, x), atol=1e-6)

  @parameterized.named_parameters(
    ('ends_in_relu', LAYERS[:2], 'ends in a ReLU'),
    ('two_dense', (LAYERS[0], ('d', 'dense', (('features', 3),), ('dense1',))), "layer 'd' of kind 'dense'"),
    ('tanh', (LAYERS[0], ('t', 'tanh', (), ('dense1',)), ('d', 'dense', (('features', 3),), ('t',))), "kind 'tanh'"),
    ('skip', (*LAYERS, ('s', 'relu', (), ('dense1',)), ('d', 'dense', (('features', 3),), ('s',))), 'no chain'))
  def test_other_layer_graphs_are_refused(self, records, message):
    with self.assertRaisesRegex(BadInputError, message):
      nnet.write(self.path, network('layer_graph', (3,), layers=records), SCALING)
    self.assertFalse(self.path.exists())

  def test_what_else_is_refused(self):
    classifier = network('layer_graph', (3,), layers=LAYERS)
    with self.assertRaisesRegex(BadInputError, 'input_mins of the scaling has 1 numbers'):
      nnet.write(self.path, classifier, dataclasses.replace(SCALING, input_mins=(0.,)))
    with self.assertRaisesRegex(BadInputError, 'normalizes'):
      nnet.write(self.path, dataclasses.replace(classifier, mean=(0.5,)), SCALING)
    with self.assertRaisesRegex(BadInputError, 'LeNet5'):
      nnet.write(self.path, network('lenet5', (8, 8, 1), variant='small'), SCALING)
    with self.assertRaisesRegex(BadInputError, r'takes an input of shape \(2, 3\)'):
      nnet.write(self.path, network('layer_graph', (2, 3), layers=LAYERS), SCALING)
    broken = jax.tree.map(lambda w: w * np.float32(np.nan), classifier)
    with self.assertRaisesRegex(BadInputError, 'NaN'):
      nnet.write(self.path, broken, SCALING)


class WrongFileTest(FileCase):

  def changed(self, number, line):
    """Writes a file in which that line, counted from 1, is replaced."""
    self.write()
    lines = self.path.read_text().splitlines()
    lines[number - 1] = line
    self.path.write_text('\n'.join(lines))

  @parameterized.parameters(
    (2, '2,3,3,', 'should be 4 numbers, but here are 3'), (2, '2,3,3,x', 'should be numbers'),
    (2, '2,3,3.5,4,', 'should be positive integers'), (2, '2,3,nan,4,', 'should be positive integers'),
    (2, '0,3,3,4,', 'should be positive integers'), (3, '3,4,', 'should be 3 numbers'), (3, '3,4,5,', 'have sizes'),
    (5, '0,1,2,3,', 'the smallest inputs should be 3 numbers, but here are 4'), (8, '1,2,0,1,', 'a range is 0'),
    (9, '1,2,3,4,', 'a row of weights of layer 1 should be 3 numbers'), (9, '1,two,3,', "should be numbers .*'two'"),
    (13, '1,2,', 'a bias of layer 1 should be 1 numbers'))
  def test_the_line_is_named(self, number, line, message):
    self.changed(number, line)
    with self.assertRaisesRegex(CorruptFileError, rf'model.nnet, line {number}: .*{message}'):
      nnet.read(self.path)

  def test_files_that_end_early_at_any_line(self):
    self.write()
    lines = self.path.read_text().splitlines()
    for count in range(len(lines)):
      self.path.write_text('\n'.join(lines[:count]))
      with self.assertRaisesRegex(CorruptFileError, rf'line {count if count > 1 else 0}: .*it is truncated'):
        nnet.read(self.path)

  def test_something_after_the_end(self):
    self.write()
    with self.path.open('a') as f:
      f.write('\n// no harm\n1.0,\n')
    with self.assertRaisesRegex(CorruptFileError, 'line 25: something follows'):
      nnet.read(self.path)

  def test_weights_that_are_not_finite(self):
    self.changed(9, '1,nan,3,')
    with self.assertRaisesRegex(BadInputError, 'dense1/kernel'):
      nnet.read(self.path)

  def test_other_files(self):
    with self.assertRaisesRegex(DataNotFoundError, 'model.nnet'):
      nnet.read(self.path)
    self.path.write_bytes(b'\xff\xfe\x00')
    with self.assertRaisesRegex(CorruptFileError, 'no text file'):
      nnet.read(self.path)
    self.path.write_text('')
    with self.assertRaisesRegex(CorruptFileError, 'truncated'):
      nnet.read(self.path)


if __name__ == '__main__':
  absltest.main()
