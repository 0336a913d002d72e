"""How many points of a data set a model gets to see: distributions over context sizes."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_at_least, check_choice, check_range

_SCHEMES = ("weighted", "uniform")


def context_size_probs(max_context: int, *, scheme: str = "weighted") -> chex.Array:
  """Probability of every context size 0, ..., max_context - 1.

  A context of i points leaves max_context - i queries to learn from. The weighted scheme draws
  size i with probability proportional to 1 / (max_context - i), so that each size gets the same
  expected number of scored queries.

  Args:
    max_context: number of sizes, at least 1.
    scheme: "weighted", or "uniform" for equal probabilities.

  Returns:
    Probabilities that sum to 1, float32, `[max_context]`.

  Raises:
    ValueError: if `max_context` is below 1 or `scheme` is unknown.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022,
  https://arxiv.org/abs/2112.10510.
  """
  check_at_least(1, max_context=max_context)
  check_choice("scheme", scheme, _SCHEMES)
  if scheme == "uniform":
    return jnp.full((max_context,), 1.0 / max_context, jnp.float32)
  weights = 1.0 / jnp.arange(max_context, 0, -1, dtype=jnp.float32)
  return weights / jnp.sum(weights)


def sample_context_size(
  key: chex.PRNGKey, max_context: int, *, scheme: str = "weighted", min_context: int = 0
) -> chex.Array:
  """Draws one context size for all data sets of a batch.

  Args:
    key: random key.
    max_context: the size drawn is below it.
    scheme: see `context_size_probs`.
    min_context: smallest size; the probabilities of the others are renormalized.

  Returns:
    Size in `[min_context, max_context - 1]`, int32 scalar.

  Raises:
    ValueError: if `max_context` is below 1, `scheme` is unknown, or `min_context` lies outside
      `[0, max_context - 1]`.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022,
  https://arxiv.org/abs/2112.10510.
  """
  log_probs = jnp.log(context_size_probs(max_context, scheme=scheme))
  check_range("min_context", min_context, f"[0, {max_context - 1}]")
  allowed = jnp.arange(max_context) >= min_context
  return jax.random.categorical(key, jnp.where(allowed, log_probs, -jnp.inf)).astype(jnp.int32)
