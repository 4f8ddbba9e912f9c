"""Classifiers as ONNX files, which is how a repaired model is deployed: any program that runs ONNX runs them.

The network is traced, so that every Flax module made of the operations in `onnx_sketch` can be written: our own,
imported ones, decoupled ones (`models.decoupled`). Unlike `verify.graph`, which takes poolings apart for bounds, this
keeps them whole, because runtimes and readers have operators for them. What does not depend on the input (the scale of
a batch normalization, say) is computed here and stored.
"""
import os
import types
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

import jaxfix
from jaxfix import files
from jaxfix.classifier import Classifier, check_finite
from jaxfix.interchange import onnx_file
from jaxfix.interchange.onnx_sketch import CONVERTERS, OPSET, Sketch, Value
from jaxfix.models import convolution

INPUT, OUTPUT = 'input', 'logits'
"""Names of the tensors of a file."""

_CALLS = ('checkpoint', 'closed_call', 'custom_jvp_call', 'custom_vjp_call', 'jit', 'pjit', 'remat', 'remat2')

# Compiling thousands of tiny operations one by one would take longer than all else.
_ON_CONSTANTS = types.MappingProxyType({
  'add': np.add, 'div': np.divide, 'mul': np.multiply, 'rsqrt': lambda v: 1 / np.sqrt(v), 'sqrt': np.sqrt,
  'sub': np.subtract})


def write(path: str | os.PathLike, classifier: Classifier) -> None:
  """Writes an ONNX file of float32 operators, version 13, atomically.

  Its input 'input' is float32 `[n, *input_shape]`: images are pixels / 255, in our order (height, width, channel), and
  the classifier's mean and standard deviation are part of the file. Its output 'logits' is `[n, c]`. The number of
  samples n is open.

  Guarantee: none on bits; onnxruntime sums in another order. Logits agree to about 1e-5 of their size.

  Raises:
    UnsupportedLayerError: an operation that has no counterpart; the message names the layer.
    BadInputError: a weight is NaN or infinite.
    OutputError: the file cannot be written.
    JaxfixError: onnx is not installed.
  """
  onnx = onnx_file.require_onnx(path)
  check_finite(classifier, str(path))
  classifier = jax.device_get(classifier)
  shape = 1, *classifier.input_shape
  with convolution.as_single_operations():
    closed = jax.make_jaxpr(classifier.logits)(jax.ShapeDtypeStruct(shape, jnp.float32))
  sketch = Sketch()
  (logits,) = _run(sketch, closed.jaxpr, closed.consts, [Value(INPUT, shape, tuple(range(len(shape))))], '')
  if not isinstance(logits, Value) or logits.tensor == INPUT:
    raise sketch.unsupported('a network that computes nothing')
  model = _model(onnx, sketch, sketch.rows(logits), classifier)
  onnx.checker.check_model(model)
  with files.replacing(path) as partial:
    partial.write_bytes(model.SerializeToString())


def _run(sketch: Sketch, jaxpr: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], scope: str) -> list[Any]:
  """Writes a traced function; `scope` is the path of the layer that calls it. Returns its results."""
  values: dict[core.Var, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
  read = lambda v: v.val if isinstance(v, core.Literal) else values[v]
  for eqn in jaxpr.eqns:
    operands = [read(v) for v in eqn.invars]
    inner = next((eqn.params[name] for name in ('jaxpr', 'call_jaxpr', 'fun_jaxpr') if name in eqn.params), None)
    sketch.scope = layer = _layer(str(eqn.source_info.name_stack)) or scope
    if eqn.primitive.name in _CALLS and inner is not None:
      results = _run(sketch, getattr(inner, 'jaxpr', inner), getattr(inner, 'consts', ()), operands, layer)
    elif not any(isinstance(v, Value) for v in operands):
      results = _computed(eqn, operands)
    elif eqn.primitive.name in CONVERTERS:
      results = [CONVERTERS[eqn.primitive.name](sketch, operands, eqn.params, eqn.outvars[0].aval.shape)]
    else:
      raise sketch.unsupported(f'the operation {eqn.primitive.name!r} has no counterpart')
    values.update(zip(eqn.outvars, results, strict=True))
  return [read(v) for v in jaxpr.outvars]


def _layer(stack: str) -> str:
  """'conv1' of 'LeNet5/conv1', the names that Flax gives to the operations of a module."""
  return stack.partition('/')[2]


def _computed(eqn: core.JaxprEqn, operands: Sequence[Any]) -> list[Any]:
  """The results of an operation on constants."""
  name = eqn.primitive.name
  if name == 'reshape':
    return [np.reshape(operands[0], eqn.params['new_sizes'])]
  if name in _ON_CONSTANTS:
    return [_ON_CONSTANTS[name](*operands).astype(eqn.outvars[0].aval.dtype)]
  results = eqn.primitive.bind(*operands, **eqn.params)
  return jax.device_get(results if eqn.primitive.multiple_results else [results])


def _model(onnx: types.ModuleType, sketch: Sketch, output: str, classifier: Classifier) -> Any:
  """The nodes that the tensor `output` needs, as an `onnx.ModelProto`."""
  found = sketch.needed(output)
  named = lambda tensor: OUTPUT if tensor == output else tensor
  nodes = [onnx.helper.make_node(node.operator, list(map(named, node.inputs)), list(map(named, node.outputs)),
                                 node.name, **node.attributes) for node in found]
  used = {name for node in found for name in node.inputs}
  constants = [onnx.numpy_helper.from_array(array, name) for name, array in sketch.constants.items() if name in used]
  tensor = lambda name, shape: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ['n', *shape])
  graph = onnx.helper.make_graph(nodes, 'classifier', [tensor(INPUT, classifier.input_shape)],
                                 [tensor(OUTPUT, [classifier.num_classes])], constants)
  imports = [onnx.helper.make_opsetid('', OPSET)]
  return onnx.helper.make_model(graph, opset_imports=imports, producer_name='jaxfix',
                                producer_version=jaxfix.__version__,
                                ir_version=onnx.helper.find_min_ir_version_for(imports))
