"""INNER: kernel entries that carry faulty behavior, found through linear probes, learn to behave like normal samples.

Z. Chen, J. Zhou, Y. Sun, J. Wang, Q. Xuan, X. Yang, "Interpretability Based Neural Network Repair", ISSTA 2024, and its
public code. A linear probe on every block tells what its features express; the blocks where faulty samples say the
most unlike normal ones are repaired. There a sparse mask over the kernel of the last layer ("routing") shows, for each
faulty sample, which entries its decision rests on, and those entries alone are trained, so that the probe gives the
true label and what it gives for normal samples of that class. Nothing is proven.

Decided here, where the specification leaves room:
- Faulty and normal samples come from the problem's failure split; with `failures='train'` and fewer than 50 of them,
  from the repair split if that has more. Clean samples for the probes always come from the training split.
- The validation split is the clean set of the stop rule, and its samples that the original gets wrong are the held-out
  faulty ones; if it has none, the faulty samples themselves are.
- The state before the first epoch is no candidate: the specification chooses among states after it. If every one of
  them loses more than 10 points of accuracy, the most accurate is returned.
- `bn_mode='train'` puts the BatchNorm layers that a pass runs through into training mode: all of them in
  consolidation, those up to the probe in alignment. Dropout stays off.
- Samples are drawn in an order of chance and keep it. The last batch of a pass is filled up with samples of the first,
  at weight 0, as in `train`.
- A faulty sample without a normal one of its class keeps the first term of the loss, alpha times its cross-entropy, and
  stands in for the normal one in the statistics of BatchNorm.
- Consolidation is validated once, after its last pass. Its augmentation is that of the model's own recipe: what the
  data allow is known there.
"""
import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfix import masked_descent, predict
from jaxfix.augment import augment
from jaxfix.classifier import Classifier, flat_weights, with_layer_weights
from jaxfix.clock import Clock
from jaxfix.errors import RepairFailure, Unadaptable, require
from jaxfix.localize import probes as probing
from jaxfix.localize import routing, sampling
from jaxfix.localize.blocks import Block, blocks
from jaxfix.localize.gradient_loss import cross_entropy
from jaxfix.methods.method import Method
from jaxfix.models.structure import layer_list
from jaxfix.problem import Problem, Repair, Split, Trace

_FEWEST_TRAINING_FAILURES = 50

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Batches of one pass, `[s, b]` each: rows of faulty samples, their weight (0 or 1), their partners (-1: none)."""


@dataclasses.dataclass(frozen=True)
class Config:
  """Defaults are the public code's where nothing else is said.

  Attributes:
    probe_rate, probe_epochs, probe_batch, probe_samples: Adam at 0.01, 50 epochs of batches of 128, on 1000 samples.
    num_blocks: how many are repaired; 3.
    score_samples: at most so many faulty and normal samples tell which; 500 (ours; public code 30).
    routing_steps, routing_rate, routing_l1: 40, 0.009, 0.005 (an augmented variant has 35 and 0.008).
    routing_samples: faulty samples that vote on entries; 100.
    route_grad: 'kernel' (public code) or 'mask', see `localize.routing`.
    keep: 'any_vote' (public code), 'top_k' (`top_k` entries a block) or 'majority' (votes of at least half).
    top_k: 100, which is the public interface's value; its code does not apply it.
    rate: of the masked gradient descent, without momentum or decay; 0.0007.
    alpha: weight of the label against the alignment; 0.8.
    temperature: of the alignment; 3.
    epochs: at most; 20. Each is one alignment pass and `consolidations` passes of ordinary training, per block.
    consolidations: 2 (public code: 1 and 4 for two kinds of backdoors).
    batch_size: 64 (8 for ImageNet).
    fault_samples: faulty samples, and as many normal ones; 1000 (100 for ImageNet).
    pairing: 'same_label' (ours) aligns a faulty sample with normal ones of its true class; 'index' (public code) with
      whatever sample comes next.
    bn_mode: 'train' (public code) or 'frozen', BatchNorm in evaluation mode.
    train_bias: whether the biases of repaired layers are trained too, unmasked.
    augment: in consolidation: the model's own 'recipe' (ours), 'none' (public code for wrong predictions), or 'rotate'
      (public code for attacks: rotation by up to 30 degrees, crop, flip; images only).
    max_drop: of clean accuracy, for success; 0.10.
    max_fault_rate: success is below it; 0.15 (0.22 for adversarial inputs).
    select: the state that is returned: by 'validation' (the study), or the 'last' (public code).
  """
  probe_rate: float = 0.01
  probe_epochs: int = 50
  probe_batch: int = 128
  probe_samples: int = 1000
  num_blocks: int = 3
  score_samples: int = 500
  routing_steps: int = 40
  routing_rate: float = 0.009
  routing_l1: float = 0.005
  routing_samples: int = 100
  route_grad: routing.Gradient = 'kernel'
  keep: routing.Keep = 'any_vote'
  top_k: int = 100
  rate: float = 0.0007
  alpha: float = 0.8
  temperature: float = 3.
  epochs: int = 20
  consolidations: int = 2
  batch_size: int = 64
  fault_samples: int = 1000
  pairing: Literal['same_label', 'index'] = 'same_label'
  bn_mode: Literal['train', 'frozen'] = 'train'
  train_bias: bool = True
  augment: Literal['recipe', 'none', 'rotate'] = 'recipe'
  max_drop: float = 0.10
  max_fault_rate: float = 0.15
  select: Literal['validation', 'last'] = 'validation'

  def __post_init__(self):
    for name in ('probe_samples', 'num_blocks', 'score_samples', 'routing_samples', 'top_k', 'epochs', 'batch_size',
                 'fault_samples'):
      require(getattr(self, name) >= 1, f'{name} must be at least 1, got {getattr(self, name)}.')
    require(self.consolidations >= 0, f'consolidations must not be negative, got {self.consolidations}.')
    require(self.rate >= 0, f'rate must not be negative, got {self.rate}.')
    require(0 <= self.alpha <= 1, f'alpha must lie in [0, 1], got {self.alpha}.')
    require(self.temperature > 0, f'temperature must be positive, got {self.temperature}.')
    for name, allowed in (('keep', ('any_vote', 'top_k', 'majority')), ('pairing', ('same_label', 'index')),
                          ('bn_mode', ('train', 'frozen')), ('augment', ('recipe', 'none', 'rotate')),
                          ('select', ('validation', 'last'))):
      require(getattr(self, name) in allowed, f'{name} must be one of {allowed}, got {getattr(self, name)!r}.')
    _ = self.probing, self.routing   # check their own fields

  @property
  def probing(self) -> probing.Training:
    """How probes are trained."""
    return probing.Training(self.probe_rate, self.probe_epochs, self.probe_batch)

  @property
  def routing(self) -> routing.Settings:
    """Constants of routing."""
    return routing.Settings(self.routing_steps, self.routing_rate, self.routing_l1, self.route_grad)


class Samples(NamedTuple):
  """Samples in memory: K of section 2, and the faulty and normal ones (N may be empty)."""
  clean: Split
  fault: Split
  normal: Split


class Part(NamedTuple):
  """A selected block.

  Attributes:
    block, probe: see there.
    mask: bool like the target kernel, Q_b: the entries that are trained.
    moving_in_align, moving_in_consolidate: BatchNorm layers in training mode in the two phases.
  """
  block: Block
  probe: probing.Probe
  mask: np.ndarray
  moving_in_align: tuple[str, ...]
  moving_in_consolidate: tuple[str, ...]


def repair(problem: Problem, config: Config, key: jax.Array) -> Repair:
  """The algorithm; see `Config`. `key` is consumed.

  Raises:
    RepairFailure: no entry of any selected kernel carries the faulty behavior, or the training diverged.
  """
  k_samples, k_probes, k_augment = jax.random.split(key, 3)
  clock, classifier = Clock(), problem.classifier
  with clock.phase('probes'):
    samples, notes = choose_samples(problem, config, key=k_samples)
    cut = blocks(classifier)
    where = probing.taps(cut)
    probes, probe_losses = probing.train_probes(probing.pooled_features(classifier, samples.clean.x, where),
                                                samples.clean.y, classifier.num_classes, config.probing, key=k_probes)
  with clock.phase('localize'):
    scores = score_blocks(classifier, samples, probes, where, config.score_samples)
    chosen = np.argsort(-scores, kind='stable')[:config.num_blocks]
    parts, shares = [], {}
    for b in chosen:
      part, shares[cut[b].target] = _localize(classifier, cut[b], probes[b], samples.fault, config)
      parts.append(part)
    if not any(shares.values()):
      raise RepairFailure('INNER localized nothing: no kernel entry of a selected block stands out in the routing of '
                          f'any faulty sample ({", ".join(shares)}). Choose more blocks, or more routing steps.')
  with clock.phase('validate'):
    original = predict.labels(classifier, problem.valid.x)
    judge = _judge(problem, samples, original)
    start = float((original == problem.valid.y).mean())
    at_probes = probing.pooled_features(classifier, problem.valid.x, where)
  rows = batches(samples, config)
  kind = problem.recipe.augment if config.augment == 'recipe' else config.augment
  states, losses, best, best_rank, selected, succeeded = [], [], classifier, (-1, 0.), 0, False
  current = classifier
  for epoch in range(config.epochs):
    for phase in ('align', 'consolidate'):
      if phase == 'consolidate' and not config.consolidations:
        continue
      with clock.phase(phase):
        if phase == 'align':
          for part in parts:
            current, loss = align(current, part, samples, rows, config)
            losses.append(np.asarray(loss).mean())
        else:
          for i in range(config.consolidations):
            for part in parts:
              current, _ = consolidate(current, part, samples, rows, config, kind, epoch * config.consolidations + i,
                                       key=k_augment)
        require(bool(np.isfinite(losses).all()), f'INNER diverged in epoch {epoch + 1}: the alignment losses of its '
                f'blocks are {[float(loss) for loss in losses[-len(parts):]]}. Lower rate, now {config.rate:g}.',
                RepairFailure)
      with clock.phase('validate'):
        accuracy, fault_rate, fixed = judge(current)
      states.append((accuracy, fault_rate))
      rank = rank_of(accuracy, fixed, start)
      if rank > best_rank or config.select == 'last':
        best, best_rank, selected = current, rank, len(states) - 1
      succeeded = is_success(accuracy, start, fault_rate, config.max_drop, config.max_fault_rate)
      if succeeded:
        break
    if succeeded:
      break
  curves = {'valid_accuracy': [a for a, _ in states], 'fault_rate': [r for _, r in states], 'alignment_loss': losses,
            **{f'probe_loss_{block.target.replace("/", "_")}': probe_losses[:, b] for b, block in enumerate(cut)}}
  solver = {'block_scores': {block.target: float(scores[b]) for b, block in enumerate(cut)},
            'probe_accuracies': {block.target: probing.accuracy(probes[b], at_probes[b], problem.valid.y)
                                 for b, block in enumerate(cut)},
            'kept_shares': shares, 'valid_accuracy_before': start}
  kept = ', '.join(f'{100 * share:.1f}% of the kernel of {path}' for path, share in shares.items())
  notes += (f'Trained {kept}, on {len(samples.fault)} faulty and {len(samples.normal)} normal samples.',
            f'{"Reached" if succeeded else "Did not reach"} a fault rate below {config.max_fault_rate:g} on held-out '
            f'faulty samples in {len(losses) // len(parts)} epochs; that of the returned state is '
            f'{states[selected][1]:.3f}.')
  trace = Trace({name: np.asarray(values, np.float64) for name, values in curves.items() if len(values)},
                dict.fromkeys(('valid_accuracy', 'fault_rate'), selected), solver=solver, notes=notes)
  return Repair(best, trace, clock.seconds)


def choose_samples(problem: Problem, config: Config, *, key: jax.Array) -> tuple[Samples, tuple[str, ...]]:
  """The samples of section 2, in memory, and remarks. `key` is consumed."""
  k_clean, k_fault, k_normal = jax.random.split(key, 3)
  split, notes = problem.failure_split, ()
  failing, passing = problem.failing_and_passing()
  if problem.failures == 'train' and len(failing) < _FEWEST_TRAINING_FAILURES and len(problem.repair):
    other = dataclasses.replace(problem, failures='repair')
    more = other.failing_and_passing()
    if len(more[0]) > len(failing):
      notes = (f'The training split has {len(failing)} failing samples only; the repair split gives '
               f'{len(more[0])}.',)
      split, (failing, passing) = problem.repair, more
  clean = sampling.plain_sample(np.arange(len(problem.train)), config.probe_samples, key=k_clean)
  failing = _drawn(failing, config.fault_samples, key=k_fault)
  passing = _drawn(passing, len(failing), key=k_normal)
  return Samples(*(_in_memory(*pair) for pair in ((problem.train, clean), (split, failing), (split, passing)))), notes


def _drawn(rows: np.ndarray, most: int, *, key: jax.Array) -> np.ndarray:
  """At most so many of the rows in an order of chance: the first ones localize, and data may come sorted by class."""
  k_which, k_order = jax.random.split(key)
  rows = sampling.plain_sample(rows, most, key=k_which)
  return rows[np.argsort(np.asarray(jax.random.uniform(k_order, rows.shape)), kind='stable')]


def _in_memory(split: Split, rows: np.ndarray) -> Split:
  part = split.take(rows)
  return Split(np.asarray(part.x), np.asarray(part.y, np.int32))


def score_blocks(classifier: Classifier, samples: Samples, probes: tuple[probing.Probe, ...],
                 where: tuple[probing.Tap, ...], most: int) -> np.ndarray:
  """A_b of every block, `[blocks]` (section 3.2). Without normal samples the clean ones take their place."""
  normal = samples.normal if len(samples.normal) else samples.clean
  features = [probing.pooled_features(classifier, part.x[:most], where) for part in (normal, samples.fault)]
  return np.array([probing.block_score(*(probing.probabilities(probe, f[b]).mean(axis=0) for f in features))
                   for b, probe in enumerate(probes)])


def _localize(classifier: Classifier, block: Block, probe: probing.Probe, fault: Split,
              config: Config) -> tuple[Part, float]:
  """Q_b (sections 3.3 and 3.4), and the share of entries that it keeps."""
  x = fault.x[:config.routing_samples]
  counts = routing.count_votes(classifier, probe, x, block, config.routing)
  mask = routing.kept_entries(counts, len(x), config.keep, config.top_k)
  return make_part(classifier, block, probe, mask, config), float(mask.mean())


def make_part(classifier: Classifier, block: Block, probe: probing.Probe, mask: np.ndarray, config: Config) -> Part:
  """A selected block with what follows from it; see `Part`."""
  return Part(block, probe, mask, _moving(classifier, config, block.output), _moving(classifier, config, None))


def partners(fault_labels: np.ndarray, normal_labels: np.ndarray, pairing: str) -> np.ndarray:
  """For each faulty sample the normal one that it is aligned with, `[n]`; -1 where there is none.

  The samples of a class take its normal samples in turn ('same_label'), or all take all of them ('index').
  """
  if pairing == 'index':
    return np.resize(np.arange(len(normal_labels)), len(fault_labels)) if len(normal_labels) else np.full(
      len(fault_labels), -1)
  found = np.full(len(fault_labels), -1)
  for label in np.unique(fault_labels):
    own, theirs = np.flatnonzero(fault_labels == label), np.flatnonzero(normal_labels == label)
    if len(theirs):
      found[own] = np.resize(theirs, len(own))
  return found


def batches(samples: Samples, config: Config) -> Rows:
  """The batches of one pass over the faulty samples."""
  n = len(samples.fault)
  size = min(config.batch_size, n)
  steps = -(-n // size)
  pairs = partners(samples.fault.y, samples.normal.y, config.pairing)
  weight = np.arange(steps * size) < n
  rows = np.resize(np.arange(n), steps * size)
  return tuple(a.reshape(steps, size).astype(kind) for a, kind in (
    (rows, np.int32), (weight, np.float32), (pairs[rows], np.int32)))


def alignment_loss(fault: jax.Array, y: jax.Array, weight: jax.Array, normal: jax.Array, paired: jax.Array,
                   alpha: float, temperature: float) -> jax.Array:
  """alpha CE(z_f, y) + (1 - alpha) H_T(z_f, z_n), the mean over samples of weight 1 (section 4, phase A).

  H_T(a, t) = - sum_c softmax(t / T)_c log softmax(a / T)_c. No gradient flows through `normal`.

  Args:
    fault, normal: `[n, c]` logits of the probe, z_f and z_n.
    y: `[n]` true labels of the faulty samples.
    weight: `[n]` 0 or 1.
    paired: `[n]` bool; where not, the second term is missing.
    alpha, temperature: of the loss.
  """
  target = jax.nn.softmax(jax.lax.stop_gradient(normal) / temperature, axis=-1)
  apart = -(target * jax.nn.log_softmax(fault / temperature, axis=-1)).sum(axis=-1)
  each = alpha * cross_entropy(fault, y) + (1 - alpha) * jnp.where(paired, apart, 0.)
  return (weight * each).sum() / weight.sum()


def align(classifier: Classifier, part: Part, samples: Samples, rows: Rows, config: Config) -> tuple[Classifier, Any]:
  """Phase A for one block: the network after one pass, and the loss of every batch."""
  # A network without a normal sample aligns nothing; the first faulty one stands where an array must have a row.
  normal = samples.normal.x if len(samples.normal) else samples.fault.x[:1]
  return _align(classifier, part.probe, part.mask, samples.fault.x, samples.fault.y, normal, rows,
                (config.rate, config.alpha, config.temperature), block=part.block, train_bias=config.train_bias,
                moving=part.moving_in_align)


@functools.partial(jax.jit, static_argnames=('block', 'moving', 'train_bias'))
def _align(classifier: Classifier, probe: probing.Probe, mask: jax.Array, x: jax.Array, y: jax.Array,
           normal_x: jax.Array, rows: Rows, constants: tuple[float, float, float], *, block: Block,
           moving: tuple[str, ...], train_bias: bool):
  rate, alpha, temperature = constants

  def said(classifier, x):
    u, classifier = masked_descent.run(classifier, x, block.output, moving)
    return probing.scores(probe, probing.pool(u, block.grid)), classifier

  def loss_of(weights, classifier, batch):
    index, weight, pair = batch
    fault, classifier = said(with_layer_weights(classifier, {block.target: weights}), x[index])
    paired = (pair >= 0).reshape(-1, *(1,) * (x.ndim - 1))
    normal, classifier = said(classifier, jnp.where(paired, normal_x[jnp.maximum(pair, 0)], x[index]))
    return alignment_loss(fault, y[index], weight, normal, pair >= 0, alpha, temperature), classifier

  return masked_descent.descend(loss_of, classifier, rows, block.target, mask, rate, train_bias)


def consolidate(classifier: Classifier, part: Part, samples: Samples, rows: Rows, config: Config, kind: str,
                number: int, *, key: jax.Array) -> tuple[Classifier, Any]:
  """Phase B for one block: the network after pass `number` of training with true labels, and the loss of every batch.

  All blocks see the same augmented images in a pass, `fold_in(key, number)`.
  """
  return _consolidate(classifier, part.mask, samples.fault.x, samples.fault.y, rows, config.rate, np.int32(number), key,
                      target=part.block.target, moving=part.moving_in_consolidate,
                      train_bias=config.train_bias, kind=kind)


@functools.partial(jax.jit, static_argnames=('target', 'moving', 'train_bias', 'kind'))
def _consolidate(classifier: Classifier, mask: jax.Array, x: jax.Array, y: jax.Array, rows: Rows,
                 rate: jax.Array, number: jax.Array, key: jax.Array, *, target: str, moving: tuple[str, ...],
                 train_bias: bool, kind: str):
  def loss_of(weights, classifier, batch):
    (index, weight, _), key = batch
    classifier = with_layer_weights(classifier, {target: weights})
    logits, classifier = masked_descent.run(classifier, augment(x[index], kind, key=key), None, moving)
    return (weight * cross_entropy(logits, y[index])).sum() / weight.sum(), classifier

  keys = jax.random.split(jax.random.fold_in(key, number), rows[0].shape[0])
  return masked_descent.descend(loss_of, classifier, (rows, keys), target, mask, rate, train_bias)


def _moving(classifier: Classifier, config: Config, output: str | None) -> tuple[str, ...]:
  """Paths of the BatchNorm layers in training mode: those up to the layer `output`, or all."""
  if config.bn_mode == 'frozen':
    return ()
  called = layer_list(classifier)
  paths = [layer.path for layer in called]
  called = called if output is None else called[:paths.index(output) + 1]
  return tuple(dict.fromkeys(layer.path for layer in called if layer.kind == 'bn'))


def _judge(problem: Problem, samples: Samples, original: np.ndarray):
  """`classifier -> (accuracy, fault rate, fixed)` on the validation split and the held-out faulty samples."""
  held_out = np.flatnonzero(original != problem.valid.y)

  def judge(classifier):
    right = predict.labels(classifier, problem.valid.x) == problem.valid.y
    cured = right[held_out] if len(held_out) else predict.labels(classifier, samples.fault.x) == samples.fault.y
    return float(right.mean()), float(1 - cured.mean()), int(cured.sum())

  return judge


def is_success(accuracy: float, before: float, fault_rate: float, max_drop: float, max_fault_rate: float) -> bool:
  """The stop rule: clean accuracy fell by at most `max_drop`, and the fault rate is below `max_fault_rate`."""
  return accuracy >= before - max_drop and fault_rate < max_fault_rate


def rank_of(accuracy: float, fixed: int, before: float) -> tuple[int, float]:
  """States are compared by it, larger is better: accurate ones (at most 1 point lost) by accuracy; else those that
  lost at most 10 points by the held-out faulty samples that they fix; else by accuracy."""
  if accuracy >= before - 0.01:
    return 2, accuracy
  return (1, float(fixed)) if accuracy >= before - 0.10 else (0, accuracy)


def _check(problem: Problem, config: Config) -> None:
  if not blocks(problem.classifier):
    raise Unadaptable('INNER repairs hidden blocks through probes behind them; this network has no hidden Dense or '
                      'convolutional block.')
  require(config.augment != 'rotate' or len(problem.classifier.input_shape) == 3,
          f"augment='rotate' turns images; the inputs of this model have shape {problem.classifier.input_shape}.")


def _may_change(problem: Problem, config: Config):
  kinds = ('kernel', 'bias') if config.train_bias else ('kernel',)
  cut = blocks(problem.classifier)
  names = {f'params/{block.target}/{kind}' for block in cut for kind in kinds}
  moving = _moving(problem.classifier, config, None if config.consolidations else cut[-1].output)
  names |= {name for name in flat_weights(problem.classifier.variables)
            if name.startswith('batch_stats/') and name.split('/', 1)[1].rsplit('/', 1)[0] in moving}
  return lambda name: name in names


METHOD = Method(
  name='inner', title='INNER', code='IN', level='neuron', config=Config(), repair=repair,
  changes='entries of the last kernel of a few blocks, its bias, running statistics of BatchNorm', guarantee='none',
  requires='failing and passing samples; a hidden block',
  source='Chen et al. Interpretability Based Neural Network Repair. ISSTA 2024',
  summary='probes tell which blocks go wrong; the kernel entries that faulty decisions rest on are trained',
  may_change=_may_change, check=_check)
