"""ONNX operators as records of a `LayerGraph`: `CONVERTERS[operator](draft, node, *inputs)` gives the output."""
import types

import numpy as np

from jaxfix.interchange.onnx_operators import elementwise, images, linear, shapes

CONVERTERS = types.MappingProxyType({
  'Add': elementwise.arithmetic('shift', 'x + c', 'x + c', np.add),
  'AveragePool': images.pool,
  'BatchNormalization': linear.batch_norm,
  'Cast': shapes.cast,
  'Clip': elementwise.clip,
  'Concat': shapes.concat,
  'Constant': shapes.constant,
  'Conv': images.conv,
  'Div': elementwise.arithmetic('scale', 'x / c', None, np.divide),
  'Dropout': elementwise.dropout,
  'Flatten': shapes.flatten,
  'Gather': shapes.gather,
  'Gemm': linear.gemm,
  'GlobalAveragePool': images.global_average,
  'Identity': lambda draft, node, x: x,
  'MatMul': linear.matmul,
  'MaxPool': images.pool,
  'Mul': elementwise.arithmetic('scale', 'x * c', 'x * c', np.multiply),
  'Pad': images.pad,
  'ReduceMax': images.reduce,
  'ReduceMean': images.reduce,
  'Relu': elementwise.activation('relu'),
  'Reshape': shapes.reshape,
  'Shape': shapes.shape,
  'Sigmoid': elementwise.activation('sigmoid'),
  'Slice': shapes.slice_,
  'Softmax': elementwise.softmax,
  'Squeeze': shapes.squeeze,
  'Sub': elementwise.arithmetic('shift', 'x - c', 'c - x', np.subtract),
  'Tanh': elementwise.activation('tanh'),
  'Transpose': shapes.transpose,
  'Unsqueeze': shapes.unsqueeze,
})
"""ONNX operator -> function of the draft, the node and its inputs that gives the output."""
