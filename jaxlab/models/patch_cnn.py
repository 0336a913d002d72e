"""A two-layer convolution with square activation over patches, small enough for analysis."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range


def init_patch_cnn(
  key: chex.PRNGKey, *, num_classes: int = 2, num_filters: int = 10, dim: int, scale: float = 1e-2
) -> jax.Array:
  """Draws small Gaussian filters.

  Args:
    key: random key.
    num_classes: number k of classes.
    num_filters: number m of filters per class.
    dim: dimension d of a patch.
    scale: standard deviation of the weights.

  Returns:
    Weights, float32 `[k, m, d]`.

  Raises:
    ValueError: if a size is below 1 or `scale` is negative.

  Reference: Zou et al., The Benefits of Mixup for Feature Learning, ICML 2023, section 3,
  https://arxiv.org/abs/2303.08433.
  """
  check_at_least(1, num_classes=num_classes, num_filters=num_filters, dim=dim)
  check_range("scale", scale, "[0, inf)")
  return scale * jax.random.normal(key, (num_classes, num_filters, dim))


def patch_cnn_logits(weights: chex.Array, patches: chex.Array) -> jax.Array:
  """Sums squared filter responses: F_c(x) = sum over filters r and patches p of <w_cr, x_p>^2.

  Args:
    weights: `[k, m, d]`.
    patches: `[n, P, d]`.

  Returns:
    Logits, at least 0, float32 or wider `[n, k]`.

  Raises:
    ValueError: if the shapes do not agree.

  Reference: Zou et al., ICML 2023, equation 3.1, https://arxiv.org/abs/2303.08433.
  """
  return jnp.sum(jnp.square(_responses(weights, patches)), axis=(2, 3))


def all_pairs_patch_logits(
  weights: chex.Array, patches: chex.Array, *, ratio: chex.Numeric
) -> jax.Array:
  """Logits of all n^2 mixtures of two examples, without making the mixtures.

  A mixture's responses are the mixture of the responses, so that its logits follow from those of
  the two examples and the inner products of their responses.

  Args:
    weights: `[k, m, d]`.
    patches: `[n, P, d]`.
    ratio: share of the first example of a pair, in [0, 1].

  Returns:
    Logits of `ratio * patches[i] + (1 - ratio) * patches[j]`, float32 or wider `[n, n, k]`.

  Raises:
    ValueError: if `ratio` lies outside [0, 1] or the shapes do not agree.

  Reference: Zou et al., ICML 2023, equations 3.2 and 3.3, https://arxiv.org/abs/2303.08433.
  """
  check_range("ratio", ratio, "[0, 1]")
  responses = _responses(weights, patches)
  own = jnp.sum(jnp.square(responses), axis=(2, 3))
  shared = jnp.einsum("ikmp,jkmp->ijk", responses, responses)
  return (
    ratio**2 * own[:, None] + (1 - ratio) ** 2 * own[None, :] + 2 * ratio * (1 - ratio) * shared
  )


def _responses(weights: chex.Array, patches: chex.Array) -> jax.Array:
  """Inner products of filters and patches, `[n, k, m, P]`."""
  check_arrays(weights=(weights, "[k, m, d]"), patches=(patches, "[n, P, d]"))
  weights, patches = as_accumulator(weights, patches)
  return jnp.einsum("kmd,npd->nkmp", weights, patches)
