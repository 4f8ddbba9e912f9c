"""What tests ask worker processes to do."""
import os
import signal
import time

import numpy as np

from jaxfix.errors import BadInputError

_kept = []


def square(*, x):
  """Also says which process it was."""
  print('this must not get between the answers')
  return {'square': x * x, 'pid': os.getpid()}


def sleep(*, seconds):
  time.sleep(seconds)


def allocate(*, mebibytes):
  """Holds memory until the process ends."""
  _kept.append(np.ones((mebibytes, 1 << 17)))
  time.sleep(30)


def keep(*, mebibytes):
  """Leaves memory behind."""
  _kept.append(np.ones((mebibytes, 1 << 17)))
  time.sleep(1)
  return os.getpid()


def die():
  os.kill(os.getpid(), signal.SIGSEGV)


def fail():
  raise ZeroDivisionError('by\nnothing')


def refuse():
  raise BadInputError('no such thing')


def nan():
  return {'value': float('nan'), 'array': np.arange(2)}
