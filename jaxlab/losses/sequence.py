"""Log-probabilities of tokens, of sequences and of parts of sequences.

A mask is 1 (or True) on the tokens that count, including the end of the sequence, and 0 on prompt
and padding. Tokens with mask 0 affect neither values nor gradients, even if they are NaN or
infinite. Sums over an empty mask are 0.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_at_least


def token_log_probs(logits: chex.Array, tokens: chex.Array) -> jax.Array:
  """Log-probability of each token under the logits that predict it.

  The caller aligns the two: for a causal model, logits `[..., :-1, :]` go with tokens `[..., 1:]`;
  `causal_token_log_probs` does this shift. The negative is the cross-entropy of a token.

  Args:
    logits: scores of the vocabulary, `[..., T, v]`.
    tokens: the predicted tokens, int `[..., T]`.

  Returns:
    Log-probabilities in nats, `[..., T]`, in float32 or wider; NaN where a token lies outside the
    vocabulary (such as -100), which a mask must leave out.

  Reference: the chain rule of sequence probabilities, as in Radford et al., Language Models are
  Unsupervised Multitask Learners, 2019, section 2.
  """
  check_arrays(logits=(logits, "[..., v]"), tokens=(tokens, "int [...]"))
  logits, tokens = as_accumulator(logits), jnp.asarray(tokens)
  # A negative index would count from the end, and so would -100 in unsigned integers.
  tokens = tokens.astype(jnp.int32)
  index = jnp.where(tokens < 0, logits.shape[-1], tokens)[..., None]
  chosen = jnp.take_along_axis(logits, index, axis=-1, mode="fill")[..., 0]
  # The maximum is subtracted first, so that no digits are lost where the token's score is large.
  largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
  return (chosen - largest) - jnp.log(jnp.sum(jnp.exp(logits - largest[..., None]), axis=-1))


def causal_token_log_probs(logits: chex.Array, tokens: chex.Array) -> jax.Array:
  """Log-probability of each token of a sequence under a causal model that reads the sequence.

  The logits at one position predict the token at the next; this function does the shift.

  Args:
    logits: output of the model for `tokens`, `[..., T, v]`.
    tokens: the sequence, int `[..., T]`.

  Returns:
    Log-probabilities in nats, `[..., T]`, in float32 or wider; exactly 0 at the first position,
    which nothing predicts.

  Reference: as `token_log_probs`.
  """
  check_arrays(logits=(logits, "[..., T, v]"), tokens=(tokens, "int [..., T]"))
  logits, tokens = jnp.asarray(logits), jnp.asarray(tokens)
  predicted = token_log_probs(logits[..., :-1, :], tokens[..., 1:])
  return jnp.concatenate([jnp.zeros_like(tokens[..., :1], predicted.dtype), predicted], axis=-1)


def chunked_token_log_probs(
  hidden: chex.Array, kernel: chex.Array, tokens: chex.Array, *, chunk_size: int
) -> jax.Array:
  """`token_log_probs(hidden @ kernel, tokens)` without all logits in memory at once.

  With a large vocabulary the logits and their gradient are the largest arrays of a training step.
  Here they exist for `chunk_size` positions of each sequence at a time, forward and backward; in
  exchange they are computed twice.

  Args:
    hidden: last hidden states, `[..., T, d]`, of any float type.
    kernel: output projection, `[d, v]` (the transposed embedding where both are tied), of any float
      type. The product is taken in the wider of the two types and accumulated in float32, and so is
      the kernel's gradient over chunks.
    tokens: the predicted tokens, aligned with `hidden` by the caller, int `[..., T]`.
    chunk_size: positions per chunk; need not divide T.

  Returns:
    Log-probabilities in nats, `[..., T]`, in float32 or wider; NaN where a token lies outside the
    vocabulary.

  Raises:
    ValueError: if `chunk_size` < 1.

  Reference: Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016, section 4,
  https://arxiv.org/abs/1604.06174.
  """
  check_at_least(1, chunk_size=chunk_size)
  check_arrays(
    hidden=(hidden, "float [..., T, d]"),
    kernel=(kernel, "float [d, v]"),
    tokens=(tokens, "int [..., T]"),
  )
  hidden, kernel, tokens = jnp.asarray(hidden), jnp.asarray(kernel), jnp.asarray(tokens)
  return _chunked(hidden, kernel, tokens, min(chunk_size, max(tokens.shape[-1], 1)))


@functools.partial(jax.jit, static_argnums=3)
def _chunked(hidden, kernel, tokens, chunk_size):
  """One program per shape, as the loop over chunks would compile at every eager call."""
  dtype = jnp.promote_types(hidden.dtype, kernel.dtype)
  # Held in the accumulator's type across chunks, so that its gradient is summed in that type.
  wide = as_accumulator(kernel)

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def of_chunk(chunk):
    states, targets = chunk
    logits = jnp.matmul(states.astype(dtype), wide.astype(dtype), preferred_element_type=wide.dtype)
    return token_log_probs(logits, targets)

  parts = jax.lax.map(of_chunk, (_chunks(hidden, -2, chunk_size), _chunks(tokens, -1, chunk_size)))
  parts = jnp.moveaxis(parts, 0, -2)
  # -1 would be ambiguous for an empty batch.
  whole = parts.reshape(*tokens.shape[:-1], parts.shape[-2] * chunk_size)
  return whole[..., : tokens.shape[-1]]


def _chunks(values: jax.Array, axis: int, size: int) -> jax.Array:
  """Cuts an axis into pieces, padded with zeros; the axis of pieces comes first."""
  axis %= values.ndim
  missing = -values.shape[axis] % size
  values = jnp.pad(values, [(0, missing if i == axis else 0) for i in range(values.ndim)])
  pieces = values.shape[axis] // size
  cut = values.reshape(*values.shape[:axis], pieces, size, *values.shape[axis + 1 :])
  return jnp.moveaxis(cut, axis, 0)


def sequence_log_prob(
  token_log_probs: chex.Array, mask: chex.Array, *, normalize_length: bool = False
) -> jax.Array:
  """Log-probability of a sequence: the masked sum over its tokens, or their mean.

  Args:
    token_log_probs: log-probabilities in nats, `[..., T]`.
    mask: which tokens count, bool or 0 and 1, `[..., T]`.
    normalize_length: whether to divide by the number of tokens that count (at least 1).

  Returns:
    Nats per sequence (per token with `normalize_length`), `[...]`, in float32 or wider; 0 for an
    empty mask.

  Reference: Meng et al., SimPO, NeurIPS 2024, equation 3 (the mean),
  https://arxiv.org/abs/2405.14734.
  """
  check_arrays(token_log_probs=(token_log_probs, "[..., T]"), mask=(mask, "[..., T]"))
  log_probs, mask = as_accumulator(token_log_probs), jnp.asarray(mask).astype(bool)
  total = jnp.sum(jnp.where(mask, log_probs, 0.0), axis=-1)
  return total / jnp.maximum(jnp.sum(mask, axis=-1), 1) if normalize_length else total


def sequence_nll(
  logits: chex.Array, tokens: chex.Array, mask: chex.Array, *, normalize_length: bool = False
) -> jax.Array:
  """Cross-entropy of sequences, the loss of supervised fine-tuning.

  Args:
    logits: scores aligned with the tokens that they predict, `[..., T, v]`; nothing is shifted.
    tokens: the targets, int `[..., T]`.
    mask: which tokens count, bool or 0 and 1, `[..., T]`.
    normalize_length: whether to divide by the number of tokens that count (at least 1).

  Returns:
    Nats per sequence (per token with `normalize_length`), `[...]`, in float32 or wider; 0 for an
    empty mask.

  Reference: Ouyang et al., Training language models to follow instructions with human feedback,
  NeurIPS 2022, section 3.5, https://arxiv.org/abs/2203.02155.
  """
  check_arrays(
    logits=(logits, "[..., T, v]"), tokens=(tokens, "int [..., T]"), mask=(mask, "[..., T]")
  )
  logits, mask = jnp.asarray(logits), jnp.asarray(mask).astype(bool)
  # The gradient of a softmax of NaN is NaN even where its value is not used.
  log_probs = token_log_probs(jnp.where(mask[..., None], logits, 0), tokens)
  return -sequence_log_prob(log_probs, mask, normalize_length=normalize_length)


def segment_log_probs(
  token_log_probs: chex.Array, segment_ids: chex.Array, *, num_segments: int
) -> jax.Array:
  """Log-probabilities of the parts of a sequence, such as its reasoning steps.

  Args:
    token_log_probs: log-probabilities in nats, `[..., T]`.
    segment_ids: which part each token belongs to, int `[..., T]`; tokens with an id outside
      [0, num_segments), such as -1, belong to none.
    num_segments: number of parts.

  Returns:
    Sums over the tokens of each part in nats, `[..., num_segments]`, in float32 or wider; 0 for a
    part without tokens.

  Raises:
    ValueError: if `num_segments` < 1.

  Reference: Setlur et al., RL on Incorrect Synthetic Data Scales the Efficiency of LLM Math
  Reasoning by Eight-Fold, NeurIPS 2024, section 5, https://arxiv.org/abs/2406.14532.
  """
  check_at_least(1, num_segments=num_segments)
  check_arrays(
    token_log_probs=(token_log_probs, "[..., T]"), segment_ids=(segment_ids, "int [..., T]")
  )
  log_probs, segment_ids = as_accumulator(token_log_probs), jnp.asarray(segment_ids)
  segments = jnp.arange(num_segments).reshape(*[1] * (segment_ids.ndim - 1), -1, 1)
  inside = segment_ids[..., None, :] == segments
  return jnp.sum(jnp.where(inside, log_probs[..., None, :], 0.0), axis=-1)


def log1mexp(x: chex.Numeric) -> jax.Array:
  """`log(1 - exp(x))`: from the logarithm of a probability to that of its complement.

  Args:
    x: log-probabilities, `[...]`, at most 0.

  Returns:
    Nats, `[...]`, in float32 or wider, with full relative precision at both ends; -inf at 0 (where
    the slope is infinite too) and NaN above 0.

  Reference: Mächler, Accurately Computing `log(1 - exp(-|a|))`, 2012,
  https://cran.r-project.org/package=Rmpfr/vignettes/log1mexp-note.pdf.
  """
  return _log1mexp(as_accumulator(x))


@jax.custom_jvp
def _log1mexp(x: jax.Array) -> jax.Array:
  return jnp.where(x < -np.log(2.0), jnp.log1p(-jnp.exp(x)), jnp.log(-jnp.expm1(x)))


_log1mexp.defjvps(lambda tangent, _, x: -tangent / jnp.expm1(-x))
