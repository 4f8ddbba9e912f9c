"""P11: original and repaired model combined (post-processing): every seed as a point, a box from five seeds on."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxfix.study.aggregate import Summary
from jaxfix.study.plots import plot
from jaxfix.study.plots.plot import GREY, SOFT, Plot
from jaxfix.study.published import Published

METHODS = {'none': 'NO', 'sv': 'SV', 'hv': 'HV', 'up': 'UP', 'ud': 'UD', 'us': 'US', 'us_cal': 'US-cal', 'us_k': 'US-k'}
"""Value of the field `postprocess` -> what is printed; 'NO' is the repaired model alone."""
_METRICS = (('acc', 'accuracy, %', 100), ('asr', 'attack success, %', 100), ('aaod', 'AAOD', 1),
            ('nfr', 'negative flip rate, %', 100))
_BOX_FROM = 5
_PRINTED = ('AP', 'UTKFace')   # the only approach and subject of the study's figure


def combinations(summary: Summary, rows: Sequence[Mapping[str, Any]], published: Published | None) -> Plot | None:
  """The plot of an approach on a subject, or None where its models were not combined."""
  mine = [r for r in rows if (r['approach'], r['subject']) == (summary.approach, summary.subject)]
  if all(r['postprocess'] == 'none' for r in mine):
    return None
  values = {metric: {m: [r[metric] for r in mine if r['postprocess'] == m and r[metric] is not None] for m in METHODS}
            for metric, *_ in _METRICS}
  values = {metric: found for metric, found in values.items() if any(v for m, v in found.items() if m != 'none')}
  if not values:
    return None
  used = [m for m in METHODS if any(found[m] for found in values.values())]
  known = published.postprocessing if published and (summary.code, summary.published_subject) == _PRINTED else {}
  theirs = {metric: {m: v for m in used if (v := known.get((metric, METHODS[m])))} for metric in values}
  data = [('metric', 'method', 'source', 'value')]
  for metric, found in values.items():
    data += [(metric, METHODS[m], 'jaxfix', v) for m in used for v in found[m]]
    data += [(metric, METHODS[m], 'published', v) for m, numbers in theirs[metric].items() for v in numbers]
  caption = (f'{summary.key} on {summary.subject}, combined with the original model. NO is the repaired model alone; '
             'each point is a seed' +
             (', boxes are drawn from five seeds on' if any(len(v) >= _BOX_FROM for f in values.values()
                                                             for v in f.values()) else '') +
             ('; hollow points were read off the published figure.' if any(theirs.values()) else '.') +
             (' Levels of attack success are not comparable with the published ones: number and choice of the attacked '
              'inputs and the output under attack differ.' if theirs.get('asr') else ''))
  first = next(iter(values))
  points = [(f'{METHODS[m]} {first}', float(np.mean(values[first][m]))) for m in used if values[first][m]]
  return Plot(f'P11.{summary.approach}.{summary.subject}', caption, plot.describe(caption, points, plot.percent),
              lambda: _draw(values, theirs, used, plot.color(summary.category)), tuple(data), summary.approach)


def _draw(values, theirs, used, color):
  figure, axes = plot.panels(len(values), width=2.6 + 0.12 * len(used), height=2.5)
  labels = {metric: (label, scale) for metric, label, scale in _METRICS}
  for ax, (metric, found) in zip(axes, values.items(), strict=True):
    label, scale = labels[metric]
    shift = -0.12 if theirs[metric] else 0.   # room for the published points
    for place, method in enumerate(used):
      ours = scale * np.array(found[method], float)
      if len(ours) >= _BOX_FROM:
        ax.boxplot([ours], positions=[place + shift], widths=0.42, showfliers=False, manage_ticks=False,
                   medianprops={'color': color}, boxprops={'color': SOFT}, whiskerprops={'color': SOFT},
                   capprops={'color': SOFT})
      ax.plot(place + shift + _spread(len(ours)), ours, 'o', color=color, markersize=4, zorder=3)
      if numbers := theirs[metric].get(method):
        ax.plot(place + 0.3 + _spread(len(numbers)) / 2, scale * np.array(numbers), 'o', color=GREY,
                markerfacecolor='white', markersize=4, zorder=2)
    ax.set_xticks(range(len(used)), [METHODS[m] for m in used], fontsize=7.5)
    ax.set_xlim(-0.6, len(used) - 0.4)
    ax.set_ylabel(label)
    ax.grid(color=plot.FAINT, linewidth=0.6, axis='y')
    ax.ticklabel_format(axis='y', useOffset=False)
  return figure


def _spread(count: int) -> np.ndarray:
  """Places beside each other for points of one method: the same every time."""
  return np.linspace(-0.12, 0.12, count) if count > 1 else np.zeros(count)
