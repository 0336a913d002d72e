"""Networks fitted to Gaussian-process priors, beside the posteriors that they approximate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jax.scipy import stats

from experiments.kit.prior_fitting import Fitted, PriorTrainer, score_seeds
from experiments.kit.sweep import add_along
from jaxlab import algorithms, data, losses, models, samplers, uncertainty
from jaxlab.experiment import Context, Results

PFN, EXACT, FITTED, MIXTURE = "PFN", "exact GP", "MAP-II", "grid mixture under the same prior"
SAMPLED, RESTARTED = "posterior by sampling", "GP, 3 restarts"  # Of the task regression.
QUANTILES, COVERAGE = (0.05, 0.5, 0.95), "90% coverage"
GAMMAS = {  # Shapes and rates of the hyper-prior.
  "lengthscale_gamma": (3.0, 12.0),
  "outputscale_gamma": (3.0, 3.0),
  "noise_gamma": (1.1, 20.0),
}
SERIES = "aeon/ItalyPowerDemand"  # Power demand of a day by the hour.
SERIES_CONTEXTS = (5, 10, 15)  # Seen hours.


def training(config, **changes) -> dict:
  """The training that the configuration describes, apart from the changes."""
  names = "num_steps batch_size accumulate learning_rate warmup_fraction max_context scheme"
  options = {name: getattr(config, name) for name in names.split()} | changes
  return options | {"steps_per_call": min(100, options["num_steps"])}


def trainer(config, prior_fn, borders, mesh, **changes) -> PriorTrainer:
  """The training of a network of bars."""
  module = models.PFN(config.num_bars, config.embed_dim, config.num_layers)
  nll = functools.partial(losses.bar_nll, borders=borders)
  return PriorTrainer(module, prior_fn, nll, mesh=mesh, **training(config, **changes))


def fit(config, context: Context, name: str, prior_fn, *, seeds=None, **changes) -> Fitted:
  """Trains a network on every seed, or the first ones, with bars of equal shares of the prior."""
  draw = jax.jit(algorithms.prior_bar_borders, static_argnums=(1, 2))
  # Twice as wide, since nothing can be resolved within the outer bars.
  borders = 2 * np.asarray(draw(context.key, prior_fn, config.num_bars))
  fitting = trainer(config, prior_fn, borders, context.mesh, **changes)
  return Fitted(fitting.module, fitting.train(context, name, seeds=seeds), borders)


def gp_mixture(hyperparameters, kernel: str, x, y, mask):
  """What equally likely GPs predict: log weights `[G]`, means and deviations `[G, T]`."""

  def component(hyper):
    options = dict(kernel=kernel, mask=mask, **hyper._asdict())
    mean, variance = uncertainty.gp_posterior(x, y, x, **options)
    return uncertainty.gp_log_marginal_likelihood(x, y, **options), mean, jnp.sqrt(variance)

  log_evidence, mean, std = jax.vmap(component)(hyperparameters)
  return jax.nn.log_softmax(log_evidence), mean, std


def known_posteriors(config, x, y, mask):
  """The exact posterior, one whose kernel alone is wrong, and the prior."""
  known = uncertainty.GPHyperparameters(config.lengthscale, 1.0, config.noise)
  known = jax.tree.map(lambda value: jnp.array([value]), known)
  return {
    EXACT: gp_mixture(known, "rbf", x, y, mask),
    "GP, Matérn kernel": gp_mixture(known, "matern52", x, y, mask),
    "prior": gp_mixture(known, "rbf", x, y, jnp.zeros_like(mask)),
  }


def hyper_grid(shape=(6, 4, 12)) -> uncertainty.GPHyperparameters:
  """Equally likely hyper-parameters of the hyper-prior, `[G]` each."""
  axes = [
    scipy.stats.gamma.ppf((np.arange(count) + 0.5) / count, a, scale=1.0 / rate)
    for count, (a, rate) in zip(shape, GAMMAS.values())
  ]
  axes[2] = np.maximum(axes[2], 1e-4)
  values = (axis.reshape(-1).astype(np.float32) for axis in np.meshgrid(*axes, indexing="ij"))
  return uncertainty.GPHyperparameters(*values)


def log_prior(hyper) -> jax.Array:
  """Log-density of the logarithms of hyper-parameters: the gammas' and the Jacobian."""
  pairs = zip(hyper, GAMMAS.values())
  return sum(stats.gamma.logpdf(v, a, scale=1.0 / rate) + jnp.log(v) for v, (a, rate) in pairs)


def unknown_posteriors(x, y, mask):
  """The mixture over a grid of the hyper-prior, and the GP of the likeliest hyper-parameters."""
  grid, kernel = hyper_grid(), "matern52"
  mixture = gp_mixture(grid, kernel, x, y, mask)
  start = jnp.argmax(mixture[0] + jax.vmap(log_prior)(grid))
  start = jax.tree.map(lambda values: jnp.asarray(values)[start], grid)
  best = uncertainty.fit_gp(x, y, kernel=kernel, log_prior_fn=log_prior, mask=mask, start=start)
  best = jax.tree.map(lambda value: value[None], best)
  return {MIXTURE: mixture, FITTED: gp_mixture(best, kernel, x, y, mask)}


@functools.partial(jax.jit, static_argnums=(0, 1))
def score(posteriors, module, borders, params, batch, context_sizes) -> dict[str, dict]:
  """Method -> quantity -> `[context sizes]`, means over the queries of all data sets."""

  def at(num_context):
    mask = jnp.arange(batch.y.shape[1]) < num_context

    def baselines(xy):
      return {name: mixture_scores(xy[1], *p) for name, p in posteriors(*xy, mask).items()}

    logits = module.apply({"params": params}, batch.x, batch.y, num_context)
    low, high = (uncertainty.bar_quantile(logits, borders, QUANTILES[i]) for i in (0, 2))
    bars = losses.bar_nll(logits, batch.y, borders), (low <= batch.y) & (batch.y <= high)
    scores = {PFN: bars} | jax.lax.map(baselines, (batch.x, batch.y))
    mean = functools.partial(algorithms.query_mean_loss, num_context=num_context)
    return {name: {"NLL": mean(nll), COVERAGE: mean(held)} for name, (nll, held) in scores.items()}

  return jax.lax.map(at, context_sizes)


def mixture_scores(y, log_weights, mean, std):
  """NLL of mixtures of normal distributions, and whether their central 90% hold y, `[T]` each."""
  log_density = stats.norm.logpdf(y, mean, std)
  below = jnp.exp(log_weights) @ stats.norm.cdf(y, mean, std)
  held = (QUANTILES[0] <= below) & (below <= QUANTILES[2])
  return -jax.nn.logsumexp(log_weights[:, None] + log_density, axis=0), held


def mixture_quantiles(log_weights, mean, std) -> np.ndarray:
  """Quantiles `[3, T]` of mixtures of normal distributions, read off a fine grid."""
  grid = np.linspace((mean - 5 * std).min(), (mean + 5 * std).max(), 2000)
  below = np.tensordot(
    np.exp(log_weights), scipy.stats.norm.cdf(grid, mean[..., None], std[..., None]), 1
  )
  return np.stack([np.interp(QUANTILES, row, grid) for row in below], axis=1)


def gp_prior(config, draw=samplers.gp_prior, **hyper):
  """The prior with known hyper-parameters, or another: one data set per key."""
  hyper = hyper or dict(lengthscale=config.lengthscale, noise=config.noise)
  sizes = dict(num_points=config.num_points, num_features=config.num_features)
  return functools.partial(draw, batch_size=1, **sizes, **hyper)


def run_gp(config, context: Context, results: Results) -> None:
  """Known hyper-parameters: the network beside the exact posterior."""
  prior_fn, posteriors = gp_prior(config), functools.partial(known_posteriors, config)
  fitted = fit(config, context, "gp", prior_fn)
  score_fresh(config, context, results, "gp", prior_fn, posteriors, EXACT, fitted)


def run_gp_hyper(config, context: Context, results: Results) -> None:
  """Unknown hyper-parameters: the network beside a mixture over them and MAP-II."""
  prior_fn = gp_prior(config, samplers.gp_hyper_prior, **GAMMAS)
  fitted = fit(config, context, "gp_hyper", prior_fn)
  if "gp_hyper" in config.task:
    arguments = "gp_hyper", prior_fn, unknown_posteriors, MIXTURE, fitted
    score_fresh(config, context, results, *arguments)
  if "series" in config.task:
    score_series(config, context, results, fitted)


def score_fresh(config, context, results, task, prior_fn, posteriors, exact, fitted) -> None:
  """A network beside the posterior and approximations, on fresh data sets of its prior."""

  @jax.jit
  def draw(key):
    keys = jax.random.split(jax.random.fold_in(key, 1), config.num_test)
    return samplers.draw_data_sets(keys, prior_fn, one_by_one=True)

  def score_seed(seed):
    arrays = draw(context.seed_key(seed)), np.asarray(config.context_sizes)
    return score(posteriors, *fitted.of(seed), *arrays)

  scores = score_seeds(context, f"{task}/scores", score_seed)
  for method in scores.keys() - {exact}:
    scores[method]["gap to the posterior"] = scores[method]["NLL"] - scores[exact]["NLL"]
  add_along(results, scores, {"context": config.context_sizes}, task=task)


def score_series(config, context: Context, results: Results, fitted: Fitted) -> None:
  """Real series seen at a few moments: the network's posterior and the grid mixture."""
  arrays = data.as_arrays(data.load_source(SERIES, split="test"))
  series = arrays["series"][: config.num_test, :, 0].astype(np.float32)
  hours = np.arange(series.shape[1])

  def batch_of(order):
    y = np.take_along_axis(series[: len(order)], order, 1)
    return samplers.PriorBatch((order / hours[-1]).astype(np.float32)[..., None], y, y)

  def order_of(seed):
    rng = np.random.default_rng([context.seed_numbers[seed], 2])
    return rng.permuted(np.tile(hours, (len(series), 1)), axis=1)

  def score_seed(seed):
    arrays = batch_of(order_of(seed)), np.asarray(SERIES_CONTEXTS)
    return score(unknown_posteriors, *fitted.of(seed), *arrays)

  scores = score_seeds(context, "series/scores", score_seed)
  add_along(results, scores, {"context": SERIES_CONTEXTS}, task="series")
  module, borders, params = fitted.of(0)

  @jax.jit
  def posteriors_of(x, y, num_context):
    logits = module.apply({"params": params}, x[None], y[None], num_context)[0]
    bands = jnp.stack([uncertainty.bar_quantile(logits, borders, q) for q in QUANTILES])
    return bands, unknown_posteriors(x, y, jnp.arange(len(y)) < num_context)[MIXTURE]

  for i, c in enumerate(SERIES_CONTEXTS):
    # The seen hours come first, then all, so that every one is a query.
    seen = order_of(0)[i, :c]
    order = np.append(np.resize(seen, len(hours)), hours)
    x, y, _ = batch_of(np.tile(order, (i + 1, 1)))
    bands, mixture = jax.device_get(posteriors_of(x[i], y[i], c))
    shown = {PFN: bands, MIXTURE: mixture_quantiles(*mixture)}
    rows = {name: values[:, len(hours) :] for name, values in shown.items()}
    rows |= {"hours": hours, "truth": series[i], "seen": seen}
    results.extras |= {f"{c}/{name}": values for name, values in rows.items()}
