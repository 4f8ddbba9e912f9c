"""How two softmax outputs become one: pure functions of `po`, `pn` `[..., c]`, old (original) and new (repaired)."""
import jax
import jax.numpy as jnp

VARIANCE_FLOOR = 1e-3
"""Variances are clipped to [this, 1 - this]."""


def pool(po: jax.Array, pn: jax.Array, weight_old: jax.Array | float = 0.5) -> jax.Array:
  """Soft voting: `weight_old` po + (1 - `weight_old`) pn."""
  return weight_old * po + (1 - weight_old) * pn


def hard_vote(po: jax.Array, pn: jax.Array) -> jax.Array:
  """The row of the model whose largest probability is larger; of the new one at a tie.

  Where both give one label, so does the row. With two voters a vote is a tie wherever it matters, so that confidence
  decides.
  """
  return jnp.where(po.max(axis=-1, keepdims=True) > pn.max(axis=-1, keepdims=True), po, pn)


def variance(p: jax.Array) -> jax.Array:
  """`[n]`: population variance over the draws of `[draws, n, c]`, summed over classes, clipped."""
  return jnp.clip(p.var(axis=0).sum(axis=-1), VARIANCE_FLOOR, 1 - VARIANCE_FLOOR)


def alignment_weights(vo: jax.Array, vn: jax.Array, *, prior: bool = True, weights: str = 'variance'
                      ) -> tuple[jax.Array, jax.Array]:
  """Weights `[n]` of old and new, which sum to 1, from their variances `[n]`: the stabler model counts more.

  'variance': in inverse proportion to the variances; with `prior` half of that, and the other half on the new model.
  'paper': in inverse proportion to the standard deviations: 1 / alpha with alpha_old^2 = (vo + vn) / (2 vn) and
  alpha_new^2 = (vo + vn) / (2 vo), scaled to sum 1.
  """
  if weights == 'paper':
    vo, vn = jnp.sqrt(vo), jnp.sqrt(vn)
    return vn / (vo + vn), vo / (vo + vn)
  wo, wn = vn / (vo + vn), vo / (vo + vn)
  return (wo / 2, wn / 2 + 0.5) if prior else (wo, wn)


def align(mo: jax.Array, mn: jax.Array, vo: jax.Array, vn: jax.Array, *, prior: bool = True,
          weights: str = 'variance') -> jax.Array:
  """`alignment_weights` of vo, vn `[n]` applied to mo, mn `[n, c]`."""
  wo, wn = alignment_weights(vo, vn, prior=prior, weights=weights)
  return wo[..., None] * mo + wn[..., None] * mn
