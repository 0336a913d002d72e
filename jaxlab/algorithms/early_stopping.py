"""Predictive early stopping: end a run that is unlikely to beat the best one so far."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_choice, check_range
from jaxlab._programs import compiled_once, varying_carry


class EarlyStoppingRun(NamedTuple):
  """Steps spent on every run `i32[n]`, best value after every run `[n]`, and all steps spent."""

  steps_used: chex.Array
  best_so_far: chex.Array
  total_steps: chex.Array


def predictive_stop(
  exceedance: chex.Array, *, confidence: chex.Numeric = 0.95, horizon: str = "final"
) -> chex.Array:
  """Decides which runs to stop from the probabilities that they will exceed the best value.

  "final" stops a run whose last value is unlikely to exceed the best one. "any" stops it only if
  this holds at every step still to come, so a run that may peak early is kept.

  Args:
    exceedance: probability of exceeding the best value at each step still to come, `[n, steps]`;
      the last column is the final step. NaN keeps a run going.
    confidence: a run stops when its probability lies strictly below `1 - confidence`; in (0, 1).
    horizon: "final" for the last step only, "any" for the largest probability of all steps.

  Returns:
    Which runs to stop, `bool[n]`.

  Raises:
    ValueError: if `confidence` lies outside (0, 1), `horizon` is unknown, or `exceedance` is not
      `[n, steps]` or has no steps.

  Reference: Adriaensen et al., Efficient Bayesian Learning Curve Extrapolation using Prior-Data
  Fitted Networks, NeurIPS 2023, section 5, https://arxiv.org/abs/2310.20447.
  """
  _check_rule(confidence, horizon)
  exceedance = as_accumulator(exceedance)
  check_arrays(exceedance=(exceedance, "[n, steps]"))
  check_at_least(1, **{"the number of steps in exceedance": exceedance.shape[1]})
  chance = exceedance[:, -1] if horizon == "final" else jnp.max(exceedance, axis=1)
  return chance < 1 - confidence


def run_with_early_stopping(
  curves: chex.Array,
  exceedance_fn: Callable[[chex.Array, chex.Array, chex.Array], chex.Array],
  *,
  confidence: chex.Numeric = 0.95,
  horizon: str = "any",
  min_steps: int = 1,
  interval: int = 1,
) -> EarlyStoppingRun:
  """Replays finished runs in order, stopping each one when it is predicted not to improve.

  Measures what a predictor would have saved: the speed-up is `n T / total_steps`, the regret
  `max(curves) - best_so_far[-1]`. A run is compared with the best value seen in the runs before
  it; the first run, which has none, is never stopped.

  Args:
    curves: values of complete runs, higher is better, `[n, T]`.
    exceedance_fn: maps `(curve[T], observed, best)` to the probability that each step exceeds
      `best`, `[T]`. `observed` (int32) is the number of steps seen; entries before it are ignored,
      and the values of `curve` from it on must not be read. All decisions of a run are evaluated in
      one `jax.vmap`; for the first run `best` is -inf and the result is not used.
    confidence: a run stops when its probability lies strictly below `1 - confidence`; in (0, 1).
    horizon: "final" or "any", see `predictive_stop`.
    min_steps: number of steps before the first decision.
    interval: number of steps between decisions, which are taken at min_steps,
      min_steps + interval, ... below T.

  Returns:
    `EarlyStoppingRun(steps_used i32[n], best_so_far[n], total_steps)`; `best_so_far[i]` is the
    highest value seen in runs 0..i, NaN if one was seen in run i.

  Raises:
    ValueError: if `confidence` lies outside (0, 1), `horizon` is unknown, `min_steps` or
      `interval` is below 1, or `curves` or what `exceedance_fn` gives has another shape.

  Reference: Adriaensen et al., NeurIPS 2023, section 5, https://arxiv.org/abs/2310.20447.
  """
  _check_rule(confidence, horizon)
  check_at_least(1, min_steps=min_steps, interval=interval)
  curves = as_accumulator(curves)
  check_arrays(curves=(curves, "[n, T]"))
  check_at_least(1, **{"the number of steps in curves": curves.shape[1]})
  return _replay(curves, exceedance_fn, confidence, horizon, min_steps, interval)


@compiled_once
def _replay(curves, exceedance_fn, confidence, horizon, min_steps, interval) -> EarlyStoppingRun:
  length = curves.shape[1]
  decisions = jnp.arange(min_steps, length, interval, dtype=jnp.int32)
  steps = jnp.arange(length)

  def stopping_step(curve, best):
    if not decisions.size:
      return jnp.int32(length)
    exceedance = jax.vmap(lambda observed: exceedance_fn(curve, observed, best))(decisions)
    check_arrays(exceedance=(exceedance, f"[*, {length}]"))
    to_come = jnp.where(steps[None] >= decisions[:, None], exceedance, -jnp.inf)
    stop = predictive_stop(to_come, confidence=confidence, horizon=horizon)
    return jnp.min(jnp.where(stop, decisions, length))

  def run(best, inputs):
    index, curve = inputs
    used = jnp.where(index == 0, length, stopping_step(curve, best))
    seen = jnp.where(steps < used, curve, -jnp.inf)
    lost = jnp.any(jnp.isnan(seen))
    best = jnp.maximum(best, jnp.max(jnp.where(jnp.isnan(seen), -jnp.inf, seen)))
    return best, (used.astype(jnp.int32), jnp.where(lost, jnp.nan, best))

  rows = (jnp.arange(curves.shape[0]), curves)
  start = varying_carry(run, jnp.array(-jnp.inf, curves.dtype), rows)
  _, (steps_used, best_so_far) = jax.lax.scan(run, start, rows)
  return EarlyStoppingRun(steps_used, best_so_far, jnp.sum(steps_used))


def _check_rule(confidence: chex.Numeric, horizon: str) -> None:
  check_choice("horizon", horizon, ("final", "any"))
  check_range("confidence", confidence, "(0, 1)")
