"""Console tables: what a reason says is printed as it is."""
import dataclasses
import io
import types

from absl.testing import absltest
from rich.console import Console

from jaxfix import methods
from jaxfix.study import summary
from tests.study.rows import make_row

_MARKUP = '[/tmp/x] [b]:x:'


def _printed(table):
  console = Console(file=io.StringIO(), width=200)
  console.print(table)
  return console.file.getvalue()


class SummaryTest(absltest.TestCase):

  def test_reasons_that_look_like_markup(self):
    rows = [make_row(), make_row('arachne', outcome='FAILURE', outcome_reason=_MARKUP)]
    text = _printed(summary.result_table(types.SimpleNamespace(name='digits_mlp', test=range(1000)), rows))
    self.assertIn(f'arachne: {_MARKUP}', text)

  def test_what_an_approach_says_of_itself(self):
    method = dataclasses.replace(methods.get('care'), summary=_MARKUP)
    self.assertIn(_MARKUP, _printed(summary.method_table([method])))


if __name__ == '__main__':
  absltest.main()
