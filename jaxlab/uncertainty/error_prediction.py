"""Epistemic uncertainty as predicted error: targets and features of the model that predicts it.

The excess risk of a predictor at an input is its expected loss there minus the noise. A second
model learns the loss from errors on points that the first has not seen, and so notices what a
variance does not: that the first cannot represent the truth.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import (
  as_accumulator,
  as_classes,
  check_arrays,
  check_broadcast,
  check_choice,
  check_filled,
  check_range,
)
from jaxlab.losses.latent import squared_distances

_KINDS = ("log_squared", "squared", "inverse_softplus")
_FEATURES = ("x", "density", "distance", "variance", "seen")


def error_target(
  predictions: chex.Array,
  targets: chex.Array,
  *,
  kind: str = "log_squared",
  min_value: chex.Numeric = -10.0,
) -> jax.Array:
  """What a model of a predictor's error is trained on.

  Args:
    predictions: of the main predictor, `[...]`.
    targets: `[...]`.
    kind: "squared", the squared error s; "log_squared", log(s); or "inverse_softplus",
      s + log(1 - exp(-s)), whose softplus is s.
    min_value: smallest value of the two unbounded kinds, that of no error.

  Returns:
    `[...]` in float32 or wider, without a gradient into the predictor.

  Raises:
    ValueError: if `kind` is unknown or the shapes differ.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023,
  https://arxiv.org/abs/2102.08501.
  """
  check_choice("kind", kind, _KINDS)
  check_arrays(predictions=(predictions, "[...]"), targets=(targets, "[...]"))
  predictions, targets = as_accumulator(predictions, targets)
  error = jax.lax.stop_gradient(predictions - targets)
  if kind == "squared":
    return jnp.square(error)
  if kind == "log_squared":
    return jnp.maximum(2 * jnp.log(jnp.abs(error)), min_value)
  squared = jnp.square(error)
  return jnp.maximum(squared + jnp.log(-jnp.expm1(-squared)), min_value)


def error_from_target(
  values: chex.Array,
  *,
  kind: str = "log_squared",
  min_value: chex.Numeric = -20.0,
  max_value: chex.Numeric = 3.0,
) -> jax.Array:
  """The squared error that a predicted value of `error_target` stands for.

  Args:
    values: predictions of the error model, `[...]`.
    kind: as in `error_target`.
    min_value: smallest logarithm, for "log_squared".
    max_value: largest logarithm, for "log_squared".

  Returns:
    Errors, >= 0, float32 or wider `[...]`.

  Raises:
    ValueError: if `kind` is unknown.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023,
  https://arxiv.org/abs/2102.08501.
  """
  check_choice("kind", kind, _KINDS)
  check_arrays(values=(values, "[...]"))
  values = as_accumulator(values)
  if kind == "squared":
    return jax.nn.relu(values)
  if kind == "log_squared":
    return jnp.exp(jnp.clip(values, min_value, max_value))
  return jax.nn.softplus(values)


def classification_error_target(
  logits: chex.Array, labels: chex.Array, *, min_value: chex.Numeric = -5.0
) -> jax.Array:
  """What a model of a classifier's error is trained on: the magnitude of its binary losses.

  Args:
    logits: scores of independent classes, `[b, k]`.
    labels: classes, int `[b]`; a traced label outside the classes gives NaN.
    min_value: smallest value.

  Returns:
    Base-10 logarithm of the sum of the classes' sigmoid cross-entropies, float32 or wider `[b]`,
    without a gradient.

  Raises:
    ValueError: if a known label lies outside the classes or the shapes do not fit.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023,
  https://arxiv.org/abs/2102.08501.
  """
  check_arrays(logits=(logits, "[b, k]"), labels=(labels, "int [b]"))
  logits = jax.lax.stop_gradient(as_accumulator(logits))
  num_classes = logits.shape[1]
  labels = as_classes("labels", labels, num_classes)
  is_label = jnp.arange(num_classes, dtype=labels.dtype)[None] == labels[:, None]
  total = jnp.sum(jax.nn.softplus(jnp.where(is_label, -logits, logits)), axis=1)
  return jnp.where(labels < num_classes, jnp.maximum(jnp.log10(total), min_value), jnp.nan)


def epistemic_from_error(total_error: chex.Array, aleatoric: chex.Numeric) -> jax.Array:
  """Excess risk: the part of an expected error that more data, or a better model, would remove.

  Args:
    total_error: expected error of the predictor, `[...]`; the arguments are broadcast.
    aleatoric: expected error of the best predictor: the variance of the noise for squared errors, 0
      without noise, or the mean of `replicate_variance`.

  Returns:
    `max(total_error - aleatoric, 0)`, float32 or wider.

  Raises:
    ValueError: if the shapes do not broadcast.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023,
  https://arxiv.org/abs/2102.08501.
  """
  check_broadcast(total_error=total_error, aleatoric=aleatoric)
  total_error, aleatoric = jnp.broadcast_arrays(*as_accumulator(total_error, aleatoric))
  return jnp.maximum(total_error - aleatoric, 0.0)


def replicate_variance(values: chex.Array) -> jax.Array:
  """Unbiased variance of repeated measurements of the same inputs.

  Args:
    values: `[..., k]`, k >= 2.

  Returns:
    Variances with divisor k - 1, float32 or wider `[...]`; their mean estimates the noise.

  Raises:
    ValueError: if k < 2.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023,
  https://arxiv.org/abs/2102.08501.
  """
  check_arrays(values=(values, "[..., k]"))
  values = as_accumulator(values)
  if values.shape[-1] < 2:
    raise ValueError(f"values must hold at least 2 measurements, got {values.shape[-1]}.")
  return jnp.var(values, axis=-1, ddof=1)


def seen_indicator(
  x: chex.Array,
  training_x: chex.Array,
  *,
  epsilon: chex.Numeric = 1e-3,
  mask: chex.Array | None = None,
) -> jax.Array:
  """Whether inputs are among the training inputs.

  Args:
    x: `[n, d]`.
    training_x: `[m, d]`.
    epsilon: nearer than this counts as the same, > 0.
    mask: which rows of `training_x` count, bool `[m]`; None for all.

  Returns:
    1 or 0, float32 or wider `[n]`, without a gradient.

  Raises:
    ValueError: if `epsilon` <= 0 or the shapes do not fit.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023,
  https://arxiv.org/abs/2102.08501.
  """
  check_range("epsilon", epsilon, "(0, inf)")
  distance = jax.lax.stop_gradient(nearest_distance(x, training_x, mask=mask))
  return jnp.where(jnp.isnan(distance), distance, (distance < epsilon).astype(distance.dtype))


def nearest_distance(
  x: chex.Array, training_x: chex.Array, *, mask: chex.Array | None = None
) -> jax.Array:
  """Distance to the nearest training input.

  Args:
    x: `[n, d]`.
    training_x: `[m, d]`.
    mask: which rows of `training_x` count, bool `[m]`; None for all.

  Returns:
    Float32 or wider `[n]`; infinite without training inputs. The gradient at distance 0 is 0.

  Raises:
    ValueError: if the shapes do not fit.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023,
  https://arxiv.org/abs/2102.08501.
  """
  check_arrays(x=(x, "[n, d]"), training_x=(training_x, "[m, d]"), mask=(mask, "bool [m]"))
  x, training_x = as_accumulator(x, training_x)
  unknown = jnp.isnan(x).any(axis=1)
  if training_x.shape[0] == 0:
    return jnp.where(unknown, jnp.nan, jnp.full(x.shape[:1], jnp.inf, x.dtype))
  if mask is not None:
    mask = jnp.asarray(mask)
    training_x = jnp.where(mask[:, None], training_x, 0.0)
  squares = squared_distances(x, training_x)
  if mask is not None:
    squares = jnp.where(mask[None], squares, jnp.inf)
  nearest = jnp.min(squares, axis=1)
  is_apart = (nearest > 0) & ~jnp.isinf(nearest)
  distance = jnp.where(is_apart, jnp.sqrt(jnp.where(is_apart, nearest, 1.0)), nearest)
  return jnp.where(unknown, jnp.nan, distance)


def min_max_scale(values: chex.Array, low: chex.Array, high: chex.Array) -> jax.Array:
  """Scales values so that two extremes become 0 and 1, without clipping.

  Args:
    values: `[...]`; the arguments are broadcast.
    low: smallest value over the domain and the data.
    high: largest value over the domain and the data.

  Returns:
    `(values - low) / (high - low)`, float32 or wider; 0 where the extremes are equal.

  Raises:
    ValueError: if the shapes do not broadcast.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023,
  https://arxiv.org/abs/2102.08501.
  """
  check_broadcast(values=values, low=low, high=high)
  values, low, high = jnp.broadcast_arrays(*as_accumulator(values, low, high))
  width = high - low
  is_constant = width == 0
  scaled = (values - low) / jnp.where(is_constant, 1.0, width)
  return jnp.where(is_constant & ~jnp.isnan(values), 0.0, scaled)


def error_features(
  x: chex.Array,
  *,
  include: Sequence[str],
  density: chex.Array | None = None,
  distance: chex.Array | None = None,
  variance: chex.Array | None = None,
  seen: chex.Array | None = None,
) -> jax.Array:
  """Stacks what an error model sees of each input.

  Args:
    x: inputs, `[n, d]`.
    include: names of the features to use, of "x", "density", "distance", "variance" and "seen"; the
      columns stand in this order, whatever the order of the names.
    density: log-density of the training inputs, `[n]`; see `smooth_kde_log_density`.
    distance: that of `nearest_distance`, `[n]`.
    variance: of a model of the targets, `[n]`.
    seen: that of `seen_indicator`, `[n]`; 0 for new inputs.

  Returns:
    Float32 or wider `[n, k]`.

  Raises:
    ValueError: if `include` is empty or names an unknown feature, or one that is not given.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023,
  https://arxiv.org/abs/2102.08501.
  """
  check_filled(include=include)
  given = {"density": density, "distance": distance, "variance": variance, "seen": seen}
  check_arrays(x=(x, "[n, d]"), **{name: (column, "[n]") for name, column in given.items()})
  for name in include:
    check_choice("include", name, _FEATURES)
    if name != "x" and given[name] is None:
      raise ValueError(f"include names {name!r}, but {name} is not given.")
  columns = [
    as_accumulator(x) if name == "x" else as_accumulator(given[name])[:, None]
    for name in _FEATURES
    if name in include
  ]
  return jnp.concatenate(columns, axis=1)
