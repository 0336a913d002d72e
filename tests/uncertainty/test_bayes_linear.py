import functools
import math

import jax
import numpy as np
import pytest
from scipy import stats

from jaxlab.samplers import LinearTasks, ridge_prior, sample_linear_regression
from jaxlab.uncertainty import bayes_linear

RNG = np.random.default_rng(0)
N, F, M, T = 6, 3, 2, 6
X, X_QUERY = (RNG.normal(size=(rows, F)).astype(np.float32) for rows in (N, M))
Y = (X @ np.array([1.0, -2.0, 0.5]) + 0.3 * RNG.normal(size=N)).astype(np.float32)
Y_QUERY = np.array([0.3, -4.0], np.float32)
LEVELS = np.array([0.2, 0.5, 1.5], np.float32)
POOL = LinearTasks(RNG.normal(size=(4, F)).astype(np.float32), RNG.uniform(0.3, 1, 4))
NONE, ALL = np.zeros(N, bool), np.ones(N, bool)


@functools.cache
def compiled(name):
  return jax.jit(getattr(bayes_linear, name))


def predict(name, *args, mask=ALL, x=X, y=Y, x_query=X_QUERY, **kwargs):
  return jax.tree.map(np.asarray, compiled(name)(x, y, x_query, *args, mask=mask, **kwargs))


def dense_known_noise(x, y, x_query, weight_std, noise_std):
  """As a Gaussian process with the linear kernel: mean, variance, log-evidence."""
  x, y, x_query = (np.asarray(values, float) for values in (x, y, x_query))
  covariance = weight_std**2 * x @ x.T + noise_std**2 * np.eye(len(x))
  across = weight_std**2 * x_query @ x.T
  solved = np.linalg.solve(covariance, across.T)
  own = weight_std**2 * np.square(x_query).sum(1) + noise_std**2
  evidence = stats.multivariate_normal.logpdf(y, np.zeros(len(y)), covariance) if len(y) else 0.0
  return solved.T @ y, own - np.einsum("mn,nm->m", across, solved), evidence


def test_without_pairs_it_is_the_prior():
  norms = np.square(X_QUERY).sum(axis=1)
  settings = dict(weight_std=1.5, noise_std=0.5)
  mean, variance = predict("gaussian_predictive", mask=NONE, **settings)
  np.testing.assert_array_equal(mean, 0)
  np.testing.assert_allclose(variance, 0.25 + 2.25 * norms, rtol=1e-5)
  settings = dict(shape=3.0, rate=2.0, weight_precision=4.0)
  mean, variance = predict("nig_predictive", mask=NONE, **settings)
  np.testing.assert_array_equal(mean, 0)
  np.testing.assert_allclose(variance, 2 / 2 * (1 + norms / 4), rtol=1e-5)
  probs = np.array([0.2, 0.3, 0.5], np.float32)
  mean, variance = predict("noise_grid_predictive", LEVELS, probs, mask=NONE)
  np.testing.assert_allclose(variance, probs @ LEVELS**2 + norms, rtol=1e-5)
  mean, variance = predict("task_pool_predictive", *POOL, mask=NONE)
  means = X_QUERY @ POOL.weights.T
  np.testing.assert_allclose(mean, means.mean(axis=1), rtol=1e-4)
  spread = (POOL.noise_stds**2).mean() + means.var(axis=1)
  np.testing.assert_allclose(variance, spread, rtol=1e-4)


@pytest.mark.parametrize("noise_std", [0.05, 0.3, 3.0])
@pytest.mark.parametrize("seen", [2, N])
def test_known_noise_matches_the_dense_gaussian_process(seen, noise_std):
  mask = np.arange(N) < seen
  mean, variance = predict("gaussian_predictive", mask=mask, weight_std=0.7, noise_std=noise_std)
  expected = dense_known_noise(X[:seen], Y[:seen], X_QUERY, 0.7, noise_std)
  np.testing.assert_allclose(mean, expected[0], rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(variance, expected[1], rtol=1e-3)


def test_variance_falls_with_every_pair():
  masks = [np.arange(N) < seen for seen in range(N + 1)]
  known = [predict("gaussian_predictive", mask=m, noise_std=0.5).variance for m in masks]
  assert (np.diff(known, axis=0) <= 1e-6).all()


@pytest.mark.parametrize("seen", [0, 1, N])
def test_a_grid_is_the_mixture_weighted_by_dense_evidence(seen):
  mask = np.arange(N) < seen
  probs = np.array([0.2, 0.0, 0.8], np.float32)
  dense = [dense_known_noise(X[:seen], Y[:seen], X_QUERY, 0.9, s) for s in LEVELS.astype(float)]
  evidence = np.array([row[2] for row in dense])
  weights = probs * np.exp(evidence - evidence.max())
  weights /= weights.sum()
  means, variances = (np.array([row[i] for row in dense]) for i in (0, 1))
  mean = weights @ means
  variance = weights @ (variances + means**2) - mean**2
  result = predict("noise_grid_predictive", LEVELS, probs, mask=mask, weight_std=0.9)
  np.testing.assert_allclose(result.mean, mean, rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(result.variance, variance, rtol=1e-3)


def test_a_grid_of_equal_levels_knows_the_noise():
  expected = predict("gaussian_predictive", noise_std=0.5)
  for levels, probs in (([0.5, 0.5, 0.5], [0.2, 0.3, 0.5]), (LEVELS, [0.0, 2.0, 0.0])):
    given = predict("noise_grid_predictive", np.float32(levels), np.float32(probs))
    for ours, theirs in zip(given, expected):
      np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_a_sure_prior_of_the_noise_is_known_noise():
  variance, precision = 0.25, 4.0
  sure = dict(shape=1e6, rate=variance * 1e6, weight_precision=precision)
  expected = predict("gaussian_predictive", noise_std=0.5, weight_std=math.sqrt(0.25 / precision))
  for ours, theirs in zip(predict("nig_predictive", **sure), expected):
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)


@pytest.mark.parametrize("seen", [0, 2, N])
def test_nig_matches_the_textbook(seen):
  shape, rate, precision = 1.5, 0.7, 2.0
  settings = dict(shape=shape, rate=rate, weight_precision=precision)
  x, y = X[:seen].astype(float), Y[:seen].astype(float)
  matrix = x.T @ x + precision * np.eye(F)
  weights = np.linalg.solve(matrix, x.T @ y)
  a, b = shape + seen / 2, rate + 0.5 * (y @ y - weights @ matrix @ weights)
  scale = np.sqrt(
    b / a * (1 + np.einsum("mf,mf->m", X_QUERY, np.linalg.solve(matrix, X_QUERY.T).T))
  )
  mask = np.arange(N) < seen
  mean, variance = predict("nig_predictive", mask=mask, **settings)
  np.testing.assert_allclose(mean, X_QUERY @ weights, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(variance, scale**2 * a / (a - 1), rtol=1e-3)
  log_density = predict("nig_log_predictive", Y_QUERY, mask=mask, **settings)
  expected = stats.t.logpdf(Y_QUERY, 2 * a, X_QUERY @ weights, scale)
  np.testing.assert_allclose(log_density, expected, rtol=1e-3, atol=1e-4)


def test_a_heavy_tail_has_an_infinite_variance():
  settings = dict(rate=1.0, weight_precision=1.0)
  one = np.arange(N) < 1
  assert np.isinf(predict("nig_predictive", mask=one, shape=0.5, **settings).variance).all()
  assert np.isfinite(predict("nig_predictive", mask=one, shape=0.6, **settings).variance).all()


def test_predictions_along_a_sequence_add_up_to_the_evidence():
  @jax.jit
  def chain(x, y):
    places = np.arange(N)

    def at(i):
      mask = places < i
      rows = x[i][None], y[i][None]
      known = bayes_linear.gaussian_predictive(x, y, rows[0], noise_std=0.5, mask=mask)
      student = bayes_linear.nig_log_predictive(
        x, y, *rows, shape=2.0, rate=1.0, weight_precision=1.0, mask=mask
      )
      density = jax.scipy.stats.norm.logpdf(y[i], known.mean[0], known.variance[0] ** 0.5)
      return density, student[0]

    return jax.tree.map(lambda v: v.sum(), jax.vmap(at)(places))

  known, student = chain(X, Y)
  np.testing.assert_allclose(known, dense_known_noise(X, Y, X_QUERY, 1.0, 0.5)[2], rtol=1e-3)
  covariance = (X @ X.T + np.eye(N)) / 2  # Of the joint Student's t, times rate / shape.
  expected = stats.multivariate_t.logpdf(Y, np.zeros(N), covariance, df=4)
  np.testing.assert_allclose(student, expected, rtol=1e-3)


def test_a_pool():
  x, y = X.astype(float), Y.astype(float)
  log_weights = np.array(
    [stats.norm.logpdf(y, x @ w, s).sum() for w, s in zip(POOL.weights, POOL.noise_stds)]
  )
  weights = np.exp(log_weights - log_weights.max())
  weights /= weights.sum()
  means = POOL.weights @ X_QUERY.T
  mean = weights @ means
  variance = weights @ (POOL.noise_stds[:, None] ** 2 + means**2) - mean**2
  result = predict("task_pool_predictive", *POOL)
  np.testing.assert_allclose(result.mean, mean, rtol=1e-3)
  np.testing.assert_allclose(result.variance, variance, rtol=1e-3)
  one = predict("task_pool_predictive", POOL.weights[:1], POOL.noise_stds[:1])
  np.testing.assert_allclose(one.mean, means[0], rtol=1e-4)
  np.testing.assert_allclose(one.variance, POOL.noise_stds[0] ** 2, rtol=1e-5)


@pytest.mark.parametrize("seen", [0, 2, 3, 4, N])
def test_least_squares(seen):
  x, y = X[:seen].astype(float), Y[:seen].astype(float)
  weights = np.linalg.pinv(x) @ y if seen else np.zeros(F)
  result = predict("least_squares_predictive", mask=np.arange(N) < seen)
  np.testing.assert_allclose(result.mean, X_QUERY @ weights, rtol=2e-3, atol=1e-4)
  if seen <= F:
    assert np.isnan(result.variance).all()
  else:
    expected = np.square(y - x @ weights).sum() / (seen - F)
    np.testing.assert_allclose(result.variance, expected, rtol=1e-2)


def test_masked_pairs_may_hold_anything():
  mask = np.array([True, False, True, True, True, False])
  spoiled = np.where(mask, Y, np.nan).astype(np.float32), np.where(mask[:, None], X, np.inf)
  levels = LEVELS, np.ones(3, np.float32)
  for name, extra in (
    ("gaussian_predictive", ()),
    ("noise_grid_predictive", levels),
    ("nig_predictive", ()),
    ("task_pool_predictive", POOL),
    ("least_squares_predictive", ()),
  ):
    kept = np.flatnonzero(mask)
    order = np.concatenate([kept, kept[:2]])  # Of one shape, and the last two do not count.
    shorter = predict(name, *extra, x=X[order], y=Y[order], mask=np.arange(N) < 4)
    given = predict(name, *extra, x=spoiled[1].astype(np.float32), y=spoiled[0], mask=mask)
    for ours, theirs in zip(given, shorter):
      np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-5)


def test_no_penalty_to_speak_of_stays_finite():
  mask = np.arange(N) < 2
  result = predict("gaussian_predictive", mask=mask, weight_std=1e4, noise_std=1e-4)
  assert np.isfinite(result.mean).all() and (result.variance >= 0).all()


def test_prefix_predictives():
  tasks = LinearTasks(POOL.weights[:2], POOL.noise_stds[:2].astype(np.float32))
  x, y = jax.tree.map(
    np.asarray,
    jax.jit(functools.partial(sample_linear_regression, num_points=T))(jax.random.key(0), tasks),
  )
  settings = dict(shape=3.0, rate=2.0, weight_precision=1.0)
  predict_fn = functools.partial(bayes_linear.nig_predictive, **settings)
  mean, variance = jax.tree.map(np.asarray, bayes_linear.prefix_predictives(predict_fn, x, y))
  assert mean.shape == variance.shape == (2, T)
  for b in range(2):
    for i in range(T):
      mask = np.arange(T) < i
      queries = np.repeat(x[b, i][None], M, axis=0)
      one = predict("nig_predictive", x=x[b], y=y[b], x_query=queries, mask=mask, **settings)
      np.testing.assert_allclose(mean[b, i], one.mean[0], rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(variance[b, i], one.variance[0], rtol=1e-4)


def test_it_is_the_bayes_predictor_of_the_ridge_prior():
  draw = functools.partial(ridge_prior, batch_size=2000, num_points=T, num_features=F)
  x, y, targets = jax.tree.map(np.asarray, jax.jit(draw)(jax.random.key(0)))
  predict_fn = functools.partial(bayes_linear.gaussian_predictive, weight_std=0.1, noise_std=0.1)
  mean, variance = jax.tree.map(np.asarray, bayes_linear.prefix_predictives(predict_fn, x, y))
  squares = np.square(targets - mean) / (variance - 0.01)
  assert (abs(squares.mean(axis=0) - 1) < 4 * np.sqrt(2 / 2000)).all()


@pytest.mark.parametrize(
  ("call", "words"),
  [
    (lambda: bayes_linear.gaussian_predictive(X, Y, X_QUERY, noise_std=0.0), "noise_std"),
    (lambda: bayes_linear.gaussian_predictive(X, Y, X_QUERY, weight_std=-1.0), "weight_std"),
    (lambda: bayes_linear.gaussian_predictive(X, Y, X_QUERY, mask=ALL[:2]), "mask must have"),
    (lambda: bayes_linear.nig_predictive(X, Y, X_QUERY, shape=0.0), "shape"),
    (lambda: bayes_linear.nig_predictive(X, Y, X_QUERY, rate=0.0), "rate"),
    (lambda: bayes_linear.nig_predictive(X, Y, X_QUERY, weight_precision=0.0), "weight_precision"),
    (lambda: bayes_linear.noise_grid_predictive(X, Y, X_QUERY, -LEVELS, LEVELS), "noise_stds"),
    (lambda: bayes_linear.noise_grid_predictive(X, Y, X_QUERY, LEVELS, -LEVELS), "prior_probs"),
    (
      lambda: bayes_linear.task_pool_predictive(X, Y, X_QUERY, POOL.weights, 0 * POOL.noise_stds),
      "noise_stds",
    ),
  ],
)
def test_errors(call, words):
  with pytest.raises(ValueError, match=words):
    call()
