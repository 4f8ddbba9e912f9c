"""Which approach for my situation? A ranking from measured rows, with the rows that it rests on.

What cannot be used, or breaks a condition on the evidence, is excluded with the reason; the rest is ranked by the
preferred metric. Measured and published figures are never mixed in a score: approaches that were measured come first,
and those that only the published tables know follow in a ranking of their own, marked.

Decided here:
- The score is the mean, over the subjects of the evidence, of (rank - 1/2) / n, an approach's rank among the n that fit
  and were tried there; a cell that is not OK ranks last. Equal scores go to the better repair rate, then by name.
- A condition must hold on every subject of the evidence, by the mean over seeds. Accuracy must not fall, AAOD not rise,
  and attack success not rise by more than 4 % of the original's, which is the noise of that measurement. What was not
  measured cannot break a condition, nor can a published figure that contradicts others of its paper; the choice
  says so.
- A cell that is not OK is no evidence for an approach; one that is OK nowhere is excluded.
"""
import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxfix import methods
from jaxfix.study import aggregate, evidence
from jaxfix.study.evidence import Candidate
from jaxfix.study.published import Published
from jaxfix.study.situation import KEEP, PREFER, Situation
from jaxfix.study.store import newest


@dataclasses.dataclass(frozen=True)
class Choice:
  """An approach that fits. `score` in (0, 1), smaller is better, comparable within one `source` only.

  `values`: metric -> subject -> mean; `reasons` speak for it, `cautions` limit that; `citations` are runs or tables.
  """
  approach: str
  title: str
  category: str
  source: str
  score: float
  values: Mapping[str, Mapping[str, float]]
  reasons: tuple[str, ...]
  cautions: tuple[str, ...]
  citations: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Exclusion:
  """An approach that does not fit, why, and what says so (nothing, where its needs decide)."""
  approach: str
  title: str
  source: str
  reasons: tuple[str, ...]
  citations: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Advice:
  """The answer: measured choices first, then published ones, each best first."""
  situation: Situation
  choices: tuple[Choice, ...]
  excluded: tuple[Exclusion, ...]
  notes: tuple[str, ...]


def recommend(situation: Situation, rows: Iterable[Mapping[str, Any]], published: Published | None) -> Advice:
  """Ranks what fits the situation.

  Args:
    situation: see there.
    rows: of any stores; those of combinations are left out.
    published: the published tables, for approaches without rows of the evidence's subjects; None for none.
  Raises:
    UnknownNameError: the subject is neither in the rows, nor one of `jaxfix.subjects`, nor published.
  """
  rows = newest((row for row in rows if row['postprocess'] == 'none'), ('subject', 'approach'))
  summaries = aggregate.summarize(rows)
  evidence.check_subject(situation.subject, summaries, published)
  measured = evidence.measured(situation, rows, summaries)
  known = {c.approach for c in measured} | {evidence.code_of(c.approach) for c in measured}
  candidates = measured + [c for c in evidence.from_tables(situation, published) if c.approach not in known]
  known |= {c.approach for c in candidates}
  fit, excluded = [], []
  for candidate in candidates:
    reasons, cited = _objections(candidate, situation)
    if reasons:
      excluded.append(Exclusion(candidate.approach, candidate.title, candidate.source, tuple(reasons), cited))
    else:
      fit.append(candidate)
  for name in methods.NAMES:
    if name not in known and evidence.code_of(name) not in known:
      excluded.append(Exclusion(name, methods.get(name).title, 'none', ('neither measured nor published',)))
  choices = [choice for source in ('measured', 'published')
             for choice in _ranked([c for c in fit if c.source == source], situation)]
  return Advice(situation, tuple(choices), tuple(excluded), _notes(situation, measured, candidates, rows))


def _objections(c: Candidate, situation: Situation) -> tuple[list[str], tuple[str, ...]]:
  """Why a candidate is excluded, and the citations of the evidence that says so."""
  reasons, where = [], []
  reasons += [f'needs {need.replace("_", " ")}' for need in c.needs if need not in situation.has]
  if situation.proof and not c.proof:
    reasons.append('gives no proof')
  if all(outcome != 'OK' for outcome, _ in c.outcomes.values()):
    reasons += [f'{outcome} on {s}' + (f': {why}' if why else '') for s, (outcome, why) in c.outcomes.items()]
    where += c.outcomes
  for s, seconds in c.values['seconds'].items():
    if situation.time is not None and seconds > situation.time:
      reasons.append(f'too slow: {seconds:.4g} s on {s}')
      where.append(s)
  for name in situation.keep:
    metric, least = KEEP[name]
    for s, value in c.values[metric].items():
      if value < least and (s, metric) not in c.doubtful:
        reasons.append(f'makes {name} worse: {value:+.2%} on {s}')
        where.append(s)
  return reasons, tuple(cite for s in dict.fromkeys(where) for cite in c.citations[s])


def _ranked(candidates: Sequence[Candidate], situation: Situation) -> list[Choice]:
  metric = PREFER[situation.prefer]
  scores, worst = collections.defaultdict(list), -math.inf * aggregate.BETTER[metric]
  for subject in sorted({s for c in candidates for s in c.outcomes}):
    here = {c.approach: c.values[metric].get(subject, math.nan if c.outcomes[subject][0] == 'OK' else worst)
            for c in candidates if c.values[metric] and subject in c.outcomes}
    ranks = aggregate.ranks(here, metric)
    for approach, rank in ranks.items():
      scores[approach].append((rank - 0.5) / len(ranks))
  mean = lambda values: sum(values) / len(values) if values else -math.inf
  score = {c.approach: mean(scores[c.approach]) if scores[c.approach] else 1. for c in candidates}
  # What has no value of the preferred metric comes last, whatever the score of the others.
  order = sorted(candidates, key=lambda c: (not scores[c.approach], score[c.approach],
                                            -mean(list(c.values['rr'].values())), c.approach))
  return [_choice(c, score[c.approach], bool(scores[c.approach]), situation) for c in order]


def _choice(c: Candidate, score: float, ranked: bool, situation: Situation) -> Choice:
  reasons, cautions = [], list(c.cautions)
  for metric, text in (('rr', 'fixes {:.2%} of the failures'), ('nfr', 'breaks {:.2%} of all inputs'),
                       ('acc_rel', 'accuracy {:+.2%}'), ('asr_rel', 'robustness {:+.2%}'),
                       ('aaod_rel', 'fairness {:+.2%}'), ('seconds', '{:.4g} s')):
    values = list(c.values[metric].values())
    if values:
      spread = f' (on average of {len(values)} subjects)' if len(values) > 1 else ''
      reasons.append(text.format(sum(values) / len(values)) + spread)
  cautions += [f'{outcome} on {s}' + (f': {why}' if why else '') for s, (outcome, why) in c.outcomes.items()
               if outcome != 'OK']
  used = [s for s, (outcome, _) in c.outcomes.items() if outcome == 'OK']
  watched = [(name, KEEP[name][0]) for name in situation.keep] + ([('time', 'seconds')] if situation.time else [])
  for name, metric in watched:
    missing = [s for s in used if s not in c.values[metric]]
    if missing:
      cautions.append(f'{name} was not measured on {", ".join(missing)}')
    if unsure := [s for s in used if (s, metric) in c.doubtful]:
      cautions.append(f'{name} was not judged on {", ".join(unsure)}: the published figure contradicts others')
  if not ranked:
    cautions.append(f'nothing is known of {situation.prefer}')
  robustness = c.values['asr_rel'].values()
  if 'robustness' in situation.keep and any(abs(v) <= -KEEP['robustness'][1] for v in robustness):
    cautions.append('its change of robustness is within the noise of the measurement (4 %)')
  return Choice(c.approach, c.title, c.category, c.source, score, c.values, tuple(reasons), tuple(cautions),
                tuple(cite for cites in c.citations.values() for cite in cites))


def _notes(situation: Situation, measured: Sequence[Candidate], candidates: Sequence[Candidate],
           rows: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
  notes = []
  tried = {s for c in measured for s in c.outcomes}
  seen = [row for row in rows if row['subject'] in tried and row['device_kind'] is not None]   # its subject was there
  used, devices = (sorted({row[field] for row in seen}) for field in ('subject', 'device_kind'))
  if used:
    notes.append(f'Measured on {", ".join(used)}; times are those of {", ".join(devices)}, yours will differ.')
  else:
    notes.append('No measured rows fit the situation; run launch.study for evidence of your own.')
  papers = sorted({s for c in candidates if c.source == 'published' for s in c.outcomes}, key=aggregate.DATASETS.index)
  if papers:
    notes.append(f'Published figures are the Fixing Study\'s for {", ".join(papers)}: other models, data and hardware '
                 '(two RTX 3090); they were not measured here and are ranked by themselves.')
  if situation.subject and not used and not papers:
    notes.append(f'Nobody measured or published anything about {situation.subject}.')
  return tuple(notes)
