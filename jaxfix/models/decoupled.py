"""The decoupled network (DDNN): one layer has a second set of weights, which never move a linear region.

Two channels run side by side. The *activation* channel is the base network; it decides every mask, every winner of a
pooling. The *value* channel has other weights in one layer and goes through the decisions, and where an activation is
smooth through the tangents, of the first. Before the edited layer both agree, so that with a its output in the
activation channel and v in the value channel

  DDNN(x) = tail(a) + d tail(a) . (v - a),

one Jacobian-vector product of the rest of the network. Skip connections, pooling and BatchNorm need no code of their
own, and the logits are affine in the edited weights for every x: no Taylor remainder (Theorem 2).

Source: Sotoudeh and Thakur, "Provable Repair of Deep Neural Networks", PLDI 2021, sections 3 and 4.
"""
import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxfix.classifier import Classifier
from jaxfix.errors import BadInputError, UnknownNameError, require


class Decoupled(nn.Module):
  """DDNN of a base network with one edited layer; logits `[n, c]`.

  Parameters: `base`, those of the base network (so that its layer `fc1` is now `base/fc1`), and `value`, the kernel
  and bias of the edited layer in the value channel. Batch statistics lie under `base` too. A fresh network has
  `value` equal to the layer's own weights and computes what its base computes.

  Only evaluation mode exists: weights that are trained move the regions, which this network is made to prevent.

  With respect to its input the network is piecewise as smooth as its base; for ReLU networks piecewise linear, on the
  regions of the *base*. It may jump at their borders, and its gradient is that of the piece: the masks are
  constants almost everywhere, and count as constants. Where pooled values tie, the value channel takes what JAX's
  derivative of the pooling takes.

  Interventions (`jaxfix.intervene`) see layers up to the edited one, `value` among them, as in any network. From
  there on a layer carries both channels at once: it can be replaced by a function of its output, but not recorded.

  Attributes:
    base: the network, in evaluation mode a function of one batch.
    layer: path of a Dense or Conv layer of it, called once.
  """
  base: nn.Module
  layer: str

  def __call__(self, x: jax.Array, train: bool = False, rep: jax.Array | None = None) -> jax.Array:
    """Logits of `x` `[n, ...]`.

    Args:
      x: inputs.
      train: must be False.
      rep: where the activation channel runs, same shape as `x`; None for `x` itself. With an interior point of a
        linear region it gives the affine map of that region, which at a border differs from the map next door.
    Raises:
      BadInputError: `train` is set, or `layer` is no Dense or Conv layer that is called once.
      UnknownNameError: the base network has no layer of that name.
    """
    require(not train, 'A decoupled network has no training mode: its regions are fixed. Train its base instead.')
    if self.is_initializing():
      return self._channels(x, 0., None)[0]
    module, variables = self.unbind()   # plain functions from here on: Flax modules do not mix with jax.jvp
    origin = x if rep is None else rep

    def along(eps, value_input):
      z = x if rep is None else rep + eps * (x - rep)
      return module.apply(variables, z, eps, value_input, method='_channels')

    zero, one = jnp.zeros((), origin.dtype), jnp.ones((), origin.dtype)
    value_input = None
    if rep is not None:
      _, at_rep, slope = jax.jvp(lambda eps: along(eps, None)[::-1], (zero,), (one,), has_aux=False)[0][0], None, None
    logits, tangent = jax.jvp(lambda eps: along(eps, value_input)[0], (zero,), (one,))
    return logits + tangent
