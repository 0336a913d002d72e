"""What a joint distribution of two answers to one question says about the model's ignorance.

How much the first answer moves the prediction of the second is the variance of the true
probabilities among the questions that the model cannot tell apart. Joints come from
`losses.pair_log_probs` or `losses.mixture_pair_log_probs`.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range


class ProbabilityInterval(NamedTuple):
  """Bounds on true probabilities.

  Attributes:
    lower: `[..., k]`.
    upper: `[..., k]`.
  """

  lower: chex.Array
  upper: chex.Array


def pair_marginal(log_pair_probs: chex.Array) -> jax.Array:
  """Probabilities of one answer.

  Args:
    log_pair_probs: joint log-probabilities of two answers, symmetric, `[..., k, k]`.

  Returns:
    Sums over the second answer, `[..., k]`, in float32 or wider.

  Raises:
    ValueError: if the last two axes differ.

  Reference: Johnson et al., Experts Don't Cheat: Learning What You Don't Know By Predicting Pairs,
  ICML 2024, https://arxiv.org/abs/2402.08733.
  """
  return jnp.sum(jnp.exp(_joint(log_pair_probs)), axis=-1)


def epistemic_covariance(log_pair_probs: chex.Array) -> jax.Array:
  """Covariance of the true probabilities that a joint of two answers implies.

  Args:
    log_pair_probs: joint log-probabilities of two answers, symmetric, `[..., k, k]`.

  Returns:
    `P - m mᵀ` with the joint P and its marginal m, `[..., k, k]`, in float32 or wider. Rows sum to
    0. Its diagonal may be negative, where the model is not calibrated.

  Raises:
    ValueError: if the last two axes differ.

  Reference: Johnson et al., ICML 2024, section 3, https://arxiv.org/abs/2402.08733.
  """
  probs = jnp.exp(_joint(log_pair_probs))
  marginal = jnp.sum(probs, axis=-1)
  return probs - marginal[..., :, None] * marginal[..., None, :]


def epistemic_variance(log_pair_probs: chex.Array) -> jax.Array:
  """Variance of the true probability of each answer around the model's, from its joint of two.

  If the joint is calibrated, it is the mean of `(p(y | x) - m_y)²` over the questions that the
  model cannot tell apart; noise in the answers adds nothing.

  Args:
    log_pair_probs: joint log-probabilities of two answers, symmetric, `[..., k, k]`.

  Returns:
    The diagonal of `epistemic_covariance`, at least 0, `[..., k]`.

  Raises:
    ValueError: if the last two axes differ.

  Reference: Johnson et al., ICML 2024, section 3, https://arxiv.org/abs/2402.08733.
  """
  covariance = epistemic_covariance(log_pair_probs)
  return jnp.maximum(jnp.diagonal(covariance, axis1=-2, axis2=-1), 0.0)


def pair_confidence(log_pair_probs: chex.Array) -> jax.Array:
  """How sure it is that an answer is possible at all.

  With marginal m and variance v it is `m² / (m² + v)`: the probability of an answer over its
  probability after the model has seen the same answer. An answer y has `p(y | x) = 0` with a
  probability of at most 1 - confidence, if the joint is calibrated.

  Args:
    log_pair_probs: joint log-probabilities of two answers, symmetric, `[..., k, k]`.

  Returns:
    Confidence in [0, 1] in each answer, `[..., k]`, in float32 or wider; 0 for an answer that the
    model never gives.

  Raises:
    ValueError: if the last two axes differ.

  Reference: Johnson et al., ICML 2024, section 3.3, https://arxiv.org/abs/2402.08733.
  """
  joint = _joint(log_pair_probs)
  twice = jnp.diagonal(joint, axis1=-2, axis2=-1)
  never = jnp.all(joint == -jnp.inf, axis=-1)
  log_marginal = jax.nn.logsumexp(jnp.where(never[..., None], 0.0, joint), axis=-1)
  # Twice the same answer with probability 0 is more than sure.
  sure = twice == -jnp.inf
  log_ratio = 2 * log_marginal - jnp.where(sure, 2 * log_marginal, twice)
  return jnp.where(never, 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))


def sequence_confidence(log_prob: chex.Array, log_prob_given_self: chex.Array) -> jax.Array:
  """`pair_confidence` of texts, from two passes of one model.

  Args:
    log_prob: log-probability of each text after its prompt, `[...]`.
    log_prob_given_self: the same after the prompt and the text itself, as a first answer, `[...]`.

  Returns:
    `min(exp(log_prob - log_prob_given_self), 1)`, `[...]`, in float32 or wider; 0 for a text that
    the model never writes.

  Reference: Johnson et al., ICML 2024, section 3.3, https://arxiv.org/abs/2402.08733.
  """
  check_arrays(log_prob=(log_prob, "[...]"), log_prob_given_self=(log_prob_given_self, "[...]"))
  once, again = as_accumulator(log_prob, log_prob_given_self)
  never = once == -jnp.inf
  return jnp.where(never, 0.0, jnp.exp(jnp.minimum(jnp.where(never, 0.0, once) - again, 0.0)))


def probability_interval(
  probs: chex.Array, variance: chex.Array, *, beta: chex.Numeric = 0.05
) -> ProbabilityInterval:
  """Interval that holds the true probability with a probability of at least 1 - beta.

  By Chebyshev's inequality, if the variance is calibrated.

  Args:
    probs: the model's probabilities, `[..., k]`.
    variance: their variance around the true ones, `[..., k]`; a negative one counts as 0.
    beta: allowed share of misses, in (0, 1].

  Returns:
    `probs ± sqrt(variance / beta)`, within [0, 1], in float32 or wider.

  Raises:
    ValueError: if `beta` lies outside (0, 1].

  Reference: Johnson et al., ICML 2024, section 3.2, https://arxiv.org/abs/2402.08733.
  """
  check_range("beta", beta, "(0, 1]")
  check_arrays(probs=(probs, "[...]"), variance=(variance, "[...]"))
  probs, variance, beta = as_accumulator(probs, variance, beta)
  # The root's slope at 0 is infinite.
  none = variance <= 0
  margin = jnp.where(none, 0.0, jnp.sqrt(jnp.where(none, 1.0, variance) / beta))
  lower, upper = (jnp.clip(end, 0.0, 1.0) for end in (probs - margin, probs + margin))
  return ProbabilityInterval(lower, upper)


def ensemble_variance(probs: chex.Array) -> jax.Array:
  """Variance of each probability among the members of an ensemble.

  Args:
    probs: probabilities of m members, `[m, ..., k]`.

  Returns:
    Mean squared deviation from the members' mean (divided by m), `[..., k]`, in float32 or wider.

  Raises:
    ValueError: if there are no members.

  Reference: Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using
  Deep Ensembles, NeurIPS 2017, https://arxiv.org/abs/1612.01474.
  """
  check_arrays(probs=(probs, "[m, ..., k]"))
  check_at_least(1, members=jnp.shape(probs)[0])
  return jnp.var(as_accumulator(probs), axis=0)


def _joint(log_pair_probs) -> jax.Array:
  check_arrays(log_pair_probs=(log_pair_probs, "[..., k, k]"))
  return as_accumulator(log_pair_probs)
