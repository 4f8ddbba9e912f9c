"""Data sets by name: `load('mnist')` gives the four splits of the study with everything a report says about them.

Importing this package reads no file; each data set is one module, imported when it is asked for.
"""
import importlib
import inspect
import os
import types
from typing import Any

from jaxfix.data.splits import Splits, load_indices
from jaxfix.errors import UnknownNameError, require

__all__ = ('NAMES', 'Splits', 'load', 'load_indices')

_LOADERS = types.MappingProxyType({
  'cifar10': 'jaxfix.data.cifar10:load',
  'cifar10s': 'jaxfix.data.cifar10s:load',
  'digits': 'jaxfix.data.digits:load',
  'imagenet': 'jaxfix.data.imagenet:load',
  'mnist': 'jaxfix.data.mnist:load',
  'moons': 'jaxfix.data.moons:load',
  'tiny_imagenet': 'jaxfix.data.tiny_imagenet:load',
  'utkface': 'jaxfix.data.utkface:load',
})

NAMES = tuple(sorted(_LOADERS))
"""Names that `load` knows."""


def load(name: str, *, data_dir: str | os.PathLike | None = None, seed: int = 0, **options: Any) -> Splits:
  """Loads a data set and splits it.

  Args:
    name: one of `NAMES`. `digits` and `moons` come with scikit-learn; the others are looked for in `data_dir` (or
      $JAXFIX_DATA), then among the data sets that TFDS has prepared, and are then downloaded where that is possible
      (`jaxfix.data.sources`).
    data_dir: folder with the user's files; never written to.
    seed: of the permutation that splits the data, >= 0.
    **options: of the data set; they are the keyword arguments of `load` in its module, and an unknown one is an error.
  Raises:
    UnknownNameError: no data set, or no option of it, has that name.
    DataNotFoundError: the data is nowhere; the message lists the places.
    CorruptFileError: a file was found but is truncated or holds something else.
    BadInputError: a seed or an option is out of range.
  """
  if name not in _LOADERS:
    raise UnknownNameError('data set', name, NAMES)
  require(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63,
          f'seed must be an integer >= 0, got {seed!r}.')
  module, attribute = _LOADERS[name].split(':')
  function = getattr(importlib.import_module(module), attribute)
  known = set(inspect.signature(function).parameters) - {'data_dir', 'seed'}
  for option in options:
    if option not in known:
      raise UnknownNameError(f'option of data set {name!r}', option, known)
  return function(data_dir=data_dir, seed=seed, **options)
