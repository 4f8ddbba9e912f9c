"""Fit, apply and measure a post-processing method."""
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxfix import evaluate, predict
from jaxfix.classifier import Classifier
from jaxfix.errors import BadInputError, UnknownNameError, require
from jaxfix.evaluate import PGD, Comparison
from jaxfix.postprocess import combined, fit
from jaxfix.postprocess.config import Config
from jaxfix.problem import Subject

NAMES = ('sv', 'hv', 'up', 'ud', 'us', 'us_cal', 'us_k')
_FITTED, _LABELED, _NOISY = ('us', 'us_cal', 'us_k'), ('us_cal', 'us_k'), ('up', 'ud')
_NOISE = 2   # stream of a comparison's key; the attack has 0 and 1


@dataclasses.dataclass(frozen=True)
class PostProcessor:
  """One method on one pair of models.

  Attributes:
    method: one of `NAMES`.
    old, new: original and repaired model.
    config: options.
    fitted: parameters found by `fit`, None before; {} for methods that need none.
  """
  method: str
  old: Classifier
  new: Classifier
  config: Config = Config()
  fitted: Mapping[str, float] | None = None

  def fit(self, x_val: Any, y_val: np.ndarray | None = None, *, batch_size: int = predict.DEFAULT_BATCH
          ) -> 'PostProcessor':
    """The same with its parameters fitted; methods without parameters ignore the data.

    Args:
      x_val: `[n, *input_shape]`, raw validation inputs.
      y_val: `[n]` labels; us_cal and us_k need them.
      batch_size: of predictions.
    """
    if self.method not in _FITTED:
      return self
    require(self.method not in _LABELED or y_val is not None, f'{self.method} is fitted to labels: give y_val.')
    zo, zn = (predict.logits(model, x_val, batch_size=batch_size) for model in (self.old, self.new))
    y = None if y_val is None else np.asarray(y_val, np.int32)
    fitted = {
      'us': lambda: fit.fit_us(zo, zn, reg=self.config.reg, bounds=self.config.temperatures),
      'us_cal': lambda: fit.fit_us_cal(zo, zn, y, bounds=self.config.temperatures),
      'us_k': lambda: fit.fit_us_k(zo, zn, y),
    }[self.method]()
    return dataclasses.replace(self, fitted=fitted)

  def classifier(self, key: jax.Array | None = None) -> Classifier:
    """The combination as a classifier, for predictions and attacks.

    Args:
      key: of the noise of up and ud; the others ignore it.
    Raises:
      BadInputError: a method that must be fitted is not, or one that draws noise has no key.
    """
    if self.method in _NOISY:
      require(key is not None, f'{self.method} draws noise: give a key.')
      return combined.aligned(self.old, self.new, self.config, dropout=self.method == 'ud', key=key)
    if self.fitted is None:
      raise BadInputError(f'{self.method} has parameters: call fit with validation data first.')
    options = {
      'sv': lambda p: {}, 'hv': lambda p: {'hard': True}, 'us': lambda p: {'temperatures': (p['temperature'], 1.)},
      'us_cal': lambda p: {'temperatures': (p['temperature_old'], p['temperature_new'])},
      'us_k': lambda p: {'weight_old': p['k']},
    }[self.method](self.fitted)
    return combined.pooled(self.old, self.new, **options)

  def scores(self, x: Any, key: jax.Array | None = None, *, batch_size: int = predict.DEFAULT_BATCH) -> np.ndarray:
    """Combined probabilities `[n, c]` float32 of raw inputs; rows sum to 1. The batch size changes nothing."""
    logits = predict.logits(self.classifier(key), x, batch_size=batch_size)
    p = np.exp(logits.astype(np.float64))
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def postprocess(method: str, old: Classifier, new: Classifier, config: Config | None = None) -> PostProcessor:
  """The method `method` on an original and a repaired model.

  Raises:
    UnknownNameError: no such method.
    BadInputError: the models take other inputs, or have other classes.
  """
  if method not in NAMES:
    raise UnknownNameError('post-processing method', method, NAMES)
  combined.pooled(old, new)   # refuses models that do not fit together
  return PostProcessor(method, old, new, config or Config(), None if method in _FITTED else {})


def combine_and_compare(method: str, original: Classifier, repaired: Classifier, subject: Subject, *, key: jax.Array,
                        config: Config | None = None, **options: Any) -> tuple[Comparison, dict[str, Any]]:
  """Fits on the validation split and compares the combination with the original on the test split.

  Args:
    method: one of `NAMES`.
    original, repaired: the two models.
    subject: gives the splits and the radius of the attack.
    key: of the attack, used as it is: with the key that the repaired model was attacked under, its figures and those
      of the combination rest on the same draws. The noise has a stream of its own.
    config: of the method.
    options: of `evaluate.compare_repeats`, in place of the subject's attack and repair split: `pgd=None` for no attack.
  Returns:
    The comparison, and what describes the combination: 'method', 'config', 'fitted', 'fit_seconds'.
  """
  return combine_and_compare_repeats(method, original, [repaired], subject, key=key, config=config, **options)[0]


def combine_and_compare_repeats(method: str, original: Classifier, repaired: Sequence[Classifier], subject: Subject, *,
                                key: jax.Array, config: Config | None = None, **options: Any
                                ) -> list[tuple[Comparison, dict[str, Any]]]:
  """The same for the repeats of an approach: attacked are inputs that the original and all combinations get right."""
  valid, models, descriptions = subject.problem.valid, [], []
  for i, model in enumerate(repaired):
    start = time.perf_counter()
    fitted = postprocess(method, original, model, config).fit(valid.x, valid.y)
    seconds = time.perf_counter() - start
    models.append(fitted.classifier(jax.random.fold_in(jax.random.fold_in(key, _NOISE), i)))
    descriptions.append({'method': method, 'config': dataclasses.asdict(fitted.config), 'fitted': dict(fitted.fitted),
                         'fit_seconds': seconds if fitted.fitted else 0.})
  options = {'pgd': PGD(subject.pgd_epsilon), 'repair_split': subject.problem.repair, **options}
  comparisons = evaluate.compare_repeats(original, models, subject.test, key=key, **options)
  return list(zip(comparisons, descriptions, strict=True))
