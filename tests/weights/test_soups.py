import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import weights

RNG = np.random.default_rng(0)
START = {"w": RNG.normal(size=(3, 2)).astype(np.float32), "steps": np.int32(3)}
END = {"w": RNG.normal(size=(3, 2)).astype(np.float32), "steps": np.int32(8)}
interpolate = jax.jit(weights.interpolate)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 1.5, -2.0])
def test_a_point_on_the_line(weight):
  mixed = interpolate(START, END, weight)
  expected = (1 - weight) * START["w"] + weight * END["w"]
  np.testing.assert_allclose(mixed["w"], expected, rtol=1e-5, atol=1e-6)
  assert mixed["steps"] == 3


def test_both_ends_are_exact():
  for weight, end in ((0.0, START), (1.0, END)):
    np.testing.assert_array_equal(weights.interpolate(START, END, weight)["w"], end["w"])
    np.testing.assert_array_equal(interpolate(START, END, weight)["w"], end["w"])


def test_leaves_keep_their_type_and_the_weight_may_be_mapped():
  start = {"w": jnp.asarray(START["w"], jnp.bfloat16)}
  assert interpolate(start, {"w": END["w"]}, 0.5)["w"].dtype == jnp.bfloat16
  many = jax.jit(jax.vmap(lambda x: weights.interpolate(START, END, x)))(jnp.array([0.5, 2.0]))
  np.testing.assert_allclose(many["w"][1], interpolate(START, END, 2.0)["w"], rtol=1e-6)


def test_errors():
  with pytest.raises(ValueError, match="weight must lie in"):
    weights.interpolate(START, END, np.inf)
  with pytest.raises(ValueError):
    weights.interpolate({"a": jnp.ones(2)}, {"b": jnp.ones(2)}, 0.5)
  with pytest.raises(ValueError, match="^end must have shape"):
    weights.interpolate({"a": jnp.ones(2)}, {"a": jnp.ones((1, 2))}, 0.5)
