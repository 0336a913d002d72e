"""Preference objectives on single responses, each labeled good or bad, without pairs."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_range


def kto_loss(
  policy_log_probs: chex.Array,
  reference_log_probs: chex.Array,
  desirable: chex.Array,
  kl_estimate: chex.Numeric,
  *,
  beta: chex.Numeric = 0.1,
  desirable_weight: chex.Numeric = 1.0,
  undesirable_weight: chex.Numeric = 1.0,
) -> jax.Array:
  """Kahneman-Tversky optimization: a saturating value of each response, without pairs.

  Args:
    policy_log_probs: log-probabilities of the responses under the policy in nats, `[...]`.
    reference_log_probs: those under the reference, `[...]`; no gradient flows into them.
    desirable: whether a response is a good one, bool `[...]`.
    kl_estimate: the reference point in nats, such as `kto_kl_estimate`, a scalar or `[...]`; no
      gradient flows into it.
    beta: how fast the value saturates, > 0.
    desirable_weight: weight of the desirable responses, at least 0.
    undesirable_weight: weight of the others, at least 0.

  Returns:
    Loss per response, `[...]`, between 0 and its weight, in float32 or wider.

  Raises:
    ValueError: if `beta` <= 0 or a weight < 0.

  Reference: Ethayarajh et al., KTO, ICML 2024, equation 8, https://arxiv.org/abs/2402.01306.
  """
  check_range("beta", beta, "(0, inf)")
  check_range("desirable_weight", desirable_weight, "[0, inf)")
  check_range("undesirable_weight", undesirable_weight, "[0, inf)")
  check_arrays(
    policy_log_probs=(policy_log_probs, "[...]"),
    reference_log_probs=(reference_log_probs, "[...]"),
    desirable=(desirable, "bool [...]"),
    kl_estimate=(kl_estimate if np.ndim(kl_estimate) else None, "[...]"),
  )
  policy, reference, baseline = as_accumulator(policy_log_probs, reference_log_probs, kl_estimate)
  desirable = jnp.asarray(desirable)
  reference, baseline = jax.lax.stop_gradient((reference, baseline))
  gain = beta * (policy - reference - baseline)
  weight = jnp.where(desirable, desirable_weight, undesirable_weight)
  return weight * jax.nn.sigmoid(jnp.where(desirable, -gain, gain))


def kto_kl_estimate(policy_mismatched: chex.Array, reference_mismatched: chex.Array) -> jax.Array:
  """KTO's reference point: the divergence of policy and reference, from mismatched pairs.

  A mismatched pair is a prompt with the response to another prompt, such as the next in the batch;
  neither model prefers such a response.

  Args:
    policy_mismatched: log-probabilities of the mismatched responses under the policy in nats,
      `[b]`.
    reference_mismatched: those under the reference, `[b]`.

  Returns:
    The mean log-ratio, at least 0, in nats, a scalar in float32 or wider without gradient; 0 for
    an empty batch.

  Reference: Ethayarajh et al., KTO, ICML 2024, section 4.1, https://arxiv.org/abs/2402.01306.
  """
  check_arrays(
    policy_mismatched=(policy_mismatched, "[b]"), reference_mismatched=(reference_mismatched, "[b]")
  )
  policy, reference = as_accumulator(policy_mismatched, reference_mismatched)
  mean = jnp.sum(policy - reference) / max(policy.size, 1)
  return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))
