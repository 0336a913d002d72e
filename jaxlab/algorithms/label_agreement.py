"""Labels that a model or a generator guesses: which to keep, and how right they are."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_range


class AgreementReport(NamedTuple):
  """How well a filter sorts out wrong labels; scalars in [0, 1].

  Attributes:
    kept_share: share of the examples that are kept.
    precision: share of right labels among the kept ones; 1 if none is kept.
    recall: share of the right labels that are kept; 1 if none is right.
  """

  kept_share: chex.Array
  precision: chex.Array
  recall: chex.Array


def agreement_mask(
  probs: chex.Array, labels: chex.Array, *, threshold: chex.Numeric = 0.6
) -> jax.Array:
  """Keeps the examples whose label a teacher would give them, too, with confidence.

  Args:
    probs: the teacher's probabilities of the classes, `[n, C]`.
    labels: labels of the examples, such as those that a generator was asked for, int `[n]`.
    threshold: smallest probability of the label that counts, in [0, 1]; 0 asks for agreement alone.

  Returns:
    Which examples are kept, bool `[n]`: those whose label is the most probable class (the lowest
    on ties) and reaches the threshold. A row with NaN, or a traced label outside the classes, is
    not kept.

  Raises:
    ValueError: if `threshold` lies outside [0, 1] or a known label outside [0, C).

  Reference: Luo et al., CrossTune: Black-Box Few-Shot Classification with Label Enhancement,
  LREC-COLING 2024, https://arxiv.org/abs/2403.12468.
  """
  check_range("threshold", threshold, "[0, 1]")
  check_arrays(probs=(probs, "[n, C]"), labels=(labels, "int [n]"))
  probs = as_accumulator(probs)
  labels = as_classes("labels", labels, probs.shape[-1])
  return (jnp.argmax(probs, axis=-1) == labels) & (jnp.max(probs, axis=-1) >= threshold)


def agreement_report(
  keep: chex.Array, labels: chex.Array, true_labels: chex.Array
) -> AgreementReport:
  """Compares a filter of labels with the truth.

  Args:
    keep: which examples the filter keeps, bool or 0 and 1, `[n]`.
    labels: labels of the examples, int `[n]`.
    true_labels: the right ones, int `[n]`.

  Returns:
    An `AgreementReport` in float32; the kept share of no example is 0.

  Reference: Luo et al., CrossTune, LREC-COLING 2024, https://arxiv.org/abs/2403.12468.
  """
  check_arrays(keep=(keep, "[n]"), labels=(labels, "int [n]"), true_labels=(true_labels, "int [n]"))
  keep = jnp.asarray(keep).astype(bool)
  right = jnp.asarray(labels) == jnp.asarray(true_labels)
  num_kept, num_right, num_both = (jnp.sum(x, dtype=jnp.int32) for x in (keep, right, keep & right))
  return AgreementReport(
    kept_share=(num_kept / max(keep.size, 1)).astype(jnp.float32),
    precision=_share(num_both, num_kept),
    recall=_share(num_both, num_right),
  )


def _share(part: jax.Array, whole: jax.Array) -> jax.Array:
  """Part of a whole, and 1 of nothing."""
  return jnp.where(whole == 0, 1.0, part / jnp.maximum(whole, 1)).astype(jnp.float32)
