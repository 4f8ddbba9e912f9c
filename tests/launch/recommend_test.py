"""`launch.recommend` on a store: the table that it prints, the advice that it writes, a name that is none."""
import json
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest

from tests.study import rows as sample

_ROOT = pathlib.Path(__file__).resolve().parents[2]


class RecommendTest(absltest.TestCase):

  def run_program(self, *arguments):
    return subprocess.run([sys.executable, '-m', 'launch.recommend', *arguments], cwd=_ROOT, text=True,
                          capture_output=True, timeout=300, check=False)

  def test_table_and_json(self):
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      sample.write_store(folder / 'store', [
        sample.make_row('care'), sample.make_row('arachne', seconds=500.)])
      done = self.run_program(f'--results={folder}/store', '--time=60', '--nopublished', f'--json={folder}/a.json')
      self.assertEqual((done.returncode, done.stderr), (0, ''))
      advice = json.loads((folder / 'a.json').read_text())
    self.assertEqual([c['approach'] for c in advice['choices']], ['care'])
    run = advice['choices'][0]['citations'][0][:20]
    for words in ('Recommended by measured figures', 'CARE', 'too slow: 500 s', run):
      self.assertIn(words, done.stdout)

  def test_reasons_are_no_markup(self):
    with tempfile.TemporaryDirectory() as folder:
      sample.write_store(pathlib.Path(folder), [
        sample.make_row('care', outcome='FAILURE', outcome_reason='[/tmp/x]'),
        sample.make_row('arachne'), sample.make_row('arachne', 'digits_mlp', outcome='FAILURE',
                                                    outcome_reason='[red]:key:')])
      done = self.run_program(f'--results={folder}', '--nopublished')
    self.assertEqual((done.returncode, done.stderr), (0, ''))
    for words in ('[/tmp/x]', '[red]:key:'):
      self.assertIn(words, done.stdout)

  def test_reasons_are_shown_as_they_are_even_where_they_look_like_markup(self):
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      failed = {'outcome': 'FAILURE', 'outcome_reason': '[/tmp/x] [b]:x:'}
      sample.write_store(folder / 'store', [
        sample.make_row('care'), sample.make_row('care', 'digits_mlp', **failed), sample.make_row('arachne', **failed)])
      done = self.run_program(f'--results={folder}/store', '--nopublished')
    self.assertEqual((done.returncode, done.stderr), (0, ''))
    recommended, excluded = done.stdout.split('Excluded')
    for table in (recommended, excluded):
      for word in ('[/tmp/x]', '[b]:x:'):
        self.assertIn(word, table)

  def test_unknown_name(self):
    done = self.run_program('--keep=fairnes')
    self.assertEqual((done.returncode, done.stdout), (2, ''))
    self.assertEqual(len(done.stderr.splitlines()), 1)
    self.assertIn("Did you mean 'fairness'", done.stderr)


if __name__ == '__main__':
  absltest.main()
