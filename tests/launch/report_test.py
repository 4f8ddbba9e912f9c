"""`launch/report.py` as a user meets it."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import pytest
from absl.testing import absltest

from tests.study.rows import make_row, write_store

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _start(*arguments):
  return subprocess.Popen([sys.executable, '-m', 'launch.report', *arguments], cwd=_ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, 'JAX_PLATFORMS': 'cpu'})


class ReportTest(absltest.TestCase):

  def test_a_page_from_a_store_and_mixed_commits_end_with_code_2_and_one_line(self):
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      write_store(folder / 'good', [make_row()])
      write_store(folder / 'mixed', [make_row(), make_row('arachne', git_commit='d' * 40)])
      out = f'--out={folder}/report'
      good, mixed = _start(f'--results={folder}/good', out), _start(f'--results={folder}/mixed', out)
      text, err = good.communicate(timeout=200)
      self.assertEqual((good.returncode, err), (0, ''))
      self.assertIn('1 repair by 1 approach on 1 subject with 1 seed', text)
      self.assertIn(f'{folder}/report/index.html', text)
      self.assertTrue((folder / 'report/index.html').is_file())
      _, err = mixed.communicate(timeout=200)
      self.assertEqual(mixed.returncode, 2)
      self.assertIn('--allow_mixed', err)
      self.assertLen(err.strip().splitlines(), 1, err)

  @pytest.mark.slow   # draws all plots
  def test_the_store_that_comes_with_jaxfix_becomes_a_report(self):
    with tempfile.TemporaryDirectory() as name:
      process = _start('--results=launch/results/mnist_lenet5', f'--out={name}/report')
      text, err = process.communicate(timeout=400)
      self.assertEqual((process.returncode, err), (0, ''))
      self.assertIn('36 repairs by 12 approaches', text)
      page = pathlib.Path(name, 'report/index.html').read_text()
      self.assertIn('73.97', page)   # Apricot's published repair rate

  @pytest.mark.slow   # every process imports JAX
  def test_other_mistakes_end_so_too_and_leave_the_report(self):
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      write_store(folder / 'good', [make_row()])
      write_store(folder / 'empty', [])
      (folder / 'schema').mkdir()
      (folder / 'schema/results.jsonl').write_text(json.dumps({**make_row(), 'schema': 'jaxfix-results/9'}) + '\n')
      out = f'--out={folder}/report'
      self.assertEqual(_start(f'--results={folder}/good', out).wait(timeout=200), 0)
      before = (folder / 'report/manifest.json').read_bytes()
      cases = ((('empty',), 'no rows'), (('schema',), 'jaxfix-results/9'), (('none',), 'No results'),
               (('good', '--formats=pdf'), 'md, html, tex'), (('good', '--published=/none'), 'No published figures'),
               (('good', '--suite=x'), "suite 'x'"))
      for (store, *more), words in cases:
        process = _start(f'--results={folder}/{store}', out, *more)
        _, err = process.communicate(timeout=200)
        with self.subTest(words):
          self.assertEqual(process.returncode, 2, err)
          self.assertIn(words, err)
          self.assertLen(err.strip().splitlines(), 1, err)
      self.assertEqual((folder / 'report/manifest.json').read_bytes(), before)


if __name__ == '__main__':
  absltest.main()
