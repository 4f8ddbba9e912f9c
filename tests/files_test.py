"""Atomic files."""
import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from jaxfix import files
from jaxfix.clock import Clock
from jaxfix.errors import CorruptFileError, DataNotFoundError, OutputError


class FilesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_an_exception_leaves_the_old_file_and_nothing_else(self):
    path = self.folder / 'a.json'
    files.write_json(path, {'x': 1})
    with self.assertRaises(ZeroDivisionError), files.replacing(path) as partial:
      partial.write_text('half')
      raise ZeroDivisionError
    self.assertEqual(files.read_json(path), {'x': 1})
    self.assertEqual([p.name for p in self.folder.iterdir()], ['a.json'])

  def test_the_file_appears_only_when_it_is_whole(self):
    path = self.folder / 'deep' / 'a.txt'
    with files.replacing(path) as partial:
      partial.write_text('whole')
      self.assertFalse(path.exists())
    self.assertEqual(path.read_text(), 'whole')

  def test_folders_that_cannot_be_written_and_files_that_cannot_be_read(self):
    (self.folder / 'file').write_text('{"x": ')
    with self.assertRaises(OutputError):
      files.write_text(self.folder / 'file' / 'a', '')
    with self.assertRaises(CorruptFileError):
      files.read_json(self.folder / 'file')
    with self.assertRaisesRegex(DataNotFoundError, '^No file'):
      files.read_json(self.folder / 'none')

  def test_json_has_no_nan_and_knows_numpy(self):
    value = {'a': np.float32(0.5), 'b': np.array([1, 2]), 'c': float('nan'), 'd': (1, None, True), 2: np.int64(3)}
    self.assertEqual(json.loads(json.dumps(files.jsonable(value))),
                     {'a': 0.5, 'b': [1, 2], 'c': None, 'd': [1, None, True], '2': 3})
    with self.assertRaises(TypeError):
      files.jsonable({'f': lambda: 0})

  def test_hash_of_json_does_not_depend_on_the_order_of_keys(self):
    self.assertEqual(files.sha256_of_json({'a': 1, 'b': 2}), files.sha256_of_json({'b': 2, 'a': 1}))
    self.assertNotEqual(files.sha256_of_json({'a': 1}), files.sha256_of_json({'a': 2}))

  def test_hash_of_json_tells_infinity_from_nothing(self):
    hashes = {files.sha256_of_json({'limit': limit}) for limit in (None, float('inf'), float('-inf'), float('nan'))}
    self.assertLen(hashes, 4)


class ClockTest(absltest.TestCase):

  def test_phases_add_up_and_compilation_is_counted(self):
    import jax
    import jax.numpy as jnp
    clock = Clock()
    f = jax.jit(lambda x: jnp.sin(x) * 3.25)
    for _ in range(2):
      with clock.phase('work'):
        f(jnp.ones(7)).block_until_ready()
    compiled, seconds = clock.num_compiled, clock.compile_seconds
    self.assertGreaterEqual(compiled, 1)
    self.assertGreater(seconds, 0)
    self.assertLessEqual(seconds, clock.seconds['work'])
    later = Clock()
    f(jnp.ones(7)).block_until_ready()
    self.assertEqual(later.num_compiled, 0)


if __name__ == '__main__':
  absltest.main()
