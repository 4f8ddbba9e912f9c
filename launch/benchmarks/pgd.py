"""PGD on the study's LeNet5, 500 images, 40 steps: image-steps a second against Foolbox with PyTorch on the CPU.

Both attack the same weights, images and labels with the same settings, from host arrays to host arrays. Foolbox runs
in a process and an environment of its own (`third_party/peers/foolbox_pgd.py`), which waits while ours runs.
"""
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxfix.classifier import Classifier, flat_weights
from jaxfix.evaluate import PGD, attack
from jaxfix.models.layers import layer_list
from launch.benchmarks import pairs, subject

BATCH, EPSILON = 500, 0.15
_PEERS = pathlib.Path(__file__).resolve().parents[2] / 'third_party' / 'peers'
_ENVIRONMENT = _PEERS / '.venv-foolbox'
_MARK = _ENVIRONMENT / 'installed'


def run(options: pairs.Options) -> list[dict[str, Any]]:
  """One case: image-steps a second."""
  name = f'pgd, LeNet5, {BATCH} images'
  if (reason := _install()) is not None:
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

  with _peer(classifier, z, y) as ask:
    versions = ask('versions')

    def peer() -> float:
      answer = ask('attack')
      success['peer'] = answer['success']
      return answer['seconds']

    result = pairs.compare(name, 'image-steps/s', BATCH * pgd.steps, ours, peer, repeats=options.repeats,
                           peer_name=f'Foolbox {versions["foolbox"]} with PyTorch {versions["torch"]}')
  return [result | {'asr': success, 'peer_versions': versions}]


def _install() -> str | None:
  """Makes the peer's environment if there is none; a reason if that fails."""
  if _MARK.exists():
    return None
  print('installing Foolbox and PyTorch into third_party/peers/.venv-foolbox (once, about 1 GB)', file=sys.stderr)
  for command in ([sys.executable, '-m', 'venv', _ENVIRONMENT],
                  [_ENVIRONMENT / 'bin' / 'pip', 'install', '--quiet', '-r', _PEERS / 'foolbox-requirements.txt']):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      last = (done.stderr.strip().splitlines() or ['no message'])[-1]
      return f'the environment of Foolbox could not be made: {last}'
  _MARK.touch()
  return None


def _weights(classifier: Classifier) -> dict[str, np.ndarray]:
  """`conv1.kernel` and so on, whatever the layers are called in the file that the model came from."""
  paths = [layer.path for layer in layer_list(classifier) if layer.kind in ('conv', 'dense')]
  flat = flat_weights(classifier.variables)
  names = zip(('conv1', 'conv2', 'fc1', 'fc2', 'fc3'), paths, strict=True)
  return {f'{name}.{k}': flat[f'params/{path}/{k}'] for name, path in names for k in ('kernel', 'bias')}


@contextlib.contextmanager
def _peer(classifier: Classifier, z: np.ndarray, y: np.ndarray) -> Iterator[Any]:
  """The peer's process, as a function from a command to its JSON answer."""
  with tempfile.TemporaryDirectory() as folder:
    task = pathlib.Path(folder) / 'task.npz'
    np.savez(task, images=z, labels=y, epsilon=EPSILON, **_weights(classifier))
    process = subprocess.Popen([_ENVIRONMENT / 'bin' / 'python', _PEERS / 'foolbox_pgd.py', task],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(command: str) -> dict[str, Any]:
      process.stdin.write(command + '\n')
      process.stdin.flush()
      if not (answer := process.stdout.readline()):
        raise RuntimeError(f'foolbox_pgd.py ended with exit code {process.wait()}; its messages are above.')
      return json.loads(answer)

    try:
      yield ask
    finally:
      process.stdin.close()
      process.wait()
