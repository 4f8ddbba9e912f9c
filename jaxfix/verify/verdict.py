"""What a verification run says: proved, refuted or unknown, with what it rests on."""
import dataclasses
import enum

import numpy as np

from jaxfix.errors import JaxfixError
from jaxfix.verify.certificate import Evidence


class Verdict(enum.Enum):
  """There is no fourth answer."""
  PROVED = 'proved'      # the checker accepts the evidence, or, by strength 'solver', a solver says so
  REFUTED = 'refuted'    # an input of the set violates a condition in exact arithmetic
  UNKNOWN = 'unknown'    # anything else; `reason` says which


class VacuousError(JaxfixError):
  """A property has no inputs, or conditions that cannot fail: it holds of every network and says nothing of one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
  """The answer for one property.

  Attributes:
    verdict: see `Verdict`.
    reason: for UNKNOWN: 'time', 'memory' (too many open boxes), 'numerics' (too close to tell), 'size' (no engine
      takes a network of this size, or exact arithmetic has too many digits), or a solver's own; else ''.
    counterexample: `[n]` float64, for REFUTED.
    evidence: for the certificate; None where there is none, as for the word of a solver.
    strength: of PROVED: 'real' or 'float32' (see `checker.py`), or 'solver'.
    engine: what decided.
    num_boxes: boxes that were bounded.
    decided: share of the volume of the input set that was proven, in [0, 1].
    undecided: lower and upper `[b, n]` of the boxes that were left where a limit stopped the search: on the rest of the
      input set the property is proven. None where that is not known.
    seconds: wall time.
  """
  verdict: Verdict
  reason: str = ''
  counterexample: np.ndarray | None = None
  evidence: Evidence | None = None
  strength: str = ''
  engine: str = ''
  num_boxes: int = 0
  decided: float = 0.
  undecided: tuple[np.ndarray, np.ndarray] | None = None
  seconds: float = 0.
