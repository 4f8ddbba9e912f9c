"""A process that does what `executor.LocalExecutor` asks: one JSON request a line in, one JSON answer a line out.

  python -m jaxfix.study.worker [PLUGIN...]

It ends with the study, in the middle of work too: by a signal of the system where there is one (Linux), else when its
input ends. What the work prints goes to the standard error, so that answers stay whole.
"""
import contextlib
import ctypes
import importlib
import json
import os
import queue
import signal
import sys
import threading
import traceback
from typing import Any

from jaxfix import methods
from jaxfix.errors import JaxfixError
from jaxfix.files import jsonable
from jaxfix.study.executor import BEGUN

_PR_SET_PDEATHSIG = 1


def _answer(request: dict[str, Any]) -> dict[str, Any]:
  module, function = request['function'].split(':')
  try:
    return {'value': jsonable(getattr(importlib.import_module(module), function)(**request['arguments']))}
  except Exception as e:
    traceback.print_exc()
    text = ' '.join(str(e).split())
    if isinstance(e, JaxfixError):
      return {'kind': 'user_error', 'error': text}
    return {'kind': 'error', 'error': f'{type(e).__name__}: {text}'}


def _end_with_parent() -> None:
  """Asks for SIGKILL when the parent dies: a thread cannot notice while compiled code holds the interpreter."""
  with contextlib.suppress(OSError, AttributeError):   # not Linux
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
  """Serves until the input ends."""
  _end_with_parent()
  signal.signal(signal.SIGINT, signal.SIG_IGN)   # an interrupt is for the study, which then ends us
  answers = os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)
  requests = queue.SimpleQueue()

  def listen() -> None:
    for line in sys.stdin:
      requests.put(json.loads(line))
    os._exit(0)

  threading.Thread(target=listen, daemon=True).start()
  for module in sys.argv[1:]:
    methods.load_plugin(module)
  while True:
    request = requests.get()
    answers.write(BEGUN)
    answers.flush()
    answers.write(json.dumps(_answer(request), allow_nan=False).encode() + b'\n')
    answers.flush()


if __name__ == '__main__':
  main()
