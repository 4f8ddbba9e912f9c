"""Worker processes: answers, groups, limits, deaths, and that nothing is left running."""
import math
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl.testing import absltest

from jaxfix.errors import BadInputError
from jaxfix.study.executor import LocalExecutor, Task, resident_bytes


def _task(name, function, group='a', **fields):
  limits = {k: fields.pop(k) for k in ('time_limit_s', 'memory_limit_bytes') if k in fields}
  return Task(name, group, f'tests.study.chores:{function}', fields, **limits)


class LocalExecutorTest(absltest.TestCase):

  def test_every_task_gets_an_answer_whatever_happens_to_others(self):
    log = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'log'
    tasks = [
      _task('two', 'square', x=2), _task('fails', 'fail'), _task('refuses', 'refuse'), _task('nan', 'nan'),
      _task('slow', 'sleep', seconds=60, time_limit_s=0.5), _task('after slow', 'square', x=3),
      _task('dies', 'die', group='b'), _task('large', 'allocate', group='b', mebibytes=600, memory_limit_bytes=2**29),
      _task('after death', 'square', group='b', x=4, memory_limit_bytes=2**29)]
    started = []
    answers = {d.task.name: d for d in LocalExecutor(2, log).run(tasks, on_start=lambda t: started.append(t.name))}
    self.assertCountEqual(answers, [t.name for t in tasks])
    self.assertCountEqual(started, answers)
    self.assertEqual([answers[n].value['square'] for n in ('two', 'after slow', 'after death')], [4, 9, 16])
    self.assertEqual(answers['nan'].value, {'value': None, 'array': [0, 1]})
    self.assertEqual((answers['fails'].kind, answers['fails'].error), ('error', 'ZeroDivisionError: by nothing'))
    self.assertEqual((answers['refuses'].kind, answers['refuses'].error), ('user_error', 'no such thing'))
    self.assertEqual(answers['slow'].kind, 'time_limit')
    self.assertBetween(answers['slow'].seconds, 0.5, 20)
    self.assertEqual(answers['large'].kind, 'memory_limit')
    self.assertEqual(answers['dies'].kind, 'died')
    self.assertIn(f'signal {int(signal.SIGSEGV)}', answers['dies'].error)
    text = log.read_text()
    self.assertIn('this must not get between the answers', text)
    self.assertIn('ZeroDivisionError', text)

  def test_a_group_shares_a_process_and_closing_kills_it(self):
    tasks = [_task(f'{g}{i}', 'square', group=g, x=i) for i in range(2) for g in 'ab']
    tasks.append(_task('last', 'sleep', group='b', seconds=60))
    running = LocalExecutor().run(tasks)
    first = [next(running) for _ in range(4)]
    pids = {g: {d.value['pid'] for d in first if d.task.group == g} for g in 'ab'}
    self.assertEqual([len(p) for p in pids.values()], [1, 1])
    self.assertNotEqual(pids['a'], pids['b'])
    running.close()
    for group in pids.values():
      self.assertEqual(resident_bytes(group.pop()), 0)

  def test_a_worker_ends_with_its_parent(self):
    """As when a study gets SIGKILL: its workers' input ends, in the middle of their work."""
    parent = subprocess.Popen([sys.executable, '-c', (
      'from jaxfix.study.executor import *\n'
      'tasks = [Task(n, "a", "tests.study.chores:" + f, a) for n, f, a in (("p", "square", {"x": 1}), '
      '("s", "sleep", {"seconds": 60}))]\n'
      'for done in LocalExecutor().run(tasks, on_start=lambda t: None):\n'
      '  print(done.value["pid"], flush=True)\n')], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    self.assertGreater(resident_bytes(pid), 0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < deadline:
      time.sleep(0.05)
    self.assertFalse(_alive(pid))

  def test_a_process_that_earlier_tasks_have_filled_is_replaced(self):
    tasks = [_task(f'keeps{i}', 'keep', mebibytes=200, memory_limit_bytes=450 * 2**20) for i in range(2)]
    answers = list(LocalExecutor().run(tasks))
    self.assertEqual([d.kind for d in answers], ['', ''])
    self.assertNotEqual(*(d.value for d in answers))

  def test_arguments_may_be_arrays_or_infinite(self):
    """Seeds of a plan may come from NumPy; a setting may be infinity."""
    tasks = [_task('array', 'square', x=np.float32(2)), _task('infinite', 'square', x=math.inf)]
    self.assertEqual([d.value and d.value['square'] for d in LocalExecutor().run(tasks)], [4., None])

  def test_no_workers(self):
    with self.assertRaisesRegex(BadInputError, 'workers'):
      LocalExecutor(0)

  def test_no_tasks(self):
    self.assertEqual(list(LocalExecutor(2).run([])), [])


def _alive(pid: int) -> bool:
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
  except OSError:
    return False


if __name__ == '__main__':
  absltest.main()
