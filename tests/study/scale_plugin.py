"""A tiny approach outside the package, as a user would write it: scales the last layer's bias at random."""
import dataclasses
import os
import pathlib
import uuid

import jax

from jaxfix.errors import require
from jaxfix.methods import Method
from jaxfix.problem import Repair, Trace


@dataclasses.dataclass(frozen=True)
class Config:
  """scale: standard deviation of what is added to the last bias, >= 0."""
  scale: float = 0.05

  def __post_init__(self):
    require(self.scale >= 0, f'scale must not be negative, got {self.scale}.')


def repair(problem, config, key):
  if folder := os.environ.get('COUNT_REPAIRS'):   # a file a repair, for tests that count them
    (pathlib.Path(folder) / uuid.uuid4().hex).touch()
  params = problem.classifier.params
  last = sorted(params)[-1]
  bias = params[last]['bias']
  moved = {**params[last], 'bias': bias + config.scale * jax.random.normal(key, bias.shape)}
  return Repair(problem.classifier.with_params({**params, last: moved}), Trace({'loss': (1., 0.5)}))


METHOD = Method(name='scale', title='Scale', code='', level='neuron', config=Config(), repair=repair,
                changes='the last bias', guarantee='none', source='a test', summary='moves the last bias')
METHODS = (METHOD, dataclasses.replace(METHOD, name='needy', needs=('class_importance',)),
           dataclasses.replace(METHOD, name='remembering', needs=('history',)))
