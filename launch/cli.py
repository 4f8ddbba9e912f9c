"""What every launcher shares: one line and exit code 2 for a user's mistake, and a log."""
import pathlib
import sys
from collections.abc import Callable, Sequence

from absl import app, flags
from absl import logging as absl_logging
from rich.console import Console

from jaxfix.errors import JaxfixError


def _parse_flags(argv: Sequence[str]) -> list[str]:
  try:
    return flags.FLAGS(list(argv))
  except flags.Error as e:
    sys.exit(_refuse(f'{e} (--help lists the flags)'))


def _refuse(message: str) -> int:
  print(f'error: {" ".join(str(message).split())}', file=sys.stderr)
  return 2


def run(main: Callable[..., int | None], arguments: Sequence[str] = ()) -> None:
  """Runs `main()` under absl and exits: 0 or what it returns; 2 with one line for a `JaxfixError` or a bad flag; 130
  when interrupted. Any other exception is a defect and keeps its traceback.

  Args:
    main: of the program.
    arguments: names of what must follow the options' name=value, handed to `main` in this order.
  """

  def guarded(argv: Sequence[str]) -> int | None:
    if len(argv) > 1 + len(arguments):
      return _refuse(f'unexpected argument {argv[1 + len(arguments)]!r}; options are written --name=value')
    if len(argv) < 1 + len(arguments):
      return _refuse(f'missing argument: {" ".join(arguments)}')
    absl_logging.set_verbosity(absl_logging.WARNING)   # libraries announce themselves at INFO
    try:
      return main(*argv[1:])
    except JaxfixError as e:
      return _refuse(e)
    except KeyboardInterrupt:
      print('interrupted; run the same command again to continue', file=sys.stderr)
      return 130

  app.run(guarded, flags_parser=_parse_flags)


def console() -> Console:
  """Where progress and tables go: the terminal, at least 100 columns wide when it is a file or a pipe.

  Text is printed as it is: reasons and names may hold what would be Rich's markup, like '[/tmp/x]' or ':key:'.
  """
  plain = {'markup': False, 'emoji': False}
  out = Console(**plain)
  return out if out.is_terminal else Console(width=max(out.width, 120), **plain)


def settings(assignments: Sequence[str], flag: str = 'set') -> dict[str, str]:
  """`['a=1', 'm.b=2']` as `{'a': '1', 'm.b': '2'}`.

  Raises:
    JaxfixError: an item has no '='.
  """
  result = {}
  for item in assignments:
    name, equals, value = item.partition('=')
    if not equals or not name:
      raise JaxfixError(f'--{flag} takes name=value, got {item!r}.')
    result[name.strip()] = value.strip()
  return result


def exists(path: str | None) -> bool:
  """Whether a path was given and is there."""
  return bool(path) and pathlib.Path(path).exists()
