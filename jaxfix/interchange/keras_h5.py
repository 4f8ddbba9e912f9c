"""Classifiers from Keras HDF5 files (`model.save('x.h5')`), without Keras.

`read` turns `model_config` into a `LayerGraph` and `model_weights` into its variables. Kernels keep their layout: both
sides store convolutions as (height, width, in, out) and dense layers as (in, out).
"""
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxfix.classifier import Classifier, check_finite
from jaxfix.errors import BadInputError, CorruptFileError, JaxfixError, UnsupportedLayerError, require
from jaxfix.interchange import hdf5, keras_config, keras_tensors
from jaxfix.interchange.keras_config import KerasLayer
from jaxfix.models import layer_graph, layers
from jaxfix.models.layer_graph import LayerGraph, Record

Options = dict[str, Any]

def read(path: str | os.PathLike, *, mean: Sequence[float] = (0.,), std: Sequence[float] = (1.,)) -> Classifier:
  """The classifier in a Keras HDF5 file.

  A softmax at the end is removed, since classifiers here give logits; `classifier.module.notes` says so. Dropout and
  batch normalization keep their options, so that the model can be trained further.

  Args:
    path: file with `model_config` and `model_weights`, written by Keras 1, 2 or 3.
    mean, std: input normalization, which no Keras file holds (`Classifier`); the default is pixels / 255.
  Raises:
    DataNotFoundError: there is no such file.
    CorruptFileError: it is truncated or no HDF5; a weight is missing, left over, or of another shape than its layer's.
    UnsupportedLayerError: a layer, or an option of one, that has no counterpart here.
    BadInputError: the file has weights only, or NaN among them, or its network is no classifier.
    JaxfixError: h5py is not installed.
  """
  contents = hdf5.read(path, group='model_weights')
  config = contents.attributes.get('model_config')
  require(isinstance(config, str), f'{path} has no model_config: it holds weights only. Save the whole model, or use '
          'keras_weights for DenseNet121.')
  backend = contents.attributes.get('backend')
  require(backend not in ('theano', 'cntk'), f'{path} was written with the {backend} backend, whose kernels are stored '
          'in another order; save it again with tensorflow or jax.', UnsupportedLayerError)
  model = keras_config.parse(config, str(path))
  module, names = _graph(model)
  template = _template(module, model.input_shape, path)
  arrays = keras_tensors.collect(contents.under('model_weights'), set(names.values()), str(path))
  variables = keras_tensors.assign(arrays, template, names, str(path))
  z = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
  c = jax.eval_shape(module.apply, template, z).shape[1:]
  require(len(c) == 1 and c[0] > 1, f'{path}: the network gives outputs of shape {c}; a classifier needs one logit for '
          'each of two or more classes.')
  classifier = Classifier(variables, module, model.input_shape, c[0], tuple(map(float, mean)), tuple(map(float, std)))
  check_finite(classifier, str(path))
  return classifier


def _graph(model: keras_config.KerasModel) -> tuple[LayerGraph, dict[str, str]]:
  """The network, and for each of its layers that may have weights the name of the Keras layer."""
  values = {model.input: layer_graph.INPUT}  # Keras layer -> record that gives its output
  taken = {layer_graph.INPUT}

  def fresh(name: str) -> str:
    name = name.replace('/', '_')
    while name in taken:
      name += '_'
    taken.add(name)
    return name

  reserved = {layer.name: fresh(layer.name) for layer in model.layers}
  ranks = {layer_graph.INPUT: 1 + len(model.input_shape)}
  records, origin = [], {}
  for layer in model.layers:
    inputs = tuple(values[name] for name in layer.inputs)
    steps = _convert(layer, ranks[inputs[0]])
    require(len(inputs) == 1 or (steps and steps[0][0] in ('add', 'concat')),
            f'Layer {layer.name!r} ({layer.class_name}) has {len(inputs)} inputs.', CorruptFileError)
    for i, (kind, options) in enumerate(steps):
      name = reserved[layer.name] if i == 0 else fresh(f'{reserved[layer.name]}_{kind}')
      records.append(Record(name, kind, tuple(options.items()), inputs))
      origin[name] = layer.name
      ranks[name] = 2 if kind in ('flatten', 'gap', 'gmp') else ranks[inputs[0]]
      inputs = (name,)
    values[layer.name] = inputs[0]
  output, notes = values[model.output], ()
  used = {name for record in records for name in record.inputs}
  final = next((r for r in records if r.name == output), None)
  if final is not None and final.kind == 'softmax' and output not in used:
    records.remove(final)
    notes = (f'The softmax of layer {origin[output]!r} was removed: the outputs are logits.',)
    output = final.inputs[0]
  records.sort(key=lambda r: r.name == output)  # the output comes last; nothing else moves
  return LayerGraph(tuple(map(tuple, records)), notes), origin


def _template(module: LayerGraph, input_shape: tuple[int, ...], path: str | os.PathLike) -> Mapping[str, Any]:
  """Shapes of the variables."""
  try:
    return layers.variable_shapes(module, input_shape)
  except JaxfixError:
    raise
  except (TypeError, ValueError, ZeroDivisionError) as e:  # the last where nothing is left of an image
    raise CorruptFileError(f'{path}: the layers do not fit together ({str(e).splitlines()[0]}).') from e


def _convert(layer: KerasLayer, rank: int) -> list[tuple[str, Options]]:
  """A Keras layer as (kind, options) of one record or more; none where it does nothing. `rank` is its input's."""
  if layer.class_name not in _CONVERTERS:
    raise UnsupportedLayerError(f'Layer {layer.name!r} is of class {layer.class_name}, which cannot be imported. '
                                f'Supported: {", ".join(sorted(_CONVERTERS))}.')
  if layer.config.get('data_format', 'channels_last') not in (None, 'channels_last', 'default'):
    raise layer.unsupported(f'data_format is {layer.config["data_format"]!r}; only channels_last can be imported')
  if 'axis' in layer.config:
    axis = layer.config['axis']
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if axis not in (-1, rank - 1):
      raise layer.unsupported(f'it works along axis {axis}; only the last axis can be imported')
  try:
    return _CONVERTERS[layer.class_name](layer)
  except (KeyError, TypeError, ValueError) as e:
    if isinstance(e, BadInputError):
      raise
    raise CorruptFileError(f'Layer {layer.name!r} ({layer.class_name}) has a malformed configuration: {e!r}.') from e


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
  a, b = (value, value) if isinstance(value, int) else value
  return int(a), int(b)


def _padding(layer: KerasLayer) -> str:
  padding = layer.config.get('padding', 'valid')
  if padding not in ('valid', 'same'):
    raise layer.unsupported(f'padding is {padding!r}')
  return padding.upper()


def _activation(layer: KerasLayer) -> list[tuple[str, Options]]:
  """Steps of the `activation` option: none or one."""
  name = layer.config.get('activation') or 'linear'
  if isinstance(name, Mapping):  # serialized as an object
    name = name['config'] if isinstance(name['config'], str) else name['class_name']
  if name == 'linear':
    return []
  if name not in ('relu', 'softmax', 'tanh', 'sigmoid'):
    raise layer.unsupported(f'activation is {name!r}')
  return [(name, {})]


def _conv(layer: KerasLayer) -> list[tuple[str, Options]]:
  config = layer.config
  options = {'features': int(config['filters']), 'kernel_size': _pair(config['kernel_size']),
             'strides': _pair(config.get('strides', 1)), 'padding': _padding(layer),
             'use_bias': bool(config.get('use_bias', True))}
  if (dilation := _pair(config.get('dilation_rate', 1))) != (1, 1):
    options['kernel_dilation'] = dilation
  if (groups := int(config.get('groups', 1))) != 1:
    options['feature_group_count'] = groups
  return [('conv', options), *_activation(layer)]


def _dense(layer: KerasLayer) -> list[tuple[str, Options]]:
  return [('dense', {'features': int(layer.config['units']), 'use_bias': bool(layer.config.get('use_bias', True))}),
          *_activation(layer)]


def _batch_norm(layer: KerasLayer) -> list[tuple[str, Options]]:
  config = layer.config
  if config.get('mode') or config.get('renorm'):
    raise layer.unsupported('mode and renorm cannot be imported')
  return [('bn', {'epsilon': float(config.get('epsilon', 1e-3)), 'momentum': float(config.get('momentum', 0.99)),
                  'use_scale': bool(config.get('scale', True)), 'use_bias': bool(config.get('center', True))})]


def _relu(layer: KerasLayer) -> list[tuple[str, Options]]:
  config = layer.config
  if config.get('max_value') is not None or config.get('negative_slope') or config.get('threshold'):
    raise layer.unsupported('max_value, negative_slope and threshold cannot be imported')
  return [('relu', {})]


def _pool(kind: str, **more: Any) -> Callable[[KerasLayer], list[tuple[str, Options]]]:
  def convert(layer):
    window = _pair(layer.config['pool_size'])
    strides = layer.config.get('strides')
    return [(kind, {'window': window, 'strides': window if strides is None else _pair(strides),
                    'padding': _padding(layer), **more})]
  return convert


def _global_pool(kind: str) -> Callable[[KerasLayer], list[tuple[str, Options]]]:
  def convert(layer):
    if layer.config.get('keepdims'):
      raise layer.unsupported('keepdims cannot be imported')
    return [(kind, {})]
  return convert


def _zero_pad(layer: KerasLayer) -> list[tuple[str, Options]]:
  padding = layer.config['padding']
  rows, columns = (padding, padding) if isinstance(padding, int) else padding
  return [('zeropad', {'padding': (_pair(rows), _pair(columns))})]


def _dropout(layer: KerasLayer) -> list[tuple[str, Options]]:
  if layer.config.get('noise_shape') is not None:
    raise layer.unsupported('noise_shape cannot be imported')
  return [('dropout', {'rate': float(layer.config['rate'])})]


_CONVERTERS = {
  'Activation': _activation,
  'Add': lambda layer: [('add', {})],
  'AveragePooling2D': _pool('avgpool', count_pads=False),
  'BatchNormalization': _batch_norm,
  'Concatenate': lambda layer: [('concat', {})],
  'Conv2D': _conv,
  'Convolution2D': _conv,
  'Dense': _dense,
  'Dropout': _dropout,
  'Flatten': lambda layer: [('flatten', {})],
  'GlobalAveragePooling2D': _global_pool('gap'),
  'GlobalMaxPooling2D': _global_pool('gmp'),
  'MaxPooling2D': _pool('maxpool'),
  'ReLU': _relu,
  'Softmax': lambda layer: [('softmax', {})],
  'ZeroPadding2D': _zero_pad,
}
