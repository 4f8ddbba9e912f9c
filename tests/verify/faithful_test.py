"""Where what is verified is not what a file describes: softmax at the end, rounded constants, float32."""
import dataclasses

import jax
import numpy as np
from absl.testing import absltest

from jaxfix.errors import Unadaptable
from jaxfix.models.layer_graph import LayerGraph, Record
from jaxfix.verify import Box, Clause, Property, faithful, graph, milp, normal_form, wins
from jaxfix.verify.decide import decide
from jaxfix.verify.verdict import Verdict
from tests.verify import networks


def _graph(*records, notes=()):
  module = LayerGraph(tuple(map(tuple, records)), notes)
  return networks.module(module, (2,), 2)


_BOX = Box([0., 0.], [0.1, 0.1])
_DENSE = Record('fc', 'dense', (('features', 2),))
_SOFTMAX = "The softmax of node 's' was removed: the outputs are logits."


class FaithfulTest(absltest.TestCase):

  def _decide(self, classifier, clauses, strength='real'):
    return decide(classifier, (Property(_BOX, clauses),), key=jax.random.key(0), time_limit_s=30, strength=strength)

  def test_of_a_removed_softmax_only_orders_are_decided(self):
    classifier = _graph(_DENSE, notes=(_SOFTMAX,))
    for clause in (Clause([[1., 0.]], [1.2]), Clause([[1., -1.]], [0.1]), Clause([[2., -1.]], [0.])):
      with self.subTest(clause), self.assertRaisesRegex(Unadaptable, 'Softmax'):
        self._decide(classifier, (clause,))
    self.assertEqual(faithful.remarks(classifier), (_SOFTMAX,))   # a certificate's reader is told
    orders = [self._decide(classifier, wins(label, 2)).verdict for label in (0, 1)]
    self.assertIn(Verdict.REFUTED, orders)
    free = dataclasses.replace(classifier, module=LayerGraph(classifier.module.layers))
    self.assertIs(self._decide(free, (Clause([[1., 0.]], [1e3]),)).verdict, Verdict.PROVED)

  def test_no_float32_claim_of_what_was_rounded_on_reading(self):
    anything = (Clause([[1., 0.]], [1e6]),)
    rounded = _graph(_DENSE, notes=("Constants that node 'a' combines were rounded to float32.",))
    normalized = _graph(_DENSE, Record('bn', 'bn', (), ('fc',)))
    weights = np.array([[1e-40, 0.], [0., 1.]], np.float32)
    subnormal = networks.from_weights([(weights, [0., 0.]), (np.eye(2), [0., 0.])])
    for name, classifier, words in (('rounded', rounded, 'rounded'), ('bn', normalized, 'Batch normalization'),
                                    ('subnormal', subnormal, 'subnormal')):
      with self.subTest(name):
        self.assertIs(self._decide(classifier, anything).verdict, Verdict.PROVED)
        with self.assertRaisesRegex(Unadaptable, words):
          self._decide(classifier, anything, 'float32')

  def test_an_integer_program_makes_no_float32_claim(self):
    classifier = networks.mlp((12, 6, 2), seed=1)
    box = Box(-np.ones(12), np.ones(12))
    best = decide(classifier, (Property(box, (Clause([[1., -1.]], [1e6]),)),), key=jax.random.key(0), time_limit_s=30)
    self.assertIs(best.verdict, Verdict.PROVED)   # one bound of the box does

    most = milp.output_range(normal_form.lower(graph.trace(classifier)), box, np.array([1., -1.]))[1]
    spec = (Property(box, (Clause([[1., -1.]], [most + 0.01]),)),)
    found = {strength: decide(classifier, spec, key=jax.random.key(0), time_limit_s=60, strength=strength)
             for strength in ('real', 'float32')}
    self.assertEqual((found['real'].verdict, found['real'].outcomes[0].strength), (Verdict.PROVED, 'solver'))
    self.assertIsNone(found['real'].certificate)
    self.assertEqual((found['float32'].verdict, found['float32'].reason), (Verdict.UNKNOWN, 'size'))


if __name__ == '__main__':
  absltest.main()
