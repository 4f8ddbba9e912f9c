"""An ONNX file as plain Python: its operations, its constants, its input and its output, with typed errors."""
import dataclasses
import os
import pathlib
import types
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from jaxfix.errors import CorruptFileError, DataNotFoundError, JaxfixError, UnsupportedLayerError, require

OLDEST_OPSET = 7
"""Before it, arithmetic named the axes that it repeats by attributes."""

_STANDARD_DOMAINS = ('', 'ai.onnx')


@dataclasses.dataclass(frozen=True)
class Node:
  """One operation.

  Attributes:
    operator: 'Gemm', say.
    name: as the file has it, or the first output of a nameless one.
    inputs, outputs: names of tensors; an optional one that is left out is ''.
    attributes: numbers, strings, arrays, or lists of them.
    opset: version of the standard operators.
  """
  operator: str
  name: str
  inputs: tuple[str, ...]
  outputs: tuple[str, ...]
  attributes: Mapping[str, Any]
  opset: int

  def get(self, attribute: str, default: Any = None) -> Any:
    """The attribute, or `default` where it is absent."""
    return self.attributes.get(attribute, default)

  def unsupported(self, what: str) -> UnsupportedLayerError:
    """The error to raise for something about this operation that cannot be imported."""
    return UnsupportedLayerError(f'ONNX node {self.name!r} ({self.operator}) cannot be imported: {what}.')


@dataclasses.dataclass(frozen=True)
class OnnxFile:
  """The part of an ONNX file that its output depends on.

  Attributes:
    nodes: operations, each after those whose outputs it takes.
    constants: tensor -> array, in the file's dtype.
    input, output: names of tensors.
    input_shape: all axes; None where the file leaves a size open.
  """
  nodes: tuple[Node, ...]
  constants: Mapping[str, np.ndarray]
  input: str
  input_shape: tuple[int | None, ...]
  output: str


def require_onnx(path: str | os.PathLike) -> types.ModuleType:
  """The package onnx. Raises JaxfixError where it is not installed."""
  try:
    import onnx  # an extra: most users never touch ONNX
    import onnx.checker
    import onnx.defs
    import onnx.helper
    import onnx.numpy_helper
  except ImportError as e:
    raise JaxfixError(f'{path}: ONNX files need the package onnx; pip install "jaxfix[onnx]".') from e
  return onnx


def load(path: str | os.PathLike, operators: Collection[str]) -> OnnxFile:
  """What is in an ONNX file.

  Args:
    path: the file. Weights may lie in other files of the same folder.
    operators: those that the caller can import.
  Raises:
    DataNotFoundError: the file, or one with weights of it, does not exist.
    CorruptFileError: it is truncated or no ONNX model, or breaks the rules of the format.
    UnsupportedLayerError: another operator, version, or type of tensor; more than one input or output.
    JaxfixError: onnx is not installed.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise DataNotFoundError(f'No file {path}.')
  onnx = require_onnx(path)
  model = _parsed(onnx, path)
  opset = _opset(onnx, model, path)
  graph = model.graph
  constants = {t.name: _array(onnx, t, path) for t in graph.initializer}
  outputs = [o.name for o in graph.output]
  require(len(outputs) == 1, f'{path}: the network has {len(outputs)} outputs ({", ".join(outputs)}); a classifier has '
          'one.', UnsupportedLayerError)
  nodes = _needed([_node(onnx, node, opset, path) for node in graph.node], outputs[0])
  for node, domain in nodes:
    if domain not in _STANDARD_DOMAINS:
      raise node.unsupported(f'it is an operator of the domain {domain!r}')
    if node.operator not in operators:
      raise node.unsupported(f'the operator has no counterpart here. Supported: {", ".join(sorted(operators))}')
  require(not graph.sparse_initializer, f'{path}: sparse weights cannot be imported.', UnsupportedLayerError)
  inputs = [i for i in graph.input if i.name not in constants]  # old files list weights as inputs, too
  names = ', '.join(i.name for i in inputs)
  require(len(inputs) == 1, f'{path}: the network has {len(inputs)} inputs ({names}); a classifier has one.',
          UnsupportedLayerError)
  input_shape = _input_shape(onnx, inputs[0], path)
  graph.output[0].type.tensor_type.shape.SetInParent()  # the checker asks for one, which nobody else needs
  try:
    onnx.checker.check_model(model)
  except (onnx.checker.ValidationError, ValueError) as e:
    raise CorruptFileError(f'{path} is no valid ONNX model: {str(e).strip()}') from e
  return OnnxFile(tuple(node for node, _ in nodes), constants, inputs[0].name, input_shape, outputs[0])


def _parsed(onnx: types.ModuleType, path: pathlib.Path) -> Any:
  """The file as an `onnx.ModelProto`."""
  from google.protobuf.message import DecodeError  # onnx depends on it
  model = onnx.ModelProto()
  try:
    model.ParseFromString(path.read_bytes())
  except DecodeError as e:
    raise CorruptFileError(f'{path} is truncated or not an ONNX model ({e}).') from e
  require(bool(model.graph.output and model.opset_import), f'{path} is truncated or not an ONNX model: it names no '
          'output or no operator set.', CorruptFileError)
  graph, texts = model.graph, [o.domain for o in model.opset_import]
  texts += [tensor.name for tensor in (*graph.initializer, *graph.input, *graph.output)]
  for node in graph.node:
    texts += [node.op_type, node.name, node.domain, *node.input, *node.output, *(a.name for a in node.attribute)]
  require(all(isinstance(text, str) for text in texts), f'{path} has names that are not UTF-8.', CorruptFileError)
  return model


def _opset(onnx: types.ModuleType, model: Any, path: pathlib.Path) -> int:
  versions = [o.version for o in model.opset_import if o.domain in _STANDARD_DOMAINS]
  require(bool(versions), f'{path} uses none of the standard ONNX operators.', UnsupportedLayerError)
  newest = onnx.defs.onnx_opset_version()
  require(OLDEST_OPSET <= versions[0] <= newest, f'{path} uses version {versions[0]} of the ONNX operators; versions '
          f'{OLDEST_OPSET} to {newest} can be imported. onnx.version_converter may help.', UnsupportedLayerError)
  return versions[0]


def _node(onnx: types.ModuleType, node: Any, opset: int, path: pathlib.Path) -> tuple[Node, str]:
  """An `onnx.NodeProto`, and the domain of its operator."""
  attributes = {a.name: _attribute(onnx, a, path) for a in node.attribute}
  name = node.name or next(iter(node.output), '')
  return Node(node.op_type, name, tuple(node.input), tuple(node.output), attributes, opset), node.domain


def _attribute(onnx: types.ModuleType, attribute: Any, path: pathlib.Path) -> Any:
  try:
    value = onnx.helper.get_attribute_value(attribute)
  except ValueError as e:
    raise CorruptFileError(f'{path}: attribute {attribute.name!r} is malformed ({e}).') from e
  if isinstance(value, onnx.TensorProto):
    return _array(onnx, value, path)
  return value.decode('utf-8', 'replace') if isinstance(value, bytes) else value


def _needed(nodes: list[tuple[Node, str]], output: str) -> list[tuple[Node, str]]:
  """The nodes that the output depends on, in order."""
  wanted, found = {output}, []
  for node, domain in reversed(nodes):
    if wanted & set(node.outputs):
      found.append((node, domain))
      wanted |= set(node.inputs)
  return found[::-1]


def _array(onnx: types.ModuleType, tensor: Any, path: pathlib.Path) -> np.ndarray:
  """A tensor of the file. What lies in another file is copied into `tensor` first."""
  where = f'{path}: tensor {tensor.name!r}'
  if tensor.data_location == onnx.TensorProto.EXTERNAL:
    tensor.raw_data = _external_bytes({e.key: str(e.value) for e in tensor.external_data}, path, where)
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]
  try:
    return onnx.numpy_helper.to_array(tensor)
  except (ValueError, TypeError, KeyError) as e:
    raise CorruptFileError(f'{where} is malformed ({e}).') from e


def _external_bytes(entry: Mapping[str, str], path: pathlib.Path, where: str) -> bytes:
  """The bytes of a tensor in another file, which must lie in the model's folder."""
  folder = path.parent.resolve()
  source = (folder / entry.get('location', '')).resolve()
  require(source.is_relative_to(folder), f'{where} lies in {entry.get("location")!r}, outside the folder of the model; '
          'only files inside it are read.', UnsupportedLayerError)
  if not source.is_file():
    raise DataNotFoundError(f'{where} lies in {source}, which does not exist. Copy it there from where the model was.')
  try:
    offset, length = int(entry.get('offset', 0)), int(entry.get('length', -1))
  except ValueError as e:
    raise CorruptFileError(f'{where} has a malformed reference to {source} ({e}).') from e
  require(offset >= 0 and length >= -1, f'{where} has a malformed reference to {source}.', CorruptFileError)
  left = source.stat().st_size - offset
  require(left >= length, f'{where}: {source} is truncated: {max(left, 0)} of {length} bytes.', CorruptFileError)
  with source.open('rb') as f:
    f.seek(offset)
    return f.read(length)


def _input_shape(onnx: types.ModuleType, tensor: Any, path: pathlib.Path) -> tuple[int | None, ...]:
  """All axes of the input; None where the file leaves a size open."""
  kind = tensor.type.tensor_type
  require(kind.elem_type == onnx.TensorProto.FLOAT, f'{path}: input {tensor.name!r} is not float32. Convert the model '
          'to float32 first: in another type its values would differ from ours.', UnsupportedLayerError)
  require(kind.HasField('shape'), f'{path}: the shape of input {tensor.name!r} is not given.', UnsupportedLayerError)
  return tuple(axis.dim_value if axis.dim_value > 0 else None for axis in kind.shape.dim)
