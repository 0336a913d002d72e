import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from jaxlab.samplers import path_pruning

N = 24
RNG = np.random.default_rng(0)
LOW, HIGH = RNG.beta(20, 40, (3, N)), RNG.beta(50, 5, (3, N))
CLUSTERS = np.where(RNG.random((3, N)) < 0.5, LOW, HIGH)
TAILS = np.exp(-RNG.gamma(2, 0.15, (3, N)))
SCORES = np.concatenate([CLUSTERS, TAILS]).astype(np.float32)
NARROW = np.where(RNG.random((6, N)) < 0.6, 0.9, 0.72) * (1 + 1e-3 * RNG.normal(size=(6, N)))
MIXTURE = path_pruning.WeibullMixture(
  np.float32([0.3, 0.6, 0.5, 0.2, 0.8, 0.4]),
  RNG.uniform(0.5, 20, (6, 2)).astype(np.float32),
  RNG.uniform(0.2, 1.5, (6, 2)).astype(np.float32),
)

log_prob = jax.jit(path_pruning.weibull_mixture_log_prob)
posterior = jax.jit(path_pruning.weibull_mixture_posterior)
prune_mask = jax.jit(path_pruning.reasoning_prune_mask)
fit = jax.jit(path_pruning.fit_weibull_mixture, static_argnames="num_steps")
prune = jax.jit(path_pruning.prune_improbable_paths)


def log_densities(x, weight, shape, scale):
  """The components' log-densities with their weights, of one row."""
  first, second = (scipy.stats.weibull_min.logpdf(x, k, scale=s) for k, s in zip(shape, scale))
  return np.log(weight) + first, np.log(1 - weight) + second


def rows(mixture):
  return zip(*(np.asarray(field, np.float64) for field in mixture))


def test_density_and_posterior_match_scipy():
  ours, probs = (function(SCORES, **MIXTURE._asdict()) for function in (log_prob, posterior))
  for row, mixture in enumerate(rows(MIXTURE)):
    first, second = log_densities(SCORES[row].astype(np.float64), *mixture)
    np.testing.assert_allclose(ours[row], np.logaddexp(first, second), rtol=1e-4, atol=1e-4)
    expected = scipy.special.expit(first - second)
    np.testing.assert_allclose(probs[row], expected, rtol=1e-2, atol=1e-5)


def test_pruning_matches_a_slow_loop():
  keep = np.asarray(prune_mask(SCORES, **MIXTURE._asdict()))
  for row, (weight, shape, scale) in enumerate(rows(MIXTURE)):
    first, second = log_densities(SCORES[row].astype(np.float64), weight, shape, scale)
    means = [scipy.stats.weibull_min(k, scale=s).mean() for k, s in zip(shape, scale)]
    high, low = (first, second) if means[0] >= means[1] else (second, first)
    np.testing.assert_array_equal(keep[row], ~((high < low) & (SCORES[row] < SCORES[row].mean())))
  assert not keep.all() and keep[np.arange(6), SCORES.argmax(1)].all()
  assert np.all(prune_mask(np.full_like(SCORES, 0.1), **MIXTURE._asdict()))


def test_order_of_the_components_does_not_matter():
  swapped = path_pruning.WeibullMixture(
    1 - MIXTURE.weight, MIXTURE.shape[:, ::-1], MIXTURE.scale[:, ::-1]
  )
  keep, other = (prune_mask(SCORES, **mixture._asdict()) for mixture in (MIXTURE, swapped))
  np.testing.assert_array_equal(keep, other)
  probs, others = (posterior(SCORES, **mixture._asdict()) for mixture in (MIXTURE, swapped))
  np.testing.assert_allclose(probs, 1 - others, atol=1e-5)


def test_one_mixture_serves_all_rows():
  one = path_pruning.WeibullMixture(*(field[1] for field in MIXTURE))
  each = path_pruning.WeibullMixture(*(np.stack([field[1]] * 6) for field in MIXTURE))
  with jax.numpy_rank_promotion("raise"):
    for function in (log_prob, posterior, prune_mask):
      ours, theirs = (function(SCORES, **mixture._asdict()) for mixture in (one, each))
      np.testing.assert_array_equal(ours, theirs)


def nll(x, params):
  weight, *rest = params
  return -np.sum(np.logaddexp(*log_densities(x, weight, rest[:2], rest[2:])))


@pytest.mark.parametrize("scores", [SCORES, NARROW.astype(np.float32)])
@pytest.mark.filterwarnings("ignore:overflow")
def test_fit_is_as_good_as_a_bounded_search(scores):
  mixture = fit(scores)
  bounds = [(0.2, 0.8), *[(0.01, None)] * 4]
  for x, (weight, shape, scale) in zip(scores.astype(np.float64), rows(mixture)):
    found = scipy.optimize.minimize(
      lambda params, x=x: nll(x, params), [0.5, 1, 1, 1.5, 2], method="L-BFGS-B", bounds=bounds
    )
    assert nll(x, [weight, *shape, *scale]) <= found.fun + 1e-2
    assert 0.2 <= weight <= 0.8 and min(*shape, *scale) >= 0.01


def test_separate_clusters_are_pruned_exactly():
  is_high = np.arange(N)[None] % 3 > 0
  scores = np.where(is_high, HIGH, LOW / 2)
  scores = np.concatenate([scores, np.where(is_high, LOW, 0.01 * HIGH)]).astype(np.float32)
  np.testing.assert_array_equal(prune(scores), np.broadcast_to(is_high, (6, N)))
  np.testing.assert_array_equal(prune(NARROW.astype(np.float32)), NARROW > 0.8)


def test_mask_is_a_smaller_row():
  mask = np.arange(N)[None] < 20
  masked = fit(np.where(mask, SCORES, np.nan), mask=np.broadcast_to(mask, SCORES.shape))
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3), masked, fit(SCORES[:, :20])
  )


def test_rows_without_a_fit_keep_all():
  scores = SCORES.copy()
  scores[1] = 0.3
  mask = np.ones(scores.shape, bool)
  mask[2, 3:] = False
  mask[3] = False
  mixture = jax.tree.map(np.asarray, fit(scores, mask=mask))
  for row in (1, 2, 3):
    start = [mixture.weight[row], *mixture.shape[row], *mixture.scale[row]]
    np.testing.assert_allclose(start, [0.5, 1, 1, 1.5, 2], rtol=1e-5)
  keep = np.asarray(prune(scores, mask=mask))
  assert keep[1:4].all() and not keep[0].all()


def test_a_nan_stays_in_its_row_and_extremes_are_finite():
  scores = SCORES.copy()
  scores[0, 0], scores[1, 0], scores[2, :5] = np.nan, 0.0, 1.0
  mixture = fit(scores)
  for field in mixture:
    finite = np.isfinite(field).reshape(6, -1).all(1)
    np.testing.assert_array_equal(finite, [0, 1, 1, 1, 1, 1])


def test_gradients_of_the_density_are_finite():
  def total(x, weight, shape, scale):
    return path_pruning.weibull_mixture_log_prob(x, weight=weight, shape=shape, scale=scale).sum()

  gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))
  for shape, scale in (([0.5, 200.0], [0.9, 0.01]), ([1.0, 1e3], [1e-3, 1e3])):
    result = gradient(np.float32([1e-6, 0.5, 1.0]), 0.5, np.float32(shape), np.float32(scale))
    assert all(np.isfinite(leaf).all() for leaf in result)


def test_density_at_and_below_zero():
  scores = SCORES.copy()
  scores[:, 0], scores[:, 1] = -1.0, 0.0
  result = np.asarray(log_prob(scores, **MIXTURE._asdict()))
  assert (result[:, 0] == -np.inf).all() and np.isfinite(result[:, 1:]).all()


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"weight": 1.0}, r"weight must lie in \(0, 1\), got 1.0"),
    ({"shape": np.array([0.0, 1.0])}, "shape must lie"),
    ({"scale": np.array([1.0, -1.0])}, "scale must lie"),
    ({"shape": np.ones(3)}, r"shape must have shape \[2\]"),
  ],
)
def test_errors_of_mixtures(changes, message):
  given = {"weight": 0.5, "shape": np.ones(2), "scale": np.ones(2)} | changes
  for function in (
    path_pruning.weibull_mixture_log_prob,
    path_pruning.weibull_mixture_posterior,
    path_pruning.reasoning_prune_mask,
  ):
    with pytest.raises(ValueError, match=message):
      function(SCORES[0], **given)


def test_errors_of_the_fit():
  with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
    path_pruning.fit_weibull_mixture(SCORES, num_steps=0)
  with pytest.raises(ValueError, match="x must not be empty"):
    path_pruning.prune_improbable_paths(np.zeros((2, 0)))
