"""A network seen from one Dense or Conv layer: what its logits do, to first order, when that layer's weights change.

With the tail's derivative taken at the original activations, logits are affine in the layer's weights; that is exact
for the decoupled network (`models/decoupled.py`, Theorem 2 of PRDNN) and a first-order model of the network itself:

  logits(theta + d) = y + J d,   J d = T (W(d) h + b(d)),

h the layer's input, T = d logits / d (output of the layer). Conditions on the logits thus become linear rows in d.
Everything here is float64 and computed on the host's CPU: these numbers feed solvers.
"""
import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.extend import core

from jaxfix import intervene
from jaxfix.classifier import Classifier
from jaxfix.errors import RepairFailure, Unadaptable, require
from jaxfix.models import structure
from jaxfix.solve import RankOneRows

ROW_BYTES = 4 * 2**30
"""Largest matrix of rows that is made for a convolution (dense layers need none)."""

_BATCH_ENTRIES = 2**25   # float64 numbers of one batch of derivatives: 256 MiB


@contextlib.contextmanager
def float64() -> Iterator[None]:
  """Within it JAX computes in float64, on the CPU where the platform has one."""
  try:
    device = jax.local_devices(backend='cpu')[0]
  except RuntimeError:   # an accelerator only: its float64 has to do
    device = None
  with jax.enable_x64(True), jax.default_device(device):
    yield


def to_float64(tree: Any) -> Any:
  """A classifier, or a tree of arrays, with float64 leaves; call it within `float64()`."""
  return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(jax.device_get(leaf), np.float64)), tree)


def logits_at(classifier: Classifier, points: 'Points', *, exact: bool, batch_size: int = 256) -> np.ndarray:
  """Logits `[n, c]` at the points, of a decoupled network with the masks of their `rep`.

  Args:
    classifier: the model; decoupled if the points have `rep`.
    points: where.
    exact: in float64 on the CPU; else in float32 on the device, as a user runs the network.
    batch_size: points computed at once.
  """
  dtype, out = np.float64 if exact else np.float32, []
  with float64() if exact else contextlib.nullcontext(), jax.default_matmul_precision('highest'):
    classifier = to_float64(classifier) if exact else classifier
    for start in range(0, len(points), batch_size):
      index = np.minimum(start + np.arange(batch_size), len(points) - 1)   # padded to one shape
      z, rep = (None if a is None else np.asarray(a[index], dtype) for a in (points.z, points.rep))
      out.append(np.asarray(_logits_at(classifier, z, rep), np.float64)[:len(points) - start])
  return np.concatenate(out)


@jax.jit
def _logits_at(classifier: Classifier, z: jax.Array, rep: jax.Array | None) -> jax.Array:
  options = {} if rep is None else {'rep': rep}
  return classifier.module.apply(classifier.variables, z, train=False, **options)


def find_layer(classifier: Classifier, path: str | None) -> structure.Layer:
  """The layer whose weights may change.

  Args:
    classifier: the model.
    path: of a Dense or Conv layer; None for the last one.
  Raises:
    Unadaptable: there is no such layer, it is of another kind, or it is called more than once.
  """
  calls = structure.layer_list(classifier)
  editable = [layer for layer in calls if layer.kind in ('dense', 'conv')]
  if not editable:
    raise Unadaptable('the network has no Dense or Conv layer whose weights could change.')
  path = editable[-1].path if path is None else path
  found = [layer for layer in calls if layer.path == path]
  names = ', '.join(dict.fromkeys(layer.path for layer in editable))
  if not found:
    raise Unadaptable(f'the network has no layer {path!r}; its Dense and Conv layers are {names}.')
  if found[0].kind not in ('dense', 'conv'):
    raise Unadaptable(f'layer {path!r} is of kind {found[0].kind}; only Dense and Conv layers have weights that enter '
                      f'linearly: {names}.')
  if len(found) > 1:
    raise Unadaptable(f'layer {path!r} is called {len(found)} times; its weights do not enter linearly.')
  return found[0]


# --- What follows the layer ---

_LINEAR = frozenset((
  'add', 'add_any', 'broadcast_in_dim', 'concatenate', 'conv_general_dilated', 'convert_element_type', 'copy', 'cumsum',
  'div', 'dot_general', 'dynamic_slice', 'gather', 'mul', 'name', 'neg', 'pad', 'reduce_sum', 'reduce_window_sum',
  'reshape', 'rev', 'select_n', 'slice', 'split', 'squeeze', 'sub', 'transpose'))
_NO_SLOPE = frozenset((
  'argmax', 'argmin', 'ceil', 'custom_vjp_call', 'floor', 'io_callback', 'nextafter', 'pure_callback', 'random_bits',
  'round', 'sign', 'top_k', 'while'))
_CALLS = ('jit', 'pjit', 'closed_call', 'custom_jvp_call', 'remat', 'checkpoint')


def tail_is_affine(classifier: Classifier, layer: str) -> bool:
  """Whether the logits are an affine function of the output of `layer`, seen in the traced program.

  Raises:
    Unadaptable: an operation after the layer has no derivative to repair by; it is named.
  """
  z = jnp.zeros((1, *classifier.input_shape), jnp.float32)
  output = jax.eval_shape(lambda z: intervene.record(classifier, z, (layer,))[layer][1], z)
  traced = jax.make_jaxpr(lambda y: intervene.apply(classifier, z, outputs={layer: y}))(output)
  affine, without_slope, _ = _follow(traced.jaxpr, [True])
  if without_slope:
    raise Unadaptable(f'unsupported op {without_slope!r} after layer {layer!r}: it has no derivative to repair by.')
  return affine


def _follow(jaxpr: core.Jaxpr, moving: list[bool]) -> tuple[bool, str, list[bool]]:
  """(affine, first operation without a slope or '', which outputs move) when the inputs marked `moving` move."""
  moves = {v for v, m in zip(jaxpr.invars, moving, strict=True) if m}
  affine, without_slope = True, ''
  for eqn in jaxpr.eqns:
    reads = [isinstance(v, core.Var) and v in moves for v in eqn.invars]
    if not any(reads):
      continue
    name, outputs = eqn.primitive.name, [True] * len(eqn.outvars)
    inner = eqn.params.get('jaxpr', eqn.params.get('call_jaxpr'))
    if name in _CALLS and inner is not None:
      inner_affine, inner_without, outputs = _follow(getattr(inner, 'jaxpr', inner), reads)
      affine = affine and inner_affine
      if name != 'custom_jvp_call':   # that brings its own slope
        without_slope = without_slope or inner_without
    else:
      must_rest = {'select_n': reads[:1], 'gather': reads[1:], 'dynamic_slice': reads[1:], 'div': reads[1:]}
      product = name in ('mul', 'dot_general', 'conv_general_dilated') and sum(reads) > 1
      real = all(jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in eqn.outvars)
      affine = affine and name in _LINEAR and real and not product and not any(must_rest.get(name, []))
      without_slope = without_slope or (name if name in _NO_SLOPE else '')
    moves.update(v for v, m in zip(eqn.outvars, outputs, strict=True) if m)
  return affine, without_slope, [isinstance(v, core.Var) and v in moves for v in jaxpr.outvars]


# --- Conditions on the logits, and the rows that they become ---


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
  """Linear conditions on the logits at finitely many points; either `label` or both of `matrix` and `limit`.

  Attributes:
    z: `[n, *input_shape]`, float32, normalized inputs.
    label: `[n]` int: logit `label` is above every other one.
    matrix, limit: `[n, r, c]` and `[n, r]`, float64: matrix @ logits <= limit.
    rep: `[n, *input_shape]`, float32, where the masks are taken (`Decoupled`), or None for z.
  """
  z: np.ndarray
  label: np.ndarray | None = None
  matrix: np.ndarray | None = None
  limit: np.ndarray | None = None
  rep: np.ndarray | None = None

  def __post_init__(self):
    labeled = self.label is not None and self.matrix is None and self.limit is None
    general = self.label is None and self.matrix is not None and self.limit is not None
    require(labeled or general, 'Points need either label, or matrix and limit.')
    require(self.rep is None or np.shape(self.rep) == np.shape(self.z),
            f'rep must have the shape of z, {np.shape(self.z)}, got {np.shape(self.rep)}.')
    if labeled:
      require(np.shape(self.label) == (len(self.z),), f'label must have shape ({len(self.z)},), got '
              f'{np.shape(self.label)}.')
    else:
      shape = np.shape(self.matrix)
      require(len(shape) == 3 and shape[0] == len(self.z) and np.shape(self.limit) == shape[:2],
              f'matrix must be [n, r, c] and limit [n, r] with n = {len(self.z)}, got {shape} and '
              f'{np.shape(self.limit)}.')

  def __len__(self) -> int:
    return len(self.z)

  def take(self, indices: np.ndarray) -> 'Points':
    """The points at `indices`."""
    return Points(*(None if a is None else np.asarray(a)[indices]
                    for a in (self.z, self.label, self.matrix, self.limit, self.rep)))

  def with_own_masks(self) -> 'Points':
    """These points, and then each of them once more with its own masks in place of those of `rep`."""
    twice = self.take(np.tile(np.arange(len(self)), 2))
    return dataclasses.replace(twice, rep=np.concatenate([self.z if self.rep is None else self.rep, self.z]))

  def conditions(self, indices: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """`a` `[k, r, c]` and `b` `[k, r]` such that the points at `indices` ask for a @ logits >= b.

    Labels give the rows e_label - e_j, j ascending, and b = 0.
    """
    if self.label is None:
      return -np.asarray(self.matrix, np.float64)[indices], -np.asarray(self.limit, np.float64)[indices]
    label, one_hot = np.asarray(self.label)[indices], np.eye(num_classes)
    others = np.arange(num_classes - 1) + (np.arange(num_classes - 1) >= label[:, None])
    return one_hot[label][:, None] - one_hot[others], np.zeros(others.shape)

  def excess(self, logits: np.ndarray) -> np.ndarray:
    """a @ logits - b, `[n, r]` float64, of logits `[n, c]`: how far each condition is met; negative where it is not."""
    a, b = self.conditions(np.arange(len(self)), logits.shape[-1])
    return np.einsum('nrc,nc->nr', a, np.asarray(logits, np.float64)) - b


@dataclasses.dataclass(frozen=True, eq=False)
class Constraints:
  """What `Points` ask of the change d of one layer's weights: `rows @ d >= need + margin`.

  Attributes:
    rows: `[N, p]`: factors for a dense layer, else a dense float64 matrix. Rows are in the order of the points, then of
      their conditions; columns are the kernel (dense: output-major, as V-section 8 has it), then the bias.
    need: `[N]` float64: what the condition lacks at d = 0; negative where it is met.
    point: `[N]`: index of the point of each row.
    free: `[p]` bool: whether that weight may change.
    num_free: how many may.
    columns: `[p]`: where the columns lie in the whole of kernel and bias.
    shape: of the kernel, in Flax's order. has_bias: whether the layer has one. dense: whether `rows` are factors.
  """
  rows: RankOneRows | np.ndarray
  need: np.ndarray
  point: np.ndarray
  free: np.ndarray
  columns: np.ndarray
  shape: tuple[int, ...]
  has_bias: bool
  dense: bool

  @property
  def num_free(self) -> int:
    """Number of weights that may change."""
    return int(self.free.sum())

  def take_points(self, keep: np.ndarray) -> 'Constraints':
    """The rows of the points marked in `keep` `[n]` bool."""
    chosen = np.flatnonzero(keep[self.point])
    rows = self.rows
    rows = RankOneRows(rows.u[chosen], rows.h, rows.point[chosen]) if self.dense else rows[chosen]
    return dataclasses.replace(self, rows=rows, need=self.need[chosen], point=self.point[chosen])

  def scaled(self, factor: np.ndarray) -> 'Constraints':
    """Each row, and what it needs, times its factor `[N]`."""
    if self.dense:
      rows = RankOneRows(self.rows.u * factor[:, None], self.rows.h, self.rows.point)
    else:
      rows = self.rows * factor[:, None]
    return dataclasses.replace(self, rows=rows, need=self.need * factor)

  def matvec(self, change: np.ndarray) -> np.ndarray:
    """rows @ change, `[N]`."""
    return self.rows.matvec(change) if self.dense else self.rows @ change

  def unpack(self, change: np.ndarray) -> dict[str, np.ndarray]:
    """A change `[p]` as `{'kernel', 'bias'}` in Flax's order, float64."""
    whole = np.zeros(math.prod(self.shape) + self.shape[-1])
    whole[self.columns] = change
    kernel, bias = whole[:-self.shape[-1]], whole[-self.shape[-1]:]
    kernel = kernel.reshape(self.shape[::-1]).T if self.dense else kernel.reshape(self.shape)
    return {'kernel': kernel, 'bias': bias} if self.has_bias else {'kernel': kernel}


def constraints(classifier: Classifier, path: str, points: Points, *, mask: np.ndarray | None = None,
                max_weights: int | None = None, batch_size: int = 128) -> Constraints:
  """The rows that conditions on the logits become, `PRDNN` section 3.

  Args:
    classifier: the model; its weights are taken as exact.
    path: a Dense or Conv layer (`find_layer`).
    points: the conditions.
    mask: `[*kernel.shape]` bool, which entries of the kernel may change; None for all. A bias always may.
    max_weights: of those, keep only this many: those with the largest sum of |row entries| over the unmet conditions.
    batch_size: points whose derivatives are computed at once, at most.
  Raises:
    BadInputError: `mask` has another shape.
    RepairFailure: the matrix of a convolution's rows would be larger than `ROW_BYTES`.
  """
  own = classifier.params
  for name in path.split('/'):
    own = own[name]
  shape, has_bias = tuple(own['kernel'].shape), 'bias' in own
  require(mask is None or np.shape(mask) == shape, f'mask must have the shape of the kernel of {path!r}, {shape}, got '
          f'{np.shape(mask)}.')
  require(len(points) > 0, 'Constraints need at least one point.')
  layer = find_layer(classifier, path)
  dense = layer.kind == 'dense' and len(layer.input_shape) == 1
  mask = np.ones(shape, bool) if mask is None else np.asarray(mask, bool)
  per_point = points.conditions(np.arange(1), classifier.num_classes)[0].shape[1]
  widest = max(classifier.num_classes, math.prod(layer.output_shape), 1 if dense else mask.size)
  batch_size = max(1, min(batch_size, len(points), _BATCH_ENTRIES // max(1, per_point * widest)))
  with float64():
    exact = to_float64(classifier)
    pull = functools.partial(_pulled_batches, exact, layer, points, batch_size)
    make = _dense_rows if dense else functools.partial(_matrix_rows, _unbound(classifier, path), own)
    rows, need, free, columns = make(pull, mask, has_bias, max_weights)
  point = np.repeat(np.arange(len(points)), per_point)
  if dense:
    rows = RankOneRows(*rows, point)
  return Constraints(rows, need, point, free, columns, shape, has_bias, dense)


def _dense_rows(pull, mask: np.ndarray, has_bias: bool, max_weights: int | None):
  """Factors (u `[N, d_out]`, h `[n, d_in]`), need, free and columns."""
  parts = [(need, h, u.reshape(-1, u.shape[-1])) for need, h, u in pull()]
  need, h, u = (np.concatenate(part) for part in zip(*parts, strict=True))
  need = need.ravel()
  if max_weights is not None:
    unmet = (need > 0).reshape(len(h), -1)
    strength = (np.abs(u).reshape(*unmet.shape, -1) * unmet[..., None]).sum(1).T @ np.abs(h)   # [d_out, d_in]
    mask = mask & _strongest(np.where(mask, strength.T, -1.), max_weights)
  free = np.concatenate([mask.T.ravel(), np.full(mask.shape[-1], has_bias)])
  return (u, h), need, free, np.arange(len(free))


def _matrix_rows(module: nn.Module, own: Mapping[str, Any], pull, mask: np.ndarray, has_bias: bool,
                 max_weights: int | None):
  """Matrix `[N, p]` of the free columns, need, free and columns."""
  params = to_float64(own)
  kernel_columns = np.flatnonzero(mask.ravel())
  if max_weights is not None and max_weights < len(kernel_columns):   # two passes: the full matrix may not fit
    strength = np.zeros(mask.size)
    for need, h, u in pull():
      rows = np.asarray(_weight_rows(module, params, h, u))[..., :mask.size]
      strength += np.einsum('nrp,nr->p', np.abs(rows), need > 0)
    kernel_columns = np.flatnonzero(mask.ravel() & _strongest(np.where(mask.ravel(), strength, -1.), max_weights))
  columns = np.concatenate([kernel_columns, mask.size + np.arange(mask.shape[-1] if has_bias else 0)]).astype(np.int64)
  all_rows, all_need, size = [], [], 0
  for need, h, u in pull():
    rows = np.asarray(_weight_rows(module, params, h, u))[..., columns].reshape(-1, len(columns))
    size += rows.nbytes
    require(size <= ROW_BYTES, f'The rows of {len(columns)} weights take more than {ROW_BYTES / 2**30:g} GiB. Take '
            'fewer points, set max_weights, or choose a later layer.', RepairFailure)
    all_rows.append(rows)
    all_need.append(need.ravel())
  return np.concatenate(all_rows), np.concatenate(all_need), np.ones(len(columns), bool), columns


def _strongest(strength: np.ndarray, count: int) -> np.ndarray:
  """Mask of the `count` largest entries; the earlier one at a tie."""
  order = np.argsort(-strength, axis=None, kind='stable')[:count]
  chosen = np.zeros(strength.size, bool)
  chosen[order] = True
  return chosen.reshape(strength.shape)


def _pulled_batches(exact: Classifier, layer: structure.Layer, points: Points, batch_size: int
                    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Batch by batch: need `[k, r]`, the layer's inputs `[k, ...]`, conditions pulled back to its output."""
  for start in range(0, len(points), batch_size):
    count = min(batch_size, len(points) - start)
    index = start + np.minimum(np.arange(batch_size), count - 1)   # padded to one shape
    a, b = points.conditions(index, exact.num_classes)
    z = np.asarray(points.z[index], np.float64)
    rep = None if points.rep is None else np.asarray(points.rep[index], np.float64)
    y, h, u = (np.asarray(out)[:count] for out in _pull_back(exact, z, rep, a, layer.path, layer.output_shape))
    yield b[:count] - np.einsum('nrc,nc->nr', a[:count], y), h, u


@functools.partial(jax.jit, static_argnames=('path', 'output_shape'))
def _pull_back(classifier: Classifier, z: jax.Array, rep: jax.Array | None, conditions: jax.Array, path: str,
               output_shape: tuple[int, ...]):
  """Logits `[n, c]` and the layer's input, both at z with the masks of rep, and conditions . T, `[n, r, *out]`."""

  def along(eps, shift):
    at, inputs = z if rep is None else rep + eps * (z - rep), []

    def keep(h):
      inputs.append(h)
      return h

    logits = intervene.apply(classifier, at, inputs={path: keep}, outputs={path: lambda y: y + shift})
    return logits, inputs[0]

  still = jnp.zeros((len(z), *output_shape), z.dtype)
  y, pull, h = jax.vjp(lambda shift: along(0., shift), still, has_aux=True)
  if rep is not None:
    (y, h), (dy, dh) = jax.jvp(lambda eps: along(eps, still), (0.,), (1.,))
    y, h = y + dy, h + dh
  u = jax.vmap(lambda row: pull(row)[0], in_axes=1, out_axes=1)(conditions)
  return y, h, u


@functools.partial(jax.jit, static_argnames=('module',))
def _weight_rows(module: nn.Module, params: Mapping[str, jax.Array], h: jax.Array, u: jax.Array) -> jax.Array:
  """The rows `[n, r, p]`: u `[n, r, *out]` pulled back from the layer's output to its kernel, then its bias."""

  def at_point(h, u):
    _, pull = jax.vjp(lambda params: module.apply({'params': params}, h[None])[0], params)
    rows = jax.vmap(lambda row: pull(row)[0])(u)
    parts = [rows[name].reshape(len(u), -1) for name in ('kernel', 'bias') if name in rows]
    return jnp.concatenate(parts, axis=1)

  return jax.vmap(at_point)(h, u)


def _unbound(classifier: Classifier, path: str) -> nn.Module:
  """The layer at `path` as a module of its own."""
  return next(call.unbound for call in structure.trace_calls(classifier).calls if call.path == path)
