"""Networks with a counterexample that is there by construction and that neither samples nor gradients come upon.

A bump relu(1 - k sum_i |u_i (x - p)|) is 1 at the hidden point p, 0 beyond a few thousandths of it, and flat there.
Its neurons are split, rescaled by powers of two, permuted and passed on by a layer more, among neurons of an ordinary
random network whose own share of the output is small. Without the bump the property holds.
"""
import dataclasses

import numpy as np

from jaxfix.classifier import Classifier
from jaxfix.verify.spec import Box, Clause, Property
from tests.verify import networks

INPUTS, WIDTHS = 5, (28, 12, 12)
"""One structure for all of them, so that programs compile once."""

LIMIT = 0.6   # the property is y_0 - y_1 < 0.6 on the unit box
_SHARE = 0.35   # of the random part, at most, on all of the box
_SLOPES = {2: 2048., 3: 512., 4: 256., 5: 128.}   # narrow enough for 10,000 samples to miss the bump


@dataclasses.dataclass(frozen=True, eq=False)
class Planted:
  """A network, the same without its bump, the property that both are asked about, and the point that violates it."""
  network: Classifier
  harmless: Classifier
  property: Property
  point: np.ndarray


def planted(seed: int) -> Planted:
  """Number `seed` of the family; its bump is narrow in 2 + seed % 4 of the five inputs."""
  rng = np.random.default_rng(seed)
  free = 2 + seed % 4
  point = np.zeros(INPUTS)
  point[:] = np.round(rng.uniform(.1, .9, INPUTS) * 4096) / 4096   # the dot products below are exact in float32
  directions = np.zeros((free, INPUTS))
  chosen = rng.permutation(INPUTS)[:free]
  while abs(np.linalg.det(directions[:, chosen])) < .25:
    directions[:, chosen] = rng.integers(-8, 9, (free, free)) / 8
  random = _random_part(rng)
  rewriting = rng.integers(2**32)
  build = lambda amplitude: networks.from_weights(_rewritten(
    _with_bump(random, directions, point, _SLOPES[free], amplitude), np.random.default_rng(rewriting)))
  clause = Clause([[1., -1.]], [LIMIT], strict=True)
  return Planted(build(1.), build(0.), Property(Box(np.zeros(INPUTS), np.ones(INPUTS)), (clause,)), point)


def _random_part(rng):
  """An ordinary network (in, out) by (in, out), of 8 and 4 neurons, whose outputs differ by at most `_SHARE`."""
  w1, b1 = rng.normal(size=(INPUTS, 8)), rng.normal(size=8) / 2
  w2, b2 = rng.normal(size=(8, 4)) / 2, rng.normal(size=4) / 2
  w3 = rng.normal(size=(4, 2))
  most1 = np.maximum(np.maximum(w1, 0).sum(axis=0) + b1, 0)
  most2 = np.maximum(most1 @ np.maximum(w2, 0) + b2, 0)
  w3 *= _SHARE / (most2 @ np.abs(w3[:, 0] - w3[:, 1]) + 1e-9)
  return (w1, b1), (w2, b2), (w3, rng.normal() * np.ones(2))


def _with_bump(random, directions, point, slope, amplitude):
  (w1, b1), (w2, b2), (w3, b3) = random
  u = np.concatenate([directions, -directions]).T                # |z| = relu(z) + relu(-z)
  first = np.concatenate([u, w1], axis=1), np.concatenate([-point @ u, b1])
  second = np.zeros((first[0].shape[1], 1 + w2.shape[1]))
  second[:u.shape[1], 0], second[u.shape[1]:, 1:] = -slope, w2
  bump = np.array([[.75, -.25]]) * amplitude
  return [first, (second, np.concatenate([[1.], b2])), (np.concatenate([bump, w3]), b3)]


def _rewritten(layers, rng):
  """The same function, up to the rounding of the random part: weights of the bump stay exact."""
  first, second, third = layers
  width = second[0].shape[1]
  scale = 2.**rng.integers(-2, 3, width)
  passed = np.diag(scale), np.zeros(width)                       # a layer more: relu(s relu(v)) = s relu(v)
  layers = [first, second, passed, (third[0] / scale[:, None], third[1])]
  for i, size in enumerate(WIDTHS):
    (w, b), (after, offset) = layers[i], layers[i + 1]
    while w.shape[1] < size:
      kind, at = rng.integers(3), rng.integers(w.shape[1])
      if kind == 0:                                              # one neuron becomes two, with a share of its output
        share = float(rng.choice([.25, .5, .75, 2.]))
        w, b = np.concatenate([w, w[:, at:at + 1]], axis=1), np.append(b, b[at])
        after = np.concatenate([after, (1 - share) * after[at:at + 1]])
        after[at] *= share
      elif kind == 1:                                            # a neuron that nobody listens to
        w, b = np.concatenate([w, rng.normal(size=(len(w), 1))], axis=1), np.append(b, rng.normal())
        after = np.concatenate([after, np.zeros((1, after.shape[1]))])
      else:                                                      # a neuron that never fires: inputs are never negative
        w = np.concatenate([w, -np.abs(rng.normal(size=(len(w), 1)))], axis=1)
        b, after = np.append(b, -.1), np.concatenate([after, rng.normal(size=(1, after.shape[1]))])
    order, scale = rng.permutation(size), 2.**rng.integers(-3, 4, size)
    layers[i] = (w * scale)[:, order], (b * scale)[order]
    layers[i + 1] = (after / scale[:, None])[order], offset
  return layers
