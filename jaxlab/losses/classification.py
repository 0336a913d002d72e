"""Cross-entropy with soft targets, of many classes or of two."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_range, weighted


def label_smoothed_cross_entropy(
  logits: chex.Array, labels: chex.Array, *, label_smoothing: chex.Numeric = 0.1
) -> jax.Array:
  """Cross-entropy to the label mixed with the uniform distribution.

  The optimal logits are then finite, which limits the confidence of a source model and keeps its
  features clustered.

  Args:
    logits: scores of the classes, `[..., k]`.
    labels: classes, int `[...]`.
    label_smoothing: share of the uniform distribution in the target, in [0, 1).

  Returns:
    Loss per example in nats, float32 or wider, `[...]`.

  Raises:
    ValueError: if `label_smoothing` lies outside [0, 1) or a known label outside [0, k).

  Reference: Müller et al., When Does Label Smoothing Help?, NeurIPS 2019,
  https://arxiv.org/abs/1906.02629; Liang et al., SHOT, ICML 2020, equation 1,
  https://arxiv.org/abs/2002.08546.
  """
  check_range("label_smoothing", label_smoothing, "[0, 1)")
  check_arrays(logits=(logits, "[..., k]"), labels=(labels, "int [...]"))
  logits = as_accumulator(logits)
  labels = as_classes("labels", labels, logits.shape[-1])
  log_probs = jax.nn.log_softmax(logits, axis=-1)
  chosen = jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
  mean = jnp.mean(log_probs, axis=-1)
  return -(1 - label_smoothing) * chosen - weighted(label_smoothing, mean)


def soft_cross_entropy(logits: chex.Array, targets: chex.Array) -> jax.Array:
  """Cross-entropy of a prediction to a distribution over the classes.

  Args:
    logits: scores of the classes, `[..., k]`.
    targets: probabilities, `[..., k]`, used as given; gradients flow into them, too. Stop them
      where a target is the network's own guess.

  Returns:
    `-sum(targets * log_softmax(logits))` in nats, `[...]`, in float32 or wider. A masked class
    whose target is 0 costs nothing.

  Reference: Berthelot et al., MixMatch, NeurIPS 2019, equation 3,
  https://arxiv.org/abs/1905.02249.
  """
  check_arrays(logits=(logits, "[..., k]"), targets=(targets, "[..., k]"))
  logits, targets = as_accumulator(logits, targets)
  return -jnp.sum(weighted(targets, jax.nn.log_softmax(logits)), axis=-1)


def sigmoid_cross_entropy(logits: chex.Array, targets: chex.Array) -> jax.Array:
  """Cross-entropy of yes-or-no predictions to targets that may be probabilities.

  With the difference of two scores as the logit, it fits preferences to soft labels.

  Args:
    logits: log-odds of yes, `[...]`.
    targets: probabilities of yes, `[...]`, in [0, 1]; gradients flow into them, too.

  Returns:
    `-targets * log sigmoid(logits) - (1 - targets) * log sigmoid(-logits)` in nats, `[...]`, in
    float32 or wider. An infinite logit costs nothing where its target is as sure.

  Raises:
    ValueError: if a known target lies outside [0, 1].

  Reference: Burns et al., Weak-to-Strong Generalization, ICML 2024, section 3,
  https://arxiv.org/abs/2312.09390.
  """
  check_range("targets", targets, "[0, 1]")
  check_arrays(logits=(logits, "[...]"), targets=(targets, "[...]"))
  logits, targets = as_accumulator(logits, targets)
  against = weighted(1.0 - targets, jax.nn.log_sigmoid(-logits))
  return -weighted(targets, jax.nn.log_sigmoid(logits)) - against
