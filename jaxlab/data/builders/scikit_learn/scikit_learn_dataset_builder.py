"""scikit-learn's bundled sets: digits, iris, wine, breast_cancer, diabetes."""

import numpy as np
import sklearn.datasets
import tensorflow_datasets as tfds

from jaxlab.data.builders.catalogue import SCIKIT_LEARN_SETS
from jaxlab.data.builders.columns import Columns, ColumnsBuilder


class Builder(ColumnsBuilder, skip_registration=True):
  """`digits`: `image` u8[8, 8, 1] in 0..16; tables: `features` f32[d]; `label`, or `target` f32."""

  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SCIKIT_LEARN_SETS]

  def read(self) -> Columns:
    """Reads one of scikit-learn's sets."""
    name = self.builder_config.name
    table = getattr(sklearn.datasets, f"load_{name}")()
    if name == "diabetes":
      return Columns(
        {"features": table.data.astype(np.float32), "target": table.target.astype(np.float32)}
      )
    inputs = (
      {"image": table.images[..., None].astype(np.uint8)}
      if name == "digits"
      else {"features": table.data.astype(np.float32)}
    )
    return Columns(
      {**inputs, "label": table.target}, {"label": [str(n) for n in table.target_names]}
    )
