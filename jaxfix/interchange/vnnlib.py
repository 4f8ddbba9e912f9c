"""VNN-LIB 1.0: properties of networks as the verification competitions write them.

A file asserts what makes a *counterexample*: the conjunction of its assertions describes the unsafe region, and a
network is safe if no input has an output in there. `read` negates, since a `Spec` says what is safe.

Accepted are real variables X_0, X_1, ... (inputs) and Y_0, Y_1, ... (outputs), <= and >= between two of them or one and
a number, `and`, and `or` of conjunctions. An input may only be compared with a number, so that the inputs form boxes.
Everything else is refused, with its place. Decimals become the nearest float64, as every tool for these files reads
them; what is then proven is proven of those numbers.
"""
import dataclasses
import itertools
import math
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from jaxfix import files
from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError, require
from jaxfix.verify.spec import Box, Clause, Property, Spec, avoids

_TOKEN = re.compile(r'[()]|[^\s();]+')
_VARIABLE = re.compile(r'([XY])_(0|[1-9][0-9]*)')
_NUMBER = re.compile(r'[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?')
_MOST_CONJUNCTS = 100_000


def read(path: str | os.PathLike) -> Spec:
  """The properties of a file: one for each box of inputs, in the order of their first mention.

  Raises:
    DataNotFoundError: there is no such file.
    CorruptFileError: it is not VNN-LIB 1.0 of the accepted kind; the message has line and column.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise DataNotFoundError(f'No file {path}.')
  try:
    text = path.read_text(encoding='utf-8')
  except UnicodeDecodeError as e:
    raise CorruptFileError(f'{path} is not text: {e}.') from e
  try:
    return parse(text)
  except CorruptFileError as e:
    raise CorruptFileError(f'{path}: {e}') from e


def parse(text: str) -> Spec:
  """The properties of the text of a file. Raises `CorruptFileError`, with line and column."""
  inputs, outputs, assertions = _statements(text)
  count = math.prod(len(a) for a in assertions)
  require(count <= _MOST_CONJUNCTS, f'The disjunctions multiply out to {count} conjunctions; at most {_MOST_CONJUNCTS} '
          'are read.', CorruptFileError)
  regions: dict[tuple[bytes, bytes], tuple[Box, list]] = {}
  for choice in itertools.product(*assertions):
    box, region = _region([atom for conjunction in choice for atom in conjunction], inputs, outputs)
    _, conjuncts = regions.setdefault((box.lower.tobytes(), box.upper.tobytes()), (box, []))
    conjuncts.append(region)
  return tuple(Property(box, avoids(conjuncts)) for box, conjuncts in regions.values())


def write(path: str | os.PathLike, spec: Spec) -> None:
  """Writes a spec; `read` gives the same boxes and clauses back, bit for bit.

  Raises:
    BadInputError: the spec has another input set than a box, no clause, a clause that is not strict, or rows that are
      neither a bound on one output nor a comparison of two: VNN-LIB 1.0 has no words for them.
    OutputError: the file cannot be written.
  """
  files.write_text(path, unparse(spec))


def unparse(spec: Spec) -> str:
  """The text of a file; see `write`."""
  require(len(spec) > 0, 'A specification without properties cannot be written.')
  for p in spec:
    require(isinstance(p.inputs, Box), f'VNN-LIB has boxes of inputs only, not {type(p.inputs).__name__}.')
    require(len(p.clauses) > 0, 'A property without clauses has no unsafe region and cannot be written.')
    require(all(clause.strict and len(clause.g) for clause in p.clauses),
            'The unsafe region of VNN-LIB has its border, so that only strict clauses with rows can be written.')
  lines = [f'(declare-const {kind}_{i} Real)' for kind, size in
           (('X', spec[0].inputs.dimension), ('Y', spec[0].clauses[0].num_outputs)) for i in range(size)]
  boxes = [[atom for i, (low, high) in enumerate(zip(p.inputs.lower, p.inputs.upper, strict=True))
            for atom in (f'(>= X_{i} {_decimal(low)})', f'(<= X_{i} {_decimal(high)})')] for p in spec]
  regions = [[_atoms(clause) for clause in p.clauses] for p in spec]
  if len(spec) == 1:
    lines += [f'(assert {atom})' for atom in boxes[0]]
    conjuncts = regions[0]
  else:
    conjuncts = [box + atoms for box, parts in zip(boxes, regions, strict=True) for atoms in parts]
  lines += ['(assert (or', *(f'  (and {" ".join(atoms)})' for atoms in conjuncts), '))']
  return '\n'.join(lines) + '\n'


def counterexample(x: np.ndarray, y: np.ndarray) -> str:
  """An input `[n]` and its output `[m]` as the verification competition writes them; float64 survives the text."""
  pairs = [f'({name}_{i} {v:.17g})' for name, values in (('X', x), ('Y', y)) for i, v in enumerate(values.tolist())]
  return '(' + '\n'.join(pairs) + ')'


def _decimal(value: float) -> str:
  """The shortest decimal that reads back as this float64."""
  return repr(float(value))


def _atoms(clause: Clause) -> list[str]:
  """The unsafe region {y | -g y <= -h} of a strict clause, one atom a row."""
  return [_atom(row, bound) for row, bound in zip(-clause.g, -clause.h, strict=True)]


def _atom(row: np.ndarray, bound: float) -> str:
  used = np.flatnonzero(row)
  entries = sorted(row[used].tolist())
  if entries == [-1., 1.] and bound == 0:
    return f'(<= Y_{int(np.argmax(row))} Y_{int(np.argmin(row))})'
  if entries == [1.]:
    return f'(<= Y_{used[0]} {_decimal(bound)})'
  if entries == [-1.]:
    return f'(>= Y_{used[0]} {_decimal(-bound)})'
  raise BadInputError(f'VNN-LIB compares two outputs, or one with a number; the row {row.tolist()} <= {bound} does '
                      'neither.')


@dataclasses.dataclass(frozen=True)
class _Token:
  text: str
  line: int
  column: int


@dataclasses.dataclass(frozen=True)
class _List:
  """A parenthesized expression, and where it begins."""
  items: tuple
  line: int
  column: int


@dataclasses.dataclass(frozen=True)
class _Atom:
  """`low <= high`; each a variable ('X', 3) or a float."""
  low: tuple[str, int] | float
  high: tuple[str, int] | float


def _error(where: _Token | _List, message: str) -> CorruptFileError:
  return CorruptFileError(f'line {where.line}, column {where.column}: {message}')


def _tokens(text: str) -> Iterator[_Token]:
  for number, line in enumerate(re.split(r'\r\n|\r|\n', text), 1):   # a form feed ends no comment
    for match in _TOKEN.finditer(line.split(';', 1)[0]):
      yield _Token(match.group(), number, match.start() + 1)


def _expressions(text: str) -> list[_List]:
  """The parenthesized expressions of a file, nested as they are."""
  open_lists: list[tuple[_Token, list]] = []
  found: list[_List] = []
  for token in _tokens(text):
    if token.text == '(':
      open_lists.append((token, []))
    elif token.text == ')':
      if not open_lists:
        raise _error(token, 'there is nothing that this parenthesis closes')
      start, items = open_lists.pop()
      done = _List(tuple(items), start.line, start.column)
      (open_lists[-1][1] if open_lists else found).append(done)
    elif open_lists:
      open_lists[-1][1].append(token)
    else:
      raise _error(token, f'expected a statement in parentheses, found {token.text!r}')
  if open_lists:
    raise _error(open_lists[-1][0], 'this parenthesis is never closed; is the file whole?')
  return found


def _head(expression: _List) -> str:
  first = expression.items[0] if expression.items else None
  return first.text if isinstance(first, _Token) else ''


def _statements(text: str) -> tuple[int, int, list[list[list[_Atom]]]]:
  """Numbers of inputs and of outputs, and each assertion as a disjunction of conjunctions of atoms."""
  declared: dict[str, list[int]] = {'X': [], 'Y': []}
  assertions = []
  for statement in _expressions(text):
    if _head(statement) == 'declare-const':
      kind, number = _declared(statement)
      if number != len(declared[kind]):
        raise _error(statement, f'expected the declaration of {kind}_{len(declared[kind])}, found {kind}_{number}; '
                     'variables are declared once, in order')
      declared[kind].append(number)
    elif _head(statement) == 'assert':
      if len(statement.items) != 2 or not isinstance(statement.items[1], _List):
        raise _error(statement, 'an assertion has one expression in parentheses')
      assertions.append(_disjunction(statement.items[1], {k: len(v) for k, v in declared.items()}))
    else:
      raise _error(statement, f'unknown statement {_head(statement)!r}; known: declare-const, assert')
  for kind, name in (('X', 'input'), ('Y', 'output')):
    require(bool(declared[kind]), f'line 1, column 1: no {name} {kind}_0 is declared', CorruptFileError)
  return len(declared['X']), len(declared['Y']), assertions


def _declared(statement: _List) -> tuple[str, int]:
  words = [item.text if isinstance(item, _Token) else '' for item in statement.items]
  match = _VARIABLE.fullmatch(words[1]) if len(words) == 3 and words[2] == 'Real' else None
  if match is None:
    raise _error(statement, 'a declaration reads (declare-const X_0 Real) or (declare-const Y_0 Real)')
  return match.group(1), int(match.group(2))


def _disjunction(expression: _List, sizes: dict[str, int]) -> list[list[_Atom]]:
  if _head(expression) != 'or':
    return [_conjunction(expression, sizes)]
  if len(expression.items) < 2:
    raise _error(expression, 'a disjunction of nothing')
  return [_conjunction(item, sizes) for item in _lists(expression)]


def _conjunction(expression: _List, sizes: dict[str, int]) -> list[_Atom]:
  if _head(expression) != 'and':
    return [_comparison(expression, sizes)]
  if len(expression.items) < 2:
    raise _error(expression, 'a conjunction of nothing')
  return [_comparison(item, sizes) for item in _lists(expression)]


def _lists(expression: _List) -> Sequence[_List]:
  for item in expression.items[1:]:
    if not isinstance(item, _List):
      raise _error(item, f'expected an expression in parentheses, found {item.text!r}')
  return expression.items[1:]


def _comparison(expression: _List, sizes: dict[str, int]) -> _Atom:
  operator = _head(expression)
  if operator not in ('<=', '>='):
    raise _error(expression, f'expected (<= a b) or (>= a b), found {operator!r}; an `or` holds `and`s, and an `and` '
                 'holds comparisons')
  if len(expression.items) != 3:
    raise _error(expression, f'{operator} compares two terms, found {len(expression.items) - 1}')
  left, right = (_term(item, sizes) for item in expression.items[1:])
  kinds = {term[0] for term in (left, right) if isinstance(term, tuple)}
  if not kinds:
    raise _error(expression, 'two numbers are compared')
  if 'X' in kinds and isinstance(left, tuple) and isinstance(right, tuple):
    raise _error(expression, 'an input may only be compared with a number')
  return _Atom(left, right) if operator == '<=' else _Atom(right, left)


def _term(item: _Token | _List, sizes: dict[str, int]) -> tuple[str, int] | float:
  if isinstance(item, _List):
    raise _error(item, 'arithmetic is not read; a term is a variable or a number')
  if match := _VARIABLE.fullmatch(item.text):
    kind, number = match.group(1), int(match.group(2))
    if number >= sizes[kind]:
      raise _error(item, f'{item.text} is not declared before this')
    return kind, number
  if not _NUMBER.fullmatch(item.text) or not math.isfinite(value := float(item.text)):
    raise _error(item, f'{item.text!r} is neither X_i, Y_i nor a number of float64')
  return value


def _region(atoms: list[_Atom], inputs: int, outputs: int) -> tuple[Box, tuple[np.ndarray, np.ndarray]]:
  """The box of inputs of a conjunction, and its region g y <= h of outputs."""
  lower, upper = np.full(inputs, -np.inf), np.full(inputs, np.inf)
  g, h = [], []
  for atom in atoms:
    variables = [term for term in (atom.low, atom.high) if isinstance(term, tuple)]
    if variables[0][0] == 'X':
      if isinstance(atom.low, tuple):
        upper[atom.low[1]] = min(upper[atom.low[1]], atom.high)
      else:
        lower[atom.high[1]] = max(lower[atom.high[1]], atom.low)
      continue
    row, bound = np.zeros(outputs), 0.
    for term, sign in ((atom.low, 1.), (atom.high, -1.)):
      if isinstance(term, tuple):
        row[term[1]] += sign
      else:
        bound -= sign * term
    g.append(row)
    h.append(bound)
  for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
    side = 'lower' if math.isinf(low) else 'upper' if math.isinf(high) else ''
    require(not side, f'line 1, column 1: input X_{i} has no {side} bound in some conjunction; every input needs two',
            CorruptFileError)
  return Box(lower, upper), (np.array(g).reshape(-1, outputs), np.array(h))
