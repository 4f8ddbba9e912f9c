"""VGG16 with batch normalization for 32x32 inputs, with the study's head or a single dense layer.

Source: Simonyan & Zisserman 2015 (configuration D); the study's form has 42 layers with ReLU fused, and a square dense
layer in a run of three, since the study could apply VERE and REASSURE to it (15,253,578 parameters). The 'cifar' form
is the common CIFAR baseline (14,728,266 parameters).
"""
import jax
from flax import linen as nn

from jaxfix.models import layers

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
  """13 convolutions in five stages, each stage ended by a pooling; logits `[n, num_classes]`.

  Layers are `conv1` to `conv13`, `bn1` to `bn13`, `pool1` to `pool5`, `fc1` to `fc3`.

  Attributes:
    num_classes: c.
    variant: 'study' (dropout after each pooling, dense 512-512-c) or 'cifar' (dense c).
    width: multiplies every channel and hidden unit count.
    bn_epsilon, bn_momentum: of the batch normalizations; None takes the variant's, 1e-3 and 0.99 (the Keras defaults)
      for 'study', 1e-5 and 0.9 for 'cifar'.
    dropout: rates after the poolings and in the head; 'study' only.
  """
  num_classes: int = 10
  variant: str = 'study'
  width: float = 1.
  bn_epsilon: float | None = None
  bn_momentum: float | None = None
  dropout: tuple[float, float] = (0.25, 0.5)

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
    epsilon, momentum, hidden = layers.choose('variant of VGG16', self.variant, {
      'study': (1e-3, 0.99, (512, 512)), 'cifar': (1e-5, 0.9, ())})
    epsilon = epsilon if self.bn_epsilon is None else self.bn_epsilon
    momentum = momentum if self.bn_momentum is None else self.bn_momentum
    study = self.variant == 'study'
    i = 0
    for s, channels in enumerate(_STAGES, 1):
      for c in layers.widths(channels, self.width):
        i += 1
        x = layers.Conv(c, (3, 3), padding=layers.pad_evenly(1), name=f'conv{i}')(x)
        x = layers.BatchNorm(epsilon, momentum, name=f'bn{i}')(x, train)
        x = layers.Relu(name=f'relu{i}')(x)
      x = layers.MaxPool((2, 2), name=f'pool{s}')(x)
      if study:
        x = layers.Dropout(self.dropout[0], name=f'drop{s}')(x, train)
    x = penultimate = layers.Flatten(name='flatten')(x)
    for j, d in enumerate(layers.widths(hidden, self.width), 1):
      x = layers.Dense(d, name=f'fc{j}')(x)
      x = penultimate = layers.Relu(name=f'relu{i + j}')(x)
      x = layers.Dropout(self.dropout[1], name=f'drop{len(_STAGES) + j}')(x, train)
    logits = layers.Dense(self.num_classes, name=f'fc{len(hidden) + 1}')(x)
    return (logits, penultimate) if features else logits
