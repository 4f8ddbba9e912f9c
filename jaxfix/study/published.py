"""The figures that the Fixing Study prints, as typed records: fractions and seconds, with the printed text beside.

Nothing here was measured by jaxfix (`published/README.md`). Keys are the study's approach code ('AP') and subject key
('MNIST'); metrics have the names of `jaxfix.study.aggregate`.

Decided here: a printed cell that breaks the accounting identity casts doubt on the three figures of the identity and
on the relative change that follows from them (acc, acc_rel, rr, nfr); one whose relative change contradicts its
accuracy, on acc and acc_rel. `Cell.doubtful` lists them.
"""
import csv
import dataclasses
import functools
import importlib.resources
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxfix.errors import CorruptFileError, DataNotFoundError

REPEATS = 3
"""Repeats behind every mean and (population) std."""

_IDENTITY = frozenset(('acc', 'acc_rel', 'rr', 'nfr'))
_RELATIVE = frozenset(('acc', 'acc_rel'))


@dataclasses.dataclass(frozen=True)
class Figure:
  """A printed figure.

  Attributes:
    mean: fraction, or seconds.
    std: population std over `REPEATS` repeats; NaN if not printed or not applicable.
    text: as printed, in percent where the table is: '98.63±0.066', '13h46m'.
  """
  mean: float
  std: float
  text: str


@dataclasses.dataclass(frozen=True)
class Cell:
  """One approach on one subject. `values`: metric -> figure, without those that are not printed."""
  approach: str
  dataset: str
  outcome: str
  values: Mapping[str, Figure]
  doubtful: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class PublishedSubject:
  """One row of the study's Table 2. `orig_accuracy` is a fraction; `text` has every column as printed."""
  dataset: str
  model: str
  n_layers: int
  n_classes: int
  orig_accuracy: float
  n_train: int
  n_valid: int
  n_repair: int
  n_test: int
  epsilon: float
  text: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Approach:
  """An approach of the study: 'Apricot', 'model'."""
  code: str
  title: str
  category: str


@dataclasses.dataclass(frozen=True)
class Published:
  """All tables.

  Attributes:
    subjects: dataset -> Table 2, in the study's order.
    approaches: code -> approach, in the study's order.
    cells: (code, dataset) -> Tables 3, 5 and 6.
    letters: code -> metric ('acc', 'rr', 'asr', 'aaod', 'nfr', 'time') -> letters, '' where the table has '-'.
    postprocessing: (metric, method) -> three repeats, ascending, fractions; method 'NO', 'SV', ...; Apricot on UTKFace.
    text_averages: (category, metric) -> averages that the study's text quotes, fractions; may be empty.
  """
  subjects: Mapping[str, PublishedSubject]
  approaches: Mapping[str, Approach]
  cells: Mapping[tuple[str, str], Cell]
  letters: Mapping[str, Mapping[str, str]]
  postprocessing: Mapping[tuple[str, str], tuple[float, ...]]
  text_averages: Mapping[tuple[str, str], float]

  def figure(self, code: str, dataset: str, metric: str) -> Figure | None:
    """The printed figure, or None."""
    cell = self.cells.get((code, dataset))
    return cell.values.get(metric) if cell else None

  def outcome(self, code: str, dataset: str) -> str:
    """'OK', ..., or '' for a pair that the study does not have."""
    cell = self.cells.get((code, dataset))
    return cell.outcome if cell else ''

  def doubtful(self, code: str, dataset: str, metric: str) -> bool:
    """Whether the printed figure contradicts others of the same paper."""
    cell = self.cells.get((code, dataset))
    return bool(cell) and metric in cell.doubtful


def load(folder: str | os.PathLike | None = None) -> Published:
  """Reads all tables.

  Args:
    folder: with files of the names and columns of the package's; None for the package's own. `study_text_averages.csv`
      may be absent.
  Raises:
    DataNotFoundError: a file is missing.
    CorruptFileError: a file lacks a column, a row has too few or too many cells, or a figure is no number.
  """
  return _packaged() if folder is None else _load(pathlib.Path(folder))


@functools.cache
def _packaged() -> Published:
  return _load(importlib.resources.files('jaxfix.study') / 'published')


def _load(folder: Any) -> Published:
  read = lambda name: _read(folder / f'{name}.csv')
  try:
    effectiveness = read('study_table3_effectiveness')
    return Published(
      subjects={row['dataset']: _subject(row) for row in read('study_table2_subjects')},
      approaches={row['approach']: Approach(row['approach'], row['approach_name'], row['category'])
                  for row in effectiveness},
      cells=_cells(effectiveness, read('study_table5_properties'), read('study_table6_time'),
                   read('study_cell_flags')),
      letters={row['approach']: {m: row[m] for m in ('acc', 'rr', 'asr', 'aaod', 'nfr', 'time')}
               for row in read('study_table4_groups')},
      postprocessing={(_short(row['metric']), row['method']): _repeats(row)
                      for row in read('study_figure1_postprocessing')},
      text_averages=_text_averages(folder / 'study_text_averages.csv'))
  except KeyError as e:
    raise CorruptFileError(f'{folder}: a table of published figures lacks {e}.') from e
  except ValueError as e:
    raise CorruptFileError(f'{folder}: a published figure cannot be read: {e}.') from e


def _read(path: Any) -> list[dict[str, str]]:
  try:
    rows = list(csv.DictReader(path.read_text(encoding='utf-8').splitlines()))
  except OSError as e:
    raise DataNotFoundError(f'No published figures {path.name} in {path.parent}.') from e
  for number, row in enumerate(rows, start=1):   # the reader fills short lines, and files what is too much, with None
    if None in row or None in row.values():
      raise CorruptFileError(f'{path}: row {number} does not have as many cells as there are columns.')
  return rows


def _subject(row: Mapping[str, str]) -> PublishedSubject:
  sizes = {k: int(row[k]) for k in ('n_layers', 'n_classes', 'n_train', 'n_valid', 'n_repair', 'n_test')}
  return PublishedSubject(dataset=row['dataset'], model=row['model'], orig_accuracy=_fraction(row['orig_accuracy']),
                          epsilon=float(row['pgd_epsilon']), text=dict(row), **sizes)


def _cells(effectiveness: list, properties: list, times: list, flags: list) -> dict[tuple[str, str], Cell]:
  by_cell = lambda rows: {(row['approach'], row['dataset']): row for row in rows}
  properties, times, flags = by_cell(properties), by_cell(times), by_cell(flags)
  cells = {}
  for row in effectiveness:
    key = row['approach'], row['dataset']
    more, time, flag = properties[key], times[key], flags.get(key, {})
    values = {
      'acc': _mean_std(row, 'acc'), 'acc_rel': _single(row['acc_rel']), 'rr': _mean_std(row, 'rr'),
      'asr': _mean_std(more, 'asr'), 'asr_rel': _single(more['asr_rel']),
      'aaod': _mean_std(more, 'aaod', scale=1.), 'aaod_rel': _single(more['aaod_rel']), 'nfr': _mean_std(more, 'nfr'),
      'seconds': Figure(float(time['seconds']), math.nan, time['published_text']) if time['seconds'] else None}
    doubtful = frozenset().union(_IDENTITY if flag.get('identity_violated') == '1' else (),
                                 _RELATIVE if flag.get('acc_rel_inconsistent') == '1' else ())
    cells[key] = Cell(*key, row['outcome'], {k: v for k, v in values.items() if v}, doubtful)
  return cells


def _mean_std(row: Mapping[str, str], name: str, scale: float = 100.) -> Figure | None:
  mean, std = row[f'{name}_mean'], row[f'{name}_std']
  if not mean:
    return None
  return Figure(float(mean) / scale, float(std) / scale if std else math.nan, f'{mean}±{std}' if std else mean)


def _single(text: str) -> Figure | None:
  return Figure(float(text) / 100, math.nan, text) if text else None


def _fraction(percent: str) -> float:
  return float(percent) / 100


def _short(metric: str) -> str:
  return {'accuracy': 'acc'}.get(metric, metric)


def _repeats(row: Mapping[str, str]) -> tuple[float, ...]:
  scale = 100. if row['metric'] in ('accuracy', 'nfr') else 1.
  return tuple(float(row[k]) / scale for k in ('repeat_low', 'repeat_mid', 'repeat_high'))


def _text_averages(path: Any) -> dict[tuple[str, str], float]:
  if not path.is_file():
    return {}
  return {(row['category'], metric): _fraction(row[metric]) for row in _read(path)
          for metric in ('acc_rel', 'rr', 'nfr')}
