"""Network architectures, one a file. `build(name, **options)` makes a module; `describe` is its inverse."""
import dataclasses
import importlib
import types
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from jaxfix.errors import BadInputError, UnknownNameError

__all__ = ('NAMES', 'build', 'describe')

_MODELS = types.MappingProxyType({
  'alexnet': 'jaxfix.models.alexnet:AlexNet',
  'decoupled': 'jaxfix.models.decoupled:Decoupled',
  'densenet121': 'jaxfix.models.densenet:DenseNet121',
  'facenet': 'jaxfix.models.facenet:FaceNet',
  'layer_graph': 'jaxfix.models.layer_graph:LayerGraph',
  'lenet5': 'jaxfix.models.lenet5:LeNet5',
  'mlp': 'jaxfix.models.mlp:Mlp',
  'resnet18': 'jaxfix.models.resnet:ResNet18',
  'resnet50': 'jaxfix.models.resnet:ResNet50',
  'resnet101': 'jaxfix.models.resnet:ResNet101',
  'vgg16': 'jaxfix.models.vgg:VGG16',
})

NAMES = tuple(_MODELS)


def _model_class(name: str) -> type[nn.Module]:
  if name not in _MODELS:
    raise UnknownNameError('model', name, _MODELS)
  module, attribute = _MODELS[name].split(':')
  return getattr(importlib.import_module(module), attribute)


def _options(cls: type[nn.Module]) -> list[str]:
  return [f.name for f in dataclasses.fields(cls) if f.name not in ('parent', 'name')]


def build(name: str, /, **options: Any) -> nn.Module:
  """The linen module of a registered architecture.

  Args:
    name: one of `NAMES`.
    **options: fields of that module; lists (from JSON) become tuples, `{'model': ..., 'options': ...}` a module.
  Raises:
    UnknownNameError: no such architecture, or no such option of it.
    BadInputError: the module refuses an option's value.
  """
  cls = _model_class(name)
  for option in options:
    if option not in _options(cls):
      raise UnknownNameError(f'option of model {name!r}', option, _options(cls))
  try:
    return cls(**{k: _from_json(v) for k, v in options.items()})
  except (TypeError, ValueError) as e:
    raise BadInputError(f'Model {name!r} refuses the options {options}: {e}') from e


def describe(module: nn.Module) -> dict[str, Any]:
  """`{'model': name, 'options': {...}}`, JSON-able, from which `build` makes an equal module.

  Raises:
    UnknownNameError: the module's class is not registered here, so that no checkpoint can name it.
  """
  for name, target in _MODELS.items():
    path, attribute = target.split(':')
    if (type(module).__module__, type(module).__name__) == (path, attribute):
      return {'model': name, 'options': {o: _to_json(getattr(module, o)) for o in _options(type(module))}}
  raise UnknownNameError('model class', type(module).__name__, _MODELS)


def _to_json(value: Any) -> Any:
  if isinstance(value, nn.Module):
    return describe(value)
  if isinstance(value, (tuple, list)):
    return [_to_json(v) for v in value]
  if isinstance(value, Mapping):
    return {k: _to_json(v) for k, v in value.items()}
  return value


def _from_json(value: Any) -> Any:
  if isinstance(value, (list, tuple)):
    return tuple(_from_json(v) for v in value)
  if isinstance(value, Mapping):
    return build(value['model'], **value['options'])
  return value
