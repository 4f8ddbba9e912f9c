"""In what a report's study differs from the published one: 'study setting | this report', from the rows.

Decided here: settings of the study that its tables do not hold (repeats, attacked inputs, hardware, test) are stated
here as its paper and code have them. What an attack is computed on is not in the rows: it is the default of the code
that writes the report, and the line says so. An approach whose options are not the defaults of its method is listed
with what differs; most defaults are published, some are ours.
"""
import collections
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from jaxfix import methods
from jaxfix.errors import UnknownNameError
from jaxfix.evaluate import ATTACK_SIZE, PGD
from jaxfix.files import jsonable
from jaxfix.methods.method import describe_config
from jaxfix.study.aggregate import ORDER, Summary, significance, summarize
from jaxfix.study.published import REPEATS, Published, PublishedSubject
from jaxfix.study.store import Results
from jaxfix.study.table import Cell, Table

_SPLITS = ('train', 'valid', 'repair', 'test')
_LIMITS = ('time_limit', 'memory_limit')


@dataclasses.dataclass(frozen=True)
class Deviation:
  """One setting; `differs` says whether the two are not the same."""
  setting: str
  study: str
  report: str
  differs: bool


def deviations(results: Results, published: Published | None) -> tuple[Deviation, ...]:
  """All settings that a reader must know to compare, in the order of the table."""
  rows = [row for row in results.rows if row['postprocess'] == 'none']
  if not rows:
    return ()
  summaries = summarize(rows)
  loaded = [row for row in rows if row['original_sha256'] is not None]   # other rows lack the subject's facts
  first = {row['subject']: row for row in (*reversed(rows), *reversed(loaded))}
  by_subject = [d for name in dict.fromkeys(s.subject for s in summaries)
                for d in _subject(first[name], rows, published)]
  return (*by_subject, _approaches(summaries), _seeds(rows), _attacked(rows), _attack_output(), _limits(rows),
          _test(summaries), _hardware(rows), *_options(rows))


def deviations_table(results: Results, published: Published | None) -> Table:
  """The settings as a table; those that differ first."""
  found = sorted(deviations(results, published), key=lambda d: not d.differs)
  return Table('settings', 'Settings: the study and this report', ('Setting', 'study', 'this report', 'differs'),
               tuple((Cell(d.setting), Cell(d.study), Cell(d.report), Cell('yes' if d.differs else 'no'))
                     for d in found),
               rules=tuple(i for i in range(1, len(found)) if found[i].differs != found[i - 1].differs))


def _subject(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], published: Published | None) -> list[Deviation]:
  """Size, data and attack radius of one subject."""
  name, known = row['subject'], published.subjects.get(row['published_subject']) if published else None
  sizes = ' + '.join('-' if (n := row[f'n_{split}']) is None else f'{n:,}' for split in _SPLITS)
  source = row['dataset_source'] or '-'
  attacked = next((r for r in rows if r['subject'] == name and r['asr_eps'] is not None), None)
  eps = f'{attacked["asr_eps"]:g}, {attacked["asr_eps_space"]} space' if attacked else 'no attack'
  if known is None:
    standin = f'stand-in, data {source}, sizes {sizes}'
    return [Deviation(f'{name}: subject', 'no counterpart', standin, True),
            Deviation(f'{name}: attack radius', 'no counterpart', eps, True)]
  text = ' + '.join(f'{getattr(known, f"n_{split}"):,}' for split in _SPLITS)
  same_eps = attacked is not None and attacked['asr_eps'] == known.epsilon and attacked['asr_eps_space'] == 'normalized'
  return [
    Deviation(f'{name}: train + valid + repair + test', text, sizes, not _same_sizes(row, known)),
    Deviation(f'{name}: data', known.dataset, source, source == '-' or source.startswith('synthetic')),
    Deviation(f'{name}: attack radius', f'{known.epsilon:g}, normalized space', eps, not same_eps)]


def _same_sizes(row: Mapping[str, Any], known: PublishedSubject) -> bool:
  return all(row[f'n_{split}'] == getattr(known, f'n_{split}') for split in _SPLITS)


def _approaches(summaries: Sequence[Summary]) -> Deviation:
  present = {s.code for s in summaries}
  missing = [code for code in ORDER if code not in present]
  further = list(dict.fromkeys(s.approach for s in summaries if s.code not in ORDER))
  text = f'{len(ORDER) - len(missing)} of {len(ORDER)}'
  text += f'; not run: {", ".join(missing)}' if missing else ''
  text += f'; further: {", ".join(further)}' if further else ''
  return Deviation('approaches', f'{len(ORDER)}', text, bool(missing or further))


def _seeds(rows: Sequence[Mapping[str, Any]]) -> Deviation:
  seeds = collections.defaultdict(set)
  for row in rows:
    seeds[row['approach'], row['subject']].add(row['seed'])
  counts = sorted({len(found) for found in seeds.values()})
  text = ' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))
  return Deviation('repeats', str(REPEATS), text, counts != [REPEATS])


def _attacked(rows: Sequence[Mapping[str, Any]]) -> Deviation:
  study = f'{ATTACK_SIZE} test inputs that the original and all {REPEATS} repeats get right'
  sizes = sorted({r['asr_n'] for r in rows if r['asr_n'] is not None})
  if not sizes:
    return Deviation('attacked inputs', study, 'no attack', True)
  text = ' to '.join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))
  return Deviation('attacked inputs', study, f'{text} test inputs that the original and this repeat get right', True)


def _attack_output() -> Deviation:
  ours = PGD(0.).attack_output
  return Deviation('attack on', 'model output; Keras models end in softmax, taken as logits',
                   f'{ours}: the default of this generator, not recorded in the rows', True)


def _limits(rows: Sequence[Mapping[str, Any]]) -> Deviation:
  """A limit is a FAILURE whose reason begins with its name."""
  hit = {limit: sum(r['outcome'] == 'FAILURE' and limit in r['outcome_reason'] for r in rows) for limit in _LIMITS}
  text = ', '.join(f'{n} run{"" if n == 1 else "s"} stopped by {limit}' for limit, n in hit.items() if n)
  return Deviation('limits', 'not stated', text or 'no run was stopped by a limit', bool(text))


def _test(summaries: Sequence[Summary]) -> Deviation:
  found = significance(summaries)['rr']
  return Deviation(
    'significance', 't-tests at 0.05, Benjamini-Hochberg; samples and kind of test not stated',
    f'unit {found.unit}, {found.test.title()} t-test at {found.alpha:g}, Benjamini-Hochberg', True)


def _hardware(rows: Sequence[Mapping[str, Any]]) -> Deviation:
  devices = sorted({f'{r["device_count"]} {r["device_kind"]}, {r["host_cpu"]}' for r in rows if r['device_kind']})
  return Deviation('hardware, for times', 'two RTX 3090, Xeon Gold 6326', '; '.join(devices) or '-', True)


def _options(rows: Sequence[Mapping[str, Any]]) -> list[Deviation]:
  """Options of an approach, per subject, that are not its defaults."""
  found = {}
  for row in rows:
    default = _defaults(row['approach'])
    changed = [f'{k} = {_short(v)} ({_short(default[k])})' for k, v in sorted(row['config'].items())
               if k in default and v != default[k]]
    if changed:
      found.setdefault((row['approach'], ', '.join(changed)), []).append(row['subject'])
  return [Deviation(f'options of {approach}', 'method defaults, in parentheses',
                    f'{changed} on {", ".join(dict.fromkeys(where))}', True)
          for (approach, changed), where in sorted(found.items())]


@functools.cache
def _defaults(approach: str) -> dict[str, Any]:
  try:
    return jsonable(describe_config(methods.get(approach).config))
  except UnknownNameError:
    return {}


def _short(value: Any) -> str:
  text = f'{value:g}' if isinstance(value, float) else str(value)
  return text if len(text) <= 40 else f'{text[:37]}...'
