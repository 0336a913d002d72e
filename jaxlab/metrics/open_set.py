"""Classification where some rows belong to no known class."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator


def open_set_classification_rate(
  known_scores: chex.Array, unknown_scores: chex.Array, predictions: chex.Array, labels: chex.Array
) -> jax.Array:
  """Area under correct classification of known rows against false acceptance of unknown ones.

  Unlike the AUROC it asks that a known row be accepted and right. The curve is the usual
  trapezoid: with all n scores sorted (stably, known ones first), position t = 0..n - 2 gives the
  share of known rows behind t that are right, and the share of unknown rows at t or behind; the
  ends are (1, 1) and (0, 0). Tied scores take the order of the concatenation.

  Args:
    known_scores: how known each row of a known class looks, such as the largest probability,
      `[n1]`.
    unknown_scores: likewise for rows of unknown classes, `[n2]`.
    predictions: classes predicted for the known rows, `[n1]`.
    labels: their true classes, `[n1]`.

  Returns:
    A scalar in [0, 1], float32; NaN if there are no rows of one kind.

  Reference: Dhamija et al., Reducing Network Agnostophobia, NeurIPS 2018,
  https://arxiv.org/abs/1811.04110; Chen et al., Adversarial Reciprocal Points Learning, TPAMI 2021,
  https://arxiv.org/abs/2103.00953.
  """
  chex.assert_rank([known_scores, unknown_scores, predictions, labels], 1)
  chex.assert_equal_shape([known_scores, predictions, labels])
  known_scores, unknown_scores = as_accumulator(known_scores, unknown_scores)
  num_known, num_unknown = known_scores.shape[0], unknown_scores.shape[0]
  if not num_known or not num_unknown:
    return jnp.array(jnp.nan, jnp.float32)
  order = jnp.argsort(jnp.concatenate([known_scores, unknown_scores]), stable=True)
  correct = jnp.asarray(predictions) == jnp.asarray(labels)
  correct = jnp.pad(correct, (0, num_unknown))[order]
  unknown = order >= num_known

  def curve(start, counts):
    return jnp.concatenate([jnp.array([start]), counts[:-1], jnp.zeros(1, jnp.int32)])

  # Counts, divided at the end: differences of shares would lose the digits of large n.
  right = curve(num_known, _from_behind(correct) - correct)
  accepted = curve(num_unknown, _from_behind(unknown))
  steps = (accepted[:-1] - accepted[1:]).astype(jnp.float32)
  heights = (right[:-1] + right[1:]).astype(jnp.float32) / (2 * num_known)
  return jnp.sum(steps * heights) / num_unknown


def _from_behind(flags: jax.Array) -> jax.Array:
  """How many are set at each position or behind it."""
  return jnp.cumsum(flags[::-1], dtype=jnp.int32)[::-1]


def closed_set_error(
  predictions: chex.Array, labels: chex.Array, *, known: chex.Array
) -> jax.Array:
  """Share of rows of known classes that are classified wrongly.

  Args:
    predictions: predicted classes, `[n]`.
    labels: true classes, `[n]`; those of unknown rows do not matter.
    known: which rows are of a known class, bool `[n]`.

  Returns:
    A scalar in [0, 1], float32; 0 if no row is known.
  """
  chex.assert_rank([predictions, labels, known], 1)
  chex.assert_equal_shape([predictions, labels, known])
  known = jnp.asarray(known, bool)
  wrong = known & (jnp.asarray(predictions) != jnp.asarray(labels))
  return (jnp.sum(wrong) / jnp.maximum(jnp.sum(known), 1)).astype(jnp.float32)
