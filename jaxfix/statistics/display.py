"""Compact letter display: two approaches share a letter exactly if they do not differ significantly.

A letter is a *column*, a set of approaches no two of which differ. Insert splits columns until that holds, absorb drops
columns inside others, sweep drops letters that no pair needs. The number of letters need not be minimal (that is
NP-hard).

Source: Piepho 2004 (insert and absorb); Gramm et al. 2007 (sweep).
"""
from collections.abc import Iterable, Sequence

from jaxfix.errors import BadInputError, require

MAX_COLUMNS = 4096


def letters(order: Sequence[str], different: Iterable[tuple[str, str]]) -> dict[str, str]:
  """The letters of each approach: 'a' for the best, 'bc' for one that is in two groups.

  Args:
    order: approaches, best first, each once.
    different: unordered pairs that differ significantly.
  Raises:
    BadInputError: a name is unknown or listed twice, a pair is of one approach with itself, or the display would need
      more than `MAX_COLUMNS` letters on the way.

  >>> letters('ABCD', ['AC', 'AD', 'BD'])
  {'A': 'a', 'B': 'ab', 'C': 'bc', 'D': 'c'}
  """
  rank = {name: i for i, name in enumerate(order)}
  require(len(rank) == len(order), 'letters: the order lists an approach twice.')
  pairs = set()
  for a, b in different:
    require(a in rank and b in rank and a != b, f'letters: {a!r} and {b!r} are no pair of the order {list(order)}.')
    pairs.add((min(rank[a], rank[b]), max(rank[a], rank[b])))
  if not rank:
    return {}
  columns = [(1 << len(rank)) - 1]   # a column is a set of ranks, as the bits of an integer
  for a, b in sorted(pairs):
    columns = _insert(columns, 1 << a, 1 << b)
  members = sorted(_ranks(column) for column in _sweep(columns))
  shared = [[_name(k) for k, column in enumerate(members) if i in column] for i in range(len(order))]
  return {name: (',' if any(len(s) > 1 for s in shared[i]) else '').join(shared[i]) for name, i in rank.items()}


def _insert(columns: list[int], a: int, b: int) -> list[int]:
  """Splits every column that holds both a and b, and absorbs.

  Only a copy can lie inside another column, and only inside one that was left whole: of two copies one lies inside the
  other only if the columns they come from did, and these never do.
  """
  whole = [c for c in columns if not (c & a and c & b)]
  result = {}
  for c in columns:
    if not (c & a and c & b):
      result[c] = None
      continue
    for copy in (c & ~b, c & ~a):
      if not any(copy != w and not copy & ~w for w in whole):
        result[copy] = None
  if len(result) > MAX_COLUMNS:
    raise BadInputError(f'letters: more than {MAX_COLUMNS} groups; compare fewer approaches at once, or show the '
                        'q-values instead.')
  return list(result)


def _sweep(columns: list[int]) -> list[int]:
  """Drops each membership whose every pair meets in another column too."""
  columns, changed = list(columns), True
  while changed:
    changed = False
    for i, column in enumerate(columns):
      for x in _ranks(column):
        others = [c for j, c in enumerate(columns) if j != i and c >> x & 1]
        meets = 0
        for c in others:
          meets |= c
        if others and not columns[i] & ~meets:   # x itself is in `meets`
          columns[i] &= ~(1 << x)
          changed = True
    columns = [c for c in columns if c]
  return columns


def _ranks(column: int) -> list[int]:
  return [i for i in range(column.bit_length()) if column >> i & 1]


def _name(k: int) -> str:
  """a, ..., z, aa, ab, ..."""
  name = ''
  k += 1
  while k:
    k, digit = divmod(k - 1, 26)
    name = chr(ord('a') + digit) + name
  return name
