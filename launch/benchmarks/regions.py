"""Exact lines between two MNIST test images, and what the checker takes for 1,000 vertices.

Needs aprnn_mnist/ and mnist.npz in --data_dir.
"""
import pathlib
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from jaxfix.verify import certificate, checker, normal_form, regions
from jaxfix.verify.graph import trace
from jaxfix.verify.spec import Property, VPolytope, wins
from launch.benchmarks import pairs, subject

VERTICES = 1000


def run(options: pairs.Options) -> list[dict[str, Any]]:
  """A line on each network; a certificate of 1,000 vertices."""
  folder = pathlib.Path(options.data_dir or '')
  if not options.data_dir or not (folder / 'aprnn_mnist').is_dir():
    return [pairs.skipped('regions', 'needs aprnn_mnist/ in --data_dir')]
  with np.load(folder / 'mnist.npz', allow_pickle=False) as arrays:
    x = (arrays['x_test'][:2000].reshape(2000, -1) / 255).astype(np.float32).astype(np.float64)
  results = []
  for name in ('3x100', '9x100', '9x200'):
    form = normal_form.lower(trace(subject.mlp(folder / 'aprnn_mnist' / f'mnist_relu_{name}.npz')))
    seconds = []
    for _ in range(options.repeats):
      start = time.perf_counter()
      pieces = len(regions.line_pieces(form, x[0], x[1])) - 1
      seconds.append(time.perf_counter() - start)
    results.append({'case': f'exact line, MNIST {name}, test images 0 and 1', 'seconds': statistics.median(seconds),
                    'pieces': pieces, 'note': f'{pieces} pieces'})
  return [*results, *_certificates(folder, x)]


def _certificates(folder: pathlib.Path, x: np.ndarray) -> list[dict[str, Any]]:
  """1,000 vertices of 500 segments from images to points near them, on which the network's answer is certified."""
  form = normal_form.lower(trace(subject.mlp(folder / 'aprnn_mnist' / 'mnist_relu_3x100.npz')))
  y = normal_form.evaluate(form, x)
  first, second = np.sort(y, axis=1)[:, -1], np.sort(y, axis=1)[:, -2]
  sure = x[first - second > 1][:VERTICES // 2]
  near = np.clip(sure + np.random.default_rng(0).uniform(-0.02, 0.02, sure.shape), 0, 1)
  label = normal_form.evaluate(form, sure).argmax(axis=1)
  spec = tuple(Property(VPolytope(np.stack(ends)), wins(int(c), 10))
               for *ends, c in zip(sure, near, label, strict=True))
  claim = certificate.make(form, spec, [('pieces', None)] * len(spec))
  with tempfile.TemporaryDirectory() as out:
    path = f'{out}/proof.npz'
    certificate.save(path, claim)
    start = time.perf_counter()
    report = checker.check(path)
    seconds = time.perf_counter() - start
  pieces = sum(int(line.split(' pieces')[0].split()[-1]) for line in report.counts)
  return [{'case': f'certificate of {2 * len(sure)} vertices, MNIST 3x100', 'seconds': seconds, 'pieces': pieces,
           'note': f'{len(sure)} segments in {pieces} pieces, accepted'}]
