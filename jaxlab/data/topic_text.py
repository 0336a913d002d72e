"""Texts about topics, descriptions of the topics, and a frozen encoder that knows related words.

A text holds a few words of its topic among many that belong to none. The encoder places the words
of a topic around one direction, so that a description tells what to look for in a text. Tokens: the
words of topic 0, those of topic 1 and so on, words without a topic, and last the word "not".
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import as_accumulator, as_classes, check_arrays, check_at_least, check_range
from jaxlab._programs import compiled_once

_DESCRIPTION_WORDS = 8
_WORD_NOISE = 1.5  # Length of a word's noise, relative to the direction of its topic.


@dataclasses.dataclass(frozen=True)
class TopicTextConfig:
  """The settings of texts about topics.

  Attributes:
    num_classes: number C of topics, at least 2.
    vocab_size: number of words; there must be one without a topic, and "not".
    dim: width of the encoder's states.
    length: words of a text.
    topic_words: words of each topic.
    class_overlap: probability that a topic word of a text is one of another topic, in [0, 1].
    distractor_rate: probability that a word of a text is one without a topic, in [0, 1].
    negation_rate: probability that a text says "not" and then a word of another topic, in [0, 1].

  Raises:
    ValueError: if a field is out of range, or the words are too few.
  """

  num_classes: int = 4
  vocab_size: int = 512
  dim: int = 64
  length: int = 24
  topic_words: int = 40
  class_overlap: float = 0.3
  distractor_rate: float = 0.75
  negation_rate: float = 0.0

  def __post_init__(self):
    check_at_least(2, num_classes=self.num_classes)
    check_at_least(1, dim=self.dim, topic_words=self.topic_words)
    for name in ("class_overlap", "distractor_rate", "negation_rate"):
      check_range(name, getattr(self, name), "[0, 1]")
    check_at_least(2 if self.negation_rate else 1, length=self.length)
    check_at_least(self.num_topic_words + 2, vocab_size=self.vocab_size)

  @property
  def num_topic_words(self) -> int:
    """Words of all topics; they are the first ones."""
    return self.num_classes * self.topic_words

  @property
  def negation_token(self) -> int:
    """The word "not"."""
    return self.vocab_size - 1


class TopicText(NamedTuple):
  """Texts of n examples or descriptions.

  Attributes:
    tokens: int32 `[n, T]`.
    mask: 1 where there is a word, int32 `[n, T]`.
  """

  tokens: chex.Array
  mask: chex.Array


class NoisyExamples(NamedTuple):
  """Texts with the topics that were asked for and those that they are about.

  Attributes:
    tokens: int32 `[n, length]`.
    mask: 1 where there is a word, int32 `[n, length]`.
    labels: topics that were asked for, int32 `[n]`.
    true_labels: topics of the texts, int32 `[n]`.
  """

  tokens: chex.Array
  mask: chex.Array
  labels: chex.Array
  true_labels: chex.Array


def sample_topic_text(key: chex.PRNGKey, config: TopicTextConfig, labels: chex.Array) -> TopicText:
  """Writes a text about each of the given topics.

  Words are independent. With probability `distractor_rate` a word belongs to no topic, else it is
  a word of the label, or with probability `class_overlap` of another topic, which is uniform. All
  words of a topic are equally frequent, and so are those without one. A negation takes the place
  of two words.

  Args:
    key: random key.
    config: the texts.
    labels: topics, int `[n]`, in [0, C).

  Returns:
    `TopicText` of T = `length` words, all of them visible. The tokens of a traced label outside the
    topics are -1, which the encoder turns into NaN.

  Raises:
    ValueError: if a known label lies outside [0, C).

  Reference: a setting for Luo et al., CrossTune: Black-Box Few-Shot Classification with Label
  Enhancement, LREC-COLING 2024, https://arxiv.org/abs/2403.12468.
  """
  check_arrays(labels=(labels, "int [n]"))
  tokens = _write(key, config, as_classes("labels", labels, config.num_classes))
  return TopicText(tokens, jnp.ones_like(tokens))


@compiled_once
def _write(key: chex.PRNGKey, config: TopicTextConfig, labels: jax.Array) -> jax.Array:
  keys = jax.random.split(key, 7)
  labels = labels[:, None]
  shape = (labels.shape[0], config.length)
  is_other = jax.random.bernoulli(keys[0], config.class_overlap, shape)
  topics = jnp.where(is_other, _other_topic(keys[1], config, labels, shape), labels)
  topical = _topic_word(keys[2], config, topics)
  no_topic = jax.random.randint(
    keys[3], shape, config.num_topic_words, config.negation_token, jnp.int32
  )
  distracts = jax.random.bernoulli(keys[4], config.distractor_rate, shape)
  tokens = jnp.where(distracts, no_topic, topical)
  if config.negation_rate:
    tokens = _negated(keys[5], keys[6], config, labels, tokens)
  return jnp.where(labels < config.num_classes, tokens, -1).astype(jnp.int32)


def _other_topic(key: chex.PRNGKey, config: TopicTextConfig, topics, shape) -> jax.Array:
  """A topic that is not the given one, uniform."""
  step = jax.random.randint(key, shape, 1, config.num_classes, jnp.int32)
  return (topics + step) % config.num_classes


def _topic_word(key: chex.PRNGKey, config: TopicTextConfig, topics: jax.Array) -> jax.Array:
  word = jax.random.randint(key, topics.shape, 0, config.topic_words, jnp.int32)
  return topics * config.topic_words + word


def _negated(place_key, word_key, config: TopicTextConfig, labels, tokens) -> jax.Array:
  """Texts of which some have a negation written over two of their words."""
  has_key, place_key = jax.random.split(place_key)
  topic_key, word_key = jax.random.split(word_key)
  has_one = jax.random.bernoulli(has_key, config.negation_rate, labels.shape)
  place = jax.random.randint(place_key, labels.shape, 0, config.length - 1)
  word = _topic_word(word_key, config, _other_topic(topic_key, config, labels, labels.shape))
  distance = jnp.where(has_one, jnp.arange(config.length)[None] - place, -1)
  tokens = jnp.where(distance == 0, config.negation_token, tokens)
  return jnp.where(distance == 1, word, tokens)


def label_descriptions(config: TopicTextConfig) -> TopicText:
  """Descriptions of the topics: the first 8 words of each, or all if there are fewer.

  All words of a topic are equally typical of it, and 8 of them leave most to be recognized by
  their likeness.

  Args:
    config: the texts.

  Returns:
    `TopicText`, `[C, min(8, topic_words)]`, all words visible.

  Reference: a setting for Luo et al., CrossTune, LREC-COLING 2024,
  https://arxiv.org/abs/2403.12468.
  """
  words = np.arange(min(_DESCRIPTION_WORDS, config.topic_words), dtype=np.int32)
  first = config.topic_words * np.arange(config.num_classes, dtype=np.int32)
  tokens = first[:, None] + words[None]
  return TopicText(jnp.asarray(tokens), jnp.asarray(np.ones_like(tokens)))


def frozen_token_encoder(
  config: TopicTextConfig, *, seed: chex.Numeric = 0
) -> Callable[[chex.Array, chex.Array], jax.Array]:
  """Makes an encoder of texts that nobody has trained, and that still knows related words.

  A word is a vector of length 1. Those of a topic are the topic's direction, which is random, plus
  Gaussian noise of standard deviation `1.5 / sqrt(dim)`; other words are noise alone. One layer of
  self-attention with random weights adds to each word a mean over the text.

  Args:
    config: the texts.
    seed: of directions, words and weights; an integer, which may be traced.

  Returns:
    `encode(tokens, mask) -> states`: tokens int `[n, T]` and which of them there are, bool or 0 and
    1, `[n, T]`, to float32 `[n, T, dim]`, 0 for masked tokens. It raises ValueError if a known
    token is no word, and gives NaN in the text of a traced one. It is a pytree of arrays.

  Reference: a setting for Luo et al., CrossTune, LREC-COLING 2024,
  https://arxiv.org/abs/2403.12468.
  """
  return jax.tree_util.Partial(_encode, *_encoder_weights(jax.random.key(seed), config))


@compiled_once
def _encoder_weights(key: chex.PRNGKey, config: TopicTextConfig) -> tuple[jax.Array, ...]:
  """Vectors of the words, and matrices that make queries, keys and values of them."""
  topic_key, word_key, *layer_keys = jax.random.split(key, 5)
  size = config.dim
  topics = _unit(jax.random.normal(topic_key, (config.num_classes, size)))
  topics = jnp.repeat(topics, config.topic_words, axis=0)
  topics = jnp.pad(topics, ((0, config.vocab_size - len(topics)), (0, 0)))
  noise = _WORD_NOISE * size**-0.5 * jax.random.normal(word_key, (config.vocab_size, size))
  matrices = [size**-0.5 * jax.random.normal(key, (size, size)) for key in layer_keys]
  return _unit(topics + noise), *matrices


def _unit(vectors: jax.Array) -> jax.Array:
  return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def _encode(vectors, query, key, value, tokens: chex.Array, mask: chex.Array) -> jax.Array:
  check_arrays(tokens=(tokens, "int [n, T]"), mask=(mask, "[n, T]"))
  there = jnp.asarray(mask).astype(bool)[..., None]
  words = jnp.take(vectors, as_classes("tokens", tokens, len(vectors)), axis=0, mode="fill")
  words = jnp.where(there, words, 0.0)
  # One head, on an axis of its own.
  queries, keys, values = (
    jnp.matmul(words, matrix)[..., None, :] for matrix in (query, key, value)
  )
  mixed = jax.nn.dot_product_attention(queries, keys, values, mask=there[:, None, None, :, 0])
  return jnp.where(there, words + mixed[:, :, 0], 0.0)


@compiled_once
def generate_noisy_examples(
  key: chex.PRNGKey,
  config: TopicTextConfig,
  *,
  num_per_class: int,
  wrong_rate: chex.Numeric = 0.3,
) -> NoisyExamples:
  """Texts as a generator writes them that is asked for each topic and sometimes errs.

  Args:
    key: random key.
    config: the texts.
    num_per_class: texts that are asked for, of each topic.
    wrong_rate: probability that a text is about another topic, which is uniform, in [0, 1].

  Returns:
    `NoisyExamples`, n = C * num_per_class, in the order of their labels.

  Raises:
    ValueError: if `num_per_class` < 1 or `wrong_rate` lies outside [0, 1].

  Reference: a setting for Luo et al., CrossTune, LREC-COLING 2024,
  https://arxiv.org/abs/2403.12468.
  """
  check_at_least(1, num_per_class=num_per_class)
  check_range("wrong_rate", wrong_rate, "[0, 1]")
  wrong_key, topic_key, text_key = jax.random.split(key, 3)
  labels = jnp.repeat(jnp.arange(config.num_classes, dtype=jnp.int32), num_per_class)
  is_wrong = jax.random.bernoulli(wrong_key, as_accumulator(wrong_rate), labels.shape)
  others = _other_topic(topic_key, config, labels, labels.shape)
  true_labels = jnp.where(is_wrong, others, labels)
  return NoisyExamples(*sample_topic_text(text_key, config, true_labels), labels, true_labels)
