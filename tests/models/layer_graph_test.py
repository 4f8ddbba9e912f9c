"""Networks given as data."""
import jax
import numpy as np
from absl.testing import absltest, parameterized

from jaxfix import models
from jaxfix.classifier import Classifier
from jaxfix.errors import BadInputError, UnknownNameError
from jaxfix.models import layers, structure
from jaxfix.models.layer_graph import LayerGraph, Record
from tests.networks import images, network, quick_jit

LENET = (
  Record('conv1', 'conv', (('features', 8), ('kernel_size', (3, 3))), ('input',)), Record('r1', 'relu', (), ('conv1',)),
  Record('p1', 'maxpool', (('window', (2, 2)),), ('r1',)),
  Record('conv2', 'conv', (('features', 16), ('kernel_size', (3, 3))), ('p1',)), Record('r2', 'relu', (), ('conv2',)),
  Record('p2', 'maxpool', (('window', (2, 2)),), ('r2',)), Record('flat', 'flatten', (), ('p2',)),
  Record('fc1', 'dense', (('features', 64),), ('flat',)), Record('r3', 'relu', (), ('fc1',)),
  Record('fc2', 'dense', (('features', 32),), ('r3',)), Record('r4', 'relu', (), ('fc2',)),
  Record('drop', 'dropout', (('rate', 0.5),), ('r4',)), Record('fc3', 'dense', (('features', 10),), ('drop',)))


class LayerGraphTest(parameterized.TestCase):

  def test_the_same_layers_with_the_same_weights_are_the_same_network(self):
    c = network('lenet5', (8, 8, 1), variant='small')
    graph, x = LayerGraph(LENET), images((8, 8, 1))
    run = lambda module: quick_jit(lambda v, x: module.apply(v, x, features=True))(c.variables, x)
    for ours, theirs in zip(run(graph), run(c.module), strict=True):
      np.testing.assert_allclose(ours, theirs, atol=1e-6)

  def test_skips_join_what_they_name_and_statistics_move_in_training(self):
    records = (Record('b', 'bn'), Record('t', 'tanh', (), ('b',)), Record('s', 'sigmoid', (), ('b',)),
               Record('both', 'concat', (), ('t', 's', 'input')), Record('sum', 'add', (), ('both', 'both')))
    x = images((4,))
    stats = {'mean': np.ones(4, np.float32), 'var': np.full(4, 4 - 1e-5, np.float32)}
    params = {'scale': np.full(4, 2, np.float32), 'bias': np.zeros(4, np.float32)}
    variables = {'params': {'b': params}, 'batch_stats': {'b': stats}}
    run = quick_jit(lambda v, x, train: LayerGraph(records).apply(v, x, train=train, mutable=['batch_stats']),
                    static_argnums=2)
    y, _ = run(variables, x, False)
    b = x - 1
    np.testing.assert_allclose(y, 2 * np.concatenate([np.tanh(b), 1 / (1 + np.exp(-b)), x], 1), atol=1e-5)
    _, after = run(variables, x, True)
    np.testing.assert_allclose(after['batch_stats']['b']['mean'], 0.9 + 0.1 * x.mean(0), atol=1e-5)

  def test_description_survives_json(self):
    module = LayerGraph(tuple(map(tuple, LENET)), ('a note',))
    description = models.describe(module)
    again = models.build(description['model'], **description['options'])
    self.assertEqual(again, module)
    self.assertEqual(hash(again), hash(module))
    self.assertEqual(models.build('layer_graph', layers=LENET, notes=('a note',)), module)

  def test_layers_are_listed(self):
    c = network('layer_graph', (8, 8, 1), layers=LENET)
    self.assertEqual([layer.name for layer in structure.layer_list(c)], [r.name for r in LENET])
    self.assertEqual(structure.longest_dense_run(structure.layer_list(c)), 3)

  @parameterized.named_parameters(
    ('unknown_kind', [Record('a', 'denze', (('features', 2),))], UnknownNameError, "Did you mean 'dense'"),
    ('unknown_option', [Record('a', 'dense', (('units', 2),))], BadInputError, "'a' of kind 'dense' refuses"),
    ('unknown_input', [Record('a', 'relu'), Record('b', 'relu', (), ('c',))], UnknownNameError, "layer 'c'"),
    ('name_used_twice', [Record('a', 'relu'), Record('a', 'relu', (), ('a',))], BadInputError, "'a' is used twice"),
    ('name_with_slash', [Record('a/b', 'relu')], BadInputError, "'a/b'"),
    ('empty', [], BadInputError, 'at least one layer'))
  def test_bad_graphs_are_errors(self, records, error, message):
    with self.assertRaisesRegex(error, message):
      layers.variable_shapes(LayerGraph(tuple(records)), (4,))

  def test_it_is_static_under_jit(self):
    records = (Record('a', 'dense', (('features', 2),)),)
    make = lambda: Classifier({'params': {'a': {'kernel': np.ones((4, 2)), 'bias': np.zeros(2)}}}, LayerGraph(records),
                              (4,), 2)
    traces = []
    run = jax.jit(lambda c, x: (traces.append(0), c.logits(x))[1])
    run(make(), images((4,)))
    run(make(), images((4,)))
    self.assertLen(traces, 1)


if __name__ == '__main__':
  absltest.main()
