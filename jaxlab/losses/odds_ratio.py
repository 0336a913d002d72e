"""Preference objectives on the odds of responses, without a reference model."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range, weighted
from jaxlab.losses.sequence import log1mexp

# Above this log-probability, the log-odds have no digits left in float32.
_MAX_LOG_PROB = -1e-7


def orpo_loss(
  chosen_mean_log_probs: chex.Array,
  rejected_mean_log_probs: chex.Array,
  *,
  weight: chex.Numeric = 0.1,
) -> jax.Array:
  """Likelihood of the chosen response plus the logistic loss of the log odds ratio.

  Fine-tuning and preference optimization in one stage, without a reference model.

  Args:
    chosen_mean_log_probs: mean log-probabilities of the chosen responses' tokens in nats, `[...]`.
    rejected_mean_log_probs: those of the rejected responses, `[...]`.
    weight: weight of the odds term, at least 0.

  Returns:
    Loss per pair in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `weight` < 0.

  Reference: Hong et al., ORPO, EMNLP 2024, equations 6 and 7, https://arxiv.org/abs/2403.07691.
  """
  check_range("weight", weight, "[0, inf)")
  chosen = as_accumulator(chosen_mean_log_probs)
  log_odds = log_odds_ratio(chosen_mean_log_probs, rejected_mean_log_probs)
  return -chosen + weighted(weight, jax.nn.softplus(-log_odds))


def log_odds_ratio(
  chosen_mean_log_probs: chex.Array, rejected_mean_log_probs: chex.Array
) -> jax.Array:
  """Logarithm of how much larger the odds of one response are than those of another.

  Args:
    chosen_mean_log_probs: mean log-probabilities of the chosen responses' tokens in nats, `[...]`.
    rejected_mean_log_probs: those of the rejected responses, `[...]`.

  Returns:
    Nats, `[...]`, in float32 or wider. In the complements a log-probability above -1e-7 counts as
    -1e-7, so that a response of probability 1 has finite odds.

  Reference: Hong et al., ORPO, EMNLP 2024, equation 4, https://arxiv.org/abs/2403.07691.
  """
  check_arrays(
    chosen_mean_log_probs=(chosen_mean_log_probs, "[...]"),
    rejected_mean_log_probs=(rejected_mean_log_probs, "[...]"),
  )
  chosen, rejected = as_accumulator(chosen_mean_log_probs, rejected_mean_log_probs)
  not_chosen = log1mexp(jnp.minimum(chosen, _MAX_LOG_PROB))
  not_rejected = log1mexp(jnp.minimum(rejected, _MAX_LOG_PROB))
  return (chosen - rejected) - (not_chosen - not_rejected)
