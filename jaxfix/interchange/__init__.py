"""Everything that crosses the border of the package: models and checkpoints of our own and of other programs."""
import importlib
import os
import pathlib
import types

from jaxfix.classifier import Classifier
from jaxfix.errors import BadInputError

__all__ = ('READERS', 'read_classifier')

READERS = types.MappingProxyType({
  '.h5': 'jaxfix.interchange.keras_h5:read',
  '.hdf5': 'jaxfix.interchange.keras_h5:read',
  '.nnet': 'jaxfix.interchange.nnet:read',
  '.onnx': 'jaxfix.interchange.onnx_read:read',
  '.safetensors': 'jaxfix.interchange.checkpoint:load',
})
"""Suffix -> function that reads a classifier from such a file."""


def read_classifier(path: str | os.PathLike) -> Classifier:
  """The classifier in a file of any kind that jaxfix reads; the suffix decides.

  Raises:
    BadInputError: no reader for that suffix.
    DataNotFoundError, CorruptFileError, UnsupportedLayerError: as the reader of that kind of file says.
  """
  suffix = pathlib.Path(path).suffix.lower()
  if suffix not in READERS:
    raise BadInputError(f'{path}: cannot read a model from a file that ends in {suffix!r}. Known: '
                        f'{", ".join(sorted(READERS))}. (A .keras file can be saved again as .h5 by Keras.)')
  module, function = READERS[suffix].split(':')
  return getattr(importlib.import_module(module), function)(path)
