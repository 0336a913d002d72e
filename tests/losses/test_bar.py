import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from jaxlab.losses.bar import bar_index, bar_nll, half_normal_scales

BORDERS = np.array([-2.0, -1.2, -0.5, 0.1, 0.4, 1.5, 2.5])
K = len(BORDERS) - 1
Z75 = norm.ppf(0.75)
nll = jax.jit(bar_nll, static_argnames="full_support")


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  shifted = logits - logits.max()
  return shifted - np.log(np.exp(shifted).sum())


def slow_nll(logits, target, borders, full_support):
  """One target at a time, from the definition."""
  log_probs = log_softmax(logits)
  k = 0
  while k < len(borders) - 2 and target > borders[k + 1]:
    k += 1
  width = borders[k + 1] - borders[k]
  if full_support and k in (0, len(borders) - 2):
    distance = borders[1] - target if k == 0 else target - borders[-2]
    scale, distance = width / Z75, max(distance, 1e-8)
    log_density = 0.5 * np.log(2 / np.pi) - np.log(scale) - distance**2 / (2 * scale**2)
  else:
    log_density = -np.log(width)
  return -(log_probs[k] + log_density)


@pytest.fixture(scope="module")
def logits():
  return np.random.default_rng(0).normal(size=K).astype(np.float32)


@pytest.mark.parametrize("full_support", [True, False])
def test_nll_matches_a_slow_loop(full_support):
  rng = np.random.default_rng(1)
  targets = np.concatenate([rng.uniform(-5, 5, 33), BORDERS, [-30.0, 30.0]])
  targets = targets.astype(np.float32).reshape(6, 7)
  borders = BORDERS.astype(np.float32)
  logits = rng.normal(size=(6, 7, K)).astype(np.float32) * 3
  want = [
    [slow_nll(l, t, borders.astype(np.float64), full_support) for l, t in zip(*rows)]
    for rows in zip(logits, targets)
  ]
  got = nll(logits, targets, borders, full_support=full_support)
  np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("full_support", [True, False])
def test_density_integrates_to_one(logits, full_support):
  edges = np.linspace(-30, 30, 600_001) if full_support else np.linspace(-2, 2.5, 400_001)
  centers = ((edges[1:] + edges[:-1]) / 2).astype(np.float32)
  rows = jnp.broadcast_to(logits, (len(centers), K))
  density = np.exp(-np.asarray(nll(rows, centers, BORDERS, full_support=full_support), np.float64))
  np.testing.assert_allclose(density.sum() * (edges[1] - edges[0]), 1.0, atol=2e-5)


@pytest.mark.parametrize("end", ["left", "right"])
def test_outer_half_normals_keep_half_of_their_mass_in_the_bar(logits, end):
  low, high = BORDERS[:2] if end == "left" else BORDERS[-2:]
  edges = np.linspace(low, high, 20_001)
  centers = (edges[1:] + edges[:-1]) / 2
  density = np.exp(-nll(jnp.broadcast_to(logits, (len(centers), K)), centers, BORDERS))
  prob = np.exp(log_softmax(logits))[0 if end == "left" else -1]
  np.testing.assert_allclose(np.sum(density) * (edges[1] - edges[0]), prob / 2, rtol=1e-4)


def test_border_belongs_to_the_bar_on_its_left():
  index = bar_index(BORDERS, BORDERS)
  np.testing.assert_array_equal(index, [0, 0, 1, 2, 3, 4, 5])
  assert index.dtype == jnp.int32
  np.testing.assert_array_equal(
    bar_index(BORDERS, np.array([-np.inf, -9, 9, np.inf])), [0, 0, 5, 5]
  )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3))
def test_bar_index_brackets_the_target(targets):
  targets = np.array(targets, np.float32)
  index = np.asarray(bar_index(BORDERS.astype(np.float32), targets))
  left, right = BORDERS.astype(np.float32)[index], BORDERS.astype(np.float32)[index + 1]
  assert np.all((left < targets) | (index == 0))
  assert np.all((targets <= right) | (index == K - 1))


def test_targets_outside_bounded_bars_are_scored_by_the_end_bars(logits):
  rows = np.stack([logits, logits])
  outside = nll(rows, np.array([-7.0, 7.0]), BORDERS, full_support=False)
  inside = nll(rows, np.array([-1.5, 2.0]), BORDERS, full_support=False)
  np.testing.assert_array_equal(outside, inside)


def test_tail_distance_has_a_floor(logits):
  at_border = nll(logits, jnp.asarray(BORDERS[1], jnp.float32), BORDERS.astype(np.float32))
  scale = (BORDERS[1] - BORDERS[0]) / Z75
  want = -log_softmax(logits)[0] - 0.5 * np.log(2 / np.pi) + np.log(scale)
  np.testing.assert_allclose(at_border, want, rtol=1e-5)


def test_half_normal_scales():
  scales = half_normal_scales(BORDERS)
  np.testing.assert_allclose(scales.left, 0.8 / Z75, rtol=1e-6)
  np.testing.assert_allclose(scales.right, 1.0 / Z75, rtol=1e-6)


def test_gradient_is_probability_minus_one_hot(logits):
  targets = np.array([-4.0, 0.0, 0.3, np.nan, 6.0], np.float32)
  rows = np.broadcast_to(logits, (5, K))
  grad = jax.jit(jax.grad(lambda l: bar_nll(l, targets, BORDERS).sum()))(rows)
  want = np.exp(log_softmax(logits)) - np.eye(K)[np.asarray(bar_index(BORDERS, targets))]
  want[3] = 0
  np.testing.assert_allclose(grad, want, atol=1e-6)


def test_missing_targets_have_no_loss_and_no_gradient(logits):
  rows, targets = np.stack([logits, logits]), np.array([np.nan, 0.0], np.float32)
  value, grads = jax.jit(
    jax.value_and_grad(lambda l, t, b: bar_nll(l, t, b).sum(), argnums=(0, 1, 2))
  )(rows, targets, jnp.asarray(BORDERS, jnp.float32))
  assert nll(rows, targets, BORDERS)[0] == 0
  np.testing.assert_allclose(value, slow_nll(logits, 0.0, BORDERS, True), rtol=1e-5)
  chex.assert_tree_all_finite(grads)
  np.testing.assert_array_equal(grads[0][0], 0)
  assert grads[1][0] == 0


@pytest.mark.parametrize("full_support", [True, False])
def test_extreme_values_stay_finite(full_support):
  logits = np.array([[1e4, -1e4, 0, 0, 0, -1e4], [-1e4] * 5 + [1e4]] * 2, np.float32)
  targets = np.array([1e6, -1e6, 0.2, 3e8], np.float32)
  value, grads = jax.jit(
    jax.value_and_grad(
      lambda l, t: bar_nll(l, t, BORDERS, full_support=full_support).sum(), argnums=(0, 1)
    )
  )(logits, targets)
  assert np.isfinite(value)
  chex.assert_tree_all_finite(grads)


def test_bfloat16_logits_accumulate_in_float32():
  logits = jnp.asarray(np.random.default_rng(2).normal(size=(5, K)), jnp.bfloat16)
  targets = np.linspace(-3, 3, 5, dtype=np.float32)
  got = nll(logits, targets, BORDERS)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, nll(logits.astype(jnp.float32), targets, BORDERS), rtol=1e-6)


def test_vmap_matches_the_batched_call():
  rng = np.random.default_rng(3)
  logits, targets = rng.normal(size=(4, 3, K)), rng.normal(size=(4, 3))
  got = jax.jit(jax.vmap(bar_nll, in_axes=(0, 0, None)))(logits, targets, BORDERS)
  np.testing.assert_allclose(got, nll(logits, targets, BORDERS), rtol=1e-6)


@pytest.mark.parametrize("borders", [[0.0, 2.0, 1.0], [0.0, 1.0, 1.0], [0.0, np.nan, 1.0]])
def test_borders_must_increase(borders):
  for call in (
    lambda: bar_nll(np.zeros((2, 2)), np.zeros(2), borders),
    lambda: half_normal_scales(borders),
    lambda: bar_index(borders, np.zeros(2)),
  ):
    with pytest.raises(ValueError, match="^borders must increase strictly, got"):
      call()


def test_errors():
  with pytest.raises(ValueError, match="at least two bars, got 1"):
    bar_nll(np.zeros((2, 1)), np.zeros(2), np.array([0.0, 1.0]))
  assert np.all(
    np.isfinite(bar_nll(np.zeros((2, 1)), np.zeros(2), np.array([0.0, 1.0]), full_support=False))
  )
  with pytest.raises(ValueError, match=r"borders must have shape \[7\], got \[6\]"):
    bar_nll(np.zeros((2, K)), np.zeros(2), BORDERS[:-1])
  with pytest.raises(ValueError, match="targets must have shape"):
    bar_nll(np.zeros((2, K)), np.zeros(3), BORDERS)
