"""P12: what became of every test sample: fixed, broken, still wrong, still right; a panel a subject.

Decided here: most samples of a good model are right before and after, so that bars drawn to 100 % show nothing else.
The axis ends a little after the last of the other three; the rest, still right, runs out of the panel and is printed.
"""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxfix.study.aggregate import Summary
from jaxfix.study.plots import plot
from jaxfix.study.plots.plot import FAINT, GREEN, GREY, RED, Plot

_PARTS = (('fixed', 'fixed', GREEN, ''), ('both_wrong', 'still wrong', GREY, '////'), ('broken', 'broken', RED, 'xxxx'),
          ('both_right', 'still right', FAINT, ''))


def flips(summaries: Sequence[Summary], rows: Sequence[Mapping[str, Any]]) -> Plot | None:
  """The plot, or None where no row has counts."""
  shown = []
  for s in summaries:
    counts = [r['counts'] for r in rows if r['approach'] == s.approach and r['subject'] == s.subject and r['counts']]
    if counts:
      shares = {name: float(np.mean([c[name] / sum(c.values()) for c in counts])) for name, *_ in _PARTS}
      shown.append((s, shares, len(counts)))
  if not shown:
    return None
  data = [('subject', 'approach', 'seeds', *(name for name, *_ in _PARTS))]
  data += [(s.subject, s.approach, n, *(shares[name] for name, *_ in _PARTS)) for s, shares, n in shown]
  caption = ('Share of the test samples that each approach fixed, broke or left as they were, as means over seeds. The '
             'axis is cut after the last of fixed, still wrong and broken; still right runs on to 100 % and is printed '
             'at the right end.' + (' A star marks approaches whose outcome there is not OK.'
                                     if any(s.outcome != 'OK' for s, *_ in shown) else ''))
  points = [(f'{s.key} on {s.subject}, fixed minus broken', part['fixed'] - part['broken']) for s, part, _ in shown]
  return Plot('P12', caption, plot.describe(caption, points, plot.percent), lambda: _draw(shown), tuple(data))


def _draw(shown):
  subjects = list(dict.fromkeys(s.subject for s, *_ in shown))
  most = max(sum(s.subject == subject for s, *_ in shown) for subject in subjects)
  figure, axes = plot.panels(len(subjects), width=4.6, height=0.9 + 0.25 * most)
  for ax, subject in zip(axes, subjects, strict=True):
    here = [(s, shares) for s, shares, _ in shown if s.subject == subject]
    end = min(1., 1.12 * max(1 - shares['both_right'] for _, shares in here) + 0.001)
    for i, (_, shares) in enumerate(here):
      left = 0.
      for name, label, color, hatch in _PARTS:
        width = min(shares[name], max(0., end - left))
        ax.barh(i, 100 * width, left=100 * left, height=0.72, color=color, hatch=hatch, edgecolor='white',
                linewidth=0.4, label=label if i == 0 and ax is axes[0] else None)
        left += shares[name]
      ax.text(100 * end, i, f' {100 * shares["both_right"]:.1f} %', va='center', fontsize=7, color=plot.SOFT)
    ax.set_xlim(0, 100 * end)
    ax.set_yticks(range(len(here)), [plot.short(s.key) + ('' if s.outcome == 'OK' else ' *') for s, _ in here])
    ax.set_ylim(len(here) - 0.4, -0.6)
    ax.set_title(plot.short(subject))
    ax.set_xlabel('% of test samples (cut)' if end < 1 else '% of test samples')
  figure.legend(loc='outside lower center', ncols=len(_PARTS))
  return figure
