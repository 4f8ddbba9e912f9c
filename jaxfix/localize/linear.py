"""Dense and convolution layers seen as what they are: linear maps of their kernel, and of their input.

Everything that scores or patches kernel entries is built from that map `f(kernel, x)`. Its vector-Jacobian product with
respect to the kernel sums over samples and positions, and never holds a product for each weight, position and sample.
"""
from collections.abc import Callable, Mapping, Sequence

import jax
from flax import linen as nn

from jaxfix.classifier import Classifier, layer_weights, with_layer_weights
from jaxfix.errors import Unadaptable, UnknownNameError
from jaxfix.models.structure import Layer, layer_list, trace_calls

LinearMap = Callable[[jax.Array, jax.Array], jax.Array]

_KINDS = ('dense', 'conv')


def kernel_layers(classifier: Classifier, layers: Sequence[str] | None = None) -> tuple[Layer, ...]:
  """The Dense and Conv layers of a network, each once, in the order in which a forward pass enters them.

  Args:
    classifier: the network.
    layers: paths to restrict the answer to ('fc3', 'stage2/unit1/conv2'), or None for all.
  Raises:
    UnknownNameError: the network has no Dense or Conv layer of such a path.
  """
  found = {}
  for layer in layer_list(classifier):
    if layer.kind in _KINDS:
      found.setdefault(layer.path, layer)
  for path in layers or ():
    if path not in found:
      raise UnknownNameError('Dense or Conv layer', path, found)
  return tuple(layer for path, layer in found.items() if layers is None or path in layers)


def dense_layer(classifier: Classifier, layer: str | None = None) -> str:
  """Path of the Dense layer to work on: `layer`, or the last one.

  Raises:
    Unadaptable: `layer` is no Dense layer, or there is none.
    UnknownNameError: see `kernel_layers`.
  """
  dense = [found.path for found in kernel_layers(classifier, layer and (layer,)) if found.kind == 'dense']
  if not dense:
    raise Unadaptable('This approach changes the kernel of a Dense layer; '
                      + (f'{layer!r} is none.' if layer else 'this network has none.'))
  return dense[-1]


def kernel(classifier: Classifier, path: str) -> jax.Array:
  """Kernel of the layer `path`: `[in, out]` (dense) or `[kh, kw, cin, cout]` (convolution)."""
  return layer_weights(classifier, path)['kernel']


def with_kernels(classifier: Classifier, kernels: Mapping[str, jax.Array]) -> Classifier:
  """The same network with the kernels of the given layers replaced; every other leaf is shared, not copied."""
  return with_layer_weights(classifier, {path: {'kernel': value} for path, value in kernels.items()})


def linear_map(module: nn.Module, features: int | None = None, groups: int | None = None) -> LinearMap:
  """`f(kernel, x)`: the output of a Dense or Conv module without its bias, for any kernel and input.

  Args:
    module: `nn.Dense` or `nn.Conv`; strides, padding, dilation and the lowering are kept.
    features, groups: output channels and feature groups of the kernels that `f` takes, if not the module's own.
  """
  changes = {} if groups is None or isinstance(module, nn.Dense) else {'feature_group_count': groups}
  bare = module.clone(parent=None, name=None, use_bias=False, features=features or module.features, **changes)
  return lambda kernel, x: bare.apply({'params': {'kernel': kernel}}, x)


def linear_maps(classifier: Classifier, paths: Sequence[str]) -> dict[str, LinearMap]:
  """path -> `linear_map` of that layer."""
  return {call.path: linear_map(call.module) for call in trace_calls(classifier).calls if call.path in paths}
