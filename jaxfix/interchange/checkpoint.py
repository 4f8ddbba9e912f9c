"""Checkpoints: `NAME.safetensors` with the weights and `NAME.json`, the sidecar that says what they are weights of.

The weights are written first and the sidecar last, each atomically. The sidecar holds the fingerprint of the weights,
and the weights' header the hash of the sidecar's description: a run that is killed between the two files leaves a pair
that does not match, and `load` refuses it.
"""
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from jaxfix import files, models
from jaxfix.classifier import Classifier, check_finite, fingerprint, flat_weights
from jaxfix.errors import CorruptFileError, DataNotFoundError, JaxfixError, require
from jaxfix.models import layers

FORMAT_VERSION = 1

_DESCRIPTION = ('input_shape', 'mean', 'model', 'num_classes', 'std', 'version')
_HASH = 'description_sha256'


def save(path: str | os.PathLike, classifier: Classifier, meta: Mapping[str, Any] | None = None) -> pathlib.Path:
  """Writes a checkpoint; an existing one of that name is replaced.

  Args:
    path: NAME or NAME.safetensors; its folder is made.
    classifier: a single model (not a population), of a registered architecture.
    meta: anything JSON-able, for the reader: how the model was trained, accuracies.
  Returns:
    Path of the safetensors file.
  Raises:
    BadInputError: weights are NaN or infinite, or do not have the shapes of the module; mean or std is not finite.
    UnknownNameError: the module's class is not in the registry, so that no file can name it.
    OutputError: the folder cannot be written.
  """
  weights_path, sidecar_path = paths(path)
  check_finite(classifier, f'checkpoint {weights_path.name}')
  require(all(map(math.isfinite, (*classifier.mean, *classifier.std))), 'mean and std of the model must be finite.')
  description = files.jsonable({
    'input_shape': classifier.input_shape, 'mean': classifier.mean, 'model': models.describe(classifier.module),
    'num_classes': classifier.num_classes, 'std': classifier.std, 'version': FORMAT_VERSION})
  weights = flat_weights(classifier.variables)
  problem = _mismatch(weights, layers.variable_shapes(classifier.module, classifier.input_shape))
  require(not problem, f'Cannot save {weights_path.name}: {problem}.')
  with files.replacing(weights_path) as partial:
    partial.write_bytes(safetensors.numpy.save(
      {name: np.ascontiguousarray(array) for name, array in weights.items()},
      metadata={_HASH: files.sha256_of_json(description)}))
  files.write_json(sidecar_path, {**description, 'fingerprint': fingerprint(classifier), 'meta': dict(meta or {})})
  return weights_path


def load(path: str | os.PathLike) -> Classifier:
  """The classifier of a checkpoint, bit for bit the one that was saved.

  Args:
    path: NAME, NAME.safetensors or NAME.json.
  Raises:
    DataNotFoundError: either file is missing.
    CorruptFileError: a file is truncated or was changed, or the two do not belong together.
    BadInputError: a weight is NaN or infinite.
  """
  weights_path, sidecar_path = paths(path)
  description, sidecar = _read_sidecar(weights_path, sidecar_path)
  weights, claimed = _read_weights(weights_path)
  again = f'{weights_path} and {sidecar_path.name} do not belong together; save the checkpoint again.'
  require(claimed == files.sha256_of_json(description), f'The description has changed: {again}', CorruptFileError)
  try:
    module = models.build(description['model']['model'], **description['model']['options'])
    input_shape, num_classes = tuple(map(int, description['input_shape'])), int(description['num_classes'])
    mean, std = (tuple(map(float, description[key])) for key in ('mean', 'std'))
    template = layers.variable_shapes(module, input_shape)
  except (JaxfixError, AttributeError, KeyError, TypeError, ValueError) as e:
    raise CorruptFileError(f'{sidecar_path} describes no model of this version of jaxfix: {e}') from e
  problem = _mismatch(weights, template)
  require(not problem, f'{weights_path}: {problem}. {again}', CorruptFileError)
  variables = jax.tree.map(jnp.asarray, traverse_util.unflatten_dict(weights, sep='/'))
  classifier = Classifier(variables, module, input_shape, num_classes, mean, std)
  require(fingerprint(classifier) == sidecar.get('fingerprint'), f'The weights have changed: {again}', CorruptFileError)
  check_finite(classifier, str(weights_path))
  return classifier


def load_meta(path: str | os.PathLike) -> dict[str, Any]:
  """What `save` was given as `meta`. Raises as `load`, but looks at the sidecar only."""
  weights_path, sidecar_path = paths(path)
  return _read_sidecar(weights_path, sidecar_path)[1]['meta']


def paths(path: str | os.PathLike) -> tuple[pathlib.Path, pathlib.Path]:
  """The weights file and the sidecar of the checkpoint NAME, NAME.safetensors or NAME.json."""
  path = pathlib.Path(path)
  stem = path.stem if path.suffix in ('.safetensors', '.json') else path.name
  return path.with_name(f'{stem}.safetensors'), path.with_name(f'{stem}.json')


def _read_sidecar(weights_path: pathlib.Path, sidecar_path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """The description alone, and everything."""
  if weights_path.is_file() and not sidecar_path.is_file():
    raise DataNotFoundError(f'{weights_path} has no sidecar {sidecar_path.name}: the checkpoint was not finished. '
                            'Save it again.')
  require(weights_path.is_file(), f'No file {weights_path}.', DataNotFoundError)
  sidecar = files.read_json(sidecar_path)
  whole = isinstance(sidecar, dict) and isinstance(sidecar.get('meta'), dict) and set(_DESCRIPTION) <= sidecar.keys()
  require(whole, f'{sidecar_path} is not the sidecar of a checkpoint.', CorruptFileError)
  require(sidecar['version'] == FORMAT_VERSION, f'{sidecar_path} has format version {sidecar["version"]}, this jaxfix '
          f'reads {FORMAT_VERSION}.', CorruptFileError)
  return {key: sidecar[key] for key in _DESCRIPTION}, sidecar


def _read_weights(path: pathlib.Path) -> tuple[dict[str, np.ndarray], str | None]:
  """The arrays, and the hash of the description that was saved with them."""
  try:
    with safetensors.safe_open(path, framework='numpy') as f:
      return {name: f.get_tensor(name) for name in f.keys()}, (f.metadata() or {}).get(_HASH)  # noqa: SIM118 (no dict)
  except (safetensors.SafetensorError, OSError, ValueError) as e:
    raise CorruptFileError(f'{path} is damaged or truncated ({e}); save the checkpoint again.') from e


def _mismatch(weights: Mapping[str, np.ndarray], template: Mapping[str, Any]) -> str:
  """What is wrong with the names, shapes or dtypes of `weights`; '' if nothing."""
  expected = traverse_util.flatten_dict(template, sep='/')
  if weights.keys() != expected.keys():
    name = min(weights.keys() ^ expected.keys())
    return f'weight {name!r} is {"missing" if name in expected else "not one of the model"}'
  for name, array in weights.items():
    want = expected[name]
    if array.shape != want.shape or array.dtype != want.dtype:
      return f'weight {name!r} is {array.dtype}{list(array.shape)}, the model needs {want.dtype}{list(want.shape)}'
  return ''
