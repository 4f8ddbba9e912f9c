"""NNet files: the text format of the ACAS Xu and HorizontalCAS networks. Fully connected, ReLU, numbers as text.

A file holds the network in its own units (inputs minus a mean, over a range) and the constants that lead there from
raw units. Classifiers here are in network units; `NNetScaling` is the way to and from raw ones.
"""
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import files
from jaxfix.classifier import Classifier, check_finite
from jaxfix.errors import CorruptFileError, DataNotFoundError, require
from jaxfix.models import layer_graph, structure
from jaxfix.models.layer_graph import LayerGraph, Record
from jaxfix.models.mlp import Mlp

_DIGITS = '.8e'  # nine digits tell all float32 numbers apart, and stay clear of the middle between two


@dataclasses.dataclass(frozen=True)
class NNetScaling:
  """Raw units and those of a network with `n` inputs. The numbers are float64, as precise as the text of the file.

  Attributes:
    input_mins, input_maxs: bounds in raw units, n each; raw inputs are clipped to them.
    input_means, input_ranges: n each; (raw - mean) / range is what the network takes.
    output_mean, output_range: one for all outputs; output * range + mean is in raw units.
  """
  input_mins: tuple[float, ...]
  input_maxs: tuple[float, ...]
  input_means: tuple[float, ...]
  input_ranges: tuple[float, ...]
  output_mean: float
  output_range: float

  def to_network(self, x_raw: np.ndarray) -> np.ndarray:
    """Network inputs `[..., n]`, float64, of raw ones, which are clipped to the bounds first."""
    clipped = np.clip(np.asarray(x_raw, np.float64), self.input_mins, self.input_maxs)
    return (clipped - np.array(self.input_means)) / np.array(self.input_ranges)

  def to_raw(self, y: np.ndarray) -> np.ndarray:
    """Outputs of the network, of any shape, in raw units, float64."""
    return np.asarray(y, np.float64) * self.output_range + self.output_mean


def read(path: str | os.PathLike) -> Classifier:
  """The classifier in an NNet file, in network units. Raises as `read_with_scaling`."""
  return read_with_scaling(path)[0]


def read_with_scaling(path: str | os.PathLike) -> tuple[Classifier, NNetScaling]:
  """The classifier in an NNet file, in network units, and the way from raw units to them.

  Weights are the numbers of the text rounded to float32. The module is a `LayerGraph` of dense layers 'dense1', ...
  with ReLU between them; `input_shape` is `(n,)`. The largest layer size and the flag of the header are not used.

  Raises:
    DataNotFoundError: there is no such file.
    CorruptFileError: it ends early, goes on after the last bias, or a line is not what the header says; the message
      names the line.
    BadInputError: a weight is NaN or infinite.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise DataNotFoundError(f'No file {path}.')
  try:
    lines = _Lines(str(path), path.read_text(encoding='utf-8'))
  except UnicodeDecodeError as e:
    raise CorruptFileError(f'{path} is no text file ({e}).') from e
  num_layers, num_inputs, num_outputs, _ = lines.sizes(4, 'the numbers of layers, inputs, outputs and the largest size')
  sizes = lines.sizes(num_layers + 1, 'the sizes of the layers')
  lines.check(sizes[0] == num_inputs and sizes[-1] == num_outputs, f'the layers have sizes {sizes}, but there are '
              f'{num_inputs} inputs and {num_outputs} outputs')
  lines.next('a flag')
  scaling = _scaling(lines, num_inputs)
  params = {}
  for i, (d, k) in enumerate(itertools.pairwise(sizes), 1):
    kernel = np.array([lines.numbers(d, f'a row of weights of layer {i}') for _ in range(k)]).T
    bias = np.array([lines.numbers(1, f'a bias of layer {i}') for _ in range(k)])[:, 0]
    params[f'dense{i}'] = {'kernel': jnp.asarray(kernel, jnp.float32), 'bias': jnp.asarray(bias, jnp.float32)}
  lines.end()
  classifier = Classifier({'params': params}, _module(sizes), (num_inputs,), num_outputs)
  check_finite(classifier, str(path))
  return classifier, scaling


def write(path: str | os.PathLike, classifier: Classifier, scaling: NNetScaling) -> None:
  """Writes an NNet file, atomically. Read again it gives the same weights, bit for bit, and the same scaling.

  Args:
    path: the file.
    classifier: an `Mlp`, or a `LayerGraph` that is a chain of dense layers with ReLU between them (and perhaps a
      flatten in front), without input normalization of its own.
    scaling: of its inputs and outputs.
  Raises:
    BadInputError: another network; a scaling for another number of inputs; a weight is NaN or infinite.
    OutputError: the file cannot be written.
  """
  check_finite(classifier, 'an NNet file')
  weights = _dense_weights(classifier)
  n = weights[0][0].shape[0]
  for name in ('input_mins', 'input_maxs', 'input_means', 'input_ranges'):
    require(len(getattr(scaling, name)) == n, f'{name} of the scaling has {len(getattr(scaling, name))} numbers, but '
            f'the network has {n} inputs.')
  sizes = [n, *(bias.size for _, bias in weights)]
  exact = lambda numbers: _line(repr(float(number)) for number in numbers)
  lines = [
    '// Neural network in the NNet format, written by jaxfix',
    _line(map(str, (len(weights), n, sizes[-1], max(sizes)))), _line(map(str, sizes)), '0,',
    exact(scaling.input_mins), exact(scaling.input_maxs),
    exact((*scaling.input_means, scaling.output_mean)), exact((*scaling.input_ranges, scaling.output_range))]
  for kernel, bias in weights:
    for row in (*kernel.T, *bias[:, None]):
      lines.append(_line(format(number, _DIGITS) for number in row.tolist()))
  files.write_text(path, '\n'.join(lines) + '\n')


def _line(numbers: Iterable[str]) -> str:
  return ''.join(f'{number},' for number in numbers)


def _module(sizes: Sequence[int]) -> LayerGraph:
  """Dense layers of those sizes (the first is that of the input) with ReLU between them."""
  records, last = [], layer_graph.INPUT
  for i, k in enumerate(sizes[1:], 1):
    records.append(Record(f'dense{i}', 'dense', (('features', k),), (last,)))
    records.append(Record(f'relu{i}', 'relu', (), (f'dense{i}',)))
    last = f'relu{i}'
  return LayerGraph(tuple(map(tuple, records[:-1])))


def _dense_weights(classifier: Classifier) -> list[tuple[np.ndarray, np.ndarray]]:
  """Kernel `[d, k]` and bias `[k]` of each layer of a network that an NNet file can hold."""
  refusal = 'An NNet file holds dense layers with ReLU between them and nothing else; '
  module = classifier.module
  require(isinstance(module, LayerGraph | Mlp), f'{refusal}this is a {type(module).__name__}.')
  require(set(classifier.mean) == {0.} and set(classifier.std) == {1.}, f'{refusal}this classifier normalizes its '
          'input.')
  if isinstance(module, LayerGraph):
    names = [layer_graph.INPUT, *(record[0] for record in module.layers)]
    require(all(Record(*fields).inputs == (before,) for fields, before in zip(module.layers, names, strict=False)),
            f'{refusal}the layers of this network are no chain.')
  found = structure.layer_list(classifier)
  found = found[1:] if found[0].kind == 'flatten' else found
  for i, layer in enumerate(found):
    require(layer.kind == ('relu' if i % 2 else 'dense'), f'{refusal}layer {layer.name!r} of kind {layer.kind!r} is '
            'out of place.')
    require(len(layer.input_shape) == 1, f'{refusal}layer {layer.name!r} takes an input of shape {layer.input_shape}.')
  require(len(found) % 2 == 1, f'{refusal}this network ends in a ReLU.')
  params = jax.device_get(classifier.params)
  weights = []
  for layer in found[::2]:
    own = params[layer.path]
    weights.append((own['kernel'], own.get('bias', np.zeros(layer.output_shape, np.float32))))
  return weights


def _scaling(lines: '_Lines', n: int) -> NNetScaling:
  mins, maxs = lines.numbers(n, 'the smallest inputs'), lines.numbers(n, 'the largest inputs')
  means = lines.numbers(n + 1, 'the means of the inputs and of the outputs')
  ranges = lines.numbers(n + 1, 'the ranges of the inputs and of the outputs')
  lines.check(all(ranges), 'a range is 0')
  return NNetScaling(mins, maxs, means[:-1], ranges[:-1], means[-1], ranges[-1])


class _Lines:
  """The lines of a file one after the other, without comments and empty ones."""

  def __init__(self, path: str, text: str):
    numbered = enumerate(text.splitlines(), 1)
    self._rest = ((i, line.strip()) for i, line in numbered if line.strip() and not line.lstrip().startswith('//'))
    self._path, self._number = path, 0

  def check(self, condition: bool, message: str) -> None:
    """Raises `CorruptFileError` that names the line read last, unless `condition` holds."""
    require(condition, f'{self._path}, line {self._number}: {message}.', CorruptFileError)

  def next(self, what: str) -> str:
    self._number, line = next(self._rest, (self._number, None))
    self.check(line is not None, f'the file ends here, before {what}; it is truncated')
    return line

  def numbers(self, count: int, what: str) -> tuple[float, ...]:
    """The next line as so many numbers, separated by commas, perhaps with one at the end."""
    fields = self.next(what).removesuffix(',').split(',')
    self.check(len(fields) == count, f'{what} should be {count} numbers, but here are {len(fields)}')
    try:
      return tuple(map(float, fields))
    except ValueError as e:
      raise CorruptFileError(f'{self._path}, line {self._number}: {what} should be numbers ({e}).') from e

  def sizes(self, count: int, what: str) -> tuple[int, ...]:
    """The next line as so many positive integers."""
    numbers = self.numbers(count, what)
    self.check(all(number >= 1 and number.is_integer() for number in numbers), f'{what} should be positive integers')
    return tuple(map(int, numbers))

  def end(self) -> None:
    """Checks that nothing is left."""
    number, line = next(self._rest, (0, None))
    require(line is None, f'{self._path}, line {number}: something follows the last bias.', CorruptFileError)
