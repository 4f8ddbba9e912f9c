"""ONNX in: every operator in every version against onnxruntime, real networks, every way to be wrong."""
import contextlib
import itertools
import pathlib
import sys
import tempfile
from unittest import mock

import numpy as np
import onnx
from absl.testing import absltest, parameterized
from onnx import helper, numpy_helper

from jaxfix import interchange
from jaxfix.classifier import flat_weights
from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError, JaxfixError, UnsupportedLayerError
from jaxfix.interchange import onnx_read, onnx_write
from tests.interchange import onnx_files, onnx_random
from tests.interchange.onnx_files import node, versions, write
from tests.networks import quick_jit
from tests.shared_data import shared_data

_logits = quick_jit(lambda classifier, x: classifier.logits(x))  # one compilation for all versions of an operator
FLAT = node('Flatten', 'v', 'y')
AXES_ARE_INPUTS = 13


def floats(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class OnnxCase(parameterized.TestCase):

  def setUp(self):
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.path = pathlib.Path(folder.name) / 'model.onnx'

  def kinds(self, classifier):
    return [record[1] for record in classifier.module.layers]

  def agrees(self, nodes, input_shape, constants=None, opsets=None, **options):
    """Reads the same nodes at every opset, compares with onnxruntime, and returns the classifier of the last."""
    nodes = list(nodes) if isinstance(nodes, (list, tuple)) else [nodes]
    for opset in opsets or versions(*{n.op_type for n in nodes}):
      write(self.path, nodes, input_shape, constants, opset)
      classifier = self.agrees_on_file(**options)
    return classifier

  def agrees_on_file(self, relative_to_largest=False, **options):
    """Reads the file and compares with onnxruntime to 1e-5, absolute and relative to each logit or the largest."""
    classifier = onnx_read.read(self.path, **options)
    x = floats(3, *classifier.input_shape)
    theirs = onnx_files.run(self.path, x.transpose(0, 3, 1, 2) if options.get('channels_last') else x)
    self.assertEqual(classifier.num_classes, theirs.shape[1])
    atol = 1e-5 * max(1, np.abs(theirs).max()) if relative_to_largest else 1e-5
    np.testing.assert_allclose(_logits(classifier, x), theirs, atol=atol, rtol=1e-5)
    return classifier

  def refuses(self, error, message, nodes, input_shape=('n', 4), constants=None, opset=13, **more):
    write(self.path, nodes, input_shape, constants, opset, **more)
    with self.assertRaisesRegex(error, message):
      onnx_read.read(self.path)


class LinearTest(OnnxCase):

  @parameterized.parameters((0, True), (1, True), (1, False))
  def test_gemm(self, trans_b, with_c):
    w, c = floats(4, 3), floats(3, seed=1)
    classifier = self.agrees(node('Gemm', 'x w c' if with_c else 'x w', 'y', transB=trans_b), ('n', 4),
                             {'w': w.T if trans_b else w, 'c': c}, versions('Gemm') if with_c else (11, 13))
    self.assertEqual(self.kinds(classifier), ['dense'])
    np.testing.assert_array_equal(classifier.params['Gemm_y']['kernel'], w)
    if with_c:
      np.testing.assert_array_equal(classifier.params['Gemm_y']['bias'], c)

  def test_gemm_with_factors_keeps_both_constants(self):
    w, c = floats(4, 3), floats(1, 3, seed=1)
    gemm = node('Gemm', 'x w c', 'y', alpha=0.3, beta=2.)
    classifier = self.agrees(gemm, ('n', 4), {'w': w, 'c': c})
    self.assertEqual(self.kinds(classifier), ['dense', 'scale', 'shift'])
    np.testing.assert_array_equal(classifier.params['Gemm_y']['kernel'], w)
    self.assertEqual(classifier.params['Gemm_y_']['scale'], np.float32(0.3))
    self.assertEqual(classifier.module.notes, ())  # 2 c is a float
    gemm = node('Gemm', 'x w c', 'y', beta=0.3)
    self.assertIn('rounded', self.agrees(gemm, ('n', 4), {'w': w, 'c': c}, [13]).module.notes[0])
    gemm = node('Gemm', 'x w c', 'y', beta=0.)
    self.assertEqual(self.kinds(self.agrees(gemm, ('n', 4), {'w': w, 'c': c}, [13])), ['dense'])

  def test_gemm_with_one_summand_for_all(self):
    self.agrees(node('Gemm', 'x w c', 'y'), ('n', 4), {'w': floats(4, 3), 'c': np.float32(2)}, [13])
    self.agrees(node('Gemm', 'x w c', 'y'), (1, 4), {'w': floats(4, 3), 'c': floats(1, 1)}, [13])

  def test_a_vector_added_to_a_product_is_its_bias(self):
    nodes = [node('MatMul', 'x w', 'v'), node('Add', 'v b', 'y')]
    classifier = self.agrees(nodes, ('n', 4), {'w': floats(4, 3), 'b': floats(3)})
    self.assertEqual(self.kinds(classifier), ['dense'])
    nodes[1] = node('Add', 'b v', 'y')
    self.assertEqual(self.kinds(self.agrees(nodes, ('n', 4), {'w': floats(4, 3), 'b': floats(1, 3)}, [13])), ['dense'])

  def test_a_product_used_twice_keeps_its_value(self):
    nodes = [node('MatMul', 'x w', 'v'), node('Add', 'v b', 'u'), node('Relu', 'v', 'r'), node('Add', 'u r', 'y')]
    classifier = self.agrees(nodes, ('n', 4), {'w': floats(4, 3), 'b': floats(3)}, [13])
    self.assertEqual(self.kinds(classifier), ['dense', 'shift', 'relu', 'add'])

  @parameterized.parameters(
    ('w x', (4,), (3, 4)), ('w x', (4, 1), (3, 4)), ('w x', (4, 2), (1, 4)), ('x w', (4,), (4, 3)),
    ('x w', ('n', 2, 4), (4, 3)), ('w x', ('n', 4, 2), (3, 4)), ('x w', ('n', 4), (4,)), ('w x', (4,), (4,)),
    ('w x', ('n', 4, 2), (4,)), ('w x', (1, 4), (3, 1)), ('x w', ('n', 2, 1, 4), (4, 3)))
  def test_matmul_from_both_sides(self, inputs, input_shape, shape):
    nodes = [node('MatMul', inputs, 'v'), node('Reshape', 'v s', 'y')]
    target = np.array([0, -1] if input_shape[0] == 'n' else [1, -1])
    self.agrees(nodes, input_shape, {'w': floats(*shape), 's': target}, [7, 13])

  def test_one_output_is_enough(self):
    classifier = self.agrees(node('MatMul', 'x w', 'y'), ('n', 4), {'w': floats(4, 1)}, [13])
    self.assertEqual(classifier.num_classes, 1)


class ArithmeticTest(OnnxCase):

  @parameterized.parameters(
    ('Add', 'x c', 'shift'), ('Add', 'c x', 'shift'), ('Sub', 'x c', 'shift'), ('Sub', 'c x', 'shift'),
    ('Mul', 'x c', 'scale'), ('Mul', 'c x', 'scale'), ('Div', 'x c', 'scale'))
  def test_by_a_constant(self, operator, inputs, kind):
    c = floats(1, 2, 1, 3)
    classifier = self.agrees([node(operator, inputs, 'v'), FLAT], ('n', 2, 2, 3), {'c': c})
    self.assertEqual(self.kinds(classifier), [kind, 'flatten'])
    np.testing.assert_array_equal(classifier.params[f'{operator}_v'][kind], c[0])

  @parameterized.parameters(
    (('n', 4), ()), (('n', 4), (1,)), (('n', 1), (4,)), (('n', 2, 3), (3,)), (('n', 2, 3), (2, 1)),
    ((4,), (4,)), ((4,), (1, 4)), ((1, 4), (1, 1, 4)), ((1, 4), (3, 4)), ((2, 1), (2, 3)), (('n', 2, 1), (1, 2, 3)))
  def test_constants_are_repeated_as_numpy_does(self, input_shape, shape):
    rows = [0, -1] if input_shape[0] == 'n' else [1, -1]
    self.agrees([node('Sub', 'x c', 'v'), node('Reshape', 'v s', 'y')], input_shape,
                {'c': floats(*shape), 's': np.array(rows)}, [13])

  def test_skip_connections(self):
    nodes = [node('Relu', 'x', 'a'), node('Tanh', 'x', 'b'), node('Add', 'a b', 'c'), node('Add', 'c c', 'v'), FLAT]
    self.agrees(nodes, ('n', 2, 3, 4))

  def test_sums_of_images_in_different_orders(self):
    nodes = [node('Conv', 'x w', 'a'), node('GlobalAveragePool', 'x', 'g'), node('Add', 'x a', 's'),
             node('Add', 'g s', 'v'), FLAT]
    classifier = self.agrees(nodes, ('n', 3, 4, 4), {'w': floats(3, 3, 1, 1)}, [13])
    self.assertEqual(self.kinds(classifier).count('transpose'), 2)  # into our order, once for all; and back

  def test_constants_alone_are_folded(self):
    nodes = [node('Mul', 'a b', 'c'), node('Transpose', 'w', 'k'), node('Identity', 'k', 'l'),
             node('Dropout', 'l', 'm'), node('MatMul', 'x m', 'u'), node('Add', 'u c', 'y')]
    constants = {'a': np.float32([1, 2, 3]), 'b': np.float32([4, 5, 0.5]), 'w': floats(3, 4)}
    classifier = self.agrees(nodes, ('n', 4), constants, [7, 13])
    np.testing.assert_array_equal(classifier.params['MatMul_u']['bias'], [4, 10, 1.5])
    self.assertEqual(classifier.module.notes, ())
    scalars = {'a': np.float32(2), 'b': np.float32(3)}
    self.agrees(nodes, ('n', 4), constants | scalars, [13])
    constants['a'] = constants['b'] = np.float32([0.1, 0.2, 0.3])
    self.assertLen(self.agrees(nodes, ('n', 4), constants, [13]).module.notes, 1)

  @parameterized.parameters('Relu', 'Sigmoid', 'Tanh', 'Identity')
  def test_functions_of_one_entry(self, operator):
    self.agrees([node(operator, 'x', 'v'), FLAT], ('n', 2, 3))

  def test_clip_that_is_a_relu_or_nothing(self):
    self.assertEqual(self.kinds(self.agrees([node('Clip', 'x', 'v', min=0.), FLAT], ('n', 4), opsets=[7])), ['relu'])
    for inputs in ('x zero', 'x zero _', 'x zero big'):
      c = self.agrees([node('Clip', inputs, 'v'), FLAT], ('n', 4),
                      {'zero': np.float32(0), 'big': np.float32(np.inf)}, [11, 12, 13])
      self.assertEqual(self.kinds(c), ['relu'])
    self.assertEqual(self.kinds(self.agrees([node('Clip', 'x', 'v'), FLAT], ('n', 2, 2), opsets=[11])), ['flatten'])

  def test_softmax_at_the_end_goes_and_is_noted(self):
    for opset, end in itertools.product((7, 11, 13), ([], [node('Identity', 'y', 'z')], [node('Flatten', 'y', 'z')])):
      nodes = [node('MatMul', 'x w', 'v'), node('Softmax', 'v', 'y'), *end]
      write(self.path, nodes, ('n', 4), {'w': floats(4, 3)}, opset, output='z' if end else 'y')
      classifier = onnx_read.read(self.path)
      self.assertRegex(classifier.module.notes[0], "softmax of node 'Softmax_y' was removed")
      x = floats(5, 4)
      e = np.exp(_logits(classifier, x))
      np.testing.assert_allclose(e / e.sum(1, keepdims=True), onnx_files.run(self.path, x), atol=1e-5)

  @parameterized.parameters(1, 2, 3, -1)
  def test_softmax_elsewhere(self, axis):
    last = axis in (3, -1)
    self.agrees([node('Softmax', 'x', 'v', axis=axis), FLAT], ('n', 2, 3, 4), opsets=[7, 11, 13] if last else [13])

  def test_dropout(self):
    c = self.agrees([node('Dropout', 'x', 'v', ratio=0.25), FLAT], ('n', 4), opsets=[7, 10])
    self.assertEqual(c.module.layers[0][:3], ('Dropout_v', 'dropout', (('rate', 0.25),)))
    self.agrees([node('Dropout', 'x r', 'v'), FLAT], ('n', 4), {'r': np.float32(0.25)}, [12, 13, 22])
    self.agrees([node('Dropout', 'x _ t', 'v'), FLAT], ('n', 4), {'t': np.array(False)}, [12, 13, 22])


class ImageTest(OnnxCase):

  @parameterized.parameters(*range(12))
  def test_convolutions(self, seed):
    rng = np.random.default_rng(seed)
    draw = lambda low, high: [int(i) for i in rng.integers(low, high + 1, 2)]
    group = int(rng.choice([1, 1, 2]))
    c, out, kernel, strides = 2 * group, 2 * group, draw(1, 3), draw(1, 3)
    options = {'strides': strides, 'group': group}
    mode = ('pads', 'SAME_UPPER', 'SAME_LOWER', 'VALID')[seed % 4]
    if mode == 'pads':
      options |= {'pads': [*draw(0, 2), *draw(0, 2)], 'dilations': draw(1, 2)}
    else:
      options['auto_pad'] = mode
    constants = {'w': floats(out, c // group, *kernel), 'b': floats(out)}
    inputs = 'x w b' if seed % 3 else 'x w'
    classifier = self.agrees([node('Conv', inputs, 'v', **options), FLAT], ('n', c, *draw(5, 8)), constants)
    np.testing.assert_array_equal(classifier.params['Conv_v']['kernel'], constants['w'].transpose(2, 3, 1, 0))

  @parameterized.product(operator=('MaxPool', 'AveragePool'), seed=tuple(range(10)))
  def test_pooling(self, operator, seed):
    rng = np.random.default_rng(100 + seed)
    draw = lambda low, high: [int(i) for i in rng.integers(low, high + 1, 2)]
    kernel = draw(2, 3)
    options, opsets = {'kernel_shape': kernel, 'strides': draw(1, 3)}, versions(operator)
    mode = ('pads', 'ceil', 'pads', 'ceil', 'ceil', 'SAME_UPPER', 'SAME_LOWER', 'VALID', 'none', 'ceil')[seed]
    if mode in ('pads', 'ceil'):
      options['pads'] = draw(0, 1) + draw(0, 1)
    elif mode != 'none':
      options['auto_pad'] = mode
    if mode == 'ceil':
      options['ceil_mode'] = 1
      opsets = [v for v in opsets if v >= 10]
    if operator == 'AveragePool' and seed % 2:
      options['count_include_pad'] = 1
    self.agrees([node(operator, 'x', 'v', **options), FLAT], ('n', 2, *draw(5, 9)), opsets=opsets)

  def test_global_average_stays_an_image(self):
    nodes = [node('GlobalAveragePool', 'x', 'g'), node('Conv', 'g w', 'h'), node('Add', 'h b', 'v'), FLAT]
    classifier = self.agrees(nodes, ('n', 3, 4, 5), {'w': floats(2, 3, 1, 1), 'b': floats(2, 1, 1)}, [7, 22])
    self.assertEqual(self.kinds(classifier), ['transpose', 'gap', 'reshape', 'conv', 'flatten'])
    nodes = [node('GlobalAveragePool', 'x', 'v'), FLAT]
    self.assertEqual(self.kinds(self.agrees(nodes, ('n', 3, 4, 5))), ['transpose', 'gap'])

  @parameterized.parameters((('n', 3, 4, 5),), (('n', 3),), ((1, 3, 4),))
  def test_batch_normalization(self, input_shape):
    constants = {'s': floats(3), 'b': floats(3, seed=1), 'm': floats(3, seed=2), 'v': np.abs(floats(3, seed=3))}
    norm = helper.make_node('BatchNormalization', ['x', 's', 'b', 'm', 'v'], ['u'], name='norm', epsilon=1e-3)
    c = self.agrees([norm, node('Relu', 'u', 'v2'), node('Flatten', 'v2', 'y')], input_shape, constants,
                    versions('BatchNormalization'))
    weights = flat_weights(c.variables)
    for name, key in (('params/norm/scale', 's'), ('params/norm/bias', 'b'), ('batch_stats/norm/mean', 'm'),
                      ('batch_stats/norm/var', 'v')):
      np.testing.assert_array_equal(weights[name], constants[key])

  @parameterized.product(keepdims=(0, 1), axes=([2, 3], [1, 3], [-1], [1]))
  def test_means(self, keepdims, axes):
    start, end = node('Relu', 'x', 'u'), node('Flatten', 'v', 'y')
    opsets = [v for v in (7, 11, 13) if min(axes) >= 0 or v >= 11]
    mean = node('ReduceMean', 'u', 'v', axes=axes, keepdims=keepdims)
    classifier = self.agrees([start, mean, end], ('n', 3, 4, 5), opsets=opsets)
    self.assertIn('gap' if len(axes) == 2 else 'mean', self.kinds(classifier))
    mean = node('ReduceMean', 'u a', 'v', keepdims=keepdims)
    self.agrees([start, mean, end], ('n', 3, 4, 5), {'a': np.array(axes)}, [18])

  def test_maximum_of_an_image(self):
    maximum = node('ReduceMax', 'x', 'v', axes=[2, 3])
    self.assertIn('gmp', self.kinds(self.agrees([maximum, FLAT], ('n', 3, 4, 5), opsets=[7, 11, 12, 13])))
    self.agrees([node('ReduceMax', 'x a', 'v'), FLAT], ('n', 3, 4, 5), {'a': np.array([2, 3])}, [18, 20])

  def test_padding(self):
    pads = [0, 0, 1, 0, 0, 0, 2, 3]
    c = self.agrees([node('Pad', 'x', 'v', pads=pads), FLAT], ('n', 2, 3, 4), opsets=[7])
    self.assertIn(('Pad_v', 'zeropad', (('padding', ((1, 2), (0, 3))),), ('input_transpose',)), c.module.layers)
    self.agrees([node('Pad', 'x p', 'v'), FLAT], ('n', 2, 3, 4), {'p': np.array(pads)}, [11, 13, 18, 19, 21])
    pads = [0, 1, 0, 1, 0, 0, 0, 2]
    self.agrees([node('Pad', 'x p f', 'v'), FLAT], (1, 2, 3, 4), {'p': np.array(pads), 'f': np.float32(0)}, [13])

  def network(self):
    """Normalization, two convolutions with a branch, pooling and two dense layers: nodes and constants."""
    nodes = [node('Sub', 'x mean', 'x0'), node('Div', 'x0 std', 'x1'),
             node('Conv', 'x1 w1 b1', 'c1', pads=[1, 1, 1, 1]), node('Relu', 'c1', 'r1'),
             node('Conv', 'r1 w2', 'c2', pads=[1, 1, 1, 1]), node('Add', 'c2 r1', 's'),
             node('Concat', 's r1', 'cat', axis=1), node('MaxPool', 'cat', 'p', kernel_shape=[2, 2], strides=[2, 2]),
             node('Flatten', 'p', 'f'), node('Gemm', 'f w3 b3', 'h'), node('Sigmoid', 'h', 'g'),
             node('Gemm', 'g w4 b4', 'z'), node('Softmax', 'z', 'y')]
    constants = {'mean': floats(1, 3, 1, 1), 'std': np.abs(floats(3, 1, 1)) + 1, 'w1': floats(4, 3, 3, 3),
                 'b1': floats(4), 'w2': floats(4, 4, 3, 3), 'w3': floats(8 * 9, 7) / 5, 'b3': floats(7),
                 'w4': floats(7, 5), 'b4': floats(5)}
    return nodes, constants

  @parameterized.product(channels_last=(False, True), batch=('n', 1))
  def test_a_whole_network(self, channels_last, batch):
    nodes, constants = self.network()
    write(self.path, nodes[:-1], (batch, 3, 6, 6), constants, output='z')
    classifier = self.agrees_on_file(channels_last=channels_last)
    self.assertEqual(classifier.input_shape, (6, 6, 3) if channels_last else (3, 6, 6))
    # dense weights stay as they are, so one transposition stands behind the convolutions
    self.assertEqual(self.kinds(classifier).count('transpose'), 1 if channels_last else 2)
    np.testing.assert_array_equal(classifier.params['Gemm_h']['kernel'], constants['w3'])

  def test_mean_and_std(self):
    write(self.path, [node('Flatten', 'x', 'y')], ('n', 3, 2, 2))
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    classifier = onnx_read.read(self.path, channels_last=True, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    z = (pixels.astype(np.float32) / 255 - np.float32([0.1, 0.2, 0.3])) / np.float32([1, 2, 3])
    np.testing.assert_allclose(_logits(classifier, pixels), z.transpose(0, 3, 1, 2).reshape(2, -1), atol=1e-6)
    with self.assertRaisesRegex(BadInputError, 'channels_last=True'):
      onnx_read.read(self.path, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))

  def test_weights_as_nodes_and_in_other_files(self):
    nodes, constants = self.network()
    write(self.path, nodes, ('n', 3, 6, 6), constants)
    reference = onnx_read.read(self.path)
    given = [helper.make_node('Constant', [], [k], value=numpy_helper.from_array(v)) for k, v in constants.items()]
    write(self.path, [*given, *nodes], ('n', 3, 6, 6))
    as_nodes = onnx_read.read(self.path)
    write(self.path, nodes, ('n', 3, 6, 6), constants)
    onnx.save(onnx.load(self.path), self.path, save_as_external_data=True, location='weights.bin', size_threshold=0)
    external = onnx_read.read(self.path)
    for other in (as_nodes, external):
      self.assertEqual(other.module, reference.module)
      for name, array in flat_weights(reference.variables).items():
        np.testing.assert_array_equal(flat_weights(other.variables)[name], array)

  def test_constants_of_every_form(self):
    nodes = [helper.make_node('Constant', [], ['a'], value_float=2.), node('Add', 'x a', 'b'),
             helper.make_node('Constant', [], ['c'], value_floats=[1., 2., 3., 4.]), node('Mul', 'b c', 'd'),
             helper.make_node('Constant', [], ['e'], value_ints=[0, 2, 2]), node('Reshape', 'd e', 'f'),
             helper.make_node('Constant', [], ['g'], value_int=-1), node('Unsqueeze', 'f h', 'i'),
             node('Flatten', 'i', 'y')]
    self.agrees(nodes, ('n', 4), {'h': np.array([1])}, [13, 21])


class ShapeTest(OnnxCase):

  @parameterized.parameters(
    (('n', 2, 3, 4), [0, -1]), (('n', 2, 3, 4), [-1, 24]), (('n', 2, 3, 4), [0, 0, -1]), (('n', 2, 3, 4), [0, 3, 2, 4]),
    ((1, 2, 3, 4), [1, -1]), ((1, 2, 3, 4), [-1]), ((1, 2, 3, 4), [4, 6]), ((24,), [1, 24]), ((24,), [2, -1]))
  def test_reshape(self, input_shape, target):
    nodes = [node('Reshape', 'x s', 'r'), node('Relu', 'r', 'v')]
    opsets, constants = versions('Reshape'), {'s': np.array(target)}
    if input_shape[0] != 'n' and target[0] != 1:
      nodes.append(node('Reshape', 'v t', 'y'))
      constants['t'] = np.array([1, -1])
    else:
      nodes.append(FLAT)
    self.agrees(nodes, input_shape, constants, opsets)

  @parameterized.parameters('n', 1)
  def test_shapes_that_are_computed(self, batch):
    """How PyTorch used to write `x.view(x.size(0), -1)`, and the form with everything spelled out."""
    view = [node('Shape', 'x', 's'), node('Gather', 's zero', 'n', axis=0), node('Cast', 'n', 'c', to=7)]
    end = [node('Concat', 'u minus', 't', axis=0), node('Reshape', 'x t', 'y')]
    constants = {'zero': np.array(0), 'minus': np.array([-1])}
    self.agrees([*view, node('Unsqueeze', 'c', 'u', axes=[0]), *end], (batch, 2, 3), constants, [7, 9, 11])
    constants['axes'] = np.array([0])
    self.agrees([*view, node('Unsqueeze', 'c axes', 'u'), *end], (batch, 2, 3), constants, [13, 19, 21])
    whole = [node('Shape', 'x', 's', start=1, end=3), node('Shape', 'x', 'b', end=1),
             node('Concat', 'b s', 't', axis=0), node('Relu', 'x', 'r'), node('Reshape', 'r t', 'v'), FLAT]
    self.agrees(whole, (batch, 2, 3), {}, [15, 19, 21])

  @parameterized.parameters(
    (('n', 2, 3, 4), 1), ((1, 2, 3, 4), 0), (('n', 1, 1, 4), 3), ((2, 3, 1), 0), (('n', 2, 3), -2))
  def test_flatten(self, input_shape, axis):
    opsets = [v for v in versions('Flatten') if v >= 11 or axis >= 0]
    self.agrees(node('Flatten', 'x', 'y', axis=axis), input_shape, opsets=opsets)

  @parameterized.parameters(
    (('n', 2, 3, 4), [0, 2, 3, 1]), (('n', 2, 3, 4), [0, 3, 2, 1]), ((2, 3, 4), [2, 0, 1]), ((2, 3), None),
    ((1, 2, 3), [1, 0, 2]))
  def test_transpose(self, input_shape, perm):
    end = node('Flatten', 't', 'y', axis=1 if input_shape[0] == 'n' else 0)
    options = {} if perm is None else {'perm': perm}
    self.agrees([node('Transpose', 'x', 't', **options), end], input_shape, opsets=versions('Transpose'))

  def test_inverse_transpositions_vanish(self):
    nodes = [node('Transpose', 'x', 'a', perm=[0, 3, 1, 2]), node('Conv', 'a w', 'b'),
             node('Transpose', 'b', 'c', perm=[0, 2, 3, 1]), node('Flatten', 'c', 'y')]
    classifier = self.agrees(nodes, ('n', 4, 5, 3), {'w': floats(2, 3, 3, 3)}, [13])
    self.assertEqual(self.kinds(classifier), ['conv', 'flatten'])

  @parameterized.parameters(1, 2, 3, -1)
  def test_concat(self, axis):
    nodes = [node('Relu', 'x', 'a'), node('Tanh', 'x', 'b'), node('Concat', 'a b x', 'v', axis=axis), FLAT]
    self.agrees(nodes, ('n', 2, 3, 4))

  @parameterized.parameters(
    (('n', 4, 5), [1], [3], [1], None), (('n', 4, 5), [0, 1], [-1, 99], [1, -1], [2, 3]),
    ((4, 5), [1, 2], [4, 5], None, None), ((1, 4, 5), [0], [1], [0], None))
  def test_slice(self, input_shape, starts, ends, axes, steps):
    end = node('Flatten', 'v', 'y', axis=1 if input_shape[0] in ('n', 1) else 0)
    attributes = {'starts': starts, 'ends': ends} | ({'axes': axes} if axes else {})
    if steps is None and min(axes or [0]) >= 0:
      self.agrees([node('Slice', 'x', 'v', **attributes), end], input_shape, opsets=[7])
    constants = {'s': np.array(starts), 'e': np.array(ends)}
    constants |= {name: np.array(v) for name, v in (('a', axes), ('t', steps)) if v}
    inputs = f'x s e {"a" if axes else "_"} {"t" if steps else "_"}'
    self.agrees([node('Slice', inputs, 'v'), end], input_shape, constants, [10, 11, 13])

  def test_concat_without_a_batch_axis(self):
    self.agrees([node('Relu', 'x', 'a'), node('Concat', 'x a', 'y', axis=0)], (4,), opsets=[7, 11, 13])
    self.agrees([node('Relu', 'x', 'a'), node('Concat', 'x a', 'v', axis=0), node('Flatten', 'v', 'y', axis=0)], (1, 4),
                opsets=[13])

  @parameterized.parameters(
    ('Squeeze', ('n', 1, 3, 1), [1]), ('Squeeze', ('n', 1, 3, 1), [1, -1]), ('Squeeze', (1, 1, 3), None),
    ('Squeeze', (1, 2, 3), [0]), ('Unsqueeze', ('n', 3), [1]), ('Unsqueeze', ('n', 3), [1, 3]),
    ('Unsqueeze', (3,), [0]), ('Unsqueeze', (1, 3), [0]))
  def test_squeeze_and_unsqueeze(self, operator, input_shape, axes):
    start = [node('Relu', 'x', 'u')]
    end = [node('Flatten', 'v', 'y', axis=1 if input_shape[0] == 'n' else 0)]
    for opset in versions(operator):
      if opset < 11 and axes and min(axes) < 0:
        continue
      as_input = opset >= AXES_ARE_INPUTS and axes is not None
      options = {'axes': axes} if opset < AXES_ARE_INPUTS and axes is not None else {}
      middle = [node(operator, 'u axes' if as_input else 'u', 'v', **options)]
      self.agrees(start + middle + end, input_shape, {'axes': np.array(axes)} if as_input else {}, [opset])

  def test_constants_are_moved_too(self):
    nodes = [node('Reshape', 'a s', 'b'), node('Unsqueeze', 'b i', 'c'), node('Concat', 'c c', 'd', axis=1),
             node('Flatten', 'd', 'e', axis=1), node('Squeeze', 'e o', 'f'), node('Add', 'x f', 'y')]
    constants = {'a': floats(4), 's': np.array([1, 2, 2]), 'i': np.array([1]), 'o': np.array([0])}
    self.agrees(nodes, ('n', 8), constants, [13])

  def test_names_that_flax_would_refuse(self):
    nodes = [helper.make_node('MatMul', ['x', 'w'], ['a'], name='/block/layers/MatMul'),
             helper.make_node('Relu', ['a'], ['b'], name='layers'), helper.make_node('Tanh', ['b'], ['input']),
             helper.make_node('Relu', ['input'], ['c'], name='/layers/'),
             helper.make_node('Tanh', ['c'], ['y'], name='/')]
    classifier = self.agrees(nodes, ('n', 4), {'w': floats(4, 3)}, [13])
    self.assertEqual([r[0] for r in classifier.module.layers],
                     ['block_layers_MatMul', 'layers_', 'input_', 'layers__', 'tanh'])

  def test_what_the_output_does_not_need_is_not_read(self):
    nodes = [node('Relu', 'x', 'y'), node('LSTM', 'x x x', 'unused')]
    write(self.path, nodes, ('n', 4))
    self.assertEqual(self.kinds(onnx_read.read(self.path)), ['relu'])


class RandomNetworksTest(OnnxCase):

  @parameterized.product(seed=tuple(range(10)), channels_last=(False, True))
  def test_read_and_written_again(self, seed, channels_last):
    nodes, shape, constants = onnx_random.network(2 * seed + channels_last)
    write(self.path, nodes, ('n', *shape), constants)
    classifier = self.agrees_on_file(channels_last=channels_last, relative_to_largest=True)
    x = floats(3, *classifier.input_shape)
    reference = np.asarray(_logits(classifier, x))
    onnx_write.write(self.path, classifier)
    np.testing.assert_allclose(onnx_files.run(self.path, x), reference, atol=1e-5 * max(1, np.abs(reference).max()))


class RefusedTest(OnnxCase):

  @parameterized.named_parameters(
    ('operator', node('Erf', 'x', 'y'), r"node 'Erf_y' \(Erf\) .* the operator has no counterpart here"),
    ('domain', helper.make_node('Relu', ['x'], ['y'], name='r', domain='com.example'), "'r' .* domain 'com.example'"),
    ('two_products', node('MatMul', 'x x', 'y'), 'one factor is computed'),
    ('two_factors', node('Mul', 'x x', 'y'), 'both operands depend'),
    ('reciprocal', node('Div', 'w x', 'y'), 'a constant divided'),
    ('cut', node('Clip', 'x zero one', 'y'), r'it cuts to \[0.0, 1.0\]'),
    ('transposed_input', node('Gemm', 'x w', 'y', transA=1), 'transA'),
    ('float64', node('MatMul', 'x w64', 'y'), 'one factor is float64. Convert the model to float32'),
    ('float16', node('Add', 'x w16', 'y'), 'the constant is float16'),
    ('batch_in_a_row', node('Reshape', 'x flat', 'y'), 'it would mix the samples of a batch'),
    ('batch_moved', node('Transpose', 'x', 'y'), 'it would mix the samples'),
    ('batch_first_product', node('MatMul', 'w x', 'y'), 'it would mix the samples'),
    ('batch_constant', node('Add', 'x w', 'y'), 'it would mix the samples'),
    ('batch_joined', node('Concat', 'x x', 'y', axis=0), 'it would mix the samples'),
    ('joined_constant', node('Concat', 'x w', 'y', axis=1), 'it joins a constant'),
    ('tensor_of_matrices', node('MatMul', 'x w3', 'y'), r'a constant of shape \(2, 4, 4\)'),
    ('entries', node('Gather', 'x flat', 'y'), 'a choice of entries'),
    ('type', node('Cast', 'x', 'y', to=1), 'a change of type'),
    ('nothing', node('Identity', 'x', 'y'), 'no layers'),
    ('no_image', node('GlobalAveragePool', 'x', 'y'), 'only images'),
    ('training', node('Dropout', 'x _ yes', 'y'), 'training mode'))
  def test_what_has_no_counterpart_is_named(self, operation, message):
    constants = {'w': floats(4, 4), 'w64': floats(4, 4).astype(np.float64), 'w16': floats(4).astype(np.float16),
                 'w3': floats(2, 4, 4), 'zero': np.float32(0), 'one': np.float32(1), 'flat': np.array([-1]),
                 'yes': np.array(True)}
    self.refuses(UnsupportedLayerError, message, [operation], constants=constants)

  @parameterized.named_parameters(
    ('pool_dilation', node('MaxPool', 'x', 'v', kernel_shape=[2, 2], dilations=[2, 2]), 'dilations'),
    ('pool_indices', node('MaxPool', 'x', 'u v', kernel_shape=[2, 2]), "takes 'v', an output that is not computed"),
    ('negative_pads', node('Conv', 'x w', 'v', pads=[-1, 0, 0, 0]), 'negative padding'),
    ('computed_kernel', node('Conv', 'x x', 'v'), 'the kernel is computed'),
    ('mean_of_all', node('ReduceMean', 'x', 'v'), 'all axes at once'),
    ('mean_of_samples', node('ReduceMean', 'x', 'v', axes=[0]), 'it would mix the samples'),
    ('maximum_of_rows', node('ReduceMax', 'x', 'v', axes=[2]), 'only over two axes'),
    ('pads_of_ones', node('Pad', 'x p one', 'v'), 'only zeros'),
    ('pads_of_edges', node('Pad', 'x p', 'v', mode='edge'), 'only zeros'),
    ('pads_of_samples', node('Pad', 'x q', 'v'), 'padding of other than two axes'),
    ('backwards', node('Slice', 'x e z a t', 'v'), 'a negative step'),
    ('training_norm', node('BatchNormalization', 'x s s s s', 'v m1 m2', training_mode=1), 'only inference'),
    ('old_softmax', node('Softmax', 'x', 'v', axis=1), 'along several axes', 11),
    ('image_as_output', node('Relu', 'x', 'y'), r'output of the network has shape \(1, 2, 4, 4\)'))
  def test_options_of_images(self, operation, message, opset=15):
    nodes = [operation] if 'y' in operation.output else [operation, FLAT]
    constants = {'w': floats(2, 2, 1, 1), 's': floats(2), 'p': np.array([0, 0, 0, 0, 0, 0, 1, 0]), 'one': np.float32(1),
                 'q': np.array([1, 0, 0, 0, 0, 0, 0, 0]), 'e': np.array([3]), 'a': np.array([2]), 't': np.array([-1]),
                 'z': np.array([0])}
    self.refuses(UnsupportedLayerError, message, nodes, ('n', 2, 4, 4), constants, opset)

  def test_the_batch_size(self):
    convolution = [node('Conv', 'x w', 'v'), FLAT]
    self.refuses(UnsupportedLayerError, r'shape \(4, 2, 3, 3\); the first axis must be open, or 1', convolution,
                 (4, 2, 3, 3), {'w': floats(2, 2, 1, 1)})
    self.refuses(UnsupportedLayerError, 'must be fixed', convolution, ('n', 2, 'h', 'w'), {'w': floats(2, 2, 1, 1)})
    self.refuses(UnsupportedLayerError, 'must be fixed', [node('Relu', 'x', 'y')], ('n',))
    self.refuses(UnsupportedLayerError, r'input has shape \(\)', [node('Relu', 'x', 'y')], ())

  def test_shapes_with_the_number_of_samples_elsewhere(self):
    nodes = [node('Shape', 'x', 's'), node('Gather', 's zero', 'n'), node('Concat', 'minus n', 't', axis=0),
             node('Reshape', 'x t', 'y')]
    self.refuses(UnsupportedLayerError, 'the shape depends on the number of samples', nodes,
                 constants={'zero': np.array([0]), 'minus': np.array([-1])})

  def test_inputs_and_outputs(self):
    two = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ['n', 4]) for name in ('x', 'z')]
    self.refuses(UnsupportedLayerError, r'2 inputs \(x, z\)', [node('Add', 'x z', 'y')], inputs=two)
    self.refuses(UnsupportedLayerError, r'2 outputs \(x, z\)', [node('Relu', 'x', 'z')], outputs=two)
    double = [helper.make_tensor_value_info('x', onnx.TensorProto.DOUBLE, ['n', 4])]
    self.refuses(UnsupportedLayerError, "input 'x' is not float32", [node('Relu', 'x', 'y')], inputs=double)
    shapeless = [helper.make_tensor_value_info('x', onnx.TensorProto.FLOAT, None)]
    self.refuses(UnsupportedLayerError, "shape of input 'x' is not given", [node('Relu', 'x', 'y')], inputs=shapeless)
    self.refuses(UnsupportedLayerError, 'does not depend on the input', [node('Identity', 'w', 'y')],
                 constants={'w': floats(3)})

  def test_versions(self):
    self.refuses(UnsupportedLayerError, 'version 6 of the ONNX operators', [node('Relu', 'x', 'y')], opset=6)
    write(self.path, [node('Relu', 'x', 'y')], ('n', 4))
    model = onnx.load(self.path)
    model.opset_import[0].version = 999
    self.path.write_bytes(model.SerializeToString())
    with self.assertRaisesRegex(UnsupportedLayerError, 'version 999'):
      onnx_read.read(self.path)

  def test_channels_last_is_for_images(self):
    write(self.path, [node('Relu', 'x', 'y')], ('n', 4))
    with self.assertRaisesRegex(BadInputError, 'channels_last is for images'):
      onnx_read.read(self.path, channels_last=True)


class WrongFileTest(OnnxCase):

  def dense(self, w=None, **more):
    return write(self.path, [node('MatMul', 'x w', 'y')], ('n', 4), {'w': floats(4, 3) if w is None else w}, **more)

  def test_weights_that_are_not_finite(self):
    for bad in (np.nan, np.inf):
      w = floats(4, 3)
      w[1, 2] = bad
      self.dense(w)
      with self.assertRaisesRegex(BadInputError, "weight 'params/MatMul_y/kernel' holds NaN or infinity"):
        onnx_read.read(self.path)

  @parameterized.named_parameters(
    ('rows', [node('MatMul', 'x w', 'y')], {'w': floats(5, 3)}, 'has 5 rows'),
    ('vector_in_gemm', [node('Gemm', 'x w', 'y')], {'w': floats(4)}, 'no matrix'),
    ('repeated', [node('Add', 'x w', 'y')], {'w': floats(3)}, "'Add_y' .* is malformed"),
    ('reshaped', [node('Reshape', 'x w', 'y')], {'w': np.array([0, 5])}, r'makes shape \(0, 5\) of \(1, 4\)'),
    ('permutation', [node('Transpose', 'x', 'y', perm=[0, 0])], {}, 'moves axes'),
    ('axis', [node('Concat', 'x x', 'y', axis=7)], {}, 'names axis 7 of 2'),
    ('squeezed', [node('Squeeze', 'x w', 'y')], {'w': np.array([1])}, 'removes axes'),
    ('unknown_tensor', [node('Relu', 'z', 'y')], {}, 'no valid ONNX model'),
    ('unknown_attribute', [node('Relu', 'x', 'y', alpha=1.)], {}, 'no valid ONNX model'),
    ('inputs', [node('Relu', 'x x', 'y')], {}, 'no valid ONNX model'))
  def test_operations_that_do_not_fit_together(self, nodes, constants, message):
    self.refuses(CorruptFileError, message, nodes, constants=constants)

  def test_images_that_do_not_fit(self):
    self.refuses(CorruptFileError, r'kernel of shape \(2, 3, 1, 1\) in 1 groups does not fit',
                 [node('Conv', 'x w', 'v'), FLAT], ('n', 2, 3, 3), {'w': floats(2, 3, 1, 1)})
    self.refuses(CorruptFileError, 'nothing is left of an image of 3 x 3',
                 [node('MaxPool', 'x', 'v', kernel_shape=[4, 4]), FLAT], ('n', 2, 3, 3))
    self.refuses(CorruptFileError, "weight 'params/BatchNormalization_v/bias' has shape",
                 [node('BatchNormalization', 'x a b a a', 'v'), FLAT], ('n', 2, 3, 3), {'a': floats(2), 'b': floats(3)})
    self.refuses(CorruptFileError, 'is malformed', [node('Conv', 'x w', 'v', strides=[1]), FLAT], ('n', 2, 3, 3),
                 {'w': floats(2, 2, 1, 1)})

  @parameterized.parameters(0., 0.05, 0.3, 0.6, 0.9, 0.99)
  def test_truncated_files(self, share):
    data = self.dense().read_bytes()
    self.path.write_bytes(data[:int(share * len(data))])
    with self.assertRaisesRegex(CorruptFileError, 'model.onnx'):
      onnx_read.read(self.path)

  def test_every_byte_changed_gives_a_model_or_a_typed_error(self):
    data = bytearray(self.dense().read_bytes())
    rng = np.random.default_rng(0)
    for i in range(0, len(data), 3):
      broken = bytearray(data)
      broken[i] = rng.integers(256)
      self.path.write_bytes(broken)
      with contextlib.suppress(JaxfixError):
        onnx_read.read(self.path)

  def test_other_files(self):
    with self.assertRaisesRegex(DataNotFoundError, 'model.onnx'):
      onnx_read.read(self.path)
    self.path.write_text('a text that is long enough')
    with self.assertRaisesRegex(CorruptFileError, 'truncated or not an ONNX model'):
      onnx_read.read(self.path)

  def external(self, **entries):
    self.dense()
    model = onnx.load(self.path)
    (tensor,) = model.graph.initializer
    data = tensor.raw_data
    tensor.ClearField('raw_data')
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {'location': 'w.bin', **entries}.items():
      tensor.external_data.add(key=key, value=value)
    self.path.write_bytes(model.SerializeToString())
    (self.path.parent / 'w.bin').write_bytes(data)
    return data

  def test_weights_in_other_files(self):
    self.external(offset='0', length='48')
    self.agrees_on_file()
    self.external(offset='4', length='48')
    with self.assertRaisesRegex(CorruptFileError, 'is truncated: 44 of 48 bytes'):
      onnx_read.read(self.path)
    self.external(length='44')
    with self.assertRaisesRegex(CorruptFileError, "tensor 'w' is malformed"):
      onnx_read.read(self.path)
    self.external(offset='-1')
    with self.assertRaisesRegex(CorruptFileError, 'malformed reference'):
      onnx_read.read(self.path)
    self.external(offset='zero')
    with self.assertRaisesRegex(CorruptFileError, 'malformed reference'):
      onnx_read.read(self.path)
    self.external(location='v.bin')
    with self.assertRaisesRegex(DataNotFoundError, 'v.bin, which does not exist'):
      onnx_read.read(self.path)

  def test_weights_outside_the_folder_are_not_read(self):
    outside = self.path.parent / 'outside'
    outside.mkdir()
    target = pathlib.Path(tempfile.mkdtemp()) / 'secret'
    target.write_bytes(bytes(48))
    (self.path.parent / 'link').symlink_to(target)
    for location in ('/etc/passwd', '../secret', 'outside/../../secret', 'link'):
      self.external(location=location)
      with self.assertRaisesRegex(UnsupportedLayerError, 'outside the folder of the model'):
        onnx_read.read(self.path)

  def test_without_onnx_the_extra_is_named(self):
    self.dense()
    with mock.patch.dict(sys.modules, {'onnx': None}), self.assertRaisesRegex(JaxfixError, r'jaxfix\[onnx\]'):
      onnx_read.read(self.path)


class AcasXuTest(OnnxCase):

  @parameterized.product(name=('1_1', '2_9', '3_3'), dialect=('', '_eran'))
  def test_networks_in_both_dialects(self, name, dialect):
    self.path = shared_data(f'acasxu/onnx/ACASXU_run2a_{name}_batch_2000{dialect}.onnx')
    classifier = self.agrees_on_file()
    self.assertEqual(classifier.input_shape, (5,) if dialect else (1, 1, 5))
    self.assertEqual(interchange.read_classifier(self.path).module, classifier.module)
    dense = [record[0] for record in classifier.module.layers if record[1] == 'dense']
    with np.load(shared_data('acasxu/acasxu_37.npz')) as reference:
      for i, layer in enumerate(dense):
        np.testing.assert_array_equal(classifier.params[layer]['kernel'], reference[f'{name}/W{i}'].T)
        np.testing.assert_array_equal(classifier.params[layer]['bias'], reference[f'{name}/b{i}'])
    self.assertLen(dense, 7)


if __name__ == '__main__':
  absltest.main()
