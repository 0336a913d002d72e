import jax
import numpy as np
import pytest

from jaxlab.samplers import switch_control

ROWS, T = 6, 30
RNG = np.random.default_rng(0)
ENTROPIES = RNG.gamma(2, 0.5, (ROWS, T)).astype(np.float32)

entropy = jax.jit(switch_control.token_entropy)
schedule = jax.jit(
  switch_control.switch_schedule, static_argnames=("window", "min_dwell", "start_large")
)
cost = jax.jit(switch_control.switching_cost)


def slow_schedule(entropies, window, threshold, min_dwell, start_large):
  large, written, chosen = start_large, 0, []
  for t in range(len(entropies)):
    chosen.append(large)
    written += 1
    mean = np.mean(entropies[max(0, t - window + 1) : t + 1])
    wanted = mean > threshold
    if wanted != large and written >= min_dwell:
      large, written = wanted, 0
  return chosen


@pytest.mark.parametrize(
  "window, min_dwell, start_large", [(5, 10, False), (1, 1, True), (3, 4, True), (2, 3, False)]
)
def test_schedule_matches_a_slow_loop(window, min_dwell, start_large):
  options = {"window": window, "min_dwell": min_dwell, "start_large": start_large}
  for threshold in (0.6, 1.0):
    result = np.asarray(schedule(ENTROPIES, threshold=threshold, **options))
    for row in range(ROWS):
      expected = slow_schedule(ENTROPIES[row].astype(float), threshold=threshold, **options)
      np.testing.assert_array_equal(result[row], expected)
      changes = np.flatnonzero(np.diff(result[row]))
      assert (np.diff([-1, *changes]) >= min_dwell).all()
  assert result.any() and not result.all()


def test_without_inertia_the_next_token_follows_the_last_entropy():
  result = schedule(ENTROPIES, threshold=1.0, window=1, min_dwell=1)
  np.testing.assert_array_equal(result[:, 1:], ENTROPIES[:, :-1] > 1.0)


def test_extreme_thresholds_and_ties():
  assert not np.any(schedule(ENTROPIES, threshold=np.inf, window=1, min_dwell=1))
  assert np.all(schedule(ENTROPIES, threshold=0.0, window=1, min_dwell=1, start_large=True))
  tied = np.full((ROWS, T), 0.5, np.float32)
  assert not np.any(schedule(tied, threshold=0.5, window=1, min_dwell=1))


def test_a_nan_stays_in_its_row():
  entropies = ENTROPIES.copy()
  entropies[2, 3] = np.nan
  options = {"threshold": 1.0, "window": 1, "min_dwell": 1}
  result, clean = schedule(entropies, **options), schedule(ENTROPIES, **options)
  rest = np.arange(ROWS) != 2
  np.testing.assert_array_equal(np.asarray(result)[rest], np.asarray(clean)[rest])
  assert not result[2, 4]


def test_entropy_in_bits_and_other_units():
  logits = np.zeros((3, 8), np.float32)
  logits[1], logits[2, 4:] = np.where(np.arange(8) == 2, 1e4, -1e4), -np.inf
  np.testing.assert_allclose(entropy(logits), [3.0, 0.0, 2.0], atol=1e-6)
  np.testing.assert_allclose(entropy(logits, base=np.e)[0], np.log(8), rtol=1e-6)


def test_cost_is_linear_in_the_share():
  use_large = np.arange(T)[None] < np.array([[0], [12], [15], [30], [0], [7]])
  result = cost(use_large, small_params=3e9, large_params=11e9)
  share = use_large.mean(1)
  np.testing.assert_allclose(result, share + (1 - share) * 3 / 11, rtol=1e-5)
  assert result[3] == 1
  mask = np.arange(T)[None] < np.array([[30], [12], [0], [5], [9], [14]])
  result = cost(use_large, mask=mask, small_params=1.5e9, large_params=14e9)
  share = np.array([np.sum(x & m) / max(np.sum(m), 1) for x, m in zip(use_large, mask)])
  expected = np.where(mask.any(1), share + (1 - share) * 1.5 / 14, 0.0)
  np.testing.assert_allclose(result, expected, rtol=1e-5)


@pytest.mark.parametrize("share, small, large, expected", [(43, 3, 11, 0.585), (25, 1.5, 14, 0.33)])
def test_published_costs(share, small, large, expected):
  use_large = np.arange(100) < share
  result = cost(use_large, small_params=small * 1e9, large_params=large * 1e9)
  np.testing.assert_allclose(result, expected, atol=5e-4)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"window": 0}, "window must be at least 1, got 0"),
    ({"min_dwell": 0}, "min_dwell must be at least 1, got 0"),
    ({"threshold": -0.5}, "threshold must lie in .*-0.5"),
  ],
)
def test_schedule_errors(options, message):
  with pytest.raises(ValueError, match=message):
    switch_control.switch_schedule(ENTROPIES, **{"threshold": 1.0, **options})


def test_large_numbers_of_parameters_may_be_integers():
  params = {"small_params": 7 * 10**9, "large_params": 14 * 10**9}
  result = jax.jit(lambda x: switch_control.switching_cost(x, **params))(np.arange(T) < 15)
  np.testing.assert_allclose(result, 0.75, rtol=1e-6)


def test_errors():
  with pytest.raises(ValueError, match=r"base must lie in \(1, inf\), got 1.0"):
    switch_control.token_entropy(ENTROPIES, base=1.0)
  with pytest.raises(ValueError, match="small_params must lie"):
    switch_control.switching_cost(ENTROPIES > 1, small_params=0, large_params=1)
  with pytest.raises(ValueError, match="large_params must lie"):
    switch_control.switching_cost(ENTROPIES > 1, small_params=1, large_params=-1)
  with pytest.raises(TypeError, match="use_large must be of type bool"):
    switch_control.switching_cost(ENTROPIES, small_params=1, large_params=2)
