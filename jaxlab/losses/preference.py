"""Preference objectives: functions of the margin between the log-probabilities of two responses.

Model, mask and objective are separate: `sequence_log_prob` gives log-probabilities of sequences,
and the functions here compare them. Gradients flow into the log-probabilities of the policy, not
into those of the frozen reference.
"""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range, weighted


def dpo_loss(
  policy_chosen: chex.Array,
  policy_rejected: chex.Array,
  reference_chosen: chex.Array,
  reference_rejected: chex.Array,
  *,
  beta: chex.Numeric = 0.1,
  label_smoothing: chex.Numeric = 0.0,
  reference_free: bool = False,
) -> jax.Array:
  """Direct preference optimization: logistic loss of the margin between log-ratios.

  The policy's log-ratio to the reference is the reward under which the policy is optimal, so that
  the loss of a reward model can train the policy directly.

  Args:
    policy_chosen: log-probabilities of the chosen responses under the policy in nats, `[...]`.
    policy_rejected: those of the rejected ones, `[...]`.
    reference_chosen: log-probabilities of the chosen ones under the reference, `[...]`; no gradient
      flows into them.
    reference_rejected: those of the rejected ones, `[...]`; no gradient flows into them.
    beta: how strongly the policy is held to the reference, > 0.
    label_smoothing: assumed share of flipped pairs, in [0, 0.5]; above 0 this is conservative DPO.
    reference_free: whether to use a uniform reference instead of the given one.

  Returns:
    Loss per pair in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `beta` <= 0 or `label_smoothing` lies outside [0, 0.5].

  Reference: Rafailov et al., Direct Preference Optimization, NeurIPS 2023, equation 7,
  https://arxiv.org/abs/2305.18290; Mitchell, A note on DPO with noisy preferences, 2023,
  https://ericmitchell.ai/cdpo.pdf.
  """
  check_range("beta", beta, "(0, inf)")
  check_range("label_smoothing", label_smoothing, "[0, 0.5]")
  if reference_free:
    reference_chosen = jnp.zeros_like(jnp.asarray(reference_chosen))
    reference_rejected = jnp.zeros_like(jnp.asarray(reference_rejected))
  chosen, rejected = _log_ratios(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected
  )
  return _smoothed_logistic_loss(beta * (chosen - rejected), label_smoothing)


def robust_dpo_loss(
  policy_chosen: chex.Array,
  policy_rejected: chex.Array,
  reference_chosen: chex.Array,
  reference_rejected: chex.Array,
  *,
  beta: chex.Numeric = 0.1,
  label_smoothing: chex.Numeric = 0.1,
) -> jax.Array:
  """DPO debiased for flipped pairs: its mean over the flips is DPO's loss on clean pairs.

  Args:
    policy_chosen, policy_rejected, reference_chosen, reference_rejected: as in `dpo_loss`.
    beta: how strongly the policy is held to the reference, > 0.
    label_smoothing: rate of flipped pairs, in [0, 0.5).

  Returns:
    Loss per pair in nats, `[...]`, in float32 or wider; it may be negative.

  Raises:
    ValueError: if `beta` <= 0 or `label_smoothing` lies outside [0, 0.5).

  Reference: Chowdhury et al., Provably Robust DPO, ICML 2024, equation 12,
  https://arxiv.org/abs/2403.00409.
  """
  check_range("beta", beta, "(0, inf)")
  check_range("label_smoothing", label_smoothing, "[0, 0.5)")
  chosen, rejected = _log_ratios(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected
  )
  scale = 1.0 - 2.0 * label_smoothing
  return _smoothed_logistic_loss(beta * (chosen - rejected), -label_smoothing / scale)


def ipo_loss(
  policy_chosen: chex.Array,
  policy_rejected: chex.Array,
  reference_chosen: chex.Array,
  reference_rejected: chex.Array,
  *,
  beta: chex.Numeric = 0.1,
  chosen_lengths: chex.Array | None = None,
  rejected_lengths: chex.Array | None = None,
) -> jax.Array:
  """Identity preference optimization: pulls the margin of every pair to 1 / (2 beta).

  The logistic loss of DPO drives the margin to infinity for pairs that no other pair contradicts;
  the squared loss has a finite optimum.

  Args:
    policy_chosen, policy_rejected, reference_chosen, reference_rejected: as in `dpo_loss`.
    beta: how strongly the policy is held to the reference, > 0.
    chosen_lengths: tokens of the chosen responses, `[...]`, by which their log-ratios are divided
      (counted as at least 1); None for both lengths gives the paper's formula.
    rejected_lengths: tokens of the rejected responses, `[...]`.

  Returns:
    Loss per pair in squared nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `beta` <= 0 or one of the lengths is given without the other.

  Reference: Azar et al., A General Theoretical Paradigm to Understand Learning from Human
  Preferences, AISTATS 2024, equation 17, https://arxiv.org/abs/2310.12036.
  """
  check_range("beta", beta, "(0, inf)")
  if (chosen_lengths is None) != (rejected_lengths is None):
    missing = "chosen_lengths" if chosen_lengths is None else "rejected_lengths"
    raise ValueError(f"chosen_lengths and rejected_lengths must both be given, {missing} is None.")
  chosen, rejected = _log_ratios(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected
  )
  if chosen_lengths is not None:
    check_arrays(
      policy_chosen=(policy_chosen, "[...]"),
      chosen_lengths=(chosen_lengths, "[...]"),
      rejected_lengths=(rejected_lengths, "[...]"),
    )
    chosen = _per_token(chosen, chosen_lengths)
    rejected = _per_token(rejected, rejected_lengths)
  return jnp.square(chosen - rejected - 1.0 / (2.0 * beta))


def hinge_loss(
  policy_chosen: chex.Array,
  policy_rejected: chex.Array,
  reference_chosen: chex.Array,
  reference_rejected: chex.Array,
  *,
  beta: chex.Numeric = 0.1,
) -> jax.Array:
  """Hinge loss of the margin between log-ratios: SLiC's loss with a reference, as in TRL.

  Args:
    policy_chosen, policy_rejected, reference_chosen, reference_rejected: as in `dpo_loss`.
    beta: the inverse of the margin at which the loss is 0, > 0.

  Returns:
    Loss per pair, `[...]`, in float32 or wider; the slope at the kink is 0.

  Raises:
    ValueError: if `beta` <= 0.

  Reference: Liu et al., Statistical Rejection Sampling Improves Preference Optimization, ICLR 2024,
  section 3, https://arxiv.org/abs/2309.06657.
  """
  check_range("beta", beta, "(0, inf)")
  chosen, rejected = _log_ratios(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected
  )
  return jax.nn.relu(1.0 - beta * (chosen - rejected))


def simpo_loss(
  policy_chosen: chex.Array,
  policy_rejected: chex.Array,
  chosen_lengths: chex.Array,
  rejected_lengths: chex.Array,
  *,
  beta: chex.Numeric = 2.0,
  margin: chex.Numeric = 1.0,
  label_smoothing: chex.Numeric = 0.0,
) -> jax.Array:
  """Logistic loss of the difference of mean log-probabilities, without a reference.

  The mean is what generation ranks responses by, and it does not reward length.

  Args:
    policy_chosen: summed log-probabilities of the chosen responses in nats, `[...]`.
    policy_rejected: those of the rejected ones, `[...]`.
    chosen_lengths: tokens of the chosen responses, `[...]`, counted as at least 1.
    rejected_lengths: tokens of the rejected responses, `[...]`, counted as at least 1.
    beta: scale of the mean log-probabilities, > 0.
    margin: subtracted from the scaled difference.
    label_smoothing: assumed share of flipped pairs, in [0, 0.5].

  Returns:
    Loss per pair in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `beta` <= 0, `margin` is not finite or `label_smoothing` lies outside [0, 0.5].

  Reference: Meng et al., SimPO, NeurIPS 2024, equation 6, https://arxiv.org/abs/2405.14734.
  """
  check_range("beta", beta, "(0, inf)")
  check_range("margin", margin, "(-inf, inf)")
  check_range("label_smoothing", label_smoothing, "[0, 0.5]")
  check_arrays(
    policy_chosen=(policy_chosen, "[...]"),
    policy_rejected=(policy_rejected, "[...]"),
    chosen_lengths=(chosen_lengths, "[...]"),
    rejected_lengths=(rejected_lengths, "[...]"),
  )
  chosen, rejected = as_accumulator(policy_chosen, policy_rejected)
  difference = _per_token(chosen, chosen_lengths) - _per_token(rejected, rejected_lengths)
  return _smoothed_logistic_loss(beta * difference - margin, label_smoothing)


def rpo_loss(
  policy_chosen: chex.Array,
  policy_rejected: chex.Array,
  reference_chosen: chex.Array,
  reference_rejected: chex.Array,
  *,
  beta: chex.Numeric = 0.05,
  sft_weight: chex.Numeric = 0.005,
  baseline_log_probs: chex.Array | None = None,
  baseline_lengths: chex.Array | None = None,
  average: bool = False,
  label_smoothing: chex.Numeric = 0.0,
) -> jax.Array:
  """DPO plus the likelihood of a baseline's responses, which keeps mass off what nobody compared.

  It is the policy side of a game against the most pessimistic reward model that still fits the
  preferences: see `maximin_reward_objective`.

  Args:
    policy_chosen, policy_rejected, reference_chosen, reference_rejected: as in `dpo_loss`.
    beta: how strongly the policy is held to the reference, > 0.
    sft_weight: weight of the likelihood, at least 0; in units of `beta` unless `average`.
    baseline_log_probs: summed log-probabilities of the baseline's responses under the policy in
      nats, `[...]`; None for those of the chosen responses.
    baseline_lengths: tokens of these responses, `[...]`, counted as at least 1; for `average`.
    average: whether to take the mean log-probability of a token in place of the sum, with a weight
      that `beta` does not scale.
    label_smoothing: assumed share of flipped pairs, in [0, 0.5].

  Returns:
    Loss per pair in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `beta` <= 0, `sft_weight` < 0, `label_smoothing` lies outside [0, 0.5], or
      `average` is set without lengths.

  Reference: Liu et al., Provably Mitigating Overoptimization in RLHF, NeurIPS 2024,
  algorithm 2, https://arxiv.org/abs/2405.16436.
  """
  check_range("sft_weight", sft_weight, "[0, inf)")
  if average and baseline_lengths is None:
    raise ValueError("average needs baseline_lengths, got None.")
  preference = dpo_loss(
    policy_chosen,
    policy_rejected,
    reference_chosen,
    reference_rejected,
    beta=beta,
    label_smoothing=label_smoothing,
  )
  baseline = policy_chosen if baseline_log_probs is None else baseline_log_probs
  check_arrays(
    policy_chosen=(policy_chosen, "[...]"),
    baseline_log_probs=(baseline_log_probs, "[...]"),
    baseline_lengths=(baseline_lengths, "[...]"),
  )
  baseline = as_accumulator(baseline)
  if average:
    return preference - weighted(sft_weight, _per_token(baseline, baseline_lengths))
  return preference - weighted(sft_weight * beta, baseline)


def implicit_reward(
  policy_log_probs: chex.Array, reference_log_probs: chex.Array, *, beta: chex.Numeric = 0.1
) -> jax.Array:
  """The reward under which the policy is optimal, up to a constant that depends on the prompt.

  Args:
    policy_log_probs: log-probabilities of responses under the policy in nats, `[...]`.
    reference_log_probs: those under the reference, `[...]`; no gradient flows into them.
    beta: weight of the divergence from the reference, > 0.

  Returns:
    `beta * (policy - reference)`, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `beta` <= 0.

  Reference: Rafailov et al., DPO, NeurIPS 2023, equation 5, https://arxiv.org/abs/2305.18290.
  """
  check_range("beta", beta, "(0, inf)")
  check_arrays(
    policy_log_probs=(policy_log_probs, "[...]"), reference_log_probs=(reference_log_probs, "[...]")
  )
  policy, reference = as_accumulator(policy_log_probs, reference_log_probs)
  return beta * (policy - jax.lax.stop_gradient(reference))


def _log_ratios(
  policy_chosen: chex.Array,
  policy_rejected: chex.Array,
  reference_chosen: chex.Array,
  reference_rejected: chex.Array,
) -> tuple[jax.Array, jax.Array]:
  check_arrays(
    policy_chosen=(policy_chosen, "[...]"),
    policy_rejected=(policy_rejected, "[...]"),
    reference_chosen=(reference_chosen, "[...]"),
    reference_rejected=(reference_rejected, "[...]"),
  )
  chosen, rejected, *reference = as_accumulator(
    policy_chosen, policy_rejected, reference_chosen, reference_rejected
  )
  reference_chosen, reference_rejected = jax.lax.stop_gradient(reference)
  return chosen - reference_chosen, rejected - reference_rejected


def _smoothed_logistic_loss(margin: jax.Array, smoothing: chex.Numeric) -> jax.Array:
  """`-(1 - smoothing) log sigmoid(margin) - smoothing log sigmoid(-margin)` in one softplus.

  The two log-sigmoids differ by the margin.
  """
  return jax.nn.softplus(-margin) + weighted(smoothing, margin)


def _per_token(log_probs: jax.Array, lengths: chex.Array) -> jax.Array:
  return log_probs / jnp.maximum(jnp.asarray(lengths), 1)
