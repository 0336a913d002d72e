"""Losses in which an example is classified by its nearest neighbors in a feature space.

Similarities are cosines. They are held for some of the queries at a time, forward and backward, so
that memory grows with the number of queries and not with the number of pairs.
"""

from collections.abc import Callable
from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  check_arrays,
  check_at_least,
  check_choice,
  check_filled,
  check_range,
  is_known,
)
from jaxlab._programs import compiled_once
from jaxlab.losses.adaptation import unit_vectors

_MIN_NORM = 1e-12
# Pairs of a query and a key that are in memory at once.
_PAIRS = 2**20


def knn_classification_loss(
  queries: chex.Array,
  labels: chex.Array,
  keys: chex.Array,
  key_labels: chex.Array,
  *,
  num_neighbors: int,
  temperature: chex.Numeric = 0.1,
  missing: Literal["nearest_positive", "skip"] = "nearest_positive",
  mask: chex.Array | None = None,
) -> jax.Array:
  """Negative log-probability of the label under a vote of the nearest keys.

  A neighbor votes with the weight exp(cosine similarity / temperature). Only a label that most of
  the near keys share is asked for, so a class may keep several modes, which cross-entropy on a
  linear head would pull together.

  Args:
    queries: features of any length, `[n, d]`.
    labels: classes, int `[n]`; a row whose label no key has, such as -1, has loss 0.
    keys: features of the examples that vote, `[m, d]`. Gradients flow into queries and keys; stop
      those of a memory bank. The choice of neighbors is constant.
    key_labels: their classes, int `[m]`; keys with negative labels, such as the empty slots of
      `algorithms.feature_bank`, have no vote.
    num_neighbors: keys that vote for a query; m if that is less.
    temperature: divides the similarities, > 0.
    missing: what happens where no neighbor has the label of the query: "nearest_positive" adds the
      nearest key of the label to the neighbors, "skip" gives loss 0.
    mask: which keys may be neighbors of a query, bool `[n, m]`, for example to leave out its own
      copy; None for all.

  Returns:
    Loss per query in nats, `[n]`, in float32 or wider; on ties the first keys are the neighbors.
    Without a key of the label it is 0, without gradient. NaN in a key is in the loss of every query
    that may have it.

  Raises:
    ValueError: if `num_neighbors` < 1, `temperature` <= 0, `missing` is unknown, or there is no
      key.

  Reference: Feng et al., Rethinking Supervised Pre-training for Better Downstream Transferring,
  ICLR 2022, https://arxiv.org/abs/2110.06014. The abstract fixes the vote and the loss; the rules
  for missing labels are reconstructed.
  """
  _check_knn(num_neighbors, temperature)
  check_choice("missing", missing, _MISSING)
  check_arrays(
    queries=(queries, "[n, d]"),
    labels=(labels, "int [n]"),
    keys=(keys, "[m, d]"),
    key_labels=(key_labels, "int [m]"),
    mask=(mask, "bool [n, m]"),
  )
  check_filled(keys=keys)
  return _knn_losses(
    *as_accumulator(queries, keys),
    *_widened(labels, key_labels),
    None if mask is None else jnp.asarray(mask),
    num_neighbors=min(num_neighbors, np.shape(keys)[0]),
    temperature=temperature,
    add_positive=missing == "nearest_positive",
    leave_one_out=False,
  )


_MISSING = ("nearest_positive", "skip")


def leave_one_out_knn_loss(
  features: chex.Array,
  labels: chex.Array,
  *,
  num_neighbors: int,
  temperature: chex.Numeric = 0.1,
  missing: Literal["nearest_positive", "skip"] = "nearest_positive",
) -> jax.Array:
  """`knn_classification_loss` of every row of a batch, with the other rows as keys.

  Args:
    features: features of any length, `[n, d]`; gradients flow into both sides of each pair.
    labels: classes, int `[n]`; rows with negative labels have no vote and loss 0.
    num_neighbors: rows that vote for a row; n - 1 if that is less.
    temperature: divides the similarities, > 0.
    missing: as in `knn_classification_loss`.

  Returns:
    Loss per row in nats, `[n]`, in float32 or wider.

  Raises:
    ValueError: if `num_neighbors` < 1, `temperature` <= 0, `missing` is unknown, or there is no
      row.

  Reference: Feng et al., ICLR 2022, https://arxiv.org/abs/2110.06014.
  """
  _check_knn(num_neighbors, temperature)
  check_choice("missing", missing, _MISSING)
  check_arrays(features=(features, "[n, d]"), labels=(labels, "int [n]"))
  check_filled(features=features)
  features, (labels,) = as_accumulator(features), _widened(labels)
  return _knn_losses(
    features,
    features,
    labels,
    labels,
    None,
    num_neighbors=max(1, min(num_neighbors, features.shape[0] - 1)),
    temperature=temperature,
    add_positive=missing == "nearest_positive",
    leave_one_out=True,
  )


def knn_probabilities(
  queries: chex.Array,
  keys: chex.Array,
  key_labels: chex.Array,
  *,
  num_neighbors: int,
  temperature: chex.Numeric = 0.1,
  num_classes: int,
) -> jax.Array:
  """Class probabilities by the weighted vote of the nearest keys.

  Args:
    queries: features of any length, `[n, d]`.
    keys: features of the examples that vote, `[m, d]`.
    key_labels: their classes, int `[m]`; keys with negative labels have no vote.
    num_neighbors: keys that vote for a query; m if that is less.
    temperature: divides the similarities, > 0. Small values give the class of the nearest key,
      large ones the majority of the neighbors.
    num_classes: number k of classes.

  Returns:
    Probabilities, `[n, k]`, in float32 or wider; uniform if no key has a vote, NaN if a neighbor's
    traced label is k or more.

  Raises:
    ValueError: if `num_neighbors` < 1, `temperature` <= 0, `num_classes` < 1, there is no key, or
      a known label is k or more.

  Reference: Feng et al., ICLR 2022, https://arxiv.org/abs/2110.06014; Wu et al., Unsupervised
  Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018, section 3.4,
  https://arxiv.org/abs/1805.01978.
  """
  _check_knn(num_neighbors, temperature)
  check_at_least(1, num_classes=num_classes)
  check_arrays(
    queries=(queries, "[n, d]"), keys=(keys, "[m, d]"), key_labels=(key_labels, "int [m]")
  )
  check_filled(keys=keys)
  if is_known(key_labels) and np.max(key_labels) >= num_classes:
    raise ValueError(f"key_labels must be less than {num_classes}, got {np.max(key_labels)}.")
  return _knn_votes(
    *as_accumulator(queries, keys),
    *_widened(key_labels),
    num_neighbors=min(num_neighbors, np.shape(keys)[0]),
    temperature=temperature,
    num_classes=num_classes,
  )


def supervised_contrastive_loss(
  features: chex.Array, labels: chex.Array, *, temperature: chex.Numeric = 0.1
) -> jax.Array:
  """Pulls every row to all rows of its class, and away from the others.

  The mean over the other rows of the class of the negative log-softmax of similarities. It is
  smallest if each class is a single point, where `leave_one_out_knn_loss` allows several modes.

  Args:
    features: features of any length, `[n, d]`.
    labels: classes, int `[n]`; rows with negative labels are left out, and have loss 0.
    temperature: divides the cosine similarities, > 0.

  Returns:
    Loss per row in nats, `[n]`, in float32 or wider; 0 where no other row has the label.

  Raises:
    ValueError: if `temperature` <= 0 or there is no row.

  Reference: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, equation 2,
  https://arxiv.org/abs/2004.11362.
  """
  check_range("temperature", temperature, "(0, inf)")
  check_arrays(features=(features, "[n, d]"), labels=(labels, "int [n]"))
  check_filled(features=features)
  return _contrastive_losses(as_accumulator(features), *_widened(labels), temperature)


def _check_knn(num_neighbors: int, temperature: chex.Numeric) -> None:
  check_at_least(1, num_neighbors=num_neighbors)
  check_range("temperature", temperature, "(0, inf)")


def _widened(*labels: chex.Array) -> tuple[jax.Array, ...]:
  arrays = map(jnp.asarray, labels)
  return tuple(x.astype(jnp.promote_types(x.dtype, jnp.int32)) for x in arrays)


@compiled_once
def _knn_losses(
  queries,
  keys,
  labels,
  key_labels,
  mask,
  *,
  num_neighbors,
  temperature,
  add_positive,
  leave_one_out,
):
  # What no query may have must not reach a gradient, where 0 times NaN is NaN.
  usable = key_labels >= 0 if mask is None else (key_labels >= 0) & jnp.any(mask, axis=0)
  similarities = _similarity_to(keys, usable, temperature)

  def of_row(row):
    query, label, index, allowed = row
    allowed = usable if allowed is None else usable & allowed
    if leave_one_out:
      allowed &= jnp.arange(len(key_labels)) != index
    similarity = jnp.where(allowed, similarities(query), -jnp.inf)
    voters = _nearest(similarity, num_neighbors)
    votes = similarity[voters]
    right = (key_labels[voters] == label) & (votes > -jnp.inf)
    if add_positive:
      nearest = jnp.max(jnp.where(key_labels == label, similarity, -jnp.inf))
      added = ~jnp.any(right) & (nearest > -jnp.inf)
      votes = jnp.append(votes, jnp.where(added, nearest, -jnp.inf))
      right = jnp.append(right, added)
    # A row that does not count gets equal votes, all of them right: loss 0, without gradient.
    counts = jnp.any(right)
    votes = jnp.where(counts | jnp.isnan(votes), votes, 0.0)
    right |= ~counts
    return jax.nn.logsumexp(votes) - jax.nn.logsumexp(jnp.where(right, votes, -jnp.inf))

  rows = (unit_vectors(queries, _MIN_NORM), labels, jnp.arange(len(labels)), mask)
  return _over_rows(of_row, rows, len(keys))


@compiled_once
def _knn_votes(queries, keys, key_labels, *, num_neighbors, temperature, num_classes):
  usable = key_labels >= 0
  similarities = _similarity_to(keys, usable, temperature)

  def of_row(query):
    similarity = jnp.where(usable, similarities(query), -jnp.inf)
    voters = _nearest(similarity, num_neighbors)
    votes = similarity[voters]
    classes, is_empty = key_labels[voters], jnp.all(votes == -jnp.inf)
    weights = jax.nn.softmax(jnp.where(is_empty, 0.0, votes))
    unknown = jnp.any(jnp.isnan(weights)) | jnp.any((classes >= num_classes) & (weights > 0))
    probs = jnp.zeros(num_classes, weights.dtype).at[classes].add(weights)
    probs = jnp.where(is_empty, 1.0 / num_classes, probs)
    return jnp.where(unknown, jnp.nan, probs)

  return _over_rows(of_row, unit_vectors(queries, _MIN_NORM), len(keys))


@compiled_once
def _contrastive_losses(features, labels, temperature):
  usable = labels >= 0
  similarities = _similarity_to(features, usable, temperature)

  def of_row(row):
    query, label, index = row
    others = usable & (jnp.arange(len(labels)) != index)
    similarity, positive = similarities(query), others & (labels == label)
    num = jnp.sum(positive, dtype=jnp.int32)
    # As above, a row that does not count gets equal similarities.
    counts = num > 0
    similarity = jnp.where(counts | jnp.isnan(similarity), similarity, 0.0)
    log_total = jax.nn.logsumexp(jnp.where(others | ~counts, similarity, -jnp.inf))
    mean = jnp.sum(jnp.where(positive, similarity, 0.0)) / jnp.maximum(num, 1)
    return jnp.where(counts | jnp.isnan(log_total), log_total - mean, 0.0)

  rows = (unit_vectors(features, _MIN_NORM), labels, jnp.arange(len(labels)))
  return _over_rows(of_row, rows, len(labels))


def _similarity_to(keys, usable, temperature) -> Callable[[jax.Array], jax.Array]:
  """The function of a unit vector that gives its similarities to the keys, `[d] -> [m]`."""
  units = unit_vectors(jnp.where(usable[:, None], keys, 0.0), _MIN_NORM)
  return lambda query: jnp.dot(units, query, precision="highest") / temperature


def _nearest(similarity: jax.Array, num: int) -> jax.Array:
  """Indices of the largest similarities, the first ones on ties."""
  similarity = jax.lax.stop_gradient(similarity)
  # In the order of `top_k`, 0 comes before -0.
  return jax.lax.top_k(jnp.where(similarity == 0, 0.0, similarity), num)[1]


def _over_rows(of_row: Callable, rows: chex.ArrayTree, num_keys: int) -> jax.Array:
  """Maps over rows, as many at a time as their pairs with keys may be in memory."""
  size = max(1, _PAIRS // num_keys)
  if size >= len(jax.tree.leaves(rows)[0]):
    return jax.vmap(of_row)(rows)
  return jax.lax.map(jax.checkpoint(of_row, prevent_cse=False), rows, batch_size=size)
