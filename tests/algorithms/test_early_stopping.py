import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.algorithms.early_stopping import predictive_stop, run_with_early_stopping

NUM_RUNS, LENGTH = 6, 7
CURVES = np.random.default_rng(0).uniform(0.2, 0.9, (NUM_RUNS, LENGTH)).astype(np.float32)


def extrapolate(xp, curve, observed, best):
  """A predictor whose probabilities differ by step, decision and best value."""
  last = curve[observed - 1]
  z = 12 * (last - best) + 1.5 * xp.sin(3.0 * xp.arange(LENGTH) + observed)
  return 1 / (1 + xp.exp(-z))


def slow_run(curves, exceedance_fn, confidence, horizon, min_steps, interval):
  best, used, history = -np.inf, [], []
  for i, curve in enumerate(curves):
    steps = LENGTH
    for observed in range(min_steps, LENGTH, interval):
      if i == 0:
        break
      chance = exceedance_fn(curve, observed, best)[observed:]
      chance = chance[-1] if horizon == "final" else chance.max()
      if chance < 1 - confidence:
        steps = observed
        break
    best = max(best, curve[:steps].max())
    used.append(steps)
    history.append(best)
  return used, history


@pytest.mark.parametrize("horizon", ["final", "any"])
@pytest.mark.parametrize(("min_steps", "interval"), [(1, 1), (2, 2), (6, 1), (1, 4)])
def test_matches_loop(horizon, min_steps, interval):
  rules = dict(confidence=0.7, horizon=horizon, min_steps=min_steps, interval=interval)
  run = functools.partial(
    run_with_early_stopping, exceedance_fn=functools.partial(extrapolate, jnp), **rules
  )
  used, history = slow_run(CURVES, functools.partial(extrapolate, np), **rules)
  got = jax.jit(run)(CURVES)
  assert got.steps_used.dtype == jnp.int32
  np.testing.assert_array_equal(got.steps_used, used)
  np.testing.assert_array_equal(got.best_so_far, np.array(history, np.float32))
  assert got.total_steps == sum(used)


def test_some_runs_of_the_comparison_are_stopped():
  used, _ = slow_run(CURVES, functools.partial(extrapolate, np), 0.7, "any", 1, 1)
  assert min(used) < LENGTH and len(set(used)) > 2


def test_certain_success_uses_every_step():
  got = run_with_early_stopping(CURVES, lambda curve, observed, best: jnp.ones(LENGTH))
  assert got.total_steps == NUM_RUNS * LENGTH
  np.testing.assert_array_equal(got.best_so_far, np.maximum.accumulate(CURVES.max(1)))


def test_first_run_is_never_stopped_and_nan_keeps_going():
  hopeless = run_with_early_stopping(
    CURVES, lambda curve, observed, best: jnp.zeros(LENGTH), min_steps=2
  )
  np.testing.assert_array_equal(hopeless.steps_used, [LENGTH] + [2] * (NUM_RUNS - 1))
  never_stopped = run_with_early_stopping(CURVES, lambda c, o, best: jnp.full(LENGTH, jnp.nan))
  assert never_stopped.total_steps == NUM_RUNS * LENGTH


def test_entries_already_observed_are_ignored():
  def fn(curve, observed, best):
    return jnp.where(jnp.arange(LENGTH) < observed, 1.0, 0.0)

  got = run_with_early_stopping(CURVES, fn, horizon="any")
  np.testing.assert_array_equal(got.steps_used, [LENGTH] + [1] * (NUM_RUNS - 1))


def test_no_decision_before_the_end():
  for min_steps in (LENGTH, LENGTH + 3):
    got = run_with_early_stopping(
      CURVES, lambda curve, observed, best: jnp.zeros(LENGTH), min_steps=min_steps
    )
    assert got.total_steps == NUM_RUNS * LENGTH


@functools.cache
def oracle_run(horizon):
  def oracle(curve, observed, best):
    future = jnp.flip(jax.lax.cummax(jnp.flip(curve)))  # largest value still to come
    chance = future if horizon == "any" else jnp.full(LENGTH, curve[-1])
    return (chance > best).astype(jnp.float32)

  run = functools.partial(run_with_early_stopping, exceedance_fn=oracle, horizon=horizon)
  return jax.jit(jax.vmap(run))


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(st.integers(0, 10**6))
def test_perfect_oracle_never_loses_regret(seed):
  curves = np.random.default_rng(seed).uniform(size=(4, NUM_RUNS, LENGTH)).astype(np.float32)
  got = oracle_run("any")(curves)
  np.testing.assert_array_equal(got.best_so_far[:, -1], curves.max((1, 2)))
  assert np.all(got.total_steps < NUM_RUNS * LENGTH)
  # Rising curves peak at the end, where the last value decides.
  curves = np.sort(curves, axis=-1)
  got = oracle_run("final")(curves)
  np.testing.assert_array_equal(got.best_so_far[:, -1], curves.max((1, 2)))


def test_predictive_stop_rules():
  exceedance = jnp.array([[0.9, 0.01], [0.01, 0.9], [0.01, 0.02], [0.04, 0.05], [jnp.nan, 0.01]])
  np.testing.assert_array_equal(predictive_stop(exceedance), [True, False, True, False, True])
  np.testing.assert_array_equal(
    predictive_stop(exceedance, horizon="any"), [False, False, True, False, False]
  )
  # Strictly below.
  half = jnp.full((1, 2), 0.5)
  assert not predictive_stop(half, confidence=0.5)[0]
  assert predictive_stop(half, confidence=0.49)[0]


def test_known_confidence_may_be_an_array_that_a_jitted_function_closes_over():
  confidence, exceedance = jnp.float32(0.9), jnp.array([[0.05], [0.2]])
  got = jax.jit(lambda e: predictive_stop(e, confidence=confidence))(exceedance)
  np.testing.assert_array_equal(got, [True, False])


def test_any_implies_final_and_certainty_never_stops():
  exceedance = np.random.default_rng(1).uniform(1e-4, 0.1, (500, 3)).astype(np.float32)
  stops = {h: np.asarray(predictive_stop(exceedance, horizon=h)) for h in ("any", "final")}
  assert np.all(stops["final"][stops["any"]]) and stops["any"].sum() < stops["final"].sum()
  assert not np.any(predictive_stop(exceedance, confidence=1 - 1e-5))
  counts = jax.vmap(lambda c: jnp.sum(predictive_stop(exceedance, confidence=c)))(
    jnp.array([0.92, 0.95, 0.99])
  )
  assert np.all(np.diff(counts) < 0)


def test_errors():
  def fn(curve, observed, best):
    return jnp.ones(LENGTH)

  for confidence in (0.0, 1.0, 1.5):
    with pytest.raises(ValueError, match=f"confidence.*{confidence}"):
      run_with_early_stopping(CURVES, fn, confidence=confidence)
    with pytest.raises(ValueError, match="confidence"):
      predictive_stop(CURVES, confidence=confidence)
  with pytest.raises(ValueError, match="horizon.*'all'"):
    run_with_early_stopping(CURVES, fn, horizon="all")
  with pytest.raises(ValueError, match="min_steps.*0"):
    run_with_early_stopping(CURVES, fn, min_steps=0)
  with pytest.raises(ValueError, match="interval.*0"):
    run_with_early_stopping(CURVES, fn, interval=0)
  with pytest.raises(ValueError, match="curves must have shape"):
    run_with_early_stopping(CURVES[0], fn)
  with pytest.raises(ValueError, match="exceedance must have shape"):
    run_with_early_stopping(CURVES, lambda curve, observed, best: jnp.ones(LENGTH - 1))


def test_a_diverged_run_does_not_stop_the_later_ones():
  curves = CURVES.copy()
  curves[2, -1] = np.nan
  got = run_with_early_stopping(curves, lambda curve, observed, best: jnp.ones(LENGTH))
  best = np.fmax.accumulate(np.nanmax(curves, axis=1))
  best[2] = np.nan
  np.testing.assert_array_equal(got.best_so_far, best)


def test_runs_without_steps():
  with pytest.raises(ValueError, match="steps in curves must be at least 1, got 0"):
    run_with_early_stopping(np.zeros((3, 0)), functools.partial(extrapolate, jnp))
  with pytest.raises(ValueError, match="steps in exceedance must be at least 1, got 0"):
    predictive_stop(np.zeros((3, 0)))
