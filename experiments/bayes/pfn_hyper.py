"""The task gp_hyper of the PFN experiment: a Gaussian process of unknown hyper-parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.bayes.pfn_tasks import gp_trainer
from experiments.bayes.prior_training import PriorTrainer, draw_data_sets, prior_borders
from jaxlab import losses, samplers, uncertainty


def gammas(config) -> dict[str, tuple[float, float]]:
  """The hyper-prior as `samplers.gp_hyper_prior` takes it: shape and rate of each gamma."""
  return dict(
    lengthscale_gamma=config.lengthscale_gamma,
    outputscale_gamma=config.outputscale_gamma,
    noise_gamma=config.noise_gamma,
  )


def gp_hyper_prior(config):
  """The prior of the task `gp_hyper`: hyper-parameters drawn with every data set."""
  return functools.partial(
    samplers.gp_hyper_prior,
    batch_size=1,
    num_points=config.num_points,
    num_features=config.num_features,
    **gammas(config),
  )


def hyper_trainer(config, key, mesh) -> tuple[PriorTrainer, jax.Array]:
  """The trainer of the task's network, and the borders of its bars, which `key` draws."""
  prior_fn = gp_hyper_prior(config)
  borders = prior_borders(key, prior_fn, config.num_bars)
  trainer = gp_trainer(
    config,
    prior_fn,
    borders,
    embed_dim=config.embed_dim,
    num_layers=config.num_layers,
    num_steps=config.hyper_steps,
    mesh=mesh,
  )
  return trainer, borders


def run_gp_hyper(config, context) -> tuple[dict, dict]:
  """Hyper-parameters unknown: the network against MLE-II and a mixture over their prior's grid."""
  trainer, borders = hyper_trainer(config, jax.random.fold_in(context.key, 3), context.mesh)

  def score(seed, params):
    key = jax.random.fold_in(context.seed_key(seed), 3)
    return _score_hyper(config, key, trainer.module, params, borders)

  return trainer.train_and_score(context, "gp_hyper", score, save_every=config.save_every), {}


def hyper_grid(config, shape=(8, 4, 4)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Equally likely (lengthscale, outputscale, noise) of the hyper-prior, `[G]` each."""
  axes = [
    stats.gamma.ppf((np.arange(count) + 0.5) / count, a, scale=1.0 / rate)
    for count, (a, rate) in zip(shape, gammas(config).values())
  ]
  axes[2] = np.maximum(axes[2], 1e-4)
  return tuple(axis.reshape(-1) for axis in np.meshgrid(*axes, indexing="ij"))


def _score_hyper(config, key, module, params, borders) -> dict[str, dict[str, float]]:
  """Per method the mean NLL at every context size, over the next points of fresh data sets."""
  draw = draw_data_sets(gp_hyper_prior(config), key, config.num_hyper_test)
  lengthscales, outputscales, noises = (jnp.asarray(g, jnp.float32) for g in hyper_grid(config))
  log_weights = jnp.full(len(noises), -np.log(len(noises)), jnp.float32)
  network = jax.jit(
    lambda c: losses.bar_nll(module.apply({"params": params}, draw.x, draw.y, c), draw.y, borders)
  )

  def log_prior(hyper):
    return sum(
      jax.scipy.stats.gamma.logpdf(value, a, scale=1.0 / rate)
      for value, (a, rate) in zip(hyper, gammas(config).values())
    )

  scores: dict[str, dict] = {"PFN": {}, "MLE-II": {}, "MAP-II": {}, "grid mixture": {}}
  for c in config.hyper_context_sizes:
    scores["PFN"][f"NLL c={c}"] = float(network(jnp.int32(c))[:, c:].mean())

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
      scores[name][f"NLL c={c}"] = float(nll.mean())
  return scores
