"""Borders of bar distributions, fitted to values."""

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_at_least

_MIN_RELATIVE_WIDTH = 1e-6


def bar_borders(values: chex.Array, num_bars: int) -> chex.Array:
  """Borders such that every bar holds the same number of the given values.

  Fitted to draws from a prior, they give every bar 1/K of the prior's mass, so that a network with
  equal logits already predicts the prior. Tied borders are moved apart, to the right, by 1e-6 of
  the range, or by the resolution of the floats if that is coarser.

  Args:
    values: at least `num_bars` values of any shape; after flattening, the last `len % num_bars`
      are left out.
    num_bars: K, at least 2.

  Returns:
    Strictly increasing borders, `[num_bars + 1]`.

  Raises:
    ValueError: if `num_bars` is below 2 or exceeds the number of values.

  Reference: Müller et al., Transformers Can Do Bayesian Inference, ICLR 2022,
  https://arxiv.org/abs/2112.10510.
  """
  values = jnp.ravel(as_accumulator(values))
  check_at_least(2, num_bars=num_bars)
  if values.shape[0] < num_bars:
    raise ValueError(f"num_bars is {num_bars}, but there are only {values.shape[0]} values.")
  per_bar = values.shape[0] // num_bars
  ordered = jnp.sort(values[: per_bar * num_bars])
  inner = (ordered[per_bar - 1 : -1 : per_bar] + ordered[per_bar::per_bar]) / 2
  borders = jnp.concatenate([ordered[:1], inner, ordered[-1:]])
  floats = jnp.finfo(borders.dtype)
  gap = jnp.maximum(
    _MIN_RELATIVE_WIDTH * (borders[-1] - borders[0]),
    jnp.maximum(floats.eps * jnp.max(jnp.abs(borders)), floats.tiny),
  )
  return _apart(borders, gap)


@jax.jit
def _apart(borders, gap):
  def push(previous, border):
    border = jnp.maximum(border, previous + gap)
    return border, border

  _, rest = jax.lax.scan(push, borders[0], borders[1:])
  return jnp.concatenate([borders[:1], rest])
