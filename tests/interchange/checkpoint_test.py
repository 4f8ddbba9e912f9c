"""Checkpoints: what is loaded is what was saved, bit for bit, or it is an error."""
import json
import math
import pathlib
import struct
import tempfile
from unittest import mock

import chex
import jax
import numpy as np
from absl.testing import absltest, parameterized
from flax import linen as nn

from jaxfix import classifier as classifiers
from jaxfix import files, interchange
from jaxfix.classifier import stack
from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError, OutputError, UnknownNameError
from jaxfix.interchange import checkpoint
from jaxfix.models.layer_graph import Record
from tests.networks import network


def small(seed=0, **changes):
  return classifiers.dataclasses.replace(network('mlp', (5,), seed=seed, num_classes=3, hidden=(4,)), **changes)


class RoundTripTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  @parameterized.named_parameters(
    ('lenet5', 'lenet5', (8, 8, 1), {'variant': 'small', 'width': 0.25}),
    ('resnet50', 'resnet50', (8, 8, 3), {'width': 1 / 32, 'units': (1, 1), 'bn_epsilon': 1.001e-5}),
    ('layer_graph', 'layer_graph', (5,), {'layers': (Record('a', 'dense', (('features', 3),)), Record(
      'b', 'bn', (('epsilon', 1 / 3), ('use_bias', False)), ('a',))), 'notes': ('a remark',)}))
  def test_everything_comes_back(self, name, input_shape, options):
    c = network(name, input_shape, **options)
    c = classifiers.dataclasses.replace(c, mean=(0.1 + 0.2, 1 / 3, math.pi)[:input_shape[-1]],
                                        std=(5e-324, 1e300, 0.24703279)[:input_shape[-1]])
    path = checkpoint.save(self.folder / 'deep' / 'model.v1', c, {'accuracy': 0.5})
    self.assertEqual(path, self.folder / 'deep' / 'model.v1.safetensors')
    loaded = interchange.read_classifier(path)
    chex.assert_trees_all_equal(loaded.variables, c.variables)
    self.assertEqual(jax.tree.structure(loaded), jax.tree.structure(c))  # module, shapes, mean and std, to the bit
    self.assertEqual(classifiers.fingerprint(loaded), classifiers.fingerprint(c))
    self.assertEqual(checkpoint.load_meta(path), {'accuracy': 0.5})

  def test_any_spelling_of_the_name_reaches_it(self):
    c = small()
    checkpoint.save(self.folder / 'a.safetensors', c)
    for name in ('a', 'a.safetensors', 'a.json'):
      chex.assert_trees_all_equal(checkpoint.load(self.folder / name).variables, c.variables)
    self.assertEqual(checkpoint.load_meta(self.folder / 'a'), {})

  def test_saving_again_replaces(self):
    checkpoint.save(self.folder / 'a', small(), {'run': 1})
    checkpoint.save(self.folder / 'a', small(1), {'run': 2})
    chex.assert_trees_all_equal(checkpoint.load(self.folder / 'a').variables, small(1).variables)
    self.assertEqual(checkpoint.load_meta(self.folder / 'a'), {'run': 2})
    self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ['a.json', 'a.safetensors'])


class BrokenTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = checkpoint.save(self.folder / 'a', small(), {'accuracy': 0.5})
    self.sidecar = self.folder / 'a.json'

  @parameterized.product(which=('weights', 'sidecar'), share=(0., 0.1, 0.5, 0.9, 0.999))
  def test_a_truncated_file_is_corrupt(self, which, share):
    path = self.path if which == 'weights' else self.sidecar
    data = path.read_bytes().rstrip()
    path.write_bytes(data[:int(share * len(data))])
    with self.assertRaisesRegex(CorruptFileError, str(path)):
      checkpoint.load(self.path)

  def test_a_changed_weight_is_corrupt(self):
    data = bytearray(self.path.read_bytes())
    data[-1] ^= 1
    self.path.write_bytes(data)
    with self.assertRaisesRegex(CorruptFileError, 'weights have changed'):
      checkpoint.load(self.path)

  @parameterized.parameters(
    ('mean', [0.5]), ('std', [2.0]), ('input_shape', [6]), ('num_classes', 4), ('version', 2), ('mean', None),
    ('model', {'model': 'mlp', 'options': {'hidden': [5], 'num_classes': 3}}), ('fingerprint', '0' * 64),
    ('fingerprint', None), ('model', 'mlp'), ('meta', 3))
  def test_a_changed_sidecar_is_corrupt(self, key, value):
    content = json.loads(self.sidecar.read_text())
    files.write_json(self.sidecar, {**content, key: value})
    with self.assertRaises(CorruptFileError):
      checkpoint.load(self.path)

  @parameterized.parameters('model', 'mean', 'meta', 'fingerprint', 'version')
  def test_a_sidecar_that_lacks_something_is_corrupt(self, key):
    content = json.loads(self.sidecar.read_text())
    del content[key]
    files.write_json(self.sidecar, content)
    with self.assertRaises(CorruptFileError):
      checkpoint.load(self.path)

  def test_the_reader_may_annotate_meta(self):
    content = json.loads(self.sidecar.read_text())
    files.write_json(self.sidecar, {**content, 'meta': {'remark': 'mine'}})
    chex.assert_trees_all_equal(checkpoint.load(self.path).variables, small().variables)

  def test_a_description_of_no_known_model_is_corrupt(self):
    content = json.loads(self.sidecar.read_text())
    content['model']['model'] = 'mlpp'
    files.write_json(self.sidecar, content)
    hidden_change = mock.patch.object(files, 'sha256_of_json', return_value=self._recorded_hash())
    with hidden_change, self.assertRaisesRegex(CorruptFileError, "Did you mean 'mlp'"):
      checkpoint.load(self.path)

  def _recorded_hash(self):
    data = self.path.read_bytes()
    header = json.loads(data[8:8 + struct.unpack('<Q', data[:8])[0]])
    return header['__metadata__']['description_sha256']

  @parameterized.parameters(
    {'seed': 1}, {'seed': 0, 'std': (2.,)})  # other weights, or the same ones normalized otherwise
  def test_a_run_killed_between_the_two_files_leaves_no_checkpoint(self, seed, **changes):
    with mock.patch.object(files, 'write_json', side_effect=KeyboardInterrupt), self.assertRaises(KeyboardInterrupt):
      checkpoint.save(self.path, small(seed, **changes))
    with self.assertRaises(CorruptFileError):  # new weights beside the old sidecar
      checkpoint.load(self.path)
    with mock.patch.object(files, 'write_json', side_effect=KeyboardInterrupt), self.assertRaises(KeyboardInterrupt):
      checkpoint.save(self.folder / 'new', small())
    with self.assertRaisesRegex(DataNotFoundError, 'not finished'):
      checkpoint.load(self.folder / 'new')

  def test_missing_files_are_named(self):
    with self.assertRaisesRegex(DataNotFoundError, 'none.safetensors'):
      checkpoint.load(self.folder / 'none')
    self.path.unlink()
    with self.assertRaisesRegex(DataNotFoundError, 'a.safetensors'):
      checkpoint.load(self.path)


class RefusedTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  @parameterized.parameters(np.nan, np.inf)
  def test_weights_that_are_not_finite(self, bad):
    c = small()
    c.params['fc1']['bias'][2] = bad
    with self.assertRaisesRegex(BadInputError, 'params/fc1/bias'):
      checkpoint.save(self.folder / 'a', c)
    with mock.patch.object(checkpoint, 'check_finite'):
      checkpoint.save(self.folder / 'a', c)
    with self.assertRaisesRegex(BadInputError, 'params/fc1/bias'):
      checkpoint.load(self.folder / 'a')

  def test_populations_foreign_modules_and_bad_normalization(self):
    with self.assertRaisesRegex(BadInputError, 'the model needs'):
      checkpoint.save(self.folder / 'a', stack([small(), small(1)]))
    with self.assertRaisesRegex(BadInputError, 'finite'):
      checkpoint.save(self.folder / 'a', small(std=(math.nan,)))
    unregistered = classifiers.Classifier({'params': {}}, nn.Sequential(()), (5,), 3)
    with self.assertRaisesRegex(UnknownNameError, 'Sequential'):
      checkpoint.save(self.folder / 'a', unregistered)
    self.assertEmpty(list(self.folder.iterdir()))

  def test_a_folder_that_cannot_be_made(self):
    (self.folder / 'file').write_text('')
    with self.assertRaises(OutputError):
      checkpoint.save(self.folder / 'file' / 'a', small())

  @parameterized.parameters('a.onnx_', 'a.keras', 'a', 'a.json')
  def test_suffixes_that_no_reader_takes(self, name):
    with self.assertRaisesRegex(BadInputError, r'Known: .*\.h5.*\.safetensors'):
      interchange.read_classifier(self.folder / name)


if __name__ == '__main__':
  absltest.main()
