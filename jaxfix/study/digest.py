"""The first ten lines of a report, and what speaks against trusting it: sentences that the rows determine."""
import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxfix.evaluate.robustness import wilson
from jaxfix.study.aggregate import ASR_NOISE, BETTER, COMPARED, Summary
from jaxfix.study.plots.durations import hardware
from jaxfix.study.plots.plot import percent, seconds
from jaxfix.study.plots.radar import profiles
from jaxfix.study.published import Published
from jaxfix.study.record import OUTCOMES

_NAMED = 6   # failures, or rows, that a line names

_WORDS = {'acc': 'Accuracy', 'rr': 'Repair rate', 'asr': 'Robustness', 'aaod': 'Fairness', 'nfr': 'Negative flips',
          'time': 'Time'}
_UNITS = {'acc': 'relative change of accuracy', 'rr': 'of the failures fixed',
          'asr': 'relative change of attack success', 'aaod': 'relative change of AAOD',
          'nfr': 'of all samples broken', 'time': 'for a repair'}


def plural(count: int, noun: str) -> str:
  """'1 seed', '3 approaches'."""
  ending = '' if count == 1 else 'es' if noun.endswith('ch') else 's'
  return f'{count:,} {noun}{ending}'


def ten_lines(rows: Sequence[Mapping[str, Any]], summaries: Sequence[Summary], published: Published | None
              ) -> tuple[str, ...]:
  """What was run, the best of every metric, what failed, and what can be compared: ten lines at most."""
  plain = [r for r in rows if r['postprocess'] == 'none']
  combined = len(rows) - len(plain)
  seeds = sorted({r['seed'] for r in plain})
  approaches, subjects = len({s.approach for s in summaries}), len({s.subject for s in summaries})
  first = (f'{plural(len(plain), "repair")} by {plural(approaches, "approach")} on {plural(subjects, "subject")} with '
           f'{plural(len(seeds), "seed")}'
           f'{f" and {combined:,} combinations with the original model" if combined else ""}, '
           f'{_dates(rows)}, on {hardware(rows)}.')
  outcomes = collections.Counter(s.outcome for s in summaries)
  second = ('Approaches on subjects: ' + ', '.join(f'{outcomes[o]} {o}' for o in OUTCOMES if outcomes[o]) +
            f' of {len(summaries)}.')
  return (first, second, *_best(summaries), _failed(summaries), _comparable(summaries, published))


def _dates(rows: Sequence[Mapping[str, Any]]) -> str:
  days = sorted(r['started_utc'][:10] for r in rows)
  return days[0] if days[0] == days[-1] else f'{days[0]} to {days[-1]}'


def _best(summaries: Sequence[Summary]) -> list[str]:
  """A line a metric; 'not measured' where there is nothing."""
  good = [s for s in summaries if s.outcome == 'OK']
  shares = profiles({c: {(s.key, s.subject): s.mean(m) for s in good} for c, m in COMPARED.items()})
  lines = []
  for column, metric in COMPARED.items():
    measured = [s for s in good if math.isfinite(s.mean(metric))]
    if not measured:
      lines.append(f'{_WORDS[column]}: not measured.')
      continue
    top = max(measured, key=lambda s: (BETTER[metric] * s.mean(metric), -measured.index(s)))
    signed = '+' if metric.endswith('_rel') and top.mean(metric) > 0 else ''
    # a relative change of ASR or AAOD is positive where the rate fell
    value = seconds(top.mean(metric)) if metric == 'seconds' else signed + percent(top.mean(metric))
    single = f'best single result {value} {_UNITS[column]}{_sign_note(metric)}, {top.key} on {top.subject}'
    ranked = {a: found[column] for a, found in shares.items() if column in found}
    if ranked:
      best = max(ranked.values())
      covered = {a: sum(s.key == a for s in measured) for a in ranked}
      names = [a + (f' (only {plural(covered[a], "subject")})' if covered[a] < max(covered.values()) else '')
               for a, share in ranked.items() if share == best]
      lines.append(f'{_WORDS[column]}: best mean rank {" and ".join(names)}; {single}.')
    else:
      lines.append(f'{_WORDS[column]}: {single}.')
  return lines


def _sign_note(metric: str) -> str:
  return ' (positive is better)' if metric in ('asr_rel', 'aaod_rel') else ''


def _failed(summaries: Sequence[Summary]) -> str:
  bad = [s for s in summaries if s.outcome != 'OK']
  if not bad:
    return 'Nothing failed.'
  named = '; '.join(f'{s.key} on {s.subject} {s.outcome}' for s in bad[:_NAMED])
  more = f'; and {len(bad) - _NAMED} more, see applicability' if len(bad) > _NAMED else ''
  return f'Without a usable result: {named}{more}.'


def _comparable(summaries: Sequence[Summary], published: Published | None) -> str:
  subjects = {s.subject: s.published_subject for s in summaries}
  if published is None:
    return 'Published figures were not given: nothing here is compared with them.'
  stand_ins = sorted(name for name, counterpart in subjects.items() if not counterpart)
  pairs = sum(bool(s.code and s.published_subject) for s in summaries)
  return (f'Pairs of approach and subject with a published counterpart: {pairs} of {len(summaries)}; ' +
          (f'no counterpart: {", ".join(stand_ins)}.' if stand_ins else 'every subject has one.'))


def threats(rows: Sequence[Mapping[str, Any]], summaries: Sequence[Summary], published: Published | None
            ) -> tuple[str, ...]:
  """Why a figure of the report may mislead, each with the figure that says how much."""
  plain = [r for r in rows if r['postprocess'] == 'none']
  if not summaries:
    return ('There is no row of a repaired model alone: nothing can be compared.',)
  lines = [_seeds(summaries), *_noise(plain, summaries), *_resolution(plain)]
  if published is not None and (stand_ins := sorted({s.subject for s in summaries if not s.published_subject})):
    lines.append(f'Stand-ins without a published counterpart: {", ".join(stand_ins)}. Nothing about them says anything '
                 "about the study's subjects.")
  if synthetic := sorted({f'{r["subject"]} ({r["dataset_source"]})' for r in plain
                          if str(r['dataset_source']).startswith('synthetic')}):
    lines.append(f'Synthetic data: {", ".join(synthetic)}.')
  lines.append(f'Times were taken once a seed on {hardware(plain)}, compilation included; published times come from '
               'other hardware.')
  commits = {r['git_commit'] for r in rows}
  if len(commits) > 1:
    names = ', '.join(sorted(c[:12] or 'unknown' for c in commits))
    lines.append(f'The rows come from {len(commits)} versions of the code: {names}.')
  if dirty := sum(bool(r['git_dirty']) for r in rows):
    lines.append('Rows from a source tree with uncommitted changes, whose commit does not determine the code: '
                 f'{dirty:,} of {len(rows):,}.')
  flags = collections.Counter(flag for r in rows for flag in r['flags'])
  if flags:
    lines.append('Flags: ' + ', '.join(f'{name} in {plural(n, "row")}' for name, n in sorted(flags.items())) + '.')
  return tuple(lines)


def passed_over(left_out: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
  """What is said of the rows of a store that do not count (`store.newest`): one line, or none."""
  if not left_out:
    return ()
  where = sorted({f'{r["approach"] or "a comparison"} on {r["subject"]} (seed {r["seed"]})' for r in left_out})
  more = f' and {len(where) - _NAMED} more' if len(where) > _NAMED else ''
  return (f'{plural(len(left_out), "row")} of the store left out for newer ones of the same approach and subject '
          '(another attempt, other settings, code, splits or another original): '
          f'{", ".join(where[:_NAMED])}{more}.',)


def _seeds(summaries: Sequence[Summary]) -> str:
  counts = sorted({len(s.values.get('acc', ())) for s in summaries if s.outcome == 'OK'})
  if not counts:
    return 'No approach on any subject has a usable result: there is nothing to average.'
  text = f'Seeds that finished, an approach and subject: {counts[0]}'
  text += (f' to {counts[-1]}' if len(counts) > 1 else '') + '.'
  if counts[0] == 1:
    text += ' One seed has no spread: its standard deviation of 0 means unknown, and no difference can be tested.'
  elif counts[0] < 5:
    text += ' With fewer than five only large differences can be significant; groups may be too coarse.'
  return f'{text} Original model and splits are the same for all seeds: spread from them is in no figure.'


def _noise(plain: Sequence[Mapping[str, Any]], summaries: Sequence[Summary]) -> list[str]:
  measured = [s for s in summaries if s.outcome == 'OK' and math.isfinite(s.mean('asr_rel'))]
  if not measured:
    return []
  inside = sum(abs(s.mean('asr_rel')) < ASR_NOISE for s in measured)
  sizes = sorted({r['asr_n'] for r in plain if r['asr_n']})
  lines = [f'Noise floor of attack success: {inside} of {len(measured)} relative changes are below '
           f"{percent(ASR_NOISE)}, which with the study's 500 inputs is noise."]
  if sizes:
    low, high = max((wilson(r['asr'] * r['asr_n'], r['asr_n']) for r in plain if r['asr_n'] and r['asr'] is not None),
                    key=lambda ends: (ends[1] - ends[0], *ends))
    lines[0] += (f' Attacked inputs a row: {sizes[0]}' + (f' to {sizes[-1]}' if len(sizes) > 1 else '') +
                 f'; the widest 95 % Wilson interval is {percent(low)} to {percent(high)}.')
  return lines


def _resolution(plain: Sequence[Mapping[str, Any]]) -> list[str]:
  failures = {r['subject']: r['n_failures'] for r in plain if r['n_failures']}
  few = {name: n for name, n in failures.items() if n < 100}
  if not few:
    return []
  return ['Few original failures on the test split, so that one sample moves the repair rate by much: ' +
          ', '.join(f'{name} {n} (one is {percent(1 / n)})' for name, n in sorted(few.items())) + '.']
