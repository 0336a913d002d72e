import functools

import jax
import numpy as np
import pytest
from scipy import stats

from experiments.bayes.pfn import __main__ as pfn
from experiments.bayes.pfn import gaussian, tables
from experiments.bayes.pfn.__main__ import PRESETS, Config
from jaxlab import experiment, models, samplers, training


def test_scores_of_the_posterior_match_a_loop():
  config = Config(num_points=6, num_bars=4)
  module = models.PFN(4, embed_dim=4, num_layers=1, num_heads=2)
  prior_fn = functools.partial(samplers.gp_prior, batch_size=3, num_points=6, lengthscale=0.2)

  @jax.jit
  def draw(key):
    batch = prior_fn(key)
    return batch, module.init(key, batch.x, batch.y, 1)["params"]

  batch, params = jax.device_get(draw(jax.random.key(0)))
  sizes, posteriors = np.array([0, 2, 5]), functools.partial(gaussian.known_posteriors, config)
  scores = gaussian.score(posteriors, module, np.linspace(-2.0, 2.0, 5), params, batch, sizes)
  assert set(scores) == {"PFN", "exact GP", "GP, Matérn kernel", "prior"}
  x, y = np.asarray(batch.x[..., 0], np.float64), np.asarray(batch.y, np.float64)
  for i, c in enumerate(sizes):
    nll, covered = [], []
    for b in range(3):
      kernel = np.exp(-((x[b][:, None] - x[b]) ** 2) / (2 * config.lengthscale**2))
      seen = np.linalg.inv(kernel[:c, :c] + config.noise * np.eye(c))
      for j in range(c, 6):
        mean = kernel[j, :c] @ seen @ y[b, :c]
        std = np.sqrt(1 + config.noise - kernel[j, :c] @ seen @ kernel[:c, j])
        nll.append(-stats.norm.logpdf(y[b, j], mean, std))
        covered.append(abs(y[b, j] - mean) <= stats.norm.ppf(0.95) * std)
    np.testing.assert_allclose(scores["exact GP"]["NLL"][i], np.mean(nll), rtol=1e-3)
    np.testing.assert_allclose(scores["exact GP"]["90% coverage"][i], np.mean(covered), rtol=1e-5)
    prior = stats.norm(0, np.sqrt(1 + config.noise))
    np.testing.assert_allclose(scores["prior"]["NLL"][i], -prior.logpdf(y[:, c:]).mean(), rtol=1e-5)


def test_the_scores_and_quantiles_of_a_mixture_match_its_distribution():
  weights = np.array([0.2, 0.5, 0.3])
  mean = np.array([[-3.0, 0.0], [0.5, 0.0], [4.0, 0.0]])
  std = np.array([[0.1, 1.0], [1.0, 2.0], [0.5, 0.3]])
  quantiles = gaussian.mixture_quantiles(np.log(weights), mean, std)
  below = weights @ stats.norm.cdf(quantiles[:, None], mean, std)
  np.testing.assert_allclose(below, np.array(gaussian.QUANTILES)[:, None] + np.zeros(2), atol=2e-3)
  score = jax.jit(gaussian.mixture_scores)
  for y, inside in (
    (quantiles[0] - 0.02, False),
    (quantiles[1], True),
    (quantiles[2] + 0.02, False),
  ):
    nll, held = score(y, np.log(weights), mean, std)
    np.testing.assert_allclose(np.exp(-nll), weights @ stats.norm.pdf(y, mean, std), rtol=1e-3)
    np.testing.assert_array_equal(held, inside)


def test_the_hyper_grid_is_made_of_equally_likely_values():
  lengthscales, _, noises = gaussian.hyper_grid(shape=(400, 2, 50))
  assert len(lengthscales) == 400 * 2 * 50
  for values, name, rtol in ((lengthscales, "lengthscale", 0.01), (noises, "noise", 0.05)):
    shape, rate = gaussian.GAMMAS[f"{name}_gamma"]
    np.testing.assert_allclose(values.mean(), shape / rate, rtol=rtol)


def test_map_has_the_highest_density_of_the_logarithms():
  rng = np.random.default_rng(0)
  x = rng.uniform(size=(12, 1)).astype(np.float32)
  y = np.sin(9 * x[:, 0]).astype(np.float32)
  fit = jax.jit(gaussian.unknown_posteriors)
  *_, spread = fit(x, y, np.arange(12) < 0)["MAP-II"]
  # Without data the logarithm of a gamma variable is densest at its mean.
  means = [shape / rate for shape, rate in gaussian.GAMMAS.values()]
  np.testing.assert_allclose(spread, np.full((1, 12), np.sqrt(means[1] + means[2])), rtol=1e-3)
  assert (fit(x, y, np.arange(12) < 11)["MAP-II"][2] < 0.7 * spread).all()


def test_groups_of_tables_fill_a_batch_on_two_devices():
  config = PRESETS["laptop"]
  trainer = tables.tabular_trainer(config, training.make_mesh({"data": 2}))
  keys = next(trainer.batches(0))["key"]
  group = config.batch_size // keys.shape[-2]
  assert group * keys.shape[-2] == config.batch_size and keys.shape[-2] % 2 == 0
  assert jax.eval_shape(trainer.prior_fn, jax.random.key(0)).y.shape[0] == group


def test_a_split_is_balanced_and_whole():
  y = np.repeat([0, 1], [40, 160])
  train, test = tables.balanced_split(y, num_train=20, rng=np.random.default_rng(0))
  assert y[train].sum() == 10 and len(train) == 20
  assert sorted(np.concatenate([train, test])) == list(range(200))


def test_a_regressor_without_a_spread_gets_its_held_out_one():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2000, 2))
  y = x @ [1.0, -1.0] + rng.normal(0.0, 0.5, 2000)
  ridge = tables.regressors(0)["ridge"]
  nll = tables.score_gaussian(ridge, (x[:1000], y[:1000]), (x[1000:], y[1000:]))["NLL"]
  entropy = 0.5 * np.log(2 * np.pi * np.e * 0.5**2)
  np.testing.assert_allclose(nll, entropy, atol=0.05)


def test_the_sampled_posterior_matches_a_loop_over_draws():
  rng = np.random.default_rng(0)
  x, x_query = (rng.uniform(size=(n, 3)).astype(np.float32) for n in (7, 2))
  y, y_query = (rng.normal(size=n).astype(np.float32) for n in (7, 2))
  keys = jax.random.split(jax.random.key(0), 4)
  got = tables.sampled_posterior(keys, x, x_query, y, y_query, 3)
  kernel = jax.jit(functools.partial(samplers.standardized_gp_kernel, num_used=3))
  points, weights, densities = np.concatenate([x, x_query]), [], []
  # Any constant and, on a grid, any scale.
  scales = np.exp(np.linspace(-3, 3, 201))
  for key in keys:
    covariance, noise = (np.float64(a) for a in kernel(key, points, points))
    covariance = covariance + noise * np.eye(9)

    def marginal(rows, targets, covariance=covariance):
      part = covariance[np.ix_(rows, rows)]
      return np.mean(
        [stats.multivariate_normal.pdf(targets, cov=s * s * part + 1e4) for s in scales]
      )

    seen = [*range(7)]
    weights.append(marginal(seen, y))
    densities.append([marginal([*seen, i], np.append(y, t)) for i, t in enumerate(y_query, 7)])
  np.testing.assert_allclose(got, np.log(np.sum(densities, 0) / np.sum(weights)), atol=0.02)


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_is_binary_finite_and_narrow(name):
  x, y = tables.table_of(f"keel/{name}", "label")
  assert np.isfinite(x).all() and x.shape[1] <= tables.MAX_FEATURES and len(x) <= 1000
  assert set(np.unique(y)) == {0, 1} and np.bincount(y).min() > 30


@pytest.mark.smoke
def test_the_tasks_that_the_smoke_leaves_out_run(tmp_path):
  arguments = ["pfn", "--preset=smoke", "--task=gp_hyper,tabular,regression"]
  steps = [f"--{task}_steps=4" for task in ("tabular", "regression")]
  small = ["--num_splits=2", "--num_draws=100"]
  places = ["--mesh=data:2,model:1", f"--workdir={tmp_path}"]
  assert experiment.execute(pfn, arguments + steps + small + places) == 0
  assert (tmp_path / "results.json").exists() and (tmp_path / "figure.png").exists()
