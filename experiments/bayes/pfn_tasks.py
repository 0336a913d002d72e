"""The Gaussian-process half of the PFN experiment, where the exact posterior is known."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.bayes.prior_training import (
  PriorTrainer,
  bar_trainer,
  draw_data_sets,
  prior_borders,
)
from jaxlab import algorithms, data, losses, models, samplers, uncertainty

WRONG_LENGTHSCALE = 3.0  # In multiples of the prior's own.
WRONG_GP = f"GP, {WRONG_LENGTHSCALE:g}x lengthscale"


def gp_prior(config):
  """The prior of the task `gp`: one data set a key."""
  return functools.partial(
    samplers.gp_prior,
    batch_size=1,
    num_points=config.num_points,
    num_features=config.num_features,
    lengthscale=config.lengthscale,
    noise=config.noise,
  )


def gp_trainer(
  config, prior_fn, borders, *, embed_dim: int, num_layers: int, num_steps: int, mesh
) -> PriorTrainer:
  """The trainer of one network on a prior of the shape that `config` gives the GP priors."""
  return bar_trainer(
    config,
    prior_fn,
    borders,
    embed_dim=embed_dim,
    num_layers=num_layers,
    num_steps=num_steps,
    batch_size=config.batch_size,
    num_points=config.num_points,
    num_features=config.num_features,
    max_context=config.max_context,
    scheme=config.scheme,
    accumulate=config.accumulate,
    mesh=mesh,
  )


class GpNetworks(NamedTuple):
  """Networks trained on the GP prior: name -> module, name -> parameters (one entry a seed)."""

  modules: dict[str, models.PFN]
  params: dict[str, list]
  borders: jax.Array

  @property
  def main(self) -> str:
    """The name of the larger network."""
    return next(iter(self.modules))


def train_gp(config, context, *, both: bool) -> GpNetworks:
  """Trains the network of the GP prior for every seed, and the smaller one if `both`."""
  prior_fn = gp_prior(config)
  borders = prior_borders(context.key, prior_fn, config.num_bars)
  chosen = [
    (config.embed_dim, config.num_layers),
    (config.small_embed_dim, config.small_num_layers),
  ]
  modules, params = {}, {}
  for embed_dim, num_layers in chosen[: 1 + both]:
    name = f"PFN {embed_dim}x{num_layers}"
    trainer = gp_trainer(
      config,
      prior_fn,
      borders,
      embed_dim=embed_dim,
      num_layers=num_layers,
      num_steps=config.num_steps,
      mesh=context.mesh,
    )
    modules[name] = trainer.module
    params[name] = [
      trainer.train(context, f"gp/{name}/seed{s}", s, save_every=config.save_every)
      for s in range(context.seeds)
    ]
  return GpNetworks(modules, params, borders)


# --------------------------------------------------------------------------------------- task gp


def run_gp(config, context, networks: GpNetworks) -> tuple[dict, dict]:
  """Both networks beside the exact posterior, a wrong one and the prior, on fresh data sets."""
  rows: dict[str, dict[str, list]] = {}
  for seed in range(context.seeds):
    key = jax.random.fold_in(context.seed_key(seed), 1)
    scores = context.cached(
      f"gp/scores/seed{seed}", functools.partial(_score_gp, config, key, networks, seed)
    )
    exact = scores["exact GP"]["NLL"]
    for method, score in scores.items():
      row = rows.setdefault(method, {})
      gaps = score["NLL"] - exact
      for c, nll in zip(config.context_sizes, score["NLL"].mean(0)):
        row.setdefault(f"gp/NLL c={c}", []).append(nll)
      row.setdefault("gp/mean gap", []).append(gaps.mean())
      if method.startswith("PFN"):
        error = gaps.std(0, ddof=1) / np.sqrt(len(gaps))
        row.setdefault("gp/smallest gap in s.e.", []).append((gaps.mean(0) / error).min())
        row.setdefault("gp/90% coverage", []).append(score["covered"].mean())
  judged = [f"gp/NLL c={c}" for c in config.context_sizes if c >= 5]
  lead = [np.subtract(rows[WRONG_GP][name], rows[networks.main][name]) for name in judged]
  rows[networks.main][f"gp/smallest lead over {WRONG_GP}"] = np.min(lead, 0)
  return rows, _synthetic_bands(config, context, networks)


def _score_gp(config, key, networks, seed) -> dict:
  """Per method `NLL [data sets, context sizes]` on fresh data sets, a mean over their queries."""
  draw = draw_data_sets(gp_prior(config), key, config.num_test)
  borders = networks.borders

  def mean_over_queries(values, num_context):
    queries = jnp.arange(values.shape[-1]) >= num_context
    return jnp.sum(jnp.where(queries, values, 0.0), -1) / queries.sum()

  @jax.jit
  def gp_nll(num_context, lengthscale):
    mask = jnp.arange(config.num_points) < num_context

    def one(x, y):
      posterior = uncertainty.gp_posterior(
        x, y, x, lengthscale=lengthscale, noise=config.noise, mask=mask
      )
      return -jax.scipy.stats.norm.logpdf(y, posterior.mean, jnp.sqrt(posterior.variance))

    return mean_over_queries(jax.lax.map(lambda xy: one(*xy), (draw.x, draw.y)), num_context)

  def pfn_scores(module):
    @jax.jit
    def scores(params, num_context):
      logits = module.apply({"params": params}, draw.x, draw.y, num_context)
      nll = losses.bar_nll(logits, draw.y, borders)
      low, high = (uncertainty.bar_quantile(logits, borders, q) for q in (0.05, 0.95))
      covered = ((draw.y >= low) & (draw.y <= high)).astype(jnp.float32)
      return mean_over_queries(nll, num_context), mean_over_queries(covered, num_context)

    return scores

  contexts = [jnp.int32(c) for c in config.context_sizes]
  scores = {}
  for name, module in networks.modules.items():
    score = pfn_scores(module)
    nlls, covered = zip(*(score(networks.params[name][seed], c) for c in contexts))
    scores[name] = {"NLL": np.stack(nlls, 1), "covered": np.stack(covered, 1)}
  for name, lengthscale in (
    ("exact GP", config.lengthscale),
    (WRONG_GP, WRONG_LENGTHSCALE * config.lengthscale),
  ):
    scores[name] = {"NLL": np.stack([gp_nll(c, lengthscale) for c in contexts], 1)}
  prior = -stats.norm.logpdf(draw.y, 0.0, np.sqrt(1.0 + config.noise))
  scores["prior"] = {
    "NLL": np.stack([mean_over_queries(jnp.asarray(prior), c) for c in contexts], 1)
  }
  return scores


def _synthetic_bands(config, context, networks) -> dict:
  if config.num_features != 1:
    return {}
  draw = jax.jit(gp_prior(config))(jax.random.fold_in(context.key, 7))
  shown = [c for c in (3, 8, 20) if c < config.num_points]
  return {
    f"bands/{c} points of a prior function/{name}": value
    for c in shown
    for name, value in bands(config, networks, draw.x[0, :c], draw.y[0, :c]).items()
  }


def bands(config, networks, x, y, *, truth=None, num_grid: int = 100) -> dict:
  """What a picture of a posterior needs: mean and central 90%, the network's and the exact ones."""
  grid = np.linspace(0.0, 1.0, num_grid, dtype=np.float32)
  # Padded to one length, so that all pictures share a program.
  padding = (0, config.num_points - len(y))
  exact, network = _mean_and_bounds(
    networks.modules[networks.main],
    networks.params[networks.main][0],
    networks.borders,
    np.pad(x, (padding, (0, 0))),
    np.pad(y, padding),
    len(y),
    grid[:, None],
    config.lengthscale,
    config.noise,
  )
  found = {"x": x[:, 0], "y": y, "grid": grid, "exact": exact, "PFN": network}
  if truth is not None:
    found["truth"] = truth
  return {name: np.asarray(value) for name, value in found.items()}


@functools.partial(jax.jit, static_argnums=0)
def _mean_and_bounds(module, params, borders, x, y, num_context, grid, lengthscale, noise):
  """Low, mean and high `[3, m]` on a grid given the first points, of the GP and the network."""
  mask = jnp.arange(len(y)) < num_context
  mean, variance = uncertainty.gp_posterior(
    x, y, grid, lengthscale=lengthscale, noise=noise, mask=mask
  )
  spread = stats.norm.ppf(0.95) * jnp.sqrt(variance)
  tokens = jnp.concatenate([x, grid])[None]
  values = jnp.concatenate([y, jnp.zeros(len(grid))])[None]
  logits = module.apply({"params": params}, tokens, values, num_context)[0, len(y) :]
  low, high = (uncertainty.bar_quantile(logits, borders, q) for q in (0.05, 0.95))
  exact = jnp.stack([mean - spread, mean, mean + spread])
  return exact, jnp.stack([low, uncertainty.bar_mean(logits, borders), high])


# ----------------------------------------------------------------------------------- task series


def run_series(config, context, networks: GpNetworks) -> tuple[dict, dict]:
  """Real hand-motion series seen at a few moments: the network's posterior and the exact one."""
  source = data.load_source("aeon/GunPoint", split="test")
  series = data.as_arrays(source)["series"][..., 0].astype(np.float32)
  moments = np.linspace(0.0, 1.0, series.shape[1], dtype=np.float32)
  score = jax.jit(functools.partial(_score_series, config, networks))
  rows: dict[str, dict[str, list]] = {}
  for seed in range(context.seeds):
    rng = np.random.default_rng([seed, 2])
    order = np.stack([rng.permutation(len(moments))[: config.num_points] for _ in series])
    x, y = jnp.asarray(moments[order][..., None]), jnp.asarray(np.take_along_axis(series, order, 1))
    for c in config.series_contexts:
      for method, score_of in score(networks.params[networks.main][seed], x, y, c).items():
        row = rows.setdefault(method, {})
        row.setdefault(f"series/NLL c={c}", []).append(score_of["NLL"])
        row.setdefault(f"series/90% coverage c={c}", []).append(score_of["covered"])
  extras = {}
  for i, c in zip((0, 1, 2), (4, 8, 16)):
    kept = np.sort(order[i][:c])
    found = bands(config, networks, moments[kept][:, None], series[i][kept], truth=series[i])
    extras |= {f"bands/{c} moments of a hand's motion/{n}": value for n, value in found.items()}
  return rows, extras


def _score_series(config, networks, params, x, y, num_context) -> dict:
  """Mean NLL and coverage over the unseen points of all series."""
  unseen = jnp.broadcast_to(jnp.arange(y.shape[1]) >= num_context, y.shape)
  mask = jnp.arange(y.shape[1]) < num_context

  def average(values):
    return jnp.sum(jnp.where(unseen, values, 0.0)) / unseen.sum()

  logits = networks.modules[networks.main].apply({"params": params}, x, y, num_context)
  low, high = (uncertainty.bar_quantile(logits, networks.borders, q) for q in (0.05, 0.95))
  posterior = jax.vmap(
    lambda x, y: uncertainty.gp_posterior(
      x, y, x, lengthscale=config.lengthscale, noise=config.noise, mask=mask
    )
  )(x, y)
  z = (y - posterior.mean) / jnp.sqrt(posterior.variance)
  prior_std = np.sqrt(1.0 + config.noise)
  half = stats.norm.ppf(0.95)
  return {
    networks.main: {
      "NLL": average(losses.bar_nll(logits, y, networks.borders)),
      "covered": average((low <= y) & (y <= high)),
    },
    "exact GP": {
      "NLL": average(0.5 * (z**2 + jnp.log(2 * jnp.pi * posterior.variance))),
      "covered": average(jnp.abs(z) <= half),
    },
    "prior": {
      "NLL": average(-jax.scipy.stats.norm.logpdf(y, 0.0, prior_std)),
      "covered": average(jnp.abs(y) <= half * prior_std),
    },
  }


# --------------------------------------------------------------------------------- task optimize


def run_optimize(config, context, networks: GpNetworks) -> tuple[dict, dict]:
  """Bayesian optimisation of fresh prior functions with the network's expected improvement."""
  rows = {name: {"optimize/simple regret": []} for name in ("PFN", "exact GP", "random search")}
  paths: dict[str, list] = {name: [] for name in rows}
  for seed in range(context.seeds):
    key = jax.random.fold_in(context.seed_key(seed), 2)
    regrets = context.cached(
      f"optimize/seed{seed}",
      functools.partial(_regrets, config, key, networks, seed),
    )
    for name, regret in regrets.items():
      rows[name]["optimize/simple regret"].append(regret[:, -1].mean())
      paths[name].append(regret.mean(0))
  return rows, {f"optimize/{name}": np.mean(path, 0) for name, path in paths.items()}


def _regrets(config, key, networks, seed) -> dict:
  """Per method the simple regret after every evaluation, `[functions, evaluations]`."""
  module, params = networks.modules[networks.main], networks.params[networks.main][seed]
  num_grid, num_init, num_steps = 100, 1, config.num_evaluations - 1
  function_key, search_key = jax.random.split(key)
  draw = samplers.gp_prior(
    function_key,
    batch_size=config.num_functions,
    num_points=num_grid,
    lengthscale=config.lengthscale,
    noise=config.noise,
    equidistant=True,
  )

  def pfn(key, x, y, mask, candidates):
    del key
    num_context = mask.sum()
    tokens = jnp.concatenate([x, candidates])[None]
    values = jnp.concatenate([y, jnp.zeros(len(candidates))])[None]
    logits = module.apply({"params": params}, tokens, values, num_context)[0, len(x) :]
    best = jnp.max(jnp.where(mask, y, -jnp.inf))
    return uncertainty.expected_improvement(logits, networks.borders, best)

  def exact_gp(key, x, y, mask, candidates):
    del key
    mean, variance = uncertainty.gp_posterior(
      x, y, candidates, lengthscale=config.lengthscale, noise=config.noise, mask=mask
    )
    std = jnp.sqrt(variance)
    z = (mean - jnp.max(jnp.where(mask, y, -jnp.inf))) / std
    return std * (z * jax.scipy.stats.norm.cdf(z) + jax.scipy.stats.norm.pdf(z))

  def random_search(key, x, y, mask, candidates):
    del x, y, mask
    return jax.random.uniform(key, (len(candidates),))

  regrets = {}
  keys = jax.random.split(search_key, config.num_functions)
  for name, acquisition in (("PFN", pfn), ("exact GP", exact_gp), ("random search", random_search)):
    search = functools.partial(
      algorithms.optimize_on_grid,
      acquisition_fn=acquisition,
      num_init=num_init,
      num_steps=num_steps,
    )
    result = jax.jit(
      lambda keys, search=search: jax.lax.map(
        lambda args: search(args[0], args[1], args[2]), (keys, draw.x, draw.y), batch_size=16
      )
    )(keys)
    regrets[name] = np.asarray(draw.y.max(1, keepdims=True) - result.best)
  return regrets
