"""The weight files of Keras' DenseNet121, which hold arrays and no description of the network.

Legacy `.h5` files name every layer (`conv2_block1_0_bn`; the first two also as `conv1/conv` and `conv1/bn`). Keras 3
`.weights.h5` files number the layers of each class (`layers/conv2d_5/vars/0`), in the order of creation. The standard
network has 606 arrays with 8,062,504 numbers.

Source: file layouts as written by keras.applications.DenseNet121 of Keras 2 and 3.
"""
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np

from jaxfix.classifier import Classifier, check_finite
from jaxfix.errors import CorruptFileError, require
from jaxfix.interchange import hdf5, keras_tensors
from jaxfix.models import layers
from jaxfix.models.densenet import DenseNet121

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_CLASSES = {'conv': 'conv2d', 'bn': 'batch_normalization', 'dense': 'dense'}
_ORDER = {'conv': ('kernel',), 'bn': ('gamma', 'beta', 'moving_mean', 'moving_variance'), 'dense': ('kernel', 'bias')}


def read(path: str | os.PathLike, module: DenseNet121 | None = None, *, input_shape: Sequence[int] = (224, 224, 3),
         mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Classifier:
  """DenseNet121 with the weights of a Keras file.

  Args:
    path: legacy `.h5` (whole model or weights) or Keras 3 `.weights.h5`.
    module: the network that the weights are of, form 'imagenet'; None takes the standard one, 1000 classes.
    input_shape: of one image.
    mean, std: input normalization of pixels / 255 (Keras' 'torch' mode, which its DenseNets were trained with).
  Raises:
    DataNotFoundError: there is no such file.
    CorruptFileError: it is truncated, or its arrays are not exactly those of the network, in number, name and shape.
    BadInputError: `module` is of another form, or a weight is NaN or infinite.
    JaxfixError: h5py is not installed.
  """
  module = DenseNet121(num_classes=1000, form='imagenet') if module is None else module
  require(module.form == 'imagenet', "Keras weights fit DenseNet121 of form 'imagenet', not 'cifar'.")
  contents, names, where = hdf5.read(path), keras_names(module), str(path)
  arrays = contents.under('layers')
  if arrays:
    arrays = _named(arrays, names, where)
  else:
    arrays = contents.under('model_weights') or contents.arrays
    arrays = {re.sub('^conv1/', 'conv1_', name): array for name, array in arrays.items()}
  found = keras_tensors.collect(arrays, set(names.values()), where)
  variables = keras_tensors.assign(found, layers.variable_shapes(module, input_shape), names, where)
  classifier = Classifier(variables, module, tuple(input_shape), module.num_classes, tuple(map(float, mean)),
                          tuple(map(float, std)))
  check_finite(classifier, where)
  return classifier


def keras_names(module: DenseNet121) -> dict[str, str]:
  """Module path -> Keras layer, for every layer with weights, in the order in which Keras creates them."""
  names = {'conv1': 'conv1_conv', 'bn1': 'conv1_bn'}
  for s, num_units in enumerate(module.units, 1):
    for u in range(1, num_units + 1):
      for ours, theirs in (('bn1', '0_bn'), ('conv1', '1_conv'), ('bn2', '1_bn'), ('conv2', '2_conv')):
        names[f'stage{s}/unit{u}/{ours}'] = f'conv{s + 1}_block{u}_{theirs}'
    if s < len(module.units):
      names |= {f'transition{s}/bn1': f'pool{s + 1}_bn', f'transition{s}/conv1': f'pool{s + 1}_conv'}
  return names | {'bn_last': 'bn', 'fc1': 'predictions'}


def _named(arrays: Mapping[str, np.ndarray], names: Mapping[str, str], where: str) -> dict[str, np.ndarray]:
  """Arrays of a Keras 3 file under the names of a legacy one."""
  legacy, counts = {}, dict.fromkeys(_CLASSES, 0)
  for layer in names.values():
    kind = next((kind for kind in ('conv', 'bn') if layer.endswith(kind)), 'dense')
    number = f'_{counts[kind]}' if counts[kind] else ''
    counts[kind] += 1
    legacy |= {f'{_CLASSES[kind]}{number}/vars/{i}': f'{layer}/{weight}' for i, weight in enumerate(_ORDER[kind])}
  extra = arrays.keys() - legacy.keys()
  require(not extra, f'{where}: array {min(extra, default="")!r} is no weight of the model.', CorruptFileError)
  return {legacy[name]: array for name, array in arrays.items()}
