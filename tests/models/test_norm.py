import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlab import training
from jaxlab.models.norm import GhostBatchNorm, GroupNorm, ghost_batch_norm, mixed_batch_norm

C = 3
RNG = np.random.default_rng(0)
SCALE, BIAS = (RNG.normal(size=C).astype(np.float32) for _ in range(2))
MEAN = RNG.normal(size=C).astype(np.float32)
VAR = RNG.uniform(0.5, 2.0, C).astype(np.float32)
SETTINGS = SCALE, BIAS, MEAN, VAR


def batch(*shape, seed=0):
  return np.random.default_rng(seed).normal(1.0, 2.0, shape).astype(np.float32)


@functools.partial(jax.jit, static_argnames="ghost_batch_size")
def jitted(x, scale, bias, mean, var, ghost_batch_size):
  return ghost_batch_norm(x, scale, bias, mean, var, ghost_batch_size=ghost_batch_size)


def loop(x, scale, bias, mean, var, size, momentum=0.1, epsilon=1e-5):
  outputs, x = [], np.asarray(x, np.float64)
  for start in range(0, len(x), size):
    chunk = x[start : start + size]
    rows = chunk.reshape(-1, x.shape[-1])
    m, v = rows.mean(0), rows.var(0)
    outputs.append(scale * (chunk - m) / np.sqrt(v + epsilon) + bias)
    mean = (1 - momentum) * mean + momentum * m
    var = (1 - momentum) * var + momentum * v
  return np.concatenate(outputs), mean, var


@pytest.mark.parametrize(
  ("size", "shape", "momentum"),
  [(1, (4,), 0.1), (2, (6,), 0.0), (3, (6, 2), 0.1), (2, (4, 2, 3), 1.0), (4, (4,), 0.3)],
)
def test_equals_a_loop(size, shape, momentum):
  x = batch(*shape, C)
  normed = jax.jit(functools.partial(ghost_batch_norm, ghost_batch_size=size, momentum=momentum))(
    x, *SETTINGS
  )
  expected = loop(x, *SETTINGS, size, momentum)
  for ours, theirs in zip(normed, expected):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_one_chunk_is_flax_batch_norm():
  x = batch(8, 5, C)
  theirs = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)
  variables = {
    "params": {"scale": SCALE, "bias": BIAS},
    "batch_stats": {"mean": MEAN, "var": VAR},
  }
  outputs, state = jax.jit(functools.partial(theirs.apply, mutable=["batch_stats"]))(variables, x)
  for ghost_batch_size in (None, 8):
    layer = GhostBatchNorm(ghost_batch_size, use_running_average=False)
    ours, own = jax.jit(functools.partial(layer.apply, mutable=["batch_stats"]))(variables, x)
    np.testing.assert_allclose(ours, outputs, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), own, state)
  evaluated, theirs = (
    jax.jit(layer.apply)(variables, x)
    for layer in (
      GhostBatchNorm(4, use_running_average=True),
      nn.BatchNorm(use_running_average=True, epsilon=1e-5),
    )
  )
  np.testing.assert_allclose(evaluated, theirs, rtol=1e-5, atol=1e-5)


def test_chunks_are_normalized_independently():
  x = batch(12, C)
  outputs = jitted(x, *SETTINGS, ghost_batch_size=4).outputs
  for j in range(3):
    rows = slice(4 * j, 4 * j + 4)
    alone = jitted(x[rows], *SETTINGS, ghost_batch_size=4).outputs
    np.testing.assert_allclose(outputs[rows], alone, rtol=1e-5, atol=1e-6)
    variance = x[rows].var(0)
    np.testing.assert_allclose(outputs[rows].mean(0), BIAS, atol=1e-5)
    np.testing.assert_allclose(
      outputs[rows].var(0), SCALE**2 * variance / (variance + 1e-5), rtol=1e-4
    )


def test_running_statistics_are_the_closed_sum():
  x, eta = batch(12, C), 0.1
  normed = jitted(x, *SETTINGS, ghost_batch_size=4)
  means, variances = x.reshape(3, 4, C).mean(1), x.reshape(3, 4, C).var(1)
  shares = [(1 - eta) ** (2 - j) * eta for j in range(3)]
  for ours, old, new in ((normed.mean, MEAN, means), (normed.var, VAR, variances)):
    expected = (1 - eta) ** 3 * old + sum(s * n for s, n in zip(shares, new))
    np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_permutations():
  x = batch(12, C)
  normed = jitted(x, *SETTINGS, ghost_batch_size=4)
  within = np.concatenate([4 * j + np.random.default_rng(j).permutation(4) for j in range(3)])
  shuffled = jitted(x[within], *SETTINGS, ghost_batch_size=4)
  outputs = np.asarray(normed.outputs)
  np.testing.assert_allclose(shuffled.outputs, outputs[within], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(shuffled.mean, normed.mean, rtol=1e-5)
  chunks = np.arange(12).reshape(3, 4)[[2, 0, 1]].reshape(-1)
  shuffled = jitted(x[chunks], *SETTINGS, ghost_batch_size=4)
  np.testing.assert_allclose(shuffled.outputs, outputs[chunks], rtol=1e-5, atol=1e-6)
  assert not np.allclose(shuffled.mean, normed.mean, rtol=1e-4)
  # With momentum 1 only the last chunk counts.
  recent = jax.jit(functools.partial(ghost_batch_norm, ghost_batch_size=4, momentum=1.0))(
    x, *SETTINGS
  )
  np.testing.assert_allclose(recent.mean, x[8:].mean(0), rtol=1e-5)


def test_gradients_flow_through_chunk_statistics_only():
  x = batch(6, C)

  def loss(x, mean):
    normed = ghost_batch_norm(x, SCALE, BIAS, mean, VAR, ghost_batch_size=3)
    weights = jnp.arange(18.0).reshape(6, C)
    return jnp.sum(weights * normed.outputs), normed.mean.sum() + normed.var.sum()

  loss = jax.jit(loss)
  gradients = jax.jit(jax.jacrev(loss, (0, 1)))(x, MEAN)
  (outputs_grad, mean_grad), running_grad = jax.device_get(gradients)
  # A shift of a whole chunk changes nothing.
  np.testing.assert_allclose(outputs_grad.reshape(2, 3, C).sum(1), 0.0, atol=1e-3)
  assert np.abs(outputs_grad).max() > 0.1
  for grad in (mean_grad, *running_grad):
    np.testing.assert_array_equal(grad, 0.0)
  step = 1e-2 * batch(6, C, seed=3)
  difference = (loss(x + step, MEAN)[0] - loss(x - step, MEAN)[0]) / 2
  np.testing.assert_allclose(np.sum(outputs_grad * step), difference, rtol=0.05)


def test_constant_and_extreme_inputs():
  for value in (0.0, 1e4, -1e4):
    x = np.full((4, C), value, np.float32)
    grad, outputs = jax.jit(
      jax.grad(
        lambda x: (lambda y: (jnp.sum(y**2), y))(jitted(x, *SETTINGS, 2).outputs), has_aux=True
      )
    )(x)
    np.testing.assert_allclose(outputs, np.broadcast_to(BIAS, (4, C)), atol=1e-5)
    assert np.isfinite(grad).all()
  # A mean that is large relative to the deviation.
  x = 1e4 + batch(8, C)
  np.testing.assert_allclose(
    jitted(x, *SETTINGS, 8).outputs, loop(x, *SETTINGS, 8)[0], rtol=1e-2, atol=1e-2
  )
  # A chunk of one row has no deviation; a NaN stays in its chunk.
  np.testing.assert_allclose(jitted(batch(4, C), *SETTINGS, 1).outputs, np.stack([BIAS] * 4))
  x = batch(4, C)
  x[0] = np.nan
  outputs = jitted(x, *SETTINGS, 2).outputs
  assert np.isnan(outputs[:2]).all() and np.isfinite(outputs[2:]).all()


def test_bfloat16_and_vmap():
  x = batch(8, C)
  low = jitted(x.astype(jnp.bfloat16), *SETTINGS, 4)
  assert low.outputs.dtype == jnp.bfloat16 and low.mean.dtype == jnp.float32
  exact = jitted(np.asarray(x.astype(jnp.bfloat16), np.float32), *SETTINGS, 4)
  np.testing.assert_allclose(low.outputs.astype(np.float32), exact.outputs, rtol=0.02, atol=0.02)
  np.testing.assert_allclose(low.mean, exact.mean, rtol=1e-6)
  many = np.stack([x, x[::-1]])
  mapped = jax.vmap(lambda x: jitted(x, *SETTINGS, 4))(many)
  for i in range(2):
    one = jitted(many[i], *SETTINGS, 4)
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=1e-6), mapped, one
    )


def test_mixture_of_statistics():
  x = batch(6, 2, C)
  stored = SCALE * (x - MEAN) / np.sqrt(VAR + 1e-5) + BIAS
  mixed = jax.jit(lambda x, w: mixed_batch_norm(x, *SETTINGS, source_weight=w))
  np.testing.assert_allclose(mixed(x, 1.0), stored, rtol=1e-4, atol=1e-5)
  own = loop(x, *SETTINGS, 6)[0]
  default = jax.jit(mixed_batch_norm)
  np.testing.assert_allclose(default(x, *SETTINGS), own, rtol=1e-4, atol=1e-5)
  mean, var = 0.3 * MEAN + 0.7 * x.mean((0, 1)), 0.3 * VAR + 0.7 * x.var((0, 1))
  expected = SCALE * (x - mean) / np.sqrt(var + 1e-5) + BIAS
  np.testing.assert_allclose(mixed(x, 0.3), expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    np.asarray(jax.vmap(mixed, (None, 0))(x, np.array([0.0, 0.3])))[1],
    expected,
    rtol=1e-4,
    atol=1e-5,
  )
  # A batch of one row is its own mean.
  np.testing.assert_allclose(default(x[:1, 0], *SETTINGS), BIAS[None], atol=1e-5)


def test_the_layer_keeps_its_statistics_unless_they_are_mutable():
  layer, x = GhostBatchNorm(2), batch(4, C)
  init = jax.jit(layer.init, static_argnames="use_running_average")
  variables = init(jax.random.key(0), x, use_running_average=False)
  np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0.0)
  np.testing.assert_array_equal(variables["batch_stats"]["var"], 1.0)

  @jax.jit
  def train(variables):
    kept = layer.apply(variables, x, use_running_average=False)
    return kept, layer.apply(variables, x, use_running_average=False, mutable=["batch_stats"])

  outputs, (again, state) = train(variables)
  np.testing.assert_array_equal(outputs, again)
  ones, zeros = np.ones(C, np.float32), np.zeros(C, np.float32)
  expected = jitted(x, ones, zeros, zeros, ones, ghost_batch_size=2)
  np.testing.assert_allclose(state["batch_stats"]["mean"], expected.mean, rtol=1e-6)
  np.testing.assert_allclose(outputs, expected.outputs, rtol=1e-5, atol=1e-6)
  _, state = layer.apply(variables, x, use_running_average=True, mutable=["batch_stats"])
  jax.tree.map(np.testing.assert_array_equal, state["batch_stats"], variables["batch_stats"])


def test_non_finite_row_does_not_affect_others_in_evaluation():
  layer, x = GhostBatchNorm(), batch(4, C)
  variables = layer.init(jax.random.key(0), x, use_running_average=True)
  good = layer.apply(variables, x, use_running_average=True)
  x[1] = np.inf
  outputs = layer.apply(variables, x, use_running_average=True)
  np.testing.assert_array_equal(np.delete(outputs, 1, 0), np.delete(good, 1, 0))


def test_group_norm_has_the_same_interface():
  x = batch(2, 5, 4)
  layer = GroupNorm(num_groups=2)
  init = jax.jit(layer.init, static_argnames="use_running_average")
  variables = init(jax.random.key(0), x, use_running_average=False)
  assert set(variables) == {"params"} and set(variables["params"]) == {"scale", "bias"}
  apply = jax.jit(layer.apply, static_argnames="use_running_average")
  outputs = apply(variables, x, use_running_average=True)
  np.testing.assert_allclose(outputs, jax.jit(nn.GroupNorm(2).apply)(variables, x), rtol=1e-6)
  assert apply(variables, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_errors():
  x = batch(6, C)
  with pytest.raises(ValueError, match="ghost_batch_size 4 does not divide the 6 rows"):
    ghost_batch_norm(x, *SETTINGS, ghost_batch_size=4)
  with pytest.raises(ValueError, match="ghost_batch_size must be at least 1, got 0"):
    ghost_batch_norm(x, *SETTINGS, ghost_batch_size=0)
  with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\], got 1.5"):
    ghost_batch_norm(x, *SETTINGS, ghost_batch_size=3, momentum=1.5)
  with pytest.raises(ValueError, match="epsilon"):
    ghost_batch_norm(x, *SETTINGS, ghost_batch_size=3, epsilon=-1.0)
  with pytest.raises(ValueError, match=r"source_weight must lie in \[0, 1\], got -0.1"):
    mixed_batch_norm(x, *SETTINGS, source_weight=-0.1)
  with pytest.raises(ValueError, match="var must have shape"):
    ghost_batch_norm(x, SCALE, BIAS, MEAN, VAR[:2], ghost_batch_size=3)
  with pytest.raises(TypeError, match="x must be of type float"):
    ghost_batch_norm(x.astype(int), *SETTINGS, ghost_batch_size=3)
  with pytest.raises(ValueError, match="does not divide"):
    GhostBatchNorm(4).init(jax.random.key(0), x, use_running_average=False)


def test_devices_split_locally_and_average_their_statistics():
  layer, x = GhostBatchNorm(2, use_running_average=False), batch(8, C)
  variables = jax.jit(layer.init)(jax.random.key(0), x)

  def loss_fn(params, model_state, rows, key):
    outputs, state = layer.apply({"params": params, **model_state}, rows, mutable=["batch_stats"])
    return training.LossOutput(jnp.square(outputs).sum(-1), model_state=dict(state))

  optimizer = optax.sgd(0.1)
  model_state = {"batch_stats": variables["batch_stats"]}
  state = training.init_state(
    jax.random.key(0), variables["params"], optimizer, model_state=model_state
  )
  mesh = training.make_mesh({"data": 2})
  state, _ = training.build_update(loss_fn, optimizer, mesh=mesh)(state, x)
  ones, zeros = np.ones(C), np.zeros(C)
  halves = [loop(half, ones, zeros, zeros, ones, 2) for half in (x[:4], x[4:])]
  stats = state.model_state["batch_stats"]
  np.testing.assert_allclose(stats["mean"], (halves[0][1] + halves[1][1]) / 2, rtol=1e-5)
  np.testing.assert_allclose(stats["var"], (halves[0][2] + halves[1][2]) / 2, rtol=1e-5)
