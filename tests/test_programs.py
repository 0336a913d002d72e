"""Eager loops compile once, and loops run inside `jax.shard_map`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import _programs, samplers
from jaxlab._programs import compiled_once, num_earlier_equal, varying_carry


class Counter:
  """A callable without a hash."""

  __hash__ = None

  def __eq__(self, other):
    return self is other

  def __call__(self, x):
    return 2 * x


def double(x):
  return 2 * x


@pytest.fixture
def repeated():
  """A loop, and what was given to it at each trace."""
  traces = []

  @compiled_once
  def repeat(tree, function, *, num):
    traces.append((num, type(num)))
    x, bias = tree["x"], tree["bias"]
    return jax.lax.fori_loop(0, int(num), lambda _, y: function(y) + bias, x)

  return repeat, traces


def test_arrays_are_traced_and_all_else_is_static(repeated):
  repeat, traces = repeated
  for x in (np.ones(2, np.float32), np.full(2, 3, np.float32)):
    result = repeat({"x": x, "bias": np.float32(0)}, double, num=3)
    np.testing.assert_array_equal(result, 8 * x)
  assert len(traces) == 1
  for num in (2, 1, True):
    result = repeat({"x": np.ones(2, np.float32), "bias": 1.0}, double, num=num)
    np.testing.assert_array_equal(result, 2**num + 2**num - 1)
  assert [type(num) for num, _ in traces[1:]] == [int, int, bool]


def test_a_callable_without_a_hash_runs(repeated):
  repeat, traces = repeated
  for _ in range(2):
    np.testing.assert_array_equal(repeat({"x": jnp.ones(2), "bias": 0.0}, Counter(), num=2), 4.0)
  assert len(traces) == 2


def test_transformations_pass_through(repeated):
  repeat, _ = repeated
  run = lambda x: repeat({"x": x, "bias": 0.0}, lambda y: y * x, num=1)  # noqa: E731
  jaxpr = jax.make_jaxpr(run)(1.0)
  assert "jit" not in {equation.primitive.name for equation in jaxpr.eqns}
  assert jax.eval_shape(jax.vmap(run), jnp.ones(3)).shape == (3,)


def test_an_eager_call_of_generate_is_traced_once():
  traces = []
  table = samplers.table_decode_fns(np.eye(4, dtype=np.float32))

  def apply(tokens, cache, positions):
    traces.append(tokens.shape)
    return table.apply(tokens, cache, positions)

  prompts, lengths = np.array([[1], [2]]), np.array([1, 1])
  fns = samplers.DecodeFns(table.init_cache, apply)
  run = functools.partial(samplers.generate, jax.random.key(0), fns, max_new_tokens=2)
  run(prompts, lengths)
  first = len(traces)
  run(prompts + 1, lengths)
  assert len(traces) == first


def test_carries_vary_as_the_data_do():
  mesh = jax.sharding.AbstractMesh((2, 2), ("data", "model"))
  rows, columns = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec(None, "model")

  def total(x):
    def step(carry, row):
      return (carry[0] + jnp.sum(row), carry[1] + 1), row

    return jax.lax.scan(step, varying_carry(step, (0.0, 0), x), x)[0][0][None, None]

  for spec in (rows, columns):  # Both would be refused if the carry varied over the other axis.
    mapped = jax.shard_map(total, mesh=mesh, in_specs=spec, out_specs=spec)
    jax.eval_shape(mapped, jnp.zeros((4, 4)))
  start = (jnp.zeros(()), 0)
  assert varying_carry(None, start) is start


@pytest.mark.parametrize("pairs", [1, 30, 2**18])
def test_sums_over_pairs_are_those_of_the_array_of_all_pairs(pairs, monkeypatch):
  """In blocks of one, with a rest, and in one block."""
  monkeypatch.setattr(_programs, "_PAIRS", pairs)
  rng = np.random.default_rng(0)
  ours = rng.integers(0, 4, (2, 5))
  theirs, weights = rng.integers(0, 4, (2, 7)), rng.normal(size=(2, 7)).astype(np.float32)

  def fn(ours, theirs, weights):
    return ours > theirs, jnp.where(ours == theirs, weights, 0.0)

  above, weight = jax.jit(lambda *x: _programs.sum_over_pairs(fn, x[:1], x[1:]))(
    ours, theirs, weights
  )
  table = ours[:, :, None] - theirs[:, None]
  np.testing.assert_array_equal(above, (table > 0).sum(-1))
  expected = np.where(table == 0, weights[:, None], 0).sum(-1)
  np.testing.assert_allclose(weight, expected, atol=1e-6)


def test_sums_over_pairs_hold_no_array_of_all_pairs():
  fn = lambda ours, theirs: ours > theirs  # noqa: E731
  pools = jax.ShapeDtypeStruct((2**14, 64), jnp.float32)
  program = jax.jit(lambda x, y: _programs.sum_over_pairs(fn, (x,), (y,)))
  memory = program.lower(pools, pools).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 2 * 4 * pools.size


def test_earlier_equal_entries_are_counted():
  values = np.array([[3, 1, 3, 3, 1], [2, 2, 2, 2, 2]])
  counted = np.array([[False, True, True, True, True], [True, True, False, True, True]])
  expected = [
    [sum(row[i] == row[j] and mask[i] for i in range(j)) for j in range(5)]
    for row, mask in zip(values.tolist(), counted.tolist())
  ]
  np.testing.assert_array_equal(num_earlier_equal(values, counted), expected)


@pytest.mark.parametrize("num", [1, 4, 7])
def test_blocks_of_rows_are_joined_and_summed(num, monkeypatch):
  monkeypatch.setattr(_programs, "_PAIRS", 6)
  x = np.random.default_rng(num).normal(size=(num, 3)).astype(np.float32)

  @jax.jit
  def run(x):
    doubled = _programs.map_over_rows(lambda x: {"rows": 2 * x, "sums": x.sum(1)}, x, width=3)
    return doubled, _programs.sum_over_rows(lambda x: x.sum(0), x, width=3)

  doubled, total = run(x)
  np.testing.assert_allclose(doubled["rows"], 2 * x)
  np.testing.assert_allclose(doubled["sums"], x.sum(1), rtol=1e-5)
  np.testing.assert_allclose(total, x.sum(0), rtol=1e-5)
