"""Switching between a small and a large model by entropy: schedule and cost."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range
from jaxlab._programs import varying_carry
from jaxlab.losses.adaptation import softmax_entropy
from jaxlab.samplers.selection import as_mask


def token_entropy(logits: chex.Array, *, base: chex.Numeric = 2.0) -> jax.Array:
  """Entropy of next-token predictions.

  Args:
    logits: scores, `[..., v]`; tokens of -inf add nothing.
    base: of the logarithm, above 1: 2 for bits, e for nats.

  Returns:
    Entropies, `[...]`, in float32 or wider.

  Raises:
    ValueError: if `base` <= 1.

  Reference: Simonds, Entropy Adaptive Decoding: Dynamic Model Switching for Efficient Inference,
  2025, https://arxiv.org/abs/2502.06833.
  """
  check_range("base", base, "(1, inf)")
  entropy = softmax_entropy(logits)
  return entropy / jnp.log(jnp.asarray(base, entropy.dtype))


def switch_schedule(
  entropies: chex.Array,
  *,
  window: int = 5,
  threshold: chex.Numeric,
  min_dwell: int = 10,
  start_large: bool = False,
) -> jax.Array:
  """Which model writes each token, given the entropies that are seen while writing.

  After every token the large model is wanted if the mean entropy of the last tokens exceeds the
  threshold, and else the small one. They change only if the current one has written at least
  `min_dwell` tokens since it took over.

  Args:
    entropies: entropies of the predictions, `[..., T]`.
    window: number of last tokens in the mean, fewer at the start; at least 1.
    threshold: mean entropy above which the large model is wanted, at least 0.
    min_dwell: fewest tokens between changes, at least 1.
    start_large: whether the large model writes the first token.

  Returns:
    Whether the large model writes token t, bool `[..., T]`; it depends on the entropies before t.
    A mean of NaN wants the small model.

  Raises:
    ValueError: if `window` < 1, `min_dwell` < 1 or `threshold` < 0.

  Reference: Simonds, 2025, https://arxiv.org/abs/2502.06833.
  """
  control = check_switching(threshold, window, min_dwell, start_large)
  check_arrays(entropies=(entropies, "[..., T]"))
  return _schedule(as_accumulator(entropies), control.threshold, *control[1:])


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _schedule(entropies, threshold, window, min_dwell, start_large) -> jax.Array:
  control = SwitchControl(threshold, window, min_dwell, start_large)

  def advance(switch, entropy):
    return observe_entropies(switch, entropy, control), switch.large

  rows = jnp.moveaxis(entropies, -1, 0)
  switch = first_switch_state(rows.shape[1:], entropies.dtype, control)
  switch = varying_carry(advance, switch, rows) if len(rows) else switch
  return jnp.moveaxis(jax.lax.scan(advance, switch, rows)[1], 0, -1)


class SwitchControl(NamedTuple):
  """When to change models, as in `switch_schedule`.

  Attributes:
    threshold: mean entropy above which the large model is wanted.
    window: number of last tokens in the mean.
    min_dwell: fewest tokens between changes.
    start_large: whether the large model writes the first token.
  """

  threshold: chex.Numeric
  window: int
  min_dwell: int
  start_large: bool


class SwitchState(NamedTuple):
  """Where the rows stand.

  Attributes:
    recent: the last entropies, `[..., window]`, 0 where there are none yet.
    num_recent: how many there are, i32 scalar.
    large: whether the large model writes the next token, bool `[...]`.
    dwell: tokens that this model has then written on end, i32 `[...]`.
  """

  recent: chex.Array
  num_recent: chex.Array
  large: chex.Array
  dwell: chex.Array


def check_switching(
  threshold: chex.Numeric, window: int, min_dwell: int, start_large: bool
) -> SwitchControl:
  """Raises if an option lies outside its range.

  Args:
    threshold, window, min_dwell, start_large: as in `switch_schedule`.

  Returns:
    The `SwitchControl`.

  Raises:
    ValueError: naming the option and its value.
  """
  check_at_least(1, window=window, min_dwell=min_dwell)
  check_range("threshold", threshold, "[0, inf]")
  return SwitchControl(threshold, window, min_dwell, bool(start_large))


def first_switch_state(shape: tuple[int, ...], dtype: Any, control: SwitchControl) -> SwitchState:
  """The state for the first token.

  Args:
    shape: of the rows.
    dtype: of the entropies.
    control: the options.

  Returns:
    The `SwitchState`.
  """
  return SwitchState(
    jnp.zeros((*shape, control.window), dtype),
    jnp.zeros((), jnp.int32),
    jnp.full(shape, control.start_large),
    jnp.ones(shape, jnp.int32),
  )


def observe_entropies(
  state: SwitchState, entropies: chex.Array, control: SwitchControl
) -> SwitchState:
  """The state for the next token, after one token of each row.

  Args:
    state: the state for this token.
    entropies: entropy of the prediction that it was drawn from, `[...]`.
    control: the options.

  Returns:
    The next `SwitchState`.
  """
  recent = jnp.concatenate([state.recent[..., 1:], entropies[..., None]], axis=-1)
  num_recent = jnp.minimum(state.num_recent + 1, control.window)
  is_wanted = jnp.sum(recent, axis=-1) / num_recent > control.threshold
  large = jnp.where(state.dwell >= control.min_dwell, is_wanted, state.large)
  dwell = jnp.where(large == state.large, state.dwell + 1, 1)
  return SwitchState(recent, num_recent, large, dwell)


def switching_cost(
  use_large: chex.Array,
  *,
  mask: chex.Array | None = None,
  small_params: chex.Numeric,
  large_params: chex.Numeric,
) -> jax.Array:
  """Cost of a text relative to the large model alone, by parameters that write a token.

  Args:
    use_large: whether the large model wrote each token, bool `[..., T]`.
    mask: 1 or True for tokens that count, `[..., T]` or a shape that broadcasts to it; None for
      all.
    small_params: parameters of the small model, positive.
    large_params: parameters of the large one, positive.

  Returns:
    `u + (1 - u) small_params / large_params` for a share u of tokens by the large model, `[...]`,
    float32; 0 without tokens.

  Raises:
    TypeError: if `use_large` is not boolean.
    ValueError: if a number of parameters is not positive.

  Reference: Simonds, 2025, https://arxiv.org/abs/2502.06833.
  """
  check_arrays(use_large=(use_large, "bool [..., T]"))
  check_range("small_params", small_params, "(0, inf)")
  check_range("large_params", large_params, "(0, inf)")
  counted = as_mask(mask, jnp.shape(use_large))
  ratio = jnp.asarray(small_params, float) / jnp.asarray(large_params, float)
  costs = jnp.where(counted, jnp.where(jnp.asarray(use_large), 1.0, ratio), 0.0)
  return jnp.sum(costs, axis=-1) / jnp.maximum(jnp.sum(counted, axis=-1), 1)
