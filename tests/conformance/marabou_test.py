"""Verdicts against Marabou 2.0 (`maraboupy` on PyPI), a complete verifier that shares nothing with ours.

A network is handed over operation by operation through Marabou's own query builder, so that the reading of the normal
form is part of what is compared. Thresholds keep off the exact extremes: there the tolerances of the two would decide.

All networks are chains of dense layers and ReLU. With skip connections Marabou 2.0.0 answers unsat where a witness
holds, and the same for every threshold; with its Max constraint it ends in a floating point exception.
"""
import functools
import warnings

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix import models
from jaxfix.classifier import Classifier
from jaxfix.verify import Box, Clause, Property, avoids, branch_and_bound, milp, wins
from jaxfix.verify.graph import trace
from jaxfix.verify.normal_form import evaluate, lower
from jaxfix.verify.verdict import Verdict
from tests.shared_data import shared_data
from tests.verify import forms

try:
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')   # it says which of its readers of other formats lack their packages
    from maraboupy import Marabou, MarabouNetwork, MarabouUtils
except ImportError:
  Marabou = None

_TIME_S = 20   # for one property; the slowest takes a fraction of it
_WORDS = {Verdict.PROVED: 'safe', Verdict.REFUTED: 'unsafe', Verdict.UNKNOWN: 'unknown'}


def _query(form, box):
  """(network of Marabou, variables of the logits)."""
  network = MarabouNetwork.MarabouNetwork()

  def defined(terms, constant):
    """A variable for constant + terms."""
    variable, equation = network.getNewVariable(), MarabouUtils.Equation()
    for coefficient, other in [(-1., variable), *terms]:
      equation.addAddend(float(coefficient), other)
    equation.setScalar(-float(constant))
    network.addEquation(equation)
    return variable

  def rectified(before):
    after = network.getNewVariable()
    network.addRelu(before, after)
    return after

  found = [[network.getNewVariable() for _ in range(form.num_inputs)]]
  for variable, low, high in zip(found[0], box.lower, box.upper, strict=True):
    network.setLowerBound(variable, low)
    network.setUpperBound(variable, high)
  for op in form.ops[1:]:
    (operand,) = [found[i] for i in op.inputs]
    if op.kind == 'matmul':
      found.append([defined(zip(column, operand, strict=True), 0.) for column in op.array.T])
    elif op.kind == 'shift':
      found.append([defined([(1., v)], c) for c, v in zip(op.array, operand, strict=True)])
    elif op.kind == 'relu':
      found.append([rectified(v) for v in operand])
    else:
      raise AssertionError(op.kind)
  network.inputVars, network.outputVars = [np.array(found[0])], [np.array(found[-1])]
  return network, found[-1]


def marabou_verdict(form, prop):
  """One query a clause: all of its rows fail. A witness is replayed, as ours is."""
  options = Marabou.createOptions(verbosity=0, timeoutInSeconds=_TIME_S)
  codes = set()
  for clause in prop.clauses:
    network, logits = _query(form, prop.inputs)
    for row, bound in zip(clause.g, clause.h, strict=True):
      network.addInequality(logits, (-row).tolist(), -float(bound))
    code, assignment, _ = network.solve(verbose=False, options=options)
    if code == 'sat':
      x = np.clip([assignment[v] for v in network.inputVars[0]], prop.inputs.lower, prop.inputs.upper)
      if clause.slack(evaluate(form, x)) > 1e-4:   # Marabou's tolerances allow some 1e-6
        raise AssertionError('Marabou has a witness that our evaluation of the network does not confirm')
      return 'unsafe'
    codes.add(code)
  return 'safe' if codes == {'unsat'} else 'unknown'


def _network(weights):
  """(graph, normal form) of layers (w `[out, in]`, b `[out]`)."""
  module = models.build('mlp', num_classes=len(weights[-1][1]), hidden=tuple(len(b) for _, b in weights[:-1]))
  params = {f'fc{i}': {'kernel': np.float32(w).T, 'bias': np.float32(b)} for i, (w, b) in enumerate(weights, 1)}
  graph = trace(Classifier({'params': params}, module, (weights[0][0].shape[1],), module.num_classes))
  return graph, lower(graph)


def _random_case(seed):
  """A linear function of the logits against a threshold near its sampled maximum, or a region to avoid."""
  rng = np.random.default_rng(seed)
  graph, form = _network(forms.random_layers(rng, (3, 8, 8, 3)))
  y = evaluate(form, rng.uniform(-1, 1, size=(5000, 3)))
  rows = rng.normal(size=(1 + seed % 2, 3))
  depth = (y @ rows.T).min(axis=1)   # a point is in {y : rows y >= h} if its depth is h or more
  h = depth.max() + (-.15, -.05, .1, .3)[seed // 2 % 4] * np.ptp(depth)
  clauses = avoids([(-rows, np.full(len(rows), -h))]) if seed % 2 else (Clause(rows, [h]),)
  return graph, form, Property(Box(-np.ones(3), np.ones(3)), clauses)


@functools.cache
def _hcas(name):
  layers = np.load(shared_data('hcas/hcas_40.npz'))
  return _network([(layers[f'{name}/W{i}'], layers[f'{name}/b{i}']) for i in range(6)])


def _hcas_case(index):
  """The advisory at a point, or in one case of four the second best, on a small box."""
  names = np.load(shared_data('hcas/hcas_40.npz'))['names']
  rng = np.random.default_rng(index)
  graph, form = _hcas(str(names[3 * index % len(names)]))
  x, radius = rng.uniform(-.4, .4, size=3), (.003, .01, .02)[index % 3]
  label = evaluate(form, x).argsort()[-2 if index % 4 == 3 else -1]
  return graph, form, Property(Box(x - radius, x + radius), wins(int(label), 5))


@absltest.skipIf(Marabou is None, 'maraboupy is not installed (pip install maraboupy)')
class MarabouTest(parameterized.TestCase):

  def compare(self, cases, fewest):
    """All three agree; and there are at least `fewest` safe and unsafe ones."""
    verdicts = []
    for i, (graph, form, prop) in enumerate(cases):
      theirs = marabou_verdict(form, prop)
      self.assertIn(theirs, ('safe', 'unsafe'))
      self.assertEqual(milp.decide(form, prop, time_limit_s=_TIME_S).verdict, theirs, f'milp, case {i}')
      found = branch_and_bound.decide(graph, form, prop, key=jax.random.key(i), time_limit_s=_TIME_S)
      self.assertEqual(_WORDS[found.verdict], theirs, f'branch and bound, case {i}')
      verdicts.append(theirs)
    self.assertGreaterEqual(min(verdicts.count('safe'), verdicts.count('unsafe')), fewest)

  def test_random_networks(self):
    self.compare(map(_random_case, range(24)), 8)

  def test_networks_for_collision_avoidance(self):
    self.compare(map(_hcas_case, range(12)), 3)


if __name__ == '__main__':
  absltest.main()
