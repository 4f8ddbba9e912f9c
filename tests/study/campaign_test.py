"""A study: every cell once, whatever fails or is killed; the same rows whoever does the work."""
import contextlib
import dataclasses
import importlib
import pathlib
import shutil
import tempfile
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import absltest

from jaxfix import methods
from jaxfix.errors import (
  BadInputError,
  CorruptFileError,
  DataNotFoundError,
  JaxfixError,
  OutputError,
  UnsupportedLayerError,
)
from jaxfix.files import jsonable, sha256_of_bytes
from jaxfix.recipe import Recipe
from jaxfix.study import campaign, cell, job, memory, record, store
from jaxfix.study.executor import Done, LocalExecutor
from jaxfix.study.plan import Plan, SubjectPlan

_PLUGIN = 'tests.study.scale_plugin'
_SUBJECT = SubjectPlan('digits_mlp', recipe=Recipe(epochs=2, learning_rate=3e-3))
_PLAN = Plan('tiny', (_SUBJECT,), ('scale', 'needy', 'remembering'), (0, 1), postprocess=('sv', 'us'),
             attack_radii=(0.5, 1.), train_failures=())


class Here:
  """An executor in this process; `spoil` may replace what came of a task, or raise."""

  def __init__(self, spoil=lambda done: done):
    self.spoil, self.done = spoil, []

  def run(self, tasks, *, on_start):
    for task in tasks:
      on_start(task)
      module, function = task.function.split(':')
      try:
        value = jsonable(getattr(importlib.import_module(module), function)(**jsonable(dict(task.arguments))))
        done = Done(task, value, seconds=1.)
      except JaxfixError as e:
        done = Done(task, error=str(e), kind='user_error')
      done = self.spoil(done)
      self.done.append(task.name)
      yield done


class Lost(Here):
  """One that loses the processes of some cells before they have done anything."""

  def __init__(self, ending=''):
    super().__init__()
    self.ending = ending

  def run(self, tasks, *, on_start):
    for task in tasks:
      if task.function == 'jaxfix.study.cell:run' and task.name.endswith(self.ending):
        yield Done(task, error='time_limit: not finished after 2 s', kind='time_limit', seconds=2.)
      else:
        yield from super().run([task], on_start=on_start)


def _steady(rows):
  """Run id -> what two runs must agree on."""
  return {r['run_id']: {k: v for k, v in r.items() if k not in record.VOLATILE} for r in rows}


class CampaignTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    methods.load_plugin(_PLUGIN)
    folder = tempfile.TemporaryDirectory()
    cls.addClassCleanup(folder.cleanup)
    cls.reference = pathlib.Path(folder.name) / 'reference'
    cls.undisturbed = Here()
    cls.rows = campaign.run(_PLAN, out=cls.reference, executor=cls.undisturbed)

  def setUp(self):
    super().setUp()
    cell._load.cache_clear()
    cell._history.cache_clear()
    self.out = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'study'

  def test_every_cell_has_its_row_and_what_lies_beside_it(self):
    results = store.read(self.reference)
    by_cell = {(r['approach'], r['seed'], r['postprocess']): r for r in results.rows}
    self.assertCountEqual(by_cell, [
      *((a, s, 'none') for a in _PLAN.methods for s in (0, 1)),
      *((a, s, p) for a in ('scale', 'remembering') for s in (0, 1) for p in _PLAN.postprocess)])
    self.assertEqual({r['outcome'] for (a, _, _), r in by_cell.items() if a != 'needy'}, {'OK'})
    self.assertEqual(by_cell['needy', 0, 'none']['outcome'], 'UNADAPTABLE')
    # The history that the third approach needs is that of the training in the study's folder.
    self.assertEqual({r['suite'] for r in results.rows}, {'tiny'})
    row = by_cell['scale', 1, 'none']
    trace, predictions = results.trace(row['run_id']), results.predictions(row['run_id'])
    self.assertEqual(trace['curves'], {'loss': [1., 0.5]})
    right = (predictions['after'] == predictions['labels']).sum()
    self.assertEqual(right, row['counts']['both_right'] + row['counts']['fixed'])
    curve = trace['asr_curve']
    self.assertEqual(curve['n'], row['asr_n'])
    self.assertAlmostEqual(curve['repaired'][1], row['asr'])   # the row's own radius: the same inputs and starts
    self.assertLessEqual(curve['original'][0], curve['original'][1])
    combined = by_cell['scale', 1, 'us']
    if memory.mark().is_host_reset and jax.default_backend() == 'cpu':
      self.assertGreater(min(row['peak_memory_bytes'], combined['peak_memory_bytes']), 2**20)
    self.assertEqual((combined['category'], combined['config']['repair']), ('postprocess', row['run_id']))
    self.assertGreater(combined['config']['fitted']['temperature'], 0)

  def test_again_repeats_nothing(self):
    shutil.copytree(self.reference, self.out)
    with mock.patch.object(cell, 'run', side_effect=AssertionError('a finished cell was run again')):
      rows = campaign.run(_PLAN, out=self.out, executor=Here())
    self.assertEqual(_steady(rows), _steady(self.rows))
    self.assertEqual((self.out / store.FILE).read_bytes(), (self.reference / store.FILE).read_bytes())

  def test_a_row_that_was_lost_is_read_from_its_folder(self):
    """Killed between the cell's own record and the store."""
    shutil.copytree(self.reference, self.out)
    (self.out / store.FILE).unlink()
    with mock.patch.object(methods, 'run', side_effect=AssertionError('repaired again')):
      rows = campaign.run(dataclasses.replace(_PLAN, methods=('scale', 'needy')), out=self.out, executor=Here())
    self.assertEqual(_steady(rows), {k: v for k, v in _steady(self.rows).items() if v['approach'] != 'remembering'})

  def test_more_seeds_and_approaches_are_added(self):
    part = dataclasses.replace(_PLAN, methods=('scale',), seeds=(1,), postprocess=('sv',))
    campaign.run(part, out=self.out, executor=Here())
    executor = Here()
    rows = campaign.run(dataclasses.replace(_PLAN, methods=('scale',)), out=self.out, executor=executor)
    self.assertEqual(_steady(rows), {k: v for k, v in _steady(self.rows).items() if v['approach'] == 'scale'})
    self.assertLen((self.out / store.FILE).read_text().splitlines(), len(rows))

  def test_a_cell_that_is_lost_is_a_failure_and_can_be_tried_again(self):
    plan = dataclasses.replace(_PLAN, methods=('scale', 'needy'))
    rows = campaign.run(plan, out=self.out, executor=Lost('scale/seed0'))
    lost, = (r for r in rows if r['approach'] == 'scale' and r['seed'] == 0)
    self.assertEqual((lost['outcome'], lost['outcome_reason']), ('FAILURE', 'time_limit: not finished after 2 s'))
    self.assertEqual(lost['n_test'], next(r for r in rows if r['seed'] == 1)['n_test'])
    self.assertLess(lost['started_utc'], lost['ended_utc'])
    again = Here()
    self.assertEqual(campaign.run(plan, out=self.out, executor=again), rows)
    self.assertEqual(again.done, ['digits_mlp'])   # only made ready: failures stay, unless they are asked for
    rows = campaign.run(plan, out=self.out, executor=Here(), retry_failures=True)
    self.assertEqual(_steady(rows), {k: v for k, v in _steady(self.rows).items() if v['approach'] != 'remembering'})

  def test_a_subject_without_data_does_not_stop_the_others(self):
    plan = dataclasses.replace(_PLAN, methods=('needy',), subjects=(SubjectPlan('imagenet_densenet121'), _SUBJECT))
    rows = campaign.run(plan, out=self.out, executor=Here(), data_dir=str(self.out))
    outcomes = {(r['subject'], r['outcome']) for r in rows}
    self.assertEqual(outcomes, {('imagenet_densenet121', 'FAILURE'), ('digits_mlp', 'UNADAPTABLE')})
    self.assertRegex(next(r for r in rows if r['outcome'] == 'FAILURE')['outcome_reason'], '^subject: ')
    self.assertEqual(store.read(self.out).rows, tuple(sorted(
      rows, key=lambda r: (r['subject'], r['approach'], r['seed']))))
    with self.assertRaisesRegex(JaxfixError, 'imagenet'):
      campaign.run(dataclasses.replace(plan, subjects=plan.subjects[:1]), out=self.out, executor=Here(),
                   data_dir=str(self.out))

  def test_cut_off_after_every_write(self):
    """Nothing is lost or repeated wherever the work stops; here by an exception at each file that is written."""
    plan = dataclasses.replace(_PLAN, methods=('scale', 'needy'), seeds=(0,), postprocess=('sv',))
    expected = {k: v for k, v in _steady(self.rows).items()
                if v['approach'] != 'remembering' and v['seed'] == 0 and v['postprocess'] != 'us'}
    campaign.run(dataclasses.replace(plan, methods=('needy',)), out=self.out, executor=Here())   # trains the original
    (self.out / store.FILE).unlink()
    writes, cuts = 0, 0

    def stop(*arguments):
      nonlocal writes
      writes -= 1
      if writes < 0:
        raise _Killed

    while True:
      writes = cuts
      with contextlib.suppress(_Killed), mock.patch('os.fsync', stop):
        rows = campaign.run(plan, out=self.out, executor=Here())
        break
      cuts += 1
    self.assertGreater(cuts, 5)
    self.assertEqual(_steady(rows), expected)
    self.assertLen((self.out / store.FILE).read_text().splitlines(), len(rows))

  def test_a_finished_repair_outlives_a_lost_worker(self):
    """Whatever strikes in post-processing, the repair is not a failure, nor done again."""
    plan = dataclasses.replace(_PLAN, methods=('scale',), postprocess=())
    campaign.run(plan, out=self.out, executor=Here())
    more = dataclasses.replace(plan, postprocess=('sv',))
    shutil.rmtree(self.out / 'cells/digits_mlp/scale/seed0')   # only the store remembers that one
    rows = campaign.run(more, out=self.out, executor=Lost())
    self.assertEqual({(r['seed'], r['postprocess'], r['outcome']) for r in rows},
                     {(s, p, o) for s in (0, 1) for p, o in (('none', 'OK'), ('sv', 'FAILURE'))})
    with mock.patch.object(methods, 'run', wraps=methods.run) as repairs:
      rows = campaign.run(more, out=self.out, executor=Here(), retry_failures=True)
    self.assertEqual({r['outcome'] for r in rows}, {'OK'})
    self.assertEqual(repairs.call_count, 1)   # of seed 0, whose folder is gone

  def test_retrying_failures_leaves_finished_repairs_alone(self):
    shutil.copytree(self.reference, self.out)
    (self.out / store.FILE).unlink()
    with mock.patch.object(methods, 'run', side_effect=AssertionError('repaired again')):
      rows = campaign.run(dataclasses.replace(_PLAN, methods=('scale', 'needy')), out=self.out, executor=Here(),
                          retry_failures=True)
    self.assertEqual(_steady(rows), {k: v for k, v in _steady(self.rows).items() if v['approach'] != 'remembering'})

  def test_any_error_of_an_approach_is_a_row(self):
    for error in (UnsupportedLayerError('lay'), CorruptFileError('cut'), MemoryError(), JaxfixError('')):
      with self.subTest(type(error).__name__), tempfile.TemporaryDirectory() as out:
        plan = dataclasses.replace(_PLAN, methods=('scale', 'needy'), seeds=(0,), attack_radii=(), postprocess=())
        with mock.patch.object(methods, 'run', side_effect=error):
          rows = campaign.run(plan, out=out, executor=Here())
        self.assertEqual({r['approach']: r['outcome'] for r in rows}, {'scale': 'FAILURE', 'needy': 'FAILURE'})

  def test_a_full_disk_stops_the_study_in_one_line(self):
    full = mock.patch.object(job, 'repair_and_record', side_effect=OutputError('Cannot write x: No space left.'))
    with full, self.assertRaisesRegex(JaxfixError, 'No space left'):
      campaign.run(_PLAN, out=self.out, executor=Here())
    self.assertEqual(store.read(self.out).rows, ())

  def test_a_subject_that_is_away_for_a_while_spoils_nothing(self):
    other = SubjectPlan('moons_mlp', recipe=_SUBJECT.recipe)
    plan = dataclasses.replace(_PLAN, methods=('needy',), subjects=(_SUBJECT, other))
    before = campaign.run(plan, out=self.out, executor=Here())
    away = lambda done: Done(done.task, error='died', kind='died') if done.task.name == 'digits_mlp' else done
    campaign.run(plan, out=self.out, executor=Here(away))
    after = campaign.run(plan, out=self.out, executor=Here())
    self.assertEqual(after, before)
    self.assertEqual({r['outcome'] for r in store.newest(store.read(self.out).rows)}, {'UNADAPTABLE'})

  def test_trouble_of_one_subject_in_the_middle_stops_no_other(self):
    """Its worker dies and its data is away: the next cells of that subject cannot be tried, those of others run."""
    other = SubjectPlan('moons_mlp', recipe=_SUBJECT.recipe)
    plan = dataclasses.replace(_PLAN, methods=('needy', 'scale'), subjects=(_SUBJECT, other), seeds=(0, 1),
                               postprocess=(), attack_radii=())

    class Dying(Here):
      """Its process dies of the first cell of the first subject, and from then on that subject cannot be loaded."""

      def run(self, tasks, *, on_start):
        for task in tasks:
          if task.name == 'digits_mlp/needy/seed0':
            yield Done(task, error='died: signal 9', kind='died', seconds=1.)
          elif task.group == 'digits_mlp' and task.function.endswith(':run'):
            cell._load.cache_clear()
            with mock.patch.object(job, 'prepare', side_effect=DataNotFoundError('No file digits.')):
              yield from super().run([task], on_start=on_start)
          else:
            yield from super().run([task], on_start=on_start)

    rows = campaign.run(plan, out=self.out, executor=Dying())
    by_cell = {(r['subject'], r['approach'], r['seed']): r for r in rows}
    self.assertLen(by_cell, 8)
    for (subject, approach, seed), row in by_cell.items():
      if subject == 'moons_mlp':
        self.assertEqual(row['outcome'], 'UNADAPTABLE' if approach == 'needy' else 'OK')
      elif (approach, seed) != ('needy', 0):
        self.assertEqual((row['outcome'], row['outcome_reason']), ('FAILURE', 'subject: No file digits.'))
        self.assertIsNone(row['original_sha256'])   # it could not be tried
    again = Here()
    campaign.run(plan, out=self.out, executor=again)
    self.assertEqual(again.done, ['digits_mlp', 'moons_mlp', 'digits_mlp/needy/seed1', 'digits_mlp/scale/seed0',
                                  'digits_mlp/scale/seed1'])
    newest = {(r['subject'], r['approach'], r['seed']): r for r in store.newest(store.read(self.out).rows)}
    self.assertEqual(newest['digits_mlp', 'scale', 1]['outcome'], 'OK')
    self.assertEqual(newest['digits_mlp', 'needy', 0]['outcome'], 'FAILURE')   # it was tried: only when asked for

  def test_a_history_damaged_in_the_middle_stops_only_who_needs_it(self):
    shutil.copytree(self.reference / 'originals', self.out / 'originals')
    plan = dataclasses.replace(_PLAN, methods=('remembering', 'scale'), seeds=(0,), postprocess=(), attack_radii=())

    def damage(done):
      if done.task.name == 'digits_mlp':   # made ready
        for path in (self.out / 'originals/digits_mlp/original/history').glob('epoch_*.safetensors'):
          path.write_bytes(b'cut')
        cell._history.cache_clear()
      return done

    rows = campaign.run(plan, out=self.out, executor=Here(damage))
    outcomes = {r['approach']: r for r in rows}
    self.assertEqual({a: r['outcome'] for a, r in outcomes.items()}, {'remembering': 'FAILURE', 'scale': 'OK'})
    self.assertRegex(outcomes['remembering']['outcome_reason'], 'epoch_')
    self.assertIsNone(outcomes['remembering']['original_sha256'])

  def test_a_history_that_changes_in_the_middle_stops_only_who_needs_it(self):
    shutil.copytree(self.reference / 'originals', self.out / 'originals')
    plan = dataclasses.replace(_PLAN, methods=('remembering', 'scale'), seeds=(0,), postprocess=(), attack_radii=())

    def remove(done):
      if done.task.name == 'digits_mlp':
        shutil.rmtree(self.out / 'originals/digits_mlp/original/history')
        cell._history.cache_clear()
      return done

    rows = campaign.run(plan, out=self.out, executor=Here(remove))
    self.assertEqual({r['approach']: r['outcome'] for r in rows}, {'remembering': 'FAILURE', 'scale': 'OK'})

  def test_attack_curves_are_added_to_finished_repairs(self):
    plan = dataclasses.replace(_PLAN, methods=('scale',), seeds=(0,), postprocess=(), attack_radii=())
    row, = campaign.run(plan, out=self.out, executor=Here())
    self.assertIsNone(store.read(self.out).trace(row['run_id'])['asr_curve'])
    text = (self.out / store.FILE).read_bytes()
    with mock.patch.object(methods, 'run', side_effect=AssertionError('repaired again')):
      for radii in ((1.,), (0.5, 1.)):
        more, executor = dataclasses.replace(plan, attack_radii=radii), Here()
        campaign.run(more, out=self.out, executor=executor)
        self.assertIn('digits_mlp/scale/seed0', executor.done)
        trace = store.read(self.out).trace(row['run_id'])
        self.assertEqual(trace['asr_curve']['radii'], list(radii))
        again = Here()
        campaign.run(more, out=self.out, executor=again)
        self.assertEqual(again.done, ['digits_mlp'])
      campaign.run(plan, out=self.out, executor=Here())   # asks for none: what is there stays
    self.assertEqual(store.read(self.out).trace(row['run_id']), trace)
    self.assertEqual((self.out / store.FILE).read_bytes(), text)
    expected = store.read(self.reference)
    self.assertEqual(trace, expected.trace(row['run_id']))   # as if the plan had had them from the start

  def test_a_limit_during_the_attack_curve_leaves_a_note_and_can_be_tried_again(self):
    plan = dataclasses.replace(_PLAN, methods=('scale',), seeds=(0,), postprocess=(), attack_radii=())
    row, = campaign.run(plan, out=self.out, executor=Here())
    more = dataclasses.replace(plan, attack_radii=(1.,))
    for folder_is_gone in (False, True):
      with self.subTest(folder_is_gone=folder_is_gone), tempfile.TemporaryDirectory() as out:
        out = pathlib.Path(out) / 'study'
        shutil.copytree(self.out, out)
        if folder_is_gone:
          shutil.rmtree(out / 'cells')
        else:
          (out / store.FILE).unlink()   # the limit struck before the row was in the store
        rows = campaign.run(more, out=out, executor=Lost())
        self.assertEqual([r['outcome'] for r in rows], ['OK'])
        trace = store.read(out).trace(row['run_id'])
        self.assertIsNone(trace['asr_curve'])
        self.assertIn('No attack curve: time_limit: not finished after 2 s', trace['notes'])
        again = Here()
        campaign.run(more, out=out, executor=again)
        self.assertEqual(again.done, ['digits_mlp'])   # like a failure: only when it is asked for
        campaign.run(more, out=out, executor=Here(), retry_failures=True)
        trace = store.read(out).trace(row['run_id'])
        self.assertEqual((trace['asr_curve']['radii'], trace['notes']), ([1.], []))

  def test_a_damaged_repaired_model_is_said_and_stops_nothing(self):
    plan = dataclasses.replace(_PLAN, methods=('scale',), seeds=(0,), postprocess=(), attack_radii=())
    row, = campaign.run(plan, out=self.out, executor=Here())
    path, = (self.out / 'cells').rglob('repaired.safetensors')
    path.write_bytes(b'cut')
    ends = []
    watcher = campaign.Watcher(on_end=lambda cell, row, seconds: ends.append(row['outcome_reason']))
    rows = campaign.run(dataclasses.replace(plan, postprocess=('sv',)), out=self.out, executor=Here(), watcher=watcher)
    self.assertEqual([r['run_id'] for r in rows], [row['run_id']])
    self.assertRegex(ends[0], '^repaired model: .*repaired.safetensors')

  def test_what_is_there_is_told_before_the_work(self):
    shutil.copytree(self.reference, self.out)
    told = []
    plan = dataclasses.replace(_PLAN, methods=('scale',), seeds=(0, 1, 2), postprocess=('sv', 'us', 'hv'))
    with contextlib.suppress(_Killed):
      campaign.run(plan, out=self.out, executor=Here(), watcher=campaign.Watcher(
        on_matrix=lambda *matrix: told.append(matrix), on_start=mock.Mock(side_effect=_Killed)))
    (every, finished, failed, repaired), = told
    self.assertEqual((len(every), list(finished), failed), (3, [], 0))
    self.assertEqual([c.seed for c in repaired], [0, 1])

  def test_a_combination_that_failed_is_not_tried_again_for_what_else_is_missing(self):
    plan = dataclasses.replace(_PLAN, methods=('scale',), seeds=(0,), postprocess=('sv', 'us'), attack_radii=())
    combine = cell.postprocess.combine_and_compare
    tried = []

    def fails(name, *args, **kwargs):
      tried.append(name)
      if name == 'us':
        raise MemoryError
      return combine(name, *args, **kwargs)

    with mock.patch.object(cell.postprocess, 'combine_and_compare', fails):
      campaign.run(plan, out=self.out, executor=Here())
      lines = (self.out / store.FILE).read_text().count('\n')
      rows = campaign.run(dataclasses.replace(plan, attack_radii=(1.,)), out=self.out, executor=Here())
    self.assertEqual(tried, ['sv', 'us'])
    self.assertEqual((self.out / store.FILE).read_text().count('\n'), lines)
    self.assertEqual({r['postprocess']: r['outcome'] for r in rows}, {'none': 'OK', 'sv': 'OK', 'us': 'FAILURE'})
    rows = campaign.run(plan, out=self.out, executor=Here(), retry_failures=True)
    self.assertEqual({r['outcome'] for r in rows}, {'OK'})

  def test_a_damaged_trace_is_written_again(self):
    plan = dataclasses.replace(_PLAN, methods=('scale',), seeds=(0,), postprocess=(), attack_radii=(1.,))
    row, = campaign.run(plan, out=self.out, executor=Here())
    path = self.out / 'traces' / f'{row["run_id"]}.json'
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    with mock.patch.object(methods, 'run', side_effect=AssertionError('repaired again')):
      campaign.run(plan, out=self.out, executor=Here())
    self.assertEqual(path.read_bytes(), whole)

  def test_the_last_reason_why_a_subject_is_away_counts(self):
    plan = dataclasses.replace(_PLAN, methods=('needy',), seeds=(0,),
                               subjects=(_SUBJECT, SubjectPlan('moons_mlp', recipe=_SUBJECT.recipe)))
    away = lambda why: lambda done: Done(done.task, error=why, kind='died') if done.task.name == 'digits_mlp' else done
    for why in ('no such file', 'not readable', 'not readable'):
      rows = campaign.run(plan, out=self.out, executor=Here(away(why)))
      reasons = [r['outcome_reason'] for r in rows if r['subject'] == 'digits_mlp']
      self.assertEqual(reasons, [f'subject: {why}'])
    self.assertEqual((self.out / store.FILE).read_text().count('not readable'), 1)

  def test_cells_that_cannot_be_tried_are_told_even_where_the_store_knows_more(self):
    plan = dataclasses.replace(_PLAN, methods=('scale',), seeds=(0,), postprocess=(), attack_radii=())
    campaign.run(plan, out=self.out, executor=Here())
    text = (self.out / store.FILE).read_bytes()
    damaged = lambda done: dataclasses.replace(done, value={**done.value, 'errors': {'digits_mlp/scale/seed0': 'cut'}})
    row, = campaign.run(plan, out=self.out, executor=Here(damaged))
    self.assertEqual((row['outcome'], row['outcome_reason']), ('FAILURE', 'cut'))
    self.assertEqual((self.out / store.FILE).read_bytes(), text)

  def test_seeds_may_be_numpy_integers(self):
    plan = dataclasses.replace(_PLAN, methods=('scale',), seeds=tuple(np.arange(1)), postprocess=(), attack_radii=())
    row, = campaign.run(plan, out=self.out, executor=Lost())
    self.assertEqual((row['seed'], row['outcome']), (0, 'FAILURE'))

  def test_splits_are_kept_once(self):
    path, = (self.reference / 'splits').iterdir()
    with np.load(path, allow_pickle=False) as arrays:
      splits = {name: arrays[name] for name in arrays.files}
    self.assertEqual({a.dtype for a in splits.values()}, {np.dtype(np.int32)})
    row = self.rows[0]
    self.assertEqual({name: sha256_of_bytes(np.ascontiguousarray(a).tobytes()) for name, a in splits.items()},
                     row['split_sha256'])
    before = path.stat().st_mtime_ns
    campaign.run(_PLAN, out=self.reference, executor=Here())
    self.assertEqual(path.stat().st_mtime_ns, before)
    campaign.run(dataclasses.replace(_PLAN, methods=('needy',)), out=self.out, executor=Here())
    self.assertEqual((self.out / 'splits' / path.name).read_bytes(), path.read_bytes())

  def test_another_name_for_the_same_cells_is_refused(self):
    shutil.copytree(self.reference, self.out)
    with self.assertRaisesRegex(BadInputError, 'tiny'):
      campaign.run(dataclasses.replace(_PLAN, name='other'), out=self.out, executor=Here())

  def test_settings_have_folders_of_their_own(self):
    plan = dataclasses.replace(_PLAN, methods=('scale',), seeds=(0,), postprocess=(), attack_radii=())
    campaign.run(plan, out=self.out, executor=Here())
    campaign.run(dataclasses.replace(plan, settings={'scale.scale': '0.1'}), out=self.out, executor=Here())
    with mock.patch.object(methods, 'run', side_effect=AssertionError('repaired again')):
      rows = campaign.run(dataclasses.replace(plan, postprocess=('sv',)), out=self.out, executor=Here())
    self.assertEqual({r['outcome'] for r in rows}, {'OK'})

  def test_what_changes_while_it_runs_stops_it(self):
    class Stale(Here):
      def run(self, tasks, *, on_start):
        old = {'run_id': 'f' * 16, 'code': 'e' * 16}
        tasks = [dataclasses.replace(t, arguments=t.arguments | old) if 'run_id' in t.arguments else t for t in tasks]
        return super().run(tasks, on_start=on_start)

    with self.assertRaisesRegex(JaxfixError, 'changed while the study ran'):
      campaign.run(_PLAN, out=self.out, executor=Stale())
    self.assertEqual(store.read(self.out).rows, ())

  @pytest.mark.slow
  def test_processes_are_told_what_they_need(self):
    """Plugins, plan and places; an approach that stops before work needs no compilation."""
    shutil.copytree(self.reference / 'originals', self.out / 'originals')
    plan = dataclasses.replace(_PLAN, methods=('needy',))
    rows = campaign.run(plan, out=self.out, executor=LocalExecutor(1, plugins=(_PLUGIN,)))
    self.assertEqual(_steady(rows), {k: v for k, v in _steady(self.rows).items() if v['approach'] == 'needy'})

  @pytest.mark.slow
  def test_processes_give_the_same_rows(self):
    """Two workers, which compile and load apart from this process."""
    shutil.copytree(self.reference / 'originals', self.out / 'originals')
    rows = campaign.run(_PLAN, out=self.out, executor=LocalExecutor(2, plugins=(_PLUGIN,)))
    self.assertEqual(_steady(rows), _steady(self.rows))


class _Killed(BaseException):
  """As little caught by the code under test as a signal."""


if __name__ == '__main__':
  absltest.main()
