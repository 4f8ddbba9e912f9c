"""T9: the original and the repaired model combined, repeat by repeat.

Decided here: a repeat without a figure is a dash in its place, with the reason; an outcome stands only where no repeat
has figures.
"""
import collections
from collections.abc import Mapping, Sequence
from typing import Any

from jaxfix.study.aggregate import approach_rank, subject_rank, title
from jaxfix.study.published import Published
from jaxfix.study.store import Results, newest
from jaxfix.study.table import Cell, Table

METHODS = {'none': 'NO', 'sv': 'SV', 'hv': 'HV', 'up': 'UP', 'ud': 'UD', 'us': 'US', 'us_cal': 'US-cal', 'us_k': 'US-k'}
"""Post-processing as rows name it -> as the study does; the last two are not the study's."""
_METRICS = {'acc': 'ACC [%]', 'asr': 'ASR [%]', 'aaod': 'AAOD', 'nfr': 'NFR [%]'}
_ASR_LEVELS = ('Levels of ASR are not comparable with the published ones: number and choice of the attacked inputs and '
               'the output under attack differ.')
_PUBLISHED = ('AP', 'UTKFace')   # the only pair whose results the study prints


def postprocessing(results: Results, published: Published | None) -> list[Table]:
  """The table; nothing where no repair was combined with its original."""
  pairs = collections.defaultdict(lambda: collections.defaultdict(dict))
  codes = {row['approach']: row for row in results.rows if row['postprocess'] == 'none'}
  for row in newest(results.rows):
    pairs[row['approach'], row['subject']][row['postprocess']][row['seed']] = row
  pairs = {pair: methods for pair, methods in pairs.items() if set(methods) - {'none'}}
  rows, rules = [], []
  for pair in sorted(pairs, key=lambda pair: _place(pairs[pair], codes.get(pair[0]))):
    rules.append(len(rows))
    for method in sorted(pairs[pair], key=lambda m: (list(METHODS).index(m) if m in METHODS else len(METHODS), m)):
      by_seed = pairs[pair][method]
      rows.append(_row([by_seed[seed] for seed in sorted(by_seed)], METHODS.get(method, method), published))
  if not rows:
    return []
  notes = ['NO: the repaired model alone. SV, HV: soft and hard voting; UP, UD, US: uncertainty alignment by '
           'perturbation, dropout and temperature; US-cal, US-k: two more readings of US. None sees test '
           'labels.',
           'One figure a repeat, in the order of seeds. Everything is measured against the original model; the attack '
           'goes through the combination.']
  sizes = sorted({row['asr_n'] for row in results.rows
                  if row['asr'] is not None and (row['approach'], row['subject']) in pairs})
  if sizes:
    number = ' to '.join(f'{n:,}' for n in dict.fromkeys((sizes[0], sizes[-1])))
    notes.append(f'ASR is over {number} inputs that the original and the model or combination of this seed get right; '
                 'the study takes those that all its repeats get right, too. So two methods, or seeds, are attacked on '
                 'other inputs.')
  if any(cell.published for row in rows for cell in row):
    notes.append('Second figures are published: read off a box plot by eye, in ascending order.')
  if any(row[3].published for row in rows if len(row) > 3):
    notes.append(_ASR_LEVELS)
  return [Table('T9', 'Post-processing: the original and the repaired model combined',
                ('Approach on subject', 'method', *_METRICS.values()), tuple(rows), tuple(rules[1:]), tuple(notes))]


def _place(methods: Mapping[str, Mapping[int, Mapping[str, Any]]], repair: Mapping[str, Any] | None) -> tuple:
  row = next(iter(next(iter(methods.values())).values()))
  return (approach_rank(row['approach_code'], (repair or row)['category'], row['approach']),
          subject_rank(row['published_subject'], row['subject']))


def _row(repeats: Sequence[Mapping[str, Any]], method: str, published: Published | None) -> tuple[Cell, ...]:
  first = repeats[0]
  pair = first['approach_code'], first['published_subject']
  header = Cell(f'{first["approach_code"] or title(first["approach"], "")} on {pair[1] or first["subject"]}')
  printed = {m: _text(m, published.postprocessing[m, method]) if published and pair == _PUBLISHED
             and (m, method) in published.postprocessing else '' for m in _METRICS}
  if all(r['acc'] is None for r in repeats):
    reasons = '; '.join(dict.fromkeys(r['outcome_reason'] for r in repeats))
    word = Cell(first['outcome'], ' / '.join(filter(None, printed.values())), span=len(_METRICS), title=reasons)
    return header, Cell(method), word
  cells = []
  for metric in _METRICS:
    values = [r[metric] for r in repeats if r[metric] is not None]
    missing = [f'seed {r["seed"]}: ' + ('not measured' if r['acc'] is not None else f'{r["outcome"]}, '
               f'{r["outcome_reason"]}') for r in repeats if r[metric] is None]
    cells.append(Cell(_text(metric, [r[metric] for r in repeats]), printed[metric], sort=sum(values) / len(values),
                      title='; '.join(missing)) if values else Cell('', printed[metric]))
  return header, Cell(method), *cells


def _text(metric: str, values: Sequence[float | None]) -> str:
  return ' '.join('-' if x is None else f'{x:.4f}' if metric == 'aaod' else f'{100 * x:.2f}' for x in values)
