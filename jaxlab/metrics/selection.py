"""How much single features say about labels, and about each other."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least, check_filled
from jaxlab.metrics.regression import pearson_correlation


def anova_f(features: chex.Array, labels: chex.Array, *, num_classes: int) -> jax.Array:
  """F statistic of a one-way analysis of variance, feature by feature.

  With K classes that occur, it is the variance between their means over that within them,
  `[SSB / (K - 1)] / [SSW / (n - K)]`.

  Args:
    features: `[n, F]`.
    labels: classes, int `[n]`.
    num_classes: number of classes, of which some may not occur.

  Returns:
    Statistics, float32 or wider, `[F]`. 0 for a feature that is constant within every class (where
    the statistic is infinite, or undefined), if one class occurs alone, or if no class has two
    rows. NaN for a feature with NaN or infinity.

  Raises:
    ValueError: if there are no features, `num_classes` < 2, shapes do not agree, or a known label
      is no class.
    TypeError: if labels are no integers.

  Reference: Fisher, Statistical Methods for Research Workers, 1925; Leontiou et al., LightWaveS,
  DCOSS 2022, https://arxiv.org/abs/2204.01379.
  """
  check_at_least(2, num_classes=num_classes)
  check_arrays(features=(features, "[n, F]"), labels=(labels, "int [n]"))
  check_filled(features=features)
  labels = as_classes("labels", labels, num_classes)
  # The statistic does not depend on offset and scale, but rounding and overflow do.
  features = as_accumulator(features)
  features = features - features[:1]
  size = jax.lax.stop_gradient(jnp.max(jnp.abs(features), axis=0, keepdims=True))
  features = features / jnp.where(size == 0, 1.0, size)

  members = jax.nn.one_hot(labels, num_classes, dtype=features.dtype)
  counts = jnp.sum(members, axis=0)[:, None]
  # Deviations from one row of the class are exactly 0 if all of its rows are equal.
  first = features[jnp.argmax(members, axis=0)]
  rest = features - first.at[labels].get(mode="fill")
  total = jnp.matmul(members.T, rest, precision=jax.lax.Precision.HIGHEST)
  offsets = total / jnp.maximum(counts, 1.0)
  within = jnp.sum(jnp.square(rest - offsets.at[labels].get(mode="fill")), axis=0)
  means = first + offsets
  center = jnp.sum(counts * means, axis=0, keepdims=True) / features.shape[0]
  between = jnp.sum(counts * jnp.square(means - center), axis=0)

  num_present = jnp.sum(counts > 0)
  freedom = features.shape[0] - num_present
  undefined = (within == 0) | (num_present < 2) | (freedom < 1)
  ratio = between * freedom / (jnp.where(undefined, 1.0, within) * jnp.maximum(num_present - 1, 1))
  return jnp.where(undefined & ~jnp.isnan(within), 0.0, ratio)


def feature_correlation(features: chex.Array, target: chex.Array) -> jax.Array:
  """Pearson correlation of every feature with a target.

  Args:
    features: `[n, F]`.
    target: `[n]`.

  Returns:
    Correlations in [-1, 1], float32 or wider, `[F]`; 0 where the feature or the target is constant.

  Raises:
    ValueError: if there are no rows, or shapes do not agree.
  """
  check_arrays(features=(features, "[n, F]"), target=(target, "[n]"))
  return jax.vmap(pearson_correlation, in_axes=(1, None))(jnp.asarray(features), target)
