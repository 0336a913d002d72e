"""Labels for unlabeled rows from elsewhere, and which of them can be trusted."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  as_flags,
  check_arrays,
  check_at_least,
  check_range,
)
from jaxlab.losses.adaptation import unit_vectors

_MIN_NORM = 1e-12


class TransferredLabels(NamedTuple):
  """Labels that unlabeled rows get from the labeled ones next to them.

  Attributes:
    scores: similarity to the nearest labeled row of each class, in [-1, 1], `[n, k]`.
    labels: the class with the largest score, int32 `[n]`.
    weights: largest score less the second largest, in [0, 2], `[n]`.
  """

  scores: chex.Array
  labels: chex.Array
  weights: chex.Array


class InvasionRates(NamedTuple):
  """Which part of the weight of pseudo labels is in error, scalars.

  Attributes:
    pseudo_label_error: share on rows of target classes whose label is wrong.
    invasion: share on rows of unknown classes.
  """

  pseudo_label_error: chex.Array
  invasion: chex.Array


def transfer_pseudo_labels(
  features: chex.Array,
  labeled_features: chex.Array,
  labels: chex.Array,
  *,
  num_classes: int,
  mask: chex.Array | None = None,
) -> TransferredLabels:
  """Labels rows by the nearest labeled row of each class, in a representation made without labels.

  The weight is the margin between the two best classes. A row of an unknown class is about as far
  from all of them, and gets a small one. No gradient flows.

  Args:
    features: of unlabeled rows, `[n, d]`.
    labeled_features: of labeled rows, `[l, d]`.
    labels: their classes, int `[l]`; in a JAX array, rows outside the classes are left out.
    num_classes: number k of classes, at least 2.
    mask: which labeled rows count, bool `[l]`; None for all.

  Returns:
    `TransferredLabels`. A class without labeled rows has score -1; of equal scores the first class
    wins.

  Raises:
    ValueError: if `num_classes` < 2, a known label lies outside [0, k), or shapes do not agree.

  Reference: Du et al., Semi-Supervised Learning via Weight-aware Distillation under Class
  Distribution Mismatch, ICCV 2023, section 3, https://arxiv.org/abs/2308.11874.
  """
  check_at_least(2, num_classes=num_classes)
  check_arrays(
    features=(features, "[n, d]"),
    labeled_features=(labeled_features, "[l, d]"),
    labels=(labels, "int [l]"),
    mask=(mask, "[l]"),
  )
  features, anchors = jax.lax.stop_gradient(as_accumulator(features, labeled_features))
  labels = as_classes("labels", labels, num_classes)
  if mask is not None:
    labels = jnp.where(as_flags("mask", mask)[0], labels, num_classes)
  similarities = unit_vectors(anchors, _MIN_NORM) @ unit_vectors(features, _MIN_NORM).T
  nearest = jax.ops.segment_max(similarities, labels, num_classes).T
  # NaN of a row passes through, in place of the -inf of an empty class.
  scores = jnp.where(nearest == -jnp.inf, -1.0, jnp.clip(nearest, -1.0, 1.0))
  best = jax.lax.top_k(scores, 2)[0]
  guess = jnp.argmax(scores, axis=-1).astype(jnp.int32)
  return TransferredLabels(scores, guess, best[:, 0] - best[:, 1])


def selection_fraction(
  round: chex.Numeric,
  *,
  initial: chex.Numeric = 0.1,
  num_rounds: int = 5,
  power: chex.Numeric = 2.0,
) -> jax.Array:
  """Which share of the unlabeled rows moves to the labeled ones after a round: fewer every time.

  Args:
    round: number of the round from 1, a scalar or an array.
    initial: share at round 0, in [0, 1].
    num_rounds: round R from which the share is 0, at least 1.
    power: exponent of the decrease, > 0.

  Returns:
    `initial * (1 - min(round, R) / R) ** power`, in the shape of `round`, in float32 or wider.

  Raises:
    ValueError: if `initial` lies outside [0, 1], `num_rounds` < 1 or `power` <= 0.

  Reference: Du et al., ICCV 2023, section 3, https://arxiv.org/abs/2308.11874.
  """
  check_range("initial", initial, "[0, 1]")
  check_range("power", power, "(0, inf)")
  check_at_least(1, num_rounds=num_rounds)
  left = 1.0 - jnp.minimum(as_accumulator(round), num_rounds) / num_rounds
  return initial * left**power


def select_reliable(
  losses: chex.Array, *, fraction: float, mask: chex.Array | None = None
) -> jax.Array:
  """Selects the rows with the smallest losses.

  Args:
    losses: `[n]`.
    fraction: share of all n rows that is selected, in [0, 1]; `int(fraction * n)` rows.
    mask: which rows may be selected, bool `[n]`; None for all. If fewer remain, all of them are.

  Returns:
    Whether a row is selected, bool `[n]`; of equal losses the first, and never a NaN.

  Raises:
    ValueError: if `fraction` lies outside [0, 1].

  Reference: Du et al., ICCV 2023, section 3, https://arxiv.org/abs/2308.11874.
  """
  check_range("fraction", fraction, "[0, 1]")
  check_arrays(losses=(losses, "[n]"), mask=(mask, "[n]"))
  losses = as_accumulator(losses)
  usable = ~jnp.isnan(losses)
  if mask is not None:
    usable = usable & as_flags("mask", mask)[0]
  count = int(fraction * losses.shape[0])
  # Two keys: an infinite loss must still come before a row that may not be selected.
  order = jnp.lexsort((jnp.where(usable, losses, 0.0), ~usable))
  chosen = jnp.zeros(losses.shape, bool).at[order[:count]].set(True)
  return chosen & usable


def invasion_rates(
  weights: chex.Array, pseudo_labels: chex.Array, labels: chex.Array, is_unknown: chex.Array
) -> InvasionRates:
  """Splits the error of pseudo labels into wrong labels and rows that should have none.

  Args:
    weights: how much each row counts, at least 0, `[n]`.
    pseudo_labels: int `[n]`.
    labels: true classes, int `[n]`; not read where a row is unknown.
    is_unknown: whether the row is of no target class, bool `[n]`.

  Returns:
    `InvasionRates`, in float32 or wider; 0 if the weights sum to 0.

  Raises:
    ValueError: if a known weight is negative.

  Reference: Du et al., ICCV 2023, section 3, https://arxiv.org/abs/2308.11874.
  """
  check_range("weights", weights, "[0, inf)")
  check_arrays(
    weights=(weights, "[n]"),
    pseudo_labels=(pseudo_labels, "int [n]"),
    labels=(labels, "int [n]"),
    is_unknown=(is_unknown, "[n]"),
  )
  weights = as_accumulator(weights)
  unknown = as_flags("is_unknown", is_unknown)[0]
  wrong = ~unknown & (jnp.asarray(pseudo_labels) != jnp.asarray(labels))
  total = jnp.sum(weights)
  # 0 * weights, so that a NaN is not left out.
  shares = [jnp.sum(jnp.where(x, weights, 0 * weights)) for x in (wrong, unknown)]
  return InvasionRates(*(x / jnp.where(total == 0, 1.0, total) for x in shares))
