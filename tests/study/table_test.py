"""Tables in their four forms: escapes, spans, marks at ties, published figures, structure that parsers accept."""
import csv
import html.parser
import io
import re

from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError
from jaxfix.study import table
from jaxfix.study.table import Cell, Table

_SPECIAL = r'a_b & 5 % < > ± | * ` $ # ~ ^ { } [x] \ "q" †‡ é ł'


class Elements(html.parser.HTMLParser):
  """Checks nesting, and collects start tags with attributes, and text."""

  def __init__(self, text: str):
    super().__init__()
    self.open, self.starts, self.text = [], [], []
    self.feed(text)
    self.close()
    assert not self.open, f'not closed: {self.open}'

  def handle_starttag(self, tag, attrs):
    self.starts.append((tag, dict(attrs)))
    if tag != 'br':
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag, f'</{tag}> closes nothing'

  def handle_data(self, data):
    self.text.append(data)

  def count(self, tag):
    return sum(t == tag for t, _ in self.starts)


def _table(rows, columns=('A', 'B', 'C'), **fields):
  return Table('T2.x_y', 'A caption', columns, tuple(map(tuple, rows)), **fields)


_PLAIN = _table([(Cell('AP'), Cell('1.00±0.100', '2.00', 'best', sort=0.01), Cell('x', mark='worst')),
                 (Cell('RA'), Cell('FAILURE', 'OK', span=2, title='no "way" & out'))], rules=(1,), notes=('A note_',),
                groups=(('', 1), ('MNIST', 2)))


class TableTest(parameterized.TestCase):

  def test_rows_must_cover_the_columns(self):
    with self.assertRaisesRegex(BadInputError, 'row 1 covers 2 of 3'):
      _table([(Cell('a'), Cell('b', span=2)), (Cell('a'), Cell('b'))])
    with self.assertRaisesRegex(BadInputError, 'groups'):
      _table([], groups=(('x', 2),))

  @parameterized.parameters(
    ([5, 4, 3, 2, 1, 0], 1, ['best'] * 3 + ['worst'] * 3),
    ([5, 4, 3, 2, 1, 0], -1, ['worst'] * 3 + ['best'] * 3),
    ([9, 8, 7, 7, 5, 4, 3, 2], 1, ['best'] * 4 + [''] + ['worst'] * 3),       # a tie at the border shares the mark
    ([9, 8, 7, 6, 3, 3, 3, 3], 1, ['best'] * 3 + [''] + ['worst'] * 4),
    ([9, 9, 9, 9, 1, 1, 1, 1], 1, ['best'] * 4 + ['worst'] * 4),
    ([1, 1, 1, 1], 1, [''] * 4),                                              # nobody is better than anybody
    ([3, 2], 1, ['', '']), ([3], 1, ['']), ([], 1, []),
    ([4, 3, 2, 1], 1, ['best', '', '', 'worst']),                             # the middle would be both
    ([None, 6, float('nan'), 5, 4, 3, 2, 1], 1, ['', 'best', '', 'best', 'best', 'worst', 'worst', 'worst']))
  def test_top_and_bottom_three(self, values, better, expected):
    self.assertEqual(table.marks(values, better=better), expected)

  def test_marks_skip_words_across_columns(self):
    rows = table.marked([[Cell(str(v)), Cell(str(v), sort=v), Cell('')] for v in range(6)]
                        + [[Cell('word'), Cell('FAILURE', span=2, sort=99.)]], {1: 1})
    self.assertEqual([row[1].mark for row in rows], ['worst'] * 3 + ['best'] * 3 + [''])

  def test_markdown(self):
    self.assertEqual(table.to_markdown(_PLAIN), '\n'.join([
      '**T2.x\\_y. A caption**', '',
      '| A | MNIST B | MNIST B pub. | MNIST C |', '| --- | ---: | ---: | --- |',
      '| AP | **1.00±0.100** | 2.00 | *x* |', '| RA | FAILURE | OK |  |', '', '- A note\\_', '']))

  def test_csv_holds_numbers_too(self):
    self.assertEqual(table.to_csv(_PLAIN).splitlines(), [
      'A,MNIST B,MNIST B published,MNIST B value,MNIST C', 'AP,1.00±0.100,2.00,0.01,x', 'RA,FAILURE,OK,,'])

  def test_html(self):
    page = Elements(table.to_html(_PLAIN))
    self.assertEqual([page.count(tag) for tag in ('table', 'caption', 'thead', 'tbody')], [1] * 4)
    headers = [a for t, a in page.starts if t == 'th']
    self.assertEqual([a['scope'] for a in headers], ['colgroup', 'col', 'col', 'col', 'row', 'row'])
    self.assertEqual([a['data-column'] for a in headers if a['scope'] == 'col'], ['0', '1', '2'])
    cells = [a for t, a in page.starts if t == 'td' and a.get('colspan') == '2' and 'title' in a]
    self.assertEqual(cells[0]['title'], 'no "way" & out')
    self.assertIn(('tr', {'class': 'rule'}), page.starts)
    self.assertEqual([a['data-sort'] for _, a in page.starts if 'data-sort' in a], ['0.01'])
    self.assertEqual((page.count('strong'), page.count('em'), page.count('small')), (2, 1, 2))   # caption's number too
    self.assertNotIn('script', table.to_html(_PLAIN))

  def test_latex(self):
    text = table.to_latex(_PLAIN)
    self.assertIn(r'\begin{tabular}{lrl}', text)
    self.assertIn(r'\multicolumn{1}{c}{} & \multicolumn{2}{c}{MNIST} \\', text)
    self.assertIn(r'AP & \shortstack{\textbf{1.00$\pm$0.100}\\{\scriptsize 2.00}} & \textit{x} \\' + '\n'
                  r'\midrule' + '\n' r'RA & \multicolumn{2}{c}{\shortstack{FAILURE\\{\scriptsize OK}}} \\', text)
    self.assertIn(r'A note\_\par', text)
    self.assertIn(r'\label{tab:t2-x-y}', text)

  def test_special_characters_come_back_from_html_and_csv(self):
    special = _table([(Cell(_SPECIAL), Cell(_SPECIAL, published='<b>', title='"<&>'), Cell('=1', sort=1.))],
                     columns=(_SPECIAL, 'B', 'C'), notes=(_SPECIAL,))
    page = Elements(table.to_html(special))
    self.assertEqual(page.text.count(_SPECIAL), 4)
    self.assertNotIn('b', [t for t, _ in page.starts])
    self.assertIn('"<&>', [a.get('title') for _, a in page.starts])
    (header, row) = csv.reader(io.StringIO(table.to_csv(special)))
    self.assertEqual((header[0], row[0], row[1], row[2]), (_SPECIAL, _SPECIAL, _SPECIAL, '<b>'))

  def test_special_characters_in_markdown(self):
    text = table.escape_markdown(_SPECIAL)
    self.assertEqual(re.sub(r'\\([!-/:-@\[-`{-~])', r'\1', text), _SPECIAL)   # what CommonMark shows
    self.assertEmpty(re.findall(r'(?<!\\)[_&<>|*`$#~{}\[\]]', text.replace('\\\\', '')))
    line = table.to_markdown(_table([(Cell('a|b\nc'), Cell(''), Cell(''))])).splitlines()[4]
    self.assertEqual(line, r'| a\|b c |  |  |')

  def test_special_characters_in_latex(self):
    self.assertEqual(
      table.escape_latex(_SPECIAL),
      r'a\_b \& 5 \% \textless{} \textgreater{} $\pm$ \textbar{} * ` \$ \# \textasciitilde{} \textasciicircum{} '
      r'\{ \} [x] \textbackslash{} \textquotedbl{}q\textquotedbl{} \textdagger{}\textdaggerdbl{} é ł')
    self.assertEqual(table.escape_latex('-0.50 is I-3 or 3-2, (-1)'), '$-$0.50 is I-3 or 3-2, ($-$1)')
    self.assertEqual(table.escape_latex('\u4e2d \U0001f600'), '? ?')
    bracket = table.to_latex(_table([(Cell('[a]'), Cell('b'), Cell('c'))]))
    self.assertIn('{}[a] & b & c', bracket)

  def test_wide_latex_is_scaled_and_long_texts_break(self):
    wide = Table('T', 'c', tuple(map(str, range(12))), (tuple(Cell(str(k)) for k in range(12)),))
    self.assertIn(r'\resizebox{\textwidth}{!}{%', table.to_latex(wide))
    self.assertNotIn('resizebox', table.to_latex(_PLAIN))
    self.assertIn(r'{lp{0.80\textwidth}r}',
                  table.to_latex(_table([(Cell('a'), Cell('words ' * 20), Cell('1', sort=1.))])))

  def test_an_empty_table(self):
    empty = _table([])
    self.assertEqual(Elements(table.to_html(empty)).count('caption'), 1)
    self.assertIn('| A | B | C |', table.to_markdown(empty))
    self.assertEqual(table.to_csv(empty), 'A,B,C\n')
    self.assertIn(r'\bottomrule', table.to_latex(empty))


if __name__ == '__main__':
  absltest.main()
