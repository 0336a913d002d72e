"""Naive Bayes with Gaussian features: a linear classifier that is fitted generatively."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least, check_range

_EXACT = jax.lax.Precision.HIGHEST


class GaussianNBState(NamedTuple):
  """What naive Bayes knows of its training examples.

  Attributes:
    counts: examples of each class, float32 or wider `[k]`.
    means: means of the features, `[k, n]`; 0 for a class without examples.
    variances: mean squared distances from the means, plus `var_epsilon`, `[k, n]`.
  """

  counts: chex.Array
  means: chex.Array
  variances: chex.Array


class LinearClassifier(NamedTuple):
  """Scores `features @ weights.T + bias`: weights `[k, n]`, bias `[k]`."""

  weights: chex.Array
  bias: chex.Array


def gaussian_nb_fit(
  features: chex.Array,
  labels: chex.Array,
  *,
  num_classes: int,
  var_epsilon: chex.Numeric = 1e-9,
) -> GaussianNBState:
  """Fits means and variances of the features of each class.

  Naive Bayes needs few examples, O(log n) for n features, to come near its best error, which is
  larger than that of logistic regression.

  Args:
    features: `[m, n]`.
    labels: classes, int `[m]`; a traced label outside the classes takes its row out, so that one
      program can fit training sets of many sizes.
    num_classes: number k of classes.
    var_epsilon: added to every variance, >= 0.

  Returns:
    `GaussianNBState` in float32 or wider. A feature that is constant in a class has exactly its
    value as mean, and variance `var_epsilon`. A NaN stays in its class.

  Raises:
    ValueError: if `num_classes` < 2, `var_epsilon` < 0, or a known label lies outside the classes.

  Reference: Zheng et al., Revisiting Discriminative vs. Generative Classifiers, ICML 2023, https://arxiv.org/abs/2302.02334.
  """
  check_at_least(2, num_classes=num_classes)
  check_range("var_epsilon", var_epsilon, "[0, inf)")
  check_arrays(features=(features, "[m, n]"), labels=(labels, "int [m]"))
  features, labels = as_accumulator(features), as_classes("labels", labels, num_classes)
  num_rows, num_features = features.shape

  def total(rows):
    return jax.ops.segment_sum(rows, labels, num_segments=num_classes)

  def of_class(table):
    return table.at[labels].get(mode="fill", fill_value=0)

  counts = total(jnp.ones(num_rows, features.dtype))
  if num_rows == 0:
    empty = jnp.zeros((num_classes, num_features), features.dtype)
    return GaussianNBState(counts, empty, empty + var_epsilon)
  # Sums of distances from a row of the class: those of a constant are exactly 0.
  rows = jnp.arange(num_rows)
  first = jax.ops.segment_min(rows, labels, num_segments=num_classes)
  present = (counts > 0)[:, None]
  first = jnp.where(present, features[jnp.clip(first, 0, num_rows - 1)], 0.0)
  divisor = jnp.maximum(counts, 1)[:, None]
  means = first + total(features - of_class(first)) / divisor
  variances = total(jnp.square(features - of_class(means))) / divisor
  return GaussianNBState(counts, means, variances + as_accumulator(var_epsilon))


def gaussian_nb_update(
  state: GaussianNBState,
  features: chex.Array,
  labels: chex.Array,
  *,
  var_epsilon: chex.Numeric = 1e-9,
) -> GaussianNBState:
  """Adds examples to a fit, as if all had been fitted together.

  A scan over batches of a shuffled training set gives the fits of many training set sizes.

  Args:
    state: fit of the earlier examples.
    features: `[m, n]`.
    labels: classes, int `[m]`; a traced label outside the classes takes its row out.
    var_epsilon: that of the earlier fit.

  Returns:
    `GaussianNBState`. A class that is absent from one side takes the values of the other.

  Raises:
    ValueError: if `var_epsilon` < 0, a known label lies outside the classes, or the shapes do not
      fit.

  Reference: Chan et al., Updating Formulae and a Pairwise Algorithm for Computing Sample Variances,
  COMPSTAT 1982; Zheng et al., ICML 2023, https://arxiv.org/abs/2302.02334.
  """
  _check_shapes(*state, features)
  old = GaussianNBState(*as_accumulator(*state))
  num_classes = old.counts.shape[0]
  new = gaussian_nb_fit(features, labels, num_classes=num_classes, var_epsilon=var_epsilon)
  counts = old.counts + new.counts
  share = (new.counts / jnp.maximum(counts, 1))[:, None]
  gap = new.means - old.means
  spread = (1 - share) * old.variances + share * new.variances
  merged = old.means + share * gap, spread + share * (1 - share) * jnp.square(gap)
  is_old, is_new = (old.counts > 0)[:, None], (new.counts > 0)[:, None]
  means, variances = (
    jnp.where(is_old & is_new, both, jnp.where(is_new, theirs, ours))
    for both, ours, theirs in zip(merged, old[1:], new[1:])
  )
  return GaussianNBState(counts, means, variances)


def gaussian_nb_log_joint(
  counts: chex.Array,
  means: chex.Array,
  variances: chex.Array,
  features: chex.Array,
  *,
  shared_variance: bool = True,
) -> jax.Array:
  """Log joint density of features and each class.

  Args:
    counts: examples of each class, `[k]`, >= 0; their shares are the priors.
    means: `[k, n]`.
    variances: `[k, n]`, > 0.
    features: `[m, n]`.
    shared_variance: whether all classes have the average of the variances, weighted by the priors,
      which makes the classifier linear; static.

  Returns:
    `[m, k]` in nats, float32 or wider; -inf for a class without examples. Softmax over the classes
    gives the posterior, the largest is the decision; `gaussian_nb_predict` decides with fewer
    rounding errors.

  Raises:
    ValueError: if a known count is negative, a known variance is not positive, or the shapes do not
      fit.

  Reference: Zheng et al., Revisiting Discriminative vs. Generative Classifiers, ICML 2023, https://arxiv.org/abs/2302.02334.
  """
  _check(counts, means, variances, features)
  counts, means, variances, features = as_accumulator(counts, means, variances, features)
  log_priors = _log_priors(counts)
  if shared_variance:
    variances = jnp.broadcast_to(_shared_variance(counts, variances)[None], means.shape)
  return _log_joint(log_priors, means, variances, features)


@jax.jit
def _log_joint(log_priors, means, variances, features) -> jax.Array:
  unknown = jnp.isnan(features).any(axis=1)

  def of_class(gaussian):
    log_prior, mean, variance = gaussian
    distances = jnp.square(features - mean[None]) / variance[None]
    log_volume = jnp.sum(jnp.log(2 * jnp.pi * variance))
    log_joint = log_prior - (jnp.sum(distances, axis=1) + log_volume) / 2
    return jnp.where((log_prior == -jnp.inf) & ~unknown, -jnp.inf, log_joint)

  # One class after the other: together they would take k copies of the features.
  return jax.lax.map(of_class, (log_priors, means, variances)).T


def gaussian_nb_predict(
  counts: chex.Array,
  means: chex.Array,
  variances: chex.Array,
  features: chex.Array,
  *,
  shared_variance: bool = True,
) -> jax.Array:
  """The class with the largest joint density.

  With one variance the terms that all classes share are left out before they are rounded: a feature
  that never varied in training, and so has an enormous density, then changes no decision.

  Args:
    counts: examples of each class, `[k]`, >= 0.
    means: `[k, n]`.
    variances: `[k, n]`, > 0.
    features: `[m, n]`.
    shared_variance: as in `gaussian_nb_log_joint`.

  Returns:
    Classes, int32 `[m]`; the lowest on ties, and never one without examples.

  Raises:
    ValueError: as `gaussian_nb_log_joint`.

  Reference: Zheng et al., Revisiting Discriminative vs. Generative Classifiers, ICML 2023, https://arxiv.org/abs/2302.02334.
  """
  if not shared_variance:
    scores = gaussian_nb_log_joint(counts, means, variances, features, shared_variance=False)
    return jnp.argmax(scores, axis=1).astype(jnp.int32)
  _check(counts, means, variances, features)
  counts, means, variances, features = as_accumulator(counts, means, variances, features)
  # A common mean in the sense of the state's: exact for a feature that is the same in all classes.
  largest = jnp.argmax(counts)
  shares = counts / jnp.maximum(jnp.sum(counts), 1)
  gaps = jnp.where((counts > 0)[:, None], means - means[largest][None], 0.0)
  center = means[largest] + jnp.sum(shares[:, None] * gaps, axis=0)
  weights, bias = gaussian_nb_linear(counts, means - center[None], variances)
  scores = jnp.matmul(features - center[None], weights.T, precision=_EXACT) + bias[None]
  return jnp.argmax(scores, axis=1).astype(jnp.int32)


def gaussian_nb_linear(
  counts: chex.Array, means: chex.Array, variances: chex.Array
) -> LinearClassifier:
  """The linear classifier that naive Bayes with one variance is.

  Args:
    counts: examples of each class, `[k]`, >= 0.
    means: `[k, n]`.
    variances: `[k, n]`, > 0; averaged over the classes, weighted by their priors.

  Returns:
    `LinearClassifier`: weights mean / variance and bias log prior - sum of mean² / (2 variance),
    whose scores differ from the log joint densities by a number that is the same for all classes.
    The bias of a class without examples is -inf. Features far from 0, compared with their
    standard deviations, should be centered before the fit, or the bias is rounded.

  Raises:
    ValueError: if a known count is negative, a known variance is not positive, or the shapes do not
      fit.

  Reference: Zheng et al., Revisiting Discriminative vs. Generative Classifiers, ICML 2023, https://arxiv.org/abs/2302.02334.
  """
  _check(counts, means, variances)
  counts, means, variances = as_accumulator(counts, means, variances)
  weights = means / _shared_variance(counts, variances)[None]
  return LinearClassifier(weights, _log_priors(counts) - jnp.sum(means * weights, axis=1) / 2)


def _check(counts, means, variances, features=None) -> None:
  _check_shapes(counts, means, variances, features)
  check_range("counts", counts, "[0, inf)")
  check_range("variances", variances, "(0, inf)")


def _check_shapes(counts, means, variances, features) -> None:
  check_arrays(
    counts=(counts, "[k]"),
    means=(means, "[k, n]"),
    variances=(variances, "[k, n]"),
    features=(features, "[m, n]"),
  )


def _log_priors(counts: jax.Array) -> jax.Array:
  absent = counts == 0
  total = jnp.sum(counts)
  log_total = jnp.log(jnp.where(total == 0, 1.0, total))
  return jnp.where(absent, -jnp.inf, jnp.log(jnp.where(absent, 1.0, counts)) - log_total)


def _shared_variance(counts: jax.Array, variances: jax.Array) -> jax.Array:
  """Average of the variances of the classes with examples; 1 if there are none."""
  total = jnp.sum(counts)
  weighted = jnp.where((counts == 0)[:, None], 0.0, counts[:, None] * variances)
  mean = jnp.sum(weighted, axis=0) / jnp.where(total == 0, 1.0, total)
  return jnp.where(total == 0, 1.0, mean)
