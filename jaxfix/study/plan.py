"""A study before it runs: which approaches, on which subjects, with which seeds, under which settings and limits.

The plans that come with jaxfix are modules in `launch/configs/`, each with one `PLAN`; a plan of your own is a module
of yours with the same.
"""
import dataclasses
import math
import operator
import os
import types
from collections.abc import Mapping, Sequence
from typing import Any

from jaxfix import methods, subjects
from jaxfix.errors import BadInputError, UnknownNameError, require
from jaxfix.files import jsonable
from jaxfix.problem import FailureSource
from jaxfix.recipe import Recipe

# The study calls these self-contained: their failing samples come from the training data (`design/decisions.md`, 1).
SELF_CONTAINED = ('apricot', 'editable', 'genmunn', 'care', 'inner', 'arachne')


@dataclasses.dataclass(frozen=True)
class SubjectPlan:
  """One subject of a plan, and which original model of it is repaired.

  Attributes:
    name: see `jaxfix.subjects`.
    model: file of the original; None trains one, in the folder of the study.
    width: multiplies the channels of the subject's network.
    recipe: of that training; None for the subject's own.
    split_seed: of the splits and of that training.
    class_importance: JSON file that replaces the subject's own class importance.
  """
  name: str
  model: str | None = None
  width: float = 1.
  recipe: Recipe | None = None
  split_seed: int = 0
  class_importance: str | None = None

  def __post_init__(self):
    subjects.entry(self.name)
    require(self.width > 0, f'{self.name}: width must be positive, got {self.width}.')
    for field in ('model', 'class_importance'):   # a pathlib.Path, say, which JSON lacks
      if (path := getattr(self, field)) is not None:
        require(isinstance(path, (str, os.PathLike)), f'{self.name}: {field} must be the path of a file, got {path!r}.')
        object.__setattr__(self, field, str(path))

  @property
  def label(self) -> str:
    """The subject's name in results; a network of another width is another subject, with no published counterpart."""
    return self.name if self.width == 1 else f'{self.name}_w{self.width:g}'

  @classmethod
  def of(cls, fields: Mapping[str, Any]) -> 'SubjectPlan':
    """The inverse of `dataclasses.asdict`."""
    recipe = fields['recipe']
    return cls(**{**fields, 'recipe': Recipe(**recipe) if recipe else None})


@dataclasses.dataclass(frozen=True)
class Plan:
  """A matrix of approaches x subjects x seeds.

  Attributes:
    name: of the campaign; rows carry it as `suite`.
    subjects: in the order in which they are run.
    methods: names of approaches; none: all that are installed.
    seeds: of the repeats. The original and the splits stay the same.
    settings: 'option' or 'method.option' -> value, on top of presets; values have a JSON form.
    published: leave out the subjects' presets.
    train_failures: approaches whose failing samples come from the training split; the others take the repair split.
    postprocess: names in `jaxfix.postprocess`, applied to every repair.
    attack_radii: multiples of the subject's radius at which attack success is measured besides; kept in rising order.
    time_limit_s, memory_limit_bytes: of a cell; None, or infinity, for none. What exceeds one is a FAILURE.
    summary: one line.
  """
  name: str
  subjects: tuple[SubjectPlan, ...]
  methods: tuple[str, ...] = ()
  seeds: tuple[int, ...] = (0, 1, 2)
  settings: Mapping[str, Any] = dataclasses.field(default_factory=lambda: types.MappingProxyType({}))
  published: bool = False
  train_failures: tuple[str, ...] = SELF_CONTAINED
  postprocess: tuple[str, ...] = ()
  attack_radii: tuple[float, ...] = ()
  time_limit_s: float | None = None
  memory_limit_bytes: int | None = None
  summary: str = ''

  def __post_init__(self):
    require(len(self.subjects) > 0, f'Plan {self.name!r} has no subjects.')
    try:
      object.__setattr__(self, 'seeds', tuple(operator.index(seed) for seed in self.seeds))   # also NumPy's integers
    except TypeError as e:
      raise BadInputError(f'Plan {self.name!r}: seeds must be integers, got {self.seeds}.') from e
    require(len(self.seeds) > 0 and min(self.seeds) >= 0, f'Plan {self.name!r} needs seeds, none negative.')
    require(all(len(set(part)) == len(part) for part in (self.subjects, self.methods, self.seeds, self.postprocess)),
            f'Plan {self.name!r} names a subject, approach, seed or post-processing twice.')
    labels = [s.label for s in self.subjects]
    require(len(set(labels)) == len(labels), f'Plan {self.name!r} has two subjects named alike: {", ".join(labels)}.')
    require(all(0 < r < math.inf for r in self.attack_radii),
            f'Plan {self.name!r}: attack_radii must be positive and finite, got {self.attack_radii}.')
    object.__setattr__(self, 'attack_radii', tuple(sorted({float(r) for r in self.attack_radii})))
    object.__setattr__(self, 'settings', {k: self._plain(k, v) for k, v in self.settings.items()})
    for field, unit in (('time_limit_s', float), ('memory_limit_bytes', int)):
      if (limit := getattr(self, field)) is not None:
        require(limit > 0, f'Plan {self.name!r}: {field} must be positive, got {limit}.')   # NaN is not
        object.__setattr__(self, field, None if limit == math.inf else unit(limit))

  def _plain(self, name: str, value: Any) -> Any:
    """A setting as the worker processes get it, as JSON; they read infinity back."""
    try:
      return jsonable(value, nonfinite=lambda number: number)
    except TypeError as e:
      raise BadInputError(f'Plan {self.name!r}: the setting {name} must be a number, text, truth value, null, or a '
                          f'list or dict of these; {e}.') from e


@dataclasses.dataclass(frozen=True)
class Cell:
  """One approach on one subject with one seed."""
  subject: SubjectPlan
  method: str
  seed: int
  failures: FailureSource

  @property
  def label(self) -> str:
    """What progress lines call it, and its folder."""
    return f'{self.subject.label}/{self.method}/seed{self.seed}'


def cells(plan: Plan) -> tuple[Cell, ...]:
  """Every cell, subject by subject, approach by approach.

  Raises:
    UnknownNameError: an approach is not installed.
  """
  names = plan.methods or methods.names()
  for name in names:
    methods.get(name)
  return tuple(Cell(subject, name, seed, 'train' if name in plan.train_failures else 'repair')
               for subject in plan.subjects for name in names for seed in plan.seeds)


def restrict(plan: Plan, *, subject_names: Sequence[str] = (), models: Mapping[str, str] | None = None,
             **changes: Any) -> Plan:
  """The plan with some of its fields replaced, as asked for on a command line.

  Args:
    plan: as defined.
    subject_names: keeps these of its subjects; none keeps all.
    models: subject -> file of the original.
    **changes: fields of `Plan`; those that are None or empty are left as they are. `settings` are added.
  Raises:
    UnknownNameError: the plan has no such subject.
  """
  known = {s.label: s for s in plan.subjects}
  for name in (*subject_names, *(models or ())):
    if name not in known:
      raise UnknownNameError(f'subject of plan {plan.name}', name, known)
  chosen = [known[name] for name in subject_names or known]
  chosen = [dataclasses.replace(s, model=(models or {}).get(s.label, s.model)) for s in chosen]
  given = {k: v for k, v in changes.items() if v is not None and v != ()}
  given['settings'] = {**plan.settings, **changes.get('settings', {})}
  return dataclasses.replace(plan, subjects=tuple(chosen), **given)
