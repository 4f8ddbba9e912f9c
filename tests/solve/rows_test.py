"""Row operators: each agrees with the matrix that it stands for."""
import numpy as np
import scipy.sparse
from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError
from jaxfix.solve.rows import RankOneRows, as_rows
from tests.solve.programs import rank_one_problem


def _matrix(rows: RankOneRows) -> np.ndarray:
  pairs = zip(rows.u, rows.h[rows.point], strict=True)
  return np.array([np.concatenate([np.outer(u, h).ravel(), u]) for u, h in pairs])


class RowsTest(parameterized.TestCase):

  def _operators(self, sparse_inputs: bool = False):
    rows, _ = rank_one_problem(0, points=7)
    if sparse_inputs:
      rows = RankOneRows(rows.u * (np.arange(5) == 1), rows.h * (np.arange(6) == 2), rows.point)
    dense = _matrix(rows)
    return dense, {'rank one': rows, 'dense': as_rows(dense), 'sparse': as_rows(scipy.sparse.coo_array(dense))}

  @parameterized.parameters(False, True)
  def test_every_operation_is_that_of_the_matrix(self, sparse_inputs):
    dense, operators = self._operators(sparse_inputs)
    rng = np.random.default_rng(1)
    x, y, weight = rng.normal(size=dense.shape[1]), rng.normal(size=len(dense)), rng.random(dense.shape[1])
    chosen, factor = np.array([0, 3, 4, 11, 20]), rng.uniform(1, 2, 5)
    index, scale = np.array([0, 2, 7, 30, 34]), rng.uniform(1, 2, 5)
    as_dense = lambda m: m.toarray() if scipy.sparse.issparse(m) else m
    for name, rows in operators.items():
      with self.subTest(name):
        self.assertEqual(rows.shape, dense.shape)
        np.testing.assert_allclose(rows.matvec(x), dense @ x, atol=1e-12)
        np.testing.assert_allclose(rows.rmatvec(y), dense.T @ y, atol=1e-12)
        np.testing.assert_allclose(rows.gram(weight), dense * weight @ dense.T, atol=1e-12)
        np.testing.assert_allclose(as_dense(rows.rows(chosen)), dense[chosen], atol=1e-15)
        np.testing.assert_allclose(rows.column_norm(), np.linalg.norm(dense, axis=0), atol=1e-12)
        part, expected = rows.select(chosen, factor), dense[chosen] / factor[:, None]
        np.testing.assert_allclose(part.matvec(x), expected @ x, atol=1e-12)
        np.testing.assert_allclose(part.gram(weight), expected * weight @ expected.T, atol=1e-12)
        few, expected = part.restrict(index, scale), expected[:, index] * scale
        np.testing.assert_allclose(few.matvec(x[:5]), expected @ x[:5], atol=1e-12)
        np.testing.assert_allclose(few.rmatvec(y[:5]), expected.T @ y[:5], atol=1e-12)
        np.testing.assert_allclose(few.gram(weight[:5]), expected * weight[:5] @ expected.T, atol=1e-12)
        np.testing.assert_allclose(as_dense(few.rows(np.arange(5))), expected, atol=1e-12)

  def test_row_scale_is_the_largest_entry(self):
    dense, operators = self._operators()
    largest = np.abs(dense).max(1)
    np.testing.assert_allclose(operators['dense'].row_scale(), largest)
    np.testing.assert_allclose(operators['sparse'].row_scale(), largest)
    np.testing.assert_allclose(operators['rank one'].row_scale(), largest)  # the bias entry: 1 * |u|

  def test_sparse_factors_give_a_sparse_matrix(self):
    _, operators = self._operators(sparse_inputs=True)
    self.assertTrue(scipy.sparse.issparse(operators['rank one'].rows(np.arange(21))))

  @parameterized.named_parameters(
    ('unsorted', np.ones((2, 3)), np.ones((2, 4)), [1, 0], 'sort the rows'),
    ('out_of_range', np.ones((2, 3)), np.ones((2, 4)), [0, 2], 'within 0..1'),
    ('count', np.ones((2, 3)), np.ones((2, 4)), [0], 'one entry for each'),
    ('nan', np.full((1, 3), np.nan), np.ones((1, 4)), [0], 'finite'),
    ('vector', np.ones(3), np.ones((1, 4)), [0], 'must be matrices'))
  def test_rank_one_refuses(self, u, h, point, message):
    with self.assertRaisesRegex(BadInputError, message):
      RankOneRows(u, h, np.array(point))

  @parameterized.parameters((np.ones(3),), (np.full((2, 2), np.nan),), (scipy.sparse.csr_array([[np.inf]]),), (None,))
  def test_as_rows_refuses(self, rows):
    with self.assertRaises((BadInputError, TypeError)):
      as_rows(rows)


if __name__ == '__main__':
  absltest.main()
