"""Two programs that do the same work, timed in turns on the same machine, and the ratio of their speeds."""
import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Options:
  """What a suite is told.

  Attributes:
    repeats: timed runs of each side, after one that is not timed.
    data_dir: where MNIST lies (`mnist.npz`); None for random images.
    model: Keras file or checkpoint of a study LeNet5; None for random weights.
  """
  repeats: int = 5
  data_dir: str | None = None
  model: str | None = None


def compare(name: str, unit: str, amount: float, ours: Callable[[], float], peer: Callable[[], float], *,
            peer_name: str, repeats: int, **facts: Any) -> dict[str, Any]:
  """Speeds of both sides, `amount` of work by the seconds that each call returns, and their ratios, pair by pair.

  The two alternate, so that another load on the machine falls on both; the first pair warms up and is not counted.
  """
  seconds = [(ours(), peer()) for _ in range(repeats + 1)][1:]
  return {'case': name, 'unit': unit, 'ours': spread([amount / a for a, _ in seconds]),
          'peer': spread([amount / b for _, b in seconds]), 'peer_name': peer_name,
          'ratio': spread([b / a for a, b in seconds]), **facts}


def skipped(name: str, reason: str) -> dict[str, Any]:
  """A case that could not be measured here."""
  return {'case': name, 'skipped': reason}


def spread(values: list[float]) -> dict[str, Any]:
  """Smallest, middle and largest value, and all of them."""
  return {'min': min(values), 'median': statistics.median(values), 'max': max(values), 'values': values}


def timed(function: Callable[[], Any]) -> Callable[[], float]:
  """`function` as one that returns how many seconds it took, device results included."""

  def run() -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start

  return run


def line(result: Mapping[str, Any]) -> str:
  """One result as text."""
  if 'skipped' in result:
    return f'{result["case"]}: skipped, {result["skipped"]}'
  if 'ratio' not in result:
    return f'{result["case"]}: {result["seconds"]:.2f} s ({result["note"]})'

  def show(side: str, digits: str = ',.0f') -> str:
    s = result[side]
    return f'{s["median"]:{digits}} ({s["min"]:{digits}} to {s["max"]:{digits}})'

  digits = ',.0f' if result['peer']['median'] >= 100 else ',.1f'
  return (f'{result["case"]}: {show("ours", digits)} {result["unit"]}, {result["peer_name"]} {show("peer", digits)}, '
          f'ratio {show("ratio", ".2f")}')
