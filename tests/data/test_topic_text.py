import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxlab import data

CONFIG = data.TopicTextConfig(num_classes=8, distractor_rate=0.85)
N = 2000
LABELS = np.random.default_rng(0).integers(0, 8, N).astype(np.int32)
KEY = jax.random.key(0)
TEXTS = jax.device_get(data.sample_topic_text(KEY, CONFIG, LABELS))
TOPICS = np.where(TEXTS.tokens < 320, TEXTS.tokens // 40, -1)
encode = jax.jit(lambda encoder, tokens, mask: encoder(tokens, mask))


@pytest.fixture(scope="module")
def encoder():
  return data.frozen_token_encoder(CONFIG)


def near(share, expected, count):
  assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / count)


def test_words_have_the_stated_rates():
  assert TEXTS.tokens.shape == (N, 24) and TEXTS.tokens.dtype == TEXTS.mask.dtype == np.int32
  assert TEXTS.mask.all() and TEXTS.tokens.min() >= 0
  # "not" is kept for negations.
  assert TEXTS.tokens.max() < CONFIG.negation_token == 511
  near(np.mean(TOPICS < 0), 0.85, TOPICS.size)
  step = ((TOPICS - LABELS[:, None]) % 8)[TOPICS >= 0]
  near(np.mean(step != 0), 0.3, step.size)
  for other in range(1, 8):
    near(np.mean(step == other), 0.3 / 7, step.size)
  counts = np.bincount(TEXTS.tokens.ravel(), minlength=512)
  for words, share in ((counts[:320], 0.15 / 320), (counts[320:511], 0.85 / 191)):
    assert np.all(np.abs(words / TOPICS.size - share) < 5 * np.sqrt(share / TOPICS.size))


def test_a_negation_takes_the_place_of_two_words():
  config = dataclasses.replace(CONFIG, negation_rate=0.5)
  tokens = np.asarray(data.sample_topic_text(KEY, config, LABELS).tokens)
  text, place = np.nonzero(tokens == config.negation_token)
  assert len(np.unique(text)) == len(text) and place.max() == 22 and place.min() == 0
  near(len(text) / N, 0.5, N)
  word = tokens[text, place + 1]
  assert np.all(word < 320) and np.all(word // 40 != LABELS[text])
  rest = np.ones_like(tokens, bool)
  rest[text, place] = rest[text, place + 1] = False
  np.testing.assert_array_equal(tokens[rest], TEXTS.tokens[rest])


def test_descriptions_are_words_of_their_topic():
  words = jax.device_get(data.label_descriptions(CONFIG))
  assert words.tokens.shape == words.mask.shape == (8, 8) and words.mask.all()
  np.testing.assert_array_equal(words.tokens // 40, np.arange(8)[:, None].repeat(8, 1))
  assert len(np.unique(words.tokens)) == 64
  few = data.label_descriptions(data.TopicTextConfig(topic_words=3, vocab_size=14))
  np.testing.assert_array_equal(few.tokens, np.arange(12).reshape(4, 3))


def test_the_encoder_is_one_layer_of_attention(encoder):
  mask = TEXTS.mask.copy()
  mask[0, 5:], mask[1] = 0, 0
  states = jax.device_get(encode(encoder, TEXTS.tokens, mask))
  assert states.shape == (N, 24, 64) and states.dtype == np.float32
  vectors, query, key, value = (np.asarray(x, np.float64) for x in encoder.args)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
  for row, size in ((0, 5), (1, 0), (2, 24)):
    words = vectors[TEXTS.tokens[row, :size]]
    weights = softmax(words @ query @ (words @ key).T / 8, axis=-1) if size else np.zeros((0, 0))
    np.testing.assert_allclose(states[row, :size], words + weights @ words @ value, atol=1e-5)
    assert not states[row, size:].any()


def test_words_of_a_topic_share_a_direction(encoder):
  vectors = np.asarray(encoder.args[0])
  cosines = vectors @ vectors.T - np.eye(512)
  topic = np.repeat(np.arange(8), 40)
  same = topic[:, None] == topic[None]
  # 1 of 1 + 1.5^2 is the topic's.
  assert abs(cosines[:320, :320][same].mean() * 40 / 39 - 1 / 3.25) < 0.03
  assert abs(cosines[:320, :320][~same].mean()) < 0.1
  assert np.abs(cosines[320:, 320:].mean(1)).max() < 0.05


def test_descriptions_inform_but_do_not_suffice(encoder):
  """The precondition of experiments: between chance and what the words themselves tell."""
  words = data.label_descriptions(CONFIG)
  described = np.asarray(encode(encoder, *words)).mean(1)
  described /= np.linalg.norm(described, axis=1, keepdims=True)
  states = np.asarray(encode(encoder, *TEXTS))
  pooled = states.mean(1) @ described.T
  best = (states / np.linalg.norm(states, axis=-1, keepdims=True)) @ described.T
  counts = (TOPICS[..., None] == np.arange(8)).sum(1)
  right = [np.mean(x.argmax(1) == LABELS) for x in (pooled, best.max(1), counts)]
  assert 0.4 < right[0] < 0.6 and 0.5 < right[1] < 0.75 and 0.78 < right[2] < 0.88


def test_seeds_differ_and_may_be_traced(encoder):
  draw = jax.jit(jax.vmap(lambda seed: data.frozen_token_encoder(CONFIG, seed=seed).args[0]))
  first, second = np.asarray(draw(jnp.arange(2)))
  np.testing.assert_allclose(first, encoder.args[0], atol=1e-6)
  assert abs(np.sum(first * second, axis=1).mean()) < 0.1


def test_tokens_and_labels_that_do_not_exist(encoder):
  texts = data.sample_topic_text(KEY, CONFIG, jnp.asarray(LABELS).at[:2].set(jnp.array([-1, 8])))
  tokens = np.asarray(texts.tokens)
  assert np.all(tokens[:2] == -1)
  np.testing.assert_array_equal(tokens[2:], TEXTS.tokens[2:])
  states = np.asarray(encode(encoder, *texts))
  assert np.isnan(states[:2]).all() and np.isfinite(states[2:]).all()


@pytest.mark.parametrize("wrong_rate", [0.0, 0.3, 1.0])
def test_generated_texts_err_at_the_stated_rate(wrong_rate):
  made = jax.device_get(
    data.generate_noisy_examples(KEY, CONFIG, num_per_class=250, wrong_rate=wrong_rate)
  )
  np.testing.assert_array_equal(made.labels, np.arange(8).repeat(250))
  wrong = made.labels != made.true_labels
  near(wrong.mean(), wrong_rate, N) if 0 < wrong_rate < 1 else np.testing.assert_array_equal(
    wrong, wrong_rate
  )
  assert made.true_labels.min() >= 0 and made.true_labels.max() < 8 and made.mask.all()
  counts = (np.where(made.tokens < 320, made.tokens // 40, -1)[..., None] == np.arange(8)).sum(1)
  assert np.mean(counts.argmax(1) == made.true_labels) > 0.75


def test_bad_arguments_are_named(encoder):
  config = data.TopicTextConfig
  with pytest.raises(ValueError, match="vocab_size must be at least 322, got 321"):
    config(num_classes=8, vocab_size=321)
  with pytest.raises(ValueError, match=r"class_overlap must lie in \[0, 1\], got 1.5"):
    config(class_overlap=1.5)
  with pytest.raises(ValueError, match="length must be at least 2, got 1"):
    config(length=1, negation_rate=0.1)
  with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
    config(num_classes=1)
  with pytest.raises(ValueError, match=r"labels must lie in \[0, 8\), got 0 to 8"):
    data.sample_topic_text(KEY, CONFIG, np.arange(9))
  with pytest.raises(ValueError, match=r"wrong_rate must lie in \[0, 1\], got -0.1"):
    data.generate_noisy_examples(KEY, CONFIG, num_per_class=1, wrong_rate=-0.1)
  with pytest.raises(ValueError, match="num_per_class must be at least 1, got 0"):
    data.generate_noisy_examples(KEY, CONFIG, num_per_class=0)
  with pytest.raises(ValueError, match=r"tokens must lie in \[0, 512\)"):
    encoder(np.full((1, 2), 512), np.ones((1, 2)))
