"""A table of text cells, and its forms: Markdown, HTML, LaTeX, CSV. The same table gives the same bytes.

A cell holds our text and, apart from it, the published one; they are never mixed. Side-by-side columns in Markdown and
CSV, a small second line in HTML and LaTeX. Best and worst are bold and italic, which needs no color.
"""
import types
from collections.abc import Callable, Mapping

from jaxfix.study.table.csv import to_csv
from jaxfix.study.table.html import to_html
from jaxfix.study.table.latex import escape_latex, to_latex
from jaxfix.study.table.markdown import escape_markdown, to_markdown
from jaxfix.study.table.model import FORMATS, Cell, Mark, Table, marked, marks

__all__ = ('FORMATS', 'RENDERERS', 'Cell', 'Mark', 'Table', 'escape_latex', 'escape_markdown', 'marked', 'marks',
           'to_csv', 'to_html', 'to_latex', 'to_markdown')

RENDERERS: Mapping[str, Callable[[Table], str]] = types.MappingProxyType(
  {'md': to_markdown, 'html': to_html, 'tex': to_latex, 'csv': to_csv})
