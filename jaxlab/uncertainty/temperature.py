"""Temperature scaling: one number that makes a classifier's confidence fit held-out data."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_filled,
  check_range,
  is_known,
)


def fit_temperature(
  logits: chex.Array,
  labels: chex.Array,
  *,
  min_temperature: chex.Numeric = 1e-2,
  max_temperature: chex.Numeric = 1e2,
  num_steps: int = 60,
) -> chex.Array:
  """Temperature that minimizes the cross-entropy of held-out data.

  The loss is convex in 1 / temperature, so that bisection of its derivative reaches the optimum;
  gradient descent with a fixed number of steps may not. No gradient flows to the arguments.

  Args:
    logits: held-out scores, `[n, k]`.
    labels: their true classes, int `[n]`.
    min_temperature: smallest result; returned if all predictions are right, or if all logits are
      equal, where every temperature is optimal.
    max_temperature: largest result; returned if predictions are worse than uniform ones.
    num_steps: halvings of the interval, on a log scale.

  Returns:
    The temperature, a float32 scalar (or wider); NaN if a logit is NaN or a label in a JAX array
    lies outside the classes.

  Raises:
    ValueError: if `logits` is empty, `num_steps` < 1, a temperature is not positive,
      `min_temperature` is not below `max_temperature`, or a known label lies outside the classes.

  Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2,
  https://arxiv.org/abs/1706.04599.
  """
  check_arrays(logits=(logits, "[n, k]"), labels=(labels, "int [n]"))
  check_filled(logits=logits)
  check_at_least(1, num_steps=num_steps)
  labels = as_classes("labels", labels, jnp.shape(logits)[1])
  check_range("min_temperature", min_temperature, "(0, inf)")
  lowest = min_temperature if is_known(min_temperature) else 0.0
  check_range("max_temperature", max_temperature, f"({lowest}, inf)")
  scores = jax.lax.stop_gradient(as_accumulator(logits))
  coldest, hottest = (
    jnp.asarray(bound, scores.dtype) for bound in (min_temperature, max_temperature)
  )
  return _bisect(scores, labels, coldest, hottest, num_steps=num_steps)


@functools.partial(jax.jit, static_argnames="num_steps")
def _bisect(scores, labels, coldest, hottest, *, num_steps):
  scores = scores - jnp.max(scores, axis=-1, keepdims=True)
  true_score = jnp.take_along_axis(scores, labels[:, None], axis=-1)[:, 0]

  def slope(inverse):
    """Derivative of the loss with respect to the inverse temperature, which never decreases."""
    probs = jax.nn.softmax(inverse * scores)
    expected = jnp.sum(jnp.where(probs > 0, probs * scores, 0.0), axis=-1)
    return jnp.mean(expected - true_score)

  def halve(_, bracket):
    low, high = bracket
    middle = (low + high) / 2
    # A slope that underflows to 0 means right predictions: continue to lower temperatures.
    rising = slope(jnp.exp(middle)) > 0
    return jnp.where(rising, low, middle), jnp.where(rising, middle, high)

  # Like every step, the start varies over the devices of the data.
  zero = jnp.zeros_like(true_score[0] + coldest + hottest)
  bracket = zero - jnp.log(hottest), zero - jnp.log(coldest)
  low, high = jax.lax.fori_loop(0, num_steps, halve, bracket)
  at_low, at_high = slope(1 / hottest), slope(1 / coldest)
  temperature = jnp.exp(-(low + high) / 2)
  temperature = jnp.where(at_high <= 0, coldest, jnp.where(at_low > 0, hottest, temperature))
  return jnp.where(jnp.isnan(at_low), jnp.nan, temperature)


def apply_temperature(logits: chex.Array, *, temperature: chex.Numeric) -> chex.Array:
  """Divides logits by a temperature, which does not change the predicted class.

  Args:
    logits: scores, `[..., k]`.
    temperature: positive; a scalar, or one per row, `[...]`.

  Returns:
    Scaled logits, `[..., k]`, in float32 or wider. Infinite logits (masked classes) stay as they
    are at every temperature, and no gradient flows from them.

  Raises:
    ValueError: if a known temperature is not positive.

  Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2,
  https://arxiv.org/abs/1706.04599.
  """
  form = "[...]" if np.ndim(temperature) else "[]"
  check_arrays(logits=(logits, "[..., k]"), temperature=(temperature, form))
  check_range("temperature", temperature, "(0, inf]")
  logits, temperature = as_accumulator(logits, temperature)
  if temperature.ndim:
    temperature = temperature[..., None]
  masked = jnp.isinf(logits)
  return jnp.where(masked, logits, jnp.where(masked, 0.0, logits) / temperature)
