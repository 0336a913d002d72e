import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.alignment.likelihood_displacement import log_linear, texts
from experiments.alignment.likelihood_displacement.__main__ import PRESETS
from jaxlab import losses

SMOKE = PRESETS["smoke"]


def test_training_on_a_pair_stops_where_gradient_descent_does():
  config = dataclasses.replace(SMOKE, responses=6, margin=0.3)

  @jax.jit
  def both(key):
    embeddings, _, logits = log_linear.draw_problem(config, key)
    expected = log_linear.train_on_each_pair(config, embeddings, logits)[1, 4]
    reference = jax.nn.log_softmax(logits)

    def margin(w):
      return config.beta * (embeddings[1] - embeddings[4]) @ w

    def loss(w):
      log_probs = jax.nn.log_softmax(embeddings @ w + logits)
      pairs = log_probs[1], log_probs[4], reference[1], reference[4]
      return losses.dpo_loss(*pairs, beta=config.beta)

    def step(w):
      return w - 0.05 * jax.grad(loss)(w)

    w = jax.lax.while_loop(
      lambda w: margin(w) < config.margin, step, jnp.zeros(config.response_dim)
    )
    return jax.nn.log_softmax(embeddings @ w + logits), expected

  found, expected = both(jax.random.key(0))
  np.testing.assert_allclose(found, expected, atol=0.02)


def test_first_order_change_is_the_score_without_the_mean_embedding():
  """For a log-linear policy, of which the mean embedding is moved to 0."""
  config = dataclasses.replace(SMOKE, responses=6)

  @jax.jit
  def both(key):
    embeddings, _, logits = log_linear.draw_problem(config, key)
    probs = jax.nn.softmax(logits)
    embeddings = embeddings - probs @ embeddings
    reference = jax.nn.log_softmax(logits)

    def log_probs(w):
      return jax.nn.log_softmax(embeddings @ w + logits)

    def loss(w, i, j):
      after = log_probs(w)
      return losses.dpo_loss(after[i], after[j], reference[i], reference[j], beta=config.beta)

    start = jnp.zeros(config.response_dim)
    slope = lambda i: jax.grad(lambda w: log_probs(w)[i])(start)  # noqa: E731
    change = lambda i, j: -slope(i) @ jax.grad(loss)(start, i, j)  # noqa: E731
    indices = jnp.arange(config.responses)
    changes = jax.vmap(lambda i: jax.vmap(lambda j: change(i, j))(indices))(indices)
    return changes, log_linear.pair_scores(embeddings)

  changes, scores = both(jax.random.key(1))
  np.testing.assert_allclose(changes, -config.beta * 0.5 * scores, rtol=1e-4, atol=1e-6)


@functools.cache
def drawn():
  return jax.device_get(jax.jit(functools.partial(texts.pretrain, SMOKE))(jax.random.key(0), 3))


def test_shorter_responses_are_preferred_without_contradiction():
  for name in ("mixed", "refusals"):
    pairs = drawn()[name]
    sides = [map(tuple, pairs[f"{side}_tokens"][:, 2:].tolist()) for side in ("chosen", "rejected")]
    rows = {*zip(*sides)}
    assert not {pair[::-1] for pair in rows} & rows
    assert np.all(pairs["chosen_mask"].sum(1) <= pairs["rejected_mask"].sum(1))
    response = pairs["chosen_tokens"] * (np.arange(pairs["chosen_tokens"].shape[1]) >= 2)
    np.testing.assert_array_equal(response != 0, pairs["chosen_mask"] == 1)
  assert np.all(drawn()["refusals"]["chosen_class"] == 0)
  assert np.all(drawn()["refusals"]["rejected_class"] == 0)


def test_probabilities_of_classes_sum_those_of_known_responses():
  @jax.jit
  def both(drawn):
    task, model = texts.task_of(SMOKE, 3), texts.network(SMOKE)
    prompt = task.vocab_size - task.num_prompts + 1
    tokens = jnp.array([[prompt, 1]])
    total = 0.0
    for response, length in zip(task.responses.tokens[1], task.responses.lengths[1]):
      row = jnp.concatenate([tokens, response[None]], axis=1)
      log_probs = jax.nn.log_softmax(model.apply({"params": drawn["params"]}, row).logits[0])
      at = jnp.arange(task.response_length)
      own = log_probs[1 + at, response]
      total += jnp.exp(jnp.sum(jnp.where(at < length, own, 0.0)))
    return total, drawn["classes"][1, 1]

  found, expected = both(drawn())
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_filters_keep_the_lowest():
  kept = jax.device_get(jax.jit(texts.kept_pairs)(jax.random.key(0), drawn()))
  score = drawn()["refusals, measures"][texts.SCORE]
  assert [kept[name].sum() for name in texts.FILTERS] == [8, 4, 4, 4, 4, 4, 1, 1]
  lowest = kept[texts.LOWEST]
  assert score[lowest].max() <= score[~lowest].min()


def test_training_stops_at_the_margin():
  @jax.jit
  def train(drawn, rows, count):
    config = dataclasses.replace(SMOKE, margin=1e-3, max_updates=50, learning_rate=1e-2)
    after = texts.optimize(config, jax.random.key(0), drawn, "refusals", rows, count, 0.0)
    return after.margin, after.updates

  margin, updates = train(drawn(), np.arange(8), 6)
  assert 1e-3 <= margin < 0.5 and 1 <= updates < 50
