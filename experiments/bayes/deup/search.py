"""Sequential optimization: whose idea of its own error finds the highest of many maxima?"""

import chex
import jax
import jax.numpy as jnp
import optax

from experiments.bayes.deup.shift import DROPOUT
from experiments.kit.datasets import Split
from experiments.kit.dropout import DropoutNetwork
from experiments.kit.epistemic import DEUP, ENSEMBLE, GP
from experiments.kit.train import Trained, drawn_from, squared_loss, train
from jaxlab import algorithms, data, uncertainty

RANDOM = "random"
ROWS = DEUP, ENSEMBLE, DROPOUT, GP, RANDOM
# Where the fit of a GP begins: a length that sees the fastest wave.
_START = uncertainty.GPHyperparameters(0.1, 0.3, 1e-3)
_NUM_MEMBERS, _DROPOUT = 3, 0.3  # Of the baselines.


def gaussian_process(x, y, mask):
  """The settings of the highest marginal likelihood."""
  return uncertainty.fit_gp(x, y, mask=mask, start=_START)


def search(config, row: str, key: chex.PRNGKey) -> jax.Array:
  """The best value after every evaluation, `[first points + rounds]`."""
  _, low, high = data.BOUNDS["multi_optima"]
  points = jnp.linspace(low, high, config.num_candidates)[:, None]
  values = data.multi_optima(points)
  sizes = {"num_init": config.num_init, "num_steps": config.num_rounds}
  if row in (GP, RANDOM):
    at_random = lambda key, *inputs: jax.random.uniform(key, (len(points),))  # noqa: E731
    acquire = gp_improvement if row == GP else at_random
    return algorithms.optimize_on_grid(key, points, values, acquire, **sizes).best
  callbacks = network_callbacks(config, row, points)
  run = algorithms.optimize_with_error_prediction
  return run(key, points, values, **callbacks, **sizes).best


def gp_improvement(key, x, y, mask, points) -> jax.Array:
  """Expected improvement by a GP."""
  del key
  settings = gaussian_process(x, y, mask)
  mean, variance = uncertainty.gp_posterior(x, y, points, **settings._asdict(), mask=mask)
  std = jnp.sqrt(jnp.maximum(variance - settings.noise, 0.0))
  best = jnp.max(jnp.where(mask, y, -jnp.inf))
  return uncertainty.expected_improvement_gaussian(mean, std, best)


def network_callbacks(config, row: str, points) -> dict:
  """What `optimize_with_error_prediction` needs: networks go on from round to round in all rows.

  An ensemble and dropout pass their own variance on as the predicted error.
  """
  module = DropoutNetwork(1, config.search_widths, _DROPOUT * (row == DROPOUT))
  num_networks = _NUM_MEMBERS if row == ENSEMBLE else 1
  sizes = {"num_steps": config.search_steps, "batch_size": config.search_batch}

  def fit(key, x, y, mask, previous):
    def fit_one(key, params):
      start = None if params is None else Trained(params, {})
      options = {"start": start, **sizes}
      batch, optimizer = drawn_from(Split(x, y), mask), optax.adam(config.learning_rate)
      return train(key, module, squared_loss(module), optimizer, batch, **options).params

    params = None if previous is None else previous[0]
    params = jax.vmap(fit_one)(jax.random.split(key, num_networks), params)
    settings = gaussian_process(x, y, mask) if row == DEUP else _START
    return params, jax.tree.map(jnp.float32, settings), (x, y, mask), jax.random.key_data(key)

  def outputs(model, x):
    """Those of members or passes, `[m, n]`."""
    params, *_, key = model
    apply = lambda params, **how: module.apply({"params": params}, x, **how).logits[:, 0]  # noqa: E731
    if row != DROPOUT:
      return jax.vmap(apply)(params)
    one = jax.tree.map(lambda p: p[0], params)
    keys = jax.random.split(jax.random.wrap_key_data(key), config.num_passes)
    return jax.vmap(lambda key: apply(one, drop=True, rngs={"dropout": key}))(keys)

  def features(model, x, training_x, mask):
    del training_x, mask
    if row != DEUP:
      return jnp.log(jnp.var(outputs(model, x), axis=0) + 1e-9)[:, None]
    _, settings, (seen_x, seen_y, seen), _ = model

    def variance(x):
      found = uncertainty.gp_posterior(seen_x, seen_y, x, **settings._asdict(), mask=seen)
      return found.variance

    domain = variance(points)
    scaled = uncertainty.min_max_scale(variance(x), jnp.min(domain), jnp.max(domain))
    return uncertainty.error_features(x, include=("x", "variance"), variance=scaled)

  def predict_error(model, queries):
    if row != DEUP:
      return queries[:, 0]
    *seen, mask = model
    options = {"lengthscale": 1.0, "outputscale": 1.0, "noise": 1e-4}
    return uncertainty.gp_posterior(*seen, queries, **options, mask=mask).mean

  return {
    "fit_fn": fit,
    "predict_fn": lambda model, x: jnp.mean(outputs(model, x), axis=0),
    "feature_fn": features,
    "fit_error_fn": lambda *observed: observed,
    "predict_error_fn": predict_error,
  }
