"""How many examples an algorithm needs, and how that number grows with the problem."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_increasing, check_range
from jaxlab.metrics.regression import least_squares_line


class ScalingExponent(NamedTuple):
  """The law log samples = slope · log dimension + intercept.

  Attributes:
    slope: power of the dimension: 1 for a need that is proportional to it, 0 for none.
    intercept: natural logarithm of the samples that dimension 1 would need.
  """

  slope: chex.Array
  intercept: chex.Array


def samples_to_reach(
  sample_sizes: chex.Array,
  errors: chex.Array,
  asymptotic_error: chex.Numeric,
  *,
  tolerance: chex.Numeric = 0.01,
) -> jax.Array:
  """Smallest training set size whose error is near the asymptotic one.

  Args:
    sample_sizes: numbers of training examples, int `[m]`, increasing.
    errors: error at each size, one row per repetition, `[r, m]`; NaN is not near.
    asymptotic_error: error with unlimited data, a scalar or `[r]`.
    tolerance: how far above it counts as near, >= 0.

  Returns:
    The first size with `error <= asymptotic_error + tolerance`, int32 or wider `[r]`, whatever the
    errors of larger sizes are; -1 where there is none. A noisy curve crosses early: average it over
    training sets first.

  Raises:
    ValueError: if known sizes do not increase, or `tolerance` < 0.

  Reference: Zheng et al., Revisiting Discriminative vs. Generative Classifiers, ICML 2023, https://arxiv.org/abs/2302.02334.
  """
  check_arrays(
    sample_sizes=(sample_sizes, "int [m]"),
    errors=(errors, "[r, m]"),
    asymptotic_error=(asymptotic_error, "[r]" if np.ndim(asymptotic_error) else "[]"),
  )
  check_increasing("sample_sizes", sample_sizes)
  check_range("tolerance", tolerance, "[0, inf)")
  sizes = jnp.asarray(sample_sizes)
  sizes = sizes.astype(jnp.promote_types(sizes.dtype, jnp.int32))
  errors, limit = as_accumulator(errors, asymptotic_error)
  if sizes.size == 0:
    return jnp.full(errors.shape[0], -1, sizes.dtype)
  limit = limit + tolerance
  near = errors <= (limit[:, None] if limit.ndim else limit)
  return jnp.where(jnp.any(near, axis=1), sizes[jnp.argmax(near, axis=1)], -1)


def scaling_exponent(dimensions: chex.Array, samples: chex.Array) -> ScalingExponent:
  """Fits a power law to the samples that problems of several sizes need.

  Args:
    dimensions: sizes of the problems, `[d]`, positive. If all are equal the slope is 0.
    samples: what each needs, `[d]`, positive; leave out problems for which `samples_to_reach` found
      none.

  Returns:
    `ScalingExponent` of the least-squares line through the logarithms, float32 or wider; NaN if a
    number of a JAX array is not positive.

  Raises:
    ValueError: if a known number is not positive.

  Reference: Zheng et al., Revisiting Discriminative vs. Generative Classifiers, ICML 2023, https://arxiv.org/abs/2302.02334.
  """
  check_arrays(dimensions=(dimensions, "[d]"), samples=(samples, "[d]"))
  check_range("dimensions", dimensions, "(0, inf)")
  check_range("samples", samples, "(0, inf)")
  dimensions, samples = as_accumulator(dimensions, samples)
  # The logarithm of 0 is no NaN.
  logs = (jnp.where(x > 0, jnp.log(x), jnp.nan) for x in (dimensions, samples))
  slope, intercept, _ = least_squares_line(*logs)
  return ScalingExponent(slope, intercept)
