"""A `LayerGraph` in the making, for an importer whose tensors have their axes in another order than ours.

ONNX has images as (channel, height, width), our layers as (height, width, channel). A `Value` says in which order its
axes are, so that a transposition becomes a record only where the order matters, and inverse ones never meet.
"""
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxfix.errors import UnsupportedLayerError, require
from jaxfix.interchange.onnx_file import Node
from jaxfix.models import layer_graph
from jaxfix.models.layer_graph import LayerGraph, Record

Weights = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Value:
  """A tensor that depends on the input.

  Attributes:
    record: what gives it: an array for each sample which, read row by row, is the tensor with its axes in `order`.
    stored: shape of that array. It may group the entries otherwise than the axes do: a reshape costs nothing until an
      operation needs the axes.
    shape: of the tensor, without the batch axis if it has one.
    order: permutation of the axes of `shape`.
    batched: whether the tensor has a batch axis in front.
  """
  record: str
  stored: tuple[int, ...]
  shape: tuple[int, ...]
  order: tuple[int, ...]
  batched: bool

  @property
  def full_shape(self) -> tuple[int, ...]:
    """All axes; the batch axis counts as 1."""
    return (1, *self.shape) if self.batched else self.shape

  @property
  def size(self) -> int:
    """Entries of one sample."""
    return math.prod(self.shape)


def channels_last(rank: int) -> tuple[int, ...]:
  """Order that moves the first of `rank` axes to the end."""
  return *range(1, rank), 0


class Draft:
  """Records and their weights, in order: the one thing that changes during an import.

  Attributes:
    records: name -> record.
    variables: 'params' and 'batch_stats' -> record -> its weights.
    notes: remarks for the reader of the model.
    fixed_batch: whether the file is for one sample at a time, so that a batch axis is an axis like any other.
  """

  def __init__(self, fixed_batch: bool):
    self.records: dict[str, Record] = {}
    self.variables: dict[str, dict[str, Weights]] = {'params': {}, 'batch_stats': {}}
    self.notes: list[str] = []
    self.fixed_batch = fixed_batch
    self._rearranged: dict[tuple, str] = {}

  def append(self, kind: str, name: str, inputs: Sequence[str], options: Mapping[str, Any] | None = None,
             params: Weights | None = None, batch_stats: Weights | None = None) -> str:
    """Adds a record. Returns its name, which is `name` if that is free and can be one."""
    name = name.strip('/').replace('/', '_') or kind
    while name in self.records or name == layer_graph.INPUT or _is_attribute(name):
      name += '_'
    self.records[name] = Record(name, kind, tuple((options or {}).items()), tuple(inputs))
    for collection, weights in (('params', params), ('batch_stats', batch_stats)):
      if weights:
        self.variables[collection][name] = {k: np.ascontiguousarray(w) for k, w in weights.items()}
    return name

  def elementwise(self, kind: str, name: str, value: Value) -> Value:
    """`value` after a layer that works entry by entry."""
    return dataclasses.replace(value, record=self.append(kind, name, [value.record]))

  def ordered(self, value: Value, order: Sequence[int]) -> Value:
    """The same tensor with its axes in another order."""
    heavy = lambda axes: [axis for axis in axes if value.shape[axis] != 1]
    if heavy(value.order) != heavy(order):  # moving axes of size 1 moves no entry
      value = self.laid_out(value, value.order)
      axes = tuple(value.order.index(axis) for axis in order)
      record = self._rearrange('transpose', {'axes': axes}, value.record)
      value = dataclasses.replace(value, record=record, stored=tuple(value.stored[axis] for axis in axes))
    return dataclasses.replace(value, order=tuple(order))

  def laid_out(self, value: Value, order: Sequence[int]) -> Value:
    """The same tensor, stored as an array that has exactly its axes, in that order."""
    value = self.ordered(value, order)
    shape = tuple(value.shape[axis] for axis in order)
    if value.stored == shape:
      return value
    kind, options = ('flatten', {}) if len(shape) == 1 else ('reshape', {'shape': shape})
    return dataclasses.replace(value, record=self._rearrange(kind, options, value.record), stored=shape)

  def _rearrange(self, kind: str, options: Mapping[str, Any], source: str) -> str:
    """A record that moves entries only; one for each thing to do, however many need it."""
    key = kind, tuple(options.items()), source
    if key not in self._rearranged:
      self._rearranged[key] = self.append(kind, f'{source}_{kind}', [source], options)
    return self._rearranged[key]

  def whole(self, node: Node, value: Value) -> Value:
    """The same tensor with its batch axis as one of its axes.

    Raises:
      UnsupportedLayerError: the batch size is not fixed at 1.
    """
    if not value.batched:
      return value
    if not self.fixed_batch:
      raise node.unsupported('it would mix the samples of a batch')
    order = 0, *(1 + axis for axis in value.order)
    return dataclasses.replace(value, shape=value.full_shape, order=order, batched=False)

  def reshaped(self, node: Node, value: Value, shape: Sequence[int], keeps_batch: bool = True) -> Value:
    """The tensor, read row by row, with all axes as in `shape`.

    A first axis of size 1 becomes the batch axis. `keeps_batch=False` says that the one in front is not that of before.
    """
    shape = tuple(map(int, shape))
    if not (keeps_batch and shape and shape[0] == 1):
      value = self.whole(node, value)
    value = self.ordered(value, range(len(value.shape)))
    batched = value.batched or (len(shape) > 1 and shape[0] == 1)
    shape = shape[1:] if batched else shape
    return dataclasses.replace(value, shape=shape, order=tuple(range(len(shape))), batched=batched)

  def finish(self, value: Value) -> tuple[LayerGraph, dict[str, dict[str, Weights]]]:
    """The network whose logits are `value`, and its variables. A softmax at the end is removed.

    Raises:
      UnsupportedLayerError: `value` is no list of logits, or there are no layers.
    """
    last = self.records.get(value.record)
    if last is not None and last.kind == 'softmax' and value.stored[-1] == value.size and not self._users(last.name):
      self.notes.append(f'The softmax of node {last.name!r} was removed: the outputs are logits.')
      del self.records[last.name]
      value = dataclasses.replace(value, record=last.inputs[0])
    require(max(value.shape, default=1) == value.size, f'The output of the network has shape '
            f'{value.full_shape}; a classifier needs one logit for each class.', UnsupportedLayerError)
    value = dataclasses.replace(value, shape=(value.size,), order=(0,), batched=True)
    value = self.laid_out(value, value.order)
    require(bool(self.records), 'The network has no layers.', UnsupportedLayerError)
    output = self._merge_biases().get(value.record, value.record)
    records = sorted(self.records.values(), key=lambda r: r.name == output)  # only the output moves, to the end
    return LayerGraph(tuple(map(tuple, records)), tuple(self.notes)), {k: v for k, v in self.variables.items() if v}

  def _users(self, name: str) -> list[Record]:
    return [record for record in self.records.values() if name in record.inputs]

  def _merge_biases(self) -> dict[str, str]:
    """Makes a constant that is added to a layer without bias its bias. Returns removed record -> the one to use."""
    params, renamed = self.variables['params'], {}
    for name in list(self.records):
      shift = self.records[name]
      source = self.records.get(shift.inputs[0])
      if shift.kind != 'shift' or source is None or source.kind not in ('dense', 'conv'):
        continue
      options, constant = dict(source.options), params[name]['shift']
      is_bias = dict(shift.options)['form'] == 'x + c' and constant.size == constant.shape[-1] == options['features']
      if not is_bias or options['use_bias'] or len(self._users(source.name)) > 1:
        continue
      self.records[source.name] = source._replace(options=tuple({**options, 'use_bias': True}.items()))
      params[source.name] = {**params[source.name], 'bias': constant.reshape(-1)}
      for user in self._users(name):
        inputs = tuple(source.name if i == name else i for i in user.inputs)
        self.records[user.name] = user._replace(inputs=inputs)
      del self.records[name], params[name]
      renamed[name] = source.name
    return renamed


def _is_attribute(name: str) -> bool:
  """Whether Flax would refuse a layer of that name, because the module that holds it has something so called."""
  return hasattr(LayerGraph, name) or name in LayerGraph.__dataclass_fields__
