"""Carrying out tasks: processes on this machine, each with a limit of time and memory on what it does.

An executor is a function from tasks to what came of them, in any order; another one (of a cluster) need only offer the
same `run`. A task is plain data: the name of a function and its arguments, as JSON. Tasks of one group share a process
one after another, so that data is loaded and programs are compiled once; a process serves one group. What is loaded and
compiled counts for the task that is first.
"""
import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from jaxfix.errors import require
from jaxfix.files import jsonable

BEGUN = b'\x06'
"""What a process sends when it has a request; its answer, one line, follows."""
_POLL_S = 0.1


@dataclasses.dataclass(frozen=True)
class Task:
  """One call.

  Attributes:
    name: for people and for whoever sorts the answers; unique.
    group: tasks of a group may share a process.
    function: 'module:function', of keyword arguments that are JSON, returning JSON.
    arguments: of that function.
    time_limit_s: wall seconds from when a running process has it to its answer; None for none.
    memory_limit_bytes: resident memory of its process, on the host and without children; None for none. A process
      that has done others before may exceed it by what they left: then the task gets a process of its own.
  """
  name: str
  group: str
  function: str
  arguments: Mapping[str, Any]
  time_limit_s: float | None = None
  memory_limit_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class Done:
  """What came of a task: `value`, or `error` in one line, and of what `kind` that is ('error', 'user_error',
  'time_limit', 'memory_limit', 'died'); wall `seconds`."""
  task: Task
  value: Any = None
  error: str = ''
  kind: str = ''
  seconds: float = 0.


class Executor(Protocol):
  """Whatever can carry out tasks."""

  def run(self, tasks: Sequence[Task], *, on_start: Callable[[Task], None]) -> Iterator[Done]:
    """Yields what came of each task as it comes; closing the iterator stops the rest."""


@dataclasses.dataclass(frozen=True)
class LocalExecutor:
  """Processes on this machine.

  Attributes:
    workers: how many at a time, >= 1.
    log: file that gets what they print.
    plugins: modules with approaches (`methods.load_plugin`) that every process imports first.
  """
  workers: int = 1
  log: pathlib.Path | None = None
  plugins: tuple[str, ...] = ()

  def __post_init__(self):
    require(self.workers >= 1, f'workers must be at least 1, got {self.workers}.')

  def run(self, tasks: Sequence[Task], *, on_start: Callable[[Task], None] = lambda task: None) -> Iterator[Done]:
    """Yields what came of each task as it comes. Closing the iterator kills the processes."""
    shared = _Shared(list(tasks))
    threads = [threading.Thread(target=self._serve, args=(shared,), daemon=True)
               for _ in range(min(self.workers, len(tasks)))]
    for thread in threads:
      thread.start()
    try:
      for _ in tasks:
        while isinstance(message := shared.messages.get(), Task):
          on_start(message)
        if isinstance(message, BaseException):
          raise message
        yield message
    finally:
      shared.stopped.set()
      for thread in threads:
        thread.join()

  def _serve(self, shared: '_Shared') -> None:
    """One thread: a process, replaced when the group changes or when it had to be killed."""
    process, group, served = None, None, 0
    try:
      while (task := shared.take(group)) is not None:
        shared.messages.put(task)
        done = None
        while done is None or (done.kind == 'memory_limit' and served > 1):
          if process is None or process.poll() is not None or task.group != group:
            _kill(process)
            process, group, served = self._start(), task.group, 0
          served += 1
          done = self._ask(process, task, shared.stopped)
          if done is None:
            return
        shared.messages.put(done)
    except BaseException as e:   # a defect: to whoever waits for answers, who would wait for ever
      shared.messages.put(e)
    finally:
      _kill(process)

  def _start(self) -> subprocess.Popen:
    environment = dict(os.environ)
    if self.workers > 1:   # the first of them would take most of an accelerator's memory
      environment.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    with open(self.log or os.devnull, 'ab') as log:
      return subprocess.Popen([sys.executable, '-m', 'jaxfix.study.worker', *self.plugins], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=log, env=environment)

  def _ask(self, process: subprocess.Popen, task: Task, stopped: threading.Event) -> Done | None:
    """Hands over a task and waits for the answer; None when stopped. A process that broke a limit is dead then."""
    arguments = jsonable(dict(task.arguments), nonfinite=lambda number: number)   # infinity is read back
    request = json.dumps({'function': task.function, 'arguments': arguments})
    with contextlib.suppress(BrokenPipeError):   # it is dead, as its answer will say
      process.stdin.write(request.encode() + b'\n')
      process.stdin.flush()
    begin, answer = None, b''
    done = lambda **fields: Done(task, seconds=time.monotonic() - begin if begin else 0., **fields)
    while not answer.endswith(b'\n'):
      if stopped.is_set():
        return None
      if begin and task.time_limit_s is not None and time.monotonic() - begin > task.time_limit_s:
        _kill(process)
        return done(kind='time_limit', error=f'time_limit: not finished after {task.time_limit_s:g} s')
      if task.memory_limit_bytes is not None and (used := resident_bytes(process.pid)) > task.memory_limit_bytes:
        _kill(process)
        return done(kind='memory_limit', error=f'memory_limit: {used / 2**30:.2f} GiB, more than '
                                               f'{task.memory_limit_bytes / 2**30:.2f} GiB')
      if select.select([process.stdout], [], [], _POLL_S)[0]:
        part = os.read(process.stdout.fileno(), 1 << 16)
        if not part:
          status = process.wait()
          where = f'; see {self.log.name}' if self.log else ''
          return done(kind='died', error='died: its process ended with '
                                         f'{f"signal {-status}" if status < 0 else f"code {status}"}{where}')
        if begin is None and part.startswith(BEGUN):   # it has read the request: from here on time counts
          begin, part = time.monotonic(), part[len(BEGUN):]
        answer += part
    reply = json.loads(answer)
    if 'error' in reply:
      return done(kind=reply['kind'], error=reply['error'])
    return done(value=reply['value'])


class _Shared:
  """What the threads of one `run` share."""

  def __init__(self, tasks: list[Task]):
    self.messages: queue.Queue = queue.Queue()   # Task: begun; Done: finished; BaseException: a defect
    self.stopped = threading.Event()
    self._tasks, self._lock = tasks, threading.Lock()

  def take(self, group: str | None) -> Task | None:
    """The next task, of `group` if there is one; None when there is nothing more to do."""
    with self._lock:
      if self.stopped.is_set() or not self._tasks:
        return None
      place = next((i for i, task in enumerate(self._tasks) if task.group == group), 0)
      return self._tasks.pop(place)


def resident_bytes(pid: int) -> int:
  """Resident memory of a process; 0 where the platform does not say."""
  try:
    with open(f'/proc/{pid}/statm') as f:
      return int(f.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')
  except (OSError, IndexError):
    return 0


def _kill(process: subprocess.Popen | None) -> None:
  if process is not None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
      with contextlib.suppress(BrokenPipeError):   # a request that the dead process has not read
        pipe.close()
