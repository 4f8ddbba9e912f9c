"""Localization: neurons a second of CARE's causal effect, and weights a second of Arachne's scores.

Causal effect: for each hidden layer of the study's LeNet5, every neuron is forced to four values; ours from activations
that are kept once, the peer by running the whole network for each intervention, in one compiled program. Arachne: both
scores of all kernel entries on failing and on passing samples, without a peer.
"""
import statistics
from typing import Any

import jax
import numpy as np

from jaxfix.classifier import Classifier
from jaxfix.localize import causal_effect, neuron_interventions
from jaxfix.localize.batches import make_batches
from jaxfix.localize.forward_impact import forward_impact
from jaxfix.localize.gradient_loss import gradient_loss
from jaxfix.localize.linear import kernel, kernel_layers
from jaxfix.localize.neurons import find_neurons
from launch.benchmarks import pairs, subject

SAMPLES, STEPS = 1000, 4


def run(options: pairs.Options) -> list[dict[str, Any]]:
  """One case a hidden layer, and the scores of all weights."""
  classifier = subject.lenet5(options)
  x, y = subject.images(classifier, SAMPLES, options)
  results = []
  for layer in reversed(kernel_layers(classifier)[:-1]):
    neurons = find_neurons(classifier, layer.path)
    ours, peer = (_effects(classifier, neuron_interventions.keep_samples(classifier, x, y, (neurons,), route=route))
                  for route in (None, 'whole'))
    difference = np.abs(np.asarray(ours().effect) - np.asarray(peer().effect)).max()
    assert difference <= 2 / SAMPLES, f'{layer.path}: effects differ by {difference}, more than ties explain'
    results.append(pairs.compare(
      f'causal effect, {layer.path}, {SAMPLES} samples, {STEPS} values', 'neurons/s', neurons.count, pairs.timed(ours),
      pairs.timed(peer), peer_name='whole network', repeats=options.repeats))
  return [*results, _weights(classifier, x, y, options.repeats)]


def _effects(classifier: Classifier, samples: neuron_interventions.Samples):
  return lambda: causal_effect.causal_effects(classifier, samples, causal_effect.Misclassified(), steps=STEPS)


def _weights(classifier: Classifier, x: np.ndarray, y: np.ndarray, repeats: int) -> dict[str, Any]:
  """Seconds of Arachne's four scores (two of each kind) of all kernel entries, on half of the samples each."""
  paths = tuple(layer.path for layer in kernel_layers(classifier))
  halves = [make_batches(x[i::2], y[i::2]) for i in range(2)]
  run_all = pairs.timed(lambda: [jax.block_until_ready(score(classifier, half, paths=paths))
                                 for score in (gradient_loss, forward_impact) for half in halves])
  seconds = statistics.median([run_all() for _ in range(repeats + 1)][1:])
  weights = sum(kernel(classifier, path).size for path in paths)
  return {'case': f"Arachne's scores, {len(x)} samples", 'seconds': seconds, 'weights_per_second': weights / seconds,
          'note': f'{weights:,} weights, {weights / seconds:,.0f} a second'}
