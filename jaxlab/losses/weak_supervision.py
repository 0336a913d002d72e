"""Objectives of a strong student whose labels come from a weak supervisor."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_filled, check_range, weighted
from jaxlab.losses.classification import sigmoid_cross_entropy


def conflict_loss(
  logits: chex.Array,
  weak_probs: chex.Array,
  true_labels: chex.Array,
  *,
  conflict_weight: chex.Numeric = 0.5,
) -> jax.Array:
  """Cross-entropy to weak labels, and a reward for predictions that contradict the truth.

  The reward stands for another objective that pulls against the weak labels: what the student gets
  wrong is pushed further from the truth. `metrics.weak_to_strong_deception` says whether the errors
  gather where the supervisor knows nothing.

  Args:
    logits: the student's log-odds that the first of a pair is preferred, `[...]`.
    weak_probs: the supervisor's probabilities of that, `[...]`, in [0, 1].
    true_labels: whether it is so, bool or 0 and 1, `[...]`.
    conflict_weight: weight of the reward, at least 0.

  Returns:
    Loss per pair in nats, `[...]`, in float32 or wider. A logit of 0 or more predicts the first; no
    gradient flows through which predictions are wrong.

  Raises:
    ValueError: if `conflict_weight` < 0, or a known label or probability lies outside [0, 1].

  Reference: Yang et al., Super(ficial)-alignment: Strong Models May Deceive Weak Models in
  Weak-to-Strong Generalization, ICLR 2025, section 4.2, https://arxiv.org/abs/2406.11431.
  """
  check_range("conflict_weight", conflict_weight, "[0, inf)")
  check_range("weak_probs", weak_probs, "[0, 1]")
  check_range("true_labels", true_labels, "[0, 1]")
  check_arrays(
    logits=(logits, "[...]"), weak_probs=(weak_probs, "[...]"), true_labels=(true_labels, "[...]")
  )
  logits, weak_probs, truth = as_accumulator(logits, weak_probs, true_labels)
  wrong = ((logits >= 0) != (truth == 1)).astype(logits.dtype)
  against = sigmoid_cross_entropy(logits, 1.0 - truth)
  return sigmoid_cross_entropy(logits, weak_probs) + weighted(conflict_weight * wrong, against)


def confidence_auxiliary_loss(
  logits: chex.Array,
  weak_probs: chex.Array,
  *,
  step_fraction: chex.Numeric,
  weight: chex.Numeric = 0.5,
  warmup_fraction: chex.Numeric = 0.1,
) -> jax.Array:
  """Cross-entropy to a mixture of the weak labels and the student's own hardened predictions.

  A student that trusts its own confident predictions does not imitate all errors of its supervisor.
  Predictions are hardened at the quantile at which as many are positive as weak labels are.

  Args:
    logits: the student's log-odds of yes, `[b]`.
    weak_probs: the supervisor's probabilities of yes, `[b]`, in [0, 1].
    step_fraction: share of the training that is done, at least 0.
    weight: share of the student's predictions in the target once warmed up, in [0, 1].
    warmup_fraction: share of the training over which it grows from 0, > 0.

  Returns:
    Loss per example in nats, `[b]`, in float32 or wider; no gradient flows into the target. An
    example of NaN has no part in the quantile.

  Raises:
    ValueError: if the batch is empty, `step_fraction` < 0, `warmup_fraction` <= 0, or `weight` or a
      known probability lies outside [0, 1].

  Reference: Burns et al., Weak-to-Strong Generalization, ICML 2024, appendix A.4,
  https://arxiv.org/abs/2312.09390.
  """
  check_range("step_fraction", step_fraction, "[0, inf)")
  check_range("weight", weight, "[0, 1]")
  check_range("warmup_fraction", warmup_fraction, "(0, inf)")
  check_range("weak_probs", weak_probs, "[0, 1]")
  check_arrays(logits=(logits, "[b]"), weak_probs=(weak_probs, "[b]"))
  check_filled(logits=logits)
  logits, weak_probs = as_accumulator(logits, weak_probs)
  own, weak = jax.lax.stop_gradient((logits, weak_probs))
  # Of logits, in which probabilities near 1 can still be told apart.
  threshold = jnp.nanquantile(own, 1.0 - jnp.nanmean(weak))
  share = weight * jnp.minimum(step_fraction / warmup_fraction, 1.0)
  target = (1.0 - share) * weak + share * (own >= threshold)
  return sigmoid_cross_entropy(logits, target)
