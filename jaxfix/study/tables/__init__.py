"""The tables of a study's report, T1 to T9: pure functions of results and of the published figures.

`all_tables` gives them in their order. A `Table` says which forms its layout is made for: the wide tables of T2, T4 and
T5 are for HTML, LaTeX and CSV; in Markdown one table a subject takes their place.
"""
from jaxfix.study.published import Published
from jaxfix.study.store import Results
from jaxfix.study.table import Table
from jaxfix.study.tables.agreement import agreement
from jaxfix.study.tables.applicability import applicability
from jaxfix.study.tables.averages import category_averages
from jaxfix.study.tables.effects import effectiveness, properties
from jaxfix.study.tables.groups import significance_groups
from jaxfix.study.tables.postprocessing import postprocessing
from jaxfix.study.tables.subjects import subjects
from jaxfix.study.tables.timing import times
from jaxfix.study.tables.view import view

__all__ = ('all_tables',)


def all_tables(results: Results, published: Published | None = None) -> tuple[Table, ...]:
  """Every table that has something to show.

  Args:
    results: of a store.
    published: the study's figures to stand beside; None for the measured ones alone.
  """
  v = view(results, published)
  tables = []
  if v.summaries:
    tables = [table for make in (subjects, effectiveness, significance_groups, properties, times, applicability,
                                 category_averages, agreement) for table in make(v)]
  return (*tables, *postprocessing(results, published))
