"""T8: agreement with the published figures, and the list of what differs."""
import math

from jaxfix.study import agreement as comparing
from jaxfix.study.aggregate import ASR_NOISE, MAX_ORIGINAL_DIFFERENCE, measured_sheet, published_sheet, significance
from jaxfix.study.table import Cell, Table
from jaxfix.study.tables.view import View, zero_without_sign

_COLUMNS = ('Metric', 'Spearman of approach ranks', 'approaches', 'Spearman by subject', 'equal signs [%]', 'cells',
            'kappa of letter pairs', 'pairs', 'left out')


def agree(v: View) -> comparing.Agreement | None:
  """Agreement of the measured counterparts with the study; None without any."""
  counterparts = [s for s in v.summaries if s.published_subject]
  if v.published is None or not counterparts:
    return None
  keys = {s.approach: s.key for s in counterparts}
  groups = significance(counterparts)
  letters = {column: {keys[a]: text for a, text in found.letters.items() if text != '-'}
             for column, found in groups.items()}
  untested = {column: {frozenset((keys[p.a], keys[p.b])) for p in found.pairs if 'untestable' in p.flags}
              for column, found in groups.items()}
  return comparing.agreement(measured_sheet(counterparts, by='published', letters=letters),
                             published_sheet(v.published), v.published, untested)


def agreement(v: View) -> list[Table]:
  """T8, and T8.differences if there are any."""
  found = agree(v)
  if found is None:
    return []
  rows = []
  for m in found.metrics:
    within = ', '.join(f'{subject} {_number(rho)} (n={n})' for subject, (rho, n) in m.by_subject.items())
    signs = 'n/a' if math.isnan(m.equal_signs) else f'{100 * m.equal_signs:.0f}'
    rows.append((Cell(m.column.upper()), _cell(m.spearman), _count(m.num_approaches), Cell(within or 'n/a'),
                 Cell(signs, sort=_finite(m.equal_signs)), _count(m.num_cells), _cell(m.kappa), _count(m.num_pairs),
                 _count(m.num_left_out)))
  equal = 'n/a' if math.isnan(found.equal_outcomes) else f'{100 * found.equal_outcomes:.0f} %'
  names = ', '.join(f'{approach} on {subject}' for approach, subject in found.left_out)
  left_out = f'{len(found.left_out)} ({names})' if names else '0'
  compared = ', '.join(dict.fromkeys(s.published_subject for s in v.summaries if s.published_subject))
  notes = [f'Equal outcomes: {equal} of {found.num_outcomes} cells that both have.',
           f'Published cells left out where they contradict others of their paper: {left_out}.',
           'Only cells that are OK on both sides count. ACC, ASR and AAOD compare relative changes, TIME ranks. n/a: '
           'fewer than three approaches, no spread, or no letters.',
           f'A relative change of ASR below about {100 * ASR_NOISE:.0f} % is noise, so signs of ASR agree or differ by '
           'chance where changes are small.',
           f'Letters: the published ones rest on {len(v.published.subjects)} subjects, ours on {compared}; pairs of '
           'approaches that could not be tested here are left out.']
  if found.other_originals:
    notes.append('RR and NFR are left out, too, where the original models differ by more than '
                 f'{100 * MAX_ORIGINAL_DIFFERENCE:.0f} point of accuracy: {", ".join(found.other_originals)}.')
  tables = [Table('T8', 'Agreement with the published figures', _COLUMNS, tuple(rows), notes=tuple(notes))]
  if found.differences:
    tables.append(Table(
      'T8.differences', 'Where outcomes, signs and ranks differ from the published ones',
      ('Approach', 'subject', 'what', 'metric', 'here', 'published'),
      tuple((Cell(d.approach), Cell(d.subject), Cell(d.kind), Cell(d.metric), Cell(d.measured), Cell(d.published))
            for d in found.differences),
      notes=('Ranks within one subject are listed from three places apart, signs of ASR where both changes are '
             f'{100 * ASR_NOISE:.0f} % or more.',)))
  return tables


def _finite(x: float) -> float | None:
  return None if math.isnan(x) else x


def _number(x: float) -> str:
  return 'n/a' if math.isnan(x) else zero_without_sign(f'{x:.2f}')


def _cell(x: float) -> Cell:
  return Cell(_number(x), sort=_finite(x))


def _count(n: int) -> Cell:
  return Cell(str(n), sort=n)
