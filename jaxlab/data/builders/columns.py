"""The common part of the offline builders: a dict of columns, split by a hash of the row."""

import abc
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from jaxlab.data.builders.catalogue import VERSION


class Columns(NamedTuple):
  """A whole set in memory.

  Attributes:
    arrays: column name -> values, row by row along the leading axis.
    class_names: column name -> names of its classes, for integer columns that hold classes.
  """

  arrays: Mapping[str, np.ndarray]
  class_names: Mapping[str, Sequence[str]] = {}


class ColumnsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Writes the columns that `read` returns, adding `index`, the row in the whole set.

  Rows keep their order. Only tensors and class labels are stored, so that neither writing nor
  reading needs TensorFlow.
  """

  VERSION = tfds.core.Version(VERSION)

  @abc.abstractmethod
  def read(self) -> Columns:
    """Reads the set `self.builder_config.name` from its package."""

  def _info(self) -> tfds.core.DatasetInfo:
    self._columns = self.read()
    features: dict[str, Any] = {"index": tfds.features.Scalar(np.int64)}
    for name, values in self._columns.arrays.items():
      if name in self._columns.class_names:
        features[name] = tfds.features.ClassLabel(names=self._columns.class_names[name])
      else:
        features[name] = tfds.features.Tensor(shape=values.shape[1:], dtype=values.dtype)
    return tfds.core.DatasetInfo(
      builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
    num_rows = len(next(iter(self._columns.arrays.values())))
    rows: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for index in range(num_rows):
      rows[split_of(index)].append(index)
    return {split: self._generate_examples(indices) for split, indices in rows.items()}

  def _generate_examples(self, indices: Sequence[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    for index in indices:
      row = {name: values[index] for name, values in self._columns.arrays.items()}
      yield index, {"index": index, **row}


def split_of(index: int) -> str:
  """Says which split a row belongs to.

  The split depends only on a hash of the row's number, not on random state or call order, and rows
  that are appended do not move earlier ones.

  Args:
    index: row in the whole set.

  Returns:
    "train" for about 80% of the rows, "validation" and "test" for about 10% each.
  """
  tenth = int.from_bytes(hashlib.sha256(str(index).encode()).digest()[:8], "big") % 10
  return {8: "validation", 9: "test"}.get(tenth, "train")


def encode_classes(labels: Sequence[Any]) -> tuple[np.ndarray, list[str]]:
  """Numbers the distinct labels of a column.

  Args:
    labels: one label per row; surrounding blanks are ignored.

  Returns:
    `(codes i64[n], names)`: names in numerical order if all are numbers, else alphabetical.
  """
  names, codes = np.unique([str(label).strip() for label in labels], return_inverse=True)
  try:
    order = np.argsort(names.astype(np.float64), kind="stable")
  except ValueError:
    order = np.arange(len(names))
  return np.argsort(order)[codes], names[order].tolist()
