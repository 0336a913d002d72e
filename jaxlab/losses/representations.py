"""Distances between the representations of two encoders."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays


def representation_distance_loss(features: chex.Array, reference: chex.Array) -> jax.Array:
  """Squared distance of a representation to one that does not move.

  It keeps an encoder that is trained on noisy labels near one that never saw them.

  Args:
    features: representations, `[..., d]`.
    reference: those of the other encoder, `[..., d]`; no gradient flows into them.

  Returns:
    `sum_d (features - reference)^2` for each example, `[...]`, float32 or wider.

  Raises:
    ValueError: if the shapes differ.

  Reference: Zhang et al., When Noisy Labels Meet Long Tail Dilemmas, ICCV 2023, section 3,
  https://arxiv.org/abs/2211.10955.
  """
  check_arrays(features=(features, "[..., d]"), reference=(reference, "[..., d]"))
  features, reference = as_accumulator(features, reference)
  return jnp.sum(jnp.square(features - jax.lax.stop_gradient(reference)), axis=-1)
