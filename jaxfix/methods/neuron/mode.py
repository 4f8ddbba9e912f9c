"""MODE: heat maps of hidden features tell which new inputs to retrain with.

S. Ma, Y. Liu, W.-C. Lee, X. Zhang, A. Grama, "MODE: Automated Neural Network Model Debugging via State Differential
Analysis and Input Selection", ESEC/FSE 2018. A class is under-fitting if the model gets it wrong in training and
validation, over-fitting if in validation only. Mean features of samples that the class gets right and wrong differ in
the features that the bug is about; new inputs of the class that have those features, with others against forgetting,
continue the training. All weights change. Validation accuracy never falls; nothing else is promised.

No code of the authors is public; a student replication is, and where neither says enough the specification chose.
Decided here, where it leaves room:
- The pool of new inputs is the problem's repair split, and validation accuracy says what is fixed.
- The batches of a class take at most the pool divided by the number of buggy classes, so that a small pool is not
  spent on the first.
- What a batch lacks (few inputs of other classes left) is made up by training samples: each retraining has one size.
- A layer's features are those after its normalization, shortcut and activation, as other frameworks count layers.
- An empty heat map takes no part in a difference; where none is left the class's inputs are chosen at random.
- Over-fitting walks back from the last hidden layer to the first whose feature model has a smaller gap between
  training and validation accuracy of the class than that after it.
- The original model is a candidate for the snapshot.
- Every retraining starts with a fresh state of Adam and keeps the recipe's batch size and augmentation. A tenth of the
  training rate is meant for models that Adam trained; one that gradient descent trained, whose rates are ten to a
  hundred times Adam's, is retrained at a tenth of Adam's usual 0.001.
"""
import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxfix import predict, train
from jaxfix.classifier import Classifier
from jaxfix.clock import Clock
from jaxfix.errors import Unadaptable, require
from jaxfix.localize import heat_maps as heat
from jaxfix.localize import probes as probing
from jaxfix.localize import sampling
from jaxfix.localize.blocks import data_flow, hidden_layers, settled_output
from jaxfix.methods.method import Method
from jaxfix.problem import Problem, Repair, Split, Trace
from jaxfix.recipe import Recipe

Kind = Literal['under', 'over']

_ADAM_RATE = 1e-3   # of Kingma and Ba, and of most libraries

_FEWEST_CORRECT, _FEWEST_WRONG = 30, 5   # samples behind a heat map, below which it is remarked on
_FEATURE_BYTES = 1 << 30                 # of all layers' features on the training samples


@dataclasses.dataclass(frozen=True)
class Config:
  """Defaults are the replication's where nothing else is said.

  Attributes:
    theta: a class whose accuracy is below it is under-fitting; None for 0.92, or validation accuracy - 0.05 if that is
      lower (ours, for hard data).
    gamma: a class whose training accuracy exceeds its validation accuracy by more is over-fitting; 0.10.
    max_classes: at most so many buggy classes, the worst ones, are treated; 20 (ours).
    share: of a batch, chosen by heat map; 0.25.
    batch: new inputs a retraining; 2000 (the paper also has 4000).
    max_new: new inputs in all; 20000 (paper).
    rounds: retrainings a class; 5.
    epochs: a retraining; 3.
    rate_factor: learning rate against that of the recipe, see the top of this file; 0.1 (ours).
    confused: an under-fitting class is told apart from so many classes that it is most often taken for; 3 (ours); None
      for all others.
    overfit: new inputs for an over-fitting class are 'most_similar' to its differential map (paper), or
      'least_similar' to the map of its correct samples (replication).
    layer: 'last' hidden layer (ours), 'auto' (section 3.2: feature models of all layers), or a path.
    similar: distance of predictions below which two feature models count as equal ('auto'); 0.01.
    reselect: choose layer and heat maps anew in every round (replication); off (ours): once a class.
    weigh: weight features by a feature model's output weights for the class; off (the paper is ambiguous).
    train_samples: training samples that scale features and train feature models; 10000.
    probe_rate, probe_epochs, probe_batch: of feature models: Adam 0.01, 50, 128 (ours).
  """
  theta: float | None = None
  gamma: float = 0.10
  max_classes: int = 20
  share: float = 0.25
  batch: int = 2000
  max_new: int = 20_000
  rounds: int = 5
  epochs: int = 3
  rate_factor: float = 0.1
  confused: int | None = 3
  overfit: Literal['most_similar', 'least_similar'] = 'most_similar'
  layer: str = 'last'
  similar: float = 0.01
  reselect: bool = False
  weigh: bool = False
  train_samples: int = 10_000
  probe_rate: float = 0.01
  probe_epochs: int = 50
  probe_batch: int = 128

  def __post_init__(self):
    for name in ('max_classes', 'batch', 'max_new', 'rounds', 'epochs', 'train_samples'):
      require(getattr(self, name) >= 1, f'{name} must be at least 1, got {getattr(self, name)}.')
    require(self.theta is None or 0 <= self.theta <= 1, f'theta must lie in [0, 1], got {self.theta}.')
    require(0 <= self.share <= 1, f'share must lie in [0, 1], got {self.share}.')
    require(self.rate_factor > 0, f'rate_factor must be positive, got {self.rate_factor}.')
    require(self.confused is None or self.confused >= 1, f'confused must be at least 1, got {self.confused}.')
    require(self.overfit in ('most_similar', 'least_similar'),
            f"overfit must be 'most_similar' or 'least_similar', got {self.overfit!r}.")
    _ = self.probing   # checks its own fields

  @property
  def probing(self) -> probing.Training:
    """How feature models are trained."""
    return probing.Training(self.probe_rate, self.probe_epochs, self.probe_batch)


class Bug(NamedTuple):
  """A class and what is wrong with it."""
  label: int
  kind: Kind


class Analysis(NamedTuple):
  """What selection needs of a class: where to look, how to scale, the differential map, and the features' weights."""
  tap: probing.Tap
  scaling: heat.Scaling
  weights: np.ndarray | float
  template: np.ndarray


def repair(problem: Problem, config: Config, key: jax.Array) -> Repair:
  """The algorithm; see `Config`. `key` is consumed.

  Raises:
    RepairFailure: a retraining diverged.
  """
  k_train, k_select, k_analyze = jax.random.split(key, 3)
  clock, model, best = Clock(), problem.classifier, problem.classifier
  with clock.phase('classes'):
    predicted = predict.labels(model, problem.valid.x)
    before = accuracy = best_accuracy = float((predicted == problem.valid.y).mean())
    theta = min(0.92, before - 0.05) if config.theta is None else config.theta
    on_train = class_accuracies(problem.train.y, predict.labels(model, problem.train.x), model.num_classes)
    on_valid = class_accuracies(problem.valid.y, predicted, model.num_classes)
    bugs = buggy_classes(on_train, on_valid, theta, config.gamma)[:config.max_classes]
  if not bugs:
    return Repair(model, Trace(objective=(before, before), notes=(
      f'Nothing to do: no class has accuracy below {theta:.3f}, or a gap above {config.gamma:g}.',)), clock.seconds)
  left = np.arange(len(problem.repair))   # of the pool
  share = -(-len(left) // len(bugs))   # of the pool, for each class
  size = min(config.batch, share)
  recipe = retraining_recipe(problem.recipe, config)
  accuracies, losses, selected, used, notes = [], [], 0, 0, []
  for bug in bugs:
    k_class = jax.random.fold_in(k_analyze, bug.label)
    analysis, rounds, new = None, 0, 0
    while rounds < config.rounds and not is_fixed(problem, model, bug, theta, config.gamma, predicted):
      wanted = min(size, share - new, config.max_new - used)
      if wanted < 1 or not (problem.repair.y[left] == bug.label).any():
        break
      with clock.phase('analyze'):
        if analysis is None or config.reselect:
          analysis, remarks = analyze(problem, model, bug, predicted, config, key=k_class)
          notes += [remark for remark in remarks if remark not in notes]
      with clock.phase('select'):
        k_round = jax.random.fold_in(k_select, len(accuracies))
        scores = score_inputs(problem, model, bug.label, left, analysis)
        draws = np.asarray(jax.random.uniform(k_round, (len(problem.repair),)))   # one shape, whatever is left
        chosen = choose_inputs(problem.repair.y[left], scores, bug.label, wanted, config.share, draws[left])
        batch = mixture(problem, left[chosen], 2 * size, key=jax.random.fold_in(k_round, 1))
        left = np.delete(left, chosen)
      with clock.phase('retrain'):
        model = train.fit(model, batch, Split(batch.x[:0], batch.y[:0]), recipe, on_epoch=lambda e: losses.append(
          e.loss), key=jax.random.fold_in(k_train, len(accuracies)))
      with clock.phase('validate'):
        predicted = predict.labels(model, problem.valid.x)
        accuracy = float((predicted == problem.valid.y).mean())
      accuracies.append(accuracy)
      used, new, rounds = used + len(chosen), new + len(chosen), rounds + 1
      if accuracy > best_accuracy:
        best, best_accuracy, selected = model, accuracy, len(accuracies)
    notes.append(_summary(problem, bug, analysis, on_valid, predicted, rounds, new))
  if selected == 0:
    notes.append('No retrained weights beat the original on the validation split: the original is returned.')
  curves = {'valid_accuracy': np.array([before, *accuracies]), 'retrain_loss': np.array(losses)}
  solver = {'theta': theta, 'pool': len(problem.repair), 'new_inputs': used,
            'classes': [{'class': bug.label, 'kind': bug.kind} for bug in bugs]}
  trace = Trace({name: values for name, values in curves.items() if len(values)}, {'valid_accuracy': selected},
                solver=solver, notes=tuple(notes), objective=(before, best_accuracy))
  return Repair(best, trace, clock.seconds)


def class_accuracies(y: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
  """Accuracy on each class, `[c]`; NaN for one without samples."""
  counts = np.bincount(y, minlength=num_classes)
  hits = np.bincount(y[y == predicted], minlength=num_classes)
  return np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)


def bug_kind(on_train: float, on_valid: float, theta: float, gamma: float) -> Kind | None:
  """What is wrong with a class of these accuracies (section 3.1); nothing if one of them is NaN."""
  if on_train < theta and on_valid < theta:
    return 'under'
  return 'over' if on_train - on_valid > gamma else None


def buggy_classes(on_train: np.ndarray, on_valid: np.ndarray, theta: float, gamma: float) -> list[Bug]:
  """The buggy classes: under-fitting ones first, of each kind the worst validation accuracy first."""
  kinds = [bug_kind(*accuracies, theta, gamma) for accuracies in zip(on_train, on_valid, strict=True)]
  found = [Bug(t, kind) for t, kind in enumerate(kinds) if kind]
  return sorted(found, key=lambda bug: (bug.kind != 'under', on_valid[bug.label], bug.label))


def is_fixed(problem: Problem, model: Classifier, bug: Bug, theta: float, gamma: float, predicted: np.ndarray) -> bool:
  """Whether the class has validation accuracy theta (under-fitting), or a gap of at most gamma (over-fitting)."""
  own = problem.valid.y == bug.label
  on_valid = float((predicted[own] == bug.label).mean())
  if bug.kind == 'under':
    return on_valid >= theta
  x = _inputs(problem.train, np.flatnonzero(problem.train.y == bug.label))
  return float((predict.labels(model, x) == bug.label).mean()) - on_valid <= gamma


def analyze(problem: Problem, model: Classifier, bug: Bug, predicted: np.ndarray, config: Config, *,
            key: jax.Array) -> tuple[Analysis, list[str]]:
  """Layer, scaling and differential heat map of a class (sections 3.2 to 3.5), and remarks. `key` is consumed."""
  k_rows, k_probes = jax.random.split(key)
  taps = _taps(model, config)
  rows = sampling.plain_sample(np.arange(len(problem.train)), config.train_samples, key=k_rows)
  on_train = probing.pooled_features(model, _inputs(problem.train, rows[:_affordable(model, taps)]), taps)
  on_valid = probing.pooled_features(model, problem.valid.x, taps)
  y = np.asarray(problem.train.y[rows[:len(on_train[0])]], np.int32)
  scalings = [heat.fit_scaling(f) for f in on_train]
  on_train = [scale(f) for scale, f in zip(scalings, on_train, strict=True)]
  on_valid = [scale(f) for scale, f in zip(scalings, on_valid, strict=True)]
  at, weights = len(taps) - 1, 1.
  if len(taps) > 1 or config.weigh:
    models, _ = probing.train_probes(on_train, y, model.num_classes, config.probing, key=k_probes)
    if len(taps) > 1:
      at = choose_layer(models, on_train, y, on_valid, problem.valid.y, bug, config.similar)
    if config.weigh:
      weights = np.asarray(models[at]['kernel'])[:, bug.label]
  maps = heat.heat_maps(on_valid[at] * weights, problem.valid.y, predicted, model.num_classes)
  rivals = heat.most_confused(problem.valid.y, predicted, bug.label, config.confused, model.num_classes)
  return Analysis(taps[at], scalings[at], weights, template(maps, bug, rivals, config.overfit)), _thin(maps, bug)


def choose_layer(models, on_train, y_train: np.ndarray, on_valid, y_valid: np.ndarray, bug: Bug,
                 similar: float) -> int:
  """Index of the layer where the bug shows (section 3.2), the last if none.

  Args:
    models: feature models of the layers in order.
    on_train, on_valid: for each layer `[n, m]` features.
    y_train, y_valid: labels.
    bug: the class.
    similar: largest distance of predictions that counts as none.
  """
  if bug.kind == 'under':
    said = [probing.probabilities(m, f) for m, f in zip(models, on_valid, strict=True)]
    return next((at for at in range(1, len(said)) if heat.distance(said[at], said[at - 1]) <= similar), len(said) - 1)

  def right(model, features, y):
    own = y == bug.label
    return probing.accuracy(model, features[own], y[own]) if own.any() else 0.

  gaps = [right(m, tr, y_train) - right(m, va, y_valid) for m, tr, va in zip(models, on_train, on_valid, strict=True)]
  return next((at for at in range(len(gaps) - 2, -1, -1) if gaps[at] < gaps[at + 1]), len(gaps) - 1)


def template(maps: heat.HeatMaps, bug: Bug, rivals: np.ndarray, overfit: str) -> np.ndarray:
  """D_t, `[m]`: new inputs are wanted whose features point its way (section 3.5); 0 if all maps it needs are empty."""
  t = bug.label
  if bug.kind == 'under':
    defined = [k for k in rivals if maps.num_correct[k] and maps.num_correct[t]]
    none = np.zeros_like(maps.correct[t])
    return np.mean([heat.between_classes(maps, t, k) for k in defined], axis=0) if defined else none
  if overfit == 'least_similar':
    return -maps.correct[t]
  return -heat.confused_against_correct(maps, t) if maps.num_confused[t] else heat.wrong_against_correct(maps, t)


def score_inputs(problem: Problem, model: Classifier, label: int, left: np.ndarray, analysis: Analysis) -> np.ndarray:
  """s(x) = <F(x), D_t> of the pool inputs `left`, `[n]`; only those of the class are computed, others are 0."""
  own = problem.repair.y[left] == label
  features = probing.pooled_features(model, _inputs(problem.repair, left[own]), (analysis.tap,))[0]
  scores = np.zeros(len(left), np.float32)
  scores[own] = (analysis.scaling(features) * analysis.weights) @ analysis.template
  return scores


def choose_inputs(y: np.ndarray, scores: np.ndarray, label: int, size: int, share: float,
                  draws: np.ndarray) -> np.ndarray:
  """Positions of a batch of new inputs: the floor(share size) best of the class, and random ones of other classes.

  Args:
    y: `[n]` labels of what is left of the pool.
    scores: `[n]`.
    label: the class.
    size: of the batch; it is smaller where there are not enough.
    share: of the batch, of the class.
    draws: `[n]` random numbers: they break ties, and choose the others.
  """
  own, others = np.flatnonzero(y == label), np.flatnonzero(y != label)
  best = own[np.lexsort((draws[own], -scores[own]))][:int(share * size + 1e-9)]
  return np.concatenate([best, others[np.argsort(draws[others], kind='stable')][:size - len(best)]])


def mixture(problem: Problem, new: np.ndarray, size: int, *, key: jax.Array) -> Split:
  """`size` samples in memory: the new inputs, and random training samples for the rest. `key` is consumed."""
  wanted = size - len(new)
  old = np.asarray(jax.random.randint(key, (size,), 0, len(problem.train)))[:wanted]
  if wanted <= len(problem.train):
    old = sampling.plain_sample(np.arange(len(problem.train)), wanted, key=key)
  parts = problem.repair.take(new), problem.train.take(old)
  return Split(np.concatenate([np.asarray(part.x) for part in parts]),
               np.concatenate([np.asarray(part.y, np.int32) for part in parts]))


def retraining_recipe(recipe: Recipe, config: Config) -> Recipe:
  """Adam at a fraction of the recipe's rate, or of its usual one, constant, without decay."""
  rate = _ADAM_RATE if recipe.optimizer == 'sgd' else recipe.learning_rate
  return dataclasses.replace(recipe, optimizer='adam', learning_rate=config.rate_factor * rate,
                             schedule='constant', weight_decay=0., epochs=config.epochs)


def _taps(model: Classifier, config: Config) -> tuple[probing.Tap, ...]:
  """The layers that are looked at, channels averaged; the last one is the one to take by default."""
  nodes = data_flow(model)
  hidden = hidden_layers(nodes)
  paths = {'last': hidden[-1:], 'auto': hidden}.get(config.layer, (config.layer,))
  return tuple(dict.fromkeys((settled_output(nodes, path), 1) for path in paths))


def _affordable(model: Classifier, taps: tuple[probing.Tap, ...]) -> int:
  """Samples whose features fit the budget."""
  shapes = {node.path: node.shape for node in data_flow(model)}
  return max(1, _FEATURE_BYTES // (4 * sum(shapes[path][-1] for path, _ in taps)))


def _thin(maps: heat.HeatMaps, bug: Bug) -> list[str]:
  """Remarks about heat maps of few samples."""
  t, remarks = bug.label, []
  if maps.num_correct[t] < _FEWEST_CORRECT:
    remarks.append(f'Class {t}: the heat map of correct samples rests on {maps.num_correct[t]}.')
  fewest = min(maps.num_wrong[t], maps.num_confused[t])
  if bug.kind == 'over' and fewest < _FEWEST_WRONG:
    remarks.append(f'Class {t}: a heat map of failures rests on {fewest} samples.')
  return remarks


def _summary(problem: Problem, bug: Bug, analysis: Analysis | None, before: np.ndarray, predicted: np.ndarray,
             rounds: int, new: int) -> str:
  after = class_accuracies(problem.valid.y, predicted, len(before))[bug.label]
  how = f'layer {analysis.tap[0]}, {new} new inputs in {rounds} rounds' if analysis else 'no new inputs'
  return (f'Class {bug.label}, {bug.kind}-fitting: {how}; validation accuracy {before[bug.label]:.3f}, '
          f'then {after:.3f}.')


def _inputs(split: Split, rows: np.ndarray) -> Any:
  """`x` of those rows, still streamed if it is."""
  return split.view(rows).x if hasattr(split, 'view') else split.x[rows]


def _check(problem: Problem, config: Config) -> None:
  if len(problem.repair) == 0:
    raise Unadaptable('MODE retrains with new inputs from the repair split, which is empty.')
  nodes = data_flow(problem.classifier)
  if not hidden_layers(nodes):
    raise Unadaptable('MODE looks at features of a hidden Dense or Conv layer; this network has none.')
  if config.layer not in ('last', 'auto'):
    settled_output(nodes, config.layer)   # raises for an unknown path


METHOD = Method(
  name='mode', title='MODE', code='', level='neuron', config=Config(), repair=repair,
  changes='all trainable weights and running statistics', guarantee='none; validation accuracy never falls',
  requires='new labeled inputs (the repair split), training data',
  source='Ma et al. MODE: Automated Neural Network Model Debugging via State Differential Analysis and Input '
         'Selection. ESEC/FSE 2018',
  summary='retrains with new inputs that show the features which tell a badly learned class from others',
  check=_check)
