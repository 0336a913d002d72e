"""Contrastive objectives of embeddings in which texts are near that differ in a treatment alone.

In such a space the nearest text with another treatment has the same confounders, and stands in for
the counterfactual of a text.
"""

from collections.abc import Sequence
from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_choice, check_range
from jaxlab.losses.adaptation import unit_vectors

_MIN_NORM = 1e-12
# In place of the logarithm of 0, whose gradients would be NaN.
_LOG_ZERO = -1e30
_PAIRS = ((0, 2), (0, 1), (0, 3), (1, 2), (1, 3), (2, 3))


def causal_matching_loss(
  query: chex.Array,
  treatment_cf: chex.Array,
  valid_match: chex.Array,
  confounder_cf: chex.Array,
  invalid_match: chex.Array,
  *,
  treatment_mask: chex.Array | None = None,
  match_mask: chex.Array | None = None,
  confounder_mask: chex.Array | None = None,
  mismatch_mask: chex.Array | None = None,
  temperature: chex.Numeric = 0.1,
  reduction: Literal["sum", "mean"] = "sum",
  set_weights: Sequence[chex.Numeric] = (1, 1, 1, 1),
) -> jax.Array:
  """Pulls a text to its counterfactuals and valid matches, and away from other confounders.

  A key counts `e = exp(cosine similarity to the query / temperature)`, and a set the sum E of its
  keys. The loss is `-log (T + M) / (T + M + C + N)` of the weighted sets.

  Args:
    query: embeddings of b texts, of any length, `[b, d]`.
    treatment_cf: set T, edits of the text with another treatment and equal confounders,
      `[b, k_T, d]`; the sizes of sets may differ.
    valid_match: set M, other texts with equal confounders, `[b, k_M, d]`.
    confounder_cf: set C, edits with equal treatment and another confounder, `[b, k_C, d]`.
    invalid_match: set N, any other texts, `[b, k_N, d]`.
    treatment_mask: which keys of T count, bool `[b, k_T]`; None for all.
    match_mask: which keys of M count, bool `[b, k_M]`; None for all.
    confounder_mask: which keys of C count, bool `[b, k_C]`; None for all.
    mismatch_mask: which keys of N count, bool `[b, k_N]`; None for all.
    temperature: scale of similarities, > 0.
    reduction: whether a set counts the sum or the mean of its keys.
    set_weights: weights of T, M, C and N, at least 0.

  Returns:
    Loss per text in nats, `[b]`, in float32 or wider; 0 without gradient where neither T nor M has
    a key that counts.

  Raises:
    ValueError: if `temperature` <= 0, `reduction` is unknown, a weight is negative, there are not
      four of them, or shapes differ.

  Reference: Gat et al., Faithful Explanations of Black-box NLP Models Using LLM-generated
  Counterfactuals, ICLR 2024, section 4, https://arxiv.org/abs/2310.00603.
  """
  _check_weights("set_weights", set_weights, 4)
  scores = _set_scores(
    query,
    {
      "treatment_cf": (treatment_cf, "treatment_mask", treatment_mask),
      "valid_match": (valid_match, "match_mask", match_mask),
      "confounder_cf": (confounder_cf, "confounder_mask", confounder_mask),
      "invalid_match": (invalid_match, "mismatch_mask", mismatch_mask),
    },
    temperature,
    reduction,
  )
  t, m, c, n = (_weighted_score(*x, weight) for x, weight in zip(scores, set_weights))
  positive, negative = jnp.logaddexp(t, m), jnp.logaddexp(c, n)
  return _log_loss(positive, negative)


def causal_ranking_loss(
  query: chex.Array,
  treatment_cf: chex.Array,
  valid_match: chex.Array,
  confounder_cf: chex.Array,
  invalid_match: chex.Array,
  *,
  treatment_mask: chex.Array | None = None,
  match_mask: chex.Array | None = None,
  confounder_mask: chex.Array | None = None,
  mismatch_mask: chex.Array | None = None,
  temperature: chex.Numeric = 0.1,
  reduction: Literal["sum", "mean"] = "sum",
  pair_weights: Sequence[chex.Numeric] = (1, 1, 1, 1, 1, 1),
) -> jax.Array:
  """Orders the sets by nearness: counterfactuals, valid matches, other confounders, the rest.

  The sum over ordered pairs of sets (A, B) of `-log A / (A + B)`, in the notation of
  `causal_matching_loss`.

  Args:
    query: as in `causal_matching_loss`, `[b, d]`.
    treatment_cf, valid_match, confounder_cf, invalid_match: as in `causal_matching_loss`.
    treatment_mask, match_mask, confounder_mask, mismatch_mask: as in `causal_matching_loss`.
    temperature, reduction: as in `causal_matching_loss`.
    pair_weights: weights of the pairs TC, TM, TN, MC, MN and CN, at least 0.

  Returns:
    Loss per text in nats, `[b]`, in float32 or wider. A pair one of whose sets has no key that
    counts adds 0 and no gradient.

  Raises:
    ValueError: if `temperature` <= 0, `reduction` is unknown, a weight is negative, there are not
      six of them, or shapes differ.

  Reference: Gat et al., ICLR 2024, https://arxiv.org/abs/2310.00603; the second objective of the
  authors' code.
  """
  _check_weights("pair_weights", pair_weights, 6)
  scores = _set_scores(
    query,
    {
      "treatment_cf": (treatment_cf, "treatment_mask", treatment_mask),
      "valid_match": (valid_match, "match_mask", match_mask),
      "confounder_cf": (confounder_cf, "confounder_mask", confounder_mask),
      "invalid_match": (invalid_match, "mismatch_mask", mismatch_mask),
    },
    temperature,
    reduction,
  )
  sets = [_weighted_score(*x, 1) for x in scores]
  losses = [_log_loss(sets[a], sets[b]) for a, b in _PAIRS]
  return sum(weight * loss for weight, loss in zip(pair_weights, losses))


def _check_weights(name: str, weights: Sequence[chex.Numeric], count: int) -> None:
  if len(weights) != count:
    raise ValueError(f"{name} must hold {count} weights, got {len(weights)}.")
  for weight in weights:
    check_range(name, weight, "[0, inf)")


def _set_scores(query, sets: dict, temperature, reduction) -> list[tuple[jax.Array, jax.Array]]:
  """For each set the logarithm of its sum or mean, and whether it has a key that counts, `[b]`."""
  check_range("temperature", temperature, "(0, inf)")
  check_choice("reduction", reduction, ("sum", "mean"))
  forms = {"query": (query, "[b, d]")}
  for name, (keys, mask_name, mask) in sets.items():
    size = f"k_{name}"
    forms |= {name: (keys, f"[b, {size}, d]"), mask_name: (mask, f"bool [b, {size}]")}
  check_arrays(**forms)
  query, *keys = as_accumulator(query, *(x[0] for x in sets.values()))
  query = unit_vectors(query, _MIN_NORM)
  masks = [
    jnp.ones(x.shape[:2], bool) if mask is None else jnp.asarray(mask)
    for x, (_, _, mask) in zip(keys, sets.values())
  ]
  return [
    (_log_sum(query, x, mask, temperature, reduction == "mean"), jnp.any(mask, axis=1))
    for x, mask in zip(keys, masks)
  ]


def _log_sum(query, keys, mask, temperature, mean: bool) -> jax.Array:
  if not keys.shape[1]:
    return jnp.full(keys.shape[:1], _LOG_ZERO, query.dtype)
  # Zeros in place of what is masked, so that a NaN there reaches no gradient.
  keys = unit_vectors(jnp.where(mask[..., None], keys, 0.0), _MIN_NORM)
  scores = jnp.einsum("bd,bkd->bk", query, keys) / temperature
  total = jax.nn.logsumexp(jnp.where(mask, scores, _LOG_ZERO), axis=1)
  if mean:
    total = total - jnp.log(jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.int32), 1))
  return total


def _weighted_score(score: jax.Array, filled: jax.Array, weight: chex.Numeric) -> jax.Array:
  counts = filled & (jnp.asarray(weight) > 0)
  safe = jnp.where(jnp.asarray(weight) > 0, weight, 1.0)
  return jnp.where(counts, score + jnp.log(safe), _LOG_ZERO)


def _log_loss(positive: jax.Array, negative: jax.Array) -> jax.Array:
  """`-log P / (P + N)` of logarithms; 0 if one of the two is empty."""
  # Half of the logarithm of 0: weights and sums of logarithms of 0 do not reach it.
  counts = ~((positive < 0.5 * _LOG_ZERO) | (negative < 0.5 * _LOG_ZERO))
  return jnp.where(counts, jax.nn.softplus(jnp.where(counts, negative - positive, 0.0)), 0.0)
