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
_REPAIRS = 20


def _study(out, counts):
  command = [sys.executable, '-m', 'launch.study', '--plan=tests.study.tiny_plan', '--plugin=tests.study.scale_plugin',
             '--workers=2', '--seeds=0,1,2,3,4,5,6,7,8,9', f'--out={out}']
  counts.mkdir(exist_ok=True)
  return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          env={**os.environ, 'COUNT_REPAIRS': str(counts)})


def _lines(out):
  file = out / store.FILE
  return file.read_bytes().count(b'\n') if file.exists() else 0


def _steady(rows):
  return {r['run_id']: {k: v for k, v in r.items() if k not in record.VOLATILE} for r in rows}


class KillTest(absltest.TestCase):

  @pytest.mark.slow
  def test_killed_at_random_moments(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    undisturbed = folder / 'undisturbed'
    begin = time.monotonic()
    self.assertEqual(_study(undisturbed, folder / 'other').wait(), 0)
    whole_s = time.monotonic() - begin
    expected = _steady(store.read(undisturbed).rows)
    self.assertLen(expected, 2 * _REPAIRS)   # each with a combination

    moments, kills, round_, here, seen = np.random.default_rng(0), 0, 0, 0, {}   # here: kills of this round
    while kills < _KILLS:
      out, counts = folder / f'killed{round_}', folder / f'counts{round_}'
      process = _study(out, counts)
      try:
        if kills % 2:   # most of a study this small is its beginning; these strike among its rows
          known = _lines(out)
          while process.poll() is None and _lines(out) == known:
            time.sleep(0.01)
        moment = moments.uniform(0, 1) if kills % 2 else moments.uniform(0.1, 0.9) * whole_s
        self.assertEqual(process.wait(timeout=moment), 0)
      except subprocess.TimeoutExpired:
        kills, here = kills + 1, here + 1
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        rows = {r['run_id']: r for r in store.read(out).rows} if (out / store.FILE).exists() else {}
        for run_id, row in seen.items():   # a finished row stays as it is, times included
          self.assertEqual(rows[run_id], row)
        seen = rows
        print(f'{kills} kills, round {round_}: {len(rows)} rows', flush=True)
        continue
      self._check_finished(out, expected, counts, here)
      round_, here, seen = round_ + 1, 0, {}   # nothing is left to interrupt here
    self.assertEqual(_study(out, counts).wait(), 0)
    self._check_finished(out, expected, counts, here)

  def _check_finished(self, out, expected, counts, kills):
    # A repair is begun again only if the kill struck while it was at work: at most one a worker and kill.
    self.assertBetween(len(list(counts.iterdir())), _REPAIRS, _REPAIRS + 2 * kills)
    self.assertEqual(_steady(store.read(out).rows), expected)
    lines = (out / store.FILE).read_text().splitlines()
    self.assertLen({json.loads(line)['run_id'] for line in lines}, len(lines))
    self.assertLen(lines, len(expected))


if __name__ == '__main__':
  absltest.main()
