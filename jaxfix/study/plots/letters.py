"""P2: the letters of significance groups as a heat map, approach by metric, ours and the published ones side by side.

Decided here: the published letters rest on the study's subjects, so that they stand beside ours only in a plot
over measured counterparts of these (P2). Where there are stand-ins too, P2.all is over all measured subjects, without
published letters; it is P2 where there are only stand-ins. The tables T3 and T3.all are told apart in the same way.

The color is the mean rank of an approach's letters (a is 0), divided by the rank of the column's last letter: columns
with many groups and with few compare.
"""
from collections.abc import Mapping, Sequence

import numpy as np

from jaxfix.study.aggregate import COMPARED, Summary, significance
from jaxfix.study.plots import plot
from jaxfix.study.plots.plot import Plot
from jaxfix.study.published import Published


def letter_ranks(letters: str) -> list[int]:
  """Ranks of the groups that an approach is in: 'ac' is [0, 2]; names of several letters are joined by commas."""
  names = letters.split(',') if ',' in letters else list(letters)
  return [_rank(name) for name in names if name.isalpha()]


def _rank(name: str) -> int:
  rank = 0
  for letter in name:
    rank = 26 * rank + ord(letter) - ord('a') + 1
  return rank - 1


def letters_maps(summaries: Sequence[Summary], published: Published | None) -> tuple[Plot, ...]:
  """The plots; none where no approach has a letter.

  Args:
    summaries: of all approaches on all subjects.
    published: the study's tables, or None.
  """
  counterparts = [s for s in summaries if published and s.published_subject]
  found = [_letters_map('P2', counterparts, published.letters)] if counterparts else []
  if len(counterparts) < len(summaries):
    found.append(_letters_map('P2.all' if counterparts else 'P2', summaries, {}))
  return tuple(p for p in found if p is not None)


def _letters_map(name: str, summaries: Sequence[Summary], printed: Mapping[str, Mapping[str, str]]) -> Plot | None:
  """One plot, or None; `printed` has the published letters by code."""
  groups = significance(summaries)
  approaches = {s.approach: s for s in summaries}
  ours = {a: {m: groups[m].letters.get(a, '').strip('-') if m in groups else '' for m in COMPARED} for a in approaches}
  if not any(text for found in ours.values() for text in found.values()):
    return None
  procedure = ', '.join(sorted({f'unit {g.unit}, {g.test.title()} t-tests' for g in groups.values()}))
  theirs = {a: printed[s.code] for a, s in approaches.items() if s.code in printed}
  data = [('approach', 'source', *(m for m in COMPARED))]
  for a in approaches:
    data.append((a, 'jaxfix', *(ours[a][m] for m in COMPARED)))
    if a in theirs:
      data.append((a, 'published', *(theirs[a][m] for m in COMPARED)))
  caption = (f'Significance groups ({procedure}): approaches that share a letter do not differ significantly; '
             f'a is best, darker is better. Compared over {", ".join(dict.fromkeys(s.subject for s in summaries))}. A '
             'dash is an approach without a value.' +
             (' Right: the published letters; they rest on five subjects, and their procedure is not known in detail.'
              if theirs else ''))
  points = [(f'{s.key} {m.upper()}', float(np.mean(ranks))) for a, s in approaches.items() for m in COMPARED
            if (ranks := letter_ranks(ours[a][m]))]
  alt = plot.describe(caption, points, lambda v: f'mean letter rank {v:.2g}')
  return Plot(name, caption, alt, lambda: _draw(approaches, ours, theirs), tuple(data))


def _draw(approaches, ours, theirs):
  sides = [('jaxfix', ours), *([('published', theirs)] if theirs else [])]
  figure, axes = plot.panels(len(sides), width=3.6, height=0.8 + 0.26 * len(approaches))
  for ax, (title, letters) in zip(axes, sides, strict=True):
    shade = _shades(approaches, letters)
    # the light half of the palette stays under dark letters, the dark half under light ones: readable in grey
    ax.imshow(np.ma.masked_invalid(shade), cmap='cividis', vmin=-0.05, vmax=1.05, aspect='auto')
    for i, name in enumerate(approaches):
      for j, metric in enumerate(COMPARED):
        text = letters.get(name, {}).get(metric, '') or '-'
        dark = np.isfinite(shade[i, j]) and shade[i, j] < 0.55
        ax.text(j, i, text, ha='center', va='center', fontsize=8, color='white' if dark else 'black')
    ax.set_xticks(range(len(COMPARED)), [m.upper() for m in COMPARED], fontsize=8)
    ax.set_yticks(range(len(approaches)), [plot.short(s.key) for s in approaches.values()], fontsize=8)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel(title)
  return figure


def _shades(approaches, letters) -> np.ndarray:
  """`[approaches, metrics]` in [0, 1], NaN without letters."""
  shade = np.full((len(approaches), len(COMPARED)), np.nan)
  for j, metric in enumerate(COMPARED):
    ranks = {i: r for i, a in enumerate(approaches) if (r := letter_ranks(letters.get(a, {}).get(metric, '')))}
    last = max((max(r) for r in ranks.values()), default=0)
    for i, r in ranks.items():
      shade[i, j] = np.mean(r) / last if last else 0.
  return shade
