"""The plots of a report: functions of the rows, traces and published tables, one family a file.

  P1 trade-off of repairs and flips     P4 time                   P12 what became of every sample
  P2 letters of significance groups     P5 inside each repair     P13 attack success against the radius
  P3 profiles                           P11 combined models
"""
from jaxfix.study.aggregate import summarize
from jaxfix.study.plots import attack, combined, curves, durations, flips, letters, radar, tradeoff
from jaxfix.study.plots.plot import Plot, images, to_csv
from jaxfix.study.published import Published
from jaxfix.study.store import Results

__all__ = ('Plot', 'all_plots', 'images', 'to_csv')


def all_plots(results: Results, published: Published | None) -> tuple[Plot, ...]:
  """Every plot that has something to show, in the order of their ids.

  Args:
    results: of a store, or of rows alone; then there are no curves.
    published: the study's tables, or None.
  """
  summaries, rows = summarize(results.rows), [r for r in results.rows if r['postprocess'] == 'none']
  subjects = dict.fromkeys(s.subject for s in summaries)
  plots = [
    tradeoff.trade_off(summaries, published), *letters.letters_maps(summaries, published),
    radar.radar(summaries, published), durations.durations(summaries, rows, published),
    *(curves.curves(s, results) for s in summaries),
    *(combined.combinations(s, results.rows, published) for s in summaries), flips.flips(summaries, rows),
    *(attack.attack_curves(subject, summaries, results) for subject in subjects)]
  return tuple(p for p in plots if p is not None)
