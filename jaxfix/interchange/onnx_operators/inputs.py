"""What converters ask of the inputs of a node.

An input is a `Value`, which depends on the network's input, an array, which does not, or None where it is left out.
"""
from typing import Any

import numpy as np

from jaxfix.errors import CorruptFileError, require
from jaxfix.interchange.onnx_draft import Draft, Value
from jaxfix.interchange.onnx_file import Node

Tensor = Value | np.ndarray

BATCH = np.iinfo(np.int64).min
"""Stands for the number of samples in the shape of a tensor, where the file leaves it open."""


def floats(node: Node, array: Any, what: str) -> np.ndarray:
  """A constant that enters arithmetic."""
  if not isinstance(array, np.ndarray):
    raise node.unsupported(f'{what} is computed from the input of the network')
  if array.dtype != np.float32:
    raise node.unsupported(f'{what} is {array.dtype}. Convert the model to float32 first: a model in another type '
                           'gives other values than ours would')
  return array


def integers(node: Node, array: Any, what: str) -> list[int]:
  """The entries of a constant that says how many, where or which."""
  if not isinstance(array, np.ndarray) or array.dtype.kind != 'i':
    raise node.unsupported(f'{what} is not a constant of integers')
  if (array == BATCH).any():
    raise node.unsupported(f'{what} depends on the number of samples')
  return [int(i) for i in array.reshape(-1)]


def computed(node: Node, value: Any) -> Value:
  """What must depend on the input of the network."""
  if not isinstance(value, Value):
    raise node.unsupported('it computes with constants only; onnxsim or onnxruntime can fold them')
  return value


def in_batch(draft: Draft, node: Node, value: Value) -> Value:
  """The tensor with its first axis as the batch axis."""
  if not value.batched and (len(value.shape) < 2 or value.shape[0] != 1):
    raise node.unsupported(f'its input has shape {value.full_shape}; the first axis must be open, or 1')
  return draft.reshaped(node, value, value.full_shape) if not value.batched else value


def axis_in(node: Node, axis: int, rank: int) -> int:
  """The number from 0 of an axis that may be counted from the end."""
  require(-rank <= axis < rank, f'ONNX node {node.name!r} ({node.operator}) names axis {axis} of {rank}.',
          CorruptFileError)
  return axis % rank


def axes_of(node: Node, axes: Tensor | None) -> list[int] | None:
  """The axes that a node names in an attribute or, since version 13, in an input."""
  return node.get('axes') if axes is None else integers(node, axes, 'the choice of axes')


def full_shape(x: Tensor) -> tuple[int, ...]:
  """Shape with the batch axis, of size 1 where it is open."""
  return x.full_shape if isinstance(x, Value) else x.shape


def rounded(draft: Draft, node: Node, exact: np.ndarray) -> np.ndarray:
  """Arithmetic on constants, done in float64, as float32; a note says where that changes the function."""
  result = np.asarray(exact, np.float32)
  if not np.array_equal(result, exact, equal_nan=True):
    draft.notes.append(f'Constants that node {node.name!r} combines were rounded to float32.')
  return result
