"""Spectra: how often an element of a network is covered by failing and by passing samples, and what that says of it.

Neurons (dense units, convolution channels): covered by a sample if the output, averaged over positions, exceeds a
threshold. Weights of a dense kernel: covered if their contribution |o_i W_ij| exceeds its own mean over all samples; W
cancels, so that all weights of an input unit share a count (except zeros, which are never covered), and counts are
vectors. A convolution's weights have the same property per input channel and tap, which tells nothing about output
channels: they are ranked by the score of their channel and by size.

Source: spectrum-based fault localization (Jones & Harrold 2005, Abreu et al. 2007, Wong et al. 2014); its use for
GenMuNN is a reconstruction, see `methods/neuron/genmunn.py`.

Decided here: a neuron's output is taken behind the BatchNorm, dropout and activation that read it directly. Where
something else reads it (an addition, a concatenation, nothing), there as it is: an output unit is covered by a logit
above the threshold.
"""
import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import intervene
from jaxfix.classifier import Classifier
from jaxfix.errors import require
from jaxfix.localize.batches import Batches
from jaxfix.localize.linear import kernel
from jaxfix.models.structure import trace_calls

Formula = Literal['ochiai', 'tarantula', 'dstar', 'jaccard']
FORMULAS: tuple[Formula, ...] = ('ochiai', 'tarantula', 'dstar', 'jaccard')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counts:
  """Of elements of any shape; float32 (exact below 2^24 samples).

  Attributes:
    ef, ep: failing and passing samples that cover the element.
    nf, np: those that do not.
  """
  ef: jax.Array
  ep: jax.Array
  nf: jax.Array
  np: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Spectrum:
  """Coverage of a network.

  Attributes:
    neurons: path -> counts `[units]` of a layer's dense units or channels.
    inputs: path of a Dense layer -> counts `[in]` that all nonzero weights of an input unit share.
    num_failing, num_passing: samples, float32 scalars.
  """
  neurons: dict[str, Counts]
  inputs: dict[str, Counts]
  num_failing: jax.Array
  num_passing: jax.Array


def suspiciousness(counts: Counts, formula: Formula = 'ochiai', star: int = 2) -> jax.Array:
  """Score of each element, >= 0, 0 where a denominator is 0.

  Tarantula (ef / (ef + nf)) / (ef / (ef + nf) + ep / (ep + np)); Ochiai ef / sqrt((ef + nf)(ef + ep)); D* ef^star /
  (ep + nf), the largest float32 where only its denominator is 0; Jaccard ef / (ef + nf + ep).

  >>> float(suspiciousness(Counts(8., 10., 2., 40.), 'tarantula'))
  0.8
  """
  require(formula in FORMULAS, f'formula must be one of {", ".join(FORMULAS)}, got {formula!r}.')
  ef, ep, nf, np_ = (jnp.asarray(count, jnp.float32) for count in (counts.ef, counts.ep, counts.nf, counts.np))
  if formula == 'tarantula':
    failing = _ratio(ef, ef + nf)
    return _ratio(failing, failing + _ratio(ep, ep + np_))
  if formula == 'ochiai':
    return _ratio(ef, jnp.sqrt(ef + nf) * jnp.sqrt(ef + ep))
  if formula == 'jaccard':
    return _ratio(ef, ef + nf + ep)
  certain = (ep + nf == 0) & (ef > 0)
  return jnp.where(certain, jnp.finfo(jnp.float32).max, _ratio(ef**star, ep + nf))


@functools.partial(jax.jit, static_argnames=('paths',))
def spectrum(classifier: Classifier, batches: Batches, *, paths: tuple[str, ...],
             threshold: jax.Array | float = 0.) -> Spectrum:
  """Counts coverage by the samples of `batches`, which fail or pass by what the network says of them.

  Args:
    classifier: the network; evaluation mode.
    batches: all samples.
    paths: Dense or Conv layers.
    threshold: t; a neuron is covered above it.
  """
  points = activation_points(classifier, paths)
  dense = tuple(path for path in paths if kernel(classifier, path).ndim == 2)

  def look(batch) -> tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]:
    """Failing `[n]` 0 or 1, neurons' outputs and size of the inputs of dense layers, both averaged over positions."""
    seen_in, seen_out = {}, {}

    def note(seen: dict[str, jax.Array], path: str) -> Callable[[jax.Array], jax.Array]:
      return lambda h: seen.__setitem__(path, h) or h

    logits = intervene.apply(classifier, classifier.normalize(batch.x),
                             inputs={path: note(seen_in, path) for path in dense},
                             outputs={point: note(seen_out, point) for point in points.values()})
    wrong = (logits.argmax(axis=-1) != batch.y) | ~jnp.isfinite(logits).all(axis=-1)
    return (wrong.astype(jnp.float32), {path: _over_positions(seen_out[points[path]]) for path in paths},
            {path: _over_positions(jnp.abs(seen_in[path])) for path in dense})

  def add_size(carry, batch):
    # Against the first sample: the mean of equal sizes is then that size, and rounding never puts it below them.
    first, total = carry
    sizes = look(batch)[2]
    first = {path: jnp.where(jnp.isnan(first[path]), sizes[path][0], first[path]) for path in dense}
    excess = {path: sizes[path] - first[path] for path in dense}
    return (first, {path: total[path] + jnp.einsum('n,ni->i', batch.weight, excess[path], precision='highest')
                    for path in dense}), None

  def add_counts(total, batch):
    wrong, out, sizes = look(batch)
    sets = jnp.stack([batch.weight * wrong, batch.weight * (1 - wrong)])
    covered = ({path: out[path] > threshold for path in paths}, {path: sizes[path] > means[path] for path in dense})
    gains = jax.tree.map(lambda c: jnp.einsum('sn,nu->su', sets, c.astype(jnp.float32), precision='highest'), covered)
    return jax.tree.map(jnp.add, total, (sets.sum(axis=1), *gains)), None

  means = {}
  if dense:
    nothing = {path: jnp.zeros(kernel(classifier, path).shape[0]) for path in dense}
    unknown = {path: jnp.full_like(zeros, jnp.nan) for path, zeros in nothing.items()}
    (first, excess), _ = jax.lax.scan(add_size, (unknown, nothing), batches)
    means = {path: first[path] + excess[path] / batches.count for path in dense}
  start = (jnp.zeros(2), {path: jnp.zeros((2, kernel(classifier, path).shape[-1])) for path in paths},
           {path: jnp.zeros((2, kernel(classifier, path).shape[0])) for path in dense})
  (totals, neurons, inputs), _ = jax.lax.scan(add_counts, start, batches)

  def counts(covered: jax.Array) -> Counts:
    return Counts(*covered, *(totals[:, None] - covered))

  return Spectrum({path: counts(c) for path, c in neurons.items()}, {path: counts(c) for path, c in inputs.items()},
                  *totals)


@functools.partial(jax.jit, static_argnames=('formula', 'star'))
def weight_scores(classifier: Classifier, found: Spectrum, *, formula: Formula = 'ochiai',
                  star: int = 2) -> dict[str, jax.Array]:
  """Suspiciousness of every kernel entry: path -> array like the kernel, >= 0.

  Dense: score of the weight times that of its unit. Convolution: score of the channel times
  |W(a, b, c, k)| / max |W(., ., ., k)|.
  """
  scores = {}
  for path, neurons in found.neurons.items():
    w, neuron = kernel(classifier, path), suspiciousness(neurons, formula, star)
    if path in found.inputs:
      own = suspiciousness(found.inputs[path], formula, star)
      scores[path] = jnp.where(w != 0, jnp.minimum(own[:, None] * neuron[None], jnp.finfo(jnp.float32).max), 0)
    else:
      scores[path] = scale_by_size(w, neuron)
  return scores


def scale_by_size(w: jax.Array, neuron: jax.Array) -> jax.Array:
  """Score `[units]` of neurons given to their incoming weights `[..., units]`, times their share of the largest."""
  size = jnp.abs(w)
  return neuron * _ratio(size, size.max(axis=tuple(range(w.ndim - 1)), keepdims=True))


def activation_points(classifier: Classifier, paths: tuple[str, ...]) -> dict[str, str]:
  """For each layer the module whose output counts as that of its neurons; see the head of this file."""
  made, points = {}, {path: path for path in paths}
  for call in trace_calls(classifier).calls:
    if call.kind in ('bn', 'dropout', 'relu', 'tanh', 'sigmoid'):
      for layer, value in made.items():
        if value is call.args[0]:
          points[layer] = call.path
          made[layer] = call.out if call.kind in ('bn', 'dropout') else None
    elif call.path in paths:
      made[call.path] = call.out
  return points


def top_entries(scores: np.ndarray, w: np.ndarray, count: int) -> np.ndarray:
  """Positions of the `count` largest scores in C order of a kernel; ties: larger |w| first, then lower position.

  Args:
    scores: like `w`; NaN counts as 0.
    w: the kernel.
    count: at most `w.size`.
  Returns:
    `[count]` int64, best first.
  """
  scores, size = np.nan_to_num(np.ravel(scores), posinf=np.finfo(np.float32).max), np.abs(np.ravel(w))
  candidates = np.flatnonzero(scores >= np.partition(scores, -count)[-count])   # sorting millions would cost seconds
  return candidates[np.lexsort((candidates, -size[candidates], -scores[candidates]))][:count]


def _over_positions(h: jax.Array) -> jax.Array:
  """Mean over all axes but the first and the last."""
  return h.mean(axis=tuple(range(1, h.ndim - 1)))


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
  """a / b, and 0 where b is 0."""
  return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)
