import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import weights


def trees():
  rng = np.random.default_rng(0)
  average = {"w": rng.normal(size=(3, 2)).astype(np.float32), "steps": np.int32(3)}
  params = {"w": rng.normal(size=(3, 2)).astype(np.float32), "steps": np.int32(8)}
  return average, params


def test_update_is_the_weighted_mean_and_copies_counters():
  average, params = trees()
  new = jax.jit(weights.ema_update)(average, params)
  np.testing.assert_allclose(new["w"], 0.999 * average["w"] + 0.001 * params["w"], rtol=1e-6)
  assert new["steps"] == 8 and new["steps"].dtype == jnp.int32


def test_decay_1_freezes_and_0_copies_bitwise():
  average, params = trees()
  frozen = weights.ema_update(average, params, decay=1.0)
  copied = weights.ema_update(average, params, decay=0.0)
  np.testing.assert_array_equal(frozen["w"], average["w"])
  np.testing.assert_array_equal(copied["w"], params["w"])


def test_average_keeps_its_dtype():
  half = weights.ema_update({"w": jnp.ones(2, jnp.bfloat16)}, {"w": jnp.zeros(2)}, decay=0.5)
  assert half["w"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(half["w"].astype(jnp.float32), 0.5)
  wide = weights.ema_update({"w": jnp.ones(2)}, {"w": jnp.zeros(2, jnp.bfloat16)}, decay=0.25)
  assert wide["w"].dtype == jnp.float32


def test_decay_may_be_a_vmapped_schedule():
  average, params = trees()
  many = jax.vmap(lambda d: weights.ema_update(average, params, decay=d))(jnp.array([0.2, 0.9]))
  one = weights.ema_update(average, params, decay=0.9)
  np.testing.assert_allclose(many["w"][1], one["w"], rtol=1e-6)


@pytest.mark.parametrize("decay", [-0.1, 1.5, np.nan])
def test_decay_outside_the_interval_raises(decay):
  with pytest.raises(ValueError, match="decay"):
    weights.ema_update(jnp.ones(2), jnp.ones(2), decay=decay)


def test_different_trees_raise():
  with pytest.raises(ValueError):
    weights.ema_update({"a": jnp.ones(2)}, {"b": jnp.ones(2)})
  with pytest.raises(ValueError, match="params must have shape"):
    weights.ema_update({"a": jnp.ones(2)}, {"a": jnp.ones((1, 2))})
