"""The learning-curve network: its training on a prior over curves, and its score on that prior."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bayes import lc_pfn_rivals as rivals
from experiments.bayes.prior_training import PriorTrainer, prior_trainer
from jaxlab import data, losses, models, training, uncertainty


class Predictor(NamedTuple):
  """A trained network as a function of partial curves."""

  module: models.PFN
  params: dict
  borders: jax.Array

  def logits(self, values: jax.Array, observed: jax.Array) -> jax.Array:
    """Bar logits `[b, T, K]` of every step, given the first `observed` values of `[b, T]`."""
    steps = jnp.arange(1, values.shape[-1] + 1, dtype=jnp.float32)
    x = jnp.broadcast_to(steps[:, None], (*values.shape, 1))
    return self.module.apply({"params": self.params}, x, values, observed)


def curve_borders(config, key) -> jax.Array:
  """Borders of bars that hold equal shares of the values of prior curves."""
  sample = functools.partial(data.sample_learning_curves, batch_size=10_000, length=config.length)
  return uncertainty.bar_borders(jax.jit(sample)(key).y, config.num_bars)


def curve_trainer(config, borders, mesh) -> PriorTrainer:
  """The network and its training on prior curves; step t and value y come standardised."""
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
  return prior_trainer(
    module,
    functools.partial(
      data.sample_learning_curves, batch_size=config.group_size, length=config.length
    ),
    lambda logits, targets: losses.bar_nll(logits, targets, borders),
    num_steps=config.num_steps,
    batch_size=config.batch_size,
    group_size=config.group_size,
    num_points=config.length,
    num_features=1,
    min_context=1,
    max_context=config.length,
    learning_rate=config.learning_rate,
    steps_per_call=config.steps_per_call,
    mesh=mesh,
  )


def judge_on_prior(config, context, predictor, key) -> dict:
  """NLL of the last step and seconds a curve, at every context and MCMC budget."""
  curve_key, chain_key = jax.random.split(key)
  sample = functools.partial(
    data.sample_learning_curves, batch_size=config.num_test, length=config.length
  )
  values = jax.jit(sample)(curve_key).y
  rows: dict[str, dict] = {"PFN": {}}
  extras = {"prior/values": np.asarray(values[:6])}
  network = jax.jit(predictor.logits)
  seconds = []
  for observed in config.contexts:
    logits, elapsed = rivals.timed(network, values, jnp.int32(observed))
    seconds.append(elapsed / config.num_test)
    nll = losses.bar_nll(logits[:, -1], values[:, -1], predictor.borders)
    rows["PFN"][f"prior/NLL c={observed}"] = nll.mean()
    for q in (0.1, 0.5, 0.9):
      extras[f"prior/pfn c={observed} q={q}"] = np.asarray(
        uncertainty.bar_quantile(logits[:6], predictor.borders, q)
      )
  rows["PFN"]["prior/seconds"] = np.mean(seconds)
  starts = rivals.starts(config, chain_key)
  for num_steps in config.mcmc_steps:
    row, seconds = rows.setdefault(f"MCMC {num_steps}", {}), []
    for observed in config.contexts:
      sampler = rivals.mcmc_sampler(config, observed, num_steps)
      seen = np.asarray(values[:, :observed])
      keys = jax.random.split(chain_key, config.num_test)
      shares = training.shard_batch((keys, seen), context.mesh)
      samples, elapsed = rivals.timed(sampler, *shares, starts)
      seconds.append(elapsed / config.num_test)
      log_probs = jax.jit(jax.vmap(rivals.last_step_log_prob))(samples, values)
      row[f"prior/NLL c={observed}"] = -log_probs.mean()
    row["prior/seconds"] = np.mean(seconds)
  return {"rows": rows, "extras": extras}
