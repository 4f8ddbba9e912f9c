"""P1: repair rate against negative flip rate, a panel a subject, with the line on which accuracy does not change.

acc = acc_0 + RR (1 - acc_0) - NFR, so that accuracy rises above the line RR = NFR / (1 - acc_0) and falls below it.

Decided here: an approach whose runs are CORRUPTED is shown too, as its point says most clearly what happened; of the
published points only those of approaches that were measured on the subject are drawn.
"""
from collections.abc import Sequence

import numpy as np

from jaxfix.study.aggregate import Summary
from jaxfix.study.plots import plot
from jaxfix.study.plots.plot import DAGGER, GREY, SOFT, Plot
from jaxfix.study.published import Published

_LINEAR_BELOW = 0.1   # percent of all samples; there the axis is linear, so that 0 has a place


def unchanged_accuracy(nfr: float | np.ndarray, acc_original: float) -> float | np.ndarray:
  """Repair rate at which as many samples are fixed as are broken; fractions; infinite where nothing was wrong."""
  wrong = 1 - acc_original
  return np.divide(nfr, wrong) if wrong > 0 else np.full_like(np.asarray(nfr, float), np.inf)


def trade_off(summaries: Sequence[Summary], published: Published | None) -> Plot | None:
  """The plot, or None where no subject has a repair rate and a negative flip rate.

  Args:
    summaries: of all approaches on all subjects.
    published: the study's tables, or None.
  """
  shown = [s for s in summaries if np.isfinite(s.mean('rr')) and np.isfinite(s.mean('nfr'))]
  if not shown:
    return None
  subjects = list(dict.fromkeys(s.subject for s in shown))
  theirs = {(s.approach, s.subject): (rr, nfr) for s in shown
            if (rr := plot.printed(published, s, 'rr')) and (nfr := plot.printed(published, s, 'nfr'))}
  doubtful = {(s.approach, s.subject) for s in shown if (s.approach, s.subject) in theirs
              and any(published.doubtful(s.code, s.published_subject, m) for m in ('rr', 'nfr'))}
  originals = {s.subject: published.subjects[s.published_subject].orig_accuracy for s in shown
               if (s.approach, s.subject) in theirs}
  rows = [('subject', 'approach', 'source', 'outcome', 'acc_original', 'nfr', 'nfr_std', 'rr', 'rr_std', 'doubtful')]
  for s in shown:
    rows.append((s.subject, s.approach, 'jaxfix', s.outcome, s.mean('acc_original'), s.mean('nfr'), s.std('nfr'),
                 s.mean('rr'), s.std('rr'), None))
    if pair := theirs.get((s.approach, s.subject)):
      rr, nfr = pair
      rows.append((s.subject, s.approach, 'published', 'OK', originals[s.subject], nfr.mean, nfr.std, rr.mean, rr.std,
                   (s.approach, s.subject) in doubtful))
  caption = (
    'Repair rate against negative flip rate on each subject. Above the line accuracy rises, below it falls; up and to '
    'the left is better. The horizontal axis is linear below 0.1 % and logarithmic above. Points are means over seeds, '
    'bars population standard deviations.' +
    (' Hollow points are published, joined to ours by a thin line; the dotted line is that of the published original.'
     if theirs else '' if published is None else ' No approach shown here has a published point on its subject.') +
    (f' {DAGGER} marks published points that contradict other figures of the same paper.' if doubtful else ''))
  alt = plot.describe(caption, [(f'repair rate of {s.key} on {s.subject}', s.mean('rr')) for s in shown], plot.percent)
  return Plot('P1', caption, alt, lambda: _draw(shown, subjects, theirs, originals, doubtful), tuple(rows))


def _draw(shown, subjects, theirs, originals, doubtful):
  figure, axes = plot.panels(len(subjects), width=4.6, height=3.7)
  marks = plot.markers(list(dict.fromkeys(s.approach for s in shown)))
  for ax, subject in zip(axes, subjects, strict=True):
    here = [s for s in shown if s.subject == subject]
    pairs = [theirs[key] for s in here if (key := (s.approach, subject)) in theirs]
    far = 100 * max([s.mean('nfr') for s in here] + [nfr.mean for _, nfr in pairs])
    high = 100 * max([s.mean('rr') for s in here] + [rr.mean for rr, _ in pairs])
    ax.set_xscale('symlog', linthresh=_LINEAR_BELOW, linscale=0.6)
    ax.set_xlim(-0.25 * _LINEAR_BELOW, max(2 * far, 2 * _LINEAR_BELOW))
    ax.set_ylim(-0.04 * max(high, 5), 1.12 * max(high, 5))
    _iso_line(ax, np.mean([s.mean('acc_original') for s in here]), '-')
    if pairs:
      _iso_line(ax, originals[subject], ':')
    for s in here:
      if pair := theirs.get((s.approach, subject)):
        _joined(ax, s, pair, marks[s.approach], (s.approach, subject) in doubtful)
      ax.errorbar(100 * s.mean('nfr'), 100 * s.mean('rr'), xerr=100 * s.std('nfr'), yerr=100 * s.std('rr'),
                  fmt=marks[s.approach], color=plot.color(s.category), markersize=6, elinewidth=0.8, zorder=4)
    ax.set_title(plot.short(subject))
    ax.set_xlabel('negative flip rate, % of all test samples')
    ax.set_ylabel('repair rate, % of original failures')
    ax.grid(color=plot.FAINT, linewidth=0.6)
    _ticks(ax)
  _legend(figure, shown, bool(theirs))
  for ax, subject in zip(axes, subjects, strict=True):   # names last: they need the final layout
    here = [s for s in shown if s.subject == subject]
    hollow = [(100 * nfr.mean, 100 * rr.mean) for key, (rr, nfr) in theirs.items() if key[1] == subject]
    plot.label_points(ax, [(100 * s.mean('nfr'), 100 * s.mean('rr')) for s in here],
                      [plot.short(s.key) + ('' if s.outcome == 'OK' else f' ({s.outcome.lower()})') for s in here],
                      [plot.INK] * len(here), hollow)
  return figure


def _iso_line(ax, acc_original, style):
  nfr = np.concatenate([np.linspace(0, _LINEAR_BELOW, 50), np.geomspace(_LINEAR_BELOW, ax.get_xlim()[1], 200)[1:]])
  ax.plot(nfr, unchanged_accuracy(nfr, float(acc_original)), style, color=SOFT, linewidth=0.9, zorder=2)


def _joined(ax, s, pair, mark, doubtful):
  """The published point, hollow, with a dagger if it is doubtful, and the line from it to ours."""
  rr, nfr = pair
  ax.plot([100 * s.mean('nfr'), 100 * nfr.mean], [100 * s.mean('rr'), 100 * rr.mean], color=GREY, linewidth=0.6,
          zorder=1)
  ax.errorbar(100 * nfr.mean, 100 * rr.mean, xerr=100 * nfr.std, yerr=100 * rr.std, fmt=mark,
              color=plot.color(s.category), markerfacecolor='white', markersize=5, elinewidth=0.6, zorder=3)
  if doubtful:
    ax.annotate(DAGGER, (100 * nfr.mean, 100 * rr.mean), (4, 2), textcoords='offset points', fontsize=9,
                color=plot.color(s.category), zorder=5)


def _ticks(ax):
  """Plain numbers on the symlog axis, as many as there is room for."""
  from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
  ax.xaxis.set_major_locator(FixedLocator([v for v in (0, 0.1, 1, 10, 100) if v <= ax.get_xlim()[1]]))
  ax.xaxis.set_minor_locator(NullLocator())
  ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:g}'))


def _legend(figure, shown, hollow):
  from matplotlib.lines import Line2D
  entries = [Line2D([], [], linestyle='', marker='o', color=plot.color(c), label=f'{c} level')
             for c in dict.fromkeys(s.category for s in shown)]
  if hollow:
    entries.append(Line2D([], [], linestyle='', marker='o', color=SOFT, markerfacecolor='white', label='published'))
  entries.append(Line2D([], [], color=SOFT, linewidth=0.9, label='accuracy unchanged'))
  figure.legend(handles=entries, loc='outside lower center', ncols=len(entries))
