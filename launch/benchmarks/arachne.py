"""Population search on the study's LeNet5: candidates a second through the cached suffix against whole networks.

A candidate changes a few entries of one layer's kernel. Both sides compute the fitness of a whole population, the
number of samples right; the suffix starts from activations that were computed once, as Arachne does. The last case is
a whole search by Arachne at its published settings.
"""
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import intervene, methods
from jaxfix.classifier import Classifier
from jaxfix.models.layers import layer_list
from jaxfix.problem import Problem, Split
from launch.benchmarks import pairs, subject

POPULATION, SAMPLES, ENTRIES = 100, 1000, 8
# Candidates evaluated at once: the activations of all would not fit the cache, and hardly the memory.
_AT_ONCE = 4


def run(options: pairs.Options) -> list[dict[str, Any]]:
  """One case a layer, from the last to the first, and the search."""
  classifier = subject.lenet5(options)
  x, y = subject.images(classifier, SAMPLES, options)
  z, y = classifier.normalize(x), jnp.asarray(y)
  results = []
  for layer in reversed([layer for layer in layer_list(classifier) if layer.kind in ('conv', 'dense')]):
    index, values = _candidates(classifier, layer.path)
    cache = jax.jit(intervene.prefix, static_argnums=2)(classifier, z, (layer.path,))
    ours = functools.partial(_through_suffix, classifier, cache, y, values, index, layer.path)
    # All weights of each candidate, so that the compiler cannot see that they share what comes before the layer.
    population = jax.vmap(lambda v, c=classifier, i=index, p=layer.path: _patched(c, p, i, v))(values)
    peer = functools.partial(_through_network, population, z, y)
    # Rounding may differ where a logit ties, no more.
    assert np.abs(np.asarray(ours() - peer())).max() <= 2, layer.path
    results.append(pairs.compare(
      f'arachne, candidates in {layer.path}, {SAMPLES} samples', 'candidates/s', POPULATION, pairs.timed(ours),
      pairs.timed(peer), peer_name='whole network', repeats=options.repeats))
  return [*results, _search(classifier, x, np.asarray(y))]


def _candidates(classifier: Classifier, path: str) -> tuple[tuple[int, ...], jax.Array]:
  """Entries of a kernel (flat indices) and `[p, d]` values for them."""
  kernel = functools.reduce(lambda tree, name: tree[name], path.split('/'), classifier.params)['kernel']
  rng = np.random.default_rng(0)
  index = tuple(map(int, rng.choice(kernel.size, ENTRIES, replace=False)))
  return index, jnp.asarray(rng.normal(kernel.mean(), kernel.std(), (POPULATION, ENTRIES)), jnp.float32)


def _patched(classifier: Classifier, path: str, index: tuple[int, ...], values: jax.Array) -> Classifier:
  def patch(tree, names):
    if not names:
      flat = tree['kernel'].ravel().at[jnp.array(index)].set(values)
      return tree | {'kernel': flat.reshape(tree['kernel'].shape)}
    return tree | {names[0]: patch(tree[names[0]], names[1:])}

  return classifier.with_params(patch(dict(classifier.params), path.split('/')))


@functools.partial(jax.jit, static_argnums=(4, 5))
def _through_suffix(classifier, cache, y, values, index, path):
  """Number right `[p]` of each candidate."""
  def fitness(v):
    return (intervene.suffix(_patched(classifier, path, index, v), cache, (path,)).argmax(-1) == y).sum()
  return jax.lax.map(fitness, values, batch_size=_AT_ONCE)


@jax.jit
def _through_network(population, z, y):
  """Number right `[p]` of each candidate."""
  def fitness(c):
    return (c.logits_of_normalized(z).argmax(-1) == y).sum()
  return jax.lax.map(fitness, population, batch_size=_AT_ONCE)


def _search(classifier: Classifier, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
  """Seconds of a repair of 1 failure in 20 by `arachne` with its published settings, compilation included."""
  method = methods.get('arachne')
  wrong = np.arange(len(y)) % 20 == 0
  split = Split(x, np.where(wrong, (y + 1) % 10, y).astype(np.int32))
  repair = methods.run(method, Problem(classifier, split, split, split), key=jax.random.key(0))
  seconds = sum(repair.seconds.values())
  return {'case': f'arachne, search on {SAMPLES} samples', 'seconds': seconds, 'phase_seconds': dict(repair.seconds),
          'compile_seconds': repair.compile_seconds, 'note': f'compilation {repair.compile_seconds:.2f} s of it'}
