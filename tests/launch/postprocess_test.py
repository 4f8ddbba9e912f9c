"""`launch.postprocess` on two checkpoints: the rows that it writes, the table that it prints, a method that is none."""
import json
import pathlib
import subprocess
import sys
import tempfile

import jax
from absl.testing import absltest

from jaxfix import predict, subjects
from jaxfix.classifier import fingerprint
from jaxfix.interchange import checkpoint
from jaxfix.study import record

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def postprocess(*arguments):
  return subprocess.run([sys.executable, '-m', 'launch.postprocess', *map(str, arguments)], cwd=_ROOT, text=True,
                        capture_output=True, timeout=300, check=False)


class PostprocessTest(absltest.TestCase):

  def test_rows_and_table(self):
    subject = subjects.load('digits_mlp')
    before = subject.problem.classifier  # untrained: about one digit in ten is right
    after = before.with_params(jax.tree.map(lambda w: 0.9 * w, before.params) | {'fc1': before.params['fc1']})
    with tempfile.TemporaryDirectory() as folder:
      paths = [pathlib.Path(folder) / f'{name}.safetensors' for name in ('before', 'after')]
      for path, classifier in zip(paths, (before, after), strict=True):
        checkpoint.save(path, classifier)
      models = (f'--before={paths[0]}', f'--after={paths[1]}', '--subject=digits_mlp')
      done = postprocess(*models, '--method=sv,us_k', f'--out={folder}/rows.json', '--nopgd')
      self.assertEqual((done.returncode, done.stderr), (0, ''))
      rows = json.loads(pathlib.Path(folder, 'rows.json').read_text())
      attacked = postprocess(*models, '--method=us_k', f'--out={folder}/rows.json', '--pgd_steps=1', '--pgd_samples=7')
      self.assertEqual((attacked.returncode, attacked.stderr), (0, ''))
      again = json.loads(pathlib.Path(folder, 'rows.json').read_text())
    for row in rows:
      record.check_row(row)
    self.assertEqual([row['postprocess'] for row in rows], ['none', 'sv', 'us_k'])
    self.assertEqual([row['category'] for row in rows], ['', 'postprocess', 'postprocess'])
    self.assertLen({row['run_id'] for row in rows}, 3)
    self.assertEqual(rows[0]['acc'], (predict.labels(after, subject.test.x) == subject.test.y).mean())
    self.assertBetween(rows[2]['config']['fitted']['k'], 0, 1)
    self.assertEqual({row['repaired_sha256'] for row in rows}, {fingerprint(after)})
    for words in ('NO', 'SV', 'US-K', 'broken (NFR)', f'{len(subject.test)} test samples', 'acc_valid'):
      self.assertIn(words, done.stdout)
    # The attack is a setting, with an identifier of its own; what was fitted is a result.
    self.assertEqual([row['asr_n'] for row in again], [7, 7])
    self.assertIn('% of 7', attacked.stdout)
    for row, plain in zip(again, (rows[0], rows[2]), strict=True):
      self.assertEqual((row['config']['pgd']['steps'], row['config']['attack_size']), (1, 7))
      self.assertIsNone(plain['config']['pgd'])
      self.assertNotEqual(row['run_id'], plain['run_id'])
      self.assertEqual(row['run_id'], record.run_id(
        {k: v for k, v in row['config'].items() if k != 'fitted'}, 0, subject='digits_mlp', before=fingerprint(before),
        after=fingerprint(after), split_sha256=dict(subject.split_sha256), postprocess=row['postprocess']))

  def test_a_method_that_fails_is_a_row_and_the_others_go_on(self):
    """UD drops the inputs of the last dense layer, which is hidden from it here; SV, which comes after, needs none."""
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    checkpoint.save(folder / 'model.safetensors', subjects.load('digits_mlp').problem.classifier)
    hidden = ('from jaxfix.localize import output_layer\nimport runpy\noutput_layer.output_layer = lambda c: None\n'
              'runpy.run_module("launch.postprocess", run_name="__main__", alter_sys=True)')
    done = subprocess.run([
      sys.executable, '-c', hidden, f'--before={folder}/model.safetensors', f'--after={folder}/model.safetensors',
      '--subject=digits_mlp', '--nopgd', '--method=ud,sv', f'--out={folder}/rows.json'], cwd=_ROOT, text=True,
      capture_output=True, timeout=300, check=False)
    self.assertEqual((done.returncode, done.stderr), (0, ''))
    rows = json.loads((folder / 'rows.json').read_text())
    self.assertEqual({r['postprocess']: r['outcome'] for r in rows}, {'none': 'OK', 'ud': 'FAILURE', 'sv': 'OK'})
    self.assertRegex(rows[1]['outcome_reason'], '^postprocess: BadInputError: .*does not end in a dense layer')
    self.assertIn('FAILURE', done.stdout)
    for row in rows:
      record.check_row(row)

  def test_a_file_that_cannot_be_written_is_refused_before_the_work(self):
    done = postprocess('--before=a', '--after=b', '--subject=digits_mlp', '--out=/proc/none/rows.json')
    self.assertEqual((done.returncode, done.stdout), (2, ''))
    self.assertIn('/proc/none/rows.json', done.stderr)   # and not that there is no model a

  def test_unknown_method(self):
    done = postprocess('--before=a', '--after=b', '--subject=digits_mlp', '--method=sv,us-k')
    self.assertEqual((done.returncode, done.stdout), (2, ''))
    self.assertIn("Did you mean 'us_k'", done.stderr)
    self.assertLen(done.stderr.splitlines(), 1)


if __name__ == '__main__':
  absltest.main()
