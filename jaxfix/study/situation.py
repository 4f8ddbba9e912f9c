"""What a user who looks for an approach has at hand, and what matters to them."""
import dataclasses

from jaxfix.errors import UnknownNameError, require
from jaxfix.study import aggregate

HAS = ('history', 'class_importance', 'groups', 'spec', 'training_data')
KEEP = {'accuracy': ('acc_rel', 0.), 'robustness': ('asr_rel', -aggregate.ASR_NOISE), 'fairness': ('aaod_rel', 0.)}
"""What must not suffer -> metric, oriented so that positive is better, and the least value that passes."""
PREFER = {'rr': 'rr', 'acc': 'acc_rel', 'nfr': 'nfr', 'time': 'seconds'}


@dataclasses.dataclass(frozen=True)
class Situation:
  """What is at hand and what matters.

  Attributes:
    has: of `HAS`.
    proof: the repair must come with a guarantee.
    params: trainable scalars of the model, or None.
    time: budget of a repair, seconds, or None.
    keep: of `KEEP`, what must not suffer.
    subject: one of `jaxfix.subjects`, a key of the published tables, or '' for whatever there is.
    prefer: of `PREFER`, what decides among the rest.
  """
  has: tuple[str, ...] = ('training_data',)
  proof: bool = False
  params: int | None = None
  time: float | None = None
  keep: tuple[str, ...] = ()
  subject: str = ''
  prefer: str = 'rr'

  def __post_init__(self):
    for what, names, known in (('thing to have', self.has, HAS), ('thing to keep', self.keep, KEEP),
                               ('preference', (self.prefer,), PREFER)):
      for name in names:
        if name not in known:
          raise UnknownNameError(what, name, known)
    require(self.params is None or self.params > 0, f'params must be positive, got {self.params}.')
    require(self.time is None or self.time > 0, f'time must be positive, got {self.time}.')
