"""Certificates: files that let anybody check a claim about a network without trusting the program that found it.

One `.npz` holds the network in normal form, the specification, the strength of the claim and the evidence for each
property; `checker.py` says what they mean and is the only judge. Arrays are stored as they are and never unpickled; an
array `document` holds the JSON that ties them together.
"""
import json
import os
from collections.abc import Sequence

import numpy as np

from jaxfix import files
from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError, require
from jaxfix.verify import checker
from jaxfix.verify.normal_form import NormalForm
from jaxfix.verify.spec import Box, HPolytope, Points, Property, Spec, VPolytope

Evidence = tuple[str, np.ndarray | None]
"""('points', None), ('pieces', None), ('splits', tree int16 or int32) or ('duals', tree with multipliers, float64):
see `checker.py`."""


def make(form: NormalForm, spec: Spec, evidence: Sequence[Evidence], strength: str = 'real') -> checker.Certificate:
  """The claim that the network satisfies the specification, with its evidence, unchecked.

  Args:
    form: network.
    spec: properties.
    evidence: one for each property.
    strength: 'real' or 'float32'.
  """
  require(len(evidence) == len(spec), f'{len(spec)} properties need as many pieces of evidence, got {len(evidence)}.')
  return checker.Certificate(network_of(form), tuple(map(property_of, spec)), strength, tuple(evidence))


def network_of(form: NormalForm) -> tuple[checker.Op, ...]:
  """The network in the checker's terms."""
  return tuple(checker.Op(op.kind, op.inputs, op.array, op.size) for op in form.ops)


def property_of(p: Property) -> checker.Property:
  """A property in the checker's terms."""
  clauses = tuple(checker.Clause(c.g, c.h, c.strict) for c in p.clauses)
  s = p.inputs
  if isinstance(s, Points):
    return checker.Property('points', (s.x,), clauses)
  if isinstance(s, VPolytope):
    return checker.Property('vpolytope', (s.vertices,), clauses)
  if isinstance(s, HPolytope):
    return checker.Property('hpolytope', (s.box.lower, s.box.upper, s.a, s.b), clauses)
  if not isinstance(s, Box):
    raise BadInputError(f'{type(s).__name__} is not a set that certificates speak of.')
  return checker.Property('box', (s.lower, s.upper), clauses)


def simplest_evidence(p: Property) -> Evidence:
  """Evidence that needs no search: evaluation of points, exact pieces of a polytope, a box in one piece."""
  if isinstance(p.inputs, Points):
    return 'points', None
  if isinstance(p.inputs, VPolytope):
    return 'pieces', None
  return 'splits', np.array([-1], np.int16)


def save(path: str | os.PathLike, certificate: checker.Certificate) -> None:
  """Writes a certificate atomically. Raises `OutputError`."""
  arrays: dict[str, np.ndarray] = {}

  def put(array: np.ndarray | None) -> str | None:
    if array is None:
      return None
    arrays[f'a{len(arrays)}'] = array
    return f'a{len(arrays) - 1}'

  document = {
    'format': checker.FORMAT,
    'claim': 'the network satisfies every property of the specification',
    'strength': certificate.strength,
    'network_sha256': checker.network_sha256(certificate.network),
    'spec_sha256': checker.spec_sha256(certificate.spec),
    'network': [[op.kind, list(op.inputs), put(op.array), op.size] for op in certificate.network],
    'spec': [{'kind': p.kind, 'arrays': [put(a) for a in p.arrays],
              'clauses': [[put(c.g), put(c.h), c.strict] for c in p.clauses]} for p in certificate.spec],
    'evidence': [[kind, put(array)] for kind, array in certificate.evidence],
  }
  document['content_sha256'] = checker.content_sha256(document, arrays)
  text = np.frombuffer(json.dumps(document, sort_keys=True).encode(), np.uint8)
  with files.replacing(path) as partial, open(partial, 'wb') as f:
    np.savez_compressed(f, document=text, **arrays)


def load(path: str | os.PathLike) -> checker.Certificate:
  """Reads a certificate; its hashes are checked, its claim is not (`checker.check_claim`).

  Raises:
    DataNotFoundError: there is no such file.
    CorruptFileError: it is damaged or no certificate.
  """
  try:
    return checker.load(os.fspath(path))
  except FileNotFoundError as e:
    raise DataNotFoundError(f'No file {path}.') from e
  except (OSError, checker.RejectedError) as e:
    raise CorruptFileError(f'{path} cannot be read as a certificate: {e}.') from e
