"""PGD against Foolbox 3.3 (`LinfPGD`, `L2PGD`) at the same settings, images and model, through `foolbox.JAXModel`.

Rates are compared, not adversarial inputs: where the gradient of a pixel is zero but for rounding, its sign differs.
"""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix.evaluate import robustness
from jaxfix.evaluate.robustness import PGD
from tests.evaluate import digits

try:
  import foolbox
except ImportError:
  foolbox = None

KEY = jax.random.key(2)


def foolbox_success(classifier, z, y, pgd, starts):
  """Success `[n]` of Foolbox's attack; `starts` takes the place of its own random draw, so that the two are paired."""
  base = {'linf': foolbox.attacks.LinfPGD, 'l2': foolbox.attacks.L2PGD}[pgd.norm]

  class Attack(base):

    def get_random_start(self, x0, epsilon):
      return type(x0)(jnp.asarray(starts))

  model = foolbox.JAXModel(jax.jit(classifier.logits_of_normalized), bounds=(float(z.min()), float(z.max())))
  options = {} if pgd.norm == 'linf' else {'steps': 40, 'rel_stepsize': 1 / 30}  # LinfPGD: its own defaults
  _, _, success = Attack(random_start=starts is not None, **options)(
    model, jnp.asarray(z), jnp.asarray(y), epsilons=pgd.epsilon)
  return np.asarray(success)


@absltest.skipIf(foolbox is None, 'foolbox is not installed (pip install foolbox)')
class FoolboxTest(parameterized.TestCase):

  @parameterized.parameters(('linf', False), ('linf', True), ('l2', True))
  def test_same_success_rate(self, norm, random_start):
    model, split = digits.mlp(), digits.right(300)
    pgd = PGD({'linf': 0.08, 'l2': 0.4}[norm], norm=norm, random_start=random_start)
    starts = None
    if random_start:
      starts = robustness.attack(model, split.x, split.y, pgd=dataclasses.replace(pgd, abs_stepsize=0.),
                                 key=KEY).adversarial
    ours = robustness.attack(model, split.x, split.y, pgd=pgd, key=KEY).success
    theirs = foolbox_success(model, split.x, split.y, pgd, starts)
    self.assertBetween(theirs.mean(), 0.1, 0.9)
    self.assertAlmostEqual(ours.mean(), theirs.mean(), delta=0.01)

  @pytest.mark.slow
  def test_own_random_starts_give_the_same_rate_but_for_their_noise(self):
    model, split, pgd = digits.mlp(), digits.right(300), PGD(0.08)
    ours = [robustness.attack(model, split.x, split.y, pgd=pgd, key=jax.random.key(k)).success.mean() for k in range(5)]
    fmodel = foolbox.JAXModel(jax.jit(model.logits_of_normalized), bounds=(0, 1))
    success = foolbox.attacks.LinfPGD()(fmodel, jnp.asarray(split.x), jnp.asarray(split.y), epsilons=0.08)[2]
    # Between keys the rate has a standard deviation of about 1 point on 300 inputs; 3 of them.
    self.assertAlmostEqual(np.mean(ours), float(np.mean(success)), delta=0.03)


if __name__ == '__main__':
  absltest.main()
