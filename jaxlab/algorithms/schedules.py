"""Weights that rise, averages that warm up, and running means of predictions."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_filled, check_range


class QueueState(NamedTuple):
  """The last means of a `distribution_queue`.

  Attributes:
    means: ring buffer of batch means, `[history, k]`; rows not yet filled are 0.
    count: batches seen, int32 scalar.
  """

  means: chex.Array
  count: chex.Array


class DistributionQueue(NamedTuple):
  """A running mean over the last batches.

  Attributes:
    init: `() -> QueueState`.
    update: `(state, probs [n, k]) -> (state, mean [k])`, the current batch included.
  """

  init: Callable[[], QueueState]
  update: Callable[[QueueState, chex.Array], tuple[QueueState, chex.Array]]


def distribution_queue(*, num_classes: int, history: int = 128) -> DistributionQueue:
  """Builds the mean prediction over the last batches, for `augment.align_distribution`.

  Args:
    num_classes: number k of classes.
    history: batches that are remembered, at least 1; of fewer, all that were seen.

  Returns:
    A `DistributionQueue`; no gradient flows into its mean.

  Raises:
    ValueError: if a count is below 1; on a call, if a batch is empty or has other classes.

  Reference: Berthelot et al., ReMixMatch, ICLR 2020, section 3.1, https://arxiv.org/abs/1911.09785.
  """
  check_at_least(1, num_classes=num_classes, history=history)

  def init():
    return QueueState(jnp.zeros((history, num_classes)), jnp.zeros((), jnp.int32))

  def update(state, probs):
    check_arrays(probs=(probs, f"[n, {num_classes}]"))
    check_filled(probs=probs)
    mean = jax.lax.stop_gradient(jnp.mean(as_accumulator(probs), axis=0))
    means = state.means.at[state.count % history].set(mean.astype(state.means.dtype))
    count = state.count + 1
    # Rows that are not filled yet are 0 and add nothing.
    return QueueState(means, count), jnp.sum(means, axis=0) / jnp.minimum(count, history)

  return DistributionQueue(init, update)


def ratio_ema(
  previous: chex.Numeric, ratio: chex.Numeric, *, decay: chex.Numeric = 0.999
) -> jax.Array:
  """Exponential mean of a ratio that starts with its first value.

  Args:
    previous: the mean so far; NaN means that there is none yet.
    ratio: the new value, such as the share of certain rows in a batch.
    decay: share of the old mean, in [0, 1).

  Returns:
    The new mean, in the shape of `ratio`, in float32 or wider.

  Raises:
    ValueError: if `decay` lies outside [0, 1).

  Reference: Yang et al., ICCV 2023, section 3.3, https://arxiv.org/abs/2308.06777.
  """
  check_range("decay", decay, "[0, 1)")
  previous, ratio = as_accumulator(previous, ratio)
  moved = decay * previous + (1 - decay) * ratio
  return jax.lax.stop_gradient(jnp.where(jnp.isnan(previous), ratio, moved))


def exponential_rampup(step: chex.Numeric, length: chex.Numeric) -> jax.Array:
  """A weight that rises from exp(-5) to 1: exp(-5 (1 - min(step / length, 1))^2).

  Args:
    step: steps or epochs done, at least 0.
    length: when the weight is 1, at least 1.

  Returns:
    The weight, in the shape of `step`, in float32 or wider.

  Raises:
    ValueError: if `length` < 1 or a known step is negative.

  Reference: Laine and Aila, Temporal Ensembling, ICLR 2017, https://arxiv.org/abs/1610.02242.
  """
  return jnp.exp(-5.0 * jnp.square(1.0 - linear_rampup(step, length)))


def linear_rampup(step: chex.Numeric, length: chex.Numeric) -> jax.Array:
  """A weight that rises from 0 to 1: min(step / length, 1).

  Args:
    step: steps or epochs done, at least 0.
    length: when the weight is 1, at least 1.

  Returns:
    The weight, in the shape of `step`, in float32 or wider.

  Raises:
    ValueError: if `length` < 1 or a known step is negative.

  Reference: Berthelot et al., MixMatch, NeurIPS 2019, https://arxiv.org/abs/1905.02249.
  """
  check_range("step", step, "[0, inf)")
  check_range("length", length, "[1, inf)")
  return jnp.minimum(as_accumulator(step) / length, 1.0)


def warm_ema_decay(step: chex.Numeric, *, decay: chex.Numeric = 0.999) -> jax.Array:
  """The decay of a moving average that forgets its start: min(1 - 1 / (step + 1), decay).

  At step 0 the average becomes what it averages. Use it in `weights.ema_update`.

  Args:
    step: updates done before this one, at least 0.
    decay: the largest decay, in [0, 1).

  Returns:
    The decay, in the shape of `step`, in float32 or wider.

  Raises:
    ValueError: if `decay` lies outside [0, 1) or a known step is negative.

  Reference: Tarvainen and Valpola, NeurIPS 2017, https://arxiv.org/abs/1703.01780.
  """
  check_range("step", step, "[0, inf)")
  check_range("decay", decay, "[0, 1)")
  step = as_accumulator(step)
  return jnp.minimum(1.0 - 1.0 / (step + 1.0), decay)
