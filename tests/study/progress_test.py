"""What a study says: how long the cells that are left will take, not all of them."""
import datetime
import io

from absl.testing import absltest
from rich.console import Console

from jaxfix.study import plan
from jaxfix.study.estimate import Estimate
from jaxfix.study.plan import Plan, SubjectPlan
from jaxfix.study.progress import View
from tests.study.rows import make_row

_PLAN = Plan('p', (SubjectPlan('digits_mlp'),), ('care',), (0, 1, 2), postprocess=('sv',))
_CARE = 'care', 'digits_mlp'


def _row(seconds: int, **fields):
  """A row whose work began so many seconds ago."""
  now = datetime.datetime.now(datetime.UTC)
  began = now - datetime.timedelta(seconds=seconds)
  return make_row(*_CARE, started_utc=began.isoformat(), ended_utc=now.isoformat(), **fields)


class ViewTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.text, self.estimate = io.StringIO(), Estimate({_CARE: 600.}, {_CARE: 60.})
    self.cells = plan.cells(_PLAN)
    self.view = View(Console(file=self.text, width=200), _PLAN, self.cells, 1, self.estimate)

  def test_time_of_what_is_left(self):
    self.view.show_plan()
    self.assertIn('About 33 min for all cells', self.text.getvalue())
    self.view.watcher().on_matrix(self.cells, self.cells[:1], 0, self.cells[1:2])
    self.assertIn('1 of 3 cells are finished already', self.text.getvalue())
    self.assertIn('1 more are repaired', self.text.getvalue())
    self.assertIn('For the 2 that are left: about 12 min', self.text.getvalue())   # one of them without its repair

  def test_nothing_is_said_of_a_fresh_study(self):
    self.view.watcher().on_matrix(self.cells, [], 0, [])
    self.assertNotIn('that are left', self.text.getvalue())

  def test_only_whole_cells_teach(self):
    watcher = self.view.watcher()
    watcher.on_matrix(self.cells, [], 0, [])
    for row, seconds in ((_row(500), 5.), (_row(5, outcome='FAILURE'), 5.), (_row(0), 0.)):
      watcher.on_end(self.cells[0], row, seconds)   # its repair is older; it failed; it was not carried out
      self.assertEqual(self.estimate.seconds, {})
    watcher.on_end(self.cells[0], _row(300), 300.)
    self.assertEqual(self.estimate.seconds, {_CARE: [300.]})


if __name__ == '__main__':
  absltest.main()
