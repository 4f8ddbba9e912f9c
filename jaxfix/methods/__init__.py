"""The approaches, one a file in a folder per level, and the one literal registry of them."""
import importlib
import types

from jaxfix.errors import UnknownNameError
from jaxfix.methods.method import Method, configure, run

__all__ = ('NAMES', 'Method', 'configure', 'get', 'run')

_METHODS = types.MappingProxyType({
  'apricot': 'jaxfix.methods.model.apricot:METHOD',
  'prdnn': 'jaxfix.methods.layer.prdnn:METHOD',
  'arachne': 'jaxfix.methods.neuron.arachne:METHOD',
  'arachne_pso': 'jaxfix.methods.neuron.arachne_pso:METHOD',
  'neurecover': 'jaxfix.methods.neuron.neurecover:METHOD',
  'adrep': 'jaxfix.methods.neuron.adrep:METHOD',
  'distrrep': 'jaxfix.methods.neuron.distrrep:METHOD',
  'care': 'jaxfix.methods.neuron.care:METHOD',
  'irepair': 'jaxfix.methods.neuron.irepair:METHOD',
  'genmunn': 'jaxfix.methods.neuron.genmunn:METHOD',
  'inner': 'jaxfix.methods.neuron.inner:METHOD',
  'mode': 'jaxfix.methods.neuron.mode:METHOD',
})

NAMES = tuple(_METHODS)


def get(name: str) -> Method:
  """The registered approach `name`.

  Raises:
    UnknownNameError: there is none of that name.
  """
  if name not in _METHODS:
    raise UnknownNameError('method', name, _METHODS)
  module, attribute = _METHODS[name].split(':')
  return getattr(importlib.import_module(module), attribute)
