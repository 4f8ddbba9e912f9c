"""The checker of certificates: the one program that must be right for a claim of proof to mean something.

It needs Python, NumPy and this file; nothing else of jaxfix, no JAX, no solver. A certificate carries a network in
normal form (see `OPERATIONS`), a specification, and evidence that the one satisfies the other. Four kinds of evidence
leave the checker with different work:

  points       every input is evaluated, exactly.
  pieces       a segment, a convex polygon in a plane, or a polytope by its vertices: the network is evaluated at all
               vertices exactly; wherever an activation changes its sign inside, the segment or polygon is cut there,
               exactly. On each piece the network is affine, so that what holds at the vertices holds in between. A
               polytope of more than two dimensions is not cut: it must lie in one piece.
  splits       a tree of boxes, each cut in half along one input. For every leaf the checker computes linear bounds
               (CROWN) in float64, counting every rounding error against the claim.
  duals        such a tree for a polytope a x <= b in a box, with multipliers q >= 0 for each leaf and row: where
               a x <= b, a bound of the linear function minus q (b - a x) is one of the function itself. Any q will do.

Exact means: floats are integers times a power of two, points inside are integers over a common integer; sums of
products are integer arithmetic (done in float64 on parts short enough that nothing is rounded).

Two strengths. `real`: the network as a function of the reals, with the stored weights. `float32`: any float32
evaluation of the operations one after the other, sums in any order, at inputs of the set rounded to float32; its
distance from the real function is bounded and taken off the margin.

  python jaxfix/verify/checker.py FILE
"""
import dataclasses
import functools
import hashlib
import io
import json
import math
import os
import sys
from concurrent import futures
from typing import Any

import numpy as np

FORMAT = 'jaxfix-cert-1'
OPERATIONS = ('input', 'gather', 'matmul', 'scale', 'divide', 'shift', 'sum', 'add', 'relu', 'maximum')

_LIMB = 20               # bits of the parts in which integers are multiplied
_MOST_INNER = 2**12      # terms of a sum of products of two such parts: 12 + 20 + 20 bits fit the 53 of float64
_MOST_PAIRS = 2**10      # such sums that are added in int64
_MOST_DENOMINATOR = 2**4096
_MOST_PIECES = 1_000_000
_BATCH_BYTES = 2**23      # of the arrays of one batch of boxes, so that they stay in the cache
_U, _U32 = 2.**-53, 2.**-24
_SUBNORMAL32 = 2.**-126   # covers backends that flush subnormal numbers to zero
_TINY = 1e-250            # more than all underflow of a step, as long as no value exceeds `_MOST`
_MOST = 1e60
_MOST_TERMS = 2**22
_UP = 1 + 2.**-30         # more than the rounding of any sum of up to `_MOST_TERMS` non-negative numbers


class RejectedError(Exception):
  """The certificate does not prove its claim; the message says where it fails."""


@dataclasses.dataclass(frozen=True, eq=False)
class Op:
  """One operation of a network: kind, the values that it takes, its constant or None, the length of its value."""
  kind: str
  inputs: tuple[int, ...]
  array: np.ndarray | None
  size: int

  @functools.cached_property
  def whole(self) -> tuple[np.ndarray, int]:
    """The constant as integers times a power of two."""
    return integers(self.array)

  @functools.cached_property
  def parts(self) -> list[list[np.ndarray]]:
    """The integers of a matrix as `_product` takes them."""
    return _parts(self.whole[0])


@dataclasses.dataclass(frozen=True)
class Clause:
  """Some row of g y <= h holds (< if strict)."""
  g: np.ndarray
  h: np.ndarray
  strict: bool


@dataclasses.dataclass(frozen=True)
class Property:
  """Every clause holds on the set: kind 'box' (lower, upper), 'points' (x), 'vpolytope' (vertices) or 'hpolytope'
  (lower, upper, a, b: all x of a box with a x <= b)."""
  kind: str
  arrays: tuple[np.ndarray, ...]
  clauses: tuple[Clause, ...]


@dataclasses.dataclass(frozen=True)
class Certificate:
  """A claim with its evidence: one entry for each property, (its kind, array or None)."""
  network: tuple[Op, ...]
  spec: tuple[Property, ...]
  strength: str
  evidence: tuple[tuple[str, np.ndarray | None], ...]


@dataclasses.dataclass(frozen=True)
class Report:
  """What a successful check saw: hashes of network and specification, the strength, and what was counted."""
  network_sha256: str
  spec_sha256: str
  strength: str
  counts: tuple[str, ...]


def check(path: str) -> Report:
  """Checks a certificate file.

  Raises:
    RejectedError: it is damaged, malformed, or does not prove its claim.
    OSError: it cannot be read.
  """
  certificate = load(path)
  return Report(network_sha256(certificate.network), spec_sha256(certificate.spec), certificate.strength,
                check_claim(certificate))


def check_claim(certificate: Certificate) -> tuple[str, ...]:
  """Checks the evidence of every property; a line on each. Raises `RejectedError`."""
  _check_network(certificate.network)
  _reject(certificate.strength not in ('real', 'float32'), f'unknown strength {certificate.strength!r}')
  _reject(not certificate.spec, 'the specification has no property')
  if certificate.strength == 'float32':
    _reject(any(op.array is not None and has_subnormal(op.array) for op in certificate.network),
            'float32: a weight is subnormal, and some devices take it for zero')
  _reject(len(certificate.evidence) != len(certificate.spec), 'there is not one evidence for each property')
  lines = []
  for i, (claim, (kind, array)) in enumerate(zip(certificate.spec, certificate.evidence, strict=True)):
    try:
      _check_property(certificate.network, claim)
      verify = {'points': _check_points, 'pieces': _check_pieces, 'splits': _check_splits,
                'duals': _check_duals}.get(kind)
      _reject(verify is None, f'unknown evidence {kind!r}')
      lines.append(f'property {i}: ' + verify(certificate.network, claim, certificate.strength == 'float32', array))
    except RejectedError as e:
      raise RejectedError(f'property {i}: {e}') from e
    except MemoryError as e:
      raise RejectedError(f'property {i}: it does not fit into memory: {e}') from e
  return tuple(lines)


def has_subnormal(array: np.ndarray) -> bool:
  """Whether a float32 weight is so small that some devices take it for zero."""
  return bool(((array != 0) & (np.abs(array) < _SUBNORMAL32)).any())


def _reject(condition: Any, message: str) -> None:
  if condition:
    raise RejectedError(message)


# --- Files and hashes ---


def load(path: str) -> Certificate:
  """Reads a certificate and checks its hashes. Raises `RejectedError`, OSError."""
  with open(path, 'rb') as f:
    content = io.BytesIO(f.read())   # apart from what follows: a damaged archive makes zipfile say OSError, too
  try:
    with np.load(content, allow_pickle=False) as f:
      arrays = {name: f[name] for name in f.files}
    document = json.loads(arrays.pop('document').tobytes().decode())
    _reject(document['format'] != FORMAT, f'format {document["format"]!r} is not {FORMAT!r}')
    _reject(document['content_sha256'] != content_sha256(document, arrays), 'the content does not have its hash: the '
            'file was damaged or changed')
    get = lambda name: None if name is None else arrays[name]
    network = tuple(Op(str(kind), tuple(map(int, inputs)), get(name), int(size))
                    for kind, inputs, name, size in document['network'])
    spec = tuple(Property(str(p['kind']), tuple(map(get, p['arrays'])), tuple(
      Clause(get(g), get(h), bool(strict)) for g, h, strict in p['clauses'])) for p in document['spec'])
    certificate = Certificate(network, spec, str(document['strength']),
                              tuple((str(kind), get(name)) for kind, name in document['evidence']))
    claimed = document['network_sha256'], document['spec_sha256']
  except RejectedError:
    raise
  except Exception as e:   # whatever a damaged archive makes NumPy, zlib or JSON say
    raise RejectedError(f'not a certificate: {type(e).__name__}: {e}') from e
  _check_network(network)
  for p in spec:
    _check_property(network, p)
  _reject(claimed[0] != network_sha256(network), 'the network does not have the hash that the claim names')
  _reject(claimed[1] != spec_sha256(spec), 'the specification does not have the hash that the claim names')
  return certificate


def content_sha256(document: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
  """Hash of everything in a certificate but this hash."""
  rest = {k: v for k, v in document.items() if k != 'content_sha256'}
  digest = hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(',', ':')).encode())
  for name in sorted(arrays):
    digest.update(f'\0{name}\0'.encode() + _array_bytes(arrays[name]))
  return digest.hexdigest()


def network_sha256(network: tuple[Op, ...]) -> str:
  """Hash of a network: of each operation its kind, inputs, size and array."""
  digest = hashlib.sha256()
  for op in network:
    digest.update(f'{op.kind}\0{",".join(map(str, op.inputs))}\0{op.size}\0'.encode())
    digest.update(b'' if op.array is None else _array_bytes(op.array))
  return digest.hexdigest()


def spec_sha256(spec: tuple[Property, ...]) -> str:
  """Hash of a specification."""
  digest = hashlib.sha256()
  for p in spec:
    digest.update(f'{p.kind}\0{len(p.arrays)}\0{len(p.clauses)}\0'.encode() + b''.join(map(_array_bytes, p.arrays)))
    for c in p.clauses:
      digest.update(f'{c.strict}\0'.encode() + _array_bytes(c.g) + _array_bytes(c.h))
  return digest.hexdigest()


def _array_bytes(array: np.ndarray) -> bytes:
  array = np.ascontiguousarray(array, array.dtype.newbyteorder('<'))
  return f'{array.dtype.str}\0{",".join(map(str, array.shape))}\0'.encode() + array.tobytes()


def _check_network(network: tuple[Op, ...]) -> None:
  """Kinds, sizes, dtypes, finiteness: after this every operation can be evaluated."""
  _reject(not network or network[0].kind != 'input' or network[0].inputs or network[0].array is not None
          or network[0].size < 1, 'the network does not begin with its input')
  for i, op in enumerate(network[1:], start=1):
    where = f'operation {i} ({op.kind})'
    _reject(op.kind not in OPERATIONS[1:], f'{where} is unknown')
    _reject(not op.inputs or any(not 0 <= j < i for j in op.inputs), f'{where} takes values that do not exist')
    _reject(len(op.inputs) != {'add': 2, 'maximum': 2, 'gather': len(op.inputs)}.get(op.kind, 1),
            f'{where} takes {len(op.inputs)} values')
    sizes, a = [network[j].size for j in op.inputs], op.array
    if op.kind in ('add', 'maximum', 'relu'):
      fits = a is None and all(size == op.size for size in sizes)
    elif a is None:
      fits = False
    elif op.kind == 'gather':
      fits = a.dtype == np.int32 and a.shape == (op.size,) and op.size > 0 and a.min() >= 0 and a.max() <= sum(sizes)
    elif op.kind == 'sum':
      fits = a.dtype == np.int32 and a.shape == (1,) and a[0] > 0 and int(a[0]) * op.size == sizes[0]
    else:
      fits = a.dtype == np.float32 and bool(np.isfinite(a).all())
      if op.kind == 'matmul':
        fits = fits and a.ndim == 2 and a.size > 0 and sizes[0] % a.shape[0] == 0 and (
          op.size == sizes[0] // a.shape[0] * a.shape[1])
      else:
        fits = fits and a.shape == (op.size,) and sizes[0] == op.size
        fits = fits and (op.kind != 'divide' or bool(a.all()))
    _reject(not fits, f'{where} has a constant or sizes that do not fit, or that are not finite')


def _check_property(network: tuple[Op, ...], p: Property) -> None:
  n, k = network[0].size, network[-1].size
  axes = {'box': (1, 1), 'points': (2,), 'vpolytope': (2,), 'hpolytope': (1, 1, 2, 1)}.get(p.kind, ())
  _reject(not axes or len(p.arrays) != len(axes), f'malformed input set {p.kind!r}')
  for i, (a, ndim) in enumerate(zip(p.arrays, axes, strict=True)):
    _reject(a is None or a.dtype != np.float64 or a.ndim != ndim or not np.isfinite(a).all()
            or a.shape[-1] != (n if i < 3 else len(p.arrays[2])), 'the input set has a wrong shape or type, or is not '
            'finite')
  empty = bool((p.arrays[0] > p.arrays[1]).any()) if len(axes) > 1 else not len(p.arrays[0])
  _reject(empty or not p.clauses, 'nothing is claimed: the input set is empty or there is no condition')
  for c in p.clauses:
    _reject(c.g is None or c.h is None or c.g.dtype != np.float64 or c.h.dtype != np.float64 or c.g.ndim != 2
            or c.g.shape[1] != k or c.h.shape != (len(c.g),) or not np.isfinite(c.g).all()
            or not np.isfinite(c.h).all(), 'a condition has a wrong shape or type, or is not finite')


# --- Exact arithmetic ---


@dataclasses.dataclass(frozen=True)
class _Exact:
  """Numbers x * 2^exponent / (d * weight of their row); x `[p, size]` of Python integers."""
  x: np.ndarray
  exponent: int
  d: int


def integers(a: np.ndarray) -> tuple[np.ndarray, int]:
  """Finite floats as integers times a power of two: (object array, exponent)."""
  mantissa, exponent = np.frexp(a.astype(np.float64))
  whole = (mantissa * 2.**53).astype(np.int64)   # exact
  some = whole != 0
  if not some.any():
    return np.zeros(a.shape, object), 0
  low = whole & -whole                            # lowest set bit of each
  trailing = np.where(some, np.round(np.log2(np.maximum(low, 1).astype(np.float64))).astype(np.int64), 0)
  exponent = exponent.astype(np.int64) - 53 + trailing
  least = int(exponent[some].min())
  shift = np.where(some, exponent - least, 0)
  return (whole >> trailing).astype(object) << shift.astype(object), least


def exact_outputs(network: tuple[Op, ...], x: np.ndarray) -> tuple[np.ndarray, int, int]:
  """Logits of float inputs `[p, n]`, exactly: (integers `[p, k]`, e, d) for integers * 2^e / d."""
  found = _exact_values(network, _start(x), np.ones((len(x), 1), object))[-1]
  return found.x, found.exponent, found.d


def _start(x: np.ndarray) -> _Exact:
  whole, exponent = integers(x)
  return _Exact(whole, exponent, 1)


def _exact_values(network: tuple[Op, ...], start: _Exact, weight: np.ndarray) -> list[_Exact]:
  values = [start]
  for op in network[1:]:
    values.append(_exact_step(op, [values[i] for i in op.inputs], weight))
  return values


def _exact_step(op: Op, arguments: list[_Exact], weight: np.ndarray) -> _Exact:
  if op.kind in ('gather', 'add', 'maximum'):
    arguments = _aligned(arguments)
  v = arguments[0]
  if op.kind == 'gather':
    zero = np.zeros((len(v.x), 1), object)
    return dataclasses.replace(v, x=np.concatenate([zero, *[a.x for a in arguments]], axis=1)[:, op.array])
  if op.kind == 'add':
    return dataclasses.replace(v, x=v.x + arguments[1].x)
  if op.kind == 'maximum':
    return dataclasses.replace(v, x=np.where(v.x >= arguments[1].x, v.x, arguments[1].x))
  if op.kind == 'relu':
    return dataclasses.replace(v, x=np.where(v.x > 0, v.x, 0))
  if op.kind == 'sum':
    return dataclasses.replace(v, x=v.x.reshape(len(v.x), -1, int(op.array[0])).sum(axis=2))
  c, exponent = op.whole
  if op.kind == 'matmul':
    return _Exact(_product(v.x.reshape(-1, c.shape[0]), op.parts).reshape(len(v.x), -1), v.exponent + exponent, v.d)
  if op.kind == 'scale':
    return _Exact(v.x * c, v.exponent + exponent, v.d)
  if op.kind == 'divide':
    least = math.lcm(*map(abs, c.tolist()))
    _reject(least > _MOST_DENOMINATOR, 'a division has too many different divisors for exact arithmetic')
    return _Exact(v.x * np.array([least // k for k in c.tolist()], object), v.exponent - exponent, v.d * least)
  one, other = _aligned([v, _Exact((c * v.d)[None] * weight, exponent, v.d)])   # shift
  return dataclasses.replace(one, x=one.x + other.x)


def _aligned(arguments: list[_Exact]) -> list[_Exact]:
  """The same numbers with one exponent and one d."""
  exponent, d = min(a.exponent for a in arguments), math.lcm(*(a.d for a in arguments))
  return [_Exact(a.x * ((1 << (a.exponent - exponent)) * (d // a.d)), exponent, d) for a in arguments]


def _product(x: np.ndarray, w: list[list[np.ndarray]]) -> np.ndarray:
  """x @ w of Python integers, by float64 products of parts so short that every sum is an exact float64."""
  total: Any = 0
  for block, right in enumerate(w):
    left = _limbs(x[:, block * _MOST_INNER:(block + 1) * _MOST_INNER])
    for place in range(len(left) + len(right) - 1):
      pairs = [(i, place - i) for i in range(len(left)) if 0 <= place - i < len(right)]
      _reject(len(pairs) > _MOST_PAIRS, 'the numbers of the network have too many digits for exact arithmetic')
      part = sum((left[i] @ right[j]).astype(np.int64) for i, j in pairs)
      total = total + part.astype(object) * (1 << (_LIMB * place))
  return total


def _parts(w: np.ndarray) -> list[list[np.ndarray]]:
  """A matrix of integers in blocks of rows, each as its limbs."""
  return [_limbs(w[i:i + _MOST_INNER]) for i in range(0, len(w), _MOST_INNER)]


def _limbs(a: np.ndarray) -> list[np.ndarray]:
  """float64 arrays, |entries| < 2^20, whose sum times 2^(20 i) is `a`; at least one."""
  sign, a, parts = np.where(a < 0, -1., 1.), np.abs(a), []
  while True:
    parts.append((a & ((1 << _LIMB) - 1)).astype(np.float64) * sign)
    a = a >> _LIMB
    if not a.any():
      return parts


def _sign_of_rows(clause: Clause, y: _Exact, weight: np.ndarray, slack: np.ndarray | None) -> np.ndarray:
  """Whether row r holds at logits y of each point, `[p, r]` bool, exactly; `slack` `[r]` float is asked for besides."""
  g, g_exponent = integers(clause.g)
  h, h_exponent = integers(clause.h)
  left = _Exact(_product(y.x, _parts(g.T)), y.exponent + g_exponent, y.d)
  right = _Exact((h * y.d)[None] * weight, h_exponent, y.d)
  terms = [left, right]
  if slack is not None:
    _reject(not np.isfinite(slack).all(), 'the rounding of float32 is not bounded')
    extra, exponent = integers(slack)
    terms.append(_Exact((extra * y.d)[None] * weight, exponent, y.d))
  aligned = _aligned(terms)
  gap = aligned[1].x - aligned[0].x - (aligned[2].x if slack is not None else 0)
  return (gap > 0 if clause.strict else gap >= 0).astype(bool)


def holds_exactly(network: tuple[Op, ...], clauses: tuple[Clause, ...], x: np.ndarray) -> np.ndarray:
  """Whether all clauses hold at each of the inputs `[p, n]`, in exact arithmetic; `[p]` bool."""
  weight = np.ones((len(x), 1), object)
  y = _exact_values(network, _start(x), weight)[-1]
  return np.all([_sign_of_rows(c, y, weight, None).any(axis=1) for c in clauses], axis=0)


# --- Evidence: points, and pieces on which the network is affine ---


def _check_points(network: tuple[Op, ...], claim: Property, float32: bool, array: np.ndarray | None) -> str:
  _reject(claim.kind != 'points' or array is not None, 'evidence by points is for finitely many inputs')
  x, weight = claim.arrays[0], np.ones((len(claim.arrays[0]), 1), object)
  y = _exact_values(network, _start(x), weight)[-1]
  errors = float32_error(network, x, x, refine=False) if float32 else None
  for number, c in enumerate(claim.clauses):
    rows = _sign_of_rows(c, y, weight, None)
    if float32:
      slack = _up(np.abs(c.g) @ errors.T).T + _TINY
      rows = np.stack([_sign_of_rows(c, _Exact(y.x[i:i + 1], y.exponent, y.d), weight[:1], slack[i])[0]
                       for i in range(len(x))])
    bad = np.flatnonzero(~rows.any(axis=1))
    _reject(len(bad), f'point {bad[:1]} violates condition {number}')
  return f'{len(x)} points, each evaluated exactly'


def _check_pieces(network: tuple[Op, ...], claim: Property, float32: bool, array: np.ndarray | None) -> str:
  _reject(claim.kind != 'vpolytope' or array is not None, 'evidence by pieces is for polytopes given by vertices')
  vertices = claim.arrays[0]
  whole, exponent = integers(vertices)
  kind = 'segment' if len(vertices) == 2 else 'polygon' if _is_polygon(whole) else 'polytope'
  weight = np.ones((len(vertices), 1), object)
  pieces = [np.arange(len(vertices))]
  values: list[_Exact] = [_Exact(whole, exponent, 1)]
  for i, op in enumerate(network[1:], start=1):
    if op.kind in ('relu', 'maximum'):
      v = [values[j] for j in op.inputs]
      test = v[0] if op.kind == 'relu' else _difference(*v)
      values, weight, pieces = _cut(values, weight, pieces, test, kind, f'operation {i}')
      v = [values[j] for j in op.inputs]
    values.append(_exact_step(op, [values[j] for j in op.inputs], weight))
  errors = None
  if float32:
    errors = float32_error(network, vertices.min(axis=0)[None], vertices.max(axis=0)[None])[0]
  for number, c in enumerate(claim.clauses):
    slack = _up(np.abs(c.g) @ errors) + _TINY if float32 else None
    rows = _sign_of_rows(c, values[-1], weight, slack)
    for piece in pieces:   # one row of the clause must hold at all vertices of a piece
      _reject(not rows[piece].all(axis=0).any(), f'condition {number} fails on the piece with vertices '
              f'{piece.tolist()[:4]}')
  return f'{kind} in {len(pieces)} pieces with {len(weight)} vertices, each evaluated exactly'


def _difference(a: _Exact, b: _Exact) -> _Exact:
  a, b = _aligned([a, b])
  return dataclasses.replace(a, x=a.x - b.x)


def _is_polygon(vertices: np.ndarray) -> bool:
  """Whether three or more points are the corners, in order, of a convex polygon in a plane."""
  if len(vertices) < 3:
    return False
  first, second = vertices[1] - vertices[0], vertices[2] - vertices[0]
  p, q = _plane(first, second)
  if p is None:
    return False
  det = first[p] * second[q] - first[q] * second[p]
  flat = vertices - vertices[0]   # each is s first + t second, by Cramer's rule with denominator det
  s, t = flat[:, p] * second[q] - flat[:, q] * second[p], first[p] * flat[:, q] - first[q] * flat[:, p]
  if (flat * det != s[:, None] * first[None] + t[:, None] * second[None]).any():
    return False
  sign = 1 if det > 0 else -1
  s, t = s * sign, t * sign
  turns = 0
  for i in range(len(vertices)):
    j, k = (i + 1) % len(vertices), (i + 2) % len(vertices)
    turn = (s[j] - s[i]) * (t[k] - t[j]) - (t[j] - t[i]) * (s[k] - s[j])
    if turn <= 0:
      return False
    ahead = (s[j] - s[i], t[j] - t[i])
    turns += (ahead[1] < 0 or ahead[1] == 0 and ahead[0] < 0) != (
      t[k] - t[j] < 0 or t[k] == t[j] and s[k] - s[j] < 0)
  return turns == 2   # directions pass each half plane once: the corners go round once


def _plane(first: np.ndarray, second: np.ndarray) -> tuple[int | None, int | None]:
  """Two coordinates in which the vectors are independent."""
  lead = np.flatnonzero(first)
  if not len(lead):
    return None, None
  p = int(lead[0])
  other = np.flatnonzero(first[p] * second != second[p] * first)
  return (p, int(other[0])) if len(other) else (None, None)


def _cut(values: list[_Exact], weight: np.ndarray, pieces: list[np.ndarray], test: _Exact, kind: str,
         where: str) -> tuple[list[_Exact], np.ndarray, list[np.ndarray]]:
  """Cuts every piece where an entry of `test`, affine on it, changes its sign; all values get the new vertices.

  A new vertex lies on the edge between p and q, where test is a > 0 at p and -b < 0 at q (over their weights): it is
  b p + a q, weight b w_p + a w_q, divided by what all its numbers have in common.
  """
  stacked = [np.concatenate([*[v.x for v in values], test.x, weight], axis=1)]
  widths = np.cumsum([0, *[v.x.shape[1] for v in values], test.x.shape[1]])
  count = len(weight)
  for neuron in range(test.x.shape[1]):
    column = widths[-2] + neuron
    rows = np.concatenate(stacked) if len(stacked) > 1 else stacked[0]
    stacked, made, after = [rows], {}, []
    sign = (rows[:, column] > 0).astype(np.int64) - (rows[:, column] < 0).astype(np.int64)
    for piece in pieces:
      s = sign[piece]
      if not ((s > 0).any() and (s < 0).any()):
        after.append(piece)
        continue
      _reject(kind == 'polytope', f'{where}, entry {neuron} changes its sign on the polytope, which is neither a '
              'segment nor a convex polygon')
      positive, negative = [], []
      for at in range(len(piece)):
        p, q = int(piece[at]), int(piece[(at + 1) % len(piece)])
        if sign[p] >= 0:
          positive.append(p)
        if sign[p] <= 0:
          negative.append(p)
        if sign[p] * sign[q] < 0 and not (len(piece) == 2 and at == 1):
          edge = min(p, q), max(p, q)
          if edge not in made:
            made[edge] = count
            count += 1
            stacked.append(_between(rows[p], rows[q], column)[None])
          positive.append(made[edge])
          negative.append(made[edge])
      after += [np.array(positive), np.array(negative)]
      _reject(len(after) > _MOST_PIECES, f'there are more than {_MOST_PIECES} pieces')
    pieces = after
  rows = np.concatenate(stacked) if len(stacked) > 1 else stacked[0]
  cut = [dataclasses.replace(v, x=rows[:, a:b]) for v, a, b in zip(values, widths, widths[1:], strict=False)]
  return cut, rows[:, -1:], pieces


def _between(p: np.ndarray, q: np.ndarray, column: int) -> np.ndarray:
  a, b = abs(p[column]), abs(q[column])
  row = b * p + a * q
  common = math.gcd(*row.tolist())
  return row // common


# --- Evidence: a tree of boxes, and bounds that survive rounding ---


def _check_splits(network: tuple[Op, ...], claim: Property, float32: bool, array: np.ndarray | None) -> str:
  _reject(claim.kind not in ('box', 'hpolytope'), 'evidence by splits is for boxes')
  _reject(array is None or array.dtype not in (np.int16, np.int32) or array.ndim != 1, 'the tree is not an array of '
          'int16 or int32')
  return _check_leaves(network, claim, float32, array, None)


def _check_duals(network: tuple[Op, ...], claim: Property, float32: bool, array: np.ndarray | None) -> str:
  """Column 0 is the tree, the rest of a leaf's row its multipliers `[rows of all clauses, rows of a]`."""
  _reject(claim.kind != 'hpolytope', 'evidence by duals is for polytopes given by inequalities')
  a, b = claim.arrays[2:]
  rows = sum(len(c.g) for c in claim.clauses)
  _reject(array is None or array.dtype != np.float64 or array.ndim != 2 or array.shape[1] != 1 + rows * len(a)
          or not np.isfinite(array).all(), 'the tree and its multipliers have a wrong shape or type, or are not finite')
  tree = array[:, 0]
  _reject((np.abs(tree) >= 2**31).any() or (tree != np.floor(tree)).any(), 'the tree does not hold integers')
  q = array[tree < 0, 1:].reshape(int((tree < 0).sum()), rows, len(a))
  _reject((q < 0).any(), 'a multiplier is negative')
  return 'on a polytope that is not shown to have points, ' + _check_leaves(
    network, claim, float32, tree.astype(np.int32), (a, b, q))


Cuts = tuple[np.ndarray, np.ndarray, np.ndarray]   # a `[m, n]`, b `[m]` and multipliers `[boxes, rows, m]`


def _check_leaves(network: tuple[Op, ...], claim: Property, float32: bool, tree: np.ndarray, cuts: Cuts | None) -> str:
  lower, upper = leaves(claim.arrays[0], claim.arrays[1], tree)
  proven = boxes_hold(network, claim.clauses, lower, upper, float32, cuts)
  bad = np.flatnonzero(~proven)
  if len(bad):
    raise RejectedError(f'leaf {bad[0]} of {len(proven)} ({len(bad)} in all) is not proven; its box is '
                        f'{lower[bad[0]].tolist()} to {upper[bad[0]].tolist()}')
  return f'{len(proven)} boxes, bounded with every rounding error'


def leaves(lower: np.ndarray, upper: np.ndarray, tree: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The leaf boxes `[b, n]` of a tree in preorder: d >= 0 cuts input d at `middle`, lower half first; -1 is a leaf."""
  lows, highs, stack = [], [], [(lower, upper)]
  for cut in tree.tolist():
    _reject(not stack, 'the tree goes on after its last leaf')
    low, high = stack.pop()
    if cut < 0:
      _reject(cut != -1, f'{cut} is no input')
      lows.append(low)
      highs.append(high)
      continue
    _reject(cut >= len(lower), f'input {cut} does not exist')
    below, above = high.copy(), low.copy()
    below[cut] = above[cut] = middle(low[cut], high[cut])
    stack += [(above, high), (low, below)]
  _reject(stack, f'the tree lacks {len(stack)} branches')
  return np.array(lows), np.array(highs)


def middle(low: Any, high: Any) -> Any:
  """Where a side of a box is cut: a float64 between the two."""
  return low + (high - low) / 2


def boxes_hold(network: tuple[Op, ...], clauses: tuple[Clause, ...], lower: np.ndarray, upper: np.ndarray,
               float32: bool = False, cuts: Cuts | None = None) -> np.ndarray:
  """Whether bounds prove all clauses on each of many boxes `[b, n]`, or on what `cuts` leave of them; `[b]` bool. False
  says nothing."""
  widths = [op.size for op in network if op.kind in ('relu', 'maximum')]
  bytes_a_box = 8 * 6 * max([2 * w for w in widths], default=1) * max(op.size for op in network)
  size = max(1, _BATCH_BYTES // bytes_a_box)
  batches = [slice(i, i + size) for i in range(0, len(lower), size)]
  with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    parts = list(pool.map(lambda b: _boxes_hold(network, clauses, lower[b], upper[b], float32,
                                                cuts and (*cuts[:2], cuts[2][b])), batches))
  return np.concatenate(parts) if parts else np.zeros(0, bool)


def _boxes_hold(network, clauses, lower, upper, float32, cuts) -> np.ndarray:
  if not all(len(c.g) for c in clauses):   # a clause without rows never holds
    return np.zeros(len(lower), bool)
  with np.errstate(all='ignore'):   # what is not finite is not proven
    bounds = value_bounds(network, lower, upper)
    errors = _float32_error(network, bounds) if float32 else None
    g = np.concatenate([c.g for c in clauses])
    most = -_backward(network, len(network) - 1, -g, bounds, cuts)
    if float32:
      most = np.nextafter(most + (_up(errors @ np.abs(g).T) + _TINY), np.inf)
    small = [np.maximum(np.abs(low), np.abs(high)).max(axis=1, initial=0) < _MOST for low, high in bounds]
    good, at = np.all(small, axis=0), 0
    for c in clauses:
      rows = most[:, at:at + len(c.g)]
      good &= (rows < c.h if c.strict else rows <= c.h).any(axis=1)
      at += len(c.g)
  return good


Bounds = list[tuple[np.ndarray, np.ndarray]]


def value_bounds(network: tuple[Op, ...], lower: np.ndarray, upper: np.ndarray, refine: bool = True) -> Bounds:
  """Bounds `[b, size]` of every value on boxes `[b, n]`: intervals, and if `refine` those of `_backward` for operands
  of activations whose line the interval leaves open. What is not a number bounds nothing: it becomes infinite."""
  _reject(max(op.size for op in network) > _MOST_TERMS, f'a value has more than {_MOST_TERMS} entries: the rounding of '
          'their sums is not bounded')
  bounds: Bounds = [(lower, upper)]
  refined = {0}
  for op in network[1:]:
    if refine and op.kind in ('relu', 'maximum'):
      pair = [bounds[j] for j in op.inputs]
      if op.kind == 'relu':
        open_ = (pair[0][0] < 0) & (pair[0][1] > 0)
      else:
        open_ = (pair[0][0] < pair[1][1]) & (pair[1][0] < pair[0][1])
      for j in set(op.inputs) - refined:
        refined.add(j)
        bounds[j] = _refined(network, j, bounds, open_)
    low, high = _interval(op, [bounds[j] for j in op.inputs])
    bounds.append((np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)))
  return bounds


def _refined(network: tuple[Op, ...], j: int, bounds: Bounds, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Bounds of value `j`, by `_backward` too for the entries that are `wanted` `[b, size]`. What a box gets does not
  depend on the boxes beside it, up to the order of sums."""
  low, high = bounds[j]
  rows = np.flatnonzero(wanted.any(axis=0))
  if not len(rows):
    return low, high
  unit, wanted = np.eye(network[j].size)[rows], wanted[:, rows]
  found = _backward(network, j, np.concatenate([unit, -unit]), bounds)
  low, high = low.copy(), high.copy()
  low[:, rows] = np.where(wanted, np.maximum(low[:, rows], found[:, :len(rows)]), low[:, rows])
  high[:, rows] = np.where(wanted, np.minimum(high[:, rows], -found[:, len(rows):]), high[:, rows])
  return low, high


def _interval(op: Op, arguments: Bounds) -> tuple[np.ndarray, np.ndarray]:
  """Interval arithmetic, rounded outwards."""
  low, high = arguments[0]
  if op.kind == 'gather':
    zero = np.zeros((len(low), 1))
    return tuple(np.concatenate([zero, *[a[side] for a in arguments]], axis=1)[:, op.array] for side in (0, 1))
  if op.kind == 'relu':
    return np.maximum(low, 0), np.maximum(high, 0)
  if op.kind == 'maximum':
    return np.maximum(low, arguments[1][0]), np.maximum(high, arguments[1][1])
  if op.kind == 'add':
    return _outwards(low + arguments[1][0], high + arguments[1][1])
  if op.kind == 'sum':
    d = int(op.array[0])
    total = lambda v: v.reshape(len(v), -1, d).sum(axis=2)
    error = _gamma(d + 1) * _up(total(np.maximum(np.abs(low), np.abs(high))))
    return _outwards(total(low) - error, total(high) + error)
  c = op.array.astype(np.float64)
  if op.kind == 'shift':
    return _outwards(low + c, high + c)
  if op.kind in ('scale', 'divide'):
    ends = (low * c, high * c) if op.kind == 'scale' else (low / c, high / c)
    return _outwards(np.minimum(*ends) - _TINY, np.maximum(*ends) + _TINY)
  center = low / 2 + high / 2
  radius = _up(np.maximum(high - center, center - low)) + _TINY
  d = c.shape[0]
  rows = lambda v: v.reshape(-1, d)
  y = (rows(center) @ c).reshape(len(low), -1)
  r = (rows(radius + _gamma(d + 2) * (np.abs(center) + radius)) @ np.abs(c)).reshape(len(low), -1)
  r = _up(r) + _TINY
  return _outwards(y - r, y + r)


def _backward(network: tuple[Op, ...], target: int, start: np.ndarray, bounds: Bounds,
              cuts: Cuts | None = None) -> np.ndarray:
  """Lower bounds `[b, q]` of start . value of `target`, start `[q, size]`, over boxes.

  Throughout, start . value >= sum over states of a . value - error + d, over the reals, for every input in the box.
  States are `[b, q, size]`, or `[1, q, size]` as long as they do not depend on the box.
  """
  states = {target: start[None]}
  d, error = np.zeros((1, len(start))), np.zeros((1, len(start)))
  size = [np.maximum(np.abs(low), np.abs(high)) for low, high in bounds]
  dot = lambda a, v: _up(np.matmul(np.abs(a), v[..., None])[..., 0])   # an upper bound of |a| . v, v >= 0
  for i in range(target, 0, -1):
    if i not in states:
      continue
    op, a, error = network[i], states.pop(i), error + _TINY
    if op.kind in ('relu', 'maximum'):
      parts, more, slack = _through_activation(op, a, [bounds[j] for j in op.inputs])
      d = d + more
      error = _up(error + slack + _U * np.abs(d))
    elif op.kind == 'shift':
      c = op.array.astype(np.float64)
      d = d + a @ c
      error = _up(error + _gamma(op.size + 1) * dot(a, np.broadcast_to(np.abs(c), (len(a), op.size))) + _U * np.abs(d))
      parts = [a]
    else:
      parts, slack = _through_linear(op, a, [network[j].size for j in op.inputs])
      if slack:
        # Entries of `parts` are off by at most slack times the same sums of absolute values.
        error = _up(error + slack * dot(a, _absolute(op, [size[j] for j in op.inputs])))
    for j, part in zip(op.inputs, parts, strict=True):
      if j in states:
        part = states[j] + part
        error = _up(error + _U * dot(part, size[j]))
      states[j] = part
  a = states.get(0)
  if cuts is not None:
    normal, limit, q = cuts
    a = np.zeros((1, len(start), len(normal[0]))) if a is None else a
    d = d - q @ limit
    sums = np.abs(a) + q @ np.abs(normal)
    error = _up(error + _gamma(len(limit) + 2) * (dot(sums, size[0]) + _up(q @ np.abs(limit))) + _U * np.abs(d)) + _TINY
    a = a + q @ normal
  if a is None:
    return np.broadcast_to(np.nextafter(d - error, -np.inf), (len(bounds[0][0]), len(start)))
  low, high = bounds[0]
  center = low / 2 + high / 2
  radius = _up(np.maximum(high - center, center - low)) + _TINY
  value = np.matmul(a, center[..., None])[..., 0]
  error = _up(error + _gamma(a.shape[2] + 3) * (dot(a, np.abs(center) + radius) + np.abs(d)) + dot(a, radius)) + _TINY
  least = np.nextafter(np.nextafter(value + d, -np.inf) - error, -np.inf)
  return np.where(np.isfinite(least), least, -np.inf)


def _through_activation(op: Op, a: np.ndarray, arguments: Bounds) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
  """Coefficients of the operands where a . activation is bounded below by lines; what they add to d; their error."""
  low, high = arguments[0]
  positive = a >= 0
  if op.kind == 'maximum':
    low_b, high_b = arguments[1]
    first, a_wins, b_wins = low >= low_b, low >= high_b, low_b >= high
    top = np.where(a_wins | b_wins, 0, np.maximum(high, high_b))
    above = a_wins, b_wins & ~a_wins
    parts = [a * np.where(positive, below[:, None], over[:, None])
             for below, over in zip((first, ~first), above, strict=True)]
    raised, size = np.where(positive, 0, a), top
    slack = _gamma(op.size + 1) * _up(np.matmul(np.abs(raised), np.abs(size)[..., None])[..., 0])
    return parts, np.matmul(raised, size[..., None])[..., 0], slack
  unstable, active = (low < 0) & (high > 0), low >= 0
  chord = np.where(unstable, np.minimum(high / np.where(unstable, high - low, 1), 1), active)
  # relu is convex, so that it lies below the line through slope and offset if it does at both ends; any slope will do
  offset = np.where(unstable, _up(np.maximum(-chord * low, high * (1 - chord))) + _TINY, 0)
  below = np.where(unstable, high >= -low, active).astype(np.float64)
  size = np.where(unstable, _up(chord * np.maximum(np.abs(low), np.abs(high))), 0)   # only their products are rounded
  negative = np.minimum(a, 0)
  sums = np.matmul(negative, np.stack([offset, size], axis=-1))   # of terms with one sign
  part = np.maximum(a, 0) * below[:, None]
  part += negative * chord[:, None]
  lifted = sums[..., 0]
  return [part], lifted, _up(_gamma(op.size + 1) * np.abs(lifted) + 2 * _U * np.abs(sums[..., 1]))


def _through_linear(op: Op, a: np.ndarray, sizes: list[int]) -> tuple[list[np.ndarray], float]:
  """Coefficients of the operands of a linear operation, and their relative rounding error."""
  if op.kind == 'add':
    return [a, a], 0.
  if op.kind == 'sum':
    return [np.repeat(a, int(op.array[0]), axis=2)], 0.
  if op.kind == 'gather':
    together = np.zeros((*a.shape[:2], 1 + sum(sizes)))
    most = int(np.bincount(op.array[op.array > 0], minlength=1).max(initial=0))
    if most <= 1:
      together[..., op.array] = a
    else:
      np.add.at(together, (slice(None), slice(None), op.array), a)
    ends = np.cumsum([1, *sizes])
    return [together[..., s:e] for s, e in zip(ends, ends[1:], strict=False)], _gamma(most) if most > 1 else 0.
  c = op.array.astype(np.float64)
  if op.kind == 'matmul':
    return [(a.reshape(-1, c.shape[1]) @ c.T).reshape(*a.shape[:2], -1)], _gamma(c.shape[1])
  return [a * c if op.kind == 'scale' else a / c], 2 * _U


def _absolute(op: Op, sizes: list[np.ndarray]) -> np.ndarray:
  """An upper bound `[b, size]` of an affine operation, its constant made positive, at values of `sizes` `[b, size]`."""
  x = sizes[0]
  if op.kind == 'gather':
    return np.concatenate([np.zeros((len(x), 1)), *sizes], axis=1)[:, op.array]
  if op.kind == 'add':
    return _up(x + sizes[1])
  if op.kind == 'sum':
    return _up(x.reshape(len(x), -1, int(op.array[0])).sum(axis=2))
  c = np.abs(op.array.astype(np.float64))
  if op.kind == 'matmul':
    return _up((x.reshape(-1, c.shape[0]) @ c).reshape(len(x), -1))
  return _up({'scale': lambda: x * c, 'divide': lambda: x / c, 'shift': lambda: x + c}[op.kind]())


def float32_error(network: tuple[Op, ...], lower: np.ndarray, upper: np.ndarray, refine: bool = True) -> np.ndarray:
  """How far any float32 evaluation may be from the real logits on boxes `[b, n]`: `[b, k]`."""
  with np.errstate(all='ignore'):
    return _float32_error(network, value_bounds(network, lower, upper, refine))


def _float32_error(network: tuple[Op, ...], bounds: Bounds) -> np.ndarray:
  size = [np.maximum(np.abs(low), np.abs(high)) for low, high in bounds]
  errors = [_up(_U32 * size[0])]   # a point of the set that is no float32 is rounded to one
  largest = size[0].max(axis=1)
  for op in network[1:]:
    e = [errors[j] + _SUBNORMAL32 for j in op.inputs]   # an operand may be flushed to zero
    h = [size[j] + errors[j] for j in op.inputs]        # what the float32 operands are at most
    if op.kind == 'maximum':
      error = peak = np.maximum(*e)
    elif op.kind == 'relu':
      error = peak = e[0]
    else:
      terms = op.array.shape[0] if op.kind == 'matmul' else int(op.array[0]) if op.kind == 'sum' else 1
      peak = _absolute(op, h)
      rounding = 0. if op.kind == 'gather' else _gamma(terms + 1, _U32)
      carried = e[0] if op.kind == 'shift' else _absolute(op, e)
      error = _up(carried + rounding * peak) + 2 * (terms + 1) * _SUBNORMAL32
    largest = np.maximum(largest, peak.max(axis=1))
    errors.append(error)
  # float32 has no number beyond 3.4e38: an evaluation that may come near says nothing. NaN compares as not below.
  return np.where((largest < 1e37)[:, None], errors[-1], np.inf)


def _gamma(n: int, u: float = _U) -> float:
  """n u / (1 - n u): the relative error of a sum of n products in any order (Higham, chapter 3)."""
  return n * u / (1 - n * u) * _UP if n * u < 0.5 else math.inf


def _up(v: np.ndarray) -> np.ndarray:
  """An upper bound of what the computation of non-negative `v` rounded."""
  return v * _UP


def _outwards(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  return np.nextafter(low, -np.inf), np.nextafter(high, np.inf)


def main(arguments: list[str]) -> int:
  """Checks the certificate that is named; 0 if it holds, 1 if not."""
  if len(arguments) != 1:
    print('usage: python checker.py FILE', file=sys.stderr)
    return 2
  try:
    report = check(arguments[0])
  except OSError as e:
    print(f'error: {e}', file=sys.stderr)
    return 2
  except RejectedError as e:
    print(f'REJECTED: {e}')
    return 1
  print('\n'.join(report.counts))
  print(f'CERTIFIED ({report.strength}): network {report.network_sha256} satisfies specification {report.spec_sha256}')
  return 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
