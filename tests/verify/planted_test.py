"""No engine proves what is false: networks with a planted counterexample are never PROVED, and those without are."""
import functools

import jax
import numpy as np
import pytest
from absl.testing import absltest

from jaxfix.verify import bounds, certificate, checker, decide, falsify, milp
from jaxfix.verify.graph import trace
from jaxfix.verify.normal_form import evaluate, lower
from jaxfix.verify.verdict import Verdict
from tests.verify import planted

_NUMBER = 52


@functools.cache
def _case(seed):
  """The planted network with its graph and normal form, and those of the harmless one."""
  p = planted.planted(seed)
  graphs = trace(p.network), trace(p.harmless)
  return p, graphs, tuple(map(lower, graphs))


class PlantedTest(absltest.TestCase):

  def test_the_counterexample_is_there_and_hidden(self):
    misses = 0
    for seed in range(_NUMBER):
      p, _, (form, harmless) = _case(seed)
      with self.subTest(seed):
        claimed = certificate.property_of(p.property)
        self.assertTrue(p.property.inputs.contains(p.point))
        holds = lambda f, p=p, claimed=claimed: checker.holds_exactly(certificate.network_of(f), claimed.clauses,
                                                                      p.point[None])[0]
        self.assertFalse(holds(form))
        self.assertTrue(holds(harmless))
        x = np.random.default_rng(1000 + seed).random((10_000, planted.INPUTS))
        misses += bool(p.property.holds(evaluate(form, x)).all())
    self.assertEqual(misses, _NUMBER)

  def test_gradients_do_not_find_it(self):
    found = 0
    for seed in range(_NUMBER):
      p, (graph, _), (form, _) = _case(seed)
      x = falsify.attack(graph, p.property, key=jax.random.key(seed), starts=8)
      found += not p.property.holds(evaluate(form, x)).all()
    self.assertLess(found, 3)

  def test_bounds_do_not_exclude_it(self):
    objective = np.array([[1., -1.]], np.float32)
    for seed in range(_NUMBER):
      p, (graph, _), _ = _case(seed)
      low, high = (np.stack([side, p.point]) for side in (p.property.inputs.lower, p.property.inputs.upper))
      for method in ('ibp', 'crown'):
        most = bounds.bound_boxes(graph, low, high, objective, method=method, batch_size=2)[1]
        self.assertTrue((most >= planted.LIMIT).all(), (seed, method))

  def test_the_checker_accepts_no_tree(self):
    for seed in range(_NUMBER):
      p, _, (form, harmless) = _case(seed)
      for tree in ([-1], [0, -1, -1], [seed % 5, 1, -1, -1, 2, -1, -1]):
        for strength in ('real', 'float32'):
          with self.assertRaises(checker.RejectedError):
            checker.check_claim(certificate.make(form, (p.property,), [('splits', np.array(tree, np.int16))], strength))
      # In a box of 2^-30 around the point, and at it.
      for width in (2.**-30, 0.):
        around = np.maximum(p.point[None] - width, 0), np.minimum(p.point[None] + width, 1)
        claimed = certificate.property_of(p.property)
        self.assertFalse(checker.boxes_hold(certificate.network_of(form), claimed.clauses, *around)[0])

  def _never_proved(self, seeds, engine, time_limit_s):
    verdicts = []
    for seed in seeds:
      p, _, (form, _) = _case(seed)
      decision = decide.decide(p.network, (p.property,), key=jax.random.key(seed), time_limit_s=time_limit_s,
                               engine=engine)
      verdicts.append(decision.verdict)
      self.assertIsNot(decision.verdict, Verdict.PROVED, seed)
      self.assertIsNone(decision.certificate)
      if decision.verdict is Verdict.REFUTED:
        x = decision.outcomes[0].counterexample
        self.assertTrue(p.property.inputs.contains(x))
        self.assertFalse(checker.holds_exactly(certificate.network_of(form),
                                               certificate.property_of(p.property).clauses, x[None])[0])
      else:
        self.assertIn(decision.reason, ('time', 'numerics', 'memory', 'iterations'))
    return verdicts

  def test_splits_never_prove_it(self):
    self._never_proved(range(_NUMBER), 'splits', 0.1)

  def test_integer_programs_never_prove_it(self):
    verdicts = self._never_proved(range(0, _NUMBER, 4), 'milp', 2.)
    self.assertGreater(verdicts.count(Verdict.REFUTED), 3)   # it can be found

  def test_integer_programs_without_bounds_never_prove_it(self):
    for seed in range(1, _NUMBER, 8):
      p, _, (form, _) = _case(seed)
      self.assertNotEqual(milp.decide(form, p.property, time_limit_s=1.).verdict, 'safe', seed)

  def test_without_the_bump_all_are_proved(self):
    for seed in range(_NUMBER):
      p, _, (form, _) = _case(seed)
      decision = decide.decide(p.harmless, (p.property,), key=jax.random.key(seed), time_limit_s=20., engine='splits')
      self.assertIs(decision.verdict, Verdict.PROVED, seed)
      checker.check_claim(decision.certificate)
      # The same evidence says nothing of the network with the bump.
      with self.assertRaises(checker.RejectedError):
        checker.check_claim(certificate.make(form, (p.property,), [decision.outcomes[0].evidence]))

  @pytest.mark.slow
  def test_with_more_time(self):
    for engine in ('splits', 'milp'):
      verdicts = self._never_proved(range(_NUMBER), engine, 3.)
      print(engine, {v.name: verdicts.count(v) for v in Verdict})
    for seed in range(_NUMBER):
      p, _, (form, harmless) = _case(seed)
      self.assertNotEqual(milp.decide(form, p.property, time_limit_s=3.).verdict, 'safe', seed)
      self.assertNotEqual(milp.decide(harmless, p.property, time_limit_s=3.).verdict, 'unsafe', seed)


if __name__ == '__main__':
  absltest.main()
