"""Training with large batches as if they were small: rate, schedule and gradient noise."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import chex
import jax

from jaxlab._checks import check_at_least, check_choice, check_range


class Regime(NamedTuple):
  """A training schedule, in epochs.

  Attributes:
    boundaries: epochs at which the learning rate changes.
    num_epochs: length of training.
  """

  boundaries: tuple[int, ...]
  num_epochs: int


def scaled_learning_rate(
  learning_rate: float,
  *,
  batch_size: int,
  base_batch_size: int,
  rule: Literal["sqrt", "linear", "none"] = "sqrt",
) -> float:
  """Learning rate for a batch size other than the one it was tuned for.

  "sqrt" keeps the covariance of an update; "linear" keeps the mean of the updates over an epoch.

  Args:
    learning_rate: the rate tuned for `base_batch_size`, at least 0.
    batch_size: the new number of examples per batch.
    base_batch_size: examples per batch that the rate was tuned for.
    rule: "sqrt" or "linear" in the ratio of sizes, or "none".

  Returns:
    The learning rate.

  Raises:
    ValueError: if the rule is unknown, a size is not positive or the rate is negative.

  Reference: Hoffer et al., Train longer, generalize better, NeurIPS 2017, section 4.1,
  https://arxiv.org/abs/1705.08741.
  """
  check_at_least(1, batch_size=batch_size, base_batch_size=base_batch_size)
  check_range("learning_rate", learning_rate, "[0, inf)")
  ratio = batch_size / base_batch_size
  factors = {"sqrt": math.sqrt(ratio), "linear": ratio, "none": 1.0}
  check_choice("rule", rule, factors)
  return learning_rate * factors[rule]


def adapt_regime(
  boundaries: Sequence[int], num_epochs: int, *, batch_size: int, base_batch_size: int
) -> Regime:
  """Stretches a schedule so that a large batch gets as many updates in each of its phases.

  Large batches lose accuracy because they make too few updates, not because of their size.

  Args:
    boundaries: epochs at which the learning rate changes with `base_batch_size`.
    num_epochs: length of training with `base_batch_size`.
    batch_size: the new number of examples per batch.
    base_batch_size: examples per batch that the schedule was made for.

  Returns:
    The `Regime` with all epochs times the ratio of sizes, rounded up.

  Raises:
    ValueError: if a size or the length is not positive, or the boundaries do not increase from 0.

  Reference: Hoffer et al., Train longer, generalize better, NeurIPS 2017, section 5,
  https://arxiv.org/abs/1705.08741.
  """
  check_at_least(1, num_epochs=num_epochs, batch_size=batch_size, base_batch_size=base_batch_size)
  if any(early >= late for early, late in pairwise((-1, *boundaries))):
    raise ValueError(f"boundaries must increase from 0 on, got {boundaries}.")
  factor = -(-batch_size // base_batch_size)
  return Regime(tuple(epoch * factor for epoch in boundaries), num_epochs * factor)


def gradient_noise_weights(
  key: chex.PRNGKey, *, batch_size: int, base_batch_size: int, scale: chex.Numeric = 1.0
) -> jax.Array:
  """Random example weights that give a large batch the gradient noise of a small one.

  The batch mean of weight times loss has the same expected gradient as the unweighted mean.

  Args:
    key: random key.
    batch_size: examples of the batch.
    base_batch_size: examples of the small batch whose noise is wanted.
    scale: multiplies the noise; 1 matches the covariance of the small batch's gradient.

  Returns:
    Draws from N(1, scale² (batch_size / base_batch_size - 1)), `[batch_size]`, float32. They may be
    negative: divide the weighted sum by the size of the batch, never by the weights' sum.

  Raises:
    ValueError: if `batch_size` < `base_batch_size`, a size is not positive, or `scale` is negative.

  Reference: Hoffer et al., Train longer, generalize better, NeurIPS 2017, section 4.1,
  https://arxiv.org/abs/1705.08741.
  """
  check_at_least(1, batch_size=batch_size, base_batch_size=base_batch_size)
  if batch_size < base_batch_size:
    raise ValueError(
      f"batch_size must be at least base_batch_size {base_batch_size}, got {batch_size}."
    )
  check_range("scale", scale, "[0, inf)")
  deviation = scale * math.sqrt(batch_size / base_batch_size - 1)
  return 1 + deviation * jax.random.normal(key, (batch_size,))
