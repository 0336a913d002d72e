"""New rows of the token embedding."""

import dataclasses

import chex
import jax.numpy as jnp
from flax import traverse_util

from jaxlab._checks import as_accumulator, check_at_least
from jaxlab.models.decoder_architecture import DecoderConfig
from jaxlab.models.pretrained_tensors import check_params


def add_tokens(
  params: chex.ArrayTree, config: DecoderConfig, num_tokens: int
) -> tuple[chex.ArrayTree, DecoderConfig]:
  """Adds tokens to the vocabulary, each with the mean of the existing rows.

  The mean keeps a new token's logit near those of the others; logits of old tokens do not change.

  Args:
    params: parameters of the model.
    config: its architecture.
    num_tokens: how many tokens to add.

  Returns:
    The new parameters and architecture.

  Raises:
    ValueError: if `num_tokens` is below 1 or `params` do not fit `config`.

  Reference: Hewitt, Initializing New Word Embeddings for Pretrained Language Models, 2021,
  https://nlp.stanford.edu/~johnhew/vocab-expansion.html.
  """
  check_at_least(1, num_tokens=num_tokens)
  flat = dict(check_params(params, config))
  for path, axis in (("embed/embedding", 0), ("lm_head/kernel", 1)):
    if path in flat:
      table = jnp.asarray(flat[path])
      mean = as_accumulator(table).mean(axis=axis, keepdims=True).astype(table.dtype)
      new = jnp.repeat(mean, num_tokens, axis=axis)
      flat[path] = jnp.concatenate([table, new], axis=axis)
  config = dataclasses.replace(config, vocab_size=config.vocab_size + num_tokens)
  return traverse_util.unflatten_dict(flat, sep="/"), config
