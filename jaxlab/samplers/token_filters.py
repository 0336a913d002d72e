"""Filters of next-token logits: tokens that must not be sampled get -inf.

Each maps `[..., v]` to `[..., v]` and they compose; `process_logits` runs them in the customary
order. Reductions are in float32, and a removed entry stays removed.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, check_arrays, check_at_least, check_range
from jaxlab.samplers.top_k import row_top_k
from jaxlab.uncertainty.temperature import apply_temperature


def filter_top_k(logits: chex.Array, *, top_k: int) -> jax.Array:
  """Keeps the k largest logits and all that tie with the smallest of them.

  Args:
    logits: scores, `[..., v]`.
    top_k: how many to keep, at least 1; more than v keeps all.

  Returns:
    Logits, `[..., v]`, -inf where removed.

  Raises:
    ValueError: if `top_k` < 1.

  Reference: Fan et al., Hierarchical Neural Story Generation, ACL 2018, section 5.4,
  https://arxiv.org/abs/1805.04833.
  """
  check_at_least(1, top_k=top_k)
  logits = jnp.asarray(logits)
  if top_k >= logits.shape[-1]:
    return logits
  threshold = row_top_k(logits, top_k)[0][..., -1:]
  return jnp.where(logits < threshold, -jnp.inf, logits)


def filter_top_p(
  logits: chex.Array, *, top_p: chex.Numeric, min_tokens_to_keep: int = 1
) -> jax.Array:
  """Keeps the nucleus: the fewest most probable tokens that hold a mass of at least `top_p`.

  Going up from the least probable token, those whose cumulative probability is at most 1 - top_p
  are removed; on ties the lower indices are removed first. A `top_p` of 1 removes only tokens
  without mass.

  Args:
    logits: scores, `[..., v]`.
    top_p: mass to keep, in (0, 1].
    min_tokens_to_keep: how many of the most probable always stay, at least 1.

  Returns:
    Logits, `[..., v]`, -inf where removed.

  Raises:
    ValueError: if `top_p` lies outside (0, 1] or `min_tokens_to_keep` < 1.

  Reference: Holtzman et al., The Curious Case of Neural Text Degeneration, ICLR 2020, section 3.1,
  https://arxiv.org/abs/1904.09751.
  """
  check_range("top_p", top_p, "(0, 1]")
  logits = jnp.asarray(logits)
  kept = _num_to_keep(logits, min_tokens_to_keep)
  ascending = jnp.sort(logits, axis=-1)
  mass = jnp.cumsum(jax.nn.softmax(as_accumulator(ascending), axis=-1), axis=-1)
  num_removed = jnp.sum(mass <= 1.0 - top_p, axis=-1, keepdims=True)
  num_removed = jnp.minimum(num_removed, logits.shape[-1] - kept)
  threshold = jnp.take_along_axis(ascending, num_removed, axis=-1)
  # Ranks ties explicitly, so that only the values are sorted.
  tied = logits == threshold
  num_tied_removed = num_removed - jnp.sum(logits < threshold, axis=-1, keepdims=True)
  first_tied = tied & (jnp.cumsum(tied, axis=-1) <= num_tied_removed)
  return jnp.where((logits < threshold) | first_tied, -jnp.inf, logits)


def filter_min_p(
  logits: chex.Array, *, min_p: chex.Numeric, min_tokens_to_keep: int = 1
) -> jax.Array:
  """Removes tokens less than `min_p` times as probable as the most probable one.

  The threshold adapts to the model: it is strict where the model is confident, loose where it is
  not.

  Args:
    logits: scores, `[..., v]`.
    min_p: share of the largest probability that a token needs, in [0, 1].
    min_tokens_to_keep: how many of the most probable always stay, at least 1.

  Returns:
    Logits, `[..., v]`, -inf where removed.

  Raises:
    ValueError: if `min_p` lies outside [0, 1] or `min_tokens_to_keep` < 1.

  Reference: Nguyen et al., Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM
  Outputs, ICLR 2025, section 3, https://arxiv.org/abs/2407.01082.
  """
  check_range("min_p", min_p, "[0, 1]")
  logits = jnp.asarray(logits)
  kept = _num_to_keep(logits, min_tokens_to_keep)
  scores = as_accumulator(logits)
  relative = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  removed = relative < min_p
  if kept > 1:
    removed &= ~_is_among_largest(scores, kept)
  return jnp.where(removed, -jnp.inf, logits)


def filter_typical_p(
  logits: chex.Array, *, typical_p: chex.Numeric, min_tokens_to_keep: int = 1
) -> jax.Array:
  """Keeps the tokens whose information is nearest to the entropy, up to a mass of `typical_p`.

  Human text mostly consists of tokens whose information is close to the expected information,
  neither of the most probable tokens nor of improbable ones.

  Args:
    logits: scores, `[..., v]`.
    typical_p: mass to keep, in (0, 1).
    min_tokens_to_keep: how many of the most typical always stay, at least 1.

  Returns:
    Logits, `[..., v]`, -inf where removed.

  Raises:
    ValueError: if `typical_p` lies outside (0, 1) or `min_tokens_to_keep` < 1.

  Reference: Meister et al., Locally Typical Sampling, TACL 2023, section 4,
  https://arxiv.org/abs/2202.00666.
  """
  check_range("typical_p", typical_p, "(0, 1)")
  logits = jnp.asarray(logits)
  kept = _num_to_keep(logits, min_tokens_to_keep)
  log_probs = jax.nn.log_softmax(as_accumulator(logits), axis=-1)
  probs = jnp.exp(log_probs)
  possible = probs > 0
  entropy = -jnp.sum(probs * jnp.where(possible, log_probs, 0.0), axis=-1, keepdims=True)
  distance = jnp.abs(-log_probs - entropy)
  ordered, mass = jax.lax.sort((distance, probs), num_keys=1)
  last = jnp.sum(jnp.cumsum(mass, axis=-1) < typical_p, axis=-1, keepdims=True)
  last = jnp.minimum(last, logits.shape[-1] - 1)
  removed = distance > jnp.take_along_axis(ordered, last, axis=-1)
  if kept > 1:
    removed &= ~_is_among_largest(-distance, kept)
  return jnp.where(removed, -jnp.inf, logits)


def apply_repetition_penalty(
  logits: chex.Array, seen: chex.Array, *, penalty: chex.Numeric
) -> jax.Array:
  """Makes tokens that a row has seen less likely; a penalty below 1 makes them more likely.

  Args:
    logits: scores before any temperature, `[..., v]`.
    seen: whether the token has occurred, bool `[..., v]`.
    penalty: positive; divides logits above 0 and multiplies those below.

  Returns:
    Logits, `[..., v]`.

  Raises:
    TypeError: if `seen` is not boolean.
    ValueError: if `penalty` <= 0 or the shapes differ.

  Reference: Keskar et al., CTRL, 2019, section 4.1, https://arxiv.org/abs/1909.05858.
  """
  check_range("penalty", penalty, "(0, inf)")
  logits, seen = jnp.asarray(logits), jnp.asarray(seen)
  check_arrays(logits=(logits, "[..., v]"), seen=(seen, "bool [..., v]"))
  penalized = jnp.where(logits < 0, logits * penalty, logits / penalty)
  return jnp.where(seen, penalized.astype(logits.dtype), logits)


def process_logits(
  logits: chex.Array,
  *,
  temperature: chex.Numeric = 1.0,
  top_k: int | None = None,
  top_p: chex.Numeric | None = None,
  min_p: chex.Numeric | None = None,
  typical_p: chex.Numeric | None = None,
) -> jax.Array:
  """Applies temperature, top-k, top-p, min-p and typical-p to logits, in this order.

  Each acts on what the previous one kept, so top-p uses the softmax over the survivors of top-k.

  Args:
    logits: scores, `[..., v]`.
    temperature: not negative; exactly 0 keeps only the first maximum, which is the limit, and
      ignores the filters. A traced temperature must be positive.
    top_k, top_p, min_p, typical_p: as in `filter_top_k` and so on; None for no such filter.

  Returns:
    Logits, `[..., v]`, in float32 or wider, -inf where removed.

  Raises:
    ValueError: if an option lies outside its range.
  """
  options = SamplingOptions(temperature, top_k, top_p, min_p, typical_p)
  if is_greedy(check_sampling_options(options).temperature):
    logits = as_accumulator(logits)
    first = jnp.argmax(logits, axis=-1, keepdims=True)
    columns = jax.lax.broadcasted_iota(first.dtype, logits.shape, logits.ndim - 1)
    return jnp.where(columns == first, logits, -jnp.inf)
  logits = apply_temperature(logits, temperature=temperature)
  if top_k is not None:
    logits = filter_top_k(logits, top_k=top_k)
  if top_p is not None:
    logits = filter_top_p(logits, top_p=top_p)
  if min_p is not None:
    logits = filter_min_p(logits, min_p=min_p)
  if typical_p is not None:
    logits = filter_typical_p(logits, typical_p=typical_p)
  return logits


class SamplingOptions(NamedTuple):
  """The options of `process_logits`, as every sampler takes them.

  Attributes:
    temperature: not negative.
    top_k: at least 1, or None.
    top_p: in (0, 1], or None.
    min_p: in [0, 1], or None.
    typical_p: in (0, 1), or None.
  """

  temperature: chex.Numeric
  top_k: int | None
  top_p: chex.Numeric | None
  min_p: chex.Numeric | None
  typical_p: chex.Numeric | None


def check_sampling_options(options: SamplingOptions) -> SamplingOptions:
  """Raises on an option outside its range, even if greedy decoding ignores it.

  Args:
    options: the options.

  Returns:
    The options; a concrete temperature of 0 as a Python number, which stays static.

  Raises:
    ValueError: naming the option and its value.
  """
  check_range("temperature", options.temperature, "[0, inf)")
  check_at_least(1, top_k=options.top_k)
  for name, interval in (("top_p", "(0, 1]"), ("min_p", "[0, 1]"), ("typical_p", "(0, 1)")):
    if getattr(options, name) is not None:
      check_range(name, getattr(options, name), interval)
  return options._replace(temperature=0.0) if is_greedy(options.temperature) else options


def is_greedy(temperature: chex.Numeric) -> bool:
  """Whether a temperature is a concrete 0, which selects the greedy program.

  Args:
    temperature: a number or a traced scalar.

  Returns:
    True for a concrete 0; False for a traced temperature.
  """
  known = not isinstance(temperature, jax.core.Tracer)
  return known and np.ndim(temperature) == 0 and float(temperature) == 0.0


def _num_to_keep(logits: jax.Array, min_tokens_to_keep: int) -> int:
  check_at_least(1, min_tokens_to_keep=min_tokens_to_keep)
  return min(min_tokens_to_keep, logits.shape[-1])


def _is_among_largest(scores: jax.Array, num: int) -> jax.Array:
  """Marks exactly `num` entries of the last axis, lower indices first on ties."""
  threshold = row_top_k(scores, num)[0][..., -1:]
  above, tied = scores > threshold, scores == threshold
  num_tied = num - jnp.sum(above, axis=-1, keepdims=True)
  return above | (tied & (jnp.cumsum(tied, axis=-1) <= num_tied))
