"""What needs no network: likeness to descriptions, a search over them, logistic regression."""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from experiments.labels.crosstune.tasks import (
  FEW,
  TEST,
  VALIDATION,
  Task,
  draw_texts,
  part,
  sizes_of_texts,
  text_config,
)
from jaxlab import data, models

POOLED, BEST_TOKEN = RULES = "nearest description, pooled", "nearest description, best token"


def likeness(states: chex.Array, descriptions: chex.Array) -> jax.Array:
  """Cosines of descriptions `[C, D]` and texts, of their mean and their best token `[2, n, C]`."""
  unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)  # noqa: E731
  words = unit(descriptions).T
  return jnp.stack([unit(jnp.mean(states, axis=1)) @ words, jnp.max(unit(states) @ words, axis=1)])


def features_of(task: Task) -> jax.Array:
  """Mean states and likeness of the best token, `[N, D + C]`."""
  best = likeness(task.states, task.descriptions)[1]
  return jnp.concatenate([jnp.mean(task.states, axis=1), best], axis=-1)


def read_texts(config, key) -> dict[str, jax.Array]:
  """What rules make of the texts of a seed.

  "right" says which few, validation and test rows descriptions of a part of the words get right, by
  both rules, `[candidates, 2, e]`; the first have all words. The `oracle` knows the topics' words.
  """
  task, tokens, encode = draw_texts(config, key)
  sizes, texts = sizes_of_texts(config), text_config(config)
  rows = part(sizes, FEW, VALIDATION, TEST)
  words = data.label_descriptions(texts)
  shape = config.num_subsets, *words.tokens.shape
  subsets = jax.random.bernoulli(jax.random.fold_in(key, 1), 0.5, shape).at[0].set(True)
  # An empty description keeps its first word.
  subsets = subsets.at[..., 0].set(subsets[..., 0] | ~jnp.any(subsets, axis=-1))
  states, truth = task.states[rows], task.truth[rows]

  def is_right(subset):
    descriptions = models.pool_states(encode(words.tokens, subset), subset)
    return jnp.argmax(likeness(states, descriptions), axis=-1) == truth

  test = part(sizes, TEST)
  topics = jnp.where(tokens[test] < texts.num_topic_words, tokens[test] // texts.topic_words, -1)
  counts = jnp.sum(jax.nn.one_hot(topics, config.num_classes), axis=1)
  return {
    "features": features_of(task),
    "labels": task.labels,
    "truth": task.truth,
    "right": jax.lax.map(is_right, subsets),
    "oracle": jnp.mean(jnp.argmax(counts, axis=-1) == task.truth[test]),
  }


def read_digits(key, task: Task) -> dict[str, jax.Array]:
  """What rules make of digits: the `features`, and "right" `[2, N]` by both rules."""
  del key
  right = jnp.argmax(likeness(task.states, task.descriptions), axis=-1) == task.truth
  return {"features": features_of(task), "right": right}


def search(config, shots: int, right: np.ndarray) -> float:
  """Test accuracy of the description and the rule that are best on all labeled rows."""
  sizes = sizes_of_texts(config)
  few, num = config.num_classes * shots, sizes[FEW]
  labeled = np.r_[:few, num : num + sizes[VALIDATION]]
  flat = right.reshape(-1, right.shape[-1])
  best = flat[:, labeled].mean(1).argmax()
  return flat[best, num + sizes[VALIDATION] :].mean()


@threadpool_limits.wrap(limits=1)  # On arrays as small as these, threads wait for each other.
def regress(penalties: Sequence[float], splits, features, labels, truth, rows):
  """Accuracies `[penalties]` of logistic regression on rows of a mask, on validation and test."""
  scores = []
  for penalty in penalties:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / penalty, max_iter=1000))
    model.fit(features[rows], labels[rows])
    scores.append([model.score(features[split], truth[split]) for split in splits])
  return dict(zip((VALIDATION, TEST), np.transpose(scores)))
