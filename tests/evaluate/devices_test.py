"""The attack over several devices, in a process that is told to have two."""
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from absl.testing import absltest

from jaxfix.evaluate import robustness
from tests.evaluate import digits

_PROGRAM = """
import json, jax
from jaxfix.evaluate import robustness
from tests.evaluate import digits
split = digits.right(61)
result = robustness.attack(digits.mlp(), split.x, split.y, pgd=robustness.PGD(0.08), key=jax.random.key(5))
print(json.dumps([jax.device_count(), result.success.tolist()]))
"""


class DevicesTest(absltest.TestCase):

  @pytest.mark.slow
  def test_two_devices_give_what_one_gives(self):
    done = subprocess.run(
      [sys.executable, '-c', _PROGRAM], cwd=pathlib.Path(__file__).parents[2], capture_output=True, text=True,
      check=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=2'})
    count, success = json.loads(done.stdout)
    self.assertEqual(count, 2)
    split = digits.right(61)
    here = robustness.attack(digits.mlp(), split.x, split.y, pgd=robustness.PGD(0.08), key=jax.random.key(5))
    self.assertEqual(success, here.success.tolist())


if __name__ == '__main__':
  absltest.main()
