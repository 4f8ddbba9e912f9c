"""Properties 1 to 4 on the ACAS Xu networks: what is decided within 20 seconds each, in how many, and how many
certificates the checker accepts.

Needs acasxu/ in --data_dir. What other work found is compared: 1 holds of all 45 networks; 2 is violated by N2,1 to
N5,9 except N3,3 and N4,2; 3 and 4 hold of all but N1,7, N1,8 and N1,9 (Katz et al., CAV 2017).
"""
import pathlib
import tempfile
import time
from typing import Any

import jax
import numpy as np

from jaxfix.interchange import vnnlib
from jaxfix.verify import certificate, checker
from jaxfix.verify.decide import decide
from jaxfix.verify.verdict import Verdict
from launch.benchmarks import pairs, subject

TIME_LIMIT_S = 20.
PROPERTIES = (1, 2, 3, 4)


def run(options: pairs.Options) -> list[dict[str, Any]]:
  """One case for each property and network, and one that sums up."""
  folder = pathlib.Path(options.data_dir or '') / 'acasxu'
  if not options.data_dir or not folder.is_dir():
    return [pairs.skipped('acasxu', 'needs acasxu/ in --data_dir')]
  with np.load(folder / 'acasxu_37.npz', allow_pickle=False) as arrays:
    names = sorted({name.split('/')[0] for name in arrays.files if '/W0' in name})
  results = []
  for number in PROPERTIES:
    spec = vnnlib.read(folder / 'properties' / f'prop_{number}.vnnlib')
    for name in names:
      results.append(_case(folder, name, number, spec))
      print(pairs.line(results[-1]), flush=True)   # the suite takes long: show it as it goes
  decided = [r for r in results if r['verdict'] != 'unknown']
  proved = [r for r in results if r['verdict'] == 'proved']
  seconds = [r['seconds'] for r in decided]
  wrong = [r['case'] for r in results if r['wrong']]
  summary = {
    'case': 'acasxu, all', 'seconds': sum(r['seconds'] for r in results), 'decided': len(decided),
    'proved': len(proved), 'certificates': sum(r['checked'] for r in proved), 'wrong': wrong,
    'note': f'{len(decided)} of {len(results)} decided, median {np.median(seconds):.1f} s, most {max(seconds):.1f} s; '
            f'{len(proved)} proved, {sum(r["checked"] for r in proved)} certificates accepted in '
            f'{sum(r["check_seconds"] for r in proved):.0f} s; {len(wrong)} wrong'}
  return [*results, summary]


def _case(folder: pathlib.Path, name: str, number: int, spec) -> dict[str, Any]:
  classifier = subject.mlp(folder / 'acasxu_37.npz', name)
  found = decide(classifier, spec, key=jax.random.key(0), time_limit_s=TIME_LIMIT_S)
  checked, check_seconds = False, 0.
  if found.certificate is not None:
    with tempfile.TemporaryDirectory() as out:
      path = f'{out}/proof.npz'
      certificate.save(path, found.certificate)
      start = time.monotonic()
      checker.check(path)
      checked, check_seconds = True, time.monotonic() - start
  known, verdict = _known(name, number), found.verdict
  boxes = sum(o.num_boxes for o in found.outcomes)
  return {'case': f'acasxu, property {number}, N{name}', 'seconds': found.seconds, 'verdict': verdict.value,
          'boxes': boxes, 'checked': checked, 'check_seconds': check_seconds,
          'wrong': known is not None and verdict is not Verdict.UNKNOWN and verdict is not known,
          'note': f'{verdict.value}{f", {found.reason}" if found.reason else ""}, {boxes} boxes'
                  f'{f", certificate checked in {check_seconds:.1f} s" if checked else ""}'}


def _known(name: str, number: int) -> Verdict | None:
  """What the literature says of network 'a_b'; None where it says nothing."""
  a, b = map(int, name.split('_'))
  if number == 1:
    return Verdict.PROVED
  if number == 2:
    return None if a == 1 or (a, b) in ((3, 3), (4, 2)) else Verdict.REFUTED
  return Verdict.REFUTED if a == 1 and b >= 7 else Verdict.PROVED
