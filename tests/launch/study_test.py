"""launch.study as a user meets it, and an approach of the user's own that is installed beside jaxfix."""
import base64
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import pytest
from absl.testing import absltest

from jaxfix.study import store

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_LIMIT_S = 600

# What README's example of an approach of one's own packs.
_NUDGE = """
import dataclasses
import jax
from jaxfix.methods import Method
from jaxfix.problem import Repair

@dataclasses.dataclass(frozen=True)
class Config:
  scale: float = 0.01

def repair(problem, config, key):
  leaves, tree = jax.tree.flatten(problem.classifier.params)
  keys = jax.random.split(key, len(leaves))
  moved = [w + config.scale * jax.random.normal(k, w.shape) for w, k in zip(leaves, keys)]
  return Repair(problem.classifier.with_params(jax.tree.unflatten(tree, moved)))

METHOD = Method(name='nudge', title='Nudge', code='', level='model', config=Config(), repair=repair,
                changes='all weights', guarantee='none', source='a test', summary='moves every weight a little')
"""


def _start(module, *arguments, **environment):
  return subprocess.Popen([sys.executable, '-m', f'launch.{module}', *arguments], cwd=_ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, 'JAX_PLATFORMS': 'cpu', **environment})


def _wait(process):
  out, err = process.communicate(timeout=_LIMIT_S)
  return process.returncode, out, err


def _install(folder: pathlib.Path) -> pathlib.Path:
  """A package with an approach, built as a wheel and installed by pip into a folder of its own."""
  info = 'nudge_repair-1.0.dist-info'
  files = {
    'nudge_repair.py': _NUDGE, f'{info}/METADATA': 'Metadata-Version: 2.1\nName: nudge-repair\nVersion: 1.0\n',
    f'{info}/WHEEL': 'Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
    f'{info}/entry_points.txt': '[jaxfix.methods]\nnudge = nudge_repair:METHOD\n'}
  record = ''.join(f'{name},sha256={_digest(text)},{len(text)}\n' for name, text in files.items())
  wheel = folder / 'nudge_repair-1.0-py3-none-any.whl'
  with zipfile.ZipFile(wheel, 'w') as archive:
    for name, text in {**files, f'{info}/RECORD': record}.items():
      archive.writestr(name, text)
  subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--target',
                  folder / 'site', wheel], check=True)
  return folder / 'site'


def _digest(text: str) -> str:
  return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()


class StudyTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_mistakes_end_with_code_2_and_one_line(self):
    cases = ((('--methods=cares',), "Did you mean 'care'"), (('--seeds=0,x',), 'whole numbers'),
             (('--plugin=no.such',), 'PYTHONPATH'), (('--attack_radii=1,x',), '--attack_radii takes numbers'),
             (('--memory_limit=nan',), 'memory_limit_bytes must be'))   # others are in tests/study/plan_test.py
    running = [(_start('study', f'--out={self.folder}/out', *arguments), words) for arguments, words in cases]
    for process, words in running:
      code, _, err = _wait(process)
      with self.subTest(words):
        self.assertEqual(code, 2, err)
        self.assertIn(words, err)
        self.assertLen(err.strip().splitlines(), 1, err)
    self.assertFalse((self.folder / 'out').exists())

  def test_an_installed_approach_of_ones_own_is_in_the_plan(self):
    site = _install(self.folder)
    code, out, err = _wait(_start('study', '--dry_run', f'--out={self.folder}/out', '--time_limit=inf',
                                  '--memory_limit=inf', '--attack_radii=2,0.5', PYTHONPATH=str(site)))
    self.assertEqual((code, err), (0, ''))
    self.assertIn('attack radii 0.5, 2;', out.replace('\n', ';'))
    self.assertNotIn('at most', out)   # the plan's own limit is lifted
    self.assertIn('nudge', out)
    self.assertIn('apricot', out)
    self.assertFalse((self.folder / 'out').exists())

  @pytest.mark.slow
  def test_it_goes_through_study_report_and_recommendation(self):
    site = str(_install(self.folder))
    out = self.folder / 'study'
    code, text, err = _wait(_start('study', '--plan=tests.study.tiny_plan', '--methods=nudge,neurecover', '--seeds=0,1',
                                   '--workers=2', f'--out={out}', PYTHONPATH=site))
    self.assertEqual(code, 0, err)
    self.assertIn('OK', text)
    self.assertEqual({r['outcome'] for r in store.read(out).rows if r['approach'] == 'nudge'}, {'OK'})
    code, _, err = _wait(_start('report', f'--results={out}', f'--out={out}/report', PYTHONPATH=site))
    self.assertEqual(code, 0, err)
    self.assertIn('nudge', (out / 'report/index.html').read_text())
    code, text, err = _wait(_start('recommend', f'--results={out}', PYTHONPATH=site))
    self.assertEqual(code, 0, err)
    self.assertIn('nudge', text)

  @pytest.mark.slow
  def test_a_plugin_and_limits(self):
    """--plugin reaches the workers; a time limit that nothing can keep is a FAILURE of every cell, and exit code 1."""
    common = ('--plan=tests.study.tiny_plan', '--methods=scale,needy', '--seeds=0', '--plugin=tests.study.scale_plugin',
              f'--out={self.folder}')
    code, out, err = _wait(_start('study', *common, '--time_limit=0.01'))
    self.assertEqual(code, 1, err)
    self.assertIn('time_limit', out)
    code, out, err = _wait(_start('study', *common, '--retry_failures'))
    self.assertEqual(code, 0, err)
    self.assertEqual({(r['approach'], r['outcome']) for r in store.read(self.folder).rows},
                     {('scale', 'OK'), ('needy', 'UNADAPTABLE')})
    code, out, err = _wait(_start('study', *common))
    self.assertEqual(code, 0, err)
    self.assertIn('2 of 2 cells are finished already', out)


if __name__ == '__main__':
  absltest.main()
