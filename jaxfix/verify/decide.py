"""Whether a network satisfies a specification: the engine that fits each property, and one certificate for all."""
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import threadpoolctl

from jaxfix.classifier import Classifier
from jaxfix.errors import require
from jaxfix.verify import bounds, branch_and_bound, certificate, checker, faithful, falsify, milp
from jaxfix.verify.graph import Graph, trace
from jaxfix.verify.normal_form import NormalForm, lower
from jaxfix.verify.spec import Box, HPolytope, Points, Property, Spec, check_sizes
from jaxfix.verify.verdict import Outcome, VacuousError, Verdict

ENGINES = ('auto', 'splits', 'milp')

_FEW_INPUTS = 10         # free inputs up to which boxes are worth splitting
_FEW_ACTIVATIONS = 2000  # beyond, no integer program is tried


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
  """What was found out about every property.

  Attributes:
    outcomes: one for each property, in order; properties after a refuted one are not looked at.
    certificate: of all properties, if each is proved by evidence that the checker accepted; else None.
    seconds: wall time.
  """
  outcomes: tuple[Outcome, ...]
  certificate: checker.Certificate | None
  seconds: float

  @property
  def verdict(self) -> Verdict:
    """REFUTED if one property is, PROVED if all are, else UNKNOWN."""
    verdicts = [o.verdict for o in self.outcomes]
    return next((v for v in (Verdict.REFUTED, Verdict.UNKNOWN) if v in verdicts), Verdict.PROVED)

  @property
  def reason(self) -> str:
    """Why the verdict is UNKNOWN, else ''."""
    return next((o.reason for o in self.outcomes if o.reason), '') if self.verdict is Verdict.UNKNOWN else ''


def decide(classifier: Classifier, spec: Spec, *, key: jax.Array, time_limit_s: float = 600., strength: str = 'real',
           engine: str = 'auto', on_outcome: Callable[[int, Outcome], None] = lambda i, outcome: None) -> Decision:
  """Decides a specification of a classifier's inputs (pixels / 255 for images), flattened row by row.

  Args:
    classifier: the network.
    spec: its properties.
    key: of the search for counterexamples, consumed.
    time_limit_s: seconds for all properties together, > 0.
    strength: 'real' or 'float32' (see `checker.py`): what is proved. A solver's word is never more than 'solver'.
    engine: 'splits' (branch and bound on inputs), 'milp', or 'auto': splits for up to 10 free inputs, else one bound of
      the whole box and then milp. Points and vertex polytopes are evaluated exactly, whatever the engine.
    on_outcome: called after each property.
  Raises:
    VacuousError: a property has no inputs, or conditions that cannot fail.
    Unadaptable: the network has operations that cannot be verified exactly; its file ends in a softmax and the spec
      does more than compare outputs; or no claim about float32 can be made of it (`faithful.py`).
    BadInputError: sizes that do not fit, NaN weights, an unknown engine or strength.
  """
  require(engine in ENGINES, f'engine must be one of {", ".join(ENGINES)}, got {engine!r}.')
  require(strength in ('real', 'float32'), f"strength must be 'real' or 'float32', got {strength!r}.")
  require(time_limit_s > 0, f'time_limit_s must be positive, got {time_limit_s}.')
  require(len(spec) > 0, 'the specification has no property.')
  start = time.monotonic()
  graph = trace(classifier)
  form = lower(graph)
  faithful.check_outputs(classifier, spec)
  if strength == 'float32':
    faithful.check_float32(classifier, form)
  check_sizes(spec, form.num_inputs, form.num_outputs)
  for i, p in enumerate(spec):
    if p.is_vacuous:
      raise VacuousError(f'Property {i} holds of every network: its input set is empty, or its conditions cannot fail. '
                         'That says nothing about this one; correct the specification.')
  outcomes: list[Outcome] = []
  for i, p in enumerate(spec):
    left = start + time_limit_s - time.monotonic()
    if outcomes and outcomes[-1].verdict is Verdict.REFUTED:
      break
    if left <= 0:
      outcomes.append(Outcome(Verdict.UNKNOWN, 'time'))
    else:
      with threadpoolctl.threadpool_limits(1, user_api='blas'):   # the checker has threads of its own
        outcomes.append(_within_limits(graph, form, p, jax.random.fold_in(key, i), left, strength, engine))
    on_outcome(i, outcomes[-1])
  found = None
  if len(outcomes) == len(spec) and all(o.verdict is Verdict.PROVED and o.evidence for o in outcomes):
    found = certificate.make(form, spec, [o.evidence for o in outcomes], strength)
  return Decision(tuple(outcomes), found, time.monotonic() - start)


def _within_limits(*arguments: Any) -> Outcome:
  """`_decide`, with what the machine or the checker cannot hold as an outcome."""
  start = time.monotonic()
  try:
    return _decide(*arguments)
  except checker.RejectedError:   # exact arithmetic has its limits: too many digits or divisors
    reason = 'size'
  except MemoryError:
    reason = 'memory'
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    reason = 'memory'
  return Outcome(Verdict.UNKNOWN, reason, seconds=time.monotonic() - start)


def expected_bytes(classifier: Classifier, spec: Spec, engine: str = 'auto') -> int:
  """About the memory that `decide` may come to need beside the network itself (and a solver's own)."""
  graph = trace(classifier)
  boxes = [getattr(p.inputs, 'box', p.inputs) for p in spec if isinstance(p.inputs, (Box, HPolytope))]
  if engine == 'splits' or any((box.lower < box.upper).sum() <= _FEW_INPUTS for box in boxes):
    return branch_and_bound.expected_bytes(graph)
  return 8 * 6 * bounds.box_bytes(graph)   # the checker's bounds of one box, in float64 with what it needs beside


def _decide(graph: Graph, form: NormalForm, p: Property, key: jax.Array, time_limit_s: float, strength: str,
            engine: str) -> Outcome:
  if not isinstance(p.inputs, (Box, HPolytope)):
    return _evaluate(form, p, strength)
  box = p.inputs.box if isinstance(p.inputs, HPolytope) else p.inputs
  few = int((box.lower < box.upper).sum()) <= _FEW_INPUTS
  splits = lambda **options: branch_and_bound.decide(graph, form, p, key=key, time_limit_s=time_limit_s,
                                                     strength=strength, **options)
  if engine == 'splits' or engine == 'auto' and few:
    return splits()
  first = splits(most_boxes=0)   # the whole box at once, and the search for a counterexample
  if first.verdict is not Verdict.UNKNOWN or first.reason == 'time':
    return first
  if form.num_activations > _FEW_ACTIVATIONS or strength == 'float32':   # an integer program knows the reals only
    return dataclasses.replace(first, reason='size')
  if time_limit_s <= first.seconds:
    return dataclasses.replace(first, reason='time')
  return _by_milp(form, p, time_limit_s - first.seconds, first)


def _by_milp(form: NormalForm, p: Property, time_limit_s: float, before: Outcome) -> Outcome:
  box = p.inputs.box if isinstance(p.inputs, HPolytope) else p.inputs
  network = certificate.network_of(form)
  bounds = [(low[0], high[0]) for low, high in checker.value_bounds(network, box.lower[None], box.upper[None])]
  found = milp.decide(form, p, time_limit_s=time_limit_s, bounds=bounds)
  done = {'engine': 'milp', 'num_boxes': before.num_boxes, 'seconds': before.seconds + found.seconds}
  if found.verdict == 'safe':
    return Outcome(Verdict.PROVED, strength='solver', decided=1., **done)
  if found.verdict == 'unsafe':
    x = falsify.confirm(network, p.inputs, p.clauses, found.counterexample[None])
    return Outcome(Verdict.REFUTED, counterexample=x, **done) if x is not None else Outcome(
      Verdict.UNKNOWN, 'numerics', **done)
  return Outcome(Verdict.UNKNOWN, found.reason, **done)


def _evaluate(form: NormalForm, p: Property, strength: str) -> Outcome:
  """Points and vertex polytopes: what the checker makes of the simplest evidence."""
  start = time.monotonic()
  evidence = certificate.simplest_evidence(p)
  claim = certificate.make(form, (p,), [evidence], strength)
  done = lambda: {'engine': 'evaluation', 'seconds': time.monotonic() - start}
  try:
    checker.check_claim(claim)
    return Outcome(Verdict.PROVED, evidence=evidence, strength=strength, decided=1., **done())
  except checker.RejectedError:
    x = p.inputs.x if isinstance(p.inputs, Points) else p.inputs.vertices
    bad = np.flatnonzero(~checker.holds_exactly(claim.network, claim.spec[0].clauses, x))
    if len(bad):
      return Outcome(Verdict.REFUTED, counterexample=x[bad[0]], **done())
    # At the vertices it holds; inside, or by the margin that float32 needs, it could not be shown.
    return Outcome(Verdict.UNKNOWN, 'numerics' if isinstance(p.inputs, Points) else 'size', **done())

