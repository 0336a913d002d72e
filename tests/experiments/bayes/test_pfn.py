import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.bayes.pfn import gaussian, hyper
from experiments.bayes.pfn.__main__ import Config
from jaxlab import models, samplers


def test_scores_of_the_posterior_match_a_loop():
  config = Config(num_points=6, num_bars=4)
  module = models.PFN(4, embed_dim=4, num_layers=1, num_heads=2)
  prior_fn = functools.partial(samplers.gp_prior, batch_size=3, num_points=6, lengthscale=0.2)
  batch = jax.jit(prior_fn)(jax.random.key(0))
  params = jax.jit(module.init)(jax.random.key(0), batch.x, batch.y, 1)["params"]
  networks = gaussian.Networks({"PFN": module}, {"PFN": [params]}, jnp.linspace(-2.0, 2.0, 5))
  sizes = np.array([0, 2, 5])
  scores = gaussian.score(config, networks, networks.of_seed(0), batch, sizes)
  assert set(scores) == {"PFN", "exact GP", "GP, 3x lengthscale", "prior"}
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
  # With no context every Gaussian process of the prior's variance says the same.
  for method in ("prior", "GP, 3x lengthscale"):
    np.testing.assert_allclose(scores[method]["NLL"][0], scores["exact GP"]["NLL"][0], rtol=1e-5)


def test_the_hyper_grid_is_made_of_equally_likely_values():
  lengthscales, outputscales, noises = hyper.hyper_grid(Config(), shape=(400, 2, 50))
  assert len(lengthscales) == 400 * 2 * 50
  shape, rate = Config().lengthscale_gamma
  np.testing.assert_allclose(lengthscales.mean(), shape / rate, rtol=0.01)
  shape, rate = Config().noise_gamma
  np.testing.assert_allclose(noises.mean(), shape / rate, rtol=0.05)
