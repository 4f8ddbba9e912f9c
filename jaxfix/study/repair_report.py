"""One page that shows what repairs did: a function of the records, traces and predictions on disk, and test data."""
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from jaxfix import history
from jaxfix.files import write_text
from jaxfix.problem import Split, Subject
from jaxfix.study import figures, summary
from jaxfix.study.job import Result
from jaxfix.study.traces import selected_entries

_PICTURES = 12


def write(path: str | os.PathLike, subject: Subject, results: Sequence[Result],
          original: str | os.PathLike | None = None) -> pathlib.Path:
  """Writes the page, atomically; it needs no network and no other file.

  Args:
    path: of the HTML file.
    subject: with its test split, for the pictures.
    results: of the approaches, in the order in which they are shown.
    original: folder of the original's training run, for its curves, if there is one.
  Returns:
    `path`.
  """
  path = pathlib.Path(path)
  write_text(path, render(subject, results, history.load_curves(original) if original else []))
  return path


def render(subject: Subject, results: Sequence[Result], training: Sequence[Mapping[str, float]] = ()) -> str:
  """The page as text; the same arguments give the same bytes."""
  environment = jinja2.Environment(loader=jinja2.PackageLoader('jaxfix.study'), autoescape=True, trim_blocks=True,
                                   lstrip_blocks=True, undefined=jinja2.StrictUndefined)
  environment.filters['percent'] = summary.percent
  measured = [r.row for r in results if r.row['counts'] is not None]
  page = environment.get_template('repair.html')
  return page.render(
    subject=subject, rows=[r.row for r in results], columns=summary.COLUMNS, cells=summary.result_cells,
    training=_training(training), flips=figures.flips(measured) if measured else '',
    sections=[_section(subject, r) for r in results], first=results[0].row if results else None)


def _training(curves: Sequence[Mapping[str, float]]) -> str:
  if not curves:
    return ''
  names = [n for n in ('loss', 'train_accuracy', 'valid_accuracy') if curves[0].get(n) is not None]
  return figures.curves({n: np.array([c[n] for c in curves]) for n in names}, 'epoch', 1)


def _section(subject: Subject, result: Result) -> dict[str, Any]:
  """What the page says about one approach."""
  row, trace = result.row, result.trace
  lines = {k: np.asarray(v) for k, v in trace['curves'].items() if v}
  section = {'row': row, 'trace': trace,
             'curves': figures.curves(lines, 'step', 0, selected_entries(trace)) if lines else '',
             'confusion': '', 'fixed': [], 'broken': [], 'num_fixed': 0, 'num_broken': 0}
  if result.labels_before is None:
    return section
  test, before, after = subject.test, result.labels_before, result.labels_after
  fixed = np.flatnonzero((before != test.y) & (after == test.y))
  broken = np.flatnonzero((before == test.y) & (after != test.y))
  section |= {
    'confusion': figures.confusion_change(test.y, before.astype(int), after.astype(int), subject.class_names),
    'fixed': _samples(subject, test, before, after, fixed), 'num_fixed': len(fixed),
    'broken': _samples(subject, test, before, after, broken), 'num_broken': len(broken)}
  return section


def _samples(subject: Subject, test: Split, before: np.ndarray, after: np.ndarray, rows: np.ndarray
             ) -> list[dict[str, Any]]:
  """The first few samples with their labels, and their pictures where they are images that may be shown."""
  name = lambda label: subject.class_names[label] if label >= 0 else 'not finite'
  chosen = rows[:_PICTURES]
  if len(chosen) == 0:
    return []
  shown = test.take(chosen)
  has_pictures = np.ndim(shown.x) == 4 and shown.x.shape[-1] in (1, 3) and not subject.shows_people
  return [{'picture': figures.picture(np.asarray(shown.x[i])) if has_pictures else '', 'index': int(row),
           'label': name(test.y[row]), 'before': name(before[row]), 'after': name(after[row])}
          for i, row in enumerate(chosen)]
