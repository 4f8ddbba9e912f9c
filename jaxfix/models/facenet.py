"""FaceNet: the 11-layer gender classifier of the UTKFace subject.

The study publishes 11 layers and two classes, not the layers themselves. These meet what it says of the network: fewer
than three dense layers in a row, and no square one. Parameters: 1,568,450 for 48x48 inputs, 2,485,954 for 64x64,
8,777,410 for 128x128.
"""
import jax
from flax import linen as nn

from jaxfix.models import layers


class FaceNet(nn.Module):
  """Four 3x3 convolutions with three poolings between them, two dense layers; logits `[n, num_classes]`.

  Attributes:
    num_classes: c.
    width: multiplies every channel and hidden unit count.
    dropout: rate between the dense layers.
  """
  num_classes: int = 2
  width: float = 1.
  dropout: float = 0.5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
    *channels, hidden = layers.widths((32, 64, 128, 256, 128), self.width)
    for i, c in enumerate(channels, 1):
      x = layers.Conv(c, (3, 3), padding=layers.pad_evenly(1), name=f'conv{i}')(x)
      x = layers.Relu(name=f'relu{i}')(x)
      if i < len(channels):
        x = layers.MaxPool((2, 2), name=f'pool{i}')(x)
    x = layers.Flatten(name='flatten')(x)
    x = layers.Dense(hidden, name='fc1')(x)
    x = penultimate = layers.Relu(name='relu5')(x)
    x = layers.Dropout(self.dropout, name='drop1')(x, train)
    logits = layers.Dense(self.num_classes, name='fc2')(x)
    return (logits, penultimate) if features else logits
