"""The launchers as a user meets them: exit codes, single-line errors, and runs that are killed."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from absl.testing import absltest

from jaxfix.classifier import fingerprint
from jaxfix.interchange import checkpoint
from tests.launch import driver
from tests.shared_data import shared_data

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_LIMIT_S = 300


def _start(module, *arguments, **environment):
  return subprocess.Popen([sys.executable, '-m', f'launch.{module}', *arguments], cwd=_ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, 'JAX_PLATFORMS': 'cpu', **environment})


def _run(module, *arguments, **environment):
  process = _start(module, *arguments, **environment)
  out, err = process.communicate(timeout=_LIMIT_S)
  return process.returncode, out, err


class ErrorsTest(absltest.TestCase):

  def test_mistakes_end_with_code_2_and_one_line(self):
    with tempfile.TemporaryDirectory() as out:
      cases = {
        'repair': (('--subject=digits_lenet', "Did you mean 'digits_lenet5'"), ('--metod=prdnn', 'method'),
                   (f'--subject=mnist_lenet5 --data_dir={out}/none', 'no folder')),
        'train': (('--subject=moons_mlp --out=/proc/none', 'Cannot write'),),
        'evaluate': (('--subject=digits_lenet5 --before=none.safetensors --after=b.h5', 'none.safetensors'),
                     ('--subject=digits_lenet5 --before=a.h5 --after=b.h5 --pgd_eps_space=pixel',
                      'needs --pgd_epsilon')),
      }
      for module, mistakes in cases.items():
        commands = [[f'--out={out}/{module}', *arguments.split()] for arguments, _ in mistakes]
        for (arguments, words), (code, _, err) in zip(mistakes, driver.launch(module, commands), strict=True):
          with self.subTest(arguments):
            self.assertEqual(code, 2, err)
            self.assertIn(words, err)
            self.assertLen(err.strip().splitlines(), 1, err)
            self.assertStartsWith(err, 'error: ')

  def test_the_list_names_every_approach_with_needs_and_guarantee(self):
    code, out, err = _run('repair', '--list')
    self.assertEqual((code, err), (0, ''))
    for word in ('apricot', 'prdnn', 'arachne', 'model', 'layer', 'neuron', 'guarantee', 'needs'):
      self.assertIn(word, out)


class KilledTrainingTest(absltest.TestCase):

  def _wait_for(self, process, path):
    deadline = time.monotonic() + _LIMIT_S
    while not path.exists():
      self.assertIsNone(process.poll(), process.stderr.read() if process.poll() is not None else '')
      self.assertLess(time.monotonic(), deadline)
      time.sleep(0.02)

  @pytest.mark.slow
  def test_killed_and_interrupted_training_continues_to_the_same_weights(self):
    arguments = ('--subject=moons_mlp', '--epochs=60')
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      undisturbed = _start('train', *arguments, f'--out={folder}/a')
      for stop, epoch, code in ((signal.SIGKILL, 3, -signal.SIGKILL), (signal.SIGINT, 8, 130)):
        process = _start('train', *arguments, f'--out={folder}/b')
        self._wait_for(process, folder / f'b/history/epoch_{epoch:04d}.json')
        process.send_signal(stop)
        process.communicate(timeout=_LIMIT_S)
        self.assertEqual(process.returncode, code)
        self.assertFalse((folder / 'b/model.safetensors').exists())
      code, out, err = _run('train', *arguments, f'--out={folder}/b')
      self.assertEqual(code, 0, err)
      self.assertNotIn('epoch   1 ', out)
      undisturbed.communicate(timeout=_LIMIT_S)
      a, b = (checkpoint.load(folder / name / 'model.safetensors') for name in 'ab')
      self.assertEqual(fingerprint(a), fingerprint(b))
      curves = [json.loads((folder / name / 'history/curves.json').read_text()) for name in 'ab']
      self.assertEqual(curves[0], curves[1])
      self.assertLen(curves[0], 60)

  @pytest.mark.slow
  def test_two_devices_train_the_same_model(self):
    arguments = ('--subject=moons_mlp', '--epochs=3')
    with tempfile.TemporaryDirectory() as folder:
      for name, flags in (('one', ''), ('two', '--xla_force_host_platform_device_count=2')):
        code, out, err = _run('train', *arguments, f'--out={folder}/{name}', XLA_FLAGS=flags)
        self.assertEqual(code, 0, err)
        self.assertIn(f'{1 + (name == "two")} device(s)', out)
      one, two = (json.loads(pathlib.Path(folder, name, 'history/curves.json').read_text())[-1] for name in
                  ('one', 'two'))
      self.assertAlmostEqual(one['loss'], two['loss'], places=5)


class EvaluateTest(absltest.TestCase):

  @pytest.mark.slow
  def test_the_released_files_give_the_published_counts(self):
    """fixing_study_lenet5/NOTE.md: 97.60 % before, 97.58 % after, 36 right and 38 wrong of 10,000."""
    data = shared_data()
    with tempfile.TemporaryDirectory() as out:
      code, text, err = _run(
        'evaluate', f'--before={data}/fixing_study_lenet5/lenet5_ori_model.h5',
        f'--after={data}/fixing_study_lenet5/arachne_mnist_lenet5_fixed_model2.h5', '--subject=mnist_lenet5',
        '--split=pool', f'--data_dir={data}', f'--out={out}/row.json', '--pgd_steps=1')
      self.assertEqual(code, 0, text + err)
      row = json.loads(pathlib.Path(out, 'row.json').read_text())
    self.assertEqual(row['counts'], {'both_right': 9722, 'fixed': 36, 'broken': 38, 'both_wrong': 204})
    self.assertEqual(row['n_params_changed'], 4)
    self.assertAlmostEqual(row['rr'], 36 / 240)


if __name__ == '__main__':
  absltest.main()
