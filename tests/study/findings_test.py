"""The eight findings: the study's tables bear them out, and results that say otherwise disagree."""
import dataclasses
from unittest import mock

from absl.testing import absltest, parameterized

from jaxfix.study import aggregate, findings, published
from jaxfix.study.aggregate import Sheet, published_sheet
from tests.study.rows import make_row, make_rows


def _verdicts(sheet):
  """Verdicts of all findings if `sheet` were what was measured."""
  with mock.patch.object(findings, 'measured_sheet', lambda summaries, layers: sheet):
    return {f.number: f.verdict for f in findings.findings((), published.load())}


class FindingsTest(parameterized.TestCase):

  def test_the_studys_own_tables_bear_all_of_them_out(self):
    self.assertEqual(_verdicts(published_sheet(published.load())), dict.fromkeys(range(1, 9), 'agrees'))

  def test_nothing_measured_is_not_tested(self):
    self.assertEqual({f.verdict for f in findings.findings((), published.load())}, {'not tested'})

  @parameterized.parameters(('acc_rel', 2), ('rr', 3), ('nfr', 7), ('seconds', 8))
  def test_another_order_of_categories_disagrees(self, metric, number):
    sheet = published_sheet(published.load())
    flipped = dataclasses.replace(sheet, values={
      (a, d, m): (1 / v if m == 'seconds' else -v) if m == metric else v for (a, d, m), v in sheet.values.items()})
    verdicts = _verdicts(flipped)
    self.assertEqual(verdicts.pop(number), 'disagrees')
    if metric != 'rr':   # which finding 4 looks at, too
      self.assertEqual(set(verdicts.values()), {'agrees'})
    else:
      self.assertEqual(verdicts[4], 'disagrees')

  @parameterized.parameters(('asr_rel', 5), ('aaod_rel', 6))
  def test_another_majority_disagrees(self, metric, number):
    sheet = published_sheet(published.load())
    better = dataclasses.replace(sheet, values={
      k: abs(v) + aggregate.ASR_NOISE if k[2] == metric else v for k, v in sheet.values.items()})
    # robustness improves nearly everywhere; fairness nowhere gets worse
    self.assertEqual(_verdicts(better)[number], 'disagrees')

  def test_noise_of_attack_success_is_neither_better_nor_worse(self):
    def judged(*changes):
      rows = [make_row(a, asr=(0.5, 0.5 * (1 - x))) for a, x in zip(('care', 'arachne', 'hudd'), changes, strict=True)]
      return {f.number: (f.verdict, f.ours) for f in findings.findings(aggregate.summarize(rows), None)}

    self.assertEqual(judged(0.03, 0.03, 0.03)[5], ('not tested', 'better in 0, worse in 0 of 3 cells, 3 within the '
                                                                 'noise'))
    self.assertEqual(judged(0.03, 0.03, 0.1)[5], ('agrees', 'better in 1, worse in 0 of 3 cells, 2 within the noise'))
    self.assertEqual(judged(0.1, -0.03, 0.1)[5][0], 'disagrees')

  def test_order_alone_decides_the_second_finding(self):
    # All gain accuracy, and the order is the study's.
    rows = [make_row(a, counts=(970, fixed, 5, 25 - fixed))
            for a, fixed in (('apricot', 20), ('prdnn', 15), ('care', 9))]
    second = findings.findings(aggregate.summarize(rows), None)[1]
    self.assertEqual(second.verdict, 'agrees')
    self.assertNotIn('gain', second.text)

  def test_applicability_counts_outcomes(self):
    sheet = published_sheet(published.load())
    fine = dataclasses.replace(sheet, outcomes=dict.fromkeys(sheet.outcomes, 'OK'))
    self.assertEqual(_verdicts(fine)[1], 'disagrees')

  def test_two_categories_are_not_enough(self):
    rows = make_rows(['apricot', 'care'], ['mnist_lenet5', 'utkface_facenet'])
    found = {f.number: f for f in findings.findings(aggregate.summarize(rows), published.load())}
    for number in (1, 2, 3, 7, 8):
      self.assertEqual(found[number].verdict, 'not tested')
      self.assertIn('no figure for level layer', found[number].ours)
    self.assertEqual(found[4].verdict, 'not tested')
    self.assertNotEqual(found[5].verdict, 'not tested')

  def test_model_size_by_hand(self):
    # RR falls with size for two approaches and rises for one
    values = {(a, s, 'rr'): rr for a, rates in {'a': (3, 2, 1), 'b': (5, 4, 0), 'c': (1, 2, 3)}.items()
              for s, rr in zip('xyz', rates, strict=True)}
    sheet = Sheet(values, {}, dict.fromkeys('abc', 'model'), {'x': 10, 'y': 20, 'z': 30})
    self.assertEqual(findings._model_size(sheet), (True, 'negative for 2 of 3 approaches'))
    two = dataclasses.replace(sheet, values={k: v for k, v in values.items() if k[0] != 'b'})
    self.assertEqual(findings._model_size(two), (False, 'negative for 1 of 2 approaches'))   # not more than half

  def test_figures_of_both_sides_and_reconstructed_numbers(self):
    rows = make_rows(['apricot', 'prdnn', 'care'], ['mnist_lenet5', 'digits_mlp'])
    found = findings.findings(aggregate.summarize(rows), published.load())
    self.assertEqual([f.number for f in found], list(range(1, 9)))
    self.assertEqual([f.number for f in found if f.reconstructed], [1, 5, 6, 8])
    self.assertEqual(found[2].study, 'model 17.76, layer 5.99, neuron 7.32')
    summaries = aggregate.summarize(rows)
    average = lambda category: sum(100 * s.mean('rr') for s in summaries if s.category == category) / 2
    self.assertEqual(found[2].ours, ', '.join(f'{c} {average(c):.2f}' for c in ('model', 'layer', 'neuron')))
    self.assertEqual(found[2].verdict, 'agrees')   # 47.00, 12.83, 34.67

  def test_without_published_tables(self):
    found = findings.findings(aggregate.summarize([make_row('care')]), None)
    self.assertEqual({f.study for f in found}, {''})

  def test_the_table_names_stand_ins(self):
    shown = findings.findings_table(aggregate.summarize(make_rows(['care'], ['mnist_lenet5', 'digits_mlp'])),
                                    published.load())
    self.assertIn('mnist_lenet5, digits_mlp‡;', shown.notes[0])
    self.assertEqual([row[0].text for row in shown.rows][:2], ['1 (reconstructed)', '2'])
    self.assertLen(shown.rows, 8)


if __name__ == '__main__':
  absltest.main()
