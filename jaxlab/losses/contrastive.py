"""Contrastive losses between two views of a batch, and of pairs that may not belong together."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_flags, check_arrays, check_range, is_known
from jaxlab.losses.adaptation import unit_vectors

_MIN_NORM = 1e-8
# Below this temperature epsilon inside the logarithm would cap the loss.
_SMALL_TEMPERATURE = 0.05


def nt_xent_loss(
  views_a: chex.Array,
  views_b: chex.Array,
  *,
  temperature: chex.Numeric = 0.5,
  epsilon: chex.Numeric = 1e-8,
) -> jax.Array:
  """Normalized, temperature-scaled cross-entropy: finds the other view of a row in the batch.

  `losses.multiview_contrastive_loss` takes any number of views and has no epsilon.

  Args:
    views_a: features of one view, `[b, d]`; scaled to length 1 here. Vectors shorter than 1e-8 are
      divided by 1e-8 and get no gradient.
    views_b: features of the other view of the same rows, `[b, d]`.
    temperature: divides the cosine similarities, > 0.
    epsilon: added to the sum over the other views and to the probability inside the logarithm, at
      least 0. A known temperature below 0.05 leaves it out, since it would cap the loss.

  Returns:
    Loss per view in nats, first those of `views_a`, then those of `views_b`, `[2b]`, in float32 or
    wider.

  Raises:
    ValueError: if `temperature` <= 0 or `epsilon` < 0.

  Reference: Chen et al., A Simple Framework for Contrastive Learning of Visual Representations,
  ICML 2020, equation 1, https://arxiv.org/abs/2002.05709; the epsilons are those of Du et al.,
  ICCV 2023, https://arxiv.org/abs/2308.11874.
  """
  check_range("temperature", temperature, "(0, inf)")
  check_range("epsilon", epsilon, "[0, inf)")
  check_arrays(views_a=(views_a, "[b, d]"), views_b=(views_b, "[b, d]"))
  vectors = unit_vectors(jnp.concatenate(as_accumulator(views_a, views_b)), _MIN_NORM)
  num_rows = vectors.shape[0]
  similarities = vectors @ vectors.T / temperature
  similarities = jnp.where(jnp.eye(num_rows, dtype=bool), -jnp.inf, similarities)
  partner = (jnp.arange(num_rows) + num_rows // 2) % max(num_rows, 1)
  positive = jnp.take_along_axis(similarities, partner[:, None], axis=1)[:, 0]
  if is_known(temperature) and temperature < _SMALL_TEMPERATURE:
    return jax.nn.logsumexp(similarities, axis=1) - positive
  # Of the largest term, so that a traced temperature may be small.
  largest = jax.lax.stop_gradient(jnp.max(similarities, axis=1))
  total = jnp.sum(jnp.exp(similarities - largest[:, None]), axis=1) + epsilon * jnp.exp(-largest)
  return -jnp.log(jnp.exp(positive - largest) / total + epsilon)


def pair_logistic_loss(
  features: chex.Array, other_features: chex.Array, is_positive: chex.Array
) -> jax.Array:
  """Logistic loss of whether two inputs were drawn together, from the product of their features.

  At the minimum the product is the log-ratio of their joint density to the product of the single
  ones, which determines features up to a rotation.

  Args:
    features: of one input of each pair, `[b, r]`.
    other_features: of the other, `[b, r]`.
    is_positive: 1 (or True) for a pair that was drawn together, 0 for two independent inputs,
      `[b]`.

  Returns:
    Loss per pair in nats, float32 or wider `[b]`; NaN where `is_positive` of a JAX array is neither
    0 nor 1.

  Raises:
    ValueError: if a known `is_positive` is neither 0 nor 1, or the shapes do not fit.

  Reference: Ge et al., On the Provable Advantage of Unsupervised Pretraining, ICLR 2024,
  https://arxiv.org/abs/2303.01566.
  """
  check_arrays(
    features=(features, "[b, r]"),
    other_features=(other_features, "[b, r]"),
    is_positive=(is_positive, "[b]"),
  )
  positive, labeled = as_flags("is_positive", is_positive)
  features, other_features = as_accumulator(features, other_features)
  logits = jnp.sum(features * other_features, axis=1)
  return jnp.where(labeled, jax.nn.softplus(jnp.where(positive, -logits, logits)), jnp.nan)
