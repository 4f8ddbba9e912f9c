"""A network whose neurons are clamped or scaled, evaluated for many such interventions from activations kept once.

Three routes give the same logits. 'whole' runs the network from its inputs. 'suffix' runs what comes after the neurons.
'rank_one' is for neurons that act through one Dense layer: with Z their values, V the kernel of that layer, U its
output and phi the activation function between, clamping neuron i to h gives

  U + (phi(h) - phi(Z[:, i])) V[i, :],

and scaling the k neurons I by f gives U + (phi(Z_I f) - phi(Z_I)) V[I, :]. Only what follows that layer is run again;
if nothing follows, because U are the logits, clamping costs n c multiplications.
"""
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import devices, intervene
from jaxfix.classifier import Classifier
from jaxfix.errors import EmptySplitError, RepairFailure, require
from jaxfix.localize.linear import kernel
from jaxfix.localize.neurons import Neurons
from jaxfix.models.structure import layer_list
from jaxfix.predict import padded_batches, right
from jaxfix.tiling import Tiling, choose_tiling

Route = Literal['rank_one', 'suffix', 'whole']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Labels:
  """What is known of `n` samples; in `Samples` every array has a leading axis for the blocks.

  Attributes:
    y: `[n]` int32 labels.
    failing: `[n]` bool, the network gets it wrong.
    weight: `[n]` float32, 1, or 0 for rows that fill up a block.
    applies: `[n, p]` bool, which of p properties speak of the sample; p may be 0.
  """
  y: jax.Array
  failing: jax.Array
  weight: jax.Array
  applies: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Samples:
  """Labeled samples as what interventions on some neurons need of them, in `b` blocks of `n`.

  A sample may come in `v` versions (the same applicant with another gender); version 0 is the sample itself.

  Attributes:
    neurons: of one layer or several, in the order of the forward pass.
    route: how interventions are evaluated.
    kept: arrays `[b, n * v, ...]`.
    logits: `[b, n, v, c]` without an intervention.
    low, high: for each layer `[m]`, the range of each neuron over all samples and versions.
    labels: see `Labels`.
  """
  neurons: tuple[Neurons, ...] = dataclasses.field(metadata={'static': True})
  route: Route = dataclasses.field(metadata={'static': True})
  kept: tuple[jax.Array, ...]
  logits: jax.Array
  low: tuple[jax.Array, ...]
  high: tuple[jax.Array, ...]
  labels: Labels


Statistic = Callable[[jax.Array, Labels], jax.Array]
"""`(logits [n, v, c], labels) -> [n, s]`: what is summed over samples."""


def keep_samples(classifier: Classifier, x: Any, y: np.ndarray, neurons: tuple[Neurons, ...], *,
                 route: Route | None = None, versions: int = 1, applies: np.ndarray | None = None) -> Samples:
  """Runs the network once and keeps what interventions on the neurons need.

  Args:
    classifier: the network.
    x: `[n * v, *input_shape]`, raw, in memory or streamed; the versions of a sample one after the other.
    y: `[n]` labels.
    neurons: of one layer or several.
    route: None for the cheapest one there is.
    versions: v.
    applies: `[n, p]` bool, see `Labels`; None for no properties.
  Raises:
    EmptySplitError: there is no sample.
    BadInputError: 'rank_one' is asked for but the neurons do not act through one Dense layer.
    RepairFailure: the activations would take more than half of the free memory.
  """
  count = len(y)
  require(count > 0, 'Effects of neurons over no samples are undefined; give at least one.', EmptySplitError)
  one_reader = len(neurons) == 1 and neurons[0].reader is not None
  route = route or ('rank_one' if one_reader else 'suffix')
  require(route != 'rank_one' or one_reader, "The route 'rank_one' needs neurons of one layer that act through one "
          "Dense layer; take 'suffix'.")
  _check_memory(classifier, count * versions, neurons, route)
  rows = max(1, _tiling(classifier, neurons, route, 1, count).rows // versions)
  blocks = -(-count // rows)
  state = None
  for i, (batch, _) in enumerate(padded_batches(x, rows * versions)):
    state = _empty(classifier, batch, blocks, neurons, route) if state is None else state
    state = _keep(state, classifier, batch, i, neurons, route)
  kept, logits, low, high = state
  labels = np.resize(np.asarray(y, np.int32), (blocks, rows))
  weight = (np.arange(blocks * rows) < count).astype(np.float32).reshape(blocks, rows)
  about = np.zeros((count, 0), bool) if applies is None else np.asarray(applies, bool)
  about = np.concatenate([about, np.zeros((blocks * rows - count, about.shape[1]), bool)]).reshape(blocks, rows, -1)
  logits = logits.reshape(blocks, rows, versions, -1)
  arrays = labels, _failing(logits, labels), weight, about
  return Samples(neurons, route, kept, logits, low, high, Labels(*map(jnp.asarray, arrays)))


def _check_memory(classifier: Classifier, count: int, neurons: tuple[Neurons, ...], route: Route) -> None:
  one = jax.ShapeDtypeStruct((1, *classifier.input_shape), jnp.float32)
  kept, logits, *_ = jax.eval_shape(lambda c, x: _observe(c, x, neurons, route), classifier, one)
  needed = count * sum(math.prod(a.shape) * a.dtype.itemsize for a in (*kept, logits))
  free = devices.free_bytes()
  require(needed <= free // 2, f'The activations of {neurons[0].layer} and beside it of {count} samples take '
          f'{needed / 2**30:.1f} GiB, more than half of the {free / 2**30:.1f} GiB that are free; give fewer samples, '
          'or name a later layer.', RepairFailure)


def choose_group(classifier: Classifier, samples: Samples, jobs: int) -> int:
  """How many of `jobs` interventions to evaluate at once, so that the largest activation fits a budget."""
  return _tiling(classifier, samples.neurons, samples.route, jobs, samples.kept[0].shape[1]).group


def clamped(classifier: Classifier, samples: Samples, kept: tuple[jax.Array, ...], neuron: jax.Array,
            value: jax.Array) -> jax.Array:
  """Logits `[n * v, c]` of a block with one neuron forced to one value in every sample.

  Args:
    classifier: the network.
    samples: of the neurons of one layer; gives structure only.
    kept: the arrays of the block, each `[n * v, ...]`.
    neuron: 0..m-1.
    value: what it is set to.
  """
  neurons, = samples.neurons
  if samples.route == 'rank_one':
    z, *cache = kept
    change = neurons.activate(value) - neurons.activate(z[:, neuron])
    added = change[:, None] * kernel(classifier, neurons.reader)[neuron][None]
    return intervene.suffix(classifier, cache, (neurons.reader,), at='output',
                            outputs={neurons.reader: lambda u: u + added})
  mask = neurons.along(jnp.arange(neurons.count) == neuron)
  return _replaced(classifier, samples, kept, {neurons.layer: lambda z: jnp.where(mask, value, z)})


def scaled(classifier: Classifier, samples: Samples, kept: tuple[jax.Array, ...], chosen: jax.Array,
           factors: jax.Array) -> jax.Array:
  """Logits `[n * v, c]` of a block with some neurons multiplied by constants; factors of 1 change no bit.

  Args:
    classifier: the network.
    samples: gives structure only.
    kept: the arrays of the block, each `[n * v, ...]`.
    chosen: `[k]` int32, neurons, counted through all layers of `samples`; distinct.
    factors: `[k]`.
  """
  if samples.route == 'rank_one':
    neurons, = samples.neurons
    z, *cache = kept
    old = z[:, chosen]
    change = neurons.activate(old * factors[None]) - neurons.activate(old)
    added = change @ kernel(classifier, neurons.reader)[chosen]
    return intervene.suffix(classifier, cache, (neurons.reader,), at='output',
                            outputs={neurons.reader: lambda u: u + added})
  parts = split_factors(samples.neurons, chosen, factors)
  along = {each.layer: each.along(part) for each, part in zip(samples.neurons, parts, strict=True)}
  return _replaced(classifier, samples, kept, {path: functools.partial(jnp.multiply, f) for path, f in along.items()})


def split_factors(neurons: tuple[Neurons, ...], chosen: jax.Array, factors: jax.Array) -> tuple[jax.Array, ...]:
  """For each layer the factors of all its neurons, `[m]`: `factors` `[k]` where `chosen` says so, else 1."""
  ends = np.cumsum([each.count for each in neurons])
  return tuple(jnp.split(jnp.ones(int(ends[-1])).at[chosen].set(factors), ends[:-1]))


def sums(logits_of: Callable[[tuple[jax.Array, ...], Any], jax.Array], statistic: Statistic, samples: Samples,
         jobs: Any, *, group: int) -> jax.Array:
  """Sum over samples of a statistic, for many interventions; `[j, s]` float32. Pure; call it inside `jit`.

  Args:
    logits_of: `(kept, job) -> [n * v, c]`, the logits of a block under one intervention.
    statistic: what is summed.
    samples: the samples.
    jobs: pytree of arrays with a leading axis j, one entry an intervention.
    group: interventions evaluated at once.
  """
  count = jax.tree.leaves(jobs)[0].shape[0]
  groups = -(-count // group)
  fill = lambda a: jnp.resize(a, (groups * group, *a.shape[1:])).reshape(groups, group, *a.shape[1:])
  spread = jax.tree.map(fill, jobs)
  shape = samples.logits.shape[1:]

  def add_block(total, block):
    kept, labels = block

    def one(job):
      return jnp.einsum('n,ns->s', labels.weight, statistic(logits_of(kept, job).reshape(shape), labels))

    gain = jax.lax.map(jax.vmap(one), spread)
    return total + gain.reshape(groups * group, -1)[:count], None

  width = jax.eval_shape(statistic, samples.logits[0], jax.tree.map(lambda a: a[0], samples.labels)).shape[-1]
  return jax.lax.scan(add_block, jnp.zeros((count, width)), (samples.kept, samples.labels))[0]


def plain_sums(statistic: Statistic, samples: Samples) -> jax.Array:
  """Sum over samples of a statistic of the network as it is, `[s]`."""
  each = jax.vmap(lambda logits, labels: jnp.einsum('n,ns->s', labels.weight, statistic(logits, labels)))
  return each(samples.logits, samples.labels).sum(axis=0)


def _replaced(classifier: Classifier, samples: Samples, kept: tuple[jax.Array, ...], outputs) -> jax.Array:
  if samples.route == 'whole':
    return intervene.apply(classifier, kept[0], outputs=outputs)
  return intervene.suffix(classifier, kept, tuple(outputs), at='output', outputs=outputs)


def _tiling(classifier: Classifier, neurons: tuple[Neurons, ...], route: Route, jobs: int, count: int) -> Tiling:
  first = {'whole': lambda: layer_list(classifier)[0].path, 'rank_one': lambda: neurons[0].reader,
           'suffix': lambda: neurons[0].layer}[route]()
  return choose_tiling(classifier, (first,), jobs, count)


def _observe(classifier: Classifier, x: jax.Array, neurons: tuple[Neurons, ...], route: Route):
  """What `Samples` holds of a batch: what is kept, logits, and the neurons' ranges."""
  z = classifier.normalize(x)
  paths = tuple(each.layer for each in neurons)
  seen = {path: out for path, (_, out) in intervene.record(classifier, z, paths).items()}
  if route == 'whole':
    kept = (z,)
  elif route == 'suffix':
    kept = intervene.prefix(classifier, z, paths, at='output')
  else:
    values = seen[paths[0]].reshape(len(z), -1)
    kept = (values, *intervene.prefix(classifier, z, (neurons[0].reader,), at='output'))
  ranges = [each.extremes(seen[each.layer]) for each in neurons]
  return kept, classifier.logits_of_normalized(z), tuple(low for low, _ in ranges), tuple(high for _, high in ranges)


@functools.partial(jax.jit, static_argnames=('blocks', 'neurons', 'route'))
def _empty(classifier: Classifier, batch: jax.Array, blocks: int, neurons: tuple[Neurons, ...], route: Route):
  """Room for what `_observe` gives of every block, and ranges that hold nothing."""
  kept, logits, low, high = jax.eval_shape(lambda c, x: _observe(c, x, neurons, route), classifier, batch)
  blank = lambda tree: jax.tree.map(lambda a: jnp.zeros((blocks, *a.shape), a.dtype), tree)
  full = lambda tree, value: jax.tree.map(lambda a: jnp.full(a.shape, value, a.dtype), tree)
  return blank(kept), blank(logits), full(low, jnp.inf), full(high, -jnp.inf)


@functools.partial(devices.jit, static_argnames=('neurons', 'route'), donate_argnums=0)
def _keep(state, classifier: Classifier, x: jax.Array, i: jax.Array, neurons: tuple[Neurons, ...], route: Route):
  """`state` with block i written and the ranges widened."""
  kept, logits, low, high = _observe(classifier, x, neurons, route)
  write = lambda old, new: jax.tree.map(lambda a, b: a.at[i].set(b), old, new)
  return (write(state[0], kept), write(state[1], logits), jax.tree.map(jnp.minimum, state[2], low),
          jax.tree.map(jnp.maximum, state[3], high))


@jax.jit
def _failing(logits: jax.Array, y: jax.Array) -> jax.Array:
  """`[b, n]` bool: the prediction for version 0 of logits `[b, n, v, c]` is not `y`."""
  return ~jax.vmap(right)(logits[:, :, 0], y)
