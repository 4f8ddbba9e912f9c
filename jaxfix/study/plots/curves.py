"""P5: what happened inside a repair, step by step: one plot an approach and subject, a panel a recorded curve."""
from collections.abc import Sequence

import numpy as np

from jaxfix.study.aggregate import Summary
from jaxfix.study.plots import plot
from jaxfix.study.plots.plot import SOFT, Plot
from jaxfix.study.store import Results
from jaxfix.study.traces import selected_entries

_MOST_DRAWN = 400   # points of a line; a page holds dozens of these plots
_WIDEST = 3
_STYLES = ('-', '--', ':', '-.')


def curves(summary: Summary, results: Results) -> Plot | None:
  """Curves of all seeds of an approach on a subject, or None where none was recorded.

  Every seed is a line; the band spans smallest and largest value over seeds at the steps that all of them reached. The
  mark is on the entry of the returned weights, in the curves that have one.
  """
  runs = {}
  for row in results.rows:
    if (row['approach'], row['subject'], row['postprocess']) == (summary.approach, summary.subject, 'none'):
      trace = results.trace(row['run_id'])
      if trace and any(len(v) for v in trace['curves'].values()):
        found = {k: np.asarray(v, float) for k, v in trace['curves'].items() if len(v)}
        runs[row['seed']] = found, selected_entries(trace)
  if not runs:
    return None
  names = list(dict.fromkeys(name for found, _ in runs.values() for name in found))
  data = [('curve', 'seed', 'step', 'value', 'selected')]
  for seed, (found, selected) in runs.items():
    for name, values in found.items():
      data += [(name, seed, step, value, step == selected.get(name)) for step, value in enumerate(values.tolist())]
  caption = (f'Inside {summary.key} on {summary.subject}: what it recorded at each step. A line a seed; the band spans '
             'all seeds' + ('; the mark is on the weights that were returned.' if any(s for _, s in runs.values())
                             else '.'))
  ends = [(f'{name} of seed {seed} ends at', float(values[-1])) for seed, (found, _) in runs.items()
          for name, values in found.items()]
  alt = plot.describe(caption, ends, lambda v: f'{v:.4g}')
  return Plot(f'P5.{summary.approach}.{summary.subject}', caption, alt, lambda: _draw(runs, names, summary.category),
              tuple(data), summary.approach)


def _draw(runs, names, category):
  from matplotlib.lines import Line2D
  figure, axes = plot.panels(len(names), width=3.1, height=2.4, columns=_WIDEST)
  styles = {seed: _STYLES[i % len(_STYLES)] for i, seed in enumerate(runs)}
  for ax, name in zip(axes, names, strict=True):
    lines = {seed: found[name] for seed, (found, _) in runs.items() if name in found}
    _band(ax, list(lines.values()), plot.color(category))
    for seed, values in lines.items():
      selected = runs[seed][1].get(name)
      steps = _thinned(len(values), selected)
      ax.plot(steps, values[steps], styles[seed], color=plot.color(category), linewidth=1.1,
              marker='o' if len(values) < 15 else None, markersize=2.5)
      if selected is not None:
        ax.plot(selected, values[selected], 'D', color=plot.INK, markersize=4.5, markerfacecolor='white', zorder=4)
    ax.set_title(plot.short(name.replace('_', ' ')))
    ax.set_xlabel('step')
    ax.grid(color=plot.FAINT, linewidth=0.6)
    ax.xaxis.get_major_locator().set_params(integer=True, nbins=5)
  if len(runs) > 1:
    handles = [Line2D([], [], linestyle=styles[seed], color=SOFT, label=f'seed {seed}') for seed in runs]
    figure.legend(handles=handles, loc='outside lower center', ncols=min(len(runs), 5))
  return figure


def _band(ax, lines: Sequence[np.ndarray], color: str) -> None:
  length = min(len(v) for v in lines)
  if len(lines) > 1 and length > 1:
    steps = _thinned(length, None)
    stack = np.stack([v[steps] for v in lines])
    ax.fill_between(steps, stack.min(axis=0), stack.max(axis=0), color=color, alpha=0.15, linewidth=0)


def _thinned(length: int, selected: int | None) -> np.ndarray:
  """At most `_MOST_DRAWN` steps, evenly, with the first, the last and the selected one."""
  steps = np.unique(np.linspace(0, length - 1, min(length, _MOST_DRAWN)).round().astype(int))
  return steps if selected is None else np.union1d(steps, [selected])
