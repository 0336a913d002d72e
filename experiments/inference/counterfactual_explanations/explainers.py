"""What stands in for counterfactuals, and how far the effects go that it gives."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.inference.counterfactual_explanations.readers import (
  NUM_CONCEPTS,
  NUM_VALUES,
  SHIFTS,
)
from jaxlab import metrics

ZERO, CONSTANT = "no effect", "difference of group means"
GENERATION, PERFECT = "generated edits", "true counterfactual"
EMBEDDING, UNTRAINED, CAUSAL = "classifier's embedding", "untrained space", "causal match"
NO_CONFOUNDER, NO_MATCH = "causal match, no confounder edits", "causal match, no valid matches"
RANDOM, PROPENSITY, TRUE = "random match", "propensity", "true labels"
LABELS, WITH_EDITS = "labels from few", "labels from few and edits"
# Weights of the sets in the loss of a space.
_ALL = {"treatment": 1.0, "match": 1.0, "confounder": 1.0, "mismatch": 1.0}
SPACES = {CAUSAL: _ALL, NO_CONFOUNDER: _ALL | {"confounder": 0.0}, NO_MATCH: _ALL | {"match": 0.0}}
_BY_EMBEDDING = (EMBEDDING, UNTRAINED, *SPACES)
BY_SCORE = (RANDOM, LABELS, WITH_EDITS, PROPENSITY, TRUE)
MATCHERS = _BY_EMBEDDING + BY_SCORE
METHODS = (ZERO, CONSTANT, *MATCHERS, GENERATION, PERFECT)
DISTANCES = "l2", "cosine", "norm_difference"
OF_METHOD, OF_PROBLEM = ("confounders agree", "order"), ("finds the counterfactual", "covered")


def cell_of(labels: chex.Array, treatment: chex.Numeric) -> jax.Array:
  """A number for the combination of all concepts but the treatment, `[n]`."""
  is_other = jnp.arange(NUM_CONCEPTS) != treatment
  places = NUM_VALUES ** np.arange(NUM_CONCEPTS)
  return jnp.sum(jnp.where(is_other[None], labels * places[None], 0), axis=1)


def propensities(labels: chex.Array, treatment: chex.Numeric) -> jax.Array:
  """Frequencies of the treatment's values by the cell, in tenths, `[81, 3]`; each once for free."""
  # Not rounded, no two cells would match.
  cells = jax.nn.one_hot(cell_of(labels, treatment), NUM_VALUES**NUM_CONCEPTS)
  counts = cells.T @ jax.nn.one_hot(jnp.take(labels, treatment, axis=1), NUM_VALUES) + 1
  return jnp.round(10 * counts / jnp.sum(counts, axis=1, keepdims=True)) / 10


def label_scores(key, labels, test, candidates, treatment: chex.Numeric) -> jax.Array:
  """How like the candidates are to each text by labels, ties broken at random: `[scores, n, m]`."""
  is_other = jnp.arange(NUM_CONCEPTS) != treatment
  noise = jax.random.uniform(key, (len(test), len(candidates)))

  def agreement(first, second):
    same = (first[:, None] == second[None]) & is_other[None, None]
    return jnp.sum(same, axis=-1) + 0.5 * noise

  few = labels["few"]
  table = propensities(few["train"], treatment)
  first, second = (table[cell_of(few[name], treatment)] for name in ("test", "candidates"))
  apart = jnp.sum(jnp.abs(first[:, None] - second[None]), axis=-1)
  scores = {
    RANDOM: noise,
    LABELS: agreement(few["test"], few["candidates"]),
    WITH_EDITS: agreement(labels["edits"]["test"], labels["edits"]["candidates"]),
    PROPENSITY: 1e-4 * noise - apart,
    TRUE: agreement(test, candidates),
  }
  return jnp.stack([scores[name] for name in BY_SCORE])


def score(config, key, explained, spaces) -> dict[str, jax.Array]:
  """Errors and other measures of all methods.

  Args:
    config: of the experiment.
    key: of ties.
    explained: what `readers.explained` gives, with the true concepts of the texts.
    spaces: what `readers.learn_space` gives, by method.

  Returns:
    "errors" `[methods, distances, 2]`, with one match and with all; "confounders agree" and "order"
    `[methods]`, NaN where a method has no such thing; and numbers of the problem.
  """
  test, candidates = (explained["concepts"][name] for name in ("test", "candidates"))
  probs, labels = explained["probs"], explained["labels"]

  def places(name):
    """Places of texts in all spaces of a concept, `[4, spaces, n, d]`."""
    own = jnp.repeat(explained["states"][name][:, None], NUM_CONCEPTS, axis=1)
    learned = [spaces[space][f"trained {name}"] for space in SPACES]
    untrained = spaces[CAUSAL][f"untrained {name}"]
    return jnp.moveaxis(jnp.stack([own, untrained, *learned]), 2, 0)

  def of_concept(inputs):
    key, concept, *places, true, edits, place = inputs
    scores = label_scores(key, labels, test, candidates, concept)
    problem = config, probs, labels["few"]["candidates"], test, candidates
    query = functools.partial(_explain, *problem, concept, *places, scores)
    return jax.lax.map(lambda x: query(*x), (jnp.array(SHIFTS), true, edits, place))

  keys = jax.random.split(jax.random.fold_in(key, 2), NUM_CONCEPTS)
  edits = jnp.moveaxis(probs["edits"], 0, 2)
  of_changes = probs["true"], edits, spaces[CAUSAL]["true"]
  inputs = keys, jnp.arange(NUM_CONCEPTS), places("test"), places("candidates"), *of_changes
  found = jax.lax.map(of_concept, inputs)  # `[concepts, shifts, ..., n]` each.
  group = functools.partial(mean_of_directions, test)
  estimated, effect = (jnp.mean(found[name], axis=1) for name in ("estimated", "effect"))
  order = functools.partial(metrics.order_faithfulness, true_norms=effect.T)
  return {
    "errors": group(found["errors"]),
    "confounders agree": group(found["agree"]),
    "order": jax.lax.map(order, jnp.moveaxis(estimated, 0, -1)),
    "finds the counterfactual": jnp.mean(found["finds"]),
    "covered": jnp.mean(found["covered"]),
  }


def _explain(
  config, probs, few, test, candidates, concept, queries, places, scores, shift, true, edits, place
) -> dict[str, jax.Array]:
  """Measures of one change of one concept by text, `[..., n]`."""
  value = (jnp.take(test, concept, axis=1) + shift) % NUM_VALUES
  is_other = jnp.arange(NUM_CONCEPTS) != concept
  labels, truth = (jnp.take(x, concept, axis=1)[None] for x in (few, candidates))
  treated, truly = labels == value[:, None], truth == value[:, None]
  same = (test[:, None] == candidates[None]) & is_other[None, None]
  covered = jnp.any(truly & (jnp.sum(same, axis=-1) == NUM_CONCEPTS - 1), axis=1)

  count = config.top_k
  top_k = functools.partial(metrics.top_k_matches, valid=treated, top_k=count)
  near = jax.vmap(top_k)(queries, places)
  valid = jnp.stack([truly if name == TRUE else treated for name in BY_SCORE])
  like = jax.lax.top_k(jnp.where(valid, scores, -jnp.inf), count)
  similarity = jnp.concatenate([near.similarity, like[0]])
  indices = jnp.concatenate([near.indices, like[1]])

  base = probs["test"]
  before = labels == jnp.take(test, concept, axis=1)[:, None]
  # The constant effect: means of the candidates with either value.
  after, before = (
    (x @ probs["candidates"]) / jnp.maximum(jnp.sum(x, axis=1, keepdims=True), 1)
    for x in (treated.astype(base.dtype), before.astype(base.dtype))
  )
  alike = [jnp.repeat(x[:, None], count, axis=1) for x in (base, base + after - before, true)]
  stand_ins = jnp.concatenate([
    jnp.stack(alike[:2]), probs["candidates"][indices],
    jnp.swapaxes(edits, 0, 1)[None], alike[2][None],
  ])  # fmt: skip
  left = similarity > -jnp.inf
  whole = jnp.ones((2, *left.shape[1:]), bool)
  left = jnp.concatenate([whole, left, whole])

  def errors(distance, num):
    error = functools.partial(metrics.causal_effect_error, base, true, distance=distance)
    return jax.vmap(lambda x, mask: error(x[:, :num], match_mask=mask[:, :num]))(stand_ins, left)

  by_number = [jnp.stack([errors(x, 1), errors(x, count)], axis=1) for x in DISTANCES]
  agree = jnp.take_along_axis(same[None], indices[..., :1, None], axis=2)
  agree = jnp.sum(agree, axis=(2, 3)) / (NUM_CONCEPTS - 1)
  agree = jnp.where(similarity[..., 0] > -jnp.inf, agree, jnp.nan)
  causal = _BY_EMBEDDING.index(CAUSAL)
  to_itself = optax.losses.cosine_similarity(queries[causal], place, epsilon=1e-12)
  effect = metrics.individual_causal_effect
  return {
    "errors": jnp.stack(by_number, axis=1),
    "estimated": jnp.linalg.norm(jax.vmap(effect, (None, 0))(base, stand_ins[:, :, 0]), axis=-1),
    "effect": jnp.linalg.norm(effect(base, true), axis=-1),
    "agree": jnp.pad(agree, ((2, 2), (0, 0)), constant_values=jnp.nan),
    "finds": to_itself >= similarity[causal, :, 0],
    "covered": covered,
  }


def mean_of_directions(test: chex.Array, values: chex.Array) -> jax.Array:
  """Means over texts of each direction, then directions, then concepts: `[4, 2, ..., n]`.

  Texts without a value (NaN) and directions without texts do not count.
  """
  before = jax.nn.one_hot(test.T, NUM_VALUES)  # Of each concept, `[4, n, 3]`.
  counts = jnp.isfinite(values).astype(before.dtype)
  total, num = (
    jnp.einsum("cs...n,cnv->csv...", x, before)
    for x in (jnp.where(counts > 0, values, 0.0), counts)
  )
  means = jnp.where(num > 0, total / jnp.maximum(num, 1), jnp.nan)
  return jnp.mean(jnp.nanmean(means, axis=(1, 2)), axis=0)
