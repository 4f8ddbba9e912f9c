"""Population search on the study's LeNet5: candidates a second through the cached suffix against whole networks.

A candidate sets a few entries of one layer's kernel. Both sides count, for a whole population, the samples that each
candidate gets right: ours as Arachne does (`search/score.py`: activations before the layer are computed once), the peer
by running every candidate's whole network, one after the other, in one compiled loop. The last case is a whole repair
by Arachne at its published settings.
"""
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import methods, predict
from jaxfix.classifier import Classifier
from jaxfix.localize.linear import kernel, kernel_layers
from jaxfix.localize.targets import Targets, make_targets, siblings, write
from jaxfix.problem import Problem, Split
from jaxfix.search import score
from jaxfix.tiling import choose_tiling
from launch.benchmarks import pairs, subject

POPULATION, SAMPLES, ENTRIES = 100, 1000, 8


def run(options: pairs.Options) -> list[dict[str, Any]]:
  """One case a layer, from the last to the first, and the repair."""
  classifier = subject.lenet5(options)
  x, y = subject.images(classifier, SAMPLES, options)
  z, results = classifier.normalize(x), []
  for layer in reversed(kernel_layers(classifier)):
    targets, population = _candidates(classifier, layer.path)
    tiling = choose_tiling(classifier, targets.layers, POPULATION, SAMPLES)
    samples = score.cache_samples(classifier, x, y, layers=targets.layers, rows=tiling.rows)
    ours = functools.partial(_through_suffix, classifier, targets, samples, population, group=tiling.group)
    # All weights of each candidate, so that the compiler cannot see what the candidates share.
    networks = jax.vmap(functools.partial(write, targets, classifier))(population)
    peer = functools.partial(_through_network, networks, z, jnp.asarray(y))
    difference = np.abs(np.asarray(ours() - peer())).max()
    assert difference <= 2, f'{layer.path}: counts differ by {difference}, more than ties explain'
    results.append(pairs.compare(
      f'arachne, candidates in {layer.path}, {SAMPLES} samples', 'candidates/s', POPULATION, pairs.timed(ours),
      pairs.timed(peer), peer_name='whole network', repeats=options.repeats))
  return [*results, _repair(classifier, x, y)]


def _candidates(classifier: Classifier, path: str) -> tuple[Targets, jax.Array]:
  """Entries of one kernel, and `[p, d]` values drawn as Arachne draws its first population."""
  rng = np.random.default_rng(0)
  targets = make_targets(classifier, [path], rng.choice(kernel(classifier, path).size, ENTRIES, replace=False))
  around = siblings(targets, classifier)
  return targets, around.mean + around.std * jax.random.normal(jax.random.key(0), (POPULATION, len(around.mean)))


@functools.partial(jax.jit, static_argnames='group')
def _through_suffix(classifier: Classifier, targets: Targets, samples: score.Samples, population: jax.Array, *,
                    group: int) -> jax.Array:
  """Number right `[p]` of each candidate."""
  def statistic(logits, y, failing):
    return predict.right(logits, y).astype(jnp.float32)[:, None]
  return score.population_sums(statistic, classifier, targets, samples, population, group=group)[:, 0]


@jax.jit
def _through_network(networks: Classifier, z: jax.Array, y: jax.Array) -> jax.Array:
  """Number right `[p]` of each candidate."""
  return jax.lax.map(lambda c: predict.right(c.logits_of_normalized(z), y).sum(dtype=jnp.float32), networks)


def _repair(classifier: Classifier, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
  """Seconds of a repair by `arachne` with its published settings, where 1 label in 20 was changed into a failure."""
  wrong = np.arange(len(y)) % 20 == 0
  split = Split(x, np.where(wrong, (y + 1) % 10, y).astype(np.int32))
  repair = methods.run(methods.get('arachne'), Problem(classifier, split, split, split), key=jax.random.key(0))
  return {'case': f'arachne, repair on {SAMPLES} samples', 'seconds': sum(repair.seconds.values()),
          'phase_seconds': dict(repair.seconds), 'compile_seconds': repair.compile_seconds,
          'note': f'{repair.trace.notes[0]}; compilation {repair.compile_seconds:.2f} s of it'}
