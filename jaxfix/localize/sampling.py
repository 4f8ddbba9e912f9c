"""Which samples a score or a fitness is computed on, where all of them would be too many."""
import math

import jax
import numpy as np

from jaxfix.classifier import Classifier
from jaxfix.models.layers import layer_list


def class_shares(counts: np.ndarray, total: int) -> np.ndarray:
  """k_c = min(m_c, max(1, round(total m_c / sum(m)))) for classes with m_c > 0, as integers (Arachne, section 3.1).

  Args:
    counts: `[c]` samples of each class, m.
    total: how many to draw, about.

  >>> class_shares(np.array([90, 9, 1, 0]), 7).tolist()
  [6, 1, 1, 0]
  """
  share = np.floor(total * counts / max(1, counts.sum()) + 0.5).astype(np.int64)
  return np.where(counts > 0, np.minimum(counts, np.maximum(1, share)), 0)


def balanced(labels: np.ndarray, total: int, *, key: jax.Array) -> np.ndarray:
  """Positions of about `total` samples, drawn without replacement in the proportions of the classes; ascending.

  All of them if there are no more than `total`. `key` is consumed.
  """
  if len(labels) <= total:
    return np.arange(len(labels))
  counts = np.bincount(labels)
  order = np.asarray(jax.random.uniform(key, (len(labels),)))
  chosen = []
  for c, take in enumerate(class_shares(counts, total)):
    members = np.flatnonzero(labels == c)
    chosen.append(members[np.argsort(order[members], kind='stable')[:take]])
  return np.sort(np.concatenate(chosen))


def suffix_cost(classifier: Classifier, first: str) -> int:
  """Multiplications a sample costs from layer `first` on: the Dense and Conv layers called from there."""
  layers = layer_list(classifier)
  start = [layer.path for layer in layers].index(first)
  cost = 0
  for layer in layers[start:]:
    if layer.kind in ('dense', 'conv'):
      node = classifier.params
      for part in layer.path.split('/'):
        node = node[part]
      cost += math.prod(layer.output_shape[:-1]) * node['kernel'].size
  return cost
