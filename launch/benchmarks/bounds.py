"""Bounds of 1,000 boxes on the MNIST 9x200 network (radius 0.005, batches of 100): boxes a second against auto_LiRPA.

Needs aprnn_mnist/mnist_relu_9x200.npz and mnist.npz in --data_dir. The boxes are not cut to [0, 1], as the peer's are
not. The mean width of the outputs is printed too: bounds are worth their time only if they are as tight.
"""
import pathlib
import time
from typing import Any

import numpy as np

from jaxfix.verify import bounds
from jaxfix.verify.graph import trace
from launch.benchmarks import pairs, peer, subject

EPSILON, BATCH, BOXES = np.float32(0.005), 100, 1000


def run(options: pairs.Options) -> list[dict[str, Any]]:
  """One case for each of IBP and CROWN."""
  name = f'bounds, MNIST 9x200, {BOXES} boxes'
  folder = pathlib.Path(options.data_dir or '')
  weights = folder / 'aprnn_mnist' / 'mnist_relu_9x200.npz'
  if not options.data_dir or not weights.exists():
    return [pairs.skipped(name, 'needs aprnn_mnist/mnist_relu_9x200.npz in --data_dir')]
  if (reason := peer.install('auto_lirpa')) is not None:
    return [pairs.skipped(name, reason)]
  graph = trace(subject.mlp(weights))
  with np.load(folder / 'mnist.npz', allow_pickle=False) as arrays:
    x = (arrays['x_test'][:BOXES].reshape(BOXES, -1) / 255).astype(np.float32)
  results = []
  with np.load(weights, allow_pickle=False) as arrays, peer.started(
      'auto_lirpa', 'auto_lirpa_bounds.py', {'inputs': x, 'epsilon': EPSILON, 'batch': BATCH, **arrays}) as ask:
    versions = ask('versions')
    for method in ('ibp', 'crown'):
      width = {}

      def ours(method=method, width=width) -> float:
        start = time.perf_counter()
        low, high = bounds.bound_boxes(graph, x - EPSILON, x + EPSILON, method=method, batch_size=BATCH)
        seconds = time.perf_counter() - start
        width['ours'] = float((high - low).mean())
        return seconds

      def theirs(method=method, width=width) -> float:
        answer = ask(method.upper())
        width['peer'] = answer['width']
        return answer['seconds']

      result = pairs.compare(f'{name}, {method}', 'boxes/s', BOXES, ours, theirs, repeats=options.repeats,
                             peer_name=f'auto_LiRPA {versions["auto_LiRPA"]} with PyTorch {versions["torch"]}')
      results.append(result | {'mean_width': width, 'peer_versions': versions,
                               'note': f'mean width {width["ours"]:.4g} against {width["peer"]:.4g}'})
  return results
