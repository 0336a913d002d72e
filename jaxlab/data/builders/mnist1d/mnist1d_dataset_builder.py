"""MNIST-1D: 5,000 noisy one-dimensional digits, made by the package's generator."""

import tensorflow_datasets as tfds

from jaxlab.data.builders.columns import Columns, ColumnsBuilder
from jaxlab.data.mnist1d import generate_mnist1d


class Builder(ColumnsBuilder, skip_registration=True):
  """`series` f32[40, 1], standardized over the whole set, and `label`, the digit.

  The generator's default arguments and seed; its 4,000 training rows come first, but the splits
  are ours.
  """

  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="default")]

  def read(self) -> Columns:
    """Generates the set."""
    signals = generate_mnist1d(5000)
    classes = [str(digit) for digit in range(10)]
    return Columns({"series": signals.series, "label": signals.labels}, {"label": classes})
