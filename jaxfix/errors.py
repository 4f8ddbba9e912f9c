"""Every error that a user can cause or meet. A message says what is wrong, where, and what to do.

Launchers print the message of a `JaxfixError` as one line and exit with code 2; anything else is a defect of ours
and keeps its traceback.
"""
import difflib
from collections.abc import Iterable


class JaxfixError(Exception):
  """Base of all errors below."""


class BadInputError(JaxfixError, ValueError):
  """An argument, array or option has the wrong shape, type, range, or holds NaN or infinity."""


class UnknownNameError(JaxfixError, LookupError):
  """A name that is in no registry; the message names the nearest one that is."""

  def __init__(self, kind: str, name: str, known: Iterable[str]):
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    super().__init__(f'Unknown {kind} {name!r}.{hint} Known: {", ".join(known)}.')


class DataNotFoundError(JaxfixError, FileNotFoundError):
  """A data set or file is not where it was looked for; the message says where, and what would fetch it."""

  __str__ = Exception.__str__  # OSError would print its errno fields


class CorruptFileError(JaxfixError):
  """A file exists but is truncated, or its content contradicts its header."""


class UnsupportedLayerError(JaxfixError):
  """A foreign model has a layer that jaxfix cannot import; the message names the layer and its class."""


class OutputError(JaxfixError):
  """A result cannot be written where it was asked for."""


class EmptySplitError(BadInputError):
  """A split that the work needs has no samples."""


class NoFailingSamplesError(JaxfixError):
  """The classifier is right on every sample of the split that the failures come from: nothing to repair."""


class Unadaptable(JaxfixError):  # noqa: N818 (the study's word for the outcome)
  """The problem lacks what a method needs (structure, history, ...). Raised before any work; `reason` is one line."""

  def __init__(self, reason: str):
    super().__init__(reason)
    self.reason = reason


class RepairFailure(JaxfixError):  # noqa: N818 (the study's word for the outcome)
  """A method started and could not finish: nothing localized, non-finite weights, a limit reached."""


class InfeasibleError(RepairFailure):
  """An optimization problem that a repair rests on has no solution."""


class SolverLimitError(RepairFailure):
  """A solver stopped at a time, iteration or memory limit, or lost numerical accuracy, before it had an answer."""


def require(condition: bool, message: str, error: type[JaxfixError] = BadInputError) -> None:
  """Raises `error(message)` unless `condition` holds. For input; `assert` is for our own mistakes."""
  if not condition:
    raise error(message)
