"""The learning-curve network: its training on a prior over curves, and its score on that prior."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bayes.lc_pfn import baselines
from experiments.kit.prior_fitting import PriorTrainer
from jaxlab import data, losses, models, training, uncertainty
from jaxlab.experiment import Context

QUANTILES = (0.1, 0.5, 0.9)


class Predictor(NamedTuple):
  """A trained network as a function of partial curves."""

  module: models.PFN
  params: dict
  borders: jax.Array

  def logits(self, values: jax.Array, observed: jax.Array) -> jax.Array:
    """Bar logits `[b, T, K]` of every step, given the first `observed` values of `[b, T]`."""
    return _logits(self.module, self.params, values, observed)

  def logits_of_each(self, values: np.ndarray, observed: np.ndarray) -> jax.Array:
    """The same where `observed[b]` differs by curve; what stands behind a curve may be NaN."""
    one = jax.jit(jax.vmap(lambda row, c: self.logits(row[None], c)[0]))
    return one(np.nan_to_num(values), observed.astype(np.int32))

  def quantiles(self, logits: jax.Array) -> np.ndarray:
    """The median and the ends of the central 80%, `[3, ...]`."""
    return np.asarray(_quantiles(logits, self.borders))

  def nll(self, logits: jax.Array, values: jax.Array) -> np.ndarray:
    """NLL of values."""
    return np.asarray(_nll(logits, values, self.borders))


_nll = jax.jit(losses.bar_nll)


@jax.jit
def _quantiles(logits, borders):
  return jnp.stack([uncertainty.bar_quantile(logits, borders, q) for q in QUANTILES])


@functools.partial(jax.jit, static_argnums=0)
def _logits(module, params, values, observed):
  steps = jnp.arange(1, values.shape[-1] + 1, dtype=jnp.float32)
  x = jnp.broadcast_to(steps[:, None], (*values.shape, 1))
  return module.apply({"params": params}, x, values, observed)


def curve_prior(config, num_curves: int):
  """`key -> batch` of curves of the prior."""
  return functools.partial(data.sample_learning_curves, batch_size=num_curves, length=config.length)


def test_curves(config, key) -> np.ndarray:
  """The fresh curves that a seed is evaluated on, `[num_test, T]`."""
  return np.asarray(jax.jit(curve_prior(config, config.num_test))(key).y)


def curve_borders(config, key) -> jax.Array:
  """Borders of bars that hold equal shares of the values of prior curves."""

  @jax.jit
  def borders(key):
    return uncertainty.bar_borders(curve_prior(config, 10_000)(key).y, config.num_bars)

  return borders(key)


def curve_trainer(config, borders, mesh) -> PriorTrainer:
  """The network and its training on prior curves; step t and value y come standardized."""
  module = models.PFN(
    config.num_bars,
    embed_dim=config.embed_dim,
    num_layers=config.num_layers,
    num_heads=config.num_heads,
    dropout_rate=config.dropout,
    input_shift=0.5 * (config.length + 1),
    input_scale=(config.length + 1) / np.sqrt(12.0),
    target_shift=0.5,
    target_scale=1 / np.sqrt(12.0),
  )
  return PriorTrainer(
    module,
    curve_prior(config, config.group_size),
    lambda logits, targets: losses.bar_nll(logits, targets, borders),
    num_steps=config.num_steps,
    batch_size=config.batch_size,
    learning_rate=config.learning_rate,
    min_context=1,
    steps_per_call=config.steps_per_call,
    mesh=mesh,
  )


def evaluate_on_prior(config, context: Context, predictor: Predictor, key) -> dict:
  """NLL of the last step: of the network by context, of MCMC by context and number of steps."""
  curve_key, chain_key = jax.random.split(key)
  values = test_curves(config, curve_key)
  starts = baselines.starts(config, chain_key)
  keys = jax.random.split(chain_key, config.num_test)

  def network(observed):
    logits = np.asarray(predictor.logits(values, np.int32(observed)))[:, -1]
    return predictor.nll(logits, values[:, -1]).mean()

  def chain(observed, num_steps):
    sampler = baselines.mcmc_sampler(config, observed, num_steps)
    shares = training.shard_batch((keys, values[:, :observed]), context.mesh)
    samples = sampler(*shares, starts)
    return -np.asarray(baselines.last_step_log_probs(samples, values)).mean()

  chains = [[chain(c, num_steps) for num_steps in config.mcmc_steps] for c in config.contexts]
  return {
    "PFN": {"NLL": np.array([network(c) for c in config.contexts])},
    "MCMC": {"NLL": np.array(chains)},
  }


def examples(predictor: Predictor, values: np.ndarray, observed: np.ndarray) -> dict:
  """What the pictures of a few curves need."""
  quantiles = predictor.quantiles(predictor.logits_of_each(values, observed))
  return {"values": np.asarray(values), "observed": observed, "quantiles": quantiles}
