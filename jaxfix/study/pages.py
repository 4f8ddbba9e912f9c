"""What a report says about a single approach: its settings, what it changed and what that did, subject by subject."""
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxfix.study.aggregate import Summary
from jaxfix.study.store import Results
from jaxfix.study.table import Cell, Table

_MOST_NOTES = 8
_AVERAGED = ('n_failures', 'n_test', 'rr_repair', 'nfr_repair', 'n_params_changed', 'n_params', 'l2_change',
             'linf_change')


@dataclasses.dataclass(frozen=True)
class Page:
  """One approach.

  Attributes:
    approach, title: registry key, heading.
    lines: outcomes and reasons.
    tables: flips and edits, settings.
    notes: what the method remarked, each once.
  """
  approach: str
  title: str
  lines: tuple[str, ...]
  tables: tuple[Table, ...]
  notes: tuple[str, ...]


def pages(results: Results, summaries: Sequence[Summary]) -> tuple[Page, ...]:
  """A page an approach, in the order of the summaries."""
  return tuple(_page(results, [s for s in summaries if s.approach == name])
               for name in dict.fromkeys(s.approach for s in summaries))


def _page(results: Results, summaries: Sequence[Summary]) -> Page:
  first = summaries[0]
  rows = [r for r in results.rows if r['approach'] == first.approach and r['postprocess'] == 'none']
  traces = {r['run_id']: results.trace(r['run_id']) or {} for r in rows}
  reasons = {s.subject: '; '.join(dict.fromkeys(filter(None, s.reasons))) for s in summaries}
  lines = [f'{s.subject}: {s.outcome}' + (f' ({reasons[s.subject]})' if reasons[s.subject] else '')
           for s in summaries if s.outcome != 'OK' or reasons[s.subject]]
  notes = dict.fromkeys(f'{r["subject"]}, seed {r["seed"]}: {note}' for r in rows
                        for note in traces[r['run_id']].get('notes', ()))
  more = len(notes) - _MOST_NOTES
  shown = list(notes)[:_MOST_NOTES] + ([f'... and {more} more, in the traces of the store'] if more > 0 else [])
  name = first.title if first.key in (first.title, first.approach) else f'{first.key} {first.title}'
  tables = [_edits(first, summaries, rows, traces), _settings(first, rows)]
  return Page(first.approach, f'{name} ({first.category} level)', tuple(lines),
              tuple(t for t in tables if t is not None), tuple(shown))


def _edits(first: Summary, summaries: Sequence[Summary], rows: Sequence[Mapping[str, Any]],
           traces: Mapping[str, Mapping[str, Any]]) -> Table | None:
  """Means over seeds of what was changed and what flipped."""
  lines = []
  for s in summaries:
    done = [r for r in rows if r['subject'] == s.subject and r['counts']]
    if not done:
      continue
    mean = {name: _mean([r[name] for r in done]) for name in _AVERAGED}
    count = {name: _mean([r['counts'][name] for r in done]) for name in ('fixed', 'broken')}
    edits = _mean([traces[r['run_id']].get('edits') for r in done])
    lines.append((
      Cell(s.subject), _number(len(done)), _number(count['fixed'], 1), _number(mean['n_failures']),
      _number(count['broken'], 1), _number(mean['n_test']), _number(
        100 * (count['fixed'] - count['broken']) / mean['n_test'], 2, sign='+'),
      _number(100 * mean['rr_repair'], 2), _number(100 * mean['nfr_repair'], 2), _number(edits, 1),
      _number(mean['n_params_changed']), _number(mean['n_params']), _short(mean['l2_change']),
      _short(mean['linf_change']), Cell(', '.join(f'{phase} {value:.3g}' for phase, value in _phases(done).items()))))
  if not lines:
    return None
  return Table(
    f'flips.{first.approach}', f'{first.key}: what flipped and what was changed, means over seeds.',
    ('subject', 'runs', 'fixed', 'of failures', 'broken', 'of samples', 'net flips, points', 'RR on repair split, %',
     'NFR on repair split, %', 'weights chosen', 'weights changed', 'of weights', 'L2 change', 'largest change',
     'seconds by phase'), tuple(lines),
    notes=('A dash: the approach does not choose single weights, or its result has another architecture.',))


def _phases(done: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  names = dict.fromkeys(name for r in done for name in r['phase_seconds'])
  return {name: float(np.mean([r['phase_seconds'].get(name, 0.) for r in done])) for name in names}


def _settings(first: Summary, rows: Sequence[Mapping[str, Any]]) -> Table | None:
  """The resolved options; a column a subject only where two differ."""
  by_subject: dict[str, dict[str, list[str]]] = {}
  for r in rows:
    for option, value in r['config'].items():
      found = by_subject.setdefault(r['subject'], {}).setdefault(option, [])
      if (text := json.dumps(value, sort_keys=True)) not in found:
        found.append(text)
  options = dict.fromkeys(o for found in by_subject.values() for o in found)
  if not options:
    return None
  text = lambda subject, option: ' or '.join(by_subject[subject].get(option, ['-']))
  same = all(len({text(s, o) for s in by_subject}) == 1 for o in options)
  columns = ['all subjects'] if same else list(by_subject)
  sources = [next(iter(by_subject))] if same else columns
  return Table(f'settings.{first.approach}', f'{first.key}: resolved settings.', ('option', *columns),
               tuple((Cell(o), *(Cell(text(s, o)) for s in sources)) for o in options))


def _mean(values: Sequence[float | None]) -> float:
  present = [v for v in values if v is not None]
  return float(np.mean(present)) if present else math.nan


def _number(value: float, places: int = 0, sign: str = '') -> Cell:
  return Cell('-') if math.isnan(value) else Cell(f'{value:{sign},.{places}f}', sort=float(value))


def _short(value: float) -> Cell:
  return Cell('-') if math.isnan(value) else Cell(f'{value:.3g}', sort=value)
