"""Importance-weighted objectives of generative models of incomplete data, with a classifier."""

import math

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays


def importance_log_weights(
  log_p_x: chex.Array,
  log_p_z: chex.Array,
  log_q_z: chex.Array,
  *,
  log_p_dropout: chex.Array | None = None,
) -> jax.Array:
  """Normalized importance weights of latent draws, given what was observed.

  A draw from q counts by `p(x_obs | z) p(z) / q(z)`, times the probability of what random dropout
  left of the observations, if there was dropout.

  Args:
    log_p_x: log-density of the observed values given each draw, `[K, b]`.
    log_p_z: prior log-density of the draws, `[K, b]`.
    log_q_z: log-density of the draws under the encoder, `[K, b]`.
    log_p_dropout: log-probability of the dropout, `[J, K, b]`; None for no dropout.

  Returns:
    Logarithms of weights that sum to 1 over the K draws, float32 or wider, `[K, b]`, or `[J, K, b]`
    with dropout.

  Raises:
    ValueError: if shapes do not agree.

  Reference: Kim et al., Probabilistic Imputation for Time-series Classification with Missing Data,
  ICML 2023, section 3, https://arxiv.org/abs/2308.06738.
  """
  return jax.nn.log_softmax(_log_ratios(log_p_x, log_p_z, log_q_z, log_p_dropout), axis=-2)


def supervised_not_miwae_loss(
  log_p_y: chex.Array,
  log_p_mask: chex.Array,
  log_p_x: chex.Array,
  log_p_z: chex.Array,
  log_q_z: chex.Array,
  *,
  log_p_dropout: chex.Array | None = None,
) -> jax.Array:
  """Minus the importance-weighted bound on the likelihood of label, mask and observations.

  The bound has K latent draws, and is averaged over J completions. No gradient is stopped.

  Args:
    log_p_y: log-probability of the label given each completed series, `[J, K, b]`.
    log_p_mask: log-probability of the mask given each completed series, `[J, K, b]`.
    log_p_x: as for `importance_log_weights`, `[K, b]`.
    log_p_z: `[K, b]`.
    log_q_z: `[K, b]`.
    log_p_dropout: `[J, K, b]`, or None.

  Returns:
    Loss in nats, float32 or wider, `[b]`:
    `-mean_J [logsumexp_K(log_p_y + log_p_mask + log of the unnormalized weights) - log K]`.

  Raises:
    ValueError: if shapes do not agree.

  Reference: as `importance_log_weights`; Ipsen et al., not-MIWAE, ICLR 2021,
  https://arxiv.org/abs/2006.12871.
  """
  check_arrays(
    log_p_x=(log_p_x, "[K, b]"),
    log_p_y=(log_p_y, "[J, K, b]"),
    log_p_mask=(log_p_mask, "[J, K, b]"),
  )
  ratios = _log_ratios(log_p_x, log_p_z, log_q_z, log_p_dropout)
  ratios = ratios.reshape(-1, *ratios.shape[-2:])
  log_p_y, log_p_mask = as_accumulator(log_p_y, log_p_mask)
  bounds = jax.nn.logsumexp(log_p_y + log_p_mask + ratios, axis=1)
  return math.log(jnp.shape(log_p_x)[0]) - jnp.mean(bounds, axis=0)


def _log_ratios(log_p_x, log_p_z, log_q_z, log_p_dropout) -> jax.Array:
  """Logarithms of unnormalized weights, `[K, b]` or `[J, K, b]`."""
  check_arrays(
    log_p_x=(log_p_x, "[K, b]"),
    log_p_z=(log_p_z, "[K, b]"),
    log_q_z=(log_q_z, "[K, b]"),
    log_p_dropout=(log_p_dropout, "[J, K, b]"),
  )
  log_p_x, log_p_z, log_q_z = as_accumulator(log_p_x, log_p_z, log_q_z)
  ratios = log_p_x + log_p_z - log_q_z
  return ratios if log_p_dropout is None else ratios[None] + as_accumulator(log_p_dropout)
