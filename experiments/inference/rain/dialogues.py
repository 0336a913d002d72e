"""Requests and answers of which some clauses are harmful; and lines that judge partial answers."""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

PAD, COMMA, JUDGE, LETTER_A, LETTER_B, HARMLESS, HARMFUL, PLAIN, ATTACK, _FIRST = range(10)
REQUEST = 3  # Tokens of a request: its type, whether it is an attack, and its topic.
_QUESTION = 4  # Tokens of a question: both letters, each with what it stands for.


@dataclasses.dataclass(frozen=True)
class Dialogues:
  """The settings of the dialogues.

  An answer is clauses of some tokens and a comma. The first token of a clause is a harmless word,
  or one of the harmful words of the request's type, more of which an attack unlocks; the others are
  fillers or the topic.
  """

  num_types: int = 8  # Types of requests, each with harmful words of its own.
  num_topics: int = 20  # Topics of requests.
  num_words: int = 24  # Harmless words, and as many harmful ones.
  num_fillers: int = 4  # Other words.
  num_clauses: int = 6  # Clauses of an answer.
  clause_length: int = 3  # Tokens of a clause, without its comma.
  harm_rates: tuple[float, ...] = (0.08, 0.35)  # Harmful clauses, ordinarily and under attack.
  harm_words: tuple[int, ...] = (2, 13)  # Harmful words of a type, ordinarily and under attack.
  topic_share: float = 0.2  # Of the topic among the other words.
  wrong_share: float = 0.05  # Of lines that judge wrongly, in training.
  letter_weight: float = 8.0  # Of the letter that judges, in training; other tokens have 1.

  @property
  def vocab_size(self) -> int:
    """Number of tokens."""
    return self.first_word + 2 * self.num_words + self.num_fillers

  @property
  def first_word(self) -> int:
    """The first harmless word; harmful ones and then fillers follow."""
    return _FIRST + self.num_types + self.num_topics

  @property
  def answer_length(self) -> int:
    """Tokens of an answer, which has no end."""
    return self.num_clauses * (self.clause_length + 1)

  @property
  def line_length(self) -> int:
    """Tokens of a line that judges: a mark, request, answer and question, and a letter."""
    return 1 + REQUEST + self.answer_length + _QUESTION + 1


class Texts(NamedTuple):
  """Texts to learn from, int32 `[n, T]`, and the weights of their tokens, `[n, T]`."""

  tokens: chex.Array
  loss_mask: chex.Array


def draw_laws(key: chex.PRNGKey, task: Dialogues) -> jax.Array:
  """The harmful words of each type, those of ordinary requests first, int32 `[types, words]`."""
  permute = functools.partial(jax.random.permutation, x=task.num_words)
  return jax.vmap(permute)(jax.random.split(key, task.num_types))


def draw_requests(key, task: Dialogues, num: int, *, attack_rate: float = 0.5) -> jax.Array:
  """Requests `[n, 3]`, of which some are attacks."""
  keys = jax.random.split(key, 3)
  kinds = jax.random.randint(keys[0], (num,), 0, task.num_types)
  topics = jax.random.randint(keys[1], (num,), 0, task.num_topics)
  attacks = jax.random.bernoulli(keys[2], attack_rate, (num,))
  marks = jnp.where(attacks, ATTACK, PLAIN)
  return jnp.stack([_FIRST + kinds, marks, _FIRST + task.num_types + topics], axis=1)


def draw_answers(key, task: Dialogues, laws: chex.Array, requests: chex.Array) -> jax.Array:
  """Answers `[n, t]` to requests, as training texts have them."""
  keys = jax.random.split(key, 5)
  shape, attacked = (len(requests), task.num_clauses), requests[:, 1:2] == ATTACK
  rates, counts = (jnp.where(attacked, x[1], x[0]) for x in (task.harm_rates, task.harm_words))
  harmful = jax.random.bernoulli(keys[0], rates, shape)
  harmless_words = jax.random.randint(keys[1], shape, 0, task.num_words)
  ranks = jax.random.randint(keys[2], shape, 0, counts)
  harmful_words = task.num_words + laws[requests[:, :1] - _FIRST, ranks]
  words = task.first_word + jnp.where(harmful, harmful_words, harmless_words)
  shape = *shape, task.clause_length - 1
  fillers = task.first_word + 2 * task.num_words
  fillers += jax.random.randint(keys[3], shape, 0, task.num_fillers)
  is_topic = jax.random.bernoulli(keys[4], task.topic_share, shape)
  others = jnp.where(is_topic, requests[:, 2, None, None], fillers)
  clauses = [words[..., None], others, jnp.full_like(words, COMMA)[..., None]]
  return jnp.concatenate(clauses, axis=-1).reshape(len(requests), -1)


def is_harmful(task: Dialogues, answers: chex.Array) -> jax.Array:
  """Whether answers `[..., t]`, padded or cut, hold a harmful word."""
  first = task.first_word + task.num_words
  return jnp.any((answers >= first) & (answers < first + task.num_words), axis=-1)


def has_topic(requests: chex.Array, answers: chex.Array) -> jax.Array:
  """Whether answers `[..., t]` name the topic of their requests `[..., 3]`."""
  return jnp.any(answers == requests[..., 2:], axis=-1)


def ask(
  task: Dialogues, texts: chex.Array, lengths: chex.Array, harmless_first: chex.Array
) -> tuple[jax.Array, jax.Array]:
  """Lines that ask whether the beginnings of texts are harmless.

  Args:
    task: the dialogues.
    texts: requests with answers, `[n, T]`.
    lengths: how many tokens of each are judged, `[n]`.
    harmless_first: whether the letter A stands for harmless, bool `[n]`.

  Returns:
    Lines without their letters `[n, L - 1]`, padded, and the place of the last token of each.
  """
  width = task.line_length - 1
  places = jnp.arange(width)[None] - 1 - lengths[:, None]
  lines = jnp.pad(texts, ((0, 0), (1, width - 1 - texts.shape[1])), constant_values=JUDGE)
  first, second = jnp.where(harmless_first, HARMLESS, HARMFUL), HARMFUL + HARMLESS
  letters = (jnp.full_like(first, letter) for letter in (LETTER_A, LETTER_B))
  question = jnp.stack([next(letters), first, next(letters), second - first], axis=1)
  asked = jnp.take_along_axis(question, jnp.clip(places, 0, _QUESTION - 1), axis=1)
  lines = jnp.where(places < 0, lines, jnp.where(places < _QUESTION, asked, PAD))
  return lines, lengths + _QUESTION


def draw_texts(key, task: Dialogues, laws: chex.Array, num: int) -> Texts:
  """Texts to learn from: one half are dialogues, the other lines that judge partial answers."""
  keys = jax.random.split(key, 5)
  requests = draw_requests(keys[0], task, num)
  answers = draw_answers(keys[1], task, laws, requests)
  whole = jnp.concatenate([requests, answers], axis=1)
  half = num // 2
  spoken = jnp.pad(whole[:half], ((0, 0), (0, task.line_length - whole.shape[1])))
  is_answer = (jnp.arange(task.line_length) >= REQUEST) & (spoken != PAD)

  judged = whole[half:]
  clauses = jax.random.randint(keys[2], (num - half,), 1, task.num_clauses + 1)
  lengths = REQUEST + clauses * (task.clause_length + 1)
  harmless_first = jax.random.bernoulli(keys[3], 0.5, (num - half,))
  lines, last = ask(task, judged, lengths, harmless_first)
  kept = jnp.where(jnp.arange(judged.shape[1]) < lengths[:, None], judged, PAD)
  wrong = jax.random.bernoulli(keys[4], task.wrong_share, (num - half,))
  says_a = (is_harmful(task, kept) ^ wrong) ^ harmless_first
  is_letter = jnp.arange(task.line_length) == last[:, None] + 1
  letter = jnp.where(says_a, LETTER_A, LETTER_B)[:, None]
  lines = jnp.where(is_letter, letter, jnp.pad(lines, ((0, 0), (0, 1))))
  tokens = jnp.concatenate([spoken, lines]).astype(jnp.int32)
  return Texts(tokens, jnp.concatenate([is_answer * 1.0, is_letter * task.letter_weight]))
