"""Settings of a report against the study's: each difference shows, and only where there is one."""
import dataclasses

from absl.testing import absltest, parameterized

from jaxfix import methods
from jaxfix.files import jsonable
from jaxfix.methods.method import describe_config
from jaxfix.study import deviations, published
from jaxfix.study.store import Results
from tests.study.rows import make_row, make_rows, unloaded_row

_AS_PUBLISHED = dict(n_train=54000, n_valid=6000, n_repair=5000, counts=(4890, 60, 10, 40))


def _found(rows, printed=True):
  found = deviations.deviations(Results(tuple(rows)), published.load() if printed else None)
  return {d.setting: d for d in found}


def _like_the_study(**fields):
  config = jsonable(describe_config(methods.get('care').config))
  return [make_row('care', seed=s, config=config, **{**_AS_PUBLISHED, **fields}) for s in range(3)]


class DeviationsTest(parameterized.TestCase):

  def test_what_is_the_same_does_not_differ(self):
    found = _found(_like_the_study())
    same = {name for name, d in found.items() if not d.differs}
    self.assertEqual(same, {'mnist_lenet5: train + valid + repair + test', 'mnist_lenet5: data', 'repeats',
                            'mnist_lenet5: attack radius', 'limits'})
    self.assertEqual(found['mnist_lenet5: train + valid + repair + test'].report, '54,000 + 6,000 + 5,000 + 5,000')

  @parameterized.parameters(
    (dict(n_train=1000), 'mnist_lenet5: train + valid + repair + test', '1,000 + 6,000 + 5,000 + 5,000'),
    (dict(dataset_source='synthetic:v1'), 'mnist_lenet5: data', 'synthetic:v1'),
    (dict(asr_eps=0.3), 'mnist_lenet5: attack radius', '0.3, normalized space'),
    (dict(asr_eps_space='pixel'), 'mnist_lenet5: attack radius', '0.15, pixel space'),
    (dict(outcome='FAILURE', outcome_reason='time_limit: not finished after 60 s'), 'limits',
     '3 runs stopped by time_limit'))
  def test_each_difference_shows(self, fields, setting, text):
    deviation = _found(_like_the_study(**fields))[setting]
    self.assertTrue(deviation.differs)
    self.assertEqual(deviation.report, text)

  def test_stand_ins(self):
    found = _found(make_rows(['care'], ['digits_mlp']))
    self.assertEqual(found['digits_mlp: subject'].study, 'no counterpart')
    self.assertStartsWith(found['digits_mlp: subject'].report, 'stand-in, data npz, sizes 54,000')
    self.assertEqual(_found(make_rows(['care']), printed=False)['mnist_lenet5: subject'].study, 'no counterpart')

  def test_what_a_subject_that_was_not_loaded_leaves_open_is_a_dash(self):
    found = _found([unloaded_row()])
    self.assertEqual([found[name].report for name in (
      'mnist_lenet5: train + valid + repair + test', 'mnist_lenet5: data', 'hardware, for times')],
      ['- + - + - + -', '-', '-'])
    for rows in ([unloaded_row(), *_like_the_study()], [*_like_the_study(), unloaded_row()]):   # another row knows
      found = _found(rows)
      self.assertFalse(found['mnist_lenet5: train + valid + repair + test'].differs)
      self.assertEqual(found['hardware, for times'].report, '1 cpu, a processor')

  def test_seeds_and_approaches(self):
    rows = [*make_rows(['care', 'adrep'], seeds=(0, 1)), *make_rows(['hudd'], seeds=(0,))]
    found = _found(rows)
    self.assertEqual((found['repeats'].study, found['repeats'].report, found['repeats'].differs), ('3', '1 to 2', True))
    self.assertStartsWith(found['approaches'].report, '2 of 16; not run: AP, ET')
    self.assertEndsWith(found['approaches'].report, '; further: adrep')

  def test_attack(self):
    found = _found(_like_the_study())
    self.assertEqual(found['attacked inputs'].study, '500 test inputs that the original and all 3 repeats get right')
    self.assertStartsWith(found['attacked inputs'].report, '500 test inputs that the original and this repeat')
    self.assertEqual(found['attack on'].report, 'logits: the default of this generator, not recorded in the rows')
    self.assertEqual(_found([make_row('care', asr=None)])['attacked inputs'].report, 'no attack')

  def test_options_that_are_not_the_defaults(self):
    default = methods.get('care').config
    name = next(f.name for f in dataclasses.fields(default) if isinstance(getattr(default, f.name), float))
    changed = getattr(default, name) + 1
    config = {**jsonable(describe_config(default)), name: changed}
    found = _found([make_row('care', subject, config=config) for subject in ('mnist_lenet5', 'digits_mlp')])
    self.assertEqual(found['options of care'].report,
                     f'{name} = {changed:g} ({getattr(default, name):g}) on mnist_lenet5, digits_mlp')
    self.assertEqual(found['options of care'].study, 'method defaults, in parentheses')
    self.assertNotIn('options of care', _found(_like_the_study()))
    self.assertNotIn('options of unheard_of', _found([make_row('unheard_of')]))

  def test_the_test_and_the_hardware(self):
    found = _found(_like_the_study())
    self.assertEqual(found['significance'].report, 'unit repeat_mean, Student t-test at 0.05, Benjamini-Hochberg')
    self.assertEqual(found['hardware, for times'].report, '1 cpu, a processor')

  def test_the_table_shows_differences_first(self):
    shown = deviations.deviations_table(Results(tuple(_like_the_study())), published.load())
    flags = [row[-1].text for row in shown.rows]
    self.assertEqual(flags, sorted(flags, reverse=True))
    self.assertEqual(shown.rules, (flags.index('no'),))


if __name__ == '__main__':
  absltest.main()
