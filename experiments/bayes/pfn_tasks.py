"""The Gaussian-process half of the PFN experiment, where the exact posterior is known."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.bayes.prior_training import prior_trainer
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


def gp_hyper_prior(config):
  """The prior of the task `gp_hyper`: hyper-parameters drawn with every data set."""
  return functools.partial(
    samplers.gp_hyper_prior,
    batch_size=1,
    num_points=config.num_points,
    num_features=config.num_features,
    lengthscale_gamma=config.lengthscale_gamma,
    outputscale_gamma=config.outputscale_gamma,
    noise_gamma=config.noise_gamma,
  )


def prior_borders(key, prior_fn, num_bars: int, num_values: int = 20_000) -> jax.Array:
  """Borders of bars that hold equal shares of the prior's targets."""
  one = prior_fn(key)
  keys = jax.random.split(key, -(-num_values // one.y.size))
  values = jax.jit(lambda keys: jax.lax.map(lambda k: prior_fn(k).targets, keys))(keys)
  return uncertainty.bar_borders(values.reshape(-1)[:num_values], num_bars)


def draw_data_sets(prior_fn, key, count: int) -> samplers.PriorBatch:
  """Draws `count` fresh data sets of a prior that makes one a key."""
  draws = jax.jit(lambda keys: jax.lax.map(prior_fn, keys))(jax.random.split(key, count))
  return jax.tree.map(lambda leaf: leaf[:, 0], draws)


def bar_trainer(config, prior_fn, borders, *, embed_dim, num_layers, num_steps, mesh):
  """The trainer of a network with a bar distribution on a GP prior."""
  module = models.PFN(
    config.num_bars, embed_dim=embed_dim, num_layers=num_layers, num_heads=config.num_heads
  )
  return prior_trainer(
    module,
    prior_fn,
    lambda logits, targets: losses.bar_nll(logits, targets, borders),
    num_steps=num_steps,
    batch_size=config.batch_size,
    num_points=config.num_points,
    num_features=config.num_features,
    max_context=config.max_context,
    scheme=config.scheme,
    learning_rate=config.learning_rate,
    warmup_fraction=config.warmup_fraction,
    accumulate=config.accumulate,
    steps_per_call=config.steps_per_call,
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
    trainer = bar_trainer(
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
  draw = gp_prior(config)(jax.random.fold_in(context.key, 7))
  shown = [c for c in (3, 8, 20) if c < config.num_points]
  return {
    f"bands/{c} points of a prior function/{name}": value
    for c in shown
    for name, value in bands(config, networks, draw.x[0, :c], draw.y[0, :c]).items()
  }


def bands(config, networks, x, y, *, truth=None, num_grid: int = 100) -> dict:
  """What a picture of a posterior needs: mean and central 90%, the network's and the exact ones."""
  grid = jnp.linspace(0.0, 1.0, num_grid)[:, None]
  tokens = jnp.concatenate([x, grid])[None]
  values = jnp.concatenate([y, jnp.zeros(num_grid)])[None]
  module, params = networks.modules[networks.main], networks.params[networks.main][0]
  logits = module.apply({"params": params}, tokens, values, len(y))[0, len(y) :]
  posterior = uncertainty.gp_posterior(
    x, y, grid, lengthscale=config.lengthscale, noise=config.noise
  )
  spread = stats.norm.ppf(0.95) * np.sqrt(posterior.variance)
  found = {
    "x": x[:, 0],
    "y": y,
    "grid": grid[:, 0],
    "exact": [posterior.mean - spread, posterior.mean, posterior.mean + spread],
    "PFN": [
      uncertainty.bar_quantile(logits, networks.borders, 0.05),
      uncertainty.bar_mean(logits, networks.borders),
      uncertainty.bar_quantile(logits, networks.borders, 0.95),
    ],
  }
  if truth is not None:
    found["truth"] = truth
  return {name: np.asarray(value) for name, value in found.items()}


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


# --------------------------------------------------------------------------------- task gp_hyper


def run_gp_hyper(config, context) -> tuple[dict, dict]:
  """Hyper-parameters unknown: the network against MLE-II and a mixture over their prior's grid."""
  prior_fn = gp_hyper_prior(config)
  borders = prior_borders(jax.random.fold_in(context.key, 3), prior_fn, config.num_bars)
  trainer = bar_trainer(
    config,
    prior_fn,
    borders,
    embed_dim=config.embed_dim,
    num_layers=config.num_layers,
    num_steps=config.hyper_steps,
    mesh=context.mesh,
  )
  rows: dict[str, dict[str, list]] = {}
  for seed in range(context.seeds):
    params = trainer.train(context, f"gp_hyper/seed{seed}", seed, save_every=config.save_every)
    key = jax.random.fold_in(context.seed_key(seed), 3)
    scores = context.cached(
      f"gp_hyper/scores/seed{seed}",
      functools.partial(_score_hyper, config, key, trainer.module, params, borders),
    )
    for method, nll in scores.items():
      for c, value in zip(config.hyper_context_sizes, nll):
        rows.setdefault(method, {}).setdefault(f"gp_hyper/NLL c={c}", []).append(value)
  return rows, {}


def hyper_grid(config, shape=(8, 4, 4)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Equally likely (lengthscale, outputscale, noise) of the hyper-prior, `[G]` each."""
  axes = [
    stats.gamma.ppf((np.arange(count) + 0.5) / count, a, scale=1.0 / rate)
    for count, (a, rate) in zip(
      shape, (config.lengthscale_gamma, config.outputscale_gamma, config.noise_gamma)
    )
  ]
  axes[2] = np.maximum(axes[2], 1e-4)
  return tuple(axis.reshape(-1) for axis in np.meshgrid(*axes, indexing="ij"))


def _score_hyper(config, key, module, params, borders) -> dict:
  """Per method the mean NLL at every context size, over the next point of fresh data sets."""
  draw = draw_data_sets(gp_hyper_prior(config), key, config.num_hyper_test)
  lengthscales, outputscales, noises = (jnp.asarray(g, jnp.float32) for g in hyper_grid(config))
  log_weights = jnp.full(len(noises), -np.log(len(noises)), jnp.float32)
  network = jax.jit(
    lambda c: losses.bar_nll(module.apply({"params": params}, draw.x, draw.y, c), draw.y, borders)
  )

  def log_prior(hyper):
    gammas = (config.lengthscale_gamma, config.outputscale_gamma, config.noise_gamma)
    return sum(
      jax.scipy.stats.gamma.logpdf(value, a, scale=1.0 / rate)
      for value, (a, rate) in zip(hyper, gammas)
    )

  scores: dict[str, list] = {"PFN": [], "MLE-II": [], "MAP-II": [], "grid mixture": []}
  for c in config.hyper_context_sizes:
    scores["PFN"].append(network(jnp.int32(c))[:, c:].mean())

    def fitted(xy, c=c, log_prior_fn=None):
      x, y = xy
      best = uncertainty.fit_gp(x[:c], y[:c], kernel="matern52", log_prior_fn=log_prior_fn)
      posterior = uncertainty.gp_posterior(x[:c], y[:c], x[c:], kernel="matern52", **best._asdict())
      return -jax.scipy.stats.norm.logpdf(y[c:], posterior.mean, jnp.sqrt(posterior.variance))

    def mixture(xy, c=c):
      x, y = xy
      return -uncertainty.gp_mixture_log_prob(
        x[:c], y[:c], x[c:], y[c:], lengthscales, outputscales, noises, log_weights
      )

    rivals = (
      ("MLE-II", fitted),
      ("MAP-II", functools.partial(fitted, log_prior_fn=log_prior)),
      ("grid mixture", mixture),
    )
    for name, fn in rivals:
      nll = jax.jit(lambda xy, fn=fn: jax.lax.map(fn, xy, batch_size=8))((draw.x, draw.y))
      scores[name].append(nll.mean())
  return {name: np.asarray(values) for name, values in scores.items()}
