"""`launch/report.py` as a user meets it."""
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest

from tests.study.rows import make_row, write_store

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def _start(*arguments):
  return subprocess.Popen([sys.executable, '-m', 'launch.report', *arguments], cwd=_ROOT, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, 'JAX_PLATFORMS': 'cpu'})


class ReportTest(absltest.TestCase):

  def test_a_page_from_a_store_and_mistakes_end_with_code_2_and_one_line(self):
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      write_store(folder / 'good', [make_row()])
      write_store(folder / 'empty', [])
      write_store(folder / 'mixed', [make_row(), make_row('arachne', git_commit='d' * 40)])
      (folder / 'schema').mkdir()
      (folder / 'schema/results.jsonl').write_text(json.dumps({**make_row(), 'schema': 'jaxfix-results/9'}) + '\n')
      out = f'--out={folder}/report'
      good = _start(f'--results={folder}/good', out)
      text, err = good.communicate(timeout=200)
      self.assertEqual((good.returncode, err), (0, ''))
      self.assertIn('1 repair by 1 approach on 1 subject with 1 seed', text)
      self.assertIn(f'{folder}/report/index.html', text)
      self.assertTrue((folder / 'report/index.html').is_file())
      before = (folder / 'report/manifest.json').read_bytes()
      cases = (('empty', 'no rows'), ('schema', 'jaxfix-results/9'), ('mixed', '--allow_mixed'))
      running = [(_start(f'--results={folder}/{store}', out), words) for store, words in cases]
      for process, words in running:
        _, err = process.communicate(timeout=200)
        with self.subTest(words):
          self.assertEqual(process.returncode, 2, err)
          self.assertIn(words, err)
          self.assertLen(err.strip().splitlines(), 1, err)
      self.assertEqual((folder / 'report/manifest.json').read_bytes(), before)


if __name__ == '__main__':
  absltest.main()
