"""Peak memory of one piece of work in a process that does many.

Decided here:
- An accelerator counts from the start of the process, and that count cannot be reset. What a later cell adds is known
  only if it exceeds everything before it; otherwise its peak is null, since the number would be that of another cell.
- On a CPU the device's memory is the host's: the peak is that of the process's resident memory, with the interpreter,
  the data and whatever earlier cells left behind. Linux can reset it; where it cannot be reset the peak is null.
"""
import dataclasses
import pathlib

import jax

_RESET, _STATUS = pathlib.Path('/proc/self/clear_refs'), pathlib.Path('/proc/self/status')


@dataclasses.dataclass(frozen=True)
class Mark:
  """A moment from which a peak counts.

  Attributes:
    device_peak: bytes, of the first device since the process began; None where it does not say.
    is_host_reset: the host's peak has been reset.
  """
  device_peak: int | None
  is_host_reset: bool


def mark() -> Mark:
  """This moment; resets what can be reset, so that of two marks only the later one counts."""
  try:
    _RESET.write_text('5')   # man 5 proc: VmHWM becomes the present resident size
    return Mark(_device_peak(), True)
  except OSError:
    return Mark(_device_peak(), False)


def peak_since(start: Mark) -> int | None:
  """Bytes in use at most since then, or None where that cannot be told."""
  peak = _device_peak()
  if peak is not None:
    return peak if peak > (start.device_peak or 0) else None
  return _host_peak() if start.is_host_reset else None


def _device_peak() -> int | None:
  return (jax.devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


def _host_peak() -> int | None:
  try:
    for line in _STATUS.read_text().splitlines():
      if line.startswith('VmHWM:'):
        return int(line.split()[1]) * 1024
  except (OSError, ValueError, IndexError):
    pass
  return None
