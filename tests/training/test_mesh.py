import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxlab.training import mesh as meshes
from jaxlab.training.mesh import (
  data_parallel,
  initialize_multihost,
  local_data_size,
  make_mesh,
  on_mesh,
  replicate,
  shard_batch,
  shard_params,
)

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@pytest.fixture(scope="module")
def grid():
  return make_mesh({"data": 2, "model": 4})


def same(tree, other):
  return all(jax.tree.leaves(jax.tree.map(np.array_equal, tree, other)))


@pytest.mark.parametrize(
  ("axes", "shape"),
  [
    ({"data": -1}, {"data": 8}),
    ({"data": -1, "model": 4}, {"data": 2, "model": 4}),
    ({"data": 8, "model": -1}, {"data": 8, "model": 1}),
    ({"data": 3}, {"data": 3}),
  ],
)
def test_make_mesh(axes, shape):
  mesh = make_mesh(axes)
  assert dict(mesh.shape) == shape
  assert all(kind == AxisType.Auto for kind in mesh.axis_types)


@pytest.mark.parametrize(
  ("axes", "words"),
  [
    ({"data": -1, "model": 3}, "8 devices / 3"),
    ({"data": -1, "model": -1}, "at most one"),
    ({"data": 0}, "positive"),
    ({}, "positive"),
    ({"data": 4, "model": 4}, "need 16 devices, there are 8"),
  ],
)
def test_invalid_sizes_raise(axes, words):
  with pytest.raises(ValueError, match=words):
    make_mesh(axes)


def test_the_first_rule_that_matches_wins(grid):
  params = {
    "dense": {"kernel": np.arange(32.0).reshape(4, 8), "bias": np.arange(8.0)},
    "out": {"kernel": np.ones((8, 3))},
  }
  rules = [("dense/kernel", P(None, "model")), ("kernel", P("model")), ("dense", P("model"))]
  placed = shard_params(params, grid, rules)
  assert placed["dense"]["kernel"].sharding.spec == P(None, "model")
  assert placed["out"]["kernel"].sharding.spec == P("model")
  assert placed["dense"]["bias"].sharding.spec == P("model")
  assert placed["dense"]["kernel"].addressable_shards[0].data.shape == (4, 2)
  assert same(placed, params)
  bare = shard_params(params, grid, [("attention", P("model"))])
  assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(bare))


@pytest.mark.parametrize(
  ("spec", "words"),
  [
    (P(None, "model"), r"a/kernel of shape (8, 6): dimension 6 is not divisible by axis 'model'"),
    (P("expert"), r"names axis 'expert'; the mesh has ('data', 'model')"),
    (P(None, None, "model"), r"a/kernel of shape (8, 6) has fewer dimensions"),
    (P(None, ("data", "model")), r"('data', 'model') of size 8"),
  ],
)
def test_invalid_rules_raise(grid, spec, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    shard_params({"a": {"kernel": np.ones((8, 6))}}, grid, [("kernel", spec)])


def test_replicate_keeps_values_and_keys(grid):
  tree = {"x": np.arange(5), "key": jax.random.key(1)}
  placed = replicate(tree, grid)
  assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(placed))
  assert all(on_mesh(leaf, grid) for leaf in jax.tree.leaves(placed))
  assert not on_mesh(jnp.ones(2), grid) and not on_mesh(placed["x"], make_mesh({"data": 8}))
  assert same(placed["x"], tree["x"]) and placed["key"] == tree["key"]


def test_batches_are_split_along_their_rows(grid):
  batch = {"x": np.arange(12).reshape(6, 2), "y": jnp.arange(6)}
  placed = shard_batch(batch, grid)
  assert same(placed, batch)
  assert placed["x"].sharding.spec == P("data")
  assert placed["x"].addressable_shards[0].data.shape == (3, 2)
  again = shard_batch(placed, grid)
  assert again["x"] is placed["x"]
  steps = shard_batch(np.ones((3, 6, 2)), grid, axis=1)
  assert steps.addressable_shards[0].data.shape == (3, 3, 2)


def test_indivisible_batches_raise(grid):
  with pytest.raises(ValueError, match="7 rows .* 2 devices"):
    shard_batch(np.ones((7, 2)), grid)
  with pytest.raises(ValueError, match=r"shape \(\)"):
    shard_batch({"scalar": 1.0}, grid)
  with pytest.raises(ValueError, match="needs an axis 'data'"):
    local_data_size(make_mesh({"model": 2}))
  assert local_data_size(grid) == 2


def test_data_parallel_is_pmap():
  mesh = make_mesh({"data": 8})
  weights, inputs = np.arange(3.0, dtype=np.float32), np.arange(48, dtype=np.float32).reshape(16, 3)

  def loss(weights, inputs):
    return jnp.mean((inputs @ weights - 1) ** 2)

  def step(weights, inputs):
    gradient = jax.grad(loss)(weights, inputs)
    return weights - 1e-3 * jax.lax.pmean(gradient, "data")

  stepped = data_parallel(step, mesh)(weights, inputs)
  np.testing.assert_allclose(stepped, weights - 1e-3 * jax.grad(loss)(weights, inputs), rtol=1e-5)
  assert stepped.sharding.is_fully_replicated

  local = data_parallel(
    lambda inputs, weights: jax.grad(loss)(weights, inputs)[None],
    mesh,
    replicated_argnums=(1,),
    sharded_outputs=True,
  )(inputs, weights)
  expected = [jax.grad(loss)(weights, rows) for rows in inputs.reshape(8, 2, 3)]
  np.testing.assert_allclose(local, np.stack(expected), rtol=1e-5)


def test_data_parallel_on_another_axis_with_a_second_one(grid):
  total = data_parallel(
    lambda x: jax.lax.psum(x.sum(), "model"), grid, axis_name="model", replicated_argnums=()
  )
  assert total({"a": jnp.arange(8.0)}["a"]) == 28


def test_data_parallel_errors(grid):
  with pytest.raises(ValueError, match="axis_name 'rows'"):
    data_parallel(lambda x: x, grid, axis_name="rows")
  with pytest.raises(ValueError, match=r"argument 1: .*\(3,\).* 2 devices"):
    data_parallel(lambda x, y: x, grid)(jnp.ones(1), jnp.ones(3))


def test_cholesky_on_all_devices_does_not_deadlock():
  solve = data_parallel(
    jnp.linalg.cholesky, make_mesh({"data": 8}), replicated_argnums=(), sharded_outputs=True
  )
  matrices = np.stack([np.eye(24, dtype=np.float32) * (i + 1) for i in range(16)])
  for _ in range(50):
    factors = solve(matrices)
  np.testing.assert_allclose(factors, np.sqrt(matrices), rtol=1e-6)


def test_multihost_arguments_and_environment(monkeypatch):
  calls = []
  monkeypatch.setattr(meshes.jax.distributed, "initialize", lambda *args: calls.append(args))
  for name in VARIABLES:
    monkeypatch.delenv(name, raising=False)
  initialize_multihost()
  initialize_multihost("host:1", 2, 0)
  for name, value in zip(VARIABLES, ("host:2", "4", "3")):
    monkeypatch.setenv(name, value)
  initialize_multihost()
  initialize_multihost(process_id=0)
  assert calls == [(), ("host:1", 2, 0), ("host:2", 4, 3), ("host:2", 4, 0)]
  with pytest.raises(ValueError, match="process_id 4 .* num_processes 4"):
    initialize_multihost(process_id=4)
  monkeypatch.setenv("JAX_PROCESS_ID", "one")
  with pytest.raises(ValueError, match="JAX_PROCESS_ID must be an integer, got 'one'"):
    initialize_multihost()
  monkeypatch.delenv("JAX_PROCESS_ID")
  monkeypatch.delenv("JAX_NUM_PROCESSES")
  with pytest.raises(ValueError, match="JAX_NUM_PROCESSES.* and process_id"):
    initialize_multihost()


def test_multihost_without_a_cluster(monkeypatch):
  def fail():
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(meshes.jax.distributed, "initialize", fail)
  for name in VARIABLES:
    monkeypatch.delenv(name, raising=False)
  with pytest.raises(RuntimeError, match="no cluster found"):
    initialize_multihost()
