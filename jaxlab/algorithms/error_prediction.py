"""Predictors of a predictor's error: training data out of sample, and a search that uses them.

A model of the error of f is trained on points that f has not seen::

    data = algorithms.cross_validated_errors(
      key, fit, predict, features, x, y, kind="squared", min_value=0.0
    )
    error_model = fit_error(data.features, data.targets)
    total = predict_error(error_model, features_of(new_x))
    epistemic = uncertainty.epistemic_from_error(
      uncertainty.error_from_target(total, kind="squared"), noise_variance
    )
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range
from jaxlab._programs import compiled_once, varying_carry
from jaxlab.algorithms.sequential_optimization import (
  best_free,
  best_so_far,
  checked_grid,
  first_points,
  observations,
)
from jaxlab.uncertainty.acquisition import expected_improvement_gaussian
from jaxlab.uncertainty.error_prediction import (
  epistemic_from_error,
  error_from_target,
  error_target,
)

# Repeats and folds of the search's first errors, and the smallest targets then and later.
_NUM_REPEATS, _NUM_FOLDS, _FIRST_MIN, _MIN = 2, 2, -20.0, -10.0
_MIN_VARIANCE = 1e-6  # Added to the predicted excess risk of a candidate.


class ErrorBufferState(NamedTuple):
  """Training data of a model of errors.

  Attributes:
    features: float32 `[capacity, num_features]`; zeros in empty rows.
    targets: float32 `[capacity]`.
    size: rows ever written, int32 scalar; row r lies at r mod capacity.
  """

  features: chex.Array
  targets: chex.Array
  size: chex.Array


class ErrorBuffer(NamedTuple):
  """`init() -> state` and `update(state, features, targets) -> state`."""

  init: Callable[[], ErrorBufferState]
  update: Callable[[ErrorBufferState, chex.Array, chex.Array], ErrorBufferState]


class ErrorData(NamedTuple):
  """Features `[r, k]` of points and the error there `[r]`, on the scale of the targets."""

  features: chex.Array
  targets: chex.Array


class ErrorPredictionRun(NamedTuple):
  """The course of a search.

  Attributes:
    indices: candidates in the order in which they were evaluated, int32 `[num_init + num_steps]`,
      all different.
    best: highest value seen up to and including each evaluation, `[num_init + num_steps]`; NaN
      where the evaluation itself gives NaN.
    buffer: the last `ErrorBufferState`.
  """

  indices: chex.Array
  best: chex.Array
  buffer: ErrorBufferState


def error_buffer(*, capacity: int, num_features: int) -> ErrorBuffer:
  """Keeps the last errors, the oldest being overwritten.

  Args:
    capacity: rows that are kept.
    num_features: number k of features.

  Returns:
    An `ErrorBuffer`. `update` takes features `[r, k]` and targets `[r]` with r at most `capacity`;
    no gradient flows into the buffer. `jnp.arange(capacity) < state.size` masks the empty rows.

  Raises:
    ValueError: if `capacity` or `num_features` < 1; on a call, if the shapes do not fit, or there
      are more rows than the capacity.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023, algorithm 2,
  https://arxiv.org/abs/2102.08501.
  """
  check_at_least(1, capacity=capacity, num_features=num_features)

  def init():
    features = jnp.zeros((capacity, num_features), jnp.float32)
    return ErrorBufferState(features, jnp.zeros(capacity, jnp.float32), jnp.int32(0))

  def update(state, features, targets):
    check_arrays(features=(features, f"[r, {num_features}]"), targets=(targets, "[r]"))
    features, targets = jax.lax.stop_gradient((jnp.asarray(features), jnp.asarray(targets)))
    num_rows = targets.shape[0]
    if num_rows > capacity:
      raise ValueError(f"targets must be at most {capacity}, the capacity, got {num_rows}.")
    rows = (state.size + jnp.arange(num_rows, dtype=jnp.int32)) % capacity
    return ErrorBufferState(
      state.features.at[rows].set(features.astype(state.features.dtype)),
      state.targets.at[rows].set(targets.astype(state.targets.dtype)),
      state.size + num_rows,
    )

  return ErrorBuffer(init, update)


def cross_validated_errors(
  key: chex.PRNGKey,
  fit_fn: Callable[..., Any],
  predict_fn: Callable[[Any, chex.Array], chex.Array],
  feature_fn: Callable[..., chex.Array],
  x: chex.Array,
  y: chex.Array,
  *,
  num_repeats: int = 2,
  num_folds: int = 2,
  kind: str = "log_squared",
  min_value: chex.Numeric = -20.0,
) -> ErrorData:
  """Errors of a predictor inside and outside its training data, by repeated cross-validation.

  Each fold in turn is left out of the training of the predictor, whose errors on ALL points are
  then recorded, with features that know its training data.

  Args:
    key: random key of the folds and of the fits.
    fit_fn: `fit_fn(key, x[n, d], y[n], mask[n], None) -> model`; rows where `mask` is False are
      left out, and are zeros.
    predict_fn: `predict_fn(model, x[n, d]) -> [n]`.
    feature_fn: `feature_fn(model, x[n, d], training_x[n, d], mask[n]) -> [n, k]`, such as
      `error_features` of densities and of which points were seen.
    x: inputs, `[n, d]`.
    y: targets, `[n]`.
    num_repeats: number of random partitions.
    num_folds: parts of each, which differ by at most one point; at most n.
    kind: as in `error_target`.
    min_value: as in `error_target`.

  Returns:
    `ErrorData` with n · num_repeats · num_folds rows, in the order repeat, fold, point.

  Raises:
    ValueError: if `num_repeats` < 1, `num_folds` lies outside [2, n], `kind` is unknown or the
      shapes do not fit.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023, algorithm 1,
  https://arxiv.org/abs/2102.08501.
  """
  x, y = jnp.asarray(x), jnp.asarray(y)
  check_arrays(x=(x, "[n, d]"), y=(y, "[n]"))
  check_at_least(1, num_repeats=num_repeats)
  check_at_least(2, num_folds=num_folds)
  if num_folds > y.shape[0]:
    raise ValueError(f"num_folds must be at most the number of points, got {num_folds}.")
  callbacks = fit_fn, predict_fn, feature_fn
  return _cross_validate(key, x, y, callbacks, num_repeats, num_folds, kind, min_value)


@compiled_once
def _cross_validate(key, x, y, callbacks, num_repeats, num_folds, kind, min_value) -> ErrorData:
  fit_fn, predict_fn, feature_fn = callbacks
  num_points = y.shape[0]
  places = jnp.arange(num_points) * num_folds // num_points

  def run(repeat_and_fold):
    repeat, fold = repeat_and_fold
    order_key, fit_key = jax.random.split(jax.random.fold_in(key, repeat))
    order = jax.random.permutation(order_key, num_points)
    mask = jnp.zeros(num_points, places.dtype).at[order].set(places) != fold
    train_x, train_y = jnp.where(mask[:, None], x, 0), jnp.where(mask, y, 0)
    model = fit_fn(jax.random.fold_in(fit_key, fold), train_x, train_y, mask, None)
    features, predictions = _apply(predict_fn, feature_fn, model, x, train_x, mask)
    return features, error_target(predictions, y, kind=kind, min_value=min_value)

  runs = (
    jnp.repeat(jnp.arange(num_repeats), num_folds),
    jnp.tile(jnp.arange(num_folds), num_repeats),
  )
  features, targets = jax.lax.map(run, runs)
  return ErrorData(features.reshape(-1, features.shape[-1]), targets.reshape(-1))


def _apply(predict_fn, feature_fn, model, x, train_x, mask) -> tuple[jax.Array, jax.Array]:
  """Features and predictions of rows."""
  features = as_accumulator(feature_fn(model, x, train_x, mask))
  predictions = as_accumulator(predict_fn(model, x))
  num_rows = x.shape[0]
  check_arrays(
    **{
      "the result of feature_fn": (features, f"[{num_rows}, k]"),
      "the result of predict_fn": (predictions, f"[{num_rows}]"),
    }
  )
  return features, predictions


def optimize_with_error_prediction(
  key: chex.PRNGKey,
  candidates: chex.Array,
  values: chex.Array,
  *,
  fit_fn: Callable[..., Any],
  predict_fn: Callable[[Any, chex.Array], chex.Array],
  feature_fn: Callable[..., chex.Array],
  fit_error_fn: Callable[..., Any],
  predict_error_fn: Callable[[Any, chex.Array], chex.Array],
  num_init: int = 6,
  num_steps: int = 30,
  kind: str = "log_squared",
  aleatoric: chex.Numeric = 0.0,
) -> ErrorPredictionRun:
  """Maximizes a function on a grid by expected improvement, with predicted errors as variances.

  A model of the errors of the main predictor learns from cross-validation on the first points, and
  from the error at each new point before and after the predictor has learned it. `vmap` over `key`
  and `values` runs many searches as one program; `optimize_on_grid` draws the same first points
  from the same key.

  Args:
    key: random key.
    candidates: points that may be evaluated, `[m, d]`.
    values: value of the function at each, `[m]`; higher is better.
    fit_fn: `fit_fn(key, x[n, d], y[n], mask[n], previous) -> model`: n = num_init + num_steps rows
      in the order of evaluation, zeros where `mask` is False; `previous` is the last model, or None
      in the first fit. In the first cross-validation it gets the num_init rows alone.
    predict_fn: `predict_fn(model, x) -> [n]`.
    feature_fn: `feature_fn(model, x, training_x, mask) -> [n, k]`.
    fit_error_fn: `fit_error_fn(features[c, k], targets[c], mask[c]) -> error_model`, with c =
      4 num_init + 2 num_steps.
    predict_error_fn: `predict_error_fn(error_model, features[m, k]) -> [m]`, on the scale of the
      targets.
    num_init: first points, drawn uniformly without replacement, at least 2.
    num_steps: points chosen after them; a candidate is chosen at most once, and ties go to the
      lowest index.
    kind: of the targets, as in `error_target`; the smallest are -20 in the first cross-validation,
      -10 later.
    aleatoric: variance of the noise of the values, subtracted from predicted errors.

  Returns:
    `ErrorPredictionRun(indices, best, buffer)`.

  Raises:
    ValueError: if `num_init` < 2, `num_steps` or a known `aleatoric` is negative, num_init +
      num_steps exceeds m, `kind` is unknown or the shapes do not fit.

  Reference: Lahlou et al., DEUP: Direct Epistemic Uncertainty Prediction, TMLR 2023, algorithm 2,
  https://arxiv.org/abs/2102.08501.
  """
  check_at_least(2, num_init=num_init)
  check_arrays(aleatoric=(aleatoric, "[]"))
  check_range("aleatoric", aleatoric, "[0, inf)")
  candidates, values = checked_grid(candidates, values, num_init, num_steps)
  callbacks = fit_fn, predict_fn, feature_fn, fit_error_fn, predict_error_fn
  return _search(key, candidates, values, callbacks, num_init, num_steps, kind, aleatoric)


class _Carry(NamedTuple):
  indices: jax.Array
  chosen: jax.Array
  buffer: ErrorBufferState
  model: Any


@compiled_once
def _search(
  key, candidates, values, callbacks, num_init, num_steps, kind, aleatoric
) -> ErrorPredictionRun:
  fit_fn, predict_fn, feature_fn, fit_error_fn, predict_error_fn = callbacks
  total = num_init + num_steps
  key_init, key_steps = jax.random.split(key)
  key_steps, key_folds, key_first = jax.random.split(key_steps, 3)
  indices, chosen = first_points(key_init, values.shape[0], num_init, total)
  x, y, mask = observations(candidates, values, indices, num_init)
  first = cross_validated_errors(
    key_folds,
    *(fit_fn, predict_fn, feature_fn),
    *(x[:num_init], y[:num_init]),
    num_repeats=_NUM_REPEATS,
    num_folds=_NUM_FOLDS,
    kind=kind,
    min_value=_FIRST_MIN,
  )
  capacity = _NUM_REPEATS * _NUM_FOLDS * num_init + 2 * num_steps
  keeper = error_buffer(capacity=capacity, num_features=first.features.shape[1])
  buffer = keeper.update(keeper.init(), *first)
  if num_steps == 0:
    return ErrorPredictionRun(indices, best_so_far(values[indices]), buffer)

  def record(buffer, features, predictions, index):
    error = error_target(predictions[index], values[index], kind=kind, min_value=_MIN)
    return keeper.update(buffer, features[index][None], error[None])

  def choose(step, carry):
    indices, chosen, buffer, model = carry
    x, y, mask = observations(candidates, values, indices, step)
    is_first = step == num_init

    def fit_again(model):
      return fit_fn(jax.random.fold_in(key_steps, step), x, y, mask, model)

    # The step is the same in all searches, so that this stays a branch under `vmap`.
    model = jax.lax.cond(is_first, lambda model: model, fit_again, model)
    features, predictions = _apply(predict_fn, feature_fn, model, candidates, x, mask)
    learned = record(buffer, features, predictions, indices[step - 1])
    buffer = jax.tree.map(lambda old, new: jnp.where(is_first, old, new), buffer, learned)
    filled = jnp.arange(capacity) < buffer.size
    error_model = fit_error_fn(buffer.features, buffer.targets, filled)
    expected = error_from_target(predict_error_fn(error_model, features), kind=kind)
    std = jnp.sqrt(epistemic_from_error(expected, aleatoric) + _MIN_VARIANCE)
    best = jnp.max(jnp.where(mask & ~jnp.isnan(y), y, -jnp.inf))
    index = best_free(expected_improvement_gaussian(predictions, std, best), chosen)
    buffer = record(buffer, features, predictions, index)
    return _Carry(indices.at[step].set(index), chosen.at[index].set(True), buffer, model)

  carry = _Carry(indices, chosen, buffer, fit_fn(key_first, x, y, mask, None))
  carry = varying_carry(lambda carry: choose(num_init, carry), carry)
  indices, _, buffer, _ = jax.lax.fori_loop(num_init, total, choose, carry)
  return ErrorPredictionRun(indices, best_so_far(values[indices]), buffer)
