"""The main job: outcomes, resuming after an interruption at any write, the record and the report."""
import contextlib
import dataclasses
import html.parser
import json
import pathlib
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix import classifier as classifiers
from jaxfix import files, methods, predict
from jaxfix.errors import (
  BadInputError,
  CorruptFileError,
  DataNotFoundError,
  InfeasibleError,
  NoFailingSamplesError,
  OutputError,
  Unadaptable,
  UnknownNameError,
)
from jaxfix.interchange import checkpoint
from jaxfix.methods.method import Method
from jaxfix.problem import Edit, Repair, Trace
from jaxfix.recipe import Recipe
from jaxfix.study import job, record, repair_report


@dataclasses.dataclass(frozen=True)
class _Config:
  scale: float = 1.05


def _scale(problem, config, key):
  """A stand-in for an approach that takes no time: scales the last layer's bias."""
  params = problem.classifier.params
  last = sorted(params)[-1]
  bias = params[last]['bias'] * config.scale + 0.05 * jax.random.normal(key, params[last]['bias'].shape)
  scaled = problem.classifier.with_params({**params, last: {**params[last], 'bias': bias}})
  trace = Trace({'objective': np.array([1., .5])}, selected={'objective': 1},
                edits=(Edit(f'{last}/bias', (0,), 0., 1.),), notes=('a note with <angle> & ampersand',))
  return Repair(scaled, trace, {'search': 0.})


def _raise(error):
  def repair(problem, config, key):
    raise error
  return repair


def _zero(problem, config, key):
  return Repair(jax.tree.map(lambda w: w * 0, problem.classifier))


_BASE = Method(name='scale', title='Scale', code='', level='neuron', config=_Config(), repair=_scale,
               changes='last bias', guarantee='none', source='none', summary='scales')
_STANDINS = {m.name: m for m in (
  _BASE, dataclasses.replace(_BASE, name='other'),
  dataclasses.replace(_BASE, name='corrupts', repair=_zero),
  dataclasses.replace(_BASE, name='fails', repair=_raise(ZeroDivisionError('by nothing'))),
  dataclasses.replace(_BASE, name='infeasible', repair=_raise(InfeasibleError('no weights'))),
  dataclasses.replace(_BASE, name='unadaptable', repair=_raise(AssertionError), needs=('class_importance',)))}


@contextlib.contextmanager
def _standins():
  with mock.patch.object(methods, 'get', _STANDINS.__getitem__):
    yield


_RECIPE = Recipe(epochs=2, learning_rate=3e-3)


def _job(out, names=('scale', 'other'), **changes):
  return job.Job(subject='digits_mlp', methods=names, out=str(out), recipe=_RECIPE, **changes)


class JobTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.out = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.enterContext(_standins())

  def _files(self):
    return {str(p.relative_to(self.out)): p.read_bytes() for p in sorted(self.out.rglob('*')) if p.is_file()}

  def test_everything_is_on_disk_and_a_second_run_repeats_nothing(self):
    subject, results = job.run(_job(self.out))
    repair_report.write(self.out / 'report.html', subject, results, self.out / 'original')
    first = self._files()
    for name in ('original/model.safetensors', 'original/history/epoch_0002.safetensors', 'splits.npz',
                 'scale/result.json', 'scale/repaired.safetensors', 'scale/repaired.json', 'scale/predictions.npz',
                 'scale/trace.json', 'scale/log.txt', 'other/result.json', 'report.html'):
      self.assertIn(name, first)
    with mock.patch.dict(_STANDINS, scale=dataclasses.replace(_BASE, repair=_raise(AssertionError))):
      subject, again = job.run(_job(self.out))
    repair_report.write(self.out / 'report.html', subject, again, self.out / 'original')
    self.assertEqual(self._files(), first)
    for name, rows in subject.split_indices.items():
      with np.load(self.out / 'splits.npz', allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored[name], rows)

  def test_the_record_is_true(self):
    subject, (result,) = job.run(_job(self.out, ('scale',)))
    row, test = result.row, subject.test
    record.check_row(row)
    self.assertEqual(row, json.loads((self.out / 'scale/result.json').read_text()))
    repaired = checkpoint.load(self.out / 'scale/repaired.safetensors')
    original = checkpoint.load(self.out / 'original/model.safetensors')
    p0, p1 = predict.labels(original, test.x), predict.labels(repaired, test.x)
    count = lambda right0, right1: int((((p0 == test.y) == right0) & ((p1 == test.y) == right1)).sum())
    self.assertEqual(row['counts'], {'both_right': count(True, True), 'fixed': count(False, True),
                                     'broken': count(True, False), 'both_wrong': count(False, False)})
    self.assertGreater(row['counts']['both_wrong'], 0)
    self.assertEqual(row['original_sha256'], classifiers.fingerprint(original))
    self.assertEqual(row['repaired_sha256'], classifiers.fingerprint(repaired))
    self.assertEqual(row['n_params_changed'], 10)
    self.assertEqual(row['outcome'], 'OK')
    with np.load(self.out / 'scale/predictions.npz', allow_pickle=False) as stored:
      np.testing.assert_array_equal(stored['before'], p0)
      np.testing.assert_array_equal(stored['after'], p1)

  def test_no_outcome_stops_the_job(self):
    _, results = job.run(_job(self.out, ('corrupts', 'fails', 'infeasible', 'unadaptable', 'scale')))
    self.assertEqual([r.row['outcome'] for r in results], ['CORRUPTED', 'FAILURE', 'FAILURE', 'UNADAPTABLE', 'OK'])
    self.assertIsNotNone(results[0].row['acc'])
    self.assertIn('ZeroDivisionError: by nothing', results[1].row['outcome_reason'])
    self.assertIn('Traceback', (self.out / 'fails/log.txt').read_text())
    self.assertIn('class_importance', results[3].row['outcome_reason'])
    self.assertIsNone(results[3].row['counts'])

  def test_a_failure_leaves_no_repaired_model_of_an_earlier_run_beside_it(self):
    job.run(_job(self.out, ('scale',)))
    self.assertTrue((self.out / 'scale/repaired.safetensors').exists())
    fails = dataclasses.replace(_STANDINS['fails'], name='scale')
    with mock.patch.dict(_STANDINS, scale=fails):
      _, (result,) = job.run(_job(self.out, ('scale',), seed=1))
    self.assertEqual(result.row['outcome'], 'FAILURE')
    self.assertStartsWith(result.row['outcome_reason'], 'repair: ')
    self.assertEqual({p.name for p in (self.out / 'scale').iterdir()}, {'result.json', 'trace.json', 'log.txt'})

  def test_other_splits_do_not_mix_with_results_in_the_same_folder(self):
    job.run(_job(self.out, ('scale',)))
    model = str(self.out / 'original/model.safetensors')
    with self.assertRaisesRegex(BadInputError, 'other splits'):
      job.run(_job(self.out, ('other',), model=model, split_seed=1))
    (self.out / 'splits.npz').write_bytes(b'torn')
    subject, _ = job.run(_job(self.out, ('scale',), model=model))
    with np.load(self.out / 'splits.npz', allow_pickle=False) as stored:
      np.testing.assert_array_equal(stored['test'], subject.split_indices['test'])

  def test_a_repair_that_cannot_be_measured_is_kept(self):
    with mock.patch.object(job, 'measure', side_effect=MemoryError('attack')):
      _, (result,) = job.run(_job(self.out, ('scale',)))
    self.assertEqual(result.row['outcome_reason'], 'evaluation: MemoryError: attack')
    self.assertIsNone(result.row['counts'])
    repaired = checkpoint.load(self.out / 'scale/repaired.safetensors')
    self.assertEqual(result.row['repaired_sha256'], classifiers.fingerprint(repaired))

  def test_other_settings_or_another_seed_are_another_run(self):
    first = job.run(_job(self.out, ('scale',)))[1][0].row
    second = job.run(_job(self.out, ('scale',), settings={'scale': '1.2'}))[1][0].row
    third = job.run(_job(self.out, ('scale',), seed=1, settings={'scale.scale': '1.2'}))[1][0].row
    self.assertLen({first['run_id'], second['run_id'], third['run_id']}, 3)
    self.assertEqual(second['config'], {'scale': 1.2})
    self.assertEqual(first['split_sha256'], third['split_sha256'])

  def test_interrupted_at_any_write_it_is_completed_to_the_same_result(self):
    job.run(_job(self.out / 'whole'))
    whole = self._results(self.out / 'whole')
    real, step, interrupted = files.replacing, 0, 0
    while True:
      step += 1
      out, count = self.out / f'cut{step}', [0]

      @contextlib.contextmanager
      def cutting(path, count=count, step=step):
        count[0] += 1
        if count[0] == step:
          raise KeyboardInterrupt
        with real(path) as partial:
          yield partial

      modules = (files, job, job.history)
      with contextlib.ExitStack() as stack:
        for module in modules:
          stack.enter_context(mock.patch.object(module, 'replacing', cutting))
        try:
          job.run(_job(out))
          break
        except KeyboardInterrupt:
          interrupted += 1
      before = {name for name in ('scale', 'other') if (out / name / 'result.json').exists()}
      for name in before:   # a record promises that the rest is there
        checkpoint.load(out / name / 'repaired.safetensors')
      job.run(_job(out))
      self.assertEqual(self._results(out), whole, f'cut at write {step}')
    self.assertGreater(interrupted, 20)

  def _results(self, out):
    times = ('repair_seconds', 'compile_seconds', 'phase_seconds', 'started_utc', 'ended_utc', 'peak_memory_bytes')
    rows = [json.loads((out / name / 'result.json').read_text()) for name in ('scale', 'other')]
    return [{k: v for k, v in row.items() if k not in times} for row in rows]

  def test_a_torn_or_foreign_record_is_done_again(self):
    job.run(_job(self.out, ('scale',)))
    path = self.out / 'scale/result.json'
    text = path.read_text()
    for damaged in (text[:len(text) // 2], '{}', text.replace('"OK"', '"FINE"')):
      path.write_text(damaged)
      self.assertEqual(job.run(_job(self.out, ('scale',)))[1][0].row['outcome'], 'OK')
    (self.out / 'scale/predictions.npz').write_bytes(b'PK')
    self.assertLen(job.run(_job(self.out, ('scale',)))[1][0].labels_after, 300)

  def test_mistakes_are_refused_with_one_line(self):
    cases = (
      (UnknownNameError, "Did you mean 'digits_mlp'", {'subject': 'digit_mlp'}),
      (UnknownNameError, "Did you mean 'scale'", {'settings': {'scal': '1'}}),
      (UnknownNameError, 'apricot', {'settings': {'apricot.scale': '1'}}),
      (BadInputError, 'float', {'settings': {'scale': 'much'}}),
      (BadInputError, 'No method', {'methods': ()}),
      (DataNotFoundError, 'nowhere', {'model': 'nowhere.safetensors'}),
      (DataNotFoundError, 'missing', {'subject': 'mnist_mlp', 'data_dir': '/missing'}),
      (OutputError, 'Cannot write', {'out': '/proc/none'}),
    )
    for error, words, changes in cases:
      with self.subTest(words), self.assertRaisesRegex(error, words) as caught:
        job.run(dataclasses.replace(_job(self.out, ('scale',)), **changes))
      self.assertNotIn('\n', str(caught.exception))

  def test_a_folder_of_another_training_is_not_mixed_up(self):
    job.run(_job(self.out, ('scale',)))
    with self.assertRaisesRegex(BadInputError, 'another training run'):
      job.run(_job(self.out, ('scale',), split_seed=1))

  def test_a_users_class_importance_replaces_the_subjects_own_and_makes_another_run(self):
    guided = dataclasses.replace(_BASE, name='guided', needs=('class_importance',))
    path, rows = self.out / 'importance.json', []
    with mock.patch.dict(_STANDINS, guided=guided):
      rows.append(job.run(_job(self.out, ('scale', 'guided')))[1])
      self.assertEqual(rows[0][1].row['outcome'], 'UNADAPTABLE')
      self.assertIn('class_importance', rows[0][1].row['outcome_reason'])
      for weight in (1, 2):
        files.write_json(path, {'general_misclassifications': ['3'], 'weights_precisions': {'3': weight, '4': 1}})
        subject, results = job.run(_job(self.out, ('scale', 'guided'), class_importance=str(path)))
        self.assertEqual(subject.problem.class_importance.precisions, {3: weight, 4: 1})
        rows.append(results)
    self.assertLen({results[1].row['run_id'] for results in rows}, 3)
    self.assertLen({results[0].row['run_id'] for results in rows}, 1)   # it does not concern other approaches
    path.write_text('[]')
    with self.assertRaisesRegex(BadInputError, 'importance.json'):
      job.run(_job(self.out, ('scale',), class_importance=str(path)))

  def test_the_history_of_the_training_is_read_where_an_approach_needs_it(self):
    given = str(self.out / 'original/model.safetensors')
    with mock.patch.dict(_STANDINS, past=dataclasses.replace(_BASE, name='past', needs=('history',))):
      for model in (None, given):
        self.assertIsNone(job.prepare(_job(self.out, ('scale',), model=model)).problem.history)
        self.assertLen(job.prepare(_job(self.out, ('scale', 'past'), model=model)).problem.history, _RECIPE.epochs)

  def test_a_model_without_failures_or_with_other_inputs_is_refused(self):
    subject, _ = job.run(_job(self.out, ('scale',)))
    checkpoint.save(self.out / 'given.safetensors', subject.problem.classifier)
    row = job.run(_job(self.out / 'b', ('scale',), model=str(self.out / 'given.safetensors')))[1][0].row
    self.assertEqual(row['original_sha256'], classifiers.fingerprint(subject.problem.classifier))
    self.assertFalse((self.out / 'b/original').exists())
    with self.assertRaisesRegex(BadInputError, 'inputs'):
      job.run(dataclasses.replace(_job(self.out / 'c', ('scale',), model=str(self.out / 'given.safetensors')),
                                  subject='moons_mlp'))
    with (mock.patch.object(predict, 'labels', lambda c, x, **k: subject.problem.repair.y),
          self.assertRaises(NoFailingSamplesError)):
      methods.run(_BASE, dataclasses.replace(subject.problem), key=jax.random.key(0))   # its failures are not known yet
    whole = (self.out / 'given.safetensors').read_bytes()
    (self.out / 'given.safetensors').write_bytes(whole[:len(whole) // 2])
    with self.assertRaises(CorruptFileError):
      job.run(_job(self.out / 'd', ('scale',), model=str(self.out / 'given.safetensors')))


class RecordTest(absltest.TestCase):

  def test_rows_that_do_not_add_up_or_know_too_much_are_refused(self):
    with tempfile.TemporaryDirectory() as out, _standins():
      row = job.run(_job(out, ('scale',)))[1][0].row
    for change in ({'acc': 0.5}, {'rr': 0.123}, {'schema': 'jaxfix-results/0'}, {'outcome': 'GOOD'}, {'surprise': 1},
                   {'n_failures': 1000}, {'counts': {**row['counts'], 'fixed': row['counts']['fixed'] + 1}}):
      with self.subTest(str(change)), self.assertRaises(BadInputError):
        record.check_row({**row, **change})
    with self.assertRaisesRegex(BadInputError, 'missing'):
      record.check_row({k: v for k, v in row.items() if k != 'nfr'})


class _Page(html.parser.HTMLParser):
  """Collects tags, and checks that they are closed in order."""
  VOID = ('meta', 'img', 'br', 'link', 'input', 'hr', 'use', 'path', 'rect')

  def __init__(self, text):
    super().__init__()
    self.stack, self.tags, self.text = [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))
    if tag not in self.VOID:
      self.stack.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.tags.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    if tag not in self.VOID:
      assert self.stack.pop() == tag, tag

  def handle_data(self, data):
    self.text.append(data)


class ReportTest(absltest.TestCase):

  def test_the_page_is_whole_self_contained_and_shows_every_flip(self):
    with tempfile.TemporaryDirectory() as out, _standins():
      subject, results = job.run(_job(out, ('scale', 'fails', 'corrupts')))
      training = job.history.load_curves(pathlib.Path(out) / 'original')
    text = repair_report.render(subject, results, training)
    self.assertEqual(text, repair_report.render(subject, results, training))
    page = _Page(text)
    self.assertEqual(page.stack, [])
    for tag, attributes in page.tags:
      for name in ('src', 'href', 'xlink:href'):
        link = attributes.get(name) or ''
        self.assertTrue(link.startswith(('#', 'data:')) or not link, (tag, link))
      self.assertNotEqual(tag, 'script')
    self.assertIn('a note with <angle> & ampersand', ''.join(page.text))
    counts = results[2].row['counts']
    self.assertIn(f'Broken ({counts["broken"]}, the first 12 shown)', ' '.join(''.join(page.text).split()))
    pictures = [a for t, a in page.tags if t == 'img']
    expected = sum(min(12, r.row['counts'][k]) for r in (results[0], results[2]) for k in ('fixed', 'broken'))
    self.assertLen(pictures, expected)
    self.assertEqual(sum(t == 'caption' for t, _ in page.tags), sum(t == 'table' for t, _ in page.tags))

  def test_people_are_not_printed(self):
    with tempfile.TemporaryDirectory() as out, _standins():
      subject, results = job.run(_job(out, ('corrupts',)))
    text = repair_report.render(dataclasses.replace(subject, shows_people=True), results)
    self.assertNotIn('<img', text)
    self.assertIn('show real people', text)


class UnadaptableTest(absltest.TestCase):

  def test_the_reason_is_kept(self):
    self.assertEqual(Unadaptable('no dense layer').reason, 'no dense layer')


if __name__ == '__main__':
  absltest.main()
