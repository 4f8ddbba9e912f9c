"""DenseNet121 in the form common for CIFAR and in the ImageNet form of Keras.

Source: Huang et al. 2017. The CIFAR form is that of the public kuangliu/pytorch-cifar zoo, the ImageNet form that of
Keras applications; they differ in stem, order of concatenation and batch-normalization constants.
"""
import jax
from flax import linen as nn

from jaxfix.models import layers


class Unit(nn.Module):
  """BN-ReLU-`conv1` 1x1 to four times the growth, BN-ReLU-`conv2` 3x3 to the growth, concatenated to the input."""
  growth: int
  new_first: bool
  bn_epsilon: float
  bn_momentum: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    y = layers.BatchNorm(self.bn_epsilon, self.bn_momentum, name='bn1')(x, train)
    y = layers.Relu(name='relu1')(y)
    y = layers.Conv(4 * self.growth, (1, 1), padding=layers.pad_evenly(0), use_bias=False, name='conv1')(y)
    y = layers.BatchNorm(self.bn_epsilon, self.bn_momentum, name='bn2')(y, train)
    y = layers.Relu(name='relu2')(y)
    y = layers.Conv(self.growth, (3, 3), padding=layers.pad_evenly(1), use_bias=False, name='conv2')(y)
    return layers.Concat(name='concat')(*((y, x) if self.new_first else (x, y)))


class Stage(nn.Module):
  """Dense units `unit1`, `unit2`, ...; each adds `growth` channels."""
  num_units: int
  growth: int
  new_first: bool
  bn_epsilon: float
  bn_momentum: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    for u in range(self.num_units):
      x = Unit(self.growth, self.new_first, self.bn_epsilon, self.bn_momentum, name=f'unit{u + 1}')(x, train)
    return x


class Transition(nn.Module):
  """BN-ReLU-`conv1` 1x1 to half the channels, 2x2 average pooling."""
  bn_epsilon: float
  bn_momentum: float

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
    half = x.shape[-1] // 2
    x = layers.BatchNorm(self.bn_epsilon, self.bn_momentum, name='bn1')(x, train)
    x = layers.Relu(name='relu1')(x)
    x = layers.Conv(half, (1, 1), padding=layers.pad_evenly(0), use_bias=False, name='conv1')(x)
    return layers.AvgPool((2, 2), name='pool')(x)


class DenseNet121(nn.Module):
  """Stem, `stage1` to `stage4` with `transition1` to `transition3` between them, `bn_last`, pooling, `fc1`.

  Logits `[n, num_classes]`. 6,956,298 parameters in the CIFAR form with 10 classes, 7,978,856 in the ImageNet form with
  1000.

  Attributes:
    num_classes: c.
    form: 'cifar' (3x3 stem at stride 1, nothing after it) or 'imagenet' (7x7 stem at stride 2, BN, ReLU, max pooling).
    width: multiplies the growth and the channels of the stem.
    units: dense units of each stage.
    new_first: whether a unit's output precedes its input in the concatenation; None takes the form's order (CIFAR new
      first, ImageNet last). Trained weights fit one order only.
    bn_epsilon, bn_momentum: of the batch normalizations; None takes the form's, 1e-5 and 0.9 for CIFAR, 1.001e-5 and
      0.99 for ImageNet.
  """
  num_classes: int = 10
  form: str = 'cifar'
  width: float = 1.
  units: tuple[int, ...] = (6, 12, 24, 16)
  new_first: bool | None = None
  bn_epsilon: float | None = None
  bn_momentum: float | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool = False, features: bool = False):
    new_first, epsilon, momentum = layers.choose('form of DenseNet121', self.form, {
      'cifar': (True, 1e-5, 0.9), 'imagenet': (False, 1.001e-5, 0.99)})
    new_first = new_first if self.new_first is None else self.new_first
    bn = (epsilon if self.bn_epsilon is None else self.bn_epsilon,
          momentum if self.bn_momentum is None else self.bn_momentum)
    channels, growth = layers.widths((64, 32), self.width)
    if self.form == 'cifar':
      x = layers.Conv(channels, (3, 3), padding=layers.pad_evenly(1), use_bias=False, name='conv1')(x)
    else:
      x = layers.ZeroPad(layers.pad_evenly(3), name='pad1')(x)
      x = layers.Conv(channels, (7, 7), (2, 2), layers.pad_evenly(0), use_bias=False, name='conv1')(x)
      x = layers.BatchNorm(*bn, name='bn1')(x, train)
      x = layers.Relu(name='relu1')(x)
      x = layers.ZeroPad(layers.pad_evenly(1), name='pad2')(x)
      x = layers.MaxPool((3, 3), (2, 2), name='pool1')(x)
    for s, n in enumerate(self.units, 1):
      x = Stage(n, growth, new_first, *bn, name=f'stage{s}')(x, train)
      if s < len(self.units):
        x = Transition(*bn, name=f'transition{s}')(x, train)
    x = layers.BatchNorm(*bn, name='bn_last')(x, train)
    x = layers.Relu(name='relu_last')(x)
    x = layers.GlobalAvgPool(name='gap')(x)
    logits = layers.Dense(self.num_classes, name='fc1')(x)
    return (logits, x) if features else logits
