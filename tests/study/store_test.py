"""The store: append-only rows, one writer, torn lines, what lies beside the rows, and what is refused."""
import contextlib
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError, OutputError
from jaxfix.study import store
from tests.study.rows import make_row, unloaded_row


class StoreTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory())) / 'store'

  def _write(self, *rows, **beside):
    with store.Writer(self.folder) as writer:
      for row in rows:
        writer.append(row, **beside)

  @property
  def _file(self):
    return self.folder / store.FILE

  def test_what_is_written_is_read(self):
    row = make_row()
    predictions = {'before': np.array([0, 1, -1]), 'after': np.array([1, 1, 1]), 'labels': np.array([1, 1, 0])}
    self._write(row, predictions=predictions, trace={'curves': {'loss': [1., float('nan')]}})
    results = store.read(self.folder)
    self.assertEqual(results.rows, (row,))
    for name, values in results.predictions(row['run_id']).items():
      np.testing.assert_array_equal(values, predictions[name])
      self.assertEqual(values.dtype, np.int16)
    self.assertEqual(results.trace(row['run_id']), {'curves': {'loss': [1., None]}})
    self.assertIsNone(results.predictions('0' * 16))
    self.assertIsNone(results.trace('0' * 16))
    self.assertEqual(store.read(self._file).rows, results.rows)

  def test_order_does_not_depend_on_who_was_first(self):
    rows = [make_row(a, seed=s, postprocess=p) for a in ('care', 'apricot') for s in (10, 2) for p in ('sv', 'none')]
    self._write(*rows)
    forward = store.read(self.folder).rows
    self._file.unlink()
    self._write(*reversed(rows))
    self.assertEqual(store.read(self.folder).rows, forward)
    self.assertEqual([(r['approach'], r['seed'], r['postprocess']) for r in forward[:3]],
                     [('apricot', 2, 'none'), ('apricot', 2, 'sv'), ('apricot', 10, 'none')])

  def test_every_cut_of_the_last_line_is_passed_over_and_cut_off(self):
    first, second = make_row(seed=0), make_row(seed=1)
    self._write(first, second)
    whole = self._file.read_bytes()
    begin = whole.index(b'\n') + 1
    for length in (begin, begin + 1, begin + 100, len(whole) - 2, len(whole) - 1):
      self._file.write_bytes(whole[:length])
      self.assertEqual(store.read(self.folder).rows, (first,))
      with store.Writer(self.folder) as writer:
        self.assertEqual(list(writer.rows), [first['run_id']])
        writer.append(second)
      self.assertEqual(self._file.read_bytes(), whole)

  def test_of_a_cell_that_was_tried_again_the_later_row_counts(self):
    failed, row = make_row(outcome='FAILURE'), make_row()
    self.assertEqual(failed['run_id'], row['run_id'])
    self._write(failed, row)
    self.assertEqual(store.read(self.folder).rows, (row,))

  def test_newest(self):
    old, new = (make_row(run_id=i * 16, ended_utc=f'2026-01-0{i}T00:00:00Z') for i in '12')
    other = make_row(seed=1)
    self.assertCountEqual([r['run_id'] for r in store.newest([new, other, old])], [new['run_id'], other['run_id']])

  @parameterized.parameters({'config_sha256': 'b' * 64}, {'original_sha256': 'b' * 64}, {'split_sha256': {'test': 'b'}})
  def test_seeds_that_were_measured_otherwise_than_the_newest_do_not_count(self, **other):
    earlier = [make_row(seed=seed) for seed in (0, 1, 2)]
    later = make_row(seed=0, run_id='f' * 16, ended_utc='2030-01-01T00:00:00Z', **other)
    self.assertEqual(store.newest([*earlier, later]), (later,))
    again = make_row(seed=1, run_id='e' * 16, ended_utc='2030-01-02T00:00:00Z', **other)
    self.assertCountEqual(store.newest([*earlier, later, again]), [later, again])
    elsewhere = make_row('care')
    self.assertIn(elsewhere, store.newest([*earlier, elsewhere, later]))

  def test_what_could_not_be_tried_takes_no_seed_away(self):
    rows = [make_row(seed=seed) for seed in (0, 1)]
    lost = unloaded_row('apricot', 'mnist_lenet5', 2)
    self.assertCountEqual(store.newest([*rows, lost]), [*rows, lost])

  def test_an_older_row_counts_again_where_its_settings_do(self):
    old = [make_row(seed=seed) for seed in (0, 1)]
    other = make_row(seed=0, run_id='f' * 16, ended_utc='2030-01-01T00:00:00Z', config_sha256='b' * 64)
    more = make_row(seed=2, ended_utc='2030-01-02T00:00:00Z')   # with the settings of before
    self.assertCountEqual(store.newest([*old, other, more]), [*old, more])

  def test_combinations_of_seeds_that_do_not_count_do_not_either(self):
    pair = lambda seed, settings, day: (
      make_row(seed=seed, run_id=f'{seed}{settings}'.ljust(16, '0'), config_sha256=settings * 64,
               ended_utc=f'{day}T00:00:00Z'),
      make_row(seed=seed, run_id=f'{seed}{settings}'.ljust(16, '1'), postprocess='sv', config_sha256='e' * 64,
               config={'repair': f'{seed}{settings}'.ljust(16, '0')}, ended_utc=f'{day}T01:00:00Z'))
    first, second, changed = pair(0, 'a', '2030-01-01'), pair(1, 'a', '2030-01-01'), pair(0, 'b', '2030-01-02')
    self.assertCountEqual(store.newest([*first, *second, *changed]), changed)
    later = make_row(seed=0, run_id='9' * 16, postprocess='sv', config_sha256='d' * 64,
                     config={'repair': first[0]['run_id']}, ended_utc='2030-01-03T00:00:00Z')   # of the old repair
    self.assertCountEqual(store.newest([*first, *changed, later]), changed)

  def test_combinations_count_if_their_repair_does(self):
    old, new = (make_row(run_id=i * 16, ended_utc=f'2026-01-0{i}T00:00:00Z') for i in '12')
    combined = [make_row(postprocess=name, run_id=i * 16, config={'repair': repair['run_id'], 'k': i}, config_sha256=i,
                         ended_utc='2026-01-03T00:00:00Z')
                for i, name, repair in (('3', 'sv', old), ('4', 'hv', new))]
    self.assertCountEqual(store.newest([old, new, *combined]), [new, combined[1]])
    self.assertCountEqual(store.newest(combined), combined)   # nothing is known of the repairs

  def test_a_second_writer_is_refused_and_the_first_goes_on(self):
    with store.Writer(self.folder) as writer:
      with self.assertRaisesRegex(OutputError, 'Another study'):
        store.Writer(self.folder)
      writer.append(make_row())
    self._write(make_row(seed=1))
    self.assertLen(store.read(self.folder).rows, 2)

  def test_damage_in_the_middle_names_the_line(self):
    self._write(make_row(seed=0), make_row(seed=1))
    lines = self._file.read_bytes().splitlines(keepends=True)
    self._file.write_bytes(lines[0] + b'{"torn": \n' + lines[1])
    for act in (store.read, store.Writer):
      with self.assertRaisesRegex(CorruptFileError, 'line 2'):
        act(self.folder)
    with contextlib.closing(open(self._file, 'ab')):   # and the lock is free again
      self._file.write_bytes(lines[0])
    self._write(make_row(seed=1))

  @parameterized.parameters('NaN', 'Infinity', '-Infinity')
  def test_what_json_does_not_know_is_damage(self, constant):
    self._write(make_row(seed=0), make_row(seed=1, linf_change=0.125))
    self._file.write_text(self._file.read_text().replace('0.125', constant))
    for act in (store.read, store.Writer):
      with self.assertRaisesRegex(CorruptFileError, f'line 2.*{constant}.*null, never NaN'):
        act(self.folder)

  @parameterized.named_parameters(
    ('identity', {'acc': 0.5}, 'acc is 0.5'), ('schema', {'schema': 'jaxfix-results/9'}, 'schema'),
    ('outcome', {'outcome': 'MAYBE'}, 'outcome'))
  def test_rows_that_cannot_be(self, changes, message):
    row = make_row() | changes
    with store.Writer(self.folder) as writer, self.assertRaisesRegex(BadInputError, message):
      writer.append(row)
    self.assertEqual(store.read(self.folder).rows, ())
    self._file.write_text(json.dumps(row) + '\n')
    with self.assertRaisesRegex(BadInputError, f'line 1.*{message}'):
      store.read(self.folder)

  def test_unknown_fields_warn_and_missing_ones_are_refused(self):
    self.folder.mkdir()
    self._file.write_text(json.dumps(make_row() | {'novelty': 1}) + '\n')
    with self.assertWarnsRegex(UserWarning, 'novelty'):
      self.assertEqual(store.read(self.folder).rows, (make_row(),))
    self._file.write_text(json.dumps({k: v for k, v in make_row().items() if k != 'rr'}) + '\n')
    with self.assertRaisesRegex(BadInputError, 'missing fields: rr'):
      store.read(self.folder)

  def test_nothing_there(self):
    with self.assertRaisesRegex(DataNotFoundError, 'launch.study'):
      store.read(self.folder)

  def test_damaged_predictions(self):
    row = make_row()
    self._write(row, predictions=dict.fromkeys(('before', 'after', 'labels'), np.zeros(3)))
    path = self.folder / 'predictions' / f'{row["run_id"]}.npz'
    path.write_bytes(path.read_bytes()[:40])
    with self.assertRaisesRegex(CorruptFileError, row['run_id']):
      store.read(self.folder).predictions(row['run_id'])

  def test_a_file_where_the_folder_should_be(self):
    self.folder.write_text('')
    with self.assertRaises(OutputError):
      store.Writer(self.folder)


if __name__ == '__main__':
  absltest.main()
