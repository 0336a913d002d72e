"""Questions with four choices about a table of facts, and other words for them."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab import augment

ANSWER_MARK, NUM_RELATIONS = 1, 5
NUM_CHOICES, _NUM_WORDS, _NUM_FILLERS = 4, 4, 3
_OF_WORD, _OF_RELATION = 1 + 4, 1 + 2  # Tokens: a word and its synonyms, which stand behind it.
# How often a question in other words holds the rarest of these, a synonym of a relation; half of
# the relations are replaced, since strengths are uniform.
RAREST = 0.5 / (NUM_RELATIONS * (_OF_RELATION - 1))
_FIRST_LETTER = ANSWER_MARK + 1
_FIRST_WORD = _FIRST_LETTER + NUM_CHOICES
_FIRST_RELATION = _FIRST_WORD + _NUM_WORDS * _OF_WORD
_FIRST_FILLER = _FIRST_RELATION + NUM_RELATIONS * _OF_RELATION
FIRST_ENTITY = _FIRST_FILLER + _NUM_FILLERS
_A, _B, _C, _D = range(_FIRST_WORD, _FIRST_RELATION, _OF_WORD)
_E, _R = -1, -2  # Entity and relation.
TEMPLATES = (
  (_A, _B, _R, _C, _E),  # The benchmark's.
  (_A, _C, _E, _B, _R),
  (_E, _D, _A, _R, _B),
  (_D, _R, _C, _E, _B),
  (_R, _C, _E, _D, _A),
  (_B, _D, _E, _A, _R),
)


class Questions(NamedTuple):
  """Questions with four choices of which one is right.

  Attributes:
    tokens: question, choices with their letters and the answer mark, padded with 0, `[n, t]`.
    choices: values, `[n, 4]`.
    answers: the right values, `[n]`.
  """

  tokens: chex.Array
  choices: chex.Array
  answers: chex.Array


def first_value(config) -> int:
  """The token of the first value."""
  return FIRST_ENTITY + config.num_entities


def grammar(config, parts=("synonyms", "templates", "fillers")) -> augment.ParaphraseGrammar:
  """Other words for questions: all of it, or some parts alone."""
  size = first_value(config) + config.num_values
  table = [[-1] * (_OF_WORD - 1) for _ in range(size)]
  if "synonyms" in parts:
    kinds = (_FIRST_WORD, _FIRST_RELATION, _OF_WORD), (_FIRST_RELATION, _FIRST_FILLER, _OF_RELATION)
    for first, stop, number in kinds:
      for word in range(first, stop, number):
        table[word][: number - 1] = range(word + 1, word + number)
  # Fillers stand before words of templates; synonyms alone need none.
  templates = TEMPLATES[: 1 if "fillers" in parts else 0]
  templates = TEMPLATES if "templates" in parts else templates
  fillers = range(_FIRST_FILLER, FIRST_ENTITY) if "fillers" in parts else ()
  return augment.ParaphraseGrammar(tuple(map(tuple, table)), templates, tuple(fillers))


def row_length(config) -> int:
  """Tokens of a row, in whatever words."""
  return len(TEMPLATES[0]) + 2 * NUM_CHOICES + 1 + grammar(config).extra_length


def draw_table(config, key) -> jax.Array:
  """The value of every relation of every entity, `[entities, relations]`; different ones."""
  keys = jax.random.split(key, config.num_entities)
  permute = jax.vmap(lambda k: jax.random.permutation(k, config.num_values))
  return permute(keys)[:, :NUM_RELATIONS].astype(jnp.int32)


def ask(config, key, table, facts) -> Questions:
  """Asks about facts in the benchmark's words, the choices in random order.

  The wrong choices are true of the same entity and other relations, so that what is asked matters.

  Args:
    config: of the experiment.
    key: of choices and their order.
    table: of `draw_table`.
    facts: their numbers, `[n]`.

  Returns:
    The `Questions`, in rows of `row_length` tokens.
  """
  other_key, order_key = jax.random.split(key)
  entities, relations = facts // NUM_RELATIONS, facts % NUM_RELATIONS
  shape = len(facts), NUM_RELATIONS
  is_asked = jnp.arange(NUM_RELATIONS)[None] == relations[:, None]
  others = jnp.argsort(jax.random.uniform(other_key, shape) - is_asked, axis=1)[:, :NUM_CHOICES]
  order = jnp.argsort(jax.random.uniform(order_key, others.shape), axis=1)
  chosen = jnp.take_along_axis(others, order, axis=1)
  choices = table[entities[:, None], chosen]
  slots = {_E: entities + FIRST_ENTITY, _R: _FIRST_RELATION + relations * _OF_RELATION}
  columns = [slots.get(token, jnp.full_like(facts, token)) for token in TEMPLATES[0]]
  for i in range(NUM_CHOICES):
    columns += [jnp.full_like(facts, _FIRST_LETTER + i), choices[:, i] + first_value(config)]
  columns.append(jnp.full_like(facts, ANSWER_MARK))
  tokens = jnp.stack(columns, axis=1)
  padded = jnp.pad(tokens, ((0, 0), (0, row_length(config) - tokens.shape[1])))
  return Questions(padded, choices, table[entities, relations])


def reword(config, key, questions: Questions, strengths, parts=None) -> Questions:
  """Says questions in other words, each with its strength, `[n]`."""
  words = grammar(config) if parts is None else grammar(config, parts)
  keys = jax.random.split(key, len(strengths))

  def one(key, row, strength):
    return augment.paraphrase(key, row[None], words, strength=strength)[0]

  width = questions.tokens.shape[1]
  return questions._replace(tokens=jax.vmap(one)(keys, questions.tokens, strengths)[:, :width])


def draw_training(config, key, num: int, table, benchmark: Questions, setting) -> Questions:
  """Draws training questions, of which some are in other words and some are the benchmark's.

  Args:
    config: of the experiment.
    key: random key.
    num: number of questions.
    table: the facts.
    benchmark: the benchmark.
    setting: traced: `share` in other words, at strengths uniform in [0, 1], and `leaked`, the share
      of items of the benchmark.

  Returns:
    The `Questions`.
  """
  fact_key, ask_key, kind_key, word_key, leak_key, item_key = jax.random.split(key, 6)
  facts = jax.random.randint(fact_key, (num,), 0, table.size)
  questions = ask(config, ask_key, table, facts)
  chance, strength = jax.random.uniform(kind_key, (2, num))
  reworded = chance < setting["share"]
  questions = reword(config, word_key, questions, jnp.where(reworded, strength, 0.0))
  is_leaked = jax.random.bernoulli(leak_key, setting["leaked"], (num,))
  item = jax.random.randint(item_key, (num,), 0, len(benchmark.answers))
  pick = lambda x, y: jnp.where(is_leaked.reshape(-1, *[1] * (x.ndim - 1)), y[item], x)  # noqa: E731
  return jax.tree.map(pick, questions, benchmark)


def solve(config, table, tokens) -> jax.Array:
  """The right value of each question, read from its words, `[n]`; -1 where there is no question."""
  size = first_value(config)
  is_entity = (tokens >= FIRST_ENTITY) & (tokens < size)
  is_relation = (tokens >= _FIRST_RELATION) & (tokens < _FIRST_FILLER)
  entity, relation = (
    jnp.take_along_axis(tokens, jnp.argmax(mask, axis=1)[:, None], axis=1)[:, 0]
    for mask in (is_entity, is_relation)
  )
  relation = (relation - _FIRST_RELATION) // _OF_RELATION
  value = table[jnp.clip(entity - FIRST_ENTITY, 0, len(table) - 1), jnp.clip(relation, 0)]
  offered = jnp.any(tokens == (value + size)[:, None], axis=1)
  found = (jnp.sum(is_entity, axis=1) == 1) & (jnp.sum(is_relation, axis=1) == 1)
  return jnp.where(found & offered, value, -1)
