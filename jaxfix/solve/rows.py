"""Constraint rows of a repair problem as linear operators, so that a large matrix need not exist.

The classification rows of a point-wise repair of one dense layer are rank-one: row k is `outer(u_k, h_k)`, then `u_k`
for the bias (PRDNN, section 3). `RankOneRows` keeps the factors. 900 rows of a 784x256 layer are 1.4 GB as a matrix and
3 MB as factors, and the Gram matrix that an interior-point step needs costs two small matrix products a point instead
of one product with the full matrix.
"""
import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.sparse

from jaxfix.errors import require

DENSE_FROM = 0.1  # share of non-zeros from which a dense product beats a sparse one (two cores, OpenBLAS)
_CHUNK = 2**22    # entries of a temporary block: 32 MiB of float64


class Rows(Protocol):
  """A linear operator with what the interior point needs."""

  @property
  def shape(self) -> tuple[int, int]:
    """(number of rows m, number of columns n)."""

  def matvec(self, delta: np.ndarray) -> np.ndarray:
    """`[n] -> [m]`."""

  def rmatvec(self, y: np.ndarray) -> np.ndarray:
    """The transpose: `[m] -> [n]`."""

  def gram(self, weight: np.ndarray) -> np.ndarray:
    """`rows @ diag(weight) @ rows.T`, `[m, m]`; weight: `[n]`, >= 0."""

  def rows(self, indices: np.ndarray) -> np.ndarray | scipy.sparse.csr_array:
    """The chosen rows as a matrix `[len(indices), n]`."""


@runtime_checkable
class RowOracle(Protocol):
  """What `minimal_change` asks of rows that are built on demand."""

  @property
  def shape(self) -> tuple[int, int]:
    """(number of rows, number of columns)."""

  def matvec(self, delta: np.ndarray) -> np.ndarray:
    """The product of every row with delta `[p]`: `[N]`, float64."""

  def rows(self, indices: np.ndarray) -> np.ndarray | scipy.sparse.csr_array:
    """The chosen rows as a matrix `[len(indices), p]`, dense or CSR, float64."""


def as_rows(rows: np.ndarray | scipy.sparse.sparray | RowOracle) -> RowOracle:
  """A matrix (dense or any SciPy sparse format, finite) as `MatrixRows`; an oracle as it is.

  Raises:
    BadInputError: not a matrix, or NaN or infinity in it.
  """
  if isinstance(rows, RowOracle):
    return rows
  matrix = scipy.sparse.csr_array(rows) if scipy.sparse.issparse(rows) else np.asarray(rows)
  require(matrix.ndim == 2, f'rows must be a matrix or a row oracle, got shape {matrix.shape}')
  matrix = matrix.astype(np.float64)
  entries = matrix.data if scipy.sparse.issparse(matrix) else matrix
  require(bool(np.isfinite(entries).all()), 'rows hold NaN or infinity')
  return MatrixRows(matrix)


@dataclasses.dataclass(frozen=True)
class MatrixRows:
  """Rows held as a matrix: dense float64 `[N, p]` or CSR. Build with `as_rows`."""

  matrix: np.ndarray | scipy.sparse.csr_array

  @property
  def shape(self) -> tuple[int, int]:
    return self.matrix.shape

  def matvec(self, delta: np.ndarray) -> np.ndarray:
    return self.matrix @ delta

  def rmatvec(self, y: np.ndarray) -> np.ndarray:
    return self.matrix.T @ y

  def rows(self, indices: np.ndarray) -> np.ndarray | scipy.sparse.csr_array:
    return self.matrix[indices]

  def select(self, indices: np.ndarray, factor: np.ndarray) -> 'MatrixRows':
    """The chosen rows, each divided by its factor `[len(indices)]`; dense where that is faster."""
    part = self.matrix[indices]
    if not scipy.sparse.issparse(part):
      return MatrixRows(part / factor[:, None])
    part = scipy.sparse.csr_array(part.multiply(1 / factor[:, None]))
    return MatrixRows(part.toarray() if part.nnz > DENSE_FROM * np.prod(part.shape) else part)

  def restrict(self, index: np.ndarray, scale: np.ndarray) -> 'MatrixRows':
    """The columns index `[n]`, each multiplied by scale `[n]`."""
    return MatrixRows(_scaled_columns(self.matrix, index, scale))

  def gram(self, weight: np.ndarray) -> np.ndarray:
    """`rows @ diag(weight) @ rows.T`, `[N, N]`; weight: `[p]`, >= 0."""
    if scipy.sparse.issparse(self.matrix):
      return (self.matrix.multiply(weight[None, :]).tocsr() @ self.matrix.T).toarray()
    out, step = np.zeros((self.shape[0],) * 2), max(1, _CHUNK // max(1, self.shape[0]))
    for j in range(0, self.shape[1], step):
      block = self.matrix[:, j:j + step] * np.sqrt(weight[j:j + step])
      out += block @ block.T  # NumPy sees the transpose and calls syrk: half the work
    return out

  def row_scale(self) -> np.ndarray:
    """Largest absolute entry of each row, `[N]`."""
    if 0 in self.shape:
      return np.zeros(self.shape[0])
    return _dense_vector(abs(self.matrix).max(axis=1))

  def column_norm(self) -> np.ndarray:
    """Euclidean norm of each column, `[p]`."""
    if scipy.sparse.issparse(self.matrix):
      return np.sqrt(_dense_vector(self.matrix.power(2).sum(axis=0)))
    return np.sqrt(np.einsum('np,np->p', self.matrix, self.matrix))


@dataclasses.dataclass(frozen=True)
class RankOneRows:
  """Row k is `concat(outer(u[k], h[point[k]]).ravel(), u[k])`: a dense layer's weights (o, i), row-major, then bias.

  Attributes:
    u: `[N, d_out]`, float64: the row's derivative with respect to the layer's pre-activation.
    h: `[P, d_in]`, float64: the layer's input at each point.
    point: `[N]`, integer, non-decreasing: the point each row belongs to.
  Raises:
    BadInputError: wrong shapes, a point out of range or out of order, NaN or infinity.
  """

  u: np.ndarray
  h: np.ndarray
  point: np.ndarray

  def __post_init__(self):
    for name, dtype in (('u', np.float64), ('h', np.float64), ('point', np.int64)):
      object.__setattr__(self, name, np.asarray(getattr(self, name), dtype))
    require(self.u.ndim == 2 and self.h.ndim == 2, f'u and h must be matrices, got {self.u.shape} and {self.h.shape}')
    require(self.point.shape == self.u.shape[:1], f'point needs one entry for each of the {len(self.u)} rows of u, got '
            f'shape {self.point.shape}')
    require(not len(self.point) or (self.point[0] >= 0 and self.point[-1] < len(self.h)
                                    and (np.diff(self.point) >= 0).all()),
            f'point must be non-decreasing within 0..{len(self.h) - 1}: sort the rows by point')
    require(bool(np.isfinite(self.u).all() and np.isfinite(self.h).all()), 'u and h must be finite')

  @property
  def shape(self) -> tuple[int, int]:
    return len(self.u), self.u.shape[1] * (self.h.shape[1] + 1)

  def _split(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[p]` -> weights `[d_out, d_in]`, bias `[d_out]`."""
    d_out = self.u.shape[1]
    return flat[:-d_out or None].reshape(d_out, -1), flat[flat.size - d_out:]

  def matvec(self, delta: np.ndarray) -> np.ndarray:
    weight, bias = self._split(delta)
    return np.einsum('no,no->n', self.u, (self.h @ weight.T + bias)[self.point])

  def rmatvec(self, y: np.ndarray) -> np.ndarray:
    at_point = self._sum_by_point(y[:, None] * self.u)
    return np.concatenate([(at_point.T @ self.h).ravel(), at_point.sum(0)])

  def rows(self, indices: np.ndarray) -> np.ndarray | scipy.sparse.csr_array:
    """The chosen rows `[len(indices), p]`; CSR where at most a tenth of the entries differ from zero."""
    u, h = self.u[indices], self.h[self.point[indices]]
    h = np.concatenate([h, np.ones((len(h), 1))], axis=1)
    d_out, d_in = u.shape[1], h.shape[1] - 1
    share = (u != 0).sum(1) @ (h != 0).sum(1) / max(1, u.size * h.shape[1])
    if share > DENSE_FROM:
      return np.concatenate([(u[:, :, None] * h[:, None, :-1]).reshape(len(u), -1), u], axis=1)
    triples = []
    for k, (uk, hk) in enumerate(zip(u, h, strict=True)):
      o, i = np.flatnonzero(uk), np.flatnonzero(hk)
      column = np.where(i < d_in, o[:, None] * d_in + i, d_out * d_in + o[:, None])
      triples.append((np.full(column.size, k), column.ravel(), np.outer(uk[o], hk[i]).ravel()))
    row, column, value = (np.concatenate(part) for part in zip(*triples, strict=True)) if triples else ([], [], [])
    return scipy.sparse.csr_array((value, (row, column)), shape=(len(u), self.shape[1]))

  def select(self, indices: np.ndarray, factor: np.ndarray) -> 'RankOneRows':
    """The chosen rows, each divided by its factor `[len(indices)]`, and only the points that they use."""
    used, point = np.unique(self.point[indices], return_inverse=True)
    return RankOneRows(self.u[indices] / factor[:, None], self.h[used], point)

  def restrict(self, index: np.ndarray, scale: np.ndarray) -> 'ColumnSubset':
    """The columns index `[n]`, each multiplied by scale `[n]`."""
    return ColumnSubset(self, index, scale)

  def gram(self, weight: np.ndarray) -> np.ndarray:
    """`rows @ diag(weight) @ rows.T`, `[N, N]`; weight: `[p]`, >= 0.

    G[k, l] = sum_o u_ko u_lo K_o[point k, point l] with K_o[a, b] = sum_i w_oi h_ai h_bi + w_o: one point a at a time,
    against itself and the points after it, so that no array is larger than the result.
    """
    w, bias = self._split(weight)
    first = np.searchsorted(self.point, np.arange(len(self.h) + 1))
    out = np.zeros((len(self.u),) * 2)
    for a in range(len(self.h)):
      mine, later = slice(first[a], first[a + 1]), slice(first[a], None)
      if first[a] < first[a + 1]:
        kernel = self.h[a:] @ (w * self.h[a]).T + bias  # K_o[a, b]: [P - a, d_out]
        out[mine, later] = self.u[mine] @ (self.u[later] * kernel[self.point[later] - a]).T
    return np.triu(out) + np.triu(out, 1).T

  def row_scale(self) -> np.ndarray:
    """Largest absolute entry of each row, `[N]`; the bias entry makes it at least `|u|`."""
    largest = np.maximum(1.0, np.abs(self.h).max(1, initial=0.0))
    return np.abs(self.u).max(1, initial=0.0) * largest[self.point]

  def column_norm(self) -> np.ndarray:
    """Euclidean norm of each column, `[p]`."""
    at_point = self._sum_by_point(self.u**2)
    return np.sqrt(np.concatenate([(at_point.T @ self.h**2).ravel(), at_point.sum(0)]))

  def _sum_by_point(self, values: np.ndarray) -> np.ndarray:
    out = np.zeros((len(self.h), values.shape[1]))
    np.add.at(out, self.point, values)
    return out


@dataclasses.dataclass(frozen=True)
class ColumnSubset:
  """Some columns of rank-one rows: index `[n]` of its p columns, each multiplied by scale `[n]`."""

  full: RankOneRows
  index: np.ndarray
  scale: np.ndarray

  @property
  def shape(self) -> tuple[int, int]:
    return self.full.shape[0], len(self.index)

  def _expand(self, values: np.ndarray) -> np.ndarray:
    out = np.zeros(self.full.shape[1])
    out[self.index] = values
    return out

  def matvec(self, delta: np.ndarray) -> np.ndarray:
    return self.full.matvec(self._expand(self.scale * delta))

  def rmatvec(self, y: np.ndarray) -> np.ndarray:
    return self.scale * self.full.rmatvec(y)[self.index]

  def gram(self, weight: np.ndarray) -> np.ndarray:
    return self.full.gram(self._expand(self.scale**2 * weight))

  def rows(self, indices: np.ndarray) -> np.ndarray | scipy.sparse.csr_array:
    return _scaled_columns(self.full.rows(indices), self.index, self.scale)


def _scaled_columns(matrix, index: np.ndarray, scale: np.ndarray) -> np.ndarray | scipy.sparse.csr_array:
  part = matrix[:, index]
  return scipy.sparse.csr_array(part.multiply(scale[None, :])) if scipy.sparse.issparse(part) else part * scale


def _dense_vector(values) -> np.ndarray:
  """A row or column that SciPy returns as a sparse or 2-D array, as a vector."""
  return np.asarray(values.toarray() if scipy.sparse.issparse(values) else values, np.float64).ravel()
