"""The decoupled network (DDNN): one layer has a second set of weights, which never move a linear region.

Two channels run side by side. The *activation* channel is the base network; it decides every mask and every winner of
a pooling. The *value* channel has other weights in one layer and goes through those decisions (where an activation is
smooth, through its tangents). Before the edited layer the channels agree, so that with a its output in the activation
channel and v in the value channel

  DDNN(x) = tail(a) + d tail(a) . (v - a),

one Jacobian-vector product of the rest of the network. Skip connections, pooling and BatchNorm need no code of their
own, and the logits are affine in the edited weights for every x: no Taylor remainder (Theorem 2).

Source: Sotoudeh and Thakur, "Provable Repair of Deep Neural Networks", PLDI 2021, sections 3 and 4.
"""
import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxfix.classifier import Classifier
from jaxfix.errors import BadInputError, UnknownNameError, require


class Decoupled(nn.Module):
  """DDNN of a base network with one edited layer; logits `[n, c]`.

  Parameters: `base`, those of the base network (its layer `fc1` is now `base/fc1`), and `value`, kernel and bias of
  the edited layer in the value channel. Batch statistics lie under `base` too. A fresh network has `value` equal to
  the layer's own weights and computes what its base computes.

  Only evaluation mode exists: training moves the regions, which this network is made to keep in place.

  As a function of its input it is affine on every linear region of the *base* (if that is piecewise linear), and it
  may jump at their borders. Its gradient is that of the piece: masks count as constants, which they are almost
  everywhere. Where values in a pooling window tie, the value channel takes what JAX's derivative of pooling takes.

  Interventions (`jaxfix.intervene`) see the layers before the edited one, and `value`, as in any network. From there
  on a layer carries both channels at once: its output can be replaced by a function of it, but not recorded.

  Attributes:
    base: the network; `base(x, train=False)` gives logits.
    layer: path of a Dense or Conv layer of it, which it calls once.
  """
  base: nn.Module
  layer: str

  def __call__(self, x: jax.Array, train: bool = False, rep: jax.Array | None = None) -> jax.Array:
    """Logits `[n, c]`.

    Args:
      x: inputs `[n, ...]`.
      train: must be False.
      rep: where the activation channel runs, of the shape of `x`; None for `x` itself. With interior points of linear
        regions this evaluates the affine maps of those regions at `x`, also where `x` lies on a border.
    Raises:
      BadInputError: `train` is set, or `layer` is not a Dense or Conv layer that is called once.
      UnknownNameError: the base network calls no layer of that name.
    """
    require(not train, 'A decoupled network has no training mode, its regions are fixed: train its base instead.')
    if self.is_initializing():
      return self._channels(x, 0.)[0]
    module, variables = self.unbind()   # pure functions from here on: bound modules do not mix with jax.jvp

    def along(eps, value_input=None):
      z = x if rep is None else rep + eps * (x - rep)
      return module.apply(variables, z, eps, value_input, method='_channels')

    at = (jnp.zeros((), x.dtype),), (jnp.ones((), x.dtype),)
    value_input = None
    if rep is not None:
      (_, h), (_, slope) = jax.jvp(along, *at)
      value_input = h + slope
    (logits, _), (tangent, _) = jax.jvp(lambda eps: along(eps, value_input), *at)
    return logits + tangent

  @nn.compact
  def _channels(self, z: jax.Array, eps: jax.Array, value_input: jax.Array | None = None):
    """Base logits with eps (v - a) added to the layer's output, and the layer's input, both in the base at `z`.

    The value at eps = 0 is the activation channel, the slope there what the value channel adds. `value_input` is the
    layer's input in the value channel, if it is not that of the activation channel.
    """
    path = (*self.base.path, *self.layer.split('/'))
    inputs, outputs = [], []

    def edited(next_fun, args, kwargs, context):
      y = next_fun(*args, **kwargs)
      if context.method_name != '__call__' or context.module.path != path:
        return y
      template = context.module
      require(type(template) in (nn.Dense, nn.Conv),
              f'Only Dense and Conv layers can be decoupled; {self.layer!r} is a {type(template).__name__}.')
      require(not inputs, f'Layer {self.layer!r} is called more than once; only a layer that is called once can be '
              'decoupled.')
      inputs.append(args[0])
      own = template.variables['params']
      value = template.clone(parent=self, name='value', kernel_init=lambda *_: own['kernel'],
                             bias_init=lambda *_: own['bias'])
      if value_input is None:
        v = value(*args)
        out = y + eps * (v - y)
      else:
        v, alone = value(value_input), template.clone(parent=None, name=None)   # a bound layer can be called once only
        out = y + eps * (v - alone.apply({'params': own}, value_input))
      outputs.extend((out, v))
      return out

    with nn.intercept_methods(edited):
      logits = self.base(z, train=False)
    if outputs and logits is outputs[0]:
      return outputs[1], inputs[0]   # nothing follows: v itself, without the rounding of a + (v - a)
    if not inputs:
      raise UnknownNameError('layer', self.layer, _paths_below(self.base.variables['params']))
    return logits, inputs[0]


def decouple(classifier: Classifier, layer: str, value: Mapping[str, jax.Array] | None = None) -> Classifier:
  """The decoupled network of a classifier.

  Args:
    classifier: the base; its arrays are shared, not copied.
    layer: path of a Dense or Conv layer, 'fc1'.
    value: `{'kernel', 'bias'}` of that layer in the value channel (no 'bias' if the layer has none); None for the
      layer's own, which leaves the function as it is.
  Raises:
    BadInputError: the layer is no Dense or Conv layer, or `value` has other arrays or shapes.
    UnknownNameError: there is no layer of that name.
  """
  own = classifier.params
  for name in layer.split('/'):
    if not isinstance(own, Mapping) or name not in own:
      raise UnknownNameError('layer', layer, _paths_below(classifier.params))
    own = own[name]
  require('kernel' in own and set(own) <= {'kernel', 'bias'},
          f'Only Dense and Conv layers can be decoupled; {layer!r} has the parameters {", ".join(own)}.')
  value = dict(own) if value is None else dict(value)
  shapes = {k: jnp.shape(v) for k, v in value.items()}
  expected = {k: jnp.shape(v) for k, v in own.items()}
  require(shapes == expected, f'The value channel of {layer!r} needs arrays of shapes {expected}, got {shapes}.')
  variables = {name: {'base': tree} for name, tree in classifier.variables.items()}
  variables['params'] = {**variables['params'], 'value': value}
  return dataclasses.replace(classifier, variables=variables, module=Decoupled(classifier.module, layer))


def base_classifier(classifier: Classifier) -> Classifier:
  """The activation channel of a decoupled network as a classifier of its own: the original, bit for bit.

  Raises:
    BadInputError: the classifier is not decoupled.
  """
  module = classifier.module
  if not isinstance(module, Decoupled):
    raise BadInputError(f'A {type(module).__name__} has no base: it is not a decoupled network.')
  variables = {name: tree['base'] for name, tree in classifier.variables.items()}
  return dataclasses.replace(classifier, variables=variables, module=module.base)


def _paths_below(params: Mapping) -> list[str]:
  """Paths of the layers that have parameters."""
  found = []
  for name, tree in params.items():
    inner = {k: v for k, v in tree.items() if isinstance(v, Mapping)}
    found.extend([f'{name}/{path}' for path in _paths_below(inner)] if inner else [name])
  return found
