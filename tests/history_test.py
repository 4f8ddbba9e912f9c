"""Training that is cut off anywhere continues to the weights and curves of an undisturbed run."""
import pathlib
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix import classifier as classifiers
from jaxfix import history, models
from jaxfix.interchange import checkpoint
from jaxfix.problem import Problem, Subject
from jaxfix.recipe import Recipe
from tests import tiny


class CutOffError(Exception):
  """Stands for SIGKILL: nothing after it runs."""


def _subject():
  fresh = classifiers.create(models.build('mlp', num_classes=10, hidden=(6,)), input_shape=(8, 8, 1), num_classes=10,
                             key=jax.random.key(0))
  splits = [tiny.digits(0, 64), tiny.digits(64, 96), tiny.digits(96, 128)]
  problem = Problem(fresh, *splits, Recipe(learning_rate=3e-3, batch_size=32, epochs=4))
  test = tiny.digits(128, 160)
  return Subject('tiny', problem, test, test, 0.1, tuple('0123456789'))


class CutOffTest(parameterized.TestCase):

  @parameterized.parameters(*range(1, 10))
  def test_a_run_cut_off_after_any_write_has_the_curves_of_an_undisturbed_one(self, writes):
    # An epoch writes its checkpoint, the curves and the state; nine cuts cover every place of three epochs.
    subject = _subject()
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      history.train_subject(subject, folder / 'a', seed=0)
      left = [writes]

      def counted(function):
        def call(*args, **kwargs):
          result = function(*args, **kwargs)
          if 'run.json' not in str(args[0]):
            left[0] -= 1
          if left[0] == 0:
            raise CutOffError
          return result
        return call

      with (mock.patch.object(checkpoint, 'save', counted(checkpoint.save)),
            mock.patch.object(history, 'write_json', counted(history.write_json)),
            mock.patch.object(history, '_save_state', counted(history._save_state)),
            self.assertRaises(CutOffError)):
        history.train_subject(subject, folder / 'b', seed=0)
      history.train_subject(subject, folder / 'b', seed=0)
      a, b = (history.load_curves(folder / name) for name in 'ab')
      self.assertLen(a, 4)
      self.assertEqual(a, b)
      for one, other in zip(history.load_history(folder / 'a'), history.load_history(folder / 'b'), strict=True):
        for name, array in classifiers.flat_weights(one.variables).items():
          np.testing.assert_array_equal(array, classifiers.flat_weights(other.variables)[name])


class HistoryOfTest(absltest.TestCase):

  def test_a_checkpoint_of_a_run_has_the_epochs_up_to_it_and_other_files_have_none(self):
    subject = _subject()
    with tempfile.TemporaryDirectory() as folder:
      folder = pathlib.Path(folder)
      trained = history.train_subject(subject, folder / 'run', seed=0)
      epochs = history.load_history(folder / 'run')
      fingerprints = [classifiers.fingerprint(epoch) for epoch in epochs]
      for path, count in ((folder / 'run/model.safetensors', 4), (history.epoch_path(folder / 'run', 2), 2)):
        found = history.history_of(path, checkpoint.load(path))
        self.assertEqual([classifiers.fingerprint(epoch) for epoch in found], fingerprints[:count])
      checkpoint.save(folder / 'elsewhere/model.safetensors', trained)
      self.assertIsNone(history.history_of(folder / 'elsewhere/model.safetensors', trained))
      other = subject.problem.classifier   # untrained weights that happen to lie in the folder of the run
      checkpoint.save(folder / 'run/other.safetensors', other)
      self.assertIsNone(history.history_of(folder / 'run/other.safetensors', other))


if __name__ == '__main__':
  absltest.main()
