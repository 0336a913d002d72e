import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab.training.state import TrainState, init_state, num_params

PARAMS = {"kernel": np.ones((3, 4), np.float32), "bias": np.zeros(4, np.float32)}


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_the_state_of_step_0(make_key):
  key, optimizer = make_key(3), optax.adam(1e-3)
  state = init_state(key, PARAMS, optimizer, model_state={"mean": jnp.ones(2)})
  assert isinstance(state, TrainState)
  assert state.step.dtype == jnp.int32 and state.step == 0
  assert jax.tree.structure(state.opt_state) == jax.tree.structure(optimizer.init(PARAMS))
  assert state.model_state["mean"].tolist() == [1, 1]
  assert state.key.dtype == key.dtype and jnp.all(state.key == key)


def test_no_buffer_is_shared_with_the_caller_or_within_the_state():
  keeps_params = optax.GradientTransformation(lambda params: params, lambda g, s, p: (g, s))
  params, key = jax.tree.map(jnp.asarray, PARAMS), jax.random.PRNGKey(0)
  state = init_state(key, params, keeps_params)
  leaves = jax.tree.leaves((params, key, state))
  assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_leaves_have_strong_types():
  state = init_state(jax.random.key(0), {"a": jnp.asarray(1.0)}, optax.sgd(1.0))
  assert not any(leaf.aval.weak_type for leaf in jax.tree.leaves(state.params))


def test_num_params_counts_without_allocating():
  assert num_params(PARAMS) == 16
  huge = jax.ShapeDtypeStruct((1_000_000, 1_000_000), jnp.bfloat16)
  assert num_params({"huge": huge, "scalar": jnp.ones(())}) == 10**12 + 1
  assert num_params({}) == 0
