"""Properties on H-polytopes: multipliers of linear programs as evidence."""
import functools

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix.verify import branch_and_bound, certificate, checker, graph, milp, normal_form
from jaxfix.verify.checker import RejectedError
from jaxfix.verify.spec import Box, Clause, HPolytope, Property
from jaxfix.verify.verdict import Verdict
from tests.verify import networks

_DIRECTION = np.array([[1., -1.]])


@functools.cache
def _network():
  traced = graph.trace(networks.mlp((3, 8, 8, 2), seed=2))
  return traced, normal_form.lower(traced)


def _polytope():
  return HPolytope([[1, 1, 1], [1, -1, 0]], [0., 0.3], Box(-np.ones(3), np.ones(3)))


@functools.cache
def _most():
  """The largest y0 - y1 on the polytope and on its box."""
  _, form = _network()
  return tuple(milp.output_range(form, s, _DIRECTION[0])[1] for s in (_polytope(), _polytope().box))


def _decide(limit):
  traced, form = _network()
  p = Property(_polytope(), (Clause(_DIRECTION, [limit]),))
  return p, branch_and_bound.decide(traced, form, p, key=jax.random.key(0), time_limit_s=120)


class DualsTest(parameterized.TestCase):

  def test_what_holds_on_the_polytope_only_is_proved_by_duals(self):
    inside, around = _most()
    self.assertLess(inside + 0.1, around)
    p, outcome = _decide(inside + 0.1)
    self.assertIs(outcome.verdict, Verdict.PROVED)
    kind, evidence = outcome.evidence
    self.assertEqual(kind, 'duals')
    _, form = _network()
    checker.check_claim(certificate.make(form, (p,), [outcome.evidence]))
    self.assertTrue((evidence[:, 1:] > 0).any())
    for name, bad in (('without multipliers', np.concatenate([evidence[:, :1], 0 * evidence[:, 1:]], axis=1)),
                      ('negative', evidence * [1, -1, -1]), ('a leaf less', evidence[:-1]),
                      ('NaN', np.where(evidence > 0, np.nan, evidence)), ('another width', evidence[:, :-1])):
      with self.subTest(name), self.assertRaises(RejectedError):
        checker.check_claim(certificate.make(form, (p,), [(kind, bad)]))

  def test_what_fails_on_the_polytope_is_refuted_inside_it(self):
    inside, _ = _most()
    p, outcome = _decide(inside - 0.05)
    self.assertIs(outcome.verdict, Verdict.REFUTED)
    self.assertTrue(p.inputs.contains(outcome.counterexample))
    self.assertFalse(p.holds(normal_form.evaluate(_network()[1], outcome.counterexample)))

  def test_any_multipliers_give_bounds_that_hold(self):
    # The checker's trust is in the formula: random q >= 0 never proves what a point of the polytope violates.
    _, form = _network()
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (4000, 3))
    most = (normal_form.evaluate(form, x[_polytope().contains(x)]) @ _DIRECTION[0]).max()
    network = certificate.network_of(form)
    for scale in (1e-3, 1., 1e3, 1e9):
      q = rng.exponential(scale, (20, 1, 2))
      clause = checker.Clause(_DIRECTION, np.array([most - 1e-6]), False)
      box = np.tile(_polytope().box.lower, (20, 1)), np.tile(_polytope().box.upper, (20, 1))
      self.assertFalse(checker.boxes_hold(network, (clause,), *box, False, (_polytope().a, _polytope().b, q)).any())

  def test_duals_are_for_polytopes(self):
    _, form = _network()
    p = Property(_polytope().box, (Clause(_DIRECTION, [1e3]),))
    with self.assertRaisesRegex(RejectedError, 'inequalities'):
      checker.check_claim(certificate.make(form, (p,), [('duals', np.array([[-1., 0., 0.]]))]))


if __name__ == '__main__':
  absltest.main()
