"""Tables in LaTeX."""
import re
import unicodedata

from jaxfix.study.table.model import Cell, Table, numeric, unspanned

_LONG = 30   # characters beyond which a text breaks lines
_WIDE = 9   # columns beyond which a table is scaled to the width of the text

_LATEX = {'\\': r'\textbackslash{}', '{': r'\{', '}': r'\}', '&': r'\&', '%': r'\%', '$': r'\$', '#': r'\#', '_': r'\_',
          '~': r'\textasciitilde{}', '^': r'\textasciicircum{}', '<': r'\textless{}', '>': r'\textgreater{}',
          '|': r'\textbar{}', '"': r'\textquotedbl{}', '±': r'$\pm$', '†': r'\textdagger{}', '‡': r'\textdaggerdbl{}',
          '→': r'$\rightarrow$', '≤': r'$\leq$', '≥': r'$\geq$', '×': r'$\times$', 'κ': r'$\kappa$', 'ρ': r'$\rho$',
          'ε': r'$\varepsilon$', '–': '--', '—': '---', '’': "'", '…': r'\ldots{}'}


def to_latex(table: Table) -> str:
  """A `table` environment for `booktabs` and `graphicx`, T1 font encoding; published figures on a small second line."""
  n = len(table.columns)
  body = [rf'\begin{{tabular}}{{{_alignment(table)}}}', r'\toprule']
  if table.groups:
    body.append(' & '.join(rf'\multicolumn{{{k}}}{{c}}{{{escape_latex(name)}}}' for name, k in table.groups) + r' \\')
  body += [' & '.join(map(escape_latex, table.columns)) + r' \\', r'\midrule']
  for i, row in enumerate(table.rows):
    if i in table.rules and i > 0:
      body.append(r'\midrule')
    body.append(' & '.join(map(_latex_cell, row)) + r' \\')
  body += [r'\bottomrule', r'\end{tabular}']
  if n > _WIDE:
    body = [r'\resizebox{\textwidth}{!}{%', *body, '}']
  notes = [r'\par\smallskip\raggedright\scriptsize', *(rf'{escape_latex(note)}\par' for note in table.notes)]
  return '\n'.join([r'\begin{table}', r'\centering\footnotesize', rf'\caption{{{escape_latex(table.caption)}}}',
                    rf'\label{{tab:{_label(table.id)}}}', *body, *(notes if table.notes else []),
                    r'\end{table}']) + '\n'


def _alignment(table: Table) -> str:
  """Numbers right, texts left; columns of long texts share most of the width and break lines."""
  numbers, rows = numeric(table), [unspanned(row) for row in table.rows]
  long = {k for row in rows for k, cell in enumerate(row) if len(cell.text) > _LONG} - numbers
  width = rf'p{{{0.8 / max(1, len(long)):.2f}\textwidth}}'
  return ''.join(width if k in long else 'r' if k in numbers else 'l' for k in range(len(table.columns)))


def _latex_cell(cell: Cell) -> str:
  command = {'best': r'\textbf', 'worst': r'\textit', '': ''}[cell.mark]
  text = escape_latex(cell.text)
  text = f'{command}{{{text}}}' if command else text
  if cell.published:
    text = rf'\shortstack{{{text}\\{{\scriptsize {escape_latex(cell.published)}}}}}'
  elif text.startswith('['):
    text = '{}' + text   # \\ before it would take it for its option
  return rf'\multicolumn{{{cell.span}}}{{c}}{{{text}}}' if cell.span > 1 else text


def escape_latex(text: str) -> str:
  """Text that LaTeX sets as it is. A hyphen before a number becomes a minus; letters without a form become '?'."""
  text = ' '.join(text.split())
  minus = {m.start() for m in re.finditer(r'(?<![\w.)])-(?=\d)', text)}
  return ''.join('$-$' if i in minus else _latex_character(c) for i, c in enumerate(text))


def _latex_character(c: str) -> str:
  if c in _LATEX:
    return _LATEX[c]
  if c.isascii() or unicodedata.name(c, '').startswith('LATIN') and ord(c) < 0x180:
    return c
  return '?'


def _label(text: str) -> str:
  return re.sub(r'[^\w-]', '-', text, flags=re.ASCII).replace('_', '-').lower()
