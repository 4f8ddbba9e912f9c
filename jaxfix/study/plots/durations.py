"""P4: how long each approach took, on a logarithmic axis, grouped by category; a panel a subject."""
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxfix.study.aggregate import CATEGORIES, Summary
from jaxfix.study.plots import plot
from jaxfix.study.plots.plot import INK, SOFT, Plot
from jaxfix.study.published import Published

_SUPERSCRIPTS = str.maketrans('-0123456789', '\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079')


def durations(summaries: Sequence[Summary], rows: Sequence[Mapping[str, Any]], published: Published | None
              ) -> Plot | None:
  """The plot, or None where nothing was timed."""
  shown = [s for s in summaries if np.isfinite(s.mean('seconds')) and s.mean('seconds') > 0]
  if not shown:
    return None
  theirs = {(s.approach, s.subject): found.mean for s in shown if (found := plot.printed(published, s, 'seconds'))}
  data = [('subject', 'category', 'approach', 'source', 'seed', 'seconds', 'outcome')]
  for s in shown:
    data += [(s.subject, s.category, s.approach, 'jaxfix', i, v, s.outcome)
             for i, v in enumerate(s.values['seconds'])]
    if found := theirs.get((s.approach, s.subject)):
      data.append((s.subject, s.category, s.approach, 'published', None, found, 'OK'))
  caption = (f'Wall time of a repair, compilation included, on {hardware(rows)}. Bars are means over seeds, dots the '
             'seeds.' + (' Hollow bars are published, measured on other hardware (two RTX 3090, Xeon Gold 6326): only '
                         'orders of magnitude and ranks compare.' if theirs else '') +
             (' A star marks approaches whose outcome there is not OK.'
              if any(s.outcome != 'OK' for s in shown) else ''))
  points = [(f'{s.key} on {s.subject}', s.mean('seconds')) for s in shown]
  alt = plot.describe(caption, points, plot.seconds, scale=np.log)
  return Plot('P4', caption, alt, lambda: _draw(shown, theirs), tuple(data))


def hardware(rows: Sequence[Mapping[str, Any]]) -> str:
  """Devices and processors of the rows that ran on one, in words."""
  machines = dict.fromkeys(
    row['host_cpu'] if row['platform'] == 'cpu' else f'{row["device_count"]} x {row["device_kind"]}, {row["host_cpu"]}'
    for row in rows if row['device_kind'])
  return '; '.join(sorted(m for m in machines if m)) or 'unknown hardware'


def _draw(shown, theirs):
  from matplotlib.patches import Patch
  from matplotlib.ticker import NullLocator
  subjects = list(dict.fromkeys(s.subject for s in shown))
  most = max(sum(s.subject == subject for s in shown) for subject in subjects)
  figure, axes = plot.panels(len(subjects), width=4.6, height=0.9 + 0.27 * most)
  times = [v for s in shown for v in (*s.values['seconds'], theirs.get((s.approach, s.subject), 0.)) if v > 0]
  low, high = 10 ** np.floor(np.log10(min(times))), 10 ** np.ceil(np.log10(1.05 * max(times)))
  for ax, subject in zip(axes, subjects, strict=True):
    here = sorted((s for s in shown if s.subject == subject), key=lambda s: _category_place(s.category))
    for i, s in enumerate(here):
      ax.barh(i, s.mean('seconds') - low, left=low, height=0.55, color=plot.color(s.category), alpha=0.85)
      ax.plot(s.values['seconds'], [i] * len(s.values['seconds']), '.', color=INK, markersize=3)
      if found := theirs.get((s.approach, subject)):
        ax.barh(i, found - low, left=low, height=0.8, fill=False, edgecolor=SOFT, linewidth=0.9)
      if i and here[i - 1].category != s.category:
        ax.axhline(i - 0.5, color=SOFT, linewidth=0.6)
    ax.set_xscale('log')
    ax.set_xlim(low, high)
    ax.xaxis.set_major_formatter(lambda x, _: _power(x))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_yticks(range(len(here)), [plot.short(s.key) + ('' if s.outcome == 'OK' else ' *') for s in here])
    ax.set_ylim(len(here) - 0.4, -0.6)
    ax.set_title(plot.short(subject))
    ax.set_xlabel('seconds (logarithmic)')
  entries = [Patch(color=plot.color(c), label=f'{c} level') for c in dict.fromkeys(s.category for s in shown)]
  if theirs:
    entries.append(Patch(fill=False, edgecolor=SOFT, label='published'))
  figure.legend(handles=entries, loc='outside lower center', ncols=len(entries))
  return figure


def _category_place(category: str) -> int:
  return CATEGORIES.index(category) if category in CATEGORIES else len(CATEGORIES)


def _power(value: float) -> str:
  """A power of ten as a tick prints it: '0.1', '100', '10\u2074'."""
  exponent = round(np.log10(value))
  return f'{value:g}' if -3 < exponent < 4 else '10' + str(exponent).translate(_SUPERSCRIPTS)
