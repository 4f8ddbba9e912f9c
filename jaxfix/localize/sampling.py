"""Which failing and passing samples a localization or a fitness looks at."""
import jax
import numpy as np

from jaxfix.errors import require


def choose_failures(failing: np.ndarray, share: float, *, key: jax.Array) -> np.ndarray:
  """A random share of the failing samples, of all kinds, at least one; ascending. `key` is consumed.

  Args:
    failing: `[n]` integers, their indices; n >= 1.
    share: in (0, 1].
  """
  require(0 < share <= 1, f'failure_share must lie in (0, 1], got {share}.')
  return _smallest(failing, max(1, int(share * len(failing) + 1e-9)), key=key)


def failures_of_type(failing: np.ndarray, y: np.ndarray, predicted: np.ndarray, rank: int) -> np.ndarray:
  """The failing samples of one type (true label, predicted label): the `rank`-th most frequent, 0 the most.

  Ties go to the smaller pair of labels.

  Args:
    failing: `[n]` integers, their indices.
    y, predicted: `[n]` labels of those samples.
  Raises:
    BadInputError: there are not that many types.
  """
  pairs, member, counts = np.unique(np.stack([y, predicted], axis=1), axis=0, return_inverse=True, return_counts=True)
  require(0 <= rank < len(pairs), f'failure_type {rank} is not there: the {len(failing)} failing samples are of '
          f'{len(pairs)} types, 0 to {len(pairs) - 1}.')
  return failing[member.ravel() == np.argsort(-counts, kind='stable')[rank]]


def balanced_counts(wanted: int, class_counts: np.ndarray) -> np.ndarray:
  """How many samples of each class to draw: k_c = min(m_c, max(1, round(wanted m_c / sum m))), 0 of an empty class.

  Source: Arachne's public code. Classes keep their shares, and none is lost.

  >>> balanced_counts(7, np.array([90, 9, 1])).tolist()
  [6, 1, 1]
  """
  class_counts = np.asarray(class_counts)
  shares = np.round(wanted * class_counts / max(1, class_counts.sum())).astype(int)
  return np.minimum(class_counts, np.maximum(1, shares))


def balanced_sample(passing: np.ndarray, y: np.ndarray, wanted: int, *, key: jax.Array) -> np.ndarray:
  """About `wanted` of the passing samples, in the classes' proportions, or all if there are no more; ascending.

  Args:
    passing: `[n]` integers, their indices.
    y: `[n]` their labels.
    wanted: number of samples.
    key: consumed.
  """
  if len(passing) <= wanted:
    return passing
  classes, member, counts = np.unique(y, return_inverse=True, return_counts=True)
  draws = np.asarray(jax.random.uniform(key, (len(passing),)))
  return passing[_rank_in_class(draws, member, counts) < balanced_counts(wanted, counts)[member]]


def _rank_in_class(draws: np.ndarray, member: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Place of each sample `[n]` in the ascending order of the draws of its class, which is class number `member`."""
  rank = np.empty(len(draws), int)
  rank[np.lexsort((draws, member))] = np.arange(len(draws)) - np.repeat(np.cumsum(counts) - counts, counts)
  return rank


def part_even_counts(wanted: int, class_counts: np.ndarray) -> np.ndarray:
  """A third of `wanted` in equal parts, two thirds by the shares of the classes, each rounded down (AdRep).

  >>> part_even_counts(200, np.array([50, 30, 20])).tolist()
  [88, 61, 48]
  """
  shares = np.asarray(class_counts) / max(1, np.sum(class_counts))
  return np.floor(wanted / max(1, len(shares)) / 3).astype(int) + np.floor(2 / 3 * wanted * shares).astype(int)


def part_even_sample(passing: np.ndarray, y: np.ndarray, wanted: int, *, key: jax.Array) -> np.ndarray:
  """`wanted` of the passing samples by `part_even_counts`, or all if there are no more; ascending.

  What rounding leaves over is drawn from one random class, and what a class lacks from all that is left.

  Args:
    passing: `[n]` integers, their indices.
    y: `[n]` their labels.
    wanted: number of samples.
    key: consumed.
  """
  if len(passing) <= wanted:
    return passing
  key_class, key_rows = jax.random.split(key)
  classes, member, counts = np.unique(y, return_inverse=True, return_counts=True)
  take = part_even_counts(wanted, counts)
  take[int(jax.random.randint(key_class, (), 0, len(classes)))] += wanted - take.sum()
  draws = np.asarray(jax.random.uniform(key_rows, (len(passing),)))
  chosen = _rank_in_class(draws, member, counts) < take[member]
  left = np.flatnonzero(~chosen)
  chosen[left[np.argsort(draws[left], kind='stable')[:wanted - chosen.sum()]]] = True
  return passing[chosen]


def plain_sample(indices: np.ndarray, wanted: int, *, key: jax.Array) -> np.ndarray:
  """`wanted` of the indices, uniformly without replacement, or all if there are no more; ascending."""
  return indices if len(indices) <= wanted else _smallest(indices, wanted, key=key)


def _smallest(indices: np.ndarray, count: int, *, key: jax.Array) -> np.ndarray:
  draws = np.asarray(jax.random.uniform(key, (len(indices),)))
  return np.sort(indices[np.argsort(draws, kind='stable')[:count]])
