"""Classifiers from ONNX files, without onnxruntime: the operators become records of a `LayerGraph`.

Weights stay as they are in the file, up to the order of their axes, and every operation stays one operation: over the
real numbers the classifier is the function that the file describes, which is what a verifier needs.
"""
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxfix.classifier import Classifier, check_finite
from jaxfix.errors import CorruptFileError, JaxfixError, UnsupportedLayerError, require
from jaxfix.interchange import onnx_draft, onnx_file
from jaxfix.interchange.onnx_draft import Draft, Value
from jaxfix.interchange.onnx_operators import CONVERTERS
from jaxfix.models import layer_graph, layers


def read(path: str | os.PathLike, *, channels_last: bool = False, mean: Sequence[float] = (0.,),
         std: Sequence[float] = (1.,)) -> Classifier:
  """The classifier in an ONNX file of float32 operators, version 7 (2018) or later.

  Its `input_shape` is that of the file without the batch axis, in the file's order, so that entry i of an input read
  row by row is X_i of VNN-LIB. The first axis is the batch axis if its size is open or 1 and there are others;
  otherwise there is none, and all axes belong to one sample. A softmax at the end is removed, since classifiers here
  give logits; `classifier.module.notes` says so. One logit is enough (verification has such networks).

  Args:
    path: the file. Weights may lie in other files of the same folder.
    channels_last: the classifier takes images as `[h, w, c]`, like every other one here, where the file has
      `[c, h, w]`.
    mean, std: input normalization in front of the network (`Classifier`), for files that hold none.
  Raises:
    DataNotFoundError: the file, or one with weights of it, does not exist.
    CorruptFileError: it is truncated or no ONNX model, or its operations do not fit together.
    UnsupportedLayerError: an operator, or an option of one, that has no counterpart here; the message names the node.
    BadInputError: a weight is NaN or infinite; `channels_last` without images; `mean` for images in the file's order.
    JaxfixError: onnx is not installed.
  """
  file = onnx_file.load(path, CONVERTERS)
  start = _start(file.input_shape, channels_last, str(path))
  require(len(mean) == len(std) == 1 or channels_last or len(start.shape) == 1, 'mean and std are for the last axis: '
          "give one number for images in the file's order, (channel, height, width), or channels_last=True.")
  draft = Draft(fixed_batch=not start.batched or file.input_shape[0] == 1)
  values = {**file.constants, file.input: start, '': None}
  for node in file.nodes:
    arguments = [_value_of(name, values, node) for name in node.inputs]
    try:
      values[node.outputs[0]] = CONVERTERS[node.operator](draft, node, *arguments)
    except (IndexError, KeyError, TypeError, ValueError) as e:
      if isinstance(e, JaxfixError):
        raise
      raise CorruptFileError(f'{path}: node {node.name!r} ({node.operator}) is malformed ({e}).') from e
  output = values.get(file.output)
  require(isinstance(output, Value), f'{path}: the output does not depend on the input.', UnsupportedLayerError)
  module, variables = draft.finish(output)
  variables = {'params': {}, **jax.tree.map(jnp.asarray, variables)}
  classifier = Classifier(variables, module, start.stored, output.size, tuple(map(float, mean)),
                          tuple(map(float, std)))
  _check_shapes(classifier, str(path))
  check_finite(classifier, str(path))
  return classifier


def _start(shape: tuple[int | None, ...], channels_last: bool, where: str) -> Value:
  """The input of the network; `shape` has all axes of it."""
  batched = len(shape) > 1 and shape[0] in (None, 1)
  sample = shape[1:] if batched else shape
  require(len(sample) > 0 and None not in sample, f'{where}: the input has shape {shape}. All sizes but the number of '
          'samples must be fixed when the model is saved.', UnsupportedLayerError)
  require(not channels_last or (batched and len(sample) == 3), f'{where}: channels_last is for images, but the input '
          f'has shape {shape}.')
  order = onnx_draft.channels_last(3) if channels_last else tuple(range(len(sample)))
  return Value(layer_graph.INPUT, tuple(sample[axis] for axis in order), sample, order, batched)


def _value_of(name: str, values: Mapping[str, Any], node: onnx_file.Node) -> Any:
  if name not in values:  # the checker saw that some node gives it: a second output of that node
    raise node.unsupported(f'it takes {name!r}, an output that is not computed here')
  return values[name]


def _check_shapes(classifier: Classifier, where: str) -> None:
  """Raises `CorruptFileError` unless the layers fit together and the weights fit the layers."""
  try:
    wanted = layers.variable_shapes(classifier.module, classifier.input_shape)
  except JaxfixError:
    raise
  except (TypeError, ValueError, ZeroDivisionError) as e:
    raise CorruptFileError(f'{where}: the layers do not fit together ({str(e).splitlines()[0]}).') from e
  wanted, found = (traverse_util.flatten_dict(tree, sep='/') for tree in (wanted, classifier.variables))
  for name in sorted(wanted.keys() | found.keys()):
    shapes = [tree[name].shape if name in tree else None for tree in (wanted, found)]
    require(shapes[0] == shapes[1], f'{where}: weight {name!r} has shape {shapes[1]}, but the layer needs {shapes[0]}.',
            CorruptFileError)
