"""P3: an approach's profile over six metrics, one small panel an approach.

Each axis is a rank: on every subject the approaches are ranked by their mean over seeds, average ranks for ties, scaled
so that the best is 1 and the worst 0, and the scaled ranks are averaged over the subjects that an approach has. The
outline thus says 'better than how many of the others', not by how much.

Decided here: a metric that fewer than two approaches have on a subject gives no rank there. The published profile is
ranked among the published values of the same approaches and published subjects, by the same rule, and drawn dashed.
"""
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from jaxfix.study.aggregate import COMPARED, Summary, ranks
from jaxfix.study.plots import plot
from jaxfix.study.plots.plot import DAGGER, FAINT, GREY, SOFT, Plot
from jaxfix.study.published import Published

Profile = Mapping[str, float]
"""Column of `COMPARED` -> scaled rank in [0, 1]; without the columns that an approach has no rank in."""


def profiles(values: Mapping[str, Mapping[tuple[str, str], float]]) -> dict[str, Profile]:
  """Scaled mean ranks of every approach.

  Args:
    values: column of `COMPARED` -> (approach, subject) -> mean, NaN where there is none.
  """
  shares: dict[str, dict[str, list[float]]] = {}
  for column, metric in COMPARED.items():
    found = values.get(column, {})
    for subject in dict.fromkeys(subject for _, subject in found):
      ranked = ranks({a: v for (a, s), v in found.items() if s == subject}, metric)
      for approach, rank in ranked.items():
        if len(ranked) > 1:
          share = (len(ranked) - rank) / (len(ranked) - 1)
          shares.setdefault(approach, {}).setdefault(column, []).append(share)
  return {a: {c: float(np.mean(found)) for c, found in by_column.items()} for a, by_column in shares.items()}


def radar(summaries: Sequence[Summary], published: Published | None) -> Plot | None:
  """The plot, or None where no two approaches can be compared in anything."""
  good = [s for s in summaries if s.outcome == 'OK']
  ours = profiles({c: {(s.key, s.subject): s.mean(m) for s in good} for c, m in COMPARED.items()})
  theirs = profiles({c: {(s.key, s.published_subject): found.mean for s in summaries
                         if (found := plot.printed(published, s, m))} for c, m in COMPARED.items()})
  doubtful: dict[str, list[str]] = {}
  for s, (c, m) in itertools.product(summaries if theirs else (), COMPARED.items()):
    if plot.printed(published, s, m) and published.doubtful(s.code, s.published_subject, m):
      doubtful.setdefault(s.key, []).append(c)
  shown = {s.key: s for s in summaries if s.key in ours}
  if not shown:
    return None
  data = [('approach', 'source', *COMPARED, 'doubtful')]
  for name in shown:
    for source, found in (('jaxfix', ours), ('published', theirs)):
      if name in found:
        rests_on = ' '.join(dict.fromkeys(doubtful.get(name, ()))) if found is theirs else ''
        data.append((name, source, *(found[name].get(c) for c in COMPARED), rests_on))
  caption = ('Profile of each approach: mean scaled rank over subjects, from 0 (center, worst) to 1 (rim, best), '
             'larger is better on every axis. ACC, ASR and AAOD are ranked by their relative change, NFR and TIME so '
             'that less is better. A missing axis is a gap.' +
             (' Dashed: ranks of the published values of the same approaches.' if theirs else '') +
             (f' {DAGGER} marks those that rest on a figure that contradicts others of the same paper.'
              if doubtful.keys() & shown.keys() else ''))
  points = [(f'{a} {c.upper()}', ours[a][c]) for a in shown for c in COMPARED if c in ours[a]]
  alt = plot.describe(caption, points, lambda v: f'{v:.2f}')
  return Plot('P3', caption, alt, lambda: _draw(shown, ours, theirs, doubtful), tuple(data))


def _draw(shown, ours, theirs, doubtful):
  figure, axes = plot.panels(len(shown), width=1.9, height=1.95, columns=4, projection='polar')
  angles = np.arange(len(COMPARED)) * 2 * np.pi / len(COMPARED)
  for ax, (name, summary) in zip(axes, shown.items(), strict=True):
    ax.set_theta_zero_location('N')
    ax.set_theta_direction(-1)
    ax.set_ylim(0, 1.08)
    ax.set_yticks([0.5, 1], ['', ''])
    ax.set_xticks(angles, [c.upper() if c in ours[name] else f'({c.upper()})' for c in COMPARED], fontsize=6)
    ax.tick_params(axis='x', pad=-2)
    ax.spines['polar'].set_visible(False)
    ax.grid(color=FAINT, linewidth=0.6)
    if name in theirs:
      _outline(ax, angles, theirs[name], GREY, '--', 0.9)
      for angle, column in zip(angles, COMPARED, strict=True):
        if column in doubtful.get(name, ()) and column in theirs[name]:
          ax.annotate(DAGGER, (angle, theirs[name][column]), (3, 1), textcoords='offset points', color=SOFT, fontsize=8)
    _outline(ax, angles, ours[name], plot.color(summary.category), '-', 1.5)
    ax.set_title(plot.short(name), color=SOFT, pad=7, fontsize=8.5, loc='center')
  return figure


def _outline(ax, angles, profile: Profile, color: str, style: str, width: float) -> None:
  """The polygon; an edge only between neighbors that are both there, filled only where nothing is missing."""
  values = [profile.get(c) for c in COMPARED]
  for (a, v), (b, w) in itertools.pairwise([*zip(angles, values, strict=True), (angles[0], values[0])]):
    if None not in (v, w):
      ax.plot([a, b], [v, w], style, color=color, linewidth=width)
  present = [(a, v) for a, v in zip(angles, values, strict=True) if v is not None]
  ax.plot(*zip(*present, strict=True), 'o', color=color, markersize=2.2)
  if style == '-' and None not in values:
    ax.fill(angles, values, color=color, alpha=0.15, linewidth=0)
