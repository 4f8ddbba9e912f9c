"""AlexNet in the torchvision layout with adaptive pooling, for 64x64 inputs and larger: 57,044,810 parameters.

Source: Krizhevsky 2014 as in torchvision. Its public use on CIFAR-10 resizes images to 70, crops the central 64x64 and
divides by 255. The last feature map is then 1x1 and the adaptive pooling repeats it 6x6.
"""
import jax
from flax import linen as nn

from jaxfix.models import layers

_CONVOLUTIONS = (  # channels, kernel, stride, padding, whether a pooling follows
  (64, 11, 4, 2, True), (192, 5, 1, 2, True), (384, 3, 1, 1, False), (256, 3, 1, 1, False), (256, 3, 1, 1, True))


class AlexNet(nn.Module):
  """Five convolutions with three poolings, three dense layers; logits `[n, num_classes]`.

  The flattened features are ordered row, column, channel; torchvision's weights of `fc1` expect channel, row, column
  (row `c * 36 + i * 6 + j` of the kernel for channel c at (i, j)) and have to be permuted.

  Attributes:
    num_classes: c.
    width: multiplies every channel and hidden unit count.
    dropout: rate before each hidden dense layer.
  """
  num_classes: int = 10
  width: float = 1.
  dropout: float = 0.5

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
    channels = layers.widths([c for c, *_ in _CONVOLUTIONS], self.width)
    for i, (c, (_, kernel, stride, padding, pooled)) in enumerate(zip(channels, _CONVOLUTIONS, strict=True), 1):
      x = layers.Conv(c, (kernel, kernel), (stride, stride), layers.pad_evenly(padding), name=f'conv{i}')(x)
      x = layers.Relu(name=f'relu{i}')(x)
      if pooled:
        x = layers.MaxPool((3, 3), (2, 2), name=f'pool{i}')(x)
    x = layers.AdaptiveAvgPool((6, 6), name='avgpool')(x)
    x = layers.Flatten(name='flatten')(x)
    for j, d in enumerate(layers.widths((4096, 4096), self.width), 1):
      x = layers.Dropout(self.dropout, name=f'drop{j}')(x, train)
      x = layers.Dense(d, name=f'fc{j}')(x)
      x = layers.Relu(name=f'relu{len(channels) + j}')(x)
    logits = layers.Dense(self.num_classes, name='fc3')(x)
    return (logits, x) if features else logits
