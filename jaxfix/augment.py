"""Random image augmentation on the device, one key a sample."""
import jax
import jax.numpy as jnp
from jax.scipy import ndimage

_MARGIN = {'shift': 2, 'crop_flip': 4}
_ROTATION = jnp.pi / 6   # at most, either way


def augment(x: jax.Array, kind: str, *, key: jax.Array) -> jax.Array:
  """Randomly moved (and, for some kinds, turned or mirrored) copies of images.

  Args:
    x: `[n, h, w, c]`, any dtype.
    kind: 'none'; 'shift' by up to 2 pixels each way; 'crop_flip' by up to 4, mirrored with probability 1/2; 'rotate' by
      up to 30 degrees each way, then as 'crop_flip'. What moves in from outside is 0.
    key: consumed.
  Returns:
    An array like `x`.
  """
  if kind == 'none':
    return x
  if kind == 'rotate':
    k_turn, key = jax.random.split(key)
    angles = jax.random.uniform(k_turn, (x.shape[0],), minval=-_ROTATION, maxval=_ROTATION)
    x, kind = jax.vmap(rotate)(x, angles), 'crop_flip'
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


def rotate(image: jax.Array, angle: jax.Array) -> jax.Array:
  """`[h, w, c]` turned about its middle by `angle` radians, bilinear, 0 outside; the dtype of `image`."""
  h, w, _ = image.shape
  i, j = jnp.meshgrid(jnp.arange(h) - (h - 1) / 2, jnp.arange(w) - (w - 1) / 2, indexing='ij')
  at = [jnp.cos(angle) * i + jnp.sin(angle) * j + (h - 1) / 2, jnp.cos(angle) * j - jnp.sin(angle) * i + (w - 1) / 2]
  turned = jax.vmap(lambda plane: ndimage.map_coordinates(plane, at, order=1), -1, -1)(image.astype(jnp.float32))
  return jnp.round(turned).astype(image.dtype) if jnp.issubdtype(image.dtype, jnp.integer) else turned
