"""Wrong labels of a test set: confirmed by raters, and what they do to a comparison of models."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_range,
  is_known,
)
from jaxlab._programs import compiled_once


class ConfirmedErrors(NamedTuple):
  """What raters say of labels.

  Attributes:
    is_error: whether enough raters reject the label, bool `[n]`.
    corrected: the label, or the class that enough raters name instead, or -1 if there is none,
      int32 `[n]`.
  """

  is_error: jax.Array
  corrected: jax.Array


def confirm_errors(
  votes: chex.Array, labels: chex.Array, *, num_classes: int, majority: int = 3
) -> ConfirmedErrors:
  """Confirms suspected label errors by the votes of raters.

  Args:
    votes: the class that each rater sees, int `[n, r]`; -1 for none of the classes, or several.
    labels: given classes, int `[n]`.
    num_classes: number k of classes.
    majority: votes, in [1, r], that reject a label, and that name another class.

  Returns:
    A `ConfirmedErrors`. A label is wrong if `majority` votes differ from it; it is corrected to the
    class with most of these votes (the lowest one on ties) if they are `majority`, else to -1.

  Raises:
    ValueError: if `majority` lies outside [1, r], k < 2, or a known vote or label is no class.

  Reference: Northcutt et al., Pervasive Label Errors in Test Sets, NeurIPS 2021, section 4,
  https://arxiv.org/abs/2103.14749.
  """
  check_at_least(2, num_classes=num_classes)
  check_arrays(votes=(votes, "int [n, r]"), labels=(labels, "int [n]"))
  if not 1 <= majority <= jnp.shape(votes)[1]:
    raise ValueError(f"majority must lie in [1, {jnp.shape(votes)[1]}], got {majority}.")
  if is_known(votes):
    wrong = np.argwhere((np.asarray(votes) < -1) | (np.asarray(votes) >= num_classes))
    if wrong.size:
      row, rater = wrong[0]
      vote = np.asarray(votes)[row, rater]
      raise ValueError(f"votes must lie in [-1, {num_classes}), got {vote} in row {row}.")
  labels = as_classes("labels", labels, num_classes)
  votes = jnp.asarray(votes)
  return _confirm(votes.astype(jnp.promote_types(votes.dtype, jnp.int32)), labels, majority)


@compiled_once
def _confirm(votes: jax.Array, labels: jax.Array, majority: int) -> ConfirmedErrors:
  differs = votes != labels[:, None]
  is_error = jnp.sum(differs, axis=1) >= majority
  counts = jnp.sum(votes[:, :, None] == votes[:, None], axis=2)
  counts = jnp.where(differs & (votes >= 0), counts, 0)
  most = jnp.max(counts, axis=1, keepdims=True)
  named = jnp.min(jnp.where(counts == most, votes, jnp.iinfo(votes.dtype).max), axis=1)
  corrected = jnp.where(most[:, 0] >= majority, named, -1)
  return ConfirmedErrors(is_error, jnp.where(is_error, corrected, labels).astype(jnp.int32))


def prevalence_accuracy(
  clean_accuracy: chex.Array, corrected_accuracy: chex.Array, prevalence: chex.Array
) -> jax.Array:
  """Accuracy on corrected labels if a share of the test set was mislabeled.

  Rightly labeled examples are thought to be dropped at random until the share is reached.

  Args:
    clean_accuracy: accuracy of each model on rightly labeled examples, `[m]`, in [0, 1].
    corrected_accuracy: its accuracy on mislabeled ones, by their corrected labels, `[m]`.
    prevalence: shares of mislabeled examples, `[p]`, in [0, 1].

  Returns:
    `(1 - prevalence) * clean_accuracy + prevalence * corrected_accuracy`, `[m, p]`, float32 or
    wider.

  Raises:
    ValueError: if a known accuracy or share lies outside [0, 1].

  Reference: Northcutt et al., Pervasive Label Errors in Test Sets, NeurIPS 2021, section 5,
  https://arxiv.org/abs/2103.14749.
  """
  for name, value in (
    ("clean_accuracy", clean_accuracy),
    ("corrected_accuracy", corrected_accuracy),
    ("prevalence", prevalence),
  ):
    check_range(name, value, "[0, 1]")
  check_arrays(
    clean_accuracy=(clean_accuracy, "[m]"),
    corrected_accuracy=(corrected_accuracy, "[m]"),
    prevalence=(prevalence, "[p]"),
  )
  clean, corrected, share = as_accumulator(clean_accuracy, corrected_accuracy, prevalence)
  share = share[None]
  return (1 - share) * clean[:, None] + share * corrected[:, None]


def crossing_prevalence(
  clean_accuracy_a: chex.Numeric,
  corrected_accuracy_a: chex.Numeric,
  clean_accuracy_b: chex.Numeric,
  corrected_accuracy_b: chex.Numeric,
) -> jax.Array:
  """The share of mislabeled test examples at which two models are equally accurate.

  Args:
    clean_accuracy_a: accuracy of model a on rightly labeled examples, `[...]`.
    corrected_accuracy_a: its accuracy on mislabeled ones, by their corrected labels, `[...]`.
    clean_accuracy_b: the same of model b, `[...]`.
    corrected_accuracy_b: the same of model b, `[...]`.

  Returns:
    Where the lines of `prevalence_accuracy` cross, `[...]`, float32 or wider; it may lie outside
    [0, 1]. Infinity for parallel lines.

  Reference: Northcutt et al., Pervasive Label Errors in Test Sets, NeurIPS 2021, section 5,
  https://arxiv.org/abs/2103.14749.
  """
  check_arrays(
    clean_accuracy_a=(clean_accuracy_a, "[...]"),
    corrected_accuracy_a=(corrected_accuracy_a, "[...]"),
    clean_accuracy_b=(clean_accuracy_b, "[...]"),
    corrected_accuracy_b=(corrected_accuracy_b, "[...]"),
  )
  return _crossing(
    *as_accumulator(clean_accuracy_a, corrected_accuracy_a, clean_accuracy_b, corrected_accuracy_b)
  )


@jax.jit
def _crossing(clean_a, corrected_a, clean_b, corrected_b) -> jax.Array:
  lead = clean_a - clean_b
  slope = lead + (corrected_b - corrected_a)
  return jnp.where(slope == 0, jnp.inf, lead / jnp.where(slope == 0, 1.0, slope))
