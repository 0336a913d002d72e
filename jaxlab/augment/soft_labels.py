"""Guessed labels of unlabeled examples: sharpened, averaged over views, aligned with a prior."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_filled, check_range


def sharpen(probs: chex.Array, *, temperature: chex.Numeric = 0.5) -> jax.Array:
  """Lowers the entropy of predictions: p^(1/T), normalized.

  Args:
    probs: probabilities, `[..., k]`; gradients flow into them.
    temperature: T > 0; 1 changes nothing, and near 0 only the top class is left.

  Returns:
    Probabilities, `[..., k]`, in float32 or wider; NaN for a row of zeros.

  Raises:
    ValueError: if `temperature` <= 0.

  Reference: Berthelot et al., MixMatch, NeurIPS 2019, equation 7,
  https://arxiv.org/abs/1905.02249.
  """
  check_range("temperature", temperature, "(0, inf)")
  check_arrays(probs=(probs, "[..., k]"))
  probs = as_accumulator(probs)
  absent = probs <= 0
  logs = jnp.where(absent, -jnp.inf, jnp.log(jnp.where(absent, 1.0, probs)))
  return jax.nn.softmax(logs / temperature, axis=-1)


def guess_labels(probs: chex.Array, *, temperature: chex.Numeric = 0.5) -> jax.Array:
  """One guess for all views of an example: their mean prediction, sharpened.

  Args:
    probs: probabilities of a views of n examples, `[a, n, k]`; gradients flow into them, so stop
      those of a target.
    temperature: of `sharpen`, > 0.

  Returns:
    Probabilities, `[n, k]`, in float32 or wider.

  Raises:
    ValueError: if `temperature` <= 0 or there is no view.

  Reference: Berthelot et al., MixMatch, NeurIPS 2019, equation 6,
  https://arxiv.org/abs/1905.02249.
  """
  check_arrays(probs=(probs, "[a, n, k]"))
  check_filled(probs=probs)
  return sharpen(jnp.mean(as_accumulator(probs), axis=0), temperature=temperature)


def align_distribution(
  probs: chex.Array,
  model_mean: chex.Array,
  target_mean: chex.Array,
  *,
  epsilon: chex.Numeric = 1e-6,
) -> jax.Array:
  """Corrects predictions for classes that the model predicts too often or too seldom.

  Args:
    probs: probabilities, `[..., k]`; gradients flow into them.
    model_mean: the model's mean prediction on recent batches, `[k]`, such as
      `algorithms.distribution_queue` keeps it; with epsilon 0 only its direction matters.
    target_mean: frequencies of the classes, `[k]`.
    epsilon: added to both means, at least 0.

  Returns:
    `probs * (target_mean + epsilon) / (model_mean + epsilon)`, normalized, `[..., k]`, in float32
    or wider. A class of mean 0 and epsilon 0 has no part. A row of which nothing is left stays as
    given.

  Raises:
    ValueError: if `epsilon` < 0.

  Reference: Berthelot et al., ReMixMatch, ICLR 2020, section 3.1, https://arxiv.org/abs/1911.09785.
  """
  check_range("epsilon", epsilon, "[0, inf)")
  check_arrays(
    probs=(probs, "[..., k]"), model_mean=(model_mean, "[k]"), target_mean=(target_mean, "[k]")
  )
  probs, model, target = as_accumulator(probs, model_mean, target_mean)
  model, target = model + epsilon, target + epsilon
  ratio = jnp.where(model == 0, 0.0, target / jnp.where(model == 0, 1.0, model))
  scaled = probs * jnp.expand_dims(ratio, tuple(range(probs.ndim - 1)))
  total = jnp.sum(scaled, axis=-1, keepdims=True)
  return jnp.where(total == 0, probs, scaled / jnp.where(total == 0, 1.0, total))
