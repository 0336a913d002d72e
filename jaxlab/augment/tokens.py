"""Replaced tokens and noisy embeddings for fine-tuning of language models.

Only what the model reads changes; the targets stay the original tokens.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range, is_known


class MaskedTokens(NamedTuple):
  """Tokens of which some are replaced.

  Attributes:
    tokens: what the model reads, int `[b, T]`, in int32 or wider.
    replaced: which tokens were replaced, bool `[b, T]`; a random token may equal the original.
  """

  tokens: chex.Array
  replaced: chex.Array


def mask_reasoning_tokens(
  key: chex.PRNGKey,
  tokens: chex.Array,
  loss_mask: chex.Array,
  *,
  rate: chex.Numeric,
  mask_token_id: chex.Numeric,
  random_fraction: chex.Numeric = 0.0,
  vocab_size: int | None = None,
) -> MaskedTokens:
  """Replaces random tokens of responses by a mask token or by random ones.

  A model that is trained to write the original response must then read the question and earlier
  steps, where it would copy from tokens nearby. Prompts and padding stay as they are.

  Args:
    key: random key.
    tokens: prompts with responses, int `[b, T]`.
    loss_mask: which tokens belong to the response, its end included, bool or 0 and 1, `[b, T]`.
    rate: probability that a token of the response is replaced, in [0, 1].
    mask_token_id: the mask token, at least 0, such as a new one from `models.add_tokens`.
    random_fraction: probability that a replaced token becomes a random one, in [0, 1]; the others
      become the mask token.
    vocab_size: random tokens are uniform below this; needed unless `random_fraction` is 0.

  Returns:
    `MaskedTokens`.

  Raises:
    ValueError: if `rate` or `random_fraction` lies outside [0, 1], `mask_token_id` < 0,
      `vocab_size` < 1, or it is None and `random_fraction` may exceed 0.

  Reference: Chen et al., Masked Thought, ACL 2024, https://arxiv.org/abs/2403.02178.
  """
  check_range("rate", rate, "[0, 1]")
  check_range("mask_token_id", mask_token_id, "[0, inf)")
  check_range("random_fraction", random_fraction, "[0, 1]")
  check_at_least(1, vocab_size=vocab_size)
  mixes = not is_known(random_fraction) or bool(np.any(np.asarray(random_fraction) > 0))
  if mixes and vocab_size is None:
    raise ValueError(f"random_fraction {random_fraction} needs vocab_size, got None.")
  check_arrays(tokens=(tokens, "int [b, T]"), loss_mask=(loss_mask, "[b, T]"))
  select_key, kind_key, token_key = jax.random.split(key, 3)
  shape = np.shape(tokens)
  chosen = jax.random.bernoulli(select_key, as_accumulator(rate), shape)
  replaced = chosen & jnp.asarray(loss_mask).astype(bool)
  replacements = jnp.full(shape, mask_token_id, jnp.int32)
  if mixes:
    is_random = jax.random.bernoulli(kind_key, as_accumulator(random_fraction), shape)
    drawn = jax.random.randint(token_key, shape, 0, vocab_size)
    replacements = jnp.where(is_random, drawn, replacements)
  return MaskedTokens(replace_tokens(tokens, replaced, replacements), replaced)


def replace_tokens(tokens: chex.Array, replaced: chex.Array, replacements: chex.Array) -> jax.Array:
  """Puts other tokens in marked places.

  Args:
    tokens: int `[b, T]`.
    replaced: where to put other tokens, bool or 0 and 1, `[b, T]`.
    replacements: the other tokens, int `[b, T]`.

  Returns:
    Tokens, int `[b, T]`, in int32 or wider.

  Reference: Chen et al., Masked Thought, ACL 2024, https://arxiv.org/abs/2403.02178.
  """
  check_arrays(
    tokens=(tokens, "int [b, T]"),
    replaced=(replaced, "[b, T]"),
    replacements=(replacements, "int [b, T]"),
  )
  tokens, replacements = jnp.asarray(tokens), jnp.asarray(replacements)
  # A new token may lie beyond what a narrow type of the old ones can hold.
  dtype = jnp.promote_types(jnp.promote_types(tokens.dtype, replacements.dtype), jnp.int32)
  where = jnp.asarray(replaced).astype(bool)
  return jnp.where(where, replacements.astype(dtype), tokens.astype(dtype))


def mask_rate_schedule(
  step: chex.Numeric,
  *,
  total_steps: chex.Numeric,
  max_rate: chex.Numeric = 0.4,
  warmup_fraction: chex.Numeric = 2 / 3,
) -> jax.Array:
  """Rate of masking that rises from 0 on a straight line, and then stays.

  Args:
    step: number of updates before this one, at least 0, `[...]`.
    total_steps: updates of the whole training, at least 1.
    max_rate: the last rate, in [0, 1].
    warmup_fraction: share of the training in which the rate rises, at least 0.

  Returns:
    `min(max_rate * step / (warmup_fraction * total_steps + 1), max_rate)`, `[...]`, in float32 or
    wider.

  Raises:
    ValueError: if an argument is out of range.

  Reference: Chen et al., Masked Thought, ACL 2024, and the published code,
  https://arxiv.org/abs/2403.02178.
  """
  check_range("step", step, "[0, inf)")
  check_range("total_steps", total_steps, "[1, inf)")
  check_range("max_rate", max_rate, "[0, 1]")
  check_range("warmup_fraction", warmup_fraction, "[0, inf)")
  step, max_rate = as_accumulator(step, max_rate)
  end = warmup_fraction * total_steps + 1
  # A compiled division may fall short of 1 at the end.
  return jnp.where(step >= end, max_rate, max_rate * (step / end))


def embedding_noise(
  key: chex.PRNGKey, embeddings: chex.Array, lengths: chex.Array, *, alpha: chex.Numeric = 5.0
) -> jax.Array:
  """Uniform noise to add to the embeddings of tokens in fine-tuning.

  Args:
    key: random key.
    embeddings: of the tokens, `[b, T, d]`; only shape and type matter.
    lengths: tokens of each sequence, int `[b]`, in [0, T].
    alpha: scale of the noise, at least 0.

  Returns:
    Noise alone, `[b, T, d]`, in the type of `embeddings`: uniform in (-1, 1) times
    alpha / sqrt(length * d), and 0 beyond the length.

  Raises:
    ValueError: if `alpha` < 0 or a known length lies outside [0, T].

  Reference: Jain et al., NEFTune: Noisy Embeddings Improve Instruction Finetuning, ICLR 2024,
  algorithm 1, https://arxiv.org/abs/2310.05914.
  """
  check_range("alpha", alpha, "[0, inf)")
  check_arrays(embeddings=(embeddings, "float [b, T, d]"), lengths=(lengths, "int [b]"))
  embeddings = jnp.asarray(embeddings)
  _, length, width = embeddings.shape
  check_range("lengths", lengths, f"[0, {length}]")
  dtype = jnp.promote_types(embeddings.dtype, jnp.float32)
  lengths = jnp.asarray(lengths).astype(jnp.int32)[:, None, None]
  noise = jax.random.uniform(key, embeddings.shape, dtype, -1.0, 1.0)
  # The product of two integers could overflow.
  size = jnp.maximum(lengths, 1).astype(dtype) * width
  inside = jnp.arange(length)[None, :, None] < lengths
  return jnp.where(inside, alpha / jnp.sqrt(size) * noise, 0.0).astype(embeddings.dtype)
