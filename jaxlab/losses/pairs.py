"""Losses of two answers to one question, which teach a model what it does not know.

A model that knows the distribution of answers gains nothing from seeing the first before it
predicts the second.
"""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, as_classes, check_arrays


def pair_log_probs(logits: chex.Array, *, symmetric: bool = True) -> jax.Array:
  """Joint log-probabilities of two answers from scores of all pairs.

  Args:
    logits: score of every pair, `[..., k, k]`.
    symmetric: whether scores are averaged with those of the swapped pair, so that the order of the
      answers cannot matter.

  Returns:
    Log-probabilities, which sum to 1 over both axes, `[..., k, k]`, in float32 or wider.

  Raises:
    ValueError: if the last two axes differ.

  Reference: Johnson et al., Experts Don't Cheat: Learning What You Don't Know By Predicting Pairs,
  ICML 2024, section 4, https://arxiv.org/abs/2402.08733.
  """
  check_arrays(logits=(logits, "[..., k, k]"))
  logits = as_accumulator(logits)
  if symmetric:
    logits = 0.5 * (logits + jnp.swapaxes(logits, -1, -2))
  return jax.nn.log_softmax(logits, axis=(-2, -1))


def pair_nll(
  logits: chex.Array, labels_a: chex.Array, labels_b: chex.Array, *, symmetric: bool = True
) -> jax.Array:
  """Negative log-probability of two answers together.

  Args:
    logits: score of every pair, `[..., k, k]`.
    labels_a: one answer, int `[...]`.
    labels_b: another answer to the same question, drawn independently, int `[...]`.
    symmetric: see `pair_log_probs`.

  Returns:
    Nats per pair, `[...]`, in float32 or wider; NaN where a traced label lies outside the classes.

  Raises:
    ValueError: if the last two axes differ or a known label lies outside [0, k).

  Reference: Johnson et al., ICML 2024, section 4, https://arxiv.org/abs/2402.08733.
  """
  check_arrays(
    logits=(logits, "[..., k, k]"),
    labels_a=(labels_a, "int [...]"),
    labels_b=(labels_b, "int [...]"),
  )
  num_classes = jnp.shape(logits)[-1]
  first = as_classes("labels_a", labels_a, num_classes)
  second = as_classes("labels_b", labels_b, num_classes)
  log_probs = pair_log_probs(logits, symmetric=symmetric)
  rows = jnp.take_along_axis(log_probs, first[..., None, None], axis=-2)[..., 0, :]
  return -jnp.take_along_axis(rows, second[..., None], axis=-1)[..., 0]


def mixture_pair_log_probs(mixture_logits: chex.Array, component_logits: chex.Array) -> jax.Array:
  """Joint log-probabilities of two answers that are independent given a component of a mixture.

  The joint is symmetric, and the covariance that it implies is positive semi-definite, by
  construction.

  Args:
    mixture_logits: scores of the components, `[..., m]`.
    component_logits: scores of the answers in each component, `[..., m, k]`.

  Returns:
    `log sum_m pi_m q_m(y1) q_m(y2)`, `[..., k, k]`, in float32 or wider; -inf, without a gradient,
    for an answer that every component masks by a logit of -inf.

  Raises:
    ValueError: if there are no components.

  Reference: Johnson et al., ICML 2024, https://arxiv.org/abs/2402.08733; the mixture is ours.
  """
  log_weights, log_probs = _components(mixture_logits, component_logits)
  first = log_weights[..., None] + log_probs
  return _log_sum_exp(first[..., :, None] + log_probs[..., None, :], axis=-3)


def mixture_pair_nll(
  mixture_logits: chex.Array,
  component_logits: chex.Array,
  labels_a: chex.Array,
  labels_b: chex.Array,
) -> jax.Array:
  """Negative log-probability of two answers together under `mixture_pair_log_probs`.

  Args:
    mixture_logits: scores of the components, `[..., m]`.
    component_logits: scores of the answers in each component, `[..., m, k]`.
    labels_a: one answer, int `[...]`.
    labels_b: another answer to the same question, drawn independently, int `[...]`.

  Returns:
    Nats per pair, `[...]`, in float32 or wider; NaN where a traced label lies outside the classes.

  Raises:
    ValueError: if there are no components or a known label lies outside [0, k).

  Reference: Johnson et al., ICML 2024, https://arxiv.org/abs/2402.08733; the mixture is ours.
  """
  check_arrays(
    component_logits=(component_logits, "[..., m, k]"),
    labels_a=(labels_a, "int [...]"),
    labels_b=(labels_b, "int [...]"),
  )
  num_classes = jnp.shape(component_logits)[-1]
  first = as_classes("labels_a", labels_a, num_classes)
  second = as_classes("labels_b", labels_b, num_classes)
  total, log_probs = _components(mixture_logits, component_logits)
  for labels in (first, second):
    answered = jnp.take_along_axis(log_probs, labels[..., None, None], axis=-1)
    total = total + answered[..., 0]
  return -_log_sum_exp(total, axis=-1)


def _components(mixture_logits, component_logits):
  check_arrays(
    mixture_logits=(mixture_logits, "[..., m]"), component_logits=(component_logits, "[..., m, k]")
  )
  if not jnp.shape(mixture_logits)[-1]:
    raise ValueError("mixture_logits must have a component, got none.")
  mixture_logits, component_logits = as_accumulator(mixture_logits, component_logits)
  return jax.nn.log_softmax(mixture_logits), jax.nn.log_softmax(component_logits)


def _log_sum_exp(values: jax.Array, axis: int) -> jax.Array:
  """Log of a sum; where all terms are 0 the gradient is 0, and not NaN."""
  impossible = jnp.all(values == -jnp.inf, axis=axis, keepdims=True)
  total = jax.nn.logsumexp(jnp.where(impossible, 0.0, values), axis=axis)
  return jnp.where(jnp.squeeze(impossible, axis), -jnp.inf, total)
