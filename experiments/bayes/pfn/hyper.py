"""The task gp_hyper: a Gaussian process of unknown hyper-parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.bayes.pfn.networks import PFN, bar_nll, network, prior_borders, trainer
from experiments.kit.prior_fitting import add_along, score_seeds
from jaxlab import samplers, uncertainty
from jaxlab.experiment import Context, Results


def gammas(config) -> dict[str, tuple[float, float]]:
  """The hyper-prior as `samplers.gp_hyper_prior` takes it: shape and rate of each gamma."""
  return dict(
    lengthscale_gamma=config.lengthscale_gamma,
    outputscale_gamma=config.outputscale_gamma,
    noise_gamma=config.noise_gamma,
  )


def run_gp_hyper(config, context: Context, results: Results) -> None:
  """The network against GPs fitted by marginal likelihood and a mixture over the prior's grid."""
  prior_fn = functools.partial(
    samplers.gp_hyper_prior,
    batch_size=1,
    num_points=config.num_points,
    num_features=config.num_features,
    **gammas(config),
  )
  borders = prior_borders(config, jax.random.fold_in(context.key, 3), prior_fn)
  module = network(config, config.num_bars)
  params = trainer(
    config, module, prior_fn, bar_nll(borders), context.mesh, num_steps=config.hyper_steps
  ).train(context, "gp_hyper")
  draw = jax.jit(lambda keys: samplers.draw_data_sets(keys, prior_fn, one_by_one=True))
  score = _scorer(config, module, borders)

  def score_seed(seed):
    key = jax.random.fold_in(context.seed_key(seed), 3)
    batch = draw(jax.random.split(key, config.num_hyper_test))
    return score(params[seed], batch)

  scores = score_seeds(context, "gp_hyper/scores", score_seed)
  add_along(results, scores, "context", config.hyper_context_sizes, task="gp_hyper")


def hyper_grid(config, shape=(8, 4, 4)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Equally likely (lengthscale, outputscale, noise) of the hyper-prior, `[G]` each."""
  axes = [
    stats.gamma.ppf((np.arange(count) + 0.5) / count, a, scale=1.0 / rate)
    for count, (a, rate) in zip(shape, gammas(config).values())
  ]
  axes[2] = np.maximum(axes[2], 1e-4)
  return tuple(axis.reshape(-1) for axis in np.meshgrid(*axes, indexing="ij"))


def _scorer(config, module, borders):
  """`(params, batch) -> {method: {"NLL": [context sizes]}}`, means over the points that follow."""
  grid = [jnp.asarray(axis, jnp.float32) for axis in hyper_grid(config)]
  log_weights = jnp.full(len(grid[0]), -np.log(len(grid[0])), jnp.float32)

  def log_prior(hyper):
    return sum(
      jax.scipy.stats.gamma.logpdf(value, a, scale=1.0 / rate)
      for value, (a, rate) in zip(hyper, gammas(config).values())
    )

  def fitted(x, y, x_query, y_query, log_prior_fn=None):
    best = uncertainty.fit_gp(x, y, kernel="matern52", log_prior_fn=log_prior_fn)
    posterior = uncertainty.gp_posterior(x, y, x_query, kernel="matern52", **best._asdict())
    return -jax.scipy.stats.norm.logpdf(y_query, posterior.mean, jnp.sqrt(posterior.variance))

  def mixture(*arrays):
    return -uncertainty.gp_mixture_log_prob(*arrays, *grid, log_weights)

  baselines = {
    "MLE-II": fitted,
    "MAP-II": functools.partial(fitted, log_prior_fn=log_prior),
    "grid mixture": mixture,
  }

  @functools.partial(jax.jit, static_argnums=2)
  def at_size(params, batch, c):
    x, y = batch.x, batch.y
    logits = module.apply({"params": params}, x, y, c)
    arrays = x[:, :c], y[:, :c], x[:, c:], y[:, c:]
    nll = {PFN: bar_nll(borders)(logits, y)[:, c:]}
    for name, fn in baselines.items():
      nll[name] = jax.lax.map(lambda args, fn=fn: fn(*args), arrays, batch_size=8)
    return {name: values.mean() for name, values in nll.items()}

  def score(params, batch):
    nll = [at_size(params, batch, c) for c in config.hyper_context_sizes]
    return {name: {"NLL": np.stack([row[name] for row in nll])} for name in nll[0]}

  return score
