"""Restaurant reviews from a known causal model, with the true counterfactual of every text.

A restaurant's type decides how likely its concepts are praised or criticized, and the food decides
on the service too; concepts and exogenous noise decide text and label. An intervention changes one
concept and leaves the others and the noise.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxlab._checks import check_arrays, check_at_least, check_range
from jaxlab._programs import compiled_once

REVIEW_CONCEPTS = ("food", "service", "ambiance", "noise")
_NUM_CONCEPTS, _NUM_VALUES, _NUM_TYPES = len(REVIEW_CONCEPTS), 3, 5
_NUM_PARAPHRASES, _NUM_FILLERS, _NUM_PHRASES = 4, 8, 3
# How `exogenous` is put together, the fastest digit first: type of the restaurant, a paraphrase for
# each concept, three filler phrases, and one of equally likely levels of noise in the label.
_NUM_LEVELS = 1024
_RADICES = (
  _NUM_TYPES,
  *(_NUM_PARAPHRASES,) * _NUM_CONCEPTS,
  *(_NUM_FILLERS,) * _NUM_PHRASES,
  _NUM_LEVELS,
)
# Probabilities of negative, unknown and positive for each type and concept.
_VALUE_PROBS = np.array(
  [
    [(0.15, 0.20, 0.65), (0.20, 0.30, 0.50), (0.30, 0.40, 0.30), (0.50, 0.30, 0.20)],
    [(0.60, 0.20, 0.20), (0.40, 0.30, 0.30), (0.20, 0.30, 0.50), (0.30, 0.40, 0.30)],
    [(0.30, 0.20, 0.50), (0.50, 0.30, 0.20), (0.50, 0.30, 0.20), (0.20, 0.30, 0.50)],
    [(0.45, 0.30, 0.25), (0.20, 0.30, 0.50), (0.30, 0.20, 0.50), (0.20, 0.40, 0.40)],
    [(0.25, 0.30, 0.45), (0.30, 0.40, 0.30), (0.40, 0.40, 0.20), (0.60, 0.20, 0.20)],
  ],
  np.float32,
)
_SERVICE_FOLLOWS_FOOD = 0.5
_CONCEPT_WEIGHTS = (1.0, 0.8, 0.5, 0.3)
_LABEL_NOISE = 0.3
_LABEL_BORDERS = (-1.2, -0.4, 0.4, 1.2)
# Order of the sentences in reviews of each type of restaurant.
_ORDERS = np.array([(0, 1, 2, 3), (2, 0, 3, 1), (1, 3, 0, 2), (3, 2, 1, 0), (1, 0, 2, 3)])
# Tokens: 0 padding, 1 start, 2 end, 3 full stop, then words by kind.
_START, _END, _STOP = 1, 2, 3
_VERB = 4
_COMMON = _VERB + _NUM_PARAPHRASES
_NOUN = _COMMON + _NUM_FILLERS
_TYPE = _NOUN + 2 * _NUM_CONCEPTS
_ADJECTIVE = _TYPE + _NUM_PARAPHRASES * _NUM_TYPES
REVIEW_VOCAB_SIZE = _ADJECTIVE + _NUM_CONCEPTS * _NUM_VALUES * _NUM_PARAPHRASES


class ReviewBatch(NamedTuple):
  """Reviews and what they were made from.

  Attributes:
    tokens: int32 `[n, 32]`, below `REVIEW_VOCAB_SIZE`.
    concepts: food, service, ambiance and noise, int32 `[n, 4]`: 0 negative, 1 unknown (not
      mentioned), 2 positive.
    exogenous: all noise behind text and label, int32 `[n]`; the type of the restaurant is its
      remainder by 5.
    label: rating, int32 `[n]`, 0 to 4.
  """

  tokens: chex.Array
  concepts: chex.Array
  exogenous: chex.Array
  label: chex.Array


@compiled_once
def sample_reviews(key: chex.PRNGKey, *, num_samples: int) -> ReviewBatch:
  """Draws reviews.

  Types of restaurants are uniform. Concepts depend on the type; in half of the reviews the service
  is rated as the food. The rating is a noisy weighted sum of the concepts in five levels.

  Args:
    key: random key.
    num_samples: number n of reviews.

  Returns:
    A `ReviewBatch`.

  Raises:
    ValueError: if `num_samples` is not positive.

  Reference: a setting in the manner of Abraham et al., CEBaB, NeurIPS 2022,
  https://arxiv.org/abs/2205.14140, for Gat et al., ICLR 2024, https://arxiv.org/abs/2310.00603.
  """
  check_at_least(1, num_samples=num_samples)
  noise_key, value_key, follow_key = jax.random.split(key, 3)
  exogenous = jax.random.randint(noise_key, (num_samples,), 0, math.prod(_RADICES), jnp.int32)
  log_probs = jnp.log(jnp.asarray(_VALUE_PROBS))[exogenous % _NUM_TYPES]
  concepts = jax.random.categorical(value_key, log_probs).astype(jnp.int32)
  follows = jax.random.bernoulli(follow_key, _SERVICE_FOLLOWS_FOOD, (num_samples,))
  service = jnp.where(follows, concepts[:, 0], concepts[:, 1])
  return _write(concepts.at[:, 1].set(service), exogenous)


def intervene_reviews(
  reviews: ReviewBatch, *, concept: chex.Numeric, value: chex.Numeric
) -> ReviewBatch:
  """The true counterfactuals of reviews: one concept changed, everything else as it was.

  Args:
    reviews: what `sample_reviews` gives; tokens and labels are not read.
    concept: index of the concept, an integer or int `[n]`, in [0, 3].
    value: its new value, an integer or int `[n]`, in [0, 2].

  Returns:
    The `ReviewBatch` of the same noise; the current value gives the same review. Concepts and
    values of a JAX array that lie outside are clipped.

  Raises:
    ValueError: if a known concept or value lies outside its range, or shapes differ.

  Reference: Abraham et al., CEBaB, NeurIPS 2022, https://arxiv.org/abs/2205.14140: the effect of a
  concept with the others held.
  """
  concepts, exogenous, concept, value = _checked(reviews, concept, value)
  return _intervene(concepts, exogenous, concept, value)


def noisy_review_edit(
  key: chex.PRNGKey,
  reviews: ReviewBatch,
  *,
  concept: chex.Numeric,
  value: chex.Numeric,
  error_rate: chex.Numeric = 0.1,
) -> ReviewBatch:
  """Counterfactuals as an imperfect writer makes them.

  With probability `error_rate` an edit is wrong: half of the wrong edits leave the concept as it
  is, the others change another one, drawn with its new value, as well.

  Args:
    key: random key.
    reviews, concept, value: as in `intervene_reviews`.
    error_rate: probability that an edit is wrong, in [0, 1].

  Returns:
    The edited `ReviewBatch`, of the same noise; `concepts` are those that the text shows.

  Raises:
    ValueError: if `error_rate` lies outside [0, 1], a known concept or value lies outside its
      range, or shapes differ.

  Reference: a setting for Gat et al., Faithful Explanations of Black-box NLP Models Using
  LLM-generated Counterfactuals, ICLR 2024, https://arxiv.org/abs/2310.00603.
  """
  check_range("error_rate", error_rate, "[0, 1]")
  concepts, exogenous, concept, value = _checked(reviews, concept, value)
  return _noisy_edit(key, concepts, exogenous, concept, value, error_rate)


def _checked(reviews: ReviewBatch, concept, value) -> tuple[jax.Array, ...]:
  """Concepts, noise, and the intervention on each row."""
  check_arrays(
    **{
      "reviews.concepts": (reviews.concepts, f"int [n, {_NUM_CONCEPTS}]"),
      "reviews.exogenous": (reviews.exogenous, "int [n]"),
    }
  )
  rows = np.shape(reviews.exogenous)
  given = {"concept": (concept, _NUM_CONCEPTS - 1), "value": (value, _NUM_VALUES - 1)}
  chosen = []
  for name, (x, largest) in given.items():
    check_arrays(**{name: (x, f"int [{rows[0]}]" if np.ndim(x) else "int []")})
    check_range(name, x, f"[0, {largest}]")
    x = jnp.clip(jnp.asarray(x).astype(jnp.int32), 0, largest)
    chosen.append(jnp.broadcast_to(x, rows))
  state = (jnp.asarray(x).astype(jnp.int32) for x in (reviews.concepts, reviews.exogenous))
  return *state, *chosen


@jax.jit
def _intervene(concepts, exogenous, concept, value) -> ReviewBatch:
  return _write(_with_value(concepts, concept, value), exogenous)


@jax.jit
def _noisy_edit(key, concepts, exogenous, concept, value, error_rate) -> ReviewBatch:
  error_key, kind_key, other_key, shift_key = jax.random.split(key, 4)
  rows = exogenous.shape
  wrong = jax.random.uniform(error_key, rows) < error_rate
  unchanged = wrong & jax.random.bernoulli(kind_key, 0.5, rows)
  other = (concept + jax.random.randint(other_key, rows, 1, _NUM_CONCEPTS)) % _NUM_CONCEPTS
  shift = jax.random.randint(shift_key, rows, 1, _NUM_VALUES)
  current = jnp.take_along_axis(concepts, other[:, None], axis=1)[:, 0]
  edited = _with_value(concepts, concept, value)
  both = _with_value(edited, other, (current + shift) % _NUM_VALUES)
  edited = jnp.where(wrong[:, None], both, edited)
  return _write(jnp.where(unchanged[:, None], concepts, edited), exogenous)


def _with_value(concepts: jax.Array, concept: jax.Array, value: jax.Array) -> jax.Array:
  is_chosen = jnp.arange(_NUM_CONCEPTS)[None] == concept[:, None]
  return jnp.where(is_chosen, value[:, None], concepts)


def _write(concepts: jax.Array, exogenous: jax.Array) -> ReviewBatch:
  """Texts and labels of concepts and noise."""
  digits, rest = [], exogenous
  for radix in _RADICES:
    digits.append(rest % radix)
    rest = rest // radix
  kind, level = digits[0], digits[-1]
  paraphrases = jnp.stack(digits[1 : 1 + _NUM_CONCEPTS], axis=1)
  opening, closing, both = digits[1 + _NUM_CONCEPTS : -1]
  index = jnp.arange(_NUM_CONCEPTS)[None]
  type_word = _TYPE + _NUM_PARAPHRASES * kind
  adjective = _ADJECTIVE + (index * _NUM_VALUES + concepts) * _NUM_PARAPHRASES + paraphrases
  stop = jnp.full_like(concepts, _STOP)
  about = [
    _NOUN + 2 * index + paraphrases % 2,
    _VERB + paraphrases,
    _COMMON + (paraphrases + index) % _NUM_FILLERS,
    adjective,
    stop,
  ]
  # What a review says in place of a sentence about a concept that it does not mention.
  instead = [
    type_word[:, None] + paraphrases,
    _VERB + paraphrases,
    _COMMON + (paraphrases + index) % _NUM_FILLERS,
    _COMMON + (2 * paraphrases + 1) % _NUM_FILLERS,
    stop,
  ]
  sentences = jnp.where((concepts == 1)[..., None], jnp.stack(instead, -1), jnp.stack(about, -1))
  order = jnp.asarray(_ORDERS)[kind]
  sentences = jnp.take_along_axis(sentences, order[..., None], axis=1)

  def filler(first):
    words = (
      type_word + first % _NUM_PARAPHRASES,
      _COMMON + first,
      _VERB + first // 2,
      _COMMON + both,
      jnp.full_like(first, _STOP),
    )
    return jnp.stack(words, axis=1)

  rows = len(concepts)
  start, end = (jnp.full((rows, 1), token, jnp.int32) for token in (_START, _END))
  body = sentences.reshape(rows, -1)
  tokens = jnp.concatenate([start, filler(opening), body, filler(closing), end], axis=1)
  score = jnp.sum(jnp.asarray(_CONCEPT_WEIGHTS)[None] * (concepts - 1), axis=1)
  noise = jax.scipy.special.ndtri((level + 0.5) / _NUM_LEVELS)
  above = (score + _LABEL_NOISE * noise)[:, None] > jnp.asarray(_LABEL_BORDERS)[None]
  label = jnp.sum(above, axis=1, dtype=jnp.int32)
  return ReviewBatch(tokens.astype(jnp.int32), concepts, exogenous, label)
