"""What a network is made of: the calls of its modules in a forward pass, which of them reads which, and its layers."""
import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxfix.classifier import Classifier
from jaxfix.errors import require
from jaxfix.models import layers

KINDS = {nn.Conv: 'conv', nn.Dense: 'dense', layers.BatchNorm: 'bn', layers.Relu: 'relu', layers.Tanh: 'tanh',
         layers.Sigmoid: 'sigmoid', layers.Softmax: 'softmax', layers.MaxPool: 'maxpool', layers.AvgPool: 'avgpool',
         layers.AdaptiveAvgPool: 'avgpool', layers.GlobalAvgPool: 'gap', layers.GlobalMaxPool: 'gmp',
         layers.ZeroPad: 'zeropad', layers.Flatten: 'flatten', layers.Dropout: 'dropout', layers.Add: 'add',
         layers.Concat: 'concat', layers.Reshape: 'reshape', layers.Transpose: 'transpose', layers.Slice: 'slice',
         layers.Mean: 'mean', layers.Shift: 'shift', layers.Scale: 'scale'}

ACTIVATIONS = frozenset({'relu', 'tanh', 'sigmoid', 'softmax'})


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
  """One call of a module.

  Attributes:
    path: of the module, joined by '/'; '' for the network itself.
    module: as the network configures it. Bound to a pass that is over: read its attributes, or take `unbound`.
    args, out: traced values, without numbers; two of them are the same value where `is` says so.
    is_leaf: it calls no other module.
  """
  path: str
  module: nn.Module
  args: tuple[Any, ...]
  out: Any
  is_leaf: bool

  @property
  def kind(self) -> str:
    """One of the values of `KINDS`, or '' for a module that is no layer."""
    return KINDS.get(type(self.module), '')

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the output, for one sample."""
    return tuple(getattr(self.out, 'shape', ())[1:])

  @property
  def unbound(self) -> nn.Module:
    """The module by itself, to be applied to parameters of its own."""
    return self.module.clone(parent=None, name=None)


@dataclasses.dataclass(frozen=True, eq=False)
class Flow:
  """A forward pass in evaluation mode: `inputs` (normalized), the calls in the order in which they end, `logits`."""
  inputs: Any
  calls: tuple[Call, ...]
  logits: Any


def trace_calls(classifier: Classifier) -> Flow:
  """The calls of a network's modules on one sample. Nothing is computed: weights may be `jax.ShapeDtypeStruct`s."""
  calls, ends = [], []

  def note(next_fun, args, kwargs, context):
    before = len(calls)
    out = next_fun(*args, **kwargs)
    if context.method_name == '__call__':
      calls.append(Call('/'.join(context.module.path), context.module, args, out, len(calls) == before))
    return out

  def run(variables, z):
    ends.extend((z, classifier.module.apply(variables, z, train=False)))

  z = jax.ShapeDtypeStruct((1, *classifier.input_shape), jnp.float32)
  with nn.intercept_methods(note):
    jax.eval_shape(run, classifier.variables, z)
  return Flow(ends[0], tuple(calls), ends[1])


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer of a network: `kind` is one of the values of `KINDS`; shapes are those of one sample."""
  name: str
  kind: str
  path: str
  input_shape: tuple[int, ...]
  output_shape: tuple[int, ...]


def layer_list(classifier: Classifier) -> tuple[Layer, ...]:
  """The layers of a network in the order in which a forward pass calls them; composite modules are looked into.

  Works on any Flax module made of the layers in `models.layers`; other leaf modules are not listed.
  """
  return tuple(Layer(call.path.rpartition('/')[2], call.kind, call.path, tuple(call.args[0].shape[1:]), call.shape)
               for call in trace_calls(classifier).calls if call.kind)


def count_layers(found: Sequence[Layer], rule: Literal['keras', 'study'] = 'keras') -> int:
  """Number of layers as others count them, for comparison with published figures.

  Args:
    found: result of `layer_list`.
    rule: 'keras' counts every layer and the input, as a functional Keras model does (ResNet18 69, DenseNet121 429);
      'study' counts neither the input nor activations nor concatenations (DenseNet121 249, LeNet5 8, FaceNet 11,
      VGG16 42), which is also how a sequential Keras model with fused activations counts.
  Raises:
    BadInputError: another rule.
  """
  require(rule in ('keras', 'study'), f"rule must be 'keras' or 'study', got {rule!r}.")
  if rule == 'keras':
    return 1 + len(found)
  return sum(layer.kind not in ACTIVATIONS and layer.kind != 'concat' for layer in found)


def longest_dense_run(found: Sequence[Layer]) -> int:
  """Most dense layers in a row with at most activations and dropout between them (REASSURE asks for 3)."""
  longest = run = 0
  for layer in found:
    if layer.kind == 'dense':
      run += 1
    elif layer.kind not in ACTIVATIONS and layer.kind != 'dropout':
      run = 0
    longest = max(longest, run)
  return longest


def square_dense(found: Sequence[Layer]) -> tuple[Layer, ...]:
  """The hidden dense layers with as many outputs as inputs (VERE asks for one); the output layer is not hidden."""
  dense = [layer for layer in found if layer.kind == 'dense']
  return tuple(layer for layer in dense[:-1] if layer.input_shape[-1] == layer.output_shape[-1])
