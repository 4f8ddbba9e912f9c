"""UTKFace: 23,705 aligned faces; the label is the gender, the sensitive attribute white against all other races.

The set contains 390 byte-identical copies of earlier images, 259 images of which carry contradicting labels. By default
only the first copy is kept, so that no image is in two splits; the study says nothing of them.
"""
import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Literal

import numpy as np
from PIL import Image

from jaxfix.data import image_folder, packs, sources, splits
from jaxfix.data.images import decode_resized
from jaxfix.data.normalization import channel_statistics
from jaxfix.data.splits import Splits
from jaxfix.errors import BadInputError, CorruptFileError, DataNotFoundError, require
from jaxfix.problem import Split

SIZES = (17_778, 1_975, 1_976, 1_976)
"""Train, valid, repair, test of 23,705 faces (study, Table 2)."""

CLASSES, GROUPS = ('male', 'female'), ('white', 'nonwhite')

STUDY_MEAN, STUDY_STD = (0.03317774,) * 3, (0.18214759,) * 3
"""The study's constants. They are no statistics of these images in [0, 1] (its arrays had an unknown scale)."""

_NUM_RACES = 5  # 0 white, 1 black, 2 Asian, 3 Indian, 4 others
_PACKED_SIZE = 48
_WANTED = sources.Wanted(
  'utkface', files=('utkface_48.npz',), folders=('utkface', 'UTKFace'), layout='<age>_<gender>_<race>_<time>.jpg',
  fetch='the aligned and cropped faces are at susanqq.github.io/UTKFace (non-commercial research only)')


def load(*, data_dir: str | os.PathLike | None = None, seed: int = 0,
         indices: Mapping[str, np.ndarray] | None = None, image_size: int = _PACKED_SIZE,
         drop_duplicates: bool = True, normalization: Literal['train', 'study'] = 'train',
         cache_dir: str | os.PathLike | None = None) -> Splits:
  """The data set, split as in the study; images uint8 `[n, s, s, 3]`, labels 0 male and 1 female, group 0 white.

  Fewer than 23,705 rows (always, once duplicates are dropped) are split in the study's proportions, rounded down.

  Args:
    data_dir: folder with `utkface_48.npz`, or with a folder of the original files `<age>_<gender>_<race>_<time>.jpg`.
      Files whose names lack a field (three in the original set) are left out.
    seed: of the permutation.
    indices: ready index arrays (`load_indices`) instead; they index the rows that remain.
    image_size: s; other than 48 needs the original files, which are resized by Lanczos filtering.
    drop_duplicates: keep the first of identical images only. False keeps all rows, as the study seems to have done.
    normalization: `train` computes mean and deviation on the train split; `study` takes the study's constants.
    cache_dir: folder for a decoded copy of the archive (164 MB).
  Raises:
    DataNotFoundError, CorruptFileError, BadInputError: see `jaxfix.data.load`.
  Source: Zhang, Song, Qi, Age Progression/Regression by Conditional Adversarial Autoencoder (CVPR 2017).
  """
  require(normalization in ('train', 'study'), f"normalization must be 'train' or 'study', got {normalization!r}.")
  require(8 <= image_size <= 200, f'image_size must lie in 8..200, got {image_size}.')
  location = sources.locate(_WANTED, data_dir)
  if location.kind == 'npz':
    require(image_size == _PACKED_SIZE, f'{location.path} holds faces of 48x48; for image_size={image_size} give a '
            'folder with the original files.', BadInputError)
    data, first_copy = _read_pack(location.path, cache_dir)
  else:
    data, first_copy = _read_folder(location.path, image_size)
  if drop_duplicates:
    data = data.take(np.flatnonzero(first_copy == np.arange(len(data))))
  rows = splits.one_pool(len(data), SIZES, seed=seed, indices=indices)
  parts = {name: data.take(rows[name]) for name in rows}
  mean, std = (STUDY_MEAN, STUDY_STD) if normalization == 'study' else channel_statistics(parts['train'].x)
  return Splits(name='utkface', source=location.source, **parts, num_classes=2, class_names=CLASSES,
                group_names=GROUPS, indices=rows, pool=data.take(splits.rest(len(data), rows['train'])), mean=mean,
                std=std)


def _read_pack(path: pathlib.Path, cache_dir: str | os.PathLike | None) -> tuple[Split, np.ndarray]:
  arrays = packs.read(path, ('jpeg', 'offsets', 'gender', 'race', 'first_copy'))
  images = packs.EncodedImages(arrays, '', str(path))
  n = len(images)
  gender = packs.labels(arrays, 'gender', n, len(CLASSES), path)
  race = packs.labels(arrays, 'race', n, _NUM_RACES, path)
  first_copy = packs.labels(arrays, 'first_copy', n, n, path)
  require(bool((first_copy <= np.arange(n)).all()), f"{path}: 'first_copy' points to a later row.", CorruptFileError)
  x = packs.decoded(images, (_PACKED_SIZE, _PACKED_SIZE, 3), str(path), cache_dir)
  return Split(x, gender, (race != 0).astype(np.int32)), first_copy


def _read_folder(folder: pathlib.Path, image_size: int) -> tuple[Split, np.ndarray]:
  """As `_read_pack`, from files in the order of their names; duplicates are files with equal bytes."""
  names, gender, race = [], [], []
  for name in image_folder.image_files(folder):
    fields = name.split('_')
    if len(fields) >= 4 and fields[1] in ('0', '1') and fields[2] in ('0', '1', '2', '3', '4'):
      names.append(name)
      gender.append(int(fields[1]))
      race.append(int(fields[2]))
  require(len(names) > 0, f'{folder} has no files named <age>_<gender>_<race>_<time>.jpg.', DataNotFoundError)
  x, first_copy, seen = np.empty((len(names), image_size, image_size, 3), np.uint8), [], {}
  for i, name in enumerate(names):
    data = image_folder.read_bytes(folder / name)
    first_copy.append(seen.setdefault(hashlib.sha256(data).digest(), i))
    x[i] = decode_resized(data, image_size, str(folder / name), Image.Resampling.LANCZOS)
  group = (np.array(race) != 0).astype(np.int32)
  return Split(x, np.array(gender, np.int32), group), np.array(first_copy, np.int32)
