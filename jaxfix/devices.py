"""Data parallelism: a mesh named `data` over the devices at hand; one device is the mesh of one."""
import functools

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
