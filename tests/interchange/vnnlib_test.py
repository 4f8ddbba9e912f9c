"""VNN-LIB: the ten ACAS Xu properties, files by hand, round trips, and every way to be malformed."""
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError
from jaxfix.interchange import vnnlib
from jaxfix.verify import Box, Points, Property, avoids, wins
from tests.shared_data import shared_data

HEADER = '(declare-const X_0 Real)\n(declare-const Y_0 Real)\n(declare-const Y_1 Real)\n'
BOX = '(assert (>= X_0 -1))\n(assert (<= X_0 2.5e-1))\n'


def assert_same(a, b):
  assert len(a) == len(b)
  for p, q in zip(a, b, strict=True):
    np.testing.assert_array_equal([p.inputs.lower, p.inputs.upper], [q.inputs.lower, q.inputs.upper])
    for c, d in zip(p.clauses, q.clauses, strict=True):
      np.testing.assert_array_equal(c.g, d.g)
      np.testing.assert_array_equal(c.h, d.h)
      assert c.strict and d.strict


class ParseTest(parameterized.TestCase):

  def test_by_hand(self):
    (p,) = vnnlib.parse(HEADER + '; a comment (assert\n' + BOX + '(assert (or (and (<= Y_0 Y_1)\n (>= Y_0 3)) '
                        '(>= 0.5 Y_1)))')
    np.testing.assert_array_equal([p.inputs.lower, p.inputs.upper], [[-1], [.25]])
    # Unsafe: y0 <= y1 and y0 >= 3, or y1 <= 0.5.
    y = np.array([[3., 4.], [3., 2.], [2., 4.], [9., .5], [9., .6]])
    np.testing.assert_array_equal(p.holds(y), [False, True, True, False, True])

  def test_disjunctions_multiply_out(self):
    text = HEADER + BOX + '(assert (or (<= Y_0 0) (<= Y_0 1)))(assert (or (<= Y_1 2) (<= Y_1 3) (<= Y_1 4)))'
    (p,) = vnnlib.parse(text)
    self.assertLen(p.clauses, 6)
    self.assertEqual({c.g.shape for c in p.clauses}, {(2, 2)})

  def test_one_property_for_each_box(self):
    boxes = '(assert (or (and (>= X_0 0) (<= X_0 1)) (and (>= X_0 4) (<= X_0 5) (>= X_0 4.5))))'
    first, second = vnnlib.parse(HEADER + boxes + '(assert (<= Y_0 Y_1))')
    self.assertEqual((first.inputs.lower[0], second.inputs.lower[0], second.inputs.upper[0]), (0, 4.5, 5))

  def test_a_file_about_inputs_alone_is_unsafe_everywhere(self):
    (p,) = vnnlib.parse(HEADER + BOX)
    self.assertFalse(p.holds(np.zeros(2)))

  def test_a_contradictory_box_is_empty_and_the_property_vacuous(self):
    (p,) = vnnlib.parse(HEADER + '(assert (>= X_0 1))(assert (<= X_0 0))(assert (<= Y_0 Y_1))')
    self.assertTrue(p.is_vacuous)

  @parameterized.parameters(
    ('(assert (<= X_0 1)', 'line 4, column 1: this parenthesis is never closed'),
    ('(assert (<= X_0 1)))', 'line 4, column 20: there is nothing'),
    ('assert', 'line 4, column 1: expected a statement'),
    ('(check-sat)', "line 4, column 1: unknown statement 'check-sat'"),
    ('(assert (<= X_0 1) (<= X_0 2))', 'line 4, column 1: an assertion has one'),
    ('(assert\n (<= X_1 1))', 'line 5, column 6: X_1 is not declared'),
    ('(assert (<= X_0 1e999))', "line 4, column 17: '1e999'"),
    ('(assert (<= X_0 nan))', "'nan' is neither"), ('(assert (<= X_0 0x10))', "'0x10' is neither"),
    ('(assert (<= X_0 1_0))', "'1_0' is neither"), ('(assert (<= X_00 1))', "'X_00' is neither"),
    ('(assert (<= X_0 (+ 1 2)))', 'line 4, column 17: arithmetic'),
    ('(assert (= X_0 1))', "expected (<= a b) or (>= a b), found '='"), ('(assert (< X_0 1))', "found '<'"),
    ('(assert (<= X_0 Y_0))', 'may only be compared with a number'),
    ('(assert (<= 1 2))', 'two numbers'), ('(assert (<= X_0 1 2))', 'found 3'), ('(assert ())', "found ''"),
    ('(assert (or))', 'a disjunction of nothing'), ('(assert (and))', 'a conjunction of nothing'),
    ('(assert (or Y_0))', 'line 4, column 13: expected an expression'),
    ('(assert (and (or (<= Y_0 0))))', 'an `or` holds `and`s'),
    ('(declare-const X_2 Real)', 'expected the declaration of X_1, found X_2'),
    ('(declare-const X_0 Real)', 'declared once'), ('(declare-const Z_0 Real)', 'a declaration reads'),
    ('(declare-const X_1 Int)', 'a declaration reads'), ('(assert (<= X_0 1))', 'X_0 has no lower bound'))
  def test_malformed_files_name_their_place(self, line, words):
    with self.assertRaises(CorruptFileError) as caught:
      vnnlib.parse(HEADER + line)
    self.assertIn(words, str(caught.exception))

  @parameterized.parameters('', '(declare-const X_0 Real)', '(declare-const Y_0 Real)')
  def test_nothing_declared(self, text):
    with self.assertRaisesRegex(CorruptFileError, 'is declared'):
      vnnlib.parse(text)

  def test_an_explosion_is_refused_before_it_happens(self):
    with self.assertRaisesRegex(CorruptFileError, '2097152 conjunctions'):
      vnnlib.parse(HEADER + BOX + '(assert (or (<= Y_0 0) (<= Y_1 0)))' * 21)

  def test_files(self):
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / 'p.vnnlib'
      with self.assertRaisesRegex(DataNotFoundError, 'p.vnnlib'):
        vnnlib.read(path)
      path.write_bytes(b'\xff\xfe')
      with self.assertRaisesRegex(CorruptFileError, 'not text'):
        vnnlib.read(path)
      path.write_text(HEADER + '(assert')
      with self.assertRaisesRegex(CorruptFileError, r'p\.vnnlib: line 4, column 1'):
        vnnlib.read(path)


_FLOATS = st.floats(-1e300, 1e300).map(lambda v: v + 0.)   # no -0


@st.composite
def _specs(draw):
  n, k = draw(st.integers(1, 3)), draw(st.integers(2, 3))

  def row():
    if draw(st.booleans()):
      i, j = draw(st.permutations(range(k)))[:2]
      return np.eye(k)[i] - np.eye(k)[j], 0.
    return draw(st.sampled_from((1., -1.))) * np.eye(k)[draw(st.integers(0, k - 1))], draw(_FLOATS)

  def box(i):
    low = [draw(_FLOATS) for _ in range(n)]
    return Box(low, [v + i for v in low])

  properties = []
  for i in range(draw(st.integers(1, 2))):
    regions = []
    for _ in range(draw(st.integers(1, 3))):
      rows = [row() for _ in range(draw(st.integers(1, 3)))]
      regions.append((np.array([r for r, _ in rows]), np.array([b for _, b in rows])))
    properties.append(Property(box(i), avoids(regions)))
  return tuple(properties)


class WriteTest(parameterized.TestCase):

  @settings(deadline=None, max_examples=100)
  @given(_specs())
  def test_what_is_written_is_read_back_to_the_bit(self, spec):
    if len(spec) == 2 and all(np.array_equal(*pair) for pair in (
        (spec[0].inputs.lower, spec[1].inputs.lower), (spec[0].inputs.upper, spec[1].inputs.upper))):
      return   # the same box twice is one property to the reader
    assert_same(vnnlib.parse(vnnlib.unparse(spec)), spec)

  @parameterized.parameters(*range(1, 11))
  def test_acas_xu(self, number):
    path = shared_data() / f'acasxu/properties/prop_{number}.vnnlib'
    spec = vnnlib.read(path)
    with tempfile.TemporaryDirectory() as folder:
      vnnlib.write(f'{folder}/again.vnnlib', spec)
      assert_same(vnnlib.read(f'{folder}/again.vnnlib'), spec)
    shapes = {5: [[(1, 5)] * 4], 6: [[(1, 5)] * 4] * 2, 7: [[(3, 5)] * 2], 8: [[(2, 5)] * 3]}
    if number in shapes:
      self.assertEqual([[c.g.shape for c in p.clauses] for p in spec], shapes[number])

  def test_the_first_property_bounds_one_output(self):
    (p,) = vnnlib.read(shared_data() / 'acasxu/properties/prop_1.vnnlib')
    np.testing.assert_allclose(p.inputs.lower[[0, 3, 4]], [.6, .45, -.5])
    y = np.array([[3.9911256458, 0, 0, 0, 0], [3.99, 9, 9, 9, 9], [4., 0, 0, 0, 0]])
    np.testing.assert_array_equal(p.holds(y), [True, True, False])

  @parameterized.parameters(
    (lambda: (), 'without properties'), (lambda: (Property(Points(np.zeros((1, 1))), wins(0, 2)),), 'boxes'),
    (lambda: (Property(Box([0.], [1.]), ()),), 'without clauses'),
    (lambda: (Property(Box([0.], [1.]), wins(0, 2, margin=1.)),), 'strict'),
    (lambda: (Property(Box([0.], [1.]), avoids([([[1., 2.]], [0.])])),), 'does neither'))
  def test_what_the_format_cannot_say_is_refused(self, make, words):
    with self.assertRaisesRegex(BadInputError, words):
      vnnlib.unparse(make())


class CommentTest(absltest.TestCase):

  def test_only_line_ends_end_a_comment(self):
    text = """(declare-const X_0 Real)
(declare-const Y_0 Real)
(assert (<= X_0 1)) ; was{}(assert (<= X_0 -1))
(assert (>= X_0 -2))
(assert (>= Y_0 0))
"""
    for separator in (' ', '\x0c', '\x0b', '\x85', '\u2028', '\x1c'):
      with self.subTest(repr(separator)):
        self.assertEqual(vnnlib.parse(text.format(separator))[0].inputs.upper[0], 1.)
    for separator in ('\n', '\r\n', '\r'):
      self.assertEqual(vnnlib.parse(text.format(separator))[0].inputs.upper[0], -1.)


if __name__ == '__main__':
  absltest.main()
