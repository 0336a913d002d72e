"""How networks are fitted to priors, and the tasks under Gaussian-process priors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.scipy import stats

from experiments.kit.prior_fitting import Fitted, PriorTrainer, add_along, score_seeds
from jaxlab import algorithms, data, losses, models, samplers, uncertainty
from jaxlab.experiment import Context, Results

PFN, EXACT, RANDOM = "PFN", "exact GP", "random search"
QUANTILES = (0.05, 0.5, 0.95)
SERIES_CONTEXTS = (2, 5, 10, 20)  # Seen moments in the task series.
NUM_EVALUATIONS = 16  # Per function of the task optimize, the random first one counted.
GAMMAS = {  # Shapes and rates of the hyper-prior.
  "lengthscale_gamma": (3.0, 12.0),
  "outputscale_gamma": (3.0, 3.0),
  "noise_gamma": (1.1, 20.0),
}


def training(config, **changes) -> dict:
  """The training that the configuration describes, apart from the changes."""
  names = ("num_steps", "batch_size", "accumulate", "learning_rate", "warmup_fraction")
  names += ("max_context", "scheme")
  options = {name: getattr(config, name) for name in names} | changes
  return options | {"steps_per_call": min(100, options["num_steps"])}


def network(config, num_outputs: int, **options) -> models.PFN:
  """A network of the configuration's size."""
  return models.PFN(num_outputs, config.embed_dim, config.num_layers, **options)


def trainer(config, prior_fn, borders, mesh, **changes) -> PriorTrainer:
  """The training of a network of bars."""
  module, nll = network(config, config.num_bars), functools.partial(losses.bar_nll, borders=borders)
  return PriorTrainer(module, prior_fn, nll, mesh=mesh, **training(config, **changes))


def fit(config, context: Context, name: str, prior_fn, key, **changes) -> Fitted:
  """Trains a network on every seed, with bars that hold equal shares of the prior's targets."""
  draw = jax.jit(algorithms.prior_bar_borders, static_argnums=(1, 2))
  borders = draw(key, prior_fn, config.num_bars)
  fitting = trainer(config, prior_fn, borders, context.mesh, **changes)
  return Fitted(fitting.module, fitting.train(context, name), borders)


def predict(config, module, borders, params, x, y, num_context) -> dict[str, tuple]:
  """Method -> NLL `[b, T]` and quantiles `[3, b, T]` of all points, given the first ones."""

  def gaussian(mean, variance):
    std = jnp.sqrt(variance)
    quantiles = [mean + stats.norm.ppf(q) * std for q in QUANTILES]
    return -stats.norm.logpdf(y, mean, std), jnp.stack(quantiles)

  def gp(lengthscale):
    options = dict(noise=config.noise, mask=jnp.arange(y.shape[1]) < num_context)
    posterior = functools.partial(uncertainty.gp_posterior, lengthscale=lengthscale, **options)
    return gaussian(*jax.lax.map(lambda xy: posterior(*xy, xy[0]), (x, y)))

  logits = module.apply({"params": params}, x, y, num_context)
  quantiles = [uncertainty.bar_quantile(logits, borders, q) for q in QUANTILES]
  return {
    PFN: (losses.bar_nll(logits, y, borders), jnp.stack(quantiles)),
    EXACT: gp(config.lengthscale),
    "GP, 3x lengthscale": gp(3 * config.lengthscale),
    "prior": gaussian(jnp.zeros_like(y), jnp.full_like(y, 1.0 + config.noise)),
  }


@functools.partial(jax.jit, static_argnums=(0, 1))
def score(config, module, borders, params, batch, context_sizes) -> dict[str, dict]:
  """Method -> quantity -> `[context sizes]`, means over the queries of all data sets."""

  def at(num_context):
    mean = functools.partial(algorithms.query_mean_loss, num_context=num_context)
    scores = predict(config, module, borders, params, batch.x, batch.y, num_context)
    return {
      name: {"NLL": mean(nll), "90% coverage": mean((low <= batch.y) & (batch.y <= high))}
      for name, (nll, (low, _, high)) in scores.items()
    }

  return jax.lax.map(at, context_sizes)


def gp_prior(config):
  """The prior with known hyper-parameters: one data set per key."""
  sizes = dict(batch_size=1, num_points=config.num_points, num_features=config.num_features)
  known = dict(lengthscale=config.lengthscale, noise=config.noise)
  return functools.partial(samplers.gp_prior, **sizes, **known)


@functools.partial(jax.jit, static_argnums=(0, 2))
def draw_many(prior_fn, key, number: int) -> samplers.PriorBatch:
  """Fresh data sets of a prior."""
  return samplers.draw_data_sets(jax.random.split(key, number), prior_fn, one_by_one=True)


def run_gp(config, context: Context, results: Results, *, network: Fitted) -> None:
  """The network beside the exact posterior on fresh data sets of the prior."""
  prior_fn, sizes = gp_prior(config), config.context_sizes

  def score_seed(seed):
    batch = draw_many(prior_fn, jax.random.fold_in(context.seed_key(seed), 1), config.num_test)
    return score(config, *network.of(seed), batch, np.asarray(sizes))

  scores = score_seeds(context, "gp/scores", score_seed)
  for row in scores.values():
    row["gap to the exact posterior"] = row["NLL"] - scores[EXACT]["NLL"]
  add_along(results, scores, "context", sizes, task="gp")


def run_series(config, context: Context, results: Results, *, network: Fitted) -> None:
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
    return score(config, *network.of(seed), batch, np.asarray(SERIES_CONTEXTS))

  scores = score_seeds(context, "series/scores", score_seed)
  add_along(results, scores, "context", SERIES_CONTEXTS, task="series")
  draw = jax.jit(predict, static_argnums=(0, 1))
  for i, c in enumerate((4, 8, 16)):
    # Seen moments, then all of them; repeated ones in between give all pictures one length.
    kept = np.sort(order_of(0)[i][:c])
    order = np.concatenate([np.resize(kept, config.num_points), np.arange(len(moments))])
    shown = draw(config, *network.of(0), moments[order][None, :, None], series[i][order][None], c)
    rows = {name: shown[name][1][:, 0, config.num_points :] for name in (PFN, EXACT)}
    rows |= {"grid": moments, "truth": series[i], "x": moments[kept], "y": series[i][kept]}
    title = f"{c} moments of a hand's motion"
    results.extras |= {f"{title}/{name}": np.asarray(values) for name, values in rows.items()}


def run_optimize(config, context: Context, results: Results, *, network: Fitted) -> None:
  """Bayesian optimization of fresh prior functions with the network's expected improvement."""
  known = dict(lengthscale=config.lengthscale, noise=config.noise)

  def pfn(params, key, x, y, mask, candidates):
    data_set = jnp.concatenate([x, candidates])[None], jnp.pad(y, (0, len(candidates)))[None]
    logits = network.module.apply({"params": params}, *data_set, mask.sum())
    best = jnp.max(jnp.where(mask, y, -jnp.inf))
    return uncertainty.expected_improvement(logits[0, len(x) :], network.borders, best)

  def exact_gp(params, key, x, y, mask, candidates):
    mean, variance = uncertainty.gp_posterior(x, y, candidates, mask=mask, **known)
    best = jnp.max(jnp.where(mask, y, -jnp.inf))
    return uncertainty.expected_improvement_gaussian(mean, jnp.sqrt(variance), best)

  def random_search(params, key, x, y, mask, candidates):
    return jax.random.uniform(key, (len(candidates),))

  @jax.jit
  def regrets(params, key):
    key, search_key = jax.random.split(key)
    sizes = dict(batch_size=config.num_functions, num_points=100, equidistant=True)
    draw = samplers.gp_prior(key, **sizes, **known)
    arguments = jax.random.split(search_key, config.num_functions), draw.x, draw.y
    scores = {}
    for name, acquisition in ((PFN, pfn), (EXACT, exact_gp), (RANDOM, random_search)):
      search = functools.partial(algorithms.optimize_on_grid, num_steps=NUM_EVALUATIONS - 1)
      search = functools.partial(search, acquisition_fn=functools.partial(acquisition, params))
      result = jax.lax.map(lambda a, s=search: s(*a), arguments, batch_size=16)
      scores[name] = {"simple regret": (draw.y.max(1, keepdims=True) - result.best).mean(0)}
    return scores

  def score_seed(seed):
    return regrets(network.params[seed], jax.random.fold_in(context.seed_key(seed), 2))

  scores = score_seeds(context, "optimize", score_seed)
  add_along(results, scores, "evaluations", range(1, NUM_EVALUATIONS + 1), task="optimize")


def hyper_grid(shape=(8, 4, 4)) -> list[np.ndarray]:
  """Equally likely (lengthscale, outputscale, noise) of the hyper-prior, `[G]` each."""
  axes = [
    scipy.stats.gamma.ppf((np.arange(count) + 0.5) / count, a, scale=1.0 / rate)
    for count, (a, rate) in zip(shape, GAMMAS.values())
  ]
  axes[2] = np.maximum(axes[2], 1e-4)
  return [axis.reshape(-1).astype(np.float32) for axis in np.meshgrid(*axes, indexing="ij")]


def run_gp_hyper(config, context: Context, results: Results) -> None:
  """Unknown hyper-parameters: the network, GPs fitted by evidence, the mixture over a grid."""
  sizes = dict(batch_size=1, num_points=config.num_points, num_features=config.num_features)
  prior_fn = functools.partial(samplers.gp_hyper_prior, **sizes, **GAMMAS)
  key = jax.random.fold_in(context.key, 3)
  network = fit(config, context, "gp_hyper", prior_fn, key, num_steps=config.hyper_steps)
  grid = hyper_grid()
  log_weights = np.full(len(grid[0]), -np.log(len(grid[0])), np.float32)

  def log_prior(hyper):
    pairs = zip(hyper, GAMMAS.values())
    return sum(stats.gamma.logpdf(value, a, scale=1.0 / rate) for value, (a, rate) in pairs)

  def fitted(x, y, x_query, y_query, log_prior_fn=None):
    best = uncertainty.fit_gp(x, y, kernel="matern52", log_prior_fn=log_prior_fn)
    posterior = uncertainty.gp_posterior(x, y, x_query, kernel="matern52", **best._asdict())
    return -stats.norm.logpdf(y_query, posterior.mean, jnp.sqrt(posterior.variance))

  baselines = {
    "MLE-II": fitted,
    "MAP-II": functools.partial(fitted, log_prior_fn=log_prior),
    "grid mixture": lambda *a: -uncertainty.gp_mixture_log_prob(*a, *grid, log_weights),
  }

  @functools.partial(jax.jit, static_argnums=2)
  def nll_at(params, batch, c):
    x, y = batch.x, batch.y
    logits = network.module.apply({"params": params}, x, y, c)
    nll = {PFN: losses.bar_nll(logits, y, network.borders)[:, c:]}
    arrays = x[:, :c], y[:, :c], x[:, c:], y[:, c:]
    for name, fn in baselines.items():
      nll[name] = jax.lax.map(lambda args, fn=fn: fn(*args), arrays, batch_size=8)
    return {name: values.mean() for name, values in nll.items()}

  def score_seed(seed):
    batch = draw_many(prior_fn, jax.random.fold_in(context.seed_key(seed), 3), config.num_test // 5)
    nll = [nll_at(network.params[seed], batch, c) for c in config.hyper_context_sizes]
    return {name: {"NLL": np.stack([row[name] for row in nll])} for name in nll[0]}

  scores = score_seeds(context, "gp_hyper/scores", score_seed)
  add_along(results, scores, "context", config.hyper_context_sizes, task="gp_hyper")
