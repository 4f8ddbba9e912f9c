"""The plans of `launch.study`, one a file, each with one `PLAN`."""
import importlib

from jaxfix.errors import BadInputError, JaxfixError, UnknownNameError, require
from jaxfix.study.plan import Plan

NAMES = ('digits', 'mnist', 'cifar10', 'utkface', 'cifar10s', 'imagenet', 'full')


def load(name: str) -> Plan:
  """The plan of that name, or of a module of the user's, given by its dotted name.

  Raises:
    UnknownNameError: neither.
    BadInputError: the module defines no `PLAN`.
  """
  if name not in NAMES and '.' not in name:
    raise UnknownNameError('plan', name, NAMES)
  try:
    module = importlib.import_module(f'launch.configs.{name}' if name in NAMES else name)
  except JaxfixError:
    raise
  except Exception as e:   # whatever a user's module does
    raise BadInputError(f'Plan {name!r} cannot be imported ({type(e).__name__}: {e}). Give one of {", ".join(NAMES)}, '
                        'or the dotted name of a module on PYTHONPATH.') from e
  plan = getattr(module, 'PLAN', None)
  require(isinstance(plan, Plan), f'{name} must define PLAN, a jaxfix.study.plan.Plan.')
  return plan
