"""P13: attack success rate against the radius, original and repaired, with 95 % Wilson bands; one plot a subject.

Decided here: seeds attack inputs of the same test split, so that their rates are averaged and the band is that of one
seed's n, not of the sum.
"""
import collections
from collections.abc import Sequence

import numpy as np

from jaxfix.evaluate.robustness import wilson
from jaxfix.study.aggregate import Summary
from jaxfix.study.plots import plot
from jaxfix.study.plots.plot import SOFT, Plot
from jaxfix.study.store import Results

_COLUMNS = 4


def attack_curves(subject: str, summaries: Sequence[Summary], results: Results) -> Plot | None:
  """The plot of a subject, a panel an approach, or None where no attack was run at several radii."""
  shown = []
  for s in summaries:
    if s.subject != subject:
      continue
    runs = [row['run_id'] for row in results.rows
            if (row['approach'], row['subject'], row['postprocess']) == (s.approach, subject, 'none')]
    found = [c for r in runs if (trace := results.trace(r)) and (c := trace.get('asr_curve'))]
    found = [c for c in found if c['n'] and None not in (*c['original'], *c['repaired'])]   # someone was attacked
    found = _of_one_grid(found)
    if found:
      rates = {k: np.mean([np.asarray(c[k], float) for c in found], axis=0) for k in ('original', 'repaired')}
      shown.append((s, np.asarray(found[0]['eps'], float), rates, min(int(c['n']) for c in found), len(found)))
  if not shown:
    return None
  data = [('approach', 'model', 'epsilon', 'asr', 'low', 'high', 'n', 'seeds')]
  for s, eps, rates, n, seeds in shown:
    for model, values in rates.items():
      data += [(s.approach, model, e, v, *_interval(v, n), n, seeds) for e, v in zip(eps.tolist(), values.tolist(),
                                                                                    strict=True)]
  spaces = sorted({row['asr_eps_space'] for row in results.rows if row['subject'] == subject and row['asr_eps_space']})
  unit = f'{spaces[0]} input space' if len(spaces) == 1 else 'input space'
  caption = (f'Attack success rate on {subject} against the radius of the ball in {unit}; lower is more robust. '
             'Dashed: original, solid: repaired, means over seeds; bands are 95 % Wilson intervals for the number of '
             'inputs that one seed attacks.')
  points = [(f'{s.key}, repaired minus original at {eps[i]:g}', float(rates['repaired'][i] - rates['original'][i]))
            for s, eps, rates, _, _ in shown for i in range(len(eps))]
  alt = plot.describe(caption, points, plot.percent)
  return Plot(f'P13.{subject}', caption, alt, lambda: _draw(shown), tuple(data))


def _of_one_grid(curves: Sequence[dict]) -> list[dict]:
  """Those of the radii that most seeds have, or, of as many, those with more radii: a later run may have had others."""
  grids = collections.Counter(tuple(c['eps']) for c in curves)
  chosen = max(grids, key=lambda grid: (grids[grid], len(grid), grid), default=())
  return [c for c in curves if tuple(c['eps']) == chosen]


def _interval(rate: float, n: int) -> tuple[float, float]:
  """Wilson's for a mean rate, which need not be a whole number of inputs."""
  return wilson(rate * n, n)


def _draw(shown):
  from matplotlib.lines import Line2D
  figure, axes = plot.panels(len(shown), width=2.5, height=2.2, columns=_COLUMNS)
  for i, (ax, (s, eps, rates, n, _)) in enumerate(zip(axes, shown, strict=True)):
    for model, values in rates.items():
      ink, style = (SOFT, '--') if model == 'original' else (plot.color(s.category), '-')
      low, high = zip(*(_interval(v, n) for v in values), strict=True)
      ax.fill_between(eps, 100 * np.array(low), 100 * np.array(high), color=ink, alpha=0.15, linewidth=0)
      ax.plot(eps, 100 * values, style, color=ink, linewidth=1.3, marker='o', markersize=2.5)
    ax.set_ylim(0, 100)
    ax.set_title(f'{plot.short(s.key)} (n = {n})')
    ax.set_xlabel('radius')
    if i % _COLUMNS == 0:
      ax.set_ylabel('attack success, %')
    ax.grid(color=plot.FAINT, linewidth=0.6)
  figure.legend(handles=[Line2D([], [], color=SOFT, linestyle='--', label='original'),
                         Line2D([], [], color=plot.INK, label='repaired (color of its category)')],
                loc='outside lower center', ncols=2)
  return figure
