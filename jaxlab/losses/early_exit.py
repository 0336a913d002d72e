"""Objectives of early-exit networks: exit probabilities, losses of gates and losses of exits.

Each of the exits 0..L-1 has a gate; the final exit L has none. A gate claims a share of the
probability mass for its exit. The classifier of an exit then learns from the samples that leave
there.
"""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_range,
  weighted,
)

# Probability masses and losses below this count as 0.
_EPSILON = 1e-12
_MIN_COUNT = 0.1


def exit_distribution(gate_probs: chex.Array) -> jax.Array:
  """Probability of leaving at each exit, given the share that each gate asks for.

  Shares refer to the whole mass and are served in order: a gate gets what it asks for, or what the
  gates before it have left. The rest leaves at the final exit.

  Args:
    gate_probs: shares the gates ask for, in [0, 1], `[..., L]`.

  Returns:
    Probabilities of the exits, `[..., L + 1]`, which sum to 1.

  Reference: Chataoui et al., Jointly-Learned Exit and Inference for a Dynamic Neural Network,
  ICLR 2024, section 4, https://arxiv.org/abs/2310.09163.
  """
  check_arrays(gate_probs=(gate_probs, "[..., L]"))
  gate_probs = as_accumulator(gate_probs)
  before = _sum_before(gate_probs)
  taken = jnp.maximum(jnp.minimum(gate_probs, 1.0 - before), 0.0)
  rest = jnp.maximum(1.0 - jnp.sum(taken, axis=-1, keepdims=True), 0.0)
  return jnp.concatenate([taken, rest], axis=-1)


def conditional_exit_probabilities(exit_probs: chex.Array) -> jax.Array:
  """Probability of leaving at each exit, given that a sample has reached it.

  A network can act on it exit by exit, without computing the later exits.

  Args:
    exit_probs: distribution over the exits, `[..., L + 1]`.

  Returns:
    Conditional probabilities in [0, 1], `[..., L]`; 0 where no mass reaches the exit.

  Reference: Chataoui et al., ICLR 2024, section 4, https://arxiv.org/abs/2310.09163.
  """
  check_arrays(exit_probs=(exit_probs, "[..., L + 1]"))
  taken = as_accumulator(exit_probs)[..., :-1]
  left = 1.0 - _sum_before(taken)
  empty = left <= _EPSILON
  return jnp.where(empty, 0.0, jnp.clip(taken / jnp.where(empty, 1.0, left), 0.0, 1.0))


def optimal_exit(
  losses: chex.Array, costs: chex.Array, *, cost_weight: chex.Numeric = 1.0
) -> jax.Array:
  """The exit with the smallest sum of loss and weighted cost.

  Args:
    losses: loss of each exit, `[..., L + 1]`.
    costs: cost of each exit, `[L + 1]`.
    cost_weight: loss per unit of cost, at least 0.

  Returns:
    Indices of exits, the first one on ties, int32 `[...]`; no gradient flows through them.

  Raises:
    ValueError: if `cost_weight` < 0.

  Reference: Chataoui et al., ICLR 2024, section 4, https://arxiv.org/abs/2310.09163.
  """
  check_range("cost_weight", cost_weight, "[0, inf)")
  check_arrays(losses=(losses, "[..., L + 1]"), costs=(costs, "[L + 1]"))
  losses, costs = as_accumulator(losses, costs)
  total = jax.lax.stop_gradient(losses + cost_weight * jnp.broadcast_to(costs, losses.shape))
  return jnp.argmin(total, axis=-1).astype(jnp.int32)


def gate_loss(gate_logits: chex.Array, targets: chex.Array, pos_weights: chex.Array) -> jax.Array:
  """Cross-entropy of gates that should open at the best exit and at all later ones.

  A sample that has passed its best exit should leave at the next one, so the target is 1 for the
  gate of the best exit and for all later gates.

  Args:
    gate_logits: logits of the gates, `[..., L]`.
    targets: the best exit of each sample, in 0..L, `[...]`; for L all gates should stay closed.
    pos_weights: weight of the target 1 in each gate, at least 0, `[L]`.

  Returns:
    Mean over the gates, in nats, `[...]`.

  Raises:
    ValueError: if a known weight is negative, or a known target outside 0..L; targets in JAX arrays
      give NaN instead.

  Reference: Chataoui et al., ICLR 2024, section 4, https://arxiv.org/abs/2310.09163.
  """
  check_range("pos_weights", pos_weights, "[0, inf)")
  check_arrays(
    gate_logits=(gate_logits, "[..., L]"),
    targets=(targets, "int [...]"),
    pos_weights=(pos_weights, "[L]"),
  )
  gate_logits, pos_weights = as_accumulator(gate_logits, pos_weights)
  num_gates = gate_logits.shape[-1]
  targets = as_classes("targets", targets, num_gates + 1)
  pos_weights = jnp.broadcast_to(pos_weights, gate_logits.shape)
  gates = jax.lax.broadcasted_iota(jnp.int32, gate_logits.shape, gate_logits.ndim - 1)
  terms = jnp.where(
    gates >= targets[..., None],
    weighted(pos_weights, jax.nn.softplus(-gate_logits)),
    jax.nn.softplus(gate_logits),
  )
  return jnp.where(targets <= num_gates, jnp.mean(terms, axis=-1), jnp.nan)


def gate_pos_weights(
  targets: chex.Array, *, num_gates: int, max_weight: chex.Numeric = 5.0
) -> jax.Array:
  """Weights of the target 1, so that gates with few samples of that target still learn to open.

  Args:
    targets: the best exit of each validation sample, in 0..`num_gates`, `[n]`.
    num_gates: number L of gates.
    max_weight: largest weight.

  Returns:
    For each gate, the number of samples with another best exit over the number with this one, at
    most `max_weight`, `[L]`.

  Raises:
    ValueError: if `targets` is empty, a known one lies outside 0..L (in JAX arrays it gives NaN),
      `num_gates` < 1 or `max_weight` < 0.

  Reference: Chataoui et al., ICLR 2024, appendix, https://arxiv.org/abs/2310.09163.
  """
  check_arrays(targets=(targets, "int [n]"))
  check_at_least(1, num_gates=num_gates)
  check_range("max_weight", max_weight, "[0, inf)")
  targets = as_classes("targets", targets, num_gates + 1)
  if targets.size == 0:
    raise ValueError("targets must hold at least one sample, got none.")
  meant = jnp.sum(targets[:, None] == jnp.arange(num_gates)[None], axis=0, dtype=jnp.float32)
  count = jnp.maximum(meant, _MIN_COUNT)
  weights = jnp.minimum((targets.size - count) / count, max_weight)
  return jnp.where(jnp.all(targets <= num_gates), weights, jnp.nan)


def exit_weighted_loss(
  losses: chex.Array, exit_probs: chex.Array, *, preserve_scale: bool = False
) -> jax.Array:
  """Loss of the exits, each weighted by the probability that the sample leaves there.

  The classifiers then train on the mixture of samples that they see at inference. No gradient
  flows into the weights or their scale. In the authors' code it flows into the scale, so that their
  weighted loss has the gradient of the unweighted one.

  Args:
    losses: loss of each exit with a gate, `[..., L]`.
    exit_probs: probabilities of leaving there, `[..., L]`.
    preserve_scale: whether the value is the mean over the exits (0 where all mass is at the final
      exit) and only the gradient is weighted; else the value is the expectation.

  Returns:
    Loss per sample, `[...]`.

  Reference: Chataoui et al., ICLR 2024, section 4, https://arxiv.org/abs/2310.09163.
  """
  check_arrays(losses=(losses, "[..., L]"), exit_probs=(exit_probs, "[..., L]"))
  losses, exit_probs = as_accumulator(losses, exit_probs)
  if preserve_scale:
    expected = jnp.sum(weighted(exit_probs, losses), axis=-1, keepdims=True)
    scale = jnp.sum(losses, axis=-1, keepdims=True) / jnp.maximum(expected, _EPSILON)
    exit_probs = scale * exit_probs / losses.shape[-1]
  return jnp.sum(weighted(jax.lax.stop_gradient(exit_probs), losses), axis=-1)


def exit_warmup_loss(losses: chex.Array) -> jax.Array:
  """Sum over all exits with larger weights for early ones, for the warm-up of the classifiers.

  Args:
    losses: loss of each exit, `[..., L + 1]`.

  Returns:
    Loss per sample, `[...]`: exit l counts L + 1 - l times.

  Reference: Chataoui et al., ICLR 2024, appendix, https://arxiv.org/abs/2310.09163.
  """
  check_arrays(losses=(losses, "[..., L + 1]"))
  losses = as_accumulator(losses)
  return losses @ jnp.arange(losses.shape[-1], 0, -1, dtype=losses.dtype)


def _sum_before(values: jax.Array) -> jax.Array:
  """Sum of the entries before each one."""
  sums = jnp.cumsum(values, axis=-1)[..., :-1]
  return jnp.concatenate([jnp.zeros_like(values[..., :1]), sums], axis=-1)
