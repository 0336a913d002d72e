import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxlab.losses import early_exit as ee

L = 4
distribution = jax.jit(ee.exit_distribution)
conditional = jax.jit(ee.conditional_exit_probabilities)
weighted = jax.jit(ee.exit_weighted_loss, static_argnames="preserve_scale")


@pytest.fixture(scope="module")
def gates():
  rows = np.random.default_rng(0).uniform(0, 1, (32, L)) ** 2
  rows[:4] = [[1, 1, 1, 1], [0, 0, 0, 0], [0.1, 0.2, 0.3, 0.2], [0.5, 0.5, 0.5, 0.5]]
  return rows.astype(np.float32)


def slow_distribution(row):
  probs = [max(0.0, min(row[l], 1 - sum(row[:l]))) for l in range(len(row))]
  return [*probs, 1 - sum(probs)]


def test_exit_distribution_matches_a_slow_loop(gates):
  want = [slow_distribution(row) for row in gates.astype(np.float64)]
  got = np.asarray(distribution(gates))
  np.testing.assert_allclose(got, want, atol=1e-6)
  np.testing.assert_array_equal(got[0], [1, 0, 0, 0, 0])
  np.testing.assert_array_equal(got[1], [0, 0, 0, 0, 1])
  np.testing.assert_array_equal(got[2, :L], gates[2])


@settings(max_examples=20, deadline=None)
@given(arrays(np.float32, (3, L), elements=st.floats(0, 1, width=32)))
def test_exit_distribution_sums_to_1_and_conditionals_recover_it(gates):
  probs = np.asarray(distribution(gates))
  assert np.all(probs >= 0)
  np.testing.assert_allclose(probs.sum(-1), 1, atol=1e-6)
  h = np.asarray(conditional(probs))
  assert np.all((h >= 0) & (h <= 1))
  survive = np.cumprod(np.concatenate([np.ones((3, 1)), 1 - h], 1), 1)
  np.testing.assert_allclose(survive[:, :L] * h, probs[:, :L], atol=2e-6)


def test_conditional_probability_is_0_where_no_mass_is_left():
  np.testing.assert_array_equal(conditional(np.eye(5)[0]), [1, 0, 0, 0])
  grad = jax.jit(jax.grad(lambda p: ee.conditional_exit_probabilities(p).sum()))(jnp.eye(5)[0])
  assert np.all(np.isfinite(grad))


def test_optimal_exit_matches_a_loop_and_its_limits():
  rng = np.random.default_rng(0)
  losses, costs = rng.uniform(0, 3, (20, L + 1)).astype(np.float32), np.linspace(0.2, 1, L + 1)
  optimal = jax.jit(ee.optimal_exit)
  for weight in (0.0, 0.7):
    want = [min(range(L + 1), key=lambda l: row[l] + weight * costs[l]) for row in losses]
    np.testing.assert_array_equal(optimal(losses, costs, cost_weight=weight), want)
  np.testing.assert_array_equal(optimal(losses, costs, cost_weight=1e4), 0)
  np.testing.assert_array_equal(optimal(np.zeros((1, L + 1)), np.ones(L + 1)), [0])
  # A sweep over cost weights by vmap.
  swept = jax.jit(jax.vmap(lambda w: optimal(losses, costs, cost_weight=w)))
  np.testing.assert_array_equal(np.asarray(swept(np.float32([0, 1e4])))[0], losses.argmin(-1))


def slow_gate_loss(row, target, weights):
  total = 0.0
  for l, u in enumerate(row):
    total += weights[l] * np.log1p(np.exp(-u)) if l >= target else np.log1p(np.exp(u))
  return total / len(row)


def test_gate_loss_matches_a_slow_loop():
  rng = np.random.default_rng(0)
  logits, targets = rng.normal(size=(10, L)), rng.integers(0, L + 1, 10)
  weights = rng.uniform(0, 5, L)
  want = [slow_gate_loss(*pair, weights) for pair in zip(logits, targets)]
  gate_loss = jax.jit(ee.gate_loss)
  np.testing.assert_allclose(gate_loss(logits, targets, weights), want, rtol=1e-5)
  labels = np.arange(L) >= targets[:, None]
  probs = 1 / (1 + np.exp(-logits))
  plain = -np.mean(np.where(labels, np.log(probs), np.log(1 - probs)), -1)
  np.testing.assert_allclose(gate_loss(logits, targets, np.ones(L)), plain, rtol=1e-5)


def test_confident_right_gates_have_no_loss():
  loss = jax.jit(jax.value_and_grad(lambda u, t: ee.gate_loss(u, t, jnp.ones(L)).sum()))
  for sign, target in ((1.0, 0), (-1.0, L)):
    value, grad = loss(jnp.full((1, L), sign * 1e4), jnp.array([target]))
    assert value == 0 and np.all(np.asarray(grad) == 0)
    value, grad = loss(jnp.full((1, L), -sign * 1e4), jnp.array([target]))
    assert value == pytest.approx(1e4) and np.all(np.isfinite(grad))


def test_gate_pos_weights():
  targets = np.array([0] * 6 + [1] + [3] * 5)
  pos_weights = jax.jit(ee.gate_pos_weights, static_argnames="num_gates")
  got = pos_weights(targets, num_gates=3)
  np.testing.assert_allclose(got, [6 / 6, 5.0, 5.0])
  got = pos_weights(targets, num_gates=3, max_weight=1e3)
  np.testing.assert_allclose(got, [1, 11, 11.9 / 0.1], rtol=1e-5)
  np.testing.assert_allclose(pos_weights(np.zeros(1, int), num_gates=1), [0.0])


@pytest.fixture(scope="module")
def batch(gates):
  losses = np.random.default_rng(1).uniform(0.1, 3, gates.shape).astype(np.float32)
  return losses, np.asarray(distribution(gates))[:, :L]


def test_weighted_loss_is_the_expectation(batch):
  losses, probs = batch
  np.testing.assert_allclose(weighted(losses, probs), (losses * probs).sum(-1), rtol=1e-5)
  np.testing.assert_array_equal(weighted(losses, np.eye(L)[[2] * 32]), losses[:, 2])
  slope = jax.jit(jax.grad(lambda c, p: weighted(c, p).sum(), argnums=(0, 1)))
  grad = slope(losses, probs)
  np.testing.assert_allclose(grad[0], probs)
  np.testing.assert_array_equal(grad[1], 0)


def test_preserved_scale_keeps_the_value_and_weights_the_gradient(batch):
  losses, probs = batch
  value = np.asarray(weighted(losses, probs, preserve_scale=True))
  some = probs.sum(-1) > 0
  np.testing.assert_allclose(value[some], losses.mean(-1)[some], rtol=1e-5)
  assert not some.all() and np.all(value[~some] == 0)
  grad = jax.jit(
    jax.grad(lambda c, p: ee.exit_weighted_loss(c, p, preserve_scale=True).sum(), argnums=(0, 1))
  )(losses, probs)
  rho = losses.sum(-1) / np.maximum((probs * losses).sum(-1), 1e-12)
  np.testing.assert_allclose(grad[0], rho[:, None] * probs / L, rtol=1e-5)
  np.testing.assert_array_equal(grad[1], 0)


def test_losses_of_zero_stay_finite():
  zeros, probs = jnp.zeros((2, L)), jnp.full((2, L), 0.25)
  value, grad = jax.jit(
    jax.value_and_grad(lambda c: ee.exit_weighted_loss(c, probs, preserve_scale=True).sum())
  )(zeros)
  assert value == 0 and np.all(np.isfinite(grad))


def test_targets_outside_the_exits_raise_or_give_nan():
  gates, weights = np.zeros((4, 3), np.float32), np.ones(3, np.float32)
  narrow = np.array([0, 3, 1, 2], np.uint8)
  loss = jax.jit(ee.gate_loss)
  count = jax.jit(ee.gate_pos_weights, static_argnames="num_gates")
  np.testing.assert_array_equal(
    loss(gates, narrow, weights), loss(gates, narrow.astype(int), weights)
  )
  for bad in (-1, 4):
    targets = np.array([0, bad, 1, 2])
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 4\)"):
      ee.gate_loss(gates, targets, weights)
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 4\)"):
      ee.gate_pos_weights(targets, num_gates=3)
    outside = np.isnan(loss(gates, targets, weights))
    np.testing.assert_array_equal(outside, [False, True, False, False])
    assert np.isnan(count(targets, num_gates=3)).all()


def test_infinite_losses_without_weight_add_nothing():
  exits = np.array([[1.0, np.inf, 2.0]], np.float32), np.array([[0.5, 0.0, 0.5]], np.float32)
  value, slope = jax.jit(jax.value_and_grad(lambda x: ee.exit_weighted_loss(x, exits[1]).sum()))(
    exits[0]
  )
  assert value == 1.5
  np.testing.assert_array_equal(slope, exits[1])
  closed = np.array([[-np.inf, -np.inf]], np.float32)
  value = jax.jit(ee.gate_loss)(closed, np.array([0]), np.zeros(2, np.float32))
  np.testing.assert_array_equal(value, [0])


def test_warmup_loss():
  losses = np.random.default_rng(0).uniform(size=(5, L + 1)).astype(np.float32)
  want = [sum((L + 1 - l) * row[l] for l in range(L)) + row[L] for row in losses]
  np.testing.assert_allclose(ee.exit_warmup_loss(losses), want, rtol=1e-6)


def test_half_precision_and_vmap(batch):
  losses, probs = batch
  half = weighted(losses.astype(jnp.bfloat16), probs, preserve_scale=True)
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, weighted(losses, probs, preserve_scale=True), rtol=2e-2)
  rows = jax.jit(jax.vmap(lambda c, p: weighted(c, p, preserve_scale=True)))(losses, probs)
  np.testing.assert_allclose(rows, weighted(losses, probs, preserve_scale=True), rtol=1e-6)
  assert distribution(probs.astype(jnp.bfloat16)).dtype == jnp.float32


def test_missing_losses_stay_missing_in_their_row(batch):
  losses, probs = np.array(batch[0]), batch[1]
  losses[5] = np.nan
  value = np.asarray(weighted(losses, probs))
  assert np.isnan(value[5]) and np.all(np.isfinite(np.delete(value, 5)))


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: ee.optimal_exit(np.ones((2, 3)), np.ones(3), cost_weight=-1.0), "cost_weight.*-1"),
    (lambda: ee.optimal_exit(np.ones((2, 3)), np.ones(2)), r"costs must .* L \+ 1 = 3, got \[2\]"),
    (lambda: ee.gate_loss(np.ones((2, 3)), np.ones(2, int), -np.ones(3)), "pos_weights"),
    (lambda: ee.gate_loss(np.ones((2, 3)), np.ones(2, int), np.ones(2)), "pos_weights must have"),
    (lambda: ee.exit_weighted_loss(np.ones((2, 3)), np.ones((2, 4))), "exit_probs must have"),
    (lambda: ee.gate_pos_weights(np.ones(0, int), num_gates=2), "targets"),
    (lambda: ee.gate_pos_weights(np.ones(3, int), num_gates=0), "num_gates.*0"),
    (lambda: ee.gate_pos_weights(np.ones(3, int), num_gates=2, max_weight=-1.0), "max_weight"),
  ],
)
def test_errors(call, words):
  with pytest.raises(ValueError, match=words):
    call()
  with pytest.raises(TypeError, match="targets must be of type int, got float64"):
    ee.gate_loss(np.ones((2, 3)), np.ones(2), np.ones(3))
