"""Calibration: binned errors, reliability, likelihood, and the best that one temperature can reach.

Bins are of equal width and closed on the right: a confidence on an edge belongs to the bin below
it, and 0 to the first. NaN in the predictions gives NaN, as do labels in JAX arrays outside
the classes.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_filled,
  check_range,
)

# Number of rows whose sum keeps at least five digits in float32.
_CHUNK = 256


class Reliability(NamedTuple):
  """A reliability diagram; all values are 0 for empty bins.

  Attributes:
    confidence: mean confidence in each bin, `[num_bins]`.
    accuracy: share of right predictions in each bin, `[num_bins]`.
    count: predictions in each bin, int32 `[num_bins]`.
  """

  confidence: chex.Array
  accuracy: chex.Array
  count: chex.Array


def expected_calibration_error(
  probs: chex.Array, labels: chex.Array, *, num_bins: int = 15
) -> chex.Array:
  """Gap between confidence and accuracy, averaged over predictions.

  Args:
    probs: predicted probabilities, `[n, k]`; the confidence is the largest of a row.
    labels: true classes, int `[n]`.
    num_bins: number of bins of equal width.

  Returns:
    The error in [0, 1], a float32 scalar (or wider).

  Raises:
    ValueError: if `num_bins` < 1, `probs` is empty, or a known label lies outside the classes.

  Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 5,
  https://arxiv.org/abs/1706.04599.
  """
  return _expected_gap(reliability_diagram(probs, labels, num_bins=num_bins))


def average_calibration_error(
  probs: chex.Array, labels: chex.Array, *, num_bins: int = 15
) -> chex.Array:
  """Gap between confidence and accuracy, averaged over the bins that are not empty.

  All bins have the same weight, so that sparse bins of uncertain predictions count as well.

  Args:
    probs: predicted probabilities, `[n, k]`.
    labels: true classes, int `[n]`.
    num_bins: number of bins of equal width.

  Returns:
    The error in [0, 1], a float32 scalar (or wider).

  Raises:
    ValueError: as in `expected_calibration_error`.

  Reference: Neumann et al., Relaxed Softmax, 2018, as used by Chidambaram and Ge, ICLR 2024,
  https://arxiv.org/abs/2306.00740.
  """
  diagram = reliability_diagram(probs, labels, num_bins=num_bins)
  return jnp.sum(_gaps(diagram)) / jnp.sum(diagram.count > 0)


def maximum_calibration_error(
  probs: chex.Array, labels: chex.Array, *, num_bins: int = 15
) -> chex.Array:
  """Largest gap between confidence and accuracy over the bins.

  Args:
    probs: predicted probabilities, `[n, k]`.
    labels: true classes, int `[n]`.
    num_bins: number of bins of equal width.

  Returns:
    The error in [0, 1], a float32 scalar (or wider).

  Raises:
    ValueError: as in `expected_calibration_error`.

  Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 6,
  https://arxiv.org/abs/1706.04599.
  """
  return jnp.max(_gaps(reliability_diagram(probs, labels, num_bins=num_bins)))


def reliability_diagram(
  probs: chex.Array, labels: chex.Array, *, num_bins: int = 15
) -> Reliability:
  """Confidence and accuracy by bins of confidence.

  Args:
    probs: predicted probabilities, `[n, k]`; the first class is predicted on ties.
    labels: true classes, int `[n]`.
    num_bins: number of bins of equal width.

  Returns:
    A `Reliability`; `metrics.plot_reliability` draws it.

  Raises:
    ValueError: as in `expected_calibration_error`.

  Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equations 3 and 4,
  https://arxiv.org/abs/1706.04599.
  """
  probs, labels = _predictions(probs, labels)
  correct = _matches(labels, jnp.argmax(probs, axis=-1), probs.shape[1])
  return _bin(jnp.max(probs, axis=-1), correct, num_bins)


def confidence_calibration_error(
  confidence: chex.Array, correct: chex.Array, *, num_bins: int = 25
) -> chex.Array:
  """Expected calibration error of any confidence, for any kind of correctness.

  Args:
    confidence: predicted probability of being right, `[n]`.
    correct: whether the prediction was right, bool or 0 and 1, `[n]`.
    num_bins: number of bins of equal width.

  Returns:
    The error in [0, 1], a float32 scalar (or wider).

  Raises:
    ValueError: if `num_bins` < 1 or `confidence` is empty.

  Reference: Liu et al., Optimizing Calibration by Gaining Aware of Prediction Correctness, 2024,
  section 5, https://arxiv.org/abs/2404.13016.
  """
  return _expected_gap(_bin(confidence, correct, num_bins))


def kolmogorov_smirnov_error(confidence: chex.Array, correct: chex.Array) -> chex.Array:
  """Largest distance between cumulative confidence and cumulative correctness.

  It needs no bins.

  Args:
    confidence: predicted probability of being right, `[n]`; ties keep their order.
    correct: whether the prediction was right, bool or 0 and 1, `[n]`.

  Returns:
    The error in [0, 1], a float32 scalar (or wider).

  Raises:
    ValueError: if `confidence` is empty.

  Reference: Gupta et al., Calibration of Neural Networks using Splines, ICLR 2021, section 3,
  https://arxiv.org/abs/2006.12800.
  """
  confidence, correct = _confidence_and_correct(confidence, correct)
  order = jnp.argsort(confidence, stable=True)
  surplus = jnp.cumsum((confidence - correct)[order])
  return jnp.max(jnp.abs(surplus)) / confidence.shape[0]


def static_calibration_error(
  probs: chex.Array, labels: chex.Array, *, num_bins: int = 15
) -> chex.Array:
  """Expected calibration error of the probability of every class, averaged over classes.

  Args:
    probs: predicted probabilities, `[n, k]`.
    labels: true classes, int `[n]`.
    num_bins: number of bins per class.

  Returns:
    The error in [0, 1], a float32 scalar (or wider).

  Raises:
    ValueError: as in `expected_calibration_error`.

  Reference: Nixon et al., Measuring Calibration in Deep Learning, 2019, section 3,
  https://arxiv.org/abs/1904.01685.
  """
  probs, labels = _predictions(probs, labels)
  num_classes = probs.shape[1]

  def of_class(class_probs, index):
    return _expected_gap(_bin(class_probs, _matches(labels, index, num_classes), num_bins))

  return jnp.mean(jax.vmap(of_class, in_axes=(1, 0))(probs, jnp.arange(num_classes)))


def negative_log_likelihood(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """Negative log-probability of the true class.

  Args:
    logits: scores, `[..., k]`.
    labels: true classes, int `[...]`.

  Returns:
    Nats per example, `[...]`, in float32 or wider.

  Raises:
    ValueError: if a known label lies outside the classes; labels in JAX arrays give NaN instead.

  Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 7,
  https://arxiv.org/abs/1706.04599.
  """
  check_arrays(logits=(logits, "[..., k]"), labels=(labels, "int [...]"))
  labels = as_classes("labels", labels, np.shape(logits)[-1])
  log_probs = jax.nn.log_softmax(as_accumulator(logits))
  return -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]


def interpolator_temperature_scaled_nll(
  overlap: chex.Numeric, num_classes: chex.Numeric
) -> chex.Array:
  """Loss at the best temperature of a network that interpolates overlapping classes.

  On the overlap two classes are equally likely and the network is certain of one of them, so that
  it is wrong in half of the cases and nothing shows where. At any temperature its loss exceeds the
  Bayes risk `overlap * log 2` by about `overlap / 2 * log(num_classes)`.

  Args:
    overlap: share of the mass where two classes overlap (twice the error), in [0, 1].
    num_classes: number of classes, at least 2; the two arguments are broadcast.

  Returns:
    Expected negative log-likelihood in nats, float32 or wider. Its slope at overlap 0 is infinite.

  Raises:
    ValueError: if `overlap` lies outside [0, 1] or `num_classes` is less than 2.

  Reference: Chidambaram and Ge, On the Limitations of Temperature Scaling for Distributions with
  Overlaps, ICLR 2024, section 4, https://arxiv.org/abs/2306.00740.
  """
  check_range("overlap", overlap, "[0, 1]")
  check_range("num_classes", num_classes, "[2, inf]")
  overlap, num_classes = jnp.broadcast_arrays(*as_accumulator(overlap, num_classes))
  error = overlap / 2
  entropy = -jax.scipy.special.xlogy(error, error) - (1 - error) * jnp.log1p(-error)
  return entropy + error * jnp.log(num_classes - 1)


def _predictions(probs: chex.Array, labels: chex.Array) -> tuple[jax.Array, jax.Array]:
  check_arrays(probs=(probs, "[n, k]"), labels=(labels, "int [n]"))
  check_filled(probs=probs)
  return as_accumulator(probs), as_classes("labels", labels, np.shape(probs)[1])


def _matches(labels: jax.Array, classes: jax.Array, num_classes: int) -> jax.Array:
  """Whether the labels are these classes; NaN where they are no class at all."""
  return jnp.where(labels < num_classes, labels == classes, jnp.nan)


def _confidence_and_correct(confidence: chex.Array, correct: chex.Array) -> tuple[jax.Array, ...]:
  check_arrays(confidence=(confidence, "[n]"), correct=(correct, "[n]"))
  check_filled(confidence=confidence)
  return as_accumulator(confidence, correct)


def _bin(confidence: chex.Array, correct: chex.Array, num_bins: int) -> Reliability:
  check_at_least(1, num_bins=num_bins)
  confidence, correct = _confidence_and_correct(confidence, correct)
  num_rows = confidence.shape[0]
  inner_edges = jnp.asarray(np.linspace(0.0, 1.0, num_bins + 1)[1:-1], confidence.dtype)
  bins = jnp.searchsorted(inner_edges, confidence, side="left").astype(jnp.int32)
  # In float32 a running sum of a million equal terms is off by percents, so sum in two levels.
  num_chunks = -(-num_rows // _CHUNK)
  segments = bins + num_bins * (jnp.arange(num_rows) // _CHUNK)

  def sums(values):
    parts = jax.ops.segment_sum(values, segments, num_bins * num_chunks)
    return parts.reshape(num_chunks, num_bins).sum(0)

  count = sums(jnp.ones_like(bins))
  divisor = jnp.maximum(count, 1)
  return Reliability(sums(confidence) / divisor, sums(correct) / divisor, count)


def _gaps(diagram: Reliability) -> jax.Array:
  return jnp.abs(diagram.confidence - diagram.accuracy)


def _expected_gap(diagram: Reliability) -> jax.Array:
  return jnp.sum(diagram.count * _gaps(diagram)) / jnp.sum(diagram.count)
