"""Questions about pictures that assume something true or something false, with right answers.

Every question has a twin about the same picture that differs in one word: what it assumes holds in
one of the two and not in the other.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays, check_choice
from jaxlab._programs import compiled_once
from jaxlab.data.grid_scenes import (
  GRID_SIDE,
  SCENE_BACKGROUNDS,
  SCENE_COLORS,
  SCENE_SHAPES,
  SceneBatch,
)
from jaxlab.metrics.false_premises import ANSWER_END_TOKEN, BLANK_TOKEN, NO_SUCH_TOKEN

CATEGORIES = ("count", "non-existent object", "attribute", "scene", "spatial", "confusion")
_NUMBERS = ("one", "two", "three")
_ROWS = ("top row", "middle row", "bottom row")
_CELLS = tuple(f"cell {i}" for i in range(1, GRID_SIDE**2 + 1))
# Side by side the opposites.
_RELATIONS = ("left of", "right of", "above", "below")
_FUNCTION_WORDS = ("the", "of", "in", "first", "color", "row", "place", "real", "?")
_THINK_TWICE = ("beware:", "this", "may", "be", "false")
# "verify" and the last words occur in no question; they are for prefixes of other kinds.
_OTHER_WORDS = ("verify", "now", "here", "comes", "next")
PROMPT_WORDS = (
  *("pad", "end", "no such", "check", "holds", "does not"),
  *(*SCENE_SHAPES, *SCENE_COLORS, *SCENE_BACKGROUNDS, *_NUMBERS, *_ROWS, *_CELLS, *_RELATIONS),
  *(*_FUNCTION_WORDS, *_THINK_TWICE, *_OTHER_WORDS),
)
_WIDTH = 9


class PromptBatch(NamedTuple):
  """Questions with their right answers.

  Attributes:
    tokens: questions, padded on the right with 0, int32 `[b, T]`.
    answer_tokens: one word and the end; where the premise is false `no such`, the false word and
      the end; int32 `[b, 3]`.
    premise_holds: whether the picture agrees with what the question assumes, bool `[b]`.
    category: index into `CATEGORIES`, int32 `[b]`.
    valid: whether the picture admits such a question, bool `[b]`; the rest of a row that is not
      valid means nothing.
  """

  tokens: chex.Array
  answer_tokens: chex.Array
  premise_holds: chex.Array
  category: chex.Array
  valid: chex.Array


class _Question(NamedTuple):
  """A question: its words, and the place that differs in its twin, with the word there."""

  words: list
  place: int
  false_word: jax.Array
  answer: jax.Array
  valid: jax.Array


class _Facts(NamedTuple):
  """What there is in pictures; things on posters do not count.

  Attributes:
    is_real: whether a cell holds an object of a shape, bool `[b, 9, shapes]`.
    counts: objects of each shape, `[b, shapes]`.
    cells: first cell with each shape, `[b, shapes]`.
    colors: color of the object there, `[b, shapes]`.
    on_poster: whether a poster shows the shape, bool `[b, shapes]`.
    shown: whether an object or a poster has a shape and a color, bool `[b, shapes, colors]`.
    background: `[b]`.
  """

  is_real: jax.Array
  counts: jax.Array
  cells: jax.Array
  colors: jax.Array
  on_poster: jax.Array
  shown: jax.Array
  background: jax.Array


@compiled_once
def make_prompts(
  key: chex.PRNGKey, scenes: SceneBatch, *, category: int | None, deceptive: bool
) -> PromptBatch:
  """Asks one question about each picture.

  The categories and their premises: a number of objects, that an object is there, its color, the
  background, the side on which another object is, and that an object is more than a picture on a
  poster. An object that a question names is the only one of its shape outside posters.

  Args:
    key: random key. The same key with the other `deceptive` gives the twins.
    scenes: what `sample_grid_scenes` gives; the images are not read.
    category: index into `CATEGORIES`; None draws one per row, evenly among those that the picture
      admits.
    deceptive: whether the premises are false.

  Returns:
    A `PromptBatch`; the word of each token is in `PROMPT_WORDS`. Whether a row is valid does not
    depend on `deceptive`.

  Raises:
    ValueError: if `category` is not one of the six, or shapes differ.

  Reference: a setting in the manner of Qian et al., How Easy is It to Fool Your Multimodal LLMs?,
  2024, section 3, https://arxiv.org/abs/2402.13220.
  """
  check_choice("category", category, (None, *range(len(CATEGORIES))))
  check_arrays(
    **{
      "scenes.shapes": (scenes.shapes, f"int [b, {GRID_SIDE**2}]"),
      "scenes.colors": (scenes.colors, f"int [b, {GRID_SIDE**2}]"),
      "scenes.framed": (scenes.framed, f"bool [b, {GRID_SIDE**2}]"),
      "scenes.background": (scenes.background, "int [b]"),
    }
  )
  facts = _facts(scenes)
  key, choice_key = jax.random.split(key)
  wanted = range(len(CATEGORIES)) if category is None else (category,)
  kinds = []
  for i in wanted:
    question = _QUESTIONS[i](jax.random.fold_in(key, i), facts)
    kinds.append((*_written(question, deceptive), question.valid))
  tokens, answers, valid = (jnp.stack(x, axis=1) for x in zip(*kinds))
  kind, any_valid = _pick(choice_key, valid)
  chosen = kind[:, None, None]
  return PromptBatch(
    jnp.take_along_axis(tokens, chosen, axis=1)[:, 0],
    jnp.take_along_axis(answers, chosen, axis=1)[:, 0],
    jnp.full_like(any_valid, not deceptive),
    kind if category is None else jnp.full_like(kind, category),
    any_valid,
  )


def add_think_twice(tokens: chex.Array) -> jax.Array:
  """Puts a warning before prompts: what they assume may be false and is to be checked first.

  Args:
    tokens: prompts of `make_prompts`, padded on the right, int `[b, T]`.

  Returns:
    The prompts behind the five words of the warning, int32 `[b, T + 5]`.

  Raises:
    TypeError: if the tokens are no integers.

  Reference: Qian et al., How Easy is It to Fool Your Multimodal LLMs?, 2024, section 5,
  https://arxiv.org/abs/2402.13220.
  """
  check_arrays(tokens=(tokens, "int [b, T]"))
  tokens = jnp.asarray(tokens, jnp.int32)
  prefix = jnp.array([_ID[word] for word in _THINK_TWICE], jnp.int32)
  prefix = jnp.broadcast_to(prefix[None], (len(tokens), len(prefix)))
  return jnp.concatenate([prefix, tokens], axis=1)


def _facts(scenes: SceneBatch) -> _Facts:
  shapes, colors, background = (
    jnp.asarray(x).astype(jnp.int32) for x in (scenes.shapes, scenes.colors, scenes.background)
  )
  framed = jnp.asarray(scenes.framed)[..., None]
  is_shape = shapes[..., None] == jnp.arange(len(SCENE_SHAPES))[None, None]
  is_color = colors[..., None] == jnp.arange(len(SCENE_COLORS))[None, None]
  is_real = is_shape & ~framed
  cells = jnp.argmax(is_real, axis=1).astype(jnp.int32)
  return _Facts(
    is_real,
    jnp.sum(is_real, axis=1, dtype=jnp.int32),
    cells,
    jnp.take_along_axis(colors, cells, axis=1),
    jnp.any(is_shape & framed, axis=1),
    jnp.any(is_shape[..., None] & is_color[:, :, None], axis=1),
    background,
  )


def _count(key: chex.PRNGKey, facts: _Facts) -> _Question:
  """In which row is the first of the N objects of a shape?"""
  keys = jax.random.split(key, 3)
  numbers = jnp.arange(len(_NUMBERS))[None]
  # Numbers first: most counts are 1.
  has_count = facts.counts[..., None] == 1 + numbers[:, None]
  number, valid = _pick(keys[0], jnp.any(has_count, axis=1))
  shape, _ = _pick(keys[1], facts.counts == 1 + number[:, None])
  wrong, _ = _pick(keys[2], numbers != number[:, None])
  row = _at(facts.cells, shape) // GRID_SIDE
  words = ["row", "of", "the", "first", "of", "the", _NUMBER + number, _SHAPE + shape, "?"]
  return _Question(words, 6, _NUMBER + wrong, _ROW + row, valid)


def _existence(key: chex.PRNGKey, facts: _Facts) -> _Question:
  """What color has an object? No poster shows the one that is not there either."""
  absent = (facts.counts == 0) & ~facts.on_poster
  return _color_question(key, facts, absent, ["color", "of", "the"])


def _confusion(key: chex.PRNGKey, facts: _Facts) -> _Question:
  """What color has a real object? The one that is not there is on a poster."""
  only_on_poster = (facts.counts == 0) & facts.on_poster
  return _color_question(key, facts, only_on_poster, ["color", "of", "the", "real"])


def _color_question(key, facts: _Facts, absent: jax.Array, start: list) -> _Question:
  shape_key, false_key = jax.random.split(key)
  shape, valid = _pick(shape_key, facts.counts == 1)
  false, has_false = _pick(false_key, absent)
  color = _at(facts.colors, shape)
  words = [*start, _SHAPE + shape, "?"]
  return _Question(words, len(start), _SHAPE + false, _COLOR + color, valid & has_false)


def _attribute(key: chex.PRNGKey, facts: _Facts) -> _Question:
  """Where is the object of a color and a shape?"""
  shape_key, false_key = jax.random.split(key)
  shape, valid = _pick(shape_key, facts.counts == 1)
  shown = jnp.take_along_axis(facts.shown, shape[:, None, None], axis=1)[:, 0]
  false, has_false = _pick(false_key, ~shown)
  words = ["place", "of", "the", _COLOR + _at(facts.colors, shape), _SHAPE + shape, "?"]
  return _Question(words, 3, _COLOR + false, _CELL + _at(facts.cells, shape), valid & has_false)


def _background(key: chex.PRNGKey, facts: _Facts) -> _Question:
  """What color has the object on a background?"""
  shape_key, false_key = jax.random.split(key)
  shape, valid = _pick(shape_key, facts.counts == 1)
  others = jnp.arange(len(SCENE_BACKGROUNDS))[None] != facts.background[:, None]
  false, _ = _pick(false_key, others)
  place = _BACKGROUND + facts.background
  words = ["color", "of", "the", _SHAPE + shape, "in", "the", place, "?"]
  color = _at(facts.colors, shape)
  return _Question(words, 6, _BACKGROUND + false, _COLOR + color, valid)


def _spatial(key: chex.PRNGKey, facts: _Facts) -> _Question:
  """What color has the object on one side of another?"""
  num_shapes = len(SCENE_SHAPES)
  unique = facts.counts == 1
  row, column = facts.cells // GRID_SIDE, facts.cells % GRID_SIDE
  # Relations of an object (second axis) to another (third axis).
  column_gap, row_gap = (x[:, :, None] - x[:, None] for x in (column, row))
  holds = jnp.stack([column_gap < 0, column_gap > 0, row_gap < 0, row_gap > 0], axis=-1)
  holds &= (unique[:, :, None] & unique[:, None])[..., None]
  chosen, valid = _pick(key, holds.reshape(len(unique), -1))
  pair, relation = chosen // len(_RELATIONS), chosen % len(_RELATIONS)
  shape, other = pair // num_shapes, pair % num_shapes
  words = ["color", "of", "the", _SHAPE + shape, _RELATION + relation, "the", _SHAPE + other, "?"]
  opposite = _RELATION + (relation ^ 1)
  return _Question(words, 4, opposite, _COLOR + _at(facts.colors, shape), valid)


_QUESTIONS = (_count, _existence, _attribute, _background, _spatial, _confusion)
_ID = {word: i for i, word in enumerate(PROMPT_WORDS)}
_SHAPE, _COLOR, _BACKGROUND, _NUMBER, _ROW, _CELL, _RELATION = (
  _ID[words[0]]
  for words in (SCENE_SHAPES, SCENE_COLORS, SCENE_BACKGROUNDS, _NUMBERS, _ROWS, _CELLS, _RELATIONS)
)


def _pick(key: chex.PRNGKey, allowed: jax.Array) -> tuple[jax.Array, jax.Array]:
  """A uniform choice among what is allowed in each row `[b, n]`, and whether anything is."""
  draws = jnp.where(allowed, jax.random.uniform(key, allowed.shape), -1.0)
  return jnp.argmax(draws, axis=1).astype(jnp.int32), jnp.any(allowed, axis=1)


def _at(values: jax.Array, index: jax.Array) -> jax.Array:
  """The entry of each row `[b, n]` at its index `[b]`."""
  return jnp.take_along_axis(values, index[:, None], axis=1)[:, 0]


def _written(question: _Question, deceptive: bool) -> tuple[jax.Array, jax.Array]:
  """Tokens of the question and of its right answer."""
  words = [_ID[word] if isinstance(word, str) else word for word in question.words]
  answer = [question.answer, ANSWER_END_TOKEN, BLANK_TOKEN]
  if deceptive:
    words[question.place] = question.false_word
    answer = [NO_SUCH_TOKEN, question.false_word, ANSWER_END_TOKEN]
  words += [BLANK_TOKEN] * (_WIDTH - len(words))
  shape = question.valid.shape
  tokens, answers = (
    jnp.stack([jnp.broadcast_to(word, shape) for word in row], axis=1) for row in (words, answer)
  )
  return tokens.astype(jnp.int32), answers.astype(jnp.int32)
