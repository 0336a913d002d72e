"""What is remembered of every unlabeled example, its loss and its guess, and what follows."""

from collections.abc import Callable
from typing import NamedTuple

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
from jaxlab.metrics.thresholds import otsu_threshold


class SampleAdaptiveState(NamedTuple):
  """What `sample_adaptive_augmentation` remembers of n examples.

  Attributes:
    history: running loss of each example on strong views, float32 `[n]`.
    naive: which examples get more diverse views, bool `[n]`.
    step: updates done, int32 scalar.
  """

  history: chex.Array
  naive: chex.Array
  step: chex.Array


class SampleAdaptive(NamedTuple):
  """The pair that finds the examples that strong views no longer teach.

  Attributes:
    init: `() -> SampleAdaptiveState`.
    update: `(state, indices [b], losses [b]) -> SampleAdaptiveState`.
  """

  init: Callable[[], SampleAdaptiveState]
  update: Callable[[SampleAdaptiveState, chex.Array, chex.Array], SampleAdaptiveState]


def sample_adaptive_augmentation(
  num_examples: int,
  *,
  decay: chex.Numeric = 0.001,
  num_bins: int = 256,
  start_step: int = 0,
  refresh_every: int = 256,
) -> SampleAdaptive:
  """Builds the selection of examples whose strong views should be more diverse.

  An example whose loss on strong views is small gives no gradient. Every `refresh_every` updates,
  from `start_step` on, Otsu's threshold of all losses says which these are.

  Args:
    num_examples: number of unlabeled examples.
    decay: as in `history_update`.
    num_bins: as in `select_naive`.
    start_step: before this update no example is selected. Examples that were not drawn yet have
      loss 0 and would be; wait until all were.
    refresh_every: updates between two selections, at least 1.

  Returns:
    A `SampleAdaptive`. `update` counts the current update among the steps; the losses are those
    before any threshold, such as `losses.fixmatch_loss` gives them at threshold 0.

  Raises:
    ValueError: if `num_examples` or `refresh_every` < 1, `start_step` < 0, `num_bins` < 2, or
      `decay` lies outside [0, 1].

  Reference: Gui et al., Enhancing Sample Utilization through Sample Adaptive Augmentation in
  Semi-Supervised Learning, ICCV 2023, section 3, https://arxiv.org/abs/2309.03598.
  """
  check_at_least(1, num_examples=num_examples, refresh_every=refresh_every)
  check_at_least(0, start_step=start_step)
  check_at_least(2, num_bins=num_bins)
  check_range("decay", decay, "[0, 1]")

  def init():
    nothing = jnp.zeros(num_examples, bool)
    return SampleAdaptiveState(jnp.zeros(num_examples), nothing, jnp.zeros((), jnp.int32))

  def select(history, previous):
    return select_naive(history, previous, num_bins=num_bins)

  def keep(history, previous):
    # Varies over the axes of a mesh that a selection varies over: branches must not differ.
    return jnp.where(history > 0, previous, previous)

  def update(state, indices, losses):
    history = history_update(state.history, indices, losses, decay=decay)
    step = state.step + 1
    due = (step % refresh_every == 0) & (step >= start_step)
    naive = jax.lax.cond(due, select, keep, history, state.naive)
    return SampleAdaptiveState(history, naive, step)

  return SampleAdaptive(init, update)


def history_update(
  history: chex.Array, indices: chex.Array, losses: chex.Array, *, decay: chex.Numeric = 0.001
) -> jax.Array:
  """Moves the running losses of the examples of a batch.

  Args:
    history: running loss of each example, `[n]`.
    indices: examples of the batch, int `[b]`, each at most once; in a JAX array, those outside
      [0, n) are left out.
    losses: their losses, `[b]`; no gradient flows into them.
    decay: share of the old value, in [0, 1].

  Returns:
    The new history, `[n]`, in float32 or wider; other entries stay bitwise the same.

  Raises:
    ValueError: if `decay` lies outside [0, 1] or a known index outside [0, n).

  Reference: Gui et al., ICCV 2023, equation 3, https://arxiv.org/abs/2309.03598.
  """
  check_range("decay", decay, "[0, 1]")
  check_arrays(history=(history, "[n]"), indices=(indices, "int [b]"), losses=(losses, "[b]"))
  history, losses = jax.lax.stop_gradient(as_accumulator(history, losses))
  indices = as_classes("indices", indices, history.shape[0])
  moved = weighted(decay, history.at[indices].get(mode="clip")) + weighted(1.0 - decay, losses)
  return history.at[indices].set(moved, mode="drop")


def select_naive(history: chex.Array, previous: chex.Array, *, num_bins: int = 256) -> jax.Array:
  """Selects the examples whose running loss is below Otsu's threshold.

  Args:
    history: running loss of each example, `[n]`.
    previous: the selection so far, bool `[n]`; an example exactly at the threshold keeps it, and so
      do all if a loss is not finite.
    num_bins: as in `metrics.otsu_threshold`.

  Returns:
    The selection, bool `[n]`.

  Raises:
    ValueError: if `num_bins` < 2.

  Reference: Gui et al., ICCV 2023, section 3.2, https://arxiv.org/abs/2309.03598.
  """
  check_arrays(history=(history, "[n]"), previous=(previous, "[n]"))
  history = as_accumulator(history)
  threshold = otsu_threshold(history, num_bins=num_bins)
  return (history < threshold) | (~(history > threshold) & jnp.asarray(previous).astype(bool))


def flexmatch_status(selected: chex.Array, *, num_classes: int, warmup: bool = True) -> jax.Array:
  """How well each class is learned: how many examples are guessed to be of it, with confidence.

  Args:
    selected: last confident guess for each example, int `[n]`; -1 where there was none.
    num_classes: number k of classes, at least 2.
    warmup: whether counts are compared with the number of examples without a guess, too, if that is
      larger than all of them.

  Returns:
    Counts over the largest count, in [0, 1], float32 `[k]`; 0 if there is no guess.

  Raises:
    ValueError: if `num_classes` < 2.

  Reference: Zhang et al., FlexMatch, NeurIPS 2021, equations 5 to 11,
  https://arxiv.org/abs/2110.08263.
  """
  check_at_least(2, num_classes=num_classes)
  check_arrays(selected=(selected, "int [n]"))
  selected = jnp.asarray(selected).astype(jnp.int32)
  guessed = (selected >= 0) & (selected < num_classes)
  where = jnp.where(guessed, selected, num_classes)
  counts = jax.ops.segment_sum(jnp.ones(where.shape), where, num_classes + 1)
  largest = jnp.max(counts if warmup else counts[:-1])
  return counts[:-1] / jnp.maximum(largest, 1.0)


def flexmatch_thresholds(status: chex.Array, *, threshold: chex.Numeric = 0.95) -> jax.Array:
  """Thresholds that are lower for classes that are learned less well.

  Args:
    status: how well each class is learned, in [0, 1], `[k]`.
    threshold: that of a class with status 1, in (0, 1].

  Returns:
    `threshold * status / (2 - status)`, `[k]`, in float32 or wider; for
    `losses.class_threshold_loss`.

  Raises:
    ValueError: if `threshold` lies outside (0, 1] or a known status outside [0, 1].

  Reference: Zhang et al., NeurIPS 2021, equation 12, https://arxiv.org/abs/2110.08263.
  """
  check_range("threshold", threshold, "(0, 1]")
  check_range("status", status, "[0, 1]")
  check_arrays(status=(status, "[k]"))
  status = as_accumulator(status)
  return threshold * status / (2.0 - status)


def flexmatch_select(
  selected: chex.Array, indices: chex.Array, probs: chex.Array, *, threshold: chex.Numeric = 0.95
) -> jax.Array:
  """Remembers the confident guesses of a batch.

  Args:
    selected: last confident guess for each example, int `[n]`; -1 where there was none.
    indices: examples of the batch, int `[b]`, each at most once; in a JAX array, those outside
      [0, n) are left out.
    probs: predictions on their weak views, `[b, k]`.
    threshold: smallest probability of the top class that counts, for all classes, in (0, 1].

  Returns:
    The new guesses, int32 `[n]`.

  Raises:
    ValueError: if `threshold` lies outside (0, 1] or a known index outside [0, n).

  Reference: Zhang et al., NeurIPS 2021, algorithm 1, https://arxiv.org/abs/2110.08263.
  """
  check_range("threshold", threshold, "(0, 1]")
  check_arrays(
    selected=(selected, "int [n]"), indices=(indices, "int [b]"), probs=(probs, "[b, k]")
  )
  selected = jnp.asarray(selected).astype(jnp.int32)
  indices = as_classes("indices", indices, selected.shape[0])
  probs = as_accumulator(probs)
  guess = jnp.argmax(probs, axis=-1).astype(jnp.int32)
  kept = selected.at[indices].get(mode="clip")
  confident = jnp.max(probs, axis=-1) >= threshold
  return selected.at[indices].set(jnp.where(confident, guess, kept), mode="drop")
