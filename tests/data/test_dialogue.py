import dataclasses

import jax
import numpy as np
import pytest

from jaxlab.data import DialogueConfig, dialogue, dialogue_batch, dialogue_reward

CONFIG = DialogueConfig(num_prompts=6, response_length=4, num_response_tokens=5)
P, L, V = CONFIG.num_prompts, CONFIG.response_length, CONFIG.num_response_tokens
FIRST = 3 + P


@pytest.fixture(scope="module")
def batch():
  return jax.device_get(dialogue_batch(jax.random.key(0), CONFIG, 20_000))


@pytest.fixture(scope="module")
def tables():
  return jax.device_get(jax.jit(dialogue._tables, static_argnums=0)(CONFIG))


def test_texts_are_prompt_separator_response_end(batch):
  assert batch.tokens.shape == (20_000, L + 3) and batch.tokens.dtype == np.int32
  np.testing.assert_array_equal(batch.tokens[:, 0], 3 + batch.prompt_ids)
  assert (batch.tokens[:, 1] == 2).all() and (batch.tokens[:, -1] == 1).all()
  response = batch.tokens[:, 2:-1]
  assert response.min() == FIRST and response.max() == FIRST + V - 1 == CONFIG.vocab_size - 1
  np.testing.assert_array_equal(batch.loss_mask[0], np.arange(L + 3) >= 2)
  assert (batch.prompt_lengths == 2).all()
  counts = np.bincount(batch.prompt_ids, minlength=P)
  assert np.all(np.abs(counts - 20_000 / P) < 4 * np.sqrt(20_000 / P))


def test_responses_follow_the_chain_of_their_prompt(batch, tables):
  responses = batch.tokens[:, 2:-1] - FIRST

  def softmax(logits):
    odds = np.exp(np.float64(logits))
    return odds / odds.sum(-1, keepdims=True)

  for prompt in range(P):
    rows = responses[batch.prompt_ids == prompt]
    first = np.bincount(rows[:, 0], minlength=V) / len(rows)
    np.testing.assert_allclose(first, softmax(tables.initial[prompt]), atol=0.04)
    pairs = np.zeros((V, V))
    np.add.at(pairs, (rows[:, :-1], rows[:, 1:]), 1)
    for token in range(V):
      if pairs[token].sum() > 500:
        chance = softmax(tables.transition[prompt, token])
        error = np.sqrt(chance * (1 - chance) / pairs[token].sum())
        assert np.all(np.abs(pairs[token] / pairs[token].sum() - chance) < 5 * error + 1e-3)


def slow_reward(tables, prompt, response, kind):
  scale = CONFIG.reward_scale_range ** (prompt / (P - 1) - 0.5)
  if not all(FIRST <= token < FIRST + V for token in response):
    return -10 * max(scale, 1)
  response = [token - FIRST for token in response]
  if kind == "harmless":
    return sum(tables.harmless[prompt, token] for token in response) / np.sqrt(L)
  total = sum(tables.helpful[prompt, token] for token in response)
  total += 0.5 * sum(tables.pairs[a, b] for a, b in zip(response, response[1:]))
  return scale * total / np.sqrt(L)


@pytest.mark.parametrize("kind", ["helpful", "harmless"])
def test_rewards_match_a_loop(batch, tables, kind):
  prompts, responses = batch.prompt_ids[:40], batch.tokens[:40, 2:-1].copy()
  # Ended early, a prompt's token, a token beyond the vocabulary, and one that is negative.
  for row, token in enumerate((1, 3 + P - 1, FIRST + V, -1)):
    responses[row, 2] = token
  result = dialogue_reward(CONFIG, prompts, responses, kind=kind)
  expected = [slow_reward(tables, p, r, kind) for p, r in zip(prompts, responses)]
  np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_conflicts_are_exact(tables):
  opposed = (tables.harmless == -tables.helpful).all(1)
  assert opposed.sum() == P // 2
  many = dataclasses.replace(CONFIG, num_prompts=100, conflict_fraction=0.29)
  found = jax.device_get(jax.jit(dialogue._tables, static_argnums=0)(many))
  assert (found.harmless == -found.helpful).all(1).sum() == 29


def test_tables_depend_on_the_seed_which_may_be_traced():
  prompts, responses = np.arange(P), np.full((P, L), FIRST, np.int32)

  def reward(seed):
    return dialogue_reward(dataclasses.replace(CONFIG, seed=seed), prompts, responses)

  rewards = np.asarray(jax.jit(jax.vmap(reward))(np.arange(3)))
  assert np.all(rewards[0] != rewards[1])
  same = dataclasses.replace(CONFIG, seed=2)
  np.testing.assert_allclose(rewards[2], dialogue_reward(same, prompts, responses), rtol=1e-5)


def test_scales_span_the_range():
  flat = dataclasses.replace(CONFIG, reward_scale_range=1.0)
  prompts, responses = np.arange(P), np.full((P, L), FIRST, np.int32)
  ratio = np.divide(*(dialogue_reward(x, prompts, responses) for x in (CONFIG, flat)))
  np.testing.assert_allclose(ratio, np.geomspace(30**-0.5, 30**0.5, P), rtol=1e-4)
  invalid = dialogue_reward(CONFIG, prompts, np.zeros((P, L), np.int32), kind="harmless")
  np.testing.assert_allclose(invalid, -10 * np.maximum(ratio, 1), rtol=1e-4)


def test_an_unknown_prompt():
  responses = np.full((2, L), FIRST, np.int32)
  with pytest.raises(ValueError, match=r"prompt_ids must lie in \[0, 6\), got -1 to 6"):
    dialogue_reward(CONFIG, np.array([-1, 6]), responses)
  result = dialogue_reward(CONFIG, jax.device_put(np.array([6, 0])), responses)
  np.testing.assert_array_equal(np.isnan(result), [True, False])


def test_errors():
  for name, value in (
    ("num_prompts", 0),
    ("response_length", 0),
    ("num_response_tokens", 0),
    ("reward_scale_range", 0.9),
    ("conflict_fraction", 1.1),
  ):
    with pytest.raises(ValueError, match=f"{name} must .*{value}"):
      DialogueConfig(**{name: value})
  with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
    dialogue_batch(jax.random.key(0), CONFIG, 0)
  responses = np.full((2, L), FIRST, np.int32)
  with pytest.raises(ValueError, match="kind must be one of 'helpful', 'harmless', got 'honest'"):
    dialogue_reward(CONFIG, np.array([0, 1]), responses, kind="honest")
  with pytest.raises(ValueError, match=r"^responses must have shape \[b, 4\]"):
    dialogue_reward(CONFIG, np.array([0, 1]), responses[:, :3])
  with pytest.raises(TypeError, match="prompt_ids must be of type int"):
    dialogue_reward(CONFIG, np.array([0.0, 1.0]), responses)
