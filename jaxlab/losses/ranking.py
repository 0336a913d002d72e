"""Ranking objectives on the scores of two responses, or of a list."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_range, weighted

_MASKED = -1e30


def bradley_terry_loss(
  chosen_rewards: chex.Array,
  rejected_rewards: chex.Array,
  *,
  margin: chex.Numeric | None = None,
  center_coefficient: chex.Numeric = 0.0,
) -> jax.Array:
  """Negative log-likelihood of a preference under a reward model.

  Args:
    chosen_rewards: rewards of the chosen responses, `[...]`.
    rejected_rewards: rewards of the rejected ones, `[...]`.
    margin: by how much the chosen reward should be larger, a scalar or `[...]`; None for 0.
    center_coefficient: weight of the squared sum of both rewards, at least 0. It fixes the additive
      constant that preferences do not determine; .01 is usual.

  Returns:
    Loss per pair in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `center_coefficient` < 0 or a known margin is not finite.

  Reference: Bradley and Terry, Rank Analysis of Incomplete Block Designs, Biometrika 1952; Touvron
  et al., Llama 2, 2023, section 3.2.2 (margin), https://arxiv.org/abs/2307.09288; Eisenstein et
  al., Helping or Herding?, COLM 2024, section 2 (centering), https://arxiv.org/abs/2312.09244.
  """
  check_range("center_coefficient", center_coefficient, "[0, inf)")
  check_arrays(
    chosen_rewards=(chosen_rewards, "[...]"),
    rejected_rewards=(rejected_rewards, "[...]"),
    margin=(margin if np.ndim(margin) else None, "[...]"),
  )
  chosen, rejected = as_accumulator(chosen_rewards, rejected_rewards)
  difference = chosen - rejected
  if margin is not None:
    check_range("margin", margin, "(-inf, inf)")
    difference -= as_accumulator(margin)
  square = jnp.square(chosen + rejected)
  return jax.nn.softplus(-difference) + weighted(center_coefficient, square)


def slic_loss(
  policy_chosen: chex.Array,
  policy_rejected: chex.Array,
  *,
  margin: chex.Numeric = 1.0,
  target_log_probs: chex.Array | None = None,
  target_weight: chex.Numeric = 0.0,
) -> jax.Array:
  """Sequence likelihood calibration: a hinge between two responses plus likelihood of a third.

  Args:
    policy_chosen: log-probabilities of the chosen responses in nats, `[...]`.
    policy_rejected: those of the rejected ones, `[...]`.
    margin: pairs with at least this difference have hinge loss 0, in nats, at least 0.
    target_log_probs: log-probabilities of the responses whose likelihood serves as a regularizer,
      `[...]`; None for no such term.
    target_weight: weight of that term, at least 0.

  Returns:
    Loss per pair in nats, `[...]`, in float32 or wider; the slope at the kink is 0.

  Raises:
    ValueError: if `margin` < 0 or `target_weight` < 0.

  Reference: Zhao et al., SLiC-HF, 2023, equation 1, https://arxiv.org/abs/2305.10425.
  """
  check_range("margin", margin, "[0, inf)")
  check_range("target_weight", target_weight, "[0, inf)")
  check_arrays(
    policy_chosen=(policy_chosen, "[...]"),
    policy_rejected=(policy_rejected, "[...]"),
    target_log_probs=(target_log_probs, "[...]"),
  )
  chosen, rejected = as_accumulator(policy_chosen, policy_rejected)
  loss = jax.nn.relu(margin - chosen + rejected)
  if target_log_probs is None:
    return loss
  return loss - weighted(target_weight, as_accumulator(target_log_probs))


def rrhf_loss(
  mean_log_probs: chex.Array,
  rewards: chex.Array,
  *,
  sequence_log_probs: chex.Array | None = None,
  nll_weight: chex.Numeric = 1.0,
) -> jax.Array:
  """Ranks responses by hinges between all pairs, plus the likelihood of the best.

  Args:
    mean_log_probs: mean log-probabilities of the responses' tokens in nats, `[..., k]`.
    rewards: what the responses are ranked by, `[..., k]`; equal rewards form no pair.
    sequence_log_probs: summed log-probabilities of the responses, `[..., k]`, for the likelihood of
      the one with the highest reward (the first on ties); None for no such term.
    nll_weight: weight of that term, at least 0.

  Returns:
    Loss per list in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `nll_weight` < 0.

  Reference: Yuan et al., RRHF, NeurIPS 2023, equations 2 to 4, https://arxiv.org/abs/2304.05302.
  """
  check_range("nll_weight", nll_weight, "[0, inf)")
  check_arrays(
    mean_log_probs=(mean_log_probs, "[..., k]"),
    rewards=(rewards, "[..., k]"),
    sequence_log_probs=(sequence_log_probs, "[..., k]"),
  )
  scores, rewards = as_accumulator(mean_log_probs, rewards)
  worse = rewards[..., :, None] < rewards[..., None, :]
  excess = jax.nn.relu(scores[..., :, None] - scores[..., None, :])
  loss = jnp.sum(jnp.where(worse, excess, 0.0), axis=(-2, -1))
  unknown = jnp.any(jnp.isnan(scores) | jnp.isnan(rewards), axis=-1)
  loss = jnp.where(unknown, jnp.nan, loss)
  if sequence_log_probs is None:
    return loss
  totals = as_accumulator(sequence_log_probs)
  best = jnp.argmax(rewards, axis=-1, keepdims=True)
  return loss - weighted(nll_weight, jnp.take_along_axis(totals, best, axis=-1)[..., 0])


def plackett_luce_loss(scores: chex.Array, *, mask: chex.Array | None = None) -> jax.Array:
  """Negative log-likelihood of a ranking: a softmax per place over the responses not yet placed.

  Args:
    scores: scores of the responses, best response first, `[..., k]`.
    mask: which entries exist, bool or 0 and 1, `[..., k]`; None for all.

  Returns:
    Loss per list in nats, `[...]`, in float32 or wider; 0 for lists of fewer than two entries.

  Reference: Plackett, The Analysis of Permutations, Applied Statistics 1975,
  https://doi.org/10.2307/2346567; Rafailov et al., DPO, NeurIPS 2023, appendix A.3,
  https://arxiv.org/abs/2305.18290.
  """
  check_arrays(scores=(scores, "[..., k]"), mask=(mask, "[..., k]"))
  scores = as_accumulator(scores)
  mask = jnp.ones_like(scores, bool) if mask is None else jnp.asarray(mask).astype(bool)
  scores = jnp.where(mask, scores, _MASKED)
  unplaced = jax.lax.cumlogsumexp(scores, axis=scores.ndim - 1, reverse=True)
  return jnp.sum(jnp.where(mask, unplaced - scores, 0.0), axis=-1)
