"""The bundle of a report: its files, that they do not change, what it refuses, that nothing is ever half written."""
import hashlib
import html.parser
import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError, OutputError
from jaxfix.evaluate.robustness import wilson
from jaxfix.study import bundle, digest, outline, published, report, store
from jaxfix.study.aggregate import summarize
from jaxfix.study.store import Results
from tests.study.plots_test import write_store
from tests.study.rows import make_row, make_rows, unloaded_row

_NASTY = 'a_b & <c> 100% ± $x$ {y} #1 ~^\\ "q" | `z` *s*'


class _Page(html.parser.HTMLParser):
  """What a test asks about a page."""

  def __init__(self, text):
    super().__init__()
    self.ids, self.tables, self.captions, self.sources, self.images, self.text = [], 0, 0, [], [], []
    self.open = []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attributes = dict(attrs)
    self.ids += [attributes['id']] if 'id' in attributes else []
    self.tables += tag == 'table'
    self.captions += tag == 'caption'
    self.sources += [v for k, v in attrs if k in ('src', 'href', 'srcset', 'data', 'action')]
    self.images += [attributes] if tag == 'img' else []
    if tag not in ('meta', 'img', 'br', 'link', 'input', 'hr'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag, tag

  def handle_data(self, data):
    self.text.append(data)


def drawn_quickly():
  """Plots as a few bytes: what they look like is another test's business."""
  return mock.patch.object(report, 'images', lambda plot: (f'<svg>{len(plot.data)}</svg>'.encode(), b'png'))


def files(folder):
  return {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob('*')) if f.is_file()}


class _FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.out = self.folder / 'report'

  def write(self, rows, **options):
    with drawn_quickly():
      return report.write(Results(tuple(rows)), self.out, **{'published': published.load(), **options})


class BundleContentTest(_FolderTest):

  def test_a_store_becomes_a_bundle_and_a_second_run_changes_no_byte(self):
    rows = make_rows(('apricot',), ('mnist_lenet5',), (0, 1), postprocess=('none', 'sv'))
    rows += make_rows(('arachne',), ('mnist_lenet5',), (0, 1))
    results = write_store(self.folder / 'store', rows)
    path = report.write(results, self.out, published=published.load())
    first = files(self.out)
    self.assertEqual(path, self.out / 'index.html')
    for name in ('index.html', 'report.md', 'results.jsonl', 'manifest.json', 'tables/T2.tex', 'tables/T2.csv',
                 'tables/T2.html', 'tables/T2.MNIST.md', 'figures/P11.apricot.mnist_lenet5.svg', 'figures/P1.svg',
                 'figures/P1.png', 'figures/P1.csv',
                 'figures/P5.apricot.mnist_lenet5.svg'):
      self.assertIn(name, first)
    report.write(results, self.out, published=published.load())
    self.assertEqual(files(self.out), first)
    self.assertEqual(sorted(f.name for f in self.folder.iterdir()), ['report', 'store'])   # nothing is left behind

  def test_the_manifest_has_the_hash_of_every_other_file(self):
    self.write(make_rows())
    manifest = json.loads((self.out / 'manifest.json').read_text())
    present = files(self.out)
    del present['manifest.json']
    self.assertEqual(manifest['files'], {k: hashlib.sha256(v).hexdigest() for k, v in present.items()})
    self.assertEqual(manifest['results_sha256'], hashlib.sha256(present['results.jsonl']).hexdigest())
    self.assertTrue(manifest['version'])

  def test_the_copy_of_the_rows_is_the_rows(self):
    rows = make_rows()
    self.write(rows)
    self.assertEqual([json.loads(line) for line in (self.out / 'results.jsonl').read_text().splitlines()], rows)

  def test_the_page_is_whole_and_needs_nothing_else(self):
    rows = make_rows(('apricot', 'arachne', 'prdnn'), ('mnist_lenet5', 'utkface_facenet'), postprocess=('none', 'sv'))
    self.write(rows)
    text = (self.out / 'index.html').read_text()
    page = _Page(text)
    self.assertEmpty(page.open)
    self.assertEqual(page.tables, page.captions)
    self.assertGreater(page.tables, 10)
    self.assertLen(set(page.ids), len(page.ids))
    self.assertNotEmpty(page.images)
    for source in page.sources:
      self.assertTrue(source.startswith(('#', 'data:')), source)
      if source.startswith('#'):
        self.assertIn(source[1:], page.ids)
    for image in page.images:
      self.assertTrue(image['alt'])
    self.assertNotIn('http://', text)
    self.assertNotIn('https://', text)

  def test_what_is_compared_is_on_the_page_behind_a_fold(self):
    self.write(make_rows(('apricot', 'arachne'), ('mnist_lenet5', 'digits_lenet5')))
    text = (self.out / 'index.html').read_text()
    for name, words in (('T2.MNIST', 'difference of'), ('T5.MNIST', 'ratio to'), ('T4.MNIST', 'difference of')):
      before, _, after = text.partition(f'<table id="{name}">')
      self.assertGreater(before.rfind('<details><summary>'), before.rfind('</details>'), name)
      self.assertIn(words, after.partition('</table>')[0])
      self.assertIn(words, (self.out / f'tables/{name}.tex').read_text())
    before, _, _ = text.partition('<table id="T2">')
    self.assertLess(before.rfind('<details>'), before.rfind('</details>') + 1)
    self.assertNotIn('id="T2.digits_lenet5"', text)

  def test_sections_stand_in_the_order_of_the_specification(self):
    rows = make_rows(('apricot', 'arachne'), ('mnist_lenet5',), postprocess=('none', 'sv'))
    found = [s.id for s in outline.sections(Results(tuple(rows)), published.load())]
    self.assertEqual(found, ['summary', 'settings', 'subjects', 'effectiveness', 'properties', 'groups', 'time',
                             'applicability', 'post-processing', 'agreement', 'findings', 'approaches', 'threats',
                             'appendix'])

  def test_an_approach_has_settings_flips_edits_and_curves(self):
    results = write_store(self.folder / 'store', make_rows(('apricot',), seeds=(0,)))
    section, = [s for s in outline.sections(results, None) if s.id == 'approaches']
    page, = section.parts
    self.assertEqual([t.id for t in page.tables], ['flips.apricot', 'settings.apricot'])
    self.assertEqual([p.id for p in page.plots], ['P5.apricot.mnist_lenet5'])
    row, = page.tables[0].rows
    texts = dict(zip(page.tables[0].columns, (cell.text for cell in row), strict=True))
    counts = results.rows[0]['counts']
    self.assertEqual((texts['fixed'], texts['broken']), (f'{counts["fixed"]:.1f}', f'{counts["broken"]:.1f}'))
    self.assertEqual((texts['weights chosen'], texts['weights changed']), ('4.0', '6,000'))
    self.assertEqual(texts['net flips, points'], f'{(counts["fixed"] - counts["broken"]) / 10:+.2f}')   # of 1000
    self.assertEqual((texts['RR on repair split, %'], texts['NFR on repair split, %']), ('90.00', '0.10'))
    self.assertIn('"alpha": 1.5', ''.join(page.code.values()))
    self.assertEqual(page.notes, ('mnist_lenet5, seed 0: stopped early',))

  def test_settings_that_differ_between_subjects_have_a_column_each(self):
    rows = [make_row(subject='a', config={'rate': 0.1}), make_row(subject='b', config={'rate': 0.2})]
    section, = [s for s in outline.sections(Results(tuple(rows)), None) if s.id == 'approaches']
    settings, = [t for t in section.all_tables if t.id == 'settings.apricot']
    self.assertEqual(settings.columns, ('option', 'a', 'b'))
    self.assertEqual([c.text for c in settings.rows[0]], ['rate', '0.1', '0.2'])

  @parameterized.parameters((('md',), 'report.md', ('.html', '.tex')), (('html',), 'index.html', ('.md', '.tex')),
                            (('tex',), '', ('.md', '.html')))
  def test_only_the_formats_that_were_asked_for(self, formats, page, absent):
    path = self.write(make_rows(), formats=formats)
    self.assertEqual(path, self.out / page)
    present = files(self.out)
    self.assertFalse([name for name in present if name.endswith(absent)])
    self.assertTrue([name for name in present if name.startswith('tables/') and name.endswith(formats)])
    self.assertTrue([name for name in present if name.startswith('tables/') and name.endswith('.csv')])

  @parameterized.named_parameters(
    ('one approach, one seed', [make_row()]), ('one stand-in', [make_row(subject='digits_lenet5')]),
    ('all failed', [make_row(outcome='FAILURE'), make_row('arachne', outcome='UNADAPTABLE')]),
    ('corrupted', [make_row(outcome='CORRUPTED', counts=(700, 5, 290, 5))]),
    ('only combinations', [make_row(postprocess='sv')]),
    ('unloaded', [unloaded_row()]), ('unloaded stand-in', [unloaded_row(subject='digits_mlp'), make_row()]),
    ('no failures', [make_row(counts=(990, 0, 10, 0))]))
  def test_little_data_still_gives_a_report(self, rows):
    for tables in (None, published.load()):
      self.write(rows, published=tables)
      self.assertEmpty(_Page((self.out / 'index.html').read_text()).open)
      text = (self.out / 'report.md').read_text()
      self.assertNotIn('nan', text.lower().split())
      self.assertNotRegex(text, r'None (x |None)|\bon:? None')

  def test_without_published_tables_nothing_is_compared(self):
    self.write(make_rows(('apricot', 'arachne')), published=None)
    text = (self.out / 'report.md').read_text()
    self.assertNotIn('pub.', text)
    self.assertNotIn('73.97', text)

  def test_special_characters_come_through_in_every_format(self):
    row = make_row(_NASTY, _NASTY, outcome='FAILURE', outcome_reason=_NASTY, suite=_NASTY)
    good = make_row(_NASTY, 'other ' + _NASTY, config={_NASTY: _NASTY}, flags=[_NASTY], suite=_NASTY)
    self.write([row, good])
    text = (self.out / 'index.html').read_text()
    page = _Page(text)
    self.assertEmpty(page.open)
    self.assertIn(_NASTY, ''.join(page.text))
    self.assertNotIn('<c>', text)
    markdown = (self.out / 'report.md').read_text()
    self.assertIn(r'a\_b \& \<c\> 100% ± \$x\$ \{y\} \#1', markdown)
    for name in files(self.out):
      self.assertRegex(name, r'^[A-Za-z0-9_./-]+$')


class SelectTest(_FolderTest):

  @parameterized.named_parameters(
    ('no rows', [], {}, 'no rows'), ('unknown suite', [make_row()], {'suite': 'none'}, "'test'"),
    ('two commits', [make_row(), make_row('arachne', git_commit='d' * 40)], {}, '--allow_mixed'),
    ('two suites', [make_row(), make_row(suite='other', run_id='0' * 16)], {}, '--suite'))
  def test_refused_with_what_to_do_and_nothing_written(self, rows, options, words):
    with self.assertRaisesRegex(BadInputError, words):
      self.write(rows, **options)
    self.assertEmpty(list(self.folder.iterdir()))

  def test_mixed_commits_are_accepted_when_asked_and_then_confessed(self):
    self.write([make_row(), make_row('arachne', git_commit='d' * 40)], allow_mixed=True)
    self.assertIn('2 versions of the code: cccccccccccc, dddddddddddd', (self.out / 'report.md').read_text())

  def test_a_suite_is_chosen(self):
    rows = [make_row(), make_row('arachne', suite='other', git_commit='d' * 40)]
    self.assertEqual(report.select(Results(tuple(rows)), suite='other').rows, (rows[1],))

  def test_the_newest_row_of_a_cell_counts_and_the_older_commit_with_it_is_gone(self):
    old = make_row(run_id='0' * 16, git_commit='d' * 40, ended_utc='2025-01-01T00:00:00Z')
    new = make_row(run_id='1' * 16)
    for rows in ((old, new), (new, old)):
      self.assertEqual(report.select(Results(rows)).rows, (new,))

  def test_rows_that_were_measured_otherwise_are_left_out_and_that_is_said(self):
    rows = [make_row(seed=seed) for seed in range(3)]
    new = make_row(seed=0, run_id='1' * 16, config_sha256='b' * 64, ended_utc='2030-01-01T00:00:00Z')
    results = report.select(Results((*rows, new)))
    self.assertEqual((results.rows, len(results.left_out)), ((new,), 3))
    self.assertEqual(report.select(results), results)
    self.write([*rows, new])
    for text in ((self.out / 'report.md').read_text(), '\n'.join(report.summary(results, None))):
      self.assertIn('3 rows of the store left out', text)
      self.assertIn('apricot on mnist_lenet5 (seed 2)', text.replace('\\', ''))
    self.write(rows)
    self.assertNotIn('of the store left out', (self.out / 'report.md').read_text())

  def test_unknown_formats(self):
    for formats in ((), ('pdf',)):
      with self.assertRaisesRegex(BadInputError, 'md, html, tex'):
        self.write([make_row()], formats=formats)


class ReplacingTest(_FolderTest):

  def test_an_error_on_the_way_leaves_the_old_bundle(self):
    self.write([make_row()])
    before = files(self.out)
    for step in ('_markdown', '_html'):
      with mock.patch.object(report, step, side_effect=KeyboardInterrupt), self.assertRaises(KeyboardInterrupt):
        self.write(make_rows())
      self.assertEqual(files(self.out), before)
      self.assertEqual([f.name for f in self.folder.iterdir()], ['report'])

  def test_a_failed_exchange_puts_the_old_bundle_back(self):
    self.write([make_row()])
    before, rename = files(self.out), pathlib.Path.rename

    def fails_for_the_new_one(path, target):
      if path.name.endswith('.partial'):
        raise OSError(28, 'No space left on device')
      return rename(path, target)

    with (mock.patch.object(pathlib.Path, 'rename', fails_for_the_new_one),
          self.assertRaisesRegex(OutputError, 'No space left')):
      self.write(make_rows())
    self.assertEqual(files(self.out), before)
    self.assertEqual([f.name for f in self.folder.iterdir()], ['report'])

  def test_a_new_bundle_has_nothing_of_the_old_one(self):
    self.write(make_rows(('apricot',), ('mnist_lenet5',)))
    self.write(make_rows(('arachne',), ('digits_lenet5',)))
    self.assertFalse([name for name in files(self.out) if 'apricot' in name])

  @parameterized.parameters(['notes.txt', 'tables/mine.csv', 'manifest.json'])
  def test_files_of_others_are_never_removed(self, name):
    stranger = self.out / name
    stranger.parent.mkdir(parents=True)
    stranger.write_text('{}')
    with self.assertRaisesRegex(OutputError, 'which no report wrote'):
      self.write([make_row()])
    self.assertEqual(stranger.read_text(), '{}')

  def test_a_file_added_to_a_bundle_is_not_removed_either(self):
    self.write([make_row()])
    (self.out / 'notes.txt').write_text('mine')
    with self.assertRaisesRegex(OutputError, 'notes.txt'):
      self.write([make_row()])
    self.assertEqual((self.out / 'notes.txt').read_text(), 'mine')

  def test_a_file_of_the_bundle_that_was_changed_is_not_overwritten(self):
    self.write([make_row()])
    table = self.out / 'tables' / 'T2.tex'
    for edit in (lambda: table.write_text('mine'), lambda: (table.unlink(), table.symlink_to(self.out / 'report.md'))):
      edit()
      before = files(self.out)
      with self.assertRaisesRegex(OutputError, 'T2.tex was changed'):
        self.write([make_row()])
      self.assertEqual(files(self.out), before)

  def test_a_file_saved_while_the_report_is_drawn_is_not_removed(self):
    self.write([make_row()])
    notes, draw = self.out / 'notes.txt', report._draw
    with (mock.patch.object(report, '_draw', lambda *a: (notes.write_text('mine'), draw(*a))[1]),
          self.assertRaisesRegex(OutputError, 'notes.txt')):
      self.write([make_row()])
    self.assertEqual(notes.read_text(), 'mine')
    self.assertEqual([f.name for f in self.folder.iterdir()], ['report'])

  def test_a_link_to_a_folder_stays_and_the_folder_is_replaced(self):
    target = self.folder / 'disk' / 'there'
    target.mkdir(parents=True)
    self.out.symlink_to(target)
    for approach in ('apricot', 'arachne'):
      self.write([make_row(approach)])
      self.assertTrue(self.out.is_symlink())
      self.assertIn(f'tables/settings.{approach}.md', files(target))
    self.assertEqual([f.name for f in target.parent.iterdir()], ['there'])

  def test_a_folder_that_cannot_be_moved_leaves_nothing_beside_it(self):
    self.write([make_row()])
    rename = pathlib.Path.rename

    def fails_for_the_old_one(path, target):
      if path == self.out:
        raise OSError(16, 'Device or resource busy')
      return rename(path, target)

    with mock.patch.object(pathlib.Path, 'rename', fails_for_the_old_one), self.assertRaisesRegex(OutputError, 'busy'):
      self.write([make_row()])
    self.assertEqual([f.name for f in self.folder.iterdir()], ['report'])

  def test_the_folder_of_the_results_is_no_output_folder(self):
    self.write([make_row()])
    before = files(self.out)
    link = self.folder / 'link'
    link.symlink_to(self.out)
    for out in (self.out, link):
      with self.assertRaisesRegex(OutputError, 'are read from there'):
        report.write(store.read(self.out), out, published=None)
    self.assertEqual(files(self.out), before)

  def test_a_file_in_the_way_and_a_folder_that_cannot_be_made(self):
    self.out.write_text('a file')
    with self.assertRaisesRegex(OutputError, 'Name a folder'):
      self.write([make_row()])
    with self.assertRaisesRegex(OutputError, 'Cannot write'), bundle.replacing_folder('/proc/none/report', {}):
      pass

  def test_an_empty_folder_is_used(self):
    self.out.mkdir()
    self.assertEqual(self.write([make_row()]), self.out / 'index.html')


class DigestTest(parameterized.TestCase):

  def lines(self, rows, tables=None):
    return digest.ten_lines(rows, summarize(rows), tables)

  def test_ten_lines_name_the_best_of_every_metric(self):
    rows = [make_row('apricot', counts=(960, 20, 10, 10), seconds=100.),
            make_row('arachne', counts=(965, 5, 5, 25), seconds=7.)]
    lines = self.lines(rows, published.load())
    self.assertLen(lines, 10)
    text = '\n'.join(lines)
    self.assertIn('Repair rate: best mean rank AP; best single result 66.7 % of the failures fixed, AP on', text)
    self.assertIn('Negative flips: best mean rank AR; best single result 0.5 %', text)
    self.assertIn('Time: best mean rank AR; best single result 7 s', text)
    self.assertIn('Fairness: not measured.', text)
    self.assertIn('Nothing failed.', text)
    self.assertIn('2 of 2', text)

  def test_failures_are_named_and_do_not_win(self):
    rows = [make_row(), make_row('arachne', outcome='CORRUPTED', counts=(700, 30, 270, 0), seconds=0.1),
            make_row('care', outcome='UNADAPTABLE')]
    text = '\n'.join(self.lines(rows))
    self.assertIn('AR on mnist_lenet5 CORRUPTED; CARE on mnist_lenet5 UNADAPTABLE', text)
    self.assertNotIn('best mean rank', text)
    self.assertIn('Repair rate: best single result 48 % of the failures fixed, AP on mnist_lenet5.', text)

  def test_threats_say_what_a_single_seed_means_and_count_the_noise(self):
    rows = [make_row(asr=(0.8, 0.79)), make_row('arachne', asr=(0.8, 0.4))]
    text = '\n'.join(digest.threats(rows, summarize(rows), published.load()))
    self.assertIn('One seed has no spread', text)
    self.assertIn('1 of 2 relative changes are below 4 %', text)
    self.assertIn('mnist_lenet5 25 (one is 4 %)', text)

  def test_threats_count_the_seeds_that_finished(self):
    rows = [make_row(seed=s, outcome='OK' if s < 2 else 'FAILURE') for s in range(3)] + make_rows(('arachne',))
    self.assertIn('Seeds that finished, an approach and subject: 2 to 3.',
                  '\n'.join(digest.threats(rows, summarize(rows), None)))

  def test_the_widest_interval_is_not_always_that_of_the_fewest_inputs(self):
    rows = [make_row(asr=(0.8, 0.), asr_n=90), make_row('arachne', asr=(0.8, 0.5), asr_n=100)]
    for order in (rows, rows[::-1]):
      text = '\n'.join(digest.threats(order, summarize(order), None))
      low, high = wilson(50, 100)
      self.assertIn(f'90 to 100; the widest 95 % Wilson interval is {100 * low:.3g} % to {100 * high:.3g} %.', text)

  def test_threats_name_stand_ins_synthetic_data_and_dirty_trees(self):
    rows = [make_row(subject='digits_lenet5', dataset_source='synthetic:v1', git_dirty=True, flags=['asr_n_reduced'])]
    text = '\n'.join(digest.threats(rows, summarize(rows), published.load()))
    for words in ('Stand-ins without a published counterpart: digits_lenet5', 'synthetic:v1', '1 of 1',
                  'asr_n_reduced in 1 row'):
      self.assertIn(words, text)


if __name__ == '__main__':
  absltest.main()
