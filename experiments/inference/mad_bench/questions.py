"""What the model is asked and what it is to answer: questions of all kinds, and captions."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab import data
from jaxlab.data import SceneBatch
from jaxlab.data.grid_scenes import GRID_SIDE, SCENE_BACKGROUNDS, SCENE_COLORS, SCENE_SHAPES
from jaxlab.metrics import false_premises

COUNT, EXISTENCE, ATTRIBUTE, BACKGROUND, SPATIAL, CONFUSION = range(len(data.CATEGORIES))
HELD_OUT = ATTRIBUTE, BACKGROUND  # Categories of which one is never warned of.
NONE = -1
PLAIN, WARNING, NEUTRAL, VERIFY = KINDS = range(4)
_ID = {word: i for i, word in enumerate(data.PROMPT_WORDS)}
_NEUTRAL = tuple(_ID[word] for word in ("now", "here", "comes", "the", "next"))
_FACTS = tuple(_ID[word] for word in ("color", "row", "place"))
_NUM_WORDS, _NUM_ANSWER = 9, 6
PROMPT_WIDTH = _NUM_WORDS + len(_NEUTRAL)
WIDTH = PROMPT_WIDTH + _NUM_ANSWER
NUM_SEEN = 10  # Tokens of a picture's cells and background.
NUM_TOKENS = len(_ID) + 1 + 2 * len(SCENE_COLORS) * len(SCENE_SHAPES) + len(SCENE_BACKGROUNDS)


class Asked(NamedTuple):
  """One question about each picture, and its twin with a false premise.

  The evidence is the true word in the place that differs; of a thing it is the color of what is
  there, and "?" of what is not.
  """

  tokens: chex.Array  # The questions, int32 `[2, b, 9]`: with a true and with a false premise.
  answers: chex.Array  # The right answers, int32 `[2, b, 3]`.
  evidence: chex.Array  # Int32 `[2, b]`.
  category: chex.Array  # Int32 `[b]`, even among those that the picture admits.
  valid: chex.Array  # Whether it admits any, bool `[b]`.


class Rows(NamedTuple):
  """What an update sees: pictures or cells, texts, and a mask of the tokens to learn, `[b, 20]`."""

  seen: chex.Array
  tokens: chex.Array
  mask: chex.Array


def ask(key, scenes: SceneBatch) -> Asked:
  """Asks a question about each picture, with a true and with a false premise.

  It asks after the color, the row or the place of a thing, whatever it assumes: no category has
  answers of its own. Only a question that tells the color does not ask after it.
  """
  key, fact_key = jax.random.split(key)
  twins = [data.make_prompts(key, scenes, category=None, deceptive=x) for x in (False, True)]
  tokens, answers = (jnp.stack(x) for x in zip(*(twin[:2] for twin in twins)))
  category, true_word = twins[0].category, jnp.where(tokens[0] != tokens[1], tokens[0], 0).sum(1)
  # The first thing in a question is the one that it asks after.
  shape, rows = tokens[0] - _ID[SCENE_SHAPES[0]], jnp.arange(len(category))
  is_shape = (shape >= 0) & (shape < len(SCENE_SHAPES))
  shape = shape[rows, jnp.argmax(is_shape, axis=1)]
  cell = jnp.argmax((scenes.shapes == shape[:, None]) & ~scenes.framed, axis=1)
  color = _ID[SCENE_COLORS[0]] + scenes.colors[rows, cell]
  facts = jnp.stack([color, _ID["top row"] + cell // GRID_SIDE, _ID["cell 1"] + cell])
  least = (category == ATTRIBUTE).astype(jnp.int32)
  fact = jax.random.randint(fact_key, rows.shape, least, len(_FACTS))
  tokens = tokens.at[:, :, 0].set(jnp.array(_FACTS)[fact])
  answers = answers.at[0, :, 0].set(facts[fact, rows])
  after_thing = ((category == EXISTENCE) | (category == CONFUSION))[None]
  found = jnp.stack([color, jnp.full_like(color, _ID["?"])])
  evidence = jnp.where(after_thing, found, true_word[None])
  return Asked(tokens, answers, evidence, category, twins[0].valid)


def prompts(tokens: chex.Array) -> jax.Array:
  """Questions `[b, 9]` as every kind of prompt, `[4, b, 14]`, and all at the same place."""

  def before(*words):
    words = (false_premises.BLANK_TOKEN,) * (len(_NEUTRAL) - len(words)) + words
    words = jnp.broadcast_to(jnp.array(words, jnp.int32), (len(tokens), len(words)))
    return jnp.concatenate([words, tokens], axis=1)

  warned, verified = data.add_think_twice(tokens), before(_ID["verify"])
  return jnp.stack([before(), warned, before(*_NEUTRAL), verified])


def verdicts(holds: chex.Array) -> jax.Array:
  """Words for premises that hold or do not."""
  return jnp.where(holds, false_premises.HOLDS_TOKEN, false_premises.FAILS_TOKEN)


def replies(answers: chex.Array, evidence: chex.Array, holds: chex.Array) -> jax.Array:
  """What is to be answered to every kind of prompt, `[4, b, 6]`; a check tells its evidence."""

  def wide(*parts):
    words = jnp.concatenate(parts, axis=1)
    return jnp.pad(words, ((0, 0), (0, _NUM_ANSWER - words.shape[1])))

  words = false_premises.CHECK_TOKEN, evidence, verdicts(holds)
  check = jnp.stack([jnp.broadcast_to(word, holds.shape) for word in words], axis=1)
  end = jnp.array([false_premises.ANSWER_END_TOKEN] + 2 * [false_premises.BLANK_TOKEN])
  objection = jnp.where(holds[:, None], end, answers)  # If there is one.
  plain = wide(answers)
  return jnp.stack([plain, wide(check, answers), plain, wide(check, objection)])


def texts(prompt: chex.Array, reply: chex.Array) -> tuple[jax.Array, jax.Array]:
  """Prompts with their replies, and masks of the replies, `[b, 20]`."""
  text = jnp.concatenate([prompt, reply], axis=1)
  is_reply = jnp.arange(WIDTH)[None] >= PROMPT_WIDTH
  return text, is_reply & (text != false_premises.BLANK_TOKEN)


def captions(scenes: SceneBatch) -> tuple[jax.Array, jax.Array]:
  """Texts that tell cell by cell what there is, and their masks.

  An object is its color and shape, a poster the shape first, an empty cell "? ?".
  """
  shape, color = _ID[SCENE_SHAPES[0]] + scenes.shapes, _ID[SCENE_COLORS[0]] + scenes.colors
  real, poster = jnp.stack([color, shape], axis=-1), jnp.stack([shape, color], axis=-1)
  words = jnp.where(scenes.framed[..., None], poster, real)
  words = jnp.where((scenes.shapes < 0)[..., None], _ID["?"], words).reshape(len(shape), -1)
  tokens = jnp.pad(words, ((0, 0), (1, 0)), constant_values=_ID["here"])
  tokens = jnp.pad(tokens, ((0, 0), (0, WIDTH - tokens.shape[1])))
  learned = (jnp.arange(WIDTH) > 0) & (jnp.arange(WIDTH) <= words.shape[1])
  return tokens.astype(jnp.int32), jnp.broadcast_to(learned[None], tokens.shape)


def look(scenes: SceneBatch, pixels: bool) -> jax.Array:
  """What a model sees: images, or a token for each cell and one for the background, `[b, 10]`."""
  if pixels:
    return scenes.images
  content = 2 * (len(SCENE_COLORS) * scenes.shapes + scenes.colors) + scenes.framed
  content = jnp.where(scenes.shapes < 0, 0, 1 + content)
  background = 1 + 2 * len(SCENE_COLORS) * len(SCENE_SHAPES) + scenes.background
  return len(_ID) + jnp.concatenate([content, background[:, None]], axis=1)


def draw_mix(key, batch_size: int, setting, *, pixels: bool = False) -> Rows:
  """Draws what a model learns.

  Args:
    key: random key.
    batch_size: rows b.
    pixels: as of `look`.
    setting: shares that may be traced: of `captions`; of questions to `verify`, and of those behind
      `neutral` words; of those behind the warning, `warned`, but for the category with the number
      `held_out`; and of plain questions after things that are not there, `deceptive`.

  Returns:
    The `Rows`.
  """
  scene_key, ask_key, caption_key, kind_key, false_key = jax.random.split(key, 5)
  scenes = data.sample_grid_scenes(scene_key, batch_size)
  asked = ask(ask_key, scenes)
  warning = jnp.where(asked.category == setting["held_out"], 0.0, setting["warned"])
  place = jax.random.uniform(kind_key, (batch_size,)) - setting["verify"]
  kind = jnp.where(place < warning + setting["neutral"], NEUTRAL, PLAIN)
  kind = jnp.where(place < 0, VERIFY, jnp.where(place < warning, WARNING, kind))
  about_nothing = jnp.where(asked.category == EXISTENCE, setting["deceptive"], 0.0)
  share = jnp.where((kind == VERIFY) | (kind == WARNING), 0.5, about_nothing)
  false = (jax.random.uniform(false_key, (batch_size,)) < share).astype(jnp.int32)
  rows = jnp.arange(batch_size)
  tokens, answers, evidence = (x[false, rows] for x in asked[:3])
  reply = replies(answers, evidence, false == 0)[kind, rows]
  questions = texts(prompts(tokens)[kind, rows], reply)
  is_caption = jax.random.bernoulli(caption_key, setting["captions"], (batch_size,))
  is_caption = (is_caption | ~asked.valid)[:, None]
  together = (jnp.where(is_caption, x, y) for x, y in zip(captions(scenes), questions))
  return Rows(look(scenes, pixels), *together)
