"""Blocks: a network cut, from its layers and what they read alone, into the parts that repairs and probes speak of.

A *step* is a stretch of layers between two places where a single value carries everything: one layer, or a whole
residual or dense unit. Steps become blocks by these rules, which need no names:

- a hidden Dense layer, with the activation after it, is a block;
- convolutions at one resolution are a block (VGG16: five stages; LeNet5: each convolution); a strided convolution
  begins the next one, a pooling ends its own;
- in a network with residual or dense units, a block is a run of them at one resolution (ResNet18: four stages;
  DenseNet121: four dense blocks), and convolutions outside (a stem, a transition) are none;
- the output layer, and what follows it, is none.

A block's *target* is its last Dense or Conv layer on the longest way through it: of a residual unit the last
convolution, never that of the shortcut.

Source: the cut of the public code of INNER (Chen et al., ISSTA 2024) for VGG13 and ResNet18, whose heads have a hidden
Dense layer; for other networks ours.
"""
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from flax import linen as nn

from jaxfix.classifier import Classifier
from jaxfix.errors import UnknownNameError
from jaxfix.models.structure import ACTIVATIONS, trace_calls

_KERNELS = frozenset({'dense', 'conv'})
_POOLS = frozenset({'maxpool', 'avgpool'})
_AFFINE = frozenset({'bn', 'scale', 'shift'})
_HEADS = frozenset({'gap', 'gmp', 'flatten', 'reshape', 'transpose', 'mean', 'slice'})
_SETTLING = ACTIVATIONS | _AFFINE | {'add', 'concat'}


@dataclasses.dataclass(frozen=True)
class Block:
  """One block.

  Attributes:
    target: path of the Dense or Conv layer that a repair of the block changes.
    output: path of the layer that gives the block's output.
    grid: side of the grid to which a probe pools a map of features: 2 in the first half of the convolutional blocks, 1
      in the second and for vectors.
  """
  target: str
  output: str
  grid: int


@dataclasses.dataclass(frozen=True)
class Node:
  """One call of a layer, as data flows.

  Attributes:
    path, kind: as in `models.structure.Layer`.
    reads: the calls whose outputs it takes, as indices into the list of all; -1 for the network's input.
    depth: Dense and Conv layers on the longest way from the input to its output, itself included.
    strided: it is a convolution that skips pixels.
    shape: of one sample's output.
  """
  path: str
  kind: str
  reads: tuple[int, ...]
  depth: int
  strided: bool
  shape: tuple[int, ...]


def data_flow(classifier: Classifier) -> tuple[Node, ...]:
  """The calls of layers in order, with what each reads.

  A value computed outside the layers of `models.layers` counts as the output of the latest call before it.
  """
  flow, nodes = trace_calls(classifier), []
  index = {id(flow.inputs): -1}   # of the call that gave a value; `flow` keeps the values, and so their ids
  for call in flow.calls:
    if call.kind:
      reads = tuple(index.get(id(a), len(nodes) - 1) for a in call.args if hasattr(a, 'shape'))
      depth = max((nodes[r].depth for r in reads if r >= 0), default=0) + (call.kind in _KERNELS)
      strided = call.kind == 'conv' and any(s > 1 for s in _pair(call.module.strides))
      index[id(call.out)] = len(nodes)
      nodes.append(Node(call.path, call.kind, reads, depth, strided, call.shape))
  return tuple(nodes)


def blocks(classifier: Classifier) -> tuple[Block, ...]:
  """The blocks of a network in order, by the rules above; none if it has a single layer with weights."""
  nodes = data_flow(classifier)
  runs = _runs(nodes)
  branched = any(len(step) > 1 and _has(step, 'conv') for run in runs for step in run)
  calls = [node.path for node in nodes]
  found = []
  for run in runs:
    dense = _has(run[0], 'dense')
    cores = [i for i, step in enumerate(run)
             if _has(step, 'dense') or (_has(step, 'conv') and (len(step) > 1 or not branched))]
    if not cores:
      continue
    step, rest = run[cores[-1]], run[cores[-1] + 1:]
    target = max((node for node in step if node.kind in _KERNELS), key=lambda node: node.depth)
    output = _output(step, rest)
    if calls.count(target.path) == calls.count(output.path) == 1:   # weights that are used twice belong to no block
      found.append((target, output, dense))
  maps = [output for _, output, dense in found if not dense and len(output.shape) == 3]
  early = maps[:-(-len(maps) // 2)]
  return tuple(Block(target.path, output.path, min(2, *output.shape[:2]) if output in early else 1)
               for target, output, _ in found)


def hidden_layers(nodes: Sequence[Node]) -> tuple[str, ...]:
  """Paths of the Dense and Conv layers but the last, the output layer; each once."""
  return tuple(dict.fromkeys(node.path for node in nodes if node.kind in _KERNELS))[:-1]


def settled_output(nodes: Sequence[Node], path: str) -> str:
  """The layer whose output is that of `path` after normalization, sum with a shortcut and activation.

  It follows the value of `path` through BatchNorm, activations, sums and concatenations as long as nothing else reads
  it. Other frameworks count an activation as part of the layer before.

  Raises:
    UnknownNameError: the network has no layer of that path.
  """
  paths = [node.path for node in nodes]
  if path not in paths:
    raise UnknownNameError('layer', path, paths)
  at = paths.index(path)
  while len(readers := [i for i, node in enumerate(nodes) if at in node.reads]) == 1 and (
      nodes[readers[0]].kind in _SETTLING):
    at = readers[0]
  return nodes[at].path


@dataclasses.dataclass(frozen=True)
class Truncated:
  """A network that ends at one of its layers, in evaluation mode; its variables are those of the whole network.

  It stands in for the module of a `Classifier`, so that everything that is said of logits (`intervene.suffix`, say)
  holds of the output of that layer.

  Attributes:
    module: the whole network.
    path: the layer whose output is given.
  """
  module: nn.Module
  path: str

  def apply(self, variables: Any, z: jax.Array, train: bool = False) -> jax.Array:
    """Output of the layer for normalized inputs `z`."""
    assert not train, 'a truncated network is for evaluation'
    seen = []

    def note(next_fun, args, kwargs, context):
      out = next_fun(*args, **kwargs)
      if context.method_name == '__call__' and '/'.join(context.module.path) == self.path:
        seen.append(out)
      return out

    with nn.intercept_methods(note):
      self.module.apply(variables, z, train=False)
    if not seen:
      raise UnknownNameError('layer', self.path, ())
    return seen[-1]


def truncate(classifier: Classifier, path: str) -> Classifier:
  """The same network and weights, ending at layer `path`: its `logits` are that layer's output."""
  return dataclasses.replace(classifier, module=Truncated(classifier.module, path))


def _pair(strides: Any) -> tuple[int, ...]:
  return strides if isinstance(strides, tuple) else tuple(strides) if isinstance(strides, list) else (strides or 1,)


def _has(step: Sequence[Node], kind: str) -> bool:
  return any(node.kind == kind for node in step)


def _steps(nodes: Sequence[Node]) -> list[tuple[Node, ...]]:
  """Consecutive calls, cut after each call whose output is all that later calls read."""
  last_read = [-1] * (len(nodes) + 1)   # by call; the last entry is the network's input
  for i, node in enumerate(nodes):
    for read in node.reads:
      last_read[read] = i
  steps, current, pending = [], [], last_read[-1]
  for i, node in enumerate(nodes):
    current.append(node)
    if pending <= i:
      steps.append(tuple(current))
      current = []
    pending = max(pending, last_read[i])
  return steps + ([tuple(current)] if current else [])


def _runs(nodes: Sequence[Node]) -> list[list[tuple[Node, ...]]]:
  """Steps before the output layer, in runs at one resolution; a Dense layer begins a run of its own."""
  steps = _steps(nodes)
  last = max((i for i, step in enumerate(steps) if any(node.kind in _KERNELS for node in step)), default=0)
  runs, current = [], []
  for step in steps[:last]:
    if _has(step, 'dense') or any(node.strided for node in step):
      runs.append(current)
      current = [step]
    elif len(step) == 1 and step[0].kind in _HEADS:
      runs.append(current)
      current = []
    elif len(step) == 1 and step[0].kind in _POOLS:
      runs.append([*current, step])
      current = []
    else:
      current.append(step)
  runs.append(current)
  return [run for run in runs if run]


def _output(step: Sequence[Node], rest: Sequence[tuple[Node, ...]]) -> Node:
  """The call that gives the block's output: of its last unit, or of the activation and pooling after it."""
  belongs = ACTIVATIONS | _POOLS | {'dropout'} | (_AFFINE if len(step) == 1 else frozenset())
  output = step[-1]
  for follower in rest:
    if len(follower) > 1 or follower[0].kind not in belongs:
      break
    if follower[0].kind != 'dropout':   # which changes nothing in evaluation mode
      output = follower[0]
  return output
