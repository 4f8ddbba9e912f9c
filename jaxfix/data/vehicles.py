"""Which classes of a data set are vehicles: the ones whose mistakes matter most in the study of repair methods.

CIFAR-10 and CIFAR-10S have four. For ImageNet they are the 44 of its 1,000 synsets that have "wheeled vehicle"
(n04576211) among their hypernyms in WordNet 3.0, "motor vehicle" and its 22 synsets included: found by following the
hypernym pointers of WordNet's data.noun, whose offsets are the numbers of the synsets. Boats, aircraft, sleds, buses
and trains are no wheeled vehicles there (a bus is "public transport"). The study prints no list.
"""
import types
from collections.abc import Mapping, Sequence

from jaxfix.problem import ClassImportance

_CIFAR10 = ('airplane', 'automobile', 'ship', 'truck')

WHEELED: Mapping[str, int] = types.MappingProxyType({
  'n02701002': 407, 'n02704792': 408, 'n02797295': 428, 'n02814533': 436, 'n02835271': 444, 'n02930766': 468,
  'n03100240': 511, 'n03272562': 547, 'n03345487': 555, 'n03384352': 561, 'n03393912': 565, 'n03417042': 569,
  'n03444034': 573, 'n03445924': 575, 'n03478589': 586, 'n03538406': 603, 'n03594945': 609, 'n03599486': 612,
  'n03670208': 627, 'n03770679': 656, 'n03776460': 660, 'n03777568': 661, 'n03785016': 665, 'n03791053': 670,
  'n03792782': 671, 'n03796401': 675, 'n03868242': 690, 'n03895866': 705, 'n03930630': 717, 'n03977966': 734,
  'n04037443': 751, 'n04065272': 757, 'n04204347': 791, 'n04252077': 802, 'n04252225': 803, 'n04285008': 817,
  'n04310018': 820, 'n04335435': 829, 'n04389033': 847, 'n04461696': 864, 'n04465501': 866, 'n04467665': 867,
  'n04482393': 870, 'n04509417': 880})
"""Synset -> class of ImageNet's wheeled vehicles, classes numbered in the order of all 1,000 sorted synsets."""


def vehicles(data: str, class_names: Sequence[str]) -> tuple[int, ...]:
  """The vehicle classes of a data set, ascending; none for data sets that the study gives no important classes.

  Args:
    data: name of the data set.
    class_names: `[c]` of its classes. ImageNet with fewer than 1,000 classes is looked up by synset.
  """
  if data == 'imagenet' and len(class_names) == 1000:
    return tuple(WHEELED.values())
  names = {'cifar10': _CIFAR10, 'cifar10s': _CIFAR10, 'imagenet': WHEELED}.get(data, ())
  return tuple(i for i, name in enumerate(class_names) if name in names)


def vehicles_first(data: str, class_names: Sequence[str]) -> ClassImportance | None:
  """Vehicles are critical and count twice as much as other classes; None for a data set without vehicle classes."""
  critical = vehicles(data, class_names)
  if not critical:
    return None
  return ClassImportance(critical, {c: 2. if c in critical else 1. for c in range(len(class_names))})
