import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlab import metrics

G = 1000
EDGES = np.arange(G + 1) / G
CENTERS = (np.arange(G) + 0.5) / G
UNIFORM = np.ones(G, np.float32)
RNG = np.random.default_rng(0)
PROCEDURES = ("best_of_n", "worst_of_n")
WIN_RATES = {
  "best_of_n": jax.jit(metrics.best_of_n_win_rate, static_argnames="num_samples"),
  "worst_of_n": jax.jit(metrics.worst_of_n_win_rate, static_argnames="num_samples"),
}
tilted_density = jax.jit(metrics.tilted_density)
density_kl = jax.jit(metrics.density_kl)
pool_win_rate = jax.jit(metrics.pool_win_rate, static_argnames=("num_samples", "procedure"))
value_at_kl = jax.jit(metrics.value_at_kl)


def power_density(m):
  """The best of m samples of the reference, averaged over the cells."""
  return np.diff(EDGES**m) * G


def slow_win_rate(density, num_samples, procedure):
  density = np.float64(density)
  edges = np.concatenate([[0], np.cumsum(density)]) / G
  mean = (edges[1:] + edges[:-1]) / 2
  n = num_samples
  if procedure == "best_of_n":
    return 1 - np.sum(np.diff(EDGES**n) * mean**n)
  return np.sum(-np.diff((1 - EDGES) ** n) * (1 - mean) ** n)


@pytest.mark.parametrize("procedure", PROCEDURES)
@pytest.mark.parametrize("num_samples", [1, 4, 32])
def test_win_rates_match_the_sums(procedure, num_samples):
  win_rate = WIN_RATES[procedure]
  for scores in (3 * CENTERS, np.sin(9 * CENTERS), -CENTERS):
    density = tilted_density(np.float32(scores), beta=0.4)
    expected = slow_win_rate(density, num_samples, procedure)
    np.testing.assert_allclose(win_rate(density, num_samples=num_samples), expected, atol=1e-5)
  np.testing.assert_allclose(win_rate(UNIFORM, num_samples=num_samples), 0.5, atol=1e-4)


def test_tilted_density_and_its_divergence():
  scores = np.float32(RNG.normal(size=G))
  density = tilted_density(scores, beta=0.5)
  odds = np.exp(np.float64(scores) / 0.5)
  expected = odds / odds.mean()
  np.testing.assert_allclose(density, expected, rtol=1e-5)
  np.testing.assert_allclose(density_kl(density), np.mean(expected * np.log(expected)), rtol=1e-5)
  assert density_kl(UNIFORM) == 0
  np.testing.assert_allclose(tilted_density(scores, beta=1e9), UNIFORM, rtol=1e-6)
  spike = np.where(np.arange(G) == 3, G, 0).astype(np.float32)
  np.testing.assert_allclose(density_kl(spike), np.log(G), rtol=1e-6)
  assert np.isfinite(jax.jit(jax.grad(metrics.density_kl))(spike)).all()
  sharp = tilted_density(1e4 * scores, beta=1e-3)
  assert np.isfinite(sharp).all() and sharp.max() == G


@pytest.mark.parametrize("m", [2, 5])
def test_the_best_of_m_samples_against_the_closed_forms(m):
  density = power_density(m).astype(np.float32)
  np.testing.assert_allclose(density_kl(density), metrics.best_of_n_kl(m), atol=1e-4)
  np.testing.assert_allclose(metrics.best_of_n_kl(m), np.log(m) - (m - 1) / m, rtol=1e-5)
  for num_samples in (1, 4):
    result = WIN_RATES["best_of_n"](density, num_samples=num_samples)
    np.testing.assert_allclose(result, m / (m + 1), atol=1e-4)


def test_one_sample_is_the_mean_whatever_the_procedure():
  density = tilted_density(np.float32(CENTERS**2), beta=0.1)
  mean = np.mean(np.float64(density) * CENTERS)
  for win_rate in WIN_RATES.values():
    np.testing.assert_allclose(win_rate(density, num_samples=1), mean, atol=1e-5)


def slow_transform(num_samples, beta, procedure, size, damping, num_iterations):
  centers, log_density, n = (np.arange(size) + 0.5) / size, np.zeros(size), num_samples
  for _ in range(num_iterations):
    edges = np.concatenate([[0], np.cumsum(np.exp(log_density))]) / size
    mean = (edges[1:] + edges[:-1]) / 2
    transform = np.zeros(size)
    for g in range(size):
      if procedure == "best_of_n":
        s = (centers * mean) ** (n - 1)
        transform[g] = -(n**2) / size * (s[g + 1 :].sum() + s[g] / 2)
      else:
        s = ((1 - centers) * (1 - mean)) ** (n - 1)
        transform[g] = n**2 / size * (s[:g].sum() + s[g] / 2)
    tilted = transform / beta - np.log(np.mean(np.exp(transform / beta)))
    log_density = (1 - damping) * log_density + damping * tilted
    log_density -= np.log(np.mean(np.exp(log_density)))
  return transform, np.exp(log_density)


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_the_fixed_point_matches_a_loop(procedure):
  for beta, damping in ((0.3, 0.1), (0.1, 0.5)):
    result = metrics.optimal_transform(
      num_samples=4, beta=beta, procedure=procedure, grid_size=20, damping=damping, num_iterations=7
    )
    for ours, theirs in zip(result, slow_transform(4, beta, procedure, 20, damping, 7)):
      np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_one_sample_needs_no_transformation():
  transform, density = metrics.optimal_transform(num_samples=1, beta=0.2)
  np.testing.assert_allclose(transform - transform[0], CENTERS - CENTERS[0], atol=1e-5)
  np.testing.assert_allclose(density, tilted_density(np.float32(CENTERS), beta=0.2), rtol=1e-3)


@pytest.fixture(scope="module")
def optimum():
  return metrics.optimal_transform(num_samples=4, beta=0.1)


def test_nothing_beats_the_optimum_for_the_best_of_n(optimum):
  def objective(density):
    kl = density_kl(density)
    return WIN_RATES["best_of_n"](density, num_samples=4) - 0.1 * kl

  best = objective(optimum.density)
  np.testing.assert_allclose(
    optimum.density, tilted_density(optimum.transform, beta=0.1), rtol=1e-3
  )
  for size in (0.02, 0.2, 1.0):
    for smooth in (1, 50):
      noise = np.repeat(RNG.normal(size=G // smooth), smooth)
      density = optimum.density * np.exp(size * noise)
      assert objective(np.float32(density / density.mean())) < best + 1e-6


def tilted_to(transform, kl):
  """The tilted density of a given divergence, by bisection."""
  low, high = 1e-3, 1e9
  for _ in range(100):
    beta = np.sqrt(low * high)
    odds = np.exp((transform - transform.max()) / beta)
    density = odds / odds.mean()
    terms = density * np.log(np.maximum(density, 1e-300))
    low, high = (beta, high) if terms.mean() > kl else (low, beta)
  return np.float32(density)


def test_no_transformation_beats_the_optimum_at_its_divergence():
  for beta in (0.03, 0.1, 0.5):
    density = metrics.optimal_transform(num_samples=4, beta=beta).density
    best, kl = WIN_RATES["best_of_n"](density, num_samples=4), float(density_kl(density))
    for other in (CENTERS, np.exp(10 * CENTERS), np.log(CENTERS), CENTERS**8):
      rival = tilted_to(other, kl)
      np.testing.assert_allclose(density_kl(rival), kl, rtol=1e-3)
      assert WIN_RATES["best_of_n"](rival, num_samples=4) < best + 1e-4


@pytest.mark.parametrize("procedure", PROCEDURES)
def test_the_frontier_is_a_curve_of_tilted_densities(procedure):
  betas = np.float32([0.1, 0.7])
  frontier = metrics.win_rate_frontier(
    np.float32(CENTERS), betas, num_samples=4, procedure=procedure
  )
  for beta, kl, win_rate in zip(betas, *frontier):
    density = tilted_density(np.float32(CENTERS), beta=beta)
    np.testing.assert_allclose(kl, density_kl(density), rtol=1e-5)
    np.testing.assert_allclose(win_rate, WIN_RATES[procedure](density, num_samples=4), rtol=1e-5)


def brute_force(policy, reference, num_samples, procedure):
  choose = max if procedure == "best_of_n" else min
  draws = [
    [choose(x) for x in itertools.product(pool, repeat=num_samples)] for pool in (policy, reference)
  ]
  ours, theirs = np.array(draws[0])[:, None], np.array(draws[1])[None]
  return np.mean((ours > theirs) + 0.5 * (ours == theirs))


@pytest.mark.parametrize("procedure", PROCEDURES)
@pytest.mark.parametrize("num_samples", [1, 2, 3])
def test_pools_match_all_tuples(procedure, num_samples):
  policy, reference = np.round(2 * RNG.normal(size=(2, 5, 4))).astype(np.float32)
  result = pool_win_rate(policy, reference, num_samples=num_samples, procedure=procedure)
  expected = [brute_force(p, r, num_samples, procedure) for p, r in zip(policy, reference)]
  np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_pools_with_missing_and_infinite_rewards():
  policy, reference = RNG.normal(size=(2, 5, 4)).astype(np.float32)
  policy[0, 1], reference[1, 2], policy[2] = np.nan, np.nan, -np.inf
  result = pool_win_rate(policy, reference, num_samples=2, procedure="best_of_n")
  np.testing.assert_array_equal(np.isnan(result), [True, True, False, False, False])
  assert result[2] == 0
  mirrored = pool_win_rate(-policy, -reference, num_samples=2, procedure="worst_of_n")
  np.testing.assert_allclose(mirrored, 1 - result, rtol=1e-6)


def test_pools_of_a_tilted_policy_follow_the_grid():
  density = np.asarray(tilted_density(np.float32(CENTERS), beta=0.3), np.float64)
  policy = RNG.choice(CENTERS, size=4000, p=density / density.sum()).astype(np.float32)
  result = metrics.pool_win_rate(policy, RNG.uniform(size=4000).astype(np.float32), num_samples=4)
  np.testing.assert_allclose(result, WIN_RATES["best_of_n"](density, num_samples=4), atol=0.02)


def test_joint_success_is_strict():
  rewards = np.float32([[[1, 2], [1, 3]], [[0, 0], [5, np.nan]]])
  thresholds = np.float32([[[0, 2]], [[-1, -1]]])
  result = metrics.joint_success(rewards, thresholds)
  np.testing.assert_array_equal(result, [[False, True], [True, False]])


def test_values_are_interpolated_over_sorted_divergences():
  kl, value = np.float32([2.0, 0.5, 1.0]), np.float32([0.9, 0.6, 0.7])
  at = np.float32([0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 2.1])
  result = value_at_kl(kl, value, at=at)
  np.testing.assert_allclose(result, [np.nan, 0.6, 0.65, 0.7, 0.8, 0.9, np.nan], rtol=1e-6)
  assert np.isnan(value_at_kl(np.float32([2.0, np.nan, 1.0]), value, at=at)).all()
  alone = value_at_kl(kl[:1], value[:1], at=at)
  np.testing.assert_allclose(alone, [np.nan] * 5 + [0.9, np.nan], rtol=1e-6)


def test_half_precision_is_cast():
  density = jnp.asarray(power_density(2), jnp.bfloat16)
  for result in (
    density_kl(density),
    WIN_RATES["best_of_n"](density, num_samples=4),
    tilted_density(density, beta=1.0),
    metrics.best_of_n_kl(jnp.asarray(3.0, jnp.bfloat16)),
  ):
    assert result.dtype == jnp.float32


def test_errors():
  pool = np.zeros((2, 3), np.float32)
  for call, message in (
    (lambda: metrics.tilted_density(CENTERS, beta=0.0), r"beta must lie in \(0, inf\), got 0.0"),
    (lambda: metrics.best_of_n_win_rate(UNIFORM, num_samples=0), "num_samples must be at least 1"),
    (lambda: metrics.worst_of_n_win_rate(UNIFORM, num_samples=0), "num_samples must be at least 1"),
    (lambda: metrics.density_kl(np.zeros(0)), "density must not be empty"),
    (lambda: metrics.optimal_transform(num_samples=0, beta=1.0), "num_samples must be at least 1"),
    (lambda: metrics.optimal_transform(num_samples=1, beta=-1.0), "beta must lie .* -1.0"),
    (lambda: metrics.optimal_transform(num_samples=1, beta=1.0, grid_size=1), "grid_size .* 2"),
    (lambda: metrics.optimal_transform(num_samples=1, beta=1.0, damping=0.0), "damping .* 0.0"),
    (
      lambda: metrics.optimal_transform(num_samples=1, beta=1.0, procedure="median"),
      "procedure must be one of 'best_of_n', 'worst_of_n', got 'median'",
    ),
    (lambda: metrics.win_rate_frontier(UNIFORM, [0.0], num_samples=1), "betas must lie"),
    (lambda: metrics.win_rate_frontier(UNIFORM, 1.0, num_samples=1), "betas must have shape"),
    (
      lambda: metrics.win_rate_frontier(UNIFORM, [1.0], num_samples=1, procedure="best"),
      "procedure must be one of",
    ),
    (lambda: metrics.pool_win_rate(pool, pool[:1]), "reference_rewards must have shape"),
    (lambda: metrics.pool_win_rate(pool[:, :0], pool), "policy_rewards must not be empty"),
    (lambda: metrics.pool_win_rate(pool, pool, num_samples=0), "num_samples must be at least 1"),
    (lambda: metrics.pool_win_rate(pool, pool, procedure="best"), "procedure must be one of"),
    (lambda: metrics.best_of_n_kl(0), r"num_samples must lie in \[1, inf\), got 0"),
    (lambda: metrics.joint_success(pool, pool[:, :2]), "thresholds must have shape"),
    (lambda: metrics.joint_success(pool, np.zeros((4, 3))), "rewards and thresholds must"),
    (lambda: metrics.value_at_kl([], [], at=[1.0]), "kl must not be empty"),
    (lambda: metrics.value_at_kl([1.0], [1.0, 2.0], at=[1.0]), "value must have shape"),
  ):
    with pytest.raises(ValueError, match=message):
      call()
