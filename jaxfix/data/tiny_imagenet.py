"""Tiny ImageNet: 500 training and 50 validation images of 64x64 for each of 200 classes, or of a subset of them."""
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from jaxfix.data import image_folder, packs, sources, splits
from jaxfix.data.splits import Splits
from jaxfix.errors import CorruptFileError, DataNotFoundError, require
from jaxfix.problem import Split

TRAIN_SIZES, TEST_SIZES = (90_000, 10_000), (5_000, 5_000)
"""(train, valid) of the 100,000 training and (repair, test) of the 10,000 validation images: the study's rules (a
tenth of the training data, halves of the test data) on a set that it does not use."""

MEAN, STD = (0.480, 0.448, 0.397), (0.230, 0.226, 0.226)
"""A channel, in units of pixels / 255 (the code of HybridRepair)."""

_SHAPE = (64, 64, 3)
_ANNOTATIONS = 'val_annotations.txt'
_WANTED = sources.Wanted(
  'tiny_imagenet', files=('tiny_imagenet.npz', 'tiny_imagenet40_jpeg.npz'),
  folders=('tiny_imagenet', 'tiny-imagenet-200'), layout='{train,val}/<class>/*.JPEG',
  fetch='the original archive is at cs231n.stanford.edu/tiny-imagenet-200.zip (ImageNet terms)')


def load(*, data_dir: str | os.PathLike | None = None, seed: int = 0,
         indices: Mapping[str, np.ndarray] | None = None, cache_dir: str | os.PathLike | None = None) -> Splits:
  """The data set, split; images uint8 `[n, 64, 64, 3]`, gray files repeated in three channels.

  A subset of the classes is split in the same proportions, sizes rounded down.

  Args:
    data_dir: folder with an archive, with image folders a class, or with the unpacked original (`train/<synset>/images`
      and `val/images` with `val_annotations.txt`). Classes are numbered in the order of the sorted synsets.
    seed: of the permutations.
    indices: ready index arrays (`load_indices`) instead.
    cache_dir: folder for decoded copies of a JPEG archive.
  Raises:
    DataNotFoundError, CorruptFileError, BadInputError: see `jaxfix.data.load`.
  """
  location = sources.locate(_WANTED, data_dir)
  if location.kind == 'npz':
    names = packs.read(location.path, ('class_names',))['class_names']
    require(names.ndim == 1 and names.dtype.kind in 'US', f"{location.path}: 'class_names' must be a list of names.",
            CorruptFileError)
    classes = tuple(str(name) for name in names.astype(str))
    train, test = (Split(*packs.read_part(location.path, part, _SHAPE, len(classes), cache_dir))
                   for part in ('train', 'val'))
  else:
    classes = tuple(image_folder.class_folders(location.path / 'train'))
    train, test = (_read_folder(location.path / part, classes) for part in ('train', 'val'))
  rows = splits.two_pools(len(train), len(test), TRAIN_SIZES, TEST_SIZES, seed=seed, indices=indices)
  return Splits(name='tiny_imagenet', source=location.source, train=train.take(rows['train']),
                valid=train.take(rows['valid']), repair=test.take(rows['repair']), test=test.take(rows['test']),
                num_classes=len(classes), class_names=classes, indices=rows, pool=test, mean=MEAN, std=STD)


def _read_folder(folder: pathlib.Path, classes: tuple[str, ...]) -> Split:
  """One part, in the original layout or in plain class folders."""
  if (folder / _ANNOTATIONS).is_file():
    return _read_annotated(folder, classes)
  if not (folder / classes[0] / 'images').is_dir():
    return Split(*image_folder.read(folder, classes, _SHAPE))
  files = [(folder / name / 'images' / file, label) for label, name in enumerate(classes)
           for file in image_folder.image_files(folder / name / 'images')]
  require(len(files) > 0, f'{folder} has no images in <synset>/images.', DataNotFoundError)
  return Split(image_folder.read_files([path for path, _ in files], _SHAPE),
               np.array([label for _, label in files], np.int32))


def _read_annotated(folder: pathlib.Path, classes: tuple[str, ...]) -> Split:
  """`images/<file>`, with lines `<file> <synset> <box>`, separated by tabs, in the annotations."""
  label_of = {name: i for i, name in enumerate(classes)}
  files, labels = [], []
  for line in image_folder.read_bytes(folder / _ANNOTATIONS).decode('utf-8', 'replace').splitlines():
    fields = line.split('\t')
    require(len(fields) >= 2 and fields[1] in label_of, f'{folder / _ANNOTATIONS}: cannot read the line {line!r}.',
            CorruptFileError)
    files.append(folder / 'images' / fields[0])
    labels.append(label_of[fields[1]])
  return Split(image_folder.read_files(files, _SHAPE), np.array(labels, np.int32))
