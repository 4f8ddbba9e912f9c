"""Measures speed against peers, in turns on this machine, and prints the ratio with its spread.

  python -m launch.benchmark --suite=pgd,conv,arachne --repeats=5 --out=benchmark.json

pgd: attack on the study's LeNet5 against Foolbox with PyTorch (an environment of its own, made on first use); target
6 times. conv: VGG16, forward (target 4 times) and training step (3 times), against plain `lax.conv_general_dilated`.
arachne: evaluations of candidates through the cached suffix against whole networks, and the seconds of a search.
bounds: IBP and CROWN boxes a second against auto_LiRPA with PyTorch (an environment of its own; target 4 times CROWN).
localize: neurons a second of CARE's causal effect against whole networks, weights a second of Arachne's scores.
planted: how often each localizer finds ten corrupted weights (100 trials).
regions: exact lines and a certificate of 1,000 vertices. acasxu: properties 1 to 4 on 37 networks, which takes long.
Stop everything else on the machine first.
"""
import importlib

import jax
from absl import flags

from jaxfix import files
from jaxfix.errors import UnknownNameError
from jaxfix.study import record
from launch import cli
from launch.benchmarks import pairs

_SUITES = ('pgd', 'conv', 'arachne', 'localize', 'planted', 'bounds', 'regions', 'acasxu')

_SUITE = flags.DEFINE_list('suite', ['pgd', 'conv', 'arachne'], f'Which, separated by commas: {", ".join(_SUITES)}.')
_REPEATS = flags.DEFINE_integer('repeats', 5, 'Timed runs of each side, in turns.', lower_bound=1)
_DATA_DIR = flags.DEFINE_string('data_dir', None, 'Where mnist.npz lies, aprnn_mnist/ and acasxu/ too.')
_MODEL = flags.DEFINE_string('model', None, 'File of a study LeNet5; random weights without it.')
_OUT = flags.DEFINE_string('out', None, 'File for the results (JSON).')


def main() -> int:
  console = cli.console()
  options = pairs.Options(_REPEATS.value, _DATA_DIR.value, _MODEL.value)
  for name in _SUITE.value:
    if name not in _SUITES:
      raise UnknownNameError('suite', name, _SUITES)
  results = []
  for name in _SUITE.value:
    for result in importlib.import_module(f'launch.benchmarks.{name}').run(options):
      results.append({'suite': name, **result})
      console.print(pairs.line(result), soft_wrap=True, highlight=False)
  if _OUT.value:
    commit, dirty = record.git_state()
    files.write_json(_OUT.value, {
      'results': results, 'repeats': _REPEATS.value, 'finished_utc': record.utc_now(), 'versions': record.versions(),
      'git_commit': commit, 'git_dirty': dirty, 'host_cpu': record.host_cpu(), 'platform': jax.default_backend(),
      'device_kind': jax.devices()[0].device_kind, 'device_count': jax.device_count()})
  return 0


if __name__ == '__main__':
  cli.run(main)
