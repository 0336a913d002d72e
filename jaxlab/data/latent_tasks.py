"""Tasks whose labels depend on hidden variables of the inputs, which unlabeled inputs reveal."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least, check_range


class FactorTask(NamedTuple):
  """Inputs `[n, d]`, targets `[n]` and the hidden factors `[n, r]`."""

  inputs: chex.Array
  targets: chex.Array
  latents: chex.Array


class MixtureTask(NamedTuple):
  """Inputs `[n, d]`, labels 0 and 1, int32 `[n]`, and the hidden components, int32 `[n]`."""

  inputs: chex.Array
  labels: chex.Array
  components: chex.Array


def sample_factor_task(
  key: chex.PRNGKey,
  loadings: chex.Array,
  coefficients: chex.Array,
  *,
  num_samples: int,
  noise_std: chex.Numeric = 0.5,
) -> FactorTask:
  """Draws a regression whose inputs and targets are driven by the same hidden factors.

  Args:
    key: random key.
    loadings: B of x = B z + noise, `[d, r]`; z and the noise are standard normal.
    coefficients: those of the targets in z, `[r]`.
    num_samples: number n of examples.
    noise_std: standard deviation of the targets' noise, >= 0.

  Returns:
    `FactorTask` in float32 or wider. The best prediction from x is that of z's posterior mean.

  Raises:
    ValueError: if `num_samples` < 1, `noise_std` < 0 or the shapes do not fit.

  Reference: Ge et al., On the Provable Advantage of Unsupervised Pretraining, ICLR 2024,
  https://arxiv.org/abs/2303.01566.
  """
  check_at_least(1, num_samples=num_samples)
  check_range("noise_std", noise_std, "[0, inf)")
  check_arrays(loadings=(loadings, "[d, r]"), coefficients=(coefficients, "[r]"))
  loadings, coefficients = as_accumulator(loadings, coefficients)
  dim, rank = loadings.shape
  latent_key, input_key, target_key = jax.random.split(key, 3)
  latents = jax.random.normal(latent_key, (num_samples, rank), loadings.dtype)
  inputs = jax.random.normal(input_key, (num_samples, dim), loadings.dtype)
  inputs = inputs + jnp.matmul(latents, loadings.T, precision=jax.lax.Precision.HIGHEST)
  noise = noise_std * jax.random.normal(target_key, (num_samples,), loadings.dtype)
  return FactorTask(inputs, jnp.sum(latents * coefficients[None], axis=1) + noise, latents)


def sample_mixture_task(
  key: chex.PRNGKey,
  centers: chex.Array,
  component_labels: chex.Array,
  *,
  num_samples: int,
  label_noise: chex.Numeric = 0.1,
) -> MixtureTask:
  """Draws a classification whose labels depend on the hidden component of the input.

  Args:
    key: random key.
    centers: means of the components, `[k, d]`; they have equal weights and unit variances.
    component_labels: label of each component, 0 or 1, int `[k]`.
    num_samples: number n of examples.
    label_noise: probability that a label is flipped, in [0, 1/2].

  Returns:
    `MixtureTask`; inputs in float32 or wider.

  Raises:
    ValueError: if `num_samples` < 1, `label_noise` lies outside [0, 1/2], a known label is neither
      0 nor 1, or the shapes do not fit.

  Reference: Ge et al., On the Provable Advantage of Unsupervised Pretraining, ICLR 2024,
  https://arxiv.org/abs/2303.01566.
  """
  check_at_least(1, num_samples=num_samples)
  check_range("label_noise", label_noise, "[0, 0.5]")
  check_arrays(centers=(centers, "[k, d]"), component_labels=(component_labels, "int [k]"))
  centers = as_accumulator(centers)
  component_labels = as_classes("component_labels", component_labels, 2).astype(jnp.int32)
  num_components, dim = centers.shape
  component_key, input_key, label_key = jax.random.split(key, 3)
  components = jax.random.randint(component_key, (num_samples,), 0, num_components)
  inputs = centers[components] + jax.random.normal(input_key, (num_samples, dim), centers.dtype)
  is_flipped = jax.random.bernoulli(label_key, as_accumulator(label_noise), (num_samples,))
  clean = component_labels[components]
  return MixtureTask(inputs, jnp.where(is_flipped, 1 - clean, clean), components)
