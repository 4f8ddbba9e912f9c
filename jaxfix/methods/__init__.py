"""The approaches, one a file in a folder per level, and the one literal registry of them.

An approach of your own stands in a package of yours: either the package names it as an entry point of the group
`jaxfix.methods` (`mine = "my_package.mine:METHOD"`), and it is there wherever both are installed, or `load_plugin`
takes a module that defines `METHOD` or `METHODS`. Neither its name nor its code, by which tables and published figures
know an approach, may be that of another; most have no code of the study, which is ''.
"""
import functools
import importlib
import importlib.metadata
import types
from collections.abc import Sequence

from jaxfix.errors import BadInputError, UnknownNameError, require
from jaxfix.methods.method import Method, configure, run

__all__ = ('NAMES', 'Method', 'configure', 'get', 'load_plugin', 'names', 'run')

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
"""The approaches of this package."""
ENTRY_POINTS = 'jaxfix.methods'

_plugins: dict[str, Method] = {}   # of modules that `load_plugin` was given
_loaded: dict[str, Method] = {}   # of entry points, once they were asked for


def names() -> tuple[str, ...]:
  """Everything that `get` knows: the package's own approaches, then those of others by name."""
  return NAMES + tuple(sorted(set(_plugins) | set(_entry_points())))


def get(name: str) -> Method:
  """The approach `name`.

  Raises:
    UnknownNameError: there is none of that name.
    BadInputError: the entry point of that name cannot be loaded, is no `Method` of that name, or has a code that is
      taken.
  """
  if name in _METHODS:
    module, attribute = _METHODS[name].split(':')
    return getattr(importlib.import_module(module), attribute)
  if name in _plugins:
    return _plugins[name]
  if name in _entry_points():
    return _load_entry_point(name)
  raise UnknownNameError('method', name, names())


def load_plugin(module: str) -> tuple[Method, ...]:
  """Makes the approaches of a module known by their names, in this process.

  Args:
    module: dotted name of an importable module with `METHOD`, or `METHODS`, a sequence. Importing it runs its code.
  Returns:
    Its approaches.
  Raises:
    BadInputError: it cannot be imported, defines no approach, or one whose name or code is taken.
  """
  try:
    content = importlib.import_module(module)
  except Exception as e:   # whatever its code does
    raise BadInputError(f'Plugin {module!r} cannot be imported ({type(e).__name__}: {e}). Give the dotted name of a '
                        'module that is installed or lies on PYTHONPATH.') from e
  found = tuple(getattr(content, 'METHODS', None) or filter(None, (getattr(content, 'METHOD', None),)))
  require(len(found) > 0 and all(isinstance(m, Method) for m in found),
          f'Plugin {module!r} must define METHOD or METHODS, of type jaxfix.methods.Method.')
  for method in found:
    taken = method.name in _METHODS or _plugins.get(method.name, method) is not method
    taken = taken or [m.name for m in found].count(method.name) > 1
    require(not taken, f'Plugin {module!r}: there is already an approach named {method.name!r}; rename it.')
    _check_code(method, found, f'Plugin {module!r}')
  _plugins.update({method.name: method for method in found})
  return found


def _check_code(method: Method, beside: Sequence[Method], where: str) -> None:
  """Raises `BadInputError` if another approach that is known has the code; of those installed, one that was loaded."""
  known = (*map(get, NAMES), *_plugins.values(), *_loaded.values(), *beside) if method.code else ()
  for other in known:
    require(other.name == method.name or other.code != method.code,
            f'{where}: the code {method.code!r} of approach {method.name!r} is that of {other.name!r}; give it '
            "another, or ''.")


@functools.cache
def _entry_points() -> types.MappingProxyType[str, importlib.metadata.EntryPoint]:
  """Name -> entry point of installed packages; the package's own names cannot be taken."""
  found = importlib.metadata.entry_points(group=ENTRY_POINTS)
  return types.MappingProxyType({point.name: point for point in found if point.name not in _METHODS})


def _load_entry_point(name: str) -> Method:
  if name in _loaded:
    return _loaded[name]
  point = _entry_points()[name]
  try:
    method = point.load()
  except Exception as e:   # whatever its code does
    raise BadInputError(f'Approach {name!r} ({point.value}) cannot be loaded ({type(e).__name__}: {e}). Mend or remove '
                        'its package.') from e
  require(isinstance(method, Method) and method.name == name,
          f'Entry point {name!r} ({point.value}) must be a jaxfix.methods.Method named {name!r}.')
  _check_code(method, (), f'Entry point {name!r} ({point.value})')
  _loaded[name] = method
  return method
