"""How many samples and candidates are evaluated at once, so that memory is bounded by choice and not by luck."""
import dataclasses
import math
from collections.abc import Sequence

import jax

from jaxfix import devices
from jaxfix.classifier import Classifier
from jaxfix.models.structure import Layer, layer_list


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How many samples (`rows`) and candidates (`group`) are evaluated at once."""
  rows: int
  group: int


def choose_tiling(classifier: Classifier, layers: tuple[str, ...], size: int, num_samples: int,
                  budget_bytes: int | None = None) -> Tiling:
  """A tiling whose largest activation, over one block of samples and one group of candidates, fits a budget.

  Args:
    classifier: the network.
    layers: the layers that candidates differ in; those before the first of them are not evaluated.
    size: candidates in the population.
    num_samples: samples.
    budget_bytes: None for a size that suits the caches of a CPU, 1 GiB on an accelerator, and at most about a
      sixteenth of the free memory (a power of two, so that the same machine tiles, and rounds, the same way).
  """
  if budget_bytes is None:
    usual = 4 << 20 if jax.default_backend() == 'cpu' else 1 << 30
    budget_bytes = min(usual, 1 << max(20, devices.free_bytes().bit_length() - 5))
  widest = max(math.prod(layer.output_shape) for layer in layers_from(classifier, layers))
  pairs = max(1, budget_bytes // (4 * widest))
  rows = min(pairs, 1024, num_samples)
  group = min(size, max(1, pairs // rows))
  return Tiling(rows, group)


def layers_from(classifier: Classifier, paths: tuple[str, ...]) -> Sequence[Layer]:
  """The layers from the first of `paths` on, in the order of a forward pass."""
  every = layer_list(classifier)
  return every[min(i for i, layer in enumerate(every) if layer.path in paths):]
