"""MNIST-1D: any number of noisy one-dimensional digits, made by the package's generator."""

import os
import random
from typing import NamedTuple

import numpy as np

from jaxlab._checks import check_at_least
from jaxlab.data.generated import load_generated


class Signals(NamedTuple):
  """Labeled signals.

  Attributes:
    series: f32 `[n, 40, 1]`, standardized by the generator over all n.
    labels: the digit, i32 `[n]`.
  """

  series: np.ndarray
  labels: np.ndarray


def generate_mnist1d(num_samples: int, *, seed: int = 42, **arguments) -> Signals:
  """Generates MNIST-1D samples, shuffled; it takes milliseconds per sample.

  Args:
    num_samples: number n of samples.
    seed: seed of the generator; the same seed gives the same samples.
    **arguments: arguments of the generator that replace its defaults: `scale_coeff`,
      `max_translation`, `corr_noise_scale`, `iid_noise_scale`, `shear_scale`, ...

  Returns:
    `Signals`.

  Raises:
    ValueError: if `num_samples` < 1 or the generator has no such argument.
    ImportError: if the package is missing.

  Reference: Greydanus and Kobak, Scaling Down Deep Learning with MNIST-1D, ICML 2024,
  https://arxiv.org/abs/2011.14439.
  """
  from mnist1d.data import ObjectView, get_dataset_args, make_dataset

  check_at_least(1, num_samples=num_samples)
  settings = get_dataset_args(as_dict=True)
  for name, value in arguments.items():
    if name not in settings:
      raise ValueError(f"{name}={value!r} is not an argument of the generator: {sorted(settings)}.")
  # It makes the same number of samples per class, and by default splits off a test set.
  settings.update(arguments, num_samples=-(-num_samples // 10) * 10, seed=seed, train_split=1.0)
  # It reseeds both global random generators, whose states must be restored for the caller.
  python_state, numpy_state = random.getstate(), np.random.get_state()
  try:
    made = make_dataset(ObjectView(settings))
  finally:
    random.setstate(python_state)
    np.random.set_state(numpy_state)
  series = made["x"][:num_samples, :, None].astype(np.float32)
  return Signals(series, made["y"][:num_samples].astype(np.int32))


def load_mnist1d(
  num_samples: int, *, seed: int = 42, data_dir: str | os.PathLike | None = None, **arguments
) -> Signals:
  """Generates MNIST-1D samples once, and reads them from disk from then on.

  Args:
    num_samples: as in `generate_mnist1d`.
    seed: as in `generate_mnist1d`.
    data_dir: where the samples are kept; as in `load_source`.
    **arguments: as in `generate_mnist1d`.

  Returns:
    `Signals`.

  Raises:
    ValueError: as `generate_mnist1d`.
    ImportError: as `generate_mnist1d`.
  """
  arrays = load_generated(
    "mnist1d",
    [num_samples, seed, arguments],
    lambda: generate_mnist1d(num_samples, seed=seed, **arguments)._asdict(),
    data_dir=data_dir,
  )
  return Signals(**arrays)
