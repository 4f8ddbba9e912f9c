"""Wall time by phase, and how much of it was compilation."""
import contextlib
import functools
import threading
import time
from collections.abc import Iterator

import jax

_COMPILE_EVENTS = ('/jax/core/compile/jaxpr_trace_duration', '/jax/core/compile/jaxpr_to_mlir_module_duration',
                   '/jax/core/compile/backend_compile_duration')


class _Compilation(threading.local):
  """What JAX compiled in this thread.

  Attributes:
    seconds: time during which at least one tracing, lowering or compilation was under way.
    programs: number of programs that XLA compiled.
    spans: `(start, end)` of those times, disjoint, in order.
  """

  def __init__(self):
    self.seconds, self.programs, self.spans = 0., 0, []

  def add(self, start: float, end: float) -> None:
    """Adds a time that ends now. A function traced while another is traced lies within that one and counts once."""
    while self.spans and self.spans[-1][0] >= start:
      first, last = self.spans.pop()
      self.seconds -= last - first
    self.spans.append((start, end))
    self.seconds += end - start


_compilation = _Compilation()


@functools.cache
def _listen() -> None:
  """Registers, once, for the times that JAX reports of each tracing, lowering and compilation."""

  def note(event: str, start: float, end: float, **_) -> None:
    if event in _COMPILE_EVENTS:
      _compilation.add(start, end)
      _compilation.programs += event == _COMPILE_EVENTS[-1]

  jax.monitoring.register_event_time_span_listener(note)


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
    self._compile_at_start, self._programs_at_start = _compilation.seconds, _compilation.programs

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
    return _compilation.seconds - self._compile_at_start

  @property
  def num_compiled(self) -> int:
    """Programs compiled in this thread since the clock was made."""
    return _compilation.programs - self._programs_at_start
