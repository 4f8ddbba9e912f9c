"""The tables of a study's report, T1 to T9: pure functions of results and of the published figures.

`all_tables` gives them in their order. A `Table` says which forms its layout is made for: the wide tables of T2, T4 and
T5 are for HTML, LaTeX and CSV; in Markdown one table a subject takes their place, which the page and LaTeX have too
where it says what differs from the study.
"""
from jaxfix.study.published import Published
from jaxfix.study.store import Results
from jaxfix.study.table import Table
from jaxfix.study.tables import (
  agreement,
  applicability,
  averages,
  effects,
  groups,
  postprocessing,
  subjects,
  timing,
)
from jaxfix.study.tables.view import lay_out

__all__ = ('all_tables',)


def all_tables(results: Results, published: Published | None = None) -> tuple[Table, ...]:
  """Every table that has something to show.

  Args:
    results: of a store.
    published: the study's figures to stand beside; None for the measured ones alone.
  """
  v = lay_out(results, published)
  tables = []
  if v.summaries:
    tables = [table for make in (
      subjects.subjects, effects.effectiveness, groups.significance_groups, effects.properties, timing.times,
      applicability.applicability, averages.category_averages, agreement.agreement) for table in make(v)]
  return (*tables, *postprocessing.postprocessing(results, published))
