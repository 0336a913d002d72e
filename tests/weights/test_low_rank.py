import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.weights.low_rank import (
  LowRankConfig,
  init_low_rank,
  low_rank_update,
  merge_low_rank,
)

IN, OUT, LAYERS = 6, 4, 3
CONFIG = LowRankConfig(rank=2, alpha=6.0)


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(0)

  def kernel(*shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  layers = {
    "attention": {
      name: {"kernel": kernel(LAYERS, IN, OUT), "bias": kernel(LAYERS, OUT)} for name in "qkv"
    },
    "mlp": {"up": {"kernel": kernel(LAYERS, IN, OUT)}},
  }
  return {"layers": layers, "head": {"kernel": kernel(IN, OUT)}}


def random_adapters(params, config):
  adapters = init_low_rank(jax.random.key(0), params, config)
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), adapters)


@pytest.mark.parametrize("stabilized", [False, True])
def test_update_matches_a_loop(stabilized):
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(LAYERS, IN, 2)), rng.normal(size=(LAYERS, 2, OUT))
  result = jax.jit(low_rank_update, static_argnames="rank_stabilized")(
    a, b, alpha=3.0, rank_stabilized=stabilized
  )
  expected = np.zeros((LAYERS, IN, OUT))
  for l, i, j, r in np.ndindex(LAYERS, IN, OUT, 2):
    expected[l, i, j] += a[l, i, r] * b[l, r, j] * 3.0 / (np.sqrt(2) if stabilized else 2)
  np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
  rows = jax.vmap(lambda a, b: low_rank_update(a, b, alpha=3.0, rank_stabilized=stabilized))(a, b)
  np.testing.assert_allclose(rows, result, rtol=1e-6, atol=1e-6)


def test_new_adapters_change_nothing(params):
  adapters = init_low_rank(jax.random.key(0), params, CONFIG)
  assert sorted(adapters) == ["layers/attention/q/kernel", "layers/attention/v/kernel"]
  a, b = (adapters["layers/attention/q/kernel"][name] for name in "ab")
  assert (a.shape, b.shape) == ((LAYERS, IN, 2), (LAYERS, 2, OUT))
  assert not b.any() and 0.8 < float(jnp.abs(a).max()) * IN**0.5 <= 1.0
  other = adapters["layers/attention/v/kernel"]["a"]
  assert not np.allclose(a, other) and not np.allclose(a[0], a[1])
  merged = merge_low_rank(params, adapters, CONFIG)
  jax.tree.map(np.testing.assert_array_equal, merged, params)


def test_merged_kernels_are_base_plus_adapters(params):
  adapters = random_adapters(params, CONFIG)
  merged = jax.jit(lambda *args: merge_low_rank(*args, CONFIG))(params, adapters)
  x = np.random.default_rng(2).normal(size=(5, IN)).astype(np.float32)
  for name in "qkv":
    kernel = params["layers"]["attention"][name]["kernel"]
    expected = x @ kernel
    if name != "k":
      adapter = adapters[f"layers/attention/{name}/kernel"]
      expected = expected + 6.0 / 2 * (x @ adapter["a"]) @ adapter["b"]
    result = x @ merged["layers"]["attention"][name]["kernel"]
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
  for path in (("mlp", "up", "kernel"), ("attention", "q", "bias")):
    old, new = params["layers"], merged["layers"]
    for key in path:
      old, new = old[key], new[key]
    np.testing.assert_array_equal(new, old)


def test_gradient_of_new_adapters_is_in_b_alone(params):
  adapters = init_low_rank(jax.random.key(0), params, CONFIG)

  def loss(adapters):
    merged = merge_low_rank(params, adapters, CONFIG)
    return sum(jnp.square(x).sum() for x in jax.tree.leaves(merged))

  slopes = jax.grad(loss)(adapters)
  for path, adapter in adapters.items():
    # At B = 0 only B has a gradient: alpha/r A' dW.
    kernel = params["layers"]["attention"][path.split("/")[2]]["kernel"]
    expected = 6.0 / 2 * jnp.swapaxes(adapter["a"], -1, -2) @ (2 * kernel)
    np.testing.assert_allclose(slopes[path]["b"], expected, rtol=1e-4, atol=1e-5)
    assert not slopes[path]["a"].any()


def test_targets_match_ends_of_paths(params):
  def paths(*targets):
    return sorted(init_low_rank(jax.random.key(0), params, LowRankConfig(targets=targets)))

  assert paths("up") == ["layers/mlp/up/kernel"]
  assert paths("head", "k") == ["head/kernel", "layers/attention/k/kernel"]
  for target in ("p", "attention", "attention/q/kernel"):
    with pytest.raises(ValueError, match=f"target '{target}' matches none"):
      paths("up", target)


def test_half_precision_sums_in_float32(params):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  adapters = random_adapters(half, CONFIG)
  assert {x.dtype for x in jax.tree.leaves(adapters)} == {jnp.bfloat16.dtype}
  result = merge_low_rank(half, adapters, CONFIG)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), (half, adapters))
  expected = merge_low_rank(*wide, CONFIG)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, y.astype(jnp.bfloat16)), result, expected
  )


def test_errors(params):
  with pytest.raises(ValueError, match="rank .* got 0"):
    LowRankConfig(rank=0)
  with pytest.raises(ValueError, match="alpha .* got nan"):
    LowRankConfig(alpha=float("nan"))
  quantised = {"q": {"kernel": np.zeros((IN, OUT), np.int8)}}
  with pytest.raises(TypeError, match="q/kernel must be of type float, got int8"):
    init_low_rank(jax.random.key(0), quantised, LowRankConfig(targets=("q",)))
  for targets in ((), "attention/q"):
    with pytest.raises(ValueError, match="targets"):
      LowRankConfig(targets=targets)
  adapter = {"a": jnp.ones((IN, 2)), "b": jnp.ones((2, OUT))}
  with pytest.raises(ValueError, match="'tail/kernel' has no parameter"):
    merge_low_rank(params, {"tail/kernel": adapter}, CONFIG)
  with pytest.raises(ValueError, match="the update of layers/mlp/up/kernel must have shape"):
    merge_low_rank(params, {"layers/mlp/up/kernel": adapter}, CONFIG)
  with pytest.raises(ValueError, match=r"b must have shape \[..., r, out\] with .* r = 2, got"):
    low_rank_update(jnp.ones((3, 2)), jnp.ones((3, 2)), alpha=1.0)
