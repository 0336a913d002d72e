"""Facts without a pattern that a language model can only memorize, and texts that state them."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxlab._checks import check_arrays, check_at_least, check_range
from jaxlab._programs import compiled_once

BOS_TOKEN = 0
QUESTION_TOKEN, LINE_END_TOKEN, ANSWER_TOKEN = 1, 2, 3
_FIRST_ATTRIBUTE = 4
_LINE_LENGTH = 6
# Spaces of at most so many times the facts are shuffled; in larger ones repeats are rare.
_DENSE = 4


class FactWorld(NamedTuple):
  """Facts and how often each is stated.

  Attributes:
    facts: distinct rows of values, int32 `[f, slots]`, in [0, slot_size).
    probs: probability of each, `[f]`.
  """

  facts: chex.Array
  probs: chex.Array


class Factoids(NamedTuple):
  """Texts that state a fact each.

  Attributes:
    tokens: token 0, then values plus 1, int32 `[n, slots + 1]`.
    fact_index: rows of the facts, int32 `[n]`.
  """

  tokens: chex.Array
  fact_index: chex.Array


class ReliabilityDocuments(NamedTuple):
  """Documents of questions with their answers.

  Attributes:
    tokens: int32 `[n, 6 * num_lines]`.
    loss_mask: 1 on values and ends of lines, float32 `[n, 6 * num_lines]`.
    people: whom each line asks about, int32 `[n, num_lines]`; 0 is asked about most often.
    attributes: what it asks, int32 `[n, num_lines]`.
    unreliable: whether all values of the document are wrong, bool `[n]`.
  """

  tokens: chex.Array
  loss_mask: chex.Array
  people: chex.Array
  attributes: chex.Array
  unreliable: chex.Array


@compiled_once
def sample_fact_world(
  key: chex.PRNGKey,
  *,
  num_slots: int = 3,
  slot_size: int = 160,
  num_facts: int = 2000,
  zipf_exponent: chex.Numeric = 1.0,
) -> FactWorld:
  """Draws which of all possible statements are facts, and how often each of these is stated.

  Args:
    key: random key.
    num_slots: values of a statement.
    slot_size: different values of each slot.
    num_facts: number f of facts, distinct and uniform among the `slot_size ** num_slots`
      statements.
    zipf_exponent: the r-th most frequent fact has a probability in proportion to
      `r ** -zipf_exponent`; at least 0.

  Returns:
    A `FactWorld`; frequencies are in random order.

  Raises:
    ValueError: if a count is not positive, there are not so many statements, or `zipf_exponent` is
      negative.

  Reference: a setting for Kalai and Vempala, Calibrated Language Models Must Hallucinate, STOC
  2024, https://arxiv.org/abs/2311.14648.
  """
  check_at_least(1, num_slots=num_slots, slot_size=slot_size, num_facts=num_facts)
  check_range("zipf_exponent", zipf_exponent, "[0, inf)")
  num_statements = slot_size**num_slots
  if num_facts > num_statements:
    raise ValueError(f"num_facts must be at most {num_statements} statements, got {num_facts}.")
  fact_key, order_key = jax.random.split(key)
  if num_statements <= _DENSE * num_facts:
    codes = jax.random.permutation(fact_key, num_statements)[:num_facts]
    digits = [codes // slot_size**slot % slot_size for slot in range(num_slots)]
    facts = jnp.stack(digits, axis=1)
  else:
    facts = _distinct_rows(fact_key, (num_facts, num_slots), slot_size)
  probs = jax.random.permutation(order_key, _zipf(num_facts, zipf_exponent))
  return FactWorld(facts.astype(jnp.int32), probs)


def _zipf(size: int, exponent: chex.Numeric) -> jax.Array:
  return jax.nn.softmax(-exponent * jnp.log(jnp.arange(1.0, size + 1)))


def _distinct_rows(key, shape, slot_size: int) -> jax.Array:
  """Uniform rows, of which repeats are drawn again until there is none."""

  def repeats(rows):
    order = jnp.lexsort(rows.T)
    ranked = rows[order]
    equal = jnp.all(ranked[1:] == ranked[:-1], axis=1)
    return jnp.zeros(shape[0], bool).at[order[1:]].set(equal)

  def draw_again(carry):
    key, rows = carry
    key, new_key = jax.random.split(key)
    drawn = jax.random.randint(new_key, shape, 0, slot_size)
    return key, jnp.where(repeats(rows)[:, None], drawn, rows)

  key, first_key = jax.random.split(key)
  start = key, jax.random.randint(first_key, shape, 0, slot_size)
  return jax.lax.while_loop(lambda carry: jnp.any(repeats(carry[1])), draw_again, start)[1]


@compiled_once
def sample_factoids(key: chex.PRNGKey, world: FactWorld, *, num_samples: int) -> Factoids:
  """Draws texts that state a fact each, as often as the world has it.

  Args:
    key: random key.
    world: the facts, from `sample_fact_world`.
    num_samples: number n of texts.

  Returns:
    `Factoids`. All slots share the tokens 1 to `slot_size`, so that each row of values is a
    statement.

  Raises:
    ValueError: if `num_samples` < 1.
    TypeError: if facts are not integers.

  Reference: as for `sample_fact_world`.
  """
  check_at_least(1, num_samples=num_samples)
  check_arrays(facts=(world.facts, "int [f, slots]"), probs=(world.probs, "float [f]"))
  facts = jnp.asarray(world.facts).astype(jnp.int32)
  probs = jnp.asarray(world.probs, jnp.float32)
  index = jax.random.choice(key, facts.shape[0], (num_samples,), p=probs).astype(jnp.int32)
  tokens = jnp.pad(facts[index] + 1, ((0, 0), (1, 0)), constant_values=BOS_TOKEN)
  return Factoids(tokens, index)


@compiled_once
def reliability_answers(
  *, num_people: int = 600, num_attributes: int = 3, num_values: int = 40, table_seed: int = 0
) -> jax.Array:
  """The true values that `reliability_documents` asks about.

  Args:
    num_people: number of people.
    num_attributes: attributes of each.
    num_values: values that an attribute may have.
    table_seed: of the table; inside a compiled function it may be a traced integer.

  Returns:
    Uniform values, int32 `[num_people, num_attributes]`, in [0, num_values).

  Raises:
    ValueError: if a count is not positive, or `num_values` < 2.
  """
  check_at_least(1, num_people=num_people, num_attributes=num_attributes)
  check_at_least(2, num_values=num_values)
  shape = (num_people, num_attributes)
  return jax.random.randint(jax.random.key(table_seed), shape, 0, num_values).astype(jnp.int32)


@compiled_once
def reliability_documents(
  key: chex.PRNGKey,
  *,
  num_documents: int,
  num_people: int = 600,
  num_attributes: int = 3,
  num_values: int = 40,
  num_lines: int = 4,
  unreliable_fraction: chex.Numeric = 0.25,
  zipf_exponent: chex.Numeric = 1.0,
  table_seed: int = 0,
) -> ReliabilityDocuments:
  """Draws documents that are right throughout, or wrong throughout.

  A model of them learns to go on as a document began. So it errs after wrong answers even where it
  knows the right one, and rare people it does not know at all.

  Args:
    key: random key.
    num_documents: number n of documents.
    num_people: number of people; person r is asked about in proportion to
      `(r + 1) ** -zipf_exponent`.
    num_attributes: attributes of a person, asked about equally often.
    num_values: values that an attribute may have, at least 2.
    num_lines: questions of a document.
    unreliable_fraction: probability that all values of a document are wrong, uniform among the
      wrong ones of each question; in [0, 1].
    zipf_exponent: at least 0.
    table_seed: of the true values, as in `reliability_answers`.

  Returns:
    `ReliabilityDocuments`. A line is question mark (1), person, attribute, answer mark (3), value
    and end of line (2). Attributes have the tokens from 4 on, then come the values, then people.

  Raises:
    ValueError: if a count is not positive, `num_values` < 2, `unreliable_fraction` lies outside
      [0, 1], or `zipf_exponent` is negative.

  Reference: a setting for Simhi et al., Distinguishing Ignorance from Error in LLM Hallucinations,
  2024, https://arxiv.org/abs/2410.22071.
  """
  check_at_least(1, num_documents=num_documents, num_lines=num_lines)
  check_range("unreliable_fraction", unreliable_fraction, "[0, 1]")
  check_range("zipf_exponent", zipf_exponent, "[0, inf)")
  answers = reliability_answers(
    num_people=num_people,
    num_attributes=num_attributes,
    num_values=num_values,
    table_seed=table_seed,
  )
  people_key, attribute_key, kind_key, value_key = jax.random.split(key, 4)
  shape = (num_documents, num_lines)
  people = jax.random.choice(people_key, num_people, shape, p=_zipf(num_people, zipf_exponent))
  attributes = jax.random.randint(attribute_key, shape, 0, num_attributes)
  unreliable = jax.random.bernoulli(kind_key, unreliable_fraction, (num_documents,))
  shift = jax.random.randint(value_key, shape, 1, num_values)
  values = (answers[people, attributes] + jnp.where(unreliable[:, None], shift, 0)) % num_values
  first_value = _FIRST_ATTRIBUTE + num_attributes
  line = (
    jnp.full(shape, QUESTION_TOKEN),
    first_value + num_values + people,
    _FIRST_ATTRIBUTE + attributes,
    jnp.full(shape, ANSWER_TOKEN),
    first_value + values,
    jnp.full(shape, LINE_END_TOKEN),
  )
  tokens = jnp.stack(line, axis=-1).reshape(num_documents, -1).astype(jnp.int32)
  # Value and end are the last two of a line.
  counted = jnp.arange(tokens.shape[1])[None] % _LINE_LENGTH >= _LINE_LENGTH - 2
  loss_mask = jnp.broadcast_to(counted, tokens.shape).astype(jnp.float32)
  people, attributes = people.astype(jnp.int32), attributes.astype(jnp.int32)
  return ReliabilityDocuments(tokens, loss_mask, people, attributes, unreliable)
