"""Losses that train a calibrator, on the confidence alone or on all probabilities."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_arrays


def correctness_aware_loss(
  logits: chex.Array,
  labels: chex.Array,
  *,
  balanced: bool = True,
  correct: chex.Array | None = None,
) -> chex.Array:
  """Squared distance between the largest probability and the correctness (0 or 1).

  Cross-entropy raises the true class even where the prediction is wrong, so a narrow miss stays
  confident. This loss asks a calibrator only for confidence 1 where the prediction is right and 0
  where it is wrong.

  Args:
    logits: calibrated scores, `[b, k]`.
    labels: true classes, int `[b]`.
    balanced: whether right and wrong rows have the same total weight in the mean of the batch; a
      batch with only right or only wrong rows is not weighted.
    correct: whether the predictions are right, `[b]`; None evaluates the largest logit, which a
      temperature does not change. No gradient flows into it.

  Returns:
    Loss per example, `[b]`, in float32 or wider; its mean over the batch is the objective.

  Raises:
    ValueError: if a known label lies outside the classes; labels in JAX arrays give NaN instead.

  Reference: Liu et al., Optimizing Calibration by Gaining Aware of Prediction Correctness, 2024,
  equation 8, https://arxiv.org/abs/2404.13016.
  """
  labels = _checked_labels(logits, labels)
  scores = as_accumulator(logits)
  if correct is None:
    correct = jnp.argmax(scores, axis=-1) == labels
  check_arrays(labels=(labels, "[b]"), correct=(correct, "[b]"))
  correct = jax.lax.stop_gradient(jnp.asarray(correct, scores.dtype))
  values = jnp.square(jnp.max(jax.nn.softmax(scores), axis=-1) - correct)
  values = _nan_outside_classes(values, logits, labels)
  if not balanced:
    return values
  accuracy = jnp.mean(correct)
  weights = correct * (1 - accuracy) + (1 - correct) * accuracy
  total = jnp.sum(weights)
  one_kind = total == 0
  weights = jnp.where(one_kind, 1.0, weights * len(values) / jnp.where(one_kind, 1.0, total))
  return values * weights


def brier_loss(logits: chex.Array, labels: chex.Array) -> chex.Array:
  """Squared distance of all probabilities from the one-hot label.

  A proper score, bounded where the cross-entropy is not.

  Args:
    logits: scores, `[b, k]`.
    labels: true classes, int `[b]`.

  Returns:
    Loss per example in [0, 2], `[b]`, in float32 or wider.

  Raises:
    ValueError: if a known label lies outside the classes; labels in JAX arrays give NaN instead.

  Reference: Brier, Verification of forecasts expressed in terms of probability, 1950,
  https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2.
  """
  labels = _checked_labels(logits, labels)
  probs = jax.nn.softmax(as_accumulator(logits))
  values = jnp.sum(jnp.square(probs - jax.nn.one_hot(labels, probs.shape[-1])), axis=-1)
  return _nan_outside_classes(values, logits, labels)


def _checked_labels(logits: chex.Array, labels: chex.Array) -> jax.Array:
  check_arrays(logits=(logits, "[b, k]"), labels=(labels, "int [b]"))
  return as_classes("labels", labels, jnp.shape(logits)[1])


def _nan_outside_classes(values: jax.Array, logits: chex.Array, labels: jax.Array) -> jax.Array:
  return jnp.where(labels < jnp.shape(logits)[1], values, jnp.nan)
