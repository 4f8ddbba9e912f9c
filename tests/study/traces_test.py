"""Where the returned weights stand in stored curves: named entries, and bare numbers of older traces."""
import json
import pathlib

from absl.testing import absltest, parameterized

from jaxfix.study import figures
from jaxfix.study.traces import selected_entries

_STORE = pathlib.Path(__file__).parents[2] / 'launch/results/mnist_lenet5/traces'


class SelectedTest(parameterized.TestCase):

  @parameterized.parameters(
    ({'loss': 5, 'valid_accuracy': 2}, {'loss': 3, 'valid_accuracy': 1}, {'loss': 3, 'valid_accuracy': 1}),
    ({'loss': 5, 'valid_accuracy': 2}, {'valid_accuracy': 0}, {'valid_accuracy': 0}),
    ({'loss': 5}, {}, {}), ({}, None, {}), ({'loss': 5}, {'loss': 5}, {}), ({'loss': 5}, {'other': 1}, {}),
    # bare numbers: places of a search; of anything else not known, were the lengths ever so equal
    ({'best_fitness': 5, 'mean_fitness': 5}, 4, {'best_fitness': 4, 'mean_fitness': 4}),
    ({'best_fitness': 5}, 5, {}), ({'best_fitness': 5}, None, {}),
    ({'valid_accuracy_adjusted': 5, 'valid_accuracy_retrained': 5, 'retrain_loss': 5}, 3, {}),
    ({'loss': 21, 'remaining': 21, 'valid_accuracy': 3}, 2, {}))
  def test_what_is_marked(self, lengths, selected, expected):
    curves = {name: [0.] * n for name, n in lengths.items()}
    self.assertEqual(selected_entries({'curves': curves, 'selected': selected}), expected)

  def test_the_stored_traces(self):
    marked = set()
    for file in sorted(_STORE.glob('*.json')):
      trace = json.loads(file.read_text())
      for curve, place in selected_entries(trace).items():
        marked.add(curve)
        if curve in ('best_fitness', 'round_fitness'):   # the returned weights are the fittest
          self.assertEqual(trace['curves'][curve][place], max(trace['curves']['best_fitness']), file)
    self.assertEqual(marked, {'best_fitness', 'mean_fitness', 'round_fitness'})

  def test_the_page_of_a_repair_marks_that_entry_alone(self):
    series = {'loss': [3., 2., 1.], 'valid_accuracy': [0.5, 0.7]}
    dotted = figures.curves(series, 'step', 0, {'valid_accuracy': 1}).count('stroke-dasharray')
    self.assertEqual(dotted, 1)
    self.assertEqual(figures.curves(series, 'step', 0, {}).count('stroke-dasharray'), 0)
    self.assertEqual(figures.curves(series, 'epoch', 1).count('stroke-dasharray'), 0)


if __name__ == '__main__':
  absltest.main()
