"""A process that does what `executor.LocalExecutor` asks: one JSON request a line in, one JSON answer a line out.

  python -m jaxfix.study.worker [PLUGIN...]

It ends when its input ends, in the middle of work too: a study that was killed leaves nothing running. What the work
prints goes to the standard error, so that answers stay whole.
"""
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


def main() -> None:
  """Serves until the input ends."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)   # an interrupt is for the study, which then ends our input
  answers = os.fdopen(os.dup(1), 'w')
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
    answers.write(json.dumps(_answer(requests.get()), allow_nan=False) + '\n')
    answers.flush()


if __name__ == '__main__':
  main()
