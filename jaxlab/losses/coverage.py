"""Coverage: training for the best of N samples, which need not be sure of any one.

The probability that at least one of N samples is right is `1 - (1 - p)^N`. Its gradient is that of
the likelihood times a factor that vanishes once an example is likely enough for N tries.
"""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_at_least, check_range
from jaxlab.losses.sequence import log1mexp, segment_log_probs, sequence_log_prob

# A probability closer to 1 than this counts as this close: float32 could not tell.
_MAX_LOG_PROB = -1e-7
# Below this many expected successes the series is as exact as the formula and keeps its digits.
_RARE = 1e-3


def coverage_loss(log_prob: chex.Array, *, num_samples: chex.Numeric) -> jax.Array:
  """Negative log-probability that at least one of N samples is right.

  With one sample it is the negative log-likelihood. Its slope is exactly -`coverage_weight`.

  Args:
    log_prob: log-probabilities of one sample being right in nats, `[...]`, at most 0; values above
      -1e-7 count as -1e-7 where N > 1.
    num_samples: the number of samples N, any real number from 1 on, one for all or such that it
      broadcasts; no gradient flows into it.

  Returns:
    Loss per example in nats, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `num_samples` < 1 or not finite.

  Reference: Chen et al., Rethinking Fine-Tuning when Scaling Test-Time Compute, NeurIPS 2025,
  equation 5, https://arxiv.org/abs/2502.07154.
  """
  return _loss(*_arguments(log_prob, num_samples))


def coverage_weight(log_prob: chex.Array, *, num_samples: chex.Numeric) -> jax.Array:
  """How much of an example's likelihood gradient the coverage of N samples leaves.

  It is 1 for an example with far less than one success in N samples, falls as the example grows
  more likely, and is about 1 / (e - 1) at one success in N.

  Args:
    log_prob: log-probabilities of one sample being right in nats, `[...]`, at most 0; values above
      -1e-7 count as -1e-7.
    num_samples: the number of samples N, any real number from 1 on.

  Returns:
    Factors in [0, 1], `[...]`, in float32 or wider, without gradient; exactly 1 for N = 1.

  Raises:
    ValueError: if `num_samples` < 1 or not finite.

  Reference: Chen et al., NeurIPS 2025, equation 6, https://arxiv.org/abs/2502.07154.
  """
  return jax.lax.stop_gradient(_weight(*_arguments(log_prob, num_samples)))


def _arguments(log_prob: chex.Array, num_samples: chex.Numeric) -> tuple[jax.Array, jax.Array]:
  check_range("num_samples", num_samples, "[1, inf)")
  log_prob = as_accumulator(log_prob)
  return log_prob, jax.lax.stop_gradient(jnp.asarray(num_samples, log_prob.dtype))


@jax.custom_jvp
def _loss(log_prob: jax.Array, num_samples: jax.Array) -> jax.Array:
  rare, usual, sure = _split(log_prob, num_samples)
  p, more = jnp.exp(rare), num_samples - 1.0
  pairs, triples = more * p, (num_samples - 2.0) * p
  series = pairs * (0.5 + pairs / 8.0 - triples / 6.0) - (jnp.log(num_samples) + rare)
  exact = -log1mexp(num_samples * log1mexp(usual))
  loss = jnp.where(sure, exact, series)
  return jnp.where(num_samples == 1.0, -log_prob, loss)


_loss.defjvps(
  lambda tangent, _, log_prob, num_samples: -_weight(log_prob, num_samples) * tangent, None
)


def _weight(log_prob: jax.Array, num_samples: jax.Array) -> jax.Array:
  rare, usual, sure = _split(log_prob, num_samples)
  p, more = jnp.exp(rare), num_samples - 1.0
  pairs, triples = more * p, (num_samples - 2.0) * p
  series = 1.0 - pairs * (0.5 + pairs / 4.0 - triples / 3.0)
  log_miss = log1mexp(usual)
  expected, covered = num_samples * jnp.exp(usual), -jnp.expm1(num_samples * log_miss)
  exact = jnp.minimum(expected * jnp.exp(more * log_miss) / covered, 1.0)
  # One sample needs no formula, and rounding would leave less than 1.
  return jnp.where(num_samples == 1.0, 1.0, jnp.where(sure, exact, series))


def _split(log_prob: jax.Array, num_samples: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Log-probabilities that are safe in the series, and in the formula, and where the latter holds.

  The branch that is not taken gets a harmless value, or its infinities would reach the gradient.
  """
  log_prob = jnp.minimum(log_prob, _MAX_LOG_PROB)
  sure = ~(num_samples * jnp.exp(log_prob) < _RARE)
  return jnp.where(sure, -100.0, log_prob), jnp.where(sure, log_prob, -1.0), sure


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
    num_samples: the number of samples N, any real number from 1 on.
    normalize_length: whether to divide the cross-entropy by the number of tokens (at least 1); the
      factor is of the whole sequence all the same.

  Returns:
    Loss per sequence in nats, `[...]`, in float32 or wider; 0 for an empty mask. Its value is not
    that of `coverage_loss`, its gradient is (as sums).

  Raises:
    ValueError: if `num_samples` < 1 or not finite.

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

  Where many texts reach an answer, the probability of one of them says little; the share of right
  answers among rollouts takes its place.

  Args:
    token_log_probs: log-probabilities of the text's tokens in nats, `[..., T]`.
    mask: which tokens count, bool or 0 and 1, `[..., T]`.
    success_prob: share of the prompt's rollouts that were right, in [0, 1], `[...]`; no gradient
      flows into it.
    num_samples: the number of samples N, any real number from 1 on.
    success_threshold: share from which on an example is not trained on, in (0, 1]; None for all.
    normalize_length: whether to divide the cross-entropy by the number of tokens (at least 1).

  Returns:
    Loss per text in nats, or nats a token, `[...]`, in float32 or wider; exactly 0 for examples
    that are not trained on and for an empty mask.

  Raises:
    ValueError: if `num_samples` < 1 or not finite, `success_threshold` lies outside (0, 1] or a
      known `success_prob` outside [0, 1].

  Reference: Chen et al., NeurIPS 2025, section 5, https://arxiv.org/abs/2502.07154.
  """
  check_range("success_prob", success_prob, "[0, 1]")
  if success_threshold is not None:
    check_range("success_threshold", success_threshold, "(0, 1]")
  success_prob = as_accumulator(success_prob)
  nll = -sequence_log_prob(token_log_probs, mask, normalize_length=normalize_length)
  chex.assert_equal_shape([nll, success_prob])
  success_prob = jax.lax.stop_gradient(success_prob)
  loss = coverage_weight(jnp.log(success_prob), num_samples=num_samples) * nll
  if success_threshold is None:
    return loss
  return jnp.where(success_prob < success_threshold, loss, 0.0)


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
    num_samples: effective number of tries a step N, any real number from 1 on.
    num_steps: number of steps.

  Returns:
    Loss per step in nats, `[..., num_steps]`, in float32 or wider; 0 for a step without tokens.

  Raises:
    ValueError: if `num_samples` < 1 or not finite, or `num_steps` < 1.

  Reference: Chen et al., NeurIPS 2025, section 6, https://arxiv.org/abs/2502.07154.
  """
  check_at_least(1, num_steps=num_steps)
  log_probs = segment_log_probs(token_log_probs, step_ids, num_segments=num_steps)
  sizes = segment_log_probs(jnp.ones_like(step_ids), step_ids, num_segments=num_steps)
  return jnp.where(sizes > 0, coverage_loss(log_probs, num_samples=num_samples), 0.0)


def log_tree_coverage(
  step_log_probs: chex.Array, *, branching: chex.Numeric, mask: chex.Array | None = None
) -> jax.Array:
  """Log-probability that a tree search, every step verified, gets to the end.

  Each step is tried `branching` times from the state that the step before it reached.

  Args:
    step_log_probs: log-probabilities of one try of each step in nats, `[..., S]`.
    branching: tries a step, any real number from 1 on.
    mask: which steps there are, bool or 0 and 1, `[..., S]`; None for all.

  Returns:
    Nats, `[...]`, in float32 or wider; 0 without steps.

  Raises:
    ValueError: if `branching` < 1 or not finite.

  Reference: Chen et al., NeurIPS 2025, section 6, https://arxiv.org/abs/2502.07154.
  """
  check_range("branching", branching, "[1, inf)")
  log_probs = as_accumulator(step_log_probs)
  mask = jnp.ones_like(log_probs, bool) if mask is None else jnp.asarray(mask).astype(bool)
  chex.assert_equal_shape([log_probs, mask])
  # Before and after: the slope of the loss at NaN is NaN, however little is asked of it.
  losses = coverage_loss(jnp.where(mask, log_probs, 0.0), num_samples=branching)
  return -jnp.sum(jnp.where(mask, losses, 0.0), axis=-1)
