"""Coverage: training a model so that at least one of N samples is right.

The probability of at least one right sample is `1 - (1 - p)^N`. Its gradient is that of the
likelihood times a factor that vanishes once an example is likely enough for N tries.
"""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range, weighted
from jaxlab.losses.sequence import log1mexp, segment_log_probs, sequence_log_prob

# Larger log-probabilities are clipped to this, the resolution of float32 near a probability of 1.
_MAX_LOG_PROB = -1e-7
# Below this many expected successes a series replaces the formula, which loses digits there.
_RARE = 1e-3


def coverage_loss(log_prob: chex.Array, *, num_samples: chex.Numeric) -> jax.Array:
  """Negative log-probability that at least one of N samples is right.

  With one sample it is the negative log-likelihood. Its slope is exactly -`coverage_weight`.

  Args:
    log_prob: log-probabilities of one sample being right in nats, `[...]`, at most 0; values above
      -1e-7 count as -1e-7 where N > 1.
    num_samples: number of samples N, any real number >= 1, a scalar or an array that broadcasts; no
      gradient flows into it.

  Returns:
    Loss per example in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `num_samples` < 1 or is not finite.

  Reference: Chen et al., Rethinking Fine-Tuning when Scaling Test-Time Compute, NeurIPS 2025,
  equation 5, https://arxiv.org/abs/2502.07154.
  """
  return _loss(*_arguments(log_prob, num_samples))


def coverage_weight(log_prob: chex.Array, *, num_samples: chex.Numeric) -> jax.Array:
  """Factor by which the coverage of N samples scales an example's likelihood gradient.

  It is 1 for an example with far less than one expected success in N samples, falls as the example
  becomes more likely, and is about 1 / (e - 1) at one expected success.

  Args:
    log_prob: log-probabilities of one sample being right in nats, `[...]`, at most 0; values above
      -1e-7 count as -1e-7.
    num_samples: number of samples N, any real number >= 1.

  Returns:
    Factors in [0, 1], `[...]`, in float32 or wider, without gradient; exactly 1 for N = 1.

  Raises:
    ValueError: if `num_samples` < 1 or is not finite.

  Reference: Chen et al., NeurIPS 2025, equation 6, https://arxiv.org/abs/2502.07154.
  """
  return jax.lax.stop_gradient(_weight(*_arguments(log_prob, num_samples)))


def _arguments(log_prob: chex.Array, num_samples: chex.Numeric) -> tuple[jax.Array, jax.Array]:
  check_range("num_samples", num_samples, "[1, inf)")
  log_prob = as_accumulator(log_prob)
  num_samples = jax.lax.stop_gradient(jnp.asarray(num_samples, log_prob.dtype))
  if num_samples.ndim:
    log_prob, num_samples = jnp.broadcast_arrays(log_prob, num_samples)
  return log_prob, num_samples


@jax.custom_jvp
def _loss(log_prob: jax.Array, num_samples: jax.Array) -> jax.Array:
  rare, usual, is_usual = _split(log_prob, num_samples)
  p, more = jnp.exp(rare), num_samples - 1.0
  pairs, triples = more * p, (num_samples - 2.0) * p
  series = pairs * (0.5 + pairs / 8.0 - triples / 6.0) - (jnp.log(num_samples) + rare)
  exact = -log1mexp(num_samples * log1mexp(usual))
  loss = jnp.where(is_usual, exact, series)
  return jnp.where(num_samples == 1.0, -log_prob, loss)


_loss.defjvps(
  lambda tangent, _, log_prob, num_samples: -_weight(log_prob, num_samples) * tangent, None
)


def _weight(log_prob: jax.Array, num_samples: jax.Array) -> jax.Array:
  rare, usual, is_usual = _split(log_prob, num_samples)
  p, more = jnp.exp(rare), num_samples - 1.0
  pairs, triples = more * p, (num_samples - 2.0) * p
  series = 1.0 - pairs * (0.5 + pairs / 4.0 - triples / 3.0)
  log_miss = log1mexp(usual)
  expected, covered = num_samples * jnp.exp(usual), -jnp.expm1(num_samples * log_miss)
  exact = jnp.minimum(expected * jnp.exp(more * log_miss) / covered, 1.0)
  # For one sample the factor is exactly 1; the formula could round to less.
  return jnp.where(num_samples == 1.0, 1.0, jnp.where(is_usual, exact, series))


def _split(log_prob: jax.Array, num_samples: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Log-probabilities for the series and for the formula, and a mask of where the formula holds.

  The branch that is not taken gets a harmless value; otherwise its infinities would reach the
  gradient.
  """
  log_prob = jnp.minimum(log_prob, _MAX_LOG_PROB)
  is_usual = ~(num_samples * jnp.exp(log_prob) < _RARE)
  return jnp.where(is_usual, -100.0, log_prob), jnp.where(is_usual, log_prob, -1.0), is_usual


def coverage_weighted_nll(
  token_log_probs: chex.Array,
  mask: chex.Array,
  *,
  num_samples: chex.Numeric,
  normalize_length: bool = False,
) -> jax.Array:
  """Cross-entropy of sequences times `coverage_weight`: the gradient of the coverage loss.

  Args:
    token_log_probs: log-probabilities of the right tokens in nats, `[..., T]`.
    mask: which tokens count, bool or 0 and 1, `[..., T]`.
    num_samples: number of samples N, any real number >= 1.
    normalize_length: whether to divide the cross-entropy by the number of tokens (at least 1); the
      factor is always that of the whole sequence.

  Returns:
    Loss per sequence in nats, `[...]`, in float32 or wider; 0 for an empty mask. Without
    `normalize_length` its gradient is that of `coverage_loss`; its value is not.

  Raises:
    ValueError: if `num_samples` < 1 or is not finite.

  Reference: Chen et al., NeurIPS 2025, section 4.2, https://arxiv.org/abs/2502.07154.
  """
  weight = coverage_weight(sequence_log_prob(token_log_probs, mask), num_samples=num_samples)
  return -weight * sequence_log_prob(token_log_probs, mask, normalize_length=normalize_length)


def estimated_coverage_nll(
  token_log_probs: chex.Array,
  mask: chex.Array,
  success_prob: chex.Array,
  *,
  num_samples: chex.Numeric,
  success_threshold: chex.Numeric | None = None,
  normalize_length: bool = True,
) -> jax.Array:
  """Cross-entropy of texts weighted by how often the model's own samples succeed.

  Where many texts lead to the right answer, the probability of one of them says little. The share
  of right answers among rollouts replaces it.

  Args:
    token_log_probs: log-probabilities of the text's tokens in nats, `[..., T]`.
    mask: which tokens count, bool or 0 and 1, `[..., T]`.
    success_prob: share of the prompt's rollouts that were right, in [0, 1], `[...]`; no gradient
      flows into it.
    num_samples: number of samples N, any real number >= 1.
    success_threshold: examples with at least this share are not trained on, in (0, 1]; None trains
      on all examples.
    normalize_length: whether to divide the cross-entropy by the number of tokens (at least 1).

  Returns:
    Loss per text in nats (nats per token with `normalize_length`), `[...]`, in float32 or wider;
    exactly 0 for examples that are not trained on and for an empty mask.

  Raises:
    ValueError: if `num_samples` < 1 or is not finite, `success_threshold` lies outside (0, 1], or a
      known `success_prob` lies outside [0, 1].

  Reference: Chen et al., NeurIPS 2025, section 5, https://arxiv.org/abs/2502.07154.
  """
  check_range("success_prob", success_prob, "[0, 1]")
  if success_threshold is not None:
    check_range("success_threshold", success_threshold, "(0, 1]")
  check_arrays(
    token_log_probs=(token_log_probs, "[..., T]"),
    mask=(mask, "[..., T]"),
    success_prob=(success_prob, "[...]"),
  )
  nll = -sequence_log_prob(token_log_probs, mask, normalize_length=normalize_length)
  success_prob = jax.lax.stop_gradient(as_accumulator(success_prob))
  loss = weighted(coverage_weight(jnp.log(success_prob), num_samples=num_samples), nll)
  if success_threshold is None:
    return loss
  return jnp.where(success_prob >= success_threshold, 0.0, loss)


def stepwise_coverage_loss(
  token_log_probs: chex.Array,
  step_ids: chex.Array,
  *,
  num_samples: chex.Numeric,
  num_steps: int,
) -> jax.Array:
  """Coverage loss of each step of a solution, for a search that tries every step N times.

  Args:
    token_log_probs: log-probabilities of the right tokens in nats, `[..., T]`.
    step_ids: which step each token belongs to, int `[..., T]`; -1 for none.
    num_samples: effective number N of tries per step, any real number >= 1.
    num_steps: number of steps.

  Returns:
    Loss per step in nats, `[..., num_steps]`, in float32 or wider; 0 for a step without tokens.

  Raises:
    ValueError: if `num_samples` < 1 or is not finite, or `num_steps` < 1.

  Reference: Chen et al., NeurIPS 2025, section 6, https://arxiv.org/abs/2502.07154.
  """
  check_at_least(1, num_steps=num_steps)
  check_arrays(token_log_probs=(token_log_probs, "[..., T]"), step_ids=(step_ids, "int [..., T]"))
  step_ids = jnp.asarray(step_ids)
  log_probs = segment_log_probs(token_log_probs, step_ids, num_segments=num_steps)
  sizes = segment_log_probs(jnp.ones_like(step_ids), step_ids, num_segments=num_steps)
  return jnp.where(sizes > 0, coverage_loss(log_probs, num_samples=num_samples), 0.0)


def log_tree_coverage(
  step_log_probs: chex.Array, *, branching: chex.Numeric, mask: chex.Array | None = None
) -> jax.Array:
  """Log-probability that a tree search with verified steps reaches the end.

  Each step is tried `branching` times from the state that the previous step reached.

  Args:
    step_log_probs: log-probabilities of one try of each step in nats, `[..., S]`.
    branching: tries per step, any real number >= 1.
    mask: which steps exist, bool or 0 and 1, `[..., S]`; None for all.

  Returns:
    Nats, `[...]`, in float32 or wider; 0 without steps.

  Raises:
    ValueError: if `branching` < 1 or is not finite.

  Reference: Chen et al., NeurIPS 2025, section 6, https://arxiv.org/abs/2502.07154.
  """
  check_range("branching", branching, "[1, inf)")
  check_arrays(step_log_probs=(step_log_probs, "[..., S]"), mask=(mask, "[..., S]"))
  log_probs = as_accumulator(step_log_probs)
  mask = jnp.ones_like(log_probs, bool) if mask is None else jnp.asarray(mask).astype(bool)
  # Masked before and after: at NaN the gradient is NaN even where the loss is not used.
  losses = coverage_loss(jnp.where(mask, log_probs, 0.0), num_samples=branching)
  return -jnp.sum(jnp.where(mask, losses, 0.0), axis=-1)
