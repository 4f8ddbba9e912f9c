"""The store of a study: rows that are only ever appended, one JSON line each, and beside them what tables cannot hold.

    STORE/results.jsonl            one row of `record.FIELDS` a line, flushed to disk before the next one is begun
    STORE/predictions/RUN_ID.npz   int16 `before`, `after`, `labels` on the test split
    STORE/traces/RUN_ID.json       curves, notes, number of edits, attack success against the radius

A row is written last, so that whoever reads it finds the rest. One process writes at a time (`Writer` holds a lock). A
killed writer leaves at most one torn line, the last one, which the next writer cuts off. Of two lines with one `run_id`
(a failure that was tried again) the later one counts.
"""
import collections
import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import types
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError, OutputError, require
from jaxfix.files import flush_folder, jsonable, read_json, replacing, write_json
from jaxfix.study import record

FILE = 'results.jsonl'
CELL = ('suite', 'subject', 'approach', 'postprocess')
"""What rows of several seeds have in common."""
_FIELDS = frozenset(field for group in record.FIELDS.values() for field in group)


@dataclasses.dataclass(frozen=True)
class Results:
  """What a store holds.

  Attributes:
    rows: checked, in an order that does not depend on which cell was finished first.
    folder: of the store; None where only the rows' file is at hand.
    left_out: rows that `newest` passed over, for a remark.
  """
  rows: tuple[dict[str, Any], ...]
  folder: pathlib.Path | None = None
  left_out: tuple[dict[str, Any], ...] = ()

  def predictions(self, run_id: str) -> dict[str, np.ndarray] | None:
    """`[n]` int16 arrays `before`, `after`, `labels` of a run, or None."""
    if self.folder is None:
      return None
    try:
      with np.load(self.folder / 'predictions' / f'{run_id}.npz', allow_pickle=False) as arrays:
        return {name: arrays[name] for name in ('before', 'after', 'labels')}
    except FileNotFoundError:
      return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
      raise CorruptFileError(f'Predictions of run {run_id} in {self.folder} are damaged ({e}); delete them.') from e

  def trace(self, run_id: str) -> dict[str, Any] | None:
    """`traces/RUN_ID.json` of a run, or None."""
    if self.folder is None:
      return None
    try:
      return read_json(self.folder / 'traces' / f'{run_id}.json')
    except DataNotFoundError:
      return None


def read(path: str | os.PathLike) -> Results:
  """Reads a store, also while another process writes it.

  Args:
    path: folder of the store, or a file of rows.
  Raises:
    DataNotFoundError: there is none.
    CorruptFileError: a line before the last one is not JSON.
    BadInputError: a row breaks the schema or its counts do not add up; the message names its line.
  """
  path = pathlib.Path(path)
  file = path / FILE if path.is_dir() else path
  try:
    text = file.read_bytes()
  except OSError as e:
    raise DataNotFoundError(f'No results in {path}: {file} cannot be read ({e.strerror}). Run launch.study first, or '
                            'give the folder that it wrote.') from e
  return Results(_in_order(_parse(text, file)), file.parent if file.name == FILE else None)


def is_tried(row: Mapping[str, Any]) -> bool:
  """Whether the subject of a cell was there to be repaired."""
  return row['original_sha256'] is not None


def age(row: Mapping[str, Any]) -> tuple[bool, str]:
  """Sort key: of several rows of one thing the largest counts.

  That a cell could not even be tried, since its subject was not there, says nothing against an earlier result.
  """
  return is_tried(row), row['ended_utc']


def newest(rows: Iterable[Mapping[str, Any]], cell: Sequence[str] = CELL) -> tuple[Mapping[str, Any], ...]:
  """The rows that count where settings or code changed.

  In a cell it is those with the settings, the original and the splits of its newest row (`age`), of every seed the
  newest: a mean over two settings is that of neither. A combination counts if the repair in it does.

  Args:
    rows: of any stores.
    cell: fields whose values make a cell.
  """
  repairs, combinations = collections.defaultdict(list), []
  place = lambda row: tuple(row[k] for k in cell if k != 'postprocess')
  for row in rows:
    if row['postprocess'] == 'none':
      repairs[place(row)].append(row)
    else:
      combinations.append(row)
  chosen = [row for found in repairs.values() for row in _newest_alike(found)]
  counted = {None, *(row['run_id'] for row in chosen)}   # None: a comparison of two given models
  by_kind = collections.defaultdict(list)
  for row in combinations:
    if place(row) not in repairs or row['config'].get('repair') in counted:
      by_kind[place(row), row['postprocess']].append(row)
  return (*chosen, *(row for found in by_kind.values() for row in _newest_alike(found)))


def _newest_alike(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
  last, seeds = max(rows, key=age), {}
  for row in sorted(rows, key=age):
    if _measured_alike(row, last):
      seeds[row['seed']] = row
  return list(seeds.values())


def _measured_alike(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
  """Same settings, original and splits."""
  if not (is_tried(row) and is_tried(other)):   # what could not be tried contradicts nothing
    return True
  # What a combination was fitted to is in its settings, and differs by seed; they follow its repair's.
  fields = ('original_sha256', 'split_sha256', *(['config_sha256'] if row['postprocess'] == 'none' else []))
  return all(row[field] == other[field] for field in fields)


def _parse(text: bytes, file: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Run id -> row, the later of two; a torn last line is passed over."""
  rows = {}
  lines = text.split(b'\n')   # the last part is what follows the last newline: nothing, or a torn line
  for number, line in enumerate(lines[:-1], start=1):
    try:
      row = json.loads(line, parse_constant=_refuse_constant)
      require(isinstance(row, dict), 'it is not an object')
    except (UnicodeDecodeError, json.JSONDecodeError, BadInputError) as e:
      raise CorruptFileError(f'{file}, line {number}, is not a row ({e}). Restore the file, or delete that line: its '
                             'cell will be run again.') from e
    if row.get('schema') == record.SCHEMA and (unknown := set(row) - _FIELDS):
      warnings.warn(f'{file}, line {number}: unknown fields {", ".join(sorted(unknown))} are passed over.')
      row = {field: value for field, value in row.items() if field in _FIELDS}
    try:
      record.check_row(row)
    except BadInputError as e:
      raise BadInputError(f'{file}, line {number}: {e}') from e
    rows[row['run_id']] = row
  return rows


def _refuse_constant(name: str) -> None:
  raise BadInputError(f'{name} is no JSON; what has no value is null, never NaN')


def _in_order(rows: Mapping[str, dict[str, Any]]) -> tuple[dict[str, Any], ...]:
  place = lambda row: (row['suite'], row['subject'], row['approach'], row['seed'], row['postprocess'] != 'none',
                       row['postprocess'], row['run_id'])
  return tuple(sorted(rows.values(), key=place))


class Writer(contextlib.AbstractContextManager):
  """The one process that appends to a store; a context manager, since it holds a lock and an open file."""

  def __init__(self, folder: str | os.PathLike):
    """Opens the store in `folder`, or makes it.

    Raises:
      OutputError: it cannot be written, or another process is writing it.
      CorruptFileError, BadInputError: see `read`.
    """
    self.folder = pathlib.Path(folder)
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      self._file = open(self.folder / FILE, 'ab+', buffering=0)   # noqa: SIM115 (closed by __exit__)
    except OSError as e:
      raise OutputError(f'Cannot write {self.folder}: {e.strerror or e}. Choose another output folder.') from e
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      self._file.seek(0)
      text = self._file.read()
      self._rows = _parse(text, self.folder / FILE)
      self._file.truncate(text.rfind(b'\n') + 1)
      flush_folder(self.folder)
    except BlockingIOError as e:
      self._file.close()
      raise OutputError(f'Another study is writing {self.folder}; wait for it, or choose another output folder.') from e
    except OSError as e:
      self._file.close()
      raise OutputError(f'Cannot lock {self.folder / FILE}: {e.strerror or e}. Choose a folder on a local disk.') from e
    except Exception:
      self._file.close()
      raise

  def __exit__(self, *exception: Any) -> None:
    self._file.close()   # which gives the lock back

  @property
  def rows(self) -> Mapping[str, Mapping[str, Any]]:
    """Run id -> row, of everything that is in the store."""
    return types.MappingProxyType(self._rows)

  def append(self, row: Mapping[str, Any], *, predictions: Mapping[str, np.ndarray] | None = None,
             trace: Mapping[str, Any] | None = None) -> None:
    """Adds a row, after what belongs to it; when this returns, all of it has been flushed to disk.

    Args:
      row: of `record.make_row`.
      predictions: `[n]` label arrays `before`, `after`, `labels`.
      trace: see the top of this file.
    Raises:
      BadInputError: the row breaks the schema.
      OutputError: it cannot be written.
    """
    record.check_row(row)
    if predictions is not None:
      with replacing(self.folder / 'predictions' / f'{row["run_id"]}.npz') as partial, open(partial, 'wb') as f:
        np.savez_compressed(f, **{k: np.asarray(v).astype(np.int16) for k, v in predictions.items()})
    if trace is not None:
      write_json(self.folder / 'traces' / f'{row["run_id"]}.json', trace)
    line = json.dumps(jsonable(dict(row)), separators=(',', ':'), allow_nan=False).encode() + b'\n'
    length = self._file.seek(0, os.SEEK_END)
    try:
      if self._file.write(line) != len(line):
        raise OSError('no space left on the device')
      os.fsync(self._file.fileno())
    except OSError as e:
      self._file.truncate(length)
      raise OutputError(f'Cannot write {self.folder / FILE}: {e.strerror or e}. Run the same command again when there '
                        'is room: what is finished is kept.') from e
    self._rows[row['run_id']] = dict(row)
