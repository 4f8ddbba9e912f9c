"""auto_LiRPA's IBP and CROWN bounds of an MLP in PyTorch; a peer for timing, which runs without jaxfix and without JAX.

  python auto_lirpa_bounds.py TASK.npz     with inputs [n,d], epsilon, batch, and weights W0, b0, W1, ... (out, in)

Reads commands from standard input, a line each, and answers each with a line of JSON: 'versions', or 'IBP' or 'CROWN'
(seconds for all boxes from host array to host array, and the mean width of the outputs). Ends with its input.
"""
import json
import sys
import time

import numpy as np
import torch
import torch.onnx.symbolic_helper

# auto_LiRPA 0.3, the newest on PyPI, calls two names of PyTorch that are gone.
torch.onnx.symbolic_helper._set_opset_version = lambda version: None
torch._C.Node.__getitem__ = lambda node, name: getattr(node, node.kindOf(name))(name)

import auto_LiRPA  # noqa: E402
from auto_LiRPA import BoundedModule, BoundedTensor, PerturbationLpNorm  # noqa: E402


def build(task):
  layers = []
  while f'W{len(layers) // 2}' in task:
    w, b = (torch.from_numpy(task[f'{kind}{len(layers) // 2}']) for kind in 'Wb')
    layer = torch.nn.Linear(w.shape[1], w.shape[0])
    layer.weight.data, layer.bias.data = w, b
    layers += [layer, torch.nn.ReLU()]
  return torch.nn.Sequential(*layers[:-1])


def main():
  with np.load(sys.argv[1], allow_pickle=False) as task:
    task = dict(task)
  x, batch = task['inputs'], int(task['batch'])
  network = BoundedModule(build(task), torch.zeros(1, x.shape[1]), verbose=False)
  ball = PerturbationLpNorm(norm=np.inf, eps=float(task['epsilon']))

  def bounds(method):
    start, widths = time.perf_counter(), []
    with torch.no_grad():
      for i in range(0, len(x), batch):
        low, high = network.compute_bounds(x=(BoundedTensor(torch.from_numpy(x[i:i + batch]), ball),), method=method)
        widths.append((high - low).numpy())
    return {'seconds': time.perf_counter() - start, 'width': float(np.concatenate(widths).mean())}

  versions = {'auto_LiRPA': auto_LiRPA.__version__, 'torch': torch.__version__, 'threads': torch.get_num_threads()}
  for line in sys.stdin:
    command = line.strip()
    print(json.dumps(versions if command == 'versions' else bounds(command)), flush=True)


if __name__ == '__main__':
  main()
