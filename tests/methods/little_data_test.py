"""A method makes do with little data, or says in one line that it cannot."""
import dataclasses

import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix import methods, predict
from jaxfix.errors import RepairFailure, Unadaptable
from tests import tiny
from tests.methods.quick import config_of

_METHODS = tuple((f'_{name}', name) for name in methods.NAMES)


class LittleDataTest(parameterized.TestCase):

  def _run(self, name, keep):
    problem = tiny.problem('mlp')
    scarce = dataclasses.replace(problem, repair=problem.repair.take(keep))
    try:
      repair = methods.run(methods.get(name), scarce, config_of(methods.get(name)), key=jax.random.key(3))
    except (RepairFailure, Unadaptable) as e:
      self.assertRegex(str(e), r'^[^\n]{20,}$')
      return
    labels = predict.labels(repair.classifier, problem.valid.x)
    self.assertTrue(((labels >= 0) & (labels < 10)).all())

  def _wrong(self):
    problem = tiny.problem('mlp')
    return predict.labels(problem.classifier, problem.repair.x) != problem.repair.y

  def _single(self):
    wrong = self._wrong()
    return ~wrong | (np.arange(len(wrong)) == np.flatnonzero(wrong)[0])

  @parameterized.named_parameters(*_METHODS)
  @pytest.mark.slow
  def test_a_single_failing_sample_and_a_class_without_any(self, name):
    keep = self._single()
    y = tiny.problem('mlp').repair.y
    absent = next(c for c in range(10) if c != y[self._wrong() & keep][0])
    self._run(name, keep & (y != absent))

  @parameterized.named_parameters(*_METHODS)
  @pytest.mark.slow
  def test_each_by_itself(self, name):
    self._run(name, self._single())
    self._run(name, tiny.problem('mlp').repair.y != 3)

  @parameterized.named_parameters(*_METHODS)
  @pytest.mark.slow
  def test_no_passing_sample(self, name):
    self._run(name, self._wrong())


if __name__ == '__main__':
  absltest.main()
