"""PRDNN: the smallest change of one layer that provably repairs every given point.

Sotoudeh and Thakur, PLDI 2021. In a decoupled network (`models/decoupled.py`) the logits are affine in the weights of
any one layer, so that "these points get these labels" is a set of linear inequalities and the smallest change that
meets them is a linear program. If nothing nonlinear follows the layer, the change goes into the ordinary weights;
otherwise the result is the decoupled network.
Guarantee: every listed point meets its condition, recomputed in float64 and in float32 on the weights as stored; the
change is minimal within the stated gap among those that meet the conditions with the margin (Theorem 4).

Decided here, where the specification leaves room:

- A repair that only looks at failing points breaks others. So points that are right now are constraints too; their
  rows cost little, since few of them are ever needed. Measured on the study's LeNet5 (MNIST, 135 failing points of a
  repair half of 5,000), without and with the 4,865 other points: negative flips of the validation split fc3 5.3% and
  1.8%, fc2 2.5% and 1.3%, fc1 2.0% and 1.2%, conv2 2.4% and 1.5%; accuracy of the other half, 97.9% before, fc3 93.4%
  and 97.0%, fc2 96.2% and 97.3%, fc1 96.9% and 97.5%, conv2 96.0% and 97.3%. `keep_points=0` is the paper's setting.
  Keeping a lead of one logit (`keep_margin=1`) breaks fewer (fc3 1.1%, conv2 1.1%) and takes the solver 5 to 15 times
  as long.
- Kept points never make a repair fail. If the program with them has no solution, or none in time, a soft program finds
  which of them can stay right; failing points outweigh kept ones by `_PRIORITY`. If that takes too long as well, the
  failing points are repaired alone.
- Of the paper's polytope repair (section 3 of the specification) the linear program is here, for points that say which
  linear region they stand for (`Points.rep`); what cuts a segment or a polygon into regions is not.
- If the failing points alone contradict each other, `on_infeasible` says whether to raise or to give up as little as
  the soft program needs. The certificate counts only points that hold.
- Where there are more failing points than `max_points` every class gives the same number, as far as it has them.
"""
import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
from flax import traverse_util

from jaxfix import linearize, predict
from jaxfix.classifier import Classifier, fingerprint
from jaxfix.clock import Clock
from jaxfix.errors import InfeasibleError, RepairFailure, SolverLimitError, Unadaptable, require
from jaxfix.linearize import Constraints, Points
from jaxfix.methods.method import Method
from jaxfix.models import decoupled
from jaxfix.problem import Problem, Repair, Trace
from jaxfix.solve import MinimalChange, Soft, minimal_change, minimality_program, safe_dual_bound, safe_dual_bound_float

_PRIORITY = 100.        # weight of a failing point against a kept one, where not all can be met
_SLACK_PRICE = 10.      # of one logit by which one kept point's row is missed, in units of the norm
_DOUBLINGS = 4          # of the margin, when the cast to float32 breaks a row (V-section 11.7)
_EXACT_ENTRIES = 1e6    # of the rows that the optimum rests on: up to here its bound is computed in rationals (1 s)
_SAFE_ENTRIES = 5e7     # up to here in float64 with a bound on the rounding error


@dataclasses.dataclass(frozen=True)
class Config:
  """Defaults are the public code's, but for `margin` (the specification's) and, ours, what concerns kept points,
  `max_points`, `on_infeasible` and `time_limit_s`; `PAPER_CODE` has the public scripts' values."""
  layer: str | None = None                    # path of a Dense or Conv layer; None: the last one
  bounds: float = 3.                          # of |change| of every weight, > 0
  margin: float = 1e-3                        # logits, > 0
  norm: Literal['l1n+linf', 'l1', 'linf'] = 'l1n+linf'
  l1_weight: float = 1.                       # >= 0
  linf_weight: float = 1.                     # >= 0
  normalize_objective: bool = True            # l1n: the mean of |change|, else the sum
  soft: Literal['none', 'linf', 'l1'] = 'none'   # rows may be missed: one slack for all, or one each
  soft_weight: float = 1.                     # > 0
  slack_lower: float = -0.05                  # logits; negative rewards a margin
  slack_upper: float | None = None            # logits; None: no limit
  max_points: int = 1000                      # failing points, at most
  keep_points: int = 5000                     # points that are right and must stay so, at most
  keep_margin: float = 1e-3                   # logits that a kept point must keep of its lead, as far as it has them
  central_failing: float = 1.                 # share of the failing points, around the median distance, in (0, 1]
  central_passing: float = 1.                 # the same of the passing points
  max_weights: int | None = None              # kernel entries that may change; None: all
  on_infeasible: Literal['drop', 'raise'] = 'drop'
  fold: bool = True                           # into ordinary weights, if nothing nonlinear follows the layer
  time_limit_s: float = 600.                  # of each linear program
  jacobian_batch: int = 128                   # points

  def __post_init__(self):
    require(self.bounds > 0, f'bounds must be positive, got {self.bounds}')
    require(self.margin > 0, f'margin must be positive, got {self.margin}')
    require(min(self.l1_weight, self.linf_weight) >= 0, 'l1_weight and linf_weight must not be negative')
    require(self.soft_weight > 0, f'soft_weight must be positive, got {self.soft_weight}')
    require(self.slack_upper is None or self.slack_lower < self.slack_upper, 'slack_lower must be below slack_upper')
    require(self.max_points >= 1, f'max_points must be at least 1, got {self.max_points}')
    require(self.keep_points >= 0, f'keep_points must not be negative, got {self.keep_points}')
    require(0 < self.central_failing <= 1 and 0 < self.central_passing <= 1,
            'central_failing and central_passing must be in (0, 1]')
    require(self.max_weights is None or self.max_weights >= 1,
            f'max_weights must be at least 1, got {self.max_weights}')
    require(self.time_limit_s > 0, f'time_limit_s must be positive, got {self.time_limit_s}')
    require(self.jacobian_batch >= 1, f'jacobian_batch must be at least 1, got {self.jacobian_batch}')


PAPER_CODE = Config(margin=0.05, keep_points=0, on_infeasible='raise', time_limit_s=5400.)
"""What the public scripts ran on MNIST; their 0.001 is written to a misspelt attribute, so that 0.05 was used."""


def repair(problem: Problem, config: Config, key: jax.Array) -> Repair:
  """Point repair of the problem's failing samples. `key` is consumed; it matters where points are sampled."""
  clock = Clock()
  with clock.phase('choose_points'):
    failing, kept = choose_points(problem, config, key=key)
    split = problem.failure_split.take(np.concatenate([failing, kept]))
    z = np.asarray(problem.classifier.normalize(np.asarray(split.x)))
  result = repair_points(problem.classifier, Points(z, label=split.y), config, num_kept=len(kept), clock=clock)
  source = {'split': problem.failures, 'failing': failing.tolist(), 'kept': kept.tolist()}
  return dataclasses.replace(result, certificate={**result.certificate, 'samples': source})


def choose_points(problem: Problem, config: Config, *, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
  """Indices into the failure split of the points to repair, and of those that must stay right."""
  k_failing, k_kept = jax.random.split(key)
  failing, passing = problem.failing_and_passing()
  labels = problem.failure_split.y
  if min(config.central_failing, config.central_passing) < 1:
    distance = _distances(problem.classifier, predict.logits(problem.classifier, problem.failure_split.x), labels)
    failing = _central(failing, distance, config.central_failing)
    passing = _central(passing, distance, config.central_passing)
  failing = _balanced(failing, labels, config.max_points, key=k_failing)
  return failing, _balanced(passing, labels, config.keep_points, key=k_kept)


def _balanced(indices: np.ndarray, labels: np.ndarray, count: int, *, key: jax.Array) -> np.ndarray:
  """At most `count` of the indices, drawn in turn from the classes; sorted."""
  if len(indices) <= count:
    return indices
  indices = indices[np.asarray(jax.random.permutation(key, len(indices)))]
  turn = np.zeros(len(indices), np.int64)
  for label in np.unique(labels[indices]):
    mine = labels[indices] == label
    turn[mine] = np.arange(mine.sum())
  return np.sort(indices[np.argsort(turn, kind='stable')[:count]])


def _distances(classifier: Classifier, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Distance of each sample's last features from the nearest border that matters (specification, section 7), `[n]`.

  Of a right sample to the nearest other class, of a wrong one to the farthest class that beats its label.
  """
  kernel = np.asarray(traverse_util.flatten_dict(dict(classifier.params), sep='/')[
    f'{linearize.find_layer(classifier, None).path}/kernel'], np.float64)
  between = np.linalg.norm(kernel[:, :, None] - kernel[:, None, :], axis=0)[labels]   # [n, c]
  own = np.arange(logits.shape[1]) == labels[:, None]
  lead = np.take_along_axis(logits, labels[:, None], 1) - logits
  ahead = np.where(own, np.inf, lead / np.where(own, 1., np.maximum(between, 1e-12))).min(1)
  behind = np.where(own, -np.inf, -lead / np.where(own, 1., np.maximum(between, 1e-12))).max(1)
  return np.where(ahead > 0, ahead, behind)


def _central(indices: np.ndarray, distance: np.ndarray, share: float) -> np.ndarray:
  """The given share of the indices around the median distance; sorted."""
  n = len(indices)
  order = indices[np.argsort(distance[indices], kind='stable')]
  first, last = int(n * (1 - share) / 2), int(np.ceil(n * (1 + share) / 2))
  return np.sort(order[first:max(last, first + 1)])


def repair_points(classifier: Classifier, points: Points, config: Config, *, num_kept: int = 0,
                  mask: np.ndarray | None = None, boundary: Literal['check', 'add'] = 'check',
                  clock: Clock | None = None) -> Repair:
  """The smallest change of one layer that meets conditions at points (specification, section 3).

  Args:
    classifier: the model.
    points: conditions on the logits. With `rep` they are conditions on the affine maps of the regions of `rep`; met at
      all vertices of a region, they are met in all of it.
    config: which layer, norm, margin and so on; the fields about choosing samples play no part here.
    num_kept: so many of the last points are wishes (see the module's docstring).
    mask: `[*kernel.shape]` bool, kernel entries that may change; None for all.
    boundary: of points with `rep`, which a network at run time evaluates with their own masks: 'check' counts in the
      certificate those that then miss their condition; 'add' makes them conditions too (and points, in the counts).
    clock: continues this one.
  Returns:
    The repair with its certificate.
  Raises:
    Unadaptable: the layer cannot be edited in this way.
    InfeasibleError: no change within the bounds meets the conditions; `ray` proves it.
    SolverLimitError: no answer in time.
    RepairFailure: the weights, cast to float32, miss a condition whatever the margin.
  """
  clock = Clock() if clock is None else clock
  path = linearize.find_layer(classifier, config.layer).path
  fold = config.fold and linearize.tail_is_affine(classifier, path)
  asked = points
  if boundary == 'add' and points.rep is not None:
    asked = points.with_own_masks()
  is_kept = np.arange(len(asked)) % len(points) >= len(points) - num_kept
  with clock.phase('linearize'):
    rows = linearize.constraints(classifier, path, asked, mask=mask, max_weights=config.max_weights,
                                 batch_size=config.jacobian_batch)
  margin = config.margin
  for _ in range(_DOUBLINGS + 1):
    with clock.phase('solve'):
      solved = _solve(rows, is_kept, margin, config)
    with clock.phase('check'):
      repaired = _edited(classifier, path, rows.unpack(solved.change), fold)
      at = dataclasses.replace(asked, rep=None) if fold else asked
      lead64, lead32 = (at.excess(linearize.logits_at(repaired, at, exact=exact)).min(1) for exact in (True, False))
      holds = (lead64 > 0) & (lead32 > 0)
    if holds[solved.demanded].all():
      break
    margin *= 2
  else:
    raise RepairFailure(f'{int((~holds[solved.demanded]).sum())} of {int(solved.demanded.sum())} points miss their '
                        f'condition once the weights of layer {path!r} are cast to float32, even with a margin of '
                        f'{margin / 2:g}. Raise margin, or leave out points on the border of a linear region.')
  require(bool(holds[~is_kept].any()), f'No change of layer {path!r} repairs even one of the {int((~is_kept).sum())} '
          'failing points at the price allowed. Raise bounds or soft_weight, or choose another layer.', RepairFailure)
  with clock.phase('certify'):
    optimum = _optimality(solved)
    certificate = _certificate(classifier, repaired, path, at, is_kept, holds, (lead64, lead32))
    certificate['margin']['asked'] = margin
    certificate['optimality'] = {**optimum, 'bounds': config.bounds}
    if points.rep is not None and not fold:
      own = dataclasses.replace(points, rep=None)
      lead = own.excess(linearize.logits_at(repaired, own, exact=True)).min(1)
      certificate['boundary'] = {'num_points': len(points), 'num_violated': int((lead <= 0).sum()),
                                 'violated': np.flatnonzero(lead <= 0).tolist()}
  return Repair(repaired, Trace(solver={**optimum, **_statistics(solved.statistics), 'margin': margin},
                                notes=_notes(is_kept, holds)), clock.seconds, clock.compile_seconds, certificate)


@dataclasses.dataclass(frozen=True, eq=False)
class Solved:
  """A linear program's answer.

  Attributes:
    change: `[p]`, of the columns of the constraints.
    statistics: the solver's.
    program: (rows, right-hand side), and options: keywords, with which `minimal_change` was called.
    demanded: `[n]` bool: points whose rows were hard constraints.
  """
  change: np.ndarray
  statistics: MinimalChange
  program: tuple[Any, np.ndarray]
  options: Mapping[str, Any]
  demanded: np.ndarray


def smallest_change(rows: Constraints, margin: np.ndarray | float, config: Config, *, soft: Soft | None = None,
                    demanded: np.ndarray | None = None) -> Solved:
  """The program of the specification, section 4.

  Args:
    rows: what is asked.
    margin: `[N]` or a number; here 0 is allowed.
    config: norm, bounds, time limit.
    soft: None for hard constraints.
    demanded: `[n]` bool, points whose rows are asked for without fail; None for all.
  Raises:
    InfeasibleError, SolverLimitError: as `minimal_change`.
  """
  require(rows.num_free > 0, 'No weight of the layer may change: the mask is empty.')
  if demanded is not None and not demanded.all():   # else the same rows: do not copy them
    rows, margin = rows.take_points(demanded), np.broadcast_to(margin, rows.need.shape)[demanded[rows.point]]
  l1 = config.l1_weight
  if config.norm == 'l1n+linf':   # `minimal_change` divides by all columns; the mean is over those that may change
    l1 *= len(rows.free) / (rows.num_free if config.normalize_objective else 1)
  options = {'bounds': (-config.bounds * rows.free, config.bounds * rows.free), 'norm': config.norm,
             'norm_weights': (l1, config.linf_weight), 'soft': soft}
  program = rows.rows, rows.need + margin
  change, statistics = minimal_change(*program, **options, time_limit_s=config.time_limit_s)
  return Solved(change, statistics, program, options, demanded)


def _solve(rows: Constraints, is_kept: np.ndarray, margin: float, config: Config) -> Solved:
  """Hard constraints where they have a solution, else the soft program that the configuration allows."""
  of_kept = is_kept[rows.point]
  margins = np.full(len(rows.need), margin)
  # A kept point keeps `keep_margin` of its lead, or the lead it has.
  margins[of_kept] = np.clip(-rows.need[of_kept], margin, max(margin, config.keep_margin))
  everything, nothing = np.ones_like(is_kept), np.zeros_like(is_kept)
  if config.soft != 'none':
    soft = Soft(config.soft, config.soft_weight, config.slack_lower,
                np.inf if config.slack_upper is None else config.slack_upper)
    return dataclasses.replace(smallest_change(rows, margins, config, soft=soft), demanded=nothing)
  try:
    return smallest_change(rows, margins, config, demanded=everything)
  except (InfeasibleError, SolverLimitError):
    if config.on_infeasible == 'raise' and not is_kept.any():
      raise
  alone = smallest_change(rows, margins, config, demanded=~is_kept) if config.on_infeasible == 'raise' else None
  weight = np.where(of_kept, 1., _PRIORITY)
  price = Soft('l1', _SLACK_PRICE * len(margins), lower=0., upper=np.inf)
  try:
    soft = smallest_change(rows.scaled(weight), weight * margins, config, soft=price)
  except SolverLimitError:   # the soft program has as many rows as the hard one; the failing points alone have few
    if not is_kept.any():
      raise
    return alone or smallest_change(rows, margins, config, demanded=~is_kept)
  if alone is not None and (rows.matvec(soft.change) <= rows.need)[~of_kept].any():
    return alone
  return dataclasses.replace(soft, demanded=nothing)


def _edited(classifier: Classifier, path: str, change: Mapping[str, np.ndarray], fold: bool) -> Classifier:
  """The classifier with one layer changed (added in float64, then cast); in the value channel only, unless `fold`."""
  flat = traverse_util.flatten_dict(dict(classifier.params), sep='/')
  new = {f'{path}/{name}': (np.asarray(flat[f'{path}/{name}'], np.float64) + c).astype(np.float32)
         for name, c in change.items()}
  if fold:
    return classifier.with_params(traverse_util.unflatten_dict({**flat, **jax.device_put(new)}, sep='/'))
  return decoupled.decouple(classifier, path, jax.device_put({name: new[f'{path}/{name}'] for name in change}))


def _optimality(solved: Solved) -> dict[str, Any]:
  """Objective and a lower bound on it, with what the bound was computed in."""
  statistics, (rows, right) = solved.statistics, solved.program
  entries = np.count_nonzero(statistics.row_dual) * solved.change.size
  if not entries or entries > _SAFE_ENTRIES:
    bound, arithmetic = statistics.lower_bound, 'float64'
  else:
    program = minimality_program(rows, right, **solved.options, change=statistics)
    compute, arithmetic = (safe_dual_bound, 'rational') if entries <= _EXACT_ENTRIES else (
      safe_dual_bound_float, 'float64_safe')
    bound = compute(*program)
  return {'status': 'optimal', 'objective': statistics.objective, 'lower_bound': float(bound),
          'gap': statistics.objective - float(bound), 'bound_arithmetic': arithmetic, 'norm': solved.options['norm'],
          'soft': solved.options['soft'] is not None}


def _statistics(statistics: MinimalChange) -> dict[str, Any]:
  names = ('solver', 'num_rows', 'num_columns', 'num_active', 'rounds', 'iterations', 'max_violation')
  return {name: getattr(statistics, name) for name in names}


def _certificate(original: Classifier, repaired: Classifier, path: str, points: Points, is_kept: np.ndarray,
                 holds: np.ndarray, leads: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
  """What is claimed, with the hashes of all that it is about; plain JSON types."""
  def digest(*arrays):
    sha = hashlib.sha256()
    for array in arrays:
      sha.update(f'{array.dtype.str}{array.shape}'.encode() + np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()

  proven = points.take(np.flatnonzero(holds))
  conditions = proven.label if proven.label is not None else np.concatenate(
    [np.asarray(proven.matrix, np.float64), np.asarray(proven.limit, np.float64)[..., None]], axis=-1)
  return {
    'format': 'jaxfix-claim-1',
    'kind': 'points',
    'level': 'float64',
    'statement': 'Every point counted as proven meets its condition when the network with these float32 weights is '
                 'evaluated in float64, and in float32 at the highest matrix precision of this device. Recomputed '
                 'from the weights as stored, not taken from the solver; not yet in exact arithmetic.',
    'network': {'sha256': fingerprint(repaired), 'original_sha256': fingerprint(original), 'layer': path,
                'architecture': 'original' if repaired.module == original.module else 'decoupled'},
    'points': {'sha256': digest(proven.z, *([] if proven.rep is None else [proven.rep])),
               'conditions_sha256': digest(np.asarray(conditions)),
               'num_failing': int((~is_kept).sum()), 'num_failing_proven': int((holds & ~is_kept).sum()),
               'num_kept': int(is_kept.sum()), 'num_kept_proven': int((holds & is_kept).sum()),
               'not_proven': np.flatnonzero(~holds).tolist()},
    'margin': {'achieved_float64': float(leads[0][holds].min()), 'achieved_float32': float(leads[1][holds].min()),
               'device': jax.default_backend()},
  }


def _notes(is_kept: np.ndarray, holds: np.ndarray) -> tuple[str, ...]:
  """One line for each kind of point that was given up."""
  lines = []
  for kind, mine in (('failing', ~is_kept), ('kept', is_kept)):
    missed = int((~holds & mine).sum())
    if missed:
      lines.append(f'{missed} of {int(mine.sum())} {kind} points could not be met together with the others')
  return tuple(lines)


def _check(problem: Problem, config: Config) -> None:
  classifier = problem.classifier
  if isinstance(classifier.module, decoupled.Decoupled):
    raise Unadaptable('the model is a decoupled network already: repair its base with all the points at once.')
  linearize.tail_is_affine(classifier, linearize.find_layer(classifier, config.layer).path)   # raises what it finds
  if min(config.central_failing, config.central_passing) < 1:
    last = linearize.find_layer(classifier, None)
    if last.kind != 'dense' or last.output_shape != (classifier.num_classes,):
      raise Unadaptable('choosing samples by their distance needs a Dense layer that gives the logits.')


def _may_change(problem: Problem, config: Config):
  path = linearize.find_layer(problem.classifier, config.layer).path
  return lambda name: name in (f'params/{path}/kernel', f'params/{path}/bias')


METHOD = Method(
  name='prdnn', title='PRDNN', code='', level='layer', config=Config(), repair=repair,
  changes='kernel and bias of one layer; unless it is the last, in the value channel of a decoupled network',
  guarantee='the repaired points, each recomputed in float64 and float32; minimal change, with its gap',
  requires='failing samples; only piecewise-linear or smooth layers after the repaired one',
  source='Sotoudeh and Thakur, Provable Repair of Deep Neural Networks, PLDI 2021',
  summary='smallest change of one layer that gives every failing point its label, by a linear program',
  may_change=_may_change, check=_check, keeps_architecture=False)
