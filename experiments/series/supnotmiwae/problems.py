"""Series with missing values: Gaussian ones, of which everything is known, and rows of digits."""

from typing import NamedTuple

import jax
import numpy as np

from experiments.kit.incomplete import Law, Rows, gaussian_series
from jaxlab import augment, data

GAUSS, AWAY, RANDOM = "Gaussian series", "digits, not at random", "digits, at random"
PROBLEMS = GAUSS, AWAY, RANDOM
PERIODS = np.array([(12, 12), (12, 6), (6, 12), (6, 6)])  # Of classes and latent dimensions.


class Problem(NamedTuple):
  """Parts of the data, and the law of the series, None where nobody knows it."""

  train: Rows
  validation: Rows
  test: Rows
  law: Law | None


def shape_of(config, name: str) -> tuple[int, int, int, int]:
  """Steps, channels, classes and latent dimensions of the model."""
  (gauss, digits), k = config.latent_dims, config.digit_classes
  return (config.length, config.num_channels, 4, gauss) if name == GAUSS else (8, 8, k, digits)


def draw(config, name: str, seed: int) -> Problem:
  """Draws a problem anew, standardized by its training series."""
  rng = np.random.default_rng([seed, PROBLEMS.index(name)])
  if name == GAUSS:
    return draw_gaussian(config, rng)
  drawn = data.load_series("digit_rows", split=seed)
  num_train, num_validation, num_test = config.digit_sizes
  parts = zip((drawn[:2], drawn[3:5]), (num_train + num_validation, num_test))
  of_classes = [[x[y < config.digit_classes][:n] for x in (v, y)] for (v, y), n in parts]
  values, labels = (np.concatenate(x) for x in zip(*of_classes))
  values = values.swapaxes(1, 2)
  first = values[:num_train]
  # One deviation for all: that of pixels at the border is next to nothing.
  values = (values - first.mean((0, 1))) / first.std()
  if name == AWAY:
    key = jax.random.key(rng.integers(2**31))
    options = config.digit_observed, config.slope
    mask = np.asarray(_mask(key, values[:num_train], values, *map(np.float32, options)))
  else:
    mask = rng.random(values.shape) < config.digit_observed
  return _parts(values, mask, labels, config.digit_sizes, None)


@jax.jit
def _mask(key, train, values, share, slope):
  offset = augment.calibrate_mask_offset(train, observed_share=share, slope=slope)
  return augment.mask_not_at_random(key, values, offset=offset, slope=slope)


def draw_gaussian(config, rng) -> Problem:
  """Two latent series, a wave of their class and a Gaussian process, seen in many channels."""
  length, num_channels, num_classes, _ = shape_of(config, GAUSS)
  labels = rng.integers(0, num_classes, sum(config.gauss_sizes))
  options = {"num_channels": num_channels, "lengthscale": config.lengthscale}
  steps, phases = np.arange(length)[:, None], rng.uniform(0, 2 * np.pi, PERIODS.shape)
  waves = np.sin(2 * np.pi * steps / PERIODS[:, None] + phases[:, None])
  waves *= config.amplitude
  values, law = gaussian_series(rng, waves, labels, noise=config.noise, **options)
  mask = rng.random(values.shape) < config.gauss_observed
  seen = np.where(mask, values, np.nan)[: config.gauss_sizes[0]]
  shift, scale = np.nanmean(seen, axis=(0, 1)), np.nanstd(seen, axis=(0, 1))
  shifts, scales = (np.tile(x, length) for x in (shift, scale))
  law = Law((law.means - shifts) / scales, law.covariance / np.outer(scales, scales))
  law = Law(*(x.astype(np.float32) for x in law))
  return _parts((values - shift) / scale, mask, labels, config.gauss_sizes, law)


def _parts(values, mask, labels, sizes, law) -> Problem:
  rows = Rows(values.astype(np.float32), mask, labels.astype(np.int32))
  ends = np.cumsum(sizes)
  return Problem(*(Rows(*(x[e - n : e] for x in rows)) for e, n in zip(ends, sizes)), law)
