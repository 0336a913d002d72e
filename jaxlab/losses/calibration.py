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
  check_arrays(logits=(logits, "[b, k]"), labels=(labels, "int [b]"), correct=(correct, "[b]"))
  scores, labels = _scores_and_classes(logits, labels)
  if correct is None:
    correct = jnp.argmax(scores, axis=-1) == labels
  correct = jax.lax.stop_gradient(jnp.asarray(correct, scores.dtype))
  correct = jnp.where(labels < scores.shape[-1], correct, jnp.nan)
  values = jnp.square(jnp.max(jax.nn.softmax(scores), axis=-1) - correct)
  if not balanced:
    return values
  # A row that is neither right nor wrong must not reach the others.
  accuracy = jnp.nanmean(correct)
  weights = correct * (1 - accuracy) + (1 - correct) * accuracy
  total = jnp.nansum(weights)
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
  check_arrays(logits=(logits, "[b, k]"), labels=(labels, "int [b]"))
  scores, labels = _scores_and_classes(logits, labels)
  num_classes = scores.shape[-1]
  errors = jax.nn.softmax(scores) - jax.nn.one_hot(labels, num_classes)
  return jnp.where(labels < num_classes, jnp.sum(jnp.square(errors), axis=-1), jnp.nan)


def _scores_and_classes(logits: chex.Array, labels: chex.Array) -> tuple[jax.Array, jax.Array]:
  scores = as_accumulator(logits)
  return scores, as_classes("labels", labels, scores.shape[-1])
