"""How a classifier is trained: the part of a subject that retraining methods must repeat."""
import dataclasses
from typing import Literal

import optax

from jaxfix.errors import require


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Optimizer, schedule and augmentation of plain supervised training with softmax cross-entropy.

  Attributes:
    optimizer: 'adam' (beta 0.9, 0.999, eps 1e-7 as in Keras), 'adamw', or 'sgd' (Nesterov momentum 0.9).
    learning_rate: peak, > 0.
    schedule: 'constant', or 'cosine' to zero over `epochs`.
    weight_decay: decoupled for adamw, L2 for sgd; >= 0.
    batch_size: samples a step; the last, partial batch of an epoch is used too (padded and masked).
    epochs: of the original training.
    augment: 'none', 'shift' (up to 2 pixels), or 'crop_flip' (pad 4, random crop, horizontal flip).
  """
  optimizer: Literal['adam', 'adamw', 'sgd'] = 'adam'
  learning_rate: float = 1e-3
  schedule: Literal['constant', 'cosine'] = 'constant'
  weight_decay: float = 0.
  batch_size: int = 64
  epochs: int = 10
  augment: Literal['none', 'shift', 'crop_flip'] = 'none'

  def __post_init__(self):
    require(self.optimizer in ('adam', 'adamw', 'sgd'), f'optimizer must be adam, adamw or sgd, got {self.optimizer!r}')
    require(self.schedule in ('constant', 'cosine'), f'schedule must be constant or cosine, got {self.schedule!r}')
    require(self.augment in ('none', 'shift', 'crop_flip'),
            f'augment must be none, shift or crop_flip, got {self.augment!r}')
    require(self.learning_rate > 0, f'learning_rate must be positive, got {self.learning_rate}')
    require(self.weight_decay >= 0, f'weight_decay must not be negative, got {self.weight_decay}')
    require(self.batch_size >= 1, f'batch_size must be at least 1, got {self.batch_size}')
    require(self.epochs >= 0, f'epochs must not be negative, got {self.epochs}')

  def make_optimizer(self, steps_per_epoch: int) -> optax.GradientTransformation:
    """The Optax transformation; `steps_per_epoch` scales the cosine schedule."""
    rate = self.learning_rate
    if self.schedule == 'cosine':
      rate = optax.cosine_decay_schedule(rate, max(1, self.epochs * steps_per_epoch))
    if self.optimizer == 'adam':
      return optax.adam(rate, eps=1e-7)
    if self.optimizer == 'adamw':
      return optax.adamw(rate, eps=1e-7, weight_decay=self.weight_decay)
    return optax.chain(optax.add_decayed_weights(self.weight_decay), optax.sgd(rate, momentum=0.9, nesterov=True))
