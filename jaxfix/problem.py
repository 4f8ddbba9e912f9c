"""What a method may see (`Problem`), what only evaluation sees (`Subject`), and what a method returns (`Repair`)."""
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from jaxfix import predict
from jaxfix.classifier import Classifier, check_finite, check_inputs
from jaxfix.errors import EmptySplitError, NoFailingSamplesError, require
from jaxfix.recipe import Recipe

FailureSource = Literal['train', 'repair']


@dataclasses.dataclass(frozen=True)
class Split:
  """Labeled samples.

  Attributes:
    x: `[n, h, w, c]` uint8 pixels 0..255, or float32 features `[n, ...]` that the model takes as they are.
    y: `[n]` int32 labels.
    group: `[n]` int32 values of a sensitive attribute, or None.
  """
  x: np.ndarray
  y: np.ndarray
  group: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.y)

  def take(self, indices: np.ndarray) -> 'Split':
    """The samples at `indices` (integers or a boolean mask), in that order."""
    return Split(self.x[indices], self.y[indices], None if self.group is None else self.group[indices])


@dataclasses.dataclass(frozen=True)
class ClassImportance:
  """Which classes matter most, and which mistakes are worse than others: what DISTRREP is guided by.

  Attributes:
    critical: classes whose failures are repaired, whatever they are mistaken for.
    precisions: class -> how much it matters that it stays right, >= 0, not all 0; a class that is missing counts 0.
    confusions: (true, predicted) classes whose failures are repaired each by itself; None for the two most frequent
      wrong predictions of every critical class.
    risks: class, or (true, predicted) classes -> how bad that mistake is, >= 0, not all 0. None: 2 for a critical
      class, 3 for a confusion of one with a class that is not critical, 1 for other confusions.
  """
  critical: tuple[int, ...]
  precisions: Mapping[int, float]
  confusions: tuple[tuple[int, int], ...] | None = None
  risks: Mapping[int | tuple[int, int], float] | None = None


@dataclasses.dataclass(frozen=True)
class Problem:
  """A classifier to repair and the data that a method may use; the test split is not here and cannot leak.

  Attributes:
    classifier: the model under repair.
    train, valid, repair: its training data; the data that decides between candidates; extra labeled data.
    recipe: how the classifier was trained; methods that retrain use it.
    failures: which split the failing and passing samples come from (`design/decisions.md`, 1).
    history: earlier checkpoints of the same training run, oldest first, or None.
    class_importance: which classes and mistakes matter most, or None.
    spec: what a provable repair must establish beyond the failing samples, or None.
  """
  classifier: Classifier
  train: Split
  valid: Split
  repair: Split
  recipe: Recipe = Recipe()
  failures: FailureSource = 'repair'
  history: tuple[Classifier, ...] | None = None
  class_importance: ClassImportance | None = None
  spec: Any = None

  @property
  def failure_split(self) -> Split:
    """The split that failing and passing samples are taken from."""
    return self.train if self.failures == 'train' else self.repair

  def failing_and_passing(self) -> tuple[np.ndarray, np.ndarray]:
    """Indices into `failure_split` of the samples that the classifier gets wrong, and of those it gets right.

    Predicted once for a problem: a large training split takes minutes.
    """
    return np.flatnonzero(self._wrong), np.flatnonzero(~self._wrong)

  @functools.cached_property
  def _wrong(self) -> np.ndarray:
    return predict.labels(self.classifier, self.failure_split.x) != self.failure_split.y


@dataclasses.dataclass(frozen=True)
class Subject:
  """A problem, and beside it what only evaluation may touch.

  Attributes:
    name: `data_model`, `digits_lenet5` for instance.
    problem: what methods get.
    test: the split that is read once, after a method has returned.
    pool: the whole original test set (repair and test halves together), for comparisons with other work.
    pgd_epsilon: radius of the standard attack in normalized input space.
    class_names, group_names: for reports.
    dataset_source: where the data came from, `npz:mnist.npz` for instance.
    split_indices: the int32 index array of each split, stored with a run.
    split_sha256: SHA-256 of each of them.
    shows_people: its images show real people, whom reports do not print.
    published: key of this subject in the published tables, or ''.
    presets: method name -> options that differ from the published defaults on this subject, each with a reason.
  """
  name: str
  problem: Problem
  test: Split
  pool: Split
  pgd_epsilon: float
  class_names: tuple[str, ...]
  group_names: tuple[str, ...] = ()
  dataset_source: str = ''
  split_indices: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  split_sha256: Mapping[str, str] = dataclasses.field(default_factory=dict)
  shows_people: bool = False
  published: str = ''
  presets: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Edit:
  """One scalar that a method chose: `path` is `fc3/kernel`, `index` its position in that array."""
  path: str
  index: tuple[int, ...]
  before: float
  after: float


@dataclasses.dataclass(frozen=True)
class Trace:
  """What happened inside a method, for reports: finite numbers only.

  Attributes:
    curves: name -> `[t]` array, one value a step (generation, round, epoch): losses, fitness, accuracies.
    selected: name of a curve -> place, from 0, of its entry for the returned weights; curves without such an entry are
      absent, and those of one trace may count different things.
    edits: the localized weights, changed or not, for methods that choose single ones.
    solver: statistics of an optimization problem, JSON-able.
    notes: one-line remarks for the reader.
    objective: (before, after) of what the method maximizes over its own data, for methods that never return a model
      that is worse in it; else None.
  """
  curves: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  selected: Mapping[str, int] = dataclasses.field(default_factory=dict)
  edits: tuple[Edit, ...] = ()
  solver: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()
  objective: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Repair:
  """What a method returns.

  Attributes:
    classifier: the repaired model.
    trace: see `Trace`.
    seconds: wall time by phase, compilation included; the sum is the time of the repair.
    compile_seconds: the part of it that was tracing, lowering and XLA.
    certificate: JSON-able claim with its evidence, where the method proves something.
  """
  classifier: Classifier
  trace: Trace = Trace()
  seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
  compile_seconds: float = 0.
  certificate: Mapping[str, Any] | None = None


def check_split(classifier: Classifier, split: Split, name: str) -> None:
  """Checks one split against the classifier.

  Raises:
    BadInputError: wrong image shape, lengths that differ, labels out of range, NaN or infinite features.
  """
  where = f'{name} split'
  check_inputs(classifier, split.x, where)
  require(len(split.x) == len(split.y), f'{where}: {len(split.x)} inputs but {len(split.y)} labels.')
  require(split.group is None or len(split.group) == len(split.y),
          f'{where}: {len(split.y)} labels but {0 if split.group is None else len(split.group)} groups.')
  if len(split) == 0:
    return
  low, high = int(np.min(split.y)), int(np.max(split.y))
  require(low >= 0 and high < classifier.num_classes,
          f'{where}: labels run from {low} to {high}, but the model has classes 0 to {classifier.num_classes - 1}.')
  if np.issubdtype(getattr(split.x, 'dtype', np.uint8), np.floating):
    finite = np.isfinite(split.x).reshape(len(split.x), -1).all(axis=1)
    require(bool(finite.all()), f'{where}: input {int(np.argmin(finite))} holds NaN or infinity; clean the data first.')


def check_importance(importance: ClassImportance, num_classes: int) -> None:
  """Raises `BadInputError` for a class that does not exist, a weight below 0, or weights that are all 0."""
  risks = importance.risks or {}
  confusions = [*(importance.confusions or ()), *(key for key in risks if isinstance(key, tuple))]
  named = [*importance.critical, *importance.precisions, *(key for key in risks if not isinstance(key, tuple)),
           *(c for pair in confusions for c in pair)]
  for c in named:
    require(0 <= c < num_classes,
            f'class importance names class {c}, but the model has classes 0 to {num_classes - 1}.')
  for pair in confusions:
    require(len(pair) == 2 and pair[0] != pair[1], f'class importance: {pair} is no (true, predicted) pair of classes.')
  require(len(importance.critical) + len(importance.confusions or ()) > 0,
          'class importance names neither a critical class nor a confusion: nothing would be repaired.')
  for what, weights in (('precisions', importance.precisions), ('risks', importance.risks)):
    require(weights is None or all(0 <= w < math.inf for w in weights.values()) and any(weights.values()),
            f'class importance: {what} must be numbers >= 0 and not all 0.')


def check_problem(problem: Problem) -> None:
  """Checks everything that every method relies on, before any work.

  Raises:
    BadInputError: a split or weight array is malformed (see `check_split`).
    EmptySplitError: the train, valid or failure split is empty.
    NoFailingSamplesError: the classifier gets the whole failure split right.
  """
  require(problem.failures in ('train', 'repair'), f"failures must be 'train' or 'repair', got {problem.failures!r}.")
  check_finite(problem.classifier, 'model under repair')
  if problem.class_importance is not None:
    check_importance(problem.class_importance, problem.classifier.num_classes)
  for earlier in problem.history or ():
    require(earlier.module == problem.classifier.module and earlier.input_shape == problem.classifier.input_shape,
            'history: a checkpoint is of another network than the model under repair.')
  for name in ('train', 'valid', 'repair'):
    split = getattr(problem, name)
    check_split(problem.classifier, split, name)
    needed = name in ('train', 'valid') or name == problem.failures
    require(not needed or len(split) > 0, f'The {name} split is empty; give it samples.', EmptySplitError)
  failing, _ = problem.failing_and_passing()
  require(len(failing) > 0, f'The model gets all {len(problem.failure_split)} samples of the {problem.failures} split '
          'right: there is nothing to repair. Give failing samples, or take them from the other split (failures=...).',
          NoFailingSamplesError)
