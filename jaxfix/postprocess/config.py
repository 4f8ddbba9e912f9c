"""Options of all post-processing methods; the defaults are those of the sources' code."""
import dataclasses
from typing import Literal

from jaxfix.errors import require


@dataclasses.dataclass(frozen=True)
class Config:
  """A method reads the options that concern it.

  Attributes:
    draws: noisy passes per model, >= 2 (up, ud).
    noise: standard deviation of the noise added to normalized inputs, >= 0 (up).
    dropout: share of the units that are dropped, in [0, 1) (ud).
    site: what is dropped: inputs of the last dense layer ('features'), or 'logits' (ud).
    prior: half of the weight goes to the repaired model whatever the variances (up, ud).
    weights: by inverse 'variance' as the sources' code, or by inverse standard deviation as the formula of the 'paper',
      scaled to sum 1, without prior (up, ud).
    clean: combine the outputs without noise instead of the means over it (up, ud).
    shared_noise: the same draws for both models, where shapes agree (up, ud).
    reg: weight of the squared temperature, >= 0; the fit is repeated without where it gives less than 0.8 (us).
    temperatures: (lowest, highest) temperature that is tried (us, us_cal).
  """
  draws: int = 10
  noise: float = 0.01
  dropout: float = 0.2
  site: Literal['features', 'logits'] = 'features'
  prior: bool = True
  weights: Literal['variance', 'paper'] = 'variance'
  clean: bool = False
  shared_noise: bool = False
  reg: float = 5e-4
  temperatures: tuple[float, float] = (0.05, 20.)

  def __post_init__(self):
    require(self.draws >= 2, f'draws must be at least 2, got {self.draws}: one pass has no variance.')
    require(self.noise >= 0, f'noise must be >= 0, got {self.noise}.')
    require(0 <= self.dropout < 1, f'dropout must lie in [0, 1), got {self.dropout}.')
    require(self.site in ('features', 'logits'), f'site must be features or logits, got {self.site!r}.')
    require(self.weights in ('variance', 'paper'), f'weights must be variance or paper, got {self.weights!r}.')
    require(self.reg >= 0, f'reg must be >= 0, got {self.reg}.')
    require(0 < self.temperatures[0] < self.temperatures[1],
            f'temperatures must be (lowest, highest) with 0 < lowest < highest, got {self.temperatures}.')
