"""How work is laid on the devices at hand: a mesh named `data`, batches side by side on CPU, compiler options there."""
import concurrent.futures
import functools
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


@functools.cache
def data_mesh() -> Mesh:
  """All local devices along one axis `data`."""
  return Mesh(np.array(jax.local_devices()), ('data',))


def shard_batch(x: jax.Array | np.ndarray) -> jax.Array:
  """`x` on the devices, its first axis divided over `data`; that axis must be a multiple of their number."""
  return jax.device_put(x, NamedSharding(data_mesh(), PartitionSpec('data')))


def replicate(tree):
  """`tree` on every device of the mesh, whole."""
  return jax.device_put(tree, NamedSharding(data_mesh(), PartitionSpec()))


def constrain_batch(x: jax.Array) -> jax.Array:
  """Inside `jit`: asks for the first axis of `x` to be divided over `data` where it can be."""
  mesh = data_mesh()
  if mesh.size == 1 or x.shape[0] % mesh.size:
    return x
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec('data')))


def round_up(n: int, multiple: int) -> int:
  """Smallest multiple of `multiple` that is at least `n`."""
  return -(-n // multiple) * multiple


def free_bytes() -> int:
  """Memory that the first local device could still give: of an accelerator its own, of a CPU the host's."""
  stats = jax.local_devices()[0].memory_stats()
  if stats and 'bytes_limit' in stats:
    return stats['bytes_limit'] - stats['bytes_in_use']
  try:
    with open('/proc/meminfo') as f:
      return next(int(line.split()[1]) << 10 for line in f if line.startswith('MemAvailable:'))
  except (OSError, StopIteration):   # not Linux
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2


def map_concurrently(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
  """`[function(item) for item in items]` for a compiled `function`; on a single CPU device, several at once.

  XLA gives most loops of a small program to one core. Programs of their own for small batches keep every core busy,
  each with what fits its cache. Elsewhere a call only hands the work over and one thread is enough. The first item goes
  alone, so that `function` is compiled once. Threads see JAX's global configuration, not that of a `with` around the
  call (`jax.default_matmul_precision`, `jax.enable_x64`).
  """
  items = list(items)
  if jax.default_backend() != 'cpu' or data_mesh().size > 1 or len(items) < 2:
    return [function(item) for item in items]
  first = function(items[0])
  with concurrent.futures.ThreadPoolExecutor(1 + (os.cpu_count() or 1)) as pool:
    return [first, *pool.map(lambda item: jax.block_until_ready(function(item)), items[1:])]


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
  """`jax.jit(function, **options)` for a program of many small matrix products, with `cpu_options`.

  Made at the first call, so that importing a module starts no backend. For whole programs only: JAX does not take
  compiler options inside another `jit` or a derivative.
  """
  compiled = functools.cache(lambda: jax.jit(function, compiler_options=cpu_options(), **options))

  @functools.wraps(function)
  def call(*args, **kwargs):
    return compiled()(*args, **kwargs)

  return call


@functools.cache
def cpu_options() -> dict[str, str] | None:
  """Compiler options that make XLA leave matrix products to Eigen on CPU; None elsewhere.

  Its default there is YNNPACK, with threads of its own; on a host that shares its cores, searches took two to four
  times as long with it (BUILD_NOTES.md). Training took as long with either.
  """
  options = {'xla_cpu_experimental_ynn_fusion_type': ''}
  if jax.default_backend() != 'cpu':
    return None
  try:
    jax.jit(lambda x: x, compiler_options=options).lower(0.).compile()
  except jax.errors.JaxRuntimeError:   # another version of XLA
    return None
  return options
