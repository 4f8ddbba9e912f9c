"""Multilayer perceptron with ReLU, given by its widths."""
import jax
from flax import linen as nn

from jaxfix.models import layers


class Mlp(nn.Module):
  """Flatten, then dense layers `fc1`, `fc2`, ... with ReLU after all but the last; logits `[n, num_classes]`.

  Attributes:
    num_classes: c.
    hidden: units of the hidden layers.
    width: multiplies the hidden units.
  """
  num_classes: int = 2
  hidden: tuple[int, ...] = (16, 16)
  width: float = 1.

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
    x = layers.Flatten(name='flatten')(x)
    for i, d in enumerate(layers.widths(self.hidden, self.width)):
      x = layers.Dense(d, name=f'fc{i + 1}')(x)
      x = layers.Relu(name=f'relu{i + 1}')(x)
    logits = layers.Dense(self.num_classes, name=f'fc{len(self.hidden) + 1}')(x)
    return (logits, x) if features else logits
