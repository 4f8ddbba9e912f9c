"""ResNet18, ResNet50 and ResNet101 in the form common for CIFAR, and with the ImageNet stem.

Source: He et al. 2016; the CIFAR form (3x3 stem at stride 1, no pooling after it, stride on the 3x3 convolution of a
bottleneck) is that of the public kuangliu/pytorch-cifar zoo. Its 4x4 average pooling is a global one here, which is the
same at 32x32 and also fits 64x64.
"""
import jax
from flax import linen as nn

from jaxfix.models import layers


class Unit(nn.Module):
  """Residual unit: convolutions with batch normalization, the sum with the shortcut, ReLU.

  Basic: `conv1` 3x3 (stride), `conv2` 3x3. Bottleneck: `conv1` 1x1, `conv2` 3x3 (stride), `conv3` 1x1 to four times the
  channels. The shortcut is the identity, or `shortcut_conv` 1x1 (stride) and `shortcut_bn` where the shape changes.
  """
  channels: int
  stride: int
  bottleneck: bool
  bn_epsilon: float
  bn_momentum: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    c, s = self.channels, self.stride
    steps = ((c, 1, 1), (c, 3, s), (4 * c, 1, 1)) if self.bottleneck else ((c, 3, s), (c, 3, 1))
    out = steps[-1][0]
    y = x
    for k, (channels, kernel, stride) in enumerate(steps, 1):
      y = self._conv(channels, kernel, stride, f'conv{k}')(y)
      y = self._bn(f'bn{k}')(y, train)
      if k < len(steps):
        y = layers.Relu(name=f'relu{k}')(y)
    if s != 1 or x.shape[-1] != out:
      x = self._conv(out, 1, s, 'shortcut_conv')(x)
      x = self._bn('shortcut_bn')(x, train)
    y = layers.Add(name='add')(y, x)
    return layers.Relu(name=f'relu{len(steps)}')(y)

  def _conv(self, channels: int, kernel: int, stride: int, name: str) -> nn.Module:
    return layers.Conv(channels, (kernel, kernel), (stride, stride), layers.pad_evenly(kernel // 2), use_bias=False,
                       name=name)

  def _bn(self, name: str) -> nn.Module:
    return layers.BatchNorm(self.bn_epsilon, self.bn_momentum, name=name)


class Stage(nn.Module):
  """Residual units `unit1`, `unit2`, ... of equal width, the first at `stride`."""
  num_units: int
  channels: int
  stride: int
  bottleneck: bool
  bn_epsilon: float
  bn_momentum: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    for u in range(self.num_units):
      x = Unit(self.channels, self.stride if u == 0 else 1, self.bottleneck, self.bn_epsilon, self.bn_momentum,
               name=f'unit{u + 1}')(x, train)
    return x


class ResNet18(nn.Module):
  """Stem, `stage1` to `stage4`, global average pooling, `fc1`; logits `[n, num_classes]`.

  11,173,962 parameters with 10 classes. ResNet50 and ResNet101 differ in the values of these attributes only.

  Attributes:
    num_classes: c.
    width: multiplies every channel count.
    units: residual units of each stage.
    bottleneck: three convolutions a unit, four times the output channels.
    stem: 'cifar' (3x3, stride 1) or 'imagenet' (7x7, stride 2, then 3x3 max pooling at stride 2).
    bn_epsilon, bn_momentum: of the batch normalizations.
  """
  num_classes: int = 10
  width: float = 1.
  units: tuple[int, ...] = (2, 2, 2, 2)
  bottleneck: bool = False
  stem: str = 'cifar'
  bn_epsilon: float = 1e-5
  bn_momentum: float = 0.9

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
    kernel, stride = layers.choose('stem of a ResNet', self.stem, {'cifar': (3, 1), 'imagenet': (7, 2)})
    channels = layers.widths((64, 128, 256, 512)[:len(self.units)], self.width)
    x = layers.Conv(channels[0], (kernel, kernel), (stride, stride), layers.pad_evenly(kernel // 2), use_bias=False,
                    name='conv1')(x)
    x = layers.BatchNorm(self.bn_epsilon, self.bn_momentum, name='bn1')(x, train)
    x = layers.Relu(name='relu1')(x)
    if self.stem == 'imagenet':
      x = layers.MaxPool((3, 3), (2, 2), layers.pad_evenly(1), name='pool1')(x)
    for s, (n, c) in enumerate(zip(self.units, channels, strict=True), 1):
      x = Stage(n, c, 1 if s == 1 else 2, self.bottleneck, self.bn_epsilon, self.bn_momentum,
                name=f'stage{s}')(x, train)
    x = layers.GlobalAvgPool(name='gap')(x)
    x = layers.Flatten(name='flatten')(x)  # changes nothing; it is one of the 69 layers that the study counts
    logits = layers.Dense(self.num_classes, name='fc1')(x)
    return (logits, x) if features else logits


class ResNet50(ResNet18):
  """Bottleneck units 3, 4, 6, 3: 23,520,842 parameters with 10 classes."""
  units: tuple[int, ...] = (3, 4, 6, 3)
  bottleneck: bool = True


class ResNet101(ResNet18):
  """Bottleneck units 3, 4, 23, 3: 42,512,970 parameters with 10 classes."""
  units: tuple[int, ...] = (3, 4, 23, 3)
  bottleneck: bool = True
