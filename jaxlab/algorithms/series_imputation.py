"""Joint training of a generative model of incomplete series and a classifier of its completions."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least, check_range
from jaxlab.augment.missing import decay_impute, observation_dropout
from jaxlab.losses.miwae import importance_log_weights, supervised_not_miwae_loss


class MIWAEOutput(NamedTuple):
  """Loss, predictions and completions.

  Attributes:
    loss: in nats, `[b]`.
    log_p_y: log-probabilities of the classes given each completion, `[J, K, b, classes]`.
    log_w: logarithms of the importance weights of the K latent draws, `[J, K, b]`.
    imputed: completed series, `[J, K, b, T, C]`.
  """

  loss: chex.Array
  log_p_y: chex.Array
  log_w: chex.Array
  imputed: chex.Array


def not_miwae_objective(
  key: chex.PRNGKey,
  encode_fn: Callable[[chex.Array, chex.Array], tuple[chex.Array, chex.Array]],
  decode_fn: Callable[[chex.Array, chex.Array], tuple[chex.Array, chex.Array]],
  missing_fn: Callable[[chex.Array], chex.Array],
  classify_fn: Callable[[chex.Array, chex.Array, chex.Array | None], chex.Array],
  prior_log_prob_fn: Callable[[chex.Array], chex.Array],
  values: chex.Array,
  mask: chex.Array,
  times: chex.Array,
  labels: chex.Array | None,
  *,
  num_latents: int = 10,
  num_samples: int = 1,
  dropout_rate: chex.Numeric = 0.4,
  rate: chex.Array,
  bias: chex.Array,
  lengths: chex.Array | None = None,
) -> MIWAEOutput:
  """Completes incomplete series several times, classifies each, and weighs the results.

  Latent series are drawn from the encoder, and completions from the decoder; observed values fade
  into these (`augment.decay_impute`). While training, some observed values are dropped before that,
  or the classifier would learn to do without the imputations. The model of the mask sees completed
  values, since these may decide what is missing. The callables are calls of networks
  (`models.SeriesEncoder` and others) with their parameters closed over.

  Args:
    key: random key.
    encode_fn: `(values with 0 for missing ones [b, T, C], times) -> (mean, std) [b, T, d]` of the
      latent series.
    decode_fn: `(z [K, b, T, d], times) -> (mean, std) [K, b, T, C]` of the values.
    missing_fn: `(completed [J, K, b, T, C]) -> log-odds [J, K, b, T, C]` of being kept.
    classify_fn: `(completed, times, lengths) -> log-probabilities [J, K, b, classes]`.
    prior_log_prob_fn: `(z [K, b, T, d]) -> log-density [K, b]`.
    values: series, `[b, T, C]`; missing values are never read.
    mask: which values are observed, bool `[b, T, C]`.
    times: `[b, T]`.
    labels: classes, int `[b]`; None for predictions: no dropout, and the loss is 0.
    num_latents: number K of latent series.
    num_samples: number J of completions of each.
    dropout_rate: probability that an observed value is dropped, in [0, 1).
    rate: of the decay, `[C]`; starts at 0.
    bias: of the decay, `[C]`; starts at 0.05, and is kept at 0 or above.
    lengths: number of steps of each series, int `[b]`, in [1, T]; None for T. Later ones count as
      missing, and have no mask to be modeled.

  Returns:
    A `MIWAEOutput`. A series of which nothing is observed has a finite loss.

  Raises:
    ValueError: if `num_latents` or `num_samples` < 1, `dropout_rate` lies outside [0, 1), shapes do
      not agree, or a known label is no class.

  Reference: Kim et al., Probabilistic Imputation for Time-series Classification with Missing Data,
  ICML 2023, section 3, https://arxiv.org/abs/2308.06738. The prior and the encoder's density both
  count all steps, of which the release leaves padded ones out of the second alone; the labels are
  categorical, where the release has one sigmoid output.
  """
  check_at_least(1, num_latents=num_latents, num_samples=num_samples)
  check_range("dropout_rate", dropout_rate, "[0, 1)")
  check_arrays(
    values=(values, "float [b, T, C]"),
    mask=(mask, "bool [b, T, C]"),
    times=(times, "[b, T]"),
    labels=(labels, "int [b]"),
    rate=(rate, "[C]"),
    bias=(bias, "[C]"),
    lengths=(lengths, "int [b]"),
  )
  values, times, mask = as_accumulator(values), jnp.asarray(times), jnp.asarray(mask)
  batch, length, _ = values.shape
  draws = num_samples, num_latents
  inside = jnp.ones((1, length, 1), bool)
  if lengths is not None:
    check_range("lengths", lengths, f"[1, {length}]")
    inside = (jnp.arange(length)[None] < jnp.asarray(lengths)[:, None])[..., None]
  mask = mask & inside
  values = jnp.where(mask, values, 0.0)
  latent_key, value_key, dropout_key = jax.random.split(key, 3)

  mean, std = as_accumulator(*encode_fn(values, times))
  noise = jax.random.normal(latent_key, (num_latents, *mean.shape), mean.dtype)
  z = mean[None] + std[None] * noise
  log_q_z = jnp.sum(_normal_log_prob(noise) - jnp.log(std)[None], axis=(-2, -1))
  log_p_z = as_accumulator(prior_log_prob_fn(z))

  mean, std = as_accumulator(*decode_fn(z, times))
  # Double where: a tiny deviation at a missing place must not spoil the gradient.
  distance = jnp.where(mask[None], (values[None] - mean) / std, 0.0)
  log_p_x = jnp.where(mask[None], _normal_log_prob(distance) - jnp.log(std), 0.0)
  log_p_x = jnp.sum(log_p_x, axis=(-2, -1))
  noise = jax.random.normal(value_key, (*draws, *values.shape), mean.dtype)
  samples = mean[None] + std[None] * noise

  log_p_dropout, kept = None, jnp.broadcast_to(mask, samples.shape)
  if labels is not None:
    kept, log_p_dropout = observation_dropout(dropout_key, mask, rate=dropout_rate, num_draws=draws)
  imputed = decay_impute(
    jnp.broadcast_to(values, samples.shape),
    samples,
    kept,
    jnp.broadcast_to(times, samples.shape[:-1]),
    rate=rate,
    bias=bias,
  )
  log_probs = as_accumulator(classify_fn(imputed, times, lengths))
  terms = log_p_x, log_p_z, log_q_z
  log_w = importance_log_weights(*terms, log_p_dropout=log_p_dropout)
  log_w = jnp.broadcast_to(log_w, (*draws, batch))
  if labels is None:
    return MIWAEOutput(jnp.zeros_like(log_p_x[0]), log_probs, log_w, imputed)

  logits = as_accumulator(missing_fn(imputed))
  log_p_mask = jax.nn.log_sigmoid(jnp.where(kept, logits, -logits))
  log_p_mask = jnp.sum(jnp.where(inside, log_p_mask, 0.0), axis=(-2, -1))
  classes = as_classes("labels", labels, log_probs.shape[-1])
  classes = jnp.broadcast_to(classes, (*draws, batch))[..., None]
  log_p_y = jnp.take_along_axis(log_probs, classes, axis=-1)[..., 0]
  loss = supervised_not_miwae_loss(log_p_y, log_p_mask, *terms, log_p_dropout=log_p_dropout)
  return MIWAEOutput(loss, log_probs, log_w, imputed)


def _normal_log_prob(distance: jax.Array) -> jax.Array:
  return -(jnp.square(distance) + jnp.log(2 * jnp.pi)) / 2
