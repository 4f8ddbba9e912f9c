"""Letters of a column: the worked example of the procedure, every unit, and what has no ordinary answer."""
import math

import hypothesis
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jaxfix import errors, statistics
from jaxfix.statistics import samples
from tests.evaluate.properties import examples

# Repair rates in percent on three data sets, three repeats each.
WORKED = {
  'P': {'D1': [74.0, 71.2, 76.9], 'D2': [20.4, 19.5, 21.3], 'D3': [36.9, 35.7, 38.0]},
  'Q': {'D1': [52.1, 50.2, 50.3], 'D2': [9.4, 9.4, 9.4], 'D3': [36.5, 36.8, 36.2]},
  'R': {'D1': [15.6, 13.4, 17.7], 'D2': [29.5, 28.4, 30.6], 'D3': [19.6, 18.7, 20.5]},
  'S': {'D1': [17.8, 15.1, 20.6], 'D2': [2.1, 2.6, 1.6], 'D3': [0.3, 0.5, 0.1]},
  'T': {'D1': [12.7, 7.0, 18.4], 'D2': [1.9, 0.3, 3.5], 'D3': [5.4, 1.8, 9.0]},
  'U': {'D1': [0, 0, 0], 'D2': [0, 0, 0], 'D3': [0, 0, 0]},
}
# Pair, t, p, q in order of p; computed with SciPy and statsmodels.
EXPECTED = (
  ('QU', 152.7895, 1.10066e-08, 1.65099e-07), ('QS', 57.0094, 5.66859e-07, 4.25144e-06),
  ('PU', 46.4119, 1.28911e-06, 6.44557e-06), ('PS', 36.2174, 3.46959e-06, 1.30110e-05),
  ('RU', 26.9887, 1.12062e-05, 3.36185e-05), ('PR', 17.9733, 5.63287e-05, 1.40822e-04),
  ('SU', 17.0935, 6.87040e-05, 1.43741e-04), ('RS', 16.6262, 7.66620e-05, 1.43741e-04),
  ('PT', 16.1310, 8.63894e-05, 1.43982e-04), ('QR', 12.9522, 2.04983e-04, 3.07474e-04),
  ('QT', 12.1372, 2.64408e-04, 3.55624e-04), ('PQ', 11.9120, 2.84499e-04, 3.55624e-04),
  ('RT', 6.6332, 2.68021e-03, 3.09255e-03), ('TU', 3.1781, 0.0335970, 0.0359968),
  ('ST', 0.0364, 0.972679, 0.972679))
NAN = float('nan')


def shown(result):
  return ' '.join(f'{name} {letters}' for name, letters in sorted(result.letters.items()))


class WorkedExampleTest(parameterized.TestCase):

  def test_every_pair_to_six_digits(self):
    result = statistics.groups(WORKED)
    self.assertEqual((result.unit, result.test, result.num_tested), ('repeat_mean', 'student', 15))
    self.assertEqual(''.join(result.order), 'PQRSTU')
    found = {p.a + p.b: p for p in result.pairs}
    self.assertEqual([p.a + p.b for p in sorted(result.pairs, key=lambda p: p.p)], [name for name, *_ in EXPECTED])
    for name, t, p, q in EXPECTED:
      self.assertAlmostEqual(found[name].t, t, delta=5.1e-5)
      np.testing.assert_allclose((found[name].p, found[name].q), (p, q), rtol=5e-6, err_msg=name)
      self.assertEqual((found[name].significant, found[name].flags), (name != 'ST', ()))
      self.assertEqual((found[name].n_a, found[name].n_b, found[name].df), (3, 3, 4))

  @parameterized.parameters(
    ({}, 'P a Q b R c S d T d U e'),
    ({'test': 'welch'}, 'P a Q b R c S d T de U e'),
    ({'unit': 'pooled'}, 'P a Q ab R b S c T c U d'),
  )
  def test_one_data_set_three_displays(self, options, expected):
    self.assertEqual(shown(statistics.groups(WORKED, **options)), expected)

  def test_numbers_of_the_other_two_displays(self):
    welch = {p.a + p.b: p for p in statistics.groups(WORKED, test='welch').pairs}
    self.assertAlmostEqual(welch['TU'].p, 0.086374, places=6)
    self.assertFalse(welch['TU'].significant)
    self.assertEqual(sum(p.significant for p in statistics.groups(WORKED, unit='pooled').pairs), 12)

  def test_sample_means(self):
    of = samples.of_unit(samples.clean(WORKED), 'repeat_mean')
    np.testing.assert_allclose(of('P', 'T').a, [43.7667, 42.1333, 45.4], atol=5e-5)
    np.testing.assert_allclose(of('P', 'T').b, [6.6667, 3.0333, 10.3], atol=5e-5)

  def test_difference_interval_and_effect_size(self):
    pair = next(p for p in statistics.groups(WORKED).pairs if p.a + p.b == 'PQ')
    a, b = np.array([43.76666667, 42.13333333, 45.4]), np.array([32.66666667, 32.13333333, 31.96666667])
    pooled = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
    self.assertAlmostEqual(pair.difference, a.mean() - b.mean(), places=6)
    half = 2.776445105 * pooled * math.sqrt(2 / 3)   # t quantile, 4 degrees of freedom
    np.testing.assert_allclose(pair.interval, (pair.difference - half, pair.difference + half), rtol=1e-6)
    self.assertAlmostEqual(pair.hedges_g, 0.797884561 * pair.difference / pooled, places=5)   # J(4) = sqrt(2 / pi)


class UnitsTest(absltest.TestCase):

  VALUES = {'A': {'x': [1., 2., 3.], 'y': [10., 20., 30.]}, 'B': {'x': [4., 6., 5.], 'z': [0., 1., 2.]}}

  def samples_of(self, unit, values=None):
    return samples.of_unit(samples.clean(values or self.VALUES), unit)('A', 'B')

  def test_common_data_sets(self):
    for unit in ('repeat_mean', 'pooled'):
      s = self.samples_of(unit)
      self.assertEqual((s.a.tolist(), s.b.tolist(), s.datasets_a), ([1, 2, 3], [4, 6, 5], ('x',)))

  def test_own_data_sets(self):
    s = self.samples_of('repeat_mean_own')
    self.assertEqual((s.a.tolist(), s.b.tolist()), ([5.5, 11, 16.5], [2, 3.5, 3.5]))
    self.assertEqual((s.datasets_a, s.datasets_b), (('x', 'y'), ('x', 'z')))

  def test_missing_as_zero(self):
    s = self.samples_of('repeat_mean_zero')
    np.testing.assert_allclose(s.a, np.array([11, 22, 33]) / 3)
    np.testing.assert_allclose(s.b, np.array([4, 7, 7]) / 3)

  def test_paired_differences(self):
    self.assertEqual(self.samples_of('paired').a.tolist(), [-3, -4, -2])
    result = statistics.groups(self.VALUES, unit='paired')
    self.assertEqual((result.pairs[0].n_a, result.pairs[0].df), (3, 2))
    self.assertAlmostEqual(abs(result.pairs[0].t), 3 / math.sqrt(1 / 3))

  def test_ranks_share_ties_and_skip_what_is_missing(self):
    s = self.samples_of('rank', {'A': {'x': [1., 5., NAN]}, 'B': {'x': [5., 7., 9.]}})
    np.testing.assert_allclose(s.a, [1 / 5, 2.5 / 5])
    np.testing.assert_allclose(s.b, [2.5 / 5, 4 / 5, 1])

  def test_a_mean_is_over_the_same_data_sets_in_every_repeat(self):
    values = {'A': {'x': [1., NAN, 3., 5.], 'y': [1., 2., 5., 7.], 'z': [100.]}, 'B': {k: [1, 2, 3, 4] for k in 'xyz'}}
    s = self.samples_of('repeat_mean', values)
    self.assertEqual((s.a.tolist(), s.b.tolist(), s.datasets_a), ([1, 4, 6], [1, 2, 3, 4], ('x', 'y')))

  def test_unknown_names(self):
    with self.assertRaisesRegex(errors.UnknownNameError, "Did you mean 'repeat_mean'"):
      statistics.groups(self.VALUES, unit='repeatmean')
    with self.assertRaises(errors.UnknownNameError):
      statistics.groups(self.VALUES, test='anova')


class EdgeCasesTest(parameterized.TestCase):

  def pair(self, a, b, **options):
    result = statistics.groups({'A': {'d': a}, 'B': {'d': b}, 'C': {'d': [90, 91, 92]}}, **options)
    return result, next(p for p in result.pairs if {p.a, p.b} == {'A', 'B'})

  def test_both_constant_and_equal(self):
    third = (0.1 + 0.2) / 3   # differs from 0.1 in the last bit
    result, pair = self.pair([0.1, 0.1, third], [third, 0.1, 0.1])
    self.assertEqual((pair.p, pair.t, pair.hedges_g, pair.flags, pair.significant), (1, 0, 0, (), False))
    self.assertEqual(result.letters, {'A': 'b', 'B': 'b', 'C': 'a'})

  def test_both_constant_and_different(self):
    result, pair = self.pair([2, 2, 2], [1, 1, 1])
    self.assertEqual((pair.p, pair.q, pair.flags, pair.significant), (0, 0, ('degenerate',), True))
    self.assertEqual((pair.t, pair.hedges_g, pair.difference, pair.interval), (math.inf, math.inf, 1, (1, 1)))
    self.assertEqual(result.letters, {'A': 'b', 'B': 'c', 'C': 'a'})

  def test_one_constant_is_an_ordinary_test(self):
    _, pair = self.pair([2, 2, 2], [0, 1, 2])
    self.assertEqual(pair.flags, ())
    self.assertAlmostEqual(pair.t, 1 / math.sqrt(0.5 * 2 / 3))   # pooled variance (0 + 1) / 2

  def test_a_single_value_is_untestable_and_counts_as_not_different(self):
    for unit in samples.UNITS:
      if unit == 'repeat_mean_zero':
        continue   # its missing repeats are zeros
      result, pair = self.pair([5], [1, 2, 3], unit=unit)
      self.assertEqual(pair.flags, ('untestable',), unit)
      self.assertTrue(math.isnan(pair.p) and math.isnan(pair.q) and not pair.significant)
      self.assertTrue(set(result.letters['A']) & set(result.letters['B']))

  def test_no_common_data_set(self):
    values = {'A': {'x': [1, 2, 3]}, 'B': {'y': [51, 52, 53]}, 'C': {'x': [61, 62, 63], 'y': [1, 2, 3]}}
    result = statistics.groups(values)
    self.assertEqual(result.num_tested, 2)
    untestable = [p for p in result.pairs if p.flags]
    self.assertEqual([(p.a, p.b, p.flags, p.n_a) for p in untestable], [('B', 'A', ('untestable',), 0)])
    self.assertEqual(result.letters, {'A': 'a', 'B': 'a', 'C': 'b'})

  def test_an_approach_without_values_has_no_letter(self):
    for nothing in ({}, {'d': []}, {'d': [NAN, None]}):
      result = statistics.groups({'A': {'d': [1, 2, 3]}, 'B': {'d': [7, 8, 9]}, 'N': nothing})
      self.assertEqual(result.letters, {'A': 'b', 'B': 'a', 'N': '-'})
      self.assertNotIn('N', result.order)

  @parameterized.parameters(({'A': {'d': [1, 2, 3]}},), ({'A': {'d': [1]}, 'B': {'d': [2]}},), ({},))
  def test_nothing_to_compare(self, values):
    result = statistics.groups(values)
    self.assertEqual(set(result.letters.values()) | {'-'}, {'-'})
    self.assertEqual(result.num_tested, 0)

  def test_all_significant_and_none_significant(self):
    far = {name: {'d': [10 * i, 10 * i + 1, 10 * i + 2]} for i, name in enumerate('ABCDE')}
    self.assertEqual(shown(statistics.groups(far)), 'A e B d C c D b E a')
    near = {name: {'d': [i, 10 + i, 20 + i]} for i, name in enumerate('ABCDE')}
    self.assertEqual(set(statistics.groups(near).letters.values()), {'a'})

  def test_ties_in_the_mean_go_by_name(self):
    self.assertEqual(statistics.groups({n: {'d': [1, 2, 3]} for n in 'CAB'}).order, ('A', 'B', 'C'))

  def test_infinite_values_are_refused(self):
    with self.assertRaisesRegex(errors.BadInputError, 'A on d'):
      statistics.groups({'A': {'d': [1, math.inf]}})

  def test_floor_keeps_one_input_from_being_certain(self):
    # Two deterministic approaches, one test input of 100 apart.
    values = {'A': {'d': [0.51] * 3}, 'B': {'d': [0.5] * 3}}
    self.assertEqual(statistics.groups(values).pairs[0].flags, ('degenerate',))
    pair = statistics.groups(values, floor={'d': 0.01}).pairs[0]
    self.assertEqual(pair.flags, ())
    self.assertAlmostEqual(pair.t, 0.01 / math.sqrt(0.01 ** 2 / 12 * 2 / 3))

  def test_floor_of_means_of_pools_and_of_differences(self):
    values = {'A': {'d': [0., 1.], 'e': [4., 4.]}, 'B': {'d': [3., 3.], 'e': [9., 8.]}}
    floor = {'d': 6., 'e': 12.}   # 9 on average, 4.5 for a mean of two
    for unit, extra, base, n in (('repeat_mean', 4.5 ** 2 / 12, 0.125, 2), ('repeat_mean_own', 4.5 ** 2 / 12, 0.125, 2),
                                 ('repeat_mean_zero', 4.5 ** 2 / 12, 0.125, 2), ('pooled', 81 / 12, None, 4)):
      if base is None:
        base = (np.var([0, 1, 4, 4], ddof=1) + np.var([3, 3, 9, 8], ddof=1)) / 2
      pair = statistics.groups(values, unit=unit, floor=floor).pairs[0]
      self.assertAlmostEqual(abs(pair.t), abs(pair.difference) / math.sqrt((base + extra) * 2 / n), msg=unit)
    pair = statistics.groups(values, unit='paired', floor=floor).pairs[0]
    variance = np.var([3, 2, 5, 4], ddof=1) + 2 * 81 / 12
    self.assertAlmostEqual(abs(pair.t), 3.5 / math.sqrt(variance / 4))

  def test_floor_needs_every_data_set_and_no_ranks(self):
    with self.assertRaisesRegex(errors.BadInputError, 'no resolution for D2, D3'):
      statistics.groups(WORKED, floor={'D1': 0.01})
    with self.assertRaisesRegex(errors.BadInputError, 'Ranks'):
      statistics.groups(WORKED, floor={'D1': 0.01}, unit='rank')


class InvarianceTest(absltest.TestCase):

  @examples(40)
  @hypothesis.given(st.permutations(sorted(WORKED)), st.sampled_from(sorted(samples.UNITS)))
  def test_letters_follow_the_values_under_any_names_and_order(self, names, unit):
    renamed = dict(zip(sorted(WORKED), names, strict=True))
    plain = statistics.groups(WORKED, unit=unit)
    moved = statistics.groups({renamed[name]: WORKED[name] for name in sorted(WORKED, key=renamed.get)}, unit=unit)
    self.assertEqual({renamed[name]: letters for name, letters in plain.letters.items()}, dict(moved.letters))


if __name__ == '__main__':
  absltest.main()
