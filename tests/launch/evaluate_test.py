"""`launch.evaluate` on two checkpoints: the row that it writes and the table that it prints."""
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


def evaluate(*arguments):
  return subprocess.run([sys.executable, '-m', 'launch.evaluate', *map(str, arguments)], cwd=_ROOT, text=True,
                        capture_output=True, timeout=300, check=False)


class EvaluateTest(absltest.TestCase):

  def test_row_and_table(self):
    subject = subjects.load('digits_mlp')
    before = subject.problem.classifier  # untrained: about one digit in ten is right
    after = before.with_params(jax.tree.map(lambda w: 0.9 * w, before.params) | {'fc1': before.params['fc1']})
    with tempfile.TemporaryDirectory() as folder:
      paths = [pathlib.Path(folder) / f'{name}.safetensors' for name in ('before', 'after')]
      for path, classifier in zip(paths, (before, after), strict=True):
        checkpoint.save(path, classifier)
      models = (f'--before={paths[0]}', f'--after={paths[1]}', '--subject=digits_mlp', '--split=pool')
      done = evaluate(*models, f'--out={folder}/row.json', '--pgd_steps=2', '--pgd_epsilon=0.02', '--pgd_samples=20')
      self.assertEqual((done.returncode, done.stderr), (0, ''))
      row = json.loads(pathlib.Path(folder, 'row.json').read_text())
    record.check_row(row)
    pool = subject.pool
    right = [predict.labels(c, pool.x) == pool.y for c in (before, after)]
    self.assertEqual(row['counts']['both_right'], int((right[0] & right[1]).sum()))
    self.assertEqual(row['acc'], right[1].mean())
    self.assertEqual((row['asr_eps'], row['config']['pgd']['steps'], row['config']['split']), (0.02, 2, 'pool'))
    self.assertEqual(row['original_sha256'], fingerprint(before))
    self.assertEqual(row['repaired_sha256'], fingerprint(after))
    for words in ('accuracy', 'fixed (RR)', 'broken (NFR)', f'{len(pool)} samples'):
      self.assertIn(words, done.stdout)

  def test_a_file_that_cannot_be_written_is_refused_before_the_work(self):
    done = evaluate('--before=a', '--after=b', '--subject=digits_mlp', '--out=/proc/none/row.json')
    self.assertEqual((done.returncode, done.stdout), (2, ''))
    self.assertIn('/proc/none/row.json', done.stderr)   # and not that there is no model a


if __name__ == '__main__':
  absltest.main()
