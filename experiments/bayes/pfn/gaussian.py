"""Tasks under a known Gaussian-process prior, where the exact posterior is the best answer."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import stats

from experiments.bayes.pfn.networks import PFN, SMALL, bar_nll, network, prior_borders, trainer
from experiments.kit.prior_fitting import add_along, score_seeds
from jaxlab import algorithms, data, models, samplers, uncertainty
from jaxlab.experiment import Context, Results

EXACT, RANDOM = "exact GP", "random search"
WRONG_LENGTHSCALE = 3.0  # In multiples of the prior's own.


def gp_prior(config):
  """The prior: one data set per key."""
  return functools.partial(
    samplers.gp_prior,
    batch_size=1,
    num_points=config.num_points,
    num_features=config.num_features,
    lengthscale=config.lengthscale,
    noise=config.noise,
  )


@dataclasses.dataclass(frozen=True, eq=False)
class Networks:
  """Networks fitted to the prior: name -> module, name -> parameters of every seed."""

  modules: dict[str, models.PFN]
  params: dict[str, list]
  borders: jax.Array

  def of_seed(self, seed: int) -> dict[str, Any]:
    """Name -> parameters."""
    return {name: params[seed] for name, params in self.params.items()}


def train(config, context: Context, *, both: bool) -> Networks:
  """Trains the network of the prior on every seed, and the small one if `both`."""
  prior_fn = gp_prior(config)
  borders = prior_borders(config, context.key, prior_fn)
  modules = {PFN: network(config, config.num_bars)}
  if both:
    modules[SMALL] = network(config, config.num_bars, small=True)
  params = {}
  for name, module in modules.items():
    fit = trainer(config, module, prior_fn, bar_nll(borders), context.mesh)
    params[name] = fit.train(context, f"gp/{name}")
  return Networks(modules, params, borders)


# ------------------------------------------------------------------------------ tasks gp and series


class Method(NamedTuple):
  """A predictive distribution of every point of data sets, given the first points.

  Attributes:
    predict: `(params, x[b, T, f], y[b, T], num_context) -> outputs`.
    nll: `(outputs, y) -> [b, T]`.
    quantile: `(outputs, q) -> [b, T]`.
  """

  predict: Callable[..., Any]
  nll: Callable[..., jax.Array]
  quantile: Callable[..., jax.Array]

  def covered(self, outputs, y) -> jax.Array:
    """Whether the central 90% hold y."""
    low, high = (self.quantile(outputs, q) for q in (0.05, 0.95))
    return ((low <= y) & (y <= high)).astype(jnp.float32)


def methods(config, networks: Networks) -> dict[str, Method]:
  """The networks, the exact posterior, that of a wrong lengthscale, and the prior."""

  def bars(name):
    def predict(params, *arrays):
      return networks.modules[name].apply({"params": params[name]}, *arrays)

    def quantile(logits, q):
      return uncertainty.bar_quantile(logits, networks.borders, q)

    return Method(predict, bar_nll(networks.borders), quantile)

  def gp(lengthscale):
    def predict(params, x, y, num_context):
      posterior = functools.partial(
        uncertainty.gp_posterior,
        lengthscale=lengthscale,
        noise=config.noise,
        mask=jnp.arange(y.shape[1]) < num_context,
      )
      return jax.lax.map(lambda xy: posterior(*xy, xy[0]), (x, y))

    return Method(predict, _gaussian_nll, _gaussian_quantile)

  def prior(params, x, y, num_context):
    return uncertainty.GPPosterior(jnp.zeros_like(y), jnp.full_like(y, 1.0 + config.noise))

  return {name: bars(name) for name in networks.modules} | {
    EXACT: gp(config.lengthscale),
    f"GP, {WRONG_LENGTHSCALE:g}x lengthscale": gp(WRONG_LENGTHSCALE * config.lengthscale),
    "prior": Method(prior, _gaussian_nll, _gaussian_quantile),
  }


def _gaussian_nll(posterior, y):
  return -stats.norm.logpdf(y, posterior.mean, jnp.sqrt(posterior.variance))


def _gaussian_quantile(posterior, q):
  return posterior.mean + stats.norm.ppf(q) * jnp.sqrt(posterior.variance)


@functools.partial(jax.jit, static_argnums=(0, 1))
def score(config, networks: Networks, params, batch, context_sizes) -> dict[str, dict]:
  """Method -> quantity -> `[context sizes]`, means over the queries of all data sets."""
  loss = functools.partial(algorithms.loss_by_context, context_sizes=context_sizes)
  return {
    name: {
      "NLL": loss(method.predict, params, batch, method.nll),
      "90% coverage": loss(method.predict, params, batch, method.covered),
    }
    for name, method in methods(config, networks).items()
  }


def run_gp(config, context: Context, networks: Networks, results: Results) -> None:
  """Networks beside the exact posterior on fresh data sets of the prior."""
  draw = jax.jit(lambda keys: samplers.draw_data_sets(keys, gp_prior(config), one_by_one=True))

  def score_seed(seed):
    key = jax.random.fold_in(context.seed_key(seed), 1)
    batch = draw(jax.random.split(key, config.num_test))
    sizes = np.asarray(config.context_sizes)
    return score(config, networks, networks.of_seed(seed), batch, sizes)

  scores = score_seeds(context, "gp/scores", score_seed)
  for row in scores.values():
    row["gap to the exact posterior"] = row["NLL"] - scores[EXACT]["NLL"]
  add_along(results, scores, "context", config.context_sizes, task="gp")
  if config.num_features == 1:
    batch = jax.device_get(jax.jit(gp_prior(config))(jax.random.fold_in(context.key, 7)))
    for c in (c for c in (3, 8, 20) if c < config.num_points):
      title = f"{c} points of a prior function"
      results.extras |= bands(config, networks, title, batch.x[0, :c], batch.y[0, :c])


def run_series(config, context: Context, networks: Networks, results: Results) -> None:
  """Real hand-motion series seen at a few moments: the network's posterior and the exact one."""
  source = data.load_source("aeon/GunPoint", split="test")
  series = data.as_arrays(source)["series"][..., 0].astype(np.float32)
  moments = np.linspace(0.0, 1.0, series.shape[1], dtype=np.float32)

  def order_of(seed):
    rng = np.random.default_rng([seed, 2])
    return np.stack([rng.permutation(len(moments))[: config.num_points] for _ in series])

  def score_seed(seed):
    order = order_of(seed)
    y = np.take_along_axis(series, order, 1)
    batch = samplers.PriorBatch(moments[order][..., None], y, y)
    sizes = np.asarray(config.series_contexts)
    return score(config, networks, networks.of_seed(seed), batch, sizes)

  scores = score_seeds(context, "series/scores", score_seed)
  add_along(results, scores, "context", config.series_contexts, task="series")
  for i, c in enumerate((4, 8, 16)):
    kept = np.sort(order_of(0)[i][:c])
    title = f"{c} moments of a hand's motion"
    results.extras |= bands(config, networks, title, moments[kept][:, None], series[i][kept])
    results.extras[f"{title}/truth"] = series[i]


def bands(config, networks: Networks, title: str, x, y, *, num_grid: int = 100) -> dict:
  """What a picture of a posterior needs: quantiles .05, .5 and .95 on a grid, of both methods."""
  grid = np.linspace(0.0, 1.0, num_grid, dtype=np.float32)
  # Padded to one length, so that all pictures share a program.
  padding = (0, config.num_points - len(y))
  quantiles = _quantiles(
    config,
    networks,
    networks.of_seed(0),
    np.concatenate([np.pad(x, (padding, (0, 0))), grid[:, None]]),
    np.concatenate([np.pad(y, padding), np.zeros(num_grid, np.float32)]),
    len(y),
  )
  shown = {"x": x[:, 0], "y": y, "grid": grid}
  shown |= {name: values[:, -num_grid:] for name, values in quantiles.items()}
  return {f"{title}/{name}": np.asarray(value) for name, value in shown.items()}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _quantiles(config, networks: Networks, params, x, y, num_context) -> dict[str, jax.Array]:
  quantiles = {}
  for name in (PFN, EXACT):
    method = methods(config, networks)[name]
    outputs = method.predict(params, x[None], y[None], num_context)
    quantiles[name] = jnp.stack([method.quantile(outputs, q)[0] for q in (0.05, 0.5, 0.95)])
  return quantiles


# ------------------------------------------------------------------------------------ task optimize


def run_optimize(config, context: Context, networks: Networks, results: Results) -> None:
  """Bayesian optimization of fresh prior functions with the network's expected improvement."""

  def pfn(params, key, x, y, mask, candidates):
    tokens = jnp.concatenate([x, candidates])[None]
    values = jnp.concatenate([y, jnp.zeros(len(candidates))])[None]
    logits = networks.modules[PFN].apply({"params": params}, tokens, values, mask.sum())
    best = jnp.max(jnp.where(mask, y, -jnp.inf))
    return uncertainty.expected_improvement(logits[0, len(x) :], networks.borders, best)

  def exact_gp(params, key, x, y, mask, candidates):
    mean, variance = uncertainty.gp_posterior(
      x, y, candidates, lengthscale=config.lengthscale, noise=config.noise, mask=mask
    )
    best = jnp.max(jnp.where(mask, y, -jnp.inf))
    return uncertainty.expected_improvement_gaussian(mean, jnp.sqrt(variance), best)

  def random_search(params, key, x, y, mask, candidates):
    return jax.random.uniform(key, (len(candidates),))

  @jax.jit
  def regrets(params, key):
    function_key, search_key = jax.random.split(key)
    draw = samplers.gp_prior(
      function_key,
      batch_size=config.num_functions,
      num_points=100,
      lengthscale=config.lengthscale,
      noise=config.noise,
      equidistant=True,
    )
    keys = jax.random.split(search_key, config.num_functions)
    scores = {}
    for name, acquisition in ((PFN, pfn), (EXACT, exact_gp), (RANDOM, random_search)):
      search = functools.partial(
        algorithms.optimize_on_grid,
        acquisition_fn=functools.partial(acquisition, params),
        num_init=1,
        num_steps=config.num_evaluations - 1,
      )
      result = jax.lax.map(lambda a, s=search: s(*a), (keys, draw.x, draw.y), batch_size=16)
      regret = draw.y.max(1, keepdims=True) - result.best
      scores[name] = {"simple regret": regret.mean(0)}
    return scores

  def score_seed(seed):
    key = jax.random.fold_in(context.seed_key(seed), 2)
    return regrets(networks.params[PFN][seed], key)

  scores = score_seeds(context, "optimize", score_seed)
  evaluations = range(1, config.num_evaluations + 1)
  add_along(results, scores, "evaluations", evaluations, task="optimize")
