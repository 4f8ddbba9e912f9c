"""A study whose whole process group gets SIGKILL again and again loses nothing and repeats nothing."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
from absl.testing import absltest

from jaxfix.study import record, store

_KILLS = 50


def _study(out, counts):
  command = [sys.executable, '-m', 'launch.study', '--plan=tests.study.tiny_plan', '--plugin=tests.study.scale_plugin',
             '--workers=2', f'--out={out}']
  counts.mkdir(exist_ok=True)
  return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          env={**os.environ, 'COUNT_REPAIRS': str(counts)})


def _steady(rows):
  return {r['run_id']: {k: v for k, v in r.items() if k not in record.VOLATILE} for r in rows}


class KillTest(absltest.TestCase):

  @pytest.mark.slow
  def test_killed_at_random_moments(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    undisturbed, killed, counts = folder / 'undisturbed', folder / 'killed', folder / 'counts'
    begin = time.monotonic()
    self.assertEqual(_study(undisturbed, folder / 'other').wait(), 0)
    whole_s = time.monotonic() - begin
    expected = _steady(store.read(undisturbed).rows)
    self.assertLen(expected, 80)

    moments = np.random.default_rng(0)
    sizes, interrupted, seen = [], 0, {}
    for _ in range(_KILLS):
      process = _study(killed, counts)
      try:
        process.wait(timeout=moments.uniform(0, 0.6 * whole_s))
      except subprocess.TimeoutExpired:
        interrupted += 1
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()
      rows = {r['run_id']: r for r in store.read(killed).rows} if (killed / store.FILE).exists() else {}
      for run_id, row in seen.items():   # a finished row stays as it is, times included
        self.assertEqual(rows[run_id], row)
      seen = rows
      sizes.append(len(rows))
    self.assertEqual(_study(killed, counts).wait(), 0)
    self.assertEqual(_steady(store.read(killed).rows), expected)
    lines = (killed / store.FILE).read_text().splitlines()
    self.assertLen({json.loads(line)['run_id'] for line in lines}, len(lines))
    self.assertLen(lines, len(expected))
    # A repair is begun again only if the kill struck while it was at work: at most one a worker and kill.
    begun = len(list(counts.iterdir()))
    self.assertBetween(begun, 40, 40 + 2 * interrupted)
    self.assertGreaterEqual(interrupted, 10)
    print(f'{interrupted} of {_KILLS} interrupted, {begun} repairs begun for 40; rows after each: {sizes}')


if __name__ == '__main__':
  absltest.main()
