"""PGD on the study's LeNet5, 500 images, 40 steps: image-steps a second against Foolbox with PyTorch on the CPU.

Both attack the same weights, images and labels with the same settings, from host arrays to host arrays. Foolbox runs
in a process and an environment of its own (`third_party/peers/foolbox_pgd.py`), which waits while ours runs.
"""
import time
from typing import Any

import jax
import numpy as np

from jaxfix.classifier import Classifier, flat_weights
from jaxfix.evaluate import PGD, attack
from jaxfix.models.structure import layer_list
from launch.benchmarks import pairs, peer, subject

BATCH, EPSILON = 500, 0.15


def run(options: pairs.Options) -> list[dict[str, Any]]:
  """One case: image-steps a second."""
  name = f'pgd, LeNet5, {BATCH} images'
  if (reason := peer.install('foolbox')) is not None:
    return [pairs.skipped(name, reason)]
  classifier = subject.lenet5(options)
  x, y = subject.images(classifier, BATCH, options)
  z, pgd, success = np.asarray(classifier.normalize(x)), PGD(EPSILON), {}

  def ours() -> float:
    start = time.perf_counter()
    result = attack(classifier, z, y, pgd=pgd, key=jax.random.key(0))
    seconds = time.perf_counter() - start
    success['ours'] = float(result.success.mean())
    return seconds

  task = {'images': z, 'labels': y, 'epsilon': EPSILON, **_weights(classifier)}
  with peer.started('foolbox', 'foolbox_pgd.py', task) as ask:
    versions = ask('versions')

    def theirs() -> float:
      answer = ask('attack')
      success['peer'] = answer['success']
      return answer['seconds']

    result = pairs.compare(name, 'image-steps/s', BATCH * pgd.steps, ours, theirs, repeats=options.repeats,
                           peer_name=f'Foolbox {versions["foolbox"]} with PyTorch {versions["torch"]}')
  return [result | {'asr': success, 'peer_versions': versions}]


def _weights(classifier: Classifier) -> dict[str, np.ndarray]:
  """`conv1.kernel` and so on, whatever the layers are called in the file that the model came from."""
  paths = [layer.path for layer in layer_list(classifier) if layer.kind in ('conv', 'dense')]
  flat = flat_weights(classifier.variables)
  names = zip(('conv1', 'conv2', 'fc1', 'fc2', 'fc3'), paths, strict=True)
  return {f'{name}.{k}': flat[f'params/{path}/{k}'] for name, path in names for k in ('kernel', 'bias')}
