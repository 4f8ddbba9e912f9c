"""Branch and bound on the worked example, at its limits, and against integer programs."""
import functools
import tracemalloc
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError
from jaxfix.verify import branch_and_bound, certificate, checker, falsify, milp
from jaxfix.verify.graph import trace
from jaxfix.verify.normal_form import NormalForm, Op, lower
from jaxfix.verify.spec import Box, Clause, HPolytope, Points, Property, VPolytope
from jaxfix.verify.verdict import VacuousError, Verdict
from tests.verify import networks

_KEY = jax.random.key(0)


@functools.cache
def _traced(name, *arguments):
  graph = trace(getattr(networks, name)(*arguments))
  return graph, lower(graph)


@functools.cache
def _range():
  return milp.output_range(_traced('mlp', (4, 8, 8, 3))[1], Box(-np.ones(4), np.ones(4)), np.array([1., -1., .5]))


def _row(g, h, strict=False):
  return Clause(np.atleast_2d(g), np.atleast_1d(h), strict)


def _decide(traced, p, key=_KEY, **options):
  return branch_and_bound.decide(*traced, p, key=key, **options)


class N1Test(parameterized.TestCase):
  """f(x) = relu(-x) / 2 - relu(x - 2) / 2 + relu(x / 2) - 1/2 on [-1, 3], where it takes the values [-1/2, 1/2]."""
  _BOX = Box([-1.], [3.])

  @parameterized.parameters(1., -1.)
  def test_the_worked_example(self, sign):
    """y <= 0.6 and y >= -0.6: 3 nodes, 2 leaves (V-section 12.3)."""
    for strength in ('real', 'float32'):
      outcome = _decide(_traced('n1'), Property(self._BOX, (_row([sign], .6),)), strength=strength)
      self.assertIs(outcome.verdict, Verdict.PROVED)
      self.assertEqual((outcome.strength, outcome.decided), (strength, 1.))
      self.assertIn(outcome.num_boxes, (3, 4))   # 4 if the root counts twice
      kind, tree = outcome.evidence
      self.assertEqual((kind, tree.tolist(), tree.dtype), ('splits', [0, -1, -1], np.int16))

  @parameterized.parameters(1., -1.)
  def test_refuted_by_a_point_of_the_box(self, sign):
    p = Property(self._BOX, (_row([sign], .4),))
    outcome = _decide(_traced('n1'), p)
    self.assertIs(outcome.verdict, Verdict.REFUTED)
    self.assertTrue(self._BOX.contains(outcome.counterexample))
    self.assertEqual((outcome.evidence, outcome.strength), (None, ''))
    network, clauses = certificate.network_of(_traced('n1')[1]), certificate.property_of(p).clauses
    self.assertFalse(checker.holds_exactly(network, clauses, outcome.counterexample[None])[0])

  def test_a_limit_that_is_attained(self):
    """y <= 1/2 is true with equality, beyond what rounded bounds show; y < 1/2 is false at 3 only: a corner."""
    outcome = _decide(_traced('n1'), Property(self._BOX, (_row([1.], .5),)), time_limit_s=20.)
    self.assertEqual((outcome.verdict, outcome.reason), (Verdict.UNKNOWN, 'numerics'))
    self.assertIsNone(outcome.evidence)
    self.assertBetween(outcome.decided, .5, 1.)
    lower, upper = outcome.undecided   # the rest of [-1, 3], where y = 1/2: within [2, 3]
    self.assertAlmostEqual((upper - lower).sum() / 4, 1 - outcome.decided)
    self.assertGreater(lower.min(), 1.9)
    outcome = _decide(_traced('n1'), Property(self._BOX, (_row([1.], .5, strict=True),)))
    self.assertIs(outcome.verdict, Verdict.REFUTED)

  def test_a_strict_limit_that_is_approached_at_an_unlikely_point_is_not_proved(self):
    """-y < 1/2 on [-1/3, 1/5] is false at 0 alone, which no cut of the box in half meets."""
    for strict in (False, True):
      outcome = _decide(_traced('n1'), Property(Box([-1 / 3], [1 / 5]), (_row([-1.], .5, strict),)), time_limit_s=20.)
      self.assertIsNot(outcome.verdict, Verdict.PROVED)
      self.assertTrue(strict or outcome.verdict is Verdict.UNKNOWN)

  def test_two_rows_of_a_clause(self):
    """y <= 0.6 or y >= 2 holds, as does y <= -2 or y >= -0.6; y <= -0.3 or y >= -0.1 does not."""
    either = lambda low, high: Property(self._BOX, (Clause([[1.], [-1.]], [low, -high]),))
    self.assertIs(_decide(_traced('n1'), either(.6, 2.)).verdict, Verdict.PROVED)
    self.assertIs(_decide(_traced('n1'), either(-2., -.6)).verdict, Verdict.PROVED)
    self.assertIs(_decide(_traced('n1'), either(-.3, -.1)).verdict, Verdict.REFUTED)

  def test_a_box_of_one_point(self):
    point = Box([1.], [1.])
    self.assertIs(_decide(_traced('n1'), Property(point, (_row([1.], 1e-6),))).verdict, Verdict.PROVED)
    self.assertIs(_decide(_traced('n1'), Property(point, (_row([1.], 0., strict=True),))).verdict, Verdict.REFUTED)
    outcome = _decide(_traced('n1'), Property(point, (_row([1.], 0.),)))   # true, with nothing to spare
    self.assertEqual((outcome.verdict, outcome.reason), (Verdict.UNKNOWN, 'numerics'))

  def test_polytopes(self):
    """y <= 0.1 fails on [-1, 3] but holds where x <= 0.9 and x >= -0.2: found to hold at no less than its box."""
    cut = lambda h, low=-1., high=3.: Property(
      HPolytope([[1.], [-1.]], [.9, .2], Box([low], [high])), (_row([1.], h),))
    self.assertIs(_decide(_traced('n1'), cut(.6)).verdict, Verdict.PROVED)
    outcome = _decide(_traced('n1'), cut(-.4))
    self.assertIs(outcome.verdict, Verdict.REFUTED)
    self.assertTrue(cut(0.).inputs.contains(outcome.counterexample))
    outcome = _decide(_traced('n1'), cut(.1), time_limit_s=2.)
    self.assertIsNot(outcome.verdict, Verdict.REFUTED)   # what violates it lies outside the polytope


class LimitsTest(parameterized.TestCase):

  def _hard(self):
    """A limit a fiftieth of the range above the largest value."""
    traced, box, g = _traced('mlp', (4, 8, 8, 3)), Box(-np.ones(4), np.ones(4)), np.array([1., -1., .5])
    least, most = _range()
    return traced, Property(box, (_row(g, most + .02 * (most - least)),))

  def test_time(self):
    traced, p = self._hard()
    outcome = _decide(traced, p, time_limit_s=1e-6)
    self.assertEqual((outcome.verdict, outcome.reason), (Verdict.UNKNOWN, 'time'))
    self.assertBetween(outcome.decided, 0., 1.)
    self.assertIsNone(outcome.evidence)
    self.assertIsNone(outcome.counterexample)

  def test_memory(self):
    traced, p = self._hard()
    for most in (0, 1):
      outcome = _decide(traced, p, most_boxes=most)
      self.assertEqual((outcome.verdict, outcome.reason), (Verdict.UNKNOWN, 'memory'))
      self.assertBetween(outcome.decided, 0., 1.)
      self.assertLessEqual(outcome.num_boxes, most + branch_and_bound.BATCHES[1] + 1)

  @pytest.mark.slow
  def test_more_inputs_than_16_bits_count(self):
    """N1 of the last of 40,000 inputs; the others are fixed."""
    n = 40_000
    first = np.zeros((n, 3))
    first[-1] = [-1, 1, .5]
    graph = trace(networks.from_weights([(first, [0, -2, 0]), ([[.5], [-.5], [1]], [-.5])]))
    lower_, upper = np.zeros(n), np.zeros(n)
    lower_[-1], upper[-1] = -1, 3
    form, p = lower(graph), Property(Box(lower_, upper), (_row([1.], .6),))
    outcome = _decide((graph, form), p)
    self.assertIs(outcome.verdict, Verdict.PROVED)
    self.assertEqual(outcome.evidence[1].tolist(), [n - 1, -1, -1])
    checker.check_claim(certificate.make(form, (p,), [outcome.evidence]))

  def test_a_large_network_is_not_kept_in_memory_for_every_sample(self):
    """A thousand inputs of a network with 2^20 values would take 8 GiB at once."""
    width = 2**19
    ops = (Op('input', (), None, 2), Op('gather', (0,), np.tile(np.int32([1, 2]), width // 2), width),
           Op('relu', (1,), None, width), Op('sum', (2,), np.array([width], np.int32), 1))
    form, p = NormalForm(ops), Property(Box([0., 0.], [1., 1.]), (_row([1.], -1.),))
    tracemalloc.start()
    search = branch_and_bound._Search(None, form, p, 'real')
    with mock.patch.object(falsify, 'confirm', lambda network, inputs, clauses, candidates: candidates):
      self.assertLen(search.confirm(np.random.default_rng(0).random((200, 2))), 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    self.assertLess(peak, 2**28)

  def test_the_same_key_gives_the_same_answer(self):
    traced, p = self._hard()
    first, second = (_decide(traced, p, key=jax.random.key(7), time_limit_s=60.) for _ in range(2))
    self.assertIs(first.verdict, Verdict.PROVED)
    np.testing.assert_array_equal(first.evidence[1], second.evidence[1])
    self.assertEqual(first.num_boxes, second.num_boxes)
    false = Property(p.inputs, (_row([1., -1., .5], p.clauses[0].h - 1.),))
    first, second = (_decide(traced, false, key=jax.random.key(7)) for _ in range(2))
    self.assertIs(first.verdict, Verdict.REFUTED)
    np.testing.assert_array_equal(first.counterexample, second.counterexample)

  def test_the_tree_is_what_the_checker_takes(self):
    traced, p = self._hard()
    for strength in ('real', 'float32'):
      outcome = _decide(traced, p, strength=strength, time_limit_s=60.)
      self.assertIs(outcome.verdict, Verdict.PROVED)
      self.assertGreater(len(outcome.evidence[1]), 3)
      checker.check_claim(certificate.make(traced[1], (p,), [outcome.evidence], strength))

  @parameterized.parameters(*range(8))
  def test_integer_programs_agree(self, seed):
    """Limits drawn around the largest value, so that about half of the properties hold."""
    traced = _traced('mlp', (4, 8, 8, 3), seed)
    rng = np.random.default_rng(seed)
    center = rng.normal(size=4)
    box = Box(center - .4, center + .4)
    g = rng.normal(size=3)
    _, most = milp.output_range(traced[1], box, g)
    for margin in (.03, -.03):
      p = Property(box, (_row(g, most + margin * (1 + abs(most))),))
      outcome = _decide(traced, p, time_limit_s=60.)
      other = milp.decide(traced[1], p, time_limit_s=60.)
      expected = (Verdict.PROVED, 'safe') if margin > 0 else (Verdict.REFUTED, 'unsafe')
      self.assertEqual((outcome.verdict, other.verdict), expected)


class MistakesTest(parameterized.TestCase):

  def test_nothing_asked(self):
    row = (_row([1.], 0.),)
    for p in (Property(Box([1.], [0.]), row), Property(Box([0.], [1.]), ()),
              Property(HPolytope([[1.], [-1.]], [0., -.5], Box([0.], [1.])), row)):
      with self.assertRaises(VacuousError):
        _decide(_traced('n1'), p)

  def test_limits_and_sets(self):
    p = Property(Box([0.], [1.]), (_row([1.], 0.),))
    for options in (dict(time_limit_s=0.), dict(time_limit_s=-1.), dict(time_limit_s=float('nan')),
                    dict(strength='solver')):
      with self.assertRaises(BadInputError):
        _decide(_traced('n1'), p, **options)
    for inputs in (Points([[0.]]), VPolytope([[0.]])):
      with self.assertRaises(BadInputError):
        _decide(_traced('n1'), Property(inputs, p.clauses))

  def test_a_clause_that_never_holds(self):
    p = Property(Box([0.], [1.]), (Clause(np.zeros((0, 1)), []),))
    self.assertIs(_decide(_traced('n1'), p).verdict, Verdict.REFUTED)


if __name__ == '__main__':
  absltest.main()
