"""Do the localizers find a planted fault? Ten kernel entries of a healthy network are corrupted; who ranks them first?

The study's LeNet5 is right on all images, since their labels are what it says of them. A trial moves ten entries, drawn
from all kernels, by three times the largest weight of their kernel, up or down; the images that are now wrong are the
failing samples. Each localizer scores every kernel entry of the corrupted network without being told of the healthy one
(NeuRecover, which is told, would read the answer off its history and is left out). A score of neurons counts for all
entries of the neuron, larger weights first.
"""
import functools
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import predict
from jaxfix.classifier import Classifier
from jaxfix.localize import causal_effect, neuron_interventions, probes, routing, sampling, spectrum
from jaxfix.localize.batches import Batches
from jaxfix.localize.blocks import blocks
from jaxfix.localize.forward_impact import forward_impact, raw_forward_impact
from jaxfix.localize.gradient_loss import gradient_loss
from jaxfix.localize.influence import influence_ratio, influences
from jaxfix.localize.linear import kernel, kernel_layers
from jaxfix.localize.neurons import find_neurons
from jaxfix.localize.pareto import pareto_front
from jaxfix.localize.targets import make_targets, values, write
from launch.benchmarks import pairs, subject

TRIALS, ENTRIES, SAMPLES, TOP_SHARE, SIZE = 100, 10, 1024, 0.01, 3.
_BATCH = 32
_ROUTED = 100   # failing samples whose masks vote, as published


def run(options: pairs.Options, trials: int = TRIALS) -> list[dict[str, Any]]:
  """One case a localizer: the share of planted entries in its top 1%, over all trials that made the network fail."""
  healthy = subject.lenet5(options)
  x, y = subject.images(healthy, SAMPLES, options)
  paths = tuple(layer.path for layer in kernel_layers(healthy))
  found, seconds, front_sizes, used, failures = {}, {}, [], 0, 0
  for trial in range(trials):
    network, planted = corrupt(healthy, paths, np.random.default_rng(trial))
    failing = predict.labels(network, x) != y
    if not failing.any() or failing.all():
      continue
    used, failures = used + 1, failures + int(failing.sum())
    scores = score_all(network, paths, x, y, failing, jax.random.key(trial), seconds)
    sizes = np.abs(_flat({path: kernel(network, path) for path in paths}))
    for name, score in scores.items():
      top = spectrum.top_entries(score, sizes, int(TOP_SHARE * score.size))
      found.setdefault(name, []).append(np.isin(planted, top).mean())
    front = pareto_front(scores['gradient loss, contrast'], scores['forward impact, contrast'])
    found.setdefault("Arachne's front", []).append(np.isin(planted, front).mean())
    front_sizes.append(len(front))
  results = []
  for name, shares in found.items():
    shares = np.asarray(shares)
    note = (f'{shares.mean():.1%} of {ENTRIES * used} planted entries in the top {TOP_SHARE:.0%}; '
            f'at least one in {np.count_nonzero(shares)} of {used} trials')
    if name == "Arachne's front":
      note = note.replace(f'the top {TOP_SHARE:.0%}', f'its {np.mean(front_sizes):.1f} entries')
    results.append({'case': f'planted, {name}', 'seconds': seconds.get(name, 0.) / max(1, used), 'note': note,
                    'recall': float(shares.mean()), 'trials': used, 'trials_with_one': int(np.count_nonzero(shares)),
                    'mean_failing': failures / max(1, used)})
  return results


def corrupt(healthy: Classifier, paths: tuple[str, ...], rng: np.random.Generator) -> tuple[Classifier, np.ndarray]:
  """A network with `ENTRIES` corrupted kernel entries, and their positions in the concatenated kernels."""
  kernels = [np.asarray(kernel(healthy, path)) for path in paths]
  planted = np.sort(rng.choice(sum(k.size for k in kernels), ENTRIES, replace=False))
  move = np.concatenate([np.full(k.size, SIZE * np.abs(k).max()) for k in kernels])[planted]
  targets = make_targets(healthy, paths, planted)
  vector, used = np.array(values(targets, healthy)), np.asarray(targets.used)
  vector[used] += move * rng.choice([-1, 1], ENTRIES)
  return write(targets, healthy, jnp.asarray(vector)), planted


def score_all(network: Classifier, paths: tuple[str, ...], x: np.ndarray, y: np.ndarray, failing: np.ndarray,
              key: jax.Array, seconds: dict[str, float]) -> dict[str, np.ndarray]:
  """Localizer -> `[entries]` scores; the time of each is added to `seconds`."""
  rows = np.flatnonzero(~failing)
  balanced = np.isin(np.arange(len(y)), sampling.balanced_sample(rows, y[rows], int(failing.sum()), key=key))
  wrong, right, all_samples = (_batches(x, y, mask) for mask in (failing, balanced, np.ones(len(y), bool)))
  found = {}

  def note(name: str, scores) -> None:
    start = time.perf_counter()
    found[name] = _flat(scores())
    seconds[name] = seconds.get(name, 0.) + time.perf_counter() - start

  def contrast(score) -> Mapping[str, np.ndarray]:
    v, p = (jax.device_get(score(network, batches, paths=paths)) for batches in (wrong, right))
    return {path: v[path] / (1 + p[path]) for path in paths}

  note('gradient loss', lambda: gradient_loss(network, wrong, paths=paths))
  note('gradient loss, contrast', lambda: contrast(gradient_loss))
  note('forward impact', lambda: forward_impact(network, wrong, paths=paths))
  note('forward impact, contrast', lambda: contrast(forward_impact))
  note('raw forward impact', lambda: raw_forward_impact(network, wrong, paths=paths))
  note('influence ratio (I-REPAIR)', lambda: _influence(network, wrong, right, paths=paths))
  spectra = spectrum.spectrum(network, all_samples, paths=paths)
  for formula in spectrum.FORMULAS:
    note(f'spectrum, {formula}', lambda formula=formula: spectrum.weight_scores(network, spectra, formula=formula))
  note('causal effect (CARE)', lambda: _causal(network, paths, x, y))
  note('routing votes (INNER)', lambda: _votes(network, paths, x, y, failing, key))
  return found


@functools.partial(jax.jit, static_argnames='paths')
def _influence(network: Classifier, wrong: Batches, right: Batches, *, paths: tuple[str, ...]) -> dict[str, jax.Array]:
  both = influences(network, wrong, right)
  return {path: influence_ratio(both.specific[path]['kernel'], both.general[path]['kernel'], 0.5) for path in paths}


def _causal(network: Classifier, paths: tuple[str, ...], x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
  """|ACE| of each hidden neuron, at all entries that lead into it."""
  scores = {}
  for path in paths:
    w = np.asarray(kernel(network, path))
    scores[path] = np.zeros_like(w)
    if path != paths[-1]:
      samples = neuron_interventions.keep_samples(network, x, y, (find_neurons(network, path),))
      effects = causal_effect.causal_effects(network, samples, causal_effect.Misclassified())
      scores[path] += np.abs(np.nan_to_num(np.asarray(effects.effect)))
  return scores


def _votes(network: Classifier, paths: tuple[str, ...], x: np.ndarray, y: np.ndarray, failing: np.ndarray,
           key: jax.Array) -> dict[str, np.ndarray]:
  """Votes at the target kernels of all blocks; the kernel of the output layer has none."""
  cut = blocks(network)
  features = probes.pooled_features(network, x, probes.taps(cut))
  trained, _ = probes.train_probes(features, y, network.num_classes, probes.Training(), key=key)
  part = x[np.resize(np.flatnonzero(failing), _ROUTED)]
  scores = {path: np.zeros(kernel(network, path).shape) for path in paths}
  for block, probe in zip(cut, trained, strict=True):
    scores[block.target] = routing.count_votes(network, probe, part, block, routing.Settings()).astype(float)
  return scores


def _batches(x: np.ndarray, y: np.ndarray, mask: np.ndarray) -> Batches:
  """All samples, of which those of `mask` count: one shape for any number of them."""
  return Batches(jnp.asarray(x.reshape(-1, _BATCH, *x.shape[1:])), jnp.asarray(y.reshape(-1, _BATCH), jnp.int32),
                 jnp.asarray(mask.reshape(-1, _BATCH), jnp.float32))


def _flat(scores: Mapping[str, Any]) -> np.ndarray:
  return np.concatenate([np.ravel(np.asarray(scores[path])) for path in scores])
