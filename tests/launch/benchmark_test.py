"""The arithmetic of benchmarks; the figures themselves come only from running them."""
import json
import pathlib

from absl.testing import absltest

from launch.benchmarks import pairs


class PairsTest(absltest.TestCase):

  def test_sides_alternate_and_the_first_pair_is_not_counted(self):
    order, ours, peer = [], iter([9., 1., 2., 4.]), iter([9., 3., 2., 8.])
    result = pairs.compare('case', 'things/s', 8., lambda: (order.append('ours'), next(ours))[1],
                           lambda: (order.append('peer'), next(peer))[1], peer_name='other', repeats=3, extra=1)
    self.assertEqual(order, ['ours', 'peer'] * 4)
    self.assertEqual(result['ours'], {'min': 2., 'median': 4., 'max': 8., 'values': [8., 4., 2.]})
    self.assertEqual(result['ratio'], {'min': 1., 'median': 2., 'max': 3., 'values': [3., 1., 2.]})
    self.assertEqual(result['extra'], 1)
    self.assertIn('ratio 2.00 (1.00 to 3.00)', pairs.line(result))
    json.dumps(result, allow_nan=False)

  def test_a_case_that_cannot_run_says_why(self):
    self.assertEqual(pairs.line(pairs.skipped('pgd', 'no network')), 'pgd: skipped, no network')

  def test_peers_do_not_import_jaxfix(self):
    for path in (pathlib.Path(__file__).resolve().parents[2] / 'third_party/peers').glob('*.py'):
      self.assertNotRegex(path.read_text(), r'(?m)^\s*(import|from) (jaxfix|jax)\b', path.name)


if __name__ == '__main__':
  absltest.main()
