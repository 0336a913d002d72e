"""Imitation of sequences as matching of occupancies, in terms of the logits alone.

Logits are read as soft action values: the soft value of a state is their log-sum-exp, and the
Bellman equation gives back the reward under which the policy is optimal. An objective of such
rewards trains on sequences of the data and of the model, without an adversary.
"""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_choice, check_range, weighted


def soft_values(logits: chex.Array) -> jax.Array:
  """Soft value of each state: the log-sum-exp of its logits.

  Args:
    logits: scores of the actions, `[..., v]`; -inf for an action that is not allowed.

  Returns:
    Values, `[...]`, in float32 or wider.

  Reference: Haarnoja et al., Reinforcement Learning with Deep Energy-Based Policies, ICML 2017,
  equation 3, https://arxiv.org/abs/1702.08165.
  """
  check_arrays(logits=(logits, "[..., v]"))
  return jax.nn.logsumexp(as_accumulator(logits), axis=-1)


def soft_rewards(
  logits: chex.Array, actions: chex.Array, lengths: chex.Array, *, discount: chex.Numeric
) -> jax.Array:
  """The rewards that make the logits soft action values.

  Args:
    logits: scores of the actions in states 0 to T, `[..., T + 1, v]`.
    actions: what was done in states 0 to T - 1, int `[..., T]`.
    lengths: number of actions, int `[...]`, in [0, T]; what comes after the state that the last one
      leads to affects neither values nor gradients.
    discount: weight of the next state's value, in (0, 1).

  Returns:
    `logit of the action - discount * soft value of the next state`, `[..., T]`, in float32 or
    wider; 0 from the length on, NaN where an action lies outside [0, v).

  Raises:
    ValueError: if `discount` lies outside (0, 1), a known length outside [0, T], or shapes do not
      agree.

  Reference: Garg et al., IQ-Learn: Inverse soft-Q Learning for Imitation, NeurIPS 2021, section
  4.1, https://arxiv.org/abs/2106.12142.
  """
  return _rewards_and_values(logits, actions, lengths, discount)[0]


def _rewards_and_values(logits, actions, lengths, discount) -> tuple[jax.Array, jax.Array]:
  """Soft rewards `[..., T]`, and the soft values of all states `[..., T + 1]`."""
  check_range("discount", discount, "(0, 1)")
  check_arrays(actions=(actions, "int [..., T]"), lengths=(lengths, "int [...]"))
  num_steps = jnp.shape(actions)[-1]
  check_arrays(lengths=(lengths, "[...]"), logits=(logits, f"[..., {num_steps + 1}, v]"))
  check_range("lengths", lengths, f"[0, {num_steps}]")
  logits, actions, lengths = as_accumulator(logits), jnp.asarray(actions), jnp.asarray(lengths)
  states = jax.lax.broadcasted_iota(jnp.int32, logits.shape[:-1], logits.ndim - 2)
  seen = states <= lengths[..., None]
  # The gradient of a log-sum-exp of NaN is NaN even where its value is not used.
  logits = jnp.where(seen[..., None], logits, 0.0)
  values = soft_values(logits)
  rewards = _at(logits[..., :-1, :], actions) - discount * values[..., 1:]
  return jnp.where(seen[..., 1:], rewards, 0.0), values


def occupancy_matching_loss(
  logits: chex.Array,
  actions: chex.Array,
  lengths: chex.Array,
  terminated: chex.Array,
  *,
  source: Literal["data", "model"],
  discount: chex.Numeric = 0.99,
  alpha: chex.Numeric = 1.0,
  weights: chex.Array | None = None,
) -> jax.Array:
  """Chi-squared divergence of the data's occupancy from that of data and model, as a loss.

  The mean over data plus the mean over sequences of the model is what to minimize. The data's
  rewards are to be large, and all rewards small in square: in states that the data never visit, no
  action may have a large score. The best policy is the data's, with a little more entropy the
  smaller alpha is. With an infinite alpha, the sum of both forms on data alone is the discounted
  maximum likelihood.

  Args:
    logits: scores of the actions in states 0 to T, `[..., T + 1, v]`.
    actions: what was done, int `[..., T]`.
    lengths: number N of actions, int `[...]`, in [0, T]; later entries do not count.
    terminated: whether the last action ended the sequence, bool `[...]`; it then stays for ever in
      its last state, whose one action has the soft value as its score.
    source: whether the sequences are the "data" or draws of the "model".
    discount: weight of a step relative to the one before, in (0, 1).
    alpha: inverse strength of the penalty on squared rewards, > 0; infinity is none.
    weights: weights of the actions, `[..., T]`; 0 for those that no one chose, such as the wrong
      tokens of `samplers.insert_corrections`. None for ones.

  Returns:
    Loss per sequence, `[...]`, in float32 or wider. With rewards r and soft values V it is
    `sum(g^t (V_t - g V_t+1 + r_t^2 / (4 alpha))) / 2` over the steps t, and for data that less
    `sum(g^t r_t)`. After the end, all rewards are (1 - g) V_N; with them, V_0 is the sum of the
    terms without r.

  Raises:
    ValueError: if `source` is unknown, `discount` lies outside (0, 1), `alpha` <= 0, a known length
      lies outside [0, T], or shapes do not agree.

  Reference: Cundy and Ermon, SequenceMatch, ICLR 2024, section 3.2,
  https://arxiv.org/abs/2306.05426; the weights of the terms and the endless last state are a
  reconstruction.
  """
  check_choice("source", source, ("data", "model"))
  check_range("alpha", alpha, "(0, inf]")
  check_arrays(lengths=(lengths, "int [...]"), terminated=(terminated, "bool [...]"))
  check_arrays(actions=(actions, "[..., T]"), weights=(weights, "[..., T]"))
  rewards, values = _rewards_and_values(logits, actions, lengths, discount)
  terminated, lengths = jnp.asarray(terminated), jnp.asarray(lengths)
  steps = jax.lax.broadcasted_iota(rewards.dtype, rewards.shape, rewards.ndim - 1)
  discounts, at_end = jnp.power(discount, steps), jnp.power(discount, as_accumulator(lengths))
  if weights is not None:
    discounts *= as_accumulator(weights)

  def total(terms):
    return jnp.sum(weighted(discounts, jnp.where(steps < lengths[..., None], terms, 0.0)), axis=-1)

  # After the end follows a geometric series, whose rewards are (1 - discount) times the last value.
  last = _at(values, lengths)
  tail = jnp.where(terminated, at_end * last, 0.0)
  squares = total(jnp.square(rewards)) + (1.0 - discount) * tail * last
  differences = total(values[..., :-1] - discount * values[..., 1:]) + tail
  loss = 0.5 * differences + weighted(0.125 / alpha, squares)
  return loss if source == "model" else loss - total(rewards) - tail


def _at(values: jax.Array, index: jax.Array) -> jax.Array:
  """One entry per row; NaN where the index, which is of 32 bits or fewer, is none."""
  index = jnp.where(index < 0, values.shape[-1], index.astype(jnp.int32))
  return jnp.take_along_axis(values, index[..., None], axis=-1, mode="fill")[..., 0]
