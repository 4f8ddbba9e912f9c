"""AAOD against scikit-learn's confusion matrices, and for two classes against fairlearn's MetricFrame."""
import numpy as np
from absl.testing import absltest, parameterized
from sklearn import metrics

from jaxfix.evaluate import fairness

try:
  import fairlearn.metrics as fairlearn
except ImportError:
  fairlearn = None


def from_confusion_matrices(y, p, g, num_classes):
  """Mean over classes of |difference| of TPR and of FPR, from the two groups' K x K matrices (rows true)."""
  rates = []
  for group in (0, 1):
    matrix = metrics.confusion_matrix(y[g == group], p[g == group], labels=range(num_classes))
    tp, true, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    fp, tn = predicted - tp, matrix.sum() - true - predicted + tp
    with np.errstate(invalid='ignore'):
      rates.append(np.nan_to_num([tp / true, fp / (fp + tn)]))
  return np.abs(rates[0] - rates[1]).mean()


class ConfusionMatrixTest(parameterized.TestCase):

  @parameterized.product(num_classes=(2, 3, 10), seed=tuple(range(8)))
  def test_random_labels(self, num_classes, seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(4, 80))  # small ones lack classes
    y, p = rng.integers(0, num_classes, (2, n))
    g = rng.permutation(np.arange(n) % 2)
    self.assertAlmostEqual(fairness.odds(y, p, g, num_classes=num_classes).aaod,
                           from_confusion_matrices(y, p, g, num_classes), places=14)


@absltest.skipIf(fairlearn is None, 'fairlearn is not installed (pip install fairlearn)')
class FairlearnTest(parameterized.TestCase):

  @parameterized.parameters(range(10))
  def test_two_classes(self, seed):
    rng = np.random.default_rng(seed)
    y, p, g = rng.integers(0, 2, (3, 60))
    frame = fairlearn.MetricFrame(
      metrics={'tpr': fairlearn.true_positive_rate, 'fpr': fairlearn.false_positive_rate}, y_true=y, y_pred=p,
      sensitive_features=g)
    expected = frame.difference().mean()  # (|TPR_0 - TPR_1| + |FPR_0 - FPR_1|) / 2
    self.assertAlmostEqual(fairness.odds(y, p, g, num_classes=2).aaod, expected, places=14)


if __name__ == '__main__':
  absltest.main()
