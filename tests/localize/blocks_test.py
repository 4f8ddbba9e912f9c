"""How networks are cut into blocks, and that a truncated network gives the block's output."""
import jax
import numpy as np
import pytest
from absl.testing import absltest, parameterized

from jaxfix import intervene
from jaxfix.localize import blocks as cutting
from jaxfix.localize.blocks import Block
from tests.networks import abstract, images, network, quick_jit

# A residual unit without names to go by: the shortcut is called last, and the sum is followed by a pooling.
_UNNAMED = (
  ('a', 'conv', (('features', 3), ('kernel_size', (3, 3)))), ('b', 'relu', (), ('a',)),
  ('c', 'conv', (('features', 4), ('kernel_size', (3, 3)), ('strides', (2, 2))), ('b',)), ('d', 'bn', (), ('c',)),
  ('e', 'conv', (('features', 4), ('kernel_size', (3, 3))), ('d',)),
  ('f', 'conv', (('features', 4), ('kernel_size', (1, 1)), ('strides', (2, 2))), ('b',)), ('g', 'add', (), ('e', 'f')),
  ('h', 'relu', (), ('g',)), ('i', 'maxpool', (('window', (2, 2)),), ('h',)), ('j', 'flatten', (), ('i',)),
  ('k', 'dense', (('features', 5),), ('j',)), ('l', 'tanh', (), ('k',)), ('m', 'dense', (('features', 3),), ('l',)))

_CUTS = (
  ('lenet5', (28, 28, 1), {}, 'conv1:pool1:2 conv2:pool2:1 fc1:relu3:1 fc2:relu4:1'),
  ('facenet', (48, 48, 3), {}, 'conv1:pool1:2 conv2:pool2:2 conv3:pool3:1 conv4:relu4:1 fc1:relu5:1'),
  ('vgg16', (32, 32, 3), {}, 'conv2:pool1:2 conv4:pool2:2 conv7:pool3:2 conv10:pool4:1 conv13:pool5:1 fc1:relu14:1 '
                             'fc2:relu15:1'),
  ('alexnet', (64, 64, 3), {}, 'conv1:pool1:2 conv2:pool2:2 conv5:pool5:1 fc1:relu6:1 fc2:relu7:1'),
  ('mlp', (5,), {'hidden': (4, 3, 2)}, 'fc1:relu1:1 fc2:relu2:1 fc3:relu3:1'),
  ('mlp', (5,), {'hidden': ()}, ''),
  ('layer_graph', (16, 16, 2), {'layers': _UNNAMED}, 'e:i:2 k:l:1'),
)


def _stages(units, last, joined):
  return ' '.join(f'stage{s}/unit{u}/{last}:stage{s}/unit{u}/{joined}:{2 if s < 3 else 1}'
                  for s, u in enumerate(units, 1))


def _wanted(expected):
  return tuple(Block(target, output, int(grid)) for target, output, grid in
               (entry.split(':') for entry in expected.split()))


class BlocksTest(parameterized.TestCase):

  @parameterized.parameters(
    *_CUTS,
    ('resnet18', (32, 32, 3), {}, _stages((2, 2, 2, 2), 'conv2', 'relu2')),
    ('resnet18', (64, 64, 3), {'stem': 'imagenet'}, _stages((2, 2, 2, 2), 'conv2', 'relu2')),
    ('resnet50', (32, 32, 3), {'units': (1, 2, 2, 1)}, _stages((1, 2, 2, 1), 'conv3', 'relu3')),
    ('densenet121', (32, 32, 3), {'units': (2, 1, 2, 1)}, _stages((2, 1, 2, 1), 'conv2', 'concat')),
    ('densenet121', (64, 64, 3), {'units': (2, 1, 2, 1), 'form': 'imagenet'},
     _stages((2, 1, 2, 1), 'conv2', 'concat')))
  def test_networks_are_cut_as_specified(self, name, input_shape, options, expected):
    self.assertEqual(cutting.blocks(abstract(name, input_shape, **options)), _wanted(expected))

  def test_a_shortcut_is_never_the_target(self):
    cut = cutting.blocks(abstract('resnet18', (8, 8, 3), units=(1, 1)))
    self.assertEqual([b.target for b in cut], ['stage1/unit1/conv2', 'stage2/unit1/conv2'])

  def test_hidden_layers_leave_out_the_output_and_settle_after_their_activation(self):
    for name, shape, options, last, settled in (
        ('vgg16', (32, 32, 3), {}, 'fc2', 'relu15'),
        ('densenet121', (8, 8, 3), {'units': (2, 1)}, 'stage2/unit1/conv2', 'relu_last'),
        ('resnet18', (8, 8, 3), {'units': (1, 2)}, 'stage2/unit2/conv2', 'stage2/unit2/relu2')):
      nodes = cutting.data_flow(abstract(name, shape, **options))
      self.assertEqual(cutting.hidden_layers(nodes)[-1], last)
      self.assertEqual(cutting.settled_output(nodes, last), settled)
    with self.assertRaisesRegex(LookupError, 'conv9'):
      cutting.settled_output(nodes, 'conv9')

  def test_a_truncated_network_gives_the_output_of_its_last_layer_and_can_be_cut(self):
    whole, z = network('resnet18', (8, 8, 3), width=1 / 16, units=(1, 1)), images((8, 8, 3))
    block = cutting.blocks(whole)[1]

    @quick_jit
    def run(whole, z):
      part = cutting.truncate(whole, block.output)
      cache = intervene.prefix(part, z, (block.target,))
      recorded = intervene.record(whole, z, (block.output,))[block.output][1]
      return recorded, part.logits_of_normalized(z), intervene.suffix(part, cache, (block.target,))

    recorded, *others = run(whole, z)
    self.assertGreater(np.abs(recorded).max(), 0)
    for other in others:
      np.testing.assert_allclose(other, recorded, atol=1e-5)
    with self.assertRaisesRegex(LookupError, 'nowhere'):
      jax.eval_shape(cutting.truncate(whole, 'nowhere').logits_of_normalized, z)


@pytest.mark.slow   # traces hundreds of layers
class DeepTest(parameterized.TestCase):

  @parameterized.parameters(
    ('resnet50', (32, 32, 3), _stages((3, 4, 6, 3), 'conv3', 'relu3')),
    ('resnet101', (32, 32, 3), _stages((3, 4, 23, 3), 'conv3', 'relu3')),
    ('densenet121', (224, 224, 3), _stages((6, 12, 24, 16), 'conv2', 'concat')))
  def test_deep_networks_are_cut_as_specified(self, name, input_shape, expected):
    self.assertEqual(cutting.blocks(abstract(name, input_shape)), _wanted(expected))


if __name__ == '__main__':
  absltest.main()
