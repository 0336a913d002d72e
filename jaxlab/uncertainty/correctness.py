"""Temperatures per sample, from how a prediction changes when its input is transformed."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_at_least,
  check_filled,
  check_range,
  is_known,
)
from jaxlab.losses.calibration import correctness_aware_loss
from jaxlab.uncertainty.temperature import apply_temperature


class AdaptiveTemperature(NamedTuple):
  """Parameters of a network with one hidden layer, from cues to a temperature.

  Attributes:
    hidden_kernel: `[cues, hidden]`.
    hidden_bias: `[hidden]`.
    kernel: `[hidden]`.
    bias: scalar.
  """

  hidden_kernel: chex.Array
  hidden_bias: chex.Array
  kernel: chex.Array
  bias: chex.Array


def transform_cues(
  logits: chex.Array, transformed_logits: chex.Array, *, top_k: int = 4
) -> chex.Array:
  """Probabilities that transformed versions of an input give to the classes ranked first.

  A right prediction tends to survive rotation, blur or noise; for a narrow miss the ranking of the
  classes tends to change. The cues thus tell right from wrong without a label.

  Args:
    logits: scores of the inputs, `[b, k]`.
    transformed_logits: scores of t transformed versions of them, `[t, b, k]`.
    top_k: number of classes, those with the largest `logits` (the first ones on ties).

  Returns:
    Cues `[b, t * top_k]`, float32 or wider: for one version after the other, the probabilities of
    these classes, sorted by `logits`. NaN in rows of `logits` with a NaN.

  Raises:
    ValueError: if `top_k` does not lie in [1, k] or the shapes do not fit.

  Reference: Liu et al., Optimizing Calibration by Gaining Aware of Prediction Correctness, 2024,
  section 4.2, https://arxiv.org/abs/2404.13016.
  """
  check_arrays(logits=(logits, "[b, k]"), transformed_logits=(transformed_logits, "[t, b, k]"))
  check_range("top_k", top_k, f"[1, {jnp.shape(logits)[1]}]")
  logits, transformed_logits = as_accumulator(logits, transformed_logits)
  classes = jax.lax.top_k(logits, top_k)[1]
  ranked = ~jnp.any(jnp.isnan(logits), axis=-1, keepdims=True)
  probs = jnp.where(ranked[None], jax.nn.softmax(transformed_logits), jnp.nan)
  cues = jnp.take_along_axis(probs, classes[None], axis=-1)
  return jnp.moveaxis(cues, 0, 1).reshape(logits.shape[0], probs.shape[0] * top_k)


def init_adaptive_temperature(
  key: chex.PRNGKey, *, num_cues: int, hidden: int = 5
) -> AdaptiveTemperature:
  """Draws the parameters of `adaptive_temperature`.

  The last bias is 1.5, so that the initial temperatures lie inside the allowed interval; outside it
  no gradient flows.

  Args:
    key: random key.
    num_cues: number of cues.
    hidden: width of the hidden layer.

  Returns:
    An `AdaptiveTemperature`, float32.

  Raises:
    ValueError: if `num_cues` or `hidden` is less than 1.

  Reference: Liu et al., Optimizing Calibration by Gaining Aware of Prediction Correctness, 2024,
  section 4.2, https://arxiv.org/abs/2404.13016.
  """
  check_at_least(1, num_cues=num_cues, hidden=hidden)
  keys = jax.random.split(key, 3)

  def uniform(key, shape, fan_in):
    return jax.random.uniform(key, shape, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)

  return AdaptiveTemperature(
    hidden_kernel=uniform(keys[0], (num_cues, hidden), num_cues),
    hidden_bias=uniform(keys[1], (hidden,), hidden),
    kernel=uniform(keys[2], (hidden,), hidden),
    bias=jnp.float32(1.5),
  )


def adaptive_temperature(
  params: AdaptiveTemperature,
  cues: chex.Array,
  *,
  min_temperature: chex.Numeric = 0.1,
  max_temperature: chex.Numeric = 10.0,
) -> chex.Array:
  """One temperature per sample.

  Args:
    params: from `init_adaptive_temperature` or `fit_adaptive_temperature`.
    cues: `[b, cues]`.
    min_temperature: lower bound on temperatures; the network gets no gradient where it is below.
    max_temperature: upper bound on temperatures; the network gets no gradient where it is above.

  Returns:
    Temperatures `[b]` for `apply_temperature`, float32 or wider.

  Raises:
    ValueError: if `min_temperature` is not positive or not below `max_temperature`.

  Reference: Liu et al., Optimizing Calibration by Gaining Aware of Prediction Correctness, 2024,
  section 4.2, https://arxiv.org/abs/2404.13016.
  """
  check_range("min_temperature", min_temperature, "(0, inf)")
  lowest = min_temperature if is_known(min_temperature) else 0.0
  check_range("max_temperature", max_temperature, f"({lowest}, inf)")
  check_arrays(cues=(cues, f"[*, {params.hidden_kernel.shape[0]}]"))
  hidden = jax.nn.relu(as_accumulator(cues) @ params.hidden_kernel + params.hidden_bias[None])
  return jnp.clip(hidden @ params.kernel + params.bias, min_temperature, max_temperature)


def fit_adaptive_temperature(
  key: chex.PRNGKey,
  logits: chex.Array,
  cues: chex.Array,
  labels: chex.Array,
  *,
  loss_fn: Callable[[chex.Array, chex.Array], chex.Array] = correctness_aware_loss,
  num_steps: int = 2000,
  batch_size: int = 1000,
  learning_rate: chex.Numeric = 1e-3,
  hidden: int = 5,
) -> AdaptiveTemperature:
  """Fits `adaptive_temperature` to held-out data by Adam.

  Args:
    key: random key for the initial parameters and the order of the rows.
    logits: held-out scores, `[n, k]`.
    cues: cues from `transform_cues`, `[n, cues]`.
    labels: true classes, int `[n]`; negative ones in a JAX array reach `loss_fn` as k.
    loss_fn: `(calibrated logits [b, k], labels [b]) -> losses [b]`, whose mean is minimized.
    num_steps: number of updates, run as one program.
    batch_size: rows per update. Epochs are shuffled and their incomplete last batch is dropped; a
      smaller set is used whole.
    learning_rate: learning rate of Adam, not negative.
    hidden: width of the hidden layer.

  Returns:
    An `AdaptiveTemperature`.

  Raises:
    ValueError: if `logits` is empty, `num_steps`, `batch_size` or `hidden` is less than 1,
      `learning_rate` is negative, or a known label lies outside the classes.

  Reference: Liu et al., Optimizing Calibration by Gaining Aware of Prediction Correctness, 2024,
  section 4, https://arxiv.org/abs/2404.13016.
  """
  check_arrays(logits=(logits, "[n, k]"), cues=(cues, "[n, c]"), labels=(labels, "int [n]"))
  check_filled(logits=logits)
  num_rows, num_classes = jnp.shape(logits)
  check_at_least(1, num_steps=num_steps, batch_size=batch_size)
  check_range("learning_rate", learning_rate, "[0, inf)")
  logits, cues = as_accumulator(logits, cues)
  labels = as_classes("labels", labels, num_classes)
  check_at_least(1, num_cues=cues.shape[1], hidden=hidden)
  return _fit(
    key,
    logits,
    cues,
    labels,
    learning_rate,
    loss_fn=loss_fn,
    num_steps=num_steps,
    batch_size=min(batch_size, num_rows),
    hidden=hidden,
  )


@functools.partial(jax.jit, static_argnames=("loss_fn", "num_steps", "batch_size", "hidden"))
def _fit(key, logits, cues, labels, learning_rate, *, loss_fn, num_steps, batch_size, hidden):
  num_rows = logits.shape[0]
  optimizer = optax.adam(learning_rate)
  init_key, order_key = jax.random.split(key)
  params = init_adaptive_temperature(init_key, num_cues=cues.shape[1], hidden=hidden)
  # Like every update, the start varies over the devices of the data.
  zero = jnp.zeros_like(logits[0, 0] + cues[0, 0] + labels[0] + learning_rate)
  params = jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), params)

  def objective(params, rows):
    temperature = adaptive_temperature(params, cues[rows])
    calibrated = apply_temperature(logits[rows], temperature=temperature)
    return jnp.mean(loss_fn(calibrated, labels[rows]))

  def step(carry, rows):
    params, state = carry
    updates, state = optimizer.update(jax.grad(objective)(params, rows), state, params)
    return (optax.apply_updates(params, updates), state), None

  per_epoch = num_rows // batch_size
  epoch_keys = jax.random.split(order_key, -(-num_steps // per_epoch))
  orders = jax.lax.map(lambda k: jax.random.permutation(k, num_rows), epoch_keys)
  rows = orders[:, : per_epoch * batch_size].reshape(-1, batch_size)[:num_steps]
  return jax.lax.scan(step, (params, optimizer.init(params)), rows)[0][0]
