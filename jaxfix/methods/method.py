"""`Method`, the record that every approach registers, and `run`, the checked way to call one."""
import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxfix.classifier import check_finite, flat_weights
from jaxfix.clock import Clock
from jaxfix.errors import BadInputError, RepairFailure, Unadaptable, UnknownNameError, require
from jaxfix.problem import Problem, Repair, check_problem

Level = Literal['model', 'block', 'layer', 'neuron']


@dataclasses.dataclass(frozen=True)
class Method:
  """One approach.

  Attributes:
    name: registry key, `apricot`.
    title: as the paper spells it.
    code: the study's code (`AP`), or ''.
    level: what it edits: the whole model, a block, a layer, single neurons or weights.
    config: frozen dataclass instance with the published defaults.
    repair: `(problem, config, key) -> Repair`; `key` is consumed. Call it through `run`.
    requires: what it needs besides the model, for people.
    needs: extras of the problem that must not be None: 'history', 'class_importance', 'groups', 'spec'.
    changes: which weights may differ afterwards, for people.
    may_change: `(problem, config) -> predicate on 'params/fc3/kernel'`-like names; checked by `run`.
    guarantee: what is proven, or 'none'.
    source: paper.
    summary: one line.
    deterministic: the result does not depend on the key.
    check: `(problem, config) -> None`; raises `Unadaptable` when the network's structure does not allow the method.
    keeps_architecture: the repaired module is the original module.
    changes_only_edits: every scalar that differs afterwards is listed in the trace's `edits`; checked by `run`.
  """
  name: str
  title: str
  code: str
  level: Level
  config: Any
  repair: Callable[[Problem, Any, jax.Array], Repair]
  changes: str
  guarantee: str
  source: str
  summary: str
  requires: str = 'failing samples'
  needs: tuple[str, ...] = ()
  may_change: Callable[[Problem, Any], Callable[[str], bool]] = lambda problem, config: lambda name: True
  deterministic: bool = False
  check: Callable[[Problem, Any], None] = lambda problem, config: None
  keeps_architecture: bool = True
  changes_only_edits: bool = False

  def __post_init__(self):
    for field in ('name', 'title', 'code', 'changes', 'guarantee', 'source', 'summary', 'requires'):
      require(isinstance(getattr(self, field), str), f'approach {self.name!r}: {field} must be text, got '
              f'{getattr(self, field)!r}.')
    require(self.level in typing.get_args(Level), f'approach {self.name!r}: level must be one of '
            f'{", ".join(typing.get_args(Level))}, got {self.level!r}.')
    unknown = set(self.needs) - set(_NEEDED)
    require(not unknown, f'approach {self.name!r}: needs must be of {", ".join(_NEEDED)}, not {", ".join(unknown)}.')


_NEEDED = {
  'history': lambda p: p.history,
  'class_importance': lambda p: p.class_importance,
  'groups': lambda p: p.train.group,
  'spec': lambda p: p.spec,
}


def check(method: Method, problem: Problem, config: Any) -> None:
  """Everything that can be refused before work: malformed input, unmet needs, unfit structure.

  Raises:
    Unadaptable: the problem lacks what the method needs.
    BadInputError, EmptySplitError, NoFailingSamplesError: see `check_problem`.
  """
  require(isinstance(config, type(method.config)),
          f'{method.name} takes a {type(method.config).__module__}.Config, got {type(config).__name__}.')
  for need in method.needs:
    if _NEEDED[need](problem) is None:
      raise Unadaptable(f'{method.title} needs {need}, which this problem does not have.')
  check_problem(problem)
  method.check(problem, config)


def run(method: Method, problem: Problem, config: Any | None = None, *, key: jax.Array) -> Repair:
  """Checks the problem, repairs, and checks the result against what the method declares.

  Args:
    method: the approach.
    problem: what to repair.
    config: of the method's `Config` type; None for the published defaults.
    key: typed JAX key; consumed.
  Returns:
    The method's `Repair`; its `seconds` has a phase for everything, their sum is the wall time of this call.
  Raises:
    Unadaptable, BadInputError, NoFailingSamplesError: before any work (`check`).
    RepairFailure: the method could not finish, changed weights that it must not, or gave non-finite ones.
  """
  config = method.config if config is None else config
  clock = Clock()
  with clock.phase('total'):
    check(method, problem, config)
    repair = method.repair(problem, config, key)
    jax.block_until_ready(repair.classifier.variables)
  compile_seconds = clock.compile_seconds   # what the checks below trace is no part of the repair
  try:
    check_finite(repair.classifier, f'model repaired by {method.name}')
  except BadInputError as e:
    raise RepairFailure(f'{method.title} gave non-finite weights: {e}') from e
  _check_changes(method, problem, config, repair)
  rest = clock.seconds['total'] - sum(repair.seconds.values())
  seconds = {**repair.seconds, 'other': max(0., rest)}
  return dataclasses.replace(repair, seconds=seconds, compile_seconds=compile_seconds)


def changed_weights(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, int]:
  """Name -> number of scalars whose bits differ, for the arrays of `before` that `after` also has."""
  return {name: int(differs.sum()) for name, differs in _differences(before, after).items()}


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Name -> boolean array of the scalars whose bits differ, where any do."""
  old, new = flat_weights(before), flat_weights(after)
  return {name: old[name].view(np.uint32) != new[name].view(np.uint32)
          for name in old if name in new and old[name].tobytes() != new[name].tobytes()}


def _check_changes(method: Method, problem: Problem, config: Any, repair: Repair) -> None:
  if not method.keeps_architecture and repair.classifier.module != problem.classifier.module:
    return  # other names: the method's own tests compare the parts that correspond
  allowed = method.may_change(problem, config)
  differences = _differences(problem.classifier.variables, repair.classifier.variables)
  for name in differences:
    if not allowed(name):
      raise RepairFailure(f'{method.title} changed {name!r}, which it declares to leave alone; report this as a bug.')
  if method.changes_only_edits:
    for edit in repair.trace.edits:
      if f'params/{edit.path}' in differences:
        differences[f'params/{edit.path}'][edit.index] = False
    for name, differs in differences.items():
      if differs.any():
        raise RepairFailure(f'{method.title} changed {int(differs.sum())} scalars of {name!r} that its trace does not '
                            'list; report this as a bug.')


def configure(method: Method, overrides: Mapping[str, Any]) -> Any:
  """The method's default config with some fields replaced.

  Args:
    method: the approach.
    overrides: field -> value, or its text as typed after `--set`.
  Raises:
    UnknownNameError: no such field; the nearest one is named.
    BadInputError: the value has the wrong type or is out of range.
  """
  kinds = typing.get_type_hints(type(method.config))
  values = {}
  for name, value in overrides.items():
    if name not in kinds:
      raise UnknownNameError(f'option of {method.name}', name, kinds)
    values[name] = _parse(value, kinds[name], f'{method.name}: option {name}') if isinstance(value, str) else value
  return dataclasses.replace(method.config, **values)


def _parse(text: str, kind: Any, where: str) -> Any:
  """`text` as a value of type `kind`: bool, int, float, str, Literal, `tuple[kind, ...]` (a+b+c) or a union of them."""
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if origin in (types.UnionType, typing.Union):
    if text.lower() == 'none' and type(None) in arguments:
      return None
    errors = []
    for option in (a for a in arguments if a is not type(None)):
      try:
        return _parse(text, option, where)
      except BadInputError as e:
        errors.append(e)
    raise errors[-1]
  if origin is typing.Literal:
    require(text in arguments, f'{where} must be one of {", ".join(map(str, arguments))}, got {text!r}.')
    return text
  if origin is tuple:
    return tuple(_parse(part, arguments[0], where) for part in text.split('+') if part)
  if kind is bool:
    require(text.lower() in ('true', 'false'), f'{where} must be true or false, got {text!r}.')
    return text.lower() == 'true'
  if kind is str:
    return text
  try:
    return kind(text)
  except ValueError as e:
    raise BadInputError(f'{where} must be of type {kind.__name__}, got {text!r}.') from e


def describe_config(config: Any) -> dict[str, Any]:
  """The resolved config as plain JSON types."""
  return dataclasses.asdict(config)


def select_by_validation(accuracies: Sequence[float]) -> int:
  """Index of the best validation accuracy, the earliest at a tie (`design/decisions.md`, 2)."""
  return int(np.argmax(np.asarray(accuracies)))
