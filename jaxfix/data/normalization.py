"""Mean and deviation of pixels, exactly."""
import math

import numpy as np

_CHUNK = 4096  # images at once: bounds the memory of the 64-bit copies


def channel_statistics(x: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and population standard deviation a channel of uint8 images `[n, h, w, c]`, n > 0, in units of pixels / 255.

  Sums are integers, so the result does not depend on order, platform or thread count. A constant channel gets 1 / 255
  instead of 0, so that normalized inputs stay finite.
  """
  channels = x.shape[-1]
  total, squares = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
  for start in range(0, len(x), _CHUNK):
    part = x[start:start + _CHUNK].reshape(-1, channels).astype(np.int64)
    total += part.sum(axis=0)
    squares += np.square(part).sum(axis=0)
  count = x.size // channels
  # Python integers: the product of two sums leaves 64 bits.
  variances = [(count * int(q) - int(t) ** 2) / count ** 2 for t, q in zip(total, squares, strict=True)]
  return (tuple(int(t) / count / 255 for t in total),
          tuple(max(math.sqrt(v), 1.) / 255 for v in variances))
