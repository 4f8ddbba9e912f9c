"""The study's LeNet5 and 28x28 images for the suites: given files where there are any, random ones otherwise."""
import pathlib

import jax
import numpy as np

from jaxfix import classifier as classifiers
from jaxfix import interchange, models, predict
from jaxfix.classifier import Classifier
from launch.benchmarks.pairs import Options


def lenet5(options: Options) -> Classifier:
  """The model under test."""
  if options.model:
    return interchange.read_classifier(options.model)
  return classifiers.create(models.build('lenet5'), input_shape=(28, 28, 1), num_classes=10, key=jax.random.key(0))


def images(classifier: Classifier, n: int, options: Options) -> tuple[np.ndarray, np.ndarray]:
  """n images `[n, 28, 28, 1]` uint8 and the labels that the classifier gives them (so that it is right on all)."""
  path = pathlib.Path(options.data_dir or '') / 'mnist.npz'
  if options.data_dir and path.exists():
    with np.load(path, allow_pickle=False) as arrays:
      x = arrays['x_test'][:n, ..., None]
  else:
    x = np.random.default_rng(0).integers(0, 256, (n, 28, 28, 1), dtype=np.uint8)
  return x, predict.labels(classifier, x)


def mlp(path: str | pathlib.Path, name: str = '') -> Classifier:
  """A ReLU network of an .npz with W0, b0, W1, ... (out, in), or NAME/W0 and so on where it holds several."""
  with np.load(path, allow_pickle=False) as arrays:
    prefix = f'{name}/' if name else ''
    count = sum(key.startswith(f'{prefix}W') for key in arrays.files)
    weights = [(arrays[f'{prefix}W{i}'], arrays[f'{prefix}b{i}']) for i in range(count)]
  params = {f'fc{i + 1}': {'kernel': np.ascontiguousarray(w.T), 'bias': b} for i, (w, b) in enumerate(weights)}
  module = models.build('mlp', num_classes=len(weights[-1][1]), hidden=tuple(len(b) for _, b in weights[:-1]))
  return Classifier({'params': params}, module, weights[0][0].shape[1:], len(weights[-1][1]))
