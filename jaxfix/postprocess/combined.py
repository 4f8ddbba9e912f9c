"""Two models as one `Classifier`, whose logits are the logarithm of the combined probabilities.

So predictions, flips, fairness and the attack treat it as any other model; cross-entropy on these logits is that of the
combination. It takes what the original takes; a repaired model with other normalization constants gets its own.

Two things are particular. A hard vote has no gradient where it switches: attacks follow that of the soft vote, and the
hard vote judges. A model with noise draws it by sample number, so that batches change nothing; an attack sees other
draws, the same in all its steps, than those that judge it.

Decided here: the draws that judge an attack are those of the classifier's predictions, so that an attack of radius 0
never succeeds on inputs that it gets right.
"""
import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass

from jaxfix import devices, intervene
from jaxfix.classifier import Classifier
from jaxfix.errors import require
from jaxfix.localize import output_layer
from jaxfix.postprocess import rules
from jaxfix.postprocess.config import Config

SMALLEST_PROBABILITY = 1e-12
_ATTACK = 0x6174   # named stream of the key
_STATIC: dict[str, Any] = {'metadata': {'static': True}}


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pair(Classifier, abc.ABC):
  """Old (original) and new (repaired) model.

  Attributes:
    variables: {'old': its variables, 'new': its variables, ...}.
    module: of the new model.
    old_module: of the old one.
    new_space: (mean, std) that the new model was trained with; `mean` and `std` are the old model's.
  """
  old_module: Any = dataclasses.field(**_STATIC)
  new_space: tuple[tuple[float, ...], tuple[float, ...]] = dataclasses.field(**_STATIC)

  @property
  def old(self) -> Classifier:
    """The original model."""
    return Classifier(self.variables['old'], self.old_module, self.input_shape, self.num_classes, self.mean, self.std)

  @property
  def new(self) -> Classifier:
    """The repaired model."""
    return Classifier(self.variables['new'], self.module, self.input_shape, self.num_classes, *self.new_space)

  def inputs(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Normalized inputs of the old and of the new model, from those of the old."""
    if self.new_space == (self.mean, self.std):
      return z, z
    shape = (*(1,) * (z.ndim - 1), -1)   # per channel, the last axis
    mean, std, new_mean, new_std = (jnp.asarray(v, jnp.float32).reshape(shape)
                                    for v in (self.mean, self.std, *self.new_space))
    return z, (z * std + mean - new_mean) / new_std

  @abc.abstractmethod
  def scores(self, z: jax.Array) -> jax.Array:
    """Combined probabilities `[n, c]` of normalized inputs."""

  def logits_of_normalized(self, z: jax.Array) -> jax.Array:
    return jnp.log(jnp.maximum(self.scores(z), SMALLEST_PROBABILITY))


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooled(_Pair):
  """sv, hv, us, us_cal, us_k: p = w softmax(zo / To) + (1 - w) softmax(zn / Tn), or the hard vote of the two.

  Attributes:
    variables: also 'weight_old', the scalar w, and 'temperatures', `[2]`.
    hard: hard vote.
  """
  hard: bool = dataclasses.field(default=False, **_STATIC)

  @property
  def surrogate(self) -> Classifier:
    return dataclasses.replace(self, hard=False)

  def scores(self, z: jax.Array) -> jax.Array:
    z_old, z_new = self.inputs(z)
    to, tn = self.variables['temperatures']
    po = jax.nn.softmax(self.old.logits_of_normalized(z_old) / to)
    pn = jax.nn.softmax(self.new.logits_of_normalized(z_new) / tn)
    return rules.hard_vote(po, pn) if self.hard else rules.pool(po, pn, self.variables['weight_old'])


@register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Aligned(_Pair):
  """up, ud: means over noisy passes, weighted by the variances over them.

  Attributes:
    key: of the noise; sample i sees it folded with i.
    strength: scalar: standard deviation of the noise, or share of units dropped. Traced: one program for all.
    index: `[n]` sample numbers of the batch (`for_samples`); None for 0, 1, ...
    config: the other options; those that `strength` and the fits stand for are left at their defaults.
    dropped: (old, new) paths of the layers before which units are dropped; () drops logits, None adds input noise.
  """
  key: jax.Array
  strength: jax.Array
  index: jax.Array | None = None
  config: Config = dataclasses.field(**_STATIC)
  dropped: tuple[str, ...] | None = dataclasses.field(**_STATIC)

  def for_samples(self, index: np.ndarray | jax.Array) -> Classifier:
    return dataclasses.replace(self, index=devices.shard_batch(index))

  @property
  def surrogate(self) -> Classifier:
    return dataclasses.replace(self, key=jax.random.fold_in(self.key, _ATTACK))

  def scores(self, z: jax.Array) -> jax.Array:
    index = jnp.arange(len(z), dtype=jnp.uint32) if self.index is None else self.index
    noisy, clean = zip(*(self._passes(i, x) for i, x in enumerate(self.inputs(z))), strict=True)

    # A pass at a time, and each again for its gradient: memory for one batch, however many draws.
    @jax.checkpoint
    def draw(carry, t):
      key = jax.random.fold_in(self.key, t)
      streams = [jax.random.fold_in(key, 0 if self.config.shared_noise else i) for i in range(2)]
      return carry, tuple(jax.nn.softmax(run(jax.vmap(jax.random.fold_in, (None, 0))(k, index)))
                          for run, k in zip(noisy, streams, strict=True))

    _, draws = jax.lax.scan(draw, None, jnp.arange(self.config.draws))
    means = [jax.nn.softmax(run()) for run in clean] if self.config.clean else [p.mean(axis=0) for p in draws]
    return rules.align(*means, *map(rules.variance, draws), prior=self.config.prior, weights=self.config.weights)

  def _passes(self, i: int, z: jax.Array):
    """`keys [n] -> logits` under noise, and `() -> logits` without, of the old (i = 0) or the new model."""
    model = (self.old, self.new)[i]
    if self.dropped is None:
      return lambda keys: model.logits_of_normalized(z + self.strength * _normal(keys, z.shape[1:])), lambda: (
        model.logits_of_normalized(z))
    if not self.dropped:
      logits = model.logits_of_normalized(z)
      return lambda keys: _drop(keys, logits, self.strength), lambda: logits
    path = self.dropped[i]
    features, logits = intervene.record(model, z, (path,))[path]   # what comes before runs once
    head = output_layer.head(model, path)
    return lambda keys: head.logits_of_normalized(_drop(keys, features, self.strength)), lambda: logits


def _normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  # Drawn flat: with the axes of an image the generator takes twice as long to compile.
  return jax.vmap(lambda k: jax.random.normal(k, (math.prod(shape),)))(keys).reshape(-1, *shape)


def _drop(keys: jax.Array, h: jax.Array, rate: jax.Array) -> jax.Array:
  """Dropout with inverted scaling of h `[n, d]`."""
  kept = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, h.shape[1:]))(keys)
  return jnp.where(kept, h / (1 - rate), 0)


def pooled(old: Classifier, new: Classifier, *, weight_old: float = 0.5, temperatures: tuple[float, float] = (1., 1.),
           hard: bool = False) -> Pooled:
  """The linear or hard vote of two models."""
  parts = {'weight_old': jnp.float32(weight_old), 'temperatures': jnp.asarray(temperatures, jnp.float32)}
  return Pooled(**_pair(old, new, parts), hard=hard)


def aligned(old: Classifier, new: Classifier, config: Config, *, dropout: bool, key: jax.Array) -> Aligned:
  """The variance alignment of two models under input noise, or under dropout.

  Raises:
    BadInputError: features are to be dropped, but a model does not end in a dense layer.
  """
  dropped = None
  if dropout:
    dropped = () if config.site == 'logits' else tuple(_last_dense(m) for m in (old, new))
  defaults = Config()
  shape = dataclasses.replace(config, noise=defaults.noise, dropout=defaults.dropout, reg=defaults.reg,
                              temperatures=defaults.temperatures)
  return Aligned(**_pair(old, new, {}), key=key, strength=jnp.float32(config.dropout if dropout else config.noise),
                 config=shape, dropped=dropped)


def _last_dense(classifier: Classifier) -> str:
  path = output_layer.output_layer(classifier)
  require(path is not None, f'{type(classifier.module).__name__} does not end in a dense layer, whose inputs could be '
          "dropped; use site='logits'.")
  return path


def _pair(old: Classifier, new: Classifier, parts: dict[str, jax.Array]) -> dict[str, Any]:
  require((old.input_shape, old.num_classes) == (new.input_shape, new.num_classes),
          f'Cannot combine a model of {old.num_classes} classes on inputs {old.input_shape} with one of '
          f'{new.num_classes} on {new.input_shape}.')
  return {'variables': {'old': old.variables, 'new': new.variables, **parts}, 'module': new.module,
          'input_shape': old.input_shape, 'num_classes': old.num_classes, 'mean': old.mean, 'std': old.std,
          'old_module': old.module, 'new_space': (new.mean, new.std)}
