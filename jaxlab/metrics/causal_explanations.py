"""Effects of concepts on a classifier: the true ones, estimates from matched texts, errors."""

from typing import Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_choice
from jaxlab._programs import sum_over_pairs
from jaxlab.losses.adaptation import unit_vectors

_MIN_NORM = 1e-12


class Matches(NamedTuple):
  """The most similar candidates of each query, best first.

  Attributes:
    indices: of the candidates, int32 `[n, k]`.
    similarity: cosine similarity, `[n, k]`; -inf where no candidate is left.
  """

  indices: chex.Array
  similarity: chex.Array


def individual_causal_effect(base_probs: chex.Array, counterfactual_probs: chex.Array) -> jax.Array:
  """What an intervention on one text changes in the output of a classifier.

  Args:
    base_probs: probabilities of the classes for the text, `[..., c]`.
    counterfactual_probs: those for its counterfactual, `[..., c]`.

  Returns:
    The difference, `[..., c]`, in float32 or wider.

  Reference: Abraham et al., CEBaB, NeurIPS 2022, equation 2, https://arxiv.org/abs/2205.14140.
  """
  check_arrays(
    base_probs=(base_probs, "[..., c]"), counterfactual_probs=(counterfactual_probs, "[..., c]")
  )
  base, counterfactual = as_accumulator(base_probs, counterfactual_probs)
  return counterfactual - base


def average_causal_effect(base: chex.Array, counterfactual: chex.Array) -> jax.Array:
  """The mean effect of an intervention over texts.

  Args:
    base: probabilities of the classes for each text, `[n, c]`.
    counterfactual: those for its counterfactual, `[n, c]`.

  Returns:
    The mean difference, `[c]`, in float32 or wider; NaN without texts.

  Reference: Abraham et al., CEBaB, NeurIPS 2022, equation 1, https://arxiv.org/abs/2205.14140.
  """
  check_arrays(base=(base, "[n, c]"), counterfactual=(counterfactual, "[n, c]"))
  return jnp.mean(individual_causal_effect(base, counterfactual), axis=0)


def causal_effect_error(
  base_probs: chex.Array,
  counterfactual_probs: chex.Array,
  match_probs: chex.Array,
  *,
  match_mask: chex.Array | None = None,
  distance: Literal["l2", "cosine", "norm_difference"] = "l2",
) -> jax.Array:
  """How far an estimated effect is from the true one.

  The estimate is the mean output for the matches less the output for the text: outputs are
  averaged, not errors.

  Args:
    base_probs: probabilities of the classes for each text, `[n, c]`.
    counterfactual_probs: those for its true counterfactual, `[n, c]`.
    match_probs: those for k texts that stand in for it, `[n, k, c]`.
    match_mask: which of them count, bool `[n, k]`; None for all.
    distance: "l2" is the length of the difference, "cosine" is 1 - cosine (0 if both effects are 0,
      1 if one is), "norm_difference" the absolute difference of lengths.

  Returns:
    The error per text, `[n]`, in float32 or wider; NaN where no match counts.

  Raises:
    ValueError: if `distance` is unknown or shapes differ.

  Reference: Gat et al., Faithful Explanations of Black-box NLP Models Using LLM-generated
  Counterfactuals, ICLR 2024, section 3, https://arxiv.org/abs/2310.00603; distances of Abraham et
  al., CEBaB, NeurIPS 2022, https://arxiv.org/abs/2205.14140.
  """
  check_choice("distance", distance, ("l2", "cosine", "norm_difference"))
  check_arrays(
    base_probs=(base_probs, "[n, c]"),
    counterfactual_probs=(counterfactual_probs, "[n, c]"),
    match_probs=(match_probs, "[n, k, c]"),
    match_mask=(match_mask, "bool [n, k]"),
  )
  base, counterfactual, matches = as_accumulator(base_probs, counterfactual_probs, match_probs)
  if match_mask is None:
    match_mask = jnp.ones(matches.shape[:2], bool)
  counts = jnp.asarray(match_mask)[..., None]
  num = jnp.sum(counts, axis=1, dtype=jnp.int32)

  def mean_offset(origin):
    # Means of differences are exact where the matches equal the origin.
    offsets = jnp.where(counts, matches - origin[:, None], 0.0)
    return jnp.sum(offsets, axis=1) / jnp.maximum(num, 1)

  true, estimate = counterfactual - base, mean_offset(base)
  if distance == "l2":
    error = _length(mean_offset(counterfactual))
  elif distance == "norm_difference":
    error = jnp.abs(_length(estimate) - _length(true))
  else:
    directions = [unit_vectors(x, _MIN_NORM) for x in (estimate, true)]
    no_estimate, no_effect = (jnp.all(x == 0, axis=-1) for x in (estimate, true))
    # Of vectors of length 1 this is 1 - cosine, without its rounding error.
    apart = 0.5 * jnp.sum(jnp.square(directions[0] - directions[1]), axis=-1)
    error = jnp.where(no_estimate ^ no_effect, 1.0, apart)
  # The length of the difference does not depend on the text's own output.
  missing = jnp.any(jnp.isnan(true), axis=-1) | (num[:, 0] == 0)
  return jnp.where(missing, jnp.nan, error)


def _length(vectors: jax.Array) -> jax.Array:
  """Euclidean norms, with gradient 0 at 0."""
  square = jnp.sum(jnp.square(vectors), axis=-1)
  is_zero = square == 0
  return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, square)))


def top_k_matches(
  query: chex.Array,
  candidates: chex.Array,
  *,
  valid: chex.Array | None = None,
  top_k: int = 1,
  threshold: chex.Numeric | None = None,
) -> Matches:
  """The candidates of the largest cosine similarity to each query.

  Args:
    query: embeddings of n texts, of any length, `[n, d]`.
    candidates: embeddings of m texts, `[m, d]`.
    valid: which candidates a query may have, such as those with another treatment, bool `[n, m]`;
      None for all.
    top_k: matches of each query, in [1, m].
    threshold: candidates of lower similarity are left out; None for none.

  Returns:
    The `Matches`; on ties the lowest index comes first. `similarity > -inf` is the mask of matches
    that `causal_effect_error` takes. A NaN in a query makes its similarities NaN; one in a
    candidate is the first match of every query that may have it.

  Raises:
    ValueError: if `top_k` lies outside [1, m], or shapes differ.

  Reference: Gat et al., Faithful Explanations of Black-box NLP Models Using LLM-generated
  Counterfactuals, ICLR 2024, section 4, https://arxiv.org/abs/2310.00603.
  """
  check_arrays(
    query=(query, "[n, d]"), candidates=(candidates, "[m, d]"), valid=(valid, "bool [n, m]")
  )
  num = len(candidates)
  if not 1 <= top_k <= num:
    raise ValueError(f"top_k must lie in [1, {num}], got {top_k}.")
  query, candidates = as_accumulator(query, candidates)
  query, candidates = (unit_vectors(x, _MIN_NORM) for x in (query, candidates))
  similarity = query @ candidates.T
  excluded = jnp.zeros(similarity.shape, bool) if valid is None else ~jnp.asarray(valid)
  if threshold is not None:
    excluded |= similarity < threshold
  similarity, indices = jax.lax.top_k(jnp.where(excluded, -jnp.inf, similarity), top_k)
  return Matches(indices.astype(jnp.int32), similarity)


def order_faithfulness(estimated_norms: chex.Array, true_norms: chex.Array) -> jax.Array:
  """How often two concepts are ordered by estimated effects as by true ones.

  Args:
    estimated_norms: lengths of the estimated effects of m concepts on each text, `[n, m]`.
    true_norms: lengths of the true effects, `[n, m]`.

  Returns:
    Share of the pairs of concepts whose two differences have the same sign (0 is a sign of its own;
    chance is one half), over all texts; a scalar in float32. NaN if a length is, or without pairs.

  Raises:
    ValueError: if shapes differ.

  Reference: Gat et al., Faithful Explanations of Black-box NLP Models Using LLM-generated
  Counterfactuals, ICLR 2024, section 3, https://arxiv.org/abs/2310.00603.
  """
  check_arrays(estimated_norms=(estimated_norms, "[n, m]"), true_norms=(true_norms, "[n, m]"))
  norms = as_accumulator(estimated_norms, true_norms)
  num, concepts = norms[0].shape
  if num == 0 or concepts < 2:
    return jnp.array(jnp.nan, jnp.float32)

  def agree(estimated, true, other_estimated, other_true):
    return jnp.sign(estimated - other_estimated) == jnp.sign(true - other_true)

  same = jnp.sum(sum_over_pairs(agree, norms, norms), dtype=jnp.int32)
  # Every concept agrees with itself, and every pair is counted twice.
  share = (same - num * concepts) / (num * concepts * (concepts - 1))
  missing = jnp.any(jnp.isnan(norms[0]) | jnp.isnan(norms[1]))
  return jnp.where(missing, jnp.nan, share).astype(jnp.float32)
