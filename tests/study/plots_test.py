"""The plots of a report: what they show, when they are absent, and that the same rows give the same bytes."""
import csv
import io
import math
import pathlib
import tempfile
import xml.etree.ElementTree

import numpy as np
from absl.testing import absltest, parameterized

from jaxfix.evaluate.robustness import wilson
from jaxfix.study import plots, published, store
from jaxfix.study.aggregate import summarize
from jaxfix.study.plots import combined, letters, plot, radar, tradeoff
from jaxfix.study.store import Results
from tests.study.rows import make_row, make_rows


def small_rows():
  """Rows of everything that a plot can show."""
  return (make_rows(('apricot', 'arachne'), ('mnist_lenet5', 'digits_lenet5'), (0, 1)) +
          make_rows(('apricot',), ('utkface_facenet',), range(5), postprocess=('none', 'sv', 'us_k')))


def write_store(folder, rows):
  """The rows with traces."""
  with store.Writer(folder) as writer:
    for row in rows:
      trace = {'curves': {'loss': [3., 2., 1. + row['seed']], 'valid_accuracy': [0.5, 0.75, 0.7]}, 'selected':
               {'loss': 1, 'valid_accuracy': 2},
               'notes': ['stopped early'], 'edits': 4,
               'asr_curve': {'eps': [0., 0.1], 'original': [0., 0.8], 'repaired': [0., 0.5], 'n': 100}}
      writer.append(row, trace=trace if row['postprocess'] == 'none' else None)
  return store.read(folder)


def by_id(found):
  return {p.id: p for p in found}


def records(found):
  """The rows of a plot as dictionaries."""
  header, *rows = found.data
  return [dict(zip(header, row, strict=True)) for row in rows]


class AllPlotsTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(cls.folder.cleanup)
    cls.results = write_store(pathlib.Path(cls.folder.name) / 'store', small_rows())
    cls.plots = plots.all_plots(cls.results, published.load())

  def test_a_full_store_has_every_kind_of_plot(self):
    kinds = {p.id.partition('.')[0] for p in self.plots}
    self.assertEqual(kinds, {'P1', 'P2', 'P3', 'P4', 'P5', 'P11', 'P12', 'P13'})
    self.assertLen({p.stem for p in self.plots}, len(self.plots))

  def test_the_same_rows_give_the_same_bytes_and_svg_that_parses_without_date(self):
    again = by_id(plots.all_plots(self.results, published.load()))
    for first in self.plots:
      self.assertEqual(plots.to_csv(first), plots.to_csv(again[first.id]))
      if first.id not in ('P2', 'P5.apricot.mnist_lenet5', 'P13.mnist_lenet5'):   # a whole bundle: report_test.py
        continue
      with self.subTest(first.id):
        svg, png = plots.images(first)
        self.assertEqual((svg, png), plots.images(again[first.id]))
        root = xml.etree.ElementTree.fromstring(svg)
        self.assertTrue(root.tag.endswith('svg'))
        self.assertNotIn(b'<dc:date>', svg)
        self.assertNotIn(b'<text', svg, 'letters are outlines, so that every viewer shows the same')
        self.assertStartsWith(png, b'\x89PNG')

  def test_scales_of_outlines_survive_shortening(self):
    svg, _ = plots.images(by_id(self.plots)['P12'])
    self.assertIn(b'scale(0.015625)', svg)

  def test_every_plot_has_a_caption_an_alternative_text_and_rectangular_data(self):
    for p in self.plots:
      with self.subTest(p.id):
        self.assertTrue(p.caption.endswith('.'))
        self.assertStartsWith(p.alt, p.caption.split('.')[0][:25])
        self.assertIn('Most extreme: ', p.alt)
        self.assertGreater(len(p.data), 1)
        self.assertLen({len(row) for row in csv.reader(io.StringIO(plots.to_csv(p)))}, 1)

  def test_stand_ins_have_no_published_points(self):
    for kind in ('P1', 'P4'):
      subjects = {r['subject'] for r in records(by_id(self.plots)[kind]) if r['source'] == 'published'}
      self.assertEqual(subjects, {'mnist_lenet5', 'utkface_facenet'})
    # letters are of all subjects together: over counterparts alone beside the published ones, over all without these
    beside, alone = (records(by_id(self.plots)[name]) for name in ('P2', 'P2.all'))
    self.assertEqual([r['source'] for r in beside if r['approach'] == 'apricot'], ['jaxfix', 'published'])
    self.assertEqual({r['source'] for r in alone}, {'jaxfix'})
    self.assertIn('Compared over mnist_lenet5, utkface_facenet. ', by_id(self.plots)['P2'].caption)
    stand_ins = [row for row in small_rows() if row['subject'] == 'digits_lenet5']
    found = by_id(plots.all_plots(Results(tuple(stand_ins)), published.load()))
    self.assertEqual({r['source'] for r in records(found['P2'])}, {'jaxfix'})
    self.assertNotIn('P2.all', found)

  def test_published_points_are_the_printed_ones(self):
    row, = [r for r in records(by_id(self.plots)['P1']) if r['source'] == 'published' and r['approach'] == 'apricot'
            and r['subject'] == 'mnist_lenet5']
    self.assertAlmostEqual(row['rr'], 0.7397)
    self.assertAlmostEqual(row['nfr'], 0.0039)
    self.assertAlmostEqual(row['acc_original'], 0.979)
    row, = [r for r in records(by_id(self.plots)['P4']) if r['source'] == 'published' and r['approach'] == 'apricot'
            and r['subject'] == 'mnist_lenet5']
    self.assertEqual(row['seconds'], 49560)

  def test_the_published_combinations_stand_beside_apricot_on_utkface_alone(self):
    found = records(by_id(self.plots)['P11.apricot.utkface_facenet'])
    theirs = [r['value'] for r in found if r['source'] == 'published' and (r['metric'], r['method']) == ('acc', 'SV')]
    np.testing.assert_allclose(theirs, [0.9043, 0.9048, 0.9053])
    self.assertEqual({r['method'] for r in found}, {'NO', 'SV', 'US-k'})
    self.assertIn('not comparable with the published ones', by_id(self.plots)['P11.apricot.utkface_facenet'].caption)
    found, = [p for p in plots.all_plots(self.results, None) if p.id == 'P11.apricot.utkface_facenet']
    self.assertNotIn('comparable', found.caption)

  def test_boxes_begin_at_five_seeds(self):
    five = by_id(self.plots)['P11.apricot.utkface_facenet']
    three = combined.combinations(
      *(lambda rows: (summarize(rows)[0], rows))(make_rows(('apricot',), seeds=(0, 1, 2), postprocess=('none', 'sv'))),
      None)
    lines = lambda p: [line for ax in p.draw().axes for line in ax.lines if line.get_marker() in ('None', None, '')]
    self.assertNotEmpty(lines(five))
    self.assertEmpty(lines(three))
    self.assertIn('five seeds', five.caption)
    self.assertNotIn('five seeds', three.caption)

  def test_flips_are_the_counts(self):
    row = next(r for r in records(by_id(self.plots)['P12']) if r['approach'] == 'arachne')
    counts = [r['counts'] for r in self.results.rows if (r['approach'], r['subject']) == ('arachne', row['subject'])]
    for name in ('fixed', 'broken', 'both_wrong', 'both_right'):
      self.assertAlmostEqual(row[name], np.mean([c[name] for c in counts]) / 1000)

  def test_curves_mark_the_selected_step_once_a_seed(self):
    found = records(by_id(self.plots)['P5.apricot.mnist_lenet5'])
    loss = [r for r in found if r['curve'] == 'loss']
    self.assertEqual([(r['seed'], r['step']) for r in loss if r['selected']], [(0, 1), (1, 1)])
    self.assertEqual([r['value'] for r in loss if r['seed'] == 1], [3., 2., 2.])
    accuracy = [r for r in found if r['curve'] == 'valid_accuracy']
    self.assertEqual([(r['seed'], r['step']) for r in accuracy if r['selected']], [(0, 2), (1, 2)])
    figure = by_id(self.plots)['P5.apricot.mnist_lenet5'].draw()
    diamonds = {ax.get_title(): [line.get_xydata().tolist() for line in ax.lines if line.get_marker() == 'D']
                for ax in figure.axes}
    self.assertEqual(diamonds, {'loss': [[[1., 2.]]] * 2, 'valid accuracy': [[[2., 0.7]]] * 2})

  def test_attack_curves_have_wilson_bands(self):
    row, = [r for r in records(by_id(self.plots)['P13.mnist_lenet5'])
            if (r['approach'], r['model'], r['epsilon']) == ('apricot', 'repaired', 0.1)]
    np.testing.assert_allclose((row['low'], row['high']), wilson(50, 100))
    self.assertEqual((row['n'], row['seeds']), (100, 2))

  def test_rows_alone_have_no_curves_and_nothing_published_where_it_was_not_asked_for(self):
    found = plots.all_plots(Results(self.results.rows), None)
    self.assertEqual({p.id.partition('.')[0] for p in found}, {'P1', 'P2', 'P3', 'P4', 'P11', 'P12'})
    for p in found:
      self.assertNotIn('published', plots.to_csv(p))


class MissingDataTest(parameterized.TestCase):

  @parameterized.named_parameters(
    ('one approach, one seed', [make_row()], {'P1', 'P4', 'P12'}),
    ('all failed', [make_row(outcome='FAILURE')], set()),
    ('no row', [], set()),
    ('corrupted alone', [make_row(outcome='CORRUPTED', counts=(700, 5, 290, 5))], {'P1', 'P4', 'P12'}),
    ('no failures', [make_row(counts=(990, 0, 10, 0))], {'P4', 'P12'}),
    ('no attack, no time', [make_row(asr=None, seconds=None)], {'P1', 'P12'}))
  def test_plots_without_data_are_absent(self, rows, expected):
    found = plots.all_plots(Results(tuple(rows)), published.load())
    self.assertEqual({p.id for p in found}, expected)
    for p in found:
      plots.images(p)

  def test_names_with_special_characters_are_drawn_and_filed(self):
    row = make_row('a_$b$<&%' + 60 * 'w', 'x/../y z' + 60 * 'w')
    with tempfile.TemporaryDirectory() as folder:
      with store.Writer(folder) as writer:
        writer.append(row, trace={'curves': {'loss_$': [1., 2.]}, 'selected': None, 'notes': [], 'edits': 0,
                                  'asr_curve': None})
      found = plots.all_plots(store.read(folder), None)
    self.assertIn('P5', {p.id.partition('.')[0] for p in found})
    for p in found:
      self.assertRegex(p.stem, r'^[A-Za-z0-9_.-]+$')
      plots.images(p)


class GridTest(absltest.TestCase):

  def test_the_radii_of_most_seeds_are_shown(self):
    with tempfile.TemporaryDirectory() as folder:
      with store.Writer(folder) as writer:
        for seed, eps in enumerate(([0.1], [0.1, 0.2], [0.1, 0.2])):   # the first seed was measured before the others
          curve = {'eps': eps, 'original': [0.8] * len(eps), 'repaired': [0.5] * len(eps), 'n': 50}
          writer.append(make_row(seed=seed), trace={'curves': {}, 'selected': {}, 'notes': [], 'edits': 0,
                                                    'asr_curve': curve})
      shown = records(by_id(plots.all_plots(store.read(folder), None))['P13.mnist_lenet5'])
    self.assertEqual({(r['epsilon'], r['seeds']) for r in shown}, {(0.1, 2), (0.2, 2)})


class AttackTest(absltest.TestCase):

  def plots(self, *curves):
    """Of seeds with these (n, rate of the repaired model) at one radius."""
    with tempfile.TemporaryDirectory() as folder:
      with store.Writer(folder) as writer:
        for seed, (n, rate) in enumerate(curves):
          curve = {'eps': [0.1], 'original': [rate and 0.8], 'repaired': [rate], 'n': n}
          writer.append(make_row(seed=seed), trace={'curves': {}, 'selected': None, 'notes': [], 'edits': 0,
                                                    'asr_curve': curve})
      return by_id(plots.all_plots(store.read(folder), None))

  def test_without_an_eligible_input_there_is_no_curve(self):
    self.assertNotIn('P13.mnist_lenet5', self.plots((0, None)))
    self.assertNotIn('P13.mnist_lenet5', self.plots((0, 0.)))

  def test_a_seed_without_an_eligible_input_leaves_the_others(self):
    found = self.plots((0, None), (50, 0.5))['P13.mnist_lenet5']
    row, = [r for r in records(found) if r['model'] == 'repaired']
    self.assertEqual((row['asr'], row['n'], row['seeds']), (0.5, 50, 1))
    plots.images(found)


class TradeOffTest(parameterized.TestCase):

  @parameterized.parameters((970, 12, 5, 13), (500, 100, 200, 200), (990, 3, 3, 4))
  def test_accuracy_rises_exactly_above_the_line(self, *counts):
    row = make_row(counts=counts)
    line = tradeoff.unchanged_accuracy(row['nfr'], row['acc_original'])
    self.assertAlmostEqual(row['acc'] - row['acc_original'], (row['rr'] - line) * (1 - row['acc_original']), places=12)

  def test_the_drawn_line_is_that_line(self):
    found = tradeoff.trade_off(summarize([make_row(counts=(800, 50, 100, 50))]), None)
    ax, = found.draw().axes
    x, y = ax.lines[0].get_data()
    np.testing.assert_allclose(y, x / 0.1, rtol=1e-6)   # 1 - acc_0 = 100 / 1000
    self.assertEqual(x[0], 0)

  @parameterized.parameters(
    ('digits_lenet5', 'published', True), ('digits_lenet5', 'none', False), ('mnist_lenet5', 'published', False),
    ('utkface_facenet', 'published', True))   # of VERE on UTKFace nothing is printed
  def test_a_missing_published_point_is_said_where_points_were_asked_for(self, subject, tables, said):
    rows = [make_row('vere' if subject == 'utkface_facenet' else 'apricot', subject)]
    found = tradeoff.trade_off(summarize(rows), published.load() if tables == 'published' else None)
    self.assertEqual('No approach shown here has a published point on its subject.' in found.caption, said)

  def test_doubtful_published_points_have_a_dagger(self):
    found = tradeoff.trade_off(summarize([make_row('reassure'), make_row('apricot')]), published.load())
    self.assertEqual({r['approach']: r['doubtful'] for r in records(found) if r['source'] == 'published'},
                     {'reassure': True, 'apricot': False})
    self.assertIn('\u2020 marks published points', found.caption)
    daggers = lambda p: [t.xy for t in p.draw().axes[0].texts if t.get_text() == '\u2020']
    row, = [r for r in records(found) if (r['approach'], r['source']) == ('reassure', 'published')]
    self.assertEqual(daggers(found), [(100 * row['nfr'], 100 * row['rr'])])
    sound = tradeoff.trade_off(summarize([make_row('apricot')]), published.load())
    self.assertNotIn('\u2020', sound.caption)
    self.assertEmpty(daggers(sound))

  def test_nothing_wrong_has_no_line(self):
    self.assertTrue(math.isinf(tradeoff.unchanged_accuracy(0.1, 1.)))


class DurationsTest(absltest.TestCase):

  def test_what_is_not_ok_has_a_star(self):
    rows = [make_row(), make_row('arachne', outcome='CORRUPTED', counts=(700, 5, 290, 5))]
    found = by_id(plots.all_plots(Results(tuple(rows)), None))['P4']
    self.assertEqual({r['approach']: r['outcome'] for r in records(found)}, {'apricot': 'OK', 'arachne': 'CORRUPTED'})
    self.assertIn('A star marks', found.caption)
    self.assertEqual([t.get_text() for t in found.draw().axes[0].get_yticklabels()], ['AP', 'AR *'])
    self.assertNotIn('star', by_id(plots.all_plots(Results(tuple(rows[:1])), None))['P4'].caption)


class RadarTest(absltest.TestCase):

  def test_best_is_1_worst_is_0_ties_share_and_missing_is_absent(self):
    found = radar.profiles({'rr': {('a', 's'): 0.9, ('b', 's'): 0.5, ('c', 's'): 0.5, ('d', 's'): 0.1},
                            'nfr': {('a', 's'): 0.2, ('b', 's'): 0.1, ('c', 's'): math.nan},
                            'time': {('a', 's'): 1.}})
    self.assertEqual({k: v['rr'] for k, v in found.items()}, {'a': 1., 'b': 0.5, 'c': 0.5, 'd': 0.})
    self.assertEqual((found['a']['nfr'], found['b']['nfr']), (0., 1.))
    self.assertNotIn('nfr', found['c'])
    self.assertNotIn('time', found['a'])

  def test_shares_are_averaged_over_subjects(self):
    found = radar.profiles({'rr': {('a', 's'): 0.9, ('b', 's'): 0.5, ('a', 't'): 0.1, ('b', 't'): 0.2, ('a', 'u'): 1.}})
    self.assertEqual((found['a']['rr'], found['b']['rr']), (0.5, 0.5))

  def test_a_missing_axis_is_a_gap_and_not_0(self):
    found = radar.radar(summarize(make_rows(('apricot', 'arachne'))), None)   # MNIST has no AAOD
    ax = found.draw().axes[0]
    edges = [line for line in ax.lines if line.get_linestyle() == '-']
    self.assertLen(edges, 4)   # of 6: the two beside AAOD are missing
    self.assertIn('(AAOD)', [t.get_text() for t in ax.get_xticklabels()])


  def test_published_ranks_of_doubtful_figures_have_a_dagger(self):
    found = radar.radar(summarize(make_rows(('reassure', 'apricot'))), published.load())   # 'RA', MNIST
    self.assertEqual({r['approach']: r['doubtful'] for r in records(found) if r['source'] == 'published'},
                     {'RA': 'acc rr nfr', 'AP': ''})
    self.assertIn('\u2020 marks', found.caption)
    daggers = [sum(t.get_text() == '\u2020' for t in ax.texts) for ax in found.draw().axes]
    self.assertCountEqual(daggers, [3, 0])
    self.assertNotIn('\u2020', radar.radar(summarize(make_rows(('reassure', 'apricot'))), None).caption)


class LettersTest(parameterized.TestCase):

  @parameterized.parameters(('a', [0]), ('ceg', [2, 4, 6]), ('', []), ('-', []), ('z,aa,ab', [25, 26, 27]))
  def test_ranks(self, text, ranks):
    self.assertEqual(letters.letter_ranks(text), ranks)

  def test_the_letters_of_the_table_are_drawn(self):
    rows = make_rows(('apricot', 'arachne'), seeds=(0, 1, 2))
    found = by_id(plots.all_plots(Results(tuple(rows)), published.load()))['P2']
    ours, theirs = [r for r in records(found) if r['approach'] == 'apricot']
    self.assertEqual(theirs, {'approach': 'apricot', 'source': 'published', 'acc': 'ab', 'rr': 'a', 'asr': 'a',
                              'aaod': 'a', 'nfr': 'ef', 'time': 'g'})
    self.assertEqual(ours['rr'], 'b')
    self.assertEqual(ours['aaod'], '')


class PlotTest(absltest.TestCase):

  def test_the_three_points_farthest_from_the_median(self):
    text = plot.describe('What. More.', [('a', 1.), ('b', 2.), ('c', 3.), ('d', 100.), ('e', math.nan), ('f', -50.)],
                         lambda v: f'{v:g} u')
    self.assertEqual(text, 'What. Most extreme: d 100 u; f -50 u; a 1 u; median 2 u.')
    self.assertEqual(plot.describe('Nothing here.', [], str), 'Nothing here.')

  def test_names_do_not_cover_each_other(self):
    figure, (ax,) = plot.panels(1, width=4, height=3)
    points = [(x, 0.5 + 0.01 * x) for x in (0.48, 0.5, 0.52, 0.54)]
    ax.plot(*zip(*points, strict=True), 'o')
    plot.label_points(ax, points, ['AAAA', 'BBBB', 'CCCC', 'DDDD'], ['black'] * 4)
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in ax.texts]
    for i, a in enumerate(boxes):
      for b in boxes[i + 1:]:
        self.assertFalse(a.shrunk(0.9, 0.9).overlaps(b.shrunk(0.9, 0.9)))

  def test_seconds_for_people(self):
    self.assertEqual([plot.seconds(v) for v in (3, 90, 180, 1e4, 864e3)], ['3 s', '90 s', '3 min', '2.78 h', '10 d'])


if __name__ == '__main__':
  absltest.main()
