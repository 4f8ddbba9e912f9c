"""Compact letter displays: traced examples, the guarantee, and the study's own Table 4 displayed again."""
import csv
import itertools
import pathlib
import unittest

import hypothesis
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from jaxfix import errors
from jaxfix.statistics import display, letters
from tests.evaluate.properties import examples

_TABLE4 = pathlib.Path(display.__file__).parents[1] / 'study' / 'published' / 'study_table4_groups.csv'


@st.composite
def graphs(draw):
  """An order of 2 to 9 names and a set of pairs."""
  names = 'ABCDEFGHI'[:draw(st.integers(2, 9))]
  return names, draw(st.sets(st.sampled_from(list(itertools.combinations(names, 2)))))


def differing(shown):
  """Pairs without a common letter."""
  return {(a, b) for a, b in itertools.combinations(sorted(shown), 2) if not set(shown[a]) & set(shown[b])}


class LettersTest(parameterized.TestCase):

  @parameterized.parameters(
    ('ABCD', 'AC AD BD', 'A a, B ab, C bc, D c'),
    ('ABCDE', 'AE BC BE CE', 'A ab, B a, C b, D abc, E c'),
    ('ABCDE', 'AD BC', 'A ab, B ac, C bd, D cd, E bc'),
    ('ABC', '', 'A a, B a, C a'),
    ('ABC', 'AB AC BC', 'A a, B b, C c'),
    ('A', '', 'A a'),
  )
  def test_traced(self, order, pairs, expected):
    shown = letters(order, pairs.split())
    self.assertEqual(', '.join(f'{name} {shown[name]}' for name in order), expected)
    self.assertEqual(shown, letters(order, [pair[::-1] for pair in pairs.split()][::-1]))

  def test_nobody(self):
    self.assertEqual(letters((), ()), {})

  @examples(500)
  @hypothesis.given(graphs())
  def test_a_common_letter_iff_not_different(self, graph):
    names, pairs = graph
    shown = letters(names, pairs)
    self.assertEqual(differing(shown), pairs)
    self.assertTrue(all(shown.values()))

  @examples(200)
  @hypothesis.given(graphs())
  def test_no_letter_is_needless(self, graph):
    names, pairs = graph
    shown = letters(names, pairs)
    for name in names:
      for letter in shown[name]:
        less = {**shown, name: shown[name].replace(letter, '')}
        self.assertTrue(not less[name] or differing(less) != pairs)

  @examples(100)
  @hypothesis.given(graphs(), st.randoms(use_true_random=False))
  def test_new_names_change_nothing(self, graph, random):
    names, pairs = graph
    new = dict(zip(names, random.sample('abcdefghi', len(names)), strict=True))
    renamed = letters([new[n] for n in names], [(new[a], new[b]) for a, b in pairs])
    self.assertEqual(renamed, {new[n]: s for n, s in letters(names, pairs).items()})

  def test_letters_come_from_best_to_worst(self):
    names = [f'{i:02d}' for i in range(30)]
    shown = letters(names, itertools.combinations(names, 2))
    self.assertEqual((shown['00'], shown['25'], shown['26'], shown['29']), ('a', 'z', 'aa', 'ad'))

  def test_long_names_are_joined_with_commas(self):
    # A path: neighbors share a letter, everybody else differs, so that there are 29 letters.
    names = [f'{i:02d}' for i in range(30)]
    shown = letters(names, [(a, b) for a, b in itertools.combinations(names, 2) if int(b) - int(a) > 1])
    self.assertEqual((shown['01'], shown['26'], shown['27'], shown['29']), ('ab', 'z,aa', 'aa,ab', 'ac'))

  def test_too_many_groups(self):
    # A matching of n pairs has 2^n largest sets without one.
    pairs = [(f'a{i}', f'b{i}') for i in range(13)]
    names = [name for pair in pairs for name in pair]
    with self.assertRaisesRegex(errors.BadInputError, '4096 groups'):
      letters(names, pairs)

  @parameterized.parameters(('AB', ['AC']), ('AB', ['AA']), ('ABA', []))
  def test_bad_pairs(self, order, pairs):
    with self.assertRaises(errors.BadInputError):
      letters(order, pairs)


class PublishedTest(parameterized.TestCase):

  @parameterized.parameters('acc', 'rr', 'asr', 'aaod', 'nfr', 'time')
  def test_table_4_displayed_again(self, column):
    """The pairs of each published column lead back to its letters: they come from this kind of algorithm."""
    if not _TABLE4.exists():
      raise unittest.SkipTest(f'needs {_TABLE4}')
    with open(_TABLE4, encoding='utf-8', newline='') as f:
      published = {row['approach']: row[column] for row in csv.DictReader(f) if row[column]}
    self.assertGreaterEqual(len(published), 14)
    order = sorted(published, key=lambda name: (sum(map(ord, published[name])) / len(published[name]), name))
    shown = letters(order, differing(published))
    self.assertEqual(differing(shown), differing(published))
    if column == 'asr':   # the same display with two letters exchanged
      swapped = str.maketrans('de', 'ed')
      shown = {name: ''.join(sorted(s.translate(swapped))) for name, s in shown.items()}
    self.assertEqual(shown, published)


if __name__ == '__main__':
  absltest.main()
