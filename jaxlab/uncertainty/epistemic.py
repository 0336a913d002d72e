"""One question for every method: how far is this prediction from the best one, and what is noise?

Any method is then a function `inputs[n, ...] -> ErrorEstimate`, and one table ranks them: by the
order of `epistemic` against the true errors, by `metrics.rejection_ratio`, and by `metrics.auroc`
between familiar and foreign inputs. Two functions make the answer of what a method has::

  def gaussian_process(x_query):  # And a PFN, by `bar_mean` and `bar_variance`.
    mean, variance = gp_posterior(x, y, x_query, noise=0.01)
    return total_error_estimate(mean, variance, 0.01)

  def predicted_error(x_query):  # A network that predicts the squared error of another one.
    total = error_from_target(predict_error(x_query))
    return total_error_estimate(predict(x_query), total, 0.01)

  def ensemble(x_query):
    probs = member_probs(x_query)  # [m, n, k]
    return class_error_estimate(probs.mean(axis=0), ensemble_variance(probs))

  def pairs(x_query):
    joint = pair_log_probs(network(x_query))
    return class_error_estimate(pair_marginal(joint), epistemic_variance(joint))
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_broadcast, check_range
from jaxlab.uncertainty.error_prediction import epistemic_from_error


class ErrorEstimate(NamedTuple):
  """A prediction with the parts of its expected squared error.

  Attributes:
    prediction: real values `[...]`, or probabilities of classes `[..., k]`.
    epistemic: expected squared distance of the prediction from the best one, which more data would
      reduce, `[...]`; of probabilities the sum over classes.
    aleatoric: expected squared distance of the target from the best prediction, which no data
      would reduce, `[...]`.
  """

  prediction: chex.Array
  epistemic: chex.Array
  aleatoric: chex.Array


def total_error_estimate(
  prediction: chex.Array, total: chex.Array, aleatoric: chex.Numeric
) -> ErrorEstimate:
  """The answer of a method that estimates the whole squared error, and knows the noise.

  Methods are Gaussian processes and networks fitted to a prior (variance of the noisy target),
  ensembles of regressions (variance of the members plus noise), and predictors of errors.

  Args:
    prediction: predicted values, `[...]`.
    total: expected squared error of each, noise included, `[...]`.
    aleatoric: variance of the noise, at least 0; a scalar or `[...]`.

  Returns:
    `ErrorEstimate` in float32 or wider, with `epistemic_from_error(total, aleatoric)`.

  Raises:
    ValueError: if a known `aleatoric` is negative or shapes do not agree.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023, section 3,
  https://arxiv.org/abs/2102.08501.
  """
  check_range("aleatoric", aleatoric, "[0, inf]")
  check_arrays(prediction=(prediction, "[...]"), total=(total, "[...]"))
  check_broadcast(aleatoric=aleatoric, total=total)
  prediction, total, aleatoric = as_accumulator(prediction, total, aleatoric)
  aleatoric = jnp.broadcast_to(aleatoric, total.shape)
  return ErrorEstimate(prediction, epistemic_from_error(total, aleatoric), aleatoric)


def class_error_estimate(probs: chex.Array, variance: chex.Array) -> ErrorEstimate:
  """The answer of a method that has probabilities of classes and their variance.

  Methods are pairs of answers (`pair_marginal`, `epistemic_variance`), ensembles and passes with
  dropout (`ensemble_variance`). Probabilities without a variance (0) say that all is noise.

  Args:
    probs: predicted probabilities, `[..., k]`.
    variance: their expected squared distance from the true ones, at least 0, `[..., k]`.

  Returns:
    `ErrorEstimate` in float32 or wider. The squared error of probabilities to a label is expected
    to be `sum_y probs_y (1 - probs_y)`; its epistemic part is the sum of the variances, and the
    rest, at least 0, is noise.

  Raises:
    ValueError: if a known variance is negative or shapes differ.

  Reference: Johnson et al., Experts Don't Cheat: Learning What You Don't Know By Predicting Pairs,
  ICML 2024, section 3, https://arxiv.org/abs/2402.08733.
  """
  check_range("variance", variance, "[0, inf]")
  check_arrays(probs=(probs, "[..., k]"), variance=(variance, "[..., k]"))
  probs, variance = as_accumulator(probs, variance)
  epistemic = jnp.sum(variance, axis=-1)
  total = jnp.sum(probs * (1 - probs), axis=-1)
  return ErrorEstimate(probs, epistemic, jnp.maximum(total - epistemic, 0.0))
