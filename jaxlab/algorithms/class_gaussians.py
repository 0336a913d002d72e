"""A Gaussian for the features of each class, and better ones for classes of few examples."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_choice,
  check_range,
)
from jaxlab._programs import compiled_once, map_over_rows

_EXACT = jax.lax.Precision.HIGHEST


class ClassGaussians(NamedTuple):
  """Means `[k, d]`, covariances `[k, d, d]` and sums of weights `[k]` of the classes."""

  mean: jax.Array
  covariance: jax.Array
  count: jax.Array


class TailCalibration(NamedTuple):
  """Means `[k, d]` and covariances `[k, d, d]` of all classes; those of head classes as given."""

  mean: jax.Array
  covariance: jax.Array


class GaussianDraws(NamedTuple):
  """Features `[k, num_samples, d]` and their classes, int32 `[k, num_samples]`."""

  features: jax.Array
  labels: jax.Array


def fit_class_gaussians(
  features: chex.Array,
  labels: chex.Array,
  weights: chex.Array | None = None,
  *,
  num_classes: int,
  ridge: chex.Numeric = 0.0,
) -> ClassGaussians:
  """Fits a Gaussian to the features of each class.

  Args:
    features: `[n, d]`.
    labels: classes, int `[n]`; a traced label outside the classes belongs to none.
    weights: how often an example counts, `[n]`, >= 0; those of `class_inlier_weights` leave
      outliers out. None counts each once.
    num_classes: number k of classes.
    ridge: added to the diagonal of each covariance, >= 0.

  Returns:
    `ClassGaussians` in float32 or wider. With N the sum of the weights of a class, means are
    weighted sums over max(N, 1), and covariances over max(N - 1, 1). A class without examples has
    mean and covariance 0, before the ridge is added. A NaN stays in its class.

  Raises:
    ValueError: if `num_classes` < 2, `ridge` or a known weight is negative, a known label lies
      outside the classes or the shapes do not fit.

  Reference: Zhang et al., When Noisy Labels Meet Long Tail Dilemmas, ICCV 2023, section 3,
  https://arxiv.org/abs/2211.10955.
  """
  check_at_least(2, num_classes=num_classes)
  check_range("ridge", ridge, "[0, inf)")
  check_arrays(features=(features, "[n, d]"), labels=(labels, "int [n]"), weights=(weights, "[n]"))
  labels = as_classes("labels", labels, num_classes)
  features = as_accumulator(features)
  if weights is None:
    weights = jnp.ones(features.shape[0], features.dtype)
  else:
    check_range("weights", weights, "[0, inf)")
    features, weights = as_accumulator(features, weights)
  fitted = _fit(features, labels, weights, num_classes)
  diagonal = ridge * jnp.eye(features.shape[1], dtype=features.dtype)
  return fitted._replace(covariance=fitted.covariance + diagonal[None])


@compiled_once
def _fit(features, labels, weights, num_classes: int) -> ClassGaussians:
  def of_class(c):
    member = labels == c
    # Zero times NaN is NaN: the rows of other classes are put out, not weighted with 0.
    weight = jnp.where(member, weights, 0.0)
    count = jnp.sum(weight)
    own = jnp.where(member[:, None], features, 0.0)
    mean = jnp.matmul(weight, own, precision=_EXACT) / jnp.maximum(count, 1)
    gaps = jnp.where(member[:, None], features - mean[None], 0.0)
    squares = jnp.matmul((gaps * weight[:, None]).T, gaps, precision=_EXACT)
    covariance = (squares + squares.T) / (2 * jnp.maximum(count - 1, 1))
    return ClassGaussians(mean, covariance, count)

  # One class after the other: together they would take k copies of the features.
  return jax.lax.map(of_class, jnp.arange(num_classes, dtype=labels.dtype))


def tail_classes(count: chex.Array) -> jax.Array:
  """Which classes have fewer examples than the average class.

  Args:
    count: examples of each class, `[k]`, such as those of `fit_class_gaussians`.

  Returns:
    bool `[k]`.

  Reference: Zhang et al., When Noisy Labels Meet Long Tail Dilemmas, ICCV 2023, section 3,
  https://arxiv.org/abs/2211.10955.
  """
  check_arrays(count=(count, "[k]"))
  count = as_accumulator(count)
  return count * count.shape[0] < jnp.sum(count)


def calibrate_tail_gaussians(
  mean: chex.Array,
  covariance: chex.Array,
  count: chex.Array,
  is_tail: chex.Array,
  *,
  num_heads: int = 3,
  head_weight: chex.Numeric = 0.5,
  inflation: chex.Numeric = 0.1,
  weighting: str = "size",
) -> TailCalibration:
  """Lends the statistics of near head classes to tail classes.

  The mean and covariance of a tail class become `head_weight` times the average of its nearest
  heads plus `1 - head_weight` times its own; `inflation` is added to the diagonal.

  Args:
    mean: of each class, `[k, d]`.
    covariance: `[k, d, d]`.
    count: examples of each class, `[k]`.
    is_tail: which classes are calibrated, bool `[k]`; all others are heads.
    num_heads: heads that lend to a tail class, those with the nearest means (the lowest ones on
      ties); all if there are fewer.
    head_weight: share of the heads, in [0, 1].
    inflation: variance that is added, >= 0.
    weighting: "size" averages heads by their counts, "uniform" equally.

  Returns:
    A `TailCalibration` in float32 or wider. Without heads that have examples (by "size"), or
    without any head, only `inflation` is added. A head with a mean that is NaN lends nothing.

  Raises:
    ValueError: if `num_heads` < 1, `head_weight` lies outside [0, 1], `inflation` is negative,
      `weighting` is unknown or the shapes do not fit.

  Reference: Zhang et al., When Noisy Labels Meet Long Tail Dilemmas, ICCV 2023, section 3,
  https://arxiv.org/abs/2211.10955; Yang et al., Free Lunch for Few-shot Learning: Distribution
  Calibration, ICLR 2021, https://arxiv.org/abs/2101.06395.
  """
  check_at_least(1, num_heads=num_heads)
  check_range("head_weight", head_weight, "[0, 1]")
  check_range("inflation", inflation, "[0, inf)")
  check_choice("weighting", weighting, ("size", "uniform"))
  check_arrays(
    mean=(mean, "[k, d]"),
    covariance=(covariance, "[k, d, d]"),
    count=(count, "[k]"),
    is_tail=(is_tail, "bool [k]"),
  )
  mean, covariance, count = as_accumulator(mean, covariance, count)
  return _calibrate(
    mean,
    covariance,
    count,
    jnp.asarray(is_tail),
    as_accumulator(head_weight),
    as_accumulator(inflation),
    min(num_heads, mean.shape[0]),
    weighting,
  )


@compiled_once
def _calibrate(
  mean, covariance, count, is_tail, head_weight, inflation, num_heads: int, weighting: str
) -> TailCalibration:
  def nearest(ours):
    gaps = ours[:, None] - mean[None]
    distances = jnp.sum(gaps * gaps, axis=2)
    lends = ~is_tail[None] & jnp.isfinite(distances)
    nearness, heads = jax.lax.top_k(jnp.where(lends, -distances, -jnp.inf), num_heads)
    return heads, jnp.isfinite(nearness)

  heads, lends = map_over_rows(nearest, mean, width=mean.size)
  weights = jnp.where(lends, count[heads] if weighting == "size" else 1.0, 0.0)
  total = jnp.sum(weights, axis=1)
  weights = weights / jnp.where(total > 0, total, 1.0)[:, None]
  share = jnp.where(total > 0, head_weight, 0.0)

  def blend(own):
    axes = (slice(None),) + (None,) * (own.ndim - 1)
    lent = sum(
      jnp.where(lends[:, i][axes], weights[:, i][axes] * own[heads[:, i]], 0.0)
      for i in range(num_heads)
    )
    return share[axes] * lent + (1 - share)[axes] * own

  inflated = blend(covariance) + inflation * jnp.eye(mean.shape[1], dtype=mean.dtype)[None]
  return TailCalibration(
    jnp.where(is_tail[:, None], blend(mean), mean),
    jnp.where(is_tail[:, None, None], inflated, covariance),
  )


def sample_class_gaussians(
  key: chex.PRNGKey, mean: chex.Array, covariance: chex.Array, *, num_samples: int
) -> GaussianDraws:
  """Draws features from the Gaussian of each class.

  Args:
    key: random key.
    mean: of each class, `[k, d]`.
    covariance: symmetric, `[k, d, d]`; negative eigenvalues count as 0, so that it may be singular.
      No gradient flows into it.
    num_samples: draws of each class.

  Returns:
    `GaussianDraws`; features in float32 or wider.

  Raises:
    ValueError: if `num_samples` < 1 or the shapes do not fit.

  Reference: Zhang et al., When Noisy Labels Meet Long Tail Dilemmas, ICCV 2023, section 3,
  https://arxiv.org/abs/2211.10955.
  """
  check_at_least(1, num_samples=num_samples)
  check_arrays(mean=(mean, "[k, d]"), covariance=(covariance, "[k, d, d]"))
  mean, covariance = as_accumulator(mean, covariance)
  num_classes, dim = mean.shape
  # Equal eigenvalues have no gradient.
  values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(covariance))
  factors = vectors * jnp.sqrt(jnp.maximum(values, 0.0))[:, None]
  noise = jax.random.normal(key, (num_classes, num_samples, dim), mean.dtype)
  features = mean[:, None] + jnp.einsum("cij,cmj->cmi", factors, noise, precision=_EXACT)
  labels = jnp.broadcast_to(
    jnp.arange(num_classes, dtype=jnp.int32)[:, None], (num_classes, num_samples)
  )
  return GaussianDraws(features, labels)


def class_log_density(
  features: chex.Array, mean: chex.Array, covariance: chex.Array, *, ridge: chex.Numeric = 1e-3
) -> jax.Array:
  """Log density of features under the Gaussian of each class.

  Args:
    features: `[n, d]`.
    mean: of each class, `[k, d]`.
    covariance: `[k, d, d]`.
    ridge: added to the diagonal of each covariance, >= 0.

  Returns:
    `[n, k]` in nats, float32 or wider; NaN for a class whose covariance with the ridge is not
    positive definite. With log priors added, the largest is Bayes' decision.

  Raises:
    ValueError: if `ridge` is negative or the shapes do not fit.

  Reference: Zhang et al., When Noisy Labels Meet Long Tail Dilemmas, ICCV 2023, section 3,
  https://arxiv.org/abs/2211.10955.
  """
  check_range("ridge", ridge, "[0, inf)")
  check_arrays(
    features=(features, "[n, d]"), mean=(mean, "[k, d]"), covariance=(covariance, "[k, d, d]")
  )
  features, mean, covariance = as_accumulator(features, mean, covariance)
  return _log_density(features, mean, covariance, as_accumulator(ridge))


@jax.jit
def _log_density(features, mean, covariance, ridge) -> jax.Array:
  dim = features.shape[1]
  spread = covariance + ridge * jnp.eye(dim, dtype=features.dtype)[None]
  roots = jnp.linalg.cholesky(spread)

  def of_class(gaussian):
    mean, root = gaussian
    scaled = solve_triangular(root, (features - mean[None]).T, lower=True)
    log_volume = jnp.sum(jnp.log(jnp.diagonal(root))) + dim / 2 * jnp.log(2 * jnp.pi)
    return -jnp.sum(scaled * scaled, axis=0) / 2 - log_volume

  return jax.lax.map(of_class, (mean, roots)).T
