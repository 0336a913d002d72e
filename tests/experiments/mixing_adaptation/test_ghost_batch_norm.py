import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit import datasets
from experiments.mixing_adaptation.ghost_batch_norm import __main__ as experiment


def test_regimes():
  config = experiment.Config()
  recipes = experiment.recipes(config)
  small, large, regime = (
    experiment.schedule(config, recipes[name])
    for name in (experiment.SMALL, experiment.LARGE, experiment.REGIME)
  )
  assert small == regime
  assert large[1] * config.large_batch == small[1] * config.small_batch
  np.testing.assert_array_equal(experiment.logged_steps(17), [1, 2, 3, 4, 6, 8, 11, 16])


def test_drift_finds_the_law_that_holds():
  steps = experiment.logged_steps(1000)
  # Neither law holds during the transient, which the fits leave out.
  log_law = np.where(steps > experiment.TRANSIENT, 3 * np.log(steps) + 2, 0.1)
  power_law = np.where(steps > experiment.TRANSIENT, 2 * steps**0.5, 0.1)
  fitted = experiment.drift(steps, np.stack([log_law, power_law]).astype(np.float32))
  np.testing.assert_allclose(fitted["slope of the log law"][0], 3, rtol=1e-5)
  np.testing.assert_allclose(fitted["exponent of the power law"][1], 0.5, rtol=1e-5)
  for law, row in (("log", 0), ("power", 1)):
    values = np.asarray(fitted[f"R2 of the {law} law"])
    np.testing.assert_allclose(values[row], 1, atol=1e-5)
    assert values[1 - row] < 0.995


def test_the_paper_trains_a_resnet_44():
  config = experiment.PRESETS["paper"]
  recipe = experiment.recipes(config)[experiment.GHOST]
  module = experiment.network(config, datasets.describe(config.dataset), recipe)
  variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  assert sum(x.size for x in jax.tree.leaves(variables["params"])) == 661_338
