"""What is known of each approach in a situation: by measured rows, or by the published tables.

Decided here:
- The evidence is the subject that was named; else the subject whose model is nearest in size to `params`; else all. A
  published subject can be named by its key ('MNIST') or by that of its counterpart ('mnist_lenet5').
- `training_data` is needed by what retrains the model; other needs are those that the approaches declare.
"""
import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxfix import methods, subjects
from jaxfix.errors import UnknownNameError
from jaxfix.study import aggregate
from jaxfix.study.published import Published
from jaxfix.study.situation import Situation

_METRICS = ('acc_rel', 'rr', 'nfr', 'asr_rel', 'aaod_rel', 'seconds')
_RETRAINS = ('mode',)   # below the model level
_PUBLISHED_NEEDS = {'NR': ('history',), 'DTR': ('class_importance',)}
_PUBLISHED_PROOFS = ('RA',)
_TABLES = {'acc_rel': 3, 'rr': 3, 'asr_rel': 5, 'aaod_rel': 5, 'nfr': 5, 'seconds': 6}
_NUM_PARAMS = {'MNIST': 29_450, 'UTKFace': 2_485_954, 'CIFAR10': 15_253_578, 'CIFAR10S': 11_173_962,
               'ImageNet': 7_978_856}   # of our counterparts: the study prints none


@dataclasses.dataclass(frozen=True)
class Candidate:
  """An approach with its evidence: subject -> outcome and reason, metric -> subject -> mean, citations by subject, and
  (subject, metric) of the figures that contradict others of their paper."""
  approach: str
  title: str
  category: str
  source: str
  needs: tuple[str, ...]
  proof: bool
  outcomes: Mapping[str, tuple[str, str]]
  values: Mapping[str, Mapping[str, float]]
  citations: Mapping[str, tuple[str, ...]]
  cautions: tuple[str, ...] = ()
  doubtful: frozenset[tuple[str, str]] = frozenset()


def code_of(approach: str) -> str:
  """The study's abbreviation of an approach, or its name where there is none."""
  try:
    return methods.get(approach).code or approach
  except UnknownNameError:
    return approach


def check_subject(subject: str, summaries: Sequence[aggregate.Summary], published: Published | None) -> None:
  """Raises `UnknownNameError` for a subject that is neither measured, nor one of `jaxfix.subjects`, nor published."""
  known = {*subjects.NAMES, *aggregate.DATASETS, *(published.subjects if published else ())}
  known |= {s.subject for s in summaries}
  if subject and subject not in known:
    raise UnknownNameError('subject', subject, known)


def _counterpart(subject: str) -> str:
  """Key of the published subject that `subject` names or stands for, or ''."""
  return subjects.entry(subject).published if subject in subjects.NAMES else subject


def _nearest(sizes: Mapping[str, float], params: int) -> set[str]:
  return {min(sizes, key=lambda name: (abs(math.log(sizes[name] / params)), name))} if sizes else set()


def measured(situation: Situation, rows: Sequence[Mapping[str, Any]], summaries: Sequence[aggregate.Summary]
             ) -> list[Candidate]:
  """The approaches with rows of the evidence's subjects; `rows` are those that count, `summaries` are of them."""
  if situation.subject:
    chosen = {s.subject for s in summaries if situation.subject in (s.subject, s.published_subject)}
  elif situation.params:
    chosen = _nearest({s.subject: s.mean('n_params') for s in summaries if s.mean('n_params') > 0}, situation.params)
  else:
    chosen = {s.subject for s in summaries}
  runs = {(row['approach'], row['subject'], row['seed']): row for row in rows}
  by_approach = collections.defaultdict(list)
  for s in summaries:
    if s.subject in chosen:
      by_approach[s.approach].append(s)
  return [_candidate_of(approach, cells, runs) for approach, cells in by_approach.items()]


def _candidate_of(approach: str, cells: Sequence[aggregate.Summary], runs: Mapping[tuple, Mapping[str, Any]]
                  ) -> Candidate:
  cautions, first = [], cells[0]
  try:
    method = methods.get(approach)
    needs, proof = _needs(method), not method.guarantee.startswith('none')
  except UnknownNameError:
    needs, proof = _published_needs(first.code, first.category), first.code in _PUBLISHED_PROOFS
    cautions.append('not in this installation')
  seeds = min(len(s.seeds) for s in cells)
  if seeds < 3:
    cautions.append(f'only {seeds} seed{"" if seeds == 1 else "s"} on some of the subjects')
  return Candidate(
    approach, first.title, first.category, 'measured', needs, proof,
    {s.subject: (s.outcome, next((r for o, r in zip(s.outcomes, s.reasons, strict=True) if o == s.outcome), ''))
     for s in cells},
    {m: {s.subject: s.mean(m) for s in cells if s.outcome == 'OK' and s.values.get(m)} for m in _METRICS},
    {s.subject: tuple(f'run {runs[approach, s.subject, seed]["run_id"]} ({s.subject}, seed {seed})' for seed in s.seeds)
     for s in cells}, tuple(cautions))


def from_tables(situation: Situation, published: Published | None) -> list[Candidate]:
  """The approaches that the published tables have on the evidence's subjects."""
  if published is None:
    return []
  chosen = set(published.subjects)
  if situation.subject:
    chosen = {_counterpart(situation.subject)} & chosen
  elif situation.params:
    chosen = _nearest({d: n for d, n in _NUM_PARAMS.items() if d in chosen}, situation.params)
  result, implemented = [], {methods.get(name).code for name in methods.NAMES}
  for code, approach in published.approaches.items():
    cells = {d: published.cells[code, d] for d in published.subjects if d in chosen and (code, d) in published.cells}
    if not cells:
      continue
    cautions = [] if code in implemented else ['not in this installation']
    doubtful = [d for d, cell in cells.items() if cell.doubtful and cell.outcome == 'OK']
    if doubtful:
      cautions.append(f'the published figures for {", ".join(doubtful)} contradict each other')
    values = {m: {d: cell.values[m].mean for d, cell in cells.items() if cell.outcome == 'OK' and m in cell.values}
              for m in _METRICS}
    citations = {d: tuple(f'Fixing Study, Table {t}, {code} {d}' for t in sorted(
      {table for m, table in _TABLES.items() if d in values[m]} or {3})) for d in cells}
    result.append(Candidate(
      code, approach.title, approach.category, 'published', _published_needs(code, approach.category),
      code in _PUBLISHED_PROOFS, {d: (cell.outcome, '') for d, cell in cells.items()}, values, citations,
      tuple(cautions), frozenset((d, m) for d, cell in cells.items() for m in cell.doubtful)))
  return result


def _needs(method: methods.Method) -> tuple[str, ...]:
  retrains = method.level == 'model' or method.name in _RETRAINS
  return (*method.needs, *(('training_data',) if retrains else ()))


def _published_needs(code: str, category: str) -> tuple[str, ...]:
  return (*_PUBLISHED_NEEDS.get(code, ()), *(('training_data',) if category == 'model' else ()))
