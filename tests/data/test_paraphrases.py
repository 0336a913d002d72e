import dataclasses

import jax
import numpy as np
import pytest

from jaxlab import data
from jaxlab.data import ParaphraseConfig

CONFIG = ParaphraseConfig()
CLASS_PROBS = np.asarray(CONFIG.class_probs)
NUM = 4000


def compiled(fn, **options):
  """`fn` as one program, with results that NumPy indexes."""
  jitted = jax.jit(fn, **options)
  return lambda *args, **settings: jax.device_get(jitted(*args, **settings))


paraphrase_batch = compiled(data.paraphrase_batch, static_argnums=(1, 2))
paraphrase_pairs = compiled(
  data.paraphrase_pairs, static_argnums=1, static_argnames=("num_pairs", "chosen_class")
)
response_class = compiled(data.response_class, static_argnums=0)


def texts(config):
  """Class and words of every response, by its tokens."""
  return {
    tuple(row[:n]): kind
    for kind, (rows, lengths) in enumerate(zip(*map(np.asarray, config.responses)))
    for row, n in zip(rows.tolist(), lengths)
  }


@pytest.mark.parametrize(
  "config",
  [CONFIG, ParaphraseConfig(num_classes=2, paraphrases=40, class_words=3, max_length=8, seed=1)],
)
def test_responses_are_different_and_made_of_words_of_their_class(config):
  responses = texts(config)
  assert len(responses) == config.num_classes * config.paraphrases
  first_function_word = 3 + config.num_classes * config.class_words
  lengths = set()
  for tokens, kind in responses.items():
    *words, end = tokens
    half = -(-len(words) // 2)
    lengths.add(len(words))
    assert end == 2 and 2 <= len(words) <= config.max_length
    assert all((w - 3) // config.class_words == kind for w in words[:half])
    assert all(
      first_function_word <= w < config.vocab_size - config.num_prompts for w in words[half:]
    )
  assert lengths == {*range(2, config.max_length + 1)}


def test_configurations_are_fixed_by_their_seed():
  same, other = ParaphraseConfig(), ParaphraseConfig(seed=1)
  assert texts(same) == texts(CONFIG) != texts(other)
  fewer = dataclasses.replace(CONFIG, num_prompts=30)
  assert texts(fewer) == texts(CONFIG)
  np.testing.assert_array_equal(fewer.class_probs, CLASS_PROBS[:30])
  np.testing.assert_allclose(CLASS_PROBS.sum(1), np.ones(40), rtol=1e-6)
  rows = compiled(lambda seed: dataclasses.replace(CONFIG, seed=seed).responses)(1)
  np.testing.assert_array_equal(rows.tokens, other.responses.tokens)


def test_batches_follow_the_configuration():
  batch = paraphrase_batch(jax.random.key(0), CONFIG, NUM)
  assert batch.tokens.shape == (NUM, CONFIG.prompt_length + CONFIG.response_length)
  prompts = batch.tokens[:, 0] - (CONFIG.vocab_size - CONFIG.num_prompts)
  assert prompts.min() == 0 and prompts.max() == CONFIG.num_prompts - 1
  assert np.all(batch.tokens[:, 1] == 1) and np.all(batch.prompt_lengths == 2)
  responses, counts = texts(CONFIG), {}
  for row, mask, kind in zip(batch.tokens, batch.loss_mask, batch.classes):
    text = tuple(row[mask == 1].tolist())
    assert responses[text] == kind and not np.any(row[2 + len(text) :])
    counts[text] = counts.get(text, 0) + 1
  for kind, share in enumerate(CLASS_PROBS.mean(0)):
    assert abs(np.mean(batch.classes == kind) - share) < 4 * np.sqrt(share / NUM)
    own = [counts[text] for text, k in responses.items() if k == kind]
    assert len(own) == 12 and max(own) < 1.6 * np.mean(own)
  # Each prompt has its own classes.
  often = CLASS_PROBS[prompts, batch.classes].mean()
  assert abs(often - np.sum(CLASS_PROBS**2) / 40) < 0.02


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("chosen_class", [None, 0])
def test_pairs_follow_their_settings(fraction, chosen_class):
  pairs = paraphrase_pairs(
    jax.random.key(1),
    CONFIG,
    num_pairs=NUM,
    within_class_fraction=fraction,
    chosen_class=chosen_class,
  )
  responses = texts(CONFIG)
  sides = (
    (pairs.chosen_tokens, pairs.chosen_mask, pairs.chosen_class),
    (pairs.rejected_tokens, pairs.rejected_mask, pairs.rejected_class),
  )
  for tokens, mask, classes in sides:
    found = [responses[tuple(row[m == 1].tolist())] for row, m in zip(tokens, mask)]
    np.testing.assert_array_equal(classes, found)
  np.testing.assert_array_equal(pairs.chosen_tokens[:, :2], pairs.rejected_tokens[:, :2])
  assert np.all(np.any(pairs.chosen_tokens != pairs.rejected_tokens, axis=1))
  within = np.mean(pairs.chosen_class == pairs.rejected_class)
  assert abs(within - fraction) <= 4 * np.sqrt(fraction * (1 - fraction) / NUM)
  if chosen_class is None:
    assert set(pairs.chosen_class) == {0, 1, 2}
  else:
    assert np.all(pairs.chosen_class == chosen_class)
  rejected = pairs.rejected_class[pairs.chosen_class != pairs.rejected_class]
  assert fraction == 1 or set(rejected) >= {1, 2}


def test_responses_are_looked_up_exactly():
  tokens, lengths = (np.asarray(x).reshape(36, -1) for x in CONFIG.responses)
  lengths = lengths[:, 0]
  expected = np.repeat(np.arange(3), 12)
  np.testing.assert_array_equal(response_class(CONFIG, tokens, lengths), expected)
  noise = np.where(np.arange(6) < lengths[:, None], tokens, 7)
  np.testing.assert_array_equal(response_class(CONFIG, noise, lengths), expected)
  # Without an end, with something after the end, empty, and with another word.
  assert np.all(response_class(CONFIG, tokens, lengths - 1) == -1)
  assert np.all(response_class(CONFIG, tokens, lengths + 1) == -1)
  assert np.all(response_class(CONFIG, tokens, lengths * 0) == -1)
  wrong = np.where(np.arange(6) == 0, 21, tokens)
  assert np.all(response_class(CONFIG, wrong, lengths) == -1)


@pytest.mark.parametrize("size", [4, 9])
def test_responses_of_any_length_are_looked_up(size):
  tokens, lengths = (np.asarray(x).reshape(36, -1) for x in CONFIG.responses)
  fits = lengths[:, 0] <= size
  resized = np.pad(tokens, ((0, 0), (0, 3)), constant_values=5)[:, :size]
  expected = np.where(fits, np.repeat(np.arange(3), 12), -1)
  np.testing.assert_array_equal(response_class(CONFIG, resized, lengths[:, 0]), expected)


def test_eager_calls_give_the_same():
  batch = paraphrase_batch(jax.random.key(5), CONFIG, 8)
  for a, b in zip(batch, data.paraphrase_batch(jax.random.key(5), CONFIG, 8)):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("num_prompts", 0),
    ("num_classes", 0),
    ("paraphrases", 0),
    ("class_words", 0),
    ("function_words", 0),
    ("max_length", 1),
  ],
)
def test_bad_settings_raise(name, value):
  with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
    ParaphraseConfig(**{name: value})


def test_errors():
  key = jax.random.key(0)
  small = {"class_words": 1, "function_words": 1, "max_length": 4}
  assert len(texts(ParaphraseConfig(paraphrases=3, **small))) == 9
  with pytest.raises(ValueError, match="the 3 different responses of a class, got 4"):
    ParaphraseConfig(paraphrases=4, **small)
  with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
    data.paraphrase_batch(key, CONFIG, 0)
  with pytest.raises(ValueError, match="num_pairs must be at least 1, got 0"):
    data.paraphrase_pairs(key, CONFIG, num_pairs=0)
  for fraction in (-0.1, 1.5):
    with pytest.raises(ValueError, match=f"within_class_fraction must lie .* got {fraction}"):
      data.paraphrase_pairs(key, CONFIG, num_pairs=2, within_class_fraction=fraction)
  with pytest.raises(ValueError, match=r"chosen_class must lie in \[0, 3\), got 3"):
    data.paraphrase_pairs(key, CONFIG, num_pairs=2, chosen_class=3)
  for name in ("paraphrases", "num_classes"):
    with pytest.raises(ValueError, match=f"{name} must be at least 2 for pairs, got 1"):
      data.paraphrase_pairs(key, ParaphraseConfig(**{name: 1}), num_pairs=2)
  with pytest.raises(ValueError, match="^lengths must have shape"):
    data.response_class(CONFIG, np.zeros((2, 6), int), np.zeros(3, int))
  with pytest.raises(TypeError, match="responses must be of type int"):
    data.response_class(CONFIG, np.zeros((2, 6)), np.zeros(2, int))
