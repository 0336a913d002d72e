"""Votes among the answers of samples: accuracy with ties, calibration, error by their number."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_flags, check_arrays, check_filled, check_range
from jaxlab._programs import num_earlier_equal
from jaxlab.metrics.calibration import confidence_calibration_error


def vote_accuracy(confidence: chex.Array, answers: chex.Array, targets: chex.Array) -> jax.Array:
  """Whether the answer of the highest confidence is right; tied answers share the credit.

  Args:
    confidence: confidence in the answer of each of n samples, `[..., n]`, n >= 1.
    answers: their answers, int `[..., n]`; negative ones never win.
    targets: right answers, int `[...]`.

  Returns:
    1 over the number of distinct tied answers if the right one is among them, and else 0, `[...]`,
    in float32 or wider; 0 without a valid answer, NaN with a confidence of NaN.

  Raises:
    TypeError: if answers or targets are not integers.
    ValueError: if there are no samples or shapes differ.

  Reference: Zhou et al., Bridging Internal Probability and Self-Consistency for Effective and
  Efficient LLM Reasoning, NeurIPS 2025, https://arxiv.org/abs/2502.00511.
  """
  return _vote(confidence, answers, targets)[0]


def vote_calibration_error(
  confidence: chex.Array, answers: chex.Array, targets: chex.Array, *, num_bins: int = 10
) -> jax.Array:
  """Expected calibration error of the answers of the highest confidence.

  All problems have the same weight, which tied answers share. A problem without a valid answer is
  wrong with confidence 0.

  Args:
    confidence: confidence in the answer of each of n samples, `[..., n]`, n >= 1.
    answers: their answers, int `[..., n]`; negative ones never win.
    targets: right answers, int `[...]`.
    num_bins: number of bins of equal width, closed on the right.

  Returns:
    The error in [0, 1], a scalar in float32 or wider.

  Raises:
    TypeError: if answers or targets are not integers.
    ValueError: if there are no samples or problems, shapes differ, or `num_bins` < 1.

  Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 5,
  https://arxiv.org/abs/1706.04599; Zhou et al., NeurIPS 2025, https://arxiv.org/abs/2502.00511.
  """
  accuracy, best = _vote(confidence, answers, targets)
  return confidence_calibration_error(best.ravel(), accuracy.ravel(), num_bins=num_bins)


def _vote(confidence, answers, targets) -> tuple[jax.Array, jax.Array]:
  """Accuracy of the winning answers, and their confidence, each `[...]`."""
  check_arrays(
    answers=(answers, "int [..., n]"),
    confidence=(confidence, "[..., n]"),
    targets=(targets, "int [...]"),
  )
  check_filled(answers=answers)
  confidence = as_accumulator(confidence)
  answers, targets = jnp.asarray(answers), jnp.asarray(targets)
  valid = answers >= 0
  any_valid = jnp.any(valid, axis=-1)
  best = jnp.max(jnp.where(valid, confidence, -jnp.inf), axis=-1)
  tied = valid & (confidence == best[..., None])
  num_tied = jnp.sum(tied & (num_earlier_equal(answers, tied) == 0), axis=-1)
  hit = jnp.any(tied & (answers == targets[..., None]), axis=-1)
  accuracy = hit.astype(best.dtype) / jnp.maximum(num_tied, 1)
  best = jnp.where(any_valid, best, 0.0)
  unknown = jnp.any(jnp.isnan(confidence), axis=-1)
  return jnp.where(unknown, jnp.nan, accuracy), jnp.where(unknown, jnp.nan, best)


def self_consistency_error(
  p: chex.Numeric, indicator: chex.Numeric, *, num_samples: chex.Numeric
) -> jax.Array:
  """Squared error of an answer's frequency among n samples, as an estimate of its correctness.

  Args:
    p: probability of the answer under the model, in [0, 1]; the arguments are broadcast.
    indicator: whether the answer is right, bool or 0 and 1.
    num_samples: number n of samples, at least 1.

  Returns:
    `p (1 - p) / n + (p - indicator)^2`, estimation error and model error, in float32 or wider;
    NaN where an indicator in a JAX array is neither 0 nor 1.

  Raises:
    ValueError: if `p` lies outside [0, 1], `num_samples` < 1, or a known indicator is neither 0 nor
      1.

  Reference: Zhou et al., NeurIPS 2025, https://arxiv.org/abs/2502.00511.
  """
  p, indicator, num_samples = _broadcast(p, indicator, num_samples)
  return p * (1.0 - p) / num_samples + jnp.square(p - indicator)


def perplexity_error(
  p: chex.Numeric, indicator: chex.Numeric, *, num_samples: chex.Numeric
) -> jax.Array:
  """Squared error of a path's probability, as an estimate of its correctness.

  The estimate is 0 as long as the path is not among the n samples.

  Args:
    p: probability of the path under the model, in [0, 1]; the arguments are broadcast.
    indicator: whether the path's answer is right, bool or 0 and 1.
    num_samples: number n of samples, at least 1.

  Returns:
    `(1 - p)^n p (2 indicator - p) + (p - indicator)^2`, estimation error and model error, in
    float32 or wider; NaN where an indicator in a JAX array is neither 0 nor 1.

  Raises:
    ValueError: if `p` lies outside [0, 1], `num_samples` < 1, or a known indicator is neither 0 nor
      1.

  Reference: Zhou et al., NeurIPS 2025, https://arxiv.org/abs/2502.00511.
  """
  p, indicator, num_samples = _broadcast(p, indicator, num_samples)
  missed = jnp.power(1.0 - p, num_samples)
  return missed * p * (2.0 * indicator - p) + jnp.square(p - indicator)


def _broadcast(p, indicator, num_samples) -> list[jax.Array]:
  check_range("p", p, "[0, 1]")
  check_range("num_samples", num_samples, "[1, inf)")
  is_right, is_flag = as_flags("indicator", indicator)
  p, num_samples = as_accumulator(p, num_samples)
  return jnp.broadcast_arrays(p, jnp.where(is_flag, is_right, jnp.nan), num_samples)
