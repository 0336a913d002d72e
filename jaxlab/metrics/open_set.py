"""Metrics of classification where some rows belong to no known class."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays


def open_set_classification_rate(
  known_scores: chex.Array, unknown_scores: chex.Array, predictions: chex.Array, labels: chex.Array
) -> jax.Array:
  """Area under correct classification of known rows against false acceptance of unknown ones.

  Unlike the AUROC, it counts a known row only if it is accepted and classified right. The area is
  the usual sum of trapezoids. With all n scores sorted (stably, known rows first on ties), position
  t = 0..n - 2 gives the share of known rows after t that are right and the share of unknown rows at
  or after t; the ends of the curve are (1, 1) and (0, 0).

  Args:
    known_scores: scores of the rows of known classes, higher for known, such as the largest
      probability, `[n1]`.
    unknown_scores: scores of the rows of unknown classes, `[n2]`.
    predictions: classes predicted for the known rows, `[n1]`.
    labels: their true classes, `[n1]`.

  Returns:
    A scalar in [0, 1], float32; NaN if there are no rows of one kind or a score is NaN.

  Reference: Dhamija et al., Reducing Network Agnostophobia, NeurIPS 2018,
  https://arxiv.org/abs/1811.04110; Chen et al., Adversarial Reciprocal Points Learning, TPAMI 2021,
  https://arxiv.org/abs/2103.00953.
  """
  check_arrays(
    known_scores=(known_scores, "[n1]"),
    unknown_scores=(unknown_scores, "[n2]"),
    predictions=(predictions, "int [n1]"),
    labels=(labels, "int [n1]"),
  )
  # Scores keep their type: integers that differ may be equal in float32.
  scores = jnp.concatenate([jnp.asarray(known_scores), jnp.asarray(unknown_scores)])
  num_known, num_unknown = len(known_scores), len(unknown_scores)
  if not num_known or not num_unknown:
    return jnp.array(jnp.nan, jnp.float32)
  order = jnp.argsort(scores, stable=True)
  correct = jnp.asarray(predictions) == jnp.asarray(labels)
  correct = jnp.pad(correct, (0, num_unknown))[order]
  unknown = order >= num_known

  def curve(start, counts):
    return jnp.concatenate([jnp.array([start]), counts[:-1], jnp.zeros(1, jnp.int32)])

  # Integer counts, divided at the end: differences of shares would lose digits for large n.
  right = curve(num_known, _count_from(correct) - correct)
  accepted = curve(num_unknown, _count_from(unknown))
  steps = (accepted[:-1] - accepted[1:]).astype(jnp.float32)
  heights = (right[:-1] + right[1:]).astype(jnp.float32) / (2 * num_known)
  return jnp.where(jnp.any(jnp.isnan(scores)), jnp.nan, jnp.sum(steps * heights) / num_unknown)


def _count_from(flags: jax.Array) -> jax.Array:
  """Number of flags that are set at or after each position."""
  return jnp.cumsum(flags[::-1], dtype=jnp.int32)[::-1]


def closed_set_error(
  predictions: chex.Array, labels: chex.Array, *, known: chex.Array
) -> jax.Array:
  """Share of rows of known classes that are classified wrongly.

  Args:
    predictions: predicted classes, `[n]`.
    labels: true classes, `[n]`; ignored for unknown rows.
    known: which rows are of a known class, bool `[n]`.

  Returns:
    A scalar in [0, 1], float32; 0 if no row is known.
  """
  check_arrays(
    predictions=(predictions, "int [n]"), labels=(labels, "int [n]"), known=(known, "[n]")
  )
  known = jnp.asarray(known, bool)
  wrong = known & (jnp.asarray(predictions) != jnp.asarray(labels))
  return (jnp.sum(wrong) / jnp.maximum(jnp.sum(known), 1)).astype(jnp.float32)
