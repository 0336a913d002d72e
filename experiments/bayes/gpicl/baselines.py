"""What classifiers make of the same sequences that know nothing but the context."""

import chex
import jax
import jax.numpy as jnp

from experiments.bayes.gpicl import tasks

NEAREST, MEANS, LOGISTIC = "1-nearest neighbor", "nearest class mean", "logistic regression"

# Of the squared intercepts: too small to matter, but without it there is no solution for one class.
_INTERCEPT = 1e-3


def neighbor_scores(inputs: chex.Array, labels: chex.Array) -> jax.Array:
  """1 for the label of the nearest example before each, `[n, k]`; zeros at the first one."""
  places = jnp.arange(len(inputs))
  distances = jnp.sum((inputs[:, None] - inputs[None]) ** 2, axis=-1)
  distances = jnp.where(places[None] < places[:, None], distances, jnp.inf)
  return labels[jnp.argmin(distances, axis=1)] * (places > 0)[:, None]


def mean_scores(inputs: chex.Array, labels: chex.Array) -> jax.Array:
  """Minus the squared distances to the means of the classes before each example, `[n, k]`."""
  before = jnp.tril(jnp.ones((len(inputs), len(inputs))), -1)
  counts = before @ labels
  sums = jnp.einsum("ij,jk,jd->ikd", before, labels, inputs)
  means = sums / jnp.maximum(counts, 1)[..., None]
  distances = jnp.sum((inputs[:, None] - means) ** 2, axis=-1)
  return jnp.where(counts > 0, -distances, -jnp.inf)


def logistic_scores(
  inputs: chex.Array, labels: chex.Array, strength: chex.Numeric, *, num_steps: int
) -> jax.Array:
  """Logits of a penalized regression on the examples before each, `[n, k]`.

  A step goes to the minimum of a quadratic bound of the loss, whose curvature in a logit is at most
  1/2; every fit begins at that of the example before.
  """
  rows = jnp.concatenate([inputs, jnp.ones((len(inputs), 1))], axis=1)
  penalties = jnp.append(jnp.full(inputs.shape[1], 1 / strength), _INTERCEPT)

  def fit(weights, place):
    seen = (jnp.arange(len(rows)) < place)[:, None]
    inverse = jnp.linalg.inv((rows * seen).T @ rows / 2 + jnp.diag(penalties))

    def step(weights, _):
      gap = (jax.nn.softmax(rows @ weights) - labels) * seen
      return weights - inverse @ (rows.T @ gap + penalties[:, None] * weights), None

    weights, _ = jax.lax.scan(step, weights, length=num_steps)
    return weights, rows[place] @ weights

  start = jnp.zeros((rows.shape[1], labels.shape[1]))
  return jax.lax.scan(fit, start, jnp.arange(len(rows)))[1]


def measure(config, key: chex.PRNGKey, task: tasks.Task) -> dict[str, dict[str, jax.Array]]:
  """Scores along conditions, and C of the regression, which other sequences choose."""
  keys = tasks.keys_of(key)

  def scores(function, batch, *arguments):
    def of_one(rows):
      inputs, labels = rows
      return function(inputs, jax.nn.one_hot(labels, config.num_classes), *arguments)

    logits = jax.lax.map(of_one, tuple(batch), batch_size=min(250, len(batch.labels)))
    return tasks.score(config, logits, batch.labels)

  def logistic(inputs, labels, strength):
    return logistic_scores(inputs, labels, strength, num_steps=config.logistic_steps)

  validation = tasks.sequences(config, keys.watch, task.train, config.num_validation)
  strengths = jnp.array(config.strengths)
  accuracy = jax.lax.map(lambda c: scores(logistic, validation, c)["last accuracy"], strengths)
  strength = strengths[jnp.argmax(accuracy)]

  def of_condition(batch):
    return {
      NEAREST: scores(neighbor_scores, batch),
      MEANS: scores(mean_scores, batch),
      LOGISTIC: scores(logistic, batch, strength),
    }

  found = jax.lax.map(of_condition, tasks.test_sequences(config, keys, task))
  found[LOGISTIC]["chosen/C"] = strength
  return found
