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

  def test_unknown_method(self):
    done = postprocess('--before=a', '--after=b', '--subject=digits_mlp', '--method=sv,us-k')
    self.assertEqual((done.returncode, done.stdout), (2, ''))
    self.assertIn("Did you mean 'us_k'", done.stderr)
    self.assertLen(done.stderr.splitlines(), 1)


if __name__ == '__main__':
  absltest.main()
