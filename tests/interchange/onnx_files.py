"""ONNX files for tests: networks written operator by operator, and what onnxruntime makes of them."""
import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

NEWEST = 23
"""Operator version that the pinned onnxruntime runs without a warning."""


def versions(*operators):
  """The opsets from 7 on in which one of the operators has another definition than before."""
  since = lambda v: tuple(onnx.defs.get_schema(operator, v).since_version for operator in operators)
  return [v for v in range(7, NEWEST + 1) if v == 7 or since(v) != since(v - 1)]


def node(operator, inputs, outputs, **attributes):
  """Inputs and outputs are words in one string; '_' is an input that is left out."""
  inputs = ['' if name == '_' else name for name in inputs.split()]
  return helper.make_node(operator, inputs, outputs.split(), name=f'{operator}_{outputs.split()[0]}', **attributes)


def write(path, nodes, input_shape, constants=None, opset=13, output='y', **more):
  """A model with input 'x'; `input_shape` has all axes, 'n' for an open one. `more` overrides parts of the graph."""
  tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
  x = helper.make_tensor_value_info('x', onnx.TensorProto.FLOAT, input_shape)
  y = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
  parts = {'inputs': [x], 'outputs': [y], 'initializer': tensors, **more}
  imports = [helper.make_opsetid('', opset)]
  model = helper.make_model(helper.make_graph(nodes, 'test', **parts), opset_imports=imports,
                            ir_version=max(4, helper.find_min_ir_version_for(imports)))
  onnx.save(model, path)
  return path


def run(path, x):
  """What onnxruntime gives for `x` `[n, ...]`: `[n, outputs]`. One at a time if the file fixes the batch size."""
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3
  session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
  (argument,) = session.get_inputs()
  shape = argument.shape
  if len(shape) > 1 and not isinstance(shape[0], int):
    return session.run(None, {argument.name: x})[0].reshape(len(x), -1)
  return np.stack([session.run(None, {argument.name: v.reshape(shape)})[0].reshape(-1) for v in x])
