"""Which approach for my situation? A ranking from measured rows, with the rows that it rests on.

What cannot be used, or breaks a condition on the evidence, is excluded with the reason; the rest is ranked by the
preferred metric. Measured and published figures are never mixed in a score: approaches that were measured come first,
and those that only the published tables know follow in a ranking of their own, marked.

Decided here:
- The evidence is the subject that was named; else the subject whose model is nearest in size to `params`; else all. A
  published subject can be named by its key ('MNIST') or by that of its counterpart ('mnist_lenet5').
- The score is the mean, over the subjects of the evidence, of (rank - 1/2) / n, an approach's rank among the n that fit
  and were tried there; a cell that is not OK ranks last. Equal scores go to the better repair rate, then by name.
- A condition must hold on every subject of the evidence, by the mean over seeds. Accuracy must not fall, AAOD not rise,
  and attack success not rise by more than 4 % of the original's, which is the noise of that measurement. What was not
  measured cannot break a condition, nor can a published figure that contradicts others of its paper; the choice
  says so.
- `training_data` is needed by what retrains the model; other needs are those that the approaches declare.
- A cell that is not OK is no evidence for an approach; one that is OK nowhere is excluded.
"""
import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxfix import methods, subjects
from jaxfix.errors import UnknownNameError, require
from jaxfix.study import aggregate, store
from jaxfix.study.published import Published

HAS = ('history', 'class_importance', 'groups', 'spec', 'training_data')
KEEP = {'accuracy': ('acc_rel', 0.), 'robustness': ('asr_rel', -aggregate.ASR_NOISE), 'fairness': ('aaod_rel', 0.)}
"""What must not suffer -> metric, oriented so that positive is better, and the least value that passes."""
PREFER = {'rr': 'rr', 'acc': 'acc_rel', 'nfr': 'nfr', 'time': 'seconds'}
_METRICS = ('acc_rel', 'rr', 'nfr', 'asr_rel', 'aaod_rel', 'seconds')
_RETRAINS = ('mode',)   # below the model level
_PUBLISHED_NEEDS = {'NR': ('history',), 'DTR': ('class_importance',)}
_PUBLISHED_PROOFS = ('RA',)
_TABLES = {'acc_rel': 3, 'rr': 3, 'asr_rel': 5, 'aaod_rel': 5, 'nfr': 5, 'seconds': 6}
_NUM_PARAMS = {'MNIST': 29_450, 'UTKFace': 2_485_954, 'CIFAR10': 15_253_578, 'CIFAR10S': 11_173_962,
               'ImageNet': 7_978_856}   # of our counterparts: the study prints none


@dataclasses.dataclass(frozen=True)
class Situation:
  """What is at hand and what matters.

  Attributes:
    has: of `HAS`.
    proof: the repair must come with a guarantee.
    params: trainable scalars of the model, or None.
    time: budget of a repair, seconds, or None.
    keep: of `KEEP`, what must not suffer.
    subject: one of `jaxfix.subjects`, a key of the published tables, or '' for whatever there is.
    prefer: of `PREFER`, what decides among the rest.
  """
  has: tuple[str, ...] = ('training_data',)
  proof: bool = False
  params: int | None = None
  time: float | None = None
  keep: tuple[str, ...] = ()
  subject: str = ''
  prefer: str = 'rr'

  def __post_init__(self):
    for what, names, known in (('thing to have', self.has, HAS), ('thing to keep', self.keep, KEEP),
                               ('preference', (self.prefer,), PREFER)):
      for name in names:
        if name not in known:
          raise UnknownNameError(what, name, known)
    require(self.params is None or self.params > 0, f'params must be positive, got {self.params}.')
    require(self.time is None or self.time > 0, f'time must be positive, got {self.time}.')


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


@dataclasses.dataclass(frozen=True)
class _Candidate:
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


def recommend(situation: Situation, rows: Iterable[Mapping[str, Any]], published: Published | None) -> Advice:
  """Ranks what fits the situation.

  Args:
    situation: see there.
    rows: of any stores; those of combinations are left out.
    published: the published tables, for approaches without rows of the evidence's subjects; None for none.
  Raises:
    UnknownNameError: the subject is neither in the rows, nor one of `jaxfix.subjects`, nor published.
  """
  rows = [row for row in rows if row['postprocess'] == 'none']
  summaries = aggregate.summarize(rows)
  _check_subject(situation.subject, summaries, published)
  measured = _measured(situation, rows, summaries)
  known = {c.approach for c in measured} | {_code(c.approach) for c in measured}
  candidates = measured + [c for c in _published(situation, published) if c.approach not in known]
  known |= {c.approach for c in candidates}
  fit, excluded = [], []
  for candidate in candidates:
    reasons, cited = _objections(candidate, situation)
    if reasons:
      excluded.append(Exclusion(candidate.approach, candidate.title, candidate.source, tuple(reasons), cited))
    else:
      fit.append(candidate)
  for name in methods.NAMES:
    if name not in known and _code(name) not in known:
      excluded.append(Exclusion(name, methods.get(name).title, 'none', ('neither measured nor published',)))
  choices = [choice for source in ('measured', 'published')
             for choice in _ranked([c for c in fit if c.source == source], situation)]
  return Advice(situation, tuple(choices), tuple(excluded), _notes(situation, measured, candidates, rows))


def _code(approach: str) -> str:
  try:
    return methods.get(approach).code or approach
  except UnknownNameError:
    return approach


def _check_subject(subject: str, summaries: Sequence[aggregate.Summary], published: Published | None) -> None:
  known = {*subjects.NAMES, *aggregate.DATASETS, *(published.subjects if published else ())}
  known |= {s.subject for s in summaries}
  if subject and subject not in known:
    raise UnknownNameError('subject', subject, known)


def _counterpart(subject: str) -> str:
  """Key of the published subject that `subject` names or stands for, or ''."""
  return subjects.entry(subject).published if subject in subjects.NAMES else subject


def _nearest(sizes: Mapping[str, float], params: int) -> set[str]:
  return {min(sizes, key=lambda name: (abs(math.log(sizes[name] / params)), name))} if sizes else set()


def _measured(situation: Situation, rows: Sequence[Mapping[str, Any]], summaries: Sequence[aggregate.Summary]
              ) -> list[_Candidate]:
  if situation.subject:
    chosen = {s.subject for s in summaries if situation.subject in (s.subject, s.published_subject)}
  elif situation.params:
    chosen = _nearest({s.subject: s.mean('n_params') for s in summaries if s.mean('n_params') > 0}, situation.params)
  else:
    chosen = {s.subject for s in summaries}
  runs = {}   # the row that a summary took for a seed: the newest
  for row in rows:
    key = row['approach'], row['subject'], row['seed']
    if key not in runs or store.age(row) >= store.age(runs[key]):
      runs[key] = row
  by_approach = collections.defaultdict(list)
  for s in summaries:
    if s.subject in chosen:
      by_approach[s.approach].append(s)
  return [_candidate_of(approach, cells, runs) for approach, cells in by_approach.items()]


def _candidate_of(approach: str, cells: Sequence[aggregate.Summary], runs: Mapping[tuple, Mapping[str, Any]]
                  ) -> _Candidate:
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
  return _Candidate(
    approach, first.title, first.category, 'measured', needs, proof,
    {s.subject: (s.outcome, next((r for o, r in zip(s.outcomes, s.reasons, strict=True) if o == s.outcome), ''))
     for s in cells},
    {m: {s.subject: s.mean(m) for s in cells if s.outcome == 'OK' and s.values.get(m)} for m in _METRICS},
    {s.subject: tuple(f'run {runs[approach, s.subject, seed]["run_id"]} ({s.subject}, seed {seed})' for seed in s.seeds)
     for s in cells}, tuple(cautions))


def _published(situation: Situation, published: Published | None) -> list[_Candidate]:
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
    result.append(_Candidate(
      code, approach.title, approach.category, 'published', _published_needs(code, approach.category),
      code in _PUBLISHED_PROOFS, {d: (cell.outcome, '') for d, cell in cells.items()}, values, citations,
      tuple(cautions), frozenset((d, m) for d, cell in cells.items() for m in cell.doubtful)))
  return result


def _needs(method: methods.Method) -> tuple[str, ...]:
  retrains = method.level == 'model' or method.name in _RETRAINS
  return (*method.needs, *(('training_data',) if retrains else ()))


def _published_needs(code: str, category: str) -> tuple[str, ...]:
  return (*_PUBLISHED_NEEDS.get(code, ()), *(('training_data',) if category == 'model' else ()))


def _objections(c: _Candidate, situation: Situation) -> tuple[list[str], tuple[str, ...]]:
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


def _ranked(candidates: Sequence[_Candidate], situation: Situation) -> list[Choice]:
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


def _choice(c: _Candidate, score: float, ranked: bool, situation: Situation) -> Choice:
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


def _notes(situation: Situation, measured: Sequence[_Candidate], candidates: Sequence[_Candidate],
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


def read_rows(paths: Iterable[Any]) -> list[dict[str, Any]]:
  """The newest rows of several stores."""
  return list(store.newest(row for path in paths for row in store.read(path).rows))
