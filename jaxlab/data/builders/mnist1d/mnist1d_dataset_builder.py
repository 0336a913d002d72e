"""MNIST-1D: 5,000 noisy one-dimensional digits, made by the package's generator."""

import random

import numpy as np
import tensorflow_datasets as tfds

from jaxlab.data.builders.columns import Columns, ColumnsBuilder


class Builder(ColumnsBuilder, skip_registration=True):
  """`series` f32[40, 1], standardised over the whole set, and `label`, the digit.

  The generator's default arguments and seed; its 4,000 training rows come first, but the splits
  are ours.
  """

  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="default")]

  def read(self) -> Columns:
    """Generates the set."""
    from mnist1d.data import get_dataset_args, make_dataset

    # The generator reseeds both global generators; the caller's must go on undisturbed.
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
      made = make_dataset(get_dataset_args())
    finally:
      random.setstate(python_state)
      np.random.set_state(numpy_state)
    series = np.concatenate([made["x"], made["x_test"]]).astype(np.float32)
    labels = np.concatenate([made["y"], made["y_test"]])
    return Columns(
      {"series": series[..., None], "label": labels}, {"label": [str(digit) for digit in range(10)]}
    )
