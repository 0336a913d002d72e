"""Inputs changed against a network, within a small distance."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays, check_range


def fgsm(
  loss_fn: Callable[[chex.Array, chex.ArrayTree], chex.Array],
  inputs: chex.Array,
  labels: chex.ArrayTree,
  *,
  epsilon: chex.Numeric,
  bounds: tuple[float, float] | None = (0.0, 1.0),
) -> jax.Array:
  """Fast gradient sign method: one step of size epsilon that raises the loss.

  Args:
    loss_fn: `(inputs, labels) -> losses [b]`, each of its own row; the gradient is that of their
      sum.
    inputs: `[b, ...]`.
    labels: what the loss takes, such as classes `[b]` or soft labels `[b, k]`.
    epsilon: size of the step in every coordinate, at least 0.
    bounds: smallest and largest value of an input, or None.

  Returns:
    The adversarial inputs, in the shape and dtype of `inputs`; no gradient flows through them.

  Raises:
    ValueError: if `epsilon` < 0.

  Reference: Goodfellow et al., Explaining and Harnessing Adversarial Examples, ICLR 2015,
  section 4, https://arxiv.org/abs/1412.6572.
  """
  check_range("epsilon", epsilon, "[0, inf)")
  check_arrays(inputs=(inputs, "float [b, ...]"))
  inputs = jax.lax.stop_gradient(jnp.asarray(inputs))
  slope = jax.grad(lambda x: jnp.sum(loss_fn(x, labels)))(inputs)
  moved = inputs + epsilon * jnp.sign(slope)
  if bounds is not None:
    moved = jnp.clip(moved, *bounds)
  return jax.lax.stop_gradient(moved.astype(inputs.dtype))
