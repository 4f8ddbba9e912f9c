"""Programs that ours are measured against: each in a process and an environment of its own, without jaxfix."""
import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

_PEERS = pathlib.Path(__file__).resolve().parents[2] / 'third_party' / 'peers'


def install(name: str) -> str | None:
  """Makes the environment `.venv-NAME` if there is none; a reason if that fails.

  `NAME-requirements.txt` says what is in it; `NAME-alone.txt`, where there is one, what is installed without what it
  asks for (a package whose stated bounds exclude every version that can still be installed).
  """
  environment = _environment(name)
  if (environment / 'installed').exists():
    return None
  print(f'installing {name} and PyTorch into {environment} (once, about 1 GB)', file=sys.stderr)
  pip = [environment / 'bin' / 'pip', 'install', '--quiet']
  commands = [[sys.executable, '-m', 'venv', environment], [*pip, '-r', _PEERS / f'{name}-requirements.txt']]
  if (alone := _PEERS / f'{name}-alone.txt').exists():
    commands.append([*pip, '--no-deps', '-r', alone])
  for command in commands:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      last = (done.stderr.strip().splitlines() or ['no message'])[-1]
      return f'the environment of {name} could not be made: {last}'
  (environment / 'installed').touch()
  return None


@contextlib.contextmanager
def started(name: str, script: str, task: Mapping[str, Any]) -> Iterator[Callable[[str], dict[str, Any]]]:
  """The running `script` of an installed peer, as a function from a command to its JSON answer.

  Args:
    name: of the environment.
    script: file in third_party/peers; it gets the path of an .npz, reads a command a line and answers with a line.
    task: arrays of that .npz.
  """
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'task.npz'
    np.savez(path, **task)
    process = subprocess.Popen([_environment(name) / 'bin' / 'python', _PEERS / script, path], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)

    def ask(command: str) -> dict[str, Any]:
      process.stdin.write(command + '\n')
      process.stdin.flush()
      if not (answer := process.stdout.readline()):
        raise RuntimeError(f'{script} ended with exit code {process.wait()}; its messages are above.')
      return json.loads(answer)

    try:
      yield ask
    finally:
      process.stdin.close()
      process.wait()


def _environment(name: str) -> pathlib.Path:
  return _PEERS / f'.venv-{name}'
