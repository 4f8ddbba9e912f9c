"""Small networks in normal form, written by hand: no tracing, no compilation."""
import numpy as np

from jaxfix.verify.normal_form import NormalForm, Op


class Builder:
  """Collects operations; every method adds one and returns its place."""

  def __init__(self, num_inputs):
    self.ops = [Op('input', (), None, num_inputs)]

  def add(self, kind, *inputs, array=None, size=None):
    if array is not None:
      array = np.asarray(array, np.int32 if kind in ('gather', 'sum') else np.float32)
    self.ops.append(Op(kind, inputs, array, self.ops[inputs[0]].size if size is None else size))
    return len(self.ops) - 1

  def dense(self, place, w, b):
    """w: `[out, in]`, as papers write it."""
    place = self.add('matmul', place, array=np.transpose(w), size=len(w))
    return self.add('shift', place, array=b)

  def form(self):
    return NormalForm(tuple(self.ops))


def mlp(layers):
  """ReLU between layers (w `[out, in]`, b `[out]`)."""
  builder = Builder(np.shape(layers[0][0])[1])
  place = 0
  for w, b in layers[:-1]:
    place = builder.add('relu', builder.dense(place, w, b))
  builder.dense(place, *layers[-1])
  return builder.form()


def random_layers(rng, sizes):
  """Layers with random weights and biases; `sizes` from inputs to outputs."""
  return [(rng.normal(size=(o, i)) / np.sqrt(i), rng.normal(size=o) / 2)
          for i, o in zip(sizes[:-1], sizes[1:], strict=True)]


def random_mlp(rng, sizes):
  return mlp(random_layers(rng, sizes))


def random_coarse(rng, sizes):
  """Weights are halves from -1 to 1, so that many borders coincide or meet in a point."""
  return mlp([(rng.integers(-2, 3, size=(o, i)) / 2, rng.integers(-2, 3, size=o) / 2)
              for i, o in zip(sizes[:-1], sizes[1:], strict=True)])


def random_maxout(rng, sizes):
  """Like `random_mlp` but every second hidden layer takes the maximum of two affine maps, and adds its input."""
  builder, place = Builder(sizes[0]), 0
  layers = random_layers(rng, sizes)
  for i, (w, b) in enumerate(layers[:-1]):
    before, place = place, builder.dense(place, w, b)
    if i % 2:
      place = builder.add('relu', place)
    else:
      place = builder.add('maximum', place, builder.dense(before, rng.normal(size=w.shape) / 2, b))
    if builder.ops[before].size == builder.ops[place].size:
      place = builder.add('add', place, before)
  builder.dense(place, *layers[-1])
  return builder.form()


def toy():
  """N1 of V-section 12."""
  return mlp([([[-1.], [1.], [.5]], [0., -2., 0.]), ([[.5, -.5, 1.]], [-.5])])


def absolute_sum():
  """y = relu(x1 + x2) + relu(x1 - x2) of V-section 12, no. 4."""
  return mlp([([[1., 1.], [1., -1.]], [0., 0.]), ([[1., 1.]], [0.])])
