"""`launch.verify` and `launch.check_certificate`: exit codes, words, counterexamples, and certificates on disk.

"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import onnx
from absl.testing import absltest

from jaxfix.interchange import onnx_write
from jaxfix.verify import checker
from tests.launch import driver
from tests.verify import networks

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def vnnlib(low, high, condition, inputs=1):
  """A file that calls `condition` of Y_0 unsafe on the box [low, high]."""
  lines = [f'(declare-const X_{i} Real)' for i in range(inputs)] + ['(declare-const Y_0 Real)']
  lines += [f'(assert (>= X_{i} {low}))\n(assert (<= X_{i} {high}))' for i in range(inputs)]
  return '\n'.join([*lines, f'(assert {condition})', ''])


class LaunchCase(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    onnx_write.write(cls.folder / 'n1.onnx', networks.n1())
    onnx_write.write(cls.folder / 'other.onnx', networks.from_weights(
      [([[-1, 1, .5]], [0, -2, 0]), ([[.5], [-.5], [1]], [-.25])]))
    for operator in ('Sin', 'Tanh'):   # one that cannot be read, and one that can but is not piecewise linear
      number = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1])
      model = onnx.helper.make_model(onnx.helper.make_graph(
        [onnx.helper.make_node('MatMul', ['x', 'w'], ['h']), onnx.helper.make_node(operator, ['h'], ['y'])], 'graph',
        [number('x')], [number('y')], [onnx.numpy_helper.from_array(np.ones((1, 1), np.float32), 'w')]),
        opset_imports=[onnx.helper.make_opsetid('', 13)], ir_version=8)
      onnx.save(model, cls.folder / f'{operator}.onnx')
    (cls.folder / 'half.onnx').write_bytes((cls.folder / 'n1.onnx').read_bytes()[:-40])
    for name, text in {
        'safe': vnnlib(-1, 3, '(>= Y_0 0.6)'), 'below': vnnlib(-1, 3, '(<= Y_0 -0.6)'),
        'unsafe': vnnlib(-1, 3, '(>= Y_0 0.4)'), 'exact': vnnlib(1, 1, '(>= Y_0 1e-12)'),
        'two': vnnlib(-1, 3, '(>= Y_0 0.6)', inputs=2), 'empty': vnnlib(3, -1, '(>= Y_0 0.6)'),
        'broken': vnnlib(-1, 3, '(>= Y_0 0.6)').replace('(assert (<= X_0 3))', '(assert (<= X_0 3)'),
        'product': vnnlib(-1, 3, '(>= (* Y_0 2) 0.6)'),
    }.items():
      (cls.folder / f'{name}.vnnlib').write_text(text)
    (cls.folder / 'binary.vnnlib').write_bytes(b'\xff\xfe\x00')

  def arguments(self, model, spec, *more):
    return [f'--model={self.folder}/{model}', f'--spec={self.folder}/{spec}', *more]

  def assert_refused(self, result, words):
    code, _, err = result
    self.assertEqual(code, 2, result)
    self.assertStartsWith(err, 'error: ')
    self.assertLen(err.strip().splitlines(), 1, err)
    self.assertRegex(err, words)


class VerifyTest(LaunchCase):

  def test_answers_and_mistakes(self):
    n1 = lambda spec, *more: self.arguments('n1.onnx', f'{spec}.vnnlib', *more)
    out = self.folder / 'out'
    out.mkdir()
    for name in ('unsafe', 'exact', 'sine'):   # proofs of earlier runs
      (out / f'{name}.npz').write_bytes(b'old')
    cases = {
      'safe': n1('safe', f'--certificate={out}/safe.npz'), 'below': n1('below'),
      'float32': n1('safe', f'--certificate={out}/float32.npz', '--strength=float32'),
      'unsat': n1('safe', '--vnncomp'), 'unsafe': n1('unsafe', f'--certificate={out}/unsafe.npz'),
      'sat': n1('unsafe', '--vnncomp', '--seed=3'),
      'milp': n1('safe', '--engine=milp', f'--certificate={out}/milp.npz'),
      'time': n1('safe', '--timeout=0.001'), 'timeout': n1('safe', '--timeout=0.001', '--vnncomp'),
      'exact': n1('exact', f'--certificate={out}/exact.npz'), 'unknown': n1('exact', '--vnncomp'),
      'sine': self.arguments('Sin.onnx', 'safe.vnnlib', f'--certificate={out}/sine.npz'),
      'sine_words': self.arguments('Sin.onnx', 'safe.vnnlib', '--vnncomp'),
      'smooth': self.arguments('Tanh.onnx', 'safe.vnnlib'),
      'no_model': self.arguments('none.onnx', 'safe.vnnlib'), 'no_spec': n1('none'),
      'folder': self.arguments('', 'safe.vnnlib'), 'half': self.arguments('half.onnx', 'safe.vnnlib'),
      'no_format': self.arguments('safe.vnnlib', 'safe.vnnlib'), 'broken': n1('broken'), 'product': n1('product'),
      'binary': n1('binary'), 'two': n1('two'), 'empty': n1('empty'),
      'nowhere': n1('safe', '--certificate=/proc/none/c.npz'), 'flag': n1('safe', '--modle=x'),
      'engine': n1('safe', '--engine=smt'), 'negative': n1('safe', '--timeout=-1'), 'no_flags': [],
      'extra': n1('safe', 'more')}
    done = dict(zip(cases, driver.launch('verify', list(cases.values())), strict=True))

    for name in ('safe', 'below', 'float32', 'milp'):
      self.assertEqual((done[name][0], done[name][2]), (0, ''), done[name])
      self.assertIn('\nPROVED: ', done[name][1])
    self.assertIn(f'certificate in {out}/safe.npz', done['safe'][1])
    for name in ('unsafe', 'exact', 'sine'):
      self.assertFalse((out / f'{name}.npz').exists(), f'the proof of an earlier run stays beside {done[name]}')
    self.assertIn(', float32', done['float32'][1])
    self.assertIn('by the word of a solver; there is no certificate', done['milp'][1])
    self.assertEqual(done['unsat'], (0, 'unsat\n', ''))
    # Only proofs leave a file, whole and nothing besides.
    self.assertEqual(sorted(p.name for p in out.iterdir()), ['float32.npz', 'safe.npz'])
    self.assertEqual(checker.check(f'{out}/safe.npz').strength, 'real')
    self.assertEqual(checker.check(f'{out}/float32.npz').strength, 'float32')

    for name, first in (('unsafe', 'REFUTED: in exact arithmetic'), ('sat', 'sat\n')):
      code, text, err = done[name]
      self.assertEqual((code, err), (4, ''))
      self.assertIn(first, text)
      values = dict(re.findall(r'\(([XY]_0) (\S+?)\)', text))
      x, y = float(values['X_0']), float(values['Y_0'])
      self.assertBetween(x, -1, 3)
      self.assertGreaterEqual(y, .4 - 1e-6)
      self.assertAlmostEqual(y, float(networks.logits(networks.n1(), np.array([[x]], np.float32))[0, 0]), places=6)
    self.assertStartsWith(done['sat'][1], 'sat\n((X_0 ')

    self.assertEqual(done['time'][0], 3)
    self.assertIn('UNKNOWN (time)', done['time'][1])
    self.assertEqual(done['timeout'], (3, 'timeout\n', ''))
    self.assertEqual(done['exact'][0], 3, done['exact'])
    self.assertIn('UNKNOWN (numerics)', done['exact'][1])
    self.assertEqual(done['unknown'], (3, 'unknown\n', ''))
    for name, words in (('sine', 'Sin'), ('smooth', 'tanh')):
      self.assertEqual(done[name][0], 3, done[name])
      self.assertRegex(done[name][1], rf'UNKNOWN \(operator\): .*{words}')
    self.assertEqual(done['sine_words'], (3, 'unknown\n', ''))

    for name, words in (
        ('no_model', r'none\.onnx'), ('no_spec', r'No file .*none\.vnnlib'), ('folder', '.'), ('half', r'half\.onnx'),
        ('no_format', 'vnnlib'), ('broken', r'broken\.vnnlib: .*line \d+, column \d+'),
        ('product', r'line 5, column \d+'), ('binary', 'is not text'), ('two', 'takes 1'), ('empty', 'empty'),
        ('nowhere', '/proc/none'), ('flag', 'model'), ('engine', 'smt'), ('negative', 'timeout'),
        ('no_flags', 'model'), ('extra', "unexpected argument 'more'")):
      with self.subTest(name):
        self.assert_refused(done[name], words)


class CheckCertificateTest(LaunchCase):

  def test_certificates_are_about_their_network_and_specification(self):
    proof = self.folder / 'proof.npz'
    first = subprocess.run(
      [sys.executable, '-m', 'launch.verify', *self.arguments('n1.onnx', 'safe.vnnlib', f'--certificate={proof}')],
      cwd=_ROOT, text=True, capture_output=True, timeout=300, env=driver.environment(), check=False)
    self.assertEqual(first.returncode, 0, first.stderr)
    data = proof.read_bytes()
    (self.folder / 'half.npz').write_bytes(data[:len(data) // 2])
    flipped = bytearray(data)
    flipped[len(data) // 3] ^= 4
    (self.folder / 'flipped.npz').write_bytes(bytes(flipped))
    with np.load(proof) as f:
      arrays = {name: f[name] for name in f.files}
    tree = next(name for name, a in arrays.items() if a.dtype == np.int16)
    document = json.loads(arrays.pop('document').tobytes())
    arrays[tree] = np.array([-1], np.int16)
    document['content_sha256'] = checker.content_sha256(document, arrays)
    np.savez(self.folder / 'forged.npz', document=np.frombuffer(json.dumps(document).encode(), np.uint8), **arrays)

    file = lambda name: str(self.folder / name)
    cases = {
      'alone': [str(proof)], 'both': [str(proof), *self.arguments('n1.onnx', 'safe.vnnlib')],
      'other_model': [str(proof), f'--model={self.folder}/other.onnx'],
      'other_spec': [str(proof), f'--spec={self.folder}/below.vnnlib'],
      'half': [file('half.npz')], 'flipped': [file('flipped.npz')], 'forged': [file('forged.npz')],
      'onnx': [file('n1.onnx')], 'none': [file('none.npz')], 'folder': [str(self.folder)],
      'no_model': [str(proof), '--model=none.onnx'], 'no_spec': [str(proof), '--spec=none.vnnlib'],
      'broken': [str(proof), f'--spec={self.folder}/broken.vnnlib'], 'nothing': [], 'two': [str(proof), str(proof)],
      'sine': [str(proof), f'--model={self.folder}/Sin.onnx'],
      'smooth': [str(proof), f'--model={self.folder}/Tanh.onnx']}
    done = dict(zip(cases, driver.launch('check_certificate', list(cases.values()), ('FILE',)), strict=True))

    self.assertEqual((done['alone'][0], done['alone'][2]), (0, ''), done['alone'])
    self.assertRegex(done['alone'][1], r'2 boxes.*\nCERTIFIED \(real\): the network that it carries')
    self.assertEqual((done['both'][0], done['both'][2]), (0, ''), done['both'])
    self.assertIn(f'CERTIFIED (real): {self.folder}/n1.onnx satisfies {self.folder}/safe.vnnlib', done['both'][1])
    for name, words in (('other_model', 'another network'), ('other_spec', 'another specification'),
                        ('half', 'not a certificate'), ('flipped', 'certificate|hash'), ('forged', 'leaf 0 of 1'),
                        ('onnx', 'not a certificate')):
      with self.subTest(name):
        self.assertEqual((done[name][0], done[name][2]), (1, ''), done[name])
        self.assertRegex(done[name][1], f'^REJECTED: .*({words})')
        self.assertNotIn('CERTIFIED', done[name][1])
    for name, words in (('none', 'No file'), ('folder', 'cannot be read'), ('no_model', r'none\.onnx'),
                        ('no_spec', r'none\.vnnlib'), ('broken', 'line'), ('nothing', 'missing argument: FILE'),
                        ('two', 'unexpected argument'), ('sine', 'Sin'), ('smooth', 'tanh')):
      with self.subTest(name):
        self.assert_refused(done[name], words)


if __name__ == '__main__':
  absltest.main()
