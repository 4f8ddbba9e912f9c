"""Foolbox's LinfPGD on the study's LeNet5 in PyTorch; a peer for timing, which runs without jaxfix and without JAX.

  python foolbox_pgd.py TASK.npz     with images [n,28,28,1], labels [n], epsilon, and weights conv1.kernel ... fc3.bias

Reads commands from standard input, a line each, and answers each with a line of JSON: 'versions', or 'attack' (seconds
of one attack from host array to host array, and its success rate). Lives until its input ends.
"""
import json
import sys
import time

import foolbox
import numpy as np
import torch
from torch import nn


def build(weights):
  """LeNet5 of the study with Keras-ordered weights: kernels [h,w,in,out], flattening by height, width, channel."""
  model = nn.Sequential(nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(3), nn.Conv2d(6, 16, 3), nn.ReLU(),
                        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(144, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
                        nn.Linear(84, 10))
  layers = dict(zip(('conv1', 'conv2', 'fc1', 'fc2', 'fc3'),
                    [m for m in model if isinstance(m, (nn.Conv2d, nn.Linear))], strict=True))
  with torch.no_grad():
    for name, layer in layers.items():
      kernel = weights[f'{name}.kernel']
      if name == 'fc1':  # rows by (height, width, channel); PyTorch flattens by (channel, height, width)
        kernel = kernel.reshape(3, 3, 16, 120).transpose(2, 0, 1, 3).reshape(144, 120)
      kernel = kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
      layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(kernel)))
      layer.bias.copy_(torch.from_numpy(weights[f'{name}.bias']))
  for parameter in model.parameters():  # an attack needs gradients of inputs only
    parameter.requires_grad_(False)
  return model.eval()


def main():
  with np.load(sys.argv[1], allow_pickle=False) as task:
    task = dict(task)
  images = np.ascontiguousarray(task['images'].transpose(0, 3, 1, 2))
  model = foolbox.PyTorchModel(build(task), bounds=(float(images.min()), float(images.max())), device='cpu')
  epsilon = float(task['epsilon'])

  def attack():
    start = time.perf_counter()
    x, y = torch.from_numpy(images), torch.from_numpy(task['labels'].astype(np.int64))
    _, adversarial, success = foolbox.attacks.LinfPGD()(model, x, y, epsilons=epsilon)
    adversarial.numpy(), success.numpy()
    return {'seconds': time.perf_counter() - start, 'success': float(success.float().mean())}

  answers = {'attack': attack, 'versions': lambda: {
    'foolbox': foolbox.__version__, 'torch': torch.__version__, 'threads': torch.get_num_threads()}}
  for line in sys.stdin:
    print(json.dumps(answers[line.strip()]()), flush=True)


if __name__ == '__main__':
  main()
