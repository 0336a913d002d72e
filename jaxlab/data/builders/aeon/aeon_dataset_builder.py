"""The time-series classification sets that are bundled in aeon."""

import pathlib

import numpy as np
import tensorflow_datasets as tfds

from jaxlab.data.builders.catalogue import AEON_SETS, package_directory
from jaxlab.data.builders.columns import Columns, ColumnsBuilder, encode_classes


class Builder(ColumnsBuilder, skip_registration=True):
  """`series` f32[length, channels] and `label`.

  The archive's training series come first, then its test series; the splits are ours.
  JapaneseVowels and PickupGestureWiimoteZ have series of unequal length; the equal-length versions
  that aeon also bundles are read.
  """

  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in AEON_SETS]

  def read(self) -> Columns:
    """Reads both parts of the set from aeon's wheel."""
    from aeon.datasets import load_from_ts_file

    name = self.builder_config.name
    directory = package_directory("aeon") / "datasets" / "data" / name
    parts = [load_from_ts_file(str(_file(directory, part))) for part in ("TRAIN", "TEST")]
    series = np.concatenate([values for values, _ in parts])
    labels, class_names = encode_classes(np.concatenate([labels for _, labels in parts]))
    return Columns(
      {"series": series.transpose(0, 2, 1).astype(np.float32), "label": labels},
      {"label": class_names},
    )


def _file(directory: pathlib.Path, part: str) -> pathlib.Path:
  for stem in (f"{directory.name}_eq", directory.name):
    path = directory / f"{stem}_{part}.ts"
    if path.exists():
      return path
  raise FileNotFoundError(
    f"the installed version of aeon does not bundle {directory.name}: no {path}"
  )
