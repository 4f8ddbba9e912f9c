"""Random ONNX networks that move axes about: what an importer that keeps another order of axes can get wrong."""
import math

import numpy as np

from tests.interchange.onnx_files import node


def network(seed):
  """Nodes, input shape `(c, h, w)` of a sample, and constants of a network of up to 8 random operations."""
  rng = np.random.default_rng(seed)
  draw = lambda low, high: int(rng.integers(low, high + 1))
  floats = lambda *shape: rng.normal(size=shape).astype(np.float32)
  nodes, constants, seen = [], {}, []
  start = shape = tuple(draw(2, 5) for _ in range(3))
  last = 'x'

  def add(operator, inputs, **attributes):
    names = []
    for given in inputs:
      if not isinstance(given, str):
        constants[f'c{len(constants)}'] = given
        given = f'c{len(constants) - 1}'
      names.append(given)
    nodes.append(node(operator, ' '.join(names), f't{len(nodes)}', **attributes))
    return f't{len(nodes) - 1}'

  for _ in range(draw(3, 8)):
    rank, choices = len(shape), ['tanh', 'constant', 'reshape', 'transpose', 'concat', 'add', 'product', 'unsqueeze']
    if rank == 3:
      choices += 2 * ['norm', 'global', 'mean', 'slice'] + (2 * ['conv', 'pool'] if min(shape[1:]) > 1 else [])
    seen.append((last, shape))
    alike = [name for name, s in seen if s == shape]
    axis = draw(0, rank - 1)
    match rng.choice(choices):
      case 'tanh':
        last = add('Tanh', [last])
      case 'constant':
        inputs = [last, floats(*(n if rng.random() < 0.5 else 1 for n in shape[axis:]))]
        last = add(rng.choice(['Add', 'Sub', 'Mul']), inputs[::rng.choice([1, -1])])
      case 'reshape':
        flat, new = math.prod(shape), []
        for _ in range(draw(0, 2)):
          new.append(int(rng.choice([n for n in range(1, flat + 1) if flat % n == 0])))
          flat //= new[-1]
        shape = *new, flat
        last = add('Reshape', [last, np.array([0, *shape])])
      case 'transpose':
        order = rng.permutation(rank).tolist()
        shape = tuple(shape[i] for i in order)
        last = add('Transpose', [last], perm=[0, *(1 + i for i in order)])
      case 'concat':
        shape = *shape[:axis], 2 * shape[axis], *shape[axis + 1:]
        last = add('Concat', [last, rng.choice(alike)], axis=1 + axis)
      case 'add':
        last = add('Add', [last, rng.choice(alike)])
      case 'product':
        k = draw(1, 4)
        if rank > 1 and rng.random() < 0.5:
          last, shape = add('MatMul', [floats(k, shape[-2]), last]), (*shape[:-2], k, shape[-1])
        else:
          last, shape = add('MatMul', [last, floats(shape[-1], k)]), (*shape[:-1], k)
      case 'unsqueeze':
        shape = *shape[:axis], 1, *shape[axis:]
        last = add('Unsqueeze', [last, np.array([1 + axis])])
      case 'norm':
        last = add('BatchNormalization', [last, *(np.abs(floats(shape[0])) for _ in range(4))])
      case 'global':
        last, shape = add('GlobalAveragePool', [last]), (shape[0], 1, 1)
      case 'mean':
        last, shape = add('ReduceMean', [last], axes=[1 + axis], keepdims=0), (*shape[:axis], *shape[axis + 1:])
      case 'slice':
        end = draw(1, shape[axis])
        last = add('Slice', [last, np.array([0]), np.array([end]), np.array([1 + axis])])
        shape = *shape[:axis], end, *shape[axis + 1:]
      case 'conv':
        k = draw(1, 4)
        last, shape = add('Conv', [last, floats(k, shape[0], 2, 2)], pads=[1, 0, 0, 1]), (k, *shape[1:])
      case 'pool':
        last = add(rng.choice(['MaxPool', 'AveragePool']), [last], kernel_shape=[2, 2], strides=[2, 1])
        shape = shape[0], shape[1] // 2, shape[2] - 1
  return [*nodes, node('Flatten', last, 'y')], start, constants
