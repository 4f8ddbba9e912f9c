"""What type each field of a row has (`record.FIELDS` says which there are): a row of another hand is refused when it is
read, by the name of its field, and not by whatever first stumbles over it.

Decided here: a field that the reporting spec does not call nullable may be null where a row cannot know it: what a cell
whose subject was away says of the data, the models and the device.
"""
import datetime
from collections.abc import Callable, Mapping
from typing import Any


def _is_integer(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _is_moment(value: Any) -> bool:
  try:
    return datetime.datetime.fromisoformat(value).tzinfo is not None
  except (TypeError, ValueError):
    return False


def _list_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
  return lambda value: isinstance(value, list) and all(map(kind, value))


def _object_of(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
  return lambda value: isinstance(value, Mapping) and all(map(kind, value.values()))


_TEXT, _INTEGER, _NUMBER = ('text', _is_text), ('a whole number', _is_integer), ('a number', _is_number)
_FLAG, _OBJECT = ('true or false', lambda v: isinstance(v, bool)), ('an object', lambda v: isinstance(v, Mapping))
_MOMENT = 'an ISO 8601 time with its zone', _is_moment

REQUIRED = {
  **dict.fromkeys(('schema', 'run_id', 'suite', 'approach', 'approach_code', 'category', 'postprocess', 'subject',
                   'published_subject', 'outcome', 'outcome_reason', 'config_sha256', 'dataset_source', 'git_commit',
                   'host_cpu'), _TEXT),
  'seed': _INTEGER, 'flags': ('a list of texts', _list_of(_is_text)), 'config': _OBJECT,
  'split_sha256': ('an object of texts', _object_of(_is_text)),
  'phase_seconds': ('an object of numbers', _object_of(_is_number)),
  'versions': ('an object of texts', _object_of(_is_text)),
  **dict.fromkeys(('git_dirty', 'deterministic'), _FLAG), **dict.fromkeys(('started_utc', 'ended_utc'), _MOMENT),
}
"""Field -> what it must be, in words, and whether a value is that."""
NULLABLE = {
  **dict.fromkeys(('original_sha256', 'repaired_sha256', 'asr_eps_space', 'device_kind', 'platform', 'prng_impl'),
                  _TEXT),
  **dict.fromkeys(('n_train', 'n_valid', 'n_repair', 'n_test', 'n_failures', 'n_params', 'n_params_changed', 'asr_n',
                   'peak_memory_bytes', 'device_count'), _INTEGER),
  **dict.fromkeys(('l2_change', 'linf_change', 'acc_original', 'acc', 'acc_rel', 'rr', 'nfr', 'rr_repair', 'nfr_repair',
                   'asr_original', 'asr', 'asr_rel', 'asr_eps', 'aaod_original', 'aaod', 'aaod_rel', 'repair_seconds',
                   'compile_seconds'), _NUMBER),
  **dict.fromkeys(('counts', 'corruption_acc', 'certificate'), _OBJECT),
  'root_key': ('a list of whole numbers', _list_of(_is_integer)),
}
"""The same of fields that may be null."""


def misfit(row: Mapping[str, Any]) -> str:
  """What is wrong with the first field of another type, in words; '' if none is.

  Args:
    row: with every field.
  """
  for field, (words, fits) in REQUIRED.items():
    if not fits(row[field]):
      return f'{field} must be {words}, got {row[field]!r}'
  for field, (words, fits) in NULLABLE.items():
    if row[field] is not None and not fits(row[field]):
      return f'{field} must be {words} or null, got {row[field]!r}'
  return ''
