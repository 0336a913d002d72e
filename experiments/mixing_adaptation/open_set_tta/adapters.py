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
THRESHOLD = "entropy threshold with marginal"
ORACLE = "TENT on known rows alone"  # It knows which rows are of unknown classes.
METHODS = (SOURCE, NORM, TENT, DIVERSE, THRESHOLD, FILTERED, MAIN, ORACLE)


def adapters(config, model_state, learning_rate: chex.Numeric) -> dict:
  """Every method, on batches of inputs."""
  forward = functools.partial(forward_fn, network(config), model_state)

  def diverse(key, batch):
    del key
    logits = batch.outputs.logits
    marginal = losses.marginal_entropy(logits)
    return algorithms.AdaptLoss(losses.softmax_entropy(logits) - config.diversity_weight * marginal)

  def threshold(key, batch):
    del key
    logits = batch.outputs.logits
    entropy = losses.softmax_entropy(logits)
    kept = (entropy < config.entropy_threshold * jnp.log(logits.shape[-1])).astype(jnp.float32)
    share = kept * kept.size / jnp.maximum(kept.sum(), 1)
    marginal = losses.marginal_entropy(logits)
    return algorithms.AdaptLoss(share * entropy - config.diversity_weight * marginal, kept)

  def oracle(key, batch):
    del key
    entropy = losses.softmax_entropy(batch.outputs.logits)
    known = (jnp.arange(entropy.size) < config.batch_size).astype(jnp.float32)
    return algorithms.AdaptLoss(known / known.mean() * entropy, known)

  optimizer = optax.adam(learning_rate)
  affine = algorithms.norm_affine_only
  filtered = functools.partial(algorithms.filtered_entropy_minimization, forward(), optimizer)
  return {
    SOURCE: algorithms.norm_adaptation(forward(train=False)),
    NORM: algorithms.norm_adaptation(forward()),
    TENT: algorithms.entropy_minimization(forward(), optimizer),
    DIVERSE: algorithms.loss_adapter(forward(), diverse, optimizer, trainable=affine),
    THRESHOLD: algorithms.loss_adapter(forward(), threshold, optimizer, trainable=affine),
    FILTERED: filtered(diversity_weight=0.0),
    MAIN: filtered(diversity_weight=config.diversity_weight),
    ORACLE: algorithms.loss_adapter(forward(), oracle, optimizer, trainable=affine),
  }
