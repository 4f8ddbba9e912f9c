"""Random image augmentation on the device, one key a sample."""
import jax
import jax.numpy as jnp

_MARGIN = {'shift': 2, 'crop_flip': 4}


def augment(x: jax.Array, kind: str, *, key: jax.Array) -> jax.Array:
  """Randomly moved (and, for 'crop_flip', mirrored) copies of images.

  Args:
    x: `[n, h, w, c]`, any dtype.
    kind: 'none'; 'shift' by up to 2 pixels each way; 'crop_flip' by up to 4, mirrored with probability 1/2. What moves
      in from outside is 0.
    key: consumed.
  Returns:
    An array like `x`.
  """
  if kind == 'none':
    return x
  m = _MARGIN[kind]
  padded = jnp.pad(x, ((0, 0), (m, m), (m, m), (0, 0)))
  k_move, k_flip = jax.random.split(key)
  corners = jax.random.randint(k_move, (x.shape[0], 2), 0, 2 * m + 1)
  crop = jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), x.shape[1:]))
  moved = crop(padded, corners)
  if kind == 'shift':
    return moved
  flip = jax.random.bernoulli(k_flip, shape=(x.shape[0], 1, 1, 1))
  return jnp.where(flip, moved[:, :, ::-1], moved)
