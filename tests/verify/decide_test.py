"""Decisions on whole specifications: every kind of input set, every engine, and the certificate that comes out."""
import dataclasses
import functools
import os
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError, Unadaptable
from jaxfix.verify import certificate, checker, decide
from jaxfix.verify.spec import Box, Clause, HPolytope, Points, Property, VPolytope, wins
from jaxfix.verify.verdict import VacuousError, Verdict
from tests.verify import networks

_KEY = jax.random.key(0)
_N1 = networks.n1
_BOX = Box([-1.], [3.])


@functools.cache
def _mlp(seed=0):
  return networks.mlp((4, 8, 8, 3), seed)


def _row(h, g=(1.,), strict=False):
  return (Clause(np.atleast_2d(np.asarray(g, float)), np.atleast_1d(h), strict),)


def _decide(classifier, *properties, **options):
  return decide.decide(classifier, tuple(properties), key=_KEY, **options)


class _Case(parameterized.TestCase):

  def assert_proved(self, decision, strength='real'):
    """Proved, and by a certificate that survives a file and is checked there."""
    self.assertIs(decision.verdict, Verdict.PROVED)
    self.assertEqual(decision.reason, '')
    self.assertEqual({o.strength for o in decision.outcomes}, {strength})
    with tempfile.TemporaryDirectory() as folder:
      path = os.path.join(folder, 'c.npz')
      certificate.save(path, decision.certificate)
      report = checker.check(path)
    self.assertLen(report.counts, len(decision.outcomes))
    self.assertEqual(report.strength, strength)

  def assert_refuted(self, decision, classifier, p):
    self.assertIs(decision.verdict, Verdict.REFUTED)
    self.assertIsNone(decision.certificate)
    x = decision.outcomes[-1].counterexample
    y = networks.logits(classifier, x[None].astype(np.float32))[0]
    self.assertFalse(all(c.slack(y) > 1e-5 for c in p.clauses))
    return x


class SetsTest(_Case):

  @parameterized.parameters('real', 'float32')
  def test_points(self, strength):
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    y = networks.logits(_mlp(), x)
    spread = float((y[:, 0] - y[:, 1]).max())
    holds = Property(Points(x), _row(spread + 1e-3, (1., -1., 0.)))
    self.assert_proved(_decide(_mlp(), holds, strength=strength), strength)
    fails = Property(Points(x), _row(spread - 1e-3, (1., -1., 0.)))
    found = self.assert_refuted(_decide(_mlp(), fails, strength=strength), _mlp(), fails)
    self.assertTrue((found == x).all(axis=1).any())
    close = Property(Points(x), _row(spread + 2e-9, (1., -1., 0.)))   # closer than what float32 may be off
    self.assertNotEqual(_decide(_mlp(), close, strength='float32').verdict, Verdict.PROVED)

  def test_pieces(self):
    segment, triangle = VPolytope([[-2.], [3.]]), np.random.default_rng(1).normal(size=(3, 4))
    self.assert_proved(_decide(_N1(), Property(segment, _row(.5))))
    self.assert_proved(_decide(_mlp(), Property(VPolytope(triangle), _row(100., (1., 1., 1.)))))
    fails = Property(segment, _row(.4))
    x = self.assert_refuted(_decide(_N1(), fails), _N1(), fails)
    self.assertIn(x.tolist(), [[-2.], [3.]])
    inside = _decide(_N1(), Property(segment, _row(.4, (-1.,))))   # fails at 0, not at the ends
    self.assertIs(inside.verdict, Verdict.UNKNOWN)
    self.assertIsNone(inside.certificate)

  def test_polytopes(self):
    cut = HPolytope([[1.], [-1.]], [.9, .2], _BOX)
    decision = _decide(_N1(), Property(cut, _row(.6)))
    self.assertIs(decision.verdict, Verdict.PROVED)
    fails = Property(cut, _row(-.4))
    self.assertTrue(cut.contains(self.assert_refuted(_decide(_N1(), fails), _N1(), fails)))
    self.assertIsNot(_decide(_N1(), Property(cut, _row(.1)), time_limit_s=2.).verdict, Verdict.REFUTED)

  def test_unions(self):
    """All properties proved; one refuted, after which none is looked at; one unknown."""
    good, bad = Property(_BOX, _row(.6)), Property(_BOX, _row(.4))
    points = Property(Points([[0.], [1.]]), _row(.1))
    self.assert_proved(_decide(_N1(), good, points, Property(_BOX, _row(.6, (-1.,)))))
    decision = _decide(_N1(), good, bad, points)
    self.assertIs(decision.verdict, Verdict.REFUTED)
    self.assertLen(decision.outcomes, 2)
    equal = Property(Box([1.], [1.]), _row(0.))   # true with equality: bounds that round cannot tell
    decision = _decide(_N1(), good, equal, points)
    self.assertEqual((decision.verdict, decision.reason), (Verdict.UNKNOWN, 'numerics'))
    self.assertEqual([o.verdict for o in decision.outcomes], [Verdict.PROVED, Verdict.UNKNOWN, Verdict.PROVED])
    self.assertIsNone(decision.certificate)

  def test_every_outcome_is_reported(self):
    seen = []
    _decide(_N1(), Property(_BOX, _row(.6)), Property(_BOX, _row(.4)),
            on_outcome=lambda i, outcome: seen.append((i, outcome.verdict)))
    self.assertEqual(seen, [(0, Verdict.PROVED), (1, Verdict.REFUTED)])


class EnginesTest(_Case):

  @parameterized.parameters('real', 'float32')
  def test_strength(self, strength):
    self.assert_proved(_decide(_N1(), Property(_BOX, _row(.6)), strength=strength), strength)

  def test_classes(self):
    x = np.array([.3, -.2, .5, .1])
    label = int(networks.logits(_mlp(), x[None].astype(np.float32)).argmax())
    box = Box(x - .01, x + .01)
    self.assert_proved(_decide(_mlp(), Property(box, wins(label, 3))))
    fails = Property(box, wins((label + 1) % 3, 3))
    self.assertTrue(box.contains(self.assert_refuted(_decide(_mlp(), fails), _mlp(), fails)))

  @parameterized.parameters(*range(4))
  def test_splits_and_milp_agree(self, seed):
    classifier, rng = _mlp(seed), np.random.default_rng(seed)
    center = rng.normal(size=4)
    y = networks.logits(classifier, rng.uniform(center - .3, center + .3, (2000, 4)).astype(np.float32)) @ [1., -1., .3]
    for h in (y.max() + .15 * np.ptp(y), y.max() - .05 * np.ptp(y)):
      p = Property(Box(center - .3, center + .3), _row(float(h), (1., -1., .3)))
      one, other = (_decide(classifier, p, engine=engine, time_limit_s=60.) for engine in ('splits', 'milp'))
      self.assertIs(one.verdict, other.verdict)
      self.assertIsNot(one.verdict, Verdict.UNKNOWN)
      if other.outcomes[0].engine == 'milp' and other.verdict is Verdict.PROVED:
        self.assertEqual(other.outcomes[0].strength, 'solver')   # no evidence, and so no certificate
        self.assertIsNone(other.certificate)

  def test_the_word_of_a_solver_is_no_certificate(self):
    """y <= 0.6 needs a cut, which the engine of integer programs does not make."""
    decision = _decide(_N1(), Property(_BOX, _row(.6)), engine='milp')
    self.assertIs(decision.verdict, Verdict.PROVED)
    self.assertEqual((decision.outcomes[0].strength, decision.outcomes[0].engine), ('solver', 'milp'))
    self.assertIsNone(decision.certificate)
    self.assertIsNone(decision.outcomes[0].evidence)

  @parameterized.parameters('splits', 'milp')
  def test_true_with_equality_only(self, engine):
    for strict in (False, True):
      decision = _decide(_N1(), Property(Box([-1 / 3], [1 / 5]), _row(.5, (-1.,), strict)), engine=engine,
                         time_limit_s=20.)
      self.assertIsNot(decision.verdict, Verdict.PROVED)
      self.assertTrue(strict or decision.verdict is Verdict.UNKNOWN)

  def test_time(self):
    decision = _decide(_N1(), Property(_BOX, _row(.6)), Property(_BOX, _row(.6)), time_limit_s=1e-9)
    self.assertEqual((decision.verdict, decision.reason), (Verdict.UNKNOWN, 'time'))
    self.assertLen(decision.outcomes, 2)
    for outcome in decision.outcomes:
      self.assertBetween(outcome.decided, 0., 1.)

  def test_the_same_key_gives_the_same_certificate(self):
    one, other = (_decide(_N1(), Property(_BOX, _row(.6))) for _ in range(2))
    self.assertEqual(one.certificate.evidence[0][1].tolist(), other.certificate.evidence[0][1].tolist())


class MistakesTest(_Case):

  def test_vacuous_properties(self):
    good = Property(_BOX, _row(.6))
    for bad in (Property(Box([1.], [0.]), _row(0.)), Property(_BOX, ()), Property(Points(np.zeros((0, 1))), _row(0.)),
                Property(VPolytope(np.zeros((0, 1))), _row(0.)),
                Property(HPolytope([[1.], [-1.]], [0., -.5], _BOX), _row(0.))):   # x <= 0 and x >= 0.5
      for spec in ((bad,), (good, bad)):
        with self.assertRaisesRegex(VacuousError, f'Property {len(spec) - 1}'):
          _decide(_N1(), *spec)

  def test_sizes(self):
    for p in (Property(Box([0., 0.], [1., 1.]), _row(0.)), Property(_BOX, _row(0., (1., 1.))),
              Property(Points([[0., 0.]]), _row(0.))):
      with self.assertRaises(BadInputError):
        _decide(_N1(), p)

  def test_options(self):
    p = Property(_BOX, _row(.6))
    for options in (dict(engine='smt'), dict(engine=''), dict(strength='solver'), dict(time_limit_s=0.),
                    dict(time_limit_s=float('nan'))):
      with self.assertRaises(BadInputError):
        _decide(_N1(), p, **options)
    with self.assertRaises(BadInputError):
      _decide(_N1())

  def test_weights_that_are_no_numbers(self):
    for value in (np.nan, np.inf):
      classifier = networks.from_weights([([[value, 1.]], [0., 0.]), ([[1.], [1.]], [0.])])
      with self.assertRaises(BadInputError):
        _decide(classifier, Property(_BOX, _row(.6)))

  def test_networks_that_are_not_piecewise_linear(self):
    with self.assertRaises(Unadaptable):
      _decide(networks.KINDS['smooth'](), Property(Box(np.zeros(4), np.ones(4)), _row(0., (1., 0., 0.))))

  def test_axes_that_are_stretched(self):
    """JAX adds a column to a matrix without a word; the normal form lays it out."""
    classifier = networks.KINDS['clipped']()
    center = np.full(4, .3)
    y = networks.logits(classifier, center[None].astype(np.float32))[0]
    p = Property(Box(center - 1e-3, center + 1e-3), _row(float(y[0]) + 1., (1., 0., 0.)))
    self.assert_proved(_decide(classifier, p))
    self.assert_proved(_decide(classifier, dataclasses.replace(p, inputs=Points(center[None]))))


if __name__ == '__main__':
  absltest.main()
