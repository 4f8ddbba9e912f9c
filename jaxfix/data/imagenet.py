"""ImageNet (ILSVRC 2012): 1,281,167 training and 50,000 validation images of 1,000 classes, streamed from disk.

Nothing is decoded until it is asked for (`jaxfix.data.streamed`), so the splits cost memory for their indices only.
"""
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxfix.data import image_folder, packs, prepared, sources, splits
from jaxfix.data.splits import Splits
from jaxfix.data.streamed import Reader, StreamedImages, StreamedSplit
from jaxfix.errors import CorruptFileError, DataNotFoundError, require

TRAIN_SIZES, TEST_SIZES = (1_231_167, 50_000), (25_000, 25_000)
"""(train, valid) of the training and (repair, test) of the validation images (study, Table 2)."""

SAMPLE_SIZES = (80, 40, 40, 40)
"""Train, valid, repair, test of `imagenet_sample.npz`, which has 200 images and no training part: for trials."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""A channel, in units of pixels / 255 (the preprocessing of Keras's DenseNet121)."""

_LABEL_CHUNK = 512  # TFDS records read at once for their labels: about 60 MB of encoded images
_WANTED = sources.Wanted(
  'imagenet', tfds='imagenet2012', files=('imagenet_sample.npz',), folders=('imagenet', 'imagenet2012', 'ILSVRC2012'),
  layout='{train,val}/<synset>/*.JPEG',
  fetch='ImageNet needs an account at image-net.org, whose archives TFDS prepares as imagenet2012')


def load(*, data_dir: str | os.PathLike | None = None, seed: int = 0,
         indices: Mapping[str, np.ndarray] | None = None, image_size: int = 224) -> Splits:
  """The data set, split as in the study; the splits are `StreamedSplit`s of uint8 `[n, 224, 224, 3]` images.

  Images are resized directly, nearest neighbor, as in the study's pipeline (no crop, no aspect ratio). Classes are
  numbered in the order of the sorted synsets; a folder with fewer synsets has fewer classes, numbered among
  themselves. Subsets are split in the same proportions, sizes rounded down.

  Args:
    data_dir: folder with a TFDS-prepared `imagenet2012`, with an image folder, or with `imagenet_sample.npz`.
    seed: of the permutations.
    indices: ready index arrays (`load_indices`) instead.
    image_size: side in pixels.
  Raises:
    DataNotFoundError, CorruptFileError, BadInputError: see `jaxfix.data.load`.
  Source: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV 115 (2015).
  """
  require(image_size >= 1, f'image_size must be at least 1, got {image_size}.')
  location = sources.locate(_WANTED, data_dir)
  if location.kind == 'npz':
    return _load_sample(location, seed, indices, image_size)
  if location.kind == 'tfds':
    train_reader, test_reader = (_TfdsReader(location.path, part) for part in ('train', 'validation'))
    classes = train_reader.names
  else:
    classes = tuple(image_folder.class_folders(location.path / 'train'))
    train_reader, test_reader = (_FolderReader(location.path / part, classes) for part in ('train', 'val'))
  train, test = (_whole(reader, image_size) for reader in (train_reader, test_reader))
  rows = splits.two_pools(len(train), len(test), TRAIN_SIZES, TEST_SIZES, seed=seed, indices=indices)
  return Splits(name='imagenet', source=location.source, train=train.view(rows['train']),
                valid=train.view(rows['valid']), repair=test.view(rows['repair']), test=test.view(rows['test']),
                num_classes=len(classes), class_names=classes, indices=rows, pool=test, mean=MEAN, std=STD)


def _load_sample(location: sources.Location, seed: int, indices: Mapping[str, np.ndarray] | None,
                 image_size: int) -> Splits:
  reader = _PackReader(location.path)
  data = _whole(reader, image_size)
  rows = splits.one_pool(len(data), SAMPLE_SIZES, seed=seed, indices=indices)
  return Splits(name='imagenet', source=location.source, **{name: data.view(rows[name]) for name in rows},
                num_classes=len(reader.names), class_names=reader.names, indices=rows,
                pool=data.view(splits.rest(len(data), rows['train'])), mean=MEAN, std=STD)


def _whole(reader: Reader, image_size: int) -> StreamedSplit:
  return StreamedSplit(StreamedImages(reader, np.arange(len(reader), dtype=np.int32), image_size))


class _FolderReader:
  """`<folder>/<synset>/*.JPEG`. Names are kept as bytes in one array: a Python list of them would take 150 MB."""

  def __init__(self, folder: pathlib.Path, classes: Sequence[str]):
    present = image_folder.class_folders(folder)
    unknown = sorted(set(present) - set(classes))
    require(not unknown, f'{folder / unknown[0] if unknown else folder} is no class of the training images.',
            CorruptFileError)
    self._folder, self._classes = folder, tuple(classes)
    files = [image_folder.image_files(folder / name) if (folder / name).is_dir() else [] for name in classes]
    self._labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(names) for names in files])
    self._files = np.array([os.fsencode(name) for names in files for name in names])
    require(len(self._files) > 0, f'{folder} has no image files in its class folders.', DataNotFoundError)

  def __len__(self) -> int:
    return len(self._files)

  def read(self, rows: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    return [image_folder.read_bytes(self.where(row)) for row in rows], self.labels(rows)

  def labels(self, rows: np.ndarray) -> np.ndarray:
    return self._labels[rows]

  def where(self, row: int) -> str:
    return os.fspath(self._folder / self._classes[self._labels[row]] / os.fsdecode(self._files[row]))


class _TfdsReader:
  """A prepared `imagenet2012`. Labels lie inside the records; each is remembered once it has been read."""

  def __init__(self, directory: pathlib.Path, part: str):
    self._where = f'{directory} ({part})'
    self._records = prepared.Records(directory, part)
    self.names = self._records.names
    self._labels = np.full(len(self._records), -1, np.int32)

  def __len__(self) -> int:
    return len(self._records)

  def read(self, rows: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    records = self._records.read(rows)
    self._labels[rows] = [record['label'] for record in records]
    return [record['image'] for record in records], self._labels[rows]

  def labels(self, rows: np.ndarray) -> np.ndarray:
    unknown = np.unique(rows[self._labels[rows] < 0])
    for start in range(0, len(unknown), _LABEL_CHUNK):
      self.read(unknown[start:start + _LABEL_CHUNK])
    return self._labels[rows]

  def where(self, row: int) -> str:
    return f'{self._where} image {row}'


class _PackReader:
  """`imagenet_sample.npz`: encoded images of any size in memory (5.5 MB)."""

  def __init__(self, path: pathlib.Path):
    arrays = packs.read(path, ('jpeg', 'offsets', 'y', 'all_names'))
    self._images = packs.EncodedImages(arrays, '', str(path))
    self._path = path
    self.names = tuple(str(name) for name in arrays['all_names'].astype(str))
    self._labels = packs.labels(arrays, 'y', len(self._images), len(self.names), path)

  def __len__(self) -> int:
    return len(self._images)

  def read(self, rows: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    return [self._images[int(row)] for row in rows], self.labels(rows)

  def labels(self, rows: np.ndarray) -> np.ndarray:
    return self._labels[rows]

  def where(self, row: int) -> str:
    return f'{self._path} image {row}'
