"""What a stored trace says about the returned weights: at which entry of which curve they stand.

Decided here: traces written before `Trace.selected` named its curves hold a bare number. Of a population search it is
the place in every curve, since all of them are by iteration and begin before the first; of any other method it may
count rounds, steps or validations, from 0 or from 1, so that nothing is marked.
"""
from collections.abc import Mapping
from typing import Any

_BY_ITERATION = frozenset({'best_fitness', 'mean_fitness', 'round_fitness', 'best_score', 'mean_score'})


def selected_entries(trace: Mapping[str, Any]) -> dict[str, int]:
  """Curve -> place, from 0, of the entry of the returned weights; curves without such an entry are absent.

  Args:
    trace: with `curves` and `selected`, as stored.
  """
  curves, selected = trace['curves'], trace['selected']
  if not isinstance(selected, Mapping):
    known = selected is not None and set(curves) <= _BY_ITERATION
    selected = dict.fromkeys(curves, selected) if known else {}
  return {name: place for name, place in selected.items() if 0 <= place < len(curves.get(name, ()))}
