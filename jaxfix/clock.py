"""Wall time by phase, and how much of it was compilation."""
import contextlib
import functools
import threading
import time
from collections.abc import Iterator

import jax

_COMPILE_EVENTS = ('/jax/core/compile/jaxpr_trace_duration', '/jax/core/compile/jaxpr_to_mlir_module_duration',
                   '/jax/core/compile/backend_compile_duration')
_total = threading.local()


@functools.cache
def _listen() -> None:
  """Registers, once, for the durations that JAX reports of each tracing, lowering and compilation."""

  def note(event: str, seconds: float, **_) -> None:
    if event in _COMPILE_EVENTS:
      _total.seconds = getattr(_total, 'seconds', 0.) + seconds
      if event == _COMPILE_EVENTS[-1]:
        _total.programs = getattr(_total, 'programs', 0) + 1

  jax.monitoring.register_event_duration_secs_listener(note)


class Clock:
  """Times the phases of a repair.

  >>> clock = Clock()
  >>> with clock.phase('localize'):
  ...   pass
  >>> list(clock.seconds)
  ['localize']

  Attributes:
    seconds: wall seconds by phase, in order of first use; a phase entered twice adds up.
  """

  def __init__(self):
    _listen()
    self.seconds: dict[str, float] = {}
    self._compile_at_start = getattr(_total, 'seconds', 0.)
    self._programs_at_start = getattr(_total, 'programs', 0)

  @contextlib.contextmanager
  def phase(self, name: str) -> Iterator[None]:
    """Adds the time of its body to phase `name`; the body must wait for its own device results."""
    start = time.perf_counter()
    try:
      yield
    finally:
      self.seconds[name] = self.seconds.get(name, 0.) + time.perf_counter() - start

  @property
  def compile_seconds(self) -> float:
    """Seconds of tracing, lowering and XLA compilation in this thread since the clock was made."""
    return getattr(_total, 'seconds', 0.) - self._compile_at_start

  @property
  def num_compiled(self) -> int:
    """Programs compiled in this thread since the clock was made."""
    return getattr(_total, 'programs', 0) - self._programs_at_start
