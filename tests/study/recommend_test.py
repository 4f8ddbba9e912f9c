"""Recommendations: every constraint excludes what it must, evidence is cited, measured and published stay apart."""
import dataclasses
import json

from absl.testing import absltest, parameterized

from jaxfix import errors, methods
from jaxfix.study import published, recommend, record
from jaxfix.study.situation import Situation
from tests.study import rows as sample

ALL = ('history', 'class_importance', 'training_data')


def cell(approach, fixed=10, broken=2, subject='mnist_lenet5', **fields):
  """Three seeds, 100 failures of 1,000 inputs."""
  return [sample.make_row(approach, subject, seed, counts=(900 - broken, fixed, broken, 100 - fixed), **fields)
          for seed in range(3)]


def advise(rows, tables=None, **situation):
  return recommend.recommend(Situation(**{'has': ALL, **situation}), rows, tables)


def ranked(advice):
  return [c.approach for c in advice.choices]


def excluded(advice):
  return {e.approach: ' | '.join(e.reasons) for e in advice.excluded if e.source != 'none'}


class ConstraintsTest(parameterized.TestCase):

  @parameterized.parameters(
    ('neurecover', ('training_data',), 'needs history'),
    ('distrrep', ('history',), 'needs class importance'),
    ('apricot', ('history', 'class_importance'), 'needs training data'),
    ('mode', (), 'needs training data'),
    ('hudd', (), 'needs training data'),   # known from the rows only
  )
  def test_needs(self, approach, has, reason):
    rows = cell(approach) + cell('care')
    advice = advise(rows, has=has)
    self.assertEqual((ranked(advice), excluded(advice)), (['care'], {approach: reason}))
    self.assertCountEqual(ranked(advise(rows)), [approach, 'care'])

  def test_proof(self):
    rows = cell('prdnn') + cell('care', fixed=50) + cell('genmunn') + cell('reassure')
    advice = advise(rows, proof=True)
    self.assertCountEqual(ranked(advice), ['prdnn', 'reassure'])
    self.assertEqual(excluded(advice), {'care': 'gives no proof', 'genmunn': 'gives no proof'})

  def test_time(self):
    rows = cell('care', seconds=100.) + cell('arachne', seconds=101.)
    advice = advise(rows, time=100.)
    self.assertEqual((ranked(advice), excluded(advice)), (['care'], {'arachne': 'too slow: 101 s on mnist_lenet5'}))
    self.assertIn('times are those of cpu', advice.notes[0])

  @parameterized.parameters(
    ('accuracy', {'broken': 20}, {}, 'makes accuracy worse: -1.11% on mnist_lenet5'),
    ('robustness', {'asr': (0.8, 0.84)}, {'asr': (0.8, 0.83)}, 'makes robustness worse: -5.00% on mnist_lenet5'),
    ('fairness', {'aaod': (0.02, 0.021)}, {'aaod': (0.02, 0.02)}, 'makes fairness worse: -5.00% on mnist_lenet5'),
  )
  def test_keep(self, what, bad, good, reason):
    rows = cell('care', **bad) + cell('arachne', **good)
    advice = advise(rows, keep=(what,))
    self.assertEqual((ranked(advice), excluded(advice)), (['arachne'], {'care': reason}))
    self.assertCountEqual(ranked(advise(rows)), ['arachne', 'care'])

  def test_a_condition_holds_on_every_subject(self):
    rows = cell('care', fixed=90) + cell('care', broken=20, subject='digits_mlp')
    self.assertEqual(excluded(advise(rows, keep=('accuracy',))),
                     {'care': 'makes accuracy worse: -1.11% on digits_mlp'})
    self.assertEqual(ranked(advise(rows, keep=('accuracy',), subject='mnist_lenet5')), ['care'])

  def test_what_was_not_measured_is_said(self):
    choice = advise(cell('care'), keep=('fairness',)).choices[0]
    self.assertIn('fairness was not measured on mnist_lenet5', choice.cautions)

  def test_noise_of_robustness_is_said(self):
    choice = advise(cell('care', asr=(0.8, 0.82)), keep=('robustness',)).choices[0]
    self.assertIn('within the noise', ' '.join(choice.cautions))

  def test_outcomes(self):
    rows = cell('care') + cell('arachne', outcome='FAILURE') + cell('care', subject='digits_mlp', outcome='CORRUPTED',
                                                                                broken=200)
    advice = advise(rows)
    self.assertEqual(ranked(advice), ['care'])
    self.assertIn('CORRUPTED on digits_mlp: accuracy fell', advice.choices[0].cautions)
    self.assertEqual(excluded(advice), {
      'arachne': 'FAILURE on mnist_lenet5: repair: RepairFailure: nothing localized'})

  def test_a_subject_that_could_not_be_loaded(self):
    lost = [record.failed_row(record.blank_row() | {'subject': 'cifar10_vgg16', 'published_subject': 'CIFAR10'},
                              run_id='0' * 16, suite='test', seed=0, method=methods.get('arachne'), config={},
                              reason='subject: no data')]
    advice = advise(cell('care') + lost)
    self.assertEqual(advice.notes, ('Measured on mnist_lenet5; times are those of cpu, yours will differ.',))
    self.assertEqual(excluded(advice), {'arachne': 'FAILURE on cifar10_vgg16: subject: no data'})
    self.assertStartsWith(advise(lost).notes[0], 'No measured rows')

  def test_size_chooses_the_subject(self):
    rows = (cell('care', fixed=90) + cell('arachne', fixed=10)
            + cell('care', fixed=10, subject='cifar10_vgg16', n_params=15_000_000)
            + cell('arachne', fixed=90, subject='cifar10_vgg16', n_params=15_000_000))
    self.assertEqual(ranked(advise(rows, params=50_000)), ['care', 'arachne'])
    self.assertEqual(ranked(advise(rows, params=4_000_000)), ['arachne', 'care'])
    only = advise([], published.load(), params=40_000)
    self.assertEqual({s for c in only.choices for s in c.values['rr']}, {'MNIST'})


class RankingTest(parameterized.TestCase):

  @parameterized.parameters(('rr', ['arachne', 'care', 'irepair']), ('acc', ['care', 'irepair', 'arachne']),
                            ('nfr', ['care', 'irepair', 'arachne']), ('time', ['irepair', 'arachne', 'care']))
  def test_preference_decides(self, prefer, expected):
    rows = (cell('arachne', fixed=50, broken=60, seconds=20.) + cell('care', fixed=40, broken=1, seconds=30.)
            + cell('irepair', fixed=5, broken=5, seconds=10.))
    self.assertEqual(ranked(advise(rows, prefer=prefer)), expected)

  def test_ties_share_a_score_and_go_by_repair_rate_then_name(self):
    rows = cell('irepair', seconds=5.) + cell('care', seconds=5.) + cell('arachne', fixed=20, seconds=5.)
    advice = advise(rows, prefer='time')
    self.assertEqual(ranked(advice), ['arachne', 'care', 'irepair'])
    self.assertLen({c.score for c in advice.choices}, 1)

  def test_what_fails_somewhere_ranks_last_there(self):
    rows = (cell('care', fixed=20) + cell('arachne', fixed=30) + cell('care', fixed=20, subject='digits_mlp')
            + cell('arachne', subject='digits_mlp', outcome='FAILURE')
            + cell('care', fixed=20, subject='moons_mlp') + cell('arachne', subject='moons_mlp', outcome='FAILURE'))
    advice = advise(rows)
    self.assertEqual(ranked(advice), ['care', 'arachne'])
    self.assertEqual([round(c.score, 6) for c in advice.choices], [round((0.75 + 0.25 + 0.25) / 3, 6),
                                                                 round((0.25 + 0.75 + 0.75) / 3, 6)])

  def test_an_approach_without_the_metric_comes_last(self):
    rows = cell('care', seconds=None) + cell('arachne', fixed=1, seconds=1e6)
    advice = advise(rows, prefer='time')
    self.assertEqual(ranked(advice), ['arachne', 'care'])
    self.assertIn('nothing is known of time', advice.choices[1].cautions)

  def test_combinations_are_no_evidence(self):
    rows = cell('care') + cell('arachne', fixed=90, postprocess='sv')
    self.assertEqual(ranked(advise(rows)), ['care'])

  def test_few_seeds_are_said(self):
    self.assertIn('only 1 seed on some of the subjects', advise(cell('care')[:1]).choices[0].cautions)


class EvidenceTest(parameterized.TestCase):

  def test_measured_choices_cite_runs_that_exist(self):
    rows = cell('care') + cell('arachne', seconds=1e5)
    advice = advise(rows, time=60.)
    self.assertLen(advice.choices[0].citations, 3)
    for cited, approach in ((advice.choices[0], 'care'), (advice.excluded[0], 'arachne')):
      self.assertEqual(cited.approach, approach)
      ids = [text.split()[1] for text in cited.citations]
      self.assertCountEqual(ids, {row['run_id'] for row in rows if row['approach'] == approach})

  def test_the_newest_of_two_rows_is_cited(self):
    old, new = cell('care')[:1], cell('care', fixed=30, run_id='f' * 16, ended_utc='2027-01-01T00:00:00Z')[:1]
    choice = advise(new + old).choices[0]
    self.assertEqual(choice.citations, (f'run {"f" * 16} (mnist_lenet5, seed 0)',))
    self.assertEqual(choice.values['rr'], {'mnist_lenet5': 0.3})
    lost = cell('care', outcome='FAILURE', original_sha256=None, run_id='e' * 16, ended_utc='2028-01-01T00:00:00Z')[:1]
    self.assertEqual(advise(new + lost).choices[0].citations, choice.citations)   # no subject: nothing was tried

  def test_without_rows_the_published_tables_speak(self):
    tables = published.load()
    advice = advise([], tables, subject='MNIST')
    self.assertNotEmpty(advice.choices)
    for choice in advice.choices:
      self.assertEqual(choice.source, 'published')
      self.assertEqual(choice.values['rr'], {'MNIST': tables.figure(choice.approach, 'MNIST', 'rr').mean})
      self.assertContainsSubset({f'Fixing Study, Table 3, {choice.approach} MNIST'}, choice.citations)
    rates = [c.values['rr']['MNIST'] for c in advice.choices]
    self.assertEqual(rates, sorted(rates, reverse=True))
    self.assertEqual(advice.choices[0].approach, 'AP')
    self.assertIn('No measured rows', advice.notes[0])
    self.assertIn('RTX 3090', advice.notes[1])

  def test_measured_first_published_only_for_the_rest(self):
    tables = published.load()
    advice = advise(cell('care', fixed=1) + cell('prdnn', fixed=1), tables, subject='mnist_lenet5')
    self.assertCountEqual(ranked(advice)[:2], ['care', 'prdnn'])
    rest = advice.choices[2:]
    self.assertEqual({c.source for c in rest}, {'published'})
    self.assertNotIn('CARE', ranked(advice))   # measured here
    alone = advise([], tables, subject='MNIST')
    fit = [c.approach for c in alone.choices if c.approach != 'CARE']
    self.assertEqual([c.approach for c in rest], fit)
    two = advise(cell('care', fixed=1) + cell('prdnn', fixed=1), subject='mnist_lenet5')
    self.assertEqual([c.score for c in two.choices], [c.score for c in advice.choices[:2]])

  def test_doubtful_and_missing_approaches_are_said(self):
    choices = {c.approach: c for c in advise([], published.load()).choices}
    self.assertIn('contradict each other', ' '.join(choices['FM'].cautions))
    implemented = {methods.get(name).code for name in methods.NAMES}
    for code, choice in choices.items():
      self.assertEqual('not in this installation' in choice.cautions, code not in implemented)

  def test_a_doubtful_figure_breaks_no_condition(self):
    # RA on MNIST: the relative change is printed as -0.14 %, the accuracy as above the original's.
    advice = advise([], published.load(), subject='MNIST', keep=('accuracy',))
    (choice,) = (c for c in advice.choices if c.approach == 'RA')
    self.assertIn('accuracy was not judged on MNIST: the published figure contradicts others', choice.cautions)
    (sure,) = (c for c in advice.choices if c.approach == 'HUDD')
    self.assertNotIn('not judged', ' '.join(sure.cautions))
    self.assertEqual(excluded(advice)['CARE'], 'makes accuracy worse: -0.32% on MNIST')

  def test_what_nobody_knows_is_listed(self):
    advice = advise(cell('care'))
    self.assertIn('adrep', [e.approach for e in advice.excluded if e.reasons == ('neither measured nor published',)])
    self.assertEmpty(advise([], subject='digits_mlp').choices)

  def test_every_approach_is_either_chosen_or_excluded_once(self):
    advice = advise(cell('care') + cell('hudd', outcome='FAILURE'), published.load(), time=1000.)
    names = ranked(advice) + [e.approach for e in advice.excluded]
    self.assertLen(set(names), len(names))
    codes = {c.approach for c in advice.choices if c.source == 'published'}
    self.assertNoCommonElements(codes, {methods.get(n).code for n in names if n in methods.NAMES})

  def test_json(self):
    advice = advise(cell('care'), published.load())
    self.assertEqual(json.loads(json.dumps(dataclasses.asdict(advice)))['choices'][0]['approach'], 'care')

  @parameterized.parameters({'has': ('histories',)}, {'keep': ('speed',)}, {'prefer': 'asr'}, {'time': -1.},
                            {'params': 0})
  def test_bad_situations(self, **situation):
    with self.assertRaises(errors.JaxfixError):
      Situation(**situation)

  def test_unknown_subject(self):
    with self.assertRaisesRegex(errors.UnknownNameError, "Did you mean 'mnist_lenet5'"):
      advise(cell('care'), subject='mnist_lenet')


if __name__ == '__main__':
  absltest.main()
