import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab.losses.bar import bar_nll
from jaxlab.models import pfn
from jaxlab.models.pfn import PFN, context_query_mask
from jaxlab.samplers.priors import ridge_prior
from jaxlab.uncertainty import bar_borders

_B, _T, _F, _K = 2, 7, 3, 5
_SIZES = {"num_outputs": _K, "embed_dim": 8, "num_layers": 2, "num_heads": 2}
_SHIFTS = {"input_shift": 0.3, "input_scale": 0.7, "target_shift": -0.4, "target_scale": 1.9}


@functools.cache
def _network(**options):
  """A network whose parameters are all random, and its jitted apply."""
  module = PFN(**{**_SIZES, **_SHIFTS, **options})
  x, y = _data()
  params = _init(module, x, y)
  leaves, tree = jax.tree.flatten(params)
  rng = np.random.default_rng(1)
  leaves = [jnp.asarray(0.5 * rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
  apply = jax.jit(lambda params, x, y, c: module.apply({"params": params}, x, y, c))
  return module, jax.tree.unflatten(tree, leaves), apply


def _init(module, x, y, seed=0):
  return jax.jit(module.init)(jax.random.key(seed), x, y, 0)["params"]


@functools.cache
def _data():
  rng = np.random.default_rng(0)
  return (
    jnp.asarray(rng.normal(size=(_B, _T, _F)), jnp.float32),
    jnp.asarray(rng.normal(size=(_B, _T)), jnp.float32),
  )


def _erf_gelu(h):
  return 0.5 * h * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))


def _norm(h, p):
  centered = h - h.mean()
  return centered / np.sqrt((centered**2).mean() + 1e-5) * p["scale"] + p["bias"]


def _affine(h, p):
  return h @ p["kernel"] + p["bias"]


def _attention_loop(h, num_context, p, num_heads):
  num_points, width = h.shape
  size = width // num_heads
  qkv = _affine(h, p["qkv"])
  q, k, v = qkv[:, :width], qkv[:, width : 2 * width], qkv[:, 2 * width :]
  mixed = np.zeros_like(h)
  for head in range(num_heads):
    part = slice(head * size, (head + 1) * size)
    for i in range(num_points):
      keys = sorted({*range(num_context), i})
      scores = np.array([q[i, part] @ k[j, part] / math.sqrt(size) for j in keys])
      weights = np.exp(scores - scores.max())
      weights /= weights.sum()
      mixed[i, part] = sum(weight * v[j, part] for weight, j in zip(weights, keys))
  return _affine(mixed, p["attention_out"])


def _forward_loop(params, x, y, num_context, norm):
  """One data set through the network, point by point, in float64."""
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  x = (np.asarray(x, np.float64) - _SHIFTS["input_shift"]) / _SHIFTS["input_scale"]
  y = (np.asarray(y, np.float64) - _SHIFTS["target_shift"]) / _SHIFTS["target_scale"]
  h = _affine(x, params["embed_x"])
  for j in range(num_context):
    h[j] += _affine(y[j : j + 1], params["embed_y"])

  def normed(h, p):
    return np.stack([_norm(row, p) for row in h])

  for i in range(_SIZES["num_layers"]):
    p = params[f"layer_{i}"]

    def attention(h, p=p):
      return _attention_loop(h, num_context, p, _SIZES["num_heads"])

    def mlp(h, p=p):
      return _affine(_erf_gelu(_affine(h, p["mlp_in"])), p["mlp_out"])

    if norm == "post":
      h = normed(h + attention(h), p["norm_attention"])
      h = normed(h + mlp(h), p["norm_mlp"])
    else:
      h = h + attention(normed(h, p["norm_attention"]))
      h = h + mlp(normed(h, p["norm_mlp"]))
  if norm == "pre":
    h = normed(h, params["norm"])
  return _affine(_erf_gelu(_affine(h, params["head_in"])), params["head_out"])


def test_mask_matches_its_definition():
  for num_context in (0, 2, 5):
    expected = [[j < num_context or i == j for j in range(5)] for i in range(5)]
    np.testing.assert_array_equal(context_query_mask(5, num_context), expected)
  traced = jax.jit(context_query_mask, static_argnums=0)(5, 3)
  np.testing.assert_array_equal(traced, context_query_mask(5, 3))


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_network_matches_a_loop(norm):
  _, params, apply = _network(norm=norm)
  x, y = _data()
  for num_context in (0, 3, _T):
    outputs = apply(params, x, y, num_context)
    assert outputs.shape == (_B, _T, _K) and outputs.dtype == jnp.float32
    for b in range(_B):
      expected = _forward_loop(params, x[b], y[b], num_context, norm)
      np.testing.assert_allclose(outputs[b], expected, rtol=2e-4, atol=2e-4)


def test_order_of_the_context_has_no_effect():
  _, params, apply = _network()
  x, y = _data()
  order = jnp.array([3, 0, 2, 1, 4, 5, 6])
  outputs, shuffled = apply(params, x, y, 4), apply(params, x[:, order], y[:, order], 4)
  np.testing.assert_allclose(shuffled[:, 4:], outputs[:, 4:], atol=1e-5)
  assert not np.allclose(apply(params, x[:, order], y, 4)[:, 4:], outputs[:, 4:], atol=1e-3)


def test_queries_do_not_affect_one_another():
  _, params, apply = _network()
  x, y = _data()
  outputs = np.asarray(apply(params, x, y, 3))
  changed = np.asarray(apply(params, x.at[:, 5].set(40.0), y.at[:, 5].set(-7.0), 3))
  others = np.arange(_T) != 5
  np.testing.assert_array_equal(changed[:, others], outputs[:, others])
  assert not np.allclose(changed[:, 5], outputs[:, 5], atol=1e-2)


@pytest.mark.parametrize("value", [3.0, np.nan, np.inf])
def test_targets_of_queries_are_never_read(value):
  _, params, apply = _network()
  x, y = _data()
  outputs = apply(params, x, y, 3)
  np.testing.assert_array_equal(apply(params, x, y.at[:, 3:].set(value), 3), outputs)


def test_gradient_reaches_context_targets_only():
  _, params, apply = _network()
  x, y = _data()
  gradient = jax.jit(jax.grad(lambda y: jnp.sum(apply(params, x, y, 3)[:, 3:] ** 2)))
  values = gradient(y)
  np.testing.assert_array_equal(values[:, 3:], 0)
  assert (np.abs(values[:, :3]) > 0).all()
  np.testing.assert_array_equal(gradient(y.at[:, 3:].set(jnp.nan)), values)


def test_traced_context_size_equals_static():
  module, params, apply = _network()
  x, y = _data()
  static = jax.jit(lambda x, y: module.apply({"params": params}, x, y, 4))(x, y)
  np.testing.assert_allclose(apply(params, x, y, 4), static, rtol=1e-5, atol=1e-5)
  known = jnp.int32(4)  # closed over, which makes its comparisons traced
  np.testing.assert_array_equal(
    jax.jit(lambda: context_query_mask(_T, known))(), context_query_mask(_T, 4)
  )
  sizes = jnp.arange(_T + 1)
  mapped = jax.vmap(apply, in_axes=(None, None, None, 0))(params, x, y, sizes)
  np.testing.assert_allclose(mapped[4], static, rtol=1e-5, atol=1e-5)


@functools.cache
def _bounded(max_context):
  """Outputs, and the gradients of a loss on them, with keys from the first rows alone."""
  module, _, _ = _network()

  def loss(params, x, y, c):
    outputs = module.apply({"params": params}, x, y, c, max_context=max_context)
    weights = jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape)
    return jnp.sum(weights * outputs), outputs

  return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


@pytest.mark.parametrize("max_context", [1, 4])
def test_bound_of_the_context_changes_neither_outputs_nor_gradients(max_context):
  _, params, _ = _network()
  x, y = _data()
  for num_context in {0, 1, max_context // 2, max_context}:
    args = params, x, np.where(np.arange(_T) < num_context, y, np.nan), num_context
    (_, outputs), gradients = _bounded(max_context)(*args)
    (_, expected), expected_gradients = _bounded(None)(*args)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    for leaf, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients)):
      np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-5 * (1 + np.abs(other).max()))


@pytest.mark.parametrize("max_context", [_T - 1, _T])
def test_bound_of_nearly_all_points_is_the_plain_mask(max_context):
  for num_context in (0, 3, max_context):
    mask = pfn._attention_mask(_T, num_context, max_context)
    np.testing.assert_array_equal(mask, context_query_mask(_T, num_context))


def test_context_beyond_its_bound_is_ignored():
  # A bound that is too small must change the output, else the keys were not the first rows.
  _, params, apply = _network()
  x, y = _data()
  (_, outputs), _ = _bounded(4)(params, x, y, 6)
  assert not np.allclose(outputs, apply(params, x, y, 6), atol=1e-2)


def test_bounded_attention_is_finite_and_close_for_extreme_inputs_and_bfloat16():
  _, params, apply = _network()
  x, y = _data()
  (_, outputs), gradients = _bounded(4)(params, x * 1e4, y * 1e4, 2)
  np.testing.assert_allclose(outputs, apply(params, x * 1e4, y * 1e4, 2), rtol=1e-3, atol=1e-3)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x, y))
  (_, outputs), _ = _bounded(4)(*half, 3)
  assert outputs.dtype == jnp.bfloat16
  expected = apply(params, x, y, 3)
  np.testing.assert_allclose(outputs.astype(jnp.float32), expected, atol=0.15 * np.std(expected))


def test_dropout_reaches_shared_and_own_keys_alike():
  # Equal values v and one head: the mix is v times the mean of keep / (1 - rate) over the keys
  # of a point, of which a point beyond the bound has c + 1, the last one its own.
  rate, num_context, size = 0.25, 2, 4
  q = jnp.zeros((2000, size, 1, 1))
  v = jnp.broadcast_to(jnp.array([1.0, 10.0, 0.0, 100.0])[:, None, None], q.shape)

  @functools.partial(jax.jit, static_argnums=0)
  def mix(max_context, key):
    mask = pfn._attention_mask(size, num_context, max_context)
    drop = nn.Dropout(rate, deterministic=False)
    return nn.apply(lambda drop: pfn._attend(q, q, v, mask, drop), drop)({}, rngs={"dropout": key})[
      :, 3, 0, 0
    ]

  terms = np.array([1.0, 10.0, 100.0]) / (3 * (1 - rate))
  possible = {round(float(np.dot(keep, terms)), 2) for keep in itertools.product((0, 1), repeat=3)}
  for max_context in (None, 2):
    mixed = np.asarray(mix(max_context, jax.random.key(0)))
    assert {round(float(value), 2) for value in mixed} == possible
    kept_own = mixed > terms[2] - 0.01
    kept_first = np.mod(np.round(mixed / terms[0]), 10) == 1
    np.testing.assert_allclose([kept_own.mean(), kept_first.mean()], 1 - rate, atol=0.04)
    assert abs(np.corrcoef(kept_own, kept_first)[0, 1]) < 0.09


def test_layers_start_as_normalizations():
  module, _, apply = _network()
  x, y = _data()
  params = _init(module, x, y, seed=3)
  for i in range(_SIZES["num_layers"]):
    for name in ("attention_out", "mlp_out"):
      assert not any(np.any(leaf) for leaf in jax.tree.leaves(params[f"layer_{i}"][name]))
  h = np.asarray((x - _SHIFTS["input_shift"]) / _SHIFTS["input_scale"]) @ np.asarray(
    params["embed_x"]["kernel"]
  ) + np.asarray(params["embed_x"]["bias"])
  ones = {"scale": 1.0, "bias": 0.0}
  for _ in range(2 * _SIZES["num_layers"]):
    h = np.apply_along_axis(_norm, -1, h, ones)
  hidden = _erf_gelu(_affine(h, params["head_in"]))
  outputs = apply(params, x, y, 0)
  np.testing.assert_allclose(outputs, _affine(hidden, params["head_out"]), atol=1e-4)


def test_initial_loss_is_near_the_prior_marginal():
  batch = ridge_prior(jax.random.key(0), batch_size=256, num_points=8, weight_std=1.0)
  y = batch.y.reshape(-1)
  borders = bar_borders(y, 30)
  module = PFN(num_outputs=30, embed_dim=16, num_layers=2, num_heads=2)

  @jax.jit
  def losses(key):
    outputs, _ = module.init_with_output(key, batch.x, batch.y, 4)
    network = bar_nll(outputs, batch.y, borders)[:, 4:].mean()
    return network, bar_nll(jnp.zeros_like(outputs), batch.y, borders).mean()

  loss, marginal = losses(jax.random.key(1))
  assert abs(loss - marginal) < 0.5


def test_first_targets_already_separate_inputs_of_one_feature():
  # With one feature and no bias a normalized token would keep the sign of x only.
  x = jnp.array([[[0.6], [0.8], [1.0]]])
  module = PFN(**_SIZES)
  outputs, _ = jax.jit(module.init_with_output)(jax.random.key(0), x, jnp.zeros((1, 3)), 0)
  assert np.abs(np.diff(outputs, axis=1)).max(axis=-1).min() > 1e-3


def test_bfloat16_is_close_to_float32():
  _, params, apply = _network()
  x, y = _data()
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, x, y))
  outputs = apply(*half, 3)
  assert outputs.dtype == jnp.bfloat16
  expected = apply(params, x, y, 3)
  np.testing.assert_allclose(outputs.astype(jnp.float32), expected, atol=0.15 * np.std(expected))


def test_integer_inputs_are_numbers():
  _, params, apply = _network()
  x = jnp.arange(_B * _T * _F).reshape(_B, _T, _F) % 4
  y = jnp.arange(_B * _T).reshape(_B, _T) % 2
  expected = apply(params, x.astype(jnp.float32), y.astype(jnp.float32), 3)
  np.testing.assert_allclose(apply(params, x, y, 3), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1e4, -1e8])
def test_extreme_inputs_stay_finite(size):
  _, params, apply = _network()
  x, y = _data()

  @jax.jit
  def gradient(x, y):
    return jax.grad(lambda *args: jnp.sum(apply(*args, 3)[:, 3:] ** 2), (0, 1, 2))(params, x, y)

  for leaf in jax.tree.leaves((apply(params, x * size, y * size, 3), gradient(x * size, y * size))):
    assert np.isfinite(leaf).all()


def test_dropout_acts_inside_the_branches_only():
  module, params, apply = _network(dropout_rate=0.5)
  x, y = _data()

  @jax.jit
  def noisy(params, seed):
    rngs = {"dropout": jax.random.key(seed)}
    return module.apply({"params": params}, x, y, 3, deterministic=False, rngs=rngs)

  np.testing.assert_array_equal(noisy(params, 0), noisy(params, 0))
  assert not np.allclose(noisy(params, 0), noisy(params, 1), atol=1e-3)
  fresh = _init(module, x, y)
  np.testing.assert_allclose(noisy(fresh, 0), apply(fresh, x, y, 3), atol=1e-5)


@pytest.mark.parametrize(
  "options, name",
  [
    ({"norm": "both"}, "norm"),
    ({"embed_dim": 10, "num_heads": 4}, "embed_dim"),
    ({"num_layers": 0}, "num_layers"),
    ({"mlp_dim": 0}, "mlp_dim"),
    ({"dropout_rate": 1.0}, "dropout_rate"),
    ({"input_scale": 0.0}, "input_scale"),
  ],
)
def test_bad_options_are_named(options, name):
  with pytest.raises(ValueError, match=name):
    PFN(**{**_SIZES, **options})


def test_bad_arguments():
  module, params, _ = _network()
  x, y = _data()
  for num_context in (-1, _T + 1):
    with pytest.raises(ValueError, match="num_context"):
      module.apply({"params": params}, x, y, num_context)
    with pytest.raises(ValueError, match="num_context"):
      context_query_mask(_T, num_context)
  for max_context in (0, -1, _T + 1):
    with pytest.raises(ValueError, match="max_context"):
      module.apply({"params": params}, x, y, 0, max_context=max_context)
  for num_context in (4, np.int32(4)):
    with pytest.raises(ValueError, match=r"num_context must lie in \[0, 3\], got 4"):
      module.apply({"params": params}, x, y, num_context, max_context=3)
  with pytest.raises(ValueError, match="number of points T must be at least 1, got 0"):
    module.apply({"params": params}, x[:, :0], y[:, :0], 0)
  with pytest.raises(ValueError, match="y must have shape"):
    module.apply({"params": params}, x, y[:, 1:], 2)
  with pytest.raises(ValueError, match="x must have shape"):
    module.apply({"params": params}, x[..., 0], y, 2)
