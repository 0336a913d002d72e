"""Exits that samples take in an early-exit network, with their cost and accuracy."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_filled, check_range
from jaxlab.losses.early_exit import conditional_exit_probabilities


class CostAccuracy(NamedTuple):
  """One point of the curve of accuracy against cost.

  Attributes:
    cost: mean cost per sample.
    accuracy: share of samples that are right at the exit they take.
    exit_share: share of samples that leave at each exit, `[L + 1]`.
  """

  cost: chex.Array
  accuracy: chex.Array
  exit_share: chex.Array


def exit_levels(exit_probs: chex.Array, *, threshold: chex.Numeric = 0.5) -> jax.Array:
  """The exit each sample takes: the first whose conditional probability reaches a threshold.

  Args:
    exit_probs: distribution over the exits, `[..., L + 1]`.
    threshold: threshold on the conditional probability of leaving, in (0, 1).

  Returns:
    Indices of exits, L where no gate opens, int32 `[...]`.

  Raises:
    ValueError: if `threshold` lies outside (0, 1).

  Reference: Chataoui et al., Jointly-Learned Exit and Inference for a Dynamic Neural Network,
  ICLR 2024, section 4, https://arxiv.org/abs/2310.09163.
  """
  check_range("threshold", threshold, "(0, 1)")
  return _first(conditional_exit_probabilities(exit_probs) >= threshold)


def threshold_exits(confidence: chex.Array, *, thresholds: chex.Array) -> jax.Array:
  """The first exit whose confidence reaches its threshold: the usual rule without gates.

  Args:
    confidence: confidence of each exit but the final one, such as its largest probability,
      `[..., L]`.
    thresholds: one per exit but the final one, `[L]`; a threshold above all confidences closes its
      exit.

  Returns:
    Indices of exits, L where no threshold is reached, int32 `[...]`.

  Raises:
    ValueError: if the numbers of thresholds and of columns of `confidence` differ.

  Reference: Teerapittayanon et al., BranchyNet, ICPR 2016, https://arxiv.org/abs/1709.01686.
  """
  check_arrays(confidence=(confidence, "[..., l]"), thresholds=(thresholds, "[l]"))
  confidence, thresholds = as_accumulator(confidence, thresholds)
  return _first(confidence >= jnp.broadcast_to(thresholds, confidence.shape))


def exited_values(values: chex.Array, levels: chex.Array) -> jax.Array:
  """Picks the value of the exit that each sample takes.

  Args:
    values: values of every exit, `[b, L + 1, ...]`.
    levels: the exit each sample takes, int `[b]`.

  Returns:
    `[b, ...]`; where a level of a JAX array is no exit NaN, or in other types what
    `jnp.take_along_axis` gives.

  Raises:
    ValueError: if a known level lies outside the exits.
  """
  values = jnp.asarray(values)
  levels = as_classes("levels", levels, values.shape[1])
  check_arrays(values=(values, "[b, *, ...]"), levels=(levels, "int [b]"))
  index = levels.reshape(-1, *(1,) * (values.ndim - 1))
  return jnp.take_along_axis(values, index, axis=1)[:, 0]


def cost_accuracy(levels: chex.Array, correct: chex.Array, costs: chex.Array) -> CostAccuracy:
  """Mean cost and accuracy of samples at the exits they take.

  Args:
    levels: the exit each sample takes, int `[b]`.
    correct: whether each exit is right, or its score, `[b, L + 1]`.
    costs: cost of each exit, `[L + 1]`.

  Returns:
    A `CostAccuracy`; NaN if there is no sample or a level of a JAX array is no exit.

  Raises:
    ValueError: if the numbers of costs and of columns of `correct` differ, or a known level lies
      outside the exits.

  Reference: Huang et al., Multi-Scale Dense Networks for Resource Efficient Image Classification,
  ICLR 2018, https://arxiv.org/abs/1703.09844.
  """
  check_arrays(levels=(levels, "int [b]"), correct=(correct, "[b, l]"), costs=(costs, "[l]"))
  correct, costs = as_accumulator(correct, costs)
  num_exits = correct.shape[-1]
  levels = as_classes("levels", levels, num_exits)
  taken = jax.nn.one_hot(levels, num_exits, dtype=correct.dtype)
  share = jnp.mean(jnp.where(levels[:, None] < num_exits, taken, jnp.nan), axis=0)
  accuracy = jnp.mean(exited_values(correct, levels))
  return CostAccuracy(cost=share @ costs, accuracy=accuracy, exit_share=share)


def area_under_cost_curve(cost: chex.Array, accuracy: chex.Array) -> jax.Array:
  """Mean accuracy over the range of costs, by trapezoids: one number for a whole curve.

  Args:
    cost: cost of each point, in any order, `[m]`.
    accuracy: accuracy of each point, `[m]`.

  Returns:
    The area divided by the range of costs, a scalar; the mean accuracy if all costs are equal, NaN
    if one is NaN.

  Raises:
    ValueError: if there is no point.
  """
  check_arrays(cost=(cost, "[m]"), accuracy=(accuracy, "[m]"))
  cost, accuracy = as_accumulator(cost, accuracy)
  check_filled(cost=cost)
  order = jnp.argsort(cost)
  cost, accuracy = cost[order], accuracy[order]
  width = cost[-1] - cost[0]
  area = jnp.sum(jnp.diff(cost) * (accuracy[1:] + accuracy[:-1]) / 2)
  return jnp.where(width == 0, jnp.mean(accuracy), area / jnp.where(width == 0, 1.0, width))


def _first(leaves: jax.Array) -> jax.Array:
  """Index of the first True, the number of columns if there is none."""
  last = jnp.ones_like(leaves[..., :1])
  return jnp.argmax(jnp.concatenate([leaves, last], axis=-1), axis=-1).astype(jnp.int32)
