"""How far policies over finite sets of responses move from a reference, and where to."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, weighted


def policy_divergence(
  log_probs: chex.Array, reference_log_probs: chex.Array, prompt_probs: chex.Array
) -> jax.Array:
  """Divergence of a policy from a reference, in the mean over prompts.

  Args:
    log_probs: log-probabilities of all responses under the policy in nats, `[X, Y]`.
    reference_log_probs: those under the reference, `[X, Y]`.
    prompt_probs: probabilities of the prompts, `[X]`.

  Returns:
    KL(policy || reference) in nats, `[]`, in float32 or wider. A response that the policy never
    gives adds 0; one that only the reference never gives makes it infinite.

  Reference: Gao et al., Scaling Laws for Reward Model Overoptimization, ICML 2023,
  https://arxiv.org/abs/2210.10760.
  """
  check_arrays(
    log_probs=(log_probs, "[X, Y]"),
    reference_log_probs=(reference_log_probs, "[X, Y]"),
    prompt_probs=(prompt_probs, "[X]"),
  )
  policy, reference, prompts = as_accumulator(log_probs, reference_log_probs, prompt_probs)
  log_ratio = jnp.where(policy == -jnp.inf, 0.0, policy - reference)
  return jnp.sum(weighted(prompts, jnp.sum(weighted(jnp.exp(policy), log_ratio), axis=-1)))


def unsupported_mass(
  log_probs: chex.Array, supported: chex.Array, prompt_probs: chex.Array
) -> jax.Array:
  """Probability that a policy gives to responses outside of what the data cover.

  Args:
    log_probs: log-probabilities of all responses under the policy in nats, `[X, Y]`.
    supported: which responses the data cover, bool or 0 and 1, `[X, Y]`.
    prompt_probs: probabilities of the prompts, `[X]`.

  Returns:
    Mean probability over prompts, in [0, 1], `[]`, in float32 or wider.

  Reference: Liu et al., Provably Mitigating Overoptimization in RLHF, NeurIPS 2024,
  https://arxiv.org/abs/2405.16436.
  """
  check_arrays(
    log_probs=(log_probs, "[X, Y]"),
    supported=(supported, "[X, Y]"),
    prompt_probs=(prompt_probs, "[X]"),
  )
  policy, prompts = as_accumulator(log_probs, prompt_probs)
  outside = jnp.where(jnp.asarray(supported).astype(bool), 0.0, jnp.exp(policy))
  return jnp.sum(prompts * jnp.sum(outside, axis=-1))
