"""`LayerGraph`: a network given as data, for models that come from other frameworks."""
import types
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from jaxfix.errors import BadInputError, UnknownNameError, require
from jaxfix.models import layers

INPUT = 'input'
"""Name by which records refer to the input of the network; no record may have it."""

MAKERS = types.MappingProxyType({
  'add': layers.Add, 'avgpool': layers.AvgPool, 'bn': layers.BatchNorm, 'concat': layers.Concat, 'conv': layers.Conv,
  'dense': layers.Dense, 'dropout': layers.Dropout, 'flatten': layers.Flatten, 'gap': layers.GlobalAvgPool,
  'gmp': layers.GlobalMaxPool, 'maxpool': layers.MaxPool, 'mean': layers.Mean, 'relu': layers.Relu,
  'reshape': layers.Reshape, 'scale': layers.Scale, 'shift': layers.Shift, 'sigmoid': layers.Sigmoid,
  'slice': layers.Slice, 'softmax': layers.Softmax, 'tanh': layers.Tanh, 'transpose': layers.Transpose,
  'zeropad': layers.ZeroPad})
"""Kind of a record -> module that takes its options."""

_KNOW_TRAINING = ('bn', 'dropout')


class Record(NamedTuple):
  """One layer of a `LayerGraph`.

  Attributes:
    name: of the layer, unique, without '/': its path in the parameters.
    kind: key of `MAKERS`.
    options: (keyword, value) pairs for that module; values are numbers, strings, None or tuples of them.
    inputs: names of records, or `INPUT`, whose outputs it takes.
  """
  name: str
  kind: str
  options: tuple[tuple[str, Any], ...] = ()
  inputs: tuple[str, ...] = (INPUT,)


class LayerGraph(nn.Module):
  """Runs `layers` in order; the output of the last one is the logits `[n, c]`.

  Every value is hashable, so the module is static under `jit` like any other, and JSON-able, so that a checkpoint can
  name it (`models.describe`). `features=True` also gives what enters the last dense layer, or the last layer where none
  is dense.

  Attributes:
    layers: `Record`s (or plain tuples of their fields), each after the records whose outputs it takes.
    notes: remarks for the reader of the model, such as what an importer removed. They travel with every copy.
  """
  layers: tuple[tuple, ...]
  notes: tuple[str, ...] = ()

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
    records = [Record(*fields) for fields in self.layers]
    require(bool(records), 'A LayerGraph needs at least one layer.')
    decisive = ([r for r in records if r.kind == 'dense'] or records)[-1]
    values = {INPUT: x}
    for record in records:
      require(record.name not in values and '/' not in record.name,
              f"Layer name {record.name!r} is used twice, is reserved, or contains '/'.")
      arguments = [_value_of(name, values) for name in record.inputs]
      values[record.name] = _module(record)(*arguments, *([train] if record.kind in _KNOW_TRAINING else []))
    logits = values[records[-1].name]
    return (logits, values[decisive.inputs[0]]) if features else logits


def _value_of(name: str, values: dict[str, jax.Array]) -> jax.Array:
  if name not in values:
    raise UnknownNameError('layer', name, values)
  return values[name]


def _module(record: Record) -> nn.Module:
  if record.kind not in MAKERS:
    raise UnknownNameError('kind of layer', record.kind, MAKERS)
  try:
    return MAKERS[record.kind](**dict(record.options), name=record.name)
  except TypeError as e:
    raise BadInputError(f'Layer {record.name!r} of kind {record.kind!r} refuses its options: {e}') from e
