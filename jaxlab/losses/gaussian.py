"""The loss of a prediction that comes with its own variance."""

import math

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range

_MIN_VARIANCE = 1e-6


def gaussian_nll(
  mean: chex.Array, variance: chex.Array, targets: chex.Array, *, include_constant: bool = True
) -> jax.Array:
  """Negative log-density of a normal distribution.

  Its minimizer is the conditional mean and variance, both together.

  Args:
    mean: predicted means, `[...]`.
    variance: predicted variances, not negative, `[...]`. Those below 1e-6 count as 1e-6 and get no
      gradient.
    targets: `[...]`; gradients flow into them, too.
    include_constant: whether `log(2 pi) / 2` is added.

  Returns:
    Nats per value, `[...]`, in float32 or wider.

  Raises:
    ValueError: if a known variance is negative.

  Reference: Nix and Weigend, Estimating the Mean and Variance of the Target Probability
  Distribution, 1994, https://doi.org/10.1109/ICNN.1994.374138; Liu et al., Towards Better
  Understanding of In-Context Learning Ability from In-Context Uncertainty Quantification, 2024,
  https://arxiv.org/abs/2405.15115.
  """
  check_arrays(mean=(mean, "[...]"), variance=(variance, "[...]"), targets=(targets, "[...]"))
  check_range("variance", variance, "[0, inf]")
  mean, variance, targets = as_accumulator(mean, variance, targets)
  # Not `maximum`, which XLA on CPU lets lose NaN where it is fused with a sum.
  variance = jnp.where(variance < _MIN_VARIANCE, _MIN_VARIANCE, variance)
  loss = 0.5 * (jnp.square(targets - mean) / variance + jnp.log(variance))
  return loss + 0.5 * math.log(2 * math.pi) if include_constant else loss
