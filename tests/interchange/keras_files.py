"""Writes Keras HDF5 files without Keras, in the spellings of its versions (layouts checked against goldens/)."""
import json

import h5py
import numpy as np


def layer(class_name, name, **config):
  """An entry of a Sequential configuration."""
  return {'class_name': class_name, 'config': {'name': name, **config}}


def node2(*names):
  """`inbound_nodes` of one call as Keras 1 and 2 write them."""
  return [[[name, 0, 0, {}] for name in names]] if names else []


def node3(*names):
  """`inbound_nodes` of one call as Keras 3 writes them."""
  tensors = [{'class_name': '__keras_tensor__', 'config': {'shape': [None], 'keras_history': [n, 0, 0]}} for n in names]
  return [{'args': tensors if len(names) == 1 else [tensors], 'kwargs': {'mask': None}}] if names else []


def functional(entries, inputs, outputs, node=node2, class_name='Model'):
  """A functional configuration; `entries` are (layer, names of its inputs)."""
  return {'class_name': class_name, 'config': {
    'name': 'model', 'input_layers': [[n, 0, 0] for n in inputs], 'output_layers': [[n, 0, 0] for n in outputs],
    'layers': [{**entry, 'name': entry['config']['name'], 'inbound_nodes': node(*names)} for entry, names in entries]}}


def write(path, config, weights, suffix=':0', group='model_weights', **attributes):
  """Writes a file.

  Args:
    path: of the new file.
    config: `model_config`, or None for a file of weights alone.
    weights: layer -> {weight: array}.
    suffix: of the names of arrays, ':0' as TensorFlow's or ''.
    group: where the layers lie, or '' for the root.
    **attributes: of the root.
  """
  with h5py.File(path, 'w') as f:
    for name, value in attributes.items():
      f.attrs[name] = value
    if config is not None:
      f.attrs['model_config'] = config if isinstance(config, (str, bytes)) else json.dumps(config)
    root = f.require_group(group) if group else f
    root.attrs['layer_names'] = [name.encode() for name in weights]
    for name, arrays in weights.items():
      of_layer = root.require_group(name)
      of_layer.attrs['weight_names'] = [f'{name}/{weight}{suffix}'.encode() for weight in arrays]
      for weight, array in arrays.items():
        of_layer[f'{name}/{weight}{suffix}'] = np.asarray(array)


def write_numbered(path, numbered):
  """Writes a Keras 3 `.weights.h5`: `numbered` is a list of (snake-case class, arrays) in order of creation."""
  counts = {}
  with h5py.File(path, 'w') as f:
    f.create_group('vars')
    for class_name, arrays in numbered:
      k = counts[class_name] = counts.get(class_name, -1) + 1
      variables = f.create_group(f'layers/{class_name}{f"_{k}" if k else ""}/vars')
      for i, array in enumerate(arrays):
        variables[str(i)] = np.asarray(array)
