"""Second-order calibration: is a model's variance the squared error of its probabilities?"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  as_flags,
  check_arrays,
  check_at_least,
  check_filled,
)
from jaxlab.metrics.rejection import rejection_curve


class HallucinationCurve(NamedTuple):
  """Share of answers that are hallucinated, by the confidence that is asked for.

  Attributes:
    thresholds: confidences of the answers, descending, `[n]`.
    rate: share of hallucinated ones among all answers of at least that confidence, `[n]`.
  """

  thresholds: chex.Array
  rate: chex.Array


def pair_squared_error(probs: chex.Array, labels_a: chex.Array, labels_b: chex.Array) -> jax.Array:
  """Unbiased estimate of the squared error of probabilities, without knowing the true ones.

  Its mean over pairs of labels is `(p(y | x) - probs_y)²`.

  Args:
    probs: predicted probabilities, `[b, k]`.
    labels_a: one label of each row, int `[b]`.
    labels_b: another label of the same row, drawn independently, int `[b]`.

  Returns:
    `(1[a = y] - probs_y) (1[b = y] - probs_y)`, which may be negative, `[b, k]`, in float32 or
    wider; NaN in the row of a traced label outside the classes.

  Raises:
    ValueError: if a known label lies outside [0, k).

  Reference: Johnson et al., Experts Don't Cheat: Learning What You Don't Know By Predicting Pairs,
  ICML 2024, section 5, https://arxiv.org/abs/2402.08733.
  """
  check_arrays(
    probs=(probs, "[b, k]"), labels_a=(labels_a, "int [b]"), labels_b=(labels_b, "int [b]")
  )
  probs = as_accumulator(probs)
  num_classes = probs.shape[1]

  def residuals(name, labels):
    labels = as_classes(name, labels, num_classes)[:, None]
    hits = (labels == jnp.arange(num_classes)[None]).astype(probs.dtype)
    return jnp.where(labels < num_classes, hits, jnp.nan) - probs

  return residuals("labels_a", labels_a) * residuals("labels_b", labels_b)


def second_order_calibration_error(
  variance: chex.Array, squared_error: chex.Array, *, num_bins: int = 20
) -> jax.Array:
  """Gap between predicted variance and squared error, by bins of the prediction.

  All entries of all rows are sorted by their predicted variance and cut into bins of equal count.
  With probabilities for the variance and 0 or 1 for the error it is the first-order calibration
  error.

  Args:
    variance: predicted variances of the probabilities, `[n, k]`.
    squared_error: `(p - probs)²`, or its unbiased estimate `pair_squared_error`, `[n, k]`.
    num_bins: number of bins.

  Returns:
    Mean over entries of the gap between the two means of their bin, a scalar in float32 or wider.

  Raises:
    ValueError: if `num_bins` < 1 or there are no entries.

  Reference: Johnson et al., ICML 2024, section 5, https://arxiv.org/abs/2402.08733.
  """
  check_at_least(1, num_bins=num_bins)
  check_arrays(variance=(variance, "[n, k]"), squared_error=(squared_error, "[n, k]"))
  check_filled(variance=variance)
  variance, squared_error = as_accumulator(variance, squared_error)
  variance, squared_error = variance.reshape(-1), squared_error.reshape(-1)
  order = jnp.argsort(variance, stable=True)
  gaps = jnp.append((variance - squared_error)[order], 0.0)
  # Entry i of N is in bin i * num_bins // N: the places of a bin, padded by that of a 0.
  total = variance.size
  starts = [-(-i * total // num_bins) for i in range(num_bins + 1)]
  places = np.array(starts[:-1])[:, None] + np.arange(np.diff(starts).max())[None]
  places = np.where(places < np.array(starts[1:])[:, None], places, total)
  return jnp.sum(jnp.abs(jnp.sum(gaps[places], axis=1))) / total


def interval_coverage(probs: chex.Array, lower: chex.Array, upper: chex.Array) -> jax.Array:
  """Share of true probabilities that lie in their interval.

  Args:
    probs: true probabilities, `[...]`.
    lower: lower bounds, `[...]`.
    upper: upper bounds, `[...]`; bounds belong to the interval.

  Returns:
    A scalar in [0, 1], in float32 or wider; NaN with a NaN.

  Raises:
    ValueError: if there are no probabilities.

  Reference: Johnson et al., ICML 2024, section 3.2, https://arxiv.org/abs/2402.08733.
  """
  check_arrays(probs=(probs, "[...]"), lower=(lower, "[...]"), upper=(upper, "[...]"))
  check_filled(probs=probs)
  probs, lower, upper = as_accumulator(probs, lower, upper)
  inside = (lower <= probs) & (probs <= upper)
  missing = jnp.isnan(probs) | jnp.isnan(lower) | jnp.isnan(upper)
  return jnp.mean(jnp.where(missing, jnp.nan, inside.astype(probs.dtype)))


def hallucination_curve(confidence: chex.Array, hallucinated: chex.Array) -> HallucinationCurve:
  """How often the answers that a confidence lets through are hallucinated.

  Args:
    confidence: confidence in each answer, such as `uncertainty.pair_confidence`, `[n]`.
    hallucinated: whether the answer cannot be right, bool or 0 and 1, `[n]`.

  Returns:
    A `HallucinationCurve`. Answers of NaN confidence come last, with NaN.

  Raises:
    ValueError: if there are no answers, or a known flag is neither 0 nor 1.

  Reference: Johnson et al., ICML 2024, section 6.2, https://arxiv.org/abs/2402.08733.
  """
  check_arrays(confidence=(confidence, "[n]"), hallucinated=(hallucinated, "[n]"))
  check_filled(confidence=confidence)
  flags, known = as_flags("hallucinated", hallucinated)
  confidence = as_accumulator(confidence)
  wrong = jnp.where(known, flags.astype(confidence.dtype), jnp.nan)
  curve = rejection_curve(-confidence, wrong)
  return HallucinationCurve(-curve.thresholds, curve.error)
