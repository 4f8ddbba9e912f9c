"""The vehicle classes of the study's data sets."""
import numpy as np
import pytest
from absl.testing import absltest

from jaxfix.data import vehicles
from jaxfix.problem import check_importance
from tests.shared_data import shared_data

_CIFAR = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')


class VehiclesTest(absltest.TestCase):

  def test_cifar10_has_four_that_count_twice(self):
    for name in ('cifar10', 'cifar10s'):
      importance = vehicles.vehicles_first(name, _CIFAR)
      self.assertEqual(importance.critical, (0, 1, 8, 9))
      self.assertEqual([importance.precisions[c] for c in range(10)], [2, 2, 1, 1, 1, 1, 1, 1, 2, 2])
      self.assertIsNone(importance.confusions)
      self.assertIsNone(importance.risks)

  def test_the_rule_of_the_study_gives_others_none(self):
    for name in ('mnist', 'utkface', 'digits', 'moons', 'tiny_imagenet'):
      self.assertIsNone(vehicles.vehicles_first(name, ('ship', 'n02701002')), name)

  def test_imagenet_has_44_wherever_its_classes_lie(self):
    names = tuple(map(str, range(1000)))
    importance = vehicles.vehicles_first('imagenet', names)
    check_importance(importance, 1000)
    self.assertLen(importance.critical, 44)
    self.assertEqual(list(vehicles.WHEELED), sorted(vehicles.WHEELED))   # both are in the order of synsets
    self.assertEqual(list(importance.critical), sorted(importance.critical))
    self.assertEqual(vehicles.vehicles('imagenet', ('n01440764', 'n02701002', 'n04509417')), (1, 2))
    self.assertIsNone(vehicles.vehicles_first('imagenet', ('n01440764',)))

  @pytest.mark.slow
  def test_synsets_and_numbers_are_those_of_the_data_pack(self):
    with np.load(f'{shared_data()}/imagenet_sample.npz', allow_pickle=False) as pack:
      synsets, names = pack['all_synsets'].tolist(), pack['all_names'].tolist()
    for synset, number in vehicles.WHEELED.items():
      self.assertEqual(synsets[number], synset)
    self.assertContainsSubset(('ambulance', 'minivan', 'pickup', 'fire_engine', 'tank', 'unicycle', 'streetcar'),
                              [names[c] for c in vehicles.WHEELED.values()])
    for other in ('airliner', 'bullet_train', 'school_bus', 'speedboat', 'bobsled'):
      self.assertNotIn(names.index(other), vehicles.WHEELED.values())


if __name__ == '__main__':
  absltest.main()
