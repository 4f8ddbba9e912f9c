"""P2: the letters of significance groups as a heat map, approach by metric, ours and the published ones side by side.

The color is the mean rank of an approach's letters (a is 0), divided by the rank of the column's last letter: columns
with many groups and with few compare.
"""
from collections.abc import Mapping, Sequence

import numpy as np

from jaxfix.statistics import Groups
from jaxfix.study.aggregate import COMPARED, Summary
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


def letters_map(summaries: Sequence[Summary], groups: Mapping[str, Groups], published: Published | None) -> Plot | None:
  """The plot, or None where no approach has a letter.

  Args:
    summaries: give the approaches and their order.
    groups: column of `COMPARED` -> its significance groups, by registry key.
    published: the study's tables, or None.
  """
  approaches = {s.approach: s for s in summaries}
  ours = {a: {m: groups[m].letters.get(a, '').strip('-') if m in groups else '' for m in COMPARED} for a in approaches}
  if not any(text for found in ours.values() for text in found.values()):
    return None
  procedure = ', '.join(sorted({f'unit {g.unit}, {g.test.title()} t-tests' for g in groups.values()}))
  theirs = {a: published.letters[s.code] for a, s in approaches.items() if published and s.code in published.letters}
  data = [('approach', 'source', *(m for m in COMPARED))]
  for a in approaches:
    data.append((a, 'jaxfix', *(ours[a][m] for m in COMPARED)))
    if a in theirs:
      data.append((a, 'published', *(theirs[a][m] for m in COMPARED)))
  caption = (f'Significance groups ({procedure}): approaches that share a letter do not differ significantly; '
             'a is best, darker is better. A dash is an approach without a value.' +
             (' Right: the published letters; their procedure is not known in detail.' if theirs else ''))
  points = [(f'{s.key} {m.upper()}', float(np.mean(ranks))) for a, s in approaches.items() for m in COMPARED
            if (ranks := letter_ranks(ours[a][m]))]
  alt = plot.describe(caption, points, lambda v: f'mean letter rank {v:.2g}')
  return Plot('P2', caption, alt, lambda: _draw(approaches, ours, theirs), tuple(data))


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
