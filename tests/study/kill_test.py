"""A study whose whole process group gets SIGKILL again and again loses nothing and repeats nothing."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from absl.testing import absltest

from jaxfix.study import record, store

_KILLS = 50
_LONGEST_S = 25.   # about twice the time from the start of a process to its first finished cell


def _study(out, **options):
  command = [sys.executable, '-m', 'launch.study', '--plan=tests.study.tiny_plan', '--plugin=tests.study.scale_plugin',
             '--workers=2', f'--out={out}']
  return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **options)


def _steady(rows):
  return {r['run_id']: {k: v for k, v in r.items() if k not in record.VOLATILE} for r in rows}


class KillTest(absltest.TestCase):

  @pytest.mark.slow
  def test_killed_at_random_moments(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    undisturbed, killed = folder / 'undisturbed', folder / 'killed'
    self.assertEqual(_study(undisturbed).wait(), 0)
    expected = _steady(store.read(undisturbed).rows)
    self.assertLen(expected, 80)

    moments = np.random.default_rng(0)
    sizes, interrupted, seen = [], 0, {}
    for _ in range(_KILLS):
      process = _study(killed)
      try:
        process.wait(timeout=moments.uniform(0, _LONGEST_S))
      except subprocess.TimeoutExpired:
        interrupted += 1
      os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
      process.wait()
      process.stderr.close()
      rows = {r['run_id']: r for r in store.read(killed).rows} if (killed / store.FILE).exists() else {}
      for run_id, row in seen.items():   # a finished row stays as it is, times included
        self.assertEqual(rows[run_id], row)
      seen = rows
      sizes.append(len(rows))
    self.assertEqual(_study(killed).wait(), 0)
    self.assertEqual(_steady(store.read(killed).rows), expected)
    lines = (killed / store.FILE).read_text().splitlines()
    self.assertLen(lines, len(expected))
    repairs = [json.loads(line)['run_id'] for line in lines]
    self.assertLen(set(repairs), len(repairs))
    print(f'{interrupted} of {_KILLS} interrupted; rows after each: {sizes}')


if __name__ == '__main__':
  absltest.main()
