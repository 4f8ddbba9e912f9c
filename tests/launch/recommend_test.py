"""`launch.recommend` on a store: the table that it prints, the advice that it writes, a name that is none."""
import json
import pathlib
import tempfile

from absl.testing import absltest

from tests.launch import driver
from tests.study import rows as sample

_MARKUP = {'outcome': 'FAILURE', 'outcome_reason': '[/tmp/x] [b]:x:'}
_STORES = {
  'times': [sample.make_row('care'), sample.make_row('arachne', seconds=500.)],
  'markup': [sample.make_row('care'), sample.make_row('care', 'digits_mlp', **_MARKUP),
             sample.make_row('arachne', **_MARKUP)],
}


class RecommendTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    for name, rows in _STORES.items():
      sample.write_store(folder / name, rows)
    commands = {'table': [f'--results={folder}/times', '--time=60', '--nopublished', f'--json={folder}/a.json'],
                'markup': [f'--results={folder}/markup', '--nopublished'], 'unknown': ['--keep=fairnes'],
                'out_of_the_box': ['--subject=mnist_lenet5', '--keep=accuracy']}
    cls.done = dict(zip(commands, driver.launch('recommend', list(commands.values())), strict=True))
    cls.advice = json.loads((folder / 'a.json').read_text())

  def test_table_and_json(self):
    code, out, err = self.done['table']
    self.assertEqual((code, err), (0, ''))
    self.assertEqual([c['approach'] for c in self.advice['choices']], ['care'])
    run = self.advice['choices'][0]['citations'][0][:20]
    for words in ('Recommended by measured figures', 'CARE', 'too slow: 500 s', run):
      self.assertIn(words, out)

  def test_reasons_are_shown_as_they_are_even_where_they_look_like_markup(self):
    code, out, err = self.done['markup']
    self.assertEqual((code, err), (0, ''))
    recommended, excluded = out.split('Excluded')
    for table in (recommended, excluded):
      for word in ('[/tmp/x]', '[b]:x:'):
        self.assertIn(word, table)

  def test_without_a_store_the_one_that_comes_with_jaxfix_counts(self):
    code, out, err = self.done['out_of_the_box']
    self.assertEqual((code, err), (0, ''))
    measured, rest = out.split('Recommended by published figures')
    self.assertIn('Recommended by measured figures', measured)
    for word in ('Apricot (apricot)', 'run '):
      self.assertIn(word, measured)
    self.assertIn('Fixing Study, Table 3', rest)

  def test_unknown_name(self):
    code, out, err = self.done['unknown']
    self.assertEqual((code, out), (2, ''))
    self.assertLen(err.splitlines(), 1)
    self.assertIn("Did you mean 'fairness'", err)


if __name__ == '__main__':
  absltest.main()
