"""The study's eight findings, each with a rule that decides whether results agree with it.

A rule is a function of a `Sheet`, so that the study's own tables can be put to it too: what they say stands beside our
figure. A finding that its own tables would not bear out under the rule would be a bad rule; a test sees to that.

Decided here: the reports' specification fixes the rules of findings 2, 3, 4 and 7. The paper is not at hand; findings
1, 5, 6 and 8 are reconstructed from what its tables show and are marked so. Stand-ins count, since findings are general
claims; which subjects were used is printed beside the verdict.
"""
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

from jaxfix.study.aggregate import ASR_NOISE, Sheet, Summary, category_average, measured_sheet, orient, published_sheet
from jaxfix.study.agreement import sign, spearman
from jaxfix.study.published import Published
from jaxfix.study.table import Cell, Table

Verdict = Literal['agrees', 'disagrees', 'not tested']
_STUDIED = ('model', 'layer', 'neuron')   # the study's categories


@dataclasses.dataclass(frozen=True)
class Finding:
  """A finding and what became of it.

  Attributes:
    number: of the study, or where it is reconstructed our place for it.
    text: the claim, in our words.
    rule: when results agree.
    reconstructed: the claim is inferred from the study's tables.
    ours, study: the figures that the rule looks at.
    verdict: of ours; 'not tested' where a figure is missing.
  """
  number: int
  text: str
  rule: str
  reconstructed: bool
  ours: str
  study: str
  verdict: Verdict


@dataclasses.dataclass(frozen=True)
class _Claim:
  number: int
  text: str
  rule: str
  reconstructed: bool
  judge: Callable[[Sheet], tuple[bool | None, str]]


def findings(summaries: Sequence[Summary], published: Published | None) -> tuple[Finding, ...]:
  """All eight, in order."""
  layers = {d: s.n_layers for d, s in published.subjects.items()} if published else None
  ours = measured_sheet(summaries, layers=layers)
  theirs = published_sheet(published) if published else None
  result = []
  for claim in _CLAIMS:
    holds, figures = claim.judge(ours)
    verdict = 'not tested' if holds is None else 'agrees' if holds else 'disagrees'
    study = claim.judge(theirs)[1] if theirs else ''
    result.append(Finding(claim.number, claim.text, claim.rule, claim.reconstructed, figures, study, verdict))
  return tuple(result)


def findings_table(summaries: Sequence[Summary], published: Published | None) -> Table:
  """The findings as a table."""
  rows = tuple(
    (Cell(f'{f.number}{" (reconstructed)" if f.reconstructed else ""}'), Cell(f.text), Cell(f.rule),
     Cell(f.ours), Cell(f.study), Cell(f.verdict)) for f in findings(summaries, published))
  subjects = ', '.join(f'{s}‡' if stand_in else s for s, stand_in in dict.fromkeys(
    (s.subject, not s.published_subject) for s in summaries))
  notes = (f'Subjects behind "here": {subjects or "none"}; ‡ is a stand-in, which the study does not have.',
           'Reconstructed: inferred from the tables of the study, whose text was not at hand; the number is our place '
           'for it.')
  return Table('findings', "The study's findings, and what these results say",
               ('Finding', 'claim', 'agrees if', 'here', "in the study's tables", 'verdict'), rows, notes=notes)


def _ordered(averages: dict[str, float], order: Sequence[str], form: str) -> tuple[bool | None, str]:
  """Whether `averages` fall strictly from the first category to the last."""
  figures = ', '.join(f'{c} {format(averages[c], form)}' for c in _STUDIED if c in averages)
  missing = [c for c in _STUDIED if c not in averages]
  if missing:
    return None, '; '.join(filter(None, (figures, f'no figure for level {", ".join(missing)}')))
  values = [averages[c] for c in order]
  return all(a > b for a, b in zip(values, values[1:], strict=False)), figures


def _applicability(sheet: Sheet) -> tuple[bool | None, str]:
  shares = {}
  for category in _STUDIED:
    outcomes = [o for (a, _), o in sheet.outcomes.items() if sheet.categories[a] == category]
    if outcomes:
      shares[category] = 100 * sum(o != 'OK' for o in outcomes) / len(outcomes)
  return _ordered(shares, ('layer', 'neuron', 'model'), '.0f')


def _average(metric: str, *order: str) -> Callable[[Sheet], tuple[bool | None, str]]:
  def judge(sheet: Sheet) -> tuple[bool | None, str]:
    averages = category_average(sheet.metric(metric), sheet.categories)
    return _ordered({c: 100 * x for c, x in averages.items()}, order, '.2f')
  return judge


def _model_size(sheet: Sheet) -> tuple[bool | None, str]:
  cells, correlations = sheet.metric('rr'), []
  for approach in dict.fromkeys(a for a, _ in cells):
    own = [(sheet.sizes[s], x) for (a, s), x in cells.items() if a == approach]
    correlations.append(spearman([size for size, _ in own], [x for _, x in own]))
  known = [rho for rho in correlations if not math.isnan(rho)]
  if not known:
    return None, 'no approach is OK on three subjects of different size'
  negative = sum(rho < 0 for rho in known)
  return negative > len(known) / 2, f'negative for {negative} of {len(known)} approaches'


def _share_better(metric: str, holds: Callable[[int, int, int], bool], noise: float = 0.
                  ) -> Callable[[Sheet], tuple[bool | None, str]]:
  """Changes below `noise` are neither better nor worse; where there are no others, nothing was tested."""
  def judge(sheet: Sheet) -> tuple[bool | None, str]:
    signs = [sign(x) * (abs(x) >= noise) for x in sheet.metric(metric).values()]
    if not signs:
      return None, 'not measured'
    better, worse, n = signs.count(1), signs.count(-1), len(signs)
    figures = f'better in {better}, worse in {worse} of {n} cells'
    if noise:
      figures += f', {n - better - worse} within the noise'
    return (None if noise and not better + worse else holds(better, worse, n)), figures
  return judge


def _time(sheet: Sheet) -> tuple[bool | None, str]:
  logs = {key: -orient('seconds', x) for key, x in sheet.metric('seconds').items()}
  averages = {c: math.exp(x) for c, x in category_average(logs, sheet.categories).items()}
  return _ordered(averages, ('model', 'neuron', 'layer'), '.3g')


_CLAIMS = (
  _Claim(1, 'Many approaches cannot be applied everywhere, least of all at the layer level.',
         'share of cells that are not OK [%]: layer > neuron > model', True, _applicability),
  _Claim(2, 'On average, accuracy fares best with model-level approaches and worst with neuron-level ones.',
         'category average of the relative change of accuracy [%]: model > layer > neuron', False,
         _average('acc_rel', 'model', 'layer', 'neuron')),
  _Claim(3, 'Model-level approaches repair most failures, layer-level ones fewest.',
         'category average of RR [%]: model > neuron > layer', False, _average('rr', 'model', 'neuron', 'layer')),
  _Claim(4, 'Repair gets harder as models grow.',
         'Spearman of RR with model size is negative for more than half of the approaches', False, _model_size),
  _Claim(5, 'Repairing correctness seldom makes a model more robust.',
         f'fewer than half of the cells have an ASR that is better beyond the noise, {100 * ASR_NOISE:.0f} %', True,
         _share_better('asr_rel', lambda better, worse, n: better < n / 2, ASR_NOISE)),
  _Claim(6, 'Fairness mostly improves along the way, but some repairs make it worse.',
         'AAOD is better in more than half of the cells, and worse in at least one', True,
         _share_better('aaod_rel', lambda better, worse, n: better > n / 2 and worse > 0)),
  _Claim(7, 'What repairs most also breaks most: model-level approaches break most inputs, layer-level ones fewest.',
         'category average of NFR [%]: model > neuron > layer', False, _average('nfr', 'model', 'neuron', 'layer')),
  _Claim(8, 'Model-level approaches take longest, layer-level ones are fastest.',
         'category average of time (geometric, seconds): model > neuron > layer', True, _time))
