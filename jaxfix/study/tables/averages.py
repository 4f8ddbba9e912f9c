"""T7: averages over categories, by both rules, over what is measured, over what is also published, and as published.

The study's text quotes means over subjects of the mean over a category's approaches; that rule gives its layer and
neuron figures back from the tables, not its model-level ones, so both the recomputed and the quoted figures are shown.
"""
import math
from collections.abc import Callable, Mapping

from jaxfix.study.aggregate import CATEGORIES, Sheet, category_average, measured_sheet, published_sheet
from jaxfix.study.table import Cell, Table
from jaxfix.study.tables.view import View, percent

_METRICS = {'acc_rel': 'ACC rel. [%]', 'rr': 'RR [%]', 'asr_rel': 'ASR rel. [%]', 'aaod_rel': 'AAOD rel. [%]',
            'nfr': 'NFR [%]'}
_KINDS = {'dataset_mean': 'mean over subjects of the mean over approaches', 'cells': 'mean over cells'}


def category_averages(v: View) -> list[Table]:
  """The table; nothing where no cell is OK."""
  ours = measured_sheet(v.summaries)
  if not ours.values:
    return []
  blocks = [(f'all measured subjects, {text}', _averages(ours, kind), None) for kind, text in _KINDS.items()]
  if v.published:
    counterparts, theirs = measured_sheet(v.summaries, by='published'), published_sheet(v.published)
    common = counterparts.values.keys() & theirs.values.keys()
    if common:
      blocks += [(f'cells measured here and published, {text}', _averages(counterparts, kind, common.__contains__),
                  _averages(theirs, kind, common.__contains__)) for kind, text in _KINDS.items()]
    blocks += [(f'all published cells, {text}', None, _averages(theirs, kind)) for kind, text in _KINDS.items()]
    if v.published.text_averages:
      blocks.append(("quoted in the study's text", None, v.published.text_averages))
  rows, rules = [], []
  for scope, measured, printed in blocks:
    rules.append(len(rows))
    present = {category for side in (measured, printed) for category, _ in side or ()}
    rows += [(Cell(category), Cell(scope), *(_cell(category, m, measured, printed) for m in _METRICS))
             for category in CATEGORIES if category in present]
  notes = ['Only cells that are OK count. Relative changes: + is better.']
  if v.published:
    notes.append('Second figures are published, or computed from published cells, and were not measured here.')
    doubtful = sum(v.published.doubtful(*key) for key in theirs.values if key[2] in _METRICS)
    notes.append(f'{doubtful} published figures contradict others of the same paper; they count all the same.')
  return [Table('T7', 'Averages over the categories of approaches', ('Category', 'average over', *_METRICS.values()),
                tuple(rows), tuple(rules[1:]), tuple(notes))]


def _averages(sheet: Sheet, kind: str, keep: Callable[[tuple], bool] = lambda key: True
              ) -> dict[tuple[str, str], float]:
  """(category, metric) -> average over the cells that `keep` wants."""
  averages = {}
  for metric in _METRICS:
    cells = {(a, s): x for (a, s), x in sheet.metric(metric).items() if keep((a, s, metric)) and not math.isnan(x)}
    averages |= {(category, metric): x for category, x in category_average(cells, sheet.categories, kind).items()}
  return averages


def _cell(category: str, metric: str, measured: Mapping | None, printed: Mapping | None) -> Cell:
  text = lambda x: '' if x is None else percent(x, sign=metric.endswith('_rel'))
  ours, theirs = ((side or {}).get((category, metric)) for side in (measured, printed))
  return Cell(text(ours), text(theirs), sort=ours)
