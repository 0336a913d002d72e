"""The methods that adapt: they differ in the rows that they learn from, and in the loss."""

import functools

import chex
import jax.numpy as jnp
import optax

from experiments.kit.source_model import forward_fn
from experiments.mixing_adaptation.open_set_tta.task import network
from jaxlab import algorithms, losses

SOURCE, NORM, TENT = "source", "norm adaptation", "TENT"
DIVERSE, FILTERED, MAIN = "TENT with marginal", "filter alone", "filter with marginal"
ORACLE = "oracle filter with marginal"
METHODS = (SOURCE, NORM, TENT, DIVERSE, FILTERED, MAIN, ORACLE)


def adapters(config, model_state, learning_rate: chex.Numeric) -> dict:
  """Every method, on batches `Split`; only the oracle looks at the labels."""

  def forward(params, batch, train=True):
    return forward_fn(network(config), model_state, train=train)(params, batch.inputs)

  def diverse(key, batch):
    del key
    logits = batch.outputs.logits
    marginal = losses.marginal_entropy(logits)
    return algorithms.AdaptLoss(losses.softmax_entropy(logits) - config.diversity_weight * marginal)

  def oracle(key, batch):
    del key
    logits = batch.outputs.logits
    # No unknown row is right: its label is no class.
    right = (jnp.argmax(logits, -1) == batch.inputs.labels).astype(jnp.float32)
    share = right * right.size / jnp.maximum(right.sum(), 1)
    marginal = losses.marginal_entropy(logits)
    values = share * losses.softmax_entropy(logits) - config.diversity_weight * marginal
    return algorithms.AdaptLoss(values, right)

  optimizer, affine = optax.adam(learning_rate), algorithms.norm_affine_only
  filtered = functools.partial(algorithms.filtered_entropy_minimization, forward, optimizer)
  return {
    SOURCE: algorithms.norm_adaptation(functools.partial(forward, train=False)),
    NORM: algorithms.norm_adaptation(forward),
    TENT: algorithms.entropy_minimization(forward, optimizer),
    DIVERSE: algorithms.loss_adapter(forward, diverse, optimizer, trainable=affine),
    FILTERED: filtered(diversity_weight=0.0),
    MAIN: filtered(diversity_weight=config.diversity_weight),
    ORACLE: algorithms.loss_adapter(forward, oracle, optimizer, trainable=affine),
  }
