"""Values of nodes in a search over runs of tokens: which to visit, and what a visit teaches.

Siblings are the nodes that may follow one text. What is learned of one also counts, in part, for
those whose texts are similar.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import as_accumulator, check_arrays, check_range, reaches


class RewindLevel(NamedTuple):
  """Siblings of a search tree.

  Attributes:
    values: mean of the scores, `[k]`.
    visits: visits and parts of those of similar siblings, `[k]`.
    real_visits: visits, int32 `[k]`.
    embeddings: mean embedding of the texts that begin with each, `[k, d]`.
    has_embedding: whether a sibling has been visited, bool `[k]`.
  """

  values: chex.Array
  visits: chex.Array
  real_visits: chex.Array
  embeddings: chex.Array
  has_embedding: chex.Array


def selection_scores(
  values: chex.Array,
  visits: chex.Array,
  priors: chex.Array,
  *,
  parent_visits: chex.Numeric,
  min_value: chex.Numeric,
  max_value: chex.Numeric,
  exploration: chex.Numeric = 2.0,
) -> jax.Array:
  """Scores by which one of several siblings is chosen: value plus a bonus for what is unexplored.

  Args:
    values: mean scores, `[k]`.
    visits: numbers of visits, `[k]`, which may be fractions.
    priors: probabilities, `[k]`.
    parent_visits: visits of the parent.
    min_value: the least value of the tree, which counts as 0.
    max_value: its largest value, which counts as 1.
    exploration: weight of the bonus, at least 0.

  Returns:
    `(value - min) / (max - min + 1e-5) + exploration * prior * sqrt(parent_visits) / (1 + visits)`,
    `[k]`, in float32 or wider; without visits the first term is 0.

  Raises:
    ValueError: if `exploration` < 0 or shapes differ.

  Reference: Li et al., RAIN: Your Language Models Can Align Themselves without Finetuning, ICLR
  2024, section 3, https://arxiv.org/abs/2309.07124, and the published code.
  """
  check_range("exploration", exploration, "[0, inf)")
  check_arrays(values=(values, "[k]"), visits=(visits, "[k]"), priors=(priors, "[k]"))
  values, visits, priors, parent_visits, low, high, exploration = as_accumulator(
    values, visits, priors, parent_visits, min_value, max_value, exploration
  )
  # Visits of NaN are not 0.
  scaled = jnp.where(visits == 0, 0.0, (values - low) / (high - low + 1e-5))
  return scaled + exploration * priors * jnp.sqrt(parent_visits) / (1.0 + visits)


def backup_level(
  values: chex.Array,
  visits: chex.Array,
  real_visits: chex.Array,
  embeddings: chex.Array,
  has_embedding: chex.Array,
  *,
  child_index: chex.Numeric,
  path_embedding: chex.Array,
  value: chex.Numeric,
  similarity_threshold: chex.Numeric = 0.95,
  similarity_weight: chex.Numeric = 0.2,
) -> RewindLevel:
  """Enters a score into one of several siblings, and a part of it into those that are similar.

  Args:
    values: mean scores, `[k]`.
    visits: visits with parts, `[k]`.
    real_visits: visits, int `[k]`.
    embeddings: mean embeddings, `[k, d]`.
    has_embedding: which siblings have one, bool `[k]`; the others are similar to none.
    child_index: the sibling that was visited.
    path_embedding: embedding of the text that began with it, `[d]`.
    value: the score of the text.
    similarity_threshold: cosine from which on siblings are similar, in [-1, 1].
    similarity_weight: visits that the score counts for in a sibling of cosine 1, at least 0.

  Returns:
    The `RewindLevel`, in float32 or wider.

  Raises:
    ValueError: if `similarity_threshold` lies outside [-1, 1], `similarity_weight` < 0, or shapes
      do not fit.

  Reference: as for `selection_scores`.
  """
  check_range("similarity_threshold", similarity_threshold, "[-1, 1]")
  check_range("similarity_weight", similarity_weight, "[0, inf)")
  check_arrays(
    values=(values, "[k]"),
    visits=(visits, "[k]"),
    real_visits=(real_visits, "int [k]"),
    embeddings=(embeddings, "[k, d]"),
    has_embedding=(has_embedding, "[k]"),
    path_embedding=(path_embedding, "[d]"),
  )
  values, visits, embeddings, path, score = as_accumulator(
    values, visits, embeddings, path_embedding, value
  )
  real_visits = jnp.asarray(real_visits).astype(jnp.int32)
  known = jnp.asarray(has_embedding).astype(bool)
  is_child = jnp.arange(values.shape[0]) == child_index
  real_visits = real_visits + is_child
  count = real_visits[child_index].astype(values.dtype)
  old = embeddings[child_index]
  mean = jnp.where(known[child_index], old + (path - old) / jnp.maximum(count, 1.0), path)
  cosines = jnp.matmul(_unit(embeddings), _unit(mean), precision="highest")
  similar = known & ~is_child & (cosines >= similarity_threshold)
  gained = jnp.where(is_child, 1.0, jnp.where(similar, similarity_weight * cosines, 0.0))
  total = visits + gained
  share = jnp.where(total == 0, 0.0, gained / jnp.where(total == 0, 1.0, total))
  return RewindLevel(
    jnp.where(gained == 0, values, values + share * (score - values)),
    total,
    real_visits,
    jnp.where(is_child[:, None], mean[None], embeddings),
    known | is_child,
  )


def _unit(vectors: jax.Array) -> jax.Array:
  square = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
  return vectors * jax.lax.rsqrt(jnp.where(square == 0, 1.0, square))


def should_widen(
  child_embeddings: chex.Array,
  child_values: chex.Array,
  *,
  set_length: chex.Numeric,
  num_children: chex.Numeric,
  variance_per_token: chex.Numeric = 0.03,
  max_children: chex.Numeric = 20,
) -> jax.Array:
  """Whether a node needs one more child: all that it has are alike, and none is good.

  Args:
    child_embeddings: `[k, d]`; each child must have been visited.
    child_values: mean scores, `[k]`.
    set_length: tokens of a child.
    num_children: how many of the k rows are children.
    variance_per_token: children are alike if the Euclidean norm of the unbiased variances of their
      embeddings is less than this times `set_length`; at least 0.
    max_children: a node with so many children gets no more.

  Returns:
    A bool scalar; a single child, or NaN in what counts, gives False.

  Raises:
    ValueError: if `variance_per_token` < 0 or shapes do not fit.

  Reference: as for `selection_scores`.
  """
  check_range("variance_per_token", variance_per_token, "[0, inf)")
  check_arrays(child_embeddings=(child_embeddings, "[k, d]"), child_values=(child_values, "[k]"))
  embeddings, values = as_accumulator(child_embeddings, child_values)
  is_child = jnp.arange(values.shape[0]) < num_children
  number = jnp.sum(is_child)
  counted = jnp.where(is_child[:, None], embeddings, 0.0)
  mean = jnp.sum(counted, axis=0, keepdims=True) / jnp.maximum(number, 1)
  squares = jnp.where(is_child[:, None], jnp.square(embeddings - mean), 0.0)
  spread = jnp.linalg.norm(jnp.sum(squares, axis=0) / jnp.maximum(number - 1, 1))
  alike = spread < variance_per_token * set_length
  none_good = jnp.max(jnp.where(is_child, values, -jnp.inf), initial=-jnp.inf) < 0
  return alike & none_good & (number > 1) & (number < max_children)


def mix_prior(priors: chex.Array, *, uniform_weight: chex.Numeric = 0.25) -> jax.Array:
  """Mixes the priors of siblings with equal ones.

  Args:
    priors: probabilities, `[k]`.
    uniform_weight: weight of the equal ones, in [0, 1].

  Returns:
    `(1 - uniform_weight) * priors + uniform_weight / k`, `[k]`, in float32 or wider.

  Raises:
    ValueError: if `uniform_weight` lies outside [0, 1].

  Reference: as for `selection_scores`.
  """
  check_range("uniform_weight", uniform_weight, "[0, 1]")
  check_arrays(priors=(priors, "[k]"))
  priors = as_accumulator(priors)
  return mix_among(priors, jnp.ones(priors.shape, bool), uniform_weight)


def mix_among(priors: chex.Array, is_child: chex.Array, uniform_weight: chex.Numeric) -> jax.Array:
  """`mix_prior` of siblings that stand among other nodes.

  Args:
    priors: probabilities, `[N]`, floats.
    is_child: which are those of the siblings, bool `[N]`.
    uniform_weight: as in `mix_prior`.

  Returns:
    `[N]`; others keep their priors.
  """
  equal = 1.0 / jnp.maximum(jnp.sum(is_child), 1)
  mixed = (1.0 - uniform_weight) * priors + uniform_weight * equal
  return jnp.where(is_child, mixed, priors)


def candidate_priors(greedy_prob: chex.Numeric, sampled_probs: chex.Array) -> jax.Array:
  """Priors of a greedy run of tokens and of sampled ones.

  A greedy run is rarely improbable only because it is the likeliest at every step. Its weight is
  therefore at least the largest plus the smallest sampled probability, and otherwise at most their
  sum.

  Args:
    greedy_prob: probability of the greedy run.
    sampled_probs: probabilities of m other runs, `[m]`; a negative number for no run.

  Returns:
    Priors that sum to 1, greedy first, `[m + 1]`, in float32 or wider, and 0 for no run; equal ones
    if all probabilities are 0.

  Raises:
    ValueError: if `greedy_prob` is negative.

  Reference: Li et al., RAIN, ICLR 2024, the published code,
  https://github.com/SafeAILab/RAIN.
  """
  check_range("greedy_prob", greedy_prob, "[0, inf)")
  check_arrays(greedy_prob=(greedy_prob, "[]"), sampled_probs=(sampled_probs, "[m]"))
  greedy, sampled = as_accumulator(greedy_prob, sampled_probs)
  is_run = ~(sampled < 0)
  total = jnp.sum(jnp.where(is_run, sampled, 0.0))
  most = jnp.max(jnp.where(is_run, sampled, -jnp.inf), initial=-jnp.inf)
  least = jnp.min(jnp.where(is_run, sampled, jnp.inf), initial=jnp.inf)
  raised = jnp.maximum(jnp.minimum(greedy, total), most + least)
  weight = jnp.where(jnp.any(is_run), raised, greedy)
  weights = jnp.concatenate([weight[None], jnp.where(is_run, sampled, 0.0)])
  runs = jnp.concatenate([jnp.ones(1, bool), is_run])
  whole = jnp.sum(weights)
  return jnp.where(whole == 0, runs / jnp.sum(runs), weights / jnp.where(whole == 0, 1.0, whole))


def self_evaluation_score(
  first_order_logits: chex.Array, second_order_logits: chex.Array
) -> jax.Array:
  """Score of a text by a model that is asked twice whether it is harmless, in both orders.

  Args:
    first_order_logits: scores of the letters A and B, `[..., 2]`, where A says harmless.
    second_order_logits: scores of the letters where B says harmless, `[..., 2]`.

  Returns:
    1 if both answers say harmless, -1 if none does, else 0, `[...]`, in float32 or wider, without a
    gradient; equal scores do not say harmless. NaN where a score is NaN.

  Raises:
    ValueError: if shapes differ.

  Reference: Li et al., RAIN, ICLR 2024, section 3.2, https://arxiv.org/abs/2309.07124.
  """
  check_arrays(
    first_order_logits=(first_order_logits, "[..., 2]"),
    second_order_logits=(second_order_logits, "[..., 2]"),
  )
  first, second = as_accumulator(first_order_logits, second_order_logits)
  no_first, no_second = (
    reaches(first[..., 1], first[..., 0]),
    reaches(second[..., 0], second[..., 1]),
  )
  return 1.0 - no_first - no_second
