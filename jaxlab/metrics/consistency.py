"""What a small regret in a surrogate loss says about the error of a classifier."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range


@jax.jit
def _transform(t: jax.Array) -> jax.Array:
  # In this form small numbers keep their digits; at 1 both terms are infinite.
  safe = jnp.where(t == 1, 0.0, t)
  value = jnp.log1p(-safe * safe) / 2 + safe * jnp.arctanh(safe)
  return jnp.where(t == 1, jnp.log(2.0).astype(t.dtype), value)


def logistic_h_transform(t: chex.Numeric) -> jax.Array:
  """Least regret in logistic loss at which the regret in errors can be t.

  For hypotheses that contain all differences of scores,
  `logistic_h_transform(zero-one regret) <= logistic regret`, where a regret is the excess over the
  best hypothesis.

  Args:
    t: regret in errors, in [0, 1], `[...]`.

  Returns:
    `((1 + t) log(1 + t) + (1 - t) log(1 - t)) / 2` in nats, float32 or wider, `[...]`; log 2 at 1,
    where the slope, which is infinite, counts as 0. It is convex and at least t² / 2.

  Raises:
    ValueError: if a known `t` lies outside [0, 1].

  Reference: Zheng et al., Revisiting Discriminative vs. Generative Classifiers, ICML 2023, https://arxiv.org/abs/2302.02334.
  """
  check_arrays(t=(t, "[...]"))
  check_range("t", t, "[0, 1]")
  return _transform(as_accumulator(t))


def zero_one_bound(logistic_regret: chex.Numeric) -> jax.Array:
  """Most regret in errors that a regret in logistic loss allows.

  A gap in logistic loss of O(n / m) with m examples of n features thus needs O(n) examples for a
  fixed gap in errors.

  Args:
    logistic_regret: excess logistic loss over the best hypothesis in nats, `[...]`; a negative one,
      which an estimate may be, counts as 0.

  Returns:
    `min(1, sqrt(2 * logistic_regret))`, float32 or wider, `[...]`. The inverse of
    `logistic_h_transform` is at most this.

  Reference: Zheng et al., Revisiting Discriminative vs. Generative Classifiers, ICML 2023, https://arxiv.org/abs/2302.02334.
  """
  check_arrays(logistic_regret=(logistic_regret, "[...]"))
  regret = as_accumulator(logistic_regret)
  none = regret <= 0
  bound = jnp.minimum(jnp.sqrt(2 * jnp.where(none, 0.5, regret)), 1.0)
  return jnp.where(none, 0.0, bound)
