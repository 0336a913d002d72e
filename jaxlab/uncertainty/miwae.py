"""Predictions that average over imputations of what was not observed."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_choice


def mixture_predictive(
  log_p_y: chex.Array,
  log_w: chex.Array,
  *,
  reduction: Literal["arithmetic", "geometric"] = "arithmetic",
) -> jax.Array:
  """Class probabilities, averaged over completed series by their importance weights.

  Args:
    log_p_y: log-probability of each class given each of J completions of K latent draws,
      `[J, K, b, classes]`.
    log_w: logarithms of the draws' weights, `[J, K, b]`, or `[K, b]` for all completions
      (`losses.importance_log_weights`).
    reduction: of the completions: "arithmetic" averages their probabilities, "geometric" takes the
      geometric mean, whose sum over the classes is below 1.

  Returns:
    Probabilities, float32 or wider, `[b, classes]`.

  Raises:
    ValueError: if `reduction` is unknown or shapes do not agree.

  Reference: Kim et al., Probabilistic Imputation for Time-series Classification with Missing Data,
  ICML 2023, section 3, https://arxiv.org/abs/2308.06738.
  """
  check_choice("reduction", reduction, ("arithmetic", "geometric"))
  form = "[K, b]" if jnp.ndim(log_w) == 2 else "[J, K, b]"
  check_arrays(log_p_y=(log_p_y, "[J, K, b, classes]"), log_w=(log_w, form))
  log_p_y, log_w = as_accumulator(log_p_y, log_w)
  log_w = log_w.reshape(-1, *log_w.shape[-2:])[..., None]
  log_mixture = jax.nn.logsumexp(log_w + log_p_y, axis=1)
  if reduction == "geometric":
    return jnp.exp(jnp.mean(log_mixture, axis=0))
  return jnp.mean(jnp.exp(log_mixture), axis=0)
