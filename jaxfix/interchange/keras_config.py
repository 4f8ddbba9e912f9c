"""The `model_config` of a Keras file as one list of layers with inputs, whichever Keras wrote it.

Keras 1, 2 and 3 spell the same network differently: a Sequential model is a list or a dictionary, options were
renamed once, and the inputs of a layer are nested lists of names or serialized tensors. After `parse` only Keras 2
names remain.
"""
import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

from jaxfix.errors import CorruptFileError, UnsupportedLayerError, require

_KERAS1_OPTIONS = {'nb_filter': 'filters', 'subsample': 'strides', 'border_mode': 'padding', 'output_dim': 'units',
                   'dim_ordering': 'data_format', 'bias': 'use_bias', 'p': 'rate', 'batch_input_shape': 'batch_shape'}
_KERAS1_VALUES = {'tf': 'channels_last', 'th': 'channels_first'}


@dataclasses.dataclass(frozen=True)
class KerasLayer:
  """One layer: `config` in Keras 2 spelling, `inputs` the names of the layers whose outputs it takes."""
  name: str
  class_name: str
  config: Mapping[str, Any]
  inputs: tuple[str, ...]

  def unsupported(self, what: str) -> UnsupportedLayerError:
    """The error to raise for this layer; `what` says which property of it is the obstacle."""
    return UnsupportedLayerError(f'Layer {self.name!r} ({self.class_name}): {what}.')


@dataclasses.dataclass(frozen=True)
class KerasModel:
  """A network with one input and one output.

  Attributes:
    layers: each after its inputs; the input layer is not among them.
    input: the name that `layers` use for the input.
    input_shape: of one sample.
    output: name of the last layer.
  """
  layers: tuple[KerasLayer, ...]
  input: str
  input_shape: tuple[int, ...]
  output: str


def parse(text: str, where: str) -> KerasModel:
  """Reads a `model_config`.

  Args:
    text: JSON.
    where: of the file, for messages.
  Raises:
    CorruptFileError: it is not JSON, or lacks what every Keras configuration has.
    UnsupportedLayerError: several inputs or outputs, an input of open shape, or a layer that is used twice.
  """
  try:
    root = json.loads(text)
    kind, config = root['class_name'], root['config']
    if kind == 'Sequential':
      return _sequential(config if isinstance(config, Mapping) else {'layers': config}, where)
    if kind in ('Model', 'Functional'):
      return _functional(config, where)
  except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
    raise CorruptFileError(f'{where}: model_config is malformed ({e!r}); fetch the file again.') from e
  raise UnsupportedLayerError(f'{where}: models of class {kind} cannot be imported; use Sequential or Functional ones.')


def _sequential(root: Mapping[str, Any], where: str) -> KerasModel:
  layers, shape, previous = [], None, 'input'
  for entry in root['layers']:
    config = _modernized(entry['config'])
    name = config['name']
    if shape is None:  # in the first layer, or beside the layers where the model was built by a call
      shape = _input_shape({'batch_shape': root['build_input_shape'], **config} if 'build_input_shape' in root
                           else config, where)
    if entry['class_name'] == 'InputLayer':
      require(not layers, f'{where}: InputLayer {name!r} stands inside the model.', CorruptFileError)
      previous = name
      continue
    layers.append(KerasLayer(name, entry['class_name'], config, (previous,)))
    previous = name
  require(bool(layers), f'{where}: the model has no layers.', CorruptFileError)
  return KerasModel(tuple(layers), layers[0].inputs[0], shape, previous)


def _functional(config: Mapping[str, Any], where: str) -> KerasModel:
  inputs, outputs = (_endpoints(config[key]) for key in ('input_layers', 'output_layers'))
  require(len(inputs) == 1 and len(outputs) == 1, f'{where}: the model has {len(inputs)} inputs and {len(outputs)} '
          'outputs; only models with one of each can be imported.', UnsupportedLayerError)
  layers, shape = {}, None
  for entry in config['layers']:
    own = _modernized(entry['config'])
    layer = KerasLayer(entry['name'], entry['class_name'], own, ())
    if layer.class_name == 'InputLayer':
      shape = _input_shape(own, where)
      continue
    calls = entry['inbound_nodes']
    if len(calls) != 1:
      raise layer.unsupported(f'it is called {len(calls)} times; layers that share weights cannot be imported')
    layers[layer.name] = dataclasses.replace(layer, inputs=tuple(_tensors(calls[0], layer)))
  require(shape is not None, f'{where}: the model has no InputLayer.', CorruptFileError)
  require(outputs[0] in layers, f'{where}: there is no layer {outputs[0]!r} to be the output.', CorruptFileError)
  return KerasModel(tuple(_ordered(layers, inputs[0], where)), inputs[0], shape, outputs[0])


def _modernized(config: Mapping[str, Any]) -> dict[str, Any]:
  """Keras 1 options under their Keras 2 names."""
  new = {_KERAS1_OPTIONS.get(key, key): value for key, value in config.items()}
  if 'nb_row' in new:
    new['kernel_size'] = [new['nb_row'], new['nb_col']]
  if new.get('data_format') in _KERAS1_VALUES:
    new['data_format'] = _KERAS1_VALUES[new['data_format']]
  return new


def _input_shape(config: Mapping[str, Any], where: str) -> tuple[int, ...]:
  if 'batch_shape' in config:
    shape = config['batch_shape'][1:]
  elif config.get('input_dim'):
    shape = [config['input_dim']]
  else:
    shape = config.get('input_shape') or ()
  if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
    raise UnsupportedLayerError(f'{where}: the input shape is {list(shape)}; save the model with a fixed input shape.')
  return tuple(shape)


def _endpoints(value: Any) -> list[str]:
  """Names in `input_layers` or `output_layers`: `[name, 0, 0]`, or a list or dictionary of those."""
  if isinstance(value, Mapping):
    value = list(value.values())
  return [value[0]] if isinstance(value[0], str) else [name for name, *_ in value]


def _tensors(call: Any, layer: KerasLayer) -> Iterator[str]:
  """Names of the layers whose outputs a call takes, in order.

  Keras 1 and 2 write `[[name, node, tensor, kwargs], ...]`, Keras 3 `{'args': ..., 'kwargs': ...}` with tensors
  somewhere inside.
  """
  if isinstance(call, Mapping):
    if call.get('class_name') == '__keras_tensor__':
      yield _output_zero(*call['config']['keras_history'], layer)
    elif 'args' in call:
      for argument in call['args']:
        yield from _tensors(argument, layer)
      if list(_tensors(list(call.get('kwargs', {}).values()), layer)):
        raise layer.unsupported('it takes a tensor as a keyword argument')
  elif isinstance(call, list) and call and isinstance(call[0], str):
    if len(call) > 3 and any(value is not None for key, value in call[3].items() if key != 'training'):
      raise layer.unsupported(f'it is called with arguments {call[3]}')
    yield _output_zero(*call[:3], layer)
  elif isinstance(call, list):
    for part in call:
      yield from _tensors(part, layer)


def _output_zero(name: str, node: int, tensor: int, layer: KerasLayer) -> str:
  if tensor != 0:
    raise layer.unsupported(f'it takes output {tensor} of layer {name!r}')
  return name


def _ordered(layers: Mapping[str, KerasLayer], start: str, where: str) -> Iterator[KerasLayer]:
  """The layers, each after its inputs; files need not have them so."""
  ready, waiting = {start}, dict(layers)
  while waiting:
    now = [layer for layer in waiting.values() if ready.issuperset(layer.inputs)]
    require(bool(now), f'{where}: layers {", ".join(sorted(waiting))} have inputs that the model does not compute.',
            CorruptFileError)
    for layer in now:
      yield layer
      ready.add(layer.name)
      del waiting[layer.name]
