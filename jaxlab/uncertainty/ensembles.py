"""Pooling one model's predictions over prompts or demonstrations, and calibrating label scores.

Members are runs of the same model on variations of its input. Their probabilities `[m, b, k]` over
k labels are pooled by mean, by maximum or by vote.
"""

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


class EnsemblePrediction(NamedTuple):
  """The prediction of an ensemble.

  Attributes:
    predictions: predicted class, int32 `[b]`.
    probs: probabilities of the classes, float32 (or wider) `[b, k]`.
  """

  predictions: chex.Array
  probs: chex.Array


class BatchCalibrationState(NamedTuple):
  """Running statistics of label scores.

  Attributes:
    mean: `[k]`.
    var: variance with the n - 1 denominator, `[k]`.
    count: number of updates so far, int32 scalar.
  """

  mean: chex.Array
  var: chex.Array
  count: chex.Array


def mean_probability(probs: chex.Array) -> EnsemblePrediction:
  """Averages the members' probabilities.

  Where members disagree, the mean is less confident than they are. Its NLL is at most the mean of
  the members' NLLs.

  Args:
    probs: probabilities of m members, `[m, b, k]`; rows sum to 1, up to rounding.

  Returns:
    The class with the largest mean (the first on ties) and the means, rescaled to sum to 1; a row
    of zeros stays 0.

  Raises:
    ValueError: if there are no members or no classes.

  Reference: Li et al., On Task Performance and Model Calibration with Supervised and
  Self-Ensembled In-Context Learning, 2023, https://arxiv.org/abs/2312.13772.
  """
  return _normalized(jnp.mean(_members(probs), axis=0))


def max_probability(probs: chex.Array) -> EnsemblePrediction:
  """Takes for each class the largest probability that any member gives it.

  Args:
    probs: probabilities of m members, `[m, b, k]`; rows sum to 1, up to rounding.

  Returns:
    The class with the largest maximum (the first on ties) and the maxima, rescaled to sum to 1; a
    row of zeros stays 0.

  Raises:
    ValueError: as in `mean_probability`.

  Reference: Li et al., 2023, https://arxiv.org/abs/2312.13772.
  """
  return _normalized(jnp.max(_members(probs), axis=0))


def _members(probs) -> jax.Array:
  check_arrays(probs=(probs, "[m, b, k]"))
  members, _, classes = jnp.shape(probs)
  check_at_least(1, members=members, classes=classes)
  return as_accumulator(probs)


def _normalized(scores) -> EnsemblePrediction:
  total = jnp.sum(scores, axis=-1, keepdims=True)
  probs = scores / jnp.where(total == 0, 1, total)
  return EnsemblePrediction(jnp.argmax(scores, axis=-1).astype(jnp.int32), probs)


def vote_probability(probs: chex.Array, *, weighted: bool = False) -> EnsemblePrediction:
  """Majority vote of the members, with the mean probabilities of those who voted for the winner.

  Args:
    probs: probabilities of m members, `[m, b, k]`. A member votes for its most probable class (the
      first on ties).
    weighted: whether a vote is weighted by its member's largest probability.

  Returns:
    The class with most votes (on ties, the class of the first member that voted for one of them)
    and the mean of its voters' probabilities, whose argmax may be another class.

  Raises:
    ValueError: as in `mean_probability`.

  Reference: Li et al., 2023, https://arxiv.org/abs/2312.13772.
  """
  probs = _members(probs)
  votes = jnp.argmax(probs, axis=-1)
  ballots = jax.nn.one_hot(votes, probs.shape[-1], dtype=probs.dtype)
  weights = jnp.max(probs, axis=-1) if weighted else jnp.ones(votes.shape, probs.dtype)
  scores = jnp.sum(ballots * weights[..., None], axis=0)
  leads = scores == jnp.max(scores, axis=-1, keepdims=True)
  voted_for_leader = jnp.take_along_axis(leads[None], votes[..., None], axis=-1)[..., 0]
  first = jnp.argmax(voted_for_leader, axis=0)
  winner = jnp.take_along_axis(votes, first[None], axis=0)[0]
  voters = (votes == winner[None]).astype(probs.dtype)[..., None]
  mean = jnp.sum(voters * probs, axis=0) / jnp.sum(voters, axis=0)
  return EnsemblePrediction(winner.astype(jnp.int32), mean)


def batch_calibration(
  logits: chex.Array,
  *,
  mean: chex.Array | None = None,
  std: chex.Array | None = None,
  demean_only: bool = False,
) -> chex.Array:
  """Standardizes the scores of each label over a batch, without any true label.

  A prompt that favors a label favors it for all inputs, so that the bias is the common part of a
  label's scores.

  Args:
    logits: label scores of n inputs, `[n, k]`.
    mean: mean of another batch, `[k]`; None takes that of this batch.
    std: standard deviation of another batch, `[k]`; None takes that of this batch.
    demean_only: whether only the mean is subtracted; `std` is then ignored.

  Returns:
    `(logits - mean) / std` with the n - 1 denominator in `std`, `[n, k]`, float32 or wider. Where
    the deviation is 0 the column is 0.

  Raises:
    ValueError: if a statistic of this batch is needed and n < 2, or a known `std` is negative.

  Reference: Li et al., 2023, https://arxiv.org/abs/2312.13772; the idea is that of Zhou et al.,
  Batch Calibration, ICLR 2024, https://arxiv.org/abs/2309.17249.
  """
  check_arrays(logits=(logits, "[n, k]"), mean=(mean, "[k]"), std=(std, "[k]"))
  if std is not None:
    check_range("std", std, "[0, inf]")
  logits = _scores(logits, minimum=2 if mean is None or (std is None and not demean_only) else 0)
  centered = _centered(logits) if mean is None else logits - as_accumulator(mean)[None]
  if demean_only:
    return centered
  if std is None:
    variance = _variance(logits)
    # The root's slope at 0 is infinite.
    std = jnp.where(variance == 0, 0.0, jnp.sqrt(jnp.where(variance == 0, 1.0, variance)))
  std = as_accumulator(std)[None]
  return jnp.where(std == 0, 0.0, centered / jnp.where(std == 0, 1.0, std))


def _scores(logits, *, minimum: int) -> jax.Array:
  if jnp.shape(logits)[0] < minimum:
    raise ValueError(f"statistics need at least 2 rows of logits, got {jnp.shape(logits)[0]}.")
  return as_accumulator(logits)


def _centered(logits) -> jax.Array:
  # The mean of equal numbers may differ from them by rounding; the mean of differences is 0.
  shifted = logits - logits[:1]
  return shifted - jnp.mean(shifted, axis=0, keepdims=True)


def _variance(logits) -> jax.Array:
  return jnp.sum(jnp.square(_centered(logits)), axis=0) / (logits.shape[0] - 1)


def batch_calibration_init(*, num_classes: int) -> BatchCalibrationState:
  """Statistics before the first batch: mean 0 and variance 1, which do not change scores.

  Args:
    num_classes: number k of labels.

  Returns:
    A `BatchCalibrationState` with count 0.

  Raises:
    ValueError: if `num_classes` is not positive.

  Reference: Li et al., 2023, https://arxiv.org/abs/2312.13772.
  """
  check_at_least(1, num_classes=num_classes)
  return BatchCalibrationState(jnp.zeros(num_classes), jnp.ones(num_classes), jnp.int32(0))


def batch_calibration_update(
  state: BatchCalibrationState, logits: chex.Array, *, momentum: chex.Numeric = 0.1
) -> BatchCalibrationState:
  """Moves the statistics toward those of a batch; the first batch is copied.

  To calibrate a stream of scores, call `batch_calibration(logits, mean=state.mean,
  std=jnp.sqrt(state.var))`.

  Args:
    state: statistics so far.
    logits: label scores of n inputs, `[n, k]`.
    momentum: share of the new batch, in [0, 1].

  Returns:
    The new `BatchCalibrationState`.

  Raises:
    ValueError: if `momentum` lies outside [0, 1] or n < 2.

  Reference: Li et al., 2023, https://arxiv.org/abs/2312.13772.
  """
  check_range("momentum", momentum, "[0, 1]")
  check_arrays(logits=(logits, f"[n, {jnp.shape(state.mean)[0]}]"))
  logits = _scores(logits, minimum=2)
  share = jnp.where(state.count == 0, 1.0, momentum)
  mean = logits[0] + jnp.mean(logits - logits[:1], axis=0)

  def moved(old, new):
    return ((1 - share) * old + share * new).astype(old.dtype)

  return BatchCalibrationState(
    moved(state.mean, mean), moved(state.var, _variance(logits)), state.count + 1
  )


def verbalizer_logits(
  token_logits: chex.Array, token_ids: chex.Array, token_mask: chex.Array
) -> chex.Array:
  """Scores labels by the tokens of their words, from one forward pass.

  Answer position t scores token t of every label, so that no label is fed back. The mean makes
  labels of different lengths comparable. Class probabilities are the softmax over labels.

  Args:
    token_logits: scores of the vocabulary at T' answer positions, `[b, T', v]`.
    token_ids: tokens of the k labels, padded, int `[k, T]` with T <= T'.
    token_mask: which tokens are valid, bool `[k, T]`. A label without a valid token scores 0 if the
      mask is a JAX array.

  Returns:
    Mean of the valid tokens' scores, `[b, k]`, float32 or wider; NaN where a valid token in a JAX
    array lies outside the vocabulary.

  Raises:
    ValueError: if T > T', a known mask leaves a label without a valid token, or a known valid token
      lies outside the vocabulary.

  Reference: Li et al., 2023, https://arxiv.org/abs/2312.13772.
  """
  check_arrays(
    token_logits=(token_logits, "[b, positions, v]"),
    token_ids=(token_ids, "int [k, T]"),
    token_mask=(token_mask, "[k, T]"),
  )
  shape, ids_shape = jnp.shape(token_logits), jnp.shape(token_ids)
  if ids_shape[1] > shape[1]:
    raise ValueError(f"token_logits must have {ids_shape[1]} positions or more, got {shape[1]}.")
  _check_label_tokens(token_ids, token_mask, shape[2])
  mask = jnp.asarray(token_mask, bool)
  ids = as_classes("token_ids", jnp.where(mask, jnp.asarray(token_ids), 0), shape[2])
  scores = jnp.take_along_axis(as_accumulator(token_logits)[:, : ids_shape[1]], ids.T[None], axis=2)
  total = jnp.sum(jnp.where(mask.T[None], scores, 0.0), axis=1)
  return total / jnp.maximum(jnp.sum(mask, axis=1), 1)[None]


def _check_label_tokens(token_ids, token_mask, vocab_size: int) -> None:
  if not is_known(token_mask):
    return
  mask = np.asarray(token_mask, bool)
  if not mask.any(axis=1).all():
    raise ValueError(f"label {np.argmin(mask.any(axis=1))} of token_mask has no valid token.")
  if not is_known(token_ids):
    return
  valid = np.asarray(token_ids)[mask]
  if ((valid < 0) | (valid >= vocab_size)).any():
    raise ValueError(
      f"token_ids must lie in [0, {vocab_size}), got {valid.min()} to {valid.max()}."
    )
