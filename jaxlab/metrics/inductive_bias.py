"""Inductive bias of a task: how surprising it is to meet a hypothesis that generalizes by chance.

Hypotheses are drawn from those that fit the training data, a scaled noncentral chi-square
distribution is fitted to their test errors, and its tail below the wanted error is read off::

    predictions = samplers.kernel_interpolants(key, x, y, test_x)
    errors = metrics.hypothesis_errors(predictions, test_y)
    bias = metrics.required_inductive_bias(errors, 0.01)
"""

import functools
import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  check_arrays,
  check_at_least,
  check_broadcast,
  check_choice,
  check_filled,
  check_range,
  is_known,
)

_UNITS = {"nats": 1.0, "bits": math.log(2)}
_METHODS = ("mle", "moments")
_MIN_ERRORS = 8
# Terms of the series of the incomplete gamma function, and from where Stirling's series is exact.
_NUM_SERIES, _LARGE = 400, 10.0


class NoncentralChi2(NamedTuple):
  """The law of `scale` times a noncentral chi-square variable.

  Attributes:
    df: degrees of freedom.
    nc: noncentrality.
    scale: unit of the variable.
  """

  df: chex.Array
  nc: chex.Array
  scale: chex.Array


class InductiveBias(NamedTuple):
  """The inductive bias that a task needs, and the fit that it is read from.

  Attributes:
    surprisal: -log probability of an error at or below the wanted one, in the unit asked for.
    df: degrees of freedom of the fit.
    nc: noncentrality of the fit.
    scale: unit of the fit.
    ks_distance: largest distance between the distribution functions of the errors and the fit.
    extrapolated: whether no sampled error is as small as the wanted one.
  """

  surprisal: float
  df: float
  nc: float
  scale: float
  ks_distance: float
  extrapolated: bool


def hypothesis_errors(predictions: chex.Array, targets: chex.Array) -> jax.Array:
  """Mean squared error of each hypothesis on the test set.

  Args:
    predictions: `[m, k, s]`: m examples, k outputs, s hypotheses.
    targets: `[m, k]`.

  Returns:
    Means over examples and outputs, float32 or wider `[s]`.

  Raises:
    ValueError: if there are no targets or the shapes do not fit.

  Reference: Boopathy et al., Towards Exact Computation of Inductive Bias, IJCAI 2024,
  https://arxiv.org/abs/2406.15941.
  """
  check_filled(targets=targets)
  check_arrays(predictions=(predictions, "[m, k, s]"), targets=(targets, "[m, k]"))
  predictions, targets = as_accumulator(predictions, targets)
  return jnp.mean(jnp.square(predictions - targets[:, :, None]), axis=(0, 1))


def noncentral_chi2_surprisal(
  error: chex.Numeric,
  df: chex.Numeric,
  nc: chex.Numeric,
  scale: chex.Numeric,
  *,
  unit: str = "nats",
  num_terms: int = 1024,
) -> jax.Array:
  """-log probability that a scaled noncentral chi-square variable is at most an error.

  The logarithm of a mixture of central distributions with Poisson weights, whose terms are never
  left as plain numbers, so that probabilities such as exp(-1000) keep their digits.

  Args:
    error: `[...]`; at or below 0 the surprisal is infinite. The arguments are broadcast.
    df: degrees of freedom, `[...]`, > 0.
    nc: noncentrality, `[...]`, >= 0.
    scale: unit of the variable, `[...]`, > 0.
    unit: "nats" or "bits".
    num_terms: terms of the mixture, a window around the largest.

  Returns:
    Surprisal, float32 or wider `[...]`, at least 0; good to 0.1% (or 0.001) up to df + nc = 5,000
    in float32. Beyond, or for more digits, call it under `jax.enable_x64`, and with more terms than
    10 sqrt(nc).

  Raises:
    ValueError: if `unit` is unknown, `num_terms` < 2, a known `df` or `scale` is not positive, a
      known `nc` negative, or the shapes do not broadcast.

  Reference: Boopathy et al., Towards Exact Computation of Inductive Bias, IJCAI 2024,
  https://arxiv.org/abs/2406.15941; Johnson et al., Continuous Univariate Distributions 2, 1995,
  chapter 29.
  """
  check_choice("unit", unit, _UNITS)
  check_at_least(2, num_terms=num_terms)
  arguments = _checked_law(error, df, nc, scale)
  return _surprisal(*arguments, num_terms=num_terms) / _UNITS[unit]


def _checked_law(error, df, nc, scale) -> tuple[jax.Array, ...]:
  check_broadcast(error=error, df=df, nc=nc, scale=scale)
  check_range("df", df, "(0, inf)")
  check_range("nc", nc, "[0, inf)")
  check_range("scale", scale, "(0, inf)")
  return jnp.broadcast_arrays(*as_accumulator(error, df, nc, scale))


@functools.partial(jax.jit, static_argnames="num_terms")
def _surprisal(error, df, nc, scale, *, num_terms: int) -> jax.Array:
  positive = error > 0
  half_error = jnp.where(positive, error, 1.0) / (2 * scale)
  shape, rate = df / 2, nc / 2
  # The largest term of the sum; below it the probabilities rise, above it the weights fall.
  root = jnp.sqrt(shape * shape + 4 * rate * half_error)
  largest = jax.lax.stop_gradient(jnp.minimum(rate, (root - shape) / 2))
  first = jnp.maximum(jnp.floor(largest) - num_terms // 2, 0.0)
  places = jnp.arange(num_terms, dtype=error.dtype)
  counts = first[..., None] + places.reshape((1,) * error.ndim + (num_terms,))
  shape, half_error, rate = (x[..., None] for x in (shape, half_error, rate))
  terms = _log_poisson(counts, rate) + _log_lower_gamma(shape + counts, half_error)
  surprisal = jnp.maximum(-jax.nn.logsumexp(terms, axis=-1), 0.0)
  unknown = jnp.isnan(error) | ~(df > 0) | ~(nc >= 0) | ~(scale > 0)
  return jnp.where(unknown, jnp.nan, jnp.where(positive, surprisal, jnp.inf))


def _log_poisson(count: jax.Array, rate: jax.Array) -> jax.Array:
  """count log(rate) - rate - lgamma(count + 1), without the rounding errors of its large terms."""
  count, rate = jnp.broadcast_arrays(count, rate)
  none = rate <= 0
  rate = jnp.where(none, 1.0, rate)
  is_large = count > _LARGE
  small, large = jnp.where(is_large, 1.0, count), jnp.where(is_large, count, _LARGE)
  direct = small * jnp.log(rate) - rate - jax.lax.lgamma(small + 1)
  # Stirling's series, whose parts grow with the count only as far as the rate differs from it.
  excess = (rate - large) / large
  is_near = jnp.abs(excess) < 0.5
  near, far = jnp.where(is_near, excess, 0.0), jnp.where(is_near, 1.0, rate / large)
  log_ratio = jnp.where(is_near, jnp.log1p(near), jnp.log(far))
  rest = (1 / 12 - (1 / 360 - 1 / (1260 * large * large)) / (large * large)) / large
  stirling = large * (log_ratio - excess) - jnp.log(2 * jnp.pi * large) / 2 - rest
  at_zero = jnp.where(count == 0, 0.0, -jnp.inf)
  return jnp.where(none, at_zero, jnp.where(is_large, stirling, direct))


def _log_lower_gamma(shape: jax.Array, x: jax.Array) -> jax.Array:
  """Logarithm of the regularized lower incomplete gamma function."""
  shape, x = jnp.broadcast_arrays(shape, x)
  is_small = x < shape + 1
  below = jnp.where(is_small, x, 0.0)

  def add(carry, i):
    total, term = carry
    term = term * below / (shape + i)
    return (total + term, term), None

  ones = jnp.ones_like(below) + 0 * below
  places = jnp.arange(1, _NUM_SERIES + 1, dtype=shape.dtype)
  (total, _), _ = jax.lax.scan(add, (ones, ones), places)
  series = _log_poisson(shape, jnp.where(is_small, x, 1.0)) + jnp.log(total)
  # Beyond a hundred standard deviations the function is 1.
  far = shape + 1 + 100 * (jnp.sqrt(shape) + 1)
  above = jnp.clip(jnp.where(is_small, shape + 1, x), None, far)
  return jnp.where(is_small, series, jnp.log(jax.scipy.special.gammainc(shape, above)))


def sankaran_tail(
  error: chex.Numeric, df: chex.Numeric, nc: chex.Numeric, scale: chex.Numeric
) -> jax.Array:
  """Half the squared normal score of an error, by Sankaran's approximation.

  The paper's code takes this for the surprisal where the probability underflows. It is too small
  far in the tail, and grows again above the median; see `noncentral_chi2_surprisal`.

  Args:
    error: `[...]`, >= 0. The arguments are broadcast.
    df: degrees of freedom, `[...]`, > 0.
    nc: noncentrality, `[...]`, >= 0.
    scale: unit of the variable, `[...]`, > 0.

  Returns:
    Nats, float32 or wider `[...]`.

  Raises:
    ValueError: if a known `df` or `scale` is not positive, a known `nc` negative, or the shapes do
      not broadcast.

  Reference: Sankaran, Approximations to the Non-Central Chi-Square Distribution, Biometrika 1963,
  https://doi.org/10.1093/biomet/50.1-2.199; Boopathy et al., IJCAI 2024,
  https://arxiv.org/abs/2406.15941.
  """
  error, df, nc, scale = _checked_law(error, df, nc, scale)
  mean = df + nc
  power = 1 - (2 / 3) * (mean / (df + 2 * nc)) * ((df + 3 * nc) / (df + 2 * nc))
  spread = (df + 2 * nc) / (mean * mean)
  bend = (power - 1) * (1 - 3 * power)
  center = 1 + power * spread * (power - 1 - (2 - power) * bend * spread / 2)
  width = power * jnp.sqrt(2 * spread) * (1 + bend * spread / 2)
  # The power has an infinite slope at 0.
  relative = error / scale / mean
  is_zero = relative == 0
  raised = jnp.where(is_zero, 0.0, jnp.power(jnp.where(is_zero, 1.0, relative), power))
  return jnp.square((raised - center) / width) / 2


def empirical_surprisal(
  errors: chex.Array, target_error: chex.Numeric, *, unit: str = "nats"
) -> jax.Array:
  """-log of the share of hypotheses that are good enough: no extrapolation, and no far tail.

  Args:
    errors: of sampled hypotheses, `[s]`, s >= 1.
    target_error: the wanted error, a scalar.
    unit: "nats" or "bits".

  Returns:
    A scalar, float32 or wider; infinite if no error is at most the wanted one.

  Raises:
    ValueError: if `unit` is unknown or there are no errors.

  Reference: Boopathy et al., Towards Exact Computation of Inductive Bias, IJCAI 2024,
  https://arxiv.org/abs/2406.15941.
  """
  check_choice("unit", unit, _UNITS)
  check_filled(errors=errors)
  check_arrays(errors=(errors, "[s]"), target_error=(target_error, "[]"))
  errors, target_error = as_accumulator(errors, target_error)
  share = jnp.mean((errors <= target_error).astype(errors.dtype))
  surprisal = -jnp.log(jax.lax.stop_gradient(share)) / _UNITS[unit]
  unknown = jnp.isnan(target_error) | jnp.any(jnp.isnan(errors))
  # Not -0.
  return jnp.where(unknown, jnp.nan, jnp.where(share == 1, 0.0, surprisal))


def noncentral_chi2_moments(errors: chex.Array) -> NoncentralChi2:
  """Fits a scaled noncentral chi-square distribution by mean, variance and third moment.

  Args:
    errors: `[s]`, positive; at least 8 and not all equal.

  Returns:
    `NoncentralChi2` of scalars, float32 or wider, with exactly the mean and variance of the errors;
    a third moment that no such distribution has is moved to the nearest that one has. NaN if the
    errors of a JAX array are all equal.

  Raises:
    ValueError: if there are fewer than 8 errors, or known errors are all equal.

  Reference: Boopathy et al., Towards Exact Computation of Inductive Bias, IJCAI 2024,
  https://arxiv.org/abs/2406.15941.
  """
  _check_errors(errors)
  return _moments(as_accumulator(errors))


def _check_errors(errors: chex.Array) -> None:
  check_arrays(errors=(errors, "[s]"))
  if np.size(errors) < _MIN_ERRORS:
    raise ValueError(f"errors must be at least {_MIN_ERRORS}, got {np.size(errors)}.")
  if is_known(errors) and np.ptp(errors) == 0:
    raise ValueError(f"errors must not all be equal, got {np.ravel(errors)[0]} alone.")


@jax.jit
def _moments(errors: jax.Array) -> NoncentralChi2:
  # The first is subtracted: equal errors then have a variance of exactly 0.
  shifted = errors - errors[0]
  centered = shifted - jnp.mean(shifted)
  mean, variance = errors[0] + jnp.mean(shifted), jnp.mean(jnp.square(centered))
  deviation = jnp.sqrt(jnp.where(variance > 0, variance, 1.0))
  # The third moment in units of variance² / mean: between 1.5 and 2 for such a distribution.
  third = jnp.mean(jnp.power(centered / deviation, 3)) * (mean / deviation)
  third = jnp.clip(third, 1.5 * 1.001, 2.0)
  has_root = third < 2
  root = jnp.where(has_root, jnp.sqrt(jnp.where(has_root, 1 - third / 2, 1.0)), 0.0)
  scale = variance / mean * (1 - root) / 2
  size = 2 * jnp.square(mean / deviation) / (1 - root)  # df + nc, from the mean.
  law = NoncentralChi2(size * (1 - 2 * root) / (1 - root), size * root / (1 - root), scale)
  return jax.tree.map(lambda x: jnp.where(variance == 0, jnp.nan, x), law)


def fit_noncentral_chi2(errors: chex.Array, *, method: str = "mle") -> NoncentralChi2:
  """Fits a scaled noncentral chi-square distribution to errors.

  Args:
    errors: `[s]`, positive; at least 8 and not all equal.
    method: "mle" maximizes the likelihood by SciPy, on the host, from the moments' fit; "moments"
      is `noncentral_chi2_moments`, which can be traced.

  Returns:
    `NoncentralChi2`; Python floats for "mle", and NaN if an error is.

  Raises:
    ValueError: if `method` is unknown, there are fewer than 8 errors, or known errors are all
      equal.

  Reference: Boopathy et al., Towards Exact Computation of Inductive Bias, IJCAI 2024,
  https://arxiv.org/abs/2406.15941.
  """
  check_choice("method", method, _METHODS)
  if method == "moments":
    return noncentral_chi2_moments(errors)
  from scipy import stats

  errors = np.asarray(errors, np.float64)
  _check_errors(errors)
  if not np.isfinite(errors).all():
    return NoncentralChi2(*3 * [math.nan])
  with jax.enable_x64(True):
    start = NoncentralChi2(*map(float, _moments(jnp.asarray(errors))))

  def cost(law):
    return -np.sum(stats.ncx2.logpdf(errors, law.df, law.nc, scale=law.scale))

  try:
    with np.errstate(all="ignore"):
      df, nc, _, scale = stats.ncx2.fit(errors, start.df, start.nc, floc=0, scale=start.scale)
      found = NoncentralChi2(float(df), float(nc), float(scale))
      better = cost(found) <= cost(start)
  except RuntimeError:  # The search left the allowed parameters.
    return start
  return found if better else start


def required_inductive_bias(
  errors: chex.Array, target_error: float, *, unit: str = "nats", method: str = "mle"
) -> InductiveBias:
  """How much inductive bias a task needs, relative to a space of hypotheses.

  The surprise of meeting by chance a hypothesis that generalizes, among those that fit the training
  data. The difference between two spaces is what the better one supplies.

  Args:
    errors: test errors of sampled hypotheses, `[s]`, positive; at least 8 and not all equal.
    target_error: the wanted error, > 0.
    unit: "nats" or "bits".
    method: of `fit_noncentral_chi2`.

  Returns:
    `InductiveBias` of Python numbers, computed on the host in float64. It rests on the tail of the
    fit: look at `ks_distance`, and at resampled errors, before trusting one that is extrapolated.

  Raises:
    ValueError: if `unit` or `method` is unknown, `target_error` <= 0, there are fewer than 8
      errors, or all are equal.

  Reference: Boopathy et al., Towards Exact Computation of Inductive Bias, IJCAI 2024,
  https://arxiv.org/abs/2406.15941.
  """
  check_choice("unit", unit, _UNITS)
  check_range("target_error", target_error, "(0, inf)")
  from scipy import stats

  errors = np.sort(np.asarray(errors, np.float64))
  with jax.enable_x64(True):
    df, nc, scale = map(float, fit_noncentral_chi2(errors, method=method))
    law = (jnp.asarray(x, jnp.float64) for x in (target_error, df, nc, scale))
    surprisal = float(noncentral_chi2_surprisal(*law, unit=unit))
  heights = np.arange(len(errors) + 1) / len(errors)
  fitted = stats.ncx2.cdf(errors, df, nc, scale=scale)
  distance = float(np.max(np.maximum(heights[1:] - fitted, fitted - heights[:-1])))
  return InductiveBias(surprisal, df, nc, scale, distance, bool(target_error < errors[0]))
