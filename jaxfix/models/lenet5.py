"""LeNet5: the study's variant (6@5x5, 16@3x3) and the classical one (6@5x5 same, 16@5x5).

Source: the study's released Keras files (29,450 parameters); LeCun et al. 1998 for the classical layout, with ReLU and
max pooling in place of sigmoids and subsampling (61,706 parameters).
"""
import jax
from flax import linen as nn

from jaxfix.models import layers


class LeNet5(nn.Module):
  """Two convolutions, two poolings, three dense layers; logits `[n, num_classes]`.

  Attributes:
    num_classes: c.
    variant: 'study' takes 28x28 inputs; 'classic' takes 28x28 or 32x32; 'small' (3x3 kernels, 8@same, 16@same, dense
      64-32) takes 8x8 and is ours, for the embedded digits.
    width: multiplies every channel and hidden unit count.
  """
  num_classes: int = 10
  variant: str = 'study'
  width: float = 1.

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
    channels, dense, kernels, pads, windows = layers.choose('variant of LeNet5', self.variant, {
      'study': ((6, 16), (120, 84), (5, 3), (0, 0), (3, 2)),
      'classic': ((6, 16), (120, 84), (5, 5), (2 if x.shape[1] == 28 else 0, 0), (2, 2)),
      'small': ((8, 16), (64, 32), (3, 3), (1, 1), (2, 2)),
    })
    for i, (c, k) in enumerate(zip(layers.widths(channels, self.width), kernels, strict=True)):
      x = layers.Conv(c, (k, k), padding=layers.pad_evenly(pads[i]), name=f'conv{i + 1}')(x)
      x = layers.Relu(name=f'relu{i + 1}')(x)
      x = layers.MaxPool((windows[i], windows[i]), name=f'pool{i + 1}')(x)
    x = layers.Flatten(name='flatten')(x)
    for i, d in enumerate(layers.widths(dense, self.width)):
      x = layers.Dense(d, name=f'fc{i + 1}')(x)
      x = layers.Relu(name=f'relu{i + 3}')(x)
    logits = layers.Dense(self.num_classes, name='fc3')(x)
    return (logits, x) if features else logits
