"""The neurons of a layer: where they are read, what reads them, and which weights scale them.

The value of a neuron is what it has before its activation function: the output of a Dense or Conv layer, or of the
BatchNorm that alone reads that output. The neurons of any other layer, a global pooling for instance, are its outputs.

Multiplying a neuron by a constant for good means other weights: the column of the kernel that makes it and its bias;
scale and bias of the BatchNorm; or, where nothing with weights makes it, the rows of the Dense or Conv kernel that
alone reads it. All three are exact for factors of either sign, on any input.
"""
import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax.extend import core

from jaxfix import intervene
from jaxfix.classifier import Classifier
from jaxfix.errors import Unadaptable, UnknownNameError, require
from jaxfix.models.structure import Call, trace_calls

Unit = Literal['channel', 'position']

_ELEMENTWISE = {'relu': nn.relu, 'tanh': jnp.tanh, 'sigmoid': nn.sigmoid}
_PASSES_ON = ('flatten', 'dropout')
_WEIGHTS = {'column': ('kernel', 'bias'), 'batchnorm': ('scale', 'bias'), 'row': ('kernel',), None: ()}


@dataclasses.dataclass(frozen=True)
class Neurons:
  """The `m` neurons of one layer. Hashable: static under `jit`.

  Attributes:
    layer: path of the module whose output holds them.
    shape: of that output for one sample.
    unit: 'channel', the last axis: a neuron is a whole channel plane; or 'position', every number by itself.
    scaled_by: what multiplies them if it is multiplied: 'column' (kernel and bias of `layer`), 'batchnorm' (scale and
      bias of `layer`), 'row' (kernel of the layer that reads them), or None, nothing.
    folded_into: path of the layer whose weights those are, or None.
    reader: path of the Dense layer through which alone they act, each with a row of its kernel, or None.
    activations: names of the functions between them and `reader`, element by element, in order.
  """
  layer: str
  shape: tuple[int, ...]
  unit: Unit
  scaled_by: Literal['column', 'batchnorm', 'row'] | None
  folded_into: str | None
  reader: str | None
  activations: tuple[str, ...]

  @property
  def values_shape(self) -> tuple[int, ...]:
    """Of an array with one number a neuron: `[channels]` or `[h, w, channels]`."""
    return self.shape[-1:] if self.unit == 'channel' else self.shape

  @property
  def count(self) -> int:
    """m."""
    return math.prod(self.values_shape)

  @property
  def weights(self) -> tuple[str, ...]:
    """Names of the weights that scaling may change."""
    return tuple(f'params/{self.folded_into}/{name}' for name in _WEIGHTS[self.scaled_by])

  def along(self, values: jax.Array) -> jax.Array:
    """`[m]` numbers, one a neuron, in a shape that broadcasts with outputs `[n, *shape]`."""
    ones = (1,) * (1 + len(self.shape) - len(self.values_shape))
    return values.reshape(*ones, *self.values_shape)

  def extremes(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Smallest and largest value of each neuron, `[m]` each, in outputs `[n, *shape]`."""
    axes = tuple(range(1 + len(self.shape) - len(self.values_shape)))
    return outputs.min(axis=axes).ravel(), outputs.max(axis=axes).ravel()

  def activate(self, values: jax.Array) -> jax.Array:
    """What `reader` sees of the neurons' values."""
    return functools.reduce(lambda v, name: _ELEMENTWISE[name](v), self.activations, values)


def find_neurons(classifier: Classifier, layer: str, unit: Unit = 'channel') -> Neurons:
  """The neurons of a layer, found by following its output through the network.

  Args:
    classifier: the network.
    layer: path of a layer. If it is Dense or Conv and its output enters a BatchNorm and nothing else, the neurons are
      the outputs of that BatchNorm.
    unit: see `Neurons`.
  Raises:
    UnknownNameError: the network has no layer of that path.
    Unadaptable: the layer is called more than once, or gives the logits.
  """
  require(unit in ('channel', 'position'), f"unit must be 'channel' or 'position', got {unit!r}.")
  return _find(_Structure.of(classifier), layer, unit)


def default_layer(classifier: Classifier) -> str:
  """The first hidden Dense layer behind the convolutions; where the only Dense layer there gives the classes, what
  enters it (the penultimate feature vector).

  Raises:
    Unadaptable: there is no such layer, or nothing with weights comes before.
  """
  return _default_layer(_Structure.of(classifier))


@functools.partial(jax.jit, static_argnames=('neurons',))
def scale_neurons(classifier: Classifier, neurons: Neurons, factors: jax.Array) -> Classifier:
  """The network whose neurons have `factors` `[m]` times their values; a factor of 1 keeps the bits of its weights.

  `neurons.scaled_by` must not be None.
  """
  flat = traverse_util.flatten_dict(dict(classifier.params), sep='/')
  path = neurons.folded_into
  if neurons.scaled_by == 'row':
    weights = flat[f'{path}/kernel']
    if weights.shape[-2] != neurons.count:   # a channel has a row at each position
      factors = jnp.broadcast_to(neurons.along(factors), (1, *neurons.shape)).ravel()
    flat[f'{path}/kernel'] = weights * factors[:, None]
  else:
    for name in _WEIGHTS[neurons.scaled_by]:
      if f'{path}/{name}' in flat:
        flat[f'{path}/{name}'] = flat[f'{path}/{name}'] * factors
  return classifier.with_params(traverse_util.unflatten_dict(flat, sep='/'))


@dataclasses.dataclass(frozen=True)
class _Structure:
  """A network without its numbers, hashable: deep ones take seconds to trace, and are traced once."""
  module: nn.Module
  input_shape: tuple[int, ...]
  shapes: tuple[tuple[str, tuple[int, ...]], ...]

  @classmethod
  def of(cls, classifier: Classifier) -> '_Structure':
    flat = traverse_util.flatten_dict(dict(classifier.variables), sep='/')
    return cls(classifier.module, classifier.input_shape, tuple((name, leaf.shape) for name, leaf in flat.items()))

  @property
  def classifier(self) -> Classifier:
    """The network with shapes in place of weights."""
    flat = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in self.shapes}
    return Classifier(traverse_util.unflatten_dict(flat, sep='/'), self.module, self.input_shape, 0)


@functools.lru_cache(maxsize=64)
def _find(structure: _Structure, layer: str, unit: Unit) -> Neurons:
  classifier, has = structure.classifier, dict(structure.shapes)
  calls, logits = _calls(classifier)
  call = _call_of(calls, layer)
  after = _only_reader(calls, call)
  if (call.kind in ('dense', 'conv') and after and after.kind == 'bn' and _is_called_once(calls, after)
      and _acts_through(classifier, call, after)):
    call = after
  if call.out is logits:
    raise Unadaptable(f'Layer {layer!r} gives the logits: its outputs are classes, not neurons. Name a hidden layer.')

  by_channel = unit == 'channel' or len(call.shape) == 1
  by_position = unit == 'position' or len(call.shape) == 1
  reader, activations = _reader(calls, call)
  if reader is None or not _is_called_once(calls, reader) or not _acts_through(classifier, call, reader):
    reader, rows = None, 0
  else:
    rows = has[f'params/{reader.path}/kernel'][-2]   # inputs of a Dense layer, channels of a convolution (of one group)
  flat = rows == math.prod(call.shape)
  scaled_by, folded_into = None, None
  if by_channel and call.kind in ('dense', 'conv'):
    scaled_by, folded_into = 'column', call.path
  elif by_channel and call.kind == 'bn' and f'params/{call.path}/scale' in has:
    scaled_by, folded_into = 'batchnorm', call.path
  elif reader and not activations and (flat or (by_channel and rows == call.shape[-1])):
    scaled_by, folded_into = 'row', reader.path
  if reader and not (flat and by_position and reader.kind == 'dense' and len(reader.shape) == 1):
    reader = None
  return Neurons(call.path, call.shape, unit, scaled_by, folded_into, reader.path if reader else None,
                 activations if reader else ())


@functools.lru_cache(maxsize=64)
def _default_layer(structure: _Structure) -> str:
  calls, _ = _calls(structure.classifier)
  last_conv = max((i for i, call in enumerate(calls) if call.kind == 'conv'), default=-1)
  dense = [call for call in calls[last_conv + 1:] if call.kind == 'dense']
  if len(dense) > 1:
    return dense[0].path
  if dense:
    made = next((call for call in calls if call.out is dense[0].args[0]), None)
    if made and any(call.kind in ('dense', 'conv') for call in calls[:calls.index(made)]):
      return made.path
  raise Unadaptable('This network has no hidden vector layer: no Dense layer behind the convolutions, and no feature '
                    'vector that enters the last one. Name a convolution (layers=...) to scale its channels.')


def _calls(classifier: Classifier) -> tuple[list[Call], Any]:
  """Those of modules that call no other, in the order of a forward pass, and the logits."""
  flow = trace_calls(classifier)
  return [call for call in flow.calls if call.is_leaf and call.path], flow.logits


def _input(classifier: Classifier) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((1, *classifier.input_shape), jnp.float32)


def _call_of(calls: list[Call], path: str) -> Call:
  found = [call for call in calls if call.path == path and call.kind]
  if not found:
    raise UnknownNameError('layer', path, (call.path for call in calls if call.kind))
  if len(found) > 1:
    raise Unadaptable(f'Layer {path!r} is called {len(found)} times; its neurons have no single value. Name another.')
  return found[0]


def _is_called_once(calls: list[Call], call: Call) -> bool:
  """If not, its weights serve other inputs too: they scale more than the neurons that it reads."""
  return sum(other.path == call.path for other in calls) == 1


def _only_reader(calls: list[Call], call: Call) -> Call | None:
  """What reads a layer's output, if one layer does. Those that hand it on as it is (Dropout) are looked through."""
  readers = [other for other in calls if any(arg is call.out for arg in other.args) and other.out is not call.out]
  return readers[0] if len(readers) == 1 else None


def _reader(calls: list[Call], call: Call) -> tuple[Call | None, tuple[str, ...]]:
  """The Dense or Conv layer that reads a layer's output through nothing but elementwise functions, and those."""
  names, reader = [], _only_reader(calls, call)
  while reader and (reader.kind in _ELEMENTWISE or reader.kind in _PASSES_ON):
    if reader.kind in _ELEMENTWISE:
      names.append(reader.kind)
    reader = _only_reader(calls, reader)
  return (reader, tuple(names)) if reader and reader.kind in ('dense', 'conv') else (None, ())


def _acts_through(classifier: Classifier, call: Call, reader: Call) -> bool:
  """Nothing of a layer's output reaches the logits but through the output of `reader`, also not outside of modules."""
  def logits(nudge, variables, z):
    outputs = {call.path: lambda h: h + nudge, reader.path: jnp.zeros_like}
    return intervene.apply(classifier.with_variables(variables), z, outputs=outputs)

  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dict(classifier.variables))
  traced = jax.make_jaxpr(logits)(jax.ShapeDtypeStruct((), jnp.float32), shapes, _input(classifier)).jaxpr
  reached = {traced.invars[0]}
  for eqn in traced.eqns:
    if any(isinstance(v, core.Var) and v in reached for v in eqn.invars):
      reached.update(eqn.outvars)
  return not any(isinstance(v, core.Var) and v in reached for v in traced.outvars)
