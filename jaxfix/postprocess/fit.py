"""Temperatures and mixture weights, fitted to validation logits on the device.

One dimension needs no optimizer: the logarithm of the temperature is bracketed on a grid of 64 points and narrowed by
golden section. Deterministic, and the same program for every data set of a size.
"""
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix.errors import require
from jaxfix.postprocess import rules

_GRID = 64
_SECTIONS = 34   # from two steps of the grid to the resolution of float32
_RATIO = (5 ** 0.5 - 1) / 2
_MIXTURES = 1001
SOFTEST_WITHOUT_REFIT = 0.8
"""Below this temperature the regularizer, which pulls towards 0, is dropped (Li et al., code)."""


def fit_us(zo: np.ndarray, zn: np.ndarray, *, reg: float, bounds: tuple[float, float]) -> dict[str, float]:
  """Temperature of the old model at which its softmax is nearest to the new one's: mean square + reg T^2.

  Args:
    zo, zn: `[n, c]` logits of old and new on the same inputs. No labels.
    reg: weight of the regularizer in the first stage.
    bounds: of the temperature.
  Returns:
    'temperature'; 'loss', the mean square alone; 'objective', what was minimized; 'reg', its weight there.
  """
  _check(zo, zn)
  temperature, objective, loss = map(float, _fit_us(zo, zn, reg, bounds))
  if temperature < SOFTEST_WITHOUT_REFIT and reg:
    reg = 0.
    temperature, objective, loss = map(float, _fit_us(zo, zn, reg, bounds))
  return {'temperature': temperature, 'loss': loss, 'objective': objective, 'reg': reg}


def fit_us_cal(zo: np.ndarray, zn: np.ndarray, y: np.ndarray, *, bounds: tuple[float, float]) -> dict[str, float]:
  """Temperature of each model at its least negative log likelihood of the labels `[n]`; also that likelihood."""
  _check(zo, zn, y)
  (old, nll_old), (new, nll_new) = (map(float, _fit_nll(z, y, bounds)) for z in (zo, zn))
  return {'temperature_old': old, 'temperature_new': new, 'nll_old': nll_old, 'nll_new': nll_new}


def fit_us_k(zo: np.ndarray, zn: np.ndarray, y: np.ndarray) -> dict[str, float]:
  """Weight k of the old model, in 0, 0.001, ..., 1: least negative flips at no less accuracy than the new model's.

  Among equals the smallest, nearest to the new model. k = 0 always qualifies.
  """
  _check(zo, zn, y)
  right, flips, right_new = jax.device_get(_mixtures(zo, zn, y))
  i = int(np.argmin(np.where(right >= right_new, flips, len(y) + 1)))
  return {'k': i / (_MIXTURES - 1), 'nfr_valid': int(flips[i]) / len(y), 'acc_valid': int(right[i]) / len(y),
          'acc_valid_new': int(right_new) / len(y)}


def _check(zo: np.ndarray, zn: np.ndarray, y: np.ndarray | None = None) -> None:
  require(len(zo) > 0 and zo.shape == zn.shape, f'Cannot fit to logits of shapes {zo.shape} and {zn.shape}.')
  require(y is None or len(y) == len(zo), f'{len(zo)} rows of logits, but {0 if y is None else len(y)} labels.')
  for name, z in (('original', zo), ('repaired', zn)):
    require(bool(np.isfinite(z).all()), f'The {name} model gives logits that are not finite on the validation split.')


def _search(loss: Callable[[jax.Array], jax.Array], bounds: tuple[jax.Array, jax.Array]) -> jax.Array:
  """argmin of `loss` over positive arguments within bounds."""
  grid = jnp.linspace(jnp.log(bounds[0]), jnp.log(bounds[1]), _GRID)
  at = lambda u: loss(jnp.exp(u))
  best = jnp.argmin(jax.lax.map(at, grid))
  a, b = grid[jnp.maximum(best - 1, 0)], grid[jnp.minimum(best + 1, _GRID - 1)]
  c, d = b - _RATIO * (b - a), a + _RATIO * (b - a)

  def narrow(_, state):
    a, b, c, d, fc, fd = state
    left = fc <= fd   # the minimum lies in [a, d], else in [c, b]
    a, b = jnp.where(left, a, c), jnp.where(left, d, b)
    probe = jnp.where(left, b - _RATIO * (b - a), a + _RATIO * (b - a))
    value = at(probe)
    return (a, b, jnp.where(left, probe, d), jnp.where(left, c, probe), jnp.where(left, value, fd),
            jnp.where(left, fc, value))

  a, b, *_ = jax.lax.fori_loop(0, _SECTIONS, narrow, (a, b, c, d, at(c), at(d)))
  return jnp.clip(jnp.exp((a + b) / 2), *bounds)


@jax.jit
def _fit_us(zo: jax.Array, zn: jax.Array, reg: jax.Array, bounds: tuple[jax.Array, jax.Array]):
  pn = jax.nn.softmax(zn)
  square = lambda t: jnp.mean((jax.nn.softmax(zo / t) - pn) ** 2)
  objective = lambda t: square(t) + reg * t ** 2
  t = _search(objective, bounds)
  return t, objective(t), square(t)


@jax.jit
def _fit_nll(z: jax.Array, y: jax.Array, bounds: tuple[jax.Array, jax.Array]):
  own = jnp.take_along_axis(z, y[:, None], axis=1)[:, 0]
  nll = lambda t: jnp.mean(jax.nn.logsumexp(z / t, axis=1) - own / t)
  t = _search(nll, bounds)
  return t, nll(t)


@functools.partial(jax.jit)
def _mixtures(zo: jax.Array, zn: jax.Array, y: jax.Array):
  """Right answers and negative flips of every mixture `[1001]`, and right answers of the new model."""
  po, pn = jax.nn.softmax(zo), jax.nn.softmax(zn)
  right_old = po.argmax(axis=1) == y

  def measure(k):
    right = rules.pool(po, pn, k).argmax(axis=1) == y
    return right.sum(), (right_old & ~right).sum()

  right, flips = jax.lax.map(measure, jnp.arange(_MIXTURES) / (_MIXTURES - 1))
  return right, flips, (pn.argmax(axis=1) == y).sum()
