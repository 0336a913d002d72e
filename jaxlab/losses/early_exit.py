"""Objectives of networks that may leave early: who leaves where, and what that is worth.

Exits 0..L-1 have a gate each, the final exit L has none. A gate says how much of the probability
of leaving it takes; the classifiers of the exits then learn from the samples that leave there.
"""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_at_least, check_range

# Below this there is nobody left, or nothing to lose.
_EPSILON = 1e-12
_MIN_COUNT = 0.1


def exit_distribution(gate_probs: chex.Array) -> jax.Array:
  """Probability of leaving at each exit, given what every gate would take.

  Gates name shares of the whole mass, which runs out from left to right: a gate gets what it asks
  for, or what the gates before it have left. The rest leaves at the final exit.

  Args:
    gate_probs: shares the gates ask for, in [0, 1], `[..., L]`.

  Returns:
    Probabilities of the exits, `[..., L + 1]`, which sum to 1.

  Reference: Chataoui et al., Jointly-Learned Exit and Inference for a Dynamic Neural Network,
  ICLR 2024, section 4, https://arxiv.org/abs/2310.09163.
  """
  gate_probs = as_accumulator(gate_probs)
  before = _sum_before(gate_probs)
  taken = jnp.maximum(jnp.minimum(gate_probs, 1.0 - before), 0.0)
  rest = jnp.maximum(1.0 - jnp.sum(taken, axis=-1, keepdims=True), 0.0)
  return jnp.concatenate([taken, rest], axis=-1)


def conditional_exit_probabilities(exit_probs: chex.Array) -> jax.Array:
  """Probability of leaving at an exit, for a sample that has come as far as that.

  This is what a network can act on, exit by exit, without knowing the later ones.

  Args:
    exit_probs: distribution over the exits, `[..., L + 1]`.

  Returns:
    Conditional probabilities in [0, 1], `[..., L]`; 0 where no mass comes as far.

  Reference: Chataoui et al., ICLR 2024, section 4, https://arxiv.org/abs/2310.09163.
  """
  taken = as_accumulator(exit_probs)[..., :-1]
  left = 1.0 - _sum_before(taken)
  nobody = left <= _EPSILON
  return jnp.where(nobody, 0.0, jnp.clip(taken / jnp.where(nobody, 1.0, left), 0.0, 1.0))


def optimal_exit(
  losses: chex.Array, costs: chex.Array, *, cost_weight: chex.Numeric = 1.0
) -> jax.Array:
  """The exit that loses least, its cost counted in.

  Args:
    losses: loss of each exit, `[..., L + 1]`.
    costs: cost of each exit, `[L + 1]`.
    cost_weight: units of loss that a unit of cost is worth, at least 0.

  Returns:
    Numbers of exits, the first one on ties, int32 `[...]`; no gradient flows through them.

  Raises:
    ValueError: if `cost_weight` < 0 or there are not as many costs as losses.

  Reference: Chataoui et al., ICLR 2024, section 4, https://arxiv.org/abs/2310.09163.
  """
  check_range("cost_weight", cost_weight, "[0, inf)")
  losses, costs = as_accumulator(losses, costs)
  _check_exits("costs", costs, losses, "losses")
  total = jax.lax.stop_gradient(losses + cost_weight * costs)
  return jnp.argmin(total, axis=-1).astype(jnp.int32)


def gate_loss(gate_logits: chex.Array, targets: chex.Array, pos_weights: chex.Array) -> jax.Array:
  """Cross-entropy of gates that should open from the best exit on.

  A sample that has missed its best exit should leave at the next one, so every gate from there on
  has the target 1.

  Args:
    gate_logits: logits of the gates, `[..., L]`.
    targets: the best exit of each sample, in 0..L, `[...]`; L closes every gate.
    pos_weights: weight of the target 1 in each gate, at least 0, `[L]`.

  Returns:
    Mean over the gates, in nats, `[...]`.

  Raises:
    ValueError: if a weight is negative or there are not as many weights as gates.

  Reference: Chataoui et al., ICLR 2024, section 4, https://arxiv.org/abs/2310.09163.
  """
  check_range("pos_weights", pos_weights, "[0, inf)")
  gate_logits, pos_weights = as_accumulator(gate_logits, pos_weights)
  _check_exits("pos_weights", pos_weights, gate_logits, "gate_logits")
  targets = jnp.asarray(targets)
  chex.assert_shape(targets, gate_logits.shape[:-1])
  opens = jnp.arange(gate_logits.shape[-1]) >= targets[..., None]
  terms = jnp.where(
    opens, pos_weights * jax.nn.softplus(-gate_logits), jax.nn.softplus(gate_logits)
  )
  return jnp.mean(terms, axis=-1)


def gate_pos_weights(
  targets: chex.Array, *, num_gates: int, max_weight: chex.Numeric = 5.0
) -> jax.Array:
  """Weights that keep a gate for which few samples are meant from never opening.

  Args:
    targets: the best exit of each validation sample, in 0..`num_gates`, `[n]`.
    num_gates: number L of gates.
    max_weight: largest weight.

  Returns:
    For each gate the samples meant for other exits over those meant for it, at most `max_weight`,
    `[L]`.

  Raises:
    ValueError: if `targets` is empty, `num_gates` < 1 or `max_weight` < 0.

  Reference: Chataoui et al., ICLR 2024, appendix, https://arxiv.org/abs/2310.09163.
  """
  targets = jnp.asarray(targets)
  chex.assert_rank(targets, 1)
  if targets.size == 0:
    raise ValueError("targets must hold at least one sample, got none.")
  check_at_least(1, num_gates=num_gates)
  check_range("max_weight", max_weight, "[0, inf)")
  meant = jnp.sum(targets[:, None] == jnp.arange(num_gates), axis=0, dtype=jnp.float32)
  count = jnp.maximum(meant, _MIN_COUNT)
  return jnp.minimum((targets.size - count) / count, max_weight)


def exit_weighted_loss(
  losses: chex.Array, exit_probs: chex.Array, *, preserve_scale: bool = False
) -> jax.Array:
  """Loss of the exits, each weighted by the probability that the sample leaves there.

  The classifiers then train on the mixture of samples that they see at inference. No gradient
  flows into the weights, the scale among them: the authors' code lets it through the scale, and
  their weighted loss has the gradient of the unweighted one.

  Args:
    losses: loss of each exit with a gate, `[..., L]`.
    exit_probs: probabilities of leaving there, `[..., L]`.
    preserve_scale: whether the value is that of the mean over the exits (0 where all mass is at
      the final exit) and only the gradient is weighted; otherwise the expectation.

  Returns:
    Loss per sample, `[...]`.

  Reference: Chataoui et al., ICLR 2024, section 4, https://arxiv.org/abs/2310.09163.
  """
  losses, exit_probs = as_accumulator(losses, exit_probs)
  chex.assert_equal_shape([losses, exit_probs])
  if preserve_scale:
    expected = jnp.sum(exit_probs * losses, axis=-1, keepdims=True)
    scale = jnp.sum(losses, axis=-1, keepdims=True) / jnp.maximum(expected, _EPSILON)
    exit_probs = scale * exit_probs / losses.shape[-1]
  return jnp.sum(jax.lax.stop_gradient(exit_probs) * losses, axis=-1)


def exit_warmup_loss(losses: chex.Array) -> jax.Array:
  """Sum over all exits in which early ones weigh more, to start the classifiers with.

  Args:
    losses: loss of each exit, `[..., L + 1]`.

  Returns:
    Loss per sample, `[...]`: exit l counts L + 1 - l times.

  Reference: Chataoui et al., ICLR 2024, appendix, https://arxiv.org/abs/2310.09163.
  """
  losses = as_accumulator(losses)
  return losses @ jnp.arange(losses.shape[-1], 0, -1, dtype=losses.dtype)


def _sum_before(values: jax.Array) -> jax.Array:
  """Sum of the entries before each one."""
  sums = jnp.cumsum(values, axis=-1)[..., :-1]
  return jnp.concatenate([jnp.zeros_like(values[..., :1]), sums], axis=-1)


def _check_exits(name: str, values: jax.Array, of: jax.Array, of_name: str) -> None:
  if values.shape != of.shape[-1:]:
    raise ValueError(
      f"{name} must have one entry for each of the {of.shape[-1]} columns of {of_name}, got shape "
      f"{values.shape}."
    )
