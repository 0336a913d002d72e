"""Labeled series with the splits of their archive: those that packages ship."""

import pathlib
from typing import NamedTuple

import numpy as np

from jaxlab._checks import check_choice
from jaxlab._extras import import_extra
from jaxlab.data.builders.catalogue import package_directory

# Our name -> the archive's.
_ARCHIVE_NAMES = {
  "basic_motions": "BasicMotions",
  "japanese_vowels": "JapaneseVowels",
  "gun_point": "GunPoint",
  "arrow_head": "ArrowHead",
  "osu_leaf": "OSULeaf",
  "italy_power_demand": "ItalyPowerDemand",
}
_DIGITS = "digit_rows"
_NUM_TRAINING_DIGITS = 1200


class SeriesData(NamedTuple):
  """Training and test series.

  Attributes:
    train_values: f32 `[n, C, T]`, 0 from a series' length on.
    train_labels: i32 `[n]`.
    train_lengths: number of steps of each series, i32 `[n]`.
    test_values: f32 `[m, C, T]`.
    test_labels: i32 `[m]`.
    test_lengths: i32 `[m]`.
  """

  train_values: np.ndarray
  train_labels: np.ndarray
  train_lengths: np.ndarray
  test_values: np.ndarray
  test_labels: np.ndarray
  test_lengths: np.ndarray


def load_series(name: str, *, split: int | None = None) -> SeriesData:
  """Loads labeled series from files of installed packages, as they are: nothing is standardized.

  `load_source` opens most of these sets too, with splits of its own and, for the vowels, the series
  that were stretched to one length.

  Args:
    name: a set of aeon's wheel, "basic_motions" (6 channels, 100 steps, 4 classes),
      "japanese_vowels" (12, 7 to 29, 9), "gun_point" (1, 150, 2), "arrow_head" (1, 251, 3),
      "osu_leaf" (1, 427, 6) or "italy_power_demand" (1, 24, 2); or "digit_rows", scikit-learn's
      images of digits (8, 8, 10), whose rows are the time steps, in sixteenths.
    split: None for the archive's parts (of the digits, 1,200 images of a fixed permutation train);
      a seed redraws both parts in the same sizes, with the same share of each class.

  Returns:
    `SeriesData`. Classes are numbered in the order of their names.

  Raises:
    ValueError: if the name is unknown.
    ImportError: if the package that holds the set is missing.
    FileNotFoundError: if the installed version of aeon does not bundle the set.

  Reference: Dau et al., The UCR Time Series Archive, 2019, https://arxiv.org/abs/1810.07758;
  Bagnall et al., The UEA Multivariate Time Series Classification Archive, 2018,
  https://arxiv.org/abs/1811.00075.
  """
  check_choice("name", name, (*_ARCHIVE_NAMES, _DIGITS))
  values, labels, lengths, num_train = (
    _read_digits() if name == _DIGITS else _read_archive(_ARCHIVE_NAMES[name])
  )
  rows = np.arange(len(labels))
  train, test = rows[:num_train], rows[num_train:]
  if split is not None:
    selection = import_extra("sklearn.model_selection", extra="sklearn")
    train, test = selection.train_test_split(
      rows, train_size=num_train, stratify=labels, random_state=split
    )
  parts = (array[part] for part in (train, test) for array in (values, labels, lengths))
  return SeriesData(*parts)


def _read_digits():
  digits = import_extra("sklearn.datasets", extra="sklearn").load_digits()
  order = np.random.default_rng(0).permutation(len(digits.target))
  values = (digits.images.transpose(0, 2, 1) / 16).astype(np.float32)[order]
  lengths = np.full(len(order), values.shape[-1], np.int32)
  return values, digits.target[order].astype(np.int32), lengths, _NUM_TRAINING_DIGITS


def _read_archive(name: str):
  """Values, labels, lengths of both parts, padded together, and the number of training series."""
  package = package_directory("aeon")
  if package is None:
    raise ImportError(f"{name} needs the package aeon: pip install 'jaxlab[series]'.")
  folder = package / "datasets" / "data" / name
  train, test = (_read_ts(folder / f"{name}_{part}.ts") for part in ("TRAIN", "TEST"))
  series, names = zip(*train, *test)
  lengths = np.array([x.shape[1] for x in series], np.int32)
  values = np.zeros((len(series), series[0].shape[0], lengths.max()), np.float32)
  for row, x in zip(values, series):
    row[:, : x.shape[1]] = x
  labels = np.unique(names, return_inverse=True)[1].astype(np.int32)
  return values, labels, lengths, len(train)


def _read_ts(path: pathlib.Path) -> list[tuple[np.ndarray, str]]:
  """The series `[C, T]` of a file, and their classes.

  aeon's own reader takes seconds to import.
  """
  if not path.exists():
    raise FileNotFoundError(f"the installed version of aeon does not bundle {path.name}: no {path}")
  lines = path.read_text().splitlines()
  start = next(i for i, line in enumerate(lines) if line.strip().lower() == "@data")
  rows = [line.split(":") for line in lines[start + 1 :] if line.strip()]
  return [(np.array([x.split(",") for x in row[:-1]], float), row[-1].strip()) for row in rows]
