import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from jaxfix.interchange import onnx_write, vnnlib
from jaxfix.verify import replay
from tests.verify import networks


class ReplayTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.spec = vnnlib.parse('(declare-const X_0 Real) (declare-const Y_0 Real)'
                             '(assert (>= X_0 -1)) (assert (<= X_0 3)) (assert (>= Y_0 0.4))')
    onnx_write.write(self.folder / 'n1.onnx', networks.n1())

  def test_onnxruntime_is_asked_about_the_file(self):
    ask = lambda x: replay.violates_in_onnxruntime(self.folder / 'n1.onnx', self.spec, np.array([x]))
    self.assertEqual(ask(2.), (True, ''))    # f(2) = 0.5
    self.assertEqual(ask(0.), (False, ''))   # f(0) = -0.5
    self.assertEqual(ask(-4.), (False, ''))  # f(-4) = 1.5, but -4 is not in the box

  def test_what_it_cannot_answer_has_a_reason(self):
    (self.folder / 'half.onnx').write_bytes((self.folder / 'n1.onnx').read_bytes()[:-40])
    for name, x, why in (('n1.nnet', [2.], 'does not read .*n1.nnet'), ('half.onnx', [2.], 'does not run .*half.onnx'),
                         ('none.onnx', [2.], 'does not run'), ('n1.onnx', [2., 1.], 'does not run .*n1.onnx')):
      answer, reason = replay.violates_in_onnxruntime(self.folder / name, self.spec, np.array(x))
      self.assertIsNone(answer)
      self.assertRegex(reason, why)
      self.assertLen(reason.splitlines(), 1)


if __name__ == '__main__':
  absltest.main()
