import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import samplers


def slow_search(largest, start, gap):
  """The release's rules, as a machine with the three numbers that they name."""
  current, max_ok, min_err, trials = start, None, float("inf"), 0
  while True:
    trials += 1
    if current <= largest:
      max_ok = current
      current = 2 * current if min_err == float("inf") else round((max_ok + min_err) / 2)
    else:
      min_err = min(min_err, current)
      current = round(current / 2) if max_ok is None else round((max_ok + min_err) / 2)
    if min_err - (max_ok or 0) <= 1 or (max_ok and (min_err - max_ok) / min_err <= gap):
      return max_ok or 0, trials


@pytest.mark.parametrize("gap", [0.05, 0.3])
@pytest.mark.parametrize("start", [1, 7, 32, 1000])
def test_search_follows_the_rules_and_ends_near_the_border(start, gap):
  for largest in (0, 1, 2, 3, 5, 31, 32, 33, 100, 999, 12345):
    result = samplers.search_batch_size(
      lambda size, largest=largest: size <= largest, start_batch_size=start, relative_gap=gap
    )
    assert result == slow_search(largest, start, gap)
    found = result.batch_size
    assert found <= largest < found + max(1, math.ceil(gap * found / (1 - gap)))
    assert result.num_trials <= 4 + 2 * abs(math.log2(max(largest, 1) / start)) + math.log2(1 / gap)


def test_linear_costs():
  result = samplers.search_batch_size_linear(cost_per_example=0.3, budget=30.1)
  assert 95 <= result.batch_size <= 100
  exact = samplers.search_batch_size_linear(cost_per_example=0.3, budget=30.1, relative_gap=1e-6)
  assert exact.batch_size == 100
  assert samplers.search_batch_size_linear(cost_per_example=5, budget=4).batch_size == 0


def test_memory_of_a_compiled_function_grows_with_its_arguments():
  def step(x, w):
    return jnp.tanh(x @ w) @ w.T

  w = jax.ShapeDtypeStruct((16, 32), jnp.float32)
  small, large = (
    samplers.compiled_memory_bytes(step, jax.ShapeDtypeStruct((b, 16), jnp.float32), w)
    for b in (8, 4096)
  )
  # Arguments and results at least.
  assert small >= 4 * (2 * 8 * 16 + 16 * 32) and large >= 4 * 2 * 4096 * 16
  assert large > 100 * small / 8


def test_a_backend_that_does_not_analyze_memory_is_named(monkeypatch):
  monkeypatch.setattr("jax.stages.Compiled.memory_analysis", lambda compiled: None)
  with pytest.raises(RuntimeError, match="backend cpu does not analyze memory"):
    samplers.compiled_memory_bytes(jnp.tanh, jax.ShapeDtypeStruct((4,), jnp.float32))


def test_equal_neighbors_are_merged():
  bounds, sizes = samplers.merge_equal_buckets([1.0, 2.0, 3.0, 4.0, 5.0], [8, 8, 4, 4, 8])
  np.testing.assert_array_equal(bounds, [2.0, 4.0, 5.0])
  np.testing.assert_array_equal(sizes, [8, 4, 8])
  assert all(x.shape == (0,) for x in samplers.merge_equal_buckets([], np.zeros(0, int)))


def test_bad_arguments_are_named():
  for name, value, message in (
    ("start_batch_size", 0, "start_batch_size must be at least 1, got 0"),
    ("relative_gap", 1.0, r"relative_gap must lie in \(0, 1\), got 1.0"),
    ("relative_gap", 0.0, r"relative_gap must lie in \(0, 1\), got 0.0"),
  ):
    with pytest.raises(ValueError, match=message):
      samplers.search_batch_size(lambda size: size < 9, **{name: value})
  with pytest.raises(ValueError, match="fits_fn must fail for some batch size"):
    samplers.search_batch_size(lambda size: True)
  with pytest.raises(ValueError, match=r"cost_per_example must lie in \(0, inf\), got 0"):
    samplers.search_batch_size_linear(cost_per_example=0, budget=1)
  with pytest.raises(ValueError, match=r"batch_sizes must have shape \[m\] with m = 2, got \[1\]"):
    samplers.merge_equal_buckets([1.0, 2.0], [3])
