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
  sizes = np.array([0, 2, 5])
  scores = gaussian.score(config, module, np.linspace(-2.0, 2.0, 5), params, batch, sizes)
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
  lengthscales, outputscales, noises = gaussian.hyper_grid(shape=(400, 2, 50))
  assert len(lengthscales) == 400 * 2 * 50
  for values, name, rtol in ((lengthscales, "lengthscale", 0.01), (noises, "noise", 0.05)):
    shape, rate = gaussian.GAMMAS[f"{name}_gamma"]
    np.testing.assert_allclose(values.mean(), shape / rate, rtol=rtol)


@pytest.mark.parametrize("preset", ["laptop", "paper"])
def test_groups_of_tables_fill_a_batch_on_two_devices(preset):
  config = PRESETS[preset]
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


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_table_is_binary_finite_and_narrow(name):
  x, y = tables.binary_table(name)
  assert np.isfinite(x).all() and x.shape[1] <= 16
  assert set(np.unique(y)) == {0, 1} and np.bincount(y).min() > 30


@pytest.mark.smoke
def test_the_tasks_that_the_smoke_leaves_out_run(tmp_path):
  arguments = ["pfn", "--preset=smoke", "--task=gp_hyper,tabular,regression"]
  steps = [f"--{task}_steps=4" for task in ("hyper", "tabular", "regression")]
  small = ["--num_splits=2", "--hyper_context_sizes=5,10", "--num_test=20", "--learning_rate=1e-4"]
  places = ["--mesh=data:2,model:1", f"--workdir={tmp_path}"]
  assert experiment.execute(pfn, arguments + steps + small + places) == 0
  assert (tmp_path / "results.json").exists() and (tmp_path / "figure.png").exists()
