"""Forward impact: how much of what reaches the output passes through each kernel entry.

FI(w) = A(w) G(w). A is the share of a weight in the absolute contributions to its unit,
|o_i W_ij| / sum_i' |o_i' W_i'j|, and G the L1-normalized sensitivity |d(sum of outputs) / d(unit)|; both are means over
samples. For a convolution, units are positions of the output map, and FI sums over them.

With f(kernel, x) the layer as a linear map, sum_x |x-contribution| / den_x(unit) * G(unit) is |W| times the
vector-Jacobian product of f(., |x|) at G / f(|W|, |x|): dense and convolution, any stride and padding, one formula.

Source: Sohn, Kang, Yoo, "Arachne", TOSEM 2023, and its public code; the PSO generation's unnormalized impact from
eAI-Repair-Toolkit.
"""
import functools
from typing import Literal

import jax
import jax.numpy as jnp

from jaxfix import intervene
from jaxfix.classifier import Classifier
from jaxfix.localize.batches import Batches
from jaxfix.localize.gradient_loss import Head, identity
from jaxfix.localize.linear import kernel, linear_maps
from jaxfix.models.structure import trace_calls

ConvImpact = Literal['paper', 'public']


@functools.partial(jax.jit, static_argnames=('paths', 'head'))
def output_impact(classifier: Classifier, batches: Batches, *, paths: tuple[str, ...],
                  head: Head = identity) -> dict[str, jax.Array]:
  """G(j): mean over samples of |d(sum_c out_c)/dz_j| / sum_j' |d(sum_c out_c)/dz_j'|, z after the layer's activation.

  Args:
    classifier: the network; evaluation mode.
    batches: the set of samples.
    paths: layers.
    head: applied to the logits first, see `gradient_loss`.
  Returns:
    path -> array of the shape of one sample's output of that layer (`[units]` or `[h, w, channels]`), summing to 1
    (less where every derivative of a sample is 0: that sample counts 0).
  """
  after, final = _activated(classifier, paths)
  width = batches.y.shape[1]
  z = jax.ShapeDtypeStruct((width, *classifier.input_shape), jnp.float32)
  shapes = jax.eval_shape(lambda c, z: {p: out for p, (_, out) in intervene.record(c, z, paths).items()}, classifier, z)

  def total_output(nudges, x):
    moved = {after[path]: functools.partial(jnp.add, nudges[path]) for path in paths if path != final}
    scores = head(intervene.apply(classifier, classifier.normalize(x), outputs=moved))
    return (scores + nudges[final] if final else scores).sum()

  def add(total, batch):
    zeros = {path: jnp.zeros(shapes[path].shape) for path in paths}
    slopes = jax.tree.map(jnp.abs, jax.grad(total_output)(zeros, batch.x))
    shares = jax.tree.map(lambda g: _ratio(g, g.sum(axis=tuple(range(1, g.ndim)), keepdims=True)), slopes)
    return jax.tree.map(lambda t, g: t + jnp.einsum('n,n...->...', batch.weight, g), total, shares), None

  start = {path: jnp.zeros(shapes[path].shape[1:]) for path in paths}
  total, _ = jax.lax.scan(add, start, batches)
  return jax.tree.map(lambda g: g / batches.count, total)


@functools.partial(jax.jit, static_argnames=('paths', 'conv', 'head'))
def forward_impact(classifier: Classifier, batches: Batches, *, paths: tuple[str, ...], conv: ConvImpact = 'paper',
                   head: Head = identity) -> dict[str, jax.Array]:
  """FI(w) = A(w) G(w), the normalized forward impact of the DE generation of Arachne.

  Args:
    classifier: the network; evaluation mode.
    batches: the set of samples.
    paths: Dense or Conv layers.
    conv: 'paper' normalizes a convolution's contributions by sample and position as a dense layer's; 'public' follows
      the released code, which keeps their sign and divides by the absolute sum over the whole set, so that a
      convolution's impact is about n times smaller, and NaN wherever a position of the output sees nothing but zeros
      in all samples (the margin of MNIST): 0 / 0 is meant to be replaced there, but the result goes to a wrong name.
    head: see `output_impact`.
  Returns:
    path -> array like that layer's kernel; >= 0 but for 'public' convolutions.
  """
  impact = output_impact(classifier, batches, paths=paths, head=head)
  maps = linear_maps(classifier, paths)
  kernels = {path: kernel(classifier, path) for path in paths}
  signed = {path for path in paths if conv == 'public' and kernels[path].ndim > 2}

  def inputs(batch):
    seen = intervene.record(classifier, classifier.normalize(batch.x), paths)
    return {path: seen[path][0] for path in paths}

  def add_mass(total, batch):
    """Sum over the whole set of the absolute contributions to each unit."""
    o = inputs(batch)
    mass = {path: maps[path](jnp.abs(kernels[path]), jnp.abs(o[path])) for path in total}
    return {path: total[path] + jnp.einsum('n,n...->...', batch.weight, mass[path]) for path in total}, None

  def add(total, batch):
    o = inputs(batch)
    for path in paths:
      x = o[path] if path in signed else jnp.abs(o[path])
      den, pull = jax.vjp(lambda k, path=path, x=x: maps[path](k, x), jnp.abs(kernels[path]))
      share = jnp.broadcast_to(impact[path] / set_mass[path], den.shape) if path in signed else _ratio(
        impact[path], den)
      share *= batch.weight.reshape(-1, *(1,) * (share.ndim - 1))
      total = {**total, path: total[path] + pull(share)[0]}
    return total, None

  set_mass = {path: jnp.zeros_like(impact[path]) for path in paths if path in signed}
  if set_mass:
    set_mass, _ = jax.lax.scan(add_mass, set_mass, batches)
  total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, kernels), batches)
  return {path: total[path] * (kernels[path] if path in signed else jnp.abs(kernels[path])) / batches.count
          for path in paths}


@functools.partial(jax.jit, static_argnames=('paths',))
def raw_forward_impact(classifier: Classifier, batches: Batches, *, paths: tuple[str, ...]) -> dict[str, jax.Array]:
  """F(i, j) = mean over samples (and positions of a convolution) of |o_i W_ij|, the PSO generation's forward impact.

  Args:
    classifier: the network; evaluation mode.
    batches: the set of samples; all of them count (the toolkit reads the first one only).
    paths: Dense or Conv layers.
  Returns:
    path -> array like that layer's kernel, >= 0.
  """
  maps = linear_maps(classifier, paths)
  kernels = {path: kernel(classifier, path) for path in paths}

  def add(total, batch):
    seen = intervene.record(classifier, classifier.normalize(batch.x), paths)
    for path in paths:
      x = jnp.abs(seen[path][0])
      out, pull = jax.vjp(lambda k, path=path, x=x: maps[path](k, x), kernels[path])
      positions = out[0, ..., 0].size
      share = jnp.broadcast_to(batch.weight.reshape(-1, *(1,) * (out.ndim - 1)) / positions, out.shape)
      total = {**total, path: total[path] + pull(share)[0]}
    return total, None

  total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, kernels), batches)
  return {path: total[path] * jnp.abs(kernels[path]) / batches.count for path in paths}


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
  """a / b, and 0 where b is 0."""
  return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def _activated(classifier: Classifier, paths: tuple[str, ...]) -> tuple[dict[str, str], str | None]:
  """For each layer, the path of the activation that reads its output directly (else its own); and which is last.

  A layer of the original tool includes its activation; here that is a module of its own.
  """
  flow, made, after = trace_calls(classifier), {}, {path: path for path in paths}
  for call in flow.calls:
    if call.kind in ('relu', 'tanh', 'sigmoid'):
      after.update({path: call.path for path, value in made.items() if value is call.args[0]})
    if call.path in paths:
      made[call.path] = call.out
  return after, next((path for path in paths if made[path] is flow.logits), None)
