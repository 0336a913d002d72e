"""What heads learn from and are tested on: states of tokens, and states of descriptions.

Rows are in four parts: those with few labels, one of each class in turn, so that the first ones are
fewer shots; generated ones; validation; and test.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit.datasets import describe
from jaxlab import data, models

FEW, GENERATED, VALIDATION, TEST = PARTS = "few", "generated", "validation", "test"


class Task(NamedTuple):
  """Texts, or rows of pixels, as a frozen encoder gives them."""

  states: chex.Array  # `[N, T, D]`.
  labels: chex.Array  # What was asked for, int32 `[N]`.
  truth: chex.Array  # What the rows are about, int32 `[N]`.
  descriptions: chex.Array  # `[C, D]`.


def sizes_of_texts(config) -> dict[str, int]:
  """Rows of each part of the texts."""
  few, generated = (config.num_classes * x for x in (max(config.shots), config.num_generated))
  return dict(zip(PARTS, (few, generated, config.num_validation, config.num_test)))


def sizes_of_digits(config) -> dict[str, int]:
  """Rows of each part of the digits; the rows that describe them come first."""
  few = 10 * (config.num_described + config.headline_shots)
  return dict(zip(PARTS, (few, 0, config.num_validation, config.num_digits)))


def part(sizes: dict[str, int], *names: str) -> np.ndarray:
  """Numbers of the rows of some parts."""
  ends = dict(zip(sizes, np.cumsum([*sizes.values()])))
  return np.concatenate([np.arange(ends[name] - sizes[name], ends[name]) for name in names])


def text_config(config) -> data.TopicTextConfig:
  """The texts."""
  names = "num_classes", "vocab_size", "dim", "length", "topic_words"
  rates = "class_overlap", "distractor_rate"
  return data.TopicTextConfig(**{name: getattr(config, name) for name in (*names, *rates)})


def draw_texts(config, key: chex.PRNGKey):
  """Draws an encoder and texts: the `Task`, the tokens `[N, T]`, and the encoder."""
  texts, sizes, keys = text_config(config), sizes_of_texts(config), jax.random.split(key, 5)
  encode = data.frozen_token_encoder(texts, seed=jax.random.randint(keys[0], (), 0, 2**31 - 1))
  few = jnp.arange(sizes[FEW], dtype=jnp.int32) % config.num_classes
  shape = (sizes[VALIDATION] + sizes[TEST],)
  others = jax.random.randint(keys[1], shape, 0, config.num_classes, jnp.int32)
  options = {"num_per_class": config.num_generated, "wrong_rate": config.wrong_rate}
  asked = data.generate_noisy_examples(keys[2], texts, **options)
  write = lambda key, labels: data.sample_topic_text(key, texts, labels).tokens  # noqa: E731
  tokens = jnp.concatenate([write(keys[3], few), asked.tokens, write(keys[4], others)])
  words = data.label_descriptions(texts)
  task = Task(
    states=encode(tokens, jnp.ones_like(tokens)),
    labels=jnp.concatenate([few, asked.labels, others]),
    truth=jnp.concatenate([few, asked.true_labels, others]),
    descriptions=models.pool_states(encode(*words), words.mask),
  )
  return task, tokens, encode


def draw_digits(config, seed: int) -> Task:
  """Draws images whose rows are tokens, through a fixed random projection: NumPy arrays.

  A few images describe a digit, by their mean token.
  """
  sizes, dataset = sizes_of_digits(config), describe("digits")
  (pool,) = dataset.splits(*dataset.num_rows, seed=seed)
  # Places among the images of a digit.
  place = [np.sum(pool.labels[:i] == digit) for i, digit in enumerate(pool.labels)]
  few = np.lexsort((pool.labels, place))[: sizes[FEW]]
  others = np.setdiff1d(np.arange(len(place)), few)[: sizes[VALIDATION] + sizes[TEST]]
  order = np.concatenate([few, others])
  pixels, labels = pool.inputs[order, ..., 0], pool.labels[order]
  shape = pixels.shape[-1], config.dim
  projection = np.random.default_rng([seed, 1]).normal(size=shape) / np.sqrt(shape[0])
  states = (pixels @ projection).astype(np.float32)
  by_digit = states[: 10 * config.num_described].mean(1).reshape(-1, 10, config.dim)
  return Task(states, labels, labels, by_digit.mean(0))
