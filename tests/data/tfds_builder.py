"""Builds small data sets in TFDS's own format, under any name."""
import contextlib
import io
import os
import pathlib
from collections.abc import Sequence

import tensorflow_datasets as tfds


def prepare(root: pathlib.Path, name: str, parts: dict[str, list[dict]], shape: tuple, names: list[str],
            texts: Sequence[str] = ()) -> pathlib.Path:
  """Writes array_record files as TFDS does; images are handed over encoded, so TensorFlow is not needed.

  Args:
    root: where the data set is put, as `root/name/3.0.1`.
    name: of the data set.
    parts: split name -> examples, dictionaries of the features.
    shape: of the images.
    names: class names.
    texts: further features, all of them texts.
  Returns:
    Folder of the prepared version.
  """
  features = {'image': tfds.features.Image(shape=shape), 'label': tfds.features.ClassLabel(names=names)}
  features |= {name: tfds.features.Text() for name in texts}

  with tfds.core.registered.skip_registration():
    class Builder(tfds.core.GeneratorBasedBuilder):
      """Yields the given examples."""
      VERSION = tfds.core.Version('3.0.1')
      pkg_dir_path = None

      def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

      def _split_generators(self, dl_manager):
        return {part: self._generate_examples(examples) for part, examples in parts.items()}

      def _generate_examples(self, examples):
        yield from enumerate(examples)

  Builder.name = name
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):
    Builder(data_dir=os.fspath(root)).download_and_prepare(file_format='array_record')
  return root / name / '3.0.1'
