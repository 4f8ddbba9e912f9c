"""The report's page in a real browser: no errors, no network, no sideways scrolling, tables that sort, all captioned.

A copy of the page gets two scripts: one before everything else that collects errors, one at the end that looks around
and tells the page around its frame what it saw, which `chromium --dump-dom` prints.
"""
import functools
import html
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from jaxfix.study import published, report
from tests.study.plots_test import write_store
from tests.study.rows import make_row, make_rows

_BROWSER = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
_LISTEN = """<script>
window.seen = [];
addEventListener('error', e => seen.push('error: ' + (e.message || e.target.outerHTML.slice(0, 100))), true);
addEventListener('unhandledrejection', e => seen.push('rejection: ' + e.reason));
document.addEventListener('securitypolicyviolation', e => seen.push('refused: ' + e.blockedURI));
for (const name of ['error', 'warn']) console[name] = (...words) => seen.push(name + ': ' + words.join(' '));
</script>"""
_LOOK = """<script>
addEventListener('load', () => {
  const column = (table, k) => [...table.tBodies[0].rows].map(row => row.cells[k].textContent);
  const table = document.getElementById('rows'), header = table.querySelectorAll('th[data-column]')[3];
  const orders = [column(table, 3)];
  for (let i = 0; i < 3; i++) {
    header.querySelector('button').click();
    orders.push(column(table, 3));
    orders.push(header.getAttribute('aria-sort'));
  }
  const wide = document.getElementById('T2'), rate = wide.querySelectorAll('th[data-column]')[3];
  rate.querySelector('button').click();
  const ordered = [...wide.tBodies[0].rows].map(row => row.cells[row.cells[1].colSpan > 1 ? 1 : 3]);
  const result = {
    seen, orders, width: innerWidth, page: document.documentElement.scrollWidth,
    outside: [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll') && !e.closest('nav') &&
      !e.closest('details') && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80)),
    uncaptioned: [...document.querySelectorAll('table')].filter(t => !t.caption?.textContent.trim()).length,
    tables: document.querySelectorAll('table').length,
    requests: performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:')),
    broken: [...document.images].filter(i => !i.complete || i.naturalWidth === 0).length,
    images: document.images.length,
    numbers: ordered.filter(cell => cell.dataset.sort).map(cell => Number(cell.dataset.sort)),
    words: ordered.slice(ordered.findLastIndex(cell => cell.dataset.sort) + 1).map(cell => cell.colSpan > 1),
    paper: getComputedStyle(document.body).backgroundColor,
    untold: [...document.images].filter(i => !i.alt).length,
  };
  parent.postMessage(JSON.stringify(result), '*');
});
</script>"""
_SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="1400pt" height="200pt"><rect width="900" height="90"/></svg>'
# A window cannot be as narrow as a phone; a frame can, and media queries ask the frame.
_FRAME = """<!doctype html><meta charset="utf-8"><pre id="result"></pre>
<script>addEventListener('message', e => { document.getElementById('result').textContent = e.data; });</script>
<iframe src="%s" style="border: 0; width: %dpx; height: 900px"></iframe>"""


@functools.cache
def look(page: pathlib.Path, width: int, *options: str) -> dict:
  """What the scripts above saw in a frame of `width` pixels."""
  text = page.read_text(encoding='utf-8')
  copy = page.with_name(f'look{width}.html')
  text = text.replace('<head>', f'<head>{_LISTEN}', 1)
  head, _, tail = text.rpartition('</body>')
  copy.write_text(f'{head}{_LOOK}</body>{tail}', encoding='utf-8')
  frame = page.with_name(f'frame{width}.html')
  frame.write_text(_FRAME % (copy.name, width), encoding='utf-8')
  with tempfile.TemporaryDirectory() as profile:
    done = subprocess.run(
      [_BROWSER, '--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--hide-scrollbars',
       '--disable-dev-shm-usage', f'--user-data-dir={profile}', '--window-size=1400,1000',
       '--virtual-time-budget=5000', *options, '--dump-dom', frame.as_uri()],
      capture_output=True, text=True, timeout=120, check=True)
  found = re.search(r'<pre id="result">(.*?)</pre>', done.stdout, re.DOTALL)
  assert found, done.stderr[-2000:]
  return json.loads(html.unescape(found.group(1)))


@functools.cache
def _page() -> tuple[tempfile.TemporaryDirectory, pathlib.Path]:
  folder = tempfile.TemporaryDirectory()
  rows = make_rows(('apricot', 'arachne', 'prdnn'), ('mnist_lenet5',), (2, 0, 1))
  rows += [make_row('care', outcome='FAILURE'), make_row('a_very_long_name_' * 6, 'a_very_long_subject_' * 6)]
  results = write_store(pathlib.Path(folder.name) / 'store', rows)
  with mock.patch.object(report, 'images', lambda plot: (_SVG, b'')):   # the real ones are drawn in plots_test.py
    return folder, report.write(results, pathlib.Path(folder.name) / 'report', published=published.load())


@absltest.skipIf(_BROWSER is None, 'no chromium on PATH')
class BrowserTest(parameterized.TestCase):

  @parameterized.parameters(390, 1280)
  def test_the_page_at_a_width(self, width):
    seen = look(_page()[1], width)
    self.assertEqual(seen['width'], width)
    self.assertEqual(seen['seen'], [])
    self.assertEqual(seen['requests'], [])
    self.assertLessEqual(seen['page'], width)
    self.assertEqual(seen['outside'], [])
    self.assertEqual((seen['uncaptioned'], seen['broken'], seen['untold']), (0, 0, 0))
    self.assertGreater(seen['tables'], 10)
    self.assertGreater(seen['images'], 5)

  def test_a_click_on_a_header_sorts_down_and_back(self):
    seen = look(_page()[1], 1280)
    start, up, up_says, down, down_says, back, back_says = seen['orders']
    self.assertEqual((up_says, down_says, back_says), ('ascending', 'descending', None))
    self.assertEqual(up, sorted(start, key=int))
    self.assertEqual(down, sorted(start, key=int, reverse=True))
    self.assertEqual(back, start)
    self.assertNotEqual(up, start)

  def test_words_over_several_columns_come_after_numbers(self):
    seen = look(_page()[1], 1280)
    self.assertEqual(seen['numbers'], sorted(seen['numbers']))
    self.assertLen(seen['numbers'], 3)
    self.assertNotEmpty(seen['words'])
    self.assertTrue(all(seen['words']))

  def test_dark_where_the_reader_prefers_it(self):
    self.assertEqual(look(_page()[1], 1280, '--blink-settings=preferredColorScheme=0')['paper'], 'rgb(20, 24, 28)')
    self.assertEqual(look(_page()[1], 1280)['paper'], 'rgb(255, 255, 255)')

  def test_the_scripts_here_see_what_is_wrong(self):
    _, page = _page()
    bad = page.with_name('bad.html')
    bad.write_text(page.read_text(encoding='utf-8').replace(
      '<main>', '<main><table><tbody><tr><td>x</td></tr></tbody></table><div style="width: 3000px">wide</div>'
      '<img src="https://example.invalid/x.png" alt=""><script>console.error("planted"); nothing();</script>', 1),
      encoding='utf-8')
    seen = look(bad, 390)
    self.assertGreater(seen['page'], 390)
    self.assertNotEmpty(seen['outside'])
    self.assertEqual(seen['uncaptioned'], 1)
    for words in ('planted', 'nothing is not defined', 'refused: https://example.invalid/x.png'):
      self.assertIn(words, ' '.join(seen['seen']))


if __name__ == '__main__':
  absltest.main()
