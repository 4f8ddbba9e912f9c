"""A user's class importance and risk levels, from a JSON file.

  {"general_misclassifications": ["person", "car"],
   "target_misclassifications": {"person": ["rider"], "car": ["truck", "bus"]},
   "weights_precisions": {"person": 3, "car": 2, "rider": 1},
   "weights_misclassifications": {"person": 3, "car,truck": 2}}

A class is given by its name or its number; a mistake as "true,predicted". `weights_precisions` must be there. Without
`target_misclassifications` the two most frequent wrong predictions of every general class are taken, without
`weights_misclassifications` the default risks (see `ClassImportance`).

Source: the keys are those of eAI-Repair-Toolkit.
"""
import os
from collections.abc import Mapping, Sequence
from typing import Any

from jaxfix.errors import BadInputError, require
from jaxfix.files import read_json
from jaxfix.problem import ClassImportance, check_importance

_GENERAL, _TARGET = 'general_misclassifications', 'target_misclassifications'
_PRECISIONS, _RISKS = 'weights_precisions', 'weights_misclassifications'


def read(path: str | os.PathLike, class_names: Sequence[str]) -> ClassImportance:
  """The class importance in a file.

  Args:
    path: of a JSON file, see above.
    class_names: `[c]` of the data. A name goes before a number that is spelled alike.
  Raises:
    DataNotFoundError: there is no such file.
    CorruptFileError: it is not JSON.
    BadInputError: it is JSON, but says something else; the message names file and key.
  """
  content = read_json(path)
  try:
    importance = _parse(content, class_names)
    check_importance(importance, len(class_names))
  except BadInputError as e:
    raise BadInputError(f'{path}: {e}') from e
  return importance


def _parse(content: Any, names: Sequence[str]) -> ClassImportance:
  _require_type(content, dict, 'the file')
  for key in content:
    require(key in (_GENERAL, _TARGET, _PRECISIONS, _RISKS),
            f'unknown key {key!r}; known: {_GENERAL}, {_TARGET}, {_PRECISIONS}, {_RISKS}.')
  require(_PRECISIONS in content, f'{_PRECISIONS} is missing: say how much it matters that each class stays right.')
  critical = tuple(_class(c, names, _GENERAL) for c in _require_type(content.get(_GENERAL, []), list, _GENERAL))
  require(len(set(critical)) == len(critical), f'{_GENERAL} names a class twice.')
  confusions = risks = None
  if _TARGET in content:
    rows = _require_type(content[_TARGET], dict, _TARGET).items()
    confusions = tuple((_class(true, names, _TARGET), _class(predicted, names, _TARGET)) for true, those in rows
                       for predicted in _require_type(those, list, f'{_TARGET}, {true!r}'))
    require(len(set(confusions)) == len(confusions), f'{_TARGET} names a pair twice.')
  if _RISKS in content:
    risks = _weights(content[_RISKS], lambda key: _class_or_pair(key, names), _RISKS)
  precisions = _weights(content[_PRECISIONS], lambda key: _class(key, names, _PRECISIONS), _PRECISIONS)
  return ClassImportance(critical, precisions, confusions, risks)


def _weights(content: Any, parse_key, where: str) -> Mapping[Any, float]:
  weights = {}
  for text, value in _require_type(content, dict, where).items():
    key = parse_key(text)
    require(key not in weights, f'{where} names {text!r} twice.')
    require(isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300,
            f'{where}: the weight of {text!r} must be a number below 1e300, got {str(value):.30}.')
    weights[key] = float(value)
  return weights


def _class_or_pair(text: str, names: Sequence[str]) -> int | tuple[int, int]:
  """A class, or two with a comma between them; names may have commas of their own."""
  if text in names or ',' not in text:
    return _class(text, names, _RISKS)
  parts = text.split(',')
  for i in range(1, len(parts)):
    true, predicted = (_find(','.join(side).strip(), names) for side in (parts[:i], parts[i:]))
    if true is not None and predicted is not None:
      return true, predicted
  raise BadInputError(f'{_RISKS}: {text!r} is no class and no pair "true,predicted" of classes.')


def _class(value: Any, names: Sequence[str], where: str) -> int:
  found = _find(value, names)
  require(found is not None, f'{where}: {value!r} is no class; give a number from 0 to {len(names) - 1} or one of '
          f'{", ".join(names[:12])}{", ..." if len(names) > 12 else ""}.')
  return found


def _find(value: Any, names: Sequence[str]) -> int | None:
  if isinstance(value, str):
    if value in names:
      return list(names).index(value)
    value = int(value) if value.isascii() and value.isdigit() else None
  is_number = isinstance(value, int) and not isinstance(value, bool)
  return value if is_number and 0 <= value < len(names) else None


def _require_type(value: Any, kind: type, where: str) -> Any:
  wanted = {dict: 'an object {...}', list: 'a list [...]'}[kind]
  require(isinstance(value, kind), f'{where} must be {wanted}, got {type(value).__name__}.')
  return value
